"""How long a backbone takes is known before it has been downloaded, and of every family whose layers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from towers import EACH, MAKERS

from geo_embed.backbones.pace import seconds_per_picture
from geo_embed.config import Model
from geo_embed.errors import GeoError

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", EACH)
def test_a_few_layers_of_any_family_are_timed(family: str, tmp_path: Path) -> None:
    MAKERS[family](tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights aren't read")
    model = Model(backbone_name=str(tmp_path / "model"))
    if family == "timm":
        with pytest.raises(GeoError, match="timm"):
            seconds_per_picture(model, CPU, torch.float32)
    else:
        assert 0 < seconds_per_picture(model, CPU, torch.float32) < 60


def test_what_is_not_here_and_not_the_default_is_not_guessed_at() -> None:
    with pytest.raises(GeoError, match="not in the local Hugging Face cache"):
        seconds_per_picture(Model(backbone_name="somebody/unknown"), CPU, torch.float32)
