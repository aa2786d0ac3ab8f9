"""A tiny CLIP with random weights, to look at the demo's country with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from geo_embed.files import replacing

if TYPE_CHECKING:
    import torch

_BACKBONE_SIZE = 96
# Spread of each random weight matrix's output for inputs of spread 1. Queries and keys are large enough for heads
# to look at different things, and the constant class token small enough not to drown what they saw.
_WEIGHT_SCALES: Final = {
    "class_embedding": 0.3,
    "position_embedding": 0.5,
    "q_proj.weight": 1.5,
    "k_proj.weight": 1.5,
    "v_proj.weight": 1.0,
    "out_proj.weight": 1.0,
    "fc1.weight": 1.5,
    "fc2.weight": 1.0,
    "visual_projection": 0.5,
    "bias": 0.1,
}


def write_backbone(directory: Path, *, seed: int = 0) -> None:
    """Write a tiny CLIP image tower with random weights as a Hugging Face directory.

    It has the interface of the real one: `CLIPVisionModelWithProjection.from_pretrained(directory)` gives
    (B, 768) `image_embeds` of (B, 3, 96, 96) pixels, and `CLIPImageProcessor.from_pretrained(directory)` makes
    those pixels. Nothing in it was trained: the scales below only keep colour and texture alive on their way
    through the layers, as a random projection does.

    Args:
        directory: made where it is missing; gets config.json, model.safetensors and preprocessor_config.json.
        seed: of the weights.
    """
    import torch
    from safetensors.torch import save
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        image_size=_BACKBONE_SIZE,
        patch_size=12,
        hidden_size=160,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=8,
        projection_dim=768,
        hidden_act="quick_gelu",
    )
    with torch.random.fork_rng(devices=[]):
        model = CLIPVisionModelWithProjection(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" in name:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
            elif "patch_embedding" in name:
                weight.copy_(_smooth_filters(weight.shape, generator))
            else:
                scale = next(value for part, value in _WEIGHT_SCALES.items() if part in name)
                fan_in = weight.shape[-1] if name.endswith("weight") and "embedding" not in name else 1
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale / fan_in**0.5)
    directory.mkdir(parents=True, exist_ok=True)
    # save_pretrained would draw a progress bar.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    _write(directory / "model.safetensors", save(weights, metadata={"format": "pt"}))
    config.architectures = [type(model).__name__]
    _write(directory / "config.json", config.to_json_string().encode())
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": _BACKBONE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": _BACKBONE_SIZE, "width": _BACKBONE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    _write(directory / "preprocessor_config.json", json.dumps(preprocessing, indent=2).encode() + b"\n")


def _smooth_filters(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Random patch filters (out, 3, P, P) whose power falls with frequency, as that of pictures does."""
    import torch

    side = shape[-1]
    frequency = torch.arange(side, dtype=torch.float32)
    basis = torch.cos(torch.pi / side * (frequency + 0.5)[None, :] * frequency[:, None]) * (2 / side) ** 0.5
    basis[0] *= 0.5**0.5
    power = 1 / (1 + 1.5 * torch.hypot(frequency[:, None], frequency[None, :]))
    coefficients = torch.randn(tuple(shape), generator=generator) * power
    return 1.6 / side * torch.einsum("ocuv,ux,vy->ocxy", coefficients, basis, basis)


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
