"""Kill it anywhere, any number of times: the finished store is the one of an uninterrupted run, to the last bit."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from small import SLOW_WRITES, Nursery, Ran, Small, content

from geo_embed.cache.store import OK, open_store
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract

KILLS = 14
ROWS = 40

pytestmark = pytest.mark.cut(train=ROWS, chunk_rows=1)


def done_rows(small: Small) -> int:
    """Samples committed so far; 0 where there is no store yet."""
    for path in small.cache.glob("*/train.zarr"):
        return int((np.asarray(open_store(path, writable=False).status[:]) == OK).all(axis=1).sum())
    return 0


def whole_store(small: Small) -> Path:
    return extract(small.config(paths__cache_dir=str(small.root / "whole")), "train").store


def finish(small: Small, nursery: Nursery) -> Ran:
    return nursery.run(small, "--json", "extract", "--split", "train")


def start_and_kill(small: Small, nursery: Nursery, rng: random.Random) -> Ran:
    """Kill an extraction after some time, or at the next files of some array, or inside the next write of one."""

    def count(pattern: str) -> int:
        return sum(1 for _ in small.cache.glob(f"*/train.zarr/{pattern}"))

    array = rng.choice(("embeddings/c/*/0", "content_hash/c/*", "status/c/*"))
    enough = count(f"{array}/0") + rng.randint(1, 3)
    end = time.monotonic() + rng.uniform(0, 1.5)
    moment, before = rng.choice(
        (
            (lambda: time.monotonic() > end, ""),
            (lambda: count(f"{array}/0") >= enough, ""),
            (lambda: count(f"{array}/0") >= enough - 1 and count(f"{array}/.*.writing") > 0, SLOW_WRITES),
        )
    )
    process = nursery.start(small, "--json", "extract", "--split", "train", before=before)
    process.wait_for(moment)
    process.signal(signal.SIGKILL)
    return process.end()


@pytest.mark.slow
def test_a_store_killed_at_random_moments_ends_bit_identical(small: Small, nursery: Nursery) -> None:
    # Pictures that occur twice: who computes them must not depend on the kills.
    table = small.table()
    table.loc[30, ["image_north", "image_east"]] = table.loc[3, ["image_north", "image_east"]].to_list()
    small.write(table)
    whole = content(whole_store(small))

    rng = random.Random(0)
    kills = finished = torn = 0
    while kills < KILLS or not finished:
        before = done_rows(small)
        ran = start_and_kill(small, nursery, rng) if kills < KILLS else finish(small, nursery)
        assert done_rows(small) >= before, "a committed row was lost"
        if ran.code == 0:
            assert ran.json["computed"] <= 4 * (ROWS - before), "a committed row was computed again"
            assert ran.json["computed"] + ran.json["reused"] == 4 * ROWS
            assert content(small.store()) == whole
            finished += 1
            shutil.rmtree(small.cache)
        else:
            assert ran.code == -signal.SIGKILL, ran.err
            kills += 1
            torn += any(small.cache.rglob(".*.writing"))
    assert torn >= 3, "too few kills came in the middle of a write"


@pytest.mark.slow
def test_killed_after_the_csv_and_the_pictures_changed_the_result_is_right(
    small: Small, nursery: Nursery
) -> None:
    extract(small.config(), "train")
    table = small.table()
    small.write(table.iloc[::-1].iloc[5:])
    small.picture(2).write_bytes(small.other_picture(1))
    small.picture(20, "west").write_bytes(small.other_picture(2))
    whole = content(whole_store(small))
    rng = random.Random(1)
    for _ in range(5):
        ran = start_and_kill(small, nursery, rng)
        assert ran.code in (0, -signal.SIGKILL), ran.err
    ran = finish(small, nursery)
    assert ran.code == 0, ran.err
    assert ran.json["computed"] <= 2
    assert content(small.store()) == whole


def test_a_picture_changed_between_two_kills_is_not_mixed_up(small: Small, nursery: Nursery) -> None:
    for seed in range(3):
        process = nursery.start(small, "extract", "--split", "train")
        process.wait_for(lambda: done_rows(small) >= 3)
        process.signal(signal.SIGKILL)
        process.end()
        small.picture(1).write_bytes(small.other_picture(seed))
    extract(small.config(), "train")
    assert content(small.store()) == content(whole_store(small))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_says_how_far_it_got(
    small: Small, nursery: Nursery, number: signal.Signals
) -> None:
    process = nursery.start(small, "extract", "--split", "train")
    assert process.wait_for(lambda: done_rows(small) >= 3)
    process.signal(number)
    ran = process.end()
    assert ran.code == 130, ran.err
    assert ran.out == ""
    interruption = re.search(r"interrupted: (\d+) of 40 train samples are done", ran.err)
    assert interruption, ran.err
    assert int(interruption[1]) == done_rows(small) >= 3
    assert "Traceback" not in ran.err
    assert not any(small.cache.rglob(".*.writing"))

    again = nursery.run(small, "--json", "extract", "--split", "train").json
    assert (again["computed"], again["reused"]) == (4 * (40 - int(interruption[1])), 4 * int(interruption[1]))
    assert content(small.store()) == content(whole_store(small))


def test_a_half_created_store_is_no_obstacle(small: Small, nursery: Nursery) -> None:
    process = nursery.start(small, "extract", "--split", "train")
    process.wait_for(lambda: any(small.cache.glob("*/.train.zarr.*.writing")))
    process.signal(signal.SIGKILL)
    process.end()
    extract(small.config(), "train")
    assert content(small.store()) == content(whole_store(small))
    assert not any(small.cache.glob("*/.*"))


def test_a_half_deleted_earlier_store_is_never_a_source(small: Small) -> None:
    """The kill comes while the superseded store is deleted, and then a picture changes."""
    done = extract(small.config(), "train")
    earlier = done.store.with_name("train.zarr.1")
    shutil.copytree(done.store, earlier)
    shutil.rmtree(earlier / "embeddings" / "c" / "0")
    (earlier / "embeddings" / "c" / "1" / "0" / "0").write_bytes(b"torn")
    small.picture(39).write_bytes(small.other_picture(0))
    again = extract(small.config(), "train")
    assert content(again.store) == content(whole_store(small))
    assert not earlier.exists()


def test_a_damaged_store_of_the_other_split_is_never_a_source(small: Small) -> None:
    done = extract(small.config(), "train")
    for view in ("north", "east"):
        small.picture(0, view, "test").write_bytes(small.picture(7, view).read_bytes())
    chunk = done.store / "embeddings" / "c" / "7" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    test = extract(small.config(), "test")
    assert (test.computed, test.reused) == (16, 0)
    whole = extract(small.config(paths__cache_dir=str(small.root / "whole")), "test").store
    assert content(test.store) == content(whole)


def test_a_store_that_cannot_be_opened_is_not_overwritten(small: Small) -> None:
    done = extract(small.config(), "train")
    head = done.store / "zarr.json"
    head.write_text(head.read_text()[:-20])
    with pytest.raises(GeoError, match="not a readable store") as refused:
        extract(small.config(), "train")
    assert "delete it and run geo extract" in refused.value.hint
    assert (done.store / "embeddings" / "c" / "0" / "0" / "0").is_file()
