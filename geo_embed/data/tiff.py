"""A TIFF's first directory of tags, which EXIF is too: read without trust, and written anew with what makes pixels alone."""

import math
import struct
from dataclasses import dataclass

from geo_embed.data import jpeg

ORIENTATION = 0x0112
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, SAMPLE_FORMAT = 254, 258, 259, 262, 339
SUB_IFDS, DNG_VERSION = 330, 50706
_XMP = 700
MIN_IS_WHITE = 0
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
# Of the old kind, whose pixels may be found by other tags.
_OLD_JPEG_COMPRESSION = 6
_JPEG_COMPRESSION = 7
# Offsets, sizes, and the tables that all have in common, without tiles and with.
_JPEG_TAGS = {False: (_STRIP_OFFSETS, 279, 347), True: (_TILE_OFFSETS, 325, 347)}

# Sizes of the types of integers, and their codes in `struct`: BYTE, UNDEFINED, SHORT, LONG, SBYTE, SSHORT, SLONG, IFD, LONG8, SLONG8, IFD8.
_INTEGERS = {1: "B", 7: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
# Of the types of numbers: those, and FLOAT, DOUBLE, RATIONAL and SRATIONAL, the latter as two integers.
_NUMBERS = _INTEGERS | {11: "f", 12: "d", 5: "II", 10: "ii"}
# Those that PIL takes for bytes or doesn't know: BYTE, UNDEFINED, SLONG8, IFD8.
_NO_NUMBERS_TO_PIL = (1, 7, 17, 18)
_MOST_ENTRIES = 0xFFFF
# More numbers of a tag than this say nothing about depth or orientation.
_MOST_VALUES = 64
# Nor are more strips, or bytes of XMP and of JPEG's tables, looked at.
_MOST_BYTES = 1 << 20
# In pixels: a tile may be so large whatever the picture's size; none, and not all of them together, may be larger than the other two.
_ORDINARY_TILE, _LARGEST_TILE, _ALL_TILES = 4096**2, 100_000_000, 400_000_000
# Tags that decide about pixels: size, coding, colours, strips and tiles, tables of JPEG and of YCbCr.
_PIXEL_TAGS = frozenset(
    {
        254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 284, 290, 291, 292, 293, 317, 320, 322,
        323, 324, 325, 332, 333, 334, 336, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Directory:
    """The first directory of tags.

    Attributes:
        order: of its bytes, `<` or `>`.
        big: BigTIFF, whose offsets have eight bytes.
        entries: (tag, where its entry lies) in the file's order.
        values: of the tags that are integers, at most 64 numbers each; of a tag that occurs twice, the later ones.
        counts: how many numbers a tag has.
    """

    order: str
    big: bool
    entries: list[tuple[int, int]]
    values: dict[int, tuple[int, ...]]
    counts: dict[int, int]

    @property
    def is_tiled(self) -> bool:
        """Whether its pixels lie in tiles, not strips."""
        return _TILE_OFFSETS in self.counts

    def first(self, tag: int, default: int) -> int:
        """A tag's first number."""
        return self.values.get(tag, (default,))[0]


def read_directory(data: bytes) -> Directory | None:
    """The first directory of a TIFF, or of EXIF without its "Exif" in front; None where there is none. Never raises."""
    # Some writers have the version in the other order of bytes; PIL reads these.
    if data[:2] not in (b"II", b"MM") or data[2:4] not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        return None
    order, big = ("<" if data[:2] == b"II" else ">"), b"+" in data[2:4]
    offset_code, entry_size = ("Q", 20) if big else ("I", 12)
    try:
        (start,) = struct.unpack_from(order + offset_code, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except (struct.error, OverflowError):
        return None
    first = start + (8 if big else 2)
    # BigTIFF has room for more, but libtiff reads none that does.
    count = min(count, _MOST_ENTRIES, max(len(data) - first, 0) // entry_size)
    entries, values, counts = [], {}, {}
    for position in range(first, first + count * entry_size, entry_size):
        (tag,) = struct.unpack_from(order + "H", data, position)
        entries.append((tag, position))
        numbers = _integers(data, position, order, big)
        # UNDEFINED is bytes, no number.
        if numbers and data[position + 2 : position + 4] not in (b"\7\0", b"\0\7"):
            values[tag] = numbers
            (counts[tag],) = struct.unpack_from(order + ("Q" if big else "I"), data, position + 4)
    return Directory(order, big, entries, values, counts)


def first_number(data: bytes, directory: Directory, tag: int) -> float:
    """A tag's first number as PIL has it, also of floats and fractions; NaN where the last of its entries has none."""
    numbers: tuple[float, ...] = ()
    for other, position in directory.entries:
        if other == tag:
            kind, count, at = _describe_entry(data, position, directory.order, directory.big)
            code = "" if kind in _NO_NUMBERS_TO_PIL or not count else _NUMBERS.get(kind, "")
            try:
                numbers = struct.unpack_from(directory.order + code, data, at)
            except (struct.error, OverflowError):
                numbers = ()
    if len(numbers) == 2:
        return numbers[0] / numbers[1] if numbers[1] else math.nan
    return numbers[0] if numbers else math.nan


def only_pixels(data: bytes, directory: Directory) -> bytes:
    """The same picture under a directory of the tags that decide about pixels, orientation not among them."""
    size, place, codes = (20, 8, "QQ") if directory.big else (12, 4, "IH")
    kept = [data[position : position + size] for tag, position in directory.entries if tag in _PIXEL_TAGS]
    start = len(data) + len(data) % 2
    offset, count = (
        struct.pack(directory.order + code, n) for code, n in zip(codes, (start, len(kept)), strict=True)
    )
    header = data[:place] + offset + data[place + len(offset) :]
    return b"".join((header, bytes(start - len(data)), count, *kept, bytes(len(offset))))


def find_refusal(data: bytes, directory: Directory) -> str:
    """Why this kind of TIFF isn't decoded, and what would make another of it; empty where it may be."""
    thumbnail = directory.first(NEW_SUBFILE_TYPE, 0) & 1 and SUB_IFDS in directory.values
    if data[8:11] == b"CR\x02" or thumbnail or any(tag == DNG_VERSION for tag, _ in directory.entries):
        return (
            "not an image that can be read here: a camera's RAW file (such as DNG, NEF, CR2, ARW); "
            "develop it to JPEG or TIFF: dcraw, darktable, rawpy"
        )
    # The header isn't what it was once the directory is written anew.
    header = 16 if directory.big else 8
    starts = directory.values.get(_STRIP_OFFSETS, ()) + directory.values.get(_TILE_OFFSETS, ())
    if not starts and directory.first(COMPRESSION, 1) != _OLD_JPEG_COMPRESSION:
        return "a damaged TIFF: it doesn't say where its pixels lie; download the picture again"
    if min(starts, default=header) < header or _has_values_in_header(data, directory, header):
        return "a damaged TIFF: pixels or tags are said to lie in its header; download the picture again"
    # libtiff unpacks floats in the machine's order, and PIL takes them for the file's.
    unpacked = directory.first(COMPRESSION, 1) != 1 and directory.order == ">"
    if unpacked and FLOAT in directory.values.get(SAMPLE_FORMAT, ()):
        return describe(directory)
    if any(code not in (UNSIGNED, FLOAT) for code in directory.values.get(SAMPLE_FORMAT, ())):
        return describe(directory)
    return ""


def find_excess(directory: Directory) -> str:
    """Why its tiles would unpack to far more than its picture; empty where they don't. Each is unpacked whole, however little of it is seen."""
    width, height = directory.first(256, 0), directory.first(257, 0)
    across, down = directory.first(322, 0), directory.first(323, 0)
    # libtiff goes by the first of two tags and by the tiles' size, whatever says where they lie; PIL by the last.
    stored = [tag for tag, _ in directory.entries if tag in (256, 257, 322, 323)]
    if len(set(stored)) < len(stored) or (322 in stored) != (across > 0) or (323 in stored) != (down > 0):
        return "a damaged TIFF: the size of its picture or tiles isn't told, or told twice; download the picture again"
    if not (across and down):
        return ""
    most = min(max(2 * width * height, _ORDINARY_TILE), _LARGEST_TILE)
    count = -(-width // across) * -(-height // down)
    if across * down > most or count * across * down > _ALL_TILES:
        return f"{count:,} tiles of {across}×{down} pixels for a picture of {width}×{height}; write it anew: tiffcp, gdal_translate"
    return ""


def _has_values_in_header(data: bytes, directory: Directory, header: int) -> bool:
    for tag, position in directory.entries:
        if tag in _PIXEL_TAGS and _describe_entry(data, position, directory.order, directory.big)[2] < header:
            return True
    return False


def read_xmp(data: bytes, directory: Directory) -> bytes:
    """XMP as it stands in its tag, where it is one of bytes."""
    numbers = _all_numbers(data, directory, _XMP)
    return bytes(numbers) if all(0 <= number < 256 for number in numbers) else b""


def describe(directory: Directory) -> str:
    """A TIFF whose samples nothing here reads."""
    bits, codes = (
        directory.values.get(BITS_PER_SAMPLE, (1,)),
        directory.values.get(SAMPLE_FORMAT, (UNSIGNED,)),
    )
    names = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "float", UNDEFINED: "undefined"}
    return (
        f"a TIFF of {', '.join(map(str, bits[:5]))} bits per sample ({names.get(codes[0], 'complex')}, photometric "
        f"{directory.first(PHOTOMETRIC, 0)}, compression {directory.first(COMPRESSION, 1)}), not an image that can be read here; "
        "scale it to 8 or 16 bits, and save it as PNG: ImageMagick, GDAL"
    )


def find_loss(data: bytes, directory: Directory) -> str:
    """Why pixels are missing; empty where all are there as far as can be told without unpacking them."""
    width, height = directory.first(256, 0), directory.first(257, 0)
    if directory.is_tiled:
        across, down = directory.first(322, width), directory.first(323, height)
        count, kind = directory.counts[_TILE_OFFSETS], "tiles"
        parts = -(-width // max(across, 1)) * -(-height // max(down, 1))
    else:
        count, kind = directory.counts.get(_STRIP_OFFSETS, 0), "strips"
        parts = -(-height // max(min(directory.first(278, height), height), 1))
    if directory.first(284, 1) == 2:
        parts *= max(directory.first(277, 1), 1)
    if count < parts:
        return f"{count:,} {kind} where there should be {parts:,}"
    return (
        _find_jpeg_loss(data, directory, parts)
        if directory.first(COMPRESSION, 1) == _JPEG_COMPRESSION
        else ""
    )


def _find_jpeg_loss(data: bytes, directory: Directory, parts: int) -> str:
    """Of strips or tiles that are JPEGs, whose tables stand apart. Those beyond the picture's `parts` may claim any size: no decoder met them."""
    offsets, sizes, tables = ([*_all_numbers(data, directory, tag)] for tag in _JPEG_TAGS[directory.is_tiled])
    left = 2 * len(data)
    for offset, size in zip(offsets[:parts], sizes, strict=False):
        strip = data[offset : offset + size]
        # Strips that overlap make more of a file than it has.
        left -= len(strip) + len(tables)
        if left < 0:
            return ""
        # Tables and strip have a beginning and an end each: in between, those of the whole are left out.
        whole = bytes(tables[:-2]) + strip[2:] if len(tables) > 4 else strip
        if loss := jpeg.find_loss(jpeg.read_jpeg(whole)):
            return loss
    return ""


def _describe_entry(data: bytes, position: int, order: str, big: bool) -> tuple[int, int, int]:
    """The type of the numbers of the entry at `position`, how many they are, and where they lie: in itself, if there is room."""
    kind, count = struct.unpack_from(order + ("HQ" if big else "HI"), data, position + 2)
    room, at = (8, position + 12) if big else (4, position + 8)
    if count * struct.calcsize("=" + _NUMBERS.get(kind, "Q")) > room:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, at)
    return kind, count, at


def _all_numbers(data: bytes, directory: Directory, tag: int) -> tuple[int, ...]:
    for other, position in directory.entries:
        if other == tag:
            return _integers(data, position, directory.order, directory.big, most=_MOST_BYTES)
    return ()


def _integers(data: bytes, position: int, order: str, big: bool, most: int = _MOST_VALUES) -> tuple[int, ...]:
    """The numbers of the entry at `position`; none where it isn't of integers, or points out of the file."""
    kind, count, at = _describe_entry(data, position, order, big)
    code = _INTEGERS.get(kind)
    if code is None or not count:
        return ()
    try:
        return struct.unpack_from(f"{order}{min(count, most)}{code}", data, at)
    except (struct.error, OverflowError):
        return ()
