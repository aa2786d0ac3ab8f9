"""The unfrozen phase: steps over epochs, from one checkpoint to the next, to the weights that the run will have.

Everything that a step draws comes from the seed and the step's number, never from what was drawn before: a training that is
killed and goes on from its last checkpoint ends at the same bits as one that never stopped.
"""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geo_embed.config import Finetune
from geo_embed.console import progress, say, warn
from geo_embed.devices import amp_dtype
from geo_embed.errors import GeoError
from geo_embed.finetuning import sharding
from geo_embed.finetuning.checkpoint import (
    Checkpoint,
    best_checkpoint,
    capture_rng,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    restore_rng,
    save_checkpoint,
)
from geo_embed.finetuning.lora import is_lora_a, merge_lora
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.prepare import check_first_score
from geo_embed.finetuning.task import (
    ORDER,
    OutOfMemory,
    Task,
    accumulate_gradients,
    batch_size,
    judge,
    let_train,
    new_model,
    passes_per_step,
    read_pixels,
)
from geo_embed.optim import BETAS, warmup_cosine
from geo_embed.seeding import get_generator

_MOST_BAD_STEPS = 3


@dataclass
class State:
    """Where the training stands; with the weights and moments, all that a checkpoint holds."""

    step: int = 0
    epoch: int = 0
    step_rows: int = 0
    pass_rows: int = 0
    frozen_score: float | None = None
    best_score: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float | None]] = field(default_factory=list)
    # Of the epoch under way: the sum of its losses, its steps that counted, and those that were skipped.
    loss: float = 0.0
    good_steps: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


@dataclass
class Work:
    """What a training changes.

    Attributes:
        names: the model's parameters.
        average: of each, where there is one.
        start: what each was before any step, where the result is to lie between.
        samples, seconds: what the steps since this start, but the first, saw and took.
        warm: whether there was a first.
    """

    model: GeoModel
    names: dict[str, nn.Parameter]
    solver: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: dict[str, Tensor]
    start: dict[str, Tensor]
    state: State
    samples: int = 0
    seconds: float = 0.0
    warm: bool = False


def train_unfrozen(task: Task, settings: dict[str, Any]) -> tuple[GeoModel, Work]:
    """Train, or go on training, to the end; the model as it was at its best, and what was done."""
    team, how = task.team, task.how
    found = latest_checkpoint(task.checkpoints) if team.first and task.checkpoints.is_dir() else None
    latest = team.agree(found)
    model = new_model(task)
    counts = model.summary()
    if task.sharded:
        sharding.shard(model, task.device, team.size)
    names = dict(model.named_parameters())
    work = Work(
        model,
        names,
        torch.optim.AdamW(model.parameter_groups(how), betas=BETAS, fused=True),
        torch.amp.GradScaler(task.device.type, enabled=amp_dtype(task.device) == torch.float16),
        {key: p.detach().clone() for key, p in names.items()} if how.ema else {},
        _start(names) if how.wise_ft < 1 else {},
        State(step_rows=batch_size(task) * passes_per_step(task), pass_rows=batch_size(task)),
    )

    def save(*, best: bool = False) -> None:
        if task.sharded or team.first:
            checkpoint = _checkpoint(task, work, settings)
        if team.first:
            save_checkpoint(task.checkpoints, checkpoint, keep_last=how.keep_checkpoints, best=best)

    with _stopping() as stop:
        if latest is None:
            if team.first:
                say(
                    f"parameters: backbone {counts.backbone:,}, fusion {counts.fusion:,}, heads {counts.heads:,}; "
                    f"{counts.trainable:,} trained"
                )
            score = check_first_score(task, model, stop)
            if score is not None:
                work.state.frozen_score = work.state.best_score = score
            model.forget_gallery()
            save()
        else:
            model.forget_gallery()
            loaded = load_checkpoint(latest, "cpu" if task.sharded else task.device)
            _go_on(task, work, loaded, settings)
        state = work.state
        while state.epoch < how.epochs and state.epoch - state.best_epoch < how.patience:
            let_train(model, how, state.epoch)
            _learn_epoch(task, work, stop, save)
            with _as_output(work, how):
                scores = judge(task, model, stop)
            if scores is None:
                _leave(task, state, save)
            assert scores is not None
            save(best=_end_epoch(task, state, scores))
            if team.any(stop.is_set()):
                _leave(task, state, save, saved=True)
    best = _at_its_best(task, work)
    if how.lora_rank:
        merge_lora(best.tower)
    return best, work


