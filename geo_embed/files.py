"""Files of any kind: their checksum, and tensors in a file with the mode of any other."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def save_tensors(tensors: Mapping[str, "Tensor"], path: Path) -> None:
    """Write contiguous tensors on the CPU as a safetensors file. Raises OSError for all that the disk says."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    set_usual_mode(path)


def set_usual_mode(path: Path) -> None:
    """Give a file the mode of one newly made beside it: safetensors lets nobody but the owner read what it writes."""
    beside = path.with_name(f".{path.name}.mode")
    beside.touch()
    path.chmod(beside.stat().st_mode & 0o777)
    beside.unlink()
