"""A model directory to an image tower in memory: its settings, exactly the tensors that are hashed, and nothing else."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.backbones.families import CLIP, GEOCLIP, SIGLIP2, TIMM, Family, VisionTower, need_timm
from geo_embed.backbones.function import Function, make_config, read_function
from geo_embed.backbones.weights import TowerWeights, hash_tensors, read_weights
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch

_TIMM_CLASSIFIERS = re.compile(r"(timm_model\.)?head(_dist)?\.")
# QuickGELU's constant, x·σ(1.702 x): Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.
_QUICK_GELU = 1.702
_BEFORE, _AFTER = re.compile(r".*\.mlp\.fc1\.(weight|bias)"), re.compile(r".*\.mlp\.fc2\.weight")
_HINT = "save the model again: its file is incomplete, or it is not the model its config.json describes"


def load_tower(
    directory: Path, dtype: "torch.dtype", features: Sequence[str], size: tuple[int, int], *, trainable: bool
) -> tuple[VisionTower, Function, str]:
    """The image tower alone, in eval mode; what it computes, and the sha256 of the very tensors that it was made of.

    Args:
        directory: a model directory.
        dtype: precision of its weights.
        features: that it has to give.
        size: height and width of the pictures that it has to take.
        trainable: give it its tensors as they are, for an optimizer to change; else it may compute the same with fewer steps.

    Raises:
        GeoError: weights that are missing, cut short, of other shapes, or more than the tower has; settings that no tower
            can have, or of another tower than the weights are; pictures that it can't take.
    """
    function = read_function(directory)
    weights = read_weights(directory, copy=True)
    outline = _outline(directory, function, weights)
    # A NaFlex tower works its position embeddings out of numbers, which an outline has none of.
    if function.family is not SIGLIP2:
        _try_out(outline, function.family, features, size, directory)
    sha256 = hash_tensors(weights)
    built = function if trainable else without_quick_gelu(function)
    if built != function:
        weights = _fold_quick_gelu(weights)
    tower, info = _build(directory, built, weights, dtype)

    # A layer that is not in the file would start from random numbers, and every embedding with it.
    missing = sorted(info["missing_keys"])
    if missing:
        raise GeoError(
            f"{len(missing)} of the vision tower's weights are missing, {missing[0]} first",
            where=directory,
            hint=_HINT,
        )
    mismatched = sorted(info["mismatched_keys"], key=str)
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise GeoError(
            f"{name} is {_times(stored)} in the file and {_times(wanted)} by config.json",
            where=directory,
            hint=_HINT,
        )
    # A layer that the tower has no place for is another model's.
    extra = sorted(name for name in info["unexpected_keys"] if not _TIMM_CLASSIFIERS.match(name))
    if extra:
        raise GeoError(
            f"{len(extra)} weights too many for the vision tower, {extra[0]} first",
            where=directory,
            hint=_HINT,
        )
    if function.family is GEOCLIP:
        _add_geoclip(tower, weights, directory)
    tower = tower.to(dtype).eval()
    if function.family is SIGLIP2:
        _try_out(tower, function.family, features, size, directory)
    return tower, function, sha256


def without_quick_gelu(function: Function) -> Function:
    """What a tower that isn't trained is built as: a CLIP has SiLU in place of QuickGELU, one pass over the activations in place of three."""
    if function.family not in (CLIP, GEOCLIP) or function.settings["hidden_act"] != "quick_gelu":
        return function
    return replace(function, settings=function.settings | {"hidden_act": "silu"})


def _fold_quick_gelu(weights: TowerWeights) -> TowerWeights:
    """Weights of a CLIP with QuickGELU for the same with SiLU: x·σ(1.702 x) = silu(1.702 x) / 1.702.

    The layer before takes the factor, the one after takes it back. Weights are changed in float32, before they are rounded to the
    tower's precision: that happens once either way.
    """
    tensors = dict(weights.tensors)
    for name, tensor in tensors.items():
        for pattern, factor in ((_BEFORE, _QUICK_GELU), (_AFTER, 1 / _QUICK_GELU)):
            if pattern.fullmatch(name):
                tensors[name] = replace(tensor, values=tensor.values.float() * factor)
    return replace(weights, tensors=tensors)


