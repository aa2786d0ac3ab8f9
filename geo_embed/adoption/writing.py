"""A dataset of ours, written from samples: CSVs, pictures where they are wanted, and the settings that go with them."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pandas as pd

from geo_embed.adoption.candidates import Candidates
from geo_embed.adoption.pictures import is_text
from geo_embed.config import Paths
from geo_embed.console import progress
from geo_embed.data.samples import AREAS, PREDICTED_POINT, PREDICTED_STATES
from geo_embed.errors import GeoError
from geo_embed.settings import DEFAULT_FILE

Pictures = Literal["there", "link", "copy"]

# Of the classes, as the checks take them.
_WHOLE = r"0|[1-9][0-9]{0,14}"

LEFT_OUT, TEST_TRUTH = "left_out.csv", "test_ground_truth.csv"


def write_dataset(
    folder: Path,
    samples: Candidates,
    left_out: pd.DataFrame,
    *,
    pictures: Pictures | None,
    keeps_incomplete: bool,
    progress_seconds: float,
) -> None:
    """Fill an empty folder.

    Args:
        folder: where to write.
        samples: with a split and, in training, a class and a place each.
        left_out: what to name in `left_out.csv`.
        pictures: `there`: names point to where they lie; `link`: hard links, copies where the file system has none; `copy`; None: they
            lie in `folder` already, below train_images.
        keeps_incomplete: let stages go on without the pictures that are not there.
        progress_seconds: between two lines of news.
    """
    frame = samples.frame
    classes = _numbered(frame)
    images = frame[["sample_id", *samples.images]]
    truth = pd.DataFrame(
        {
            "state": frame["label"],
            "state_idx": frame["label"].map(classes).astype("Int64"),
            "latitude": frame["latitude"],
            "longitude": frame["longitude"],
        }
    )
    areas = frame[[area for area in AREAS if area in frame]].replace("nan", "")
    whole = pd.concat([images, truth, areas], axis=1)
    test = (frame["split"] == "test").to_numpy()
    paths = Paths(data_root=folder)
    for split, rows in (("train", ~test), ("test", test)):
        if rows.any() and pictures != "there":
            _place(samples, frame[rows], paths.images(split), pictures, progress_seconds)
    if (~test).any():
        _write(paths.csv("train"), whole[~test])
    if classes:
        _write(paths.mapping(), pd.DataFrame({"state_idx": list(classes.values()), "state": list(classes)}))
    if test.any():
        guesses = dict.fromkeys(PREDICTED_STATES, 0) | dict.fromkeys(PREDICTED_POINT, 0.0)
        _write(paths.csv("test"), images[test].assign(**guesses))
        known = test & frame["latitude"].notna().to_numpy()
        if known.any():
            _write(folder / TEST_TRUTH, whole[known].drop(columns=samples.images))
    if len(left_out):
        _write(folder / LEFT_OUT, left_out)
    (folder / DEFAULT_FILE).write_text(_settings(samples, pictures, keeps_incomplete), encoding="utf-8")


def _numbered(frame: pd.DataFrame) -> dict[str, int]:
    """The classes by name, each with its number: the source's own where every class has one of its own, else in the names' order."""
    names = sorted(set(frame["label"]) - {""})
    if "state_idx" in frame:
        pairs = frame[frame["label"] != ""][["label", "state_idx"]].drop_duplicates()
        whole = pairs["state_idx"].str.fullmatch(_WHOLE).all()
        if whole and pairs["label"].is_unique and pairs["state_idx"].is_unique:
            return dict(
                sorted(
                    zip(pairs["label"], map(int, pairs["state_idx"]), strict=True), key=lambda pair: pair[1]
                )
            )
    return {name: k for k, name in enumerate(names)}


def _place(
    samples: Candidates, frame: pd.DataFrame, to: Path, pictures: Pictures | None, progress_seconds: float
) -> None:
    place = {"link": _link, "copy": _copy}.get(pictures or "", _move)
    names = [name for column in samples.images for name in frame[column] if name]
    with progress(f"place {to.name}", len(names), "pictures", progress_seconds) as advance:
        for name in dict.fromkeys(names):
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            place(samples.root / name, target)
            advance(1)


def _link(source: Path, target: Path) -> None:
    # Through links: a link to a link would break with the one between. Without permission, or to another file system, none can be made.
    with suppress(OSError):
        target.hardlink_to(source.resolve())
        return
    _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _move(source: Path, target: Path) -> None:
    if source != target:
        source.rename(target)


def _write(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, index=False, lineterminator="\n")


def _settings(samples: Candidates, pictures: Pictures | None, keeps_incomplete: bool) -> str:
    import tomlkit

    document = tomlkit.document()
    document.add(
        tomlkit.comment("Written by geo data adopt. Paths start at the working directory: cd here first.")
    )
    paths: dict[str, str] = {"data_root": "."}
    if pictures == "there":
        root = str(samples.root.resolve())
        if not is_text(root):
            raise GeoError(
                "the folder's name is no text", where=repr(root), hint="rename it, or take --pictures copy"
            )
        paths |= {"train_images": root, "test_images": root}
    document.add("paths", paths)
    document.add("model", {"view_names": list(samples.views)})
    if keeps_incomplete:
        document.add("inference", {"on_bad_image": "skip"})
    return tomlkit.dumps(document)
