"""A chunk is put together from what was computed, copied and committed before; what can't be is said, and nothing counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from geo_embed.cache.store import OK, PENDING, Store, create_store, read_chunk, read_content_hash, read_status
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError
from geo_embed.extraction.embedder import EmbeddedBatch
from geo_embed.extraction.reuse import Sources, gather_sources
from geo_embed.extraction.writer import Chunk, Writer, write_chunk

pytestmark = pytest.mark.cut(train=5, test=2)

DIM = 3
FIRST, SECOND, LAST = slice(0, 2), slice(2, 4), slice(4, 5)


@pytest.fixture
def store(tmp_path: Path, samples: Samples) -> Store:
    attrs = {"fingerprint": "f", "backbone": "made-up"}
    return create_store(tmp_path / "train.zarr", samples, dim=DIM, dtype="float16", chunk_rows=2, attrs=attrs)


@pytest.fixture
def no_sources(tmp_path: Path) -> Sources:
    return gather_sources(tmp_path / "no store" / "train.zarr")


def batch(places: list[tuple[int, int]], embeddings: torch.Tensor) -> EmbeddedBatch:
    return places, {"image_embeds": embeddings}


def chunk_of(rows: slice, value: float, content: int = 7) -> Chunk:
    """All of a chunk computed, in two batches, each embedding the same number."""
    count = rows.stop - rows.start
    places = [(row, view) for row in range(count) for view in range(4)]
    batches = [batch(part, torch.full((len(part), DIM), float(value))) for part in (places[:3], places[3:])]
    return Chunk(
        rows,
        np.full((count, 4), content, dtype=np.uint64),
        np.full((count, 4), OK, dtype=np.uint8),
        np.zeros((count, 4), dtype=bool),
        computed=batches,
    )


def test_what_was_computed_is_committed_in_its_place(
    store: Store, samples: Samples, no_sources: Sources
) -> None:
    chunk = chunk_of(LAST, 0)
    chunk.computed = [
        batch([(0, 2), (0, 0)], torch.arange(6.0).reshape(2, 3)),
        batch([(0, 1)], torch.ones(1, 3)),
    ]
    write_chunk(store, chunk, no_sources, samples)
    assert read_chunk(store, LAST)[0].tolist() == [[3, 4, 5], [1, 1, 1], [0, 1, 2], [0, 0, 0]]
    assert (read_status(store) == OK).all(axis=1).tolist() == [False] * 4 + [True]
    assert (read_content_hash(store)[4] == 7).all()


def test_what_was_committed_before_stays_to_the_last_bit(
    store: Store, samples: Samples, no_sources: Sources
) -> None:
    write_chunk(store, chunk_of(FIRST, 1.5), no_sources, samples)
    more = chunk_of(FIRST, 0)
    more.computed = [batch([(1, 3)], torch.full((1, DIM), 2.5))]
    write_chunk(store, more, no_sources, samples)
    values = read_chunk(store, FIRST)
    assert (values[1, 3] == 2.5).all()
    values[1, 3] = 1.5
    assert (values == 1.5).all()


def test_what_is_copied_comes_from_its_source(store: Store, samples: Samples, tmp_path: Path) -> None:
    write_chunk(store, chunk_of(FIRST, 1.5, content=42), gather_sources(store.path), samples)
    sources = gather_sources(store.path)
    index = sources.find(42)
    assert index is not None
    chunk = chunk_of(LAST, 9)
    chunk.computed, chunk.copies = (
        [batch([(0, 0)], torch.full((1, DIM), 9.0))],
        [(0, 1, index), (0, 3, index)],
    )
    write_chunk(store, chunk, sources, samples)
    assert read_chunk(store, LAST)[0, :, 0].tolist() == [9, 1.5, 0, 1.5]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 70_000.0])
def test_an_embedding_that_is_no_number_in_the_stores_precision_is_named_and_nothing_counts(
    store: Store, samples: Samples, no_sources: Sources, poison: float
) -> None:
    chunk = chunk_of(SECOND, 1)
    chunk.computed[1][1]["image_embeds"][2, 1] = poison
    with pytest.raises(GeoError, match=f"NaN or infinity for sample {samples.sample_id[3]}, view east"):
        write_chunk(store, chunk, no_sources, samples)
    assert (read_status(store) == PENDING).all()


def test_an_embedding_that_the_stores_precision_rounds_away_is_named_and_nothing_counts(
    store: Store, samples: Samples, no_sources: Sources
) -> None:
    chunk = chunk_of(SECOND, 1)
    chunk.computed[1][1]["image_embeds"][2] = 1e-9
    what = f"sample {samples.sample_id[3]}, view east is too small for float16, which would round it away"
    with pytest.raises(GeoError, match=what) as refused:
        write_chunk(store, chunk, no_sources, samples)
    assert "--dtype float32" in refused.value.hint
    assert (read_status(store) == PENDING).all()


def test_torn_bytes_of_a_pending_chunk_are_not_read_and_a_committed_chunk_that_is_gone_is_refused(
    store: Store, samples: Samples, no_sources: Sources
) -> None:
    torn = store.path / "embeddings" / "c" / "0" / "0" / "0"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"torn")
    write_chunk(store, chunk_of(FIRST, 1), no_sources, samples)
    torn.unlink()
    with pytest.raises(GeoError, match="gone from the disk"):
        write_chunk(store, chunk_of(FIRST, 2), no_sources, samples)


def test_chunks_are_committed_by_the_end_of_the_context_in_order(
    store: Store, samples: Samples, no_sources: Sources
) -> None:
    with Writer(store, no_sources, samples) as writer:
        for rows, value in ((FIRST, 1), (SECOND, 2), (LAST, 3)):
            writer.write(chunk_of(rows, value))
    assert (read_status(store) == OK).all()
    assert [read_chunk(store, rows)[0, 0, 0] for rows in (FIRST, SECOND, LAST)] == [1, 2, 3]


def test_a_chunk_that_fails_stops_the_next_one_or_the_end(
    store: Store, samples: Samples, no_sources: Sources
) -> None:
    def write(*chunks: Chunk) -> None:
        with Writer(store, no_sources, samples) as writer:
            for chunk in chunks:
                writer.write(chunk)

    with pytest.raises(GeoError, match="NaN or infinity"):
        write(chunk_of(FIRST, float("nan")))
    with pytest.raises(GeoError, match="NaN or infinity"):
        write(chunk_of(FIRST, float("nan")), chunk_of(SECOND, 1))
    assert (read_status(store) == PENDING).all()


def test_what_went_wrong_outside_is_what_people_hear_of_and_what_is_in_flight_is_written(
    store: Store, samples: Samples, no_sources: Sources
) -> None:
    def interrupted() -> None:
        with Writer(store, no_sources, samples) as writer:
            writer.write(chunk_of(FIRST, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (read_status(store)[FIRST] == OK).all()
