"""Which files a backbone's weights are, their hash, and the fingerprint of all that makes an embedding."""

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from geo_embed.backbones.families import Family, family_of, mlp_tensors
from geo_embed.backbones.tensors import StoredTensor, read_tensors, tensor_bytes
from geo_embed.console import progress
from geo_embed.errors import GeoError
from geo_embed.files import entries, read_json

if TYPE_CHECKING:
    import torch

_MEGABYTE = 1_000_000
_DOWNLOADED = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
]
# As transformers looks for them (`_get_resolved_checkpoint_files`): the first of these that is there is loaded, alone.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_backbone(name: str, *, download: bool = True) -> Path:
    """The local directory of a backbone: `name` itself, else its place in the Hugging Face cache.

    Args:
        name: a model directory or a hub id.
        download: fetch a hub id that is not in the cache.

    Raises:
        GeoError: neither a model directory nor to be had, with the command that would fix it.
    """
    directory = Path(name)
    if _is_directory(directory):
        if not (directory / "config.json").is_file() or not _has_weights(directory):
            raise GeoError(
                "no Hugging Face model here: it needs config.json and model.safetensors",
                where=directory,
                hint="save one with model.save_pretrained(DIR) and processor.save_pretrained(DIR)",
            )
        return directory
    # After what needs no hub: importing its client takes longer than to fit a small head.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    near = near_directory(name)
    meant = f"no such directory; did you mean {near}? Otherwise: " if near else ""
    reasons: list[str] = []
    for offline in (True, False) if download else (True,):
        for patterns in (_DOWNLOADED, ["*.json", "pytorch_model*.bin"]):
            try:
                snapshot = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
            except HFValidationError as error:
                raise GeoError(
                    f"backbone {name!r} is neither a directory nor a Hugging Face id",
                    where="model.backbone_name",
                    hint=f"{meant}give a model directory that exists, or an id such as geolocal/StreetCLIP",
                ) from error
            # Whatever the hub client raises without a network (OSError, its own, or its HTTP library's) means the same.
            except Exception as error:
                reasons.append(f"{type(error).__name__}")
                break
            if (snapshot / "config.json").is_file() and _is_complete(snapshot):
                return snapshot
    raise GeoError(
        f"the weights of backbone {name!r} are not in the local Hugging Face cache"
        + (f" and can't be downloaded ({reasons[-1]})" if download and reasons else ""),
        where="model.backbone_name",
        hint=f"{meant}with a network, run: hf download {name} — or name a model directory: --backbone DIR",
    )


def near_directory(name: str) -> str:
    """The model directory that was probably meant by a name that is none: each of its parts as it is, or the nearest; else empty."""
    place = Path(name)
    if _is_directory(place):
        return ""
    at = Path(place.anchor)
    for part in place.relative_to(place.anchor).parts:
        if not _is_directory(at / part):
            folders = [entry.name for entry in entries(at) if _is_directory(entry)]
            part = next(iter(difflib.get_close_matches(part, folders, n=1)), "")
            if not part:
                return ""
        at /= part
    return str(at) if _has_weights(at) else ""


def weight_files(directory: Path) -> list[Path]:
    """The files that a model directory's weights are loaded from, in the order in which they are: by transformers' own rule.

    model.safetensors; else the shards that its index names; else pytorch_model.bin; else its index's. Whatever else lies
    there is neither loaded nor hashed.

    Raises:
        GeoError: none of them is there, an index names what isn't there or lies elsewhere, or an adapter lies beside them.
    """
    # transformers applies one silently where peft is installed, and leaves it out where it isn't.
    if (directory / "adapter_config.json").exists():
        raise GeoError(
            "an adapter lies beside the weights, and which of the two is meant can't be told",
            where=directory / "adapter_config.json",
            hint="merge it: PeftModel.from_pretrained(model, DIR).merge_and_unload().save_pretrained(OTHER_DIR); or move it away",
        )
    if (directory / ".metadata").exists():
        raise GeoError(
            "a distributed checkpoint can't be a backbone",
            where=directory,
            hint="save the model whole, with model.save_pretrained(DIR)",
        )
    for name in _WEIGHTS:
        path = directory / name
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    raise GeoError(
        f"no weights here: none of {', '.join(_WEIGHTS)}",
        where=directory,
        hint="save the model here with model.save_pretrained(DIR)",
    )


