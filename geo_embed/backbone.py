"""StreetCLIP and its kin: find, load, freeze, unfreeze, fingerprint. Only the vision tower is ever loaded."""

import hashlib
import json
import mmap
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.config import Model
from geo_embed.errors import GeoError
from geo_embed.images import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

# The vision tower's tensors, in a full CLIP as in a tower saved on its own.
_VISION_TENSORS = re.compile(r"(vision_model|visual_projection)\.(?!.*position_ids$)")
# transformers has no types of its own: a CLIPVisionModelWithProjection.
VisionTower = Any

_DOWNLOADED = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class Backbone:
    """A vision tower ready to embed.

    Attributes:
        name: as the user wrote it: a hub id or a directory.
        module: a `CLIPVisionModelWithProjection`, in eval mode, on `device`.
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
        GeoError: not to be had, not a CLIP, or with weights missing.
    """
    directory = find_backbone(model.backbone_name)
    config = _read_json(directory / "config.json")
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise GeoError(
            f"a {config.get('model_type', 'nameless')!r} model, where a CLIP is needed",
            where=directory,
            hint="name a CLIP directory, one whose config.json says model_type clip or clip_vision_model",
        )
    from safetensors import SafetensorError
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with quiet_transformers():
        try:
            vision = CLIPVisionConfig.from_pretrained(directory)
            # A full CLIP may say the projection's width beside its towers alone.
            vision.projection_dim = embedding_dim(directory, "image_embeds")
            module, info = CLIPVisionModelWithProjection.from_pretrained(
                directory, config=vision, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise GeoError(
                f"the weights can't be loaded: {error}".splitlines()[0], where=directory
            ) from error
    # A layer that is not in the file would start from random numbers, and every embedding with it.
    missing = sorted(info["missing_keys"])
    if missing:
        raise GeoError(
            f"{len(missing)} of the vision tower's weights are missing, {missing[0]} first",
            where=directory,
            hint="save the model again: its file is incomplete, or it is not the model its config.json describes",
        )
    module = freeze(module.eval().to(device))
    return Backbone(
        name=model.backbone_name,
        module=module,
        preprocessing=read_preprocessing(directory, exact=model.exact),
        weights_sha256=hash_weights(directory),
        feature=model.feature,
        dim=embedding_dim(directory, model.feature),
        device=device,
        dtype=dtype,
    )


def embed(backbone: Backbone, pixels: "torch.Tensor") -> "torch.Tensor":
    """Normalised pixels (B, 3, H, W) to raw embeddings (B, D), not scaled to unit length.

    `image_embeds` is the projected pooled state, what `CLIPModel.get_image_features` gives; `pooler_output` is the
    pooled state before the projection, on which PIGEON trains.
    """
    outputs = backbone.module(pixel_values=pixels)
    if backbone.feature == "image_embeds":
        embeddings: torch.Tensor = outputs.image_embeds
        return embeddings
    last_state: torch.Tensor = outputs.last_hidden_state
    pooled: torch.Tensor = backbone.module.vision_model.post_layernorm(last_state[:, 0])
    return pooled


def freeze(tower: VisionTower) -> VisionTower:
    """Stop every parameter from being trained."""
    return tower.requires_grad_(False)


def unfreeze(tower: VisionTower, last_layers: int | None = None) -> VisionTower:
    """Let parameters be trained: all of them, or only those of the last encoder layers and what follows them.

    Args:
        tower: a CLIP vision tower.
        last_layers: how many encoder layers, counted from the output; the final norm and the projection
            come along. None for everything, embeddings included.

    Raises:
        GeoError: the tower has fewer layers.
    """
    if last_layers is None:
        return tower.requires_grad_(True)
    layers = tower.vision_model.encoder.layers
    if not 0 <= last_layers <= len(layers):
        raise GeoError(f"can't unfreeze the last {last_layers} layers of {len(layers)}")
    freeze(tower)
    for part in (
        *layers[len(layers) - last_layers :],
        tower.vision_model.post_layernorm,
        tower.visual_projection,
    ):
        part.requires_grad_(True)
    return tower


def embedding_dim(directory: Path, feature: str) -> int:
    """D, from the model's config alone."""
    config = _read_json(directory / "config.json")
    # A full CLIP keeps its vision settings in a group of their own, the projection's width beside them.
    vision = config.get("vision_config", config)
    if feature == "pooler_output":
        return int(vision.get("hidden_size", 768))
    return int(config.get("projection_dim", vision.get("projection_dim", 512)))


def count_parameters(module: "nn.Module") -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def read_preprocessing(directory: Path, *, exact: bool) -> Preprocessing:
    """What the model's own preprocessor file asks for.

    Args:
        directory: a model directory with preprocessor_config.json.
        exact: resize with PIL instead of torch.

    Raises:
        GeoError: no such file, or one that asks for more than resize, crop, scale and normalise.
    """
    path = directory / "preprocessor_config.json"
    if not path.is_file():
        raise GeoError(
            "the model has no preprocessor_config.json",
            where=directory,
            hint="save it beside the model: CLIPImageProcessor.from_pretrained(…).save_pretrained(DIR)",
        )
    from transformers import CLIPImageProcessorPil

    with quiet_transformers():
        asked = CLIPImageProcessorPil.from_pretrained(directory)
    size, crop = dict(asked.size or {}), dict(asked.crop_size or {})
    edge = size.get("shortest_edge")
    if not asked.do_center_crop:
        crop = size
    if not asked.do_resize or not {"height", "width"} <= {key for key, value in crop.items() if value}:
        raise GeoError(
            "the preprocessor gives pictures no fixed size", where=path, hint="set size and crop_size"
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
        resize="pil" if exact else "torch",
    )


def hash_weights(directory: Path) -> str:
    """sha256 over the vision tower's tensors as stored: names, dtypes, shapes and bytes, in order of name.

    The text tower, the file's name and its metadata don't enter: a full CLIP and its tower saved alone agree.
    """
    digest = hashlib.sha256()
    with ExitStack() as opened:
        for name, dtype, shape, data in sorted(
            _stored_tensors(directory, opened), key=lambda tensor: tensor[0]
        ):
            digest.update(f"{name} {dtype} {shape}\n".encode())
            digest.update(data)
            data.release()
    return digest.hexdigest()


def fingerprint(fields: dict[str, Any]) -> str:
    """16 hex digits that name a store: sha256 over everything that changes an embedding, as canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def pick_device(name: str) -> "torch.device":
    """`auto`, `cpu` or `cuda` to a device. Raises GeoError where CUDA is asked for and absent."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise GeoError(
            "no CUDA device is visible to torch",
            where="model.device",
            hint="use --device cpu, or --device auto",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """Precision of the backbone; `auto` is bfloat16 on CUDA (float16 where the card lacks it), float32 on CPU."""
    import torch

    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


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


def _weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin"))


def _stored_tensors(directory: Path, opened: ExitStack) -> Iterator[tuple[str, str, list[int], memoryview]]:
    """Name, dtype, shape and bytes of each of the vision tower's tensors; nothing is copied out of the files."""
    for path in _weight_files(directory):
        if path.suffix == ".safetensors":
            yield from _safetensors(path, opened)
        else:
            import torch

            for name, tensor in torch.load(path, map_location="cpu", weights_only=True, mmap=True).items():
                if _VISION_TENSORS.match(name):
                    data = tensor.contiguous().flatten().view(torch.uint8).numpy()
                    yield name, str(tensor.dtype), list(tensor.shape), memoryview(data)


def _safetensors(path: Path, opened: ExitStack) -> Iterator[tuple[str, str, list[int], memoryview]]:
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
        if _VISION_TENSORS.match(name):
            begin, end = entry["data_offsets"]
            yield name, entry["dtype"], entry["shape"], whole[start + begin : start + end]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GeoError(f"not a readable JSON file: {error}", where=path) from error
    return content if isinstance(content, dict) else {}
