"""The competition's score, and what else tells whether a model is any good."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.geography import haversine_km, to_unit_vectors

RANK_CREDIT = (1.00, 0.60, 0.40, 0.25, 0.15)
STATE_WEIGHT, GPS_WEIGHT = 0.70, 0.30
GPS_RANGE_KM = 5000.0
WITHIN_KM = (1, 25, 100, 200, 500, 1000, 2500)
PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
BORDER_KM = (0.0, 10.0, 25.0, 50.0, 100.0, 250.0)

_ECE_BINS = 15
_LEAST_PROBABILITY = 1e-12
_RESAMPLES = 1000
# Draws that are held at once.
_DRAWS = 1_000_000


def state_credit(ranked: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Credit of each sample for the first rank that names its state; 0 where none does.

    Args:
        ranked: (N, R ≤ 5) predicted states, best first; −1 where none is given. A repeated state counts only at
            its first place, which the first hit does by itself.
        truth: (N,) true states.
    """
    hits = ranked == truth[:, None]
    credit = np.asarray(RANK_CREDIT[: ranked.shape[1]])
    return np.where(hits.any(axis=1), credit[hits.argmax(axis=1)], 0.0)


def competition_score(
    ranked: NDArray[np.int64], truth: NDArray[np.int64], km: NDArray[np.float64]
) -> tuple[float, float, float]:
    """The official score and its two parts: 0.70 × mean credit + 0.30 × max(0, 1 − mean km / 5000).

    Args:
        ranked: (N, R ≤ 5) predicted states, best first.
        truth: (N,) true states.
        km: (N,) great-circle distances of the predicted points.

    Returns:
        score, state score, GPS score.
    """
    state = float(state_credit(ranked, truth).mean())
    gps = max(0.0, 1.0 - float(km.mean()) / GPS_RANGE_KM)
    return STATE_WEIGHT * state + GPS_WEIGHT * gps, state, gps


def top_states(probabilities: NDArray[np.floating[Any]], ranks: int = len(RANK_CREDIT)) -> NDArray[np.int64]:
    """(N, C) probabilities to the classes of the highest ones, (N, min(ranks, C)), ties to the lower class."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :ranks]


def metrics(predictions: Predictions, truth: Truth) -> dict[str, Any]:
    """All metrics of the contract, of N samples. Every value but `samples` is None where there are none.

    Raises:
        GeoError: a true state is none of the predictions' classes.
    """
    if not len(truth):
        empty = dict.fromkeys(("score", "state_score", "gps_score", "top1", "top5", "mean_km", "median_km"))
        return empty | {
            "within_km": dict.fromkeys(map(str, WITHIN_KM)),
            "nll": None,
            "ece": None,
            "samples": 0,
        }
    probabilities, labels = predictions.probabilities, predictions.labels.encode(truth.state_idx)
    ranked = top_states(probabilities)
    km = error_km(predictions, truth)
    score, state, gps = competition_score(ranked, labels, km)
    hits = ranked == labels[:, None]
    p_true = probabilities[np.arange(len(labels)), labels]
    return {
        "score": score,
        "state_score": state,
        "gps_score": gps,
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits.any(axis=1).mean()),
        "mean_km": float(km.mean()),
        "median_km": float(np.median(km)),
        "within_km": {str(limit): float((km <= limit).mean()) for limit in WITHIN_KM},
        "nll": float(-np.log(np.maximum(p_true, _LEAST_PROBABILITY)).mean()),
        "ece": calibration_error(probabilities.max(axis=1), hits[:, 0]),
        "samples": len(labels),
    }


def final_metrics(
    predictions: Predictions, truth: Truth, *, groups: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """`metrics` and their `score_interval`, [low, high]: what is reported of a run, not what each epoch needs.

    Args:
        predictions, truth: of the same N samples.
        groups: (N,) samples that belong together, as in `bootstrap_interval`.
    """
    scores = metrics(predictions, truth)
    credit, km = np.zeros(0), np.zeros(0)
    if len(truth):
        labels = predictions.labels.encode(truth.state_idx)
        credit = state_credit(top_states(predictions.probabilities), labels)
        km = error_km(predictions, truth)
    return scores | {"score_interval": list(bootstrap_interval(credit, km, groups))}


def error_km(predictions: Predictions, truth: Truth) -> NDArray[np.float64]:
    """(N,) great-circle distances of the predicted points from the true ones."""
    return haversine_km(predictions.latitude, predictions.longitude, truth.latitude, truth.longitude)


def bootstrap_interval(
    credit: NDArray[np.float64],
    km: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | tuple[None, None]:
    """A 95 % interval of the competition score: the percentile bootstrap (Efron, 1979).

    Samples are drawn with replacement, or whole groups where samples of one group are alike (cluster bootstrap).

    Args:
        credit: (N,) state credit of each sample.
        km: (N,) distance of each predicted point.
        groups: (N,) any integers; samples with the same one are drawn together. Default: each sample alone.
        resamples: how often the set is drawn.
        seed: of the draws.

    Returns:
        The 2.5th and 97.5th percentile; None and None below two samples or groups, which tell nothing of a spread.
    """
    values = np.stack([credit, km, np.ones(len(credit))], axis=1)
    if groups is not None:
        _, group = np.unique(groups, return_inverse=True)
        values = np.stack([np.bincount(group, column) for column in values.T], axis=1)
    units = len(values)
    if units < 2:
        return None, None
    random = np.random.default_rng(seed)
    block = max(1, _DRAWS // units)
    sums = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(units, size=(rows, units))
        drawn += np.arange(rows)[:, None] * units
        times = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
        sums.append(times @ values)
    credits, distances, counts = np.concatenate(sums).T
    scores = STATE_WEIGHT * credits / counts + GPS_WEIGHT * np.maximum(
        0.0, 1.0 - distances / counts / GPS_RANGE_KM
    )
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def calibration_error(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> float:
    """Expected calibration error over 15 equal bins of the top probability (Guo et al., ICML 2017, eq. 5)."""
    count, sure, right = _reliability(confidence, correct)
    return float(np.abs(sure - right).sum() / count.sum())


def reliability_table(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """The 15 bins behind `calibration_error`, as rows: from, to, samples, mean confidence, accuracy.

    Args:
        confidence: (N,) top probability.
        correct: (N,) whether the top state is the true one.
    """
    return [
        {
            "from": k / _ECE_BINS,
            "to": (k + 1) / _ECE_BINS,
            "samples": int(count),
            "confidence": float(sure / count) if count else None,
            "accuracy": float(right / count) if count else None,
        }
        for k, (count, sure, right) in enumerate(zip(*_reliability(confidence, correct), strict=True))
    ]


def distance_table(km: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Percentiles of the distances (N,), as rows: percentile, km. Linear between samples."""
    found = np.percentile(km, PERCENTILES).tolist() if len(km) else [None] * len(PERCENTILES)
    return [{"percentile": share, "km": value} for share, value in zip(PERCENTILES, found, strict=True)]


