"""Which way up a picture is, by its EXIF or XMP, and turning it upright."""

import re

import numpy as np
from numpy.typing import NDArray

from geo_embed.data.tiff import ORIENTATION, first_number, read_directory

UPRIGHT = 1
_NAMES = re.compile(rb"(?:Exif\x00.)++", re.DOTALL)
_IN_XMP = re.compile(rb'tiff:Orientation(?:\s*=\s*["\']|>)\s*([1-8])\b')


def read_orientation(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF's code of the orientation, 1 to 8; from XMP where EXIF has none; 1 where none is told that means something.

    One tag is looked at and nothing is written: what else is wrong with the EXIF doesn't matter.
    """
    # Some writers put it there twice.
    start = _NAMES.match(exif)
    body = exif[start.end() :] if start else exif
    directory = read_directory(body)
    if directory is not None and any(tag == ORIENTATION for tag, _ in directory.entries):
        code = first_number(body, directory, ORIENTATION)
        return int(code) if code in range(1, 9) else UPRIGHT
    match = _IN_XMP.search(xmp)
    return int(match[1]) if match else UPRIGHT


def turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """(H, W, 3) as it is stored to (H, W, 3) or (W, H, 3) as it is to be seen. The codes are those of EXIF 2.3, tag 274."""
    turned = {
        2: lambda: pixels[:, ::-1],
        3: lambda: pixels[::-1, ::-1],
        4: lambda: pixels[::-1],
        5: lambda: pixels.swapaxes(0, 1),
        6: lambda: pixels[::-1].swapaxes(0, 1),
        7: lambda: pixels[::-1, ::-1].swapaxes(0, 1),
        8: lambda: pixels[:, ::-1].swapaxes(0, 1),
    }.get(orientation)
    return pixels if turned is None else np.ascontiguousarray(turned())
