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
from geo_embed.console import progress as progress_bar
from geo_embed.console import say, warn
from geo_embed.devices import amp_dtype
from geo_embed.errors import GeoError
from geo_embed.finetuning import sharding
from geo_embed.finetuning.checkpoint import (
    Checkpoint,
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from geo_embed.finetuning.lora import is_lora_a, merge_lora
from geo_embed.finetuning.model import GeoModel, Summary
from geo_embed.finetuning.prepare import check_first_score
from geo_embed.finetuning.step import OutOfMemory, accumulate_gradients, read_images
from geo_embed.finetuning.task import (
    ORDER_STREAM,
    Task,
    new_model,
    passes_per_step,
    samples_per_pass,
    unfreeze_for,
)
from geo_embed.finetuning.validate import validate
from geo_embed.optim import BETAS, warmup_cosine
from geo_embed.seeding import get_generator

_MOST_BAD_STEPS = 3


@dataclass
class Progress:
    """How far a training is; with the weights and moments, all that a checkpoint holds.

    Attributes:
        step: steps that are done, over all epochs.
        epoch: epochs that are done.
        step_rows, pass_rows: samples per step and per pass, of all processes together.
        frozen_score: on the validation samples, before any step.
        best_score, best_epoch: of the best epoch so far, counted from 1; 0 is the frozen run.
        history: a row per epoch.
        loss, good_steps, skipped_steps: of the epoch under way: the sum of its losses, its steps that counted, and those that
            were skipped.
        skipped_in_a_row: steps that were skipped since the last that counted.
    """

    step: int = 0
    epoch: int = 0
    step_rows: int = 0
    pass_rows: int = 0
    frozen_score: float | None = None
    best_score: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float | None]] = field(default_factory=list)
    loss: float = 0.0
    good_steps: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


@dataclass
class TrainingState:
    """What a training changes.

    Attributes:
        parameters: the model's, by name.
        average: of each, where there is one (`finetune.ema`).
        start: what each was before any step, where the result is to lie between (`finetune.wise_ft`).
        progress: how far it is.
        samples, seconds: what the steps since this start, but the first, saw and took.
        warm: whether there was a first.
    """

    model: GeoModel
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: dict[str, Tensor]
    start: dict[str, Tensor]
    progress: Progress
    samples: int = 0
    seconds: float = 0.0
    warm: bool = False


Save = Callable[..., None]


def train_unfrozen(task: Task, settings: dict[str, Any]) -> tuple[GeoModel, TrainingState]:
    """Train, or go on training, to the end; the model as it was at its best, and what was done.

    Args:
        task: what is trained on what.
        settings: kept in each checkpoint; a training goes on with the very same only.

    Raises:
        GeoError: other settings than the checkpoint's; a first validation that differs from the run's cached score; a loss
            that stays NaN; no memory for a single sample; a full disk.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    team, finetune = task.team, task.finetune
    latest = latest_checkpoint(task.checkpoints) if team.first and task.checkpoints.is_dir() else None
    latest = team.broadcast(latest)
    state, counts = _new_state(task)

    def save(*, best: bool = False) -> None:
        if task.sharded or team.first:
            checkpoint = _checkpoint(task, state, settings)
        if team.first:
            save_checkpoint(task.checkpoints, checkpoint, keep_last=finetune.keep_checkpoints, best=best)

    with _stopping() as stop:
        # From the start: images and cache must agree before any step is taken, and the frozen run is the score to beat.
        # The gallery of a refiner counts in that score, and is forgotten after it: it lies in the frozen backbone's space.
        if latest is None:
            if team.first:
                say(
                    f"parameters: backbone {counts.backbone:,}, fusion {counts.fusion:,}, heads {counts.heads:,}; "
                    f"{counts.trainable:,} trained"
                )
            score = check_first_score(task, state.model, stop)
            if score is not None:
                state.progress.frozen_score = state.progress.best_score = score
            state.model.forget_gallery()
            save()
        # From a checkpoint: weights, moments, averages and counters as they were.
        else:
            state.model.forget_gallery()
            loaded = load_checkpoint(latest, "cpu" if task.sharded else task.device)
            _resume(task, state, loaded, settings)

        # Epochs, until there are enough or the score hasn't risen for `patience` of them. Each is validated with the
        # weights that would be written, and leaves a checkpoint.
        progress = state.progress
        while progress.epoch < finetune.epochs and progress.epoch - progress.best_epoch < finetune.patience:
            unfreeze_for(state.model, finetune, progress.epoch)
            _train_epoch(task, state, stop, save)
            with _output_in_place(state, finetune):
                scores = validate(task, state.model, stop)
            if scores is None:
                _interrupt(task, progress, save)
            assert scores is not None
            save(best=_end_epoch(task, progress, scores))
            if team.any(stop.is_set()):
                _interrupt(task, progress, save, saved=True)

    # The best epoch's weights, from its checkpoint; low-rank updates become part of the weights that they belong to.
    model = _best_model(task, state)
    if finetune.lora_rank:
        merge_lora(model.tower)
    return model, state


def _new_state(task: Task) -> tuple[TrainingState, Summary]:
    """The state before any step, in every process, and the counts of the whole model's parameters."""
    finetune = task.finetune
    model = new_model(task)
    counts = model.summary()
    if task.sharded:
        sharding.shard(model, task.device, task.team.size)
    parameters = dict(model.named_parameters())
    state = TrainingState(
        model,
        parameters,
        torch.optim.AdamW(model.parameter_groups(finetune), betas=BETAS, fused=True),
        torch.amp.GradScaler(task.device.type, enabled=amp_dtype(task.device) == torch.float16),
        {key: p.detach().clone() for key, p in parameters.items()} if finetune.ema else {},
        _wise_ft_start(parameters) if finetune.wise_ft < 1 else {},
        Progress(step_rows=samples_per_pass(task) * passes_per_step(task), pass_rows=samples_per_pass(task)),
    )
    return state, counts


