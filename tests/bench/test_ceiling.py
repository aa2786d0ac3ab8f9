"""Who knows how planted rows were made is right as often as their views allow: always, by their worth, or by chance."""

from __future__ import annotations

import numpy as np
import pytest

from geo_embed.bench.ceiling import informed_answers
from geo_embed.bench.planted import Difficulty, planted


@pytest.mark.parametrize(
    ("difficulty", "least", "most"),
    [
        (Difficulty(code_dim=32, noise=0.1, misleading=0.0, blank=0.0), 0.95, 1.0),
        (Difficulty(code_dim=32, noise=0.1, misleading=0.7, blank=0.0), 0.5, 0.9),
        (Difficulty(code_dim=32, misleading=0.0, blank=1.0), 0.0, 0.4),
    ],
)
def test_its_answers_are_worth_what_the_views_tell(difficulty: Difficulty, least: float, most: float) -> None:
    data = planted(1500, seed=2, classes=8, views=2, dim=128, difficulty=difficulty)
    probabilities, points = informed_answers(data)
    assert probabilities.sum(dim=1).numpy() == pytest.approx(np.ones(len(data.test)), abs=1e-4)
    assert bool(points[:, 0].abs().le(90).all())
    right = np.unique(data.state_idx)[probabilities.argmax(dim=1).numpy()] == data.state_idx[data.test]
    assert least <= right.mean() <= most
