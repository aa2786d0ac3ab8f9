"""Tables as a source: CSVs of any separator, and Parquet, read as text under our names; the pictures that their rows mean."""

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from geo_embed.adoption.candidates import ONE_VIEW, Candidates, Ledger
from geo_embed.adoption.columns import find_columns, views_of, with_degrees
from geo_embed.adoption.pictures import Pattern, group_pictures, is_picture, list_files, order_views
from geo_embed.data.samples import AREAS
from geo_embed.data.table import Problem, composed, read_header, read_separated
from geo_embed.errors import GeoError

# What a column of splits calls the test split.
TEST_NAMES = frozenset({"test", "testing", "query"})


def read_table(path: Path, overrides: Mapping[str, str], label: str | None, ledger: Ledger) -> pd.DataFrame:
    """A CSV under our columns' names, as text, with `where` each row stands; rows of another length are left out.

    Args:
        path: the file.
        overrides: ours to its columns, as somebody says it.
        label: its column of classes, where somebody says it.
        ledger: what is left out.

    Raises:
        GeoError: it is no text, or has no columns of latitude and longitude.
    """
    read, problems = read_header(path)
    if read is None:
        raise _refused(problems)
    header, separator = read
    columns = find_columns(header, overrides, label)
    if not {"latitude", "longitude"} <= columns.keys():
        raise GeoError(
            f"no columns of latitude and longitude; it has {', '.join(name for name in header[:20])}",
            where=path,
            hint="name them: --column latitude=NAME --column longitude=NAME",
        )
    loose, problems = read_separated(path, list(dict.fromkeys(columns.values())), separator)
    if loose is None:
        raise _refused(problems)
    places = [f"{path.name}, row {row}" for row in loose.table.index]
    table = pd.DataFrame(
        {field: loose.table[column].astype("str").to_numpy() for field, column in columns.items()}
    )
    ledger.leave_files([f"{path.name}, row {row.row}" for row in loose.ragged], "ragged-row", loose.cure)
    return table.assign(where=places)


def _refused(problems: list[Problem]) -> GeoError:
    return GeoError(
        problems[0].message, where=problems[0].where, hint="correct the table, or name another one"
    )


def samples_of_table(
    table: pd.DataFrame,
    root: Path,
    *,
    pattern: Pattern | None,
    views: tuple[str, ...],
    split: str | None,
    ledger: Ledger,
) -> Candidates:
    """Samples of a table's rows with the pictures that they mean.

    Pictures are named by a column per view, by one column, or only by the samples' ids; names are looked for as paths below `root`, then
    as names or names without ending that only one file there has. With a pattern that has views, rows of one sample are one.

    Args:
        table: of `read_table`.
        root: the folder of pictures.
        pattern: how pictures are called.
        views: those wanted, in order; empty for all there are.
        split: of all rows; default: as the table's column says, else train.
        ledger: what is left out.

    Raises:
        GeoError: neither pictures nor ids are named, or none is there.
    """
    table = with_degrees(table.rename(columns={"image": f"image_{ONE_VIEW}"}), ledger)
    if split is None:
        column = table["split"] if "split" in table else pd.Series("train", index=table.index)
        split_of = np.where(column.str.lower().isin(TEST_NAMES), "test", "train")
    else:
        split_of = np.full(len(table), split, dtype=object)
    label = table["state"] if "state" in table else pd.Series("", index=table.index)
    frame = table.assign(split=split_of, label=label.replace("nan", "").astype(object))
    named = views_of(map(str, table))
    if not named and "sample_id" not in table:
        raise GeoError(
            "the table names no pictures",
            where=root,
            hint="name its column: --column image=NAME, --column image_VIEW=NAME for each view, or --column sample_id=NAME",
        )
    files = list_files(root, ledger)
    names = [name for name in files if is_picture(name)]
    archives = sum(name.lower().endswith((".zip", ".tar", ".tgz", ".tar.gz")) for name in files)
    note = f"archives beside the pictures aren't looked into: unpack them, {archives:,} in all"
    if archives and note not in ledger.notes:
        ledger.notes.append(note)
    if pattern is not None and named in ((), (ONE_VIEW,)):
        frame, views = _by_pattern(frame, names, pattern, views, ledger)
    else:
        if not named:
            frame, named = frame.assign(**{f"image_{ONE_VIEW}": frame["sample_id"]}), (ONE_VIEW,)
        views = tuple(view for view in views or named)
        unknown = [view for view in views if view not in named]
        if unknown:
            raise GeoError(
                f"the table has no view {unknown[0]!r}; it has {', '.join(named)}",
                where="--views",
                hint="name some of these",
            )
        frame = _by_names(frame, names, views, root, ledger)
    if "sample_id" not in frame:
        frame["sample_id"] = _ids_by_picture(frame, [f"image_{view}" for view in views])
    kept = [
        "where",
        "sample_id",
        "split",
        "label",
        "latitude",
        "longitude",
        *(f"image_{view}" for view in views),
    ]
    return Candidates(frame[[*kept, *(name for name in ("state_idx", *AREAS) if name in frame)]], views, root)


