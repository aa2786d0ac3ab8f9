"""`geo cache export --atlas`: a split as the table that Apple's Embedding Atlas opens: a plane, neighbours, and what is known of each sample."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.join import find_sources
from geo_embed.config import Config
from geo_embed.console import counted, warn
from geo_embed.data.outputs import check_output
from geo_embed.data.samples import Samples, load_samples, text_ids
from geo_embed.errors import GeoError, disk_errors
from geo_embed.explorer.scene import Scene
from geo_embed.explorer.space import Space, plane_of, raw_space, space_of
from geo_embed.files import replacing
from geo_embed.runs.run import load_run

PARQUET = (".parquet",)
NEIGHBOURS = 10
# Cosines that are held at once, 64 MB.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Atlas:
    """What was written: the file, the number of samples, and what the plane is a projection of."""

    atlas: Path
    samples: int
    space: str


def export_atlas(config: Config, split: str, out: Path, run: str | None = None) -> Atlas:
    """Write a split's samples for Embedding Atlas.

    Columns: `sample_id`; `projection_x`, `projection_y`, the first two principal components; `neighbors`, the ten most alike by cosine, as
    `ids` (rows, from 0) and `distances` (1 − cosine); where the CSV is at hand and has them `latitude`, `longitude`, `state`; and of a run `part`
    (train, val, test), `predicted_state`, `confidence`, `predicted_latitude`, `predicted_longitude`, `km` and `score` of the samples that it has
    recorded answers for, null elsewhere.

    Args:
        config: paths, and without a run the backbone.
        split: `train` or `test`.
        out: a .parquet, replaced in one piece.
        run: by name or directory: its learnt space. None: the mean of each sample's raw embeddings.

    Raises:
        GeoError: no such run or store, another ending, or the disk is full.
    """
    check_output(config.paths, out, PARQUET)
    if run is None:
        sources = find_sources(config, split)
        name = f"raw embeddings by {', '.join(source.name for source in sources)}"
        space, scene = raw_space(sources), None
    else:
        scene = Scene(config, load_run(config.paths.runs_dir, run))
        embedder = scene.memory.embedder()
        space, name = space_of(embedder, split)[0], embedder.name
    without = int((~space.seen).sum())
    if without:
        warn(f"{counted(without, 'sample has', 'samples have')} no view to be placed by: left out")
        seen = space.seen
        space = replace(space, sample_id=space.sample_id[seen], vectors=space.vectors[seen], seen=seen[seen])
    table = _columns(config, split, space, scene)
    import pyarrow as pa
    from pyarrow import parquet

    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        parquet.write_table(pa.table(table), temporary)
    return Atlas(out, len(space.sample_id), name)


def _columns(config: Config, split: str, space: Space, scene: Scene | None) -> dict[str, Any]:
    import pyarrow as pa

    ids = [str(text) for text in space.sample_id]
    plane = plane_of(space.vectors)
    near, distance = (np.concatenate(parts) for parts in zip(*_nearest(space), strict=True))
    columns: dict[str, Any] = {
        "sample_id": pa.array(ids, pa.utf8()),
        "projection_x": pa.array(plane[:, 0]),
        "projection_y": pa.array(plane[:, 1]),
        "neighbors": pa.StructArray.from_arrays(
            [_lists(near.astype(np.int64)), _lists(distance.astype(np.float32))], ["ids", "distances"]
        ),
    }
    try:
        samples = load_samples(config, split) if scene is None else scene.samples(split)
    except GeoError:
        pass
    else:
        columns |= _places(ids, samples, _state_names(samples, config))
    return columns if scene is None else columns | _answers(ids, split, scene)


def _state_names(samples: Samples, config: Config) -> dict[int, str]:
    from geo_embed.data.samples import load_mapping

    return {} if samples.truth is None else load_mapping(config.paths.mapping())


def _places(ids: list[str], samples: Samples, names: dict[int, str]) -> dict[str, Any]:
    """Where samples are, by the CSV; null of one that it doesn't have."""
    import pyarrow as pa

    if samples.truth is None:
        return {}
    place = {str(text): row for row, text in enumerate(samples.sample_id)}
    rows = [place.get(text) for text in ids]
    truth = samples.truth
    return {
        "latitude": pa.array([None if row is None else float(truth.latitude[row]) for row in rows]),
        "longitude": pa.array([None if row is None else float(truth.longitude[row]) for row in rows]),
        "state": pa.array([None if row is None else names[int(truth.state_idx[row])] for row in rows]),
    }


def _answers(ids: list[str], split: str, scene: Scene) -> dict[str, Any]:
    """What a run has answered to some of the samples, or all; null to the rest."""
    import pyarrow as pa

    place = {text: row for row, text in enumerate(ids)}
    parts: list[str | None] = [split if split == "test" else None] * len(ids)
    columns: dict[str, list[Any]] = {
        name: [None] * len(ids)
        for name in (
            *("predicted_state", "confidence", "predicted_latitude", "predicted_longitude", "km", "score"),
        )
    }
    if split == "train":
        table = scene.run.read_split()
        for text, part in zip(text_ids(table["sample_id"]), table["part"], strict=True):
            # With folds a sample is in both; that it was held out is what its answer is about.
            if text in place and parts[place[text]] != "val":
                parts[place[text]] = str(part)
    asked = "test" if split == "test" else "val"
    if asked in scene.splits:
        shown = scene.shown(asked)
        answers = shown.predictions
        for k, text in enumerate(answers.sample_id):
            row = place.get(str(text))
            if row is None:
                continue
            first = int(shown.ranked[k, 0])
            columns["predicted_state"][row] = answers.labels.names[first]
            columns["confidence"][row] = float(answers.probabilities[k, first])
            columns["predicted_latitude"][row] = float(answers.latitude[k])
            columns["predicted_longitude"][row] = float(answers.longitude[k])
            columns["km"][row] = None if shown.km is None else float(shown.km[k])
            columns["score"][row] = None if shown.score is None else float(shown.score[k])
    kinds = {"predicted_state": pa.utf8()}
    return {"part": pa.array(parts, pa.utf8())} | {
        name: pa.array(values, kinds.get(name, pa.float32())) for name, values in columns.items()
    }


def _nearest(space: Space) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """For block after block of rows the rows most alike (n, k), the most alike first, and 1 − cosine."""
    vectors = space.vectors.astype(np.float32)
    count = len(vectors)
    k = min(NEIGHBOURS, max(count - 1, 0))
    for start in range(0, count, max(1, _BLOCK // max(count, 1))):
        rows = np.arange(start, min(start + max(1, _BLOCK // count), count))
        cosine = vectors[rows] @ vectors.T
        cosine[np.arange(len(rows)), rows] = -np.inf
        near = np.argpartition(-cosine, max(k - 1, 0), axis=1)[:, :k]
        alike = np.take_along_axis(cosine, near, axis=1)
        order = np.argsort(-alike, axis=1, kind="stable")
        yield (
            np.take_along_axis(near, order, axis=1),
            1 - np.take_along_axis(alike, order, axis=1).clip(-1, 1),
        )


def _lists(values: NDArray[Any]) -> Any:
    """A column of lists, one a row (n, k)."""
    import pyarrow as pa

    count, width = values.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