def _try_out(
    tower: VisionTower, family: Family, features: Sequence[str], size: tuple[int, int], directory: Path
) -> None:
    """Embed a grey picture: what the tower can't take is found here, and not in the middle of an extraction."""
    import torch

    parameter = next(iter(tower.parameters()))
    try:
        with torch.inference_mode():
            pixels = torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device)
            output = family.run(tower, pixels)
            for name in features:
                family.features[name](tower, output)
    # The towers check what they are given in their own ways, or fail on it.
    except Exception as error:
        raise GeoError(
            f"the tower can't embed pictures of {size[0]} × {size[1]}: {_reason(error)}",
            where=directory,
            hint="config.json and preprocessor_config.json have to be of one model: image_size against crop_size",
        ) from error


def _outline(directory: Path, function: Function, weights: TowerWeights) -> VisionTower:
    """The tower without its numbers. However large config.json says that it is, the files have to hold one of about that size."""
    import torch
    import transformers

    layers = function.settings.get("num_hidden_layers") or function.settings["model_args"].get("depth", 0)
    if not isinstance(layers, int) or layers > len(weights.tensors):
        raise GeoError(
            f"config.json says {layers!r:.40} layers, and the files hold {len(weights.tensors):,} tensors in all",
            where=directory,
            hint=_HINT,
        )
    if function.family is TIMM:
        need_timm(directory)
    config = make_config(function, directory)
    try:
        # On this device, parameters have shapes and take no memory.
        with torch.device("meta"):
            outline = getattr(transformers, function.family.tower)(config).eval()
        needed = sum(parameter.numel() for parameter in outline.parameters())
    # The classes check their settings in their own ways, or fail on what they don't check.
    except Exception as error:
        raise GeoError(
            f"a {function.family.tower} can't be made by these settings: {_reason(error)}",
            where=directory / "config.json",
            hint="upgrade timm: pip install -U timm" if function.family is TIMM else "",
        ) from error
    held = sum(tensor.values.numel() for tensor in weights.tensors.values())
    if needed > 2 * held:
        raise GeoError(
            f"config.json describes a tower of {needed:,} numbers, and the files hold {held:,} of it",
            where=directory,
            hint=_HINT,
        )
    return outline


def _build(
    directory: Path, function: Function, weights: TowerWeights, dtype: "torch.dtype"
) -> tuple[VisionTower, dict[str, Any]]:
    """The tower with its weights, by transformers, which knows what its classes called their tensors in earlier versions."""
    import transformers

    try:
        tower, info = getattr(transformers, function.family.tower).from_pretrained(
            None,
            config=make_config(function, directory),
            state_dict={name: tensor.values for name, tensor in weights.tensors.items()},
            dtype=dtype,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise GeoError(
            f"the weights can't be loaded: {_reason(error)}", where=directory, hint=_HINT
        ) from error
    if function.family is TIMM and (
        not hasattr(tower.timm_model, "blocks") or not getattr(tower.timm_model, "global_pool", "")
    ):
        raise GeoError(
            f"{tower.config.architecture} is no vision transformer with a pooling of its own",
            where=directory / "config.json",
            hint="name one of timm's ViTs, with global_pool token, avg, max or map",
        )
    loaded: tuple[VisionTower, dict[str, Any]] = tower, info
    return loaded


def _add_geoclip(tower: VisionTower, weights: TowerWeights, directory: Path) -> None:
    """Let a CLIP's image_embeds be GeoCLIP's; everything else stays a CLIP tower."""
    from torch import nn

    tensors = weights.geoclip
    hidden, width = tensors["0.weight"].shape
    if width != tower.config.projection_dim:
        raise GeoError(
            f"GeoCLIP's layers take {width} numbers, the CLIP beside them gives {tower.config.projection_dim}",
            where=directory,
            hint="they belong on CLIP ViT-L/14, projected to 768",
        )
    mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, tensors["2.weight"].shape[0]))
    mlp.load_state_dict(tensors)
    tower.visual_projection = nn.Sequential(tower.visual_projection, *mlp)


def _reason(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"


def _times(shape: Any) -> str:
    return " × ".join(map(str, shape)) or "one number"
