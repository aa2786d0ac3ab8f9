"""Parts of an extraction, in any order, at once, killed and begun again, make the very bytes of one run."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from small import Nursery, Running, Small, assert_equals_one_run, command, files, forty_places, holding

from geo_embed.cache.storage import superseded_paths
from geo_embed.cache.store import PENDING, open_store, part_rows, read_status
from geo_embed.cache.verify import missing_parts
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.extraction.plan import parse_part

if TYPE_CHECKING:
    from conftest import Country

ROWS = 40


@pytest.fixture
def small(country: Country, tmp_path: Path) -> Small:
    return forty_places(country, tmp_path / "small")


def assert_one_run_and_nothing_beside(small: Small) -> None:
    """Byte for byte, and nobody at work."""
    assert_equals_one_run(small)
    assert {path.name for path in small.store().parent.iterdir()} <= {"train.zarr", "train.lock"}


@pytest.mark.parametrize(
    ("samples", "chunk", "n"), [(40, 2, 3), (41, 2, 4), (5, 2, 7), (1, 512, 3), (10, 3, 1)]
)
def test_parts_are_whole_chunks_and_cover_every_row_once(samples: int, chunk: int, n: int) -> None:
    parts = [part_rows(samples, chunk, (k, n)) for k in range(1, n + 1)]
    assert [row for rows in parts for row in range(rows.start, rows.stop)] == list(range(samples))
    assert all(rows.start % chunk == 0 or rows.start == samples for rows in parts)
    sizes = [len(range(rows.start, rows.stop, chunk)) for rows in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_in_any_order_make_the_bytes_of_one_run(small: Small, order: tuple[int, ...]) -> None:
    left = {1, 2, 3}
    computed = reused = 0
    for k in order:
        done = extract(small.config(), "train", part=(k, 3))
        computed, reused, left = computed + done.computed, reused + done.reused, left - {k}
        assert missing_parts(open_store(done.store), 3) == sorted(left)
    assert (computed, reused) == (4 * ROWS - 2, 2), "an image that another part embedded is copied"
    assert_one_run_and_nothing_beside(small)


def test_more_parts_than_chunks_and_other_divisions_of_what_is_left_do_no_harm(small: Small) -> None:
    extract(small.config(), "train", part=(2, 2))
    for k in range(1, 31):
        extract(small.config(), "train", part=(k, 30))
    assert_one_run_and_nothing_beside(small)


# A commit takes a moment longer, so that parts overlap in time and a kill finds one at work.
SLOW = """
import sys, time
writer = sys.modules["geo_embed.extraction.writer"]
commit = writer.commit_chunk

def slow(*arguments):
    time.sleep(0.1)
    commit(*arguments)

