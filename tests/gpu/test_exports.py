"""An export on a card: its answers are the CPU's, and as a module it takes tensors from wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from twofold import Twofold, make_twofold

from geo_embed import GeoPredictor, export
from geo_embed.data.images import decode, resize
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble

if TYPE_CHECKING:
    from conftest import Country


@pytest.fixture(scope="module")
def made(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Twofold:
    """Beside heads over two backbones an ensemble of them and of cells' medians, its ranks added up."""
    made = make_twofold(country, tmp_path_factory.mktemp("twofold"))
    fit_heads(made.config("clip", model__head="geocells"), name="cells")
    ensemble(made.config(), ["cells", "both"], method="rrf", point="mean", name="all")
    return made


@pytest.mark.parametrize("name", ["both", "cells", "all"])
def test_a_predictor_on_a_card_answers_pictures_and_tensors_as_on_the_cpu(
    made: Twofold, device: torch.device, tmp_path: Path, name: str
) -> None:
    export(made.config(), made.run(name), tmp_path / "e")
    places = [made.pictures(row) for row in range(4)]
    wanted = GeoPredictor(tmp_path / "e", device="cpu").predictions(places)
    loaded = GeoPredictor(tmp_path / "e", device=device.type, dtype="float32")
    moved = GeoPredictor(tmp_path / "e", device="cpu").to(device)
    for predictor in (loaded, moved):
        pixels = [
            torch.from_numpy(
                np.stack([[resize(decode(path.read_bytes()), spec) for path in place] for place in places])
            )
            for spec in predictor.preprocessings
        ]
        present = torch.ones(4, 4, dtype=torch.bool)
        # Before `predict` has moved the heads, and after.
        for _ in range(2):
            for where in ("cpu", device):
                tensors = [array.to(where) for array in pixels]
                states, points = predictor(tensors[0] if len(tensors) == 1 else tensors, present.to(where))
                assert {states.device.type, points.device.type} == {device.type}
                np.testing.assert_allclose(states.cpu().numpy(), wanted.probabilities, rtol=0, atol=1e-3)
            answers = predictor.predictions(places)
            np.testing.assert_allclose(answers.probabilities, wanted.probabilities, rtol=0, atol=1e-3)
