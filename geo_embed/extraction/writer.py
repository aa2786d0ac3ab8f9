"""Chunks to the store: put together from what was computed, copied and committed before, and committed on a thread of their own."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.store import (
    PENDING,
    Store,
    commit_chunk,
    commit_features,
    read_chunk,
    read_status,
    rounded_away,
)
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError
from geo_embed.extraction.embedder import EmbeddedBatch
from geo_embed.extraction.reuse import Sources, copy_embeddings

if TYPE_CHECKING:
    import torch


@dataclass
class Chunk:
    """What a chunk of R rows is to become.

    Attributes:
        rows: the chunk.
        content_hash: (R, V) uint64.
        status: (R, V) uint8.
        kept: (R, V) True where an embedding is committed, and stays as it is.
        further: by further feature, (R, V) uint64, the content hash of the picture that it is of.
        computed: embeddings, batch by batch.
        copies: (row within the chunk, view, index into the sources) of each embedding to be copied.
        changed: whether content hashes or statuses are others than those that are committed.
    """

    rows: slice
    content_hash: NDArray[np.uint64]
    status: NDArray[np.uint8]
    kept: NDArray[np.bool_]
    further: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    computed: list[EmbeddedBatch] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    changed: bool = True


class Writer:
    """Commits chunks in order, one while the next is made. As a context it ends once the last is on disk.

    Args:
        store: opened for writing, by the only writer of the rows that come.
        sources: what embeddings are copied from.
        samples: the store's, to name one whose embedding is no number.
    """

    def __init__(self, store: Store, sources: Sources, samples: Samples) -> None:
        self._store, self._sources, self._samples = store, sources, samples
        self._thread = ThreadPoolExecutor(1, "write")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # What went wrong before is what people are to hear of.
            if kind is None:
                self._wait()
        finally:
            self._thread.shutdown()

    def write(self, chunk: Chunk) -> None:
        """Commit a chunk, once the one before it is committed. Raises whatever that one raised."""
        self._wait()
        self._writing = self._thread.submit(write_chunk, self._store, chunk, self._sources, self._samples)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def write_chunk(store: Store, chunk: Chunk, sources: Sources, samples: Samples) -> None:
    """Put a chunk together and commit it; on a thread of its own, waiting for the device costs nothing.

    Raises:
        GeoError: an embedding is no number, or too small for the store, a source is gone, the disk is full.
    """
    rows = chunk.rows
    # 1. Further features, each as it is plus what came of the images. One that the images brought nothing for isn't written.
    further = {}
    for feature, before in chunk.further.items():
        # Of other pictures than are there now it may be what an earlier version left behind, which knows nothing of it.
        hashes = np.where(before == chunk.content_hash, before, np.uint64(0))
        copies = [copy for copy in chunk.copies if sources.has(copy[2], feature)]
        computed = [(places, batch[feature]) for places, batch in chunk.computed if feature in batch]
        places = [place for batch, _ in computed for place in batch] + [copy[:2] for copy in copies]
        if places:
            row, view = np.array(places).T
            values = _present(store, rows, feature, keep=bool(hashes.any()))
            values[hashes == 0] = 0
            hashes[row, view] = chunk.content_hash[row, view]
            _enter(store, chunk, samples, values, computed, feature)
            copy_embeddings(sources, copies, values, feature)
            further[feature] = values, hashes
    # 2. Embeddings that are committed stay: what a pass for another feature gave of them is dropped.
    if not chunk.changed:
        commit_features(store, rows, further)
        return
    # Rows that are all pending may hold anything, torn by a fault or a kill: they are not read.
    keep = bool((read_status(store, rows) != PENDING).any())
    values = _present(store, rows, "embeddings", keep=keep)
    new = [(places, batch[store.feature]) for places, batch in chunk.computed]
    _enter(store, chunk, samples, values, [_without(chunk.kept, *batch) for batch in new], store.feature)
    copy_embeddings(sources, [copy for copy in chunk.copies if not chunk.kept[copy[:2]]], values)
    commit_chunk(store, rows, values, chunk.content_hash, chunk.status, further)


def _present(store: Store, rows: slice, array: str, *, keep: bool) -> NDArray[Any]:
    """A chunk as it is, or zeros where nothing of it is to be kept."""
    if keep:
        return read_chunk(store, rows, array)
    shape = rows.stop - rows.start, *store.arrays[array].shape[1:]
    return np.zeros(shape, store.arrays[array].dtype)


def _without(
    kept: NDArray[np.bool_], places: list[tuple[int, int]], embeddings: "torch.Tensor"
) -> tuple[list[tuple[int, int]], "torch.Tensor"]:
    """What of a batch isn't of pictures whose embeddings are kept."""
    new = [number for number, place in enumerate(places) if not kept[place]]
    if len(new) == len(places):
        return places, embeddings
    return [places[number] for number in new], embeddings[new]


def _enter(
    store: Store,
    chunk: Chunk,
    samples: Samples,
    values: NDArray[Any],
    batches: "Sequence[tuple[list[tuple[int, int]], torch.Tensor]]",
    feature: str,
) -> None:
    """Enter batches of one feature into a chunk's values (R, V, D). Raises GeoError for what the store can't hold."""
    name = "embedding" if feature == store.feature else feature
    for places, embeddings in batches:
        if not places:
            continue
        row, view = np.array(places).T
        exact = embeddings.cpu().numpy()
        # What is too large for float16 becomes infinite, and is refused below.
        with np.errstate(over="ignore"):
            values[row, view] = exact

        def sample(number: int, row: Any = row, view: Any = view) -> str:
            place = samples.sample_id[chunk.rows.start + row[number]]
            return f"sample {place}, view {samples.view_names[view[number]]}"

        finite = np.isfinite(values[row, view]).all(axis=1)
        if not finite.all():
            what = "" if feature == store.feature else f" in {feature}"
            without = "" if feature == store.feature else f"; or leave {feature} out of model.features"
            raise GeoError(
                f"the backbone gave NaN or infinity{what} for {sample(int(np.argmin(finite)))}",
                where=store.path,
                hint=f"try --dtype float32; if that gives the same, the weights are damaged{without}",
            )
        lost = rounded_away(exact, str(values.dtype))
        if lost.any():
            raise GeoError(
                f"the {name} of {sample(int(np.argmax(lost)))} "
                f"is too small for {values.dtype}, which would round it away",
                where=store.path,
                hint="--dtype float32 stores smaller values; or the weights are damaged",
            )
