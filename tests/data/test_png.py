"""A PNG's pixels are read whatever is wrong with its text; what is wrong with its pixels is damage."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from pictures import encoded, exif, png, png_chunk, scene

from geo_embed.data.images import DamagedImage, UnreadableImage, decode

WHOLE = encoded(scene(), "PNG")
PIXELS = np.asarray(scene())
DATA = WHOLE.index(b"IDAT")
SIZE = int.from_bytes(WHOLE[DATA - 4 : DATA], "big")
PACKED = WHOLE[DATA + 4 : DATA + 4 + SIZE]
BOMB = zlib.compress(bytes(1 << 27), 9)


def behind_header(*chunks: bytes) -> bytes:
    return WHOLE[:33] + b"".join(chunks) + WHOLE[33:]


def with_packed(packed: bytes) -> bytes:
    return WHOLE[: DATA - 4] + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def bad_checksum(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes((chunk[-1] ^ 1,))


HARMLESS = {
    "text with a wrong checksum": behind_header(bad_checksum(png_chunk(b"tEXt", b"a\0b"))),
    "a text that unpacks to 128 MB": behind_header(png_chunk(b"zTXt", b"k\0\0" + BOMB)),
    "a profile that unpacks to 128 MB": behind_header(png_chunk(b"iCCP", b"k\0\0" + BOMB)),
    "XMP that unpacks to 128 MB": behind_header(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)),
    "a thousand texts": behind_header(*[png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**5)))] * 1000),
    "an unknown way to pack text": behind_header(png_chunk(b"zTXt", b"k\0\7xxxx")),
    "text in no known letters": behind_header(png_chunk(b"iTXt", b"\xff\xfe\0\0\0\0\0\xff")),
    "a gamma of no bytes": behind_header(png_chunk(b"gAMA", b"")),
    "half an animation": behind_header(png_chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), png_chunk(b"fcTL", b"xx")),
    "EXIF that is none": behind_header(png_chunk(b"eXIf", b"II*\0\xff")),
    "data after the end": WHOLE + b"junk" * 99,
    "text amid the pixels": WHOLE[: DATA - 4]
    + png_chunk(b"IDAT", PACKED[:99])
    + png_chunk(b"tEXt", b"a\0b")
    + png_chunk(b"IDAT", PACKED[99:])
    + png_chunk(b"IEND", b""),
    "more rows than it says": with_packed(zlib.compress(zlib.decompress(PACKED) + bytes(999))),
}


@pytest.mark.parametrize("fault", HARMLESS)
def test_what_makes_no_pixels_keeps_no_picture_from_being_read(fault: str) -> None:
    assert (decode(HARMLESS[fault]) == PIXELS).all()


LOSSES = {
    "rows are missing": (
        with_packed(zlib.compress(zlib.decompress(PACKED)[: 40 * (1 + 61 * 3)])),
        "bytes of pixels where",
    ),
    "the pixels' checksum": (
        WHOLE[: DATA + 4 + SIZE] + b"abcd" + WHOLE[DATA + 8 + SIZE :],
        "its checksum differs",
    ),
    "no end": (WHOLE[:-12], "end is missing"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_pixels_that_are_missing_or_doubtful_are_damage(loss: str) -> None:
    data, message = LOSSES[loss]
    with pytest.raises(DamagedImage, match=message):
        decode(data)
    assert decode(data, accept_damage=True).shape == PIXELS.shape


def test_what_pil_refuses_stays_unreadable() -> None:
    for data in (
        with_packed(PACKED[: SIZE // 2]),
        with_packed(PACKED[:-4] + b"abcd"),
        bad_checksum(WHOLE[:33]) + WHOLE[33:],
    ):
        with pytest.raises(UnreadableImage):
            decode(data, accept_damage=True)


def test_an_interlaced_picture_is_measured_by_its_passes() -> None:
    """Seven passes of a 3 × 5 picture, of which some are empty: rows of one byte each, by the standard's own table."""
    samples = np.arange(15, dtype=np.uint8).reshape(5, 3) * 17
    passes = [
        samples[y::sy, x::sx]
        for x, y, sx, sy in (
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        )
    ]
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 5, 8, 0, 0, 0, 1))

    def file(packed: bytes) -> bytes:
        return WHOLE[:8] + header + png_chunk(b"IDAT", zlib.compress(packed)) + png_chunk(b"IEND", b"")

    assert (decode(file(rows))[..., 0] == samples).all()
    with pytest.raises((DamagedImage, UnreadableImage)):
        decode(file(rows[:-4]))


def test_a_picture_is_turned_by_its_exif_or_xmp_wherever_these_stand() -> None:
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    raw = f"\nexif\n{len(exif(6)) + 6:8}\n{(b'Exif' + bytes(2) + exif(6)).hex()}\n"
    for chunk in (
        png_chunk(b"eXIf", exif(6)),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw.encode())),
    ):
        for data in (behind_header(chunk), WHOLE[:-12] + chunk + WHOLE[-12:]):
            assert (decode(data) == np.rot90(PIXELS, -1)).all()


def test_a_bomb_of_pixels_is_unpacked_no_further_than_its_picture() -> None:
    row = bytes(3 * 4)
    small = png([row] * 4, 4, 8, 2)
    place = small.index(b"IDAT") - 4
    assert decode(small[:place] + png_chunk(b"IDAT", BOMB) + png_chunk(b"IEND", b"")).shape == (4, 4, 3)


def test_all_texts_together_are_unpacked_to_a_few_megabytes() -> None:
    def text(content: bytes) -> bytes:
        return png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(content, 9))

    real = text(f"\nexif\n{len(exif(6)) + 6:8}\n{(b'Exif' + bytes(2) + exif(6)).hex()}\n".encode())
    lines, letters = text(b"\n" * (1 << 20)), text(b"\n\n\n" + b"z" * (1 << 20))
    cut = png_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(1 << 19))[:-200] + b"\xff" * 200
    )
    for bomb in (lines, letters, cut):
        assert (decode(behind_header(bomb, real)) == np.rot90(PIXELS, -1)).all()
        assert (decode(behind_header(*[bomb] * 50, real)) == PIXELS).all()
