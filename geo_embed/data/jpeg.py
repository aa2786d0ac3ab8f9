"""A JPEG's structure: which process coded it, its EXIF and XMP, its essence, and whether what libjpeg complains about costs pixels.

libjpeg tells the first of its complaints alone. So the harmless ones are taken out of the file, until there is none or one that
costs pixels. Which do was measured, over every single-byte change of thousands of small pictures: docs/reliability.md.
"""

import re
import struct
from dataclasses import dataclass, field

# A progressive picture is decoded whole once per scan. Encoders make about ten; libjpeg's own fuzzers give up at 500.
MAX_SCANS = 100
# Of a picture of 100 megapixels, 30 take half a minute.
MAX_SCANNED_PIXELS = 3_000_000_000
_FEW_SCANS = 30
# As patterns, since these are found several times as fast as bytes are by `count` and `in`.
_SCAN, _EXIF = re.compile(rb"\xff\xda"), re.compile(rb"Exif\x00\x00")
# Any number of 0xFF may stand before; a pattern that begins with all of them would begin anew at each.
_MARKER = re.compile(rb"\xff([^\x00\xff])")

_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
# Tables, frame headers and restart intervals: what makes pixels.
_DHT, _DQT, _DRI, _DAC = 0xC4, 0xDB, 0xDD, 0xCC
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, _DAC}
_LOSSLESS, _ARITHMETIC, _HIERARCHICAL = (0xC3, 0xC7, 0xCB, 0xCF), (0xC9, 0xCA, 0xCD, 0xCE), (0xC5, 0xC6)
_SEQUENTIAL = (0xC0, 0xC1)
_STANDALONE = frozenset(range(0xD0, 0xD8)) | {0x01}

# What libjpeg says of data that it had to make up for.
_LOSSES = re.compile(
    "premature end|bad Huffman code|bad arithmetic code|instead of RST|Inconsistent progression",
    re.IGNORECASE,
)
_EXTRANEOUS = re.compile("(\\d+) extraneous bytes before marker")
# At most so often, and so many pixels in all its scans, a picture is decoded in search of a complaint behind harmless ones.
_MOST_DECODINGS, _MOST_DECODED = 100, 400_000_000
# Of EXIF that goes on in many segments no more is looked at.
_MOST_EXIF = 16 << 20
# Bytes in the decoder's buffer of bits.
_READ_AHEAD = 9


@dataclass
class Jpeg:
    """What the segments before the first scan say.

    Attributes:
        process: the marker of the frame, SOF0 to SOF15; 0 where none was met.
        bits: per sample.
        width, height, components: of the frame.
        exif, xmp: as they stand in APP1, the former with its "Exif" in front.
        essence: the picture from its first byte with all that makes no pixels left out; empty where no scan was met.
        scan_start: in the essence, of the first scan's coded data.
    """

    process: int = 0
    bits: int = 8
    width: int = 0
    height: int = 0
    components: int = 0
    exif: bytes = b""
    xmp: bytes = b""
    essence: bytes = b""
    scan_start: int = 0
    segments: list[bytes] = field(default_factory=list)


def read_jpeg(data: bytes) -> Jpeg:
    """Walk the segments up to the first scan, over whatever lies between them. Never raises."""
    jpeg = Jpeg()
    parts, left = list[bytes](), _MOST_EXIF
    position = 2
    while (segment := _next_segment(data, position)) is not None:
        marker, start, position = segment
        body = data[start:position]
        if marker in _FRAMES and not jpeg.process and len(body) >= 6:
            jpeg.process = marker
            jpeg.bits, jpeg.height, jpeg.width, jpeg.components = struct.unpack_from(">BHHB", body)
        elif marker == _APP1 and body.startswith(b"Exif\0") and left > 0:
            # PIL joins EXIF that goes on in a second segment.
            parts.append(body[6:] if parts else body)
            left -= len(body)
        elif marker == _APP1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            jpeg.xmp = jpeg.xmp or body
        kept = _essential(marker, body, jpeg)
        if kept is not None:
            jpeg.segments.append(bytes((0xFF, marker)) + struct.pack(">H", len(kept) + 2) + kept)
        if marker == _SOS:
            head = data[:2] + b"".join(jpeg.segments)
            jpeg.essence, jpeg.scan_start = head + data[position:], len(head)
            break
        if marker == _EOI:
            break
    jpeg.exif = b"".join(parts)
    return jpeg


