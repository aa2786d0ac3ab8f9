"""A small country, made and extracted once for the session, and the command line as a user runs it.

- `country`: painted and extracted once; read it, don't change it.
- `config`: settings over that country, with runs and submissions in the test's own directory.
- `small`: a few places of it that a test may do anything to, not extracted; how many, `pytest.mark.cut` says, as `Small.cut` does.
- `samples`, `spec`: of `small`, its training samples, and what its backbone wants done to a picture.
- `own`: a copy of the country, cache included, that a test may break; `own.config()` are its settings.
- `fitted`: a run over the country, made once; `run` is a copy of it in the test's own runs directory.
- `geo`: runs a command in a process of its own, in the test's directory.
- `geo_in`: the same, in any directory; for fixtures that live longer than a test.
- `nursery`: processes that run a command and can be killed.
- `bucket`: an empty place in a bucket of an S3 server on this machine; `s3` is the server, which can be told what is to go wrong.
- `copy_country`: a copy of the country at any place; for fixtures that live longer than a test.

Every test runs in an empty directory, without `GEO_*` and without a network, so that no geo.toml, run or model of
this machine can leak in. Where pytest-xdist runs tests in several processes, what a session makes once is made by the
first that asks for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

_hugging_face = tempfile.TemporaryDirectory(prefix="geo-tests-hf-")
for _name in [name for name in os.environ if name.startswith(("GEO_", "HF_"))]:
    del os.environ[_name]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _hugging_face.name}
# Models this small gain nothing from threads, and lose much where other work shares the cores.
os.environ["OMP_NUM_THREADS"] = "1"
# No test cuts the power but those that say so (`recorded`): waiting for the disk, thousands of times, is left out.
os.fsync = lambda _handle: None

from s3 import BUCKET, Server, serving  # noqa: E402
from small import Country, Nursery, Ran, Small  # noqa: E402

from geo_embed.backbones.preprocessing import read_preprocessing  # noqa: E402
from geo_embed.buckets import Address  # noqa: E402
from geo_embed.config import Config  # noqa: E402
from geo_embed.data.images import Preprocessing  # noqa: E402
from geo_embed.data.samples import Samples, load_samples  # noqa: E402
from geo_embed.runs.run import Run, load_run  # noqa: E402
from geo_embed.synthetic.backbone import write_backbone  # noqa: E402
from geo_embed.synthetic.country import write_country  # noqa: E402

LOCATIONS = 160
Geo = Callable[..., Ran]


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that `make` fills, once for all processes that share this session's tests."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    directory, whole = root / name, root / f"{name}.whole"
    with FileLock(root / f"{name}.lock"):
        if not whole.exists():
            # Half of it lies there where another process failed.
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            make(directory)
            whole.touch()
    return directory


def _run(directory: Path, *arguments: object, command: Sequence[str], env: Mapping[str, str] | None) -> Ran:
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


@pytest.fixture(autouse=True)
def _nothing_left_running(nursery: Nursery) -> Iterator[None]:
    yield
    nursery.clear()


@pytest.fixture(scope="session")
def country(tmp_path_factory: pytest.TempPathFactory) -> Country:
    from geo_embed.extraction.extract import extract

    def make(root: Path) -> None:
        made = Country(root, root / "backbone")
        write_country(made.data, locations=LOCATIONS, seed=0, image_size=64, workers=1)
        write_backbone(made.backbone)
        for split in ("train", "test"):
            extract(made.config(), split)

    root = _made_once(tmp_path_factory, "country", make)
    return Country(root, root / "backbone")


@pytest.fixture
def small(country: Country, tmp_path: Path, request: pytest.FixtureRequest) -> Small:
    asked = request.node.get_closest_marker("cut")
    return Small.cut(country, tmp_path / "small", **(asked.kwargs if asked else {}))


@pytest.fixture
def samples(small: Small) -> Samples:
    return load_samples(small.config(), "train")


@pytest.fixture
def spec(small: Small) -> Preprocessing:
    return read_preprocessing(small.backbone, exact=False)


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

    work = _made_once(
        tmp_path_factory, "fitted", lambda work: fit_heads(country.config(work), name="first") and None
    )
    return work / "runs" / "first"


@pytest.fixture
def run(fitted: Path, config: Config) -> Run:
    shutil.copytree(fitted, config.paths.runs_dir / "first")
    return load_run(config.paths.runs_dir, "first")


@pytest.fixture(scope="session")
def geo_in(nursery: Nursery) -> Geo:
    """`command` in place of `geo` gives it a process that has imported nothing yet."""

    def run(
        directory: Path,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> Ran:
        if command is not None:
            return _run(directory, *arguments, command=command, env=env)
        return nursery.start_in(directory, *arguments, environment=env).end()

    return run


@pytest.fixture
def geo(geo_in: Geo, tmp_path: Path) -> Geo:
    return partial(geo_in, tmp_path)


@pytest.fixture(scope="session")
def _server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def s3(_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name, value in _server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "10")
    _server.reset()
    yield _server
    _server.reset()


@pytest.fixture
def bucket(s3: Server) -> Address:
    return Address("s3:", BUCKET, uuid.uuid4().hex[:12])


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()
