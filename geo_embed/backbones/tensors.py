"""Tensors from files that somebody else may have made: as stored, each bounded by the bytes that its file has."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.errors import GeoError
from geo_embed.files import open_regular, open_tensors

if TYPE_CHECKING:
    import torch

_SAVE_AGAIN = "save the model again, with model.save_pretrained(DIR)"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file holds it.

    Attributes:
        dtype: by the name that the file's format gives it: `F32` in safetensors, `torch.float32` in a pickle.
        values: on the CPU, of any shape.
    """

    dtype: str
    values: "torch.Tensor"


def read_tensors(path: Path, wanted: re.Pattern[str], *, copy: bool) -> dict[str, StoredTensor]:
    """The tensors of a file whose names match, by name.

    Args:
        path: `.safetensors`, or a pickle of tensors, which goes through `weights_only`.
        wanted: what a name has to begin with.
        copy: into memory of their own, which no later change of the file reaches; else they may be the file's own pages.

    Raises:
        GeoError: the file can't be read, holds more than tensors, claims more than it has, or numbers that are no floats.
    """
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
    tensors = read(path, wanted)
    for name, tensor in tensors.items():
        _check(path, name, tensor)
    if copy:
        tensors = {
            name: StoredTensor(tensor.dtype, tensor.values.clone()) for name, tensor in tensors.items()
        }
    return tensors


def tensor_bytes(tensor: StoredTensor) -> memoryview:
    """Its bytes in row-major order, little-endian as on every machine that torch runs on."""
    import torch

    data: Any = tensor.values.detach().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(data)


def _read_safetensors(path: Path, wanted: re.Pattern[str]) -> dict[str, StoredTensor]:
    with open_tensors(path) as opened:
        # It has no types of its own.
        handle: Any = opened
        names = [name for name in handle.keys() if wanted.match(name)]  # noqa: SIM118 -- it is no mapping
        return {
            name: StoredTensor(str(handle.get_slice(name).get_dtype()), handle.get_tensor(name))
            for name in names
        }


def _read_pickle(path: Path, wanted: re.Pattern[str]) -> dict[str, StoredTensor]:
    import torch

    with open_regular(path) as file:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            _refuse_compressed(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    # Unpickling damaged bytes, or bytes that are no weights, may raise nearly anything.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise GeoError(f"not readable as tensors alone: {reason}", where=path, hint=_SAVE_AGAIN) from error
    if not isinstance(content, Mapping):
        raise GeoError(
            f"a pickled {type(content).__name__}, where tensors by name are wanted",
            where=path,
            hint=_SAVE_AGAIN,
        )
    return {
        name: StoredTensor(str(value.dtype), value)
        for name, value in content.items()
        if isinstance(name, str) and wanted.match(name) and isinstance(value, torch.Tensor)
    }


def _refuse_compressed(path: Path) -> None:
    """torch stores its records as they are; a compressed one, or one that lies in another, could swell to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    # A damaged directory of records; what zipfile says of one isn't documented.
    except Exception as error:
        raise GeoError(
            f"not a readable file of tensors: {error}".splitlines()[0], where=path, hint=_SAVE_AGAIN
        ) from error
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not stored or sum(record.file_size for record in records) > path.stat().st_size:
        raise GeoError("its records are compressed, or overlap", where=path, hint=_SAVE_AGAIN)


def _check(path: Path, name: str, tensor: StoredTensor) -> None:
    """Raise GeoError for a tensor that isn't plain floats, all of which the file holds."""
    import torch

    values = tensor.values
    plain = values.layout == torch.strided and values.device.type == "cpu" and not values.is_quantized
    if not plain or values.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise GeoError(
            f"{name} holds {tensor.dtype} numbers; a quantised model can't be a backbone",
            where=path,
            hint="name one saved in float32, float16 or bfloat16",
        )
    # A view may repeat one stored number any number of times.
    if values.numel() * values.element_size() > values.untyped_storage().nbytes():
        raise GeoError(
            f"{name} claims {values.numel():,} numbers, more than the file holds",
            where=path,
            hint=_SAVE_AGAIN,
        )
