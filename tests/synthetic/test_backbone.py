"""The tiny CLIP has the interface of the real one, and is the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from small import Country, files
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from geo_embed.synthetic.backbone import write_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("backbone")
    write_backbone(directory)
    return directory


def test_the_backbone_is_a_clip_with_768_numbers_per_picture(backbone: Path, country: Country) -> None:
    processor = CLIPImageProcessor.from_pretrained(backbone)
    model, report = CLIPVisionModelWithProjection.from_pretrained(backbone, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pictures = [Image.open(path) for path in sorted(country.images().glob("*_north.jpg"))[:16]]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (16, 3, 96, 96)
    with torch.inference_mode():
        first, second = (model.eval()(pixel_values=pixels).image_embeds for _ in range(2))
    assert first.shape == (16, 768)
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    assert first.abs().max() < 100
    # Pictures must differ by far more than float16, the cache's precision, rounds away.
    assert first.std(dim=0).mean() > 100 * (first - first.half().float()).abs().mean()


def test_the_backbone_is_the_same_every_time_and_leaves_torchs_randomness_alone(
    backbone: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    write_backbone(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    write_backbone(tmp_path / "other", seed=1)
    assert files(tmp_path / "again") == files(backbone)
    assert sorted(files(backbone)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert (tmp_path / "other/model.safetensors").read_bytes() != (
        backbone / "model.safetensors"
    ).read_bytes()
