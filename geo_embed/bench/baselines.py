"""scikit-learn's baselines: what a careful statistician tries first on embeddings of known places."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors

from geo_embed.answers import Truth
from geo_embed.bench.measure import seconds
from geo_embed.data.holdout import class_folds
from geo_embed.errors import GeoError
from geo_embed.geography import to_unit_vectors
from geo_embed.metrics import state_credit, top_states
from geo_embed.sphere import geometric_median_of, unit_to_degrees

MAJORITY = "majority"
NEIGHBOURS = "10 nearest neighbours"
LOGISTIC = "logistic regression"
BOTH = "logistic regression, the neighbours' point"
BASELINES = (MAJORITY, NEIGHBOURS, LOGISTIC, BOTH)

_NEAREST = 10
# Where votes are even, or fewer states have one than there are ranks, the commoner state comes first.
_TIE = 1e-3
_PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
_FOLDS = 5
_ROUNDS = 1000


@dataclass(frozen=True)
class Known:
    """Training rows.

    Attributes:
        vectors: (n, D) float32, of length 1.
        truth: of the n rows.
        groups: (n,) rows that stay together in folds.
    """

    vectors: NDArray[np.float32]
    truth: Truth
    groups: NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """(m, R ≤ 5) states in the data's own indices, best first, and a point in degrees for each of m rows."""

    ranked: NDArray[np.int64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]


def unit_vectors(embeddings: NDArray[Any]) -> NDArray[np.float32]:
    """Embeddings (N, V, D) to the mean of each row's views, of length 1: (N, D)."""
    means = embeddings.mean(axis=1, dtype=np.float32)
    return np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12))


def answer_all(known: Known, vectors: NDArray[np.float32], seed: int) -> dict[str, tuple[Answers, float]]:
    """Each baseline's answers for rows (m, D), and the seconds that they took, fitting included."""
    made: list[Answers] = []
    took = [
        seconds(lambda: made.append(majority(known, len(vectors)))),
        seconds(lambda: made.append(neighbours(known, vectors))),
        seconds(lambda: made.append(logistic(known, vectors, seed))),
    ]
    near, states = made[1:]
    made.append(Answers(states.ranked, near.latitude, near.longitude))
    took.append(took[1] + took[2])
    return {name: (made[k], took[k]) for k, name in enumerate(BASELINES)}


def majority(known: Known, count: int) -> Answers:
    """For every row the commonest states, and the geometric median of all training places."""
    classes, counts = np.unique(known.truth.state_idx, return_counts=True)
    ranked = classes[top_states(counts[None] / counts.sum())]
    latitude, longitude = _medians(known.truth, np.arange(len(known.truth))[None])
    return Answers(np.repeat(ranked, count, axis=0), np.repeat(latitude, count), np.repeat(longitude, count))


def neighbours(known: Known, vectors: NDArray[np.float32]) -> Answers:
    """The votes of the ten training rows of largest cosine, and the geometric median of their places."""
    model = NearestNeighbors(n_neighbors=min(_NEAREST, len(known.truth)), metric="cosine").fit(known.vectors)
    near = model.kneighbors(vectors, return_distance=False)
    classes, counts = np.unique(known.truth.state_idx, return_counts=True)
    votes = (known.truth.state_idx[near][:, :, None] == classes).sum(axis=1)
    ranked = classes[top_states(votes + _TIE * counts / counts.sum())]
    return Answers(ranked, *_medians(known.truth, near))


def logistic(known: Known, vectors: NDArray[np.float32], seed: int) -> Answers:
    """Logistic regression, its penalty by the state score over folds that keep groups together; and the likeliest state's medoid.

    Raises:
        GeoError: no fold leaves two states to learn from.
    """

    def credit(model: Any, x: NDArray[np.float32], state_idx: NDArray[np.int64]) -> float:
        return float(state_credit(model.classes_[top_states(model.predict_proba(x))], state_idx).mean())

    state_idx = known.truth.state_idx
    labels = np.unique(state_idx, return_inverse=True)[1]
    fold = class_folds(labels, _FOLDS, seed, known.groups)
    splits = [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k))
        for k in np.unique(fold)
        if len(np.unique(labels[fold != k])) > 1
    ]
    if not splits:
        raise GeoError(f"{len(labels):,} training samples leave no fold with two states to learn from")
    model = GridSearchCV(LogisticRegression(max_iter=_ROUNDS), {"C": _PENALTIES}, cv=splits, scoring=credit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(known.vectors, state_idx)
    ranked = model.classes_[top_states(model.predict_proba(vectors))]
    row = _medoids(known.truth)
    points = known.truth.take(np.array([row[index] for index in ranked[:, 0].tolist()]))
    return Answers(ranked, points.latitude, points.longitude)


def _medians(truth: Truth, near: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Degrees (m,), (m,) of the geometric medians of known places, by their rows (m, k)."""
    points = torch.from_numpy(to_unit_vectors(truth.latitude, truth.longitude)[near])
    degrees = unit_to_degrees(geometric_median_of(points, torch.ones(near.shape))).numpy()
    return degrees[:, 0], degrees[:, 1]


def _medoids(truth: Truth) -> dict[int, int]:
    """Of each state the row from which all its places are nearest, summed."""
    points = to_unit_vectors(truth.latitude, truth.longitude)
    medoids = {}
    for index in np.unique(truth.state_idx).tolist():
        rows = np.flatnonzero(truth.state_idx == index)
        angles = np.arccos(np.clip(points[rows] @ points[rows].T, -1, 1))
        medoids[index] = int(rows[angles.sum(axis=1).argmin()])
    return medoids
