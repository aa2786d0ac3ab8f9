"""Several runs' predictions for the same samples, made one. Nothing here knows a run or a file."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.config import EnsembleMethod, EnsemblePoint, PointChoice
from geo_embed.geography import haversine_km, to_degrees, to_unit_vectors
from geo_embed.metrics import GPS_RANGE_KM, GPS_WEIGHT, RANK_CREDIT, STATE_WEIGHT, top_states

# The weights of these are learnt from validation samples; by the others all runs weigh the same.
LEARNT: tuple[EnsembleMethod, ...] = ("weighted", "stacking")

# Cormack et al., SIGIR 2009.
RRF_K = 60
# What the mean probability adds, so that it decides between equal tallies and nothing else. Two different tallies of
# votes differ by 0.05 or more, two sums of reciprocal ranks by some 1e-5; two numbers of first choices differ by 1.
VOTING_TIE, RRF_TIE, MAJORITY_TIE = 1e-2, 1e-6, 0.5

_GREEDY_ROUNDS = 20
_STEPS, _SWEEPS = (0.1, 0.03), 5
# Scores that differ by less, a metre of all points, are the same.
_SAME_SCORE = 1e-7
# Of a mean of unit vectors that has a direction.
LEAST_LENGTH = 1e-9
# Rounds towards a median that only has to be scored.
_ROUGH = 6
# A dozen weights need no more rows than this to be learnt.
_MOST_ROWS = 10_000


def by_state(predictions: Predictions) -> Predictions:
    """The same predictions, with the classes in ascending order of their states."""
    order = np.argsort(predictions.labels.state_idx)
    labels = LabelEncoder(
        predictions.labels.state_idx[order], tuple(predictions.labels.names[k] for k in order)
    )
    return Predictions(
        predictions.sample_id,
        predictions.probabilities[:, order],
        predictions.latitude,
        predictions.longitude,
        labels,
    )


def combine(
    method: EnsembleMethod,
    weights: NDArray[np.float64],
    predictions: Sequence[Predictions],
    point: EnsemblePoint = "median",
) -> Predictions:
    """One prediction out of M for each sample.

    Args:
        method: how probabilities are combined; `weighted` and `stacking` are averages with learnt weights.
        weights: (M,) ≥ 0, sum 1.
        predictions: of M runs for the same samples and classes, in the same order.
        point: what the point is of the runs' points: their geometric median, or their mean on the sphere; weighted both.
    """
    probabilities, points = _stacked(predictions)
    if method == "voting":
        mixed = voting(probabilities)
    elif method == "majority":
        mixed = majority(probabilities)
    elif method == "rrf":
        mixed = reciprocal_ranks(probabilities, weights)
    else:
        mixed = average(probabilities, weights)
    latitude, longitude = to_degrees(_POINTS[point](points, weights))
    first = predictions[0]
    return Predictions(first.sample_id, mixed.astype(np.float32), latitude, longitude, first.labels)


def _stacked(predictions: Sequence[Predictions]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """M runs' probabilities (M, N, C), and their points as unit vectors (M, N, 3)."""
    points = to_unit_vectors(
        np.stack([p.latitude for p in predictions]), np.stack([p.longitude for p in predictions])
    )
    return np.stack([p.probabilities for p in predictions]), points


def average(probabilities: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, N, C) probabilities and (M,) weights to their weighted mean (N, C)."""
    mean = np.zeros(probabilities.shape[1:])
    for m in np.flatnonzero(weights):
        mean += weights[m] * probabilities[m]
    return np.asarray(mean / mean.sum(axis=1, keepdims=True))


def voting(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Each run gives its five most probable classes the score's own credit, 1.00, 0.60, 0.40, 0.25, 0.15.

    Equal tallies are ordered by the mean probability. (M, N, C) → (N, C), rows sum to 1.
    """
    runs, count, _ = probabilities.shape
    tally = VOTING_TIE * average(probabilities, _even(runs))
    rows = np.arange(count)[:, None]
    for of_run in probabilities:
        ranked = top_states(of_run)
        tally[rows, ranked] += np.array(RANK_CREDIT[: ranked.shape[1]])
    return np.asarray(tally / tally.sum(axis=1, keepdims=True))


