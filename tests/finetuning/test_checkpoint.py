"""Training goes on from a checkpoint as if nothing had happened, whatever happened to it or to the one after it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors import safe_open
from small import enlarge, little_disk
from torch import Tensor, nn

from geo_embed.errors import GeoError
from geo_embed.finetuning.checkpoint import (
    Checkpoint,
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from geo_embed.optim import warmup_cosine

STEPS = 20


class Training:
    """A small training with all that a checkpoint has to carry; what a step draws follows from its number."""

    def __init__(self, *, fused: bool, turned: bool = False) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.3), nn.LayerNorm(16), nn.Linear(16, 3)
        )
        self.parameters = dict(self.model.named_parameters())
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        plain = [p for p in self.parameters.values() if p.ndim < 2]
        if turned:
            decayed, plain = decayed[::-1], plain[::-1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "peak": 1e-3}, {"params": plain, "peak": 1e-2, "weight_decay": 0.0}],
            betas=(0.8, 0.95),
            fused=fused,
        )
        self.averaged = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            torch.manual_seed(self.step)
            pick = torch.randint(0, 50, (8,))
            x = torch.sin(pick[:, None] * torch.arange(1.0, 7.0))
            loss = nn.functional.cross_entropy(self.model(x), pick % 3)
            loss.backward()  # type: ignore[no-untyped-call]
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * warmup_cosine(self.step, STEPS, 0.2)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            for name, average in self.averaged.items():
                average.lerp_(self.parameters[name].detach(), 0.1)

    def checkpoint(self) -> Checkpoint:
        tensors = {f"model/{name}": p for name, p in self.parameters.items()}
        tensors |= {f"ema/{name}": average for name, average in self.averaged.items()}
        tensors |= optimizer_tensors(self.optimizer, self.parameters)
        return Checkpoint(self.step, tensors, {"note": "of a test"})

    def resume(self, saved: Checkpoint) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(saved.tensors[f"model/{name}"])
                self.averaged[name].copy_(saved.tensors[f"ema/{name}"])
        load_optimizer_tensors(self.optimizer, self.parameters, saved.tensors)
        self.step = saved.step


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stop", [0, 10])
def test_training_goes_on_bit_identical(tmp_path: Path, fused: bool, stop: int) -> None:
    whole = Training(fused=fused)
    whole.run(STEPS)

    first = Training(fused=fused)
    first.run(stop)
    save_checkpoint(tmp_path, first.checkpoint(), keep_last=1, best=False)
    second = Training(fused=fused, turned=True)
    torch.manual_seed(99)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    second.resume(load_checkpoint(latest))
    second.run(STEPS - stop)
    # A save changes nothing for the one that is saved.
    first.run(STEPS - stop)

    for resumed in (first, second):
        assert resumed.step == whole.step
        for name in whole.parameters:
            assert torch.equal(resumed.parameters[name], whole.parameters[name]), name
            assert torch.equal(resumed.averaged[name], whole.averaged[name]), name


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    ],
    ids=["fused", "amsgrad", "sgd"],
)
def test_an_optimizer_comes_back_bit_for_bit(
    tmp_path: Path, make: Callable[[Any], torch.optim.Optimizer]
) -> None:
    """In channels-last order; some of it frozen by now, and some never trained."""

    def built() -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).to(
            memory_format=torch.channels_last
        )
        never_used = nn.Linear(2, 2)
        parameters = dict(model.named_parameters())
        parameters |= {f"spare.{name}": p for name, p in never_used.named_parameters()}
        return parameters, make(list(parameters.values()))

    parameters, optimizer = built()
    for step in range(3):
        for name, parameter in parameters.items():
            if not name.startswith("spare"):
                parameter.grad = torch.cos(parameter.detach() + step)
        optimizer.step()
    tensors = optimizer_tensors(optimizer, parameters)
    path = save_checkpoint(tmp_path, Checkpoint(3, tensors, {}), keep_last=1, best=False)

    fresh_parameters, fresh = built()
    fresh_parameters["0.weight"].requires_grad_(False)
    load_optimizer_tensors(fresh, fresh_parameters, load_checkpoint(path).tensors)
    before, after = optimizer.state_dict(), fresh.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()
    for index, moments in before["state"].items():
        assert moments.keys() == after["state"][index].keys()
        for key, value in moments.items():
            other = after["state"][index][key]
            assert torch.equal(value, other), key
            assert (value.dtype, value.device, value.stride()) == (other.dtype, other.device, other.stride())


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    first = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.AdamW(first.values())
    for parameter in first.values():
        parameter.grad = torch.ones(2)
    optimizer.step()
    other = {"a": nn.Parameter(torch.zeros(2)), "c": nn.Parameter(torch.zeros(2))}
    with pytest.raises(GeoError, match="other parameters: b"):
        load_optimizer_tensors(torch.optim.AdamW(other.values()), other, optimizer_tensors(optimizer, first))


def test_nothing_is_pickled_and_the_state_is_strict_json(tmp_path: Path) -> None:
    training = Training(fused=False)
    training.run(2)
    path = save_checkpoint(tmp_path / "checkpoints", training.checkpoint(), keep_last=1, best=True)
    assert path == tmp_path / "checkpoints" / "step-00000002"
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "tensors.safetensors"]

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    body = json.loads((path / "state.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert body["state"] == {"note": "of a test"}
    with safe_open(path / "tensors.safetensors", framework="numpy") as file:
        assert "optimizer/0.weight/exp_avg" in file.keys()  # noqa: SIM118
    with pytest.raises(GeoError, match="can't be saved"):
        save_checkpoint(
            tmp_path / "checkpoints", Checkpoint(3, {}, {"score": float("nan")}), keep_last=1, best=False
        )
    assert latest_checkpoint(tmp_path / "checkpoints") == path


def test_tied_strided_and_small_tensors_come_back(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    tensors = {
        "weight": weight,
        "tied": weight,
        "turned": weight.T,
        "part": weight[1:3],
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "half": weight.bfloat16(),
        "whole": torch.arange(5),
        "empty": torch.zeros(0, 3),
    }
    saved = load_checkpoint(save_checkpoint(tmp_path, Checkpoint(1, tensors, {}), keep_last=1, best=False))
    assert saved.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(saved.tensors[name], tensor), name
        assert saved.tensors[name].dtype == tensor.dtype


def save(directory: Path, step: int, *, keep_last: int = 2, best: bool = False, size: int = 100) -> Path:
    return save_checkpoint(
        directory,
        Checkpoint(step, {"x": torch.full((size,), float(step))}, {"note": step}),
        keep_last=keep_last,
        best=best,
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name.removeprefix("step-").lstrip("0") for path in directory.iterdir())


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert best_checkpoint(tmp_path / "none") is None
    for step in range(1, 8):
        save(tmp_path, step, best=step in (1, 3))
    assert names(tmp_path) == ["3", "6", "7"]
    best = best_checkpoint(tmp_path)
    assert best is not None
    assert load_checkpoint(best).step == 3
    save(tmp_path, 8, best=True)
    assert names(tmp_path) == ["7", "8"]
    save(tmp_path, 9, keep_last=1)
    assert names(tmp_path) == ["8", "9"]


def test_a_second_save_at_a_step_takes_the_place_of_the_first(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    again = save(tmp_path, 2)
    assert names(tmp_path) == ["1", "2-1"]
    assert latest_checkpoint(tmp_path) == again
    best = save(tmp_path, 2, best=True)
    last = save(tmp_path, 2)
    assert names(tmp_path) == ["1", "2-2", "2-3"]
    assert (best_checkpoint(tmp_path), latest_checkpoint(tmp_path)) == (best, last)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)


def relink(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def forge(path: Path, changes: dict[str, object]) -> None:
    """A state with a valid checksum, as a stranger could write it."""
    body = json.loads((path / "state.json").read_text()) | changes
    del body["checksum"]
    body["checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    (path / "state.json").write_text(json.dumps(body))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "tensors cut": lambda path: os.truncate(path / "tensors.safetensors", 200),
    "tensors flipped": lambda path: flip(path / "tensors.safetensors"),
    "tensors gone": lambda path: (path / "tensors.safetensors").unlink(),
    "state cut": lambda path: os.truncate(path / "state.json", 60),
    "state empty": lambda path: os.truncate(path / "state.json", 0),
    "state gone": lambda path: (path / "state.json").unlink(),
    "state flipped": lambda path: flip(path / "state.json"),
    "state a device": lambda path: relink(path / "state.json", "/dev/zero"),
    "state deep": lambda path: (path / "state.json").write_text("[" * 100_000),
    "tensors a device": lambda path: relink(path / "tensors.safetensors", "/dev/zero"),
    "tensors a pipe": lambda path: pipe(path / "tensors.safetensors"),
    "another file named": lambda path: forge(path, {"files": {"../../../../dev/zero": "0"}}),
    "a step that is none": lambda path: forge(path, {"step": "4"}),
    "no state": lambda path: forge(path, {"state": []}),
    "state another": lambda path: (path / "state.json").write_text("[]"),
    "a number changed": lambda path: (path / "state.json").write_text(
        (path / "state.json").read_text().replace('"note": ', '"note": 1')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    before = save(tmp_path, 3, best=True)
    newest = save(tmp_path, 4, best=True, keep_last=2)
    damage(newest)
    assert latest_checkpoint(tmp_path) == before
    assert "warning: this checkpoint is damaged" in capsys.readouterr().err
    assert best_checkpoint(tmp_path) == before
    with pytest.raises(GeoError, match="damaged"):
        load_checkpoint(newest)
    assert load_checkpoint(before).tensors["x"].unique().tolist() == [3.0]

    damage(before)
    with pytest.raises(GeoError, match="no checkpoint is whole"):
        latest_checkpoint(tmp_path)


def test_what_was_given_up_for_an_earlier_checkpoint_goes(tmp_path: Path) -> None:
    save(tmp_path, 10)
    damaged = save(tmp_path, 20, keep_last=1, best=True)
    save(tmp_path, 10, keep_last=1)
    assert not damaged.exists()
    assert names(tmp_path) == ["10"]
    newest = save(tmp_path, 15, keep_last=1)
    assert names(tmp_path) == ["15"]
    assert latest_checkpoint(tmp_path) == newest


def test_what_a_kill_left_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    whole = save(tmp_path, 1)
    for litter in (".step-00000002.writing", ".step-00000000.deleting"):
        (tmp_path / litter).mkdir()
        (tmp_path / litter / "tensors.safetensors").write_bytes(b"torn")
    assert latest_checkpoint(tmp_path) == whole
    save(tmp_path, 2)
    assert names(tmp_path) == ["1", "2"]


def test_a_kill_while_an_old_one_is_deleted_leaves_nothing_that_looks_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)

    def half(path: Path, ignore_errors: bool = False) -> None:
        (path / "state.json").unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("geo_embed.finetuning.checkpoint.shutil.rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, keep_last=1)
    for path in tmp_path.glob("step-*"):
        load_checkpoint(path)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000002"
    assert capsys.readouterr().err == ""
    save(tmp_path, 3, keep_last=1)
    assert names(tmp_path) == ["3"]


# One process without threads forks the writers: thirty kills cost thirty milliseconds each, not an interpreter each.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from geo_embed.finetuning.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint

torch.set_num_threads(1)
directory, rng = Path(sys.argv[1]), random.Random(0)

def write(first):
    for step in range(first, first + 10_000):
        tensors = {name: torch.full((200_000,), float(step)) for name in ("a", "b", "c")}
        save_checkpoint(directory, Checkpoint(step, tensors, {"note": step}), keep_last=2, best=step % 5 == 0)

last = torn = kills = 0
while kills < 30:
    child = os.fork()
    if not child:
        write(last + 1)
    end = time.monotonic() + 20
    fresh = last
    while fresh == last and time.monotonic() < end:
        time.sleep(0.002)
        fresh = max([int(path.name[5:13]) for path in directory.glob("step-*")], default=0)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    torn += any(directory.glob(".step-*"))
    saved = load_checkpoint(latest_checkpoint(directory))
    assert saved.step > last, (saved.step, last)
    assert saved.state["note"] == saved.step
    assert all(tensor.eq(saved.step).all() for tensor in saved.tensors.values())
    last = saved.step
print(json.dumps({"kills": kills, "torn": torn, "last": last}))
"""


