"""Stage 2: store to run. Reads embeddings only; whole tensors in memory, no loader."""

import copy
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from geo_embed import geography
from geo_embed.answers import Predictions, Prior, Truth
from geo_embed.blocks import short_names
from geo_embed.config import Config, Model, Training
from geo_embed.console import counted, progress, say, warn
from geo_embed.data.holdout import Places, stratified_split, validation_masks
from geo_embed.data.samples import natural_ids
from geo_embed.data.spatial import resampling_groups
from geo_embed.devices import pick_device, side_by_side, torch_switches
from geo_embed.errors import GeoError
from geo_embed.files import file_sha256
from geo_embed.fitting.arrays import describe_arrays, examples_of, settings_of
from geo_embed.fitting.epochs import CHOSEN_BY, answered_by_part, parts_of, scores_without
from geo_embed.fitting.examples import (
    Examples,
    Rows,
    find_prior,
    open_training_data,
    put_first,
    rows_where,
    to_rows,
)
from geo_embed.fitting.leaks import near_twins
from geo_embed.fitting.race import CHOSEN_SETTINGS, EARLY, LATE, TOGETHER, Race, fit_best
from geo_embed.fitting.stacked import TrainingJob, train_all
from geo_embed.fitting.train import TrainedHeads, Validated, find_refiner, gallery_of
from geo_embed.heads.heads import CellHeads, Heads
from geo_embed.heads.mixture import Mixture
from geo_embed.heads.predictor import Panel, apply_heads, averaged
from geo_embed.heads.region import make_region
from geo_embed.metrics import final_metrics, metrics
from geo_embed.registry import HEADS
from geo_embed.runs.provenance import describe_origin, describe_sources
from geo_embed.runs.run import only_run_writer, split_path, writing_run
from geo_embed.runs.twins import score_without
from geo_embed.settings import get_config, is_set, with_changes
from geo_embed.tracking import require_tracker, tracked

# A larger share of held-out samples with a near twin in training makes the score one of memory.
_MOST_TWINS = 0.05
_VALIDATED = ("score", "state_score", "gps_score", "mean_km", "nll")


@dataclass(frozen=True, repr=False)
class Fit:
    """What `fit_heads` made: the run's name, how long it took, and how good it is on the held-out samples.

    Attributes:
        val: metrics of the held-out samples, which had no say in how they were answered: neither in an epoch, nor in how points
            are refined, nor in a calibration.
        parts: one entry per set of heads: seed, fold, epochs; of `best` also `state_labels`, how much of what its race chose learnt
            the states from `hard` labels, and from `soft` ones where such took part; of several sources also `sources`, what `shares`
            of what was chosen look at which, and which `scores` the held-out samples give each alone; and, of several sets, their score.
        chosen_score: where held-out samples chose an epoch or a refinement, what the heads as they were chosen score on these
            very samples: too good, and what is published of such a recipe; else None.
        twins: `samples`, how many held-out samples have a near twin among those that were trained on (leaks.py); and
            `score_without`, the score of the others, None where there are none.
    """

    run: str
    seconds: float
    epochs: int
    val: dict[str, Any]
    parts: list[dict[str, Any]]
    chosen_score: float | None
    twins: dict[str, Any]

    def __repr__(self) -> str:
        score = "" if self.val["score"] is None else f"score {self.val['score']:.4f} on "
        held_out = f"{score}{counted(self.val['samples'], 'held-out sample')}"
        return f"<fit {self.run}: {held_out}, {counted(self.epochs, 'epoch')}, {self.seconds:.1f} s>"


@dataclass(frozen=True)
class Split:
    """For one set of heads: its seed, its fold, and masks (N,) of the examples that it is trained on and validated on."""

    seed: int
    fold: int
    train: NDArray[np.bool_]
    val: NDArray[np.bool_]


@dataclass(frozen=True)
class Dataset:
    """N examples, the answer for one without pictures, and the device that heads are fitted on."""

    examples: Examples
    prior: Prior
    device: torch.device

    def rows(self, mask: NDArray[np.bool_]) -> Rows:
        """The examples of a mask (N,), as tensors on the device."""
        return to_rows(self.examples, mask, self.device)

    def predict(self, heads: Heads | Mixture, mask: NDArray[np.bool_]) -> Predictions:
        """Predictions of one set of heads for the examples of a mask (N,)."""
        examples, rows = self.examples, rows_where(mask)
        return apply_heads(
            Panel([heads]),
            self.device,
            self.prior,
            examples.encoder,
            examples.sample_id[rows],
            examples.values[rows],
            examples.present[rows],
        )

    def score(self, predictions: Predictions, mask: NDArray[np.bool_]) -> dict[str, Any]:
        """The metrics of predictions for the examples of a mask (N,)."""
        return metrics(predictions, self.examples.truth.take(mask))


