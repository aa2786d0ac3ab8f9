"""Where training stands, on disk: all that the next step depends on, so that it comes out bit-identical after a kill.

A checkpoint is a directory of two files: `tensors.safetensors`, and `state.json` with everything else and a checksum of
each. It is written under a hidden name, forced to the disk, and renamed: whatever happens, one that has its name is whole.
Damage from later is found by the checksums, and the checkpoint before is taken.
"""

import base64
import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from geo_embed.console import warn
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import save_tensors

FORMAT_VERSION = 1

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_OPTIMIZER = "optimizer/"
# A second save at the same step, as when the machine is taken away right after it, gets a number of its own.
_NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_HASHED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Checkpoint:
    """Where training stands.

    Attributes:
        step: steps of the optimizer that are done.
        tensors: by flat names: weights, moments, averages.
        state: all the rest, as strict JSON holds it: text keys, lists, no NaN or infinity.
    """

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class _Saved:
    """A checkpoint on disk, by its name alone. `again`: 0 for the first save at its step."""

    step: int
    again: int
    path: Path


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, keep_last: int, best: bool) -> Path:
    """Add a checkpoint, then delete those that are not needed any more.

    Kept are the last `keep_last`, and the last that was saved as the best. Those of later steps go: they belong to a past
    that was given up for an earlier checkpoint. While it writes, the disk holds one checkpoint more than is kept.

    Args:
        directory: `runs/<name>/checkpoints`, of one writer.
        checkpoint: tensors of any device; tied or strided ones are stored as plain copies.
        keep_last: at least 1.
        best: no earlier checkpoint has a better score.

    Returns:
        Its directory, `step-00000123`.

    Raises:
        GeoError: the disk is full or not to be written, or the state is no JSON; the earlier checkpoints are untouched.
    """
    body = _as_json(
        {"format_version": FORMAT_VERSION, "step": checkpoint.step, "best": best, "state": checkpoint.state},
        directory,
    )
    name = f"step-{checkpoint.step:08}"
    temporary = directory / f".{name}.writing"
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for left_over in directory.glob(".step-*"):
            shutil.rmtree(left_over)
        temporary.mkdir()
    try:
        with disk_errors(directory):
            save_tensors(_plain(checkpoint.tensors), temporary / _TENSORS)
            body["files"] = {_TENSORS: _checksum(temporary / _TENSORS)}
            body["checksum"] = _own_checksum(body)
            (temporary / _STATE).write_text(
                json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            for path in (temporary / _TENSORS, temporary / _STATE, temporary):
                _force_to_disk(path)
            same = [saved.again for saved in _list(directory) if saved.step == checkpoint.step]
            final = directory / (f"{name}-{max(same) + 1}" if same else name)
            temporary.rename(final)
            _force_to_disk(directory)
            _prune(directory, final, keep_last)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint, every byte of it checked; None where none was ever saved.

    A damaged one is skipped with a warning.

    Raises:
        GeoError: there are some, and all are damaged.
    """
    all_saved = _list(directory)
    for saved in all_saved:
        try:
            _read_state(saved.path, every_byte=True)
        except GeoError as error:
            warn(f"{error}; the checkpoint before it is taken")
        else:
            return saved.path
    if all_saved:
        raise GeoError(
            "no checkpoint is whole", where=directory, hint="delete this directory to train from the start"
        )
    return None


def best_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint that was saved as the best; None where there is none."""
    for saved in _list(directory):
        try:
            if _read_state(saved.path)["best"]:
                _read_state(saved.path, every_byte=True)
                return saved.path
        except GeoError as error:
            warn(f"{error}; an earlier best checkpoint is looked for")
    return None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint, its tensors onto `device`. Raises GeoError where it is damaged."""
    body = _read_state(path, every_byte=True)
    try:
        tensors = load_file(path / _TENSORS, device=str(device))
    except (OSError, SafetensorError) as error:
        raise _damaged(path / _TENSORS, str(error)) from error
    return Checkpoint(body["step"], tensors, body["state"])


def read_state(path: Path) -> Mapping[str, Any]:
    """A checkpoint's state alone: its tensors are not read. Raises GeoError where it is damaged."""
    state: Mapping[str, Any] = _read_state(path)["state"]
    return state


def capture_rng(generators: Mapping[str, torch.Generator] | None = None) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, of each GPU's, and of `generators`, as JSON."""
    version, words, gauss = random.getstate()
    mt19937 = np.random.get_state(legacy=False)
    return {
        "python": [version, list(words), gauss],
        "numpy": {
            "key": _to_text(mt19937["state"]["key"].astype("<u4").tobytes()),
            "pos": int(mt19937["state"]["pos"]),
            "has_gauss": int(mt19937["has_gauss"]),
            "gauss": float(mt19937["gauss"]),
        },
        "torch": _pack(torch.get_rng_state()),
        "cuda": [_pack(state) for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
        "generators": {name: _pack(generator.get_state()) for name, generator in (generators or {}).items()},
    }


def restore_rng(state: Mapping[str, Any], generators: Mapping[str, torch.Generator] | None = None) -> None:
    """Put back what `capture_rng` took. GPUs that this machine lacks, or has more of, are left alone.

    Raises:
        GeoError: one of `generators` was not captured.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": np.frombuffer(_to_bytes(numpy["key"]), "<u4"), "pos": numpy["pos"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
    torch.set_rng_state(_unpack(state["torch"]))
    if torch.cuda.is_available():
        for index, packed in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(_unpack(packed), index)
    for name, generator in (generators or {}).items():
        if name not in state["generators"]:
            raise GeoError(
                f"the checkpoint has no random generator {name!r}",
                hint="it is from another version: train from the start",
            )
        generator.set_state(_unpack(state["generators"][name]))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as flat tensors and JSON, by the names of its parameters, not by their positions.

    Args:
        optimizer: any whose state is tensors and plain values.
        names: name → parameter, as `dict(model.named_parameters())`.

    Returns:
        Tensors named `optimizer/<parameter>/<key>`, or `optimizer/group-<i>/<key>` for a learning rate that is one; and
        `{"groups": […], "values": {…}}`, for `load_optimizer_tensors`.
    """
    name_of = {id(parameter): name for name, parameter in names.items()}
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for i, group in enumerate(optimizer.param_groups):
        plain: dict[str, Any] = {"params": [name_of[id(parameter)] for parameter in group["params"]]}
        _part(f"group-{i}", {key: group[key] for key in group if key != "params"}, tensors, plain)
        groups.append(plain)
        for name, parameter in zip(plain["params"], group["params"], strict=True):
            if parameter in optimizer.state:
                values[name] = {}
                _part(name, optimizer.state[parameter], tensors, values[name])
    return tensors, {"groups": groups, "values": values}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    described: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_tensors` gave, bit for bit, into a fresh optimizer over the same parameters.

    Args:
        optimizer: with the same groups; the order of the parameters in each may differ.
        names: name → parameter.
        tensors: by name, such as all of a checkpoint's; those that aren't the optimizer's are ignored.
        described: the JSON part.

    Raises:
        GeoError: the groups hold other parameters than those that were saved.
    """
    name_of = {id(parameter): name for name, parameter in names.items()}
    own = [[name_of[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    saved = [group["params"] for group in described["groups"]]
    if [sorted(group) for group in own] != [sorted(group) for group in saved]:
        odd = sorted(set(chain(*own)) ^ set(chain(*saved)))
        raise GeoError(
            f"the checkpoint's optimizer holds other parameters: {', '.join(odd[:3]) or 'grouped otherwise'}",
            hint="resume with the settings of the run that wrote it, or train from the start",
        )
    position = {name: i for i, name in enumerate(chain(*own))}
    by_owner = _by_owner(tensors)
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for name, plain in described["values"].items():
        parameter, kept = names[name], dict(plain)
        for key, tensor in by_owner.get(name, {}).items():
            # In the parameter's own memory layout: a fused kernel walks both alike. Counters start on the CPU;
            # the optimizer itself takes them to the GPU where it wants them there.
            like = parameter if tensor.shape == parameter.shape else tensor
            device = "cpu" if key == "step" else parameter.device
            kept[key] = torch.empty_like(like, dtype=tensor.dtype, device=device).copy_(tensor)
        state[position[name]] = kept
    for i, (group, plain) in enumerate(zip(whole["param_groups"], described["groups"], strict=True)):
        for key, value in plain.items():
            if key != "params":
                group[key] = tuple(value) if isinstance(value, list) else value
        group.update({key: tensor.clone() for key, tensor in by_owner.get(f"group-{i}", {}).items()})
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _part(owner: str, mixed: Mapping[str, Any], tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Tensors to one side, all else to the other."""
    for key, value in mixed.items():
        if isinstance(value, Tensor):
            tensors[f"{_OPTIMIZER}{owner}/{key}"] = value
        else:
            plain[key] = value


def _by_owner(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors by parameter or group, then by key."""
    owned: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            owner, _, key = name.removeprefix(_OPTIMIZER).rpartition("/")
            owned.setdefault(owner, {})[key] = tensor
    return owned


def _as_json(body: dict[str, Any], directory: Path) -> dict[str, Any]:
    """What reading it back will give."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(body, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise GeoError(f"the state of the training can't be saved: {error}", where=directory) from error
    return plain


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and no two in the same memory, as safetensors wants them."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in seen:
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        plain[name] = copy
    return plain


def _list(directory: Path) -> list[_Saved]:
    """The checkpoints by name, newest first."""
    found = [
        _Saved(int(match[1]), int(match[2] or 0), path)
        for path in directory.glob("step-*")
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found, key=lambda saved: (saved.step, saved.again), reverse=True)


def _prune(directory: Path, newest: Path, keep_last: int) -> None:
    everything = _list(directory)
    (just,) = (saved for saved in everything if saved.path == newest)
    past = [saved for saved in everything if saved.step <= just.step]
    # The newest save of each step; the later one of a pair replaces the earlier.
    last = {saved.step: saved.path for saved in reversed(past)}
    kept = set(list(last.values())[-keep_last:])
    best = next((saved.path for saved in past if _is_best(saved.path)), None)
    kept |= {best} if best else set()
    for saved in everything:
        if saved.path not in kept:
            # Hidden first: a kill in the middle of deleting it leaves nothing that looks like a damaged checkpoint.
            hidden = directory / f".{saved.path.name}.deleting"
            saved.path.rename(hidden)
            shutil.rmtree(hidden)


def _is_best(path: Path) -> bool:
    try:
        return bool(_read_state(path)["best"])
    except GeoError:
        return False


def _read_state(path: Path, *, every_byte: bool = False) -> dict[str, Any]:
    """`state.json`, checked; with `every_byte` the other files too. Raises GeoError where anything is wrong."""
    where = path / _STATE
    try:
        body: dict[str, Any] = json.loads(where.read_text(encoding="utf-8"))
        if body["format_version"] != FORMAT_VERSION:
            raise _damaged(
                where, f"format {body['format_version']!r}, where this version reads {FORMAT_VERSION}"
            )
        if body.pop("checksum") != _own_checksum(body):
            raise _damaged(where, "its checksum does not match")
        for name, recorded in body["files"].items() if every_byte else ():
            where = path / name
            if _checksum(where) != recorded:
                raise _damaged(where, "its checksum does not match")
    except OSError as error:
        raise _damaged(where, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, "not as it was written") from error
    return body


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def _own_checksum(body: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(path: Path, reason: str) -> GeoError:
    return GeoError(
        f"this checkpoint is damaged: {reason}", where=path, hint="resume from another checkpoint"
    )


def _pack(state: Tensor) -> str:
    return _to_text(state.numpy().tobytes())


def _unpack(text: str) -> Tensor:
    return torch.frombuffer(bytearray(_to_bytes(text)), dtype=torch.uint8)


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _to_bytes(text: str) -> bytes:
    return base64.b64decode(text)