def _by_pattern(
    frame: pd.DataFrame, names: list[str], pattern: Pattern, views: tuple[str, ...], ledger: Ledger
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows with the pictures whose names have their id, or the id of the picture that they name."""
    unmatched = Ledger()
    grouped = group_pictures(names, pattern, views, unmatched)
    ids = frame["sample_id"] if f"image_{ONE_VIEW}" not in frame else None
    if ids is None:
        fields = frame[f"image_{ONE_VIEW}"].str.replace("\\", "/").map(pattern.match)
        frame = frame.assign(sample_id=fields.map(lambda groups: groups["id"] if groups else ""))
        frame = ledger.leave(
            frame, frame["sample_id"] == "", "other-name", f"its picture isn't of the pattern {pattern.text}"
        )
        # Rows of the views of one sample.
        frame = frame.drop_duplicates("sample_id")
    grouped = grouped.drop_duplicates(["id", "view"])
    views = views or order_views(grouped["view"])
    if not views:
        raise GeoError(
            f"no picture is of the pattern {pattern.text}",
            where="--pattern",
            hint="correct it, or name the folder: --images DIR",
        )
    for view in views:
        paths = grouped[grouped["view"] == view].set_index("id")["path"]
        frame = frame.assign(**{f"image_{view}": frame["sample_id"].map(paths).fillna("").astype(object)})
    without_picture = (frame[[f"image_{view}" for view in views]] == "").all(axis=1)
    return ledger.leave(
        frame, without_picture, "missing-picture", f"no picture of its id and the pattern {pattern.text}"
    ), views


def _by_names(
    frame: pd.DataFrame, names: list[str], views: tuple[str, ...], root: Path, ledger: Ledger
) -> pd.DataFrame:
    """Rows whose pictures are there, by the paths that they have."""
    paths = set(names)
    by_name, by_stem = (
        _only(names, _composed_name),
        _only(names, lambda path: Path(_composed_name(path)).stem),
    )
    above = f"{root.absolute().as_posix()}/"
    for view in views:
        column = f"image_{view}"

        def resolve(value: str) -> str:
            value = value.strip().replace("\\", "/").removeprefix(above).removeprefix("./")
            if not value or value in paths:
                return value
            name = _composed_name(value)
            return by_name.get(name) or by_stem.get(name) or by_stem.get(Path(name).stem) or "?"

        resolved = frame[column].map(resolve).astype(object)
        detail = "no picture of this name, or several: " + frame[column].astype(object)
        frame = ledger.leave(frame.assign(**{column: resolved}), resolved == "?", "missing-picture", detail)
    return frame


def _composed_name(path: str) -> str:
    """A file's name, accents composed with their letters: macOS and Linux write them otherwise."""
    return unicodedata.normalize("NFC", path.rpartition("/")[2])


def _only(names: list[str], key: Callable[[str], str]) -> dict[str, str]:
    """Paths by a part of them that no other path has."""
    by_part: dict[str, str] = {}
    for name in names:
        part = key(name)
        by_part[part] = "" if part in by_part else name
    return by_part


def _ids_by_picture(frame: pd.DataFrame, images: list[str]) -> "pd.Series[str]":
    """Ids by the samples' first pictures: their names without ending, or where these repeat, their paths."""
    first = frame[images[0]]
    for column in images[1:]:
        first = first.where(first != "", frame[column])
    paths = first.drop_duplicates()
    alone = composed(paths.map(lambda path: Path(path).stem).astype("str")).is_unique
    return first.map(lambda path: Path(path).stem if alone else path.rpartition(".")[0])
