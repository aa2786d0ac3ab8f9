"""The orientation is the tag's, whatever else is wrong with the EXIF; of good files the picture is that of PIL."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from pictures import encoded, exif, scene, with_exif, with_segment
from PIL import Image, ImageOps

from geo_embed.data.images import decode
from geo_embed.data.orientation import read_orientation
from geo_embed.data.tiff import read_directory

JPEG = encoded(scene(), "JPEG")
UPRIGHT = decode(JPEG)
XMP = b"http://ns.adobe.com/xap/1.0/\0"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_of_every_format_are_pils(orientation: int, order: str) -> None:
    tagged = Image.Exif()
    tagged[0x0112] = orientation
    files = [with_exif(JPEG, exif(orientation, order=order))]
    files += [encoded(scene(), kind, exif=tagged) for kind in ("JPEG", "PNG", "WEBP")]
    files += [encoded(scene().convert("CMYK"), "JPEG", exif=tagged)]
    files += [
        encoded(scene(), "TIFF", tiffinfo={0x0112: orientation}, compression=c) for c in (None, "tiff_lzw")
    ]
    for data in files:
        by_pil = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert (decode(data) == np.asarray(by_pil)).all()
        assert decode(data).shape == ((47, 61, 3) if orientation < 5 else (61, 47, 3))


def entry(tag: int, kind: int, count: int, value: bytes = b"\6\0\0\0") -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value


ODD = {
    "a resolution of the wrong type": entry(0x011A, 2, 3, b"72\0\0"),
    "a resolution of no values": entry(0x011A, 5, 0),
    "a directory beyond the end": entry(0x8769, 4, 1, b"\xff\xff\xff\xff"),
    "a directory within itself": entry(0x8769, 4, 1, b"\x08\0\0\0"),
    "a place that is a word": entry(0x8825, 2, 4, b"here"),
    "an unknown type": entry(0x0131, 99, 1),
    "more values than there are bytes": entry(0x010F, 2, 2**32 - 1, b"\x08\0\0\0"),
    "a type of 0": entry(0, 0, 0),
}


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("odd", ODD)
def test_whatever_stands_beside_it_the_tag_is_read(odd: str, orientation: int) -> None:
    data = with_exif(JPEG, exif(orientation, before=ODD[odd], entries=1))
    assert (decode(data) == np.rot90(UPRIGHT, 2 if orientation == 3 else -1)).all()
    info = {0x0112: orientation}
    plain = encoded(scene(), "TIFF", tiffinfo=info)
    assert (decode(plain) == np.rot90(np.asarray(scene()), 2 if orientation == 3 else -1)).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tag_of_any_type_means_what_it_means_to_pil(order: str) -> None:
    def pack(code: str, *values: float) -> bytes:
        return struct.pack(order + code, *values)

    turned = set()
    for kind, count, value in [
        *((kind, count, bytes((6, 6, 0, 0))) for kind in (1, 2, 6, 7) for count in (1, 2)),
        *((kind, count, pack("HH", 6, 3)) for kind in (3, 8) for count in (0, 1, 2)),
        *((kind, 1, pack("I", 6)) for kind in (4, 9, 13)),
        *(
            (kind, 1, pack("II", *fraction))
            for kind in (5, 10)
            for fraction in ((6, 1), (12, 2), (13, 2), (6, 0))
        ),
        *((11, 1, pack("f", number)) for number in (6, 6.5, float("nan"), float("inf"))),
        *((12, 1, pack("d", number)) for number in (6, 6.5)),
        *((kind, 1, pack("Q", 6)) for kind in (16, 17, 18)),
        (4, 2, pack("II", 6, 3)),
        (5, 2, pack("IIII", 6, 1, 3, 1)),
        (11, 2, pack("ff", 6, 3)),
    ]:
        # Eight bytes and more lie outside.
        inside = value if len(value) == 4 else pack("I", 26)
        head = (b"II*\0" if order == "<" else b"MM\0*") + pack("IHHHI", 8, 1, 0x0112, kind, count)
        data = with_exif(JPEG, head + inside + bytes(4) + (value if len(value) > 4 else b""))
        wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        assert decode(data).shape == wanted.shape, (kind, count, value)
        turned.update([kind] if wanted.shape != UPRIGHT.shape else [])
    assert turned == {3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 16}


def test_a_tag_of_another_type_or_count_is_its_first_number_or_none() -> None:
    def read(kind: int, count: int, value: bytes) -> int:
        return read_orientation(
            b"II*\0" + struct.pack("<IH", 8, 1) + entry(0x0112, kind, count, value) + bytes(4)
        )

    assert read(3, 1, b"\6\0\0\0") == 6
    assert read(4, 1, b"\6\0\0\0") == 6
    assert read(3, 2, b"\6\0\3\0") == 6
    # A word, a byte, a fraction beyond the file, no value, values beyond the file, and numbers that mean nothing.
    for kind, count, value in (
        (2, 2, b"6\0\0\0"),
        (1, 1, b"\6\0\0\0"),
        (5, 1, b"\xff\0\0\0"),
        (3, 0, b"\6\0\0\0"),
        (3, 9, b"\xff\xff\0\0"),
        (3, 1, b"\0\0\0\0"),
        (3, 1, b"\x09\0\0\0"),
        (3, 1, b"\xff\xff\0\0"),
    ):
        assert read(kind, count, value) == 1, (kind, count)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"II",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0",
        b"XX*\0\x08\0\0\0" + bytes(20),
        b"II*\0\x08\0\0\0\xff\xff" + bytes(30),
        b"II+\0\x08\0\0\0" + b"\xff" * 20,
    ],
)
def test_broken_exif_turns_nothing_and_breaks_nothing(body: bytes) -> None:
    assert read_orientation(body) == 1
    assert (decode(with_exif(JPEG, body)) == UPRIGHT).all()


def test_only_the_first_directory_counts() -> None:
    """The second is the thumbnail's."""
    first = struct.pack("<H", 1) + entry(0x010F, 2, 4, b"abc\0") + struct.pack("<I", 26)
    second = struct.pack("<H", 1) + entry(0x0112, 3, 1) + bytes(4)
    assert read_orientation(b"II*\0" + struct.pack("<I", 8) + first + second) == 1


