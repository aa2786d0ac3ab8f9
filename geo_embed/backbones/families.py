"""Families of image towers: what each calls its parts and its settings, and which vector is its embedding.

A model's own config.json says which family it is of. What `image_embeds`, `pooler_output` and `token_mean` mean to each:

| family | `image_embeds` | `pooler_output` | `token_mean`: the mean over all tokens |
|---|---|---|---|
| CLIP | the pooled state, projected | the CLS token after the last norm, before the projection | as the last layer leaves them, CLS included, no norm |
| GeoCLIP | CLIP's projection, passed through GeoCLIP's own layers | it has none | it has none |
| SigLIP, SigLIP 2 | the attention-pooling head's output; there is no projection | the same | after the last norm; there is no CLS |
| DINOv2, DINOv3 | the CLS token after the last norm | the same | after the last norm, CLS and registers included |
| timm's ViTs | what the model's own pooling and norm give its classifier | the same | as `forward_features` gives them, with whatever norm the model has there |

CLIP's `token_mean` is what PIGEON trains on: its code takes `last_hidden_state.mean(dim=1)` of a `CLIPVisionModel` (LukasHaas/PIGEON,
models/clip_embedder.py and models/super_guessr.py), and that state has not passed `post_layernorm`, which only the CLS token does.

A GeoCLIP directory is a CLIP directory with its image encoder's layers beside the CLIP, as the geoclip package ships
them (`image_encoder_mlp_weights.pth`) or as `geoclip_mlp.safetensors`; the four tensors have the same names in both.
A SigLIP 2 of the NaFlex kind (model_type siglip2) is given squares of its number of patches, which is what its own
processor makes of a square picture; other pictures are squeezed, where its processor would keep their aspect.
DINOv3's processor makes floats before it resizes; pixels here are resized as bytes, within one grey level of it.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from geo_embed.backbones.tensors import read_tensors
from geo_embed.errors import GeoError
from geo_embed.files import read_json

if TYPE_CHECKING:
    import torch

# tqdm warns in a notebook without ipywidgets of bars that `quiet_transformers` keeps away.
warnings.filterwarnings("ignore", message="IProgress not found")

# transformers has no types of its own: one of the classes that the families below name.
VisionTower = Any

# Vicente Vivanco et al., GeoCLIP (NeurIPS 2023): Linear, ReLU, Linear; these are nn.Sequential's own names.
_MLP_TENSORS = ("0.weight", "0.bias", "2.weight", "2.bias")
_MLP_SHIPPED, MLP_SAVED = "image_encoder_mlp_weights.pth", "geoclip_mlp.safetensors"

# Kinds of settings. No tower that exists comes near these bounds; what a file claims is bounded by its tensors as well.
_Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
_CountOrNone = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
_Sides = _Count | Annotated[list[_Count], Field(min_length=2, max_length=2)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
_Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_Flag = Annotated[bool, Field(strict=True)]
_Text = Annotated[str, Field(strict=True, min_length=1, max_length=100)]
# Of timm's own registry: with a colon in it, timm would look for the model on a hub or in another directory.
_Architecture = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.]{1,200}$")]
_Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Family:
    """One kind of model, as an image tower.

    Attributes:
        model_types: what its config.json may call it.
        config, tower: the classes of its tower's settings and of its tower in transformers.
        tensors: the tower's tensors in a file; group 1 is the name by which they enter the hash.
        processor: what its preprocessor file calls the image processor.
        layers: where the transformer's layers are in the tower.
        after: what follows them, where it is there.
        run: one pass: normalised pixels (B, 3, H, W) to all that its features are taken from.
        features: each embedding that it has, by name: the tower and what `run` gave to (B, D). None runs a layer again.
        settings: what of config.json makes the tower compute what it computes, by name, and of which kind each is.
        kept: further settings that a tower keeps, for its training and for being saved; no embedding depends on them.
        dim: its settings, its directory and a feature to D, without the weights.
    """

    model_types: tuple[str, ...]
    config: str
    tower: str
    tensors: re.Pattern[str]
    processor: str
    layers: str
    after: tuple[str, ...]
    run: "Callable[[VisionTower, torch.Tensor], Any]"
    features: "Mapping[str, Callable[[VisionTower, Any], torch.Tensor]]"
    settings: Mapping[str, Any]
    dim: "Callable[[Mapping[str, Any], Path, str], int]"
    kept: Mapping[str, Any] = field(default_factory=dict)

    def other_features(self, feature: str) -> tuple[str, ...]:
        """Its features beside one, less those that are the same numbers under another name."""
        return tuple(
            name
            for name, take in self.features.items()
            if take is not self.features[feature] and name != feature
        )


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
        f"a {kind or 'nameless'!r:.60} model can't be a backbone; those that can: {model_types}",
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


def mlp_tensors(directory: Path) -> "dict[str, torch.Tensor]":
    """GeoCLIP's own layers in a directory, by name; empty where it is no GeoCLIP.

    Raises:
        GeoError: the file can't be read, or doesn't hold two linear layers that follow one another.
    """
    path = _mlp_file(directory)
    if path is None:
        return {}
    try:
        stored = read_tensors(path, re.compile(""), copy=True)
    except GeoError as error:
        raise GeoError(
            f"GeoCLIP's layers can't be read: {error.what}",
            where=path,
            hint="copy the file again from the geoclip package",
        ) from error
    tensors = {name: tensor.values for name, tensor in stored.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if set(shapes) != set(_MLP_TENSORS) or not (
        len(shapes["0.weight"]) == len(shapes["2.weight"]) == 2
        and shapes["0.bias"] == shapes["0.weight"][:1] == shapes["2.weight"][1:]
        and shapes["2.bias"] == shapes["2.weight"][:1]
    ):
        raise GeoError(
            f"not GeoCLIP's two linear layers: {', '.join(f'{n} {list(s)}' for n, s in sorted(shapes.items())[:8])}",
            where=path,
            hint=f"it must hold {', '.join(_MLP_TENSORS)}, as the geoclip package ships them",
        )
    return tensors


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


def _mlp_file(directory: Path) -> Path | None:
    for name in (MLP_SAVED, _MLP_SHIPPED):
        if (directory / name).is_file():
            return directory / name
    return None


def need_timm(directory: Path) -> None:
    """Raise GeoError where timm can't be imported, with what to install."""
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


