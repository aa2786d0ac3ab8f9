"""Small training sets whose features tell the state and the place, for the rooms of stage 2."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from geo_embed import geography
from geo_embed.answers import LabelEncoder, Truth
from geo_embed.config import Model
from geo_embed.fitting.examples import Examples, Rows
from geo_embed.heads.region import Region, make_region

CLASSES = 4


def rows_of(
    n: int = 96,
    *,
    views: int = 3,
    dim: int = 16,
    classes: int = CLASSES,
    seed: int = 0,
    absent: float = 0.2,
    noise: float = 0.5,
    middle: tuple[float, float] = (40.0, -100.0),
) -> Rows:
    """States side by side from west to east around `middle`, 6° apart; every state occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    step = rng.uniform(-2.5, 2.5, size=(n, 2))
    latitude = middle[0] + step[:, 0]
    longitude = geography.wrap_longitude(middle[1] + 6 * (labels - (classes - 1) / 2) + step[:, 1])
    signal = np.concatenate([np.eye(classes)[labels] * 2, step], axis=1)
    mix = np.random.default_rng(7).normal(size=(signal.shape[1], dim))
    embeddings = signal @ mix / 2 + rng.normal(size=(views, n, dim)) * noise
    present = rng.random((n, views)) >= absent
    present[np.arange(n), rng.integers(views, size=n)] = True
    points = geography.to_unit_vectors(latitude, longitude)
    return Rows(
        torch.from_numpy(embeddings.swapaxes(0, 1)).half(),
        torch.from_numpy(present),
        torch.from_numpy(labels),
        torch.from_numpy(points),
    )


def region_of(rows: Rows, model: Model, classes: int = CLASSES, seed: int = 0) -> Region:
    return make_region(rows.points.numpy(), rows.labels.numpy(), classes, model, seed=seed)


def tiny(**changes: object) -> Model:
    """A model of a few hundred weights."""
    return Model.model_validate({"head_hidden": 12, "gps_hidden": 8, "cell_samples": 6} | changes)


def examples_of(n: int, seed: int) -> Examples:
    """Embeddings that tell a little of the class, and places around its middle."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 5
    middles = random.normal(size=(5, 6))
    values = middles[labels][:, None] + 2 * random.normal(size=(n, 2, 6))
    truth = Truth(labels, 30 + 3 * labels + random.normal(size=n), -90 + 4 * labels + random.normal(size=n))
    return Examples(
        np.array([f"s{i}" for i in range(n)], dtype=object),
        values.astype(np.float32),
        np.ones((n, 2), dtype=bool),
        labels,
        truth,
        LabelEncoder(np.arange(5), tuple("abcde")),
    )


def planted_arrays(
    n: int = 40, views: int = 3, dim: int = 6, classes: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Embeddings that tell the state, and places around its middle; names and ids with all sorts of letters."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return {
        "embeddings": rng.normal(size=(classes, dim))[labels][:, None] + rng.normal(size=(n, views, dim)) / 2,
        "states": [f"<b>Länd {k}</b>" for k in labels],
        "latitude": (40 + labels + rng.normal(size=n) / 9).tolist(),
        "longitude": -90 + 2 * labels + rng.normal(size=n) / 9,
        "sample_id": [f"ort-{k}" for k in range(n)],
    }