@dataclass(frozen=True)
class FittedHeads:
    """One set of heads.

    Attributes:
        history: one row per epoch, or of `best` per trial of its race.
        epochs: how many were run.
        predictions: for the split's validation samples, each by a choice that it had no say in.
        chosen: theirs by these very heads; None where they chose nothing, and both are the same.
        state_labels: of a `Race`; None of the plain recipe.
        sources: of a `Race` over several sources: `shares`, and the `scores` of its alternatives on the validation samples; else None.
    """

    heads: Heads | Mixture
    history: pd.DataFrame
    epochs: int
    predictions: Predictions
    chosen: Predictions | None = None
    state_labels: dict[str, float] | None = None
    sources: dict[str, Any] | None = None


@overload
def fit_heads(
    config: Config | None = None,
    *,
    backbones: Sequence[str | Path] | None = None,
    name: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> Fit: ...


@overload
def fit_heads(
    config: Config | None = None,
    *,
    embeddings: ArrayLike | Mapping[str, ArrayLike],
    states: ArrayLike,
    latitude: ArrayLike,
    longitude: ArrayLike,
    present: ArrayLike | None = None,
    sample_id: ArrayLike | None = None,
    name: str | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> Fit: ...


def fit_heads(
    config: Config | None = None,
    *,
    backbones: Sequence[str | Path] | None = None,
    embeddings: ArrayLike | Mapping[str, ArrayLike] | None = None,
    states: ArrayLike | None = None,
    latitude: ArrayLike | None = None,
    longitude: ArrayLike | None = None,
    present: ArrayLike | None = None,
    sample_id: ArrayLike | None = None,
    name: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> Fit:
    """Fit heads and write a run: on the cached train split, or on plain arrays, without a CSV, a cache or a backbone.

    Arrays give the split and the heads that the same embeddings in the cache would give, by a CSV with the same ids, states and places.

    With `training.folds` above 1 every sample is held out once: the run's validation predictions are out of fold and cover
    all samples, and its answer is the average over the folds. With `training.seeds` above 1 each is fitted as often.

    Args:
        config: all settings; default `get_config()`.
        backbones: whose embeddings of the cached split heads are fitted on together; default: those of the settings.
        embeddings: (N, V, D) floats, or (N, D) of one view; or by name such arrays of the same samples by several sources, D may
            differ. Kept as the cache does, in float16 unless `model.dtype` is float32.
        states: (N,) names, or whole numbers, which are the data's own `state_idx`.
        latitude, longitude: (N,) degrees.
        present: (N, V) bool, False where a view is missing; default: all are there.
        sample_id: (N,) ids, by which a split is dealt; default 0 to N − 1.
        name: of the run; default `heads-` and the time.
        limit: use the first samples of the cached split only.
        overwrite: replace a run of this name.
        command: the command line that asks for it, for the run's provenance.

    Raises:
        GeoError: no store, a store that doesn't fit the CSV, embeddings that aren't finite, or more folds than samples; arrays that
            don't fit each other, or hold what none may; the name is taken, or another process is writing a run of this name; a tracker
            that isn't installed.
    """
    config = config or get_config()
    if backbones is not None:
        named = [backbones] if isinstance(backbones, str | Path) else backbones
        config = with_changes(config, {"model.backbones": [str(name) for name in named]}, where="fit_heads")
    require_tracker(config)
    runs_dir = config.paths.runs_dir
    arrays: dict[str, Any] = {
        "embeddings": embeddings,
        "states": states,
        "latitude": latitude,
        "longitude": longitude,
    }
    is_cached = all(given is None for given in (*arrays.values(), present, sample_id))
    absent = [array for array, given in arrays.items() if given is None]
    if not is_cached and (absent or limit is not None or backbones is not None):
        cached = "limit" if limit is not None else "backbones"
        raise GeoError(
            f"there is no {absent[0]}" if absent else f"{cached} goes with the cached split",
            where="fit_heads",
            hint="give embeddings, states, latitude and longitude, or none of them to fit on the cached train split",
        )
    with (
        torch_switches(config.model),
        only_run_writer(runs_dir, name, prefix="heads", overwrite=overwrite) as held,
    ):
        if is_cached:
            return fit_run(config, held, limit=limit, overwrite=overwrite, command=command)
        started = time.monotonic()
        examples = examples_of(**arrays, present=present, sample_id=sample_id, dtype=config.model.dtype)
        config = settings_of(config, examples.values.shape[1])
        sources = describe_arrays(examples)
        return _fit(config, held, examples, sources, started, overwrite=overwrite, command=command)


def fit_run(
    config: Config, name: str, *, limit: int | None, overwrite: bool, command: Sequence[str] = ()
) -> Fit:
    """As `fit_heads` on the cached train split, for whoever holds the run's name by `only_run_writer`."""
    started = time.monotonic()
    data = open_training_data(config, limit=limit)
    csv = config.paths.csv("train")
    sources = describe_sources(csv, file_sha256(data.samples.csv), data.sources, data.content_samples)
    return _fit(config, name, data.examples, sources, started, overwrite=overwrite, command=command)


def _fit(
    config: Config,
    name: str,
    examples: Examples,
    sources: Mapping[str, Any],
    started: float,
    *,
    overwrite: bool,
    command: Sequence[str],
) -> Fit:
    """Fit heads on examples, whose memory is the fit's from now on, and write the run.

    Args:
        config: all settings.
        name: of the run, which the caller holds.
        examples: N samples.
        sources: where they came from, as `describe_sources` has it.
        started: when the work began, by the monotonic clock.
        overwrite, command: as in `fit_heads`.
    """
    config = for_sources(config, len(examples.blocks))
    runs_dir, training = config.paths.runs_dir, config.training

    # 1. What is trained on, and what is held out. Where there is one fold, what it trains on comes first, and is copied nowhere.
    _warn_of_ignored(config.model, training)
    splits = plan(examples.places, training)
    order = np.arange(len(examples))
    if len({split.fold for split in splits}) == 1:
        examples, order = put_first(examples, splits[0].train)
        splits = [replace(split, train=split.train[order], val=split.val[order]) for split in splits]
    train = np.logical_or.reduce([split.train for split in splits])
    val = np.logical_or.reduce([split.val for split in splits])
    prior = find_prior(examples, train)
    dataset = Dataset(examples, prior, pick_device(config.model.device, float64=True))

    with tracked(config, name, ("model", "training")) as log:
        # 2. A set of heads per split.
        fitted = fit_splits(dataset, splits, config.model, training, every=config.tracking.progress_seconds)
        for step, values in by_step(splits, fitted):
            log(step, values)

        # 3. What each predicts for the samples that it wasn't trained on.
        parts = _describe_parts(dataset, splits, fitted)
        panel = Panel([part.heads for part in fitted])
        val_predictions = _out_of_fold(examples, splits, [part.predictions for part in fitted], val)
        chosen_score: float | None = None
        if any(part.chosen is not None for part in fitted):
            as_chosen = [part.chosen or part.predictions for part in fitted]
            chosen_score = dataset.score(_out_of_fold(examples, splits, as_chosen, val), val)["score"]
        if training.temperature is not None or (training.calibration != "none" and val.any()):
            tied = None if examples.tied is None else examples.tied[val]
            val_predictions = _calibrate(panel, val_predictions, examples.labels[val], training, tied)
        truth = examples.truth.take(val)
        groups = resampling_groups(truth.latitude, truth.longitude, training)
        scores = final_metrics(val_predictions, truth, groups=groups)
        measured = {"val": scores, "parts": parts}
        if chosen_score is not None:
            measured["chosen"] = {"score": chosen_score, "by": CHOSEN_BY}
        if panel.reliability is not None:
            measured["calibration"] = panel.reliability

        of_folds = {split.fold: split.val for split in splits}
        is_twin = near_twins(examples, list(of_folds.values()))[val]
        where = split_path(runs_dir / name)
        twins = _without_twins(val_predictions, truth, is_twin, training, where)
        measured["twins"] = twins
        log(None, scores)

    # 4. The run.
    train_truth, labels = examples.truth.take(train), examples.labels[train]
    centroids = geography.class_centroids(
        train_truth.latitude, train_truth.longitude, labels, len(examples.encoder)
    )
    counts = np.bincount(labels, minlength=len(examples.encoder))
    provenance = {
        **describe_origin(command, seed=config.training.seed, note=config.tracking.note),
        **sources,
    }
    with writing_run(runs_dir, name, overwrite=overwrite) as writer:
        writer.write_heads(panel)
        writer.write_centroids(examples.encoder, centroids)
        writer.write_metrics(measured)
        writer.write_history(
            pd.concat(
                part.history.assign(seed=split.seed, fold=split.fold)
                for split, part in zip(splits, fitted, strict=True)
            )
        )
        writer.write_split(_split_table(examples, splits, val, is_twin).iloc[np.argsort(order)])
        writer.write_predictions("val", val_predictions, truth)
        seconds = time.monotonic() - started
        provenance["seconds"] = seconds
        writer.write_description(config, examples.encoder, counts, prior, provenance)
    return Fit(
        name,
        seconds,
        max(part.epochs for part in fitted),
        scores,
        parts,
        chosen_score,
        twins,
    )


def for_sources(config: Config, count: int) -> Config:
    """The settings for heads over so many sources: the plain recipe standardises several, unless the settings say otherwise."""
    if count < 2 or config.training.preset == "best" or is_set(config, "model.standardise"):
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"standardise": True})})


