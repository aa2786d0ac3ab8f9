"""Stage 3: pictures end to end through an unfrozen backbone, from a run's heads on, to a run with a backbone of its own.

Everything that a step draws comes from the seed and the step's number, never from what was drawn before: a training that is
killed and goes on from its last checkpoint ends at the same bits as one that never stopped.
"""

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geo_embed import backbone as backbones
from geo_embed import geography, images
from geo_embed.augment import Augmentation, augment, tta_views
from geo_embed.checkpoint import (
    Checkpoint,
    best_checkpoint,
    capture_rng,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    read_state,
    restore_rng,
    save_checkpoint,
)
from geo_embed.config import Config, Finetune
from geo_embed.dataset import Samples, load_samples, missing_images, text_ids
from geo_embed.errors import GeoError
from geo_embed.extract import store_attributes
from geo_embed.fit import Data, fit_heads, join
from geo_embed.lora import add_lora, is_lora_a, merge_lora, train_lora_only
from geo_embed.metrics import final_metrics, metrics
from geo_embed.model import GeoModel
from geo_embed.parallel import Share, Team, join_team
from geo_embed.pictures import PixelBatch, read_batches
from geo_embed.predict import (
    Predictions,
    against,
    apply_heads,
    load_backbone_of,
    load_heads,
    load_mixture,
    save_heads,
    write_predictions,
)
from geo_embed.progress import progress, say, warn
from geo_embed.run import (
    Run,
    check_new_name,
    describe_provenance,
    load_run,
    new_run_name,
    restore_replaced,
    write_description,
    write_json,
    writing_run,
)
from geo_embed.schedule import warmup_cosine
from geo_embed.seeding import get_generator
from geo_embed.store import check_fits, disk_errors, find_store, read_store
from geo_embed.validation import resampling_groups

