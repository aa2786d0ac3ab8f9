"""How long a backbone takes is known before it has been downloaded, and of every family whose layers are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from towers import ALL_TOWERS, MAKERS

from geo_embed.backbones import pace
from geo_embed.backbones.backbone import load_backbone
from geo_embed.backbones.function import make_config
from geo_embed.backbones.pace import seconds_per_picture
from geo_embed.config import Model
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    from small import Country

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ALL_TOWERS)
def test_a_few_layers_of_any_family_are_timed(family: str, tmp_path: Path) -> None:
    MAKERS[family](tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights aren't read")
    model = Model(backbone_name=str(tmp_path / "model"))
    if family == "timm":
        with pytest.raises(GeoError, match="timm"):
            seconds_per_picture(model, CPU, torch.float32)
    else:
        assert 0 < seconds_per_picture(model, CPU, torch.float32) < 60


def test_the_layers_are_those_that_extraction_loads(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QuickGELU takes longer than what it is folded into."""
    directory = Path(shutil.copytree(country.backbone, tmp_path / "model"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    timed: list[Any] = []

    def noted(*arguments: Any) -> Any:
        timed.append(make_config(*arguments))
        return timed[-1]

    monkeypatch.setattr(pace, "make_config", noted)
    model = Model(backbone_name=str(directory))
    seconds_per_picture(model, CPU, torch.float32)
    loaded = load_backbone(model, CPU, torch.float32).module.config
    assert [timed_config.hidden_act for timed_config in timed] == [loaded.hidden_act] == ["silu"]


def test_what_is_not_here_and_not_the_default_is_not_guessed_at() -> None:
    with pytest.raises(GeoError, match="not in the local Hugging Face cache"):
        seconds_per_picture(Model(backbone_name="somebody/unknown"), CPU, torch.float32)
