"""Runs to a run: their answers for the same held-out samples, combined, and copies of the runs to ask again."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Prior, Truth
from geo_embed.config import Config, EnsembleMethod, EnsemblePoint, PointChoice
from geo_embed.console import counted, track, warn
from geo_embed.data.holdout import deal, random_folds
from geo_embed.data.samples import text_ids
from geo_embed.data.spatial import resampling_groups
from geo_embed.errors import GeoError
from geo_embed.metrics import final_metrics, metrics
from geo_embed.prediction.combine import LEARNT, by_state, combine, mixing_learner
from geo_embed.runs.provenance import describe_origin
from geo_embed.runs.run import (
    Run,
    check_not_replaced,
    load_run,
    only_run_writer,
    writing_run,
)
from geo_embed.runs.table import read_predictions
from geo_embed.runs.twins import remembered_twins

_FOLDS = 5
# A place as two machines read it from the same text.
_SAME_DEGREES = 1e-6
# Whoever left samples out, having no picture of them, deals the others otherwise.
_REFIT = (
    "fit the runs with the same training.split_seed (before there was one, a run's training.seed split it), training.val_split and "
    "training.validation and, where one of them left samples out that it has no view of, or in any case, all of them with --folds"
)


@dataclass(frozen=True)
class Member:
    """A run's part in an ensemble: its weight, and its own score on the held-out samples."""

    run: str
    weight: float
    score: float


@dataclass(frozen=True)
class Ensembled:
    """What `ensemble` made: the run's name, its members' weights in the order given, what its point is of theirs, and its metrics.

    Attributes:
        twins: as of a `Fit`, of samples with a near twin in the training of any member; None where no member knows.
    """

    run: str
    weights: list[float]
    point: EnsemblePoint
    members: list[Member]
    val: dict[str, Any]
    twins: dict[str, Any] | None


@dataclass(frozen=True)
class _Validated:
    """A run's predictions for the samples it held out, in ascending order of the ids and of the states."""

    run: Run
    predictions: Predictions
    truth: Truth


