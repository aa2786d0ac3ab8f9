"""The demo's small country: planted street views of 33 states.

Nothing here was photographed. Places are drawn inside real state outlines, and painted by `painting`. The country itself is always the same; a seed chooses which places of it are visited and what
the day was like there.
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geo_embed.files import force_tree, replacing
from geo_embed.synthetic.chance import of_seed
from geo_embed.synthetic.colour import Floats
from geo_embed.synthetic.painting import paint_place
from geo_embed.synthetic.place import STATE_IDX
from geo_embed.synthetic.views import VIEWS

if TYPE_CHECKING:
    import pandas as pd

Polygon = NDArray[np.float64]

NOTICE: Final = "synthetic picture, painted by geo_embed.synthetic; no real place is shown"

_TEST_SHARE = 0.2
_TRAIN, _TEST = 0, 1
# Fewer places than this are painted sooner than a process starts.
_PLACES_PER_WORKER = 16
_JPEG_QUALITY = 88

_README = """This country is SYNTHETIC.

Every picture here was painted by geo_embed.synthetic, and every place was drawn by a random number generator
inside a real state outline. The folder has the layout of the real dataset so that the whole pipeline can run on
it; scores reached on it say nothing about scores on photographs.

locations: {locations} ({train} train, {test} test)
seed: {seed}
image size: {image_size} px
"""


# ---------------------------------------------------------------- the map


@lru_cache(maxsize=1)
def state_outlines() -> dict[int, tuple[str, list[Polygon]]]:
    """The 50 states' simplified outlines (US Census Bureau, public domain).

    Returns:
        `state_idx` (0 Alabama … 49 Wyoming, alphabetical) -> (name, polygons). A polygon is a closed ring,
        (P, 2) float64, of longitude and latitude in degrees; the largest comes first.
    """
    text = (resources.files("geo_embed.synthetic") / "us_states.json").read_text(encoding="utf-8")
    return {
        int(entry["state_idx"]): (
            str(entry["name"]),
            [np.asarray(ring, dtype=np.float64) for ring in entry["polygons"]],
        )
        for entry in json.loads(text)["states"]
    }


def true_locations(locations: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Where the samples of `write_country(..., locations=locations, seed=seed)` really are.

    Args:
        locations: train and test places together, at least 2. One fifth, and at least one, is test.
        seed: chooses the places.

    Returns:
        (train, test): `sample_id` (0, 1, … in each), `state`, `state_idx`, `latitude`, `longitude` (degrees).
        Train holds every state where it has room for it.
    """
    import pandas as pd

    if locations < 2:
        raise ValueError(f"a country needs at least 2 locations (one train, one test), not {locations}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, and is {seed}")
    rng = of_seed(seed)
    outlines = state_outlines()
    test = max(1, round(locations * _TEST_SHARE))
    train = locations - test
    # The root of the area keeps Texas ahead of South Carolina without letting Alaska drown both.
    weights = np.array([sum(map(_area, outlines[idx][1])) for idx in STATE_IDX]) ** 0.5
    weights /= weights.sum()
    drawn = rng.choice(np.array(STATE_IDX), size=locations, p=weights)
    if train >= len(STATE_IDX):
        drawn[: len(STATE_IDX)] = STATE_IDX
    drawn[:train] = rng.permutation(drawn[:train])
    points = np.array([_point_in(outlines[int(idx)][1], rng) for idx in drawn])
    table = pd.DataFrame(
        {
            "state": [outlines[int(idx)][0] for idx in drawn],
            "state_idx": drawn.astype(np.int64),
            "latitude": points[:, 1],
            "longitude": points[:, 0],
        }
    )
    parts = []
    for part in (table.iloc[:train], table.iloc[train:]):
        part = part.reset_index(drop=True)
        part.insert(0, "sample_id", np.arange(len(part), dtype=np.int64))
        parts.append(part)
    return parts[0], parts[1]


def _area(ring: Polygon) -> float:
    """Square degrees, shrunk by the cosine of the mean latitude."""
    x, y = ring[:, 0], ring[:, 1]
    shoelace = abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2
    return shoelace * math.cos(math.radians(float(y.mean())))


def _inside(ring: Polygon, x: Floats, y: Floats) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = ring[:-1, 0], ring[:-1, 1], ring[1:, 0], ring[1:, 1]
    straddles = (y0 > y[:, None]) != (y1 > y[:, None])
    rise = np.where(y1 == y0, 1.0, y1 - y0)
    crossing = (x1 - x0) * (y[:, None] - y0) / rise + x0
    inside: NDArray[np.bool_] = (straddles & (x[:, None] < crossing)).sum(axis=1) % 2 == 1
    return inside


