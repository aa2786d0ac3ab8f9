"""How good a run is, as numbers with intervals: its score and the parts, by kind of validation, and beside another run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.config import Config
from geo_embed.console import counted, harmless
from geo_embed.errors import GeoError
from geo_embed.geography import EARTH_RADIUS_KM, to_unit_vectors
from geo_embed.metrics import (
    GEOSCORE_KM,
    GEOSCORE_MOST,
    GPS_RANGE_KM,
    bootstrap_interval,
    final_metrics,
    mean_intervals,
    metrics,
)
from geo_embed.prediction.difference import compare_runs
from geo_embed.reporting.evidence import Evidence, gather, why
from geo_embed.runs.run import Run, load_run, run_stores

# Key, name for people, and how a number of it is written.
_SHOWN = (
    ("score", "Score", "share"),
    ("state_score", "State part", "share"),
    ("gps_score", "GPS part", "share"),
    ("top1", "Top-1", "share"),
    ("top5", "Top-5", "share"),
    ("geoscore", "GeoScore", "points"),
    ("mean_km", "Mean error", "km"),
    ("median_km", "Median error", "km"),
    ("nll", "NLL", "share"),
    ("ece", "ECE", "share"),
)


def headline(evidence: Evidence) -> list[dict[str, Any]]:
    """The run's numbers, as rows: key, name, kind, value, low, high; the last two None where no interval is known."""
    scores = final_metrics(evidence.predictions, evidence.truth, groups=evidence.groups)
    intervals = {"score": tuple(scores["score_interval"]), **part_intervals(evidence)}
    return [
        {
            "key": key,
            "name": name,
            "kind": kind,
            "value": scores[key],
            "low": intervals.get(key, (None, None))[0],
            "high": intervals.get(key, (None, None))[1],
        }
        for key, name, kind in _SHOWN
    ]


def part_intervals(evidence: Evidence) -> dict[str, tuple[float, float] | tuple[None, None]]:
    """95 % bootstrap intervals of what is a mean over samples, or follows from one."""
    hits = evidence.ranked == evidence.labels[:, None]
    columns = {
        "state_score": evidence.credit,
        "mean_km": evidence.km,
        "top1": hits[:, :1].any(axis=1),
        "top5": hits.any(axis=1),
        "geoscore": GEOSCORE_MOST * np.exp(-evidence.km / GEOSCORE_KM),
    }
    values = np.stack([column.astype(np.float64) for column in columns.values()], axis=1)
    intervals = dict(zip(columns, mean_intervals(values, evidence.groups), strict=True))
    low, high = intervals["mean_km"]
    # The GPS part falls as the mean distance grows, so its percentiles are those of the distance, the other way round.
    intervals["gps_score"] = (
        (None, None)
        if low is None or high is None
        else (max(0.0, 1 - high / GPS_RANGE_KM), max(0.0, 1 - low / GPS_RANGE_KM))
    )
    return intervals


def validations(evidence: Evidence, config: Config) -> dict[str, Any]:
    """The score by samples held out at random and by whole places, side by side, as far as runs are at hand.

    Returns:
        `columns`: one for each kind there is: kind, run, score, low, high, samples, twins and the score without them (None where
        nobody counted), and apart: the score of the samples farther than `group_km` from every training sample, and how many these are.
        `lacking`: the kind that no run of this recipe has, or None. `group_km`.
    """
    training = evidence.run.config.training
    columns = [_column(evidence)]
    other = "spatial" if training.validation == "random" else "random"
    counterpart = _counterpart(evidence.run, config.paths.runs_dir, other)
    if counterpart is not None:
        columns.append(_column(gather(config, counterpart)))
    columns.sort(key=lambda column: column["kind"] == "spatial")
    return {
        "columns": columns,
        "lacking": None if counterpart is not None else other,
        "group_km": training.group_km,
    }


def _column(evidence: Evidence) -> dict[str, Any]:
    low, high = bootstrap_interval(evidence.credit, evidence.km, evidence.groups)
    twins = evidence.run.read_all_metrics().get("twins") or {}
    apart = None
    away = training_km(evidence)
    if away is not None:
        rows = away > evidence.run.config.training.group_km
        apart = {"samples": int(rows.sum()), "score": None}
        if rows.any():
            few = metrics(evidence.predictions.take(rows), evidence.truth.take(rows))
            apart["score"] = few["score"]
    return {
        "kind": evidence.run.config.training.validation,
        "run": evidence.run.name,
        "score": metrics(evidence.predictions, evidence.truth)["score"],
        "low": low,
        "high": high,
        "samples": len(evidence),
        "twins": twins.get("samples"),
        "without_twins": twins.get("score_without"),
        "apart": apart,
    }


