"""What a backbone wants done to its pictures: read from the model's own files, and written beside a model that is saved."""

import math
from pathlib import Path
from typing import Any, Literal

from geo_embed.backbones.families import (
    CLIP,
    GEOCLIP,
    SIGLIP2,
    TIMM,
    VisionTower,
    family_of,
    quiet_transformers,
    tower_family,
)
from geo_embed.data.images import Preprocessing
from geo_embed.errors import GeoError
from geo_embed.files import read_json

# Torchvision's processors have twins that need only PIL, but for DINOv3's, whose defaults are given here.
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIPImageProcessor": ("CLIPImageProcessorPil", {}),
    "SiglipImageProcessor": ("SiglipImageProcessorPil", {}),
    "Siglip2ImageProcessor": ("Siglip2ImageProcessorPil", {}),
    "BitImageProcessor": ("BitImageProcessorPil", {}),
    "ViTImageProcessor": ("ViTImageProcessorPil", {}),
    "DINOv3ViTImageProcessor": ("ViTImageProcessorPil", _IMAGENET),
}


def read_preprocessing(directory: Path, *, exact: bool) -> Preprocessing:
    """What the model's own preprocessor file asks for; of a timm model, what its config.json says it was trained with.

    Args:
        directory: a model directory.
        exact: resize with PIL instead of torch.

    Raises:
        GeoError: no such file, or one that asks for more than resize, crop, scale and normalise.
    """
    path, config = directory / "preprocessor_config.json", directory / "config.json"
    family = family_of(directory) if config.is_file() else CLIP
    resize: Literal["torch", "pil"] = "pil" if exact else "torch"
    if family is TIMM:
        return _timm_preprocessing(config, resize)
    if not path.is_file():
        raise GeoError(
            "the model has no preprocessor_config.json",
            where=directory,
            hint=f"save it beside the model: {family.processor}.from_pretrained(…).save_pretrained(DIR)",
        )
    import transformers

    # The processor's own class fills in what the file leaves out; only what follows from its sizes is worked out here.
    content = read_json(path)
    kind = (
        str(content.get("image_processor_type") or family.processor).removesuffix("Fast").removesuffix("Pil")
    )
    # A CLIP's file has always been read as a CLIP's, by whatever name it goes.
    kind = CLIP.processor if family in (CLIP, GEOCLIP) else kind
    if kind not in _PROCESSORS:
        raise GeoError(
            f"a {kind} can't be followed; those that can: {', '.join(_PROCESSORS)}",
            where=path,
            hint="save the model with one of these image processors",
        )
    name, defaults = _PROCESSORS[kind]
    with quiet_transformers():
        defaults_used = {key: value for key, value in defaults.items() if key not in content}
        processor = getattr(transformers, name).from_pretrained(directory, **defaults_used)
    # What pictures are resized to, and then what is cropped from that.
    if kind == SIGLIP2.processor:
        side = math.isqrt(processor.max_num_patches) * processor.patch_size
        size = {"height": side, "width": side}
    else:
        size = {key: value for key, value in dict(processor.size or {}).items() if value}
    cropped = getattr(processor, "do_center_crop", None)
    crop = (
        {key: value for key, value in dict(processor.crop_size or {}).items() if value} if cropped else size
    )
    edge = size.get("shortest_edge")
    if not processor.do_resize or not {"height", "width"} <= set(crop) or (not edge and size != crop):
        raise GeoError(
            "the preprocessor gives pictures no fixed size",
            where=path,
            hint="set size and crop_size; where size has no shortest_edge, both must be the same",
        )
    mean = tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0)
    std = tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0)
    return Preprocessing(
        shortest_edge=int(edge) if edge else None,
        height=int(crop["height"]),
        width=int(crop["width"]),
        resample=int(processor.resample),
        scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resize=resize,
    )


def _timm_preprocessing(path: Path, resize: Literal["torch", "pil"]) -> Preprocessing:
    """timm's evaluation transform: resize so that the crop is `crop_pct` of it, then crop the centre.

    Where an odd number of pixels is left over, timm's crop may lie one pixel beside this one.
    """
    trained = read_json(path).get("pretrained_cfg") or {}
    filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
    # What a file leaves out is as in timm.data.resolve_data_config.
    _, height, width = trained.get("input_size") or (3, 224, 224)
    resample = filters.get(trained.get("interpolation") or "bicubic")
    mode, share = trained.get("crop_mode") or "center", float(trained.get("crop_pct") or 0.875)
    squashed = mode == "squash" and share == 1
    if resample is None or not (squashed or (mode == "center" and height == width)):
        raise GeoError(
            f"timm's crop_mode {mode!r} of {height} × {width} at crop_pct {share} by {trained.get('interpolation')} "
            "can't be followed",
            where=path,
            hint="crop_mode center on a square, or squash at crop_pct 1, by bicubic, bilinear, lanczos or nearest",
        )
    mean, std = (
        trained.get(key) or default
        for key, default in (("mean", _IMAGENET["image_mean"]), ("std", _IMAGENET["image_std"]))
    )
    return Preprocessing(
        shortest_edge=None if squashed else math.floor(height / share),
        height=int(height),
        width=int(width),
        resample=resample,
        scale=1 / 255,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resize=resize,
    )


def describe_preprocessing(tower: VisionTower, spec: Preprocessing) -> dict[str, Any]:
    """The preprocessor file that `read_preprocessing` reads `spec` from, for a model of this tower; empty for timm."""
    family = tower_family(tower)
    if family is TIMM:
        return {}
    content: dict[str, Any] = {
        "image_processor_type": family.processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": spec.resample,
        "do_rescale": True,
        "rescale_factor": spec.scale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    if family is SIGLIP2:
        patch = tower.config.patch_size
        return content | {
            "patch_size": patch,
            "max_num_patches": (spec.height // patch) * (spec.width // patch),
        }
    fixed = {"height": spec.height, "width": spec.width}
    if spec.shortest_edge is None:
        return content | {"size": fixed, "do_center_crop": False}
    size = {"shortest_edge": spec.shortest_edge}
    return content | {"size": size, "do_center_crop": True, "crop_size": fixed}
