"""Stage 2: store to run. Reads embeddings only; whole tensors in memory, no loader."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed import geography
from geo_embed.answers import Predictions, Prior
from geo_embed.config import Config
from geo_embed.console import progress, say, warn
from geo_embed.data.holdout import validation_masks
from geo_embed.data.samples import natural_ids
from geo_embed.data.spatial import resampling_groups
from geo_embed.devices import pick_device
from geo_embed.files import file_sha256
from geo_embed.fitting.examples import Examples, Rows, find_prior, open_training_data, to_rows
from geo_embed.heads.predictor import Panel, apply_heads, averaged
from geo_embed.metrics import final_metrics, metrics
from geo_embed.runs.run import (
    check_new_name,
    describe_provenance,
    new_run_name,
    writing_run,
)
from geo_embed.settings import value_at

if TYPE_CHECKING:
    import torch

    from geo_embed.fitting import stacked as stack
    from geo_embed.fitting.train import Trained
    from geo_embed.heads.heads import Heads
    from geo_embed.heads.mixture import Best


@dataclass(frozen=True)
class Fit:
    """What `fit_heads` made: the run's name, how long it took, and how good it is on the held-out samples.

    `parts` has one entry per set of heads: seed, fold, epochs and, where its own samples were held out, their score.
    """

    run: str
    seconds: float
    epochs: int
    val: dict[str, Any]
    parts: list[dict[str, Any]]


@dataclass(frozen=True)
class Split:
    """For one set of heads: its seed, its fold, and masks (N,) of the rows it learns from and those it is judged on."""

    seed: int
    fold: int
    learnt: NDArray[np.bool_]
    judged: NDArray[np.bool_]


@dataclass(frozen=True)
class Fitted:
    """One set of heads; one row per epoch, or of `best` per trial of its race; and how many epochs were run."""

    heads: "Heads | Best"
    history: pd.DataFrame
    epochs: int


def fit_heads(
    config: Config, *, name: str | None = None, limit: int | None = None, overwrite: bool = False
) -> Fit:
    """Fit heads on the cached train split and write a run.

    With `training.folds` above 1 every sample is held out once: the run's validation predictions are out of fold and cover
    all samples, and its answer is the average over the folds. With `training.seeds` above 1 each is fitted as often.

    Args:
        config: all settings.
        name: of the run; default `heads-` and the time.
        limit: use the first samples only.
        overwrite: replace a run of this name.

    Raises:
        GeoError: no store, a store that doesn't fit the CSV, embeddings that aren't finite, or more folds than samples.
    """
    started = time.monotonic()
    name = name or new_run_name(config.paths.runs_dir, "heads")
    check_new_name(config.paths.runs_dir, name, overwrite=overwrite)
    opened = open_training_data(config, limit=limit)
    data = opened.examples
    _warn_of_ignored(config)
    splits = plan(config, data)
    learnt = np.logical_or.reduce([split.learnt for split in splits])
    prior = find_prior(data, learnt)

    fitted = fit_splits(config, data, splits, prior)
    answers = [
        _answer(one.heads, config, prior, data, split.judged)
        for split, one in zip(splits, fitted, strict=True)
    ]
    parts = []
    for split, one, answer in zip(splits, fitted, answers, strict=True):
        said = {"seed": split.seed, "fold": split.fold, "epochs": one.epochs}
        if len(splits) > 1 and split.judged.any():
            said["score"] = _score(answer, data, split.judged)["score"]
        parts.append(said)
    val, judged, panel = _validate(config, data, splits, [one.heads for one in fitted], answers)
    truth = data.truth.take(judged)
    groups = resampling_groups(truth.latitude, truth.longitude, config.training)
    scores = final_metrics(val, truth, groups=groups)

    centroids = geography.class_centroids(
        data.truth.latitude[learnt], data.truth.longitude[learnt], data.labels[learnt], len(data.encoder)
    )
    counts = np.bincount(data.labels[learnt], minlength=len(data.encoder))
    provenance = describe_provenance(config, opened.store, file_sha256(opened.samples.csv))
    with writing_run(config.paths.runs_dir, name) as writer:
        writer.write_heads(panel)
        writer.write_centroids(data.encoder, centroids)
        writer.write_metrics({"val": scores, "parts": parts, **_reliability(panel)})
        history = [
            one.history.assign(seed=split.seed, fold=split.fold)
            for split, one in zip(splits, fitted, strict=True)
        ]
        writer.write_history(pd.concat(history))
        writer.write_split(_split_table(data, splits, judged))
        writer.write_predictions("val", val, truth)
        seconds = time.monotonic() - started
        provenance["seconds"] = seconds
        writer.write_description(config, data.encoder, counts, prior, provenance)
    return Fit(name, seconds, max(part["epochs"] for part in parts), scores, parts)


def plan(config: Config, data: Examples) -> list[Split]:
    """Which rows each set of heads learns from: one split per seed, or per fold and seed."""
    training = config.training
    seeds = range(training.seed, training.seed + training.seeds)
    parts = validation_masks(data.places, training)
    if not parts[0].any():
        warn("too few samples to hold any out: no validation score, no early stopping")
    return [Split(seed, k, ~part, part) for k, part in enumerate(parts) for seed in seeds]


def fit_splits(config: Config, data: Examples, splits: Sequence[Split], prior: Prior) -> list[Fitted]:
    """Fit every set of heads, by the recipe that the settings name.

    The plain recipe keeps the epoch with the best score on the judged rows. `best` doesn't look at them: they choose
    nothing, and so tell the truth. On a GPU the plain recipe's trainings share one program; on a CPU they take turns.
    """
    from geo_embed.fitting.stacked import train_all

    device = pick_device(config.model.device)
    every = config.tracking.progress_seconds
    if config.training.preset != "best" and device.type == "cuda":
        trainings = [make_training(config, data, split, prior, device) for split in splits]
        return [
            _fitted(config, data, one, split, trained)
            for one, split, trained in zip(trainings, splits, train_all(trainings), strict=True)
        ]
    fitted = []
    with progress("fit-heads", len(splits), "fits", every) as advance:
        for split in splits:
            if config.training.preset == "best":
                fitted.append(_race(config, data, split, device))
            else:
                one = make_training(config, data, split, prior, device)
                fitted.append(_fitted(config, data, one, split, train_all([one])[0]))
            advance(1)
    return fitted


def _race(config: Config, data: Examples, split: Split, device: "torch.device") -> Fitted:
    from geo_embed.fitting.race import fit_best

    best, race = fit_best(to_rows(data, split.learnt, device), len(data.encoder), config, seed=split.seed)
    say(f"chosen: {', '.join(race.chosen)}")
    return Fitted(best.cpu(), pd.DataFrame([asdict(trial) for trial in race.trials]), race.epochs)


def make_training(
    config: Config,
    data: Examples,
    split: Split,
    prior: Prior,
    device: "torch.device",
    rows: Rows | None = None,
) -> "stack.TrainingJob":
    """A training of the plain recipe on a split; `rows` are `to_rows` of those it learns from, where several share them."""
    from geo_embed.fitting import stacked as stack
    from geo_embed.heads.region import make_atlas

    def judge(heads: "Heads") -> dict[str, float]:
        scores = _score(_answer(heads, config, prior, data, split.judged), data, split.judged)
        kept = ("score", "state_score", "gps_score", "mean_km", "nll")
        return {f"val_{key}": scores[key] for key in kept}

    rows = to_rows(data, split.learnt, device) if rows is None else rows
    points, labels = rows.points.cpu().numpy(), rows.labels.cpu().numpy()
    atlas = make_atlas(points, labels, len(data.encoder), config.model, seed=split.seed)
    return stack.TrainingJob(
        rows, atlas, config.model, config.training, split.seed, judge if split.judged.any() else None
    )


def _fitted(
    config: Config, data: Examples, one: "stack.TrainingJob", split: Split, trained: "Trained"
) -> Fitted:
    from geo_embed.fitting.train import find_refiner, gallery_of
    from geo_embed.heads.heads import CellHeads

    if config.training.refine and split.judged.any():
        held = to_rows(data, split.judged, one.rows.views.device)
        refiner = find_refiner(trained.heads, one.atlas, one.rows, held)
        say("points are refined among the training samples" if refiner else "refining points doesn't help")
        if refiner is not None and isinstance(trained.heads, CellHeads):
            trained.heads.look_up(gallery_of(trained.heads, one.rows, one.atlas), refiner)
    return Fitted(trained.heads.cpu(), pd.DataFrame(trained.history), len(trained.history))


def _warn_of_ignored(config: Config) -> None:
    """`best` brings its own recipe: say so where settings of the plain one were given."""
    if config.training.preset != "best":
        return
    from geo_embed.fitting.race import OWN_SETTINGS

    plain = Config()
    given = [key for key in OWN_SETTINGS if value_at(config, key) != value_at(plain, key)]
    if given:
        warn(f"--preset best chooses {', '.join(given)} by itself; --preset pigeon follows the settings")


def _validate(
    config: Config,
    data: Examples,
    splits: Sequence[Split],
    heads: "Sequence[Heads | Best]",
    answers: Sequence[Predictions],
) -> tuple[Predictions, NDArray[np.bool_], Panel]:
    """Predictions for every row that was held out, in order; which rows those are; and all heads, calibrated.

    A row's probabilities come from a calibration that hasn't seen it: what is reported holds for new samples.
    """
    judged = np.logical_or.reduce([split.judged for split in splits])
    n, classes = len(judged), len(data.encoder)
    probabilities = np.zeros((n, classes), dtype=np.float32)
    points = np.zeros((n, 2))
    for fold in sorted({split.fold for split in splits}):
        mask = next(split.judged for split in splits if split.fold == fold)
        said = averaged([one for split, one in zip(splits, answers, strict=True) if split.fold == fold])
        probabilities[mask] = said.probabilities
        points[mask] = np.stack([said.latitude, said.longitude], axis=1)
    probabilities, points = probabilities[judged], points[judged]
    panel = Panel(heads)
    if config.training.calibration != "none" and judged.any():
        probabilities = panel.calibrate(
            probabilities, data.labels[judged], config.training.calibration, seed=config.training.seed
        )
    val = Predictions(data.sample_id[judged], probabilities, points[:, 0], points[:, 1], data.encoder)
    return val, judged, panel


def _answer(
    heads: "Heads | Best", config: Config, prior: Prior, data: Examples, mask: NDArray[np.bool_]
) -> Predictions:
    return apply_heads(
        Panel([heads]),
        config,
        prior,
        data.encoder,
        data.sample_id[mask],
        data.values[mask],
        data.present[mask],
    )


def _score(predictions: Predictions, data: Examples, mask: NDArray[np.bool_]) -> dict[str, Any]:
    return metrics(predictions, data.truth.take(mask))


def _reliability(panel: Panel) -> dict[str, Any]:
    return {} if panel.reliability is None else {"calibration": panel.reliability}


def _split_table(data: Examples, splits: Sequence[Split], judged: NDArray[np.bool_]) -> pd.DataFrame:
    table = pd.DataFrame({"sample_id": natural_ids(data.sample_id), "part": np.where(judged, "val", "train")})
    if len({split.fold for split in splits}) > 1:
        fold = np.full(len(judged), -1)
        for split in splits:
            fold[split.judged] = split.fold
        table["fold"] = fold
    return table
