"""A CSV is read as other readers read it, or refused as what it is: never half, never as something else, never at any price."""

from __future__ import annotations

import csv
import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_embed.config import Config
from geo_embed.data.check import check_data
from geo_embed.data.samples import check_samples, load_mapping, load_samples
from geo_embed.data.table import numbers_of, read_csv, read_header, read_separated, why_no_number
from geo_embed.errors import GeoError
from geo_embed.settings import get_config
from geo_embed.submissions.check import validate

HEADER = "sample_id,image_a,image_b,state,state_idx,latitude,longitude"
ROWS = ["s0,0a.jpg,0b.jpg,A,0,40.5,-100.25", "s1,1a.jpg,1b.jpg,B,1,41,179"]
TRAIN = "\n".join([HEADER, *ROWS, ""])
RANKS = ",".join(f"predicted_state_idx_{rank}" for rank in range(1, 6))
TEST_HEADER = f"sample_id,image_a,image_b,{RANKS},predicted_latitude,predicted_longitude"
TEST = f"{TEST_HEADER}\ns0,0a.jpg,0b.jpg,0,1,,,,40.5,-100\ns1,1a.jpg,1b.jpg,1,0,,,,41,179\n"
MAPPING = "state_idx,state\n0,A\n1,B\n"
FILES = {"train_ground_truth.csv": TRAIN, "sample_submission.csv": TEST, "state_mapping.csv": MAPPING}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return get_config(paths={"data_root": tmp_path}, model={"view_names": ["a", "b"]})


# ---------------------------------------------------------------- read as others read it


@pytest.mark.parametrize("seed", range(40))
def test_values_are_those_that_pandas_and_the_csv_module_read(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"column {n}" for n in range(rng.integers(2, 9))]
    letters = list('ab ,;"\n\té東\u0301€0-')
    cells = [
        ["".join(rng.choice(letters, rng.integers(0, 9))) for _ in names] for _ in range(rng.integers(1, 60))
    ]
    text = io.StringIO()
    ends = ["\n", "\r\n", "\r"][seed % 3]
    # The writer leaves a line feed unquoted where lines end otherwise.
    quoting = csv.QUOTE_ALL if seed % 2 or ends == "\r" else csv.QUOTE_MINIMAL
    csv.writer(text, quoting=quoting, lineterminator=ends).writerows([names, *cells])
    path = tmp_path / "table.csv"
    path.write_bytes((b"\xef\xbb\xbf" if seed % 4 == 0 else b"") + text.getvalue().encode())

    table, problems = read_csv(path, names[::-1])
    assert (problems, list(table)) == ([], names[::-1])
    usual = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    usual = usual.apply(lambda column: column.str.strip())
    usual.index += 2
    usual = usual[(usual != "").any(axis=1)]
    assert table.index.tolist() == usual.index.tolist()
    assert table[names].to_numpy().tolist() == usual[names].to_numpy().tolist()
    by_csv = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text.getvalue(), newline=""))]
    assert table[names].to_numpy().tolist() == [row for row in by_csv[1:] if any(row)]


def test_many_rows_are_read_in_order_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    pd.DataFrame({"b": range(150_000), "a": "x"}).to_csv(path, index=False)
    table, _ = read_csv(path, ["a", "b"])
    assert table["b"].tolist() == [str(n) for n in range(150_000)]
    assert table.index.tolist() == list(range(2, 150_002))


def test_every_column_comes_in_the_files_order_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("note,b,a,\n1,2,3,4\n")
    table, _ = read_csv(path, ["a", "b"], every_column=True)
    assert table.to_dict("list") == {"note": ["1"], "b": ["2"], "a": ["3"], "": ["4"]}


