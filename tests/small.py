"""Countries to test on, and commands over them, in this process or in one that can be killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from geo_embed.answers import Predictions, Truth
from geo_embed.backbones.weights import fingerprint_of
from geo_embed.cache.store import open_store, read_ids, rewrite_attributes
from geo_embed.cli import main
from geo_embed.config import Config
from geo_embed.console import set_quiet
from geo_embed.extraction.extract import extract
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.table import read_predictions, read_stores, write_predictions

if TYPE_CHECKING:
    import pytest

VIEWS = ("north", "east", "south", "west")
# As the first version had it: everything that its stores said of how they were made.
EARLIER = ("weights_sha256", "preprocessing", "feature", "view_names", "dtype", "stored")


@dataclass(frozen=True)
class Country:
    """A dataset, the backbone that looks at it, and the embeddings that came of it."""

    root: Path
    backbone: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def train_csv(self) -> Path:
        return self.data / "train_ground_truth.csv"

    @property
    def template(self) -> Path:
        return self.data / "sample_submission.csv"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def images(self, split: str = "train") -> Path:
        return self.data / f"{split}_images"

    def store(self, split: str = "train") -> Path:
        (path,) = self.cache.glob(f"*/{split}.zarr")
        return path

    def settings(self, work: Path | None = None) -> dict[str, Any]:
        """Dotted settings that point at this country; what is written goes below `work`, else beside it."""
        work = work or self.root
        return {
            "paths.data_root": str(self.data),
            "paths.cache_dir": str(self.cache),
            "paths.runs_dir": str(work / "runs"),
            "paths.submissions_dir": str(work / "submissions"),
            "model.backbone_name": str(self.backbone),
            "model.device": "cpu",
            "training.preset": "pigeon",
        }

    def config(self, work: Path | None = None, **changes: Any) -> Config:
        """Settings over this country, with `changes` by group__key on top."""
        groups: dict[str, dict[str, Any]] = {}
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        for key, value in (self.settings(work) | changed).items():
            group, leaf = key.split(".")
            groups.setdefault(group, {})[leaf] = value
        return Config.model_validate(groups)

    def options(self, work: Path | None = None) -> list[str]:
        """The same settings for a command line."""
        return [part for key, value in self.settings(work).items() for part in ("--set", f"{key}={value}")]

    def write_toml(self) -> None:
        """Leave the settings in its folder, as geo.toml."""
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in self.settings().items()]
        (self.root / "geo.toml").write_text("".join(lines), encoding="utf-8")

    @property
    def geo(self) -> str:
        """`geo` with these settings, as a hint writes it for a shell."""
        return shlex.join(["geo", *self.options()])


@dataclass(frozen=True)
class Small(Country):
    """A cut of a country that a test may do anything to: a few places, chunks of two rows, an empty cache.

    Its backbone is the country's, not to be changed.
    """

    chunk_rows: int = 2

    @classmethod
    def cut(
        cls, country: Country, root: Path, *, train: int = 8, test: int = 4, chunk_rows: int = 2
    ) -> Small:
        """The first places of the country's splits."""
        small = cls(root, country.backbone, chunk_rows)
        small.data.mkdir(parents=True)
        mapping = "state_mapping.csv"
        (small.data / mapping).write_bytes((country.data / mapping).read_bytes())
        for split, rows in (("train", train), ("test", test)):
            name = small.csv(split).name
            table = pd.read_csv(country.data / name).head(rows)
            small.images(split).mkdir()
            for image in table[[f"image_{view}" for view in VIEWS]].to_numpy().ravel():
                data = (country.images(split) / image).read_bytes()
                (small.images(split) / image).write_bytes(data)
            small.write(table, split)
        return small

    def copy(self, root: Path) -> Small:
        """The same at another place."""
        shutil.copytree(self.root, root)
        return replace(self, root=root)

    def csv(self, split: str = "train") -> Path:
        return self.train_csv if split == "train" else self.template

    def table(self, split: str = "train") -> pd.DataFrame:
        return pd.read_csv(self.csv(split))

    def write(self, table: pd.DataFrame, split: str = "train") -> None:
        table.to_csv(self.csv(split), index=False)

    def picture(self, row: int, view: str = "north", split: str = "train") -> Path:
        """The file of one view."""
        return self.images(split) / self.table(split)[f"image_{view}"][row]

    def settings(self, work: Path | None = None) -> dict[str, Any]:
        return super().settings(work) | {
            "inference.chunk_rows": self.chunk_rows,
            "inference.batch_size": 5,
            "training.epochs": 2,
        }

    def other_picture(self, seed: int) -> bytes:
        """A JPEG that no other is equal to."""
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return encode(Image.fromarray(pixels), "JPEG", quality=90)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def content(path: Path) -> dict[str, Any]:
    """All that a store holds, as bytes, to be compared to the last bit; not when and by which versions it was made."""
    store = open_store(path, writable=False)
    arrays = {name: np.asarray(array[:]).tobytes() for name, array in store.arrays.items() if array.ndim > 1}
    attrs = {
        k: v for k, v in store.attrs.items() if k not in ("created", "versions", "checksums", "backbone")
    }
    return arrays | {"sample_id": read_ids(store).tolist(), "shape": store.shape, "attrs": attrs}