def training_km(evidence: Evidence) -> NDArray[np.float64] | None:
    """(N,) km from each held-out sample to the nearest one that its heads were trained on; None where the train CSV isn't at hand.

    With folds, a sample's own fold is what its heads weren't trained on.
    """
    from scipy.spatial import cKDTree

    if evidence.samples is None or evidence.samples.truth is None:
        return None
    try:
        split = evidence.run.read_split()
    except GeoError:
        return None
    ids = split["sample_id"].astype(str).to_numpy()
    fold = split["fold"].to_numpy() if "fold" in split else np.where(split["part"] == "val", 0, -1)
    fold_of = dict(zip(ids, fold.tolist(), strict=True))
    truth = evidence.samples.truth
    points = to_unit_vectors(truth.latitude, truth.longitude)
    # A sample that isn't in the run's split was not trained on.
    of_row = np.array([fold_of.get(sample_id, -2) for sample_id in evidence.samples.sample_id])
    folds = np.array([fold_of.get(sample_id, 0) for sample_id in evidence.predictions.sample_id])
    held_out = to_unit_vectors(evidence.truth.latitude, evidence.truth.longitude)
    away = np.full(len(evidence), np.inf)
    for part in np.unique(folds):
        trained = points[(of_row != part) & (of_row != -2)]
        if len(trained):
            rows = folds == part
            chord = cKDTree(trained).query(held_out[rows])[0]
            away[rows] = 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chord / 2, 0, 1))
    return away


def _counterpart(run: Run, runs_dir: Path, validation: str) -> Run | None:
    """The newest run on the same embeddings and data, by the same preset, that was validated the other way; None without one."""
    counterparts: list[Run] = []
    for name in run_stores(runs_dir).get(run.store_fingerprints[0], []):
        if name == run.name:
            continue
        try:
            other = load_run(runs_dir, name)
        except GeoError:
            continue
        same = (
            (other.provenance.get("data") or {}).get("sha256")
            == (run.provenance.get("data") or {}).get("sha256")
            and other.config.training.preset == run.config.training.preset
            and other.store_fingerprints == run.store_fingerprints
            and ("init" in other.provenance) == ("init" in run.provenance)
        )
        if same and other.config.training.validation == validation:
            counterparts.append(other)
    return max(counterparts, key=lambda other: str(other.provenance.get("created", "")), default=None)


def comparison(runs_dir: Path, first: Evidence, second: Evidence) -> dict[str, Any]:
    """The first run less the second, as `compare_runs` says it: the names `a` and `b`, `samples` in common, their `scores`, and `rows` of
    name, difference, low, high, the score first.
    """
    names = {"a": harmless(first.run.name), "b": harmless(second.run.name)}
    try:
        compared = compare_runs(runs_dir, str(first.run.path.resolve()), str(second.run.path.resolve()))
    except GeoError as error:
        return names | {"missing": why(error)}
    parts = {
        "Score": (compared.difference, compared.interval),
        "State part": (compared.state_score.difference, compared.state_score.interval),
        "GPS part": (compared.gps_score.difference, compared.gps_score.interval),
    }
    return names | {
        "samples": compared.samples,
        "places": compared.groups,
        "scores": [run.score for run in compared.runs],
        "left_out": [run.left_out for run in compared.runs],
        "rows": [
            {"name": name, "difference": difference, "low": interval[0], "high": interval[1]}
            for name, (difference, interval) in parts.items()
        ],
    }


def facts(evidence: Evidence, names: Sequence[str]) -> list[list[str]]:
    """What the run is, as pairs of words."""
    run, training = evidence.run, evidence.run.config.training
    made = str(run.provenance.get("created", ""))[:16].replace("T", " ")
    rows = [
        [
            "Kind",
            {"heads": "heads on a frozen backbone", "fine-tuned": "fine-tuned backbone"}.get(
                evidence.kind, evidence.kind
            ),
        ],
        ["Backbone", ", ".join(source["backbone"] for source in run.sources)],
        [
            "Held out",
            f"{counted(len(evidence), 'sample')}, {'whole places' if training.validation == 'spatial' else 'at random'}",
        ],
        ["Classes", f"{len(names):,}"],
        ["Views", ", ".join(run.config.model.view_names)],
    ]
    if evidence.ensemble is None:
        rows.insert(1, ["Preset", training.preset])
    if "init" in run.provenance:
        rows.insert(1, ["Started from", str(run.provenance["init"])])
    return rows + ([["Made", f"{made} UTC"]] if made else [])