# ---------------------------------------------------------------- widths


def _clip_dim(settings: Mapping[str, Any], directory: Path, feature: str) -> int:
    return int(settings["projection_dim" if feature == "image_embeds" else "hidden_size"])


def _geoclip_dim(settings: Mapping[str, Any], directory: Path, feature: str) -> int:
    return int(mlp_tensors(directory)["2.weight"].shape[0])


def _hidden_size(settings: Mapping[str, Any], directory: Path, feature: str) -> int:
    if not settings.get("vision_use_head", True):
        raise GeoError(
            f"the model was saved without its pooling head, and has no {feature}",
            where=directory / "config.json",
            hint="name a model whose config.json doesn't say vision_use_head false",
        )
    return int(settings["hidden_size"])


def _timm_dim(settings: Mapping[str, Any], directory: Path, feature: str) -> int:
    need_timm(directory)
    import timm
    import torch

    try:
        with torch.device("meta"):
            model = timm.create_model(settings["architecture"], num_classes=0, **settings["model_args"])
        return int(model.num_features if feature == "token_mean" else model.head_hidden_size)
    # Each of its models checks its own arguments, or doesn't.
    except Exception as error:
        raise GeoError(
            f"timm can't make this model: {error}".splitlines()[0], where=directory / "config.json"
        ) from error


# ---------------------------------------------------------------- a pass, and what is taken from it


def _run(tower: VisionTower, pixels: "torch.Tensor") -> Any:
    return tower(pixel_values=pixels)


def _run_timm(tower: VisionTower, pixels: "torch.Tensor") -> Any:
    return tower(pixel_values=pixels, do_pooling=True)


def _run_patches(tower: VisionTower, pixels: "torch.Tensor") -> Any:
    """NaFlex takes a picture as a list of patches, row by row, each pixel's channels together."""
    import torch

    size = tower.config.patch_size
    rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
    count = len(pixels)
    patches = pixels.view(count, -1, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    return tower(
        pixel_values=patches.reshape(count, rows * columns, -1),
        pixel_attention_mask=torch.ones(count, rows * columns, dtype=torch.int64, device=pixels.device),
        spatial_shapes=torch.tensor([[rows, columns]], device=pixels.device).expand(count, 2),
    )


def _projected(tower: VisionTower, output: Any) -> "torch.Tensor":
    embeddings: torch.Tensor = output.image_embeds
    return embeddings


def _clip_pooled(tower: VisionTower, output: Any) -> "torch.Tensor":
    """The tower's own pooled state doesn't leave it: its last norm is applied to one token again."""
    pooled: torch.Tensor = tower.vision_model.post_layernorm(output.last_hidden_state[:, 0])
    return pooled


def _pooled(tower: VisionTower, output: Any) -> "torch.Tensor":
    pooled: torch.Tensor = output.pooler_output
    return pooled


def _token_mean(tower: VisionTower, output: Any) -> "torch.Tensor":
    """In float32, whatever the tower's precision: hundreds of tokens are summed."""
    import torch

    tokens: torch.Tensor = output.last_hidden_state
    return tokens.flatten(1, -2).mean(dim=1, dtype=torch.float32)


_POOLED: dict[str, Any] = {"image_embeds": _pooled, "pooler_output": _pooled, "token_mean": _token_mean}


# ---------------------------------------------------------------- the families

_VIT: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels"), _Count),
    **{"image_size": _Sides, "patch_size": _Sides, "hidden_act": _Text, "layer_norm_eps": _Share},
}
_DINOV2 = _VIT | {"mlp_ratio": _Count, "qkv_bias": _Flag, "use_swiglu_ffn": _Flag}
_SIGLIP = _VIT | {"intermediate_size": _Count, "vision_use_head": _Flag}
_DINO_DROPOUT: dict[str, Any] = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"), _Share
)