def by_step(splits: Sequence[Split], fitted: Sequence[FittedHeads]) -> Iterator[tuple[int, dict[str, float]]]:
    """Each epoch, or trial of a race, with what its histories have of it: as `val_score`, of several splits as `val_score/fold-0-seed-1`."""
    for row in range(max(len(part.history) for part in fitted)):
        values: dict[str, float] = {}
        for split, part in zip(splits, fitted, strict=True):
            of_split = f"/fold-{split.fold}-seed-{split.seed}" if len(splits) > 1 else ""
            if row < len(part.history):
                values |= {f"{key}{of_split}": value for key, value in part.history.iloc[row].items()}
        yield row + 1, values


def _without_twins(
    predictions: Predictions, truth: Truth, twins: NDArray[np.bool_], training: Training, table: Path
) -> dict[str, Any]:
    """What n held-out samples score without those (n,) that have a near twin in training; a warning where those are many, with the
    table that is going to name them.
    """
    found = score_without(predictions, truth, twins)
    count, score = found["samples"], found["score_without"]
    if count > _MOST_TWINS * len(twins):
        without = "" if score is None else f"; without them the score is {score:.4f}"
        cure = (
            ""
            if training.validation == "spatial"
            else ": --set training.validation=spatial holds places out whole"
        )
        warn(
            f"{count:,} of {counted(len(twins), 'held-out sample has', 'held-out samples have')} a near twin among the training samples{without}{cure} "
            f"(near_twin in {table})"
        )
    return found


