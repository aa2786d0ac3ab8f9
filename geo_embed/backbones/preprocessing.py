"""What a backbone wants done to its pictures: read from the model's own files, and written beside a model that is saved.

Every key of a preprocessor file is followed as transformers' own image processor follows it, or refused by name:

| keys | |
|---|---|
| `size`, `crop_size`, `do_resize`, `do_center_crop`, `default_to_square`, `use_square_size` | followed, where every picture ends with the same height and width |
| `resample`, `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`, `image_std` | followed; one number stands for all three channels |
| `patch_size`, `max_num_patches` | followed for SigLIP 2 |
| `do_convert_rgb` | pictures are RGB either way: `false` changes nothing where transformers gives a result at all |
| `do_pad`, `pad_size` | accepted where nothing is left to pad |
| `do_flip_channel_order`, `offset`, `crop_pct`, `size_divisor`, and any other step (`do_…`) that is asked for | refused |
| all others (`processor_class`, `_valid_processor_keys`, `return_tensors`, …) | ignored: transformers' processors don't read them for pixels |

What a file leaves out, the processor's own class fills in. `null` is no such thing: it switches a step off, and is refused where a
step that is on needs a value.
"""

import json
import math
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geo_embed.backbones.families import (
    CLIP,
    GEOCLIP,
    SIGLIP,
    SIGLIP2,
    TIMM,
    Family,
    VisionTower,
    family_of,
    quiet_transformers,
    tower_family,
)
from geo_embed.data.images import Preprocessing
from geo_embed.errors import GeoError
from geo_embed.files import read_json, validated

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
# What the configurations of CLIP's and SigLIP's towers take where a file is silent.
_USUAL_IMAGE_SIZE, _USUAL_PATCH_SIZE = 224, 16
# A picture of this many pixels a side is 50 MB, and hundreds are on their way at once.
_LARGEST_SIDE = 4096
# Steps of other processors that are asked for under names that don't begin with do_.
_OTHER_STEPS = ("offset", "rescale_offset", "crop_pct", "size_divisor", "size_divisibility", "max_size")

