"""Training examples from plain arrays, without a CSV or a store."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.answers import LabelEncoder, Truth
from geo_embed.blocks import Block
from geo_embed.cache.arrays import as_array, check_sources
from geo_embed.cache.store import hash_embeddings
from geo_embed.config import Config
from geo_embed.console import counted
from geo_embed.data.samples import text_ids
from geo_embed.errors import GeoError
from geo_embed.fitting.examples import Examples, find_tied
from geo_embed.runs.provenance import by_source

# What a run that was fitted on arrays calls its backbone.
BACKBONE = "arrays"

# Rows that are hashed at once: few calls, bounded memory.
_HASHED_ROWS = 4096


def examples_of(
    embeddings: ArrayLike | Mapping[str, ArrayLike],
    states: ArrayLike,
    latitude: ArrayLike,
    longitude: ArrayLike,
    *,
    present: ArrayLike | None = None,
    sample_id: ArrayLike | None = None,
    dtype: str,
) -> Examples:
    """N examples. The arrays that are given stay as they are.

    Args:
        embeddings, present, dtype: as `check_sources` takes them.
        states: (N,) names, which become classes in the order of the alphabet; or whole numbers, the data's own `state_idx`.
        latitude, longitude: (N,) degrees.
        sample_id: (N,) ids, by which a split is dealt; default 0 to N − 1.

    Raises:
        GeoError: lengths differ, a sample has no view, a value is missing, NaN or off the globe, or an id is repeated.
    """
    values, seen, blocks = check_sources(embeddings, present, dtype=dtype)
    n = len(values)
    without = np.flatnonzero(~seen.any(axis=1))
    if len(without):
        raise GeoError(
            f"{counted(len(without), 'sample has', 'samples have')} no view",
            where=f"present, row {without[0]}",
            hint="leave them out",
        )
    labels, encoder = _classes(states, n)
    truth = Truth(
        encoder.decode(labels),
        _degrees(latitude, "latitude", n, 90),
        _degrees(longitude, "longitude", n, 180),
    )
    ids = text_ids(range(n) if sample_id is None else _column(sample_id, "sample_id", n).tolist())
    if len(set(ids)) < n:
        repeated = next(name for name, count in Counter(ids.tolist()).items() if count > 1)
        raise GeoError(f"the id {repeated!r:.80} is repeated", where="sample_id")
    tied = find_tied(hash_embeddings(values), seen, truth)
    return Examples(ids, values, seen, labels, truth, encoder, tied, blocks)


def describe_arrays(examples: Examples) -> dict[str, Any]:
    """What a run is fitted on, as `describe_sources` has it: hashes stand for what the arrays hold.

    Two runs are of the same data where ids, states and places are the same, and of the same store where the embeddings are, too.
    """
    truth = examples.truth
    of_truth = hashlib.sha256("\0".join(examples.sample_id).encode("utf-8", "surrogatepass"))
    for column in (truth.state_idx, truth.latitude, truth.longitude):
        of_truth.update(column.tobytes())
    n, v, d = examples.values.shape
    described = []
    for block in examples.blocks or (Block(BACKBONE, 0, d),):
        of_store = of_truth.copy()
        of_store.update(examples.present.tobytes())
        for start in range(0, n, _HASHED_ROWS):
            part = examples.values[start : start + _HASHED_ROWS, :, block.start : block.stop]
            of_store.update(np.ascontiguousarray(part).data)
        described.append(
            {
                "name": block.name,
                "fingerprint": of_store.hexdigest()[:16],
                "backbone": BACKBONE,
                "arrays": True,
                "weights_sha256": None,
                "preprocessing": None,
                "samples": n,
                "views": v,
                "dim": block.stop - block.start,
                "function": None,
            }
        )
    return {"data": {"train_csv": None, "sha256": of_truth.hexdigest()}} | by_source(described)


def settings_of(config: Config, views: int) -> Config:
    """The settings of a run that is fitted on arrays of V views: those given, with names for these views, and without a backbone.

    Raises:
        GeoError: the settings name other views than there are.
    """
    names = config.model.view_names
    if len(names) != views:
        # Default names are nobody's choice.
        if "view_names" in config.model.model_fields_set:
            raise GeoError(
                f"embeddings of {views} views, where model.view_names has {len(names)}: {', '.join(names)}",
                where="embeddings",
                hint=f"give (samples, {len(names)}, numbers), or name the {views} views",
            )
        names = tuple(f"view_{view}" for view in range(1, views + 1))
    changes = {"fingerprint": None, "view_names": names}
    model = config.model.with_backbone(BACKBONE).model_copy(update=changes)
    return config.model_copy(update={"model": model})


def _column(given: ArrayLike, name: str, n: int) -> NDArray[Any]:
    column = as_array(given, name)
    if column.shape != (n,):
        raise GeoError(
            f"{name} of shape {column.shape}, where there are embeddings of {n:,} samples",
            where=name,
            hint=f"give {n:,} of them, in the order of the embeddings",
        )
    return column


def _classes(states: ArrayLike, n: int) -> tuple[NDArray[np.int64], LabelEncoder]:
    """Classes (N,), and what they are called."""
    column = _column(states, "states", n)
    if column.dtype.kind in "iu":
        index, labels = np.unique(column.astype(np.int64), return_inverse=True)
        encoder = LabelEncoder(index, tuple(map(str, index.tolist())))
    else:
        given = column.tolist()
        wrong = [row for row, state in enumerate(given) if not isinstance(state, str) or not state.strip()]
        if wrong:
            raise GeoError(
                f"{given[wrong[0]]!r:.80} is no state",
                where=f"states, row {wrong[0]}",
                hint="give names, or whole numbers; where pandas read them, NA (Namibia) is missing but for keep_default_na=False",
            )
        names = sorted(set(given))
        place = {name: k for k, name in enumerate(names)}
        labels = np.array([place[name] for name in given], dtype=np.int64)
        encoder = LabelEncoder(np.arange(len(names)), tuple(names))
    return labels, encoder


def _degrees(given: ArrayLike, name: str, n: int, most: int) -> NDArray[np.float64]:
    column = _column(given, name, n)
    try:
        degrees = column.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise GeoError(f"{name} isn't all numbers: {str(error)[:80]}", where=name) from error
    wrong = np.flatnonzero(~(np.abs(degrees) <= most))
    if len(wrong):
        raise GeoError(
            f"{degrees[wrong[0]]:g} is no {name}",
            where=f"{name}, row {wrong[0]}",
            hint=f"give degrees from −{most} to {most}",
        )
    return degrees