def plan(places: Places, training: Training) -> list[Split]:
    """What each set of heads is trained and validated on: one split per seed, or per fold and seed."""
    seeds = range(training.seed, training.seed + training.seeds)
    masks = validation_masks(places, training)
    if not masks[0].any():
        drawn = stratified_split(places.sample_id, places.labels, training.val_split, training.split_seed)
        why = (
            "samples that share pictures are too many of their class to hold any out"
            if drawn.any()
            else "too few samples to hold any out"
        )
        warn(f"{why}: no validation score, no early stopping")
    return [Split(seed, fold, ~val, val) for fold, val in enumerate(masks) for seed in seeds]


def fit_splits(
    dataset: Dataset, splits: Sequence[Split], model: Model, training: Training, *, every: float = 0
) -> list[FittedHeads]:
    """Fit every set of heads, by the recipe that `training.preset` names.

    The plain recipe keeps the epoch with the best score on the validation rows, which are answered by epochs that were chosen
    without them (epochs.py). `best` doesn't look at them. The plain recipe's trainings share one program on a GPU, and the cores of a CPU.

    Args:
        dataset: the examples.
        splits: of the examples.
        model, training: settings.
        every: seconds between lines of progress.
    """
    if training.preset != "best":
        return _fit_plain(dataset, splits, model, training, every)
    # One fit of `best` tells of itself.
    alone = len(splits) == 1
    fitted = []
    with progress("fit-heads", 0 if alone else len(splits), "fits", every) as advance:
        for place, split in enumerate(splits):
            fitted.append(_fit_best(dataset, split, model, training, every, place=place, of=len(splits)))
            advance(1)
    return fitted


