"""`geo bench store` on a few samples: what fsync costs stands beside what it would without, and nothing is left behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from geo_embed import files
from geo_embed.bench import store
from geo_embed.bench.store import bench_store
from geo_embed.settings import resolve


def test_what_fsync_costs_stands_beside_the_same_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_ROUNDS", 1)
    monkeypatch.setattr(store, "_PAINTED", 12)
    forced = []
    monkeypatch.setattr(files, "fsync", forced.append)
    config = resolve(overrides={"paths.cache_dir": tmp_path / "cache", "inference.chunk_rows": 8})[0]
    read, written, slow, share = bench_store(config, samples=16, dim=4).measurements
    for m in (read, written, slow, share):
        assert all(math.isfinite(figure) and figure > 0 for figure in (m.ours, m.baseline, m.ratio, m.limit))
    assert slow.baseline == written.ours
    assert (share.baseline, share.unit) == (0.1, "of 1")
    # What follows waits for the disk again.
    assert forced
    assert files.fsync == forced.append
    assert list((tmp_path / "cache").iterdir()) == []
