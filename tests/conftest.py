"""A small country, made and extracted once for the session, and the command line as a user runs it.

- `country`: painted and extracted once; read it, don't change it.
- `config`: settings over that country, with runs and submissions in the test's own directory.
- `own`: a copy of the country, cache included, that a test may break; `own.config()` are its settings.
- `fitted`: a run over the country, made once; `run` is a copy of it in the test's own runs directory.
- `geo`: runs a command in a process of its own, in the test's directory.
- `geo_in`: the same, in any directory; for fixtures that live longer than a test.
- `nursery`: processes that run a command and can be killed; a module's own.
- `copy_country`: a copy of the country at any place; for fixtures that live longer than a test.

Every test runs in an empty directory, without `GEO_*` and without a network, so that no geo.toml, run or model of
this machine can leak in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

_hugging_face = tempfile.TemporaryDirectory(prefix="geo-tests-hf-")
for _name in [name for name in os.environ if name.startswith(("GEO_", "HF_"))]:
    del os.environ[_name]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _hugging_face.name}
# Models this small gain nothing from threads, and lose much where other work shares the cores.
os.environ["OMP_NUM_THREADS"] = "1"

from small import Country, Nursery, Ran  # noqa: E402

from geo_embed.config import Config  # noqa: E402
from geo_embed.runs.run import Run, load_run  # noqa: E402
from geo_embed.synthetic import country as synthetic  # noqa: E402

LOCATIONS = 160


GEO = (sys.executable, "-m", "geo_embed")
Geo = Callable[..., Ran]


def _run(
    directory: Path, *arguments: object, env: Mapping[str, str] | None = None, command: Sequence[str] = GEO
) -> Ran:
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=directory,
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def country(tmp_path_factory: pytest.TempPathFactory) -> Country:
    root = tmp_path_factory.mktemp("country")
    made = Country(root, root / "backbone")
    synthetic.write_country(made.data, locations=LOCATIONS, seed=0, image_size=64, workers=1)
    synthetic.write_backbone(made.backbone)
    from geo_embed.extraction.extract import extract

    for split in ("train", "test"):
        extract(made.config(), split)
    return made


@pytest.fixture
def config(country: Country, tmp_path: Path) -> Config:
    return country.config(tmp_path)


@pytest.fixture(scope="session")
def copy_country(country: Country) -> Callable[[Path], Country]:
    def copy(to: Path) -> Country:
        shutil.copytree(country.root, to)
        return Country(to, to / "backbone")

    return copy


@pytest.fixture
def own(copy_country: Callable[[Path], Country], tmp_path: Path) -> Country:
    return copy_country(tmp_path / "own")


@pytest.fixture(scope="session")
def fitted(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from geo_embed.fitting.fit import fit_heads

    work = tmp_path_factory.mktemp("fitted")
    fit_heads(country.config(work), name="first")
    return work / "runs" / "first"


@pytest.fixture
def run(fitted: Path, config: Config) -> Run:
    shutil.copytree(fitted, config.paths.runs_dir / "first")
    return load_run(config.paths.runs_dir, "first")


@pytest.fixture(scope="session")
def geo_in() -> Geo:
    return _run


@pytest.fixture
def geo(tmp_path: Path) -> Iterator[Geo]:
    def run(*arguments: object, env: Mapping[str, str] | None = None, command: Sequence[str] = GEO) -> Ran:
        return _run(tmp_path, *arguments, env=env, command=command)

    return run


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()
