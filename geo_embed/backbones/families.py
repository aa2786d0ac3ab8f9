"""Families of image towers: what each calls its parts, how it is loaded, and which vector is its embedding.

A model's own config.json says which family it is of. What `image_embeds` and `pooler_output` mean to each:

| family | `image_embeds` | `pooler_output` |
|---|---|---|
| CLIP | the pooled state, projected | the CLS token after the last norm, before the projection |
| GeoCLIP | CLIP's projection, passed through GeoCLIP's own layers | it has none |
| SigLIP, SigLIP 2 | the attention-pooling head's output; there is no projection | the same |
| DINOv2, DINOv3 | the CLS token after the last norm | the same |
| timm's ViTs | what the model's own pooling and norm give its classifier | the same |

A GeoCLIP directory is a CLIP directory with its image encoder's layers beside the CLIP, as the geoclip package ships
them (`image_encoder_mlp_weights.pth`) or as `geoclip_mlp.safetensors`; the four tensors have the same names in both.
A SigLIP 2 of the NaFlex kind (model_type siglip2) is given squares of its number of patches, which is what its own
processor makes of a square picture; other pictures are squeezed, where its processor would keep their aspect.
DINOv3's processor makes floats before it resizes; pixels here are resized as bytes, within one grey level of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.errors import GeoError
from geo_embed.files import read_json

if TYPE_CHECKING:
    import torch

if TYPE_CHECKING:
    import torch

# transformers has no types of its own: one of the classes that the families below name.
VisionTower = Any

# Vicente Vivanco et al., GeoCLIP (NeurIPS 2023): Linear, ReLU, Linear; these are nn.Sequential's own names.
_MLP_TENSORS = ("0.weight", "0.bias", "2.weight", "2.bias")
_MLP_SHIPPED, MLP_SAVED = "image_encoder_mlp_weights.pth", "geoclip_mlp.safetensors"
_TIMM_CLASSIFIERS = re.compile(r"timm_model\.head(_dist)?\.")


@dataclass(frozen=True)
class Family:
    """One kind of model, as an image tower.

    Attributes:
        model_types: what its config.json may call it.
        tower: the class of its tower in transformers.
        tensors: the tower's tensors in a file; group 1 is the name by which they enter the hash.
        processor: what its preprocessor file calls the image processor.
        layers: where the transformer's layers are in the tower.
        after: what follows them, where it is there.
        features: each embedding that it has, by name: normalised pixels (B, 3, H, W) to (B, D).
        load: directory and dtype to the tower and transformers' loading info.
        dim: family, directory and feature to D, without the weights.
    """

    model_types: tuple[str, ...]
    tower: str
    tensors: re.Pattern[str]
    processor: str
    layers: str
    after: tuple[str, ...]
    features: "Mapping[str, Callable[[VisionTower, torch.Tensor], torch.Tensor]]"
    load: "Callable[[Family, Path, torch.dtype], tuple[VisionTower, dict[str, Any]]]"
    dim: "Callable[[Family, Path, str], int]"


def family_of(directory: Path) -> Family:
    """The family of a model directory. Raises GeoError where its config.json names none that is known."""
    config = read_json(directory / "config.json")
    # timm's own files name an architecture of timm's and how it was trained, and no model_type.
    timm = "timm_wrapper" if {"architecture", "pretrained_cfg"} <= set(config) else None
    kind = config.get("model_type") or timm
    if kind in CLIP.model_types:
        return GEOCLIP if _mlp_file(directory) else CLIP
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    model_types = ", ".join(sorted({name for family in FAMILIES for name in family.model_types}))
    raise GeoError(
        f"a {kind or 'nameless'!r} model can't be a backbone; those that can: {model_types}",
        where=directory / "config.json",
        hint="name a model directory or id whose config.json has one of these as its model_type",
    )


def tower_family(tower: VisionTower) -> Family:
    """The family of a loaded tower. Raises GeoError where it is none that `load_tower` gives."""
    from torch import nn

    for family in FAMILIES:
        if type(tower).__name__ == family.tower:
            geoclip = family is CLIP and isinstance(tower.visual_projection, nn.Sequential)
            return GEOCLIP if geoclip else family
    raise GeoError(f"a {type(tower).__name__} is no backbone's tower")


def load_tower(directory: Path, dtype: "torch.dtype") -> VisionTower:
    """The image tower alone, in eval mode.

    Raises:
        GeoError: weights that are missing, cut short, of other shapes, or more than the tower has.
    """
    from safetensors import SafetensorError

    family = family_of(directory)
    try:
        tower, info = family.load(family, directory, dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise GeoError(f"the weights can't be loaded: {error}".splitlines()[0], where=directory) from error
    hint = "save the model again: its file is incomplete, or it is not the model its config.json describes"
    # A layer that is not in the file would start from random numbers, and every embedding with it.
    missing = sorted(info["missing_keys"])
    if missing:
        raise GeoError(
            f"{len(missing)} of the vision tower's weights are missing, {missing[0]} first",
            where=directory,
            hint=hint,
        )
    # A text tower or a classifier is left where it is; a layer that the tower has no place for is another model's.
    parts = {name for name, _ in tower.named_children()}
    extra = sorted(
        name
        for name in info["unexpected_keys"]
        if name.split(".")[0] in parts
        and not name.endswith("position_ids")
        and not _TIMM_CLASSIFIERS.match(name)
    )
    if extra:
        raise GeoError(
            f"{len(extra)} weights too many for the vision tower, {extra[0]} first",
            where=directory,
            hint=hint,
        )
    return tower.eval()


def mlp_tensors(directory: Path) -> "dict[str, torch.Tensor]":
    """GeoCLIP's own layers in a directory, by name; empty where it is no GeoCLIP.

    Raises:
        GeoError: the file can't be read, or doesn't hold two linear layers that follow one another.
    """
    path = _mlp_file(directory)
    if path is None:
        return {}
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    # Unpickling damaged bytes, or bytes that are no weights, may raise nearly anything.
    except Exception as error:
        raise GeoError(
            f"GeoCLIP's layers can't be read: {error}".splitlines()[0],
            where=path,
            hint="copy the file again from the geoclip package",
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if set(shapes) != set(_MLP_TENSORS) or not (
        len(shapes["0.weight"]) == len(shapes["2.weight"]) == 2
        and shapes["0.bias"] == shapes["0.weight"][:1] == shapes["2.weight"][1:]
        and shapes["2.bias"] == shapes["2.weight"][:1]
    ):
        raise GeoError(
            f"not GeoCLIP's two linear layers: {', '.join(f'{n} {list(s)}' for n, s in sorted(shapes.items()))}",
            where=path,
            hint=f"it must hold {', '.join(_MLP_TENSORS)}, as the geoclip package ships them",
        )
    checked: dict[str, torch.Tensor] = tensors
    return checked


def save_tower(tower: VisionTower, directory: Path) -> None:
    """Write config.json and model.safetensors, and GeoCLIP's layers beside them, into an existing directory."""
    if tower_family(tower) is not GEOCLIP:
        tower.save_pretrained(directory)
        return
    from safetensors.torch import save_file

    clip, mlp = {}, {}
    for name, tensor in tower.state_dict().items():
        number, _, last = name.removeprefix("visual_projection.").partition(".")
        if not name.startswith("visual_projection."):
            clip[name] = tensor
        elif number == "0":
            clip[f"visual_projection.{last}"] = tensor
        else:
            mlp[f"{int(number) - 1}.{last}"] = tensor.contiguous()
    tower.save_pretrained(directory, state_dict=clip)
    save_file(mlp, directory / MLP_SAVED, metadata={"format": "pt"})


