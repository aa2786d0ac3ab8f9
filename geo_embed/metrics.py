"""The competition's score, and what else tells whether a model is any good."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.geography import haversine_km

RANK_CREDIT = (1.00, 0.60, 0.40, 0.25, 0.15)
STATE_WEIGHT, GPS_WEIGHT = 0.70, 0.30
GPS_RANGE_KM = 5000.0
WITHIN_KM = (1, 25, 100, 200, 500, 1000, 2500)

_ECE_BINS = 15
_LEAST_PROBABILITY = 1e-12


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


def metrics(
    probabilities: NDArray[np.floating[Any]],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    labels: NDArray[np.int64],
    true_latitude: NDArray[np.float64],
    true_longitude: NDArray[np.float64],
) -> dict[str, Any]:
    """All metrics of the contract. Every value but `samples` is None where there are no samples.

    Args:
        probabilities: (N, C), rows sum to 1.
        latitude, longitude: (N,) predicted, degrees.
        labels: (N,) true classes in [0, C).
        true_latitude, true_longitude: (N,) degrees.
    """
    if len(labels) == 0:
        empty = dict.fromkeys(("score", "state_score", "gps_score", "top1", "top5", "mean_km", "median_km"))
        return empty | {
            "within_km": dict.fromkeys(map(str, WITHIN_KM)),
            "nll": None,
            "ece": None,
            "samples": 0,
        }
    ranked = top_states(probabilities)
    km = haversine_km(latitude, longitude, true_latitude, true_longitude)
    score, state, gps = competition_score(ranked, labels, km)
    hits = ranked == labels[:, None]
    own = probabilities[np.arange(len(labels)), labels]
    return {
        "score": score,
        "state_score": state,
        "gps_score": gps,
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits.any(axis=1).mean()),
        "mean_km": float(km.mean()),
        "median_km": float(np.median(km)),
        "within_km": {str(limit): float((km <= limit).mean()) for limit in WITHIN_KM},
        "nll": float(-np.log(np.maximum(own, _LEAST_PROBABILITY)).mean()),
        "ece": calibration_error(probabilities.max(axis=1), hits[:, 0]),
        "samples": len(labels),
    }


def calibration_error(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> float:
    """Expected calibration error over 15 equal bins of the top probability (Guo et al., ICML 2017, eq. 5)."""
    bins = np.minimum((confidence * _ECE_BINS).astype(int), _ECE_BINS - 1)
    weight = np.bincount(bins, minlength=_ECE_BINS)
    sums = np.bincount(bins, confidence, _ECE_BINS) - np.bincount(bins, correct, _ECE_BINS)
    return float(np.abs(sums).sum() / weight.sum())