def _point_in(polygons: list[Polygon], rng: np.random.Generator) -> tuple[float, float]:
    areas = np.array([_area(ring) for ring in polygons])
    ring = polygons[int(rng.choice(len(polygons), p=areas / areas.sum()))]
    low, high = ring.min(axis=0), ring.max(axis=0)
    while True:
        lon = rng.uniform(low[0], high[0], size=16)
        sines = rng.uniform(math.sin(math.radians(low[1])), math.sin(math.radians(high[1])), size=16)
        lon, lat = np.round(lon, 6), np.round(np.degrees(np.arcsin(sines)), 6)
        hits = np.flatnonzero(_inside(ring, lon, lat))
        if hits.size:
            return float(lon[hits[0]]), float(lat[hits[0]])


# ---------------------------------------------------------------- the dataset


def write_country(
    root: Path,
    *,
    locations: int,
    seed: int,
    image_size: int = 256,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a synthetic dataset in the exact layout of the real one.

    The files depend on `locations`, `seed` and `image_size` alone, byte for byte.

    Args:
        root: the data root; made where it is missing. The CSVs come last, so a folder that has them is whole.
        locations: train and test places together; a picture in each direction of `VIEWS`.
        seed: chooses the places and the days.
        image_size: side of the square pictures in pixels, at least 32.
        workers: painting processes, at most; as many as there are processors (at most 8) where left out. They
            are spawned, so a script that calls this needs the usual `if __name__ == "__main__":`.
        progress: called in this thread with (places done, places in all).
    """
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels, and is {image_size}")
    splits = dict(zip(("train", "test"), true_locations(locations, seed), strict=True))
    for split in splits:
        (root / f"{split}_images").mkdir(parents=True, exist_ok=True)

    columns = ("sample_id", "state_idx", "latitude", "longitude")
    jobs = [
        (split, *row)
        for split, table in splits.items()
        for row in zip(*(table[name].tolist() for name in columns), strict=True)
    ]
    paint = partial(_photograph, root, seed, image_size)
    workers = min(workers or min(8, os.cpu_count() or 1), math.ceil(len(jobs) / _PLACES_PER_WORKER))
    if workers == 1:
        for done, job in enumerate(jobs, start=1):
            paint(job)
            if progress is not None:
                progress(done, len(jobs))
    else:
        # A fork would copy the locks of torch's threads; a fresh process costs half a second.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_follow_parent) as pool:
            pending = [pool.submit(paint, job) for job in jobs]
            try:
                for done, future in enumerate(as_completed(pending), start=1):
                    future.result()
                    if progress is not None:
                        progress(done, len(jobs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    force_tree(root)
    _write(
        root / "README.txt",
        _README.format(
            locations=locations,
            train=len(splits["train"]),
            test=len(splits["test"]),
            seed=seed,
            image_size=image_size,
        ).encode(),
    )
    for name, table in _tables(splits["train"], splits["test"]).items():
        _write(root / name, table.to_csv(index=False, lineterminator="\n").encode())


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and don't outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _photograph(root: Path, seed: int, image_size: int, job: tuple[str, int, int, float, float]) -> None:
    """Paint and write the pictures of one place: (split, sample_id, state_idx, latitude, longitude)."""
    split, sample_id, state_idx, latitude, longitude = job
    visit = (seed, _TRAIN if split == "train" else _TEST, sample_id)
    pictures = paint_place(state_idx, latitude, longitude, visit=visit, size=image_size)
    for name, picture in zip(VIEWS, pictures, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY, comment=NOTICE)
        # Thousands of them: forced to the disk together, once all are painted.
        with replacing(root / f"{split}_images" / _image_name(sample_id, name), forced=False) as temporary:
            temporary.write_bytes(buffer.getvalue())


def _image_name(sample_id: int, view: str) -> str:
    return f"img_{sample_id:06d}_{view}.jpg"


def _tables(train: pd.DataFrame, test: pd.DataFrame) -> dict[str, pd.DataFrame]:
    import pandas as pd

    def with_images(table: pd.DataFrame) -> pd.DataFrame:
        names = {f"image_{view}": [_image_name(i, view) for i in table["sample_id"]] for view in VIEWS}
        return pd.DataFrame({"sample_id": table["sample_id"], **names})

    truth = ["state", "state_idx", "latitude", "longitude"]
    ground_truth = pd.concat([with_images(train), train[truth]], axis=1)
    guesses: dict[str, Any] = {f"predicted_state_idx_{rank}": 0 for rank in range(1, 6)}
    template = with_images(test).assign(**guesses, predicted_latitude=0.0, predicted_longitude=0.0)
    names = [state_outlines()[idx][0] for idx in STATE_IDX]
    return {
        "state_mapping.csv": pd.DataFrame({"state_idx": STATE_IDX, "state": names}),
        "sample_submission.csv": template,
        "train_ground_truth.csv": ground_truth,
    }


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
