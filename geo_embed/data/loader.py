"""Samples' pictures as batches of pixels, decoded ahead on threads, in the order that training asks for."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geo_embed.data import images
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError

# Batches that are decoded or waiting, beside the one at work.
_AHEAD = 2


@dataclass(frozen=True)
class PixelBatch:
    """Some samples' pictures.

    Attributes:
        rows: (B,) samples.
        pixels: uint8 (B, V, 3, H, W) on the CPU, 0 where a view is absent.
        present: (B, V) bool.
    """

    rows: NDArray[np.int64]
    pixels: Tensor
    present: Tensor


@contextmanager
def read_batches(
    samples: Samples,
    present: NDArray[np.bool_],
    batches: Sequence[NDArray[np.int64]],
    spec: images.Preprocessing,
    workers: int,
    *,
    pinned: bool = False,
) -> Iterator[Iterator[PixelBatch]]:
    """Decode batches of samples on threads, in order, at most a few ahead of the reader.

    Args:
        samples: whose pictures.
        present: (N, V) which of them there are; others aren't looked for.
        batches: rows of each batch.
        spec: how pictures are resized.
        workers: threads.
        pinned: in memory that a GPU reads from without waiting.

    Raises:
        GeoError: from the iterator, for a picture that can't be read.
    """
    shape = (present.shape[1], 3, spec.height, spec.width)
    pool = ThreadPoolExecutor(workers, "decode", initializer=images.one_thread)
    window: deque[tuple[PixelBatch, list[Future[None]]]] = deque()

    def read(into: Tensor, row: int, view: int) -> None:
        path = samples.image_root / samples.images[row, view]
        try:
            pixels = images.resize(images.decode(path.read_bytes()), spec)
        except (OSError, images.UnreadableImage) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise GeoError(
                f"can't read the picture of sample {samples.sample_id[row]}: {reason}",
                where=path,
                hint="geo data check --decode",
            ) from error
        into.copy_(torch.from_numpy(pixels))

    def begin(rows: NDArray[np.int64]) -> tuple[PixelBatch, list[Future[None]]]:
        pixels = torch.zeros((len(rows), *shape), dtype=torch.uint8, pin_memory=pinned)
        there = present[rows]
        work = [pool.submit(read, pixels[i, v], int(rows[i]), int(v)) for i, v in np.argwhere(there)]
        return PixelBatch(rows, pixels, torch.from_numpy(there)), work

    def in_order() -> Iterator[PixelBatch]:
        waiting = iter(batches)
        while True:
            while len(window) <= _AHEAD and (rows := next(waiting, None)) is not None:
                window.append(begin(rows))
            if not window:
                return
            batch, work = window.popleft()
            for one in work:
                one.result()
            yield batch

    try:
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)