def ensemble(
    config: Config,
    names: Sequence[str],
    *,
    method: EnsembleMethod,
    point: PointChoice = "auto",
    name: str | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> Ensembled:
    """Combine runs into one, which evaluate, predict and submit take like any other.

    The runs may come from any store, backbone, recipe or machine, and may be ensembles; they must know the same states and
    have held out the same samples, and are copied, so that the ensemble outlives them.

    The metrics are honest: where weights are learnt (`weighted`, `stacking`) or the point is chosen (`auto`), each fifth of the
    held-out samples is answered by what the other four choose, and these answers are scored and kept as the run's validation
    predictions. What it predicts with is learnt on all of them.

    Args:
        config: paths.
        names: two or more runs, by name or directory.
        method: see combine.py.
        point: the geometric median of the members' points, their mean on the sphere, or what scores better on held-out samples.
        name: of the ensemble; default `ensemble-` and the time.
        overwrite: replace a run of this name.
        command: the command line that asks for it, for the run's provenance.

    Raises:
        GeoError: fewer than two runs, one given twice, one that is damaged, replaced meanwhile, or held nothing out, or runs that
            don't fit; the name is taken, or another process is writing a run of this name.
    """
    with only_run_writer(config.paths.runs_dir, name, prefix="ensemble", overwrite=overwrite) as held:
        return _ensemble(config, names, method, point, held, overwrite, command)


def _ensemble(
    config: Config,
    names: Sequence[str],
    method: EnsembleMethod,
    asked: PointChoice,
    name: str,
    overwrite: bool,
    command: Sequence[str],
) -> Ensembled:
    """As `ensemble`, for whoever holds the run's name."""
    started = time.monotonic()
    runs_dir = config.paths.runs_dir

    # 1. The members' predictions for the samples that all of them held out.
    validated = _on_shared([_val_predictions(run) for run in _load_runs(runs_dir, names)])
    for other in validated[1:]:
        _check_same(validated[0], other)
    first, truth = validated[0].run, validated[0].truth

    # 2. Weights, and predictions that had no part in them: what is scored.
    groups = resampling_groups(truth.latitude, truth.longitude, first.config.training)
    weights, point, predictions = _cross_fit(
        method, [member.predictions for member in validated], truth, asked, groups
    )
    val = final_metrics(predictions, truth, groups=groups)
    twins = remembered_twins([member.run for member in validated], predictions, truth)
    members = [
        Member(
            member.run.path.resolve().name,
            float(weight),
            float(metrics(member.predictions, truth)["score"]),
        )
        for member, weight in zip(validated, weights, strict=True)
    ]

    # 3. The ensemble, as a run.
    described = {
        "method": method,
        "weights": weights.tolist(),
        "point": point,
        "members": [f"{i}-{member.run}" for i, member in enumerate(members, start=1)],
    }
    without = f"from these samples; each was answered with weights learnt without its part of {_FOLDS}"
    weights_from = without if method in LEARNT else "not at all"
    by_others = f"by these samples; each was answered by what those without its part of {_FOLDS} chose"
    point_from = by_others if asked == "auto" else "by whoever made the ensemble"
    runs = [member.run for member in validated]
    provenance = {
        **describe_origin(command, seed=config.training.seed, note=config.tracking.note),
        "data": first.provenance.get("data"),
        "store": first.provenance["store"],
        **({"sources": first.sources} if len(first.sources) > 1 else {}),
        "stores": _stores(runs),
        "ensemble": {
            **described,
            "runs": [str(run.path.resolve()) for run in runs],
            "weights_learnt": weights_from,
            "point_chosen": point_from,
        },
    }
    # In ascending order of the states, as the predictions are.
    order = np.argsort(first.labels.state_idx)
    counts, distances = first.read_classes()
    prior = Prior(first.prior.probabilities[order], first.prior.latitude, first.prior.longitude)
    with writing_run(runs_dir, name, overwrite=overwrite) as writer:
        writer.write_ensemble(described, dict(zip(described["members"], runs, strict=True)))
        writer.write_metrics(
            {
                "val": val,
                "weights_learnt": weights_from,
                "point": point,
                "point_chosen": point_from,
                "members": [asdict(member) for member in members],
                **({} if twins is None else {"twins": twins}),
            }
        )
        writer.copy_places(first)
        writer.write_distances(distances[np.ix_(order, order)])
        writer.write_predictions("val", predictions, truth)
        # How samples were held out is the members'; where data and runs lie is this machine's.
        settings = first.config.model_copy(update={"paths": config.paths, "tracking": config.tracking})
        provenance["seconds"] = time.monotonic() - started
        writer.write_description(settings, predictions.labels, counts[order], prior, provenance)
        for run in runs:
            check_not_replaced(run)
    return Ensembled(name, weights.tolist(), point, members, val, twins)


def _load_runs(runs_dir: Path, names: Sequence[str]) -> list[Run]:
    if len(names) < 2:
        raise GeoError(
            f"an ensemble is made of two runs or more, not of {len(names)}", hint="geo ensemble RUN RUN"
        )
    runs = [load_run(runs_dir, name) for name in names]
    seen: set[Path] = set()
    for run in runs:
        if run.path.resolve() in seen:
            raise GeoError("this run is given twice", where=run.path, hint="name every run once")
        seen.add(run.path.resolve())
    return runs


def _val_predictions(run: Run) -> _Validated:
    """Raises GeoError where the run's validation predictions are absent, damaged, or of no sample."""
    path = run.predictions_path("val")
    if not path.is_file():
        raise GeoError("the run lacks this file", where=path, hint="train it again: it is incomplete")
    predictions, truth = read_predictions(path, run.labels)
    if not len(predictions):
        raise GeoError("the run held no samples out, so it can't be compared", where=run.path, hint=_REFIT)
    if truth is None:
        raise GeoError("these predictions carry no truth", where=path, hint="train the run again")
    rows = np.argsort(predictions.sample_id)
    return _Validated(run, by_state(predictions.take(rows)), truth.take(rows))


def _on_shared(validated: Sequence[_Validated]) -> Sequence[_Validated]:
    """The runs on the samples that all of them know, if they are the same on these: one that a run left out of its split, having no
    view of it, is none that it could have held out.
    """
    known = [set(text_ids(member.run.read_split()["sample_id"])) for member in validated]
    shared = set.intersection(*known)
    rows = [np.array([i in shared for i in member.predictions.sample_id]) for member in validated]
    kept = {tuple(m.predictions.sample_id[at]) for m, at in zip(validated, rows, strict=True)}
    out = {i for m, at in zip(validated, rows, strict=True) for i in m.predictions.sample_id[~at]}
    if not out or len(kept) > 1 or kept == {()}:
        return validated
    warn(
        f"{counted(len(out), 'held-out sample is', 'held-out samples are')} left out of the ensemble: not every run has a view of them"
    )
    return [
        _Validated(member.run, member.predictions.take(at), member.truth.take(at))
        for member, at in zip(validated, rows, strict=True)
    ]


def _check_same(a: _Validated, b: _Validated) -> None:
    """Raise GeoError where two runs can't be compared sample by sample."""
    where, first = b.run.path, a.run.name
    states, other_states = (set(member.run.labels.state_idx.tolist()) for member in (a, b))
    if states != other_states:
        raise GeoError(
            f"the run knows other states than {first}: {_differ(states, other_states, 'state_idx')}",
            where=where,
            hint="combine runs that were fitted on the same states",
        )
    ids, other_ids = (set(member.predictions.sample_id) for member in (a, b))
    if ids != other_ids:
        raise GeoError(
            f"the run held out other samples than {first}: {_differ(ids, other_ids, 'sample')}",
            where=where,
            hint=_REFIT,
        )
    far = np.maximum(
        np.abs(a.truth.latitude - b.truth.latitude), np.abs(a.truth.longitude - b.truth.longitude)
    )
    # A truth that is NaN disagrees, too.
    wrong = (a.truth.state_idx != b.truth.state_idx) | ~(far <= _SAME_DEGREES)
    if wrong.any():
        raise GeoError(
            f"the run was fitted on another truth than {first}: {counted(wrong.sum(), 'sample differs', 'samples differ')} in state or place, "
            f"sample {a.predictions.sample_id[wrong][0]} first",
            where=where,
            hint="fit both on the same train CSV",
        )


def _differ(a: set[Any], b: set[Any], what: str) -> str:
    lacks, adds = sorted(a - b), sorted(b - a)
    differences = [
        f"{len(items):,} {word}, {what} {items[0]} first"
        for items, word in ((lacks, "lacking"), (adds, "more"))
        if items
    ]
    return "; ".join(differences)


def _cross_fit(
    method: EnsembleMethod,
    members: Sequence[Predictions],
    truth: Truth,
    asked: PointChoice,
    together: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], EnsemblePoint, Predictions]:
    """Weights (M,) and what the point is, from all samples; and predictions for these, each by what it had no part in.

    Args:
        method, members, truth: as in combine.py.
        asked: what the point is to be.
        together: (N,) groups of samples that are held out together, and choose together; None: each alone.
    """
    learn = mixing_learner(method, asked, members, truth)
    count = len(truth)
    weights, point = learn(np.ones(count, dtype=bool))
    if method not in LEARNT and asked != "auto":
        return weights, point, combine(method, weights, members, point)
    if together is None:
        fold = deal(np.random.default_rng(0).permutation(count), _FOLDS)
    else:
        fold = random_folds(count, min(_FOLDS, count), 0, together)
    predictions = members[0]
    for k in track("ensemble", np.unique(fold).tolist(), "folds"):
        rows = fold == k
        their_weights, their_point = learn(~rows)
        combined = combine(method, their_weights, [member.take(rows) for member in members], their_point)
        predictions = predictions.replaced(rows, combined)
    return weights, point, predictions


def _stores(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What every run, and every run that it is made of, was fitted on; each store once."""
    stores = [store for run in runs for store in (run.provenance.get("stores") or run.sources)]
    return list({store["fingerprint"]: store for store in stores}.values())
