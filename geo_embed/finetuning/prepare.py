"""What comes before any step: heads from the cache, the samples as they were split for them, and the proof that images and cache
agree.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geo_embed.backbones.function import read_function
from geo_embed.backbones.weights import find_backbone, hash_weights
from geo_embed.config import Config
from geo_embed.console import counted, say, warn
from geo_embed.data.samples import missing_images, text_ids
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError
from geo_embed.files import file_sha256
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.task import Task
from geo_embed.finetuning.team import Team
from geo_embed.finetuning.validate import Validation, score_val, validate
from geo_embed.fitting.examples import TrainingData, open_training_data
from geo_embed.fitting.fit import fit_heads
from geo_embed.heads.predictor import apply_heads
from geo_embed.runs.backbone import check_own_feature_alone
from geo_embed.runs.recipe import load_ensemble, load_heads
from geo_embed.runs.run import Run, is_run, load_run

# The cached embeddings are float16: what the images give anew may score this much otherwise, and no more; but for what a
# single sample weighs whose state moves from rank 1 to 2, where there are few.
_SAME_SCORE, _ONE_RANK = 0.002, 0.28


def fit_initial_heads(config: Config, name: str, *, overwrite: bool, command: Sequence[str] = ()) -> None:
    """The frozen phase; heads of the same settings that an interrupted training fitted are taken as they are."""
    if len(config.model.backbone_names) > 1 or config.model.head_features != "own":
        several = f"{len(config.model.backbone_names)} backbones, features: {config.model.head_features}"
        raise GeoError(
            f"fine-tuning trains one backbone for its own feature, and the settings name {several}",
            where="model",
            hint="name one: --backbone NAME --set model.head_features=own",
        )
    path = config.paths.runs_dir / name
    if overwrite or not is_run(path):
        say("frozen phase: heads from the cache")
        fit_heads(config, name=name, overwrite=overwrite, command=command)
        return
    run = load_run(config.paths.runs_dir, name)
    if run.config.training != config.training:
        raise GeoError(
            "heads of other training settings have this name",
            where=path,
            hint=f"start from them with --init {name}, choose another --name, or fit them anew with --overwrite",
        )


def merge_config(config: Config, run: Run) -> Config:
    """The initial run's settings, but for where things lie, what is random, and how the backbone is trained."""
    model = run.config.model.model_copy(
        update={
            "device": config.model.device,
            "deterministic": config.model.deterministic,
            "tf32": config.model.tf32,
            "backbone_name": _backbone_name(config.model.backbone_name, run),
        }
    )
    training, fitted = config.training, run.config.training
    training = fitted.model_copy(
        update={"seed": training.seed, "class_weights": fitted.class_weights or training.class_weights}
    )
    return config.model_copy(update={"model": model, "training": training})


def _backbone_name(configured: str, run: Run) -> str:
    """Where the run's own backbone lies: where the settings say, or where it lay when the run was made."""
    for name in dict.fromkeys((configured, run.config.model.backbone_name)):
        with suppress(GeoError):
            directory = find_backbone(name, download=False)
            same = hash_weights(directory) == run.provenance["store"]["weights_sha256"]
            if same and run.provenance.get("function") in (None, read_function(directory).to_dict()):
                return name
    return configured


