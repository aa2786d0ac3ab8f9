"""`geo bench scale` on a few samples: a manifest is planned, a slice of its store is real, and its rows hang together. No timing is judged."""

from __future__ import annotations

import csv
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from small import here

from geo_embed.bench import scale
from geo_embed.bench.measure import Measurement, figures_apart
from geo_embed.bench.scale import (
    bench_scale,
    check_parts,
    plan_manifest,
    read_by_csv,
    write_manifest,
    write_slice,
)
from geo_embed.cache.store import OK, open_store, read_status
from geo_embed.settings import resolve

SAMPLES, CHUNK_ROWS, CHUNKS = 70, 8, 3


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "manifest", SAMPLES, ("north", "east", "south", "west"))


def test_a_made_up_manifest_is_one_of_the_datasets(manifest: Path) -> None:
    rows = list(csv.reader(manifest.open(encoding="utf-8", newline="")))
    assert len(rows) == SAMPLES + 1
    assert rows[-1][:3] == ["69", "img_00000069_north.jpg", "img_00000069_east.jpg"]
    figures = plan_manifest(str(manifest.parent))
    assert figures.keys() == {"seconds", "bytes"}
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures.values())
    assert all(figure > 0 for figure in read_by_csv(str(manifest)).values())


def test_what_a_slice_counts_is_what_lies_on_the_disk(manifest: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    figures = write_slice(str(manifest.parent), str(cache), str(CHUNK_ROWS), str(CHUNKS))
    store = open_store(cache / "test.zarr", writable=False)
    done = (read_status(store) == OK).all(axis=1)
    # The first chunk, the middle one, and the last, which has six rows.
    assert np.flatnonzero(done).tolist() == [*range(8), *range(32, 40), *range(64, 70)]
    assert figures["pictures"] == 4 * done.sum()
    files = [path for path in (cache / "test.zarr").rglob("*") if path.is_file()]
    assert (
        figures["objects"] == sum("c" in path.parts and "sample_id" not in path.parts for path in files) == 9
    )
    assert figures["fixed"] + figures["bytes"] == sum(path.stat().st_size for path in files)


def test_parts_that_lose_a_row_or_share_one_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for parts in (1, 3, 9, 50):
        check_parts(SAMPLES, CHUNK_ROWS, parts)
    whole = scale.part_rows
    for shift, message in (
        (1, "part 2/3 begins at row 25, the one before it ends at 24"),
        (0, "3 parts end at row 69 of 70"),
    ):

        def moved(samples: int, chunk_rows: int, part: tuple[int, int], shift: int = shift) -> slice:
            rows = whole(samples, chunk_rows, part)
            return slice(
                rows.start + shift * (part[0] == 2), rows.stop - (shift == 0 and rows.stop == samples)
            )

        monkeypatch.setattr(scale, "part_rows", moved)
        with pytest.raises(RuntimeError, match=message):
            check_parts(SAMPLES, CHUNK_ROWS, 3)


@pytest.mark.slow
def test_every_row_is_there_and_its_ratio_is_that_of_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "_ROUNDS": 1,
        "_PAINTED": 12,
        "_EXTRACTED": 48,
        "_CHUNKS": 2,
        "_CHUNK_ROWS": 12,
    }.items():
        monkeypatch.setattr(scale, name, value)

    # Only a process of its own has a peak of its own, which is asked of the whole manifest.
    def figures(module: str, function: str, *arguments: str) -> dict[str, float]:
        ask = figures_apart if arguments[0].endswith("/manifest") and function == "plan_manifest" else here
        return dict(ask(module, function, *arguments))

    monkeypatch.setattr(scale, "figures_apart", figures)
    # Starting Ray takes longer than all of this; tests/scale runs it.
    monkeypatch.setattr(scale, "has_ray", lambda: False)
    monkeypatch.setattr(scale, "from_a_bucket", lambda folder, samples: [])
    monkeypatch.setattr(scale.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    config = resolve(overrides={"paths.cache_dir": tmp_path / "cache", "inference.chunk_rows": 8})[0]
    bench = bench_scale(config, samples=200)
    plan, linear, memory, commit, two = bench.measurements
    for m in bench.measurements:
        assert all(
            math.isfinite(figure) and figure > 0 for figure in (m.ours, m.baseline, m.ratio, m.limit)
        ), m
        expected = m.ours / m.baseline if m.unit == "images/s" else m.baseline / m.ours
        assert m.ratio == pytest.approx(expected), m
    assert [m.unit for m in bench.measurements] == ["s", "s", "GB", "images/s", "images/s"]
    assert linear.ours == pytest.approx(plan.ours / 200 * 1e6)
    assert memory.limit < 1
    assert "commit 64 embeddings × 768 in 6 objects" in commit.what
    assert isinstance(two, Measurement)
    assert two.limit == 2 * two.baseline
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_table_in_the_docs_is_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    runpy.run_path(str(root / "tools" / "internet_scale.py"), run_name="__main__")
    summary, _, table = capsys.readouterr().out.partition("\n\n")
    text = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    assert table.count("\n") == 15
    assert table in text
    for figure in summary.replace(";", ",").split(", ")[1:]:
        assert figure.split(" ", 1)[1].removesuffix(" images/s") in text
