"""A TIFF is read by the tags that make pixels alone; strips that are missing or hit are damage."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from pictures import encoded, scene, tiff

from geo_embed.data.images import DamagedImage, UnreadableImage, decode
from geo_embed.data.tiff import only_pixels, read_directory

PIXELS = np.asarray(scene())
ROWS = [row.tobytes() for row in PIXELS]


def rgb(*more: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    return tiff(ROWS, 61, (8, 8, 8), photometric=2, more=more, order=order)


def retagged(data: bytes, tag: int, value: int) -> bytes:
    """With another number in a tag of one."""
    start = struct.unpack_from("<I", data, 4)[0]
    changed = bytearray(data)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == tag:
            struct.pack_into("<I", changed, entry + 8, value)
    return bytes(changed)


ODD_TAGS = {
    "a resolution of words": (282, 2, 3, b"ab\0\0"),
    "a resolution of 1/0": (283, 5, 1, b"\0\0\0\0"),
    "a directory of a camera's own beyond the end": (34665, 4, 1, b"\xff\xff\xff\xff"),
    "places beyond the end": (34853, 4, 1, b"\xff\xff\xff\x7f"),
    "a profile of four gigabytes": (34675, 7, 2**32 - 1, b"\x08\0\0\0"),
    "an unknown type": (305, 99, 1, b"\0\0\0\0"),
    "a date of no letters": (306, 2, 0, b""),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("odd", ODD_TAGS)
def test_what_makes_no_pixels_keeps_no_picture_from_being_read(odd: str, order: str) -> None:
    assert (decode(rgb(ODD_TAGS[odd], order=order)) == PIXELS).all()


def test_a_chain_of_a_hundred_thousand_directories_is_no_obstacle() -> None:
    data = bytearray(rgb())
    start = struct.unpack_from("<I", data, 4)[0]
    size = 2 + 12 * struct.unpack_from("<H", data, start)[0]
    directory, at = bytes(data[start : start + size]), len(data)
    struct.pack_into("<I", data, start + size, at)
    data += b"".join(directory + struct.pack("<I", at + (k + 1) * (size + 4)) for k in range(100_000))
    assert (decode(bytes(data)) == PIXELS).all()


def test_one_that_follows_itself_is_one() -> None:
    data = bytearray(rgb())
    start = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], start)
    assert (decode(bytes(data)) == PIXELS).all()


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_the_essence_of_every_compression_is_the_picture(compression: str | None) -> None:
    data = encoded(scene(), "TIFF", compression=compression, big_tiff=compression == "tiff_lzw")
    directory = read_directory(data)
    assert directory is not None
    essence = read_directory(only_pixels(data, directory))
    assert essence is not None
    assert essence.values.keys() <= directory.values.keys()
    assert np.abs(decode(data).astype(int) - PIXELS).max() <= (0 if compression != "jpeg" else 90)


def test_strips_that_are_missing_are_damage() -> None:
    whole = rgb()
    for data in (retagged(whole, 257, 94), retagged(whole, 278, 1)):
        with pytest.raises(DamagedImage, match="1 strips where there should be"):
            decode(data)


def test_what_libtiff_only_prints_is_damage_and_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """Fax and JPEG are decoded on behind what is lost, and PIL says nothing."""
    fax, jpeg = (
        encoded(scene(128, 96).convert(mode), "TIFF", compression=name)
        for mode, name in (("1", "group4"), ("RGB", "jpeg"))
    )
    damaged_count = 0
    for whole in (fax, jpeg):
        for place in range(60, len(whole) - 260, len(whole) // 40):
            data = bytearray(whole)
            data[place : place + 6] = b"\x5a\0\xa5\x11\0\xee"
            try:
                decode(bytes(data))
            except DamagedImage:
                damaged_count += 1
                assert decode(bytes(data), accept_damage=True).shape[2] == 3
            except UnreadableImage:
                continue
    assert damaged_count > 15
    assert capfd.readouterr().err == ""


def test_a_header_that_claims_the_world_is_refused() -> None:
    whole = rgb()
    for data in (
        retagged(whole, 257, 2**31 - 1),
        retagged(retagged(whole, 256, 9999), 257, 9999),
        retagged(whole, 277, 65535),
        retagged(whole, 273, 2**32 - 1),
        b"II*\0" + struct.pack("<IH", 8, 65535),
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63),
        b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**64 - 1),
    ):
        with pytest.raises(UnreadableImage):
            decode(data)


def test_pixels_and_tags_in_the_header_or_nowhere_are_refused() -> None:
    """The header is written anew: they would be other pixels than PIL's. What the fuzzer found."""
    whole = rgb()
    bits = whole.index(struct.pack("<HHI", 258, 3, 3))
    strips = whole.index(struct.pack("<HHI", 273, 4, 1))
    for data in (
        retagged(whole, 273, 0),
        retagged(whole, 273, 1),
        retagged(whole, 258, 5),
        whole[: strips + 4] + bytes(4) + whole[strips + 8 :],
        whole[: bits + 4] + struct.pack("<II", 2**20, 0) + whole[bits + 12 :],
    ):
        with pytest.raises(UnreadableImage, match="a damaged TIFF"):
            decode(data, accept_damage=True)


