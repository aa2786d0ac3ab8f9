"""Stage 3: from a run's heads and pictures to a run with a backbone of its own, in one command that can be begun again."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from geo_embed.answers import Predictions
from geo_embed.cache.find import find_store, store_attributes
from geo_embed.config import Config
from geo_embed.data.spatial import resampling_groups
from geo_embed.devices import pick_dtype
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import file_sha256, restore_replaced
from geo_embed.finetuning.checkpoint import latest_checkpoint, read_state
from geo_embed.finetuning.loop import State, train_unfrozen
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.prepare import fit_own_heads, own_config, prepare
from geo_embed.finetuning.task import Task, answer
from geo_embed.finetuning.team import Team, join_team
from geo_embed.metrics import final_metrics
from geo_embed.runs.run import (
    Run,
    backbone_dir,
    check_new_name,
    checkpoints_dir,
    describe_provenance,
    is_run,
    load_run,
    new_run_name,
    unfinished_runs,
    writing_run,
)


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
            if is_run(directory) or not checkpoints_dir(directory).is_dir():
                check_new_name(runs, name, overwrite=overwrite)
            if init is None and team.first:
                fit_own_heads(config, f"{name}-heads", overwrite=overwrite)
            team.wait()
            task = prepare(config, load_run(runs, init or f"{name}-heads"), directory, limit, team)
            with _only_one(directory, team, afresh=overwrite):
                team.wait()
                model, work = train_unfrozen(task, _settings(task.config, task.run, limit))
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
        backbone_dir(directory),
        work.state.frozen_score,
        work.samples / work.seconds if work.samples else None,
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
        checkpoints_dir(directory).mkdir(parents=True, exist_ok=True)
    if _is_busy(directory):
        raise GeoError(
            "another process is training this run now",
            where=directory,
            hint="wait until it is done, or choose another --name",
        )
    if afresh:
        with disk_errors(directory):
            shutil.rmtree(directory)
            checkpoints_dir(directory).mkdir(parents=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        with disk_errors(directory):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
        # Where nothing was saved, nothing is left.
        with suppress(OSError):
            checkpoints_dir(directory).rmdir()
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


def _settings(config: Config, run: Run, limit: int | None) -> dict[str, Any]:
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
        "train_csv": file_sha256(config.paths.csv("train")),
        "limit": limit,
        **{f"finetune.{k}": v for k, v in config.finetune.model_dump(mode="json").items() if k not in free},
        "training.seed": config.training.seed,
        "training.class_weights": config.training.class_weights,
    }


def _unfinished(config: Config, runs: Path, init: str | None, limit: int | None) -> str | None:
    """The name of a training that was interrupted with these very settings, the newest first."""
    for path in unfinished_runs(runs):
        if _is_busy(path):
            continue
        try:
            latest = latest_checkpoint(checkpoints_dir(path))
            run = load_run(runs, init or f"{path.name}-heads")
            own = own_config(config, run)
            if latest and read_state(latest)["settings"] == _settings(own, run, limit):
                return path.name
        except GeoError:
            continue
    return None


def _write(task: Task, model: GeoModel, state: State, started: float) -> dict[str, Any]:
    """The run, in place of its checkpoints; and its scores."""
    config, truth = task.config, task.data.truth.take(task.held)
    said = answer(task, model, tta=config.inference.tta)
    assert said is not None
    scores = final_metrics(
        said,
        truth,
        groups=resampling_groups(truth.latitude, truth.longitude, config.training),
    )
    if task.team.first:
        _write_files(task, model, state, said, scores, started)
    task.team.wait()
    return scores


def _write_files(
    task: Task,
    model: GeoModel,
    state: State,
    said: Predictions,
    scores: dict[str, Any],
    started: float,
) -> None:
    config, run = task.config, task.run
    saved = backbone_dir(task.directory)
    tuned = config.model_copy(
        update={"model": config.model.model_copy(update={"backbone_name": str(saved), "fingerprint": None})}
    )
    store = find_store(config, "train", fingerprint=run.provenance["store"]["fingerprint"])
    provenance = describe_provenance(tuned, store, run.provenance["data"]["sha256"])
    provenance |= {"init": run.name, "seconds": time.monotonic() - started}
    skipped = sum(int(entry["skipped_steps"] or 0) for entry in state.history)
    with writing_run(config.paths.runs_dir, task.directory.name) as writer:
        written = writer.write_backbone(model.backbone)
        attrs = store_attributes(tuned, written, pick_dtype(config.model.dtype, task.device))
        provenance["store"] |= {
            key: attrs[key] for key in ("backbone", "fingerprint", "weights_sha256", "preprocessing")
        }
        # There is none until `geo extract` makes it.
        del provenance["store"]["path"]
        writer.write_heads(model.panel)
        writer.copy_places(run)
        described = {
            "frozen_score": state.frozen_score,
            "best_epoch": state.best_epoch,
            "skipped_steps": skipped,
        }
        writer.write_metrics({"val": scores, **described})
        writer.write_history(pd.DataFrame(state.history))
        truth = task.data.truth.take(task.held)
        writer.write_predictions("val", said, truth)
        counts = np.bincount(task.data.labels[task.learnt], minlength=len(run.labels))
        writer.write_description(tuned, run.labels, counts, run.prior, provenance)
