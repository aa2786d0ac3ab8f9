"""The wheel that `python -m build` makes: what is in it, and that it works where only it is installed."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import geo_embed

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(command: Sequence[str | Path], directory: Path) -> str:
    """What a command prints; nothing of this checkout can be imported in it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("build", "hatchling"):
        pytest.importorskip(tool, reason=f"{tool} isn't installed; `pip install --group dev` brings it")
    directory = tmp_path_factory.mktemp("wheel")
    # Without isolation nothing is fetched: hatchling comes from the environment of the tests.
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, ROOT]
    run(build, directory)
    (made,) = directory.glob("*.whl")
    return made


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    information = f"geo_embed-{geo_embed.__version__}.dist-info"
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "geo_embed").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert {"geo_embed/py.typed", "geo_embed/synthetic/us_states.json"} <= files
    assert {name for name in names if not name.startswith(information)} == files
    assert f"{information}/licenses/LICENSE" in names


def test_an_installed_wheel_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel],
        tmp_path,
    )
    # The dependencies are those of the environment of the tests. A .pth inside another's folder isn't read: an editable
    # install there stays out of sight.
    paths = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    site_packages = Path(sysconfig.get_path("purelib", vars=paths))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    geo = tmp_path / "venv" / "bin" / "geo"

    where = run([python, "-c", "import geo_embed; print(geo_embed.__file__)"], tmp_path)
    assert Path(where.strip()) == site_packages / "geo_embed" / "__init__.py"
    assert run([geo, "--version"], tmp_path).strip() == geo_embed.__version__
    short = ("--set", "training.budget_seconds=0.2", "--set", "finetune.epochs=1")
    summary = json.loads(
        run([geo, "--json", *short, "demo", "--locations", "40", "--root", "demo"], tmp_path)
    )
    assert (tmp_path / summary["submission"]).stat().st_size > 0
