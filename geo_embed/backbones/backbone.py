"""StreetCLIP and its kin: find, load, freeze, unfreeze, save, fingerprint. Only the vision tower is ever loaded."""

import hashlib
import json
import math
import mmap
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from geo_embed.backbones.families import (
    CLIP,
    GEOCLIP,
    MLP_SAVED,
    SIGLIP2,
    TIMM,
    VisionTower,
    family_of,
    load_tower,
    mlp_tensors,
    save_tower,
    tower_family,
)
from geo_embed.config import Model
from geo_embed.data.images import Preprocessing
from geo_embed.errors import GeoError
from geo_embed.files import read_json, set_usual_mode

if TYPE_CHECKING:
    import torch
    from torch import nn

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

_DOWNLOADED = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class Backbone:
    """A vision tower ready to embed.

    Attributes:
        name: as the user wrote it: a hub id or a directory.
        module: its tower (adapters.py says which class, by family), in eval mode, on `device`.
        preprocessing: what its pictures need.
        weights_sha256: of its tensors as stored.
        feature: which output is the embedding.
        dim: D, the embedding's width.
        device, dtype: where and in which precision it computes.
    """

    name: str
    module: VisionTower
    preprocessing: Preprocessing
    weights_sha256: str
    feature: str
    dim: int
    device: "torch.device"
    dtype: "torch.dtype"