def majority(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Each run gives its most probable class one vote: (votes + mean probability / 2) / (M + 1/2). (M, N, C) → (N, C).

    So classes are ordered by their votes, and equal numbers, none among them, by the mean probability.
    """
    runs, count, classes = probabilities.shape
    votes = np.zeros((count, classes))
    for of_run in probabilities:
        votes[np.arange(count), top_states(of_run, 1)[:, 0]] += 1
    return np.asarray((votes + MAJORITY_TIE * average(probabilities, _even(runs))) / (runs + MAJORITY_TIE))


def reciprocal_ranks(probabilities: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reciprocal rank fusion: Σ w/(60 + rank), the rank counted from 1 (Cormack et al., SIGIR 2009, section 2).

    Equal sums, which two runs that disagree bring about, are ordered by the mean probability. (M, N, C) → (N, C), rows
    sum to 1; they are nearly flat, good for their order and not for their confidence.
    """
    runs, _, classes = probabilities.shape
    fused = RRF_TIE * average(probabilities, _even(runs))
    credit = np.broadcast_to(1 / (RRF_K + np.arange(1, classes + 1)), fused.shape)
    for weight, of_run in zip(weights, probabilities, strict=True):
        share = np.empty_like(fused)
        np.put_along_axis(share, top_states(of_run, classes), credit, axis=1)
        fused += weight * share
    return np.asarray(fused / fused.sum(axis=1, keepdims=True))


def median_points(
    points: NDArray[np.float64], weights: NDArray[np.float64], *, rounds: int = 30
) -> NDArray[np.float64]:
    """(M, N, 3) unit vectors and (M,) weights to the points (N, 3) of least weighted great-circle distance to them.

    Between two points of one weight it is the middle. A point that weighs more than all others together is the median.
    """
    import torch

    from geo_embed.sphere import geometric_median_of

    if weights.max() > 0.5:
        return np.asarray(points[int(weights.argmax())])
    used = np.flatnonzero(weights)
    shares = torch.from_numpy(weights[used]).expand(points.shape[1], -1)
    by_sample = torch.from_numpy(points[used].transpose(1, 0, 2).copy())
    return np.asarray(geometric_median_of(by_sample, shares, rounds=rounds).numpy())


def mean_points(points: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, N, 3) unit vectors and (M,) weights to their weighted means (N, 3) on the sphere.

    That is the direction of Σ w x. Antipodes of one weight have none: the heaviest point is taken, the first of several.
    """
    total = np.einsum("m,mnk->nk", weights, points)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    mean = total / np.maximum(length, LEAST_LENGTH)
    return np.asarray(np.where(length > LEAST_LENGTH, mean, points[int(weights.argmax())]))


_POINTS: dict[EnsemblePoint, Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]] = {
    "median": median_points,
    "mean": mean_points,
}


def mixing_learner(
    method: EnsembleMethod, point: PointChoice, predictions: Sequence[Predictions], truth: Truth
) -> Callable[[NDArray[np.bool_]], tuple[NDArray[np.float64], EnsemblePoint]]:
    """A function that learns weights (M,), ≥ 0, sum 1, and what the point is, from some of N samples whose truth is known.

    `weighted` takes the squared score of each run. `stacking` maximises the score itself: greedy selection with
    replacement (Caruana et al., ICML 2004), then weights are moved from run to run in smaller and smaller steps while that
    helps. `auto` takes of median and mean, each with the weights learnt for it, the one of the higher score; the median where
    both are as good. All of it is deterministic. By the other methods, and without rows, all weights are the same.

    Args:
        method: whose weights.
        point: `auto`, or what it is.
        predictions: of M runs for the same samples and classes, in the same order.
        truth: of the same samples.

    Returns:
        A function of (N,) bool, the rows to learn from. Calls share what they have worked out: folds ask for the same.

    Raises:
        GeoError: a true state is none of the predictions' classes.
    """
    kinds: tuple[EnsemblePoint, ...] = ("median", "mean") if point == "auto" else (point,)
    scorer = _thinned_scorer(method, predictions, truth)
    learners = {kind: _learner(method, len(predictions), scorer, kind) for kind in kinds}

    def learn(rows: NDArray[np.bool_]) -> tuple[NDArray[np.float64], EnsemblePoint]:
        learnt = {kind: learner(rows) for kind, learner in learners.items()}
        best, kept = kinds[0], rows[scorer.thinned]
        if len(kinds) > 1 and kept.any():
            median, mean = (scorer.score(learnt[kind], kept, kind) for kind in kinds)
            best = kinds[1] if mean > median + _SAME_SCORE else kinds[0]
        return learnt[best], best

    return learn


def _thinned_scorer(method: EnsembleMethod, predictions: Sequence[Predictions], truth: Truth) -> "_Scorer":
    step = -(-len(truth) // _MOST_ROWS) if method == "stacking" and len(truth) else 1
    return _Scorer(predictions, truth, slice(None, None, step))


def _learner(
    method: EnsembleMethod, runs: int, scorer: "_Scorer", point: EnsemblePoint
) -> Callable[[NDArray[np.bool_]], NDArray[np.float64]]:
    def learn(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        kept = rows[scorer.thinned]
        if method not in LEARNT or not kept.any():
            return _even(runs)
        if method == "stacking":
            return _stack(lambda weights: scorer.score(weights, kept, point), runs)
        squared = np.array([scorer.score(alone, kept, point) for alone in np.eye(runs)]) ** 2
        return np.asarray(squared / squared.sum()) if squared.any() else _even(runs)

    return learn


class _Scorer:
    """The score of weighted averages on some rows. Remembers each sample's part of it by the weights.

    Args:
        predictions: of M runs for the same N samples.
        truth: of these.
        thinned: which n of them are scored.
    """

    def __init__(
        self, predictions: Sequence[Predictions], truth: Truth, thinned: slice = slice(None)
    ) -> None:
        self._probabilities, self._points = _stacked([p.take(thinned) for p in predictions])
        self._truth, self.thinned = truth.take(thinned), thinned
        self._labels = predictions[0].labels.encode(self._truth.state_idx)
        self._credits: dict[tuple[float, ...], NDArray[np.float32]] = {}
        self._distances: dict[tuple[EnsemblePoint, tuple[float, ...]], NDArray[np.float32]] = {}

    def score(
        self, weights: NDArray[np.float64], rows: NDArray[np.bool_], point: EnsemblePoint = "median"
    ) -> float:
        """The competition's score of an average with these weights (M,) on the rows (n,) that are True."""
        key = tuple(weights.round(6).tolist())
        if key not in self._credits:
            self._credits[key] = self._credit(weights)
        if (point, key) not in self._distances:
            self._distances[point, key] = self._km(weights, point)
        parts = self._credits[key], self._distances[point, key]
        credit, km = (float(part[rows].mean(dtype=np.float64)) for part in parts)
        return STATE_WEIGHT * credit + GPS_WEIGHT * max(0.0, 1.0 - km / GPS_RANGE_KM)

    def _credit(self, weights: NDArray[np.float64]) -> NDArray[np.float32]:
        """(n,) credits. The rank of the truth takes a comparison, where the five best would take a sort."""
        labels = self._labels
        # To the precision of the answer: what is a tie there must be one here.
        p = average(self._probabilities, weights).astype(np.float32)
        p_true = p[np.arange(len(p)), labels][:, None]
        # Of equal classes the lower ranks first, as in top_states.
        lower = np.arange(p.shape[1]) < labels[:, None]
        rank = ((p > p_true) | ((p == p_true) & lower)).sum(axis=1)
        credit = np.append(RANK_CREDIT, 0.0)[rank.clip(max=len(RANK_CREDIT))]
        return np.asarray(credit.astype(np.float32))

    def _km(self, weights: NDArray[np.float64], point: EnsemblePoint) -> NDArray[np.float32]:
        """(n,) distances of the combined points from the truth."""
        if point == "mean":
            points = mean_points(self._points, weights)
        else:
            points = median_points(self._points, weights, rounds=_ROUGH)
        latitude, longitude = to_degrees(points)
        km = haversine_km(latitude, longitude, self._truth.latitude, self._truth.longitude)
        return np.asarray(km.astype(np.float32))


def _stack(score: Callable[[NDArray[np.float64]], float], runs: int) -> NDArray[np.float64]:
    """The weights (M,) of the highest score that a greedy search finds."""
    counts = np.zeros(runs)
    best, weights = -1.0, _even(runs)
    # Each round adds the run that helps most, or hurts least, once more; the best of all rounds is kept.
    for _ in range(_GREEDY_ROUNDS):
        trials = [counts + added for added in np.eye(runs)]
        scores = [score(trial / trial.sum()) for trial in trials]
        counts = trials[int(np.argmax(scores))]
        if max(scores) > best:
            best, weights = max(scores), counts / counts.sum()
    # From there, some weight of one run goes to another wherever that helps, until no pair of runs gains by it.
    for step in _STEPS:
        for _ in range(_SWEEPS):
            before = best
            for giver, taker in itertools.permutations(range(runs), 2):
                moved = weights.copy()
                moved[giver] -= min(step, weights[giver])
                moved[taker] += weights[giver] - moved[giver]
                if weights[giver] > 0 and (now := score(moved)) > best:
                    best, weights = now, moved
            if best == before:
                break
    return np.asarray(weights / weights.sum())


def _even(runs: int) -> NDArray[np.float64]:
    return np.full(runs, 1 / runs)
