"""CSVs in their plainest form, as most are: a line a row, no quotes. Arrow reads them in a tenth of the csv module's time, which counts
with ten million rows. Whatever isn't plain, or not as it should be, is left to `table`, which knows what to make of it.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes that are taken apart at once.
_BLOCK = 16 << 20
# Every so many bytes a line has to end: then none has 128 KiB, nor any value, which the csv module would refuse.
_WINDOW = 1 << 16
_NEWLINE = ord("\n")
_BOM = b"\xef\xbb\xbf"
# What str.strip takes away: all of Unicode's spaces lie below this, and to look through the rest takes an eighth of a second.
_SPACES_END = 0x3001
_SPACES = "".join(filter(str.isspace, map(chr, range(_SPACES_END))))
_ASCII_SPACES = [space.encode() for space in _SPACES if space.isascii() and space not in "\r\n"]


class _NotPlain(Exception):
    """A file of which Arrow might make something else than the csv module."""


def read_plain(
    file: BinaryIO, find_columns: Callable[[str, Sequence[str]], dict[str, int]]
) -> pd.DataFrame | None:
    """A plain CSV as stripped text, indexed by spreadsheet row; None for a file that isn't plain, or has no rows.

    Plain is UTF-8 without quotes and NUL bytes, where every line is a row of as many fields as the header, and none is blank.

    Args:
        file: at its first byte.
        find_columns: gives the places of the columns that are wanted, from the first line and the names in it.
    """
    import pyarrow as pa

    try:
        first = _checked(file.readline(_WINDOW).removeprefix(_BOM)).decode()
        header = [name.strip() for name in first.rstrip("\r\n").split(",")]
        places = find_columns(first, header)
        blocks = [_taken_apart(block, len(header), list(places.values())) for block in _blocks(file)]
    except _NotPlain:
        return None
    if not blocks:
        return None
    index = pd.RangeIndex(2, 2 + sum(map(len, blocks)))
    table = pd.DataFrame(index=index)
    for name, column in zip(places, pa.concat_tables(blocks).itercolumns(), strict=True):
        table[name] = column.to_pandas().astype("str").set_axis(index)
    return table


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file in blocks of whole lines, each with its end. Raises _NotPlain where one has none for too long."""
    rest = b""
    while data := file.read(_BLOCK):
        whole, newline, after = data.rpartition(b"\n")
        if newline:
            yield rest + whole + newline
            rest = b""
        rest += after
        if len(rest) > _WINDOW:
            raise _NotPlain
    if rest:
        yield rest + b"\n"


def _checked(block: bytes) -> bytes:
    """Lines that are what they look like. Raises _NotPlain for others."""
    if b'"' in block or b"\0" in block or (b"\r" in block and block.count(b"\r") != block.count(b"\r\n")):
        raise _NotPlain
    if not all(block.find(b"\n", start, start + _WINDOW) >= 0 for start in range(0, len(block), _WINDOW)):
        raise _NotPlain
    if not block.isascii():
        try:
            block.decode()
        except UnicodeDecodeError as error:
            raise _NotPlain from error
    return block


def _taken_apart(block: bytes, width: int, places: Sequence[int]) -> "pa.Table":
    """Columns of a block, by their places, one of large strings for each. Raises _NotPlain where a line is no row."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    names = [str(place) for place in range(width)]
    wanted = [names[place] for place in places]
    try:
        table = csv.read_csv(
            pa.BufferReader(_checked(block)),
            csv.ReadOptions(column_names=names),
            csv.ParseOptions(quote_char=False, double_quote=False),
            csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(wanted, pa.large_string()),
                include_columns=wanted,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _NotPlain from error
    # Arrow leaves out empty lines, and spreadsheets count them.
    if len(table) != np.count_nonzero(np.frombuffer(block, np.uint8) == _NEWLINE):
        raise _NotPlain
    columns = [column.combine_chunks() for column in table.itercolumns()]
    if not block.isascii() or any(space in block for space in _ASCII_SPACES):
        columns = [pc.utf8_trim(column, _SPACES) for column in columns]
    blank = functools.reduce(pc.and_, (pc.equal(column, "") for column in columns))
    if pc.any(blank).as_py():
        raise _NotPlain
    return pa.table(columns, wanted)
