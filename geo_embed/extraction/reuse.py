"""Embeddings at hand, by the content of the image that they belong to: copied, not computed again.

Sources are all stores of the fingerprint: of this split, of the other, and superseded ones until their successor is whole; and the
stores of other views that were made by the same in everything else.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.find import is_made_alike, is_of_old_kind
from geo_embed.cache.storage import sibling_paths, store_paths
from geo_embed.cache.store import OK, Store, is_whole, open_store, read_chunk, read_content_hash, read_status
from geo_embed.errors import GeoError


@dataclass(frozen=True)
class Sources:
    """Every embedding of some stores, sorted by content hash. M embeddings.

    Attributes:
        stores: what they lie in.
        hashes: (M,) uint64 of the image files' bytes, ascending.
        places: (M, 3) number of the store, row, view.
        whole: what is known so far of chunks, by (number of the store, first row).
    """

    stores: tuple[Store, ...]
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    whole: dict[tuple[int, int], bool] = field(default_factory=dict)

    def find(self, content_hash: int) -> int | None:
        """Index of an image with this content, if there is one in a chunk that is whole. Called from many threads."""
        index = int(np.searchsorted(self.hashes, np.uint64(content_hash)))
        # A picture may have been embedded in several places, one of them damaged since.
        while index < len(self.hashes) and self.hashes[index] == content_hash:
            number, row, _ = self.places[index].tolist()
            store = self.stores[number]
            start = row - row % store.chunk_rows
            if (number, start) not in self.whole:
                self.whole[number, start] = is_whole(store, start)
            if self.whole[number, start]:
                return index
            index += 1
        return None


def gather_sources(path: Path) -> Sources:
    """Every embedding that stores of the fingerprint of the store at `path` hold, or that differ from it in nothing but their views.

    A committed embedding is never overwritten: what is gathered stays true while stores grow. Stores that can't be read
    are left out, and those that weren't made, or don't say that they were, by what makes this one.
    """
    target = None
    with suppress(GeoError):
        target = open_store(path, writable=False)
    stores: list[Store] = []
    hashes: list[NDArray[np.uint64]] = []
    places: list[NDArray[np.int64]] = []
    paths = sibling_paths(path)
    # Of another folder only what is recorded says how it was made: nothing is copied on the strength of what two stores leave open.
    if target is not None and not is_of_old_kind(target):
        paths += [other for other in store_paths(path.parents[1]) if other.parent != path.parent]
    for source in paths:
        try:
            store = open_store(source, writable=False)
            if target is not None and not is_made_alike(store, target):
                continue
            embedded = read_status(store) == OK
            content = read_content_hash(store)
        except GeoError:
            continue
        rows, views = np.nonzero(embedded)
        hashes.append(content[embedded])
        places.append(np.stack([np.full(len(rows), len(stores)), rows, views], axis=1))
        stores.append(store)
    joined = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
    place = np.concatenate(places) if places else np.zeros((0, 3), dtype=np.int64)
    order = np.argsort(joined, kind="stable")
    return Sources(tuple(stores), joined[order], place[order])


def copy_embeddings(sources: Sources, copies: list[tuple[int, int, int]], values: NDArray[Any]) -> None:
    """Copy embeddings into a chunk, reading each chunk of a source once.

    Args:
        sources: where they lie.
        copies: (row, view, index into the sources) of each, the row within the chunk.
        values: (R, V, D), to be written to.

    Raises:
        GeoError: a source is damaged or gone.
    """
    wanted = np.array([index for *_, index in copies], dtype=np.int64)
    for number, store in enumerate(sources.stores):
        taken = np.flatnonzero(sources.places[wanted, 0] == number)
        places = sources.places[wanted[taken]]
        for chunk in np.unique(places[:, 1] // store.chunk_rows):
            start = chunk * store.chunk_rows
            block = read_chunk(store, slice(start, start + store.chunk_rows))
            for k, (_, row, view) in zip(taken, places, strict=True):
                if row // store.chunk_rows == chunk:
                    values[copies[k][0], copies[k][1]] = block[row - start, view]
