"""Bundle what the package's pages draw with into geo_embed/reporting/page/vendor, with its licences and sums. Needs Node and npm.

    python tools/vendor_page.py            # fetch, check against tools/page/package-lock.json, bundle, write
    python tools/vendor_page.py --check    # the same into a temporary folder; exits with 1 where the package holds something else

npm refuses what doesn't have the lock file's SHA-512. Minified by esbuild: the same versions give the same bytes anywhere.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tools" / "page"
VENDOR = ROOT / "geo_embed" / "reporting" / "page" / "vendor"
BUNDLE, LICENCES, SUMS = "plot.min.js", "LICENSES.txt", "SHA256SUMS"
# What esbuild's metafile calls a file of a package.
MODULES = "node_modules/"


def bundle(work: Path, out: Path) -> None:
    """Install into `work` what the lock file names, and write bundle, licences and sums into `out`."""
    for name in ("package.json", "package-lock.json", "plot.mjs"):
        shutil.copy(SOURCE / name, work)
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], work)
    esbuild = ["node_modules/.bin/esbuild", "plot.mjs", "--bundle", "--minify", "--format=iife"]
    run(
        [
            *esbuild,
            *("--global-name=vendor", "--target=es2020", "--charset=ascii", "--legal-comments=none"),
            *("--log-level=warning", "--metafile=meta.json", f"--outfile={out / BUNDLE}"),
        ],
        work,
    )
    inputs = json.loads((work / "meta.json").read_text(encoding="utf-8"))["inputs"]
    (out / LICENCES).write_text(licences(work, sorted(inputs)), encoding="utf-8")
    (out / SUMS).write_text(sums(out), encoding="utf-8")


def licences(work: Path, files: list[str]) -> str:
    """Name, version and licence of every package that files of the bundle come from."""
    packages = set()
    for file in files:
        if file.startswith(MODULES):
            parts = file.removeprefix(MODULES).split("/")
            packages.add("/".join(parts[: 2 if parts[0].startswith("@") else 1]))
    texts = []
    for package in sorted(packages):
        folder = work / MODULES / package
        about = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        (licence, *_) = sorted(folder.glob("LICENSE*"))
        text = licence.read_text(encoding="utf-8").strip()
        texts.append(f"{package} {about['version']}\n\n{text}\n")
    return "\n\n".join(texts)


def sums(folder: Path) -> str:
    """Lines as `sha256sum` writes them."""
    return "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in (BUNDLE, LICENCES)
    )


def run(command: list[str], directory: Path) -> None:
    subprocess.run(command, cwd=directory, check=True)


def main(arguments: list[str]) -> int:
    """Write the vendored files, or with `--check` compare them."""
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as made:
        bundle(Path(work), Path(made))
        if arguments == ["--check"]:
            wrong = [
                name
                for name in (BUNDLE, LICENCES, SUMS)
                if (Path(made) / name).read_bytes() != (VENDOR / name).read_bytes()
            ]
            print("differs: " + ", ".join(wrong) if wrong else "the same")
            return int(bool(wrong))
        VENDOR.mkdir(exist_ok=True)
        for name in (BUNDLE, LICENCES, SUMS):
            shutil.copyfile(Path(made) / name, VENDOR / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
