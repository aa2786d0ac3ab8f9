"""StreetCLIP and its kin: find, load, freeze, unfreeze, save, fingerprint. Only the vision tower is ever loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.backbones.families import VisionTower, quiet_transformers, save_tower, tower_family
from geo_embed.backbones.function import read_function
from geo_embed.backbones.loading import load_tower
from geo_embed.backbones.preprocessing import check_tower_takes, describe_preprocessing, read_preprocessing
from geo_embed.backbones.weights import find_backbone
from geo_embed.config import Model
from geo_embed.data.images import Preprocessing
from geo_embed.errors import GeoError
from geo_embed.files import replacing_directory, set_usual_mode, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Backbone:
    """A vision tower ready to embed.

    Attributes:
        name: as the user wrote it: a hub id or a directory.
        module: its tower (families.py says which class, by family), in eval mode, on `device`.
        preprocessing: what its pictures need.
        weights_sha256: of its tensors as stored.
        function: what it computes with them, as plain values.
        feature: which output is the embedding.
        features: what `embed_features` gives: the embedding first.
        dim: D, the embedding's width.
        device, dtype: where and in which precision it computes.
    """

    name: str
    module: VisionTower
    preprocessing: Preprocessing
    weights_sha256: str
    function: dict[str, Any]
    feature: str
    features: tuple[str, ...]
    dim: int
    device: "torch.device"
    dtype: "torch.dtype"


def load_backbone(
    model: Model,
    device: "torch.device",
    dtype: "torch.dtype",
    *,
    trainable: bool = False,
    further: Sequence[str] = (),
) -> Backbone:
    """Load the backbone that the settings name, frozen, in eval mode.

    Args:
        model: `backbone_name`, `feature`, `exact`.
        device: where it shall run.
        dtype: precision of its weights.
        trainable: with its weights as they are stored, to be unfrozen; else it may compute the same faster with others.
        further: features beside `feature` that a pass is to give as well.

    Raises:
        GeoError: not to be had, of no known family, without such a feature, or with weights missing or too many.
    """
    directory = find_backbone(model.backbone_name)
    features = (model.feature, *(name for name in further if name != model.feature))
    dim, *_ = (embedding_dim(directory, name) for name in features)
    preprocessing = read_preprocessing(directory, exact=model.exact)
    check_tower_takes(directory, preprocessing)
    with quiet_transformers():
        size = preprocessing.height, preprocessing.width
        tower, function, weights_sha256 = load_tower(directory, dtype, features, size, trainable=trainable)
    return Backbone(
        name=model.backbone_name,
        module=freeze(tower.to(device)),
        preprocessing=preprocessing,
        weights_sha256=weights_sha256,
        function=function.to_dict(),
        feature=model.feature,
        features=features,
        dim=dim,
        device=device,
        dtype=dtype,
    )


def save_backbone(backbone: Backbone, directory: Path) -> None:
    """Write a tower, trained or not, as a model directory that `load_backbone` and transformers load again.

    It holds config.json, model.safetensors, and preprocessor_config.json (a timm model keeps its preprocessing in
    config.json); a GeoCLIP's own layers lie in geoclip_mlp.safetensors. Weights are written in the precision that they
    have. The directory appears whole, in place of one that is there.

    Raises:
        GeoError: the disk is full or can't be written to; what was there before stays.
    """
    from safetensors import SafetensorError

    try:
        with replacing_directory(directory) as writing:
            with quiet_transformers():
                save_tower(backbone.module, writing)
            for weights in writing.glob("*.safetensors"):
                set_usual_mode(weights)
            preprocessing = describe_preprocessing(backbone.module, backbone.preprocessing)
            if preprocessing:
                write_json(writing / "preprocessor_config.json", preprocessing)
    except SafetensorError as error:
        raise GeoError(
            f"can't write the backbone: the disk may be full: {error}",
            where=directory,
            hint="free or unlock the disk",
        ) from error


def embed(backbone: Backbone, pixels: "torch.Tensor") -> "torch.Tensor":
    """Normalised pixels (B, 3, H, W) to raw embeddings (B, D), not scaled to unit length, with gradients if wanted.

    `image_embeds` is the family's usual embedding: for a CLIP the projected pooled state, what
    `CLIPModel.get_image_features` gives. `pooler_output` is the pooled state before the projection. What they are to the
    other families: see families.py.
    """
    family = tower_family(backbone.module)
    return family.features[backbone.feature](backbone.module, family.run(backbone.module, pixels))


def embed_features(backbone: Backbone, pixels: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """Normalised pixels (B, 3, H, W) to each of the backbone's `features`, (B, D) with a D of its own, all from one pass."""
    family = tower_family(backbone.module)
    output = family.run(backbone.module, pixels)
    return {name: family.features[name](backbone.module, output) for name in backbone.features}