def class_table(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], km: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """One row per class, in order: samples, top1 (its recall), precision, top5, mean credit, median km.

    A class without samples has None for what needs some; so has the precision of a class that is never the answer.

    Args:
        probabilities: (N, C).
        labels: (N,) true classes.
        km: (N,) distances of the predicted points.
    """
    ranked = top_states(probabilities)
    hits = ranked == labels[:, None]
    credit = state_credit(ranked, labels)
    rows = []
    for k in range(probabilities.shape[1]):
        own, said = labels == k, ranked[:, 0] == k
        any_own = bool(own.any())
        rows.append(
            {
                "class": k,
                "samples": int(own.sum()),
                "top1": float(hits[own, 0].mean()) if any_own else None,
                "precision": float(hits[said, 0].mean()) if said.any() else None,
                "top5": float(hits[own].any(axis=1).mean()) if any_own else None,
                "credit": float(credit[own].mean()) if any_own else None,
                "median_km": float(np.median(km[own])) if any_own else None,
            }
        )
    return rows


def border_km(
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    states: NDArray[np.int64],
    other_latitude: NDArray[np.float64],
    other_longitude: NDArray[np.float64],
    other_states: NDArray[np.int64],
) -> NDArray[np.float64]:
    """How far the border is from each sample, as far as the data tell: km to the nearest sample of another state.

    An upper bound, since no outlines are at hand: with many samples it comes close to the distance of the border,
    with few, or at a coast without neighbours, it lies well above.

    Args:
        latitude, longitude: (N,) degrees.
        states: (N,) true states, of any numbering.
        other_latitude, other_longitude, other_states: (M,) the samples to measure to, in the same numbering.

    Returns:
        (N,) km; infinite where no sample is of another state.
    """
    from scipy.spatial import cKDTree

    away = np.full(len(latitude), np.inf)
    for state in np.unique(states):
        own, foreign = np.flatnonzero(states == state), np.flatnonzero(other_states != state)
        if len(foreign):
            # An unbalanced tree serves these few queries as well, and is built in a third of the time.
            tree = cKDTree(
                to_unit_vectors(other_latitude[foreign], other_longitude[foreign]),
                balanced_tree=False,
                compact_nodes=False,
            )
            near = foreign[tree.query(to_unit_vectors(latitude[own], longitude[own]))[1]]
            away[own] = haversine_km(
                latitude[own], longitude[own], other_latitude[near], other_longitude[near]
            )
    return away


def border_table(
    to_border_km: NDArray[np.float64],
    ranked: NDArray[np.int64],
    labels: NDArray[np.int64],
    km: NDArray[np.float64],
    edges: Sequence[float] = BORDER_KM,
) -> list[dict[str, Any]]:
    """Score by distance to the border, as rows: from_km, to_km (None: no end), samples, score, top1, median_km.

    Args:
        to_border_km: (N,) of `border_km`.
        ranked: (N, R) predicted states, best first.
        labels: (N,) true states, in the same numbering.
        km: (N,) distances of the predicted points.
        edges: lower edges of the bins in km, ascending from 0; each bin holds its own edge.
    """
    bins = np.searchsorted(edges, to_border_km, side="right") - 1
    rows = []
    for k, start in enumerate(edges):
        own = bins == k
        some = bool(own.any())
        rows.append(
            {
                "from_km": start,
                "to_km": edges[k + 1] if k + 1 < len(edges) else None,
                "samples": int(own.sum()),
                "score": competition_score(ranked[own], labels[own], km[own])[0] if some else None,
                "top1": float((ranked[own, 0] == labels[own]).mean()) if some else None,
                "median_km": float(np.median(km[own])) if some else None,
            }
        )
    return rows


def _reliability(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each bin: samples, summed confidence, right answers."""
    bins = np.minimum((confidence * _ECE_BINS).astype(int), _ECE_BINS - 1)
    return (
        np.bincount(bins, minlength=_ECE_BINS),
        np.bincount(bins, confidence, _ECE_BINS),
        np.bincount(bins, correct, _ECE_BINS),
    )