# ---------------------------------------------------------------- loading


def _load(
    family: Family, directory: Path, dtype: "torch.dtype", **options: Any
) -> tuple[VisionTower, dict[str, Any]]:
    import transformers

    loaded: tuple[VisionTower, dict[str, Any]] = getattr(transformers, family.tower).from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **options
    )
    return loaded


def _load_clip(family: Family, directory: Path, dtype: "torch.dtype") -> tuple[VisionTower, dict[str, Any]]:
    from transformers import CLIPVisionConfig

    vision = CLIPVisionConfig.from_pretrained(directory)
    # A full CLIP may say the projection's width beside its towers alone.
    vision.projection_dim = _clip_dim(family, directory, "image_embeds")
    return _load(family, directory, dtype, config=vision)


def _load_geoclip(
    family: Family, directory: Path, dtype: "torch.dtype"
) -> tuple[VisionTower, dict[str, Any]]:
    from torch import nn

    tensors = mlp_tensors(directory)
    tower, info = _load_clip(family, directory, dtype)
    hidden, width = tensors["0.weight"].shape
    if width != tower.config.projection_dim:
        raise GeoError(
            f"GeoCLIP's layers take {width} numbers, the CLIP beside them gives {tower.config.projection_dim}",
            where=directory,
            hint="they belong on CLIP ViT-L/14, projected to 768",
        )
    mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, tensors["2.weight"].shape[0]))
    mlp.load_state_dict(tensors)
    # Its image_embeds are then GeoCLIP's, and everything else stays a CLIP tower.
    tower.visual_projection = nn.Sequential(tower.visual_projection, *mlp.to(dtype))
    return tower, info


