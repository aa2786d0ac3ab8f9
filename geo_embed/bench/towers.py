"""CLIP image towers of real sizes with random weights, and what they cost in arithmetic."""

from pathlib import Path
from typing import Any

from geo_embed.backbones.families import quiet_transformers

VIT_B_32 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 512,
}


def flop_per_image(vision: Any) -> float:
    """Floating-point operations of one picture through a CLIP vision tower, 2 per multiply-add."""
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    width, inner = vision.hidden_size, vision.intermediate_size
    layer = 8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * inner
    patches = 2 * tokens * 3 * vision.patch_size**2 * width
    return float(vision.num_hidden_layers * layer + patches + 2 * width * vision.projection_dim)


def write_tower(directory: Path, shape: dict[str, int]) -> None:
    """A Hugging Face directory of a tower of this shape, with its preprocessor."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    with quiet_transformers():
        CLIPVisionModelWithProjection(CLIPVisionConfig(**shape)).save_pretrained(directory)
        side = shape["image_size"]
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        processor.save_pretrained(directory)
