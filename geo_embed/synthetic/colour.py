"""Colours of the demo's country: (3, 1, 1) float32 in [0, 1], red, green and blue."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def rgb(red: float, green: float, blue: float) -> Floats:
    return np.array([[[red]], [[green]], [[blue]]], dtype=np.float32)


def any_colour(rng: np.random.Generator) -> Floats:
    bright: Floats = (0.1 + 0.85 * rng.random((3, 1, 1))).astype(np.float32)
    return mix(bright, np.full_like(bright, bright.mean()), 0.5)


def mix(a: Floats, b: Floats, share: float | Floats) -> Floats:
    return a + (b - a) * np.float32(share) if isinstance(share, float) else a + (b - a) * share