def _fit_plain(
    dataset: Dataset, splits: Sequence[Split], model: Model, training: Training, every: float
) -> list[FittedHeads]:
    """On a GPU all trainings together, on a CPU side by side; an epoch that a training didn't need counts as done."""
    with progress("fit-heads", training.epochs * len(splits), "epochs", every) as advance:

        def finish(split: Split, job: TrainingJob, trained: TrainedHeads) -> FittedHeads:
            steps = len(trained.history) if HEADS[model.head].make.by_steps else 0
            advance(training.epochs - steps)
            return _finish(dataset, split, job, trained)

        if dataset.device.type == "cuda":
            jobs = [make_job(dataset, split, model, training) for split in splits]
            return [finish(*part) for part in zip(splits, jobs, train_all(jobs, advance), strict=True)]

        def fit(split: Split, stopped: threading.Event) -> FittedHeads:
            def tell(n: int, note: str = "") -> None:
                if stopped.is_set():
                    raise GeoError("stopped: another fit has failed, or was interrupted")
                advance(n, note)

            # Made here: copies of several folds' rows are in memory only while they are trained on.
            job = make_job(dataset, split, model, training)
            return finish(split, job, train_all([job], tell)[0])

        return side_by_side(fit, splits, dataset.device)


def make_job(
    dataset: Dataset,
    split: Split,
    model: Model,
    training: Training,
    rows: Rows | None = None,
    *,
    cross_fit: bool = True,
) -> TrainingJob:
    """A training of the plain recipe on a split, validated on it.

    Args:
        dataset: the examples.
        split: of the examples.
        model, training: settings.
        rows: the split's training rows, where several trainings share them.
        cross_fit: whether parts of the validation rows choose epochs for one another, so that their score can be reported.
    """

    truth = dataset.examples.truth.take(split.val)
    part = _parts(dataset.examples, split, training) if cross_fit else np.zeros(0, dtype=np.int64)

    def validate(heads: Heads) -> Validated:
        predictions = dataset.predict(heads, split.val)
        scores = metrics(predictions, truth)
        without = scores_without(predictions, truth, part) if cross_fit else []
        return Validated({f"val_{key}": scores[key] for key in _VALIDATED}, without)

    rows = dataset.rows(split.train) if rows is None else rows
    region = make_region(
        rows.points.cpu().numpy(),
        rows.labels.cpu().numpy(),
        len(dataset.examples.encoder),
        model,
        seed=split.seed,
    )
    return TrainingJob(rows, region, model, training, split.seed, validate if split.val.any() else None)


def _parts(examples: Examples, split: Split, training: Training) -> NDArray[np.int64]:
    """The part of each validation row, the same for all seeds."""
    tied = None if examples.tied is None else examples.tied[split.val]
    return parts_of(examples.truth.take(split.val), tied, training)


def _fit_best(
    dataset: Dataset,
    split: Split,
    model: Model,
    training: Training,
    every: float,
    *,
    place: int = 0,
    of: int = 1,
) -> FittedHeads:
    """The fit of one split, in the given place of so many: the first one's race is told in full, those that follow in a line."""

    def ignore(text: str) -> None:
        pass

    best, race = fit_best(
        dataset.rows(split.train),
        len(dataset.examples.encoder),
        model,
        training,
        seed=split.seed,
        every=every,
        tell=ignore if place else say,
    )
    chosen = f"chosen: {', '.join(race.chosen)}; {_describe_labels(race.state_labels)}"
    if of > 1:
        leads = f"; best candidate {race.best_score:.4f}" if race.trials else ""
        say(f"fit {place + 1} of {of}, fold {split.fold}, seed {split.seed}: {chosen}{leads}")
    else:
        say(chosen)
    history = pd.DataFrame([asdict(trial) for trial in race.trials])
    predictions = dataset.predict(best, split.val)
    sources = _compare_sources(dataset, split, race, predictions)
    if sources is not None and split.val.any():
        say(describe_comparison(sources, int(split.val.sum())))
    return FittedHeads(
        best.cpu(), history, race.epochs, predictions, state_labels=race.state_labels, sources=sources
    )


