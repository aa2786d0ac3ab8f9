"""Two submissions side by side: how often they agree, how far their points lie apart, and what that can be worth."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.config import Config
from geo_embed.console import counted, warn
from geo_embed.data.samples import load_mapping, load_samples
from geo_embed.data.table import shown
from geo_embed.errors import GeoError
from geo_embed.files import file_sha256
from geo_embed.geography import haversine_km
from geo_embed.metrics import GPS_RANGE_KM, GPS_WEIGHT, STATE_WEIGHT, state_credit
from geo_embed.submissions.answers import Answers, entry_of, probabilities_behind, read_answers

if TYPE_CHECKING:
    import pandas as pd

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Comparison:
    """What two submissions have in common.

    Attributes:
        statistics: plain values for JSON: `a`, `b` (file, rows, what the log knows), `samples` that both have, `only_a`, `only_b`, `ranks`
            (of each the samples where either gives a state, and the share that agrees), `same_states` (the share with the same set of
            states), `shared_states` (how many of its states a sample has in common, on average), `same_answers`, `km` between the points,
            and `effect`: `most`, by how much their scores can differ at all, and `expected`, see `compare_submissions`.
        samples: one row per sample that both have, the most different first: `sample_id`, `difference` (by how much its share of the
            score can differ at most), `credit` (the same of its state credit), `km`, `states_a`, `states_b` (names), and both points.
        train: states and places of the training samples, which say what a map's outlines are; None where their CSV isn't at hand.
        mapping: names by state.
    """

    statistics: dict[str, Any]
    samples: "pd.DataFrame"
    train: Truth | None
    mapping: dict[int, str]


def compare_submissions(config: Config, a: Path, b: Path) -> Comparison:
    """Compare two submissions for the same samples, wherever they came from.

    By how much scores can differ: a sample's state credit by the largest difference over all states that could be true, the mean
    distance from the truth by no more than the mean distance between the points (triangle inequality). What is to be expected of the
    states needs probabilities: the mean of those of the runs whose answers the files are, where these have kept them. By one run's
    alone its own file looks better than it is, which `expected` says by naming the runs.

    Args:
        config: the state mapping, the log, the runs.
        a, b: the files.

    Raises:
        GeoError: a file can't be read, has an id twice, or they have no sample in common.
    """
    read = {name: read_answers(path) for name, path in (("a", a), ("b", b))}
    mapping = load_mapping(config.paths.mapping())
    for answers in read.values():
        _check_ids(answers)
    entries = {name: entry_of(config, file_sha256(answers.path)) for name, answers in read.items()}
    behind = {name: probabilities_behind(config, answers, entries[name]) for name, answers in read.items()}
    place = {sample_id: row for row, sample_id in enumerate(read["b"].sample_id)}
    rows_b = np.array([place.get(sample_id, -1) for sample_id in read["a"].sample_id], dtype=np.int64)
    rows = {"a": np.flatnonzero(rows_b >= 0), "b": rows_b[rows_b >= 0]}
    if not len(rows["a"]):
        hint = "compare two submissions for the same test samples"
        for name, path in (("a", a), ("b", b)):
            if not len(read[name]):
                raise GeoError("this submission has no rows", where=path, hint=hint)
        raise GeoError(
            f"they have no sample in common: {shown(read['a'].sample_id[0])} is in {a} alone",
            where=b,
            hint=hint,
        )
    left, right = (read[name].take(rows[name]) for name in "ab")

    credit = most_credit_difference(left.states, right.states)
    km = haversine_km(left.latitude, left.longitude, right.latitude, right.longitude)
    placed = np.isfinite(km)
    if not placed.all():
        warn(
            f"{counted((~placed).sum(), 'sample lacks', 'samples lack')} a point in one of the files, and are left out of distances"
        )
    difference = STATE_WEIGHT * credit + GPS_WEIGHT * np.minimum(np.nan_to_num(km) / GPS_RANGE_KM, 1)
    taken = {
        name: (known[0], known[1].take(rows[name])) for name, known in behind.items() if known is not None
    }
    same = (left.states == right.states).all(axis=1)
    statistics = {
        **{
            name: {
                "submission": str(answers.path),
                "rows": answers.rows,
                "run": None if (entry := entries[name]) is None else entry.run,
                "local": None if entry is None else entry.score,
                "public": None if entry is None else entry.public,
            }
            for name, answers in read.items()
        },
        "samples": len(left),
        "only_a": len(read["a"]) - len(left),
        "only_b": len(read["b"]) - len(left),
        "ranks": _ranks(left.states, right.states),
        "same_states": float((np.sort(left.states) == np.sort(right.states)).all(axis=1).mean()),
        "shared_states": float(_shared(left.states, right.states).mean()),
        "same_answers": int((same & (km == 0)).sum()),
        "km": _distances(km[placed]),
        "effect": {"most": _most(credit, km[placed]), "expected": _expected(left, right, taken)},
    }
    train: Truth | None = None
    with suppress(GeoError):
        train = load_samples(config, "train").truth
    return Comparison(statistics, _samples(left, right, difference, credit, km, mapping), train, mapping)


def most_credit_difference(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much the state credit of ranked states a and b (N, 5), −1 where none is given, can differ, whatever is true: (N,)."""
    most = np.zeros(len(a))
    for ranked in (a, b):
        for states in ranked.T:
            apart = np.abs(state_credit(a, states) - state_credit(b, states))
            most = np.maximum(most, np.where(states >= 0, apart, 0.0))
    return most