CLIP = Family(
    model_types=("clip", "clip_vision_model"),
    config="CLIPVisionConfig",
    tower="CLIPVisionModelWithProjection",
    tensors=re.compile(r"((?:vision_model|visual_projection)\.(?!.*position_ids$).*)"),
    processor="CLIPImageProcessor",
    layers="vision_model.encoder.layers",
    after=("vision_model.post_layernorm", "visual_projection"),
    run=_run,
    features={"image_embeds": _projected, "pooler_output": _clip_pooled, "token_mean": _token_mean},
    settings=_VIT | {"intermediate_size": _Count, "projection_dim": _Count},
    kept={"attention_dropout": _Share},
    dim=_clip_dim,
)
GEOCLIP = replace(CLIP, features={"image_embeds": _projected}, dim=_geoclip_dim)
SIGLIP = Family(
    model_types=("siglip", "siglip_vision_model"),
    config="SiglipVisionConfig",
    tower="SiglipVisionModel",
    tensors=re.compile(
        r"(?:vision_model\.)?((?:embeddings|encoder|post_layernorm|head)\.(?!.*position_ids$).*)"
    ),
    processor="SiglipImageProcessor",
    layers="encoder.layers",
    after=("post_layernorm", "head"),
    run=_run,
    features=_POOLED,
    settings=_SIGLIP,
    kept={"attention_dropout": _Share},
    dim=_hidden_size,
)
SIGLIP2 = replace(
    SIGLIP,
    model_types=("siglip2", "siglip2_vision_model"),
    config="Siglip2VisionConfig",
    tower="Siglip2VisionModel",
    processor="Siglip2ImageProcessor",
    run=_run_patches,
    settings={key: kind for key, kind in _SIGLIP.items() if key != "image_size"} | {"num_patches": _Count},
)
DINOV2 = Family(
    model_types=("dinov2",),
    config="Dinov2Config",
    tower="Dinov2Model",
    tensors=re.compile(r"(?:dinov2(?:_with_registers)?\.)?((?:embeddings|encoder|layernorm)\..*)"),
    processor="BitImageProcessor",
    layers="encoder.layer",
    after=("layernorm",),
    run=_run,
    features=_POOLED,
    settings=_DINOV2,
    kept=_DINO_DROPOUT | {"use_mask_token": _Flag},
    dim=_hidden_size,
)
DINOV2_REGISTERS = replace(
    DINOV2,
    model_types=("dinov2_with_registers",),
    config="Dinov2WithRegistersConfig",
    tower="Dinov2WithRegistersModel",
    settings=_DINOV2 | {"num_register_tokens": _CountOrNone},
    kept=_DINO_DROPOUT,
)
DINOV3 = replace(
    DINOV2,
    model_types=("dinov3_vit",),
    config="DINOv3ViTConfig",
    tower="DINOv3ViTModel",
    tensors=re.compile(r"(?:model\.)?((?:embeddings|layer|norm)\..*)"),
    processor="DINOv3ViTImageProcessor",
    layers="model.layer",
    after=("norm",),
    settings=_VIT
    | {"intermediate_size": _Count, "rope_theta": _Positive, "num_register_tokens": _CountOrNone}
    | dict.fromkeys(
        ("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "use_gated_mlp"), _Flag
    ),
    kept={"attention_dropout": _Share, "drop_path_rate": _Share}
    | dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"), _Positive | None),
)
TIMM = Family(
    model_types=("timm_wrapper",),
    config="TimmWrapperConfig",
    tower="TimmWrapperModel",
    tensors=re.compile(r"(?:timm_model\.)?(?!head(?:_dist)?\.)(.*)"),
    processor="TimmWrapperImageProcessor",
    layers="timm_model.blocks",
    after=("timm_model.norm", "timm_model.attn_pool", "timm_model.fc_norm", "timm_model.head"),
    run=_run_timm,
    features=_POOLED,
    settings={"architecture": _Architecture, "model_args": dict[str, _Scalar | list[_Scalar]] | None},
    kept={"pretrained_cfg": dict[str, Any]},
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