CHECKPOINTS, BACKBONE = "checkpoints", "backbone"
# What a seed is split into.
_ORDER, _AUGMENT, _DROPOUT, _TOWER, _LORA = range(5)
# The cached embeddings are float16: what the pictures give anew may score this much otherwise, and no more; but for what a
# single sample weighs whose state moves from rank 1 to 2, where there are few.
_SAME_SCORE, _ONE_RANK = 0.002, 0.28
_MOST_BAD_STEPS = 3
_BETAS = (0.9, 0.98)
_LARGE_CARD_BYTES = 70e9


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` made.

    Attributes:
        samples_per_second: of the steps since this start, without the first, in which memory is found and code compiled, and
            without validations and checkpoints; None where there was no second.
    """

    run: str
    seconds: float
    epochs: int
    val: dict[str, Any]
    backbone: Path
    frozen_score: float | None
    samples_per_second: float | None


class _OutOfMemoryError(Exception):
    """A pass of some process was too large; nothing of its step was applied."""


@dataclass
class _State:
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


@dataclass(frozen=True)
class _Task:
    """What is trained on what; it stays as it is throughout."""

    config: Config
    run: Run
    samples: Samples
    data: Data
    index: NDArray[np.int64]
    learnt: NDArray[np.int64]
    held: NDArray[np.int64]
    device: torch.device
    team: Team
    directory: Path

    @property
    def how(self) -> Finetune:
        return self.config.finetune

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS


@dataclass
class _Work:
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
    state: _State
    samples: int = 0
    seconds: float = 0.0
    warm: bool = False


def finetune(
    config: Config,
    *,
    name: str | None = None,
    init: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> Finetuned:
    """Train backbone, fusion and heads from pictures, starting where a run's heads stand.

    An unfinished training of the same name and settings goes on from its last checkpoint.

    Args:
        config: all settings; the model's are the initial run's own.
        name: of the run; default: the unfinished one with these settings, else `finetune-` and the time.
        init: the run to start from; default: heads fitted on the spot, a run of its own named NAME-heads.
        limit: train on so many of the training samples only.
        overwrite: replace a run, or an unfinished training, of this name.

    Raises:
        GeoError: no pictures, no backbone, heads that don't fit; a first validation that differs from the run's cached score;
            a loss that stays NaN; a full disk. The last checkpoint is kept.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    started = time.monotonic()
    runs = config.paths.runs_dir
    try:
        with join_team(config.model.device) as team:
            if team.first:
                restore_replaced(runs)
            name = team.agree(
                (name or _unfinished(config, runs, init, limit) or new_run_name(runs, "finetune"))
                if team.first
                else None
            )
            directory = runs / name
            if (directory / "provenance.json").is_file() or not (directory / CHECKPOINTS).is_dir():
                check_new_name(runs, name, overwrite=overwrite)
            if init is None and team.first:
                _fit_own_heads(config, f"{name}-heads", overwrite=overwrite)
            team.wait()
            task = _prepare(config, load_run(runs, init or f"{name}-heads"), directory, limit, team)
            with _only_one(directory, team, afresh=overwrite):
                team.wait()
                model, work = _train(task, _settings(task.config, task.run, limit))
                val = _write(task, model, work.state, started)
    except torch.OutOfMemoryError as error:
        raise GeoError(
            f"out of memory: {error}".splitlines()[0],
            where="finetune.batch_size",
            hint="use a smaller --batch-size, --set finetune.checkpointing=true, or fewer finetune.last_layers",
        ) from error
    return Finetuned(
        name,
        time.monotonic() - started,
        len(work.state.history),
        val,
        directory / BACKBONE,
        work.state.frozen_score,
        work.samples / work.seconds if work.samples else None,
    )


def _fit_own_heads(config: Config, name: str, *, overwrite: bool) -> None:
    """The frozen phase; heads of the same settings that an interrupted training fitted are taken as they are."""
    path = config.paths.runs_dir / name
    if overwrite or not (path / "provenance.json").is_file():
        say("frozen phase: heads from the cache")
        fit_heads(config, name=name, overwrite=overwrite)
        return
    run = load_run(config.paths.runs_dir, name)
    if run.config.training != config.training:
        raise GeoError(
            "heads of other training settings have this name",
            where=path,
            hint=f"start from them with --init {name}, choose another --name, or fit them anew with --overwrite",
        )


@contextmanager
def _only_one(directory: Path, team: Team, *, afresh: bool) -> Iterator[None]:
    """Hold the directory of a training, emptied first if it is to begin afresh. The kernel lets go of a dead holder's.

    Raises:
        GeoError: another process trains there.
    """
    if not team.first:
        yield
        return
    with disk_errors(directory):
        (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    if _is_busy(directory):
        raise GeoError(
            "another process is training this run now",
            where=directory,
            hint="wait until it is done, or choose another --name",
        )
    if afresh:
        with disk_errors(directory):
            shutil.rmtree(directory)
            (directory / CHECKPOINTS).mkdir(parents=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        with disk_errors(directory):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
        # Where nothing was saved, nothing is left.
        with suppress(OSError):
            (directory / CHECKPOINTS).rmdir()
            directory.rmdir()


def _is_busy(directory: Path) -> bool:
    """Whether another process trains there now."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _prepare(config: Config, run: Run, directory: Path, limit: int | None, team: Team) -> _Task:
    """The samples with their pictures, split as the initial run split them."""
    if load_mixture(run) is not None or run.config.training.folds > 1:
        raise GeoError(
            "an ensemble, or a run made of folds, has no held-out samples of its own to go on with",
            where=run.path,
            hint="start from a run of geo fit-heads without --folds",
        )
    if directory.absolute() == run.path.absolute():
        raise GeoError(
            "a run can't be trained from itself", where=run.path, hint="give the new one another --name"
        )
    own = _own_config(config, run)
    samples = load_samples(own, "train")
    store = find_store(own, "train", fingerprint=run.provenance["store"]["fingerprint"])
    check_fits(store, samples)
    embeddings = read_store(store)
    data = join(own, samples, slice(0, len(samples)), embeddings)
    index = np.flatnonzero(embeddings.present.any(axis=1))
    try:
        table = pd.read_parquet(run.path / "split.parquet")
    except (OSError, ValueError) as error:
        raise GeoError("the run's split can't be read", where=run.path / "split.parquet") from error
    if hashlib.sha256(samples.csv.read_bytes()).hexdigest() != run.provenance["data"]["sha256"]:
        raise GeoError(
            "the training CSV has changed since the run was fitted on it",
            where=samples.csv,
            hint="fit heads again: geo fit-heads",
        )
    part = dict(zip(text_ids(table["sample_id"]), table["part"], strict=True))
    parts = np.array([part.get(one, "") for one in data.sample_id])
    learnt = np.flatnonzero(parts == "train")[:limit]
    if not len(learnt) or not np.array_equal(data.encoder.state_idx, run.labels.state_idx):
        raise GeoError(
            "the run was fitted on other samples, or other states, than the training CSV has now",
            where=run.path,
            hint="fit heads again: geo fit-heads",
        )
    held = np.flatnonzero(parts == "val")
    _check_pictures(samples, data, index, np.concatenate([learnt, held]))
    return _Task(
        own,
        run,
        samples,
        data,
        index,
        learnt,
        held,
        backbones.pick_device(config.model.device),
        team,
        directory,
    )


def _check_pictures(samples: Samples, data: Data, index: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    """Raise GeoError where pictures that have an embedding are no files any more: now, not hours into an epoch."""
    wanted = np.zeros((len(samples), data.present.shape[1]), dtype=bool)
    wanted[index[rows]] = data.present[rows]
    gone = [(i, v, reason) for i, v, reason in missing_images(samples) if wanted[i, v]]
    if gone:
        i, v, reason = gone[0]
        raise GeoError(
            f"{len(gone):,} pictures that the run was fitted on are gone, first sample {samples.sample_id[i]}, "
            f"view {samples.view_names[v]}: {reason}",
            where=samples.image_root,
            hint="put them back, or run geo extract --on-bad-image skip, and fit heads again",
        )


def _train(task: _Task, settings: dict[str, Any]) -> tuple[GeoModel, _Work]:
    """Train, or go on training, to the end; the model as it was at its best, and what was done."""
    team, how = task.team, task.how
    found = latest_checkpoint(task.checkpoints) if team.first and task.checkpoints.is_dir() else None
    latest = team.agree(found)
    model = _new_model(task)
    names = dict(model.named_parameters())
    work = _Work(
        model,
        names,
        torch.optim.AdamW(model.parameter_groups(how), betas=_BETAS, fused=True),
        torch.amp.GradScaler(task.device.type, enabled=_amp_dtype(task.device) == torch.float16),
        {key: p.detach().clone() for key, p in names.items()} if how.ema else {},
        _start(names) if how.wise_ft < 1 else {},
        _State(step_rows=_batch_size(task) * _accumulate(task), pass_rows=_batch_size(task)),
    )

    def save(*, best: bool = False) -> None:
        if team.first:
            checkpoint = _checkpoint(work, settings)
            save_checkpoint(task.checkpoints, checkpoint, keep_last=how.keep_checkpoints, best=best)

    with _stopping() as stop:
        if latest is None:
            if team.first:
                counts = model.summary()
                say(
                    f"parameters: backbone {counts.backbone:,}, fusion {counts.fusion:,}, heads {counts.heads:,}; "
                    f"{counts.trainable:,} trained"
                )
            _check_first_score(task, work, stop)
            model.forget_gallery()
            save()
        else:
            model.forget_gallery()
            _go_on(task, work, load_checkpoint(latest, task.device), settings)
        state = work.state
        while state.epoch < how.epochs and state.epoch - state.best_epoch < how.patience:
            _let_train(model, how, state.epoch)
            _learn_epoch(task, work, stop, save)
            with _as_output(work, how):
                scores = _judge(task, model, stop)
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


def _checkpoint(work: _Work, settings: dict[str, Any]) -> Checkpoint:
    moments, described = optimizer_tensors(work.solver, work.names)
    tensors = {f"model/{key}": value for key, value in work.model.state_dict().items()} | moments
    tensors |= {f"average/{key}": value for key, value in work.average.items()}
    content = {
        "settings": settings,
        "training": dataclasses.asdict(work.state),
        "optimizer": described,
        "scaler": work.scaler.state_dict(),
        "rng": capture_rng(),
    }
    return Checkpoint(work.state.step, tensors, content)


def _go_on(task: _Task, work: _Work, loaded: Checkpoint, settings: dict[str, Any]) -> None:
    """Stand where a checkpoint stands."""
    saved = loaded.state["settings"]
    if saved != settings:
        changed = [key for key, value in settings.items() if saved.get(key) != value]
        raise GeoError(
            f"an unfinished training of this name has other settings: {', '.join(changed[:3])}",
            where=task.directory,
            hint="give it the same ones, choose another --name, or start it again with --overwrite",
        )
    work.state = _State(**loaded.state["training"])
    work.model.load_state_dict(_named(loaded.tensors, "model/"))
    load_optimizer_tensors(work.solver, work.names, loaded.tensors, loaded.state["optimizer"])
    work.scaler.load_state_dict(loaded.state["scaler"])
    work.average = _named(loaded.tensors, "average/")
    restore_rng(loaded.state["rng"])
    if task.team.first:
        say(f"going on from step {work.state.step:,}, epoch {work.state.epoch + 1}")


def _leave(task: _Task, state: _State, save: Callable[[], None], *, saved: bool = False) -> None:
    """End, because somebody asked for it, with everything saved."""
    if not saved:
        save()
    if task.team.first:
        warn(f"interrupted: {state.step:,} steps are done and saved; the same command goes on from there")
    raise KeyboardInterrupt


def _learn_epoch(task: _Task, work: _Work, stop: threading.Event, save: Callable[[], None]) -> None:
    """The steps of an epoch that are still to be done."""
    team, state, n = task.team, work.state, len(task.learnt)
    per_epoch = -(-n // state.step_rows)
    drawn = torch.randperm(n, generator=get_generator(task.config.training.seed, _ORDER, state.epoch))
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
                with _pixels(task, work.model, [one.rows for own in passes for one in own]) as pictures:
                    for rows, own in zip(left, passes, strict=True):
                        began = time.perf_counter()
                        loss = _accumulated(task, work, pictures, own)
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
            except _OutOfMemoryError:
                _halve_passes(task, state)


def _apply(task: _Task, work: _Work, loss: float, rows: NDArray[np.int64], steps: int) -> None:
    """One step along the gradients, unless there is something wrong with them."""
    how, state, solver, scaler = task.how, work.state, work.solver, work.scaler
    good = math.isfinite(loss)
    if good:
        scaler.unscale_(solver)
        norm = nn.utils.clip_grad_norm_(work.model.parameters(), how.clip_norm, foreach=True)
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


def _end_epoch(task: _Task, state: _State, scores: dict[str, float]) -> bool:
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


def _at_its_best(task: _Task, work: _Work) -> GeoModel:
    """The model with the weights of its best epoch; as it was before any step, if no epoch was better."""
    model, state = work.model, work.state
    if state.best_epoch == 0:
        if task.team.first:
            warn("no epoch was better than the frozen backbone: the run is the one that it started from")
        return _new_model(task)
    best = task.team.agree(best_checkpoint(task.checkpoints) if task.team.first else None)
    loaded = None if best is None else load_checkpoint(best, task.device)
    if loaded is None or loaded.state["training"]["epoch"] != state.best_epoch:
        warn(f"the checkpoint of the best epoch, {state.best_epoch}, is lost; the last epoch is taken")
    else:
        model.load_state_dict(_named(loaded.tensors, "model/"))
        work.average = _named(loaded.tensors, "average/")
    with torch.no_grad():
        for key, value in _output(work, task.how).items():
            work.names[key].copy_(value)
    return model


def _output(work: _Work, how: Finetune) -> dict[str, Tensor]:
    """The weights that a run would have if it ended now, where they aren't the model's own: the average's, and by WiSE-FT
    (Wortsman et al., CVPR 2022, eq. 1) between those and where they started.
    """
    ends = work.average or work.names
    between = {key: torch.lerp(start, ends[key].detach(), how.wise_ft) for key, start in work.start.items()}
    return work.average | between


def _start(names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What to start between from: of a low-rank update B·A, B alone, so that the whole lies between."""
    return {key: p.detach().clone() for key, p in names.items() if not is_lora_a(key)}


@contextmanager
def _as_output(work: _Work, how: Finetune) -> Iterator[None]:
    """The model as it would be written."""
    given = _output(work, how)
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


def _settings(config: Config, run: Run, limit: int | None) -> dict[str, Any]:
    """What must be the same for a training to go on: everything that its weights depend on."""
    free = {"checkpoint_minutes", "keep_checkpoints", "compile", "checkpointing", "channels_last"}
    return {
        "heads": hashlib.sha256((run.path / "heads.safetensors").read_bytes()).hexdigest(),
        "train_csv": hashlib.sha256(config.paths.csv("train").read_bytes()).hexdigest(),
        "limit": limit,
        **{f"finetune.{k}": v for k, v in config.finetune.model_dump(mode="json").items() if k not in free},
        "training.seed": config.training.seed,
        "training.class_weights": config.training.class_weights,
    }


def _unfinished(config: Config, runs: Path, init: str | None, limit: int | None) -> str | None:
    """The name of a training that was interrupted with these very settings, the newest first."""
    found = [path.parent for path in runs.glob(f"[!.]*/{CHECKPOINTS}")]
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if (path / "provenance.json").is_file() or _is_busy(path):
            continue
        try:
            latest = latest_checkpoint(path / CHECKPOINTS)
            run = load_run(runs, init or f"{path.name}-heads")
            own = _own_config(config, run)
            if latest and read_state(latest)["settings"] == _settings(own, run, limit):
                return path.name
        except GeoError:
            continue
    return None


def _own_config(config: Config, run: Run) -> Config:
    """The initial run's settings, but for where things lie, what is random, and how the backbone is trained."""
    model = run.config.model.model_copy(
        update={"device": config.model.device, "backbone_name": _backbone_name(config, run)}
    )
    asked, own = config.training, run.config.training
    training = own.model_copy(
        update={"seed": asked.seed, "class_weights": own.class_weights or asked.class_weights}
    )
    given = {"paths": config.paths, "finetune": config.finetune, "inference": config.inference}
    return run.config.model_copy(
        update=given | {"model": model, "training": training, "tracking": config.tracking}
    )


def _backbone_name(config: Config, run: Run) -> str:
    """Where the run's own backbone lies: where the settings say, or where it lay when the run was made."""
    asked = config.model.backbone_name
    for name in dict.fromkeys((asked, run.config.model.backbone_name)):
        with suppress(GeoError):
            directory = backbones.find_backbone(name, download=False)
            if backbones.hash_weights(directory) == run.provenance["store"]["weights_sha256"]:
                return name
    return asked


def _new_model(task: _Task) -> GeoModel:
    how = task.how
    backbone = load_backbone_of(task.config, task.run, task.config.model.backbone_name, dtype="float32")
    counts = torch.from_numpy(np.bincount(task.data.labels[task.learnt], minlength=len(task.data.encoder)))
    if how.lora_rank:
        add_lora(backbone.module, how.lora_rank, get_generator(task.config.training.seed, _LORA))
    model = GeoModel(backbone, load_heads(task.run), task.config.training, counts)
    if how.checkpointing:
        _recompute(backbone.module, task.config.model.backbone_name)
    if how.channels_last:
        backbone.module.to(memory_format=torch.channels_last)
    if how.compile:
        backbone.module.compile()
    _let_train(model, how, 0)
    return model


def _recompute(tower: Any, name: str) -> None:
    """Keep no activations within a tower's layers. Raises GeoError where it can't do that."""
    # transformers calls it by another name from 5.24 on.
    enable = getattr(tower, "activation_checkpointing_enable", tower.gradient_checkpointing_enable)
    try:
        enable()
    except ValueError as error:
        raise GeoError(
            f"backbone {name} can't recompute activations",
            where="finetune.checkpointing",
            hint="set it to false",
        ) from error


def _let_train(model: GeoModel, how: Finetune, epoch: int) -> None:
    """Unfreeze what is trained in this epoch; with `gradual`, a larger part of the last layers each time."""
    layers = how.last_layers
    if how.gradual:
        most = len(backbones.blocks(model.tower)) if layers is None else layers
        part = -(-most * (epoch + 1) // how.epochs)
        layers = None if layers is None and part == most else part
    model.unfreeze(layers)
    if how.lora_rank:
        train_lora_only(model.tower)


def _batch_size(task: _Task) -> int:
    """Samples per pass, of all processes together."""
    return task.how.batch_size or (512 if _is_large(task.device) else 32)


def _accumulate(task: _Task) -> int:
    return task.how.accumulate or (2 if _is_large(task.device) else 4)


def _is_large(device: torch.device) -> bool:
    return (
        device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= _LARGE_CARD_BYTES
    )


def _amp_dtype(device: torch.device) -> torch.dtype | None:
    """What a pass computes in: bfloat16 on a GPU, float16 where it lacks that, and float32 on a CPU."""
    if device.type == "cpu":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _autocast(device: torch.device) -> torch.autocast:
    dtype = _amp_dtype(device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@contextmanager
def _pixels(task: _Task, model: GeoModel, batches: list[NDArray[np.int64]]) -> Iterator[Iterator[PixelBatch]]:
    """Batches of rows of `data` as pixels."""
    spec = model.backbone.preprocessing
    present = np.zeros((len(task.samples), len(task.samples.view_names)), dtype=bool)
    present[task.index] = task.data.present
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = task.config.inference.workers or max(1, (os.cpu_count() or 1) // here)
    in_csv = [task.index[rows] for rows in batches]
    with read_batches(
        task.samples, present, in_csv, spec, workers, pinned=task.device.type == "cuda"
    ) as pictures:
        yield pictures


def _normal(model: GeoModel, pixels: Tensor, how: Finetune) -> Tensor:
    """uint8 (B, V, 3, H, W) to what the tower takes, in float32."""
    flat = images.normalise(pixels.flatten(0, 1), model.backbone.preprocessing, torch.float32)
    if how.channels_last:
        flat = flat.contiguous(memory_format=torch.channels_last)
    return flat.view(pixels.shape)


def _accumulated(task: _Task, work: _Work, pictures: Iterator[PixelBatch], shares: list[Share]) -> float:
    """Gradients of a step's mean loss over all its rows, pass by pass, added up over the team; and that loss.

    Raises:
        _OutOfMemoryError: in any process; there are no gradients then.
    """
    team = task.team
    total = torch.zeros((), device=task.device)
    short = False
    try:
        for number, share in enumerate(shares):
            total += _pass(task, work, next(pictures), share, number)
    except torch.OutOfMemoryError:
        short = True
    if team.any(short):
        work.solver.zero_grad(set_to_none=True)
        if task.device.type == "cuda":
            torch.cuda.empty_cache()
        raise _OutOfMemoryError
    team.add_gradients(work.model.parameters())
    return team.sum(total)


def _pass(task: _Task, work: _Work, batch: PixelBatch, share: Share, number: int) -> Tensor:
    """Add to the gradients what some samples contribute to those of the step's loss; and to that loss."""
    how, seed, device, step = task.how, task.config.training.seed, task.device, work.state.step
    pixels = batch.pixels.to(device, non_blocking=True)
    present = batch.present.to(device, non_blocking=True)
    # Each of these draws for the whole step, and gives the samples of this pass theirs.
    drawn = get_generator(seed, _AUGMENT, step)
    dropped = get_generator(seed, _DROPOUT, step, device=device)
    changes = Augmentation(**how.augment.model_dump())
    pixels, present = augment(pixels, present, changes, task.samples.view_names, drawn, skip=share.before)
    # The backbone's own dropout, where it has some, draws from the global generator.
    torch.manual_seed(get_generator(seed, _TOWER, step, number, task.team.rank).initial_seed())
    truth = task.data.truth.take(share.rows)
    points = geography.to_unit_vectors(truth.latitude, truth.longitude)
    with _autocast(device):
        out = work.model(_normal(work.model, pixels, how), present, share.drops(dropped))
    loss = work.model.loss(
        out,
        torch.from_numpy(task.data.labels[share.rows]).to(device),
        torch.from_numpy(points).float().to(device),
    )
    part = loss * (share.weight * len(share.rows) / share.total)
    torch.autograd.backward(work.scaler.scale(part))
    return part.detach()


def _halve_passes(task: _Task, state: _State) -> None:
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


def _skip_step(task: _Task, state: _State, rows: NDArray[np.int64]) -> None:
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


def _answer(
    task: _Task, model: GeoModel, *, tta: bool = False, stop: threading.Event | None = None
) -> Predictions | None:
    """The model's answer for the held-out samples, each process asked for its part; None where `stop` was set meanwhile.

    Raises:
        GeoError: an answer is NaN or infinite.
    """
    size, rows = _batch_size(task), task.team.part(task.held)
    states, places = [np.zeros((0, len(task.run.labels)), dtype=np.float32)], [np.zeros((0, 2))]
    changes = Augmentation(**task.how.augment.model_dump())
    stopped = False
    model.eval()
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    with _pixels(task, model, batches) as pictures, torch.no_grad():
        for batch in pictures:
            pixels, present = batch.pixels.to(task.device), batch.present.to(task.device)
            variants = (
                tta_views(pixels, present, changes, task.samples.view_names) if tta else [(pixels, present)]
            )
            embedded = []
            for changed, there in variants:
                with _autocast(task.device):
                    embedded.append((model.encode_views(_normal(model, changed, task.how), there), there))
            given, point = model.answer(embedded)
            states.append(given.float().cpu().numpy())
            places.append(point.double().cpu().numpy())
            stopped = stop is not None and stop.is_set()
            if stopped:
                break
    heard = task.team.gather(None if stopped else (np.concatenate(states), np.concatenate(places)))
    if any(one is None for one in heard):
        return None
    p, at = (np.concatenate(parts) for parts in zip(*heard, strict=True))
    if not (np.isfinite(p).all() and np.isfinite(at).all()):
        raise GeoError(
            "the model's answers are NaN or infinite",
            where=task.checkpoints,
            hint="lower finetune.backbone_lr and head_lr, and start again with --overwrite",
        )
    return Predictions(task.data.sample_id[task.held], p, at[:, 0], at[:, 1])


def _judge(task: _Task, model: GeoModel, stop: threading.Event) -> dict[str, float] | None:
    """Scores on the held-out samples, none where there are none; None where `stop` was set meanwhile."""
    if not len(task.held):
        return {}
    said = _answer(task, model, stop=stop)
    if said is None:
        return None
    scores = _score(task, said)
    return {f"val_{key}": scores[key] for key in ("score", "state_score", "gps_score", "mean_km", "nll")}


def _score(task: _Task, said: Predictions) -> dict[str, Any]:
    return metrics(*against(said, task.data.labels[task.held], task.data.truth.take(task.held)))


def _check_first_score(task: _Task, work: _Work, stop: threading.Event) -> None:
    """Before any step the pictures must score what the cache scores, and the run scored: else they don't belong together."""
    run, held = task.run, task.held
    if not len(held):
        if task.team.first:
            warn("nothing is held out: pictures and cache can't be compared, and the last epoch is taken")
        return
    panel = load_heads(run)
    cached = apply_heads(
        panel,
        task.config,
        run.prior,
        task.data.sample_id[held],
        task.data.values[held],
        task.data.present[held],
    )
    score, tolerance = _score(task, cached)["score"], max(_SAME_SCORE, _ONE_RANK / len(held))
    recorded = _recorded_score(run)
    # A calibrated run was scored by calibrations that hadn't seen the samples; one that looked at variants, by those.
    alike = panel.calibration is None and not run.config.inference.tta
    if alike and abs(score - recorded) > tolerance:
        raise GeoError(
            f"the cache scores {score:.4f} now, where it scored {recorded:.4f} when run {run.name} was fitted",
            where=run.path,
            hint="cache or heads have changed since: geo cache verify --deep, then geo fit-heads",
        )
    said = _judge(task, work.model, stop)
    if said is None:
        raise KeyboardInterrupt
    if abs(said["val_score"] - score) > tolerance:
        raise GeoError(
            f"before any step the pictures score {said['val_score']:.4f}, where run {run.name} scores {score:.4f} "
            "from the cache",
            where=task.samples.image_root,
            hint="pictures have changed since they were cached: geo extract, then geo fit-heads",
        )
    work.state.frozen_score = work.state.best_score = said["val_score"]
    if task.team.first:
        say(f"frozen: score {said['val_score']:.4f}, from the cache {score:.4f}")


def _recorded_score(run: Run) -> float:
    path = run.path / "metrics.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["val"]["score"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GeoError("the run's score can't be read", where=path, hint="train the run again") from error


def _write(task: _Task, model: GeoModel, state: _State, started: float) -> dict[str, Any]:
    """The run, in place of its checkpoints; and its scores."""
    config, truth = task.config, task.data.truth.take(task.held)
    said = _answer(task, model, tta=config.inference.tta)
    assert said is not None
    scores = final_metrics(
        *against(said, task.data.labels[task.held], truth),
        groups=resampling_groups(truth.latitude, truth.longitude, config.training),
    )
    if task.team.first:
        _write_files(task, model, state, said, scores, started)
    task.team.wait()
    return scores


def _write_files(
    task: _Task,
    model: GeoModel,
    state: _State,
    said: Predictions,
    scores: dict[str, Any],
    started: float,
) -> None:
    config, run = task.config, task.run
    saved = task.directory / BACKBONE
    tuned = config.model_copy(
        update={"model": config.model.model_copy(update={"backbone_name": str(saved), "fingerprint": None})}
    )
    store = find_store(config, "train", fingerprint=run.provenance["store"]["fingerprint"])
    provenance = describe_provenance(tuned, store, run.provenance["data"]["sha256"])
    provenance |= {"init": run.name, "seconds": time.monotonic() - started}
    skipped = sum(int(entry["skipped_steps"] or 0) for entry in state.history)
    with writing_run(config.paths.runs_dir, task.directory.name) as directory:
        backbones.save_backbone(model.backbone, directory / BACKBONE)
        attrs = store_attributes(
            tuned, directory / BACKBONE, backbones.pick_dtype(config.model.dtype, task.device)
        )
        provenance["store"] |= {
            key: attrs[key] for key in ("backbone", "fingerprint", "weights_sha256", "preprocessing")
        }
        # There is none until `geo extract` makes it.
        del provenance["store"]["path"]
        save_heads(model.panel, directory)
        for kept in ("haversine_matrix.npy", "state_centroids.json", "split.parquet"):
            shutil.copy(run.path / kept, directory / kept)
        described = {
            "frozen_score": state.frozen_score,
            "best_epoch": state.best_epoch,
            "skipped_steps": skipped,
        }
        write_json(directory / "metrics.json", {"val": scores, **described})
        pd.DataFrame(state.history).to_parquet(directory / "history.parquet", index=False)
        truth = task.data.truth.take(task.held)
        write_predictions(directory / "val_predictions.parquet", said, run.labels, truth)
        counts = np.bincount(task.data.labels[task.learnt], minlength=len(run.labels))
        write_description(directory, tuned, run.labels, counts, run.prior, provenance)