def may_have_many_scans(data: bytes) -> bool:
    """Whether there are more markers of scans than an ordinary picture has, thumbnails among them."""
    return len(_SCAN.findall(data)) > _FEW_SCANS


def may_be_turned(data: bytes) -> bool:
    """Whether EXIF or XMP may tell an orientation."""
    return _EXIF.search(data) is not None or b"tiff:Orientation" in data


def find_refusal(data: bytes, jpeg: Jpeg) -> str:
    """Why this kind of JPEG isn't decoded, and what would make another of it; empty where it is."""
    if jpeg.process and jpeg.bits != 8:
        return (
            f"a JPEG of {jpeg.bits} bits per sample, not an image that can be read here; convert it to 8 bits, or to a "
            "PNG of 16: djpeg of libjpeg-turbo 3, GDAL, ImageMagick"
        )
    # Counted without looking first: thumbnails in EXIF have scans as well.
    if may_have_many_scans(data):
        scans, pixels = _count_scans(jpeg), jpeg.width * jpeg.height
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
            return (
                f"a progressive JPEG of {scans:,} scans, more than {min(MAX_SCANS, MAX_SCANNED_PIXELS // max(pixels, 1))}; "
                "write it anew: jpegtran -copy all IN.jpg"
            )
    return ""


def describe_process(jpeg: Jpeg) -> str:
    """The rare process that a decoder may not know; empty for the ordinary ones."""
    if jpeg.process in _LOSSLESS:
        return "a lossless JPEG; convert it to PNG: dcraw, GDAL, ImageMagick"
    if jpeg.process in _ARITHMETIC:
        return "a JPEG with arithmetic coding; convert it: jpegtran of libjpeg-turbo IN.jpg"
    if jpeg.process in _HIERARCHICAL:
        return "a hierarchical JPEG, which hardly anything reads"
    return ""


def find_loss(jpeg: Jpeg) -> str:
    """libjpeg's complaint about pixels that are lost; empty where it has none, or those that it has cost none.

    Extraneous bytes are harmless where the data before them are whole. In a sequential JPEG that can be seen: the last byte of a
    scan, or of a restart interval, is filled up with ones. A decoder that lost its way ends among other bits, most of the time. Where
    the search would cost too much (a restart interval in every row has some, or the picture is very large), they pass for harmless.
    """
    data = jpeg.essence
    if not data:
        return ""
    affordable = _MOST_DECODED // max(jpeg.width * jpeg.height * _count_scans(jpeg), 1)
    left = [min(max(affordable, 1), _MOST_DECODINGS)]
    while left[0] > 0:
        # The first complaint. One of extraneous bytes may hide others.
        complaint = _complaint(data, jpeg, left)
        extraneous = _EXTRANEOUS.search(complaint)
        if not extraneous:
            return complaint if _LOSSES.search(complaint) else ""

        # Where the data end that it is about: the first end up to which the picture has that complaint.
        ends = [position for position, _ in _scan_ends(data, jpeg.scan_start)]
        low, high = 0, len(ends) - 1
        while low < high and left[0] > 0:
            middle = (low + high) // 2
            complains = _EXTRANEOUS.search(_complaint(_cut(data, ends[middle]), jpeg, left))
            low, high = (low, middle) if complains else (middle + 1, high)
        if not ends:
            return ""
        end, count = ends[low], int(extraneous[1])
        start = max(end - count, jpeg.scan_start)

        # Without them: whole, or damaged before?
        data = data[:start] + data[end:]
        if jpeg.process in _SEQUENTIAL and not _is_padded(data, jpeg, start, left):
            return complaint
    return ""


def _next_segment(data: bytes, position: int) -> tuple[int, int, int] | None:
    """(marker, start of its body, end) of the next segment at or after a position; None where the file ends before."""
    while True:
        match = _MARKER.search(data, position)
        if not match:
            return None
        marker, position = match[1][0], match.end()
        if marker == _EOI:
            return marker, position, position
        if marker in _STANDALONE or marker == _SOI:
            continue
        if position + 2 > len(data):
            return None
        length = int.from_bytes(data[position : position + 2], "big")
        if length < 2 or position + length > len(data):
            return None
        return marker, position + 2, position + length