def freeze(tower: VisionTower) -> VisionTower:
    """Stop every parameter from being trained."""
    return tower.requires_grad_(False)


def unfreeze(tower: VisionTower, last_layers: int | None = None) -> VisionTower:
    """Let parameters be trained: all of them, or only those of the last layers and what follows them.

    Args:
        tower: of any family.
        last_layers: how many transformer layers, counted from the output; the final norm, pooling and projection
            come along. None for everything, embeddings included, but for a mask token that no whole picture uses.

    Raises:
        GeoError: the tower has fewer layers.
    """
    if last_layers is None:
        tower.requires_grad_(True)
        for name, parameter in tower.named_parameters():
            # DINOv2 and DINOv3 have one for pretraining: without a gradient, it would hold up processes that exchange theirs.
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)
        return tower
    layers = blocks(tower)
    if not 0 <= last_layers <= len(layers):
        raise GeoError(f"can't unfreeze the last {last_layers} layers of {len(layers)}")
    freeze(tower)
    for part in (*layers[len(layers) - last_layers :], *_output_modules(tower)):
        part.requires_grad_(True)
    return tower


def blocks(tower: VisionTower) -> "list[nn.Module]":
    """The transformer's layers, from the input to the output."""
    return list(_trunk(tower).get_submodule(tower_family(tower).layers))


def layer_groups(tower: VisionTower) -> "list[list[nn.Parameter]]":
    """Every parameter once, from the input to the output: the embeddings, each layer, then norm, pooling and projection.

    With L layers these are L + 2 groups, so that group k of layer-wise decay is `rate · decay ** (L + 1 − k)`.
    """
    later = [list(layer.parameters()) for layer in blocks(tower)]
    later.append([p for part in _output_modules(tower) for p in part.parameters()])
    in_layers = {id(parameter) for group in later for parameter in group}
    return [[p for p in tower.parameters() if id(p) not in in_layers], *later]


def embedding_dim(directory: Path, feature: str) -> int:
    """D, without the weights. Raises GeoError where the model has no such feature."""
    function = read_function(directory)
    if feature not in function.family.features:
        raise GeoError(
            f"this model has no {feature}, only {', '.join(function.family.features)}",
            where=directory,
            hint=f"leave model.feature at {next(iter(function.family.features))}, and {feature} out of model.features",
        )
    with quiet_transformers():
        return function.family.dim(function.settings, directory, feature)


def _output_modules(tower: VisionTower) -> "list[nn.Module]":
    """What follows the layers: norm, pooling and projection, as far as the tower has them."""
    modules = []
    for path in tower_family(tower).after:
        parent, _, name = path.rpartition(".")
        module = getattr(_trunk(tower).get_submodule(parent), name, None)
        if module is not None:
            modules.append(module)
    return modules


def _trunk(tower: VisionTower) -> VisionTower:
    """Where a family's paths begin: in early versions of transformers 5, SigLIP's towers keep all of theirs one level deeper."""
    deeper = "vision_model" in dict(tower.named_children())
    return (
        tower.vision_model if deeper and not tower_family(tower).layers.startswith("vision_model.") else tower
    )