def age(path: Path) -> Path:
    """Make a store what the first version would have made of the same; returns where it lies now."""
    store = open_store(path)
    attrs = {key: value for key, value in store.attrs.items() if key not in ("function", "picture_semantics")}
    attrs["fingerprint"] = fingerprint_of({key: attrs[key] for key in EARLIER})
    rewrite_attributes(store, attrs)
    folder = path.parent.with_name(f"backbone-{attrs['fingerprint']}")
    folder.mkdir(exist_ok=True)
    path.rename(folder / path.name)
    for lock in path.parent.glob("*.lock"):
        lock.unlink()
    if not list(path.parent.iterdir()):
        path.parent.rmdir()
    return folder / path.name


def answer_otherwise(run: Run) -> None:
    """Have a run's next submission differ from its last: its kept test predictions move by half a degree."""
    path = run.predictions_path("test")
    predictions, truth = read_predictions(path, run.labels)
    moved = replace(predictions, latitude=predictions.latitude + 0.5)
    write_predictions(path, moved, truth, read_stores(path))


def saved_predictions(path: Path) -> tuple[Predictions, Truth | None]:
    """A prediction table of a run's directory."""
    return read_predictions(path, load_run(path.parents[1], path.parent.name).labels)


def files(path: Path) -> dict[str, str]:
    """Every file below a directory and what is in it."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def chunk_files(store: Path) -> dict[str, str]:
    """Every file of a store and what is in it, but for its attributes, which say when it was made."""
    return {name: digest for name, digest in files(store).items() if name != "zarr.json"}


def assert_equals_one_run(small: Small, split: str = "train", **changes: Any) -> None:
    """The store of a split has what one process makes of it, byte for byte."""
    whole = extract(small.config(paths__cache_dir=str(small.root / "whole"), **changes), split).store
    assert chunk_files(small.store(split)) == chunk_files(whole)
    assert content(small.store(split)) == content(whole)


def forty_places(country: Country, root: Path) -> Small:
    """Two of them have images that occur twice, in another part."""
    made = Small.cut(country, root, train=40)
    table = made.table()
    table.loc[30, ["image_north", "image_east"]] = table.loc[3, ["image_north", "image_east"]].to_list()
    made.write(table)
    return made


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """stdout as the one JSON object that it must be."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """`geo …` in this process: as a user runs it, without the seconds that a new process takes."""
    capsys.readouterr()
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    finally:
        set_quiet(False)
    captured = capsys.readouterr()
    assert isinstance(code, int)
    return Ran(code, captured.out, captured.err)


def here(module: str, function: str, *arguments: str) -> Any:
    """What `apart` and `figures_apart` of a benchmark give, without the seconds that a new process takes: where no timing is judged."""
    return getattr(importlib.import_module(module), function)(*arguments)


# Root may read anything, unless these two of its powers (to override permissions) are taken away.
UNPRIVILEGED = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid() == 0:
    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
    class Data(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]
    header, data = Header(0x20080522, 0), (Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0
    data[0].effective &= ~0b110
    data[0].permitted &= ~0b110
    assert libc.capset(ctypes.byref(header), data) == 0
"""


_REFUSE = """
import ctypes, platform, struct
number = {numbers}[platform.machine()]
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | {errno}), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(header)), 0, 0) == 0, ctypes.get_errno()
"""


def without(call: str, error: int = errno.ENOSYS) -> str:
    """Python that has the kernel itself refuse a system call to a process (seccomp), as where a file system doesn't know it."""
    numbers = {
        "flock": {"x86_64": 73, "aarch64": 32},
        "renameat2": {"x86_64": 316, "aarch64": 276},
    }
    return _REFUSE.format(numbers=numbers[call], errno=error)


def holding(function: str) -> str:
    """Python that has a function wait for a word from the test, a file `go`, once it has left its own, a file `held`."""
    module, name = function.rsplit(".", 1)
    return f"""
import importlib, pathlib, time
module = importlib.import_module("geo_embed.{module}")
def hold(*arguments, held=module.{name}, **options):
    pathlib.Path("held").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.005)
    return held(*arguments, **options)
module.{name} = hold
"""


def dying(function: str, call: int, then: str = "os.kill(os.getpid(), 9)") -> str:
    """Python that ends the process at so many calls of a function."""
    module, name = function.rsplit(".", 1)
    return f"""
import importlib, os, signal
module, calls = importlib.import_module("geo_embed.{module}"), 0
def counted(*arguments, whole=module.{name}, **named):
    global calls
    calls += 1
    if calls == {call}:
        {then}
    return whole(*arguments, **named)
module.{name} = counted
"""


