"""One writer per store: a second one is refused by name, a dead one is no obstacle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from small import Nursery, Small, command, content, holding

from geo_embed.cache.exchange import cache_import
from geo_embed.cache.tidy import collect_garbage
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract

# The writer is at work for as long as the test needs it.
HOLD = holding("extraction.writer.commit_chunk")


def at_work(small: Small) -> bool:
    return (small.root / "held").exists()


def test_a_second_writer_is_refused_by_process_host_and_time(
    small: Small, nursery: Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    first = nursery.start(small, "extract", "--split", "train", before=HOLD)
    assert first.wait_for(lambda: at_work(small))
    second = command(capsys, *small.options(), "extract", "--split", "train")
    assert second.code == 1
    assert f"process {first.pid} on {socket.gethostname()}, since 20" in second.err
    assert "hint: " in second.err
    assert not any("train.zarr." in path.name for path in small.cache.glob("*/*"))

    # The other split is another store.
    assert command(capsys, *small.options(), "extract", "--split", "test").code == 0
    (small.root / "go").touch()
    assert first.end().code == 0
    assert extract(small.config(), "train").computed == 0


def test_a_killed_writers_lock_is_no_obstacle(small: Small, nursery: Nursery) -> None:
    first = nursery.start(small, "extract", "--split", "train", before=HOLD)
    assert first.wait_for(lambda: at_work(small))
    first.signal(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL
    (lock,) = small.cache.glob("*/train.lock")
    assert json.loads(lock.read_text())["pid"] == first.pid
    assert extract(small.config(), "train").computed == 32


def test_the_lock_says_nothing_once_the_writer_is_done(small: Small) -> None:
    extract(small.config(), "train")
    (lock,) = small.cache.glob("*/train.lock")
    assert lock.read_text() == ""


def test_garbage_collection_leaves_a_store_alone_while_it_is_written(small: Small, nursery: Nursery) -> None:
    """Neither the store nor the earlier one that it copies from may go, whatever their age."""
    extract(small.config(), "train")
    small.write(small.table().iloc[::-1])
    writer = nursery.start(small, "--json", "extract", "--split", "train", before=HOLD)
    assert writer.wait_for(lambda: at_work(small))
    assert any(small.cache.glob("*/train.zarr.1"))
    for path in small.cache.glob("*/*"):
        os.utime(path, (0, 0))
    assert collect_garbage(small.config(model__backbone_name="another"), runs={}, delete=True).stores == []
    (small.root / "go").touch()
    ran = writer.end()
    assert (ran.json["computed"], ran.json["reused"]) == (0, 32)
    whole = extract(small.config(paths__cache_dir=str(small.root / "whole")), "train").store
    assert content(small.store()) == content(whole)


def test_a_second_import_is_refused_likewise(small: Small, nursery: Nursery, tmp_path: Path) -> None:
    file = tmp_path / "train.npy"
    np.save(file, np.ones((8, 4, 5), dtype=np.float32))
    hold = holding("cache.exchange.commit_chunk")
    first = nursery.start(
        small, "cache", "import", file, "--split", "train", "--backbone", "mine", before=hold
    )
    assert first.wait_for(lambda: at_work(small))
    with pytest.raises(GeoError, match=rf"process {first.pid} on {re.escape(socket.gethostname())}"):
        cache_import(small.config(), file, "train", "mine")
    # Hours later it is still no litter.
    for path in small.cache.glob("*/.*"):
        os.utime(path, (0, 0))
    assert collect_garbage(small.config(), delete=True).stores == []
    (small.root / "go").touch()
    assert first.end().code == 0


@pytest.mark.parametrize("gone", ["store", "folder"])
def test_a_store_deleted_under_a_running_job_is_said_and_made_anew(
    small: Small, nursery: Nursery, gone: str
) -> None:
    writer = nursery.start(small, "extract", "--split", "train", before=HOLD)
    assert writer.wait_for(lambda: at_work(small))
    store = small.store()
    shutil.rmtree(store if gone == "store" else store.parent)
    (small.root / "go").touch()
    ran = writer.end()
    assert ran.code == 1
    assert "error: the store was deleted while it was being written" in ran.err
    assert f"hint: {small.geo} extract --split train" in ran.err
    assert not any(small.cache.glob("*/train.zarr"))
    assert extract(small.config(), "train").computed == 32