def prepare(config: Config, run: Run, directory: Path, limit: int | None, team: Team) -> Task:
    """The samples with their images, split as the initial run split them.

    Args:
        config: as `merge_config` gives it.
        run: the initial one.
        directory: of the run that is made.
        limit: train on so many of the training samples only.
        team: the processes that train together.

    Raises:
        GeoError: the run can't be gone on with, the CSV or its images aren't those that it was fitted on any more, or no store
            has its embeddings.
    """
    if load_ensemble(run) is not None or run.config.training.folds > 1:
        raise GeoError(
            "an ensemble, or a run made of folds, has no held-out samples of its own to go on with",
            where=run.path,
            hint="start from a run of geo fit-heads without --folds",
        )
    what = "fine-tuning trains one backbone for its own feature, and the run was fitted on"
    check_own_feature_alone(run, run.sources, what, "start from heads")
    if directory.absolute() == run.path.absolute():
        raise GeoError(
            "a run can't be trained from itself", where=run.path, hint="give the new one another --name"
        )
    data = open_training_data(config, fingerprint=run.provenance["store"]["fingerprint"])
    samples, examples = data.samples, data.examples
    table = run.read_split()
    if file_sha256(samples.csv) != (run.provenance["data"] or {}).get("sha256"):
        raise GeoError(
            "the training CSV has changed since the run was fitted on it",
            where=samples.csv,
            hint="fit heads again: geo fit-heads",
        )
    part_of = dict(zip(text_ids(table["sample_id"]), table["part"], strict=True))
    parts = np.array([part_of.get(sample, "") for sample in examples.sample_id])
    train_rows, val_rows = np.flatnonzero(parts == "train")[:limit], np.flatnonzero(parts == "val")
    if not len(train_rows) or not np.array_equal(examples.encoder.state_idx, run.labels.state_idx):
        raise GeoError(
            "the run was fitted on other samples, or other states, than the training CSV has now",
            where=run.path,
            hint="fit heads again: geo fit-heads",
        )
    _check_images(data, np.concatenate([train_rows, val_rows]))
    if team.first and (dear := samples.pictures.dear_at_random()):
        warn(
            f"{dear / 1e9:,.1f} GB of the pictures lie in compressed Parquet files: for each that is drawn a whole group of rows is "
            "unpacked. From tar archives, or written with compression=None, they are read in their place"
        )
    return Task(
        run,
        config.finetune,
        config.training,
        config.inference,
        config.model.backbone_name,
        samples,
        examples,
        data.rows,
        train_rows,
        val_rows,
        pick_device(config.model.device, float64=True),
        team,
        directory,
        config.tracking.progress_seconds,
    )


def _check_images(data: TrainingData, rows: NDArray[np.int64]) -> None:
    """Raise GeoError where images that have an embedding are no files any more: now, not hours into an epoch.

    Args:
        data: the train split.
        rows: of its examples, those that are needed.
    """
    samples = data.samples
    wanted = np.zeros((len(samples), data.examples.present.shape[1]), dtype=bool)
    wanted[data.rows[rows]] = data.examples.present[rows]
    missing = [(i, v, reason) for i, v, reason in missing_images(samples) if wanted[i, v]]
    if missing:
        i, v, reason = missing[0]
        raise GeoError(
            f"{counted(len(missing), 'picture that the run was fitted on is', 'pictures that the run was fitted on are')} gone, first sample {samples.sample_id[i]}, "
            f"view {samples.view_names[v]}: {reason}",
            where=samples.image_root,
            hint="put them back, or run geo extract --on-bad-image skip, and fit heads again",
        )


def check_first_score(task: Task, model: GeoModel, stop: threading.Event) -> Validation:
    """The model on the validation samples before any step.

    Raises:
        GeoError: the images don't score what the cache scores, or that isn't what the run scored: they don't belong together.
        KeyboardInterrupt: `stop` was set meanwhile.
    """
    run, rows = task.run, task.val_rows
    if not len(rows):
        if task.team.first:
            warn("nothing is held out: pictures and cache can't be compared, and the last epoch is taken")
        return Validation({}, None)
    panel = load_heads(run)
    cached = apply_heads(
        panel,
        task.device,
        run.prior,
        run.labels,
        task.examples.sample_id[rows],
        task.examples.values[rows],
        task.examples.present[rows],
    )
    score, tolerance = score_val(task, cached)["score"], max(_SAME_SCORE, _ONE_RANK / len(rows))
    chosen = run.read_chosen_score()
    if chosen is not None and task.team.first:
        warn(
            f"an epoch of run {run.name} was chosen by the validation samples: what is trained from it scores a little too good "
            "on them; heads of --preset best don't"
        )
    recorded = float(run.read_metrics()["score"] or 0) if chosen is None else chosen
    # A calibrated run was scored by calibrations that hadn't seen the samples; one that looked at variants, by those.
    alike = panel.calibration is None and not run.config.inference.tta
    if alike and abs(score - recorded) > tolerance:
        raise GeoError(
            f"the cache scores {score:.4f} now, where it scored {recorded:.4f} when run {run.name} was fitted",
            where=run.path,
            hint="cache or heads have changed since: geo cache verify --deep, then geo fit-heads",
        )
    validation = validate(task, model, stop)
    if validation is None:
        raise KeyboardInterrupt
    from_images = validation.scores["val_score"]
    if abs(from_images - score) > tolerance:
        raise GeoError(
            f"before any step the pictures score {from_images:.4f}, where run {run.name} scores {score:.4f} "
            "from the cache",
            where=task.samples.image_root,
            hint="pictures have changed since they were cached: geo extract, then geo fit-heads",
        )
    if task.team.first:
        say(f"frozen: score {from_images:.4f}, from the cache {score:.4f}")
    return validation
