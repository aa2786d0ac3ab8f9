"""Images on their way to the backbone: read, hashed, decoded and resized by threads, in order, ahead of it."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.store import MISSING, OK, UNREADABLE, hash_content
from geo_embed.console import progress
from geo_embed.data import images
from geo_embed.data.loader import read_ahead
from geo_embed.data.samples import Samples, missing_images
from geo_embed.extraction.reuse import Sources

# Samples that are looked at before the next ones are handed out: a million need no more memory than a thousand.
_BLOCK = 2048


@dataclass(frozen=True)
class BadImage:
    """An image without an embedding, and why."""

    sample_id: str
    view: str
    path: str
    reason: str


class DamagedImage(BadImage):
    """An image that decodes, but not without a loss."""


@dataclass(frozen=True)
class ReadImage:
    """One image: pixels to embed, or where its embedding lies already, or why it has none.

    Attributes:
        content_hash: of the file's bytes; 0 where it couldn't be read.
        status: as in a store.
        pixels: uint8 (3, H, W), where it is to be embedded.
        source: index into the sources, where its embedding is to be copied.
        reason: why it has none, or what is lost.
        damaged: it decodes, but not without a loss.
    """

    content_hash: int
    status: int = OK
    pixels: images.Pixels | None = None
    source: int | None = None
    reason: str = ""
    damaged: bool = False


@contextmanager
def read_images(
    samples: Samples,
    places: Iterable[tuple[int, int]],
    spec: images.Preprocessing,
    sources: Sources,
    committed: Callable[[int, int], int | None],
    *,
    ahead: int,
    workers: int,
    accept_damage: bool = False,
    lacks: Callable[[int, int], bool] = lambda row, view: False,
) -> Iterator[Iterator[ReadImage]]:
    """Read the images of (row, view) places, in order, at most `ahead` of the reader.

    Args:
        samples: whose images.
        places: which of them.
        spec: how they are resized.
        sources: embeddings at hand; what has one is not decoded.
        committed: the content hash of the embedding that the store holds for a (row, view), None without one; an image
            that is still the same is neither decoded nor looked for among the sources.
        ahead: images.
        workers: threads.
        accept_damage: take what there is of an image that decodes with a loss.
        lacks: whether a further feature is wanted of a (row, view) beside the embedding that is committed.
    """

    def begin(pool: ThreadPoolExecutor, place: tuple[int, int]) -> Callable[[], ReadImage]:
        row, view = place
        return pool.submit(
            read_image,
            samples,
            row,
            view,
            spec,
            sources,
            committed(row, view),
            accept_damage,
            lacks(row, view),
        ).result

    with read_ahead(places, begin, ahead=ahead, workers=workers) as read_in_order:
        yield read_in_order


def read_image(
    samples: Samples,
    row: int,
    view: int,
    spec: images.Preprocessing,
    sources: Sources,
    committed: int | None,
    accept_damage: bool = False,
    lacks: bool = False,
) -> ReadImage:
    """Read one image, and decode it unless its content was embedded before; arguments as in `read_images`."""
    if not samples.images[row, view]:
        return ReadImage(0, MISSING, reason="the CSV names no image")
    try:
        data = samples.pictures.read(samples.images[row, view])
    except FileNotFoundError as error:
        return ReadImage(0, MISSING, reason=error.strerror or str(error))
    except images.UnreadableImage as error:
        return ReadImage(0, UNREADABLE, reason=str(error))
    content_hash = hash_content(data)
    if content_hash == committed:
        if not lacks:
            return ReadImage(content_hash)
        # Whatever is lost of it was accepted when it was embedded.
        accept_damage = True
    source = sources.find(content_hash)
    if source is not None:
        return ReadImage(content_hash, source=source)
    try:
        return ReadImage(content_hash, pixels=images.resize(images.decode(data), spec))
    except images.DamagedImage as error:
        if not accept_damage:
            return ReadImage(content_hash, UNREADABLE, reason=str(error), damaged=True)
        pixels = images.resize(images.decode(data, accept_damage=True), spec)
        return ReadImage(content_hash, pixels=pixels, reason=str(error), damaged=True)
    except images.UnreadableImage as error:
        return ReadImage(content_hash, UNREADABLE, reason=str(error))


def find_bad_images(
    samples: Samples,
    rows: slice,
    pending: NDArray[np.bool_],
    *,
    workers: int,
    progress_seconds: float,
    accept_damage: bool = False,
) -> list[BadImage]:
    """Images that are absent, or that can't be read as far as a cheap look tells; before anything is paid for.

    Args:
        samples: whose images.
        rows: which samples.
        pending: (R, V) of these rows, True where an image's bytes are to be looked at; where it is absent is always told.
        workers: threads.
        progress_seconds: between two lines of news.
        accept_damage: images that decode with a loss aren't bad.
    """
    absent = missing_images(samples, rows)
    bad = [bad_image(samples, row, view, reason) for row, view, reason in absent]
    named = {(row, view) for row, view, _ in absent}

    def look(place: tuple[int, int]) -> BadImage | None:
        row, view = place
        if place in named:
            return None
        reason = samples.pictures.find_fault(samples.images[row, view], accept_damage=accept_damage)
        return bad_image(samples, row, view, reason) if reason else None

    with (
        progress("look at pictures", int(pending.sum()), "images", progress_seconds) as advance,
        ThreadPoolExecutor(workers, "look") as pool,
    ):
        for start in range(0, len(pending), _BLOCK):
            block = np.argwhere(pending[start : start + _BLOCK]).tolist()
            bad += [
                image for image in pool.map(look, ((rows.start + start + i, v) for i, v in block)) if image
            ]
            advance(len(block))
    return bad


def bad_image(samples: Samples, row: int, view: int, reason: str, *, damaged: bool = False) -> BadImage:
    """A (row, view) of the samples, for people."""
    name = samples.images[row, view]
    path = samples.pictures.where(name) if name else samples.image_root
    kind = DamagedImage if damaged else BadImage
    return kind(samples.sample_id[row], samples.view_names[view], str(path), reason)
