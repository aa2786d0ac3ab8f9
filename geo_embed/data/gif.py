"""Whether the first picture of a GIF is all there: PIL leaves what its codes don't reach as it was."""

_IMAGE, _EXTENSION = 0x2C, 0x21
_MOST_CODES, _MOST_BITS = 4096, 12


def find_loss(data: bytes) -> str:
    """Why pixels of the first picture are missing; empty where all are there. Never raises."""
    try:
        width, height, position = _first_picture(data)
        smallest = data[position]
        if not 1 <= smallest <= 11:
            return "its codes have an impossible size"
        coded = _join_blocks(data, position + 1)
    except IndexError:
        return "it ends before its picture"
    pixels = _count_pixels(coded, smallest, width * height)
    return "" if pixels >= width * height else f"{pixels:,} pixels where there should be {width * height:,}"


def _first_picture(data: bytes) -> tuple[int, int, int]:
    """Width, height, and where the picture's codes begin with their smallest size."""
    position = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    while data[position] != _IMAGE:
        if data[position] == _EXTENSION:
            position += 2
            while data[position]:
                position += 1 + data[position]
        position += 1
    width, height = (int.from_bytes(data[position + i : position + i + 2], "little") for i in (5, 7))
    flags = data[position + 9]
    return width, height, position + 10 + (3 * (2 << (flags & 7)) if flags & 0x80 else 0)


def _join_blocks(data: bytes, position: int) -> bytes:
    blocks = []
    while position < len(data) and data[position]:
        blocks.append(data[position + 1 : position + 1 + data[position]])
        position += 1 + data[position]
    return b"".join(blocks)


def _count_pixels(coded: bytes, smallest: int, wanted: int) -> int:
    """How many pixels LZW codes stand for, up to `wanted`: lengths are followed, colours aren't."""
    clear = 1 << smallest
    lengths = [1] * (clear + 2)
    size, before, pixels, bits, waiting = smallest + 1, 0, 0, 0, 0
    for byte in coded:
        waiting |= byte << bits
        bits += 8
        while bits >= size:
            code = waiting & ((1 << size) - 1)
            waiting >>= size
            bits -= size
            if code == clear:
                del lengths[clear + 2 :]
                size, before = smallest + 1, 0
                continue
            if code == clear + 1 or code > len(lengths) or (code == len(lengths) and not before):
                return pixels
            # A new string is the one before and a pixel of this one, which may be the new string itself.
            length = before + 1 if code == len(lengths) else lengths[code]
            pixels += length
            if pixels >= wanted:
                return pixels
            if before and len(lengths) < _MOST_CODES:
                lengths.append(before + 1)
                if len(lengths) == 1 << size and size < _MOST_BITS:
                    size += 1
            before = length
    return pixels
