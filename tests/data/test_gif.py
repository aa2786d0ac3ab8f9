"""The first picture of a GIF is read whole or refused, however many follow it."""

from __future__ import annotations

import pytest
from pictures import encoded, scene

from geo_embed.data.images import UnreadableImage, decode


def written(codes: list[int], width: int, height: int) -> bytes:
    """A GIF of four colours whose codes all have three bits."""
    bits = sum(code << (3 * k) for k, code in enumerate(codes))
    packed = bits.to_bytes(-(-3 * len(codes) // 8), "little")
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    colours = bytes((0, 0, 0, 80, 80, 80, 160, 160, 160, 255, 255, 255))
    image = b"," + bytes(4) + size + b"\0\2" + bytes((len(packed),)) + packed + b"\0"
    return b"GIF89a" + size + b"\x81\0\0" + colours + image + b";"


CLEAR, END = 4, 5


def test_codes_that_end_before_the_picture_are_refused() -> None:
    assert decode(written([CLEAR, 1, 2, CLEAR, 3, 0, END], 2, 2))[..., 0].tolist() == [[80, 160], [255, 0]]
    for height in (3, 50):
        with pytest.raises(UnreadableImage, match="truncated"):
            decode(written([CLEAR, 1, 2, CLEAR, 3, 0, END], 2, height))


def test_only_the_first_of_a_hundred_thousand_pictures_is_looked_at() -> None:
    single = encoded(scene(16, 16).quantize(16), "GIF")
    start = single.index(b",", 13 + 3 * (2 << (single[10] & 7)))
    repeated = single[:-1] + single[start:-1] * 100_000 + b";"
    assert (decode(repeated) == decode(single)).all()