def _checkpoint(task: Task, work: Work, settings: dict[str, Any]) -> Checkpoint:
    """All that the next step depends on, whole; of a divided model in the first process only, with the others' help."""
    moments, described = optimizer_tensors(work.solver, work.names)
    tensors = {f"model/{key}": value for key, value in work.model.state_dict().items()} | moments
    tensors |= {f"average/{key}": value for key, value in work.average.items()}
    if task.sharded:
        # One at a time, and out of the device's memory, which needn't hold them all.
        each = ((key, sharding.whole(value)) for key, value in tensors.items())
        tensors = {key: value.cpu() for key, value in each if task.team.first}
    content = {
        "settings": settings,
        "training": dataclasses.asdict(work.state),
        "optimizer": described,
        "scaler": work.scaler.state_dict(),
        "rng": capture_rng(),
    }
    return Checkpoint(work.state.step, tensors, content)


def _go_on(task: Task, work: Work, loaded: Checkpoint, settings: dict[str, Any]) -> None:
    """Stand where a checkpoint stands."""
    saved = loaded.state["settings"]
    if saved != settings:
        changed = [key for key, value in settings.items() if saved.get(key) != value]
        raise GeoError(
            f"an unfinished training of this name has other settings: {', '.join(changed[:3])}",
            where=task.directory,
            hint="give it the same ones, choose another --name, or start it again with --overwrite",
        )
    work.state = State(**loaded.state["training"])
    tensors = {
        key: sharding.divide(value, work.names.get(_owner(key))) for key, value in loaded.tensors.items()
    }
    work.model.load_state_dict(_named(tensors, "model/"))
    load_optimizer_tensors(work.solver, work.names, tensors, loaded.state["optimizer"])
    work.scaler.load_state_dict(loaded.state["scaler"])
    work.average = _named(tensors, "average/")
    restore_rng(loaded.state["rng"])
    if task.team.first:
        say(f"going on from step {work.state.step:,}, epoch {work.state.epoch + 1}")


def _leave(task: Task, state: State, save: Callable[[], None], *, saved: bool = False) -> None:
    """End, because somebody asked for it, with everything saved."""
    if not saved:
        save()
    if task.team.first:
        warn(f"interrupted: {state.step:,} steps are done and saved; the same command goes on from there")
    raise KeyboardInterrupt


