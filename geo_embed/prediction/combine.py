"""Several runs' answers for the same samples, made one. Arrays in, arrays out: nothing here knows a run or a file."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.config import EnsembleMethod
from geo_embed.geography import haversine_km, to_degrees, to_unit_vectors
from geo_embed.metrics import GPS_RANGE_KM, GPS_WEIGHT, RANK_CREDIT, STATE_WEIGHT, top_states

# Their weights are learnt from validation samples; the others' are all the same.
LEARNT: tuple[EnsembleMethod, ...] = ("weighted", "stacking")

# Cormack et al., SIGIR 2009.
_RRF_K = 60
# What the mean probability adds, so that it decides between equal tallies and nothing else. Two different tallies of
# votes differ by 0.05 or more, two sums of reciprocal ranks by some 1e-5.
_VOTING_TIE, _RRF_TIE = 1e-2, 1e-6

_GREEDY_ROUNDS = 20
_STEPS, _SWEEPS = (0.1, 0.03), 5
# Rounds towards a median that only has to be scored.
_ROUGH = 6
# A dozen weights need no more rows than this to be learnt.
_MOST_ROWS = 10_000


@dataclass(frozen=True)
class Answers:
    """What M runs answer for the same N samples.

    Attributes:
        probabilities: (M, N, C), each row sums to 1; the classes in the same order for all runs.
        points: (M, N, 3) unit vectors.
    """

    probabilities: NDArray[np.float32]
    points: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        probabilities: list[NDArray[np.float32]],
        latitude: list[NDArray[np.float64]],
        longitude: list[NDArray[np.float64]],
    ) -> "Answers":
        """M arrays (N, C), and M each of (N,) in degrees."""
        return cls(np.stack(probabilities), to_unit_vectors(np.stack(latitude), np.stack(longitude)))

    def __len__(self) -> int:
        return len(self.probabilities)

    def take(self, rows: NDArray[Any] | slice) -> "Answers":
        """The answers for some of the samples."""
        return Answers(self.probabilities[:, rows], self.points[:, rows])


@dataclass(frozen=True)
class Places:
    """(N,) true classes in [0, C), and points in degrees."""

    labels: NDArray[np.int64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]

    def take(self, rows: NDArray[Any] | slice) -> "Places":
        """Some of the places."""
        return Places(self.labels[rows], self.latitude[rows], self.longitude[rows])


def combine(
    method: EnsembleMethod, weights: NDArray[np.float64], answers: Answers
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """One answer out of M.

    The point is the geometric median of the runs' points by all methods.

    Args:
        method: how probabilities are combined; `weighted` and `stacking` are averages with learnt weights.
        weights: (M,) ≥ 0, sum 1.
        answers: of M runs.

    Returns:
        (N, C) probabilities whose rows sum to 1, and (N,) latitude and longitude in degrees.
    """
    if method == "voting":
        probabilities = voting(answers.probabilities)
    elif method == "rrf":
        probabilities = reciprocal_ranks(answers.probabilities, weights)
    else:
        probabilities = average(answers.probabilities, weights)
    return probabilities.astype(np.float32), *to_degrees(median_points(answers.points, weights))


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
    tally = _VOTING_TIE * average(probabilities, _even(runs))
    rows = np.arange(count)[:, None]
    for one in probabilities:
        ranked = top_states(one)
        tally[rows, ranked] += np.array(RANK_CREDIT[: ranked.shape[1]])
    return np.asarray(tally / tally.sum(axis=1, keepdims=True))


def reciprocal_ranks(probabilities: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reciprocal rank fusion: Σ w/(60 + rank), the rank counted from 1 (Cormack et al., SIGIR 2009, section 2).

    Equal sums, which two runs that disagree bring about, are ordered by the mean probability. (M, N, C) → (N, C), rows
    sum to 1; they are nearly flat, good for their order and not for their confidence.
    """
    runs, _, classes = probabilities.shape
    fused = _RRF_TIE * average(probabilities, _even(runs))
    credit = np.broadcast_to(1 / (_RRF_K + np.arange(1, classes + 1)), fused.shape)
    for weight, one in zip(weights, probabilities, strict=True):
        share = np.empty_like(fused)
        np.put_along_axis(share, top_states(one, classes), credit, axis=1)
        fused += weight * share
    return np.asarray(fused / fused.sum(axis=1, keepdims=True))


