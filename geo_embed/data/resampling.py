"""PIL's resize for a part of an enlarged picture alone: one of 40,000 × 1 is never made 13 million pixels wide to keep 336 of them.

The arithmetic is that of Pillow's Resample.c: weights of a filter, rounded to 22 bits; one pass along rows, rounded to grey levels,
then one along columns. (Where a picture shrinks, Pillow 13 goes along columns first if that seems cheaper.)
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

_PRECISION_BITS = 22
_NEAREST = 0


def _lanczos(x: Floats) -> Floats:
    return np.asarray(np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0))


def _bilinear(x: Floats) -> Floats:
    return np.asarray(np.clip(1 - np.abs(x), 0, None))


def _bicubic(x: Floats) -> Floats:
    x, a = np.abs(x), -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _box(x: Floats) -> Floats:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _hamming(x: Floats) -> Floats:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)


# By PIL's codes: half the width in pixels of the result, and the filter.
_FILTERS: dict[int, tuple[float, Callable[[Floats], Floats]]] = {
    1: (3.0, _lanczos),
    2: (1.0, _bilinear),
    3: (2.0, _bicubic),
    4: (0.5, _box),
    5: (1.0, _hamming),
}


def resize_part(
    pixels: Pixels, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], resample: int
) -> Pixels:
    """What PIL's resize gives between these rows and columns of a picture of which no side shrinks.

    Args:
        pixels: (H, W, 3).
        size: (height, width) of the whole result.
        rows, columns: first and end of the part, in the whole result.
        resample: PIL's code of the filter.

    Returns:
        (rows, columns, 3). Bit-equal to PIL's where no side shrinks; of nearest pixels, but for ties.
    """
    # Only the rows that the second pass needs go through the first.
    first_row, row_weights = _weights(pixels.shape[0], size[0], rows, resample)
    first_column, column_weights = _weights(pixels.shape[1], size[1], columns, resample)
    part = pixels[first_row : first_row + row_weights.shape[1]]
    part = part[:, first_column : first_column + column_weights.shape[1]]
    wide = _weighted(part, column_weights)
    return _weighted(wide.swapaxes(0, 1), row_weights).swapaxes(0, 1)


def _weighted(pixels: Pixels, weights: Floats) -> Pixels:
    """(H, W, 3) to (H, N, 3) by weights (N, W). Integers below 2^53 are exact as floats, in any order of summation."""
    height, width, _ = pixels.shape
    result = np.empty((height, len(weights), 3), dtype=np.uint8)
    step = max(1_000_000 // max(width, len(weights)), 1)
    for top in range(0, height, step):
        # (N, W) × (rows, W, 3) → (rows, N, 3)
        sums = np.matmul(weights, pixels[top : top + step].astype(np.float64))
        levels = np.floor((sums + (1 << _PRECISION_BITS - 1)) / (1 << _PRECISION_BITS))
        result[top : top + step] = levels.clip(0, 255)
    return result


def _weights(size: int, resized: int, part: tuple[int, int], resample: int) -> tuple[int, Floats]:
    """The first pixel that a part of the resized side is made of, and the weights (N, M) of this and the following ones."""
    places = np.arange(*part)
    scale = size / resized
    centres = (places + 0.5) * scale
    if resample == _NEAREST or size == resized:
        lows = np.floor(centres).astype(np.int64).clip(0, size - 1)
        first = int(lows[0])
        weights = np.zeros((len(places), int(lows[-1]) + 1 - first))
        weights[np.arange(len(places)), lows - first] = 1 << _PRECISION_BITS
        return first, weights

    # Each place's window of pixels, at most as far as the picture reaches.
    width, function = _FILTERS[resample]
    stretch = max(scale, 1.0)
    support = width * stretch
    lows = np.trunc(centres - support + 0.5).astype(np.int64).clip(0, None)
    highs = np.trunc(centres + support + 0.5).astype(np.int64).clip(None, size)
    first, end = int(lows.min()), int(highs.max())

    # The filter there, to the sum of one. `cumsum` adds from left to right as PIL does; zeros change nothing.
    columns = np.arange(first, end)
    inside = (columns >= lows[:, None]) & (columns < highs[:, None])
    raw = np.where(inside, function((columns - centres[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    sums = np.cumsum(raw, axis=1)[:, -1:]
    scaled = raw / np.where(sums == 0, 1.0, sums) * (1 << _PRECISION_BITS)
    return first, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5))
