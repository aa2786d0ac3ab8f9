"""Samples of any depth to the 8 bits of RGB, by what the file says of them, transparency over white."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

# So many pixels are converted at a time: a picture of 100 megapixels needs its own memory, and that of its result.
_BAND = 4_000_000


class UnknownDepth(Exception):
    """Samples whose black or white isn't told; the text is for people."""


@dataclass(frozen=True)
class Depth:
    """How a file's grey samples are to be read where they have more than 8 bits.

    Attributes:
        bits: of an unsigned sample as PIL hands it over: all ones are white.
        floating: samples are floats, 0 black and 1 white.
        inverted: 0 is white.
        key: the sample that is transparent; None where none is.
    """

    bits: int = 16
    floating: bool = False
    inverted: bool = False
    key: int | None = None


def to_rgb(image: Image.Image, depth: Depth | None, key: tuple[int, ...] = ()) -> Pixels:
    """A decoded picture to RGB (H, W, 3).

    Args:
        image: decoded.
        depth: of its samples, where its mode is one of more than 8 bits; None where the file doesn't tell it.
        key: the colour of 8 bits a channel that is transparent in a grey or RGB picture; none where empty.

    Raises:
        UnknownDepth: samples have no known black or white.
    """
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;"):
        if depth is None:
            raise UnknownDepth(
                f"its samples are {'floats' if image.mode == 'F' else 'integers'} without a known white; "
                "scale them to 8 or 16 bits, and save it as PNG"
            )
        grey = _grey_of_floats(image, depth) if depth.floating else _grey_of_integers(image, depth)
        return np.repeat(grey[..., None], 3, axis=2)
    result = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top, band in _bands(image):
        result[top : top + band.height] = _band_to_rgb(band, key)
    return result


def _band_to_rgb(image: Image.Image, key: tuple[int, ...]) -> Pixels:
    if key:
        samples = np.asarray(image.convert("RGB" if len(key) == 3 else "L"), dtype=np.uint8)
        rgb = np.asarray(image.convert("RGB"), dtype=np.uint8).copy()
        rgb[(samples.reshape(*samples.shape[:2], -1) == key).all(axis=2)] = 255
        return rgb
    palette_has_alpha = image.palette is not None and image.palette.mode.endswith("A")
    if image.getbands()[-1] in ("A", "a") or "transparency" in image.info or palette_has_alpha:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _grey_of_integers(image: Image.Image, depth: Depth) -> Pixels:
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    for top, band in _bands(image):
        # PIL's "I" is signed, whatever the file's samples are.
        samples = np.asarray(band)
        samples = samples.view(np.uint32) if samples.dtype == np.int32 else samples.astype(np.uint32)
        if (samples >> depth.bits - 1 >> 1).any():
            raise UnknownDepth(f"its samples are larger than {depth.bits} bits hold")
        levels = (samples >> depth.bits - 8).astype(np.uint8)
        levels = ~levels if depth.inverted else levels
        if depth.key is not None:
            levels[samples == depth.key] = 255
        grey[top : top + band.height] = levels
    return grey


def _grey_of_floats(image: Image.Image, depth: Depth) -> Pixels:
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    for top, band in _bands(image):
        samples = np.asarray(band, dtype=np.float64)
        low, high = samples.min(), samples.max()
        if not (low >= 0 and high <= 1):
            span = f"from {low:.4g} to {high:.4g}" if np.isfinite(low + high) else "not all of them numbers"
            raise UnknownDepth(
                f"its samples are floats, {span}, where 0 is black and 1 white; scale them to 8 or 16 bits, and save it as PNG"
            )
        samples = 1 - samples if depth.inverted else samples
        grey[top : top + band.height] = (samples * 255 + 0.5).astype(np.uint8)
    return grey


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, rows) of a picture, a few at a time."""
    rows = max(_BAND // image.width, 1)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
