"""Parquet of Hugging Face `datasets` as a source: pictures that lie in the table itself, written out as files."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from geo_embed.adoption.candidates import ONE_VIEW, Candidates, Ledger
from geo_embed.adoption.columns import find_columns, with_degrees
from geo_embed.adoption.pictures import list_files
from geo_embed.adoption.tables import TEST_NAMES
from geo_embed.console import progress
from geo_embed.errors import GeoError
from geo_embed.files import open_regular

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

_ROWS = 64
_TEST = re.compile(r"(?:^|[^a-z])test(?:[^a-z]|$)")
_ENDINGS = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


def parquet_files(source: Path) -> list[Path]:
    """The Parquet files that a source is, or that lie in it."""
    if not source.is_dir():
        return [source] if source.suffix.lower() in (".parquet", ".pq") else []
    return [
        source / name for name in list_files(source, Ledger()) if name.lower().endswith((".parquet", ".pq"))
    ]


def read_parquet(
    source: Path,
    folder: Path,
    *,
    overrides: Mapping[str, str],
    label: str | None,
    views: tuple[str, ...],
    progress_seconds: float,
    ledger: Ledger,
) -> Candidates:
    """Samples of Parquet files, their pictures written into `folder`; files called test, or that lie in a folder called so, are the test split.

    A column of pictures is what `datasets` makes of one: bytes, or bytes and path. One of them is the one view; several are views by their
    names, without `image_`, unless somebody says which is meant: `image`.

    Args:
        source: a file, or a folder of files of one layout.
        folder: where pictures go.
        overrides: ours to the table's columns, as somebody says it.
        label: the column of classes, where somebody says it.
        views: those wanted, in order; empty for all there are.
        progress_seconds: between two lines of news.
        ledger: what is left out.

    Raises:
        GeoError: there is no Parquet, or it has no pictures or coordinates; or files differ in their columns of pictures.
    """
    files = parquet_files(source)
    if not files:
        raise GeoError(
            "there is no Parquet file here", where=source, hint="name the folder or file that is one"
        )
    # 1. The columns that aren't pictures, of all files: which rows are samples is known before a picture is unpacked.
    every_picture = _picture_columns(files[0])
    if not every_picture:
        raise _no_pictures(files[0])
    for path in files[1:]:
        file_columns = _picture_columns(path)
        if lacked := [name for name in every_picture if name not in file_columns]:
            raise GeoError(
                f"no pictures in a column {lacked[0]!r}, as {files[0].name} has",
                where=path,
                hint="name one file, or a folder whose files have the same columns",
            )
    pictures, overrides = _chosen_pictures(every_picture, overrides)
    table = pd.concat(
        [_texts(path, every_picture).assign(file=k) for k, path in enumerate(files)], ignore_index=True
    ).fillna("")
    header = [str(name) for name in table if name not in ("file", "row")]
    of_views = {_view_name(name): name for name in pictures} if len(pictures) > 1 else {ONE_VIEW: pictures[0]}
    unknown = [view for view in views if view not in of_views]
    if unknown:
        raise GeoError(
            f"there is no view {unknown[0]!r}; the table has {', '.join(of_views)}",
            where="--views",
            hint="name some of these",
        )
    views = views or tuple(of_views)
    columns = find_columns(header, overrides, label)
    if not {"latitude", "longitude"} <= columns.keys():
        raise GeoError(
            f"no columns of latitude and longitude; it has {', '.join(header[:20])}",
            where=files[0],
            hint="name them: --column latitude=NAME --column longitude=NAME",
        )
    kept = {field: column for field, column in columns.items() if not field.startswith("image")}
    frame = table[["file", "row"]].assign(**{field: table[column] for field, column in kept.items()})
    is_test = (
        frame["split"].str.lower().isin(TEST_NAMES)
        if "split" in kept
        else frame["file"].map(lambda k: _is_test(files[k], source))
    )
    frame = frame.assign(
        split=is_test.map({True: "test", False: "train"}),
        label=frame["state"] if "state" in kept else "",
        where=[f"{files[k].name}, row {row + 1}" for k, row in zip(frame["file"], frame["row"], strict=True)],
    )
    if "sample_id" not in frame:
        frame["sample_id"] = [str(row) for row in range(len(frame))]
    frame = with_degrees(frame, ledger)
    known = frame["latitude"].notna() | (frame["split"] == "test")
    frame = ledger.leave(frame, ~known, "no-coordinates", "no coordinates")

    # 2. The pictures of these rows, a few at a time.
    names: dict[str, dict[int, str]] = {view: {} for view in views}
    with progress("unpack", len(frame), "samples", progress_seconds) as advance:
        for k, path in enumerate(files):
            rows = frame["row"][frame["file"] == k]
            wanted = dict(zip(rows.tolist(), rows.index.tolist(), strict=True))
            for row, values in _rows(path, [of_views[view] for view in views]):
                if row not in wanted:
                    continue
                for view, value in zip(views, values, strict=True):
                    data = value.get("bytes") if isinstance(value, dict) else value
                    if data:
                        name = f"{wanted[row]:07d}{'' if len(views) == 1 else f'_{view}'}{_ending(data)}"
                        (folder / name).write_bytes(data)
                        names[view][wanted[row]] = name
                advance(1)
    for view in views:
        frame = frame.assign(
            **{f"image_{view}": pd.Series(names[view], dtype=object).reindex(frame.index).fillna("")}
        )
    without_picture = (frame[[f"image_{view}" for view in views]] == "").all(axis=1)
    frame = ledger.leave(
        frame,
        without_picture,
        "missing-picture",
        "the table has no bytes of its pictures, at most their paths",
    )
    return Candidates(frame.drop(columns=["file", "row", *({"state"} & set(frame))]), views, folder)


def _is_test(path: Path, source: Path) -> bool:
    """By its own name, or that of the folder that it lies in: `datasets` writes the one, the hub's own conversion the other."""
    names = [path.stem, path.parent.name] if path.parent not in (source, source.parent) else [path.stem]
    return any(_TEST.search(name.lower()) for name in names)