def _check_ids(answers: Answers) -> None:
    ids, count = np.unique(answers.sample_id.astype(str), return_counts=True)
    if (count > 1).any():
        raise GeoError(
            f"sample_id {shown(str(ids[count > 1][0]))} is repeated, and which row is meant can't be told",
            where=answers.path,
            hint=f"geo submission validate {answers.path}",
        )


def _ranks(a: NDArray[np.int64], b: NDArray[np.int64]) -> list[dict[str, Any]]:
    ranked = (a >= 0) | (b >= 0)
    same = (a == b) & ranked
    return [
        {
            "rank": rank + 1,
            "samples": int(ranked[:, rank].sum()),
            "same": float(same[:, rank].sum() / ranked[:, rank].sum()) if ranked[:, rank].any() else None,
        }
        for rank in range(a.shape[1])
    ]


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) how many different states both rows have."""
    first = np.stack([(a[:, :k] != a[:, k : k + 1]).all(axis=1) for k in range(a.shape[1])], axis=1)
    return np.asarray(((a[:, :, None] == b[:, None, :]).any(axis=2) & (a >= 0) & first).sum(axis=1))


def _distances(km: NDArray[np.float64]) -> dict[str, Any]:
    if not len(km):
        return {"mean": None, "median": None, "max": None, "quantiles": {}}
    quantiles = zip(_QUANTILES, np.quantile(km, _QUANTILES), strict=True)
    return {
        "mean": float(km.mean()),
        "median": float(np.median(km)),
        "max": float(km.max()),
        "quantiles": {f"{share:g}": float(value) for share, value in quantiles},
    }


def _most(credit: NDArray[np.float64], km: NDArray[np.float64]) -> dict[str, float]:
    states = float(credit.mean())
    gps = min(1.0, float(km.mean()) / GPS_RANGE_KM) if len(km) else 0.0
    return {
        "score": STATE_WEIGHT * states + GPS_WEIGHT * gps,
        "state_score": states,
        "gps_score": gps,
    }


def _expected(
    left: Answers, right: Answers, behind: dict[str, tuple[str, Predictions]]
) -> dict[str, Any] | None:
    if not behind:
        return None
    scores = [
        [_expected_credit(answers.states, predictions) for answers in (left, right)]
        for _, predictions in behind.values()
    ]
    a, b = np.mean(scores, axis=0)
    return {
        "by": [run for run, _ in behind.values()],
        "state_score_a": float(a),
        "state_score_b": float(b),
        "difference": float(a - b),
    }


def _expected_credit(states: NDArray[np.int64], predictions: Predictions) -> float:
    """The mean credit of ranked states (N, 5) where the truth is as probable as the predictions say."""
    credit = np.zeros(len(states))
    for k, state_idx in enumerate(predictions.labels.state_idx):
        credit += predictions.probabilities[:, k] * state_credit(states, np.full(len(states), state_idx))
    return float(credit.mean())


def _samples(
    left: Answers,
    right: Answers,
    difference: NDArray[np.float64],
    credit: NDArray[np.float64],
    km: NDArray[np.float64],
    mapping: dict[int, str],
) -> "pd.DataFrame":
    import pandas as pd

    def named(states: NDArray[np.int64]) -> list[str]:
        return [", ".join(mapping.get(k, str(k)) for k in row if k >= 0) for row in states.tolist()]

    table = pd.DataFrame(
        {
            "sample_id": left.sample_id,
            "difference": difference,
            "credit": credit,
            "km": km,
            "states_a": named(left.states),
            "states_b": named(right.states),
            "latitude_a": left.latitude,
            "longitude_a": left.longitude,
            "latitude_b": right.latitude,
            "longitude_b": right.longitude,
        }
    )
    return table.sort_values(
        ["difference", "km"], ascending=False, kind="stable", ignore_index=True, na_position="last"
    )
