"""What is read the fast way is what the csv module reads; whatever isn't plain is left to it."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest

from geo_embed.data import plain
from geo_embed.data.plain import read_plain
from geo_embed.data.table import read_csv

HEADER = "a,b,c\n"


def read(text: str | bytes, columns: tuple[str, ...] = ("c", "a")) -> list[list[str]] | None:
    data = text if isinstance(text, bytes) else text.encode()
    table = read_plain(io.BytesIO(data), lambda _, header: {name: header.index(name) for name in columns})
    if table is None:
        return None
    assert list(table) == list(columns)
    assert table.index.tolist() == list(range(2, len(table) + 2))
    return table.to_numpy().tolist()


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "1,2,3\n4,,6\n",
        HEADER + "1,2,3\n4,,6",
        "\ufeff" + HEADER.replace("\n", "\r\n") + "1,2,3\r\n4,,6\r\n",
        HEADER + " 1\t,2,\u20093\n4,, 6 \n",
        " a ,b, c\n1,2,3\n4,,6\n",
    ],
    ids=["plain", "no-last-newline", "BOM-and-CRLF", "spaces", "spaces-in-the-header"],
)
def test_plain_forms_are_read(text: str) -> None:
    assert read(text) == [["3", "1"], ["6", "4"]]


@pytest.mark.parametrize(
    "rows",
    [
        '1,"2",3\n',
        "1,2,3\n\n4,5,6\n",
        "1,2,3\n,2,\n",
        " \n",
        "1,2\n",
        "1,2,3,4\n",
        "1,2,3\r\r\n4,5,6\n",
        "1,2,3\n1\0,2,3\n",
        "1," + "x" * 140_000 + ",3\n",
        "",
    ],
    ids=["quotes", "blank", "empty", "spaces", "short", "long", "CR-CR-LF", "NUL", "large-value", "no-rows"],
)
def test_what_is_not_plain_is_left_to_others(rows: str) -> None:
    assert read(HEADER + rows) is None


def test_bytes_that_are_no_text_are_left_to_others_wherever_they_stand() -> None:
    assert read(HEADER.encode() + b"1,\xff,3\n") is None
    assert read(b"a,b,c\xff\n1,2,3\n") is None


@pytest.mark.parametrize("seed", range(30))
def test_it_reads_what_the_csv_module_reads_wherever_blocks_end(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(plain, "_BLOCK", int(rng.integers(1, 60)))
    letters = list("ab é東\u0301€0-;\u3000\x1f\xa0")
    cells = [["".join(rng.choice(letters, rng.integers(0, 9))) + "." for _ in "abc"] for _ in range(40)]
    text = io.StringIO()
    csv.writer(text, lineterminator=["\n", "\r\n"][seed % 2]).writerows([list("abc"), *cells])
    expected = [[row[2].strip(), row[0].strip()] for row in cells]
    assert read(text.getvalue()) == expected
    path = tmp_path / "table.csv"
    path.write_bytes(text.getvalue().encode())
    table, problems = read_csv(path, ["c", "a"])
    assert table is not None
    assert (table.to_numpy().tolist(), problems) == (expected, [])


def test_all_of_unicodes_spaces_are_taken_away() -> None:
    spaces = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))
    assert spaces == plain._SPACES