def _essential(marker: int, body: bytes, jpeg: Jpeg) -> bytes | None:
    """A segment's body without what libjpeg complains of in vain; None where it makes no pixels."""
    if marker in _FRAMES or marker in (_DHT, _DQT, _DRI, _DAC):
        return body
    if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        # Versions above 1 are complained of, thumbnails that don't fit too.
        return body[:5] + b"\x01\x01" + body[7:12] + b"\0\0"
    if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        # libjpeg takes unknown transforms for YCbCr and YCCK.
        known = body[11] if body[11] in (0, 1, 2) else 2 if jpeg.components == 4 else 1
        return body[:11] + bytes((known,))
    if marker == _SOS:
        # The last three bytes mean something in progressive pictures only.
        return body[:-3] + b"\0\x3f\0" if jpeg.process in _SEQUENTIAL and len(body) >= 4 else body
    return None


def _scan_ends(data: bytes, start: int) -> list[tuple[int, int]]:
    """(position, marker) of every marker that ends coded data: restarts, and what follows a scan."""
    ends: list[tuple[int, int]] = []
    position = start
    while match := _MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        ends.append((match.start(), marker))
        if marker in _STANDALONE:
            continue
        if marker == _EOI:
            break
        # Tables between scans, up to the next scan's data.
        segment = _next_segment(data, match.start())
        while segment is not None and segment[0] not in (_SOS, _EOI):
            segment = _next_segment(data, segment[2])
        if segment is None or segment[0] == _EOI:
            break
        ends[-1] = (match.start(), _SOS)
        position = segment[2]
    return ends


def _count_scans(jpeg: Jpeg) -> int:
    return 1 + sum(code == _SOS for _, code in _scan_ends(jpeg.essence, jpeg.scan_start))


def _cut(data: bytes, end: int) -> bytes:
    return data[:end] + b"\xff\xd9"


def _decoded(data: bytes, jpeg: Jpeg, left: list[int]) -> tuple[str, bytes]:
    """libjpeg's first complaint, extraneous bytes not among them, and the pixels that it makes in spite of it."""
    import simplejpeg

    colorspace, complaint = "CMYK" if jpeg.components == 4 else "RGB", ""
    for strict in (True, False):
        left[0] -= 1
        try:
            return complaint, simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=strict).tobytes()
        except Exception as error:
            text = str(error) or "broken"
            complaint = complaint or ("" if _EXTRANEOUS.search(text) else text)
    return complaint, b""


def _complaint(data: bytes, jpeg: Jpeg, left: list[int]) -> str:
    import simplejpeg

    left[0] -= 1
    try:
        simplejpeg.decode_jpeg(data, colorspace="CMYK" if jpeg.components == 4 else "RGB", strict=True)
    except Exception as error:
        return str(error) or "broken"
    return ""


def _is_padded(data: bytes, jpeg: Jpeg, end: int, left: list[int]) -> bool:
    """Whether the bits that no code needs in the last byte before `end` are ones: those whose change changes nothing."""
    # The decoder reads some bytes ahead, and doesn't count them as extraneous: the last byte is the last one that it needs.
    whole = _decoded(data, jpeg, left)
    for _ in range(_READ_AHEAD):
        if left[0] <= 0:
            return True
        size = 2 if data[end - 2 : end] == b"\xff\0" else 1
        shorter = data[: end - size] + data[end:]
        if end - size <= jpeg.scan_start or _decoded(shorter, jpeg, left) != whole:
            break
        data, end = shorter, end - size
    # A stuffed 0xFF is ones throughout.
    if data[end - 2 : end] == b"\xff\0":
        return True
    last = data[end - 1]
    for bit in range(7):
        if left[0] <= 0:
            return True
        changed = last ^ (1 << bit)
        stuffed = b"\xff\0" if changed == 0xFF else bytes((changed,))
        if _decoded(data[: end - 1] + stuffed + data[end:], jpeg, left) != whole:
            return True
        if not last >> bit & 1:
            return False
    return True
