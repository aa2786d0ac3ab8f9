"""One writer per range of rows: who overlaps is refused by name, who doesn't is let in."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geo_embed.cache.locks import changing_layout, is_busy, only_writer
from geo_embed.errors import GeoError

REFUSED = [
    (None, None),
    (None, slice(0, 4)),
    (slice(0, 4), None),
    (slice(0, 4), slice(0, 4)),
    (slice(0, 4), slice(3, 5)),
    (slice(2, 9), slice(3, 5)),
]

# Another process takes a range, says so, and holds it until it is told to end.
HOLD = """
import sys
from pathlib import Path
from geo_embed.cache.locks import only_writer
bounds = [int(bound) for bound in sys.argv[2:]]
with only_writer(Path(sys.argv[1]), slice(*bounds) if bounds else None):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "train.zarr"


@contextmanager
def another_process(path: Path, rows: slice | None) -> Iterator[subprocess.Popen[str]]:
    bounds = [] if rows is None else [str(rows.start), str(rows.stop)]
    command = [sys.executable, "-c", HOLD, str(path), *bounds]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize(("first", "second"), REFUSED)
def test_a_writer_whose_rows_overlap_is_refused_by_process_host_and_time(
    path: Path, first: slice | None, second: slice | None
) -> None:
    with another_process(path, first) as process:
        holder = rf"another extraction is writing to this store: process {process.pid} on {re.escape(socket.gethostname())}, since 20"
        with pytest.raises(GeoError, match=holder), only_writer(path, second):
            pass
        assert is_busy(path)


def test_writers_of_ranges_that_only_touch_work_at_once_and_leave_nothing(path: Path) -> None:
    with only_writer(path, slice(0, 4)), only_writer(path, slice(8, 12)), only_writer(path, slice(4, 8)):
        assert len(list(path.parent.glob("train.rows-*.lock"))) == 3
    assert not is_busy(path)
    assert list(path.parent.iterdir()) == []


def test_the_other_split_is_another_store(path: Path) -> None:
    with only_writer(path), only_writer(path.with_name("test.zarr"), slice(0, 4)):
        assert is_busy(path)
        assert is_busy(path.with_name("test.zarr"))


@pytest.mark.parametrize("rows", [None, slice(0, 4)])
def test_a_killed_writer_is_no_obstacle_and_its_range_is_forgotten(path: Path, rows: slice | None) -> None:
    with another_process(path, rows) as process:
        process.kill()
        process.wait()
    assert not is_busy(path)
    with only_writer(path):
        assert is_busy(path)
        assert not any(path.parent.glob("train.rows-*.lock"))


def test_what_killed_writers_left_goes_but_never_under_another_writer(path: Path) -> None:
    left = path.with_name(".train.zarr.0123abcd.writing")
    left.mkdir(parents=True)
    with another_process(path, slice(0, 4)):
        left.mkdir(exist_ok=True)
        with only_writer(path, slice(4, 8)):
            assert left.exists()
    with only_writer(path):
        assert not left.exists()


def test_a_store_that_was_about_to_be_replaced_gets_its_name_back(path: Path) -> None:
    replaced = path.with_name(".train.zarr.replaced")
    replaced.mkdir(parents=True)
    (replaced / "zarr.json").touch()
    with only_writer(path):
        assert (path / "zarr.json").exists()
    replaced.mkdir()
    with only_writer(path):
        assert (path / "zarr.json").exists()
        assert not replaced.exists()


def test_who_changes_the_layout_is_waited_for(path: Path) -> None:
    command = [sys.executable, "-c", "import sys, time\nfrom pathlib import Path\n"
        "from geo_embed.cache.locks import changing_layout\nwith changing_layout(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n    time.sleep(0.5)\n    Path(sys.argv[1]).touch()", str(path)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not path.exists()
        with changing_layout(path):
            assert path.exists()


def test_a_store_deleted_under_its_writer_comes_back_in_no_part(path: Path) -> None:
    with only_writer(path, slice(0, 4)):
        shutil.rmtree(path.parent)
    assert not path.parent.exists()
