"""Bundle what the package's pages draw with into the `vendor` folders beside them, with licences and sums. Needs Node and npm.

    python tools/vendor_page.py            # fetch, check against tools/page/package-lock.json, bundle, write
    python tools/vendor_page.py --check    # the same into a temporary folder; exits with 1 where the package holds something else

npm refuses what doesn't have the lock file's SHA-512. Minified by esbuild: the same versions give the same bytes anywhere. The report's
bundle is one global, `vendor`, for a page that is a single file; the explorer's is a module.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tools" / "page"
LICENCES, SUMS = "LICENSES.txt", "SHA256SUMS"
# What esbuild's metafile calls a file of a package.
MODULES = "node_modules/"


@dataclass(frozen=True)
class Bundle:
    """A script of tools/page, and what it becomes.

    Attributes:
        entry: the script, which exports what a page uses.
        wing: the wing whose page it is.
        form: how esbuild wraps it.
    """

    entry: str
    wing: str
    form: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{Path(self.entry).stem}.min.js"

    @property
    def folder(self) -> Path:
        """Where the package has it."""
        return ROOT / "geo_embed" / self.wing / "page" / "vendor"

    @property
    def files(self) -> tuple[str, str, str]:
        """All that lies there."""
        return self.name, LICENCES, SUMS


BUNDLES = (
    Bundle("plot.mjs", "reporting", ("--format=iife", "--global-name=vendor")),
    Bundle("explore.mjs", "explorer", ("--format=esm",)),
)


def install(work: Path) -> None:
    """Put into `work` what the lock file names."""
    for name in ("package.json", "package-lock.json", *(bundle.entry for bundle in BUNDLES)):
        shutil.copy(SOURCE / name, work)
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], work)


def write(bundle: Bundle, work: Path, out: Path) -> None:
    """Write a bundle, its licences and sums into `out`, from what is installed in `work`."""
    run(
        [
            *("node_modules/.bin/esbuild", bundle.entry, "--bundle", "--minify", *bundle.form),
            *("--target=es2020", "--charset=ascii", "--legal-comments=none"),
            *("--log-level=warning", "--metafile=meta.json", f"--outfile={out / bundle.name}"),
        ],
        work,
    )
    inputs = json.loads((work / "meta.json").read_text(encoding="utf-8"))["inputs"]
    (out / LICENCES).write_text(licences(work, sorted(inputs)), encoding="utf-8")
    (out / SUMS).write_text(sums(out, bundle.name), encoding="utf-8")


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


def sums(folder: Path, bundle: str) -> str:
    """Lines as `sha256sum` writes them, of a bundle and its licences."""
    return "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in (bundle, LICENCES)
    )


def run(command: list[str], directory: Path) -> None:
    subprocess.run(command, cwd=directory, check=True)


def main(arguments: list[str]) -> int:
    """Write the vendored files, or with `--check` compare them."""
    wrong = []
    with tempfile.TemporaryDirectory() as work:
        install(Path(work))
        for bundle in BUNDLES:
            with tempfile.TemporaryDirectory() as made:
                write(bundle, Path(work), Path(made))
                if arguments != ["--check"]:
                    bundle.folder.mkdir(parents=True, exist_ok=True)
                for name in bundle.files:
                    path = bundle.folder / name
                    if arguments != ["--check"]:
                        shutil.copyfile(Path(made) / name, path)
                    elif not path.exists() or path.read_bytes() != (Path(made) / name).read_bytes():
                        wrong.append(str(path.relative_to(ROOT)))
    if arguments == ["--check"]:
        print("differs: " + ", ".join(wrong) if wrong else "the same")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
