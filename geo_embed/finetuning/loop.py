"""The unfrozen phase: steps over epochs, from one checkpoint to the next, to the weights that the run will have.

Everything that a step draws comes from the seed and the step's number, never from what was drawn before: a training that is
killed and goes on from its last checkpoint ends at the same bits as one that never stopped.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geo_embed.console import counted, say, warn
from geo_embed.console import progress as progress_bar
from geo_embed.errors import GeoError
from geo_embed.finetuning import sharding
from geo_embed.finetuning.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from geo_embed.finetuning.lora import merge_lora
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.output import best_model, output_in_place
from geo_embed.finetuning.prepare import check_first_score
from geo_embed.finetuning.state import Progress, TrainingState, make_checkpoint, new_state, resume
from geo_embed.finetuning.step import OutOfMemory, accumulate_gradients, read_images
from geo_embed.finetuning.task import ORDER_STREAM, Task, unfreeze_for
from geo_embed.finetuning.validate import Validation, deal_val, validate
from geo_embed.fitting.epochs import EpochChoice, scores_without
from geo_embed.heads.losses import epoch_losses
from geo_embed.optim import ema_decay, warmup_cosine
from geo_embed.seeding import get_generator
from geo_embed.tracking import Log

_MOST_BAD_STEPS = 3


Save = Callable[..., None]


def train_unfrozen(task: Task, settings: dict[str, Any], log: Log) -> tuple[GeoModel, TrainingState]:
    """Train, or go on training, to the end; the model as it was at its best, and what was done.

    Args:
        task: what is trained on what.
        settings: kept in each checkpoint; a training goes on with the very same only.
        log: is shown each epoch, those before a checkpoint first.

    Raises:
        GeoError: other settings than the checkpoint's; a first validation that differs from the run's cached score; a loss
            that stays NaN; no memory for a single sample; a full disk.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    team, finetune = task.team, task.finetune
    latest = latest_checkpoint(task.checkpoints) if team.first and task.checkpoints.is_dir() else None
    latest = team.broadcast(latest)
    state, counts = new_state(task)

    def save(*, best: bool = False) -> None:
        if task.sharded or team.first:
            checkpoint = make_checkpoint(task, state, settings)
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
                if left_out := state.model.left_out():
                    say(f"from the first step on without {', '.join(left_out)}, which can't be trained on")
            frozen = check_first_score(task, state.model, stop)
            if frozen.predictions is not None:
                state.progress.frozen_score = frozen.scores["val_score"]
                _choose(task, state, 0, frozen)
            state.model.leave_frozen()
            save()
        # From a checkpoint: weights, moments, averages and counters as they were.
        else:
            state.model.leave_frozen()
            loaded = load_checkpoint(latest, "cpu" if task.sharded else task.device)
            resume(task, state, loaded, settings)

        # Epochs, until there are enough or the score hasn't risen for `patience` of them, nor that without any part of the
        # validation samples. Each is validated with the weights that would be written, and leaves a checkpoint.
        progress = state.progress
        for number, entry in enumerate(progress.history, 1):
            log(number, entry)
        while progress.epoch < finetune.epochs and not _choice(progress, finetune.patience).ended:
            unfreeze_for(state.model, finetune, progress.epoch)
            _train_epoch(task, state, stop, save)
            with output_in_place(state, finetune):
                validation = validate(task, state.model, stop)
            if validation is None:
                _interrupt(task, progress, save)
            assert validation is not None
            is_best = _choose(task, state, progress.epoch + 1, validation)
            _end_epoch(task, progress, validation.scores)
            save(best=is_best)
            log(progress.epoch, progress.history[-1])
            if team.any(stop.is_set()):
                _interrupt(task, progress, save, saved=True)

    # The best epoch's weights, from its checkpoint; low-rank updates become part of the weights that they belong to.
    model = best_model(task, state)
    if finetune.lora_rank:
        merge_lora(model.tower)
    return model, state