@pytest.mark.parametrize(
    "text", ['tiff:Orientation="8"', "<tiff:Orientation>8</tiff:Orientation>", "tiff:Orientation='8'"]
)
def test_xmp_counts_where_exif_says_nothing(text: str) -> None:
    xmp = XMP + f"<x:xmpmeta>{text}</x:xmpmeta>".encode()
    without = with_segment(JPEG, 0xE1, xmp)
    assert (decode(without) == np.rot90(UPRIGHT)).all()
    assert (decode(with_exif(without, exif(3))) == np.rot90(UPRIGHT, 2)).all()
    assert (decode(with_exif(without, exif(1))) == UPRIGHT).all()


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_xmp_of_a_tiff_counts_as_pil_has_it(compression: str | None) -> None:
    for info, turned in (({}, True), ({0x0112: 1}, False)):
        tags = {700: b'<x tiff:Orientation="6"/>', **info}
        data = encoded(scene(), "TIFF", tiffinfo=tags, compression=compression)
        by_pil = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert (decode(data) == np.asarray(by_pil)).all()
        assert decode(data).shape == ((61, 47, 3) if turned else (47, 61, 3))


def test_exif_that_goes_on_in_a_second_segment_is_one() -> None:
    body = exif(6, before=entry(0x010F, 2, 4, b"abc\0"), entries=1)
    parts = [b"Exif\0\0" + body[20:], b"Exif\0\0" + body[:20]]
    data = JPEG
    for part in parts:
        data = with_segment(data, 0xE1, part)
    by_pil = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert (decode(data) == np.asarray(by_pil)).all()
    assert decode(data).shape == (61, 47, 3)


@pytest.mark.timeout(20)
def test_a_million_names_before_exif_are_passed_over_at_once() -> None:
    assert read_orientation(b"Exif\0\0" * 1_000_000 + exif(6)) == 6


def test_no_more_entries_are_read_than_libtiff_reads() -> None:
    entries = struct.pack("<HHQQ", 0x010F, 3, 1, 6) * 100_000
    directory = read_directory(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 100_000) + entries)
    assert directory is not None
    assert len(directory.entries) == 65_535
