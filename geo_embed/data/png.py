"""A PNG's chunks: its essence without text, profiles and animation, its EXIF and XMP, its grey key, and whether its pixels are all there."""

import struct
import zlib
from dataclasses import dataclass, field

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# What PIL makes pixels of.
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# First column and row, and steps, of the seven passes of an interlaced picture.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Of a compressed text no more is looked at: a bomb has gigabytes.
_MOST_TEXT = 1 << 20
# Nor of all of a file's together: thousands of small ones make gigabytes, too. One that can't be unpacked counts as a whole one.
_ALL_TEXTS = 4 << 20
_BLOCK = 1 << 20


@dataclass
class Png:
    """What the chunks say.

    Attributes:
        width, height, bits, colour, interlaced: from IHDR.
        key: the samples that are transparent in a grey or RGB picture, as they are stored; empty where there are none.
        exif, xmp: as they are stored.
        essence: the picture with nothing but the chunks that make pixels.
        loss: what is wrong with these, empty where nothing is.
    """

    width: int = 0
    height: int = 0
    bits: int = 8
    colour: int = RGB
    interlaced: bool = False
    key: tuple[int, ...] = ()
    exif: bytes = b""
    xmp: bytes = b""
    essence: bytes = b""
    loss: str = ""
    packed: list[bytes] = field(default_factory=list)
    texts_left: int = _ALL_TEXTS


def read_png(data: bytes) -> Png:
    """Walk the chunks; a broken one that makes no pixels is passed over. Never raises."""
    png, kept, position, ended = Png(), [SIGNATURE], 8, False
    while position + 8 <= len(data) and not ended:
        length = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 8 + length
        body, whole = data[position + 8 : end], data[position : end + 4]
        if kind in _PIXEL_CHUNKS:
            intact = len(whole) == length + 12 and zlib.crc32(whole[4:-4]) == int.from_bytes(
                whole[-4:], "big"
            )
            if not intact and not png.loss:
                why = "cut short" if len(whole) < length + 12 else "not what it was: its checksum differs"
                png.loss = f"its chunk {kind.decode()} is {why}"
            kept.append(whole)
            _take(png, kind, body)
        elif kind == b"eXIf":
            png.exif = body
        elif kind in (b"iTXt", b"tEXt", b"zTXt"):
            _take_text(png, kind, body)
        ended, position = kind == b"IEND", end + 4
    if not ended:
        png.loss = png.loss or "its end is missing"
    png.essence = b"".join(kept)
    return png


def find_loss(png: Png) -> str:
    """Why pixels are missing or wrong; empty where all are there and every checksum says so. The picture must not be too large."""
    if png.loss:
        return png.loss
    expected = _unpacked_size(png)
    # Memory for one block at a time; what a bomb has beyond the picture isn't unpacked.
    unpacker, size = zlib.decompressobj(), 0
    try:
        for body in png.packed:
            waiting = body
            while waiting and not unpacker.eof and size <= expected:
                size += len(unpacker.decompress(waiting, _BLOCK))
                waiting = unpacker.unconsumed_tail
        while not unpacker.eof and size <= expected:
            block = unpacker.decompress(unpacker.unconsumed_tail, _BLOCK)
            if not block:
                break
            size += len(block)
    except zlib.error as error:
        return f"its pixels can't be unpacked: {str(error).rpartition(': ')[2]}"
    if size < expected:
        return f"{size:,} bytes of pixels where there should be {expected:,}"
    # More than the picture needs is no loss, nor is a stream that ends with it and lacks its checksum's last bytes.
    return ""


def _take(png: Png, kind: bytes, body: bytes) -> None:
    if kind == b"IHDR" and len(body) >= 13 and not png.width:
        png.width, png.height, png.bits, png.colour, _, _, interlace = struct.unpack(">IIBBBBB", body[:13])
        png.interlaced = bool(interlace)
    elif kind == b"tRNS" and png.colour in (GREY, RGB):
        count = _CHANNELS[png.colour]
        if len(body) >= 2 * count:
            png.key = struct.unpack(f">{count}H", body[: 2 * count])
    elif kind == b"IDAT":
        png.packed.append(body)


def _take_text(png: Png, kind: bytes, body: bytes) -> None:
    """EXIF or XMP, where a text has them."""
    key, _, rest = body.partition(b"\0")
    if key == b"XML:com.adobe.xmp" and kind == b"iTXt" and len(rest) > 2:
        text = rest[2:].split(b"\0", 2)[-1]
        png.xmp = _unpacked(png, text) if rest[0] else text
    elif key == b"Raw profile type exif" and not png.exif:
        # ImageMagick's: a line of the kind, one of the length, then hexadecimal digits.
        text = _unpacked(png, rest[1:]) if kind == b"zTXt" else rest
        digits = b"".join(text.split(b"\n", 3)[3:]).replace(b"\n", b"")
        try:
            png.exif = bytes.fromhex(digits.decode("latin-1"))
        except ValueError:
            return


def _unpacked(png: Png, packed: bytes) -> bytes:
    """The start of a text; nothing where it is broken, or where the file's texts have had their share."""
    most = min(_MOST_TEXT, png.texts_left)
    if not most:
        return b""
    try:
        text = zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        png.texts_left -= most
        return b""
    png.texts_left -= len(text)
    return text


def _unpacked_size(png: Png) -> int:
    """Bytes of all rows, each with its filter's byte in front."""
    depth = png.bits * _CHANNELS.get(png.colour, 1)
    passes = _ADAM7 if png.interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-max(png.width - x, 0) // step_x), -(-max(png.height - y, 0) // step_y)
        total += rows * (1 + -(-columns * depth // 8)) if columns else 0
    return total
