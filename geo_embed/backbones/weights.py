"""Where a backbone's weights lie, their hash, and the fingerprint of all that makes an embedding."""

import hashlib
import json
import mmap
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.backbones.families import (
    MLP_SAVED,
    family_of,
    mlp_tensors,
)
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    pass


_DOWNLOADED = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
]


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
                snapshot = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
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
            if (snapshot / "config.json").is_file() and _weight_files(snapshot):
                return snapshot
    raise GeoError(
        f"the weights of backbone {name!r} are not in the local Hugging Face cache"
        + (f" and can't be downloaded ({reasons[-1]})" if download and reasons else ""),
        where="model.backbone_name",
        hint=f"with a network, run: hf download {name} — or name a model directory: --backbone DIR",
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


def fingerprint_of(fields: dict[str, Any]) -> str:
    """16 hex digits that name a store: sha256 over everything that changes an embedding, as canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _weight_files(directory: Path) -> list[Path]:
    safetensors = [path for path in directory.glob("*.safetensors") if path.name != MLP_SAVED]
    return sorted(safetensors) or sorted(directory.glob("pytorch_model*.bin"))


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
            loaded += [(match[1], tensors[name]) for name in tensors if (match := wanted.match(name))]
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
        if name != "__metadata__" and (match := wanted.match(name)):
            begin, end = entry["data_offsets"]
            yield match[1], entry["dtype"], entry["shape"], whole[start + begin : start + end]