def _checkpoint(task: Task, state: TrainingState, settings: dict[str, Any]) -> Checkpoint:
    """All that the next step depends on, whole; of a divided model in the first process only, with the others' help."""
    tensors = {f"model/{key}": value for key, value in state.model.state_dict().items()}
    tensors |= optimizer_tensors(state.optimizer, state.parameters)
    tensors |= {f"average/{key}": value for key, value in state.average.items()}
    if task.sharded:
        # One at a time, and out of the device's memory, which needn't hold them all.
        each = ((key, sharding.whole(value)) for key, value in tensors.items())
        tensors = {key: value.cpu() for key, value in each if task.team.first}
    content = {
        "settings": settings,
        "training": dataclasses.asdict(state.progress),
        "scaler": state.scaler.state_dict(),
    }
    return Checkpoint(state.progress.step, tensors, content)


def _resume(task: Task, state: TrainingState, loaded: Checkpoint, settings: dict[str, Any]) -> None:
    """Stand where a checkpoint stands. Raises GeoError where it was made with other settings."""
    saved = loaded.state["settings"]
    if saved != settings:
        changed = [key for key, value in settings.items() if saved.get(key) != value]
        raise GeoError(
            f"an unfinished training of this name has other settings: {', '.join(changed[:3])}",
            where=task.directory,
            hint="give it the same ones, choose another --name, or start it again with --overwrite",
        )
    state.progress = Progress(**loaded.state["training"])
    tensors = {
        key: sharding.divide(value, state.parameters.get(_owner(key)))
        for key, value in loaded.tensors.items()
    }
    state.model.load_state_dict(_below(tensors, "model/"))
    load_optimizer_tensors(state.optimizer, state.parameters, tensors)
    state.scaler.load_state_dict(loaded.state["scaler"])
    state.average = _below(tensors, "average/")
    if task.team.first:
        say(f"going on from step {state.progress.step:,}, epoch {state.progress.epoch + 1}")


def _interrupt(task: Task, progress: Progress, save: Save, *, saved: bool = False) -> None:
    """End, because somebody asked for it, with everything saved."""
    if not saved:
        save()
    if task.team.first:
        warn(f"interrupted: {progress.step:,} steps are done and saved; the same command goes on from there")
    raise KeyboardInterrupt


