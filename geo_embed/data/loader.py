"""Images read ahead on threads, in order: the one window for extraction and for training, and batches of pixels for the latter."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geo_embed.config import OnDamagedImage
from geo_embed.data import images
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError

# Batches that are decoded or waiting, the one that is asked for included.
_AHEAD = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PixelBatch:
    """Some samples' images.

    Attributes:
        rows: (B,) samples.
        pixels: uint8 (B, V, 3, H, W) on the CPU, 0 where a view is absent.
        present: (B, V) bool.
    """

    rows: NDArray[np.int64]
    pixels: Tensor
    present: Tensor


@contextmanager
def read_ahead(
    items: Iterable[Item],
    begin: Callable[[ThreadPoolExecutor, Item], Callable[[], Result]],
    *,
    ahead: int,
    workers: int,
) -> Iterator[Iterator[Result]]:
    """Results of items, in order, worked on by decoding threads ahead of the reader.

    Args:
        items: what there is to do, taken one by one.
        begin: hand an item's work to the threads; what it returns waits for the work and gives its result.
        ahead: at most so many items are begun and not yet read.
        workers: threads; each resizes on its own core.

    Raises:
        Exception: from the iterator, whatever the work of an item raised, at its turn.
    """
    begun: deque[Callable[[], Result]] = deque()
    pool = ThreadPoolExecutor(workers, "decode", initializer=images.one_thread)

    def in_order() -> Iterator[Result]:
        waiting = iter(items)
        exhausted = False
        while True:
            while not exhausted and len(begun) < ahead:
                try:
                    begun.append(begin(pool, next(waiting)))
                except StopIteration:
                    exhausted = True
            if not begun:
                return
            yield begun.popleft()()

    try:
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def read_batches(
    samples: Samples,
    present: NDArray[np.bool_],
    batches: Sequence[NDArray[np.int64]],
    spec: images.Preprocessing,
    workers: int,
    *,
    pinned: bool = False,
    with_damaged: OnDamagedImage = "fail",
) -> Iterator[Iterator[PixelBatch]]:
    """Decode batches of samples on threads, in order, at most a few ahead of the reader.

    Args:
        samples: whose images.
        present: (N, V) which of them exist; others aren't looked for.
        batches: rows of each batch.
        spec: how images are resized.
        workers: threads.
        pinned: in memory that a GPU reads from without waiting.
        with_damaged: what to do with images that decode with a loss; one that is skipped is absent from its batch.

    Raises:
        GeoError: from the iterator, for an image that can't be read, or is damaged and may not be, or is the last of its sample.
    """
    shape = (present.shape[1], 3, spec.height, spec.width)

    def read(into: Tensor, row: int, view: int) -> bool:
        """Whether the image is there once it is read."""
        picture = samples.images[row, view]
        name = f"sample {samples.sample_id[row]}, view {samples.view_names[view]}"
        try:
            data = samples.pictures.read(picture)
            try:
                pixels = images.decode(data)
            except images.DamagedImage as error:
                if with_damaged == "fail":
                    raise GeoError(
                        f"the picture of {name} is {error}",
                        where=samples.pictures.where(picture),
                        hint="put it right, or --on-damaged-image skip|accept; geo data check --decode lists all",
                    ) from error
                if with_damaged == "skip":
                    return False
                pixels = images.decode(data, accept_damage=True)
            into.copy_(torch.from_numpy(images.resize(pixels, spec)))
        except (OSError, images.UnreadableImage) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise GeoError(
                f"can't read the picture of {name}: {reason}",
                where=samples.pictures.where(picture),
                hint="geo data check --decode",
            ) from error
        return True

    def begin(pool: ThreadPoolExecutor, rows: NDArray[np.int64]) -> Callable[[], PixelBatch]:
        pixels = torch.zeros((len(rows), *shape), dtype=torch.uint8, pin_memory=pinned)
        exists = present[rows]
        places = np.argwhere(exists)
        work = [pool.submit(read, pixels[i, v], int(rows[i]), int(v)) for i, v in places]

        def finish() -> PixelBatch:
            had_some = exists.any(axis=1)
            for (i, v), task in zip(places, work, strict=True):
                exists[i, v] = task.result()
            bare = rows[had_some & ~exists.any(axis=1)]
            if len(bare):
                raise GeoError(
                    f"every picture of sample {samples.sample_id[bare[0]]} is damaged: none is left to skip to",
                    where=samples.image_root,
                    hint="put them right, or leave the sample out: geo extract --on-damaged-image skip, then geo fit-heads",
                )
            return PixelBatch(rows, pixels, torch.from_numpy(exists))

        return finish

    with read_ahead(batches, begin, ahead=_AHEAD, workers=workers) as read_in_order:
        yield read_in_order