def test_tiles_that_unpack_to_far_more_than_their_picture_are_refused_before_they_are() -> None:
    def tiled(width: int, height: int, across: int, down: int) -> bytes:
        count = -(-width // across) * -(-height // down)
        packed = zlib.compress(bytes(across * down) if across * down < 1 << 20 else bytes(1000))
        place = struct.pack("<I", 8) * count
        length = struct.pack("<I", len(packed)) * count
        tags = [
            (256, 4, 1, struct.pack("<I", width)),
            (257, 4, 1, struct.pack("<I", height)),
            (258, 3, 1, b"\x08\0"),
            (259, 3, 1, b"\x08\0"),
            (262, 3, 1, b"\1\0"),
            (277, 3, 1, b"\1\0"),
            (322, 4, 1, struct.pack("<I", across)),
            (323, 4, 1, struct.pack("<I", down)),
            (324, 4, count, place),
            (325, 4, count, length),
        ]
        start = 8 + len(packed) + len(packed) % 2
        outside = start + 2 + 12 * len(tags) + 4
        directory, values = struct.pack("<H", len(tags)), b""
        for tag, kind, n, value in tags:
            stored = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", outside + len(values))
            values += value if len(value) > 4 else b""
            directory += struct.pack("<HHI", tag, kind, n) + stored
        return (
            b"II*\0"
            + struct.pack("<I", start)
            + packed
            + bytes(len(packed) % 2)
            + directory
            + bytes(4)
            + values
        )

    assert decode(tiled(40, 5, 16, 512)).shape == (5, 40, 3)
    assert decode(tiled(700, 300, 512, 512)).shape == (300, 700, 3)
    for size in ((16, 16, 20000, 20000), (10000, 1, 16, 1 << 22), (2_000_000, 1, 16, 4096)):
        with pytest.raises(UnreadableImage, match="tiles of"):
            decode(tiled(*size), accept_damage=True)
    with pytest.raises(UnreadableImage, match="more than 100,000,000"):
        decode(tiled(20000, 20000, 20000, 20000))
    # A second size, of which libtiff takes one and PIL the other, and one that isn't told in numbers.
    twice, untold = bytearray(tiled(16, 16, 20000, 20000)), bytearray(tiled(1, 16, 16, 1 << 22))
    place = twice.index(struct.pack("<HHI", 277, 3, 1))
    twice[place : place + 12] = struct.pack("<HHII", 322, 4, 1, 16)
    place = untold.index(struct.pack("<HHI", 322, 4, 1))
    untold[place : place + 12] = struct.pack("<HHII", 322, 7, 1, 255)
    for data in (bytes(twice), bytes(untold)):
        with pytest.raises(UnreadableImage, match="picture or tiles"):
            decode(data, accept_damage=True)


def test_a_jpeg_beyond_the_pictures_strips_is_not_unpacked() -> None:
    whole = read_directory(encoded(scene(64, 64), "TIFF", compression="jpeg"))
    assert whole is not None
    data = encoded(scene(64, 64), "TIFF", compression="jpeg")
    beyond = encoded(scene(), "JPEG")[:900]
    offset, size = (next(place for tag, place in whole.entries if tag == wanted) for wanted in (273, 279))
    first = [struct.unpack_from("<I", data, place + 8)[0] for place in (offset, size)]
    place = len(data)
    more = bytearray(data + struct.pack("<4I", first[0], place + 16, first[1], len(beyond)) + beyond)
    struct.pack_into("<HII", more, offset + 2, 4, 2, place)
    struct.pack_into("<HII", more, size + 2, 4, 2, place + 8)
    assert (decode(bytes(more)) == decode(data)).all()
