"""CSV files as text: comma-separated UTF-8, read strictly, or refused as what they are. Nothing here knows what a column means.

Rows are counted as a spreadsheet shows them: the header is row 1.
"""

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.console import counted
from geo_embed.data.plain import read_plain
from geo_embed.errors import GeoError
from geo_embed.files import open_regular

# Some ten million samples.
_MOST_BYTES = 2 << 30
# Some have many columns that are of no use here: OSV-5M's takes three gigabytes.
_MOST_FOREIGN_BYTES = 8 << 30
_LONGEST_LINE = 1 << 20
_MOST_COLUMNS = 20_000
# Rows that are held as Python's strings, before they are packed.
_BLOCK = 1 << 16
# Names and values that a message shows, and their letters.
_SHOWN, _LETTERS = 12, 60

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_QUOTES = "\"'`´‘’“”„«»"
# What isn't text at all, by its first bytes, and what to do about it before it can be a CSV.
_OTHER_FILES = {
    b"PK\x03\x04": ("an Excel workbook, a .npz or another zip archive", "unpack it, or "),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", ""),
    b"\x1f\x8b": ("compressed by gzip", "unpack it, or "),
    b"BZh": ("compressed by bzip2", "unpack it, or "),
    b"\xfd7zXZ\0": ("compressed by xz", "unpack it, or "),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "unpack it, or "),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it, or "),
    b"PAR1": ("a Parquet file", ""),
    b"ARROW1": ("an Arrow (Feather) file", ""),
    b"\x93NUMPY": ("a NumPy array", ""),
    b"\x89HDF": ("an HDF5 file", ""),
    b"SQLite f": ("an SQLite database", ""),
    b"%PDF": ("a PDF", ""),
    b"\xff\xd8\xff": ("a JPEG picture", ""),
    b"\x89PNG": ("a PNG picture", ""),
    b"GIF8": ("a GIF picture", ""),
    b"II*\0": ("a TIFF picture", ""),
    b"MM\0*": ("a TIFF picture", ""),
}
# UTF-32's little-endian mark begins with that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_AS_CSV = 'save it as "CSV UTF-8 (comma delimited)", with a point in numbers'
# Follows the last line. No line holds a NUL, so that whatever else it turns up in was never closed.
_END = "\0"
_EXCELS_LINE = re.compile(r'"?sep=', re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Problem:
    """One finding: its kind (a short slug), where it is, and what is wrong."""

    kind: str
    where: str
    message: str


class RaggedRow(NamedTuple):
    """A row of another number of fields than the header: its spreadsheet row, the fields, and the text where the key stands."""

    row: int
    fields: int
    key: str


@dataclass(frozen=True)
class LooseTable:
    """What can be read of a file that may be no table.

    Attributes:
        table: the rows that have as many fields as the header, as `read_csv` gives them.
        width: the header's fields.
        ragged: the other rows, the first ones where only these were asked for.
        more_ragged: how many others there are.
        cure: what seems wrong with the first of these.
    """

    table: pd.DataFrame
    width: int
    ragged: list[RaggedRow]
    more_ragged: int
    cure: str


Read = TypeVar("Read")


class _Refused(Exception):
    """A file that is no table; by kind and message of the problem."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


def read_csv(
    path: Path, columns: Sequence[str], *, every_column: bool = False
) -> tuple[pd.DataFrame | None, list[Problem]]:
    """A CSV as stripped text, indexed by spreadsheet row; None where it can't be read or lacks a column.

    BOM, CRLF, blank lines, extra columns and any column order are fine. Anything that could be read in two ways is not: two
    columns of one name, rows with other numbers of fields than the header, other separators, other encodings.

    Args:
        path: the file.
        columns: names of those that must be there.
        every_column: give the others, too; all in the file's order.

    Returns:
        The table, one column of text for each name, without its blank rows; and what is wrong, if it is no table.
    """

    def read(lines: Iterator[str]) -> pd.DataFrame:
        return _read(lines, columns, every_column)

    plain = _read_plain(path, columns, every_column)
    return _opened(path, read) if plain is None else (plain, [])


def read_loose_csv(path: Path, columns: Sequence[str], key: str) -> tuple[LooseTable | None, list[Problem]]:
    """The same of a file of which everything that is wrong is to be told: it is read on where `read_csv` refuses it for another
    separator, for Excel's first line `sep=…`, or for rows of other lengths.

    Args:
        path: the file.
        columns: names of those that must be there.
        key: one of them, by which a row of another length is called.

    Returns:
        What could be read, None where nothing could; and what is wrong with the file as a whole.
    """
    problems: list[Problem] = []

    def read(lines: Iterator[str]) -> LooseTable:
        first, row = next(lines), 1
        if _EXCELS_LINE.match(first):
            problems.append(Problem("csv", str(path), _describe_excels_line(first)))
            first, row = next(lines), 2
        by_commas = {cell.strip(_QUOTES + " \r\n") for cell in first.split(",")}
        separator = _other_separator(first, columns, len(by_commas.intersection(columns))) or ","
        if separator != ",":
            problems.append(Problem("separator", str(path), _describe_separator(separator)))
        return _read_rows(chain([first], lines), columns, separator=separator, key=key, first_row=row)

    loose, refused = _opened(path, read)
    return loose, problems + refused


def read_header(path: Path) -> tuple[tuple[list[str], str] | None, list[Problem]]:
    """The columns' names of a CSV of any separator, and the separator: the one of the usual four that parts the first line most.

    Returns:
        Names and separator, None where the file is no text; and what is wrong with it.
    """

    def read(lines: Iterator[str]) -> tuple[list[str], str]:
        first = next(lines)
        if first == _END:
            _refuse("empty", "the file is empty")
        if _EXCELS_LINE.match(first):
            first = next(lines)
        separator = max([",", *_SEPARATORS], key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
        return [name.strip() for name in next(csv.reader([first], delimiter=separator))], separator

    return _opened(path, read, most_bytes=_MOST_FOREIGN_BYTES)


def read_separated(
    path: Path, columns: Sequence[str], separator: str
) -> tuple[LooseTable | None, list[Problem]]:
    """Some columns of a CSV whose columns are parted by `separator`, rows of another length set aside; for tables of strangers, whose
    names and separator `read_header` tells.
    """

    def read(lines: Iterator[str]) -> LooseTable:
        first, row = next(lines), 1
        if _EXCELS_LINE.match(first):
            first, row = next(lines), 2
        return _read_rows(chain([first], lines), columns, separator=separator, first_row=row)

    return _opened(path, read, most_bytes=_MOST_FOREIGN_BYTES)


def _read_plain(path: Path, columns: Sequence[str], every_column: bool) -> pd.DataFrame | None:
    """What `read_csv` gives, where a file is plain and nothing is wrong with it."""

    def find_columns(first: str, header: Sequence[str]) -> dict[str, int]:
        return _find_columns(first, header, columns, every_column)

    with suppress(_Refused, GeoError), open_regular(path) as file:
        _check_kind(os.fstat(file.fileno()).st_size, file.peek(8)[:8], _MOST_BYTES)
        return read_plain(file, find_columns)
    return None


def _opened(
    path: Path, read: Callable[[Iterator[str]], Read], *, most_bytes: int = _MOST_BYTES
) -> tuple[Read | None, list[Problem]]:
    """What `read` makes of a file's lines, or why it, or the file, refuses."""
    try:
        with open_regular(path) as file:
            _check_kind(os.fstat(file.fileno()).st_size, file.peek(8)[:8], most_bytes)
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            try:
                return read(_lines(text)), []
            finally:
                text.detach()
    except UnicodeDecodeError:
        return None, [Problem("encoding", str(path), _undecodable(path))]
    except _Refused as error:
        return None, [Problem(error.kind, str(path), error.message)]
    except GeoError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None, [Problem("missing-file", str(path), "no such file")]
        return None, [Problem("unreadable", error.where, "; ".join(filter(None, (error.what, error.hint))))]


def numbers_of(column: "pd.Series[str]") -> NDArray[np.float64]:
    """A column (N,) of text as float64: decimal numbers with a point, also as 1e3; NaN for whatever else it holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = column.where(column.str.fullmatch(_NUMBER))
    try:
        read = pc.cast(pa.array(plain, pa.large_string(), from_pandas=True), pa.float64())
        numbers = read.to_numpy(zero_copy_only=False)
    # Earlier versions of Arrow know no plus sign.
    except pa.ArrowInvalid:
        numbers = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def why_no_number(text: str) -> str:
    """Why a text that isn't empty is no number here, and how it should be written; empty where there is nothing to say."""
    plain = text.translate({ord(dash): "-" for dash in "‐‑‒–—−﹣－"})
    if plain != text and not plain.isalpha():
        return "its minus sign is another character than the keyboard's hyphen '-'" + (
            ", and it has a decimal comma: write a point" if "," in plain else ""
        )
    if re.fullmatch(r"[+-]?\d{1,3}([ \u00a0\u202f'’,.]\d{3})+([.,]\d+)?", text):
        return "write it without separators between the thousands, and with a decimal point"
    if re.fullmatch(r"[+-]?\d*,\d+", text):
        return f"write it with a decimal point: {text.replace(',', '.')}"
    if re.fullmatch(r"[+-]?0[xob][0-9a-fA-F]+", text, re.IGNORECASE):
        return "write it as a decimal number"
    if re.search(r"\d\s*[°ºNSEW]|[NSEW]\s*\d", text, re.IGNORECASE):
        return "write decimal degrees, south and west negative"
    if re.fullmatch(r"[+-]?(nan|n/a|na|null|none|inf|infinity|#\w+[!?])", text, re.IGNORECASE):
        return "every row needs a finite number"
    return ""


def shown(text: str) -> str:
    """A value as a message shows it: quoted, harmless on a terminal, not too long."""
    return repr(text if len(text) <= _LETTERS else text[:_LETTERS] + "…")


def composed(column: "pd.Series[str]") -> "pd.Series[str]":
    """A column (N,) of text with every accent composed with its letter (Unicode's NFC), as comparisons need it."""
    if is_ascii(column):
        return column
    return column.map(lambda text: unicodedata.normalize("NFC", text)).astype("str")


def is_ascii(column: "pd.Series[str]") -> bool:
    """Whether a column (N,) of text has no other letters than those of ASCII."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.all(pc.string_is_ascii(pa.array(column, pa.large_string()))).as_py() is not False


def look_alike(text: str) -> str:
    """The same for texts that a person would take for one another: case, accents' composition, quotes, spaces around, and
    characters that nobody sees make no difference.
    """
    seen = (
        letter
        for letter in unicodedata.normalize("NFC", text).strip(_QUOTES + " \t")
        if unicodedata.category(letter) not in ("Cc", "Cf")
    )
    return "".join(seen).strip().casefold()


def _refuse(kind: str, message: str) -> NoReturn:
    raise _Refused(kind, message)


def _check_kind(size: int, head: bytes, most_bytes: int) -> None:
    """Raise _Refused for a file that is no UTF-8 text, or too much of it, by its size in bytes and its first ones."""
    if size > most_bytes:
        _refuse("csv", f"{size:,} bytes are more than a table here may have ({most_bytes:,})")
    for magic, (kind, cure) in _OTHER_FILES.items():
        if head.startswith(magic):
            _refuse("encoding", f"this is {kind}, not a CSV: {cure}{_AS_CSV}")
    for mark, encoding in _OTHER_MARKS.items():
        if head.startswith(mark):
            _refuse(
                "encoding",
                f"this is {encoding} text, not UTF-8: {_AS_CSV}, or: iconv -f {encoding} -t UTF-8 FILE > NEW",
            )


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a text with their ends, then `_END`. Raises _Refused for one that is too long or holds a NUL."""
    number = 0
    while line := text.readline(_LONGEST_LINE):
        number += 1
        if "\0" in line:
            _refuse(
                "encoding",
                f"line {number} holds a NUL byte, as UTF-16 and binary files do: {_AS_CSV}",
            )
        if len(line) == _LONGEST_LINE and line[-1] not in "\r\n":
            _refuse("csv", f"line {number} has more than {_LONGEST_LINE:,} characters: this is no table")
        yield line
    yield _END


def _undecodable(path: Path) -> str:
    """What to say of a file that isn't UTF-8: the first byte that can't be, and how it came about."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, start = 1, 0
    with open_regular(path) as file:
        while block := file.readline(_LONGEST_LINE):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                column = start - pending + error.start + 1
                where = f"byte 0x{error.object[error.start]:02x} in line {line}, column {column}"
                break
            line, start = (line + 1, 0) if block.endswith(b"\n") else (line, start + len(block))
        else:
            where = "it ends within a character"
    return (
        f"not UTF-8 text: {where}; {_AS_CSV}, or, where it is Windows' or Latin-1's: "
        "iconv -f CP1252 -t UTF-8 FILE > NEW"
    )


def _read(lines: Iterator[str], columns: Sequence[str], every_column: bool) -> pd.DataFrame:
    loose = _read_rows(lines, columns, every_column=every_column, most_ragged=1)
    if loose.ragged:
        (row, fields, _), others = loose.ragged[0], len(loose.ragged) - 1 + loose.more_ragged
        more = f" (and {others:,} more rows like it)" if others else ""
        _refuse(
            "csv",
            f"row {row} has {counted(fields, 'field')}, where the header has {loose.width}{more}: {loose.cure}",
        )
    return loose.table


def _read_rows(
    lines: Iterator[str],
    columns: Sequence[str],
    *,
    every_column: bool = False,
    separator: str = ",",
    key: str | None = None,
    first_row: int = 1,
    most_ragged: int | None = None,
) -> LooseTable:
    # 1. The header: where the columns that are wanted stand.
    # 2. Rows are taken apart by the csv module, stripped, and packed block by block: as Python's strings a million of them
    #    would take a gigabyte.
    # 3. Rows of another length are set aside, not cut or filled: some of their values would come under another's name.
    first = next(lines)
    if first == _END:
        _refuse("empty", "the file is empty")
    rows = csv.reader(chain([first], lines), delimiter=separator)
    row, closed = first_row, False
    blocks: list[pd.DataFrame] = []
    ragged: list[RaggedRow] = []
    more_ragged, cure = 0, ""
    try:
        header = [name.strip() for name in next(rows)]
        if any(_END in name for name in header):
            _refuse("csv", "a quote that opens in row 1 is never closed")
        places = _find_columns(first, header, columns, every_column)
        place_of_key = len(header) if key is None else places[key]
        block, index = _new_block(places)
        for row, fields in enumerate(rows, start=first_row + 1):
            if not any(map(str.strip, fields)):
                continue
            if fields == [_END]:
                closed = True
                break
            if len(fields) != len(header):
                cure = cure or _cure_ragged(fields, len(header))
                if most_ragged is None or len(ragged) < most_ragged:
                    named = place_of_key < len(fields)
                    ragged.append(RaggedRow(row, len(fields), fields[place_of_key].strip() if named else ""))
                else:
                    more_ragged += 1
                continue
            index.append(row)
            for name, place in places.items():
                block[name].append(fields[place].strip())
            if len(index) == _BLOCK:
                blocks.append(_pack(block, index))
                block, index = _new_block(places)
    except csv.Error as error:
        reason = "a value is too long: is a quote never closed?" if "limit" in str(error) else str(error)
        _refuse("csv", f"row {row + 1} can't be read: {reason}")
    if not closed:
        _refuse("csv", f"a quote that opens in row {row} is never closed")
    return LooseTable(pd.concat([*blocks, _pack(block, index)]), len(header), ragged, more_ragged, cure)


def _new_block(places: dict[str, int]) -> tuple[dict[str, list[str]], list[int]]:
    return {name: [] for name in places}, []


def _pack(block: dict[str, list[str]], index: list[int]) -> pd.DataFrame:
    rows = pd.Index(index, dtype=np.int64)
    return pd.DataFrame(
        {name: pd.Series(values, dtype="str", index=rows) for name, values in block.items()}, index=rows
    )


def _find_columns(
    first: str, header: Sequence[str], columns: Sequence[str], every_column: bool
) -> dict[str, int]:
    """The places of columns by their names. Raises _Refused where one is missing, or could be another as well."""
    if _EXCELS_LINE.match(first):
        _refuse("csv", _describe_excels_line(first))
    if len(header) > _MOST_COLUMNS:
        _refuse("csv", f"{len(header):,} columns are more than a table here may have ({_MOST_COLUMNS:,})")
    by_look: dict[str, list[int]] = {}
    for place, name in enumerate(header):
        by_look.setdefault(look_alike(name), []).append(place)
    wanted = list(dict.fromkeys(columns))
    missing, near = [], []
    for column in wanted:
        # Two names that are both wanted may look alike.
        alike = [
            place
            for place in by_look.get(look_alike(column), [])
            if header[place] == column or header[place] not in wanted
        ]
        if len(alike) > 1:
            _refuse("repeated-column", _describe_repeated(header, alike))
        if not alike:
            missing.append(column)
        elif header[alike[0]] != column:
            missing.append(column)
            near.append(
                f"{shown(header[alike[0]])} in column {alike[0] + 1} looks like {column!r}: rename it"
            )
    if missing:
        _refuse_missing(first, header, wanted, missing, near)
    if not every_column:
        return {column: header.index(column) for column in wanted}
    places = {name: place for place, name in reversed(list(enumerate(header)))}
    if len(places) < len(header):
        twice = next(name for place, name in enumerate(header) if places[name] != place)
        _refuse(
            "repeated-column",
            _describe_repeated(header, [place for place, name in enumerate(header) if name == twice]),
        )
    return dict(sorted(places.items(), key=lambda item: item[1]))


def _describe_repeated(header: Sequence[str], places: Sequence[int]) -> str:
    numbers = " and ".join(str(place + 1) for place in places[:_SHOWN])
    names = list(dict.fromkeys(shown(header[place]) for place in places[:_SHOWN]))
    if len(names) == 1:
        return f"columns {numbers} have the same name, {names[0]}: remove or rename all but one"
    return f"columns {numbers} have names that look the same, {' and '.join(names)}: remove or rename all but one"


def _refuse_missing(
    first: str, header: Sequence[str], wanted: Sequence[str], missing: Sequence[str], near: Sequence[str]
) -> NoReturn:
    matching = len(wanted) - len(missing)
    separator = _other_separator(first, wanted, matching)
    if separator:
        _refuse("csv", _describe_separator(separator))
    named = ", ".join(repr(column) for column in missing[:_SHOWN])
    have = ", ".join(
        name if name.isprintable() and len(name) <= _LETTERS else shown(name) for name in header[: _SHOWN * 2]
    )
    have += f", … ({len(header):,} columns)" if len(header) > _SHOWN * 2 else ""
    message = f"missing column {named}; the file has {have}"
    if near:
        message += f" ({'; '.join(near[:_SHOWN])})"
    elif not matching and any(map(_NUMBER.fullmatch, header)):
        message += " (the first line looks like values: put a line with the columns' names above it)"
    elif not any(header):
        message += "nothing in its first line, where the columns' names should be"
    _refuse("missing-column", message)


def _other_separator(first: str, columns: Sequence[str], matching: int = 0) -> str:
    """What else than commas parts more than `matching` of these columns in a header; empty where nothing does."""
    for separator in _SEPARATORS:
        cells = {cell.strip(_QUOTES + " \r\n") for cell in first.split(separator)}
        if sum(column in cells for column in columns) > matching:
            return separator
    return ""


def _describe_separator(separator: str) -> str:
    return f"the columns are separated by {_SEPARATORS[separator]}, not by commas: {_AS_CSV}"


def _describe_excels_line(first: str) -> str:
    return f"the first line, {shown(first.strip())}, is Excel's own and no header: delete that line"


def _cure_ragged(fields: Sequence[str], width: int) -> str:
    if len(fields) > width:
        return "a value that holds a comma must be in quotes, and a number have a point for a comma"
    for separator, what in _SEPARATORS.items():
        if sum(field.count(separator) for field in fields) >= width - len(fields):
            return f"it seems to be separated by {what}; {_AS_CSV}"
    return "values are missing, or a quote isn't closed"
