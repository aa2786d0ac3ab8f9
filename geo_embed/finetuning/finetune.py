"""Stage 3: from a run's heads and images to a run with a backbone of its own, in one command that can be begun again."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from geo_embed.cache.find import store_attributes
from geo_embed.cache.join import find_sources
from geo_embed.config import Config, Finetune, Training
from geo_embed.data.spatial import resampling_groups
from geo_embed.devices import pick_dtype, with_torch_switches
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import file_sha256, remove_directory
from geo_embed.finetuning.checkpoint import latest_checkpoint, read_state
from geo_embed.finetuning.loop import train_unfrozen
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.prepare import fit_initial_heads, merge_config, prepare
from geo_embed.finetuning.state import TrainingState
from geo_embed.finetuning.task import Task
from geo_embed.finetuning.team import Team, join_team
from geo_embed.finetuning.validate import answer_val, predict_val
from geo_embed.fitting.epochs import CHOSEN_BY
from geo_embed.metrics import final_metrics, metrics
from geo_embed.runs.provenance import describe_origin, describe_sources
from geo_embed.runs.run import (
    Run,
    backbone_dir,
    checkpoints_dir,
    is_being_written,
    load_run,
    only_run_writer,
    put_right,
    unfinished_runs,
    writing_run,
)
from geo_embed.runs.twins import remembered_twins
from geo_embed.tracking import require_tracker, tracked


@dataclass(frozen=True)
class Finetuned:
    """A run that `finetune` made.

    Attributes:
        samples_per_second: of the steps since this start, without the first, in which memory is found and code compiled, and
            without validations and checkpoints; None where there was no second.
        twins: as of a `Fit`, by what the initial run was fitted on; None where that run doesn't know.
    """

    run: str
    seconds: float
    epochs: int
    val: dict[str, Any]
    backbone: Path
    frozen_score: float | None
    samples_per_second: float | None
    twins: dict[str, Any] | None


@with_torch_switches
def finetune(
    config: Config,
    *,
    name: str | None = None,
    init: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> Finetuned:
    """Train backbone, fusion and heads from images, starting where a run's heads stand.

    An unfinished training of the same name and settings goes on from its last checkpoint.

    Args:
        config: all settings; the model's are the initial run's own.
        name: of the run; default: the unfinished one with these settings, else `finetune-` and the time.
        init: the run to start from; default: heads fitted on the spot, a run of its own named NAME-heads.
        limit: train on so many of the training samples only.
        overwrite: replace a run, or an unfinished training, of this name.
        command: the command line that asks for it, for the run's provenance.

    Raises:
        GeoError: no images, no backbone, heads that don't fit; a first validation that differs from the run's cached score;
            a loss that stays NaN; a full disk; a tracker that isn't installed. The last checkpoint is kept.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    started = time.monotonic()
    require_tracker(config)
    runs = config.paths.runs_dir
    try:
        with (
            join_team(config.model.device) as team,
            _only_writer(config, team, name, init, limit, overwrite) as held,
        ):
            name, directory = held, runs / held
            if init is None and team.first:
                fit_initial_heads(config, f"{name}-heads", overwrite=overwrite, command=command)
            team.wait()
            run = load_run(runs, init or f"{name}-heads")
            merged = merge_config(config, run)
            task = prepare(merged, run, directory, limit, team)
            settings = _settings(merged.finetune, merged.training, merged.paths.csv("train"), run, limit)
            with (
                _checkpoints(directory, team, afresh=overwrite),
                tracked(merged, name, ("model", "training", "finetune"), first=team.first) as log,
            ):
                team.wait()
                model, state = train_unfrozen(task, settings, log)
                val, twins = _write_run(merged, task, model, state, started, command)
                log(None, val)
    except torch.OutOfMemoryError as error:
        raise GeoError(
            f"out of memory: {error}".splitlines()[0],
            where="finetune.batch_size",
            hint="use a smaller --batch-size, --set finetune.checkpointing=true, or fewer finetune.last_layers",
        ) from error
    return Finetuned(
        name,
        time.monotonic() - started,
        len(state.progress.history),
        val,
        backbone_dir(directory),
        state.progress.frozen_score,
        state.samples / state.seconds if state.samples else None,
        twins,
    )


@contextmanager
def _only_writer(
    config: Config, team: Team, name: str | None, init: str | None, limit: int | None, overwrite: bool
) -> Iterator[str]:
    """Hold the run's name, in the first process for all of them: the given one, or as `finetune` says."""
    if not team.first:
        yield team.broadcast(None)
        return
    runs = config.paths.runs_dir
    put_right(runs)
    with only_run_writer(
        runs,
        name or _unfinished(config, runs, init, limit),
        prefix="finetune",
        overwrite=overwrite,
        resume=True,
        busy="another process is training this run now",
    ) as held:
        yield team.broadcast(held)


