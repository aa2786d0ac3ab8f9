"""Where training stands, on disk: all that the next step depends on, so that it comes out bit-identical after a kill.

A checkpoint is a directory of two files: `tensors.safetensors`, and `state.json` with everything else and a checksum of
each. It is written under a hidden name, forced to the disk, and renamed: whatever happens, one that has its name is whole.
Damage from later is found by the checksums, and the checkpoint before is taken.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from geo_embed.console import warn
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import (
    open_regular,
    open_tensors,
    read_json,
    remove_directory,
    replacing_directory,
    save_tensors,
)

FORMAT_VERSION = 1

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_OPTIMIZER = "optimizer/"
_DAMAGED = "this checkpoint is damaged"
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
    same = [saved.again for saved in _list(directory) if saved.step == checkpoint.step]
    final = directory / (f"step-{checkpoint.step:08}" + (f"-{max(same) + 1}" if same else ""))
    with disk_errors(directory):
        # Of the only writer, nothing under way is worth an hour's room.
        for left_over in directory.glob(".step-*"):
            shutil.rmtree(left_over)
        with replacing_directory(final, overwrite=False) as temporary, disk_errors(directory):
            save_tensors(_plain(checkpoint.tensors), temporary / _TENSORS)
            body["files"] = {_TENSORS: _checksum(temporary / _TENSORS)}
            body["checksum"] = _own_checksum(body)
            (temporary / _STATE).write_text(
                json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        _prune(directory, final, keep_last)
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
        with open_tensors(path / _TENSORS, device=str(device)) as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
    except GeoError as error:
        raise _damaged(path / _TENSORS, error.what) from error
    return Checkpoint(body["step"], tensors, body["state"])


def read_state(path: Path) -> Mapping[str, Any]:
    """A checkpoint's state alone: its tensors are not read. Raises GeoError where it is damaged."""
    state: Mapping[str, Any] = _read_state(path)["state"]
    return state


def tensors_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """An optimizer's moments and counters by the names of its parameters, not by their positions.

    Its groups aren't kept: rates and decays follow from the settings and the step. Nor is it left to torch's own
    `get_optimizer_state_dict`: before the first step that takes one with zero gradients, which counts in the bias correction
    of all that follow, and what is frozen for now loses its moments.

    Args:
        optimizer: any whose state is tensors; a parameter that never had a gradient has none.
        parameters: by name, as `dict(model.named_parameters())`.

    Returns:
        Tensors named `optimizer/<parameter>/<key>`, as in `optimizer/tower.proj.weight/exp_avg`.
    """
    return {
        f"{_OPTIMIZER}{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave, bit for bit, into a fresh optimizer over the same parameters.

    Args:
        optimizer: its groups stay as they are; they and the order in them may differ from those that were saved.
        parameters: by name.
        tensors: by name, such as all of a checkpoint's; those that aren't the optimizer's are ignored.

    Raises:
        GeoError: there are moments of a parameter that the optimizer doesn't have.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith(_OPTIMIZER):
            name, _, key = full_name.removeprefix(_OPTIMIZER).rpartition("/")
            saved.setdefault(name, {})[key] = tensor
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    in_order = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    unknown = sorted(saved.keys() - set(in_order))
    if unknown:
        raise GeoError(
            f"the checkpoint's optimizer holds other parameters: {', '.join(unknown[:3])}",
            hint="resume with the settings of the run that wrote it, or train from the start",
        )
    # torch knows parameters by their positions, and takes counters to the device where its kernel wants them.
    state = {
        position: {key: _laid_out_like(parameters[name], tensor) for key, tensor in saved[name].items()}
        for position, name in enumerate(in_order)
        if name in saved
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_like(parameter: Tensor, moment: Tensor) -> Tensor:
    """A copy of a moment in its parameter's own memory layout: a fused kernel walks both alike."""
    if moment.shape != parameter.shape:
        return moment.clone()
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


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
    checkpoints = [
        _Saved(int(match[1]), int(match[2] or 0), path)
        for path in directory.glob("step-*")
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(checkpoints, key=lambda saved: (saved.step, saved.again), reverse=True)


def _prune(directory: Path, newest: Path, keep_last: int) -> None:
    checkpoints = _list(directory)
    (newest_saved,) = (saved for saved in checkpoints if saved.path == newest)
    past = [saved for saved in checkpoints if saved.step <= newest_saved.step]
    # The newest save of each step; the later one of a pair replaces the earlier.
    last = {saved.step: saved.path for saved in reversed(past)}
    kept = set(list(last.values())[-keep_last:])
    best = next((saved.path for saved in past if _is_best(saved.path)), None)
    kept |= {best} if best else set()
    for saved in checkpoints:
        if saved.path not in kept:
            remove_directory(saved.path)


def _is_best(path: Path) -> bool:
    try:
        return bool(_read_state(path)["best"])
    except GeoError:
        return False


def _read_state(path: Path, *, every_byte: bool = False) -> dict[str, Any]:
    """`state.json`, checked; with `every_byte` the other files too. Raises GeoError where anything is wrong."""
    where = path / _STATE
    try:
        body = read_json(where)
        if body["format_version"] != FORMAT_VERSION:
            raise _damaged(
                where, f"format {body['format_version']!r}, where this version reads {FORMAT_VERSION}"
            )
        if body.pop("checksum") != _own_checksum(body):
            raise _damaged(where, "its checksum does not match")
        if (
            type(body["step"]) is not int
            or not isinstance(body["state"], dict)
            or [*body["files"]] != [_TENSORS]
        ):
            raise ValueError("of other kinds")
        for name, recorded in body["files"].items() if every_byte else ():
            where = path / name
            if _checksum(where) != recorded:
                raise _damaged(where, "its checksum does not match")
    except GeoError as error:
        raise error if error.what.startswith(_DAMAGED) else _damaged(where, error.what) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, "not as it was written") from error
    return body


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def _own_checksum(body: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())


def _damaged(path: Path, reason: str) -> GeoError:
    return GeoError(f"{_DAMAGED}: {reason}", where=path, hint="resume from another checkpoint")