def _learn_epoch(task: Task, work: Work, stop: threading.Event, save: Callable[[], None]) -> None:
    """The steps of an epoch that are still to be done."""
    team, state, n = task.team, work.state, len(task.learnt)
    per_epoch = -(-n // state.step_rows)
    drawn = torch.randperm(n, generator=get_generator(task.config.training.seed, ORDER, state.epoch))
    order = task.learnt[drawn.numpy()]
    steps = [order[start : start + state.step_rows] for start in range(0, n, state.step_rows)]
    begun = state.epoch * per_epoch
    saved_at = time.monotonic()
    work.model.train()
    every = task.config.tracking.progress_seconds
    with progress(f"epoch {state.epoch + 1}", begun + per_epoch - state.step, "steps", every) as advance:
        while state.step < begun + per_epoch:
            left = steps[state.step - begun :]
            passes = [team.passes(rows, state.pass_rows) for rows in left]
            try:
                with read_pixels(task, work.model, [one for own in passes for one in own]) as pictures:
                    for rows, own in zip(left, passes, strict=True):
                        began = time.perf_counter()
                        loss = accumulate_gradients(task, work.model, work.scaler, state.step, pictures, own)
                        _apply(task, work, loss, rows, per_epoch * task.how.epochs)
                        if work.warm:
                            work.samples += len(rows)
                            work.seconds += time.perf_counter() - began
                        work.warm = True
                        state.step += 1
                        advance(1)
                        if team.any(stop.is_set()):
                            _leave(task, state, save)
                        if team.any(time.monotonic() - saved_at > 60 * task.how.checkpoint_minutes):
                            save()
                            saved_at = time.monotonic()
            except OutOfMemory:
                _halve_passes(task, state)


def _apply(task: Task, work: Work, loss: float, rows: NDArray[np.int64], steps: int) -> None:
    """One step along the gradients, unless there is something wrong with them."""
    how, state, solver, scaler = task.how, work.state, work.solver, work.scaler
    good = math.isfinite(loss)
    if good:
        scaler.unscale_(solver)
        norm = sharding.whole(nn.utils.clip_grad_norm_(work.names.values(), how.clip_norm, foreach=True))
        # With float16, gradients overflow now and then; the scaler then skips the step, and lowers its scale.
        good = scaler.is_enabled() or bool(norm.isfinite())
    if good:
        factor = warmup_cosine(state.step, steps, how.warmup)
        for group in solver.param_groups:
            group["lr"] = group["peak"] * factor
        scaler.step(solver)
        scaler.update()
        state.skipped_in_a_row = 0
        state.loss += loss
        state.good_steps += 1
        with torch.no_grad():
            for key, mean in work.average.items():
                mean.lerp_(work.names[key], 1 - how.ema)
    else:
        _skip_step(task, state, rows)
    solver.zero_grad(set_to_none=True)


def _halve_passes(task: Task, state: State) -> None:
    """Less at once, more often: a step's samples, and what they are changed to, stay the same."""
    if state.pass_rows <= task.team.size:
        raise GeoError(
            "out of memory even with one sample per pass",
            where="finetune.batch_size",
            hint="use --set finetune.checkpointing=true, or fewer finetune.last_layers",
        )
    state.pass_rows = -(-state.pass_rows // 2)
    if task.team.first:
        warn(
            f"out of memory: {state.pass_rows} samples per pass from now on, "
            f"{-(-state.step_rows // state.pass_rows)} passes per step; steps stay as large as they were"
        )


def _skip_step(task: Task, state: State, rows: NDArray[np.int64]) -> None:
    """A step without finite loss and gradients is left out; several in a row end the training."""
    ids = ", ".join(str(one) for one in task.data.sample_id[rows][:10]) + (", …" if len(rows) > 10 else "")
    state.skipped_steps += 1
    state.skipped_in_a_row += 1
    if task.team.first:
        warn(f"step {state.step + 1} is skipped: its loss is NaN or infinite (samples {ids})")
    if state.skipped_in_a_row >= _MOST_BAD_STEPS:
        raise GeoError(
            f"the loss was NaN or infinite {_MOST_BAD_STEPS} steps in a row, last for samples {ids}",
            where=task.checkpoints,
            hint="lower finetune.backbone_lr and head_lr, and start again with --overwrite; the last checkpoint is good",
        )


def _end_epoch(task: Task, state: State, scores: dict[str, float]) -> bool:
    """Note what the epoch was worth; whether it is the best so far."""
    state.epoch += 1
    loss = state.loss / state.good_steps if state.good_steps else None
    state.history.append(
        {
            "epoch": float(state.epoch),
            "train_loss": loss,
            "skipped_steps": float(state.skipped_steps),
            **scores,
        }
    )
    state.loss, state.good_steps, state.skipped_steps = 0.0, 0, 0
    score = scores.get("val_score")
    if task.team.first:
        say(
            f"epoch {state.epoch}: loss {'–' if loss is None else f'{loss:.4f}'}"
            + ("" if score is None else f", score {score:.4f}")
        )
    # Where nothing is held out, the last epoch is taken.
    if score is not None and score <= state.best_score:
        return False
    state.best_score, state.best_epoch = -1.0 if score is None else score, state.epoch
    return True


def _at_its_best(task: Task, work: Work) -> GeoModel:
    """The model, whole, with the weights of its best epoch; as it was before any step, if no epoch was better."""
    state = work.state
    if state.best_epoch == 0:
        if task.team.first:
            warn("no epoch was better than the frozen backbone: the run is the one that it started from")
        return new_model(task)
    model = work.model
    if task.sharded:
        model = new_model(task)
        model.forget_gallery()
    names = dict(model.named_parameters())
    best = task.team.agree(best_checkpoint(task.checkpoints) if task.team.first else None)
    loaded = None if best is None else load_checkpoint(best, task.device)
    if loaded is None or loaded.state["training"]["epoch"] != state.best_epoch:
        if task.team.first:
            warn(f"the checkpoint of the best epoch, {state.best_epoch}, is lost; the last epoch is taken")
        weights, average = work.model.state_dict(), work.average
    else:
        weights, average = _named(loaded.tensors, "model/"), _named(loaded.tensors, "average/")
    weights, average, start = (
        {key: sharding.whole(value) for key, value in tensors.items()}
        for tensors in (weights, average, work.start)
    )
    model.load_state_dict(weights)
    with torch.no_grad():
        for key, value in _output(names, average, start, task.how.wise_ft).items():
            names[key].copy_(value)
    return model


def _output(
    names: Mapping[str, Tensor], average: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """The weights that a run would have if it ended now, where they aren't the model's own: the average's, and by WiSE-FT
    (Wortsman et al., CVPR 2022, eq. 1) that share of the way from where they started.
    """
    ends = average or names
    between = {key: torch.lerp(begun, ends[key].detach(), share) for key, begun in start.items()}
    return {**average, **between}


def _start(names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What to start between from: of a low-rank update B·A, B alone, so that the whole lies between."""
    return {key: p.detach().clone() for key, p in names.items() if not is_lora_a(key)}


@contextmanager
def _as_output(work: Work, how: Finetune) -> Iterator[None]:
    """The model as it would be written."""
    given = _output(work.names, work.average, work.start, how.wise_ft)
    own = {key: work.names[key].detach().clone() for key in given}
    with torch.no_grad():
        for key, value in given.items():
            work.names[key].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for key, value in own.items():
                work.names[key].copy_(value)


def _owner(key: str) -> str:
    """The parameter that a checkpoint's tensor is, or belongs to: `average/NAME`, `optimizer/NAME/exp_avg`."""
    kind, _, name = key.partition("/")
    return name.rpartition("/")[0] if kind == "optimizer" else name


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C are noted, so that the step at work is finished and saved first."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, lambda *_: stop.set())
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