def _chosen_pictures(available: list[str], overrides: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Which columns of pictures are meant, the one that somebody calls `image`, or all of them; and what else is said."""
    wanted = [column for field, column in overrides.items() if field == "image" and column in available]
    return wanted or available, {field: column for field, column in overrides.items() if column not in wanted}


def _no_pictures(path: Path) -> GeoError:
    import pyarrow as pa

    with _opened(path) as opened:
        lists = [
            field.name
            for field in opened.schema_arrow
            if pa.types.is_list(field.type) and _holds_pictures(field.type.value_type)
        ]
    if lists:
        return GeoError(
            f"column {lists[0]!r} has a list of pictures in each row, and which view each of them is isn't told",
            where=path,
            hint="write a column for each view, image_north and so on, or a row for each picture",
        )
    return GeoError(
        "no column has pictures (bytes, or bytes and path)",
        where=path,
        hint="save the data set with its pictures, or write the table as CSV beside them",
    )


@contextmanager
def _opened(path: Path) -> "Iterator[ParquetFile]":
    import pyarrow as pa
    from pyarrow import parquet

    with open_regular(path) as file:
        try:
            yield parquet.ParquetFile(pa.PythonFile(file, mode="r"), pre_buffer=False)
        except GeoError:
            raise
        # Arrow's decoders fail in many ways; the disk's own reasons are OSErrors of a file, which say its name.
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise
            why = str(error).partition("\n")[0] or type(error).__name__
            raise GeoError(f"not a readable Parquet file: {why:.200}", where=path) from error


def _picture_columns(path: Path) -> list[str]:
    with _opened(path) as opened:
        return [field.name for field in opened.schema_arrow if _holds_pictures(field.type)]


def _holds_pictures(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in [inner.name for inner in kind]
    return any(
        is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


def _texts(path: Path, pictures: Sequence[str]) -> pd.DataFrame:
    """The flat columns of a file but its pictures, and those of structs, as text, "" for null; which `row` of the file each is."""
    import pyarrow as pa

    with _opened(path) as opened:
        schema = opened.schema_arrow
        names = _class_names(schema)
        wanted = [
            field.name
            for field in schema
            if field.name not in pictures
            and (pa.types.is_struct(field.type) or not pa.types.is_nested(field.type))
        ]
        columns: dict[str, list[str]] = {}
        # What lies in a struct is called `struct.field`.
        table = opened.read(columns=wanted, use_threads=False).flatten()
        for name in (field.name for field in table.schema if not pa.types.is_nested(field.type)):
            values, classes = table[name].to_pylist(), names.get(name)
            columns[name] = [_text(value, classes) for value in values]
        frame = pd.DataFrame(columns, dtype="str", index=range(table.num_rows))
    return frame.assign(row=range(len(frame)))


def _text(value: Any, classes: Sequence[str] | None) -> str:
    """A value as a CSV would have it, "" for none; of a ClassLabel the name of its class."""
    if value is None or value != value:
        return ""
    if classes and isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    return repr(value) if isinstance(value, float) else str(value).strip()


def _class_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """The names behind columns of numbers that `datasets` has as ClassLabel; its own JSON in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(class_name) for class_name in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """The rows of a file by their numbers, of some columns."""
    with _opened(path) as opened:
        row = 0
        for batch in opened.iter_batches(batch_size=_ROWS, columns=list(columns), use_threads=False):
            for values in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                yield row, list(values)
                row += 1


def _view_name(column: str) -> str:
    return column.removeprefix("image_") or column


def _ending(data: bytes) -> str:
    if data[8:12] == b"WEBP":
        return ".webp"
    return next((ending for magic, ending in _ENDINGS.items() if data.startswith(magic)), ".img")
