"""Where the files in a tar archive lie: its headers are read, and nothing of what the files hold.

ustar, GNU's and pax's headers, uncompressed (POSIX.1-2017, `pax`, and GNU tar's manual, "Basic Tar Format"). Names are keys and
nothing else: nothing is opened or written by them. Python's `tarfile` is not used, since it ends silently at a damaged header,
takes as much memory as a header claims, and keeps a kilobyte for every file.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from geo_embed.errors import GeoError

BLOCK = 512
# Of headers that carry a long name or pax's records: paths end at some thousand bytes.
_LONGEST_HEADER = 1 << 20
_HEADER = struct.Struct("100s24x12s12x8sc100x8s80x155s12x")
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
}
# What a member is that isn't read, by its type; the first is read.
KINDS = (
    "",
    "a hard link in the archive, which isn't followed: pack with tar --hard-dereference",
    "a symbolic link in the archive, which isn't followed: pack with tar --dereference",
    "a device or pipe in the archive",
    "a directory in the archive",
    "a sparse file in the archive: pack without --sparse",
    "of a type that isn't known here",
)
_KIND_OF = {
    b"0": 0,
    b"\0": 0,
    b"7": 0,
    b"1": 1,
    b"2": 2,
    b"3": 3,
    b"4": 3,
    b"6": 3,
    b"5": 4,
    b"D": 4,
    b"S": 5,
}
# Of these types no content follows, whatever size they give.
_WITHOUT_CONTENT = b"123456"
_HINT = "copy or download it again, or pack it anew"


class Member(NamedTuple):
    """A file of an archive: its name as written, where its bytes start, how many there are, and what it is (an index of `KINDS`)."""

    name: bytes
    start: int
    size: int
    kind: int


def members(read: Callable[[int, int], bytes], size: int, where: Path) -> Iterator[Member]:
    """Every member of an archive, in its order.

    Args:
        read: (start, count) to the bytes there; fewer where the archive ends.
        size: of the archive, in bytes.
        where: the archive, for people.

    Raises:
        GeoError: it is compressed, no tar archive, damaged, or cut short.
    """
    # Header by header: those that only tell of the next one (a long name, records of pax) are kept until it comes; a member's
    # content is stepped over. An archive ends with a block of zeros, or where the file does.
    place, long_name, records = 0, b"", dict[bytes, bytes]()
    last = b""
    while place < size:
        header = read(place, BLOCK)
        if place == 0:
            _refuse_compressed(header, where)
        if len(header) < BLOCK:
            _refuse_cut(last, place, size, where)
        if header == bytes(BLOCK):
            return
        name, length, checksum, kind, magic, prefix = _HEADER.unpack(header)
        if not _is_sound(header, checksum):
            what = f"its header at byte {place:,} is damaged" if place else "it isn't one"
            _refuse(f"not a readable tar archive: {what}", where)
        content = _number(length, where)
        start = place + BLOCK
        if kind in b"LKxgX":
            if content > _LONGEST_HEADER:
                _refuse(f"not a readable tar archive: a name of {content:,} bytes at byte {place:,}", where)
            payload = read(start, content)
            if len(payload) < content:
                _refuse_cut(last, start + content, size, where)
            if kind == b"L":
                long_name = payload.rstrip(b"\0")
            elif kind in b"xX":
                records = _records(payload, where)
            place = start + _padded(content)
            continue
        name = name.partition(b"\0")[0]
        if magic == b"ustar\x0000" and prefix[0]:
            name = prefix.partition(b"\0")[0] + b"/" + name
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or long_name or name
        if b"size" in records:
            content = _decimal(records[b"size"], where)
        code = _KIND_OF.get(kind, len(KINDS) - 1)
        if code == 0 and name.endswith(b"/"):
            code = 4
        if code == 0 and any(key.startswith(b"GNU.sparse") for key in records):
            code = 5
        # GNU's sparse files may have more blocks of headers.
        extended = kind == b"S" and header[482] != 0
        while extended:
            block = read(start, BLOCK)
            if len(block) < BLOCK:
                _refuse_cut(name, start + BLOCK, size, where)
            extended, start = block[504] != 0, start + BLOCK
        if kind in _WITHOUT_CONTENT:
            content = 0
        if start + content > size:
            _refuse_cut(name, start + content, size, where)
        yield Member(name, start, content, code)
        place, last, long_name, records = start + _padded(content), name, b"", {}


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _is_sound(header: bytes, checksum: bytes) -> bool:
    """Whether a header's checksum is right; old programs added signed bytes."""
    try:
        stated = int(checksum.strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    # The checksum's own bytes count as spaces.
    total = sum(header) - sum(checksum) + len(checksum) * ord(" ")
    return stated == total or stated == total - 256 * sum(byte > 127 for byte in header)


def _number(field: bytes, where: Path) -> int:
    """A header's number: octal digits, or GNU's binary for what is too large for them."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
        if field[0] != 0x80:
            _refuse("not a readable tar archive: a header gives a negative size", where)
        return number
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        _refuse("not a readable tar archive: a header gives no size", where)


def _decimal(text: bytes, where: Path) -> int:
    if not text.isdigit() or len(text) > 18:
        _refuse("not a readable tar archive: a header gives no size", where)
    return int(text)


def _records(payload: bytes, where: Path) -> dict[bytes, bytes]:
    """The records of a pax header: "LENGTH KEY=VALUE\n", the length being the whole record's."""
    records, place = dict[bytes, bytes](), 0
    payload = payload.rstrip(b"\0")
    while place < len(payload):
        length, space, _ = payload[place : place + 20].partition(b" ")
        stop = place + (int(length) if length.isdigit() else 0)
        record = payload[place + len(length) + 1 : stop]
        key, equals, value = record.partition(b"=")
        if not (space and equals and value.endswith(b"\n") and stop <= len(payload)):
            _refuse("not a readable tar archive: a pax header is damaged", where)
        records[key] = value[:-1]
        place = stop
    return records


def _refuse_compressed(header: bytes, where: Path) -> None:
    for magic, (what, program) in _COMPRESSED.items():
        if header.startswith(magic):
            raise GeoError(
                f"this tar archive is compressed by {what}, so that no picture of it can be read by itself",
                where=where,
                hint=f"{program} it: pictures hardly get smaller by it",
            )


def _refuse_cut(last: bytes, needed: int, size: int, where: Path) -> NoReturn:
    after = f" in or after {last.decode('utf-8', 'replace')!r:.80}" if last else ""
    _refuse(f"this tar archive is cut short{after}: {size:,} bytes of at least {needed:,}", where)


def _refuse(what: str, where: Path) -> NoReturn:
    raise GeoError(what, where=where, hint=_HINT)
