"""`geo data adopt`: a dataset of ours from a folder of pictures, a table, or the files of a benchmark."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.adoption.candidates import Candidates, Ledger, describe_group
from geo_embed.adoption.columns import with_places
from geo_embed.adoption.folders import read_folder
from geo_embed.adoption.labels import is_column, with_labels
from geo_embed.adoption.parquet import parquet_files, read_parquet
from geo_embed.adoption.pictures import is_text, read_pattern, without_faults
from geo_embed.adoption.tables import read_table, samples_of_table
from geo_embed.adoption.writing import LEFT_OUT, TEST_TRUTH, Pictures, write_dataset
from geo_embed.answers import Truth
from geo_embed.config import Config
from geo_embed.console import counted
from geo_embed.data.check import same_contents
from geo_embed.data.duplicates import SAME_PLACE_KM, shared_pictures
from geo_embed.data.holdout import Places, held_out
from geo_embed.data.image_names import ImageNames
from geo_embed.data.samples import Samples
from geo_embed.data.table import composed, read_header
from geo_embed.errors import GeoError
from geo_embed.files import replacing_directory

Kind = Literal["auto", "folder", "csv", "parquet", "osv5m", "im2gps3k"]

_TABLES = (".csv", ".tsv", ".txt")
_LEAST_OF_CLASS = 2


@dataclass(frozen=True)
class Adopted:
    """A dataset that was made.

    Attributes:
        directory: where it lies.
        kind: what the source was taken for.
        samples: of the train and the test split together.
        train, test: of each.
        test_truth: the test split's places, where they are known; for `geo evaluate --truth`.
        classes: how many, and `single` how many have one sample.
        views: their names.
        left_out: for each reason a count, examples and a detail; `left_out_csv` names all.
        notes: what was read otherwise than it stands there.
    """

    directory: Path
    kind: str
    samples: int
    train: int
    test: int
    test_truth: Path | None
    classes: int
    single: int
    views: tuple[str, ...]
    left_out: list[dict[str, Any]]
    left_out_csv: Path | None
    notes: list[str]


def adopt(
    config: Config,
    source: Path,
    out: Path,
    *,
    kind: Kind = "auto",
    label: str | None = None,
    columns: Mapping[str, str] | None = None,
    images: Path | None = None,
    coordinates: Path | None = None,
    pattern: str | None = None,
    views: tuple[str, ...] = (),
    test_share: float | None = None,
    pictures: Pictures = "there",
    keep_incomplete: bool = False,
) -> Adopted:
    """Make a dataset of ours, on which every stage works, from somebody else's files; these are only read.

    The test split is the source's own, or `test_share` of its samples, taken by whole groups of places that lie within
    `training.group_km`; its places and classes, where they are known, go to a file of their own.

    Args:
        config: threads, `training.group_km` and `training.split_seed`.
        source: a folder of pictures; a CSV or Parquet file; a folder of Parquet files, of OSV-5M or of IM2GPS3k.
        out: a directory that isn't there yet, outside of the source.
        kind: of the source; auto: by what lies there.
        label: a column's name, `folder`, `cells:N`, `countries`, `us-states` or `FILE.geojson[:PROPERTY]`; default: the source's own
            classes, or cells.
        columns: our columns to the table's, where these have no usual name.
        images: the folder of a table's pictures; default: that of the table.
        coordinates: a table with the places of a folder's pictures; default: EXIF.
        pattern: how pictures are called: `{id}_{view}.jpg`.
        views: those to take, in order.
        test_share: share of the samples held out; 1: all; default: none beside the source's own.
        pictures: `there`, where they lie, under their names; `link`, hard links; `copy`. Those of Parquet are always written.
        keep_incomplete: keep samples that lack the picture of a view.

    Raises:
        GeoError: `out` is there; nothing in the source is a sample; or as the readers of each kind say.
    """
    _check_places(source, out)
    ledger = Ledger()
    taken = _kind_of(source) if kind == "auto" else kind
    if test_share is None:
        test_share = 1.0 if taken == "im2gps3k" else 0.0
    with replacing_directory(out, overwrite=False) as temporary:
        # 1. What the source offers, with the coordinates that it has.
        samples = _read(
            config,
            source,
            temporary,
            taken,
            label,
            columns or {},
            images,
            coordinates,
            pattern,
            views,
            test_share,
            ledger,
        )
        offered = len(samples)
        if not offered:
            raise _nothing(ledger, source)
        # 2. Samples that can't be: without place, class or picture, or of a name that a CSV can't hold.
        samples = _without_empty_views(samples, ledger)
        if test_share >= 1:
            samples = samples.keep(samples.frame.assign(split="test"))
        frame = with_places(samples.frame, ledger)
        frame = with_labels(frame, None if is_column(label) else label, config.training.split_seed, ledger)
        frame = _with_names(frame, samples.images, ledger)
        if not keep_incomplete:
            lacking = (frame[samples.images] == "").any(axis=1)
            without = (
                ", ".join(view for view, name in zip(samples.views, names, strict=True) if not name)
                for names in frame.loc[lacking, samples.images].to_numpy()
            )
            detail = pd.Series(
                [f"no picture of {names}" for names in without], index=frame.index[lacking], dtype=object
            )
            frame = ledger.leave(frame, lacking, "missing-view", detail)
        if not samples.looked_at:
            frame = without_faults(frame, samples.images, samples.root, config, ledger)
        frame = _without_copies(samples.keep(frame), config, ledger)
        if frame.empty:
            raise _nothing(ledger, source)
        # 3. The split, and the files.
        samples = samples.keep(_with_split(frame, test_share, config))
        if len(set(frame["label"]) - {""}) == 1:
            ledger.notes.append(
                "all samples are of one class, and there is nothing to tell apart: --label cells:20 makes others"
            )
        embedded = taken == "parquet"
        write_dataset(
            temporary,
            samples,
            ledger.table(),
            pictures=None if embedded else pictures,
            keeps_incomplete=keep_incomplete,
            progress_seconds=config.tracking.progress_seconds,
        )
        if embedded:
            _remove_rest(temporary, samples)
    return _describe(out, taken, samples, ledger)


def _check_places(source: Path, out: Path) -> None:
    if not source.exists():
        raise GeoError(
            "there is nothing of this name",
            where=source,
            hint="name a folder of pictures, a CSV or a Parquet file",
        )
    if os.path.lexists(out):
        raise GeoError(
            "there is something of this name already, and nothing is written over it",
            where=out,
            hint="name another directory: --out DIR",
        )
    if source.is_dir() and source.resolve() in out.resolve().parents:
        raise GeoError(
            "this lies in the source, where nothing is written",
            where=out,
            hint="name a directory outside of it: --out DIR",
        )


def _kind_of(source: Path) -> Kind:
    """What a source is, by the files that lie there."""
    if not source.is_dir():
        return (
            "parquet"
            if parquet_files(source)
            else "im2gps3k"
            if source.name.startswith("im2gps3k")
            else "csv"
        )
    names = {entry.name.lower() for entry in source.iterdir()}
    if {"train.csv", "test.csv"} & names and any(
        _is_osv5m(source / name) for name in ("train.csv", "test.csv")
    ):
        return "osv5m"
    if any(name.startswith("im2gps3k") and name.endswith(".csv") for name in names):
        return "im2gps3k"
    return "parquet" if parquet_files(source) else "folder"


def _is_osv5m(path: Path) -> bool:
    header, _ = read_header(path) if path.is_file() else (None, [])
    return header is not None and {"id", "latitude", "longitude", "country", "sub-region"} <= set(header[0])


def _read(
    config: Config,
    source: Path,
    temporary: Path,
    kind: str,
    label: str | None,
    columns: Mapping[str, str],
    images: Path | None,
    coordinates: Path | None,
    pattern: str | None,
    views: tuple[str, ...],
    test_share: float,
    ledger: Ledger,
) -> Candidates:
    """The samples of a source of some kind."""
    parsed = None if pattern is None else read_pattern(pattern, views)
    column = label if is_column(label) else None
    if kind == "folder":
        if not source.is_dir():
            raise GeoError(
                "this is a file, where a folder of pictures is wanted",
                where=source,
                hint="--kind csv, or name the folder",
            )
        if column is not None:
            raise GeoError(
                f"a folder of pictures has no column {column!r}",
                where="--label",
                hint="--label folder, cells:N, countries or FILE.geojson",
            )
        return read_folder(
            source,
            pattern=parsed,
            views=views,
            coordinates=coordinates,
            folders_are_classes=label in (None, "folder"),
            config=config,
            ledger=ledger,
        )
    if kind == "parquet":
        folder = temporary / "train_images"
        folder.mkdir()
        return read_parquet(
            source,
            folder,
            overrides=columns,
            label=column,
            views=views,
            progress_seconds=config.tracking.progress_seconds,
            ledger=ledger,
        )
    root, tables = _tables(source, kind, test_share)
    root = images or root
    if not root.is_dir():
        raise GeoError("this is no folder", where=root, hint="name the folder of the pictures: --images DIR")
    parts = []
    for path, split in tables:
        table = read_table(path, columns, column or ("country" if kind == "osv5m" else None), ledger)
        if kind == "im2gps3k" and column is None:
            table = table.drop(columns=[name for name in ("state",) if name in table])
        parts.append(samples_of_table(table, root, pattern=parsed, views=views, split=split, ledger=ledger))
    return parts[0].keep(pd.concat([part.frame for part in parts], ignore_index=True))


def _tables(source: Path, kind: str, test_share: float) -> tuple[Path, list[tuple[Path, str | None]]]:
    """The folder of pictures and the tables of a source, each with the split that all of its rows are of."""
    if not source.is_dir():
        return source.parent, [(source, None)]
    if kind == "osv5m":
        tables: list[tuple[Path, str | None]] = [
            (source / f"{split}.csv", split) for split in ("train", "test")
        ]
        folder = source / "images"
        existing = [table for table in tables if table[0].is_file()]
        if not existing:
            raise GeoError(
                "neither train.csv nor test.csv lies here",
                where=source,
                hint="name the folder of OSV-5M's files",
            )
        return folder if folder.is_dir() else source, existing
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in _TABLES)
    if kind == "im2gps3k":
        paths = [path for path in paths if path.name.lower().startswith("im2gps3k")]
    if len(paths) != 1:
        raise GeoError(
            f"{len(paths)} tables lie here, where one is wanted",
            where=source,
            hint="name the table itself, and --images DIR",
        )
    return source, [(paths[0], None)]


def _nothing(ledger: Ledger, source: Path) -> GeoError:
    counts = ledger.counts()
    why = "; ".join(map(describe_group, counts[:3]))
    reasons = {group["reason"] for group in counts}
    hint = "correct what is named first" if counts else "the table has no rows"
    if "no-coordinates" in reasons:
        tables = (
            [] if not source.is_dir() else sorted(p for p in source.iterdir() if p.suffix.lower() in _TABLES)
        )
        named = "FILE.csv, with columns image, latitude, longitude" if not tables else str(tables[0])
        hint = f"--coordinates {named}"
    if "missing-picture" in reasons:
        hint = "name the folder of the pictures: --images DIR"
        hint = next((f"{note}; or {hint}" for note in ledger.notes if note.startswith("archives")), hint)
    if "unreadable-picture" in reasons and parquet_files(source):
        hint = "where only one column is of pictures, name it: --column image=NAME"
    return GeoError(f"nothing here is a sample{': ' if why else ''}{why}", where=source, hint=hint)


def _without_empty_views(samples: Candidates, ledger: Ledger) -> Candidates:
    """The same without views that no sample has a picture of."""
    empty = [view for view in samples.views if (samples.frame[f"image_{view}"] == "").all()]
    if not empty or len(empty) == len(samples.views):
        return samples
    ledger.notes.append(f"no sample has a picture of view {', '.join(empty)}: left out")
    views = tuple(view for view in samples.views if view not in empty)
    return replace(
        samples, frame=samples.frame.drop(columns=[f"image_{view}" for view in empty]), views=views
    )


def _with_names(frame: pd.DataFrame, images: list[str], ledger: Ledger) -> pd.DataFrame:
    """Samples that have an id of their own, and names that a CSV keeps as they are."""
    ids = frame["sample_id"].astype(object)
    frame = ledger.leave(frame, ids == "", "no-id", "no id")
    again = composed(frame["sample_id"].astype("str")).duplicated()
    frame = ledger.leave(frame, again, "duplicate-id", "an earlier sample has this id")
    odd = pd.Series(False, index=frame.index)
    for column in ("sample_id", "label", *images):
        odd |= frame[column].map(lambda text: text != text.strip() or not is_text(text)).astype(bool)
    return ledger.leave(
        frame,
        odd,
        "unusable-name",
        "a name that a CSV can't hold: spaces around it, or bytes that are no text",
    )


def _without_copies(samples: Candidates, config: Config, ledger: Ledger) -> pd.DataFrame:
    """Samples without those of training whose pictures are another's: of one place the first stays, of places or classes that differ none, and none
    of those whose picture stands for too many places to be of any.
    """
    frame = samples.frame.reset_index(drop=True)
    pictures = ImageNames([frame[column] for column in samples.images])
    latitude, longitude = frame["latitude"].to_numpy(), frame["longitude"].to_numpy()
    truth = Truth(np.zeros(len(frame), dtype=np.int64), latitude, longitude)
    listed = Samples(
        "train",
        Path(),
        samples.root,
        samples.views,
        frame["sample_id"].to_numpy(dtype=object),
        pictures,
        truth,
    )
    (content,) = same_contents(
        [listed], config.inference.workers or os.cpu_count() or 1, config.tracking.progress_seconds
    )
    # A benchmark's test split stays what it is.
    train = (frame["split"] == "train").to_numpy()
    known = (content != 0) & (train & np.isfinite(latitude))[:, None]
    reason: NDArray[np.object_] = np.full(len(frame), "", dtype=object)
    other: NDArray[np.object_] = np.full(len(frame), "", dtype=object)
    labels = frame["label"].to_numpy()
    for picture in shared_pictures(content, known, latitude, longitude):
        rows = picture.rows
        first = frame["sample_id"].iloc[int(rows[0])]
        if picture.is_placeholder:
            reason[rows], other[rows] = (
                "placeholder-picture",
                f"{counted(len(rows), 'sample at distant places has', 'samples at distant places have')} this picture",
            )
        elif picture.spread_km > SAME_PLACE_KM or len(set(labels[rows])) > 1:
            reason[rows] = "contradicting-picture"
            other[rows] = (
                f"{counted(len(rows), 'sample of different places or classes has', 'samples of different places or classes have')} this picture, the first is {first}"
            )
        else:
            # Of one place: those that have nothing of their own.
            for row in rows[1:]:
                if reason[row] == "" and np.isin(content[row], content[rows[0]])[pictures[row] != ""].all():
                    reason[row], other[row] = "duplicate-picture", f"its pictures are those of {first}"
    for kind in sorted(set(reason) - {""}):
        frame = ledger.leave(
            frame, reason[frame.index] == kind, kind, pd.Series(other[frame.index], index=frame.index)
        )
    return frame


def _with_split(frame: pd.DataFrame, share: float, config: Config) -> pd.DataFrame:
    """The same with a share of the training samples in the test split, by whole groups of places."""
    train = (frame["split"] == "train").to_numpy()
    if share <= 0 or not train.any():
        return frame
    rows = frame[train]
    training = config.training.model_copy(update={"val_split": share, "validation": "spatial"})
    places = Places(
        rows["sample_id"].to_numpy(dtype=object),
        np.unique(rows["label"].to_numpy(dtype=str), return_inverse=True)[1].astype(np.int64),
        rows["latitude"].to_numpy(),
        rows["longitude"].to_numpy(),
    )
    split = frame["split"].to_numpy(dtype=object)
    split[np.flatnonzero(train)[held_out(places, training)]] = "test"
    return frame.assign(split=split)


def _remove_rest(folder: Path, samples: Candidates) -> None:
    """Of pictures that were written out, those of samples that are left out."""
    train = samples.frame[samples.frame["split"] == "train"]
    kept = {name for column in samples.images for name in train[column]}
    for path in (folder / "train_images").iterdir():
        if path.name not in kept:
            path.unlink()


def _describe(out: Path, kind: str, samples: Candidates, ledger: Ledger) -> Adopted:
    frame = samples.frame
    train = frame[frame["split"] == "train"]
    counts = Counter(train["label"])
    left_out = ledger.counts()
    return Adopted(
        directory=out,
        kind=kind,
        samples=len(frame),
        train=len(train),
        test=len(frame) - len(train),
        test_truth=out / TEST_TRUTH if (out / TEST_TRUTH).is_file() else None,
        classes=len(counts),
        single=sum(count < _LEAST_OF_CLASS for count in counts.values()),
        views=samples.views,
        left_out=left_out,
        left_out_csv=out / LEFT_OUT if left_out else None,
        notes=ledger.notes,
    )