@dataclass(frozen=True)
class TowerWeights:
    """An image tower's weights as stored: what is hashed, and loaded.

    Attributes:
        family: the tower's.
        tensors: by the names that they have in their files.
        geoclip: GeoCLIP's own layers, by name; empty where it is none.
    """

    family: Family
    tensors: dict[str, StoredTensor]
    geoclip: "dict[str, torch.Tensor]"


def read_weights(directory: Path, *, copy: bool) -> TowerWeights:
    """The tensors of a model directory's image tower.

    Args:
        directory: a model directory.
        copy: into memory of their own, which no later change of the files reaches.

    Raises:
        GeoError: no known family, the files can't be read, hold nothing of the tower, or a tensor of it under two names.
    """
    family, files = family_of(directory), weight_files(directory)
    tensors: dict[str, StoredTensor] = {}
    # A name that two shards hold is the later one's, as in transformers.
    for path in files:
        tensors |= read_tensors(path, family.tensors, copy=copy)
    if not tensors:
        raise GeoError(
            f"no tensor of a {family.tower} is in {', '.join(path.name for path in files)}",
            where=directory,
            hint="the weights are another model's than its config.json describes: save them together",
        )
    names: dict[str, str] = {}
    for name in tensors:
        other = names.setdefault(tower_name(family, name), name)
        if other != name:
            raise GeoError(
                f"{other} and {name} are the same tensor of the tower, which is it?",
                where=directory,
                hint="save the model again, with model.save_pretrained(DIR)",
            )
    return TowerWeights(family, tensors, mlp_tensors(directory))


def tower_name(family: Family, name: str) -> str:
    """A tensor's name within the tower, whatever model the tower was saved with."""
    match = family.tensors.match(name)
    return match[1] if match else name


def hash_tensors(weights: TowerWeights) -> str:
    """sha256 over a tower's tensors as stored: names, dtypes, shapes and bytes, in order of name; 64 hex digits.

    The text tower, a classifier, files that aren't loaded, names of files and their metadata don't enter: a full CLIP and its
    tower saved alone agree.
    """
    named = {tower_name(weights.family, name): tensor for name, tensor in weights.tensors.items()}
    for name, values in weights.geoclip.items():
        named[f"geoclip_mlp.{name}"] = StoredTensor(str(values.dtype), values)
    digest = hashlib.sha256()
    megabytes = sum(tensor.values.nbytes for tensor in named.values()) // _MEGABYTE
    with progress("hash weights", megabytes, "MB") as advance:
        done = 0
        for name, tensor in sorted(named.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.values.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
            before, done = done, done + tensor.values.nbytes
            advance(done // _MEGABYTE - before // _MEGABYTE)
    return digest.hexdigest()


def hash_weights(directory: Path) -> str:
    """The `hash_tensors` of what would be loaded from a model directory. Raises GeoError as `read_weights` does."""
    return hash_tensors(read_weights(directory, copy=False))


def fingerprint_of(fields: dict[str, Any]) -> str:
    """16 hex digits that name a store: sha256 over everything that changes an embedding, as canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _is_directory(path: Path) -> bool:
    """Whether there is a directory of this name, of whatever length and letters."""
    try:
        return path.is_dir()
    # No file can have such a name.
    except (OSError, ValueError):
        return False


def _is_complete(directory: Path) -> bool:
    try:
        return bool(weight_files(directory))
    except GeoError:
        return False


def _has_weights(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _WEIGHTS)


def _shards(index: Path) -> list[Path]:
    """The files that an index names, sorted."""
    places: Any = read_json(index).get("weight_map")
    names: set[str] = set(places.values()) if _is_text(places) else set()
    if not names:
        raise GeoError(
            "weight_map doesn't say which file holds which tensor",
            where=index,
            hint="save the model again, with model.save_pretrained(DIR)",
        )
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if "\0" in name or "\\" in name or not parts or parts[0] == "/" or ".." in parts:
            raise GeoError(f"it names a file outside its directory: {name!r:.80}", where=index)
        if not (index.parent / name).is_file():
            raise GeoError(
                f"it names {name}, which isn't there",
                where=index,
                hint="copy or download what is missing, or save the model again",
            )
        if not name.endswith((".safetensors", ".bin")):
            raise GeoError(f"{name} is neither .safetensors nor .bin", where=index)
    return [index.parent / name for name in sorted(names)]


def _is_text(places: Any) -> bool:
    return isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
