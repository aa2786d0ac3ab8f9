"""A run's model from images to predictions, and a few random samples for it to look at."""

from __future__ import annotations

from typing import Any

import torch

from geo_embed.data import images
from geo_embed.finetuning.model import GeoModel
from geo_embed.runs.backbone import load_backbone_of
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run

SAMPLES, VIEWS = 5, 4


def model_of(run: Run, **training: Any) -> GeoModel:
    backbone = load_backbone_of(run, torch.device("cpu"))
    counts = torch.arange(1, len(run.labels) + 1)
    spans = torch.tensor([25.0, 60.0])
    return GeoModel(backbone, load_heads(run), run.config.training.model_copy(update=training), counts, spans)


def scene(model: GeoModel, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random normalised pixels, and which views there are."""
    spec = model.backbone.preprocessing
    shape = (SAMPLES * VIEWS, 3, spec.height, spec.width)
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    pixels = images.normalise(raw, spec, torch.float32).view(SAMPLES, VIEWS, *shape[1:])
    present = torch.ones(SAMPLES, VIEWS, dtype=torch.bool)
    present[1, 2] = present[3, 0] = False
    return pixels, present
