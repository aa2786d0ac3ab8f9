"""Tileable noise that grass, clouds, asphalt and ridges of the demo's country are made of; drawn once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from geo_embed.synthetic.chance import TEXTURE, of_country
from geo_embed.synthetic.colour import Floats

TEXTURE_SIZE = 512


@lru_cache(maxsize=1)
def textures() -> tuple[Floats, Floats, Floats]:
    """Each with mean 0 and spread 1, of T = `TEXTURE_SIZE`: soft (T, T), grainy (T, T), and ridge lines (8, 4T)."""
    rng = of_country(TEXTURE)
    size = TEXTURE_SIZE
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None, :] * size
    radius = np.maximum(np.hypot(fx, fy), 1.0)

    def noise(power: float, lowest: float) -> Floats:
        spectrum = np.fft.rfft2(rng.normal(size=(size, size))) * radius**-power * (radius >= lowest)
        field = np.fft.irfft2(spectrum, (size, size))
        return np.asarray(field / field.std(), dtype=np.float32)

    lines = np.fft.rfft(rng.normal(size=(8, 4 * size)))
    lines *= np.maximum(np.arange(lines.shape[1]), 1.0) ** -1.5 * (np.arange(lines.shape[1]) >= 6)
    ridges = np.fft.irfft(lines, 4 * size)
    ridges /= ridges.std(axis=1, keepdims=True)
    return noise(1.6, 3), noise(0.55, 8), np.asarray(ridges, dtype=np.float32)