def test_numbers_are_those_that_python_reads_and_nothing_else_is_one() -> None:
    rng = np.random.default_rng(0)
    texts = [repr(float(x)) for x in rng.normal(0, 100, 2000)] + [f"{x:.15g}" for x in rng.normal(0, 1, 2000)]
    texts += ["0", "-0", "+5", ".5", "5.", "1e3", "-1.5E-3", "007", "180", "9" * 300, "9" * 5000]
    wanted = np.array([float(text) for text in texts])
    wanted[~np.isfinite(wanted)] = np.nan
    assert np.array_equal(numbers_of(pd.Series(texts, dtype="str")), wanted, equal_nan=True)
    others = [
        "",
        "nan",
        "NaN",
        "inf",
        "-Infinity",
        "0x10",
        "1_000",
        "1,5",
        "1.234,5",
        "\u221212.5",
        "--5",
        "1e",
    ]
    others += [
        "1 000",
        "٣",
        "１２",
        "½",
        "True",
        "None",
        "1d3",
        "1e400",
        "12°",
        "4/5",
        "5-",
        "e5",
        ".",
        "-",
        "1.2.3",
    ]
    assert np.isnan(numbers_of(pd.Series(others, dtype="str"))).all()


@pytest.mark.parametrize("text", ["north", "x", "Texas", "1.5", "", "--"])
def test_there_is_no_advice_where_nothing_can_be_told(text: str) -> None:
    assert why_no_number(text) == ""


# ---------------------------------------------------------------- refused as what it is


def change(old: str, new: str) -> Callable[[str], bytes]:
    """Replace the first occurrence in a table's text."""

    def changed(text: str) -> bytes:
        assert old in text
        return text.replace(old, new, 1).encode()

    return changed


def semicolons(text: str) -> bytes:
    return text.replace(",", ";").replace(".5", ",5").encode()