def find_backbone(name: str, *, download: bool = True) -> Path:
    """The local directory of a backbone: `name` itself, else its place in the Hugging Face cache.

    Args:
        name: a model directory or a hub id.
        download: fetch a hub id that is not in the cache.

    Raises:
        GeoError: neither a model directory nor to be had, with the command that would fix it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    directory = Path(name)
    if directory.is_dir():
        if not (directory / "config.json").is_file() or not _weight_files(directory):
            raise GeoError(
                "no Hugging Face model here: it needs config.json and model.safetensors",
                where=directory,
                hint="save one with model.save_pretrained(DIR) and processor.save_pretrained(DIR)",
            )
        return directory
    reasons: list[str] = []
    for offline in (True, False) if download else (True,):
        for patterns in (_DOWNLOADED, ["*.json", "pytorch_model*.bin"]):
            try:
                found = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
            except HFValidationError as error:
                raise GeoError(
                    f"backbone {name!r} is neither a directory nor a Hugging Face id",
                    where="model.backbone_name",
                    hint="give a model directory that exists, or an id such as geolocal/StreetCLIP",
                ) from error
            # Whatever the hub client raises without a network (OSError, its own, or its HTTP library's) means the same.
            except Exception as error:
                reasons.append(f"{type(error).__name__}")
                break
            if (found / "config.json").is_file() and _weight_files(found):
                return found
    raise GeoError(
        f"the weights of backbone {name!r} are not in the local Hugging Face cache"
        + (f" and can't be downloaded ({reasons[-1]})" if download and reasons else ""),
        where="model.backbone_name",
        hint=f"with a network, run: hf download {name} — or name a model directory: --backbone DIR",
    )


def load_backbone(model: Model, device: "torch.device", dtype: "torch.dtype") -> Backbone:
    """Load the backbone that the settings name, frozen, in eval mode.

    Args:
        model: `backbone_name`, `feature`, `exact`.
        device: where it shall run.
        dtype: precision of its weights.

    Raises:
        GeoError: not to be had, of no known family, without such a feature, or with weights missing or too many.
    """
    directory = find_backbone(model.backbone_name)
    dim = embedding_dim(directory, model.feature)
    preprocessing = read_preprocessing(directory, exact=model.exact)
    with quiet_transformers():
        tower = load_tower(directory, dtype)
    return Backbone(
        name=model.backbone_name,
        module=freeze(tower.to(device)),
        preprocessing=preprocessing,
        weights_sha256=hash_weights(directory),
        feature=model.feature,
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

    # Two neighbours with hidden names: a directory can't replace another in one step.
    writing, replaced = (directory.with_name(f".{directory.name}.{end}") for end in ("writing", "replaced"))
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        with quiet_transformers():
            save_tower(backbone.module, writing)
        for weights in writing.glob("*.safetensors"):
            set_usual_mode(weights)
        asked = _describe_preprocessing(backbone)
        if asked:
            text = json.dumps(asked, indent=2) + "\n"
            (writing / "preprocessor_config.json").write_text(text, encoding="utf-8")
        shutil.rmtree(replaced, ignore_errors=True)
        if directory.exists():
            directory.rename(replaced)
        writing.rename(directory)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or f"the disk may be full: {error}"
        raise GeoError(
            f"can't write the backbone: {why}", where=directory, hint="free or unlock the disk"
        ) from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def embed(backbone: Backbone, pixels: "torch.Tensor") -> "torch.Tensor":
    """Normalised pixels (B, 3, H, W) to raw embeddings (B, D), not scaled to unit length, with gradients if wanted.

    `image_embeds` is the family's usual embedding: for a CLIP the projected pooled state, what
    `CLIPModel.get_image_features` gives. `pooler_output` is the pooled state before the projection, on which PIGEON
    trains. What they are to the other families: see adapters.py.
    """
    return tower_family(backbone.module).features[backbone.feature](backbone.module, pixels)


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
    return list(tower.get_submodule(tower_family(tower).layers))


def layer_groups(tower: VisionTower) -> "list[list[nn.Parameter]]":
    """Every parameter once, from the input to the output: the embeddings, each layer, then norm, pooling and projection.

    With L layers these are L + 2 groups, so that group k of layer-wise decay is `rate · decay ** (L + 1 − k)`.
    """
    later = [list(layer.parameters()) for layer in blocks(tower)]
    later.append([p for part in _output_modules(tower) for p in part.parameters()])
    known = {id(parameter) for group in later for parameter in group}
    return [[p for p in tower.parameters() if id(p) not in known], *later]


def embedding_dim(directory: Path, feature: str) -> int:
    """D, without the weights. Raises GeoError where the model has no such feature."""
    family = family_of(directory)
    if feature not in family.features:
        raise GeoError(
            f"this model has no {feature}, only {', '.join(family.features)}",
            where=directory,
            hint=f"leave model.feature at {next(iter(family.features))}",
        )
    with quiet_transformers():
        return family.dim(family, directory, feature)


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
    whose: Literal["torch", "pil"] = "pil" if exact else "torch"
    if family is TIMM:
        return _timm_preprocessing(config, whose)
    if not path.is_file():
        raise GeoError(
            "the model has no preprocessor_config.json",
            where=directory,
            hint=f"save it beside the model: {family.processor}.from_pretrained(…).save_pretrained(DIR)",
        )
    import transformers

    said = read_json(path)
    kind = str(said.get("image_processor_type") or family.processor).removesuffix("Fast").removesuffix("Pil")
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
        unsaid = {key: value for key, value in defaults.items() if key not in said}
        asked = getattr(transformers, name).from_pretrained(directory, **unsaid)
    if kind == SIGLIP2.processor:
        side = math.isqrt(asked.max_num_patches) * asked.patch_size
        size = {"height": side, "width": side}
    else:
        size = {key: value for key, value in dict(asked.size or {}).items() if value}
    cropped = getattr(asked, "do_center_crop", None)
    crop = {key: value for key, value in dict(asked.crop_size or {}).items() if value} if cropped else size
    edge = size.get("shortest_edge")
    if not asked.do_resize or not {"height", "width"} <= set(crop) or (not edge and size != crop):
        raise GeoError(
            "the preprocessor gives pictures no fixed size",
            where=path,
            hint="set size and crop_size; where size has no shortest_edge, both must be the same",
        )
    mean = tuple(asked.image_mean) if asked.do_normalize else (0.0, 0.0, 0.0)
    std = tuple(asked.image_std) if asked.do_normalize else (1.0, 1.0, 1.0)
    return Preprocessing(
        shortest_edge=int(edge) if edge else None,
        height=int(crop["height"]),
        width=int(crop["width"]),
        resample=int(asked.resample),
        scale=float(asked.rescale_factor) if asked.do_rescale else 1.0,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resize=whose,
    )


def hash_weights(directory: Path) -> str:
    """sha256 over the vision tower's tensors as stored: names, dtypes, shapes and bytes, in order of name.

    The text tower, a classifier, the file's name and its metadata don't enter: a full CLIP and its tower saved alone
    agree. Raises GeoError for a model of no known family.
    """
    digest = hashlib.sha256()
    wanted = family_of(directory).tensors
    with ExitStack() as opened:
        for name, dtype, shape, data in sorted(
            _stored_tensors(directory, wanted, opened), key=lambda tensor: tensor[0]
        ):
            digest.update(f"{name} {dtype} {shape}\n".encode())
            digest.update(data)
            data.release()
    return digest.hexdigest()


def fingerprint(fields: dict[str, Any]) -> str:
    """16 hex digits that name a store: sha256 over everything that changes an embedding, as canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


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


