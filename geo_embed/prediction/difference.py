"""Which of two runs is better, and whether that is more than chance: the paired bootstrap over samples that both held out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.config import Training
from geo_embed.console import counted, warn
from geo_embed.data.samples import text_ids
from geo_embed.data.spatial import resampling_groups
from geo_embed.errors import GeoError
from geo_embed.metrics import (
    competition_score,
    difference_intervals,
    error_km,
    state_credit,
    top_states,
)
from geo_embed.prediction.evaluate import chose_unseen
from geo_embed.runs.run import Run, check_not_replaced, load_run
from geo_embed.runs.table import read_predictions

# A place as two machines read it from the same text.
_SAME_DEGREES = 1e-6
Interval = tuple[float, float] | tuple[None, None]


@dataclass(frozen=True)
class Part:
    """A score's difference, the first run's less the second's, and its 95 % interval; None below two samples or groups."""

    difference: float
    interval: Interval


@dataclass(frozen=True)
class Compared:
    """One of the two runs.

    Attributes:
        run: its name.
        score, state_score, gps_score, mean_km: on the samples that are compared.
        held_out: samples that it held out.
        left_out: of these, those that the other one didn't hold out.
        trained_on_by_other: of those left out, those that the other one was trained on.
        validation: random or spatial: one split by place has trained on nothing near these samples, one split at random may have.
        too_good: whether the samples chose its epoch and are scored all the same, as in runs of earlier versions.
    """

    run: str
    score: float
    state_score: float
    gps_score: float
    mean_km: float
    held_out: int
    left_out: int
    trained_on_by_other: int
    validation: str
    too_good: bool


@dataclass(frozen=True)
class Comparison:
    """Two runs on the samples that both held out.

    Attributes:
        difference, interval: of the score, the first run's less the second's.
        state_score, gps_score: the same of its parts.
        samples: that both held out, and are compared.
        groups: of places that were drawn together; None where each sample was drawn alone.
        runs: the first and the second.
    """

    difference: float
    interval: Interval
    state_score: Part
    gps_score: Part
    samples: int
    groups: int | None
    runs: tuple[Compared, Compared]


def compare_runs(runs_dir: Path, first: str, second: str) -> Comparison:
    """Compare two runs of any kind by the paired bootstrap; both are scored on the same draws.

    Only samples that both held out count. Samples are drawn by place where either run was split by place. States are compared by
    `state_idx`, so the runs need not know the same ones.

    Args:
        runs_dir: of the runs.
        first, second: by name or directory.

    Raises:
        GeoError: no such run, or a damaged one; one given twice; no sample that both held out, or different truths for one.
    """
    runs = load_run(runs_dir, first), load_run(runs_dir, second)
    if runs[0].path.resolve() == runs[1].path.resolve():
        raise GeoError("a run is compared with itself", where=runs[0].path, hint="name two runs")
    tables = [_held_out(run) for run in runs]
    ids = [predictions.sample_id for predictions, _ in tables]
    shared, *places = np.intersect1d(ids[0].astype(str), ids[1].astype(str), return_indices=True)
    if not len(shared):
        raise GeoError(
            f"{runs[0].name} and {runs[1].name} held out no sample in common ({len(ids[0]):,} and {len(ids[1]):,})",
            where=runs_dir,
            hint="fit both with the same training.split_seed, val_split and validation, or both with --folds",
        )
    compared = [
        (predictions.take(rows), truth.take(rows))
        for (predictions, truth), rows in zip(tables, places, strict=True)
    ]
    _check_same_truth(runs, compared)

    truth = compared[0][1]
    earned = [_earned(*pair) for pair in compared]
    a, b = ((credit, km) for _, credit, km in earned)
    groups = resampling_groups(
        truth.latitude, truth.longitude, _coarser(*(run.config.training for run in runs))
    )
    scores = [competition_score(ranked, truth.state_idx, km) for ranked, _, km in earned]
    intervals = difference_intervals(a, b, groups)
    of_run = [
        _described(run, other, scored, km, own_ids, shared)
        for run, other, scored, (_, _, km), own_ids in zip(runs, runs[::-1], scores, earned, ids, strict=True)
    ]
    for run in runs:
        check_not_replaced(run)
    total, states, gps = (x - y for x, y in zip(*scores, strict=True))
    return Comparison(
        total,
        intervals["score"],
        Part(states, intervals["state_score"]),
        Part(gps, intervals["gps_score"]),
        len(shared),
        None if groups is None else len(np.unique(groups)),
        (of_run[0], of_run[1]),
    )


def _held_out(run: Run) -> tuple[Predictions, Truth]:
    predictions, truth = read_predictions(run.predictions_path("val"), run.labels)
    if truth is None:
        raise GeoError("these predictions carry no truth", where=run.path, hint="train the run again")
    return predictions, truth


def _earned(
    predictions: Predictions, truth: Truth
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Ranked states (N, 5) by `state_idx`, credit (N,) and km (N,)."""
    ranked = predictions.labels.decode(top_states(predictions.probabilities))
    return ranked, state_credit(ranked, truth.state_idx), error_km(predictions, truth)


def _coarser(first: Training, second: Training) -> Training:
    """Of two splits' settings, those that keep more together."""
    return max(first, second, key=lambda training: (training.validation == "spatial", training.group_km))


def _described(
    run: Run,
    other: Run,
    scored: tuple[float, float, float],
    km: NDArray[np.float64],
    held_out: NDArray[np.object_],
    shared: NDArray[np.str_],
) -> Compared:
    left_out = set(held_out) - set(shared.tolist())
    trained_on: set[str] = set()
    if left_out:
        split = other.read_split()
        trained_on = set(text_ids(split["sample_id"][split["part"] == "train"]))
    too_good = chose_unseen(run)
    if too_good:
        warn(
            f"{run.name} is of a version that chose an epoch by these samples and scored them all the same: a little too good"
        )
    return Compared(
        run.name,
        *scored,
        mean_km=float(km.mean()),
        held_out=len(held_out),
        left_out=len(left_out),
        trained_on_by_other=len(left_out & trained_on),
        validation=run.config.training.validation,
        too_good=too_good,
    )


def _check_same_truth(runs: tuple[Run, Run], compared: list[tuple[Predictions, Truth]]) -> None:
    (predictions, a), (_, b) = compared
    far = np.maximum(np.abs(a.latitude - b.latitude), np.abs(a.longitude - b.longitude))
    wrong = (a.state_idx != b.state_idx) | ~(far <= _SAME_DEGREES)
    if wrong.any():
        raise GeoError(
            f"the run was fitted on another truth than {runs[0].name}: {counted(wrong.sum(), 'sample differs', 'samples differ')} in state or place, "
            f"sample {predictions.sample_id[wrong][0]} first",
            where=runs[1].path,
            hint="fit both on the same train CSV",
        )