# The kernel doesn't know how to swap two names, and ends the process between two renames: what had the name is aside.
DYING_BETWEEN_RENAMES = (
    without("renameat2")
    + """
import os, pathlib
rename = pathlib.Path.rename
def dying(path, target):
    done = rename(path, target)
    if pathlib.Path(target).suffix == ".replaced":
        os.kill(os.getpid(), 9)
    return done
pathlib.Path.rename = dying
"""
)
# A write takes a fraction of a millisecond: held up before its rename, it can be hit every time.
SLOW_WRITES = """
import pathlib, time
rename = pathlib.Path.replace

def slow(path, target):
    if path.suffix == ".writing":
        time.sleep(0.03)
    return rename(path, target)

pathlib.Path.replace = slow
"""
# No root needed: the limit on the size of files stands for a full disk.
NO_LARGE_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))"


@contextlib.contextmanager
def little_disk(place: Path, size: str) -> Iterator[Path]:
    """A real disk that holds so much, at `place`; the test is skipped where none can be had, as without root."""
    import pytest

    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes=2k", "geo-tests", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def enlarge(disk: Path) -> None:
    """Make room on a little disk."""
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)


def hear_signals() -> None:
    """For a process that begins: end at Ctrl-C and SIGTERM, though a shell has its background jobs ignore them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


_NURSERY = """
import atexit, json, os, signal, sys, threading
import google_crc32c, pandas, pyarrow.compute, pyarrow.parquet, rich.console, rich.markdown, simplejpeg, tomlkit, torch, xxhash, zarr
import geo_embed.cache.exchange, geo_embed.cache.tidy, geo_embed.cache.verify, geo_embed.cli.app
import geo_embed.extraction.extract, geo_embed.fitting.fit, geo_embed.prediction.submission
from geo_embed.cli import main
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

# As in tests/conftest.py.
os.fsync = lambda handle: None
for line in sys.stdin:
    what, job = json.loads(line)
    if what == "wait for":
        print(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        # As Python begins, whatever this process was begun with: a shell has its background jobs ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(job["directory"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(job["streams"][number - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.argv = ["geo", *job["arguments"]]
        exec(job["before"])
        try:
            main(job["arguments"])
        except SystemExit as end:
            # Python's own end, less the two seconds in which it takes everything imported apart.
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
    print(child, flush=True)
"""


class Nursery:
    """Processes that run `geo …` while the test goes on, to be killed, stopped or starved.

    They are forks of a process that has imported everything, so that each is at work within a moment. It is there from
    the first command on.
    """

    def __init__(self) -> None:
        self._parent: subprocess.Popen[str] | None = None
        self._streams = tempfile.TemporaryDirectory(prefix="geo-tests-streams-")
        self._running: list[Running] = []
        self._started = 0

    def _ask(self, what: str, job: object) -> int:
        if self._parent is None:
            self._parent = subprocess.Popen(
                [sys.executable, "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps([what, job]) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def close(self) -> None:
        self.clear()
        if self._parent is not None:
            self._parent.kill()
            self._parent.communicate()
        self._streams.cleanup()

    def clear(self) -> None:
        """End what a test left running."""
        while self._running:
            process = self._running.pop()
            if not process.ended:
                process.signal(signal.SIGKILL)
                process.end()

    def start_in(
        self,
        directory: Path,
        *arguments: object,
        before: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Begin a command in a directory; `before` is Python that the process runs first."""
        # Of names of their own: what a process before said must not pass for this one's.
        self._started += 1
        streams = [Path(self._streams.name, f"{self._started}.{name}") for name in ("out", "err")]
        job = {
            "directory": str(directory),
            "arguments": [str(argument) for argument in arguments],
            "before": before,
            "streams": [str(path) for path in streams],
            "environment": os.environ | (environment or {}),
        }
        pid = self._ask("start", job)
        self._running.append(Running(pid, *streams, lambda: self._ask("wait for", pid)))
        return self._running[-1]

    def start(self, small: Small, *arguments: object, before: str = "") -> Running:
        """Begin a command over a small country, in its directory."""
        return self.start_in(small.root, *small.options(), *arguments, before=before)

    def run(self, small: Small, *arguments: object, before: str = "") -> Ran:
        """The same, and wait for its end."""
        return self.start(small, *arguments, before=before).end()


class Running:
    """A command at work."""

    def __init__(self, pid: int, out: Path, err: Path, exit_code: Callable[[], int]) -> None:
        self.pid, self.ended = pid, False
        self._out, self._err, self._exit_code = out, err, exit_code

    def wait_for(self, seen: Callable[[], bool]) -> bool:
        """True once `seen`, False where the process ended before. Looks closely: it may be there for a moment only."""
        deadline = time.monotonic() + 120
        while not seen():
            if self._is_over() or time.monotonic() > deadline:
                return False
            # What is looked for needs the core as well.
            time.sleep(0.0005)
        return True

    def _is_over(self) -> bool:
        """Whether the process has ended, waited for or not."""
        try:
            return (
                Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                == "Z"
            )
        except (FileNotFoundError, ProcessLookupError):
            return True

    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(encoding="utf-8") if self._out.exists() else ""

    def err(self) -> str:
        """What it has told so far."""
        return self._err.read_text(encoding="utf-8") if self._err.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> Ran:
        code, self.ended = self._exit_code(), True
        return Ran(code, self._out.read_text(encoding="utf-8"), self.err())