_Side = Annotated[int, Field(ge=1, le=_LARGEST_SIDE)]
_Pair = Annotated[list[_Side], Field(min_length=2, max_length=2)]
# Wide of every number that makes sense, and far from those that float32 has no place for.
_Number = Annotated[float, Field(ge=-1e6, le=1e6)]
_Factor = Annotated[float, Field(ge=1e-6, le=1e6)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


_Schema = TypeVar("_Schema", bound=_Strict)


class _Edges(_Strict):
    shortest_edge: _Side
    longest_edge: _Side | None = None


class _Sides(_Strict):
    height: _Side
    width: _Side


_SIZE = f"whole numbers from 1 to {_LARGEST_SIDE}: one, [height, width], or an object of height and width"
_SWITCH = Field(None, description="true or false")
_CHANNELS = "a number, or three, one for each channel"


class _PreprocessorFile(_Strict):
    """The keys that decide about pixels."""

    model_config = ConfigDict(extra="ignore")

    image_processor_type: str | None = Field(None, description="a name")
    feature_extractor_type: str | None = Field(None, description="a name")
    do_convert_rgb: bool | None = _SWITCH
    do_resize: bool | None = _SWITCH
    do_center_crop: bool | None = _SWITCH
    do_rescale: bool | None = _SWITCH
    do_normalize: bool | None = _SWITCH
    do_pad: bool | None = _SWITCH
    default_to_square: bool | None = _SWITCH
    use_square_size: bool | None = _SWITCH
    size: _Side | _Pair | _Edges | _Sides | None = Field(
        None, description=f"{_SIZE}, or of shortest_edge, with or without longest_edge"
    )
    crop_size: _Side | _Pair | _Sides | None = Field(None, description=_SIZE)
    pad_size: _Side | _Pair | _Sides | None = Field(None, description=_SIZE)
    resample: Annotated[int, Field(ge=0, le=5)] | None = Field(
        None, description="PIL's number of a filter, 0 to 5"
    )
    rescale_factor: _Factor | None = Field(None, description="a number above zero (from 1e-6 to 1e6)")
    image_mean: _Number | Annotated[list[_Number], Field(min_length=3, max_length=3)] | None = Field(
        None, description=_CHANNELS
    )
    image_std: _Factor | Annotated[list[_Factor], Field(min_length=3, max_length=3)] | None = Field(
        None, description=f"{_CHANNELS}, above zero"
    )
    patch_size: _Side | None = Field(None, description=f"a whole number from 1 to {_LARGEST_SIDE}")
    max_num_patches: Annotated[int, Field(ge=1, le=_LARGEST_SIDE**2)] | None = Field(
        None, description="a whole number above zero"
    )


class _TimmFile(_Strict):
    """The keys of timm's `pretrained_cfg` that its evaluation transform goes by."""

    model_config = ConfigDict(extra="ignore")

    input_size: Annotated[tuple[Literal[3], _Side, _Side], Field(strict=False)] | None = Field(
        None, description=f"[3, height, width], up to {_LARGEST_SIDE}"
    )
    interpolation: str | None = Field(None, description="a name")
    crop_mode: str | None = Field(None, description="a name")
    crop_pct: Annotated[float, Field(ge=0.01, le=1)] | None = Field(
        None, description="a number from 0.01 to 1"
    )
    mean: Annotated[tuple[_Number, _Number, _Number], Field(strict=False)] | None = Field(
        None, description="three numbers"
    )
    std: Annotated[tuple[_Factor, _Factor, _Factor], Field(strict=False)] | None = Field(
        None, description="three numbers above zero"
    )


class _Recorded(_Strict):
    """What `Preprocessing.to_dict` leaves in a store."""

    model_config = ConfigDict(extra="ignore")

    shortest_edge: _Side | None
    height: _Side
    width: _Side
    resample: Annotated[int, Field(ge=0, le=5)]
    scale: _Factor
    mean: Annotated[tuple[_Number, _Number, _Number], Field(strict=False)]
    std: Annotated[tuple[_Factor, _Factor, _Factor], Field(strict=False)]
    resize: Literal["torch", "pil"]
    longest_edge: _Side | None = None


def recorded_preprocessing(content: object, where: Path) -> Preprocessing:
    """What a store says was done to its pictures. Raises GeoError where that makes no sense."""
    return Preprocessing(**validated(_Recorded, content, where).model_dump())


def read_preprocessing(directory: Path, *, exact: bool) -> Preprocessing:
    """What the model's own preprocessor file asks for; of a timm model, what its config.json says it was trained with.

    Args:
        directory: a model directory. Where its processor_config.json holds an image processor, as transformers 5 writes
            it, that counts; else its preprocessor_config.json does.
        exact: resize with PIL instead of torch.

    Raises:
        GeoError: no such file, or one that asks for more than resize, crop, scale and normalise; the key is named.
    """
    config = directory / "config.json"
    family = family_of(directory) if config.is_file() else CLIP
    resize: Literal["torch", "pil"] = "pil" if exact else "torch"
    if family is TIMM:
        return _timm_preprocessing(config, resize)
    path, within, content = _processor_file(directory, family)
    asked = _validated(_PreprocessorFile, content, path, within)
    _refuse_other_steps(content, path, within)

    # The processor's own class fills in what the file leaves out; only what follows from its sizes is worked out here.
    import transformers

    kind = _processor_kind(asked, family, path, within)
    name, defaults = _PROCESSORS[kind]
    named = {key: content[key] for key in asked.model_fields_set}
    with quiet_transformers():
        processor = getattr(transformers, name)(**(defaults | named))

    needed = {
        "do_resize": ("patch_size", "max_num_patches") if kind == SIGLIP2.processor else ("size", "resample"),
        "do_center_crop": ("crop_size",),
        "do_rescale": ("rescale_factor",),
        "do_normalize": ("image_mean", "image_std"),
    }
    for switch, keys in needed.items():
        for key in keys:
            if getattr(processor, switch, None) and getattr(processor, key, None) is None:
                raise GeoError(
                    f"{within}{key}: null, where {switch} needs {_PreprocessorFile.model_fields[key].description}",
                    where=path,
                    hint=f"set {key}, or {switch} to false",
                )

    # What pictures are resized to, and then what is cropped from that.
    if kind == SIGLIP2.processor:
        side = math.isqrt(processor.max_num_patches) * processor.patch_size
        size, cropped = {"height": side, "width": side}, False
    else:
        size, cropped = dict(processor.size or {}), bool(processor.do_center_crop)
    size = {key: value for key, value in size.items() if value}
    crop = dict(processor.crop_size or {}) if cropped else size
    edge = size.get("shortest_edge")
    wrong = ""
    if not processor.do_resize:
        wrong = f"{within}do_resize: false gives pictures no fixed size"
    elif not {"height", "width"} <= set(crop):
        wrong = f"{within}{'crop_size' if cropped else 'size'}: {crop} gives pictures no fixed size"
    elif not edge and size != crop:
        wrong = (
            f"{within}size: {size}, of which {within}crop_size takes {crop}: no fixed size that both agree on"
        )
    if wrong:
        raise GeoError(
            wrong,
            where=path,
            hint="set size and crop_size; where size has no shortest_edge, both must be the same",
        )
    if processor.do_pad and processor.pad_size is not None and dict(processor.pad_size) != crop:
        raise GeoError(
            f"{within}pad_size: {dict(processor.pad_size)} around {crop} can't be followed",
            where=path,
            hint="leave do_pad away",
        )
    return Preprocessing(
        shortest_edge=edge or None,
        longest_edge=size.get("longest_edge"),
        height=crop["height"],
        width=crop["width"],
        resample=int(processor.resample),
        scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=_by_channel(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
        std=_by_channel(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        resize=resize,
    )


def _shown(value: object) -> str:
    """A value of a JSON file, as it stands there, shortened."""
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)


def check_tower_takes(directory: Path, spec: Preprocessing) -> None:
    """Raise GeoError, with file and key, where a model's pictures are not of the size that its tower takes.

    DINOv2 and DINOv3 take pictures of any size, CLIP and SigLIP of their `image_size` alone, a NaFlex SigLIP 2 what its
    `patch_size` divides.
    """
    config = directory / "config.json"
    family = family_of(directory)
    if family not in (CLIP, GEOCLIP, SIGLIP, SIGLIP2):
        return
    settings = read_json(config)
    vision = settings.get("vision_config", settings)
    if not isinstance(vision, dict):
        raise GeoError(
            f"vision_config: {_shown(vision)}, where the vision tower's settings belong",
            where=config,
            hint="save the model again with model.save_pretrained(DIR)",
        )
    if family is SIGLIP2:
        patch = vision.get("patch_size", _USUAL_PATCH_SIZE)
        fits = isinstance(patch, int) and patch >= 1 and not (spec.height % patch or spec.width % patch)
        wanted = f"patch_size in config.json is {_shown(patch)}"
    else:
        # A whole model's file that describes no tower says nothing about its size.
        described = vision is not settings or str(settings.get("model_type")).endswith("_vision_model")
        side = vision.get("image_size", _USUAL_IMAGE_SIZE if described else spec.height)
        fits = (spec.height, spec.width) == (side, side)
        wanted = f"image_size in config.json is {_shown(side)}"
    if not fits:
        path, within, content = _processor_file(directory, family)
        keys = ("max_num_patches", "patch_size") if family is SIGLIP2 else ("crop_size", "size")
        named = [within + key for key in keys if content.get(key) is not None] or [within + keys[-1]]
        raise GeoError(
            f"{' and '.join(named)} give pictures of {spec.height} × {spec.width} pixels, where {wanted}",
            where=path,
            hint="the two files must be of one model: save both again, or correct the one that is wrong",
        )


def _processor_file(directory: Path, family: Family) -> tuple[Path, str, dict[str, Any]]:
    """The file that counts, the prefix of its keys where they are nested, and its image processor's keys."""
    nested, plain = directory / "processor_config.json", directory / "preprocessor_config.json"
    if nested.is_file():
        content = read_json(nested).get("image_processor")
        if isinstance(content, dict):
            return nested, "image_processor.", content
        if content is not None:
            raise GeoError(
                f"image_processor: {_shown(content)}, where an object is needed",
                where=nested,
                hint="save the processor again with processor.save_pretrained(DIR)",
            )
    if not plain.is_file():
        raise GeoError(
            "the model has no preprocessor_config.json, nor a processor_config.json with an image processor",
            where=directory,
            hint=f"save it beside the model: {family.processor}.from_pretrained(…).save_pretrained(DIR)",
        )
    return plain, "", read_json(plain)


def _validated(schema: type[_Schema], content: dict[str, Any], path: Path, within: str) -> _Schema:
    """The keys that a schema knows. Raises GeoError for the first that holds something else, by name."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        key = str(error.errors(include_url=False)[0]["loc"][0])
        wanted = schema.model_fields[key].description
        raise GeoError(
            f"{within}{key}: {_shown(content[key])}, where {wanted} can be followed",
            where=path,
            hint="correct the file, or save the model's processor again with save_pretrained(DIR)",
        ) from error


def _refuse_other_steps(content: dict[str, Any], path: Path, within: str) -> None:
    """Raise GeoError where a step of another processor is asked for: left out, it would give other pixels than were meant."""
    for key, value in content.items():
        is_step = key in _OTHER_STEPS or (key.startswith("do_") and key not in _PreprocessorFile.model_fields)
        # Labels are a matter of segmentation: no picture changes by them.
        if is_step and value and key != "do_reduce_labels":
            raise GeoError(
                f"{within}{key}: {_shown(value)} can't be followed",
                where=path,
                hint="an image processor may resize, crop the centre, rescale and normalise; remove the key if it does nothing",
            )


def _processor_kind(asked: _PreprocessorFile, family: Family, path: Path, within: str) -> str:
    """Which of `_PROCESSORS` a file is for: as it says, by today's name or that of a feature extractor, else the family's."""
    earlier = (asked.feature_extractor_type or "").replace("FeatureExtractor", "ImageProcessor")
    kind = asked.image_processor_type or earlier or family.processor
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if family in (CLIP, GEOCLIP) and (kind not in _PROCESSORS or kind == SIGLIP2.processor):
        # A CLIP's file has always been read as a CLIP's, by whatever unknown name it goes.
        return CLIP.processor
    if kind not in _PROCESSORS:
        key = "image_processor_type" if asked.image_processor_type else "feature_extractor_type"
        raise GeoError(
            f"{within}{key}: a {_shown(kind)} can't be followed; those that can: {', '.join(_PROCESSORS)}",
            where=path,
            hint="save the model with one of these image processors",
        )
    return kind


def _by_channel(number: float | tuple[float, ...] | list[float]) -> tuple[float, float, float]:
    """One number stands for all channels."""
    if isinstance(number, (int, float)):
        return (number, number, number)
    return (number[0], number[1], number[2])


def _timm_preprocessing(path: Path, resize: Literal["torch", "pil"]) -> Preprocessing:
    """timm's evaluation transform: resize so that the crop is `crop_pct` of it, then crop the centre.

    Where an odd number of pixels is left over, timm's crop may lie one pixel beside this one.
    """
    content = read_json(path).get("pretrained_cfg") or {}
    if not isinstance(content, dict):
        raise GeoError(f"pretrained_cfg: {_shown(content)}, where an object is needed", where=path)
    trained = _validated(_TimmFile, content, path, "pretrained_cfg.")
    filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
    # What a file leaves out is as in timm.data.resolve_data_config.
    _, height, width = trained.input_size or (3, 224, 224)
    resample = filters.get(trained.interpolation or "bicubic")
    mode, share = trained.crop_mode or "center", trained.crop_pct or 0.875
    squashed = mode == "squash" and share == 1
    if resample is None or not (squashed or (mode == "center" and height == width)):
        raise GeoError(
            f"timm's crop_mode {mode!r} of {height} × {width} at crop_pct {share} by {trained.interpolation} "
            "can't be followed",
            where=path,
            hint="crop_mode center on a square, or squash at crop_pct 1, by bicubic, bilinear, lanczos or nearest",
        )
    return Preprocessing(
        shortest_edge=None if squashed else math.floor(height / share),
        height=height,
        width=width,
        resample=resample,
        scale=1 / 255,
        mean=trained.mean or _by_channel(_IMAGENET["image_mean"]),
        std=trained.std or _by_channel(_IMAGENET["image_std"]),
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
    if spec.longest_edge is not None:
        size["longest_edge"] = spec.longest_edge
    return content | {"size": size, "do_center_crop": True, "crop_size": fixed}