def test_killed_at_random_moments_there_is_always_a_whole_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    counts = json.loads(done.stdout)
    assert counts["torn"] >= 5, "too few kills came in the middle of a save"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One that holds one checkpoint of 600 kB, not two."""
    with little_disk(tmp_path / "disk", "1m") as disk:
        yield disk


def test_a_full_disk_leaves_the_checkpoint_before(disk: Path) -> None:
    directory = disk / "checkpoints"
    whole = save(directory, 1, size=150_000)
    with pytest.raises(GeoError, match="No space left on device") as caught:
        save(directory, 2, size=150_000)
    assert "free or unlock the disk" in caught.value.hint
    assert names(directory) == ["1"]
    assert latest_checkpoint(directory) == whole
    assert load_checkpoint(whole).tensors["x"].eq(1).all()

    enlarge(disk)
    save(directory, 2, size=150_000)
    assert names(directory) == ["1", "2"]


@dataclass
class SmallFiles:
    """No file may grow beyond this many bytes meanwhile: a disk that refuses, without root."""

    limit: int

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("limit", [50_000, 604_000], ids=["tensors", "state"])
def test_a_write_that_the_system_refuses_leaves_the_checkpoint_before(tmp_path: Path, limit: int) -> None:
    whole = save(tmp_path, 1)
    big = Checkpoint(2, {"x": torch.zeros(150_000)}, {"history": ["long"] * 100_000})
    with SmallFiles(limit), pytest.raises(GeoError, match="File too large"):
        save_checkpoint(tmp_path, big, keep_last=1, best=True)
    assert names(tmp_path) == ["1"]
    assert latest_checkpoint(tmp_path) == whole
    save_checkpoint(tmp_path, big, keep_last=1, best=True)
    assert names(tmp_path) == ["2"]


def test_an_interrupt_in_the_middle_of_a_save_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = save(tmp_path, 1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("geo_embed.files.force_to_disk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert names(tmp_path) == ["1"]
    assert latest_checkpoint(tmp_path) == whole
