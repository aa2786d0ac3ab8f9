"""The competition's score, and what else tells whether a model is any good."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.geography import haversine_km

RANK_CREDIT = (1.00, 0.60, 0.40, 0.25, 0.15)
STATE_WEIGHT, GPS_WEIGHT = 0.70, 0.30
GPS_RANGE_KM = 5000.0
WITHIN_KM = (1, 25, 100, 200, 500, 750, 1000, 2500)
# GeoGuessr's score of a round on the world map, as the field reports it (Haas et al., CVPR 2024, section 4).
GEOSCORE_MOST, GEOSCORE_KM = 5000.0, 1492.7
ECE_BINS = 15

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
        known = ("score", "state_score", "gps_score", "geoscore", "top1", "top5", "mean_km", "median_km")
        empty: dict[str, Any] = dict.fromkeys(known)
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
        "geoscore": geoscore(km),
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
    """`metrics`, and what is reported of a run but not needed of each epoch.

    That is `min_km`, `max_km` and `std_km` (divided by N) of the points' distances; `rank_rates`, the share of samples whose
    true state stands at rank 1 to 5, and at `none` of them; and `score_interval`, [low, high]. None where there are no samples.

    Args:
        predictions, truth: of the same N samples.
        groups: (N,) samples that belong together, as in `bootstrap_interval`.
    """
    scores = metrics(predictions, truth)
    ranks = [*map(str, range(1, len(RANK_CREDIT) + 1)), "none"]
    if not len(truth):
        unknown = dict.fromkeys(("min_km", "max_km", "std_km")) | {"rank_rates": dict.fromkeys(ranks)}
        return scores | unknown | {"score_interval": [None, None]}
    labels, km = predictions.labels.encode(truth.state_idx), error_km(predictions, truth)
    ranked = top_states(predictions.probabilities)
    hits = ranked == labels[:, None]
    place = np.where(hits.any(axis=1), hits.argmax(axis=1), len(RANK_CREDIT))
    shares = np.bincount(place, minlength=len(ranks)) / len(labels)
    return scores | {
        "min_km": float(km.min()),
        "max_km": float(km.max()),
        "std_km": float(km.std()),
        "rank_rates": dict(zip(ranks, shares.tolist(), strict=True)),
        "score_interval": list(bootstrap_interval(state_credit(ranked, labels), km, groups)),
    }


def geoscore(km: NDArray[np.float64]) -> float:
    """The mean of 5000 · exp(−km / 1492.7) over distances (N,), N > 0: 5000 where every point is right."""
    return float((GEOSCORE_MOST * np.exp(-km / GEOSCORE_KM)).mean())


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
    return _percentiles(_scores_of(_drawn_sums(np.stack([credit, km], axis=1), groups, resamples, seed)))


def difference_interval(
    first: tuple[NDArray[np.float64], NDArray[np.float64]],
    second: tuple[NDArray[np.float64], NDArray[np.float64]],
    groups: NDArray[np.int64] | None = None,
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | tuple[None, None]:
    """A 95 % interval of the first score minus the second: the paired bootstrap, both scored on the same draws.

    Args:
        first, second: credit (N,) and km (N,) of two predictions for the same samples.
        groups, resamples, seed: as in `bootstrap_interval`.

    Returns:
        As `bootstrap_interval`.
    """
    return difference_intervals(first, second, groups, resamples=resamples, seed=seed)["score"]


def difference_intervals(
    first: tuple[NDArray[np.float64], NDArray[np.float64]],
    second: tuple[NDArray[np.float64], NDArray[np.float64]],
    groups: NDArray[np.int64] | None = None,
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float] | tuple[None, None]]:
    """As `difference_interval`, on the same draws, of the `score` and its parts, `state_score` and `gps_score`."""
    sums = [
        _drawn_sums(np.stack([credit, km], axis=1), groups, resamples, seed) for credit, km in (first, second)
    ]
    scores = [_scores_of(drawn) for drawn in sums]
    states = [credits / counts for credits, _, counts in sums]
    points = [np.maximum(0.0, 1.0 - distances / counts / GPS_RANGE_KM) for _, distances, counts in sums]
    return {
        "score": _percentiles(scores[0] - scores[1]),
        "state_score": _percentiles(states[0] - states[1]),
        "gps_score": _percentiles(points[0] - points[1]),
    }


def _percentiles(drawn: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    if not len(drawn):
        return None, None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _scores_of(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The competition score of each draw, of `_drawn_sums` of credit and km (3, resamples)."""
    credits, distances, counts = drawn
    return np.asarray(
        STATE_WEIGHT * credits / counts
        + GPS_WEIGHT * np.maximum(0.0, 1.0 - distances / counts / GPS_RANGE_KM)
    )


def mean_intervals(
    values: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> list[tuple[float, float] | tuple[None, None]]:
    """95 % intervals of the means of K columns (N, K): the draws, groups and None are `bootstrap_interval`'s."""
    *sums, counts = _drawn_sums(values, groups, resamples, seed)
    return [_percentiles(total / counts) for total in sums]


def _drawn_sums(
    values: NDArray[np.float64], groups: NDArray[np.int64] | None, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Of each draw the sums of K columns (N, K) and the number of samples: (K + 1, resamples), (K + 1, 0) below two samples or
    groups. Draws depend on their number and the seed alone.
    """
    values = np.concatenate([values, np.ones((len(values), 1))], axis=1)
    if groups is not None:
        _, group = np.unique(groups, return_inverse=True)
        values = np.stack([np.bincount(group, column) for column in values.T], axis=1)
    units = len(values)
    if units < 2:
        return np.empty((values.shape[1], 0))
    random = np.random.default_rng(seed)
    block = max(1, _DRAWS // units)
    sums = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(units, size=(rows, units))
        drawn += np.arange(rows)[:, None] * units
        times = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
        sums.append(times @ values)
    return np.asarray(np.concatenate(sums).T)


def calibration_error(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> float:
    """Expected calibration error over 15 equal bins of the top probability (Guo et al., ICML 2017, eq. 5)."""
    count, total, right = reliability_bins(confidence, correct)
    return float(np.abs(total - right).sum() / count.sum())


def reliability_bins(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The bins of `calibration_error`: of each the samples, their summed confidence, and how many are right, (15,) each.

    Args:
        confidence: (N,) top probability.
        correct: (N,) whether the top state is the true one.
    """
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    return (
        np.bincount(bins, minlength=ECE_BINS),
        np.bincount(bins, confidence, ECE_BINS),
        np.bincount(bins, correct, ECE_BINS),
    )
