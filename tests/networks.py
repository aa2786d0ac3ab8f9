"""Runs on made embeddings whose answers cross the antimeridian, combine, and look up neighbours: for exports to be compared by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from worlds import make_world

from geo_embed.config import Config
from geo_embed.heads.heads import CellHeads
from geo_embed.heads.refine import Refiner, make_gallery
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, RunWriter

CLASSES = ("Ost", "Süd", "West", "Nord", "Mitte", "Rand", "Berg")
VIEWS = ("a", "b", "c")
DIM = 12


def antimeridian(root: Path) -> Config:
    """Places on both sides of the antimeridian, in a good many cells."""
    return make_world(
        root,
        CLASSES,
        views=VIEWS,
        samples=140,
        middle=(50.0, 177.0),
        noise=2.0,
        dim=DIM,
        training__epochs=3,
        model__head_hidden=8,
        model__cell_samples=6,
    )


def changed(config: Config, **settings: object) -> Config:
    """The settings, with some by group__key on top."""
    values = config.model_dump(mode="json", exclude_none=True)
    for key, value in settings.items():
        group, leaf = key.split("__")
        values[group][leaf] = value
    return Config.model_validate(values)


def places(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings as a store would hold them, with views missing in every way, and of one place all."""
    rng = np.random.default_rng(1)
    views = (rng.normal(size=(count, len(VIEWS), DIM)) * 3).astype(np.float16).astype(np.float32)
    present = rng.random((count, len(VIEWS))) < 0.7
    present[0] = False
    return views, present


def refine(run: Run, **refiner: float) -> None:
    """Let a run's points be refined among samples at the middles of its cells and beside them; every fifth cell has none."""
    panel = load_heads(run)
    (heads,) = panel.parts
    assert isinstance(heads, CellHeads)
    views, present = (torch.from_numpy(part) for part in places(90))
    present |= ~present.any(dim=1, keepdim=True)
    (out,) = heads.walk(views, present)
    cells = torch.arange(90) % len(heads.centres)
    cells = torch.where(cells % 5 == 0, (cells + 1) % len(heads.centres), cells)
    beside = heads.centres[cells].double() + torch.randn(90, 3, dtype=torch.float64) * 1e-3
    settings = {"cells": 3, "neighbours": 4, "temperature": 0.1, "max_km": 120.0} | refiner
    gallery = make_gallery(out["vector"], cells, beside / beside.norm(dim=1, keepdim=True))
    heads.look_up(gallery, Refiner(**settings))  # type: ignore[arg-type]
    RunWriter(run.path).write_heads(panel)
