"""Features that are added to a store: killed anywhere, in a bucket, in parts, the end is the store of one pass, to the last bit."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import numpy as np
import pytest
from small import SLOW_WRITES, Nursery, Small, content

from geo_embed.cache.store import lacking, list_stores, open_store
from geo_embed.cache.verify import verify
from geo_embed.config import Config
from geo_embed.extraction.extract import extract

FURTHER = ("pooler_output", "token_mean")
KILLS = 4

pytestmark = pytest.mark.cut(train=12, chunk_rows=1)


def featured(small: Small, **changes: object) -> Config:
    return small.config(model__features=FURTHER, **changes)


def left(small: Small) -> int:
    """Pictures that lack one of the features."""
    store = open_store(small.store(), writable=False)
    return max(lacking(store, name) for name in FURTHER)


@pytest.mark.slow
def test_an_addition_that_is_killed_anywhere_ends_as_one_pass(small: Small, nursery: Nursery) -> None:
    whole = content(extract(featured(small, paths__cache_dir=str(small.root / "whole")), "train").store)
    extract(small.config(), "train")
    embeddings = content(small.store())["embeddings"]
    chance = random.Random(0)
    torn = 0
    add = ("--json", "extract", "--split", "train", "--set", 'model.features=["pooler_output","token_mean"]')
    for _ in range(KILLS):
        before = left(small)
        arrays = ("pooler_output/c/*/0/0", "token_mean/c/*/0/0", "token_mean_hash/c/*/0")
        array = chance.choice(arrays)
        written = len(list(small.store().glob(array)))
        process = nursery.start(small, *add, before=SLOW_WRITES)
        writing = f"{Path(array).parent}/.*.writing"
        process.wait_for(
            lambda array=array, written=written, writing=writing: (
                len(list(small.store().glob(array))) > written and any(small.store().glob(writing))
            )
        )
        process.signal(signal.SIGKILL)
        assert process.end().code == -signal.SIGKILL
        torn += any(small.store().rglob(".*.writing"))
        store = open_store(small.store(), writable=False)
        assert verify(store) == []
        assert left(small) <= before, "a feature that was committed is lost"
        assert content(small.store())["embeddings"] == embeddings
    assert torn, "no kill came in the middle of a write"
    before = left(small)
    assert 0 < before < 48
    ran = nursery.run(small, *add)
    assert (ran.code, ran.json["computed"]) == (0, before), ran.err
    assert content(small.store()) == whole
    assert nursery.run(small, *add).json["computed"] == 0


@pytest.mark.cut(train=6, chunk_rows=2)
def test_features_in_a_bucket_are_those_of_a_folder(small: Small, bucket: str) -> None:
    config = featured(small, paths__cache_dir=bucket)
    extract(small.config(paths__cache_dir=bucket), "train")
    assert extract(config, "train").computed == 24
    assert extract(config, "train").computed == 0
    (store,) = list_stores(config.paths.cache_dir, "train")
    assert verify(store) == []
    whole = open_store(extract(featured(small), "train").store)
    assert store.features == whole.features
    for name, array in whole.arrays.items():
        assert (np.asarray(store.arrays[name][:]) == np.asarray(array[:])).all(), name
