"""Checksums of whole files, and tensors in a file that has the mode of any other."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from geo_embed.backbones.backbone import Backbone, load_backbone, save_backbone
from geo_embed.config import Config
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError
from geo_embed.files import (
    file_sha256,
    is_leftover,
    is_locked,
    lock,
    replacing,
    replacing_directory,
    restore_replaced,
    save_tensors,
)
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, RunWriter


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


def test_the_checksum_is_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_tensors_are_written_with_the_umasks_mode_and_nothing_beside_them(
    tmp_path: Path, mask: int, mode: int
) -> None:
    with umask(mask):
        for _ in range(2):
            save_tensors({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    assert modes(tmp_path) == {"a.safetensors": mode}
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_what_the_disk_says_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save_tensors({"a": torch.arange(3)}, tmp_path / "nowhere" / "a.safetensors")


def test_a_labs_others_may_read_the_heads_and_the_backbone_of_a_run(
    run: Run, config: Config, tmp_path: Path
) -> None:
    backbone: Backbone = load_backbone(config.model, pick_device("cpu"), torch.float32)
    with umask(0o022):
        save_backbone(backbone, tmp_path / "backbone")
        (tmp_path / "run").mkdir()
        RunWriter(tmp_path / "run").write_heads(load_heads(run))
    for directory in (tmp_path / "backbone", tmp_path / "run"):
        assert set(modes(directory).values()) == {0o644}


# ---------------------------------------------------------------- in one piece


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_once_it_is_whole_and_never_half(tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.suffix == ".npy"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["table.npy"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_text("old")
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    with (  # noqa: PT012
        pytest.raises(GeoError, match="can't write: No space left"),
        replacing_directory(folder) as writing,
    ):
        (writing / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "old"
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["file", "folder"]


def test_a_directory_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for content in ("first", "second"):
        with replacing_directory(path) as writing:
            (writing / content).touch()
            assert not path.exists() or names(path) == ["first"]
        assert names(path) == [content]
    assert names(tmp_path) == ["run"]


def test_a_directory_that_was_about_to_be_replaced_gets_its_name_back(tmp_path: Path) -> None:
    (tmp_path / ".run.replaced").mkdir()
    (tmp_path / ".other.replaced").mkdir()
    (tmp_path / "other").mkdir()
    restore_replaced(tmp_path)
    assert names(tmp_path) == [".other.replaced", "other", "run"]


def test_what_a_killed_writer_left_goes_once_it_is_old_and_never_what_may_be_at_work(tmp_path: Path) -> None:
    old, young = tmp_path / ".run.00000000.writing", tmp_path / ".run.11111111.writing"
    earlier_version, another = tmp_path / ".run.writing", tmp_path / ".runner.00000000.writing"
    for left in (old, young, earlier_version, another):
        (left / "half").mkdir(parents=True)
    for left in (old, earlier_version, another):
        os.utime(left, (0, 0))
    with replacing_directory(tmp_path / "run"):
        pass
    assert names(tmp_path) == [".run.11111111.writing", ".runner.00000000.writing", "run"]


def test_the_names_of_what_is_being_written_are_known_as_leftovers(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.csv") as file, replacing_directory(tmp_path / "b.zarr") as folder:
        file.touch()
        assert is_leftover(file)
        assert is_leftover(folder)
    assert is_leftover(tmp_path / ".b.zarr.replaced")
    assert not any(map(is_leftover, tmp_path.iterdir()))
    assert not is_leftover(tmp_path / ".hidden.csv")


# ---------------------------------------------------------------- locks


def held(path: Path) -> contextlib.AbstractContextManager[None]:
    return lock(path, busy="another command works here", where=path.parent, hint="wait")


HOLD = """
import sys, pathlib
from geo_embed.files import lock
with lock(pathlib.Path(sys.argv[1]), busy="", where=pathlib.Path("."), hint=""):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_held_elsewhere_is_refused_by_process_and_host_and_a_dead_holders_is_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "a.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(GeoError, match="another command works here") as caught, held(path):
            pass
        assert f"process {holder.pid} on {socket.gethostname()}, since 20" in str(caught.value)
        holder.kill()
    assert not is_locked(path)
    with held(path):
        assert is_locked(path)
    assert not is_locked(path)


def test_two_in_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with (
        held(tmp_path / "a.lock"),
        pytest.raises(GeoError, match="another command"),
        held(tmp_path / "a.lock"),
    ):
        pass


COUNT = """
import sys, pathlib
from geo_embed.errors import GeoError
from geo_embed.files import lock
path, number = map(pathlib.Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
counted = 0
while counted < 100:
    try:
        with lock(path, busy="", where=path, hint="", keep=False):
            number.write_text(str(int(number.read_text()) + 1))
        counted += 1
    except GeoError:
        pass
"""


def test_a_lock_that_is_not_kept_leaves_no_file_and_never_has_two_holders(tmp_path: Path) -> None:
    """Whoever opens the file just before it goes must not hold it beside the one who makes the next."""
    path, number = tmp_path / "a.lock", tmp_path / "number"
    number.write_text("0")
    begin = [sys.executable, "-c", COUNT, str(path), str(number)]
    processes = [
        subprocess.Popen(begin, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=60)
    assert number.read_text() == "300"
    assert [entry.name for entry in tmp_path.iterdir()] == ["number"]
