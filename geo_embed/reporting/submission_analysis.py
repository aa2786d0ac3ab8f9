"""What a submission says as a whole, without a truth to hold it against: which states, which points, how sure, and what is odd."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth, label_encoder
from geo_embed.config import Config
from geo_embed.console import counted, warn
from geo_embed.data.samples import load_mapping, load_samples, truth_of
from geo_embed.files import file_sha256
from geo_embed.geography import in_box, region_box
from geo_embed.metrics import RANK_CREDIT
from geo_embed.reporting.outlines import km_outside_own, outlines
from geo_embed.submissions.answers import Answers, entry_of, probabilities_behind, read_answers
from geo_embed.submissions.check import repeated_states

# Beyond, a point is hardly meant to lie in its state.
FAR_KM = 100.0
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Digits of a degree by which points are the same: a tenth of a metre.
_DIGITS = 6


def analyze_submission(config: Config, path: Path, *, limit: int = 10) -> dict[str, Any]:
    """Statistics of a submission, as plain values for JSON.

    Returns:
        `submission`, `rows`, `unusable` (cells that are no answers), and
        `states`: of each state `first` (samples that rank it first) and `train`, their shares and `difference`, the largest first;
        `total_variation`, half the sum of the differences, beside `by_chance`, what it is on average where first states are drawn as
        in training (each share is then nearly normal, with variance q (1 − q) / N);
        `coordinates`: ranges, points at (0, 0), outside the training places' region, `distinct` ones, and the `most_repeated`;
        `ranks`: of each the samples without a state and the states in use, and `repeated_states`;
        `repeated_rows`: samples with the same answer as another one, samples with the same id;
        `confidence`: of the run whose answers these are, where it has kept their probabilities; else None;
        `outside`: samples whose point lies outside the outline of their first state (states and countries by their borders, others
        by the hull of their training places), how far in km, by state, and the `farthest`; with the share of training places
        outside of their own outlines, which is what borders this coarse make of coasts.

    Args:
        config: the training CSV, the state mapping, the log and the runs.
        path: the file.
        limit: samples and points that are listed.

    Raises:
        GeoError: the file, or the training CSV, can't be read.
    """
    answers = read_answers(path)
    truth = truth_of(load_samples(config, "train"))
    mapping = load_mapping(config.paths.mapping())
    if answers.unusable:
        warn(
            f"{counted(answers.unusable, 'cell holds', 'cells hold')} no answer: geo submission validate {path}"
        )
    behind = probabilities_behind(config, answers, entry_of(config, file_sha256(path)))
    return {
        "submission": str(path),
        "rows": answers.rows,
        "unusable": answers.unusable,
        "states": _states(answers, truth, mapping),
        "coordinates": _coordinates(answers, truth, limit),
        "ranks": _ranks(answers),
        "repeated_rows": _repeated_rows(answers),
        "confidence": None if behind is None else _confidence(*behind, limit),
        "outside": _outside(answers, truth, mapping, limit),
    }


def _states(answers: Answers, truth: Truth, mapping: dict[int, str]) -> dict[str, Any]:
    first = answers.states[:, 0]
    first = first[first >= 0]
    states = np.union1d(truth.state_idx, first)
    counts, train = (
        np.bincount(np.searchsorted(states, column), minlength=len(states))
        for column in (first, truth.state_idx)
    )
    share, expected = counts / max(len(first), 1), train / len(truth)
    difference = share - expected
    order = np.argsort(-np.abs(difference), kind="stable")
    chance = np.sqrt(2 * expected * (1 - expected) / (np.pi * max(len(first), 1))).sum() / 2
    return {
        "total_variation": float(np.abs(difference).sum() / 2),
        "by_chance": float(chance),
        "never_first": [_name(mapping, k) for k in states[(counts == 0) & (train > 0)]],
        "not_in_training": int(counts[train == 0].sum()),
        "table": [
            {
                "state_idx": int(states[k]),
                "state": _name(mapping, states[k]),
                "first": int(counts[k]),
                "train": int(train[k]),
                "share": float(share[k]),
                "train_share": float(expected[k]),
                "difference": float(difference[k]),
            }
            for k in order
        ],
    }


def _name(mapping: dict[int, str], state_idx: int) -> str:
    return mapping.get(int(state_idx), f"{int(state_idx)} (no class)")


def _coordinates(answers: Answers, truth: Truth, limit: int) -> dict[str, Any]:
    placed = answers.placed
    latitude, longitude = answers.latitude[placed], answers.longitude[placed]
    inside = in_box(region_box(truth.latitude, truth.longitude), latitude, longitude)
    points, group, count = np.unique(
        np.round(np.stack([latitude, longitude], axis=1), _DIGITS),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    most = [k for k in np.argsort(-count, kind="stable")[:limit] if count[k] > 1]
    return {
        "points": int(placed.sum()),
        "without": int((~placed).sum()),
        "latitude": _range(latitude),
        "longitude": _range(longitude),
        "at_zero": int(((latitude == 0) & (longitude == 0)).sum()),
        "outside_region": int((~inside).sum()),
        "distinct": len(points),
        "shared": int((count[group.ravel()] > 1).sum()),
        "most_repeated": [
            {"latitude": float(points[k, 0]), "longitude": float(points[k, 1]), "samples": int(count[k])}
            for k in most
        ],
    }


def _range(values: NDArray[np.float64]) -> dict[str, float | None]:
    if not len(values):
        return {"min": None, "median": None, "max": None}
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
    }


def _ranks(answers: Answers) -> dict[str, Any]:
    return {
        "ranks": [
            {
                "rank": rank + 1,
                "empty": int((column < 0).sum()),
                "states": len(np.unique(column[column >= 0])),
            }
            for rank, column in enumerate(answers.states.T)
        ],
        "repeated_states": int(repeated_states(answers.states).sum()),
    }


def _repeated_rows(answers: Answers) -> dict[str, int]:
    points = np.round(
        np.nan_to_num(np.stack([answers.latitude, answers.longitude], axis=1), nan=999), _DIGITS
    )
    rows = np.concatenate([answers.states.astype(np.float64), points], axis=1)
    _, group, count = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    _, same_id, ids = np.unique(answers.sample_id.astype(str), return_inverse=True, return_counts=True)
    return {
        "same_answer": int((count[group.ravel()] > 1).sum()),
        "distinct_answers": len(count),
        "same_id": int((ids[same_id.ravel()] > 1).sum()),
    }


def _confidence(run: str, predictions: Predictions, limit: int) -> dict[str, Any]:
    ordered = -np.sort(-predictions.probabilities.astype(np.float64), axis=1)[:, : len(RANK_CREDIT)]
    first = ordered[:, 0]
    credit = np.asarray(RANK_CREDIT[: ordered.shape[1]])
    least = np.argsort(first, kind="stable")[:limit]
    return {
        "run": run,
        "mean": float(first.mean()),
        "quantiles": _quantiles(first),
        "above_90_percent": float((first > 0.9).mean()),
        "below_50_percent": float((first < 0.5).mean()),
        # What the run itself expects; as true as it is calibrated.
        "expected_top1": float(first.mean()),
        "expected_state_score": float((ordered * credit).sum(axis=1).mean()),
        "least_confident": [
            {"sample_id": str(predictions.sample_id[k]), "confidence": float(first[k])} for k in least
        ],
    }


def _quantiles(values: NDArray[np.float64]) -> dict[str, float | None]:
    if not len(values):
        return {f"{share:g}": None for share in _QUANTILES}
    return {
        f"{share:g}": float(value)
        for share, value in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)
    }


def _outside(answers: Answers, truth: Truth, mapping: dict[int, str], limit: int) -> dict[str, Any]:
    encoder = label_encoder(truth.state_idx, mapping)
    drawn = outlines(encoder.encode(truth.state_idx), truth.latitude, truth.longitude, encoder.names)
    known = answers.placed & np.isin(answers.states[:, 0], encoder.state_idx)
    rows = np.flatnonzero(known)
    km = km_outside_own(
        drawn,
        encoder.encode(answers.states[rows, 0]),
        answers.latitude[rows],
        answers.longitude[rows],
    )
    train_km = km_outside_own(drawn, encoder.encode(truth.state_idx), truth.latitude, truth.longitude)
    away = km > 0
    states, count = np.unique(answers.states[rows[away], 0], return_counts=True)
    by_state = [
        {
            "state": _name(mapping, states[k]),
            "samples": int((answers.states[rows, 0] == states[k]).sum()),
            "outside": int(count[k]),
            "outline": drawn.sources[int(encoder.encode(states[k : k + 1])[0])],
        }
        for k in np.argsort(-count, kind="stable")
    ]
    farthest = [k for k in np.argsort(-km, kind="stable")[:limit] if km[k] > 0]
    return {
        "samples": len(rows),
        "outside": int(away.sum()),
        "share": float(away.mean()) if len(rows) else None,
        "train_share": float((train_km > 0).mean()),
        f"beyond_{FAR_KM:g}_km": int((km > FAR_KM).sum()),
        "km": _quantiles(km[away]) | {"max": float(km.max()) if len(rows) else None},
        "by_state": by_state,
        "farthest": [
            {
                "sample_id": str(answers.sample_id[rows[k]]),
                "state": _name(mapping, answers.states[rows[k], 0]),
                "latitude": float(answers.latitude[rows[k]]),
                "longitude": float(answers.longitude[rows[k]]),
                "km": float(km[k]),
            }
            for k in farthest
        ],
    }
