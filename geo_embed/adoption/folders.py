"""A folder of pictures as a source: a folder per class, or none, and places by EXIF or from a table of their own."""

from pathlib import Path

import numpy as np
import pandas as pd

from geo_embed.adoption.candidates import Candidates, Ledger
from geo_embed.adoption.columns import with_degrees
from geo_embed.adoption.pictures import (
    Pattern,
    group_pictures,
    is_picture,
    list_files,
    look_at_pictures,
    order_views,
)
from geo_embed.adoption.tables import read_table
from geo_embed.config import Config
from geo_embed.errors import GeoError

# Folders at the top that are splits, not classes; what is held out by ourselves later is training data here.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "train",
    "valid": "train",
    "validation": "train",
    "test": "test",
    "testing": "test",
}


def read_folder(
    root: Path,
    *,
    pattern: Pattern | None,
    views: tuple[str, ...],
    coordinates: Path | None,
    folders_are_classes: bool,
    config: Config,
    ledger: Ledger,
) -> Candidates:
    """Samples of a folder's pictures, whose class is the name of the folder that they lie in, below one called train or test.

    Args:
        root: the folder.
        pattern: how pictures are called; None where each is a sample by itself.
        views: those wanted, in order; empty for all there are.
        coordinates: a table with places, by the pictures' names or the samples'; default: their EXIF.
        folders_are_classes: whether folders name classes where the pattern doesn't.
        config: threads.
        ledger: what is left out.

    Raises:
        GeoError: there is no picture, or no table of places.
    """
    files = list_files(root, ledger)
    pictures = [name for name in files if is_picture(name)]
    ledger.leave_files(
        [name for name in files if not is_picture(name)], "no-picture", "its name doesn't end as a picture's"
    )
    grouped = group_pictures(pictures, pattern, views, ledger)
    if grouped.empty:
        raise GeoError(
            "there is no picture in this folder"
            if not pictures
            else f"none of {len(pictures):,} pictures is of the pattern, as {pictures[0]}",
            where=root,
            hint="name the folder that has them"
            if not pictures
            else "correct --pattern" + (", or --views" if views else ""),
        )
    views = views or order_views(grouped["view"])
    frame = pivot(grouped, views, ledger)
    top = frame["first"].str.partition("/")[0].where(frame["first"].str.contains("/"), "")
    split = top.str.lower().map(_SPLITS)
    if split.notna().any():
        ledger.notes.append(
            f"the folders {', '.join(sorted(set(top[split.notna()])))} are taken for the source's own split"
        )
    below = frame["first"].where(split.isna(), frame["first"].str.partition("/")[2])
    folder = below.str.partition("/")[0].where(below.str.contains("/"), "")
    label = frame["class"].where(frame["class"] != "", folder if folders_are_classes else "")
    frame = frame.assign(split=split.fillna("train"), label=label, where=frame["first"])
    if coordinates is None:
        frame = _with_exif(frame, [f"image_{view}" for view in views], root, config, ledger)
    else:
        frame = _with_table(frame, coordinates, ledger)
    return Candidates(
        frame.drop(columns=["first", "class", "key"]), views, root, looked_at=coordinates is None
    )


def pivot(grouped: pd.DataFrame, views: tuple[str, ...], ledger: Ledger) -> pd.DataFrame:
    """Pictures of `group_pictures` as samples: key, sample_id, class, `first` picture, and a column `image_VIEW` for each view."""
    other = ~grouped["view"].isin(views).to_numpy()
    ledger.leave_files(
        grouped["path"][other].tolist(), "other-view", f"its view is none of {', '.join(views)}"
    )
    grouped = grouped[~other]
    first = grouped.drop_duplicates("key")
    frame = pd.DataFrame(
        {"key": first["key"], "sample_id": first["id"], "class": first["class"], "first": first["path"]}
    )
    if frame["sample_id"].duplicated().any():
        frame["sample_id"] = frame["key"]
    for view in views:
        paths = grouped[grouped["view"] == view].set_index("key")["path"]
        frame[f"image_{view}"] = frame["key"].map(paths).fillna("").astype(object)
    return frame.reset_index(drop=True)


def _with_exif(
    frame: pd.DataFrame, images: list[str], root: Path, config: Config, ledger: Ledger
) -> pd.DataFrame:
    """Places by the first of a sample's pictures that has one; samples with a picture that can't be read are left out."""
    frame = frame.assign(latitude=np.nan, longitude=np.nan, why="")
    for column in images:
        faults, places = look_at_pictures(root, frame[column].tolist(), config, places=True)
        latitude = pd.Series(
            [place[0] if isinstance(place, tuple) else np.nan for place in places], index=frame.index
        )
        longitude = pd.Series(
            [place[1] if isinstance(place, tuple) else np.nan for place in places], index=frame.index
        )
        why = pd.Series(
            [place if isinstance(place, str) else "" for place in places], index=frame.index, dtype=object
        )
        unknown = frame["latitude"].isna()
        frame = frame.assign(
            latitude=frame["latitude"].where(~unknown, latitude),
            longitude=frame["longitude"].where(~unknown, longitude),
            why=frame["why"].where(frame["why"] != "", why),
        )
        fault = pd.Series(faults, index=frame.index, dtype=object)
        frame = ledger.leave(frame, fault != "", "unreadable-picture", fault.str.cat(frame[column], ": "))
    return frame


def _with_table(frame: pd.DataFrame, coordinates: Path, ledger: Ledger) -> pd.DataFrame:
    """Places from a table that names pictures, by their path, name or name without ending, or samples."""
    table = read_table(coordinates, {}, None, ledger)
    column = next((name for name in ("image", "sample_id") if name in table), None)
    if column is None:
        raise GeoError(
            "this table names no pictures", where=coordinates, hint="give it a column image, with their names"
        )
    table = with_degrees(table, ledger)
    names = table[column].str.replace("\\", "/").str.removeprefix("./")
    places = table.assign(name=names).drop_duplicates("name").set_index("name")
    latitude, longitude = (pd.Series(np.nan, index=frame.index) for _ in range(2))
    for keys in (
        frame["first"],
        frame["first"].str.rpartition("/")[2],
        frame["sample_id"],
        frame["first"].map(lambda p: Path(p).stem),
    ):
        unknown = latitude.isna()
        latitude = latitude.where(~unknown, keys.map(places["latitude"]))
        longitude = longitude.where(~unknown, keys.map(places["longitude"]))
    return frame.assign(latitude=latitude, longitude=longitude, why=f"{coordinates.name} has no place for it")