REFUSED: dict[str, tuple[Callable[[str], bytes], str, str]] = {
    "a column twice": (
        change(HEADER, "latitude," + HEADER),
        "repeated-column",
        "columns 1 and 7 have the same name",
    ),
    "twice in case": (
        change("state,", "Latitude,"),
        "repeated-column",
        "names that look the same, 'Latitude' and 'latitude'",
    ),
    "twice in spaces": (
        change("state,", " latitude ,"),
        "repeated-column",
        "columns 4 and 6 have the same name",
    ),
    "twice in quotes": (change("state,", '"""latitude""",'), "repeated-column", "look the same"),
    "twice in a BOM": (
        change("state,", "\ufefflatitude,"),
        "repeated-column",
        "'\\ufefflatitude' and 'latitude'",
    ),
    "a zero-width space": (
        change("latitude", "lati\u200btude"),
        "missing-column",
        "'lati\\u200btude' in column 6 looks like",
    ),
    "two BOMs": (
        change("sample_id", "\ufeff\ufeffsample_id"),
        "missing-column",
        "in column 1 looks like 'sample_id'",
    ),
    "another case": (
        change("latitude", "Latitude"),
        "missing-column",
        "'Latitude' in column 6 looks like 'latitude': rename",
    ),
    "single quotes": (
        change("latitude", "'latitude'"),
        "missing-column",
        "in column 6 looks like 'latitude'",
    ),
    "semicolons": (semicolons, "csv", "separated by semicolons, not by commas"),
    "tabs": (lambda text: text.replace(",", "\t").encode(), "csv", "separated by tabs"),
    "bars": (lambda text: text.replace(",", "|").encode(), "csv", "separated by vertical bars"),
    "semicolons below": (
        lambda text: "\n".join([HEADER, *text.split("\n", 1)[1].replace(",", ";").splitlines()]).encode(),
        "csv",
        "it seems to be separated by semicolons",
    ),
    "sep=,": (
        lambda text: b"sep=,\n" + text.encode(),
        "csv",
        "'sep=,', is Excel's own and no header: delete that line",
    ),
    "sep=;": (lambda text: b"\xef\xbb\xbfsep=;\r\n" + semicolons(text), "csv", "'sep=;', is Excel's own"),
    '"sep=,"': (lambda text: b'"sep=,"\n' + text.encode(), "csv", "is Excel's own"),
    "UTF-16": (lambda text: text.encode("utf-16"), "encoding", "this is UTF-16 text"),
    "UTF-16 BE": (lambda text: b"\xfe\xff" + text.encode("utf-16-be"), "encoding", "this is UTF-16 text"),
    "UTF-16 without a mark": (lambda text: text.encode("utf-16-le"), "encoding", "line 1 holds a NUL byte"),
    "UTF-32": (lambda text: text.encode("utf-32"), "encoding", "this is UTF-32 text"),
    "Latin-1": (
        lambda text: text.replace(",A,", ",Québec,").encode("latin-1"),
        "encoding",
        "byte 0xe9 in line 2, column 20; save it as",
    ),
    "cp1252": (lambda text: text.replace(",B,", ",€,").encode("cp1252"), "encoding", "byte 0x80 in line 3"),
    "cut in a letter": (lambda text: (text + "s2,é").encode()[:-1], "encoding", "it ends within a character"),
    "NUL": (change(",B,", ",B\0,"), "encoding", "line 3 holds a NUL byte"),
    "a workbook": (
        lambda text: b"PK\x03\x04\x14\0\6\0",
        "encoding",
        "an Excel workbook, a .npz or another zip archive",
    ),
    "gzip": (lambda text: b"\x1f\x8b\x08\x00", "encoding", "compressed by gzip"),
    "NumPy": (
        lambda text: b"\x93NUMPY\x01\0v\0",
        "encoding",
        'this is a NumPy array, not a CSV: save it as "CSV',
    ),
    "SQLite": (lambda text: b"SQLite format 3\0", "encoding", "this is an SQLite database, not a CSV"),
    "a JPEG": (lambda text: b"\xff\xd8\xff\xe0\0\x10JFIF", "encoding", "this is a JPEG picture, not a CSV"),
    "a PNG": (lambda text: b"\x89PNG\r\n\x1a\n", "encoding", "this is a PNG picture, not a CSV"),
    "xz": (lambda text: b"\xfd7zXZ\0\0\4", "encoding", "compressed by xz, not a CSV: unpack it"),
    "Parquet": (lambda text: b"PAR1\x15\x04", "encoding", "a Parquet file"),
    "a field too many": (change("41,", "41,5,"), "csv", "row 3 has 8 fields, where the header has 7"),
    "a decimal comma": (change("40.5", "40,5"), "csv", "row 2 has 8 fields, where the header has 7"),
    "a field too few": (change("1b.jpg,", ""), "csv", "row 3 has 6 fields, where the header has 7"),
    "cut in a row": (lambda text: text[:-10].encode(), "csv", "row 3 has 4 fields, where the header has 7"),
    "rows too long": (
        change(HEADER, HEADER.rsplit(",", 1)[0]),
        "missing-column",
        "missing column 'longitude'",
    ),
    "an open quote": (change(",B,", ',"B,'), "csv", "a quote that opens in row 3 is never closed"),
    "an open quote in the header": (
        change("state,", '"state,'),
        "csv",
        "a quote that opens in row 1 is never closed",
    ),
    "nothing": (lambda text: b"", "empty", "the file is empty"),
    "a BOM alone": (lambda text: b"\xef\xbb\xbf", "empty", "the file is empty"),
    "a header alone": (lambda text: f"{HEADER}\n".encode(), "empty", "a header but no rows"),
    "blank rows alone": (lambda text: f"{HEADER}\n\n,,,,,,\n \n".encode(), "empty", "a header but no rows"),
    "no header": (
        lambda text: text.split("\n", 1)[1].encode(),
        "missing-column",
        "the first line looks like values",
    ),
    "a blank first line": (lambda text: b"\n" + text.encode(), "missing-column", "nothing in its first line"),
    "a page": (lambda text: b"<!DOCTYPE html>\n<html>" + b"<p>" * 99, "missing-column", "missing column"),
    "JSON": (lambda text: b'[{"sample_id": "s0"}]', "missing-column", "missing column"),
    "a pointer": (
        lambda text: b"version https://git-lfs.github.com/spec/v1\noid x\n",
        "missing-column",
        "missing column",
    ),
    "thousands": (change("40.5", '"1,040.5"'), "not-a-number", "without separators between the thousands"),
    "a decimal comma in quotes": (
        change("40.5", '"40,5"'),
        "not-a-number",
        "write it with a decimal point: 40.5",
    ),
    "U+2212": (change("-100.25", "\u2212100.25"), "not-a-number", "its minus sign is another character"),
    "U+2212 and comma": (change("-100.25", '"\u2212100,25"'), "not-a-number", "and it has a decimal comma"),
    "hexadecimal": (change("40.5", "0x10"), "not-a-number", "write it as a decimal number"),
    "inf": (change("40.5", "inf"), "not-a-number", "every row needs a finite number"),
    "nan": (change("40.5", "nan"), "not-a-number", "every row needs a finite number"),
    "#N/A": (change("40.5", "#REF!"), "not-a-number", "every row needs a finite number"),
    "degrees": (change("40.5", "40°30'N"), "not-a-number", "write decimal degrees"),
    "1e3": (change("40.5", "1e3"), "range", "outside [-90, 90] degrees: '1e3'"),
    "beyond floats": (change("40.5", "1e999"), "not-a-number", "not a number: '1e999'"),
    "many digits": (change("40.5", "4" * 5000), "not-a-number", "…"),
    "0": (change(",0,40", ",0.5,40"), "not-a-number", "not a whole number: '0.5'"),
    "a long value": (change("40.5", "x" * 100_000), "not-a-number", "xxx…"),
    "a value without end": (change("40.5", f'"{"x" * 200_000}"'), "csv", "a value is too long"),
    "one line": (lambda text: b"x" * 3_000_000, "csv", "line 1 has more than 1,048,576 characters"),
    "one line of quotes": (lambda text: b'"' * 3_000_001, "csv", "line 1 has more than"),
    "a line without end": (lambda text: text.encode() + b"," * 2_000_000, "csv", "line 4 has more than"),
    "a million columns": (
        lambda text: ",".join(map(str, range(10**6))).encode(),
        "csv",
        "line 1 has more than",
    ),
    "500,000 columns": (
        lambda text: b"," * 500_000 + b"\n" + text.encode(),
        "csv",
        "500,001 columns are more than a table here may have (20,000)",
    ),
    "a sparse file": (lambda text: b"\0" * 4_000_000, "encoding", "line 1 holds a NUL byte"),
    "noise": (lambda text: np.random.default_rng(0).bytes(100_000), "encoding", ""),
    "escapes": (change("40.5", "\x1b[31m"), "not-a-number", "'\\x1b[31m'"),
    "escapes in the header": (change("latitude", "\x1b]0;x\x07"), "missing-column", "'\\x1b]0;x\\x07'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_is_none_is_refused_as_what_it_is(config: Config, name: str) -> None:
    make, kind, message = REFUSED[name]
    path = config.paths.csv("train")
    path.write_bytes(make(TRAIN))
    problems = check_samples(config.paths, config.model.view_names, "train")[1]
    first = problems[0]
    assert first.kind == kind, first
    assert message in first.message
    assert str(path) in first.where
    for problem in problems:
        assert problem.message.isprintable()
        assert len(problem.message) < 1000
    with pytest.raises(GeoError) as caught:
        load_samples(config, "train")
    assert caught.value.what.startswith(first.message)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("file", FILES)
def test_no_table_ends_in_another_exception_or_takes_much_memory(
    config: Config, file: str, name: str, tmp_path: Path
) -> None:
    """Whatever stands in whichever file's place: read, a verdict, or a GeoError."""
    make = REFUSED[name][0]
    try:
        data = make(FILES[file])
    except AssertionError:
        data = make(TRAIN)
    data = make(TRAIN) if data == FILES[file].encode() else data
    (tmp_path / file).write_bytes(data)
    submission = tmp_path / "mine.csv"
    submission.write_bytes(data if file == "sample_submission.csv" else TEST.encode())
    refusals: list[GeoError] = []
    # It slows everything down fivefold.
    if len(data) > 50_000:
        tracemalloc.start()
    for look in (
        lambda: load_samples(config, "test"),
        lambda: load_mapping(config.paths.mapping()),
        lambda: check_data(config, "train"),
        lambda: validate(config, submission),
    ):
        try:
            look()
        except GeoError as error:
            refusals.append(error)
    if tracemalloc.is_tracing():
        assert tracemalloc.get_traced_memory()[1] < 150e6
        tracemalloc.stop()
    assert all(error.what.isprintable() and error.where for error in refusals)
    # As a submission, beside a good template.
    for other, text in FILES.items():
        (tmp_path / other).write_text(text)
    verdict = validate(config, submission)
    assert all(map(str.isprintable, verdict.errors + verdict.warnings))
    if file == "sample_submission.csv":
        assert not verdict.valid


@pytest.mark.parametrize("file", [*FILES, "mine.csv"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "loop", "huge"])
def test_what_is_no_file_is_refused_at_once(config: Config, tmp_path: Path, file: str, kind: str) -> None:
    submission = tmp_path / "mine.csv"
    submission.write_text(TEST)
    path = tmp_path / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with path.open("wb") as sparse:
            sparse.truncate(1 << 40)
    what = {"pipe": "pipe", "directory": "directory", "device": "device", "loop": "", "huge": "bytes"}[kind]
    look: dict[str, Callable[[], object]] = {
        "train_ground_truth.csv": lambda: load_samples(config, "train"),
        "sample_submission.csv": lambda: load_samples(config, "test"),
        "state_mapping.csv": lambda: load_mapping(config.paths.mapping()),
        "mine.csv": lambda: validate(config, submission),
    }
    if file == "mine.csv" and kind == "huge":
        (error,) = validate(config, submission).errors
        assert what in error
        return
    with pytest.raises(GeoError) as caught:
        look[file]()
    assert what in caught.value.what
    assert str(path) in caught.value.where


@pytest.mark.timeout(20)
def test_a_hundred_thousand_digits_are_looked_at_once() -> None:
    texts = ["1" * 131_000 + "x", "1" * 131_000 + ".x", "." + "1" * 131_000 + "e", "1." + "0" * 1000]
    assert np.array_equal(
        numbers_of(pd.Series(texts, dtype="str")), [np.nan, np.nan, np.nan, 1], equal_nan=True
    )


@pytest.mark.parametrize(
    ("text", "names", "separator"),
    [
        ("a,b;c\n1,2\n", ["a", "b;c"], ","),
        ("\ufeffa;b;c,d\n1;2;3\n", ["a", "b", "c,d"], ";"),
        ('"a;x"\t b\n1\t2\n', ["a;x", "b"], "\t"),
        ("sep=|\na|b\n1|2\n", ["a", "b"], "|"),
        ("alone\n1\n", ["alone"], ","),
    ],
)
def test_a_strangers_header_tells_names_and_separator(
    tmp_path: Path, text: str, names: list[str], separator: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    assert read_header(path) == ((names, separator), [])
    loose, problems = read_separated(path, names[:1], separator)
    assert loose is not None
    assert (loose.table[names[0]].tolist(), problems) == (["1"], [])


def test_a_stranger_that_is_no_table_is_refused_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for data, kind in ((b"", "empty"), (b"PK\x03\x04", "encoding"), (b"a\xff", "encoding")):
        path.write_bytes(data)
        header, problems = read_header(path)
        assert (header, problems[0].kind) == (None, kind)
    assert read_header(tmp_path / "gone.csv")[1][0].kind == "missing-file"
