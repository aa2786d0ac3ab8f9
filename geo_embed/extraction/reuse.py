"""Embeddings at hand, by the content of the image that they belong to: copied, not computed again, with the features that come with them.

Sources are all stores of the fingerprint: of this split, of the other, and superseded ones until their successor is whole; and the
stores of other views that were made by the same in everything else.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.find import is_made_alike, is_of_old_kind
from geo_embed.cache.storage import sibling_paths, store_paths
from geo_embed.cache.store import (
    OK,
    Store,
    is_whole,
    open_store,
    read_chunk,
    read_content_hash,
    read_has_feature,
    read_single_rows,
    read_status,
)
from geo_embed.errors import GeoError

# Of a chunk's rows: from so many on, reading all of it is no dearer than reading them one by one.
_MANY = 1 / 4
# Room for the images of a store (layout.MOST_PICTURES).
_PLACES = 1 << 32


@dataclass(frozen=True)
class Sources:
    """Every embedding of some stores, sorted by content hash. M embeddings.

    Attributes:
        stores: what they lie in.
        hashes: (M,) uint64 of the image files' bytes, ascending.
        places: (M,) where they lie, for `place`: the number of the store · 2³² + row · V + view, with the V views of that store.
        needed: further features that each of them has.
        others: (M,) which of them have another further feature, by name.
        whole: what is known so far of chunks, by (number of the store, first row, array).
    """

    stores: tuple[Store, ...]
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    needed: tuple[str, ...] = ()
    others: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    whole: dict[tuple[int, int, str], bool] = field(default_factory=dict)
    _looking: dict[tuple[int, int, str], Lock] = field(default_factory=dict)

    def place(self, index: int) -> tuple[int, int, int]:
        """Number of the store, row and view of an embedding."""
        number, place = divmod(int(self.places[index]), _PLACES)
        return number, *divmod(place, self.stores[number].shape[1])

    def find(self, content_hash: int) -> int | None:
        """Index of an image with this content, if there is one in a chunk that is whole. Called from many threads."""
        index = int(np.searchsorted(self.hashes, np.uint64(content_hash)))
        # A picture may have been embedded in several places, one of them damaged since.
        while index < len(self.hashes) and self.hashes[index] == content_hash:
            if all(self.is_whole(index, name) for name in ("embeddings", *self.needed)):
                return index
            index += 1
        return None

    def has(self, index: int, feature: str) -> bool:
        """Whether one of the embeddings comes with a further feature, in a chunk that is whole."""
        if feature in self.needed:
            return True
        others = self.others.get(feature)
        return others is not None and bool(others[index]) and self.is_whole(index, feature)

    def is_whole(self, index: int, name: str) -> bool:
        """Whether the chunk of an array that an embedding lies in is whole: it is read once, whichever thread comes first."""
        number, row, _ = self.place(index)
        start = row - row % self.stores[number].chunk_rows
        chunk = (number, start, name)
        with self._looking.setdefault(chunk, Lock()):
            if chunk not in self.whole:
                self.whole[chunk] = is_whole(self.stores[number], start, name)
        return self.whole[chunk]


def gather_sources(path: Path, needed: Sequence[str] = ()) -> Sources:
    """Every embedding that stores of the fingerprint of the store at `path` hold, or that differ from it in nothing but their views.

    A committed embedding is never overwritten: what is gathered stays true while stores grow. Stores that can't be read
    are left out, and those that weren't made, or don't say that they were, by what makes this one.

    Args:
        path: of the store.
        needed: further features without which an embedding is left out; others come along where the store has room for them.
    """
    target = None
    with suppress(GeoError):
        target = open_store(path, writable=False)
    stores: list[Store] = []
    hashes: list[NDArray[np.uint64]] = []
    places: list[NDArray[np.int64]] = []
    extra = [name for name in (target.further if target else ()) if name not in needed]
    others: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in extra}
    paths = sibling_paths(path)
    # Of another folder only what is recorded says how it was made: nothing is copied on the strength of what two stores leave open.
    if target is not None and not is_of_old_kind(target):
        paths += [other for other in store_paths(path.parents[1]) if other.parent != path.parent]
    for source in paths:
        try:
            store = open_store(source, writable=False)
            if target is not None and not is_made_alike(store, target):
                continue
            if not set(needed) <= set(store.further):
                continue
            embedded = read_status(store) == OK
            content = read_content_hash(store)
            for name in needed:
                embedded &= read_has_feature(store, name)
            come_along = {
                name: read_has_feature(store, name) if name in store.further else np.zeros_like(embedded)
                for name in extra
            }
        except GeoError:
            continue
        for name, has_feature in come_along.items():
            others[name].append(has_feature[embedded])
        hashes.append(content[embedded])
        places.append(np.flatnonzero(embedded) + len(stores) * _PLACES)
        stores.append(store)
    joined = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
    place = np.concatenate([np.zeros(0, dtype=np.int64), *places])
    # With tens of millions of embeddings, each of these is as large as all that is kept.
    hashes.clear()
    places.clear()
    order = np.argsort(joined, kind="stable")
    return Sources(
        tuple(stores),
        joined[order],
        place[order],
        tuple(needed),
        {name: np.concatenate([np.zeros(0, dtype=bool), *parts])[order] for name, parts in others.items()},
    )


def copy_embeddings(
    sources: Sources,
    copies: Sequence[tuple[int, int, int]],
    values: NDArray[Any],
    name: str = "embeddings",
) -> None:
    """Copy embeddings, or a further feature, into a chunk.

    Of a source's chunk of which many rows are wanted, all is read, and its checksum compared. Of one of which few are, as in a manifest
    that was shuffled, these rows alone, if `find` has read it before: else each chunk of a store would be read for every chunk of
    the other.

    Args:
        sources: where they lie.
        copies: (row, view, index into the sources) of each, the row within the chunk.
        values: (R, V, D), to be written to.
        name: the array that is copied.

    Raises:
        GeoError: a source is damaged or gone.
    """
    # By the source's chunk: (row and view there, row and view here) of each copy.
    wanted: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for row, view, index in copies:
        number, source_row, source_view = sources.place(index)
        start = source_row - source_row % sources.stores[number].chunk_rows
        wanted.setdefault((number, start), []).append((source_row - start, source_view, row, view))
    for (number, start), places in sorted(wanted.items()):
        store = sources.stores[number]
        chunk = slice(start, start + store.chunk_rows)
        from_row, from_view, to_row, to_view = np.array(places).T
        rows, at = np.unique(from_row, return_inverse=True)
        if sources.whole.get((number, start, name)) and len(rows) < _MANY * store.chunk_rows:
            values[to_row, to_view] = read_single_rows(store, chunk, rows.tolist(), name)[at, from_view]
        else:
            values[to_row, to_view] = read_chunk(store, chunk, name)[from_row, from_view]
