"""`make lowest`: the lower bounds in pyproject.toml, held to their word.

The lowest declared version of every dependency, optional ones too, goes into a throw-away environment of the lowest Python, and
`geo demo` and a LoRA training run there. A bound that another package lifts was never tried, and is refused. Newer Pythons are resolved, not run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOWEST, NEWER = "3.11", ("3.12", "3.13")
# The lowest torch for Linux comes with CUDA.
NEEDED_GIGABYTES = 12


def bounds(project: dict[str, object]) -> dict[str, str]:
    """Lower bound by name of every dependency, optional ones included."""
    assert isinstance(project["dependencies"], list)
    assert isinstance(project["optional-dependencies"], dict)
    declared = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    return {name: bound for name, _, bound in (text.partition(">=") for text in declared)}


def lifted(declared: dict[str, str], resolved: str) -> list[str]:
    """What isn't installed in the version that is declared, one line each."""
    installed = dict(line.split("==") for line in resolved.splitlines())
    return [
        f"{name}>={bound} is declared, and {installed.get(name)} is the lowest that can be installed"
        for name, bound in declared.items()
        if _numbers(installed.get(name, "")) != _numbers(bound)
    ]


def _numbers(version: str) -> list[str]:
    """1.6 and 1.6.0 are one version."""
    numbers = version.split(".")
    while numbers and numbers[-1] == "0":
        numbers.pop()
    return numbers


def main() -> int:
    free = shutil.disk_usage(tempfile.gettempdir()).free // 2**30
    if free < NEEDED_GIGABYTES:
        print(
            f"error: {free} GB are free in {tempfile.gettempdir()}, and {NEEDED_GIGABYTES} needed",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory(prefix="geo-lowest-") as folder:
        room = Path(folder)

        def run(*command: str | Path) -> str:
            print("$", *command, flush=True)
            done = subprocess.run(
                command, cwd=room, env=environment, stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"error: that ended with {done.returncode}")
            return done.stdout

        # Nothing of this machine's geo_embed, settings or caches enters.
        strange = ("GEO_", "PYTHON", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        environment |= {"HF_HUB_OFFLINE": "1", "UV_CACHE_DIR": str(room / "downloads")}
        run(sys.executable, "-m", "venv", "uv")
        uv, python, geo = (room / path for path in ("uv/bin/uv", "lowest/bin/python", "lowest/bin/geo"))
        run(room / "uv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "uv")

        # Every Python gets an answer, of the newest and of the lowest versions.
        source = ("--quiet", "--no-header", "--no-annotate", "--all-extras", str(ROOT / "pyproject.toml"))
        for version in NEWER:
            for resolution in ("highest", "lowest-direct"):
                run(uv, "pip", "compile", "--resolution", resolution, "--python-version", version, *source)
        resolved = run(
            uv, "pip", "compile", "--resolution", "lowest-direct", "--python-version", LOWEST, *source
        )
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        untrue = lifted(bounds(project), resolved)
        if untrue:
            print("error: bounds that were never tried:", *untrue, sep="\n  ", file=sys.stderr)
            return 1

        # The lowest is installed, and taken from pictures to a submission.
        (room / "lowest.txt").write_text(resolved, encoding="utf-8")
        run(uv, "venv", "--quiet", "--python", LOWEST, "lowest")
        run(uv, "pip", "install", "--quiet", "--python", python, "--requirement", "lowest.txt")
        run(uv, "pip", "install", "--quiet", "--python", python, "--no-deps", str(ROOT))
        run(geo, "demo", "--root", "demo", "--locations", "80")
        settings = ("--set", "paths.data_root=demo/data", "--set", "paths.cache_dir=demo/cache")
        settings += ("--set", "model.backbone_name=demo/backbone")
        run(geo, *settings, "--set", "finetune.lora_rank=2", "finetune", "--name", "lora", "--epochs", "1")
        run(
            python,
            "-W",
            "ignore",
            "-c",
            "import timm; timm.create_model('vit_tiny_patch16_224', pretrained=False)",
        )
        print(f"the lowest versions do: {', '.join(resolved.split())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
