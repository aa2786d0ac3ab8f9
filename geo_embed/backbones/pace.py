"""How long a backbone takes on this machine, from a few of its layers with random weights: whoever plans needn't have the real ones."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from geo_embed.backbones.families import CLIP, TIMM, quiet_transformers
from geo_embed.backbones.function import Function, make_config, read_function
from geo_embed.backbones.loading import without_quick_gelu
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.backbones.weights import find_backbone
from geo_embed.config import DEFAULT_BACKBONE, Model
from geo_embed.devices import keep_freed_memory
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch

# StreetCLIP's config.json, vision_config: CLIP ViT-L/14 at 336 px.
STREETCLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
# What comes before the layers and after them is timed with them: with two, it made the whole a twentieth slower than it is.
_LAYERS = 4
_PICTURES, _PASSES = 2, 3


def seconds_per_picture(model: Model, device: "torch.device", dtype: "torch.dtype") -> float:
    """Seconds that a backbone's layers take for one picture, decoded and resized: those of a few, times how many it has.

    Args:
        model: `backbone_name`, on this machine or the default one, and `feature`.
        device: where it would run.
        dtype: its precision.

    Raises:
        GeoError: what its layers are isn't known here: its config.json is not on this machine, or it is one of timm's.
    """
    import torch
    import transformers

    function, size, directory = _architecture(model)
    layers = function.settings["num_hidden_layers"]
    few = replace(function, settings=function.settings | {"num_hidden_layers": _LAYERS})
    # As extraction has it: the activations of a tower that isn't trained, in memory that is kept.
    few = without_quick_gelu(few)
    if device.type == "cpu":
        keep_freed_memory()
    with quiet_transformers():
        tower = getattr(transformers, few.family.tower)(make_config(few, directory)).eval().to(device, dtype)
    pixels = torch.zeros(_PICTURES, 3, *size, device=device, dtype=dtype)
    take = few.family.features[model.feature]

    def once() -> float:
        started = time.perf_counter()
        # Reading a number waits for the device.
        float(take(tower, few.family.run(tower, pixels))[0, 0])
        return time.perf_counter() - started

    with torch.inference_mode():
        # The first finds memory and kernels.
        once()
        seconds: float = min(once() for _ in range(_PASSES)) / _PICTURES * layers / _LAYERS
    return seconds


def _architecture(model: Model) -> tuple[Function, tuple[int, int], Path]:
    """What the tower computes, the height and width of its pictures, and its directory."""
    try:
        directory = find_backbone(model.backbone_name, download=False)
    except GeoError:
        if model.backbone_name != DEFAULT_BACKBONE:
            raise
        side = STREETCLIP["image_size"]
        settings = STREETCLIP | {"hidden_act": "quick_gelu"}
        return Function(CLIP, settings, {}), (side, side), Path(model.backbone_name)
    function = read_function(directory)
    if function.family is TIMM:
        raise GeoError(
            "how many layers one of timm's models has isn't known without building it", where=directory
        )
    spec = read_preprocessing(directory, exact=model.exact)
    return function, (spec.height, spec.width), directory
