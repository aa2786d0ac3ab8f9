"""Datasets of any shape and runs on them, from embeddings that tell the class: no picture, no backbone."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geo_embed.cache.exchange import cache_import
from geo_embed.config import Config
from geo_embed.fitting.fit import fit_heads
from geo_embed.runs.run import Run, load_run
from geo_embed.settings import resolve

NAME = "made-elsewhere"


def make_world(
    root: Path,
    classes: Sequence[str],
    *,
    views: Sequence[str] = ("view",),
    samples: int = 60,
    ids: str = "s{}",
    middle: tuple[float, float] = (47.0, 8.0),
    step: float = 1.0,
    noise: float = 1.0,
    dim: int = 12,
    **settings: Any,
) -> Config:
    """Write CSVs and import embeddings; classes lie side by side, `step` degrees apart, west to east.

    Args:
        root: a new directory.
        classes: names; class k has state_idx 3 k + 2.
        views: names.
        samples: places.
        ids: of the samples, with their number in the place of `{}`.
        middle: degrees of the first class.
        step: degrees between classes, and how far their places spread.
        noise: of the embeddings, whose classes are 2 apart.
        dim: of the embeddings.
        settings: on top, by group__key.
    """
    data = root / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % len(classes)
    latitude = middle[0] + rng.normal(size=samples) * step / 4
    longitude = (middle[1] + labels * step + rng.normal(size=samples) * step / 4 + 180) % 360 - 180
    _write(
        data / "train_ground_truth.csv",
        ["sample_id", *(f"image_{view}" for view in views), "state", "state_idx", "latitude", "longitude"],
        [
            [ids.format(i), *([""] * len(views)), classes[k], 3 * k + 2, latitude[i], longitude[i]]
            for i, k in enumerate(labels.tolist())
        ],
    )
    _write(
        data / "state_mapping.csv",
        ["state_idx", "state"],
        [[3 * k + 2, name] for k, name in enumerate(classes)],
    )
    middles = rng.normal(size=(len(classes), dim)) * 2
    values = middles[labels][:, None] + rng.normal(size=(samples, len(views), dim)) * noise
    np.save(root / "train.npy", values.astype(np.float32))
    chosen = {
        "paths.data_root": str(data),
        "paths.cache_dir": str(root / "cache"),
        "paths.runs_dir": str(root / "runs"),
        "paths.reports_dir": str(root / "reports"),
        "model.view_names": list(views),
        "model.backbone_name": NAME,
        "model.device": "cpu",
        "training.preset": "pigeon",
        "training.epochs": 6,
        "training.val_split": 0.3,
    }
    config = resolve(overrides=chosen | {key.replace("__", "."): value for key, value in settings.items()})[0]
    cache_import(config, root / "train.npy", "train", NAME)
    return config


def made_run(config: Config, name: str) -> Run:
    """A run on such a dataset."""
    fit_heads(config, name=name)
    return load_run(config.paths.runs_dir, name)


def _write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