def _train_epoch(task: Task, state: TrainingState, stop: threading.Event, save: Save) -> None:
    """The steps of an epoch that are still to be done."""
    team, progress, n = task.team, state.progress, len(task.train_rows)
    # The epoch's order follows from the seed and its number, and so does each step's part of the samples: whoever goes
    # on in the middle of an epoch finds the same steps.
    steps_per_epoch = -(-n // progress.step_rows)
    drawn = torch.randperm(n, generator=get_generator(task.seed, ORDER_STREAM, progress.epoch))
    order = task.train_rows[drawn.numpy()]
    steps = [order[start : start + progress.step_rows] for start in range(0, n, progress.step_rows)]
    first = progress.epoch * steps_per_epoch
    end = first + steps_per_epoch
    total = steps_per_epoch * task.finetune.epochs
    saved_at = time.monotonic()
    state.model.train()
    every = task.progress_seconds
    with progress_bar(f"epoch {progress.epoch + 1}", end - progress.step, "steps", every) as advance:
        # Once around, but for each time that memory runs out: the step at work is begun again, in smaller passes.
        while progress.step < end:
            remaining = steps[progress.step - first :]
            passes = [team.passes(rows, progress.pass_rows) for rows in remaining]
            try:
                with read_images(
                    task, state.model, [share for shares in passes for share in shares]
                ) as batches:
                    for rows, shares in zip(remaining, passes, strict=True):
                        began = time.perf_counter()
                        loss = accumulate_gradients(
                            task, state.model, state.scaler, progress.step, batches, shares
                        )
                        _optimizer_step(task, state, loss, rows, total)
                        if state.warm:
                            state.samples += len(rows)
                            state.seconds += time.perf_counter() - began
                        state.warm = True
                        progress.step += 1
                        advance(1)
                        if team.any(stop.is_set()):
                            _interrupt(task, progress, save)
                        if team.any(time.monotonic() - saved_at > 60 * task.finetune.checkpoint_minutes):
                            save()
                            saved_at = time.monotonic()
            except OutOfMemory:
                _halve_passes(task, progress)


def _optimizer_step(
    task: Task, state: TrainingState, loss: float, rows: NDArray[np.int64], steps: int
) -> None:
    """One step along the gradients, unless there is something wrong with them.

    Args:
        loss: of the step.
        rows: of its samples.
        steps: of the whole training.
    """
    finetune, progress, optimizer, scaler = task.finetune, state.progress, state.optimizer, state.scaler
    good = math.isfinite(loss)
    if good:
        scaler.unscale_(optimizer)
        norm = sharding.whole(
            nn.utils.clip_grad_norm_(state.parameters.values(), finetune.clip_norm, foreach=True)
        )
        # With float16, gradients overflow now and then; the scaler then skips the step, and lowers its scale.
        good = scaler.is_enabled() or bool(norm.isfinite())
    if good:
        factor = warmup_cosine(progress.step, steps, finetune.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        scaler.step(optimizer)
        scaler.update()
        progress.skipped_in_a_row = 0
        progress.loss += loss
        progress.good_steps += 1
        with torch.no_grad():
            for key, mean in state.average.items():
                mean.lerp_(state.parameters[key], 1 - finetune.ema)
    else:
        _skip_step(task, progress, rows)
    optimizer.zero_grad(set_to_none=True)


def _halve_passes(task: Task, progress: Progress) -> None:
    """Less at once, more often: a step's samples, and what they are changed to, stay the same."""
    if progress.pass_rows <= task.team.size:
        raise GeoError(
            "out of memory even with one sample per pass",
            where="finetune.batch_size",
            hint="use --set finetune.checkpointing=true, or fewer finetune.last_layers",
        )
    progress.pass_rows = -(-progress.pass_rows // 2)
    if task.team.first:
        warn(
            f"out of memory: {progress.pass_rows} samples per pass from now on, "
            f"{-(-progress.step_rows // progress.pass_rows)} passes per step; steps stay as large as they were"
        )


def _skip_step(task: Task, progress: Progress, rows: NDArray[np.int64]) -> None:
    """A step without finite loss and gradients is left out; several in a row end the training."""
    ids = ", ".join(str(sample) for sample in task.examples.sample_id[rows][:10])
    ids += ", …" if len(rows) > 10 else ""
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    if task.team.first:
        warn(f"step {progress.step + 1} is skipped: its loss is NaN or infinite (samples {ids})")
    if progress.skipped_in_a_row >= _MOST_BAD_STEPS:
        raise GeoError(
            f"the loss was NaN or infinite {_MOST_BAD_STEPS} steps in a row, last for samples {ids}",
            where=task.checkpoints,
            hint="lower finetune.backbone_lr and head_lr, and start again with --overwrite; the last checkpoint is good",
        )


def _end_epoch(task: Task, progress: Progress, scores: dict[str, float]) -> bool:
    """Note what the epoch was worth; whether it is the best so far."""
    progress.epoch += 1
    loss = progress.loss / progress.good_steps if progress.good_steps else None
    progress.history.append(
        {
            "epoch": float(progress.epoch),
            "train_loss": loss,
            "skipped_steps": float(progress.skipped_steps),
            **scores,
        }
    )
    progress.loss, progress.good_steps, progress.skipped_steps = 0.0, 0, 0
    score = scores.get("val_score")
    if task.team.first:
        say(
            f"epoch {progress.epoch}: loss {'–' if loss is None else f'{loss:.4f}'}"
            + ("" if score is None else f", score {score:.4f}")
        )
    # Where nothing is held out, the last epoch is taken.
    if score is not None and score <= progress.best_score:
        return False
    progress.best_score, progress.best_epoch = -1.0 if score is None else score, progress.epoch
    return True


def _best_model(task: Task, state: TrainingState) -> GeoModel:
    """The model, whole, with the weights of its best epoch; as it was before any step, if no epoch was better."""
    progress = state.progress
    if progress.best_epoch == 0:
        if task.team.first:
            warn("no epoch was better than the frozen backbone: the run is the one that it started from")
        return new_model(task)
    # A divided model can't take whole weights: a new one does.
    model = state.model
    if task.sharded:
        model = new_model(task)
        model.forget_gallery()
    parameters = dict(model.named_parameters())
    best = task.team.broadcast(best_checkpoint(task.checkpoints) if task.team.first else None)
    loaded = None if best is None else load_checkpoint(best, task.device)
    if loaded is None or loaded.state["training"]["epoch"] != progress.best_epoch:
        if task.team.first:
            warn(f"the checkpoint of the best epoch, {progress.best_epoch}, is lost; the last epoch is taken")
        weights, average = state.model.state_dict(), state.average
    else:
        weights, average = _below(loaded.tensors, "model/"), _below(loaded.tensors, "average/")
    weights, average, start = (
        {key: sharding.whole(value) for key, value in tensors.items()}
        for tensors in (weights, average, state.start)
    )
    model.load_state_dict(weights)
    with torch.no_grad():
        for key, value in _output_weights(parameters, average, start, task.finetune.wise_ft).items():
            parameters[key].copy_(value)
    return model


def _output_weights(
    trained: Mapping[str, Tensor], average: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """The weights that a run would have if it ended now, where they aren't the model's own: the average's, and by WiSE-FT
    (Wortsman et al., CVPR 2022, eq. 1) that share of the way from where they started.
    """
    # θ = θ_start + share · (θ_end − θ_start), where θ_end is the average over steps, if there is one. Averages of what
    # isn't interpolated (the A of a low-rank update) are taken as they are.
    ends = average or trained
    between = {key: torch.lerp(begun, ends[key].detach(), share) for key, begun in start.items()}
    return {**average, **between}


def _wise_ft_start(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What to start between from: of a low-rank update B·A, B alone, so that the whole lies between."""
    return {key: p.detach().clone() for key, p in parameters.items() if not is_lora_a(key)}


@contextmanager
def _output_in_place(state: TrainingState, finetune: Finetune) -> Iterator[None]:
    """The model as it would be written, while the block runs."""
    output = _output_weights(state.parameters, state.average, state.start, finetune.wise_ft)
    trained = {key: state.parameters[key].detach().clone() for key in output}
    with torch.no_grad():
        for key, value in output.items():
            state.parameters[key].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for key, value in trained.items():
                state.parameters[key].copy_(value)


def _owner(key: str) -> str:
    """The parameter that a checkpoint's tensor is, or belongs to: `average/NAME`, `optimizer/NAME/exp_avg`."""
    kind, _, name = key.partition("/")
    return name.rpartition("/")[0] if kind == "optimizer" else name


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
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