def _output_modules(tower: VisionTower) -> "list[nn.Module]":
    """What follows the layers: norm, pooling and projection, as far as the tower has them."""
    found = []
    for path in tower_family(tower).after:
        parent, _, name = path.rpartition(".")
        module = getattr(tower.get_submodule(parent), name, None)
        if module is not None:
            found.append(module)
    return found


def _timm_preprocessing(path: Path, resize: Literal["torch", "pil"]) -> Preprocessing:
    """timm's evaluation transform: resize so that the crop is `crop_pct` of it, then crop the centre.

    Where an odd number of pixels is left over, timm's crop may lie one pixel beside this one.
    """
    said = read_json(path).get("pretrained_cfg") or {}
    filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
    # What a file leaves out is as in timm.data.resolve_data_config.
    _, height, width = said.get("input_size") or (3, 224, 224)
    resample = filters.get(said.get("interpolation") or "bicubic")
    mode, share = said.get("crop_mode") or "center", float(said.get("crop_pct") or 0.875)
    squashed = mode == "squash" and share == 1
    if resample is None or not (squashed or (mode == "center" and height == width)):
        raise GeoError(
            f"timm's crop_mode {mode!r} of {height} × {width} at crop_pct {share} by {said.get('interpolation')} "
            "can't be followed",
            where=path,
            hint="crop_mode center on a square, or squash at crop_pct 1, by bicubic, bilinear, lanczos or nearest",
        )
    mean, std = (
        said.get(key) or default
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


def _describe_preprocessing(backbone: Backbone) -> dict[str, Any]:
    """What a preprocessor file has to say for `read_preprocessing` to give the backbone's again; nothing for timm."""
    family, spec = tower_family(backbone.module), backbone.preprocessing
    if family is TIMM:
        return {}
    said: dict[str, Any] = {
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
        patch = backbone.module.config.patch_size
        return said | {
            "patch_size": patch,
            "max_num_patches": (spec.height // patch) * (spec.width // patch),
        }
    fixed = {"height": spec.height, "width": spec.width}
    if spec.shortest_edge is None:
        return said | {"size": fixed, "do_center_crop": False}
    size = {"shortest_edge": spec.shortest_edge}
    return said | {"size": size, "do_center_crop": True, "crop_size": fixed}


def _weight_files(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("*.safetensors") if path.name != MLP_SAVED]
    return sorted(found) or sorted(directory.glob("pytorch_model*.bin"))


def _stored_tensors(
    directory: Path, wanted: re.Pattern[str], opened: ExitStack
) -> Iterator[tuple[str, str, list[int], memoryview]]:
    """Name, dtype, shape and bytes of each of the vision tower's tensors; nothing is copied out of the files."""
    import torch

    loaded = [(f"geoclip_mlp.{name}", tensor) for name, tensor in mlp_tensors(directory).items()]
    for path in _weight_files(directory):
        if path.suffix == ".safetensors":
            yield from _safetensors(path, wanted, opened)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            loaded += [(found[1], tensors[name]) for name in tensors if (found := wanted.match(name))]
    for name, tensor in loaded:
        data: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
        yield name, str(tensor.dtype), list(tensor.shape), memoryview(data)


def _safetensors(
    path: Path, wanted: re.Pattern[str], opened: ExitStack
) -> Iterator[tuple[str, str, list[int], memoryview]]:
    """Through a memory map: 8 bytes of length, a JSON header, the data."""
    with path.open("rb") as file:
        try:
            mapped = opened.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            start = 8 + int.from_bytes(mapped[:8], "little")
            header = json.loads(mapped[8:start])
        except ValueError as error:
            raise GeoError("not a safetensors file", where=path) from error
    whole = opened.enter_context(memoryview(mapped))
    for name, entry in header.items():
        if name != "__metadata__" and (found := wanted.match(name)):
            begin, end = entry["data_offsets"]
            yield found[1], entry["dtype"], entry["shape"], whole[start + begin : start + end]
