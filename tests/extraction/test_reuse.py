"""Embeddings are found by what is in an image, in any store of the fingerprint, and never in a chunk that is damaged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small import Small

from geo_embed.cache.folder import FolderStorage
from geo_embed.cache.storage import supersede
from geo_embed.cache.store import MISSING, OK, Store, chunks_of, commit_chunk, create_store, open_store
from geo_embed.data.image_names import ImageNames
from geo_embed.data.samples import Samples, load_samples
from geo_embed.errors import GeoError
from geo_embed.extraction.reuse import copy_embeddings, gather_sources

if TYPE_CHECKING:
    from conftest import Country

DIM = 3


@pytest.fixture
def path(country: Country, tmp_path: Path) -> Path:
    """Where two splits of five and two samples lie; the numbers of an embedding are its content hash."""
    small = Small.cut(country, tmp_path / "small", train=5, test=2)
    for split, first in (("train", 100), ("test", 900)):
        attrs = {"fingerprint": "f", "backbone": "made-up"}
        fill(
            create_store(
                tmp_path / f"{split}.zarr",
                load_samples(small.config(), split),
                dim=DIM,
                dtype="float16",
                chunk_rows=2,
                attrs=attrs,
            ),
            first,
        )
    return tmp_path / "train.zarr"


def fill(store: Store, first: int) -> None:
    n, v, _ = store.shape
    content = np.arange(first, first + n * v, dtype=np.uint64).reshape(n, v)
    status = np.full((n, v), OK, dtype=np.uint8)
    status[1, 2] = MISSING
    values = np.repeat(content[:, :, None], DIM, axis=2).astype(np.float16)
    for rows in chunks_of(store):
        commit_chunk(store, rows, values[rows], content[rows], status[rows])


def test_every_committed_embedding_of_every_store_is_at_hand(path: Path) -> None:
    sources = gather_sources(path)
    assert len(sources.hashes) == 5 * 4 + 2 * 4 - 2
    for content in (100, 119, 900, 907):
        index = sources.find(content)
        assert index is not None
        number, row, view = sources.place(index)
        assert np.asarray(sources.stores[number].content_hash[:])[row, view] == content
    for content in (99, 106, 120, 906, 2**64 - 1):
        assert sources.find(content) is None


def test_a_superseded_store_is_a_source_and_one_that_is_no_store_is_none(path: Path) -> None:
    supersede(path)
    path.with_name("other.zarr").mkdir()
    sources = gather_sources(path)
    assert [store.path.name for store in sources.stores] == ["test.zarr", "train.zarr.1"]
    assert sources.find(103) is not None


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_chunk_is_no_source_and_the_others_stay_one(path: Path, damage: str) -> None:
    chunk = path / "embeddings" / "c" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data) if damage == "flipped" else chunk.unlink()
    sources = gather_sources(path)
    assert [sources.find(100 + 4 * row) is not None for row in range(5)] == [True, True, False, False, True]


def test_a_picture_with_one_embedding_damaged_and_another_whole_is_at_hand(path: Path) -> None:
    """The same picture in both splits; whichever of its embeddings is lost, the other serves."""
    for split in ("test", "train"):
        store = open_store(path.with_name(f"{split}.zarr"))
        status = np.full((2, 4), OK, dtype=np.uint8)
        commit_chunk(store, slice(0, 2), np.ones((2, 4, DIM)), np.full((2, 4), 7, dtype=np.uint64), status)
    for split in ("test", "train"):
        (chunk,) = path.with_name(f"{split}.zarr").glob("embeddings/c/0/0/0")
        data = chunk.read_bytes()
        chunk.unlink()
        sources = gather_sources(path)
        index = sources.find(7)
        assert index is not None
        assert sources.stores[sources.place(index)[0]].path.stem != split
        chunk.write_bytes(data)


def test_what_is_copied_is_the_embedding_of_that_content_in_its_place(path: Path) -> None:
    sources = gather_sources(path)
    values = np.zeros((3, 4, DIM), dtype=np.float16)
    asked = {(0, 0): 119, (0, 3): 901, (1, 1): 100, (2, 2): 101, (2, 3): 900}
    indices = {place: sources.find(content) for place, content in asked.items()}
    copies = [(*place, index) for place, index in indices.items() if index is not None]
    assert len(copies) == len(asked)
    copy_embeddings(sources, copies, values)
    for place in np.ndindex(3, 4):
        assert (values[place] == asked.get(place, 0)).all()


def test_a_source_that_goes_meanwhile_is_said(path: Path) -> None:
    sources = gather_sources(path)
    index = sources.find(100)
    assert index is not None
    (path / "embeddings" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(GeoError, match="the chunk of rows 0–1 is gone from the disk"):
        copy_embeddings(sources, [(0, 0, index)], np.zeros((1, 4, DIM), dtype=np.float16))


def test_without_any_store_nothing_is_at_hand(tmp_path: Path) -> None:
    sources = gather_sources(tmp_path / "train.zarr")
    assert sources.find(0) is None
    copy_embeddings(sources, [], np.zeros((1, 4, DIM)))
    with pytest.raises(GeoError):
        open_store(tmp_path / "train.zarr")


@pytest.mark.parametrize("order", ["as it was", "shuffled"])
def test_no_chunk_is_read_again_and_again_however_the_rows_are_ordered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """64 chunks of 64 rows copied into another order: by whole chunks each of them would be read for nearly every other."""
    rows, chunk_rows = 4096, 64
    path = tmp_path / "train.zarr"
    ids = [str(row) for row in range(rows)]
    samples = Samples(
        "train", Path("t.csv"), Path(), ("a", "b"), np.array(ids, dtype=object), ImageNames([ids, ids]), None
    )
    attrs = {"fingerprint": "f", "backbone": "made-up"}
    store = create_store(path, samples, dim=DIM, dtype="float16", chunk_rows=chunk_rows, attrs=attrs)
    rng = np.random.default_rng(0)
    content = rng.permutation(2 * rows).astype(np.uint64).reshape(rows, 2)
    values = rng.normal(size=(rows, 2, DIM)).astype(np.float16)
    for chunk in chunks_of(store):
        commit_chunk(
            store, chunk, values[chunk], content[chunk], np.full((chunk_rows, 2), OK, dtype=np.uint8)
        )
    reads: Counter[str] = Counter()
    read_chunk, read_parts = FolderStorage.read_chunk, FolderStorage.read_parts

    def count_chunk(self: FolderStorage, name: str, block: NDArray[Any]) -> None:
        reads[name] += block.nbytes
        read_chunk(self, name, block)

    def count_parts(self: FolderStorage, name: str, starts: Sequence[int], block: NDArray[Any]) -> None:
        reads[name] += block.nbytes
        read_parts(self, name, starts, block)

    sources = gather_sources(path)
    monkeypatch.setattr(FolderStorage, "read_chunk", count_chunk)
    monkeypatch.setattr(FolderStorage, "read_parts", count_parts)
    taken = rng.permutation(rows) if order == "shuffled" else np.arange(rows)
    for first in range(0, rows, chunk_rows):
        now = taken[first : first + chunk_rows]
        copied_from = {
            (k, v): sources.find(int(content[row, v])) for k, row in enumerate(now) for v in range(2)
        }
        copies = [(*place, index) for place, index in copied_from.items() if index is not None]
        assert len(copies) == 2 * chunk_rows
        copied = np.zeros((chunk_rows, 2, DIM), dtype=np.float16)
        copy_embeddings(sources, copies, copied)
        assert (copied == values[now]).all()
    # Once to see that it is whole, and each row once.
    size = chunk_rows * 2 * DIM * 2
    assert len(reads) == rows / chunk_rows
    assert set(reads.values()) == {2 * size}


def test_threads_that_look_for_pictures_of_one_chunk_read_it_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    read_chunk = FolderStorage.read_chunk

    def count(self: FolderStorage, name: str, block: NDArray[Any]) -> None:
        reads[name] += 1
        time.sleep(0.05)
        read_chunk(self, name, block)

    sources = gather_sources(path)
    monkeypatch.setattr(FolderStorage, "read_chunk", count)
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(sources.find, [100, 101, 102, 103, 104, 105, 107, 100]))
    assert None not in places
    assert list(reads.values()) == [1]