def _load_timm(family: Family, directory: Path, dtype: "torch.dtype") -> tuple[VisionTower, dict[str, Any]]:
    _need_timm(directory)
    try:
        tower, info = _load(family, directory, dtype)
    except ImportError as error:
        raise GeoError(
            f"timm can't make this model: {error}".splitlines()[0],
            where=directory / "config.json",
            hint="upgrade timm: pip install -U timm",
        ) from error
    model = tower.timm_model
    if not hasattr(model, "blocks") or not getattr(model, "global_pool", ""):
        raise GeoError(
            f"{tower.config.architecture} is no vision transformer with a pooling of its own",
            where=directory / "config.json",
            hint="name one of timm's ViTs, with global_pool token, avg, max or map",
        )
    return tower, info


def _need_timm(directory: Path) -> None:
    try:
        import timm  # noqa: F401
    # Where torch and torchvision don't fit together, importing timm fails with whatever torchvision raises.
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "timm"
        raise GeoError(
            "this is a timm model, and timm "
            + ("is not installed" if absent else f"can't be imported: {error}".splitlines()[0]),
            where=directory,
            hint="pip install 'geo-embed[timm]'; it brings torchvision, whose build must be the one for your torch",
        ) from error


def _mlp_file(directory: Path) -> Path | None:
    for name in (MLP_SAVED, _MLP_SHIPPED):
        if (directory / name).is_file():
            return directory / name
    return None


# ---------------------------------------------------------------- widths


def _clip_dim(_: Family, directory: Path, feature: str) -> int:
    config = read_json(directory / "config.json")
    # A full CLIP keeps its vision settings in a group of their own, the projection's width beside them.
    vision = config.get("vision_config", config)
    if feature == "pooler_output":
        return int(vision.get("hidden_size", 768))
    return int(config.get("projection_dim", vision.get("projection_dim", 512)))


def _geoclip_dim(_: Family, directory: Path, feature: str) -> int:
    return int(mlp_tensors(directory)["2.weight"].shape[0])


def _hidden_size(family: Family, directory: Path, feature: str) -> int:
    import transformers

    # Files leave out what is a class's default, so that the class has to be asked.
    config = getattr(transformers, family.tower).config_class.from_pretrained(directory)
    if not getattr(config, "vision_use_head", True):
        raise GeoError(
            f"the model was saved without its pooling head, and has no {feature}",
            where=directory / "config.json",
            hint="name a model whose config.json doesn't say vision_use_head false",
        )
    return int(config.hidden_size)


def _timm_dim(_: Family, directory: Path, feature: str) -> int:
    _need_timm(directory)
    import timm
    import torch

    config = read_json(directory / "config.json")
    try:
        with torch.device("meta"):
            model = timm.create_model(
                config["architecture"], num_classes=0, **(config.get("model_args") or {})
            )
    except (RuntimeError, TypeError, ValueError) as error:
        raise GeoError(
            f"timm can't make this model: {error}".splitlines()[0], where=directory / "config.json"
        ) from error
    return int(model.head_hidden_size)


# ---------------------------------------------------------------- embeddings


def _projected(tower: VisionTower, pixels: "torch.Tensor") -> "torch.Tensor":
    embeddings: torch.Tensor = tower(pixel_values=pixels).image_embeds
    return embeddings


def _clip_pooled(tower: VisionTower, pixels: "torch.Tensor") -> "torch.Tensor":
    last_state: torch.Tensor = tower(pixel_values=pixels).last_hidden_state
    pooled: torch.Tensor = tower.vision_model.post_layernorm(last_state[:, 0])
    return pooled


