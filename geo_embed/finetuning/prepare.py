"""The frozen phase: heads from the cache, the samples as they were split for them, and the proof that pictures and cache agree."""

import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geo_embed.backbones.weights import find_backbone, hash_weights
from geo_embed.config import Config
from geo_embed.console import say, warn
from geo_embed.data.samples import Samples, missing_images, text_ids
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError
from geo_embed.files import file_sha256
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.task import Task, judge, score_held
from geo_embed.finetuning.team import Team
from geo_embed.fitting.examples import Examples, open_training_data
from geo_embed.fitting.fit import fit_heads
from geo_embed.heads.predictor import apply_heads
from geo_embed.runs.recipe import load_heads, load_mixture
from geo_embed.runs.run import Run, is_run, load_run

# The cached embeddings are float16: what the pictures give anew may score this much otherwise, and no more; but for what a
# single sample weighs whose state moves from rank 1 to 2, where there are few.
_SAME_SCORE, _ONE_RANK = 0.002, 0.28


def fit_own_heads(config: Config, name: str, *, overwrite: bool) -> None:
    """The frozen phase; heads of the same settings that an interrupted training fitted are taken as they are."""
    path = config.paths.runs_dir / name
    if overwrite or not is_run(path):
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


def own_config(config: Config, run: Run) -> Config:
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
            directory = find_backbone(name, download=False)
            if hash_weights(directory) == run.provenance["store"]["weights_sha256"]:
                return name
    return asked


def prepare(config: Config, run: Run, directory: Path, limit: int | None, team: Team) -> Task:
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
    own = own_config(config, run)
    opened = open_training_data(own, fingerprint=run.provenance["store"]["fingerprint"])
    samples, data, index = opened.samples, opened.examples, opened.rows
    table = run.read_split()
    if file_sha256(samples.csv) != run.provenance["data"]["sha256"]:
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
    return Task(
        own,
        run,
        samples,
        data,
        index,
        learnt,
        held,
        pick_device(config.model.device),
        team,
        directory,
    )


def _check_pictures(
    samples: Samples, data: Examples, index: NDArray[np.int64], rows: NDArray[np.int64]
) -> None:
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


def check_first_score(task: Task, model: GeoModel, stop: threading.Event) -> float | None:
    """Before any step the pictures must score what the cache scores, and the run scored: else they don't belong together."""
    run, held = task.run, task.held
    if not len(held):
        if task.team.first:
            warn("nothing is held out: pictures and cache can't be compared, and the last epoch is taken")
        return None
    panel = load_heads(run)
    cached = apply_heads(
        panel,
        task.config,
        run.prior,
        run.labels,
        task.data.sample_id[held],
        task.data.values[held],
        task.data.present[held],
    )
    score, tolerance = score_held(task, cached)["score"], max(_SAME_SCORE, _ONE_RANK / len(held))
    recorded = float(run.read_metrics()["score"] or 0)
    # A calibrated run was scored by calibrations that hadn't seen the samples; one that looked at variants, by those.
    alike = panel.calibration is None and not run.config.inference.tta
    if alike and abs(score - recorded) > tolerance:
        raise GeoError(
            f"the cache scores {score:.4f} now, where it scored {recorded:.4f} when run {run.name} was fitted",
            where=run.path,
            hint="cache or heads have changed since: geo cache verify --deep, then geo fit-heads",
        )
    said = judge(task, model, stop)
    if said is None:
        raise KeyboardInterrupt
    if abs(said["val_score"] - score) > tolerance:
        raise GeoError(
            f"before any step the pictures score {said['val_score']:.4f}, where run {run.name} scores {score:.4f} "
            "from the cache",
            where=task.samples.image_root,
            hint="pictures have changed since they were cached: geo extract, then geo fit-heads",
        )
    if task.team.first:
        say(f"frozen: score {said['val_score']:.4f}, from the cache {score:.4f}")
    return said["val_score"]
