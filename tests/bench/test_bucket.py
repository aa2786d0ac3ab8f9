"""A store in a bucket is read beside the same one in a folder, on a handful of samples. No timing is judged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from geo_embed.bench import bucket
from geo_embed.bench.bucket import from_a_bucket
from geo_embed.cache.store import open_store, read_store


def test_both_are_read_and_what_was_read_of_the_bucket_is_kept(tmp_path: Path) -> None:
    (m,) = from_a_bucket(tmp_path, 600)
    assert all(math.isfinite(figure) and figure > 0 for figure in (m.ours, m.baseline, m.ratio, m.limit))
    assert m.ratio == pytest.approx(m.baseline / m.ours)
    assert read_store(open_store(tmp_path / "cache" / "bench-f" / "train.zarr")).values.shape == (600, 4, 768)
    # Of each round, the two chunks of embeddings, as they were when they were read again.
    for k in range(3):
        kept = [path for path in (tmp_path / f"kept-{k}").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in kept) >= 600 * 4 * 768 * 2


def test_where_no_server_is_installed_the_row_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "find_spec", lambda name: None)
    assert from_a_bucket(tmp_path, 600) == []