writer.commit_chunk = slow
"""


def done_rows(small: Small, rows: slice) -> int:
    for path in small.cache.glob("*/train.zarr"):
        return int((read_status(open_store(path, writable=False), rows) != PENDING).all(axis=1).sum())
    return 0


@pytest.mark.slow
def test_three_processes_at_once_with_one_killed_and_begun_again_make_the_bytes_of_one_run(
    small: Small, nursery: Nursery
) -> None:
    def at_work(k: int) -> Running:
        return nursery.start(small, "-q", "extract", "--split", "train", "--part", f"{k}/3", before=SLOW)

    rows = part_rows(ROWS, 2, (2, 3))
    first, second, third = (at_work(k) for k in (1, 2, 3))
    assert second.wait_for(lambda: done_rows(small, rows) >= 2)
    second.signal(signal.SIGKILL)
    assert second.end().code == -signal.SIGKILL
    assert 2 <= done_rows(small, rows) < rows.stop - rows.start
    for process in (first, third, at_work(2)):
        ended = process.end()
        assert (ended.code, ended.err) == (0, "")
    assert missing_parts(open_store(small.store()), 3) == []
    assert extract(small.config(), "train").computed == 0
    assert_one_run_and_nothing_beside(small)


HOLD = holding("extraction.writer.commit_chunk")


def test_all_of_a_store_and_a_part_of_it_exclude_each_other_but_other_parts_do_not(
    small: Small, nursery: Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    part = nursery.start(small, "extract", "--split", "train", "--part", "1/2", before=HOLD)
    assert part.wait_for(lambda: (small.root / "held").exists())
    for overlapping in ([], ["--part", "1/2"], ["--part", "2/3"]):
        refused = command(capsys, *small.options(), "extract", "--split", "train", *overlapping)
        assert refused.code == 1
        assert f"another extraction is writing to this store: process {part.pid} on " in refused.err
    assert command(capsys, *small.options(), "extract", "--split", "train", "--part", "2/2").code == 0
    (small.root / "go").touch()
    assert part.end().code == 0

    (small.root / "go").unlink()
    (small.root / "held").unlink()
    small.write(small.table().iloc[::-1])
    whole = nursery.start(small, "extract", "--split", "train", before=HOLD)
    assert whole.wait_for(lambda: (small.root / "held").exists())
    with pytest.raises(
        GeoError, match=f"another extraction is writing to this store: process {whole.pid} on "
    ):
        extract(small.config(), "train", part=(2, 2))
    (small.root / "go").touch()
    assert whole.end().code == 0


def test_parts_over_changed_samples_copy_from_the_earlier_store_until_the_last_of_them_is_done(
    small: Small,
) -> None:
    earlier = extract(small.config(), "train").store
    small.write(small.table().iloc[::-1].iloc[5:])
    for k in (2, 3, 1):
        done = extract(small.config(), "train", part=(k, 3))
        assert done.computed == 0
        assert len(superseded_paths(earlier)) == (k != 1)
    assert_one_run_and_nothing_beside(small)


def test_the_last_part_to_end_discards_not_the_last_to_begin(small: Small, nursery: Nursery) -> None:
    """The held part still copies from the earlier store when the other one is done."""
    extract(small.config(), "train")
    small.write(small.table().iloc[::-1])
    held = nursery.start(small, "--json", "extract", "--split", "train", "--part", "2/2", before=HOLD)
    assert held.wait_for(lambda: (small.root / "held").exists())
    extract(small.config(), "train", part=(1, 2))
    assert len(superseded_paths(small.store())) == 1
    (small.root / "go").touch()
    ended = held.end()
    assert ended.code == 0, ended.err
    assert ended.json["computed"] == 0
    assert_one_run_and_nothing_beside(small)


def test_a_source_stays_while_a_part_copies_from_it_though_no_row_is_pending(
    small: Small, nursery: Nursery
) -> None:
    """An image that was missing, and so recorded, is back: its embedding is in the superseded store alone."""
    extract(small.config(), "train")
    small.write(small.table().iloc[::-1])
    data = small.picture(35).read_bytes()
    small.picture(35).unlink()
    skip = {"inference__on_bad_image": "skip"}
    assert len(extract(small.config(**skip), "train", part=(2, 2)).skipped) == 1
    small.picture(35).write_bytes(data)
    hold = holding("extraction.writer.copy_embeddings")
    held = nursery.start(small, "--json", "extract", "--split", "train", "--part", "2/2", before=hold)
    assert held.wait_for(lambda: (small.root / "held").exists())
    done = extract(small.config(), "train", part=(1, 2))
    assert (read_status(open_store(done.store)) != PENDING).all()
    assert len(superseded_paths(done.store)) == 1
    (small.root / "go").touch()
    ended = held.end()
    assert ended.code == 0, ended.err
    assert ended.json["computed"] == 0
    assert_one_run_and_nothing_beside(small)


def test_samples_that_change_under_another_part_move_no_store(small: Small, nursery: Nursery) -> None:
    held = nursery.start(small, "extract", "--split", "train", "--part", "2/2", before=HOLD)
    assert held.wait_for(lambda: (small.root / "held").exists())
    small.write(small.table().iloc[::-1])
    with pytest.raises(
        GeoError, match=f"another extraction is writing to this store: process {held.pid} on "
    ):
        extract(small.config(), "train", part=(1, 2))
    assert superseded_paths(small.store()) == []
    (small.root / "go").touch()
    assert held.end().code == 0


def test_an_image_that_changed_is_refused_by_a_part_and_mended_by_all(small: Small) -> None:
    extract(small.config(), "train", part=(1, 2))
    small.picture(1, "west").write_bytes(small.other_picture(0))
    before = files(small.store())
    with pytest.raises(GeoError, match="view west changed on disk after it was embedded") as refused:
        extract(small.config(), "train", part=(1, 2))
    assert "geo extract --split train without --part" in refused.value.hint
    assert files(small.store()) == before
    # The other part has nothing to do with it.
    extract(small.config(), "train", part=(2, 2))
    assert extract(small.config(), "train").computed == 1
    assert_one_run_and_nothing_beside(small)


def test_a_bad_image_stops_its_own_part_alone(small: Small) -> None:
    small.picture(39).write_bytes(b"no image")
    extract(small.config(), "train", part=(1, 2))
    with pytest.raises(GeoError, match="1 picture can't be read"):
        extract(small.config(), "train", part=(2, 2))
    assert missing_parts(open_store(small.store()), 2) == [2]


def test_a_part_that_is_none_is_refused(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_part("2/4") == (2, 4)
    for wrong in ("0/4", "5/4", "1/0", "1", "a/b", "-1/4"):
        refused = command(capsys, *small.options(), "extract", "--split", "train", f"--part={wrong}")
        assert (refused.code, refused.out) == (1, "")
        assert "part" in refused.err
    with pytest.raises(GeoError, match="a part and a limit don't go together"):
        extract(small.config(), "train", part=(1, 2), limit=3)
    assert not small.cache.exists()


def test_a_part_prints_the_same_json_as_a_whole_run(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    part = command(capsys, *small.options(), "--json", "extract", "--split", "train", "--part", "1/4").json
    assert (part["samples"], part["computed"]) == (ROWS, ROWS)
    whole = command(capsys, *small.options(), "--json", "extract", "--split", "train").json
    assert part.keys() == whole.keys()
    assert json.dumps(part["store"]) == json.dumps(whole["store"])
    assert np.isclose(whole["computed"] + whole["reused"], 4 * ROWS)