def _compare_sources(
    dataset: Dataset, split: Split, race: Race, together: Predictions
) -> dict[str, Any] | None:
    """Of several sources, how much of what was chosen looks at which, and what each reaches on the validation samples, which chose
    nothing; None of one source.
    """
    if not race.alternatives:
        return None
    scores: dict[str, float] = {}
    if split.val.any():
        scores[TOGETHER] = dataset.score(together, split.val)["score"]
        for name, mixture in race.alternatives.items():
            scores[name] = dataset.score(dataset.predict(mixture, split.val), split.val)["score"]
    return {"shares": race.shares, "scores": scores, "brief": race.brief}


def describe_comparison(sources: Mapping[str, Any], samples: int) -> str:
    """Which fusion of sources won, and what each source alone reaches on so many held-out samples.

    >>> shares, scores = {"early": 0.25, "a": 0.5, "b": 0.25}, {"together": 0.8, "early": 0.7, "late": 0.8, "a": 0.6, "b": 0.5}
    >>> describe_comparison({"shares": shares, "scores": scores, "brief": False}, 96)
    'sources: late fusion won, 0.75 to 0.25; 96 held-out samples: together 0.8000, early 0.7000, late 0.8000, a alone 0.6000, b alone 0.5000'
    """
    shares, scores = sources["shares"], dict(sources["scores"])
    early = float(shares.get(EARLY, 0.0))
    winner = f"{EARLY if early >= 0.5 else LATE} fusion won, {max(early, 1 - early):.2f} to {min(early, 1 - early):.2f}"
    together = scores.pop(TOGETHER)
    alone = [name for name in scores if name not in (EARLY, LATE)]
    called = dict(zip(alone, short_names(alone), strict=True))
    each = ", ".join(
        f"{called[name]} alone {score:.4f}" if name in called else f"{name} {score:.4f}"
        for name, score in scores.items()
    )
    brief = " as trained briefly in the race," if sources["brief"] else ""
    return (
        f"sources: {winner}; {counted(samples, 'held-out sample')}: {TOGETHER} {together:.4f},{brief} {each}"
    )


def _describe_labels(shares: Mapping[str, float]) -> str:
    """Which kind of state labels won a race, or that no other took part.

    >>> _describe_labels({"hard": 0.44, "soft": 0.56}), _describe_labels({"hard": 1.0})
    ('state labels: soft (haversine) won, 0.56 to 0.44', 'state labels: hard, no others raced')
    """
    called = {"hard": "hard", "soft": "soft (haversine)"}
    winner, *losers = sorted(shares, key=lambda kind: -shares[kind])
    if not losers:
        return f"state labels: {called[winner]}, no others raced"
    return f"state labels: {called[winner]} won, {shares[winner]:.2f} to {shares[losers[0]]:.2f}"


def _finish(dataset: Dataset, split: Split, job: TrainingJob, trained: TrainedHeads) -> FittedHeads:
    """Let trained heads refine their points among the training rows, where that is asked for and helps; and predict."""
    heads, history = trained.heads, pd.DataFrame(trained.history)
    predictions = chosen = dataset.predict(heads, split.val)
    refines = job.training.refine and bool(split.val.any())
    if not refines and not trained.part_epochs:
        return FittedHeads(heads.cpu(), history, len(history), predictions)
    predictions = _cross_fit(dataset, split, job, trained, predictions)
    if refines:
        is_refined = _refine(heads, job, dataset.rows(split.val))
        say("points are refined among the training samples" if is_refined else "refining points doesn't help")
        chosen = dataset.predict(heads, split.val)
    return FittedHeads(heads.cpu(), history, len(history), predictions, chosen)


def _refine(heads: Heads, job: TrainingJob, val_rows: Rows) -> bool:
    """Let heads refine their points as helps most on these rows; whether it does."""
    refiner = find_refiner(heads, job.region, job.rows, val_rows)
    if refiner is None or not isinstance(heads, CellHeads):
        return False
    heads.look_up(gallery_of(heads, job.rows, job.region), refiner)
    return True


