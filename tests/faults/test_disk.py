"""The disk: full, or not to be written. A clear line, and everything committed stays."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small import NO_LARGE_FILES, UNPRIVILEGED, Nursery, Small, command, content, enlarge, files, little_disk

from geo_embed.cache.store import OK, open_store, read_store
from geo_embed.cache.verify import verify
from geo_embed.extraction.extract import extract

pytestmark = pytest.mark.cut(train=40)


@pytest.fixture
def half_disk(small: Small) -> Iterator[Path]:
    """One that holds about half of the store; the cache lies on it."""
    with little_disk(small.cache, "256k") as disk:
        yield disk


def whole(small: Small) -> dict[str, object]:
    return content(extract(small.config(paths__cache_dir=str(small.root / "whole")), "train").store)


def test_a_full_disk_stops_an_extraction_that_goes_on_once_there_is_room(
    small: Small, half_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = command(capsys, *small.options(), "extract", "--split", "train")
    assert ran.code == 1
    assert "error: can't write: No space left on device" in ran.err
    assert "hint: free or unlock the disk" in ran.err

    store = open_store(small.store())
    committed = (np.asarray(store.status[:]) == OK).all(axis=1)
    rows = int(committed.sum())
    assert 4 <= rows <= 36
    assert committed[:rows].all()
    assert verify(store) == []
    assert read_store(store, slice(0, rows)).present.all()

    enlarge(half_disk)
    ran = command(capsys, *small.options(), "--json", "extract", "--split", "train")
    assert ran.code == 0, ran.err
    assert (ran.json["computed"], ran.json["reused"]) == (160 - 4 * rows, 4 * rows)
    assert content(small.store()) == whole(small)
    assert not any(small.cache.rglob(".*.writing"))


def test_a_write_that_the_system_refuses_stops_an_extraction_likewise(small: Small, nursery: Nursery) -> None:
    """The store is made, and no chunk of embeddings is written."""
    ran = nursery.run(small, "extract", "--split", "train", before=NO_LARGE_FILES)
    assert ran.code == 1
    assert "error: can't write: File too large" in ran.err
    assert not (np.asarray(open_store(small.store()).status[:]) == OK).any()
    assert nursery.run(small, "extract", "--split", "train").code == 0
    assert content(small.store()) == whole(small)


def test_a_full_disk_leaves_an_import_or_export_as_it_was(
    small: Small, half_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    first, second = tmp_path / "first.npy", tmp_path / "second.npy"
    np.save(first, rng.normal(size=(40, 4, 360)).astype(np.float16))
    np.save(second, rng.normal(size=(40, 4, 360)).astype(np.float16))
    small = Small(small.root, small.backbone, chunk_rows=40)
    naming = ["--split", "train", "--backbone", "mine"]
    assert command(capsys, *small.options(), "cache", "import", first, *naming).code == 0
    before = content(small.store())
    ran = command(capsys, *small.options(), "cache", "import", second, *naming, "--overwrite")
    assert ran.code == 1
    assert "No space left on device" in ran.err
    assert content(small.store()) == before

    for ending in (".npy", ".npz", ".safetensors", ".parquet"):
        export = ["cache", "export", "--split", "train", "--backbone", "mine"]
        ran = command(capsys, *small.options(), *export, "--out", half_disk / f"out{ending}")
        assert ran.code == 1, ending
        assert re.search("error: can't write: .*(No space left on device|the disk may be full)", ran.err), (
            ran.err
        )
        assert not any(half_disk.glob("*out*"))


@pytest.mark.parametrize("exists", [False, True])
def test_a_cache_that_may_not_be_written_is_said_and_left_alone(
    small: Small, nursery: Nursery, exists: bool
) -> None:
    small.cache.mkdir()
    if exists:
        extract(small.config(), "train", limit=4)
    folders = [small.cache, *(path for path in small.cache.rglob("*") if path.is_dir())]
    before = files(small.cache)
    for folder in folders:
        folder.chmod(0o555)
    try:
        ran = nursery.run(small, "extract", "--split", "train", before=UNPRIVILEGED)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert ran.code == 1
    assert "error: can't write: Permission denied" in ran.err
    assert "hint: " in ran.err
    changed = {name for name, digest in files(small.cache).items() if before.get(name) != digest}
    assert {name for name in changed if not name.endswith(".lock")} == set()
    assert extract(small.config(), "train").computed == (144 if exists else 160)


def test_a_cache_that_may_only_be_read_is_enough_for_fitting_and_verifying(
    small: Small, nursery: Nursery
) -> None:
    extract(small.config(), "train")
    paths = [small.cache, *small.cache.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        fitted = nursery.run(small, "fit-heads", "--name", "first", before=UNPRIVILEGED)
        verified = nursery.run(small, "cache", "verify", "--split", "train", before=UNPRIVILEGED)
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert fitted.code == 0, fitted.err
    assert verified.code == 0, verified.err


def test_a_store_moved_to_another_machine_is_the_same_store(small: Small, tmp_path: Path) -> None:
    done = extract(small.config(), "train")
    shutil.copytree(small.cache, tmp_path / "copied")
    again = extract(small.config(paths__cache_dir=str(tmp_path / "copied")), "train")
    assert (again.computed, again.reused) == (0, 160)
    assert content(again.store) == content(done.store)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """One with room for names, and for no page of content."""
    with little_disk(tmp_path / "full", "64k") as disk:
        yield disk


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_on_a_full_disk_every_command_that_writes_leaves_what_was_there_and_says_so(
    small: Small, full_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        extract(small.config(), split)
    for name in ("first", "second"):
        assert command(capsys, *small.options(), "fit-heads", "--name", name).code == 0
    (full_disk / "old.csv").write_text("old")
    fill(full_disk)
    before = files(full_disk)
    runs_dir = ["--set", f"paths.runs_dir={full_disk / 'runs'}"]
    runs = [str(small.root / "runs" / name) for name in ("first", "second")]
    for words in (
        ["config", "init", "--out", full_disk / "geo.toml"],
        ["submit", runs[0], "--out", full_disk / "old.csv"],
        ["submit", runs[0], "--out", full_disk / "new" / "new.csv"],
        ["cache", "export", "--split", "train", "--out", full_disk / "x.npy"],
        [*runs_dir, "fit-heads", "--name", "new"],
        [*runs_dir, "fit-heads"],
        [*runs_dir, "sweep", "--trials", "2"],
        [*runs_dir, "ensemble", *runs, "--name", "both"],
        [*runs_dir, "finetune", "--init", runs[0], "--name", "tuned"],
        ["--set", f"paths.cache_dir={full_disk / 'cache'}", "extract", "--split", "train"],
    ):
        ran = command(capsys, *small.options(), *words)
        assert ran.code == 1, (words, ran.err)
        assert ran.err.count("error: can't write: ") == 1, (words, ran.err)
        assert "Traceback" not in ran.err
        left = {name: digest for name, digest in files(full_disk).items() if not name.endswith(".lock")}
        assert left == before, words


def test_config_init_writes_a_whole_file_over_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("absent")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, what in {
        "there": "this file exists",
        "link": "this file exists",
        "dangling": "this file exists",
        "loop": "Too many levels of symbolic links",
        "folder": "this is a directory",
        "pipe": "this is a named pipe",
        "/dev/null": "this is a device",
        "absent/geo.toml": "No such file or directory",
        "there/geo.toml": "Not a directory",
        "n" * 300: "File name too long",
    }.items():
        before = sorted(tmp_path.iterdir())
        ran = command(capsys, "config", "init", "--out", name)
        assert (ran.code, ran.err.count("error: ")) == (1, 1), (name, ran.err)
        assert what in ran.err, (name, ran.err)
        assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there").read_text() == "mine"
    assert Path("/dev/null").is_char_device()
    assert command(capsys, "config", "init").code == 0
    assert command(capsys, "config", "show").code == 0
