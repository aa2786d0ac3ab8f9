"""What a dataset's pictures are, each looked at once: size, bytes, what is wrong, and a hash that is alike where pictures are."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.store import hash_content
from geo_embed.config import Config
from geo_embed.console import progress
from geo_embed.data import images
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError

_BLOCK = 1024
# Bits of 128 that two pictures' hashes may differ in and be near duplicates: at most one less than there are bands.
NEAR_BITS: Final = 7
_BANDS: Final = 8
# Pictures whose hash shares a band: of more than these, each is compared with as many neighbours in order.
_BUCKET, _NEIGHBOURS = 256, 16
# The standard deviation of grey levels from 0 to 255 below which a picture shows nothing.
_BLANK: Final = 4.0
_BITS = np.array([int(value).bit_count() for value in range(1 << 16)], dtype=np.uint8)


@dataclass(frozen=True)
class Looks:
    """The pictures of a split, N samples by V views.

    Attributes:
        decoded: (N,) the samples whose pictures were decoded; of the others' the headers were read.
        present: (N, V) whether a picture could be decoded, or its header read; the others are 0 below.
        width, height: (N, V) pixels, upright.
        size: (N, V) bytes of the file; also of one that can't be decoded.
        content: (N, V) uint64, equal where the files' bytes are.
        likeness: (N, V, 8) uint16, the 128 bits of `likeness_of`; 0 where only the header was read.
        blank: (N, V) whether it shows nothing: one grey, nearly; not known where only the header was read.
        faults: sample, view, and why it can't be decoded, or not without a loss.
    """

    decoded: NDArray[np.bool_]
    present: NDArray[np.bool_]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    size: NDArray[np.int64]
    content: NDArray[np.uint64]
    likeness: NDArray[np.uint16]
    blank: NDArray[np.bool_]
    faults: list[tuple[int, int, str]]


def look_at(samples: Samples, config: Config, limit: int | None = None) -> Looks:
    """Read every picture that a split names, and decode it, `inference.workers` at once; absent ones are left out without a word.

    Args:
        samples: the split.
        config: workers.
        limit: decode the pictures of so many samples only, evenly through the CSV, and of the others' read the headers.
    """
    shape = samples.images.shape
    decoded = np.ones(len(samples), dtype=bool)
    if limit is not None and limit < len(samples):
        decoded[:] = False
        decoded[np.linspace(0, len(samples) - 1, limit).astype(int)] = True
    looks = Looks(
        decoded,
        np.zeros(shape, dtype=bool),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.uint64),
        np.zeros((*shape, _BANDS), dtype=np.uint16),
        np.zeros(shape, dtype=bool),
        [],
    )

    def look(place: tuple[int, int]) -> str:
        try:
            data = samples.pictures.read(str(samples.images[place]))
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, GeoError, images.UnreadableImage) as error:
            return str(error)
        looks.size[place], looks.content[place] = len(data), hash_content(data)
        fault = ""
        try:
            if not decoded[place[0]]:
                looks.height[place], looks.width[place] = images.read_shape(data)
                looks.present[place] = True
                return ""
            pixels = images.decode_grey(data)
        except images.DamagedImage as error:
            fault = str(error)
            try:
                pixels = images.decode_grey(data, accept_damage=True)
            except images.UnreadableImage:
                return fault
        except images.UnreadableImage as error:
            return str(error)
        looks.present[place] = True
        looks.height[place], looks.width[place] = pixels.shape
        looks.likeness[place], looks.blank[place] = likeness_of(pixels)
        return fault

    places = [(int(i), int(v)) for i, v in np.argwhere(samples.images.named)]
    workers = config.inference.workers or os.cpu_count() or 1
    with (
        progress(
            f"look at {samples.split}", len(places), "images", config.tracking.progress_seconds
        ) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        for start in range(0, len(places), _BLOCK):
            part = places[start : start + _BLOCK]
            for (i, v), fault in zip(part, pool.map(look, part), strict=True):
                if fault:
                    looks.faults.append((i, v, fault))
            advance(len(part))
    return looks


def likeness_of(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], bool]:
    """A picture's difference hash, and whether it shows nothing.

    The grey levels of a 9 × 9 miniature, and whether each is lighter than its left and its upper neighbour: 64 bits each (Krawetz,
    Kind of Like That, 2013, both ways). A copy at half the size and JPEG quality 75 differs in 6 bits at most in 218 pictures, painted and photographed; two different ones
    of these differ in 16 at least.

    Args:
        pixels: (H, W) grey levels, or (H, W, 3).

    Returns:
        (8,) of 16 bits each.
    """
    from PIL import Image

    # In floats: of a clear sky whole levels say nothing.
    small = Image.fromarray(pixels).convert("L").convert("F").resize((9, 9), Image.Resampling.BOX)
    grey = np.asarray(small)
    bits = np.concatenate([(grey[:8, 1:] > grey[:8, :8]).ravel(), (grey[1:, :8] > grey[:8, :8]).ravel()])
    return np.packbits(bits).view(np.uint16), bool(grey.std() < _BLANK)


def near_duplicates(likeness: NDArray[np.uint16], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (K, 2) of pictures of different owners whose hashes differ in at most `NEAR_BITS` bits, each once, ascending.

    Of two such hashes one of the eight bands is the same, since seven bits can't lie in all of them: only pictures that share a band
    are compared (multi-index hashing: Norouzi, Punjani & Fleet, CVPR 2012). Where very many share one, each is compared with those
    next to it in the order of the whole hash, so that a thousand alike pictures aren't half a million pairs.

    Args:
        likeness: (P, 8) of `likeness_of`.
        owner: (P,) the sample that each belongs to.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for band in range(_BANDS):
        # By this band, then by the others: in a bucket the most alike stand together.
        order = np.lexsort([*np.roll(likeness, -band, axis=1).T[::-1]])
        keys = likeness[order, band]
        sizes = np.bincount(keys)[keys] if len(keys) else np.zeros(0, dtype=np.int64)
        # Each with the next one, with the one after that, and so on, as long as they share the band.
        first = np.arange(len(keys))
        for step in range(1, _BUCKET):
            first = first[first < len(keys) - step]
            first = first[
                (keys[first] == keys[first + step]) & ((step <= _NEIGHBOURS) | (sizes[first] <= _BUCKET))
            ]
            if not len(first):
                break
            left, right = order[first], order[first + step]
            differ = _BITS[likeness[left] ^ likeness[right]].sum(axis=1)
            close = (differ <= NEAR_BITS) & (owner[left] != owner[right])
            pairs.append(np.sort(np.stack([left[close], right[close]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)
