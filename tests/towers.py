"""A small tower of every family with random weights, as a directory that `load_backbone` takes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from geo_embed.backbones.backbone import Backbone, embed, load_backbone
from geo_embed.backbones.families import quiet_transformers
from geo_embed.config import Model

CPU = torch.device("cpu")
WIDTH, LAYERS, SIZE, PATCH = 32, 2, 32, 8
SIDES = {"height": SIZE, "width": SIZE}
SMALL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "patch_size": PATCH,
    "image_size": SIZE,
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def why_no_timm() -> str:
    """Empty where timm's models can be made here."""
    try:
        importlib.import_module("timm")
    except Exception as error:
        return f"timm can't be imported: {error}".splitlines()[0]
    return ""


NO_TIMM = why_no_timm()
TIMM = pytest.param("timm", marks=pytest.mark.skipif(bool(NO_TIMM), reason=NO_TIMM))


def random_numbers(module: nn.Module, seed: int = 3) -> nn.Module:
    """Every parameter drawn anew: a class's own start leaves biases, tokens and layer scales at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()


def write(directory: Path, model: nn.Module, processor: dict[str, object] | None) -> None:
    with quiet_transformers():
        random_numbers(model).save_pretrained(directory)
    if processor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))


CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIZE},
    "crop_size": SIDES,
}
SIGLIP_PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "size": SIDES,
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
NAFLEX_PROCESSOR = {
    "image_processor_type": "Siglip2ImageProcessor",
    "patch_size": PATCH,
    "max_num_patches": (SIZE // PATCH) ** 2,
}
DINOV2_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 40},
    "crop_size": SIDES,
    "do_center_crop": True,
    "resample": 3,
    "rescale_factor": 1 / 127.5,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
DINOV3_PROCESSOR = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SIDES}


def clip_config() -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(intermediate_size=64, projection_dim=24, **SMALL)


def clip(directory: Path) -> None:
    model = transformers.CLIPVisionModelWithProjection(clip_config())
    write(directory, model, CLIP_PROCESSOR)


def siglip(directory: Path) -> None:
    config = transformers.SiglipConfig(
        text_config=TEXT | {"projection_size": WIDTH}, vision_config=SMALL | {"intermediate_size": 64}
    )
    write(directory, transformers.SiglipModel(config), SIGLIP_PROCESSOR)


def siglip_tower(directory: Path) -> None:
    config = transformers.SiglipVisionConfig(intermediate_size=64, **SMALL)
    write(directory, transformers.SiglipVisionModel(config), SIGLIP_PROCESSOR)


def naflex(directory: Path) -> None:
    # Position embeddings of another grid than the pictures', so that they have to be resized.
    config = transformers.Siglip2VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        patch_size=PATCH,
        num_patches=25,
    )
    write(directory, transformers.Siglip2VisionModel(config), NAFLEX_PROCESSOR)


def dinov2(directory: Path) -> None:
    # Trained on larger pictures, as the real ones are: 518 pixels, where 224 are looked at.
    model = transformers.Dinov2Model(transformers.Dinov2Config(**(SMALL | {"image_size": 48})))
    write(directory, model, DINOV2_PROCESSOR)


def dinov2_registers(directory: Path) -> None:
    config = transformers.Dinov2WithRegistersConfig(num_register_tokens=3, **SMALL)
    write(directory, transformers.Dinov2WithRegistersModel(config), DINOV2_PROCESSOR)


def dinov3(directory: Path) -> None:
    config = transformers.DINOv3ViTConfig(intermediate_size=64, num_register_tokens=3, **SMALL)
    write(directory, transformers.DINOv3ViTModel(config), DINOV3_PROCESSOR)


def geoclip(directory: Path) -> None:
    clip(directory)
    mlp = random_numbers(nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 16)), 5)
    torch.save(mlp.state_dict(), directory / "image_encoder_mlp_weights.pth")


TIMM_CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {
        "embed_dim": WIDTH,
        "depth": LAYERS,
        "num_heads": 4,
        "img_size": SIZE,
        "patch_size": PATCH,
    },
    "num_classes": 7,
    "num_features": WIDTH,
    "pretrained_cfg": {
        "input_size": [3, SIZE, SIZE],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
        "crop_mode": "center",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
        "num_classes": 7,
    },
}


def timm(directory: Path) -> None:
    """As the hub has timm's: no model_type, timm's own names of tensors, and a classifier on top."""
    module: Any = importlib.import_module("timm")
    model = module.create_model("vit_tiny_patch16_224", num_classes=7, **TIMM_CONFIG["model_args"])
    directory.mkdir()
    save_file(random_numbers(model).state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(TIMM_CONFIG))


MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker
    for maker in (clip, geoclip, siglip, siglip_tower, naflex, dinov2, dinov2_registers, dinov3, timm)
}
ALL_TOWERS = [TIMM if name == "timm" else name for name in MAKERS]


def load(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    *,
    trainable: bool = False,
    further: Sequence[str] = (),
    **settings: object,
) -> Backbone:
    model = Model(backbone_name=str(directory), **settings)
    return load_backbone(model, CPU, dtype, trainable=trainable, further=further)


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def embedded(backbone: Backbone) -> torch.Tensor:
    with torch.inference_mode():
        return embed(backbone, pixels().to(backbone.dtype))