def _pooled(tower: VisionTower, pixels: "torch.Tensor") -> "torch.Tensor":
    pooled: torch.Tensor = tower(pixel_values=pixels).pooler_output
    return pooled


def _timm_pooled(tower: VisionTower, pixels: "torch.Tensor") -> "torch.Tensor":
    pooled: torch.Tensor = tower(pixel_values=pixels, do_pooling=True).pooler_output
    return pooled


def _pooled_patches(tower: VisionTower, pixels: "torch.Tensor") -> "torch.Tensor":
    """NaFlex takes a picture as a list of patches, row by row, each pixel's channels together."""
    import torch

    size = tower.config.patch_size
    rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
    count = len(pixels)
    patches = pixels.view(count, -1, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    pooled: torch.Tensor = tower(
        pixel_values=patches.reshape(count, rows * columns, -1),
        pixel_attention_mask=torch.ones(count, rows * columns, dtype=torch.int64, device=pixels.device),
        spatial_shapes=torch.tensor([[rows, columns]], device=pixels.device).expand(count, 2),
    ).pooler_output
    return pooled


def _both(feature: "Callable[[VisionTower, torch.Tensor], torch.Tensor]") -> dict[str, Any]:
    return {"image_embeds": feature, "pooler_output": feature}


# ---------------------------------------------------------------- the families


CLIP = Family(
    model_types=("clip", "clip_vision_model"),
    tower="CLIPVisionModelWithProjection",
    tensors=re.compile(r"((?:vision_model|visual_projection)\.(?!.*position_ids$).*)"),
    processor="CLIPImageProcessor",
    layers="vision_model.encoder.layers",
    after=("vision_model.post_layernorm", "visual_projection"),
    features={"image_embeds": _projected, "pooler_output": _clip_pooled},
    load=_load_clip,
    dim=_clip_dim,
)
GEOCLIP = replace(CLIP, features={"image_embeds": _projected}, load=_load_geoclip, dim=_geoclip_dim)
SIGLIP = Family(
    model_types=("siglip", "siglip_vision_model"),
    tower="SiglipVisionModel",
    tensors=re.compile(
        r"(?:vision_model\.)?((?:embeddings|encoder|post_layernorm|head)\.(?!.*position_ids$).*)"
    ),
    processor="SiglipImageProcessor",
    layers="encoder.layers",
    after=("post_layernorm", "head"),
    features=_both(_pooled),
    load=_load,
    dim=_hidden_size,
)
SIGLIP2 = replace(
    SIGLIP,
    model_types=("siglip2", "siglip2_vision_model"),
    tower="Siglip2VisionModel",
    processor="Siglip2ImageProcessor",
    features=_both(_pooled_patches),
)
DINOV2 = Family(
    model_types=("dinov2",),
    tower="Dinov2Model",
    tensors=re.compile(r"(?:dinov2(?:_with_registers)?\.)?((?:embeddings|encoder|layernorm)\..*)"),
    processor="BitImageProcessor",
    layers="encoder.layer",
    after=("layernorm",),
    features=_both(_pooled),
    load=_load,
    dim=_hidden_size,
)
DINOV2_REGISTERS = replace(DINOV2, model_types=("dinov2_with_registers",), tower="Dinov2WithRegistersModel")
DINOV3 = replace(
    DINOV2,
    model_types=("dinov3_vit",),
    tower="DINOv3ViTModel",
    tensors=re.compile(r"(?:model\.)?((?:embeddings|layer|norm)\..*)"),
    processor="DINOv3ViTImageProcessor",
    layers="model.layer",
    after=("norm",),
)
TIMM = Family(
    model_types=("timm_wrapper",),
    tower="TimmWrapperModel",
    tensors=re.compile(r"(?:timm_model\.)?(?!head(?:_dist)?\.)(.*)"),
    processor="TimmWrapperImageProcessor",
    layers="timm_model.blocks",
    after=("timm_model.norm", "timm_model.attn_pool", "timm_model.fc_norm", "timm_model.head"),
    features=_both(_timm_pooled),
    load=_load_timm,
    dim=_timm_dim,
)
FAMILIES = (CLIP, SIGLIP, SIGLIP2, DINOV2, DINOV2_REGISTERS, DINOV3, TIMM)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' load reports and progress bars off people's screens."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