def _interrupt(task: Task, progress: Progress, save: Save, *, saved: bool = False) -> None:
    """End, because somebody asked for it, with everything saved."""
    if not saved:
        save()
    if task.team.first:
        warn(
            f"interrupted: {counted(progress.step, 'step is', 'steps are')} done and saved; the same command goes on from there"
        )
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
    seconds = task.progress_seconds
    label, best = f"epoch {progress.epoch + 1} of {task.finetune.epochs}", _best_so_far(progress)
    # One bar for the whole team.
    shown = end - progress.step if team.first else 0
    with progress_bar(label, shown, "steps", seconds) as advance:
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
                        losses = accumulate_gradients(
                            task, state.model, state.scaler, progress.step, batches, shares
                        )
                        _optimizer_step(task, state, losses, rows, total)
                        if state.warm:
                            state.samples += len(rows)
                            state.seconds += time.perf_counter() - began
                        state.warm = True
                        progress.step += 1
                        advance(1, f"loss {sum(losses.values()):.4f}{best}")
                        if team.any(stop.is_set()):
                            _interrupt(task, progress, save)
                        if team.any(time.monotonic() - saved_at > 60 * task.finetune.checkpoint_minutes):
                            save()
                            saved_at = time.monotonic()
            except OutOfMemory:
                _halve_passes(task, progress)


def _best_so_far(progress: Progress) -> str:
    """The best score, the frozen run's included; nothing where no sample was held out."""
    return f", best score {progress.best_score:.4f}" if progress.best_score >= 0 else ""


def _optimizer_step(
    task: Task, state: TrainingState, losses: dict[str, float], rows: NDArray[np.int64], steps: int
) -> None:
    """One step along the gradients, unless there is something wrong with them.

    Args:
        losses: the parts of the step's.
        rows: of its samples.
        steps: of the whole training.
    """
    finetune, progress, optimizer, scaler = task.finetune, state.progress, state.optimizer, state.scaler
    good = all(math.isfinite(loss) for loss in losses.values())
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
        if not progress.good_steps:
            progress.loss_parts = dict.fromkeys(losses, 0.0)
        # A checkpoint of an earlier version, in the middle of an epoch, knows of no parts: they are left out until the next.
        for name in progress.loss_parts:
            progress.loss_parts[name] += losses[name]
        progress.loss += sum(losses.values())
        progress.good_steps += 1
        with torch.no_grad():
            for key, mean in state.average.items():
                mean.lerp_(state.parameters[key], 1 - ema_decay(finetune.ema, progress.step))
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
            f"out of memory: {counted(progress.pass_rows, 'sample per', 'samples per')} pass from now on, "
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


def _end_epoch(task: Task, progress: Progress, scores: dict[str, float]) -> None:
    """Note what the epoch was worth."""
    progress.epoch += 1
    steps = progress.good_steps
    loss = progress.loss / steps if steps else None
    parts = epoch_losses({name: part / steps for name, part in progress.loss_parts.items()}) if steps else {}
    progress.history.append(
        {
            "epoch": float(progress.epoch),
            **parts,
            "train_loss": loss,
            "skipped_steps": float(progress.skipped_steps),
            **scores,
        }
    )
    progress.loss, progress.loss_parts, progress.good_steps, progress.skipped_steps = 0.0, {}, 0, 0
    score = scores.get("val_score")
    if task.team.first:
        say(
            f"epoch {progress.epoch}: loss {'–' if loss is None else f'{loss:.4f}'}"
            + ("" if score is None else f", score {score:.4f}")
        )


def _choice(progress: Progress, patience: int) -> EpochChoice:
    """The rules that choose an epoch, as a training stands: of all validation samples, and of all but each part of them."""
    best, scores = [progress.best_epoch, *progress.part_epochs], [progress.best_score, *progress.part_scores]
    return EpochChoice(patience, progress.epoch, best, scores)


def _choose(task: Task, state: TrainingState, epoch: int, validation: Validation) -> bool:
    """Let every rule look at an epoch, 0 for the start; whether all samples together keep it."""
    progress, predictions = state.progress, validation.predictions
    # Where nothing is held out, the last epoch is taken.
    if predictions is None:
        progress.best_epoch = epoch
        return True
    scores = [validation.scores["val_score"]]
    # A checkpoint of an earlier version knows of no parts, and doesn't learn of them half way.
    if not epoch or progress.part_epochs:
        # JSON knows no infinity, which a sample without others gives: below any score is enough.
        without = scores_without(predictions, task.val_truth, deal_val(task))
        scores += [max(score, -1.0) for score in without]
    patience = task.finetune.patience
    choice = _choice(progress, patience) if epoch else EpochChoice(patience)
    choice.note(epoch, scores)
    progress.best_epoch, *progress.part_epochs = choice.best
    progress.best_score, *progress.part_scores = choice.scores
    state.answers[epoch] = predictions
    state.answers = {kept: state.answers[kept] for kept in sorted(set(progress.part_epochs))}
    return progress.best_epoch == epoch


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
