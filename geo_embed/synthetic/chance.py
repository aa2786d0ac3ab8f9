"""Random numbers of the demo's country: each use of them begins with a number of its own, so that none repeats another's."""

from __future__ import annotations

from typing import Final

import numpy as np

PLACES: Final = 1
LOOK: Final = 2
TEXTURE: Final = 3
SPRITE: Final = 4
STYLE: Final = 5
_COUNTRY: Final = 50


def of_country(use: int, *key: int) -> np.random.Generator:
    """What is the same in every country."""
    return np.random.default_rng(np.random.SeedSequence([_COUNTRY, use, *key]))


def of_seed(seed: int) -> np.random.Generator:
    """Which places are visited."""
    return np.random.default_rng(np.random.SeedSequence([PLACES, seed]))


def of_visit(visit: tuple[int, ...], part: int) -> np.random.Generator:
    """What the day is like there: part 0 is the place, the others its pictures."""
    return np.random.default_rng(np.random.SeedSequence([LOOK, *visit, part]))
