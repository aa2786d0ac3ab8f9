"""Chunks to the store: put together from what was computed, copied and committed before, and committed on a thread of their own."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.store import PENDING, Store, commit_chunk, read_chunk, read_status, rounded_away
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError
from geo_embed.extraction.embedder import EmbeddedBatch
from geo_embed.extraction.reuse import Sources, copy_embeddings


@dataclass
class Chunk:
    """What a chunk of R rows is to become.

    Attributes:
        rows: the chunk.
        content_hash: (R, V) uint64.
        status: (R, V) uint8.
        computed: embeddings, batch by batch.
        copies: (row within the chunk, view, index into the sources) of each embedding to be copied.
    """

    rows: slice
    content_hash: NDArray[np.uint64]
    status: NDArray[np.uint8]
    computed: list[EmbeddedBatch] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)


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
    # Rows that are all pending may hold anything, torn by a fault or a kill: they are not read.
    if (read_status(store, rows) != PENDING).any():
        values = read_chunk(store, rows)
    else:
        values = np.zeros((rows.stop - rows.start, *store.shape[1:]), store.embeddings.dtype)
    for places, embeddings in chunk.computed:
        row, view = np.array(places).T
        exact = embeddings.cpu().numpy()
        # What is too large for float16 becomes infinite, and is refused below.
        with np.errstate(over="ignore"):
            values[row, view] = exact
        finite = np.isfinite(values[row, view]).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            raise GeoError(
                f"the backbone gave NaN or infinity for sample {samples.sample_id[rows.start + row[first]]}, "
                f"view {samples.view_names[view[first]]}",
                where=store.path,
                hint="try --dtype float32; if that gives the same, the weights are damaged",
            )
        lost = rounded_away(exact, str(values.dtype))
        if lost.any():
            first = int(np.argmax(lost))
            raise GeoError(
                f"the embedding of sample {samples.sample_id[rows.start + row[first]]}, view {samples.view_names[view[first]]} "
                f"is too small for {values.dtype}, which would round it away",
                where=store.path,
                hint="--dtype float32 stores smaller values; or the weights are damaged",
            )
    copy_embeddings(sources, chunk.copies, values)
    commit_chunk(store, rows, values, chunk.content_hash, chunk.status)
