"""Tables that say where a score comes from: by class, view, border, distance, calibration. Predictions in, rows of plain values out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.console import track
from geo_embed.geography import haversine_km, to_unit_vectors
from geo_embed.metrics import (
    ECE_BINS,
    competition_score,
    error_km,
    geoscore,
    reliability_bins,
    state_credit,
    top_states,
)

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
BORDER_KM = (0.0, 10.0, 25.0, 50.0, 100.0, 250.0)


def class_table(predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    """One row per class, in order: state, state_idx, class, samples, top1 (its recall), precision, top5, credit, median_km, geoscore.

    A class without samples has None for what needs some; so has the precision of a class that is never the answer.

    Args:
        predictions, truth: of the same N samples.

    Raises:
        GeoError: a true state is none of the predictions' classes.
    """
    labels, km = predictions.labels.encode(truth.state_idx), error_km(predictions, truth)
    ranked = top_states(predictions.probabilities)
    hits = ranked == labels[:, None]
    credit = state_credit(ranked, labels)
    rows = []
    for k, (state_idx, state) in enumerate(
        zip(predictions.labels.state_idx, predictions.labels.names, strict=True)
    ):
        true, answered = labels == k, ranked[:, 0] == k
        has_samples = bool(true.any())
        rows.append(
            {
                "state": state,
                "state_idx": int(state_idx),
                "class": k,
                "samples": int(true.sum()),
                "top1": float(hits[true, 0].mean()) if has_samples else None,
                "precision": float(hits[answered, 0].mean()) if answered.any() else None,
                "top5": float(hits[true].any(axis=1).mean()) if has_samples else None,
                "credit": float(credit[true].mean()) if has_samples else None,
                "median_km": float(np.median(km[true])) if has_samples else None,
                "geoscore": geoscore(km[true]) if has_samples else None,
            }
        )
    return rows


def view_table(
    predict: Callable[[NDArray[np.bool_]], Predictions],
    present: NDArray[np.bool_],
    view_names: Sequence[str],
    truth: Truth,
) -> list[dict[str, Any]]:
    """What each view is worth: view, samples that have it, the score with it `alone` and with it `hidden`, and its `cost` when hidden.

    Args:
        predict: the predictions for the same N samples from the views that a mask (N, V) leaves; a sample with no view left
            gets the prior, and counts.
        present: (N, V) views that there are.
        view_names: V names.
        truth: of the N samples.
    """

    def score(mask: NDArray[np.bool_]) -> float | None:
        if not len(truth):
            return None
        predictions = predict(mask)
        labels = predictions.labels.encode(truth.state_idx)
        ranked = top_states(predictions.probabilities)
        return competition_score(ranked, labels, error_km(predictions, truth))[0]

    whole = score(present)
    rows = []
    for v, view in track("by view", list(enumerate(view_names)), "views"):
        is_view = np.arange(present.shape[1]) == v
        hidden = score(present & ~is_view)
        rows.append(
            {
                "view": view,
                "samples": int(present[:, v].sum()),
                "alone": score(present & is_view),
                "hidden": hidden,
                "cost": None if whole is None or hidden is None else whole - hidden,
            }
        )
    return rows


def border_km(truth: Truth, rest: Truth) -> NDArray[np.float64]:
    """How far the border is from each sample, as far as the data tell: km to the nearest sample of another state.

    An upper bound, since no outlines are at hand: with many samples it comes close to the distance of the border,
    with few, or at a coast without neighbours, it lies well above.

    Args:
        truth: of N samples.
        rest: of the M samples to measure to; the N may be among them.

    Returns:
        (N,) km; infinite where no sample is of another state.
    """
    from scipy.spatial import cKDTree

    away = np.full(len(truth), np.inf)
    for state in np.unique(truth.state_idx):
        rows = np.flatnonzero(truth.state_idx == state)
        foreign = rest.take(np.flatnonzero(rest.state_idx != state))
        if len(foreign):
            # An unbalanced tree serves these few queries as well, and is built in a third of the time.
            tree = cKDTree(
                to_unit_vectors(foreign.latitude, foreign.longitude),
                balanced_tree=False,
                compact_nodes=False,
            )
            # Chords grow with arcs: the nearest in space is the nearest on the sphere.
            latitude, longitude = truth.latitude[rows], truth.longitude[rows]
            nearest = foreign.take(tree.query(to_unit_vectors(latitude, longitude))[1])
            away[rows] = haversine_km(latitude, longitude, nearest.latitude, nearest.longitude)
    return away


def border_table(
    predictions: Predictions,
    truth: Truth,
    to_border_km: NDArray[np.float64],
    edges: Sequence[float] = BORDER_KM,
) -> list[dict[str, Any]]:
    """Score by distance to the border, as rows: from_km, to_km (None: no end), samples, score, top1, median_km, geoscore.

    Args:
        predictions, truth: of the same N samples.
        to_border_km: (N,) of `border_km`.
        edges: lower edges of the bins in km, ascending from 0; each bin holds its lower edge.
    """
    labels, km = predictions.labels.encode(truth.state_idx), error_km(predictions, truth)
    ranked = top_states(predictions.probabilities)
    bins = np.searchsorted(edges, to_border_km, side="right") - 1
    rows = []
    for k, start in enumerate(edges):
        inside = bins == k
        has_samples = bool(inside.any())
        rows.append(
            {
                "from_km": start,
                "to_km": edges[k + 1] if k + 1 < len(edges) else None,
                "samples": int(inside.sum()),
                "score": competition_score(ranked[inside], labels[inside], km[inside])[0]
                if has_samples
                else None,
                "top1": float((ranked[inside, 0] == labels[inside]).mean()) if has_samples else None,
                "median_km": float(np.median(km[inside])) if has_samples else None,
                "geoscore": geoscore(km[inside]) if has_samples else None,
            }
        )
    return rows


def distance_table(predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    """Percentiles of the points' errors, as rows: percentile, km. Linear between samples; None of no sample."""
    km = error_km(predictions, truth)
    values = np.percentile(km, PERCENTILES).tolist() if len(km) else [None] * len(PERCENTILES)
    return [{"percentile": share, "km": value} for share, value in zip(PERCENTILES, values, strict=True)]


def reliability_table(predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    """The 15 bins behind `metrics.calibration_error`, as rows: from, to, samples, mean confidence, accuracy.

    Confidence is the top probability, accuracy the share of samples whose top state is the true one.
    """
    labels = predictions.labels.encode(truth.state_idx)
    top = top_states(predictions.probabilities, 1)[:, 0]
    confidence = predictions.probabilities[np.arange(len(top)), top]
    return [
        {
            "from": k / ECE_BINS,
            "to": (k + 1) / ECE_BINS,
            "samples": int(count),
            "confidence": float(total / count) if count else None,
            "accuracy": float(right / count) if count else None,
        }
        for k, (count, total, right) in enumerate(
            zip(*reliability_bins(confidence, top == labels), strict=True)
        )
    ]