def median_points(
    points: NDArray[np.float64], weights: NDArray[np.float64], *, rounds: int = 30
) -> NDArray[np.float64]:
    """(M, N, 3) unit vectors and (M,) weights to the points (N, 3) of least weighted great-circle distance to them.

    Between two points of one weight it is the middle. One that weighs more than all others together is it.
    """
    import torch

    from geo_embed.sphere import geometric_median_of

    if weights.max() > 0.5:
        return np.asarray(points[int(weights.argmax())])
    used = np.flatnonzero(weights)
    shares = torch.from_numpy(weights[used]).expand(points.shape[1], -1)
    theirs = torch.from_numpy(points[used].transpose(1, 0, 2).copy())
    return np.asarray(geometric_median_of(theirs, shares, rounds=rounds).numpy())


def weight_learner(
    method: EnsembleMethod, answers: Answers, truth: Places
) -> Callable[[NDArray[np.bool_]], NDArray[np.float64]]:
    """A function that learns a method's weights (M,), ≥ 0, sum 1, from some of N samples whose truth is known.

    `weighted` takes the squared score of each run. `stacking` maximises the score itself: greedy selection with
    replacement (Caruana et al., ICML 2004), then weights are moved from run to run in smaller and smaller steps while that
    helps. Both are deterministic. By the other methods, and without rows, all weights are the same.

    Args:
        method: whose weights.
        answers: of M runs.
        truth: of the same samples.

    Returns:
        A function of (N,) bool, the rows to learn from. Calls share what they have worked out: folds ask for the same.
    """
    count = len(truth.labels)
    every = -(-count // _MOST_ROWS) if method == "stacking" and count else 1
    scorer = _Scorer(answers.take(slice(None, None, every)), truth.take(slice(None, None, every)))

    def learn(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        runs, kept = len(answers), rows[::every]
        if method not in LEARNT or not kept.any():
            return _even(runs)
        if method == "stacking":
            return _stack(lambda weights: scorer.score(weights, kept), runs)
        squared = np.array([scorer.score(alone, kept) for alone in np.eye(runs)]) ** 2
        return np.asarray(squared / squared.sum()) if squared.any() else _even(runs)

    return learn


class _Scorer:
    """The score of weighted averages on some rows. Remembers each sample's part of it by the weights."""

    def __init__(self, answers: Answers, truth: Places) -> None:
        self._answers, self._truth = answers, truth
        self._known: dict[tuple[float, ...], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def score(self, weights: NDArray[np.float64], rows: NDArray[np.bool_]) -> float:
        """The competition's score of an average with these weights (M,) on the rows (n,) that are True."""
        key = tuple(weights.round(6).tolist())
        if key not in self._known:
            self._known[key] = self._parts(weights)
        credit, km = (float(part[rows].mean(dtype=np.float64)) for part in self._known[key])
        return STATE_WEIGHT * credit + GPS_WEIGHT * max(0.0, 1.0 - km / GPS_RANGE_KM)

    def _parts(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n,) credits and km. The rank of the truth takes a comparison, where the five best would take a sort."""
        labels = self._truth.labels
        # To the precision of the answer: what is a tie there must be one here.
        p = average(self._answers.probabilities, weights).astype(np.float32)
        own = p[np.arange(len(p)), labels][:, None]
        lower = np.arange(p.shape[1]) < labels[:, None]
        rank = ((p > own) | ((p == own) & lower)).sum(axis=1)
        credit = np.append(RANK_CREDIT, 0.0)[rank.clip(max=len(RANK_CREDIT))]
        latitude, longitude = to_degrees(median_points(self._answers.points, weights, rounds=_ROUGH))
        km = haversine_km(latitude, longitude, self._truth.latitude, self._truth.longitude)
        return credit.astype(np.float32), km.astype(np.float32)


def _stack(score: Callable[[NDArray[np.float64]], float], runs: int) -> NDArray[np.float64]:
    counts = np.zeros(runs)
    best, weights = -1.0, _even(runs)
    for _ in range(_GREEDY_ROUNDS):
        trials = [counts + one for one in np.eye(runs)]
        scores = [score(trial / trial.sum()) for trial in trials]
        counts = trials[int(np.argmax(scores))]
        if max(scores) > best:
            best, weights = max(scores), counts / counts.sum()
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