def _cross_fit(
    dataset: Dataset, split: Split, job: TrainingJob, trained: TrainedHeads, by_kept: Predictions
) -> Predictions:
    """Predictions for the validation rows, part by part, by the epoch and the refinement that the other parts choose.

    Args:
        dataset, split, job: what was trained on what.
        trained: the heads, not refined yet.
        by_kept: predictions by the epoch that is kept.
    """
    val, part = np.flatnonzero(split.val), _parts(dataset.examples, split, job.training)
    answers: dict[int, Predictions] = {}
    for p in np.unique(part).tolist():
        epoch = trained.part_epochs[p] if trained.part_epochs else 0
        is_kept = epoch in (0, trained.epoch)
        if is_kept and not job.training.refine:
            continue
        heads = copy.deepcopy(trained.heads)
        if not is_kept:
            heads.load_state_dict(trained.weights[epoch])
        if job.training.refine and (part != p).any():
            others = np.zeros(len(split.val), dtype=bool)
            others[val[part != p]] = True
            _refine(heads, job, dataset.rows(others))
        # All rows are predicted, though a part is taken: a row's last bits depend on its company.
        answers[p] = dataset.predict(heads, split.val)
    return answered_by_part(by_kept, part, answers)


def _warn_of_ignored(model: Model, training: Training) -> None:
    """`best` brings its own recipe: say so where settings of the plain one were changed."""
    if training.preset != "best":
        return
    changed = {
        f"{group}.{key}"
        for group, settings in (("model", model), ("training", training))
        for key, value in settings
        if value != getattr(type(settings)(), key)
    }
    ignored = [key for key in CHOSEN_SETTINGS if key in changed]
    if ignored:
        warn(f"--preset best chooses {', '.join(ignored)} by itself; --preset pigeon follows the settings")


def _describe_parts(
    dataset: Dataset, splits: Sequence[Split], fitted: Sequence[FittedHeads]
) -> list[dict[str, Any]]:
    parts = []
    for split, part in zip(splits, fitted, strict=True):
        described: dict[str, Any] = {"seed": split.seed, "fold": split.fold, "epochs": part.epochs}
        if part.state_labels is not None:
            described["state_labels"] = part.state_labels
        if part.sources is not None:
            described["sources"] = part.sources
        if len(splits) > 1 and split.val.any():
            described["score"] = dataset.score(part.predictions, split.val)["score"]
        parts.append(described)
    return parts


def _out_of_fold(
    examples: Examples,
    splits: Sequence[Split],
    predictions: Sequence[Predictions],
    val: NDArray[np.bool_],
) -> Predictions:
    """One prediction for each example of `val` (N,), in their order: the average over the seeds of its fold."""
    n = len(examples)
    probabilities = np.zeros((n, len(examples.encoder)), dtype=np.float32)
    latitude, longitude = np.zeros(n), np.zeros(n)
    for fold in sorted({split.fold for split in splits}):
        mask = next(split.val for split in splits if split.fold == fold)
        average = averaged(
            [predicted for split, predicted in zip(splits, predictions, strict=True) if split.fold == fold]
        )
        probabilities[mask] = average.probabilities
        latitude[mask], longitude[mask] = average.latitude, average.longitude
    return Predictions(examples.sample_id, probabilities, latitude, longitude, examples.encoder).take(val)


def _calibrate(
    panel: Panel,
    predictions: Predictions,
    labels: NDArray[np.int64],
    training: Training,
    tied: NDArray[np.int64] | None,
) -> Predictions:
    """Calibrate a panel on validation predictions of these classes (n,); and the predictions, each by a calibration that hasn't
    seen it, so that what is reported holds for new samples. A temperature that is given has seen none.
    """
    if training.temperature is not None:
        probabilities = panel.set_temperature(training.temperature, predictions.probabilities, labels)
    else:
        probabilities = panel.calibrate(
            predictions.probabilities, labels, training.calibration, seed=training.split_seed, tied=tied
        )
    return replace(predictions, probabilities=probabilities)


def _split_table(
    examples: Examples, splits: Sequence[Split], val: NDArray[np.bool_], twins: NDArray[np.bool_]
) -> pd.DataFrame:
    """Every sample's part of the split and, of the held-out ones (n,), whether it has a near twin in training."""
    table = pd.DataFrame(
        {"sample_id": natural_ids(examples.sample_id), "part": np.where(val, "val", "train")}
    )
    table["near_twin"] = False
    table.loc[val, "near_twin"] = twins
    if len({split.fold for split in splits}) > 1:
        fold = np.full(len(val), -1)
        for split in splits:
            fold[split.val] = split.fold
        table["fold"] = fold
    return table