@contextmanager
def _checkpoints(directory: Path, team: Team, *, afresh: bool) -> Iterator[None]:
    """A place for checkpoints in the directory of a training, emptied first if it is to begin afresh."""
    if not team.first:
        yield
        return
    if afresh and os.path.lexists(directory):
        remove_directory(directory)
    with disk_errors(directory):
        checkpoints_dir(directory).mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        # Where nothing was saved, nothing is left.
        with suppress(OSError):
            checkpoints_dir(directory).rmdir()
            directory.rmdir()


def _settings(
    tuning: Finetune, training: Training, train_csv: Path, run: Run, limit: int | None
) -> dict[str, Any]:
    """What must be the same for a training to go on: everything that its weights depend on."""
    free = {
        "checkpoint_minutes",
        "keep_checkpoints",
        "compile",
        "checkpointing",
        "channels_last",
        "sharded",
    }
    return {
        "heads": file_sha256(run.heads_path),
        "train_csv": file_sha256(train_csv),
        "limit": limit,
        **{f"finetune.{k}": v for k, v in tuning.model_dump(mode="json").items() if k not in free},
        "training.seed": training.seed,
        # A training of a version without this setting dealt its held-out samples by its seed: it goes on where that is the same.
        **({} if training.split_seed == training.seed else {"training.split_seed": training.split_seed}),
        "training.class_weights": training.class_weights,
    }


def _unfinished(config: Config, runs: Path, init: str | None, limit: int | None) -> str | None:
    """The name of a training that was interrupted with these very settings, the newest first."""
    for path in unfinished_runs(runs):
        if is_being_written(path):
            continue
        try:
            latest = latest_checkpoint(checkpoints_dir(path))
            run = load_run(runs, init or f"{path.name}-heads")
            merged = merge_config(config, run)
            settings = _settings(merged.finetune, merged.training, merged.paths.csv("train"), run, limit)
            if latest and read_state(latest)["settings"] == settings:
                return path.name
        except GeoError:
            continue
    return None


def _write_run(
    config: Config, task: Task, model: GeoModel, state: TrainingState, started: float, command: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The run, in place of its checkpoints; returns its scores, and those without near twins where the initial run knows these.

    Args:
        config: as `merge_config` gives it.
        task: what was trained on what.
        model: as it is to be written.
        state: of the training at its end.
        started: when, by the monotonic clock.
        command: the command line that asked for it.
    """
    # Every process predicts its part of the validation samples; the first writes. What is reported has them answered by epochs
    # that they had no say in.
    progress = state.progress
    chosen = predict_val(task, model, tta=task.inference.tta)
    assert chosen is not None
    predictions = answer_val(task, state, chosen)
    truth, run = task.val_truth, task.run
    groups = resampling_groups(truth.latitude, truth.longitude, task.training)
    scores = final_metrics(predictions, truth, groups=groups)
    twins = remembered_twins([run], predictions, truth)
    if task.team.first:
        backbone_name = str(backbone_dir(task.directory))
        own_backbone = config.model.model_copy(update={"backbone_name": backbone_name, "fingerprint": None})
        tuned = config.model_copy(update={"model": own_backbone})
        sources = find_sources(config, "train", fingerprint=run.provenance["store"]["fingerprint"])
        provenance = {
            **describe_origin(command, seed=config.training.seed, note=config.tracking.note),
            **describe_sources(config.paths.csv("train"), run.provenance["data"]["sha256"], sources, [[]]),
        }
        provenance |= {"init": run.name, "seconds": time.monotonic() - started}
        with writing_run(config.paths.runs_dir, task.directory.name) as writer:
            # The store that belongs to the new backbone: there is none until `geo extract` makes it.
            written = writer.write_backbone(model.backbone)
            attrs = store_attributes(tuned.model, written, pick_dtype(config.model.dtype, task.device))
            of_backbone = ("backbone", "fingerprint", "weights_sha256", "preprocessing")
            provenance["store"] |= {key: attrs[key] for key in of_backbone}
            provenance["function"] = attrs["function"]
            del provenance["store"]["path"]
            writer.write_heads(model.answering)
            writer.copy_places(run)
            described: dict[str, Any] = {
                "frozen_score": progress.frozen_score,
                "best_epoch": progress.best_epoch,
                "skipped_steps": sum(int(entry["skipped_steps"] or 0) for entry in progress.history),
            }
            if len(truth):
                described["chosen"] = {"score": metrics(chosen, truth)["score"], "by": CHOSEN_BY}
            if twins is not None:
                described["twins"] = twins
            writer.write_metrics({"val": scores, **described})
            writer.write_history(pd.DataFrame(progress.history))
            writer.write_predictions("val", predictions, truth)
            writer.write_description(tuned, run.labels, task.train_counts, run.prior, provenance)
    task.team.wait()
    return scores, twins
