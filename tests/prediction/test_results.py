"""Results sample by sample, and the pairs of states that are taken for one another, are right by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.geography import haversine_km
from geo_embed.metrics import metrics
from geo_embed.prediction.results import confusion_pairs, per_sample, worst_first

# On the equator, so many degrees are a km.
DEGREE_KM = float(haversine_km(0, 0, 0, 1))


def answers_with(
    probabilities: Any, states: Any, km: Any, ids: Any = "abcdefgh"
) -> tuple[Predictions, Truth]:
    """Predictions with these probabilities (N, C) for states A = 30, B = 20, C = 10, … whose points lie so many km east of the truth."""
    shares = np.asarray(probabilities, dtype=np.float32)
    count, classes = shares.shape
    encoder = LabelEncoder(30 - 10 * np.arange(classes), tuple("ABCDEFG"[:classes]))
    zeros = np.zeros(count)
    truth = Truth(encoder.state_idx[["ABCDEFG".index(state) for state in states]], zeros, zeros + 5)
    east = 5 + np.broadcast_to(np.asarray(km) / DEGREE_KM, count)
    return Predictions(np.array(list(ids)[:count], dtype=object), shares, zeros, east, encoder), truth


def test_each_sample_is_told_with_its_truth_its_ranks_and_what_it_earned() -> None:
    table = per_sample(*answers_with([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], "AC", [0, 2500]))
    assert list(table["sample_id"]) == ["a", "b"]
    assert list(table["true_state"]) == ["A", "C"]
    assert list(table["true_state_idx"]) == [30, 10]
    assert list(table["true_rank"]) == [1, 3]
    assert list(table["credit"]) == [1.0, 0.4]
    assert list(table["km"]) == pytest.approx([0, 2500])
    assert list(table["score"]) == pytest.approx([1.0, 0.7 * 0.4 + 0.3 * 0.5])
    assert list(table["confidence"]) == pytest.approx([0.6, 0.7])
    assert list(table["true_probability"]) == pytest.approx([0.6, 0.1])
    second = table.iloc[1]
    assert [second[f"state_{k}"] for k in (1, 2, 3)] == ["B", "A", "C"]
    assert [second[f"state_idx_{k}"] for k in (1, 2, 3)] == [20, 30, 10]
    assert [second[f"probability_{k}"] for k in (1, 2, 3)] == pytest.approx([0.7, 0.2, 0.1])
    assert "state_4" not in table, "there are three classes"
    assert (second["true_longitude"], second["longitude"]) == pytest.approx((5, 5 + 2500 / DEGREE_KM))


def test_the_scores_of_samples_average_to_the_score_of_the_run() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(7), size=8)
    predictions, truth = answers_with(shares, "ABCDEFGA", random.uniform(0, 4000, 8))
    assert per_sample(predictions, truth)["score"].mean() == pytest.approx(
        metrics(predictions, truth)["score"]
    )


def test_the_worst_come_first_and_of_equal_ones_the_farthest_then_the_surest() -> None:
    shares = [[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1], [0.8, 0.2]]
    table = worst_first(per_sample(*answers_with(shares, "AABAA", [0, 100, 6000, 7000, 7000])))
    # d, e and c lie so far off that only their states, which are right, count: 0.7. b has the second rank, and is near.
    assert list(table["sample_id"]) == ["d", "e", "c", "b", "a"]
    assert list(table["score"]) == sorted(table["score"])


def test_states_taken_for_one_another_are_counted_the_most_frequent_pair_first() -> None:
    shares = np.eye(3)[[1, 1, 0, 0, 2, 0]] * 0.7 + 0.1
    pairs = confusion_pairs(*answers_with(shares, "AAABCC", [100, 300, 0, 50, 0, 20]))
    assert pairs.to_dict("records") == [
        {
            **{"true_state": "A", "true_state_idx": 30, "state": "B", "state_idx": 20, "samples": 2},
            **{"share": pytest.approx(2 / 3), "mean_km": pytest.approx(200)},
            "mean_confidence": pytest.approx(0.8),
        },
        {
            **{"true_state": "B", "true_state_idx": 20, "state": "A", "state_idx": 30, "samples": 1},
            **{"share": 1.0, "mean_km": pytest.approx(50), "mean_confidence": pytest.approx(0.8)},
        },
        {
            **{"true_state": "C", "true_state_idx": 10, "state": "A", "state_idx": 30, "samples": 1},
            **{"share": 0.5, "mean_km": pytest.approx(20), "mean_confidence": pytest.approx(0.8)},
        },
    ]


def test_no_samples_and_no_mistakes_make_empty_tables_with_all_columns() -> None:
    empty = answers_with(np.zeros((0, 3)), "", 0)
    assert len(per_sample(*empty)) == len(confusion_pairs(*empty)) == 0
    right = confusion_pairs(*answers_with([[0.9, 0.1]], "A", 0))
    assert len(right) == 0
    assert {"true_state", "state", "samples", "mean_km"} <= set(right)


def test_ids_are_whole_numbers_where_all_of_them_are() -> None:
    shares = [[0.6, 0.4], [0.6, 0.4]]
    assert list(per_sample(*answers_with(shares, "AA", 0, ids="12"))["sample_id"]) == [1, 2]
    assert list(per_sample(*answers_with(shares, "AA", 0, ids=("1", "02")))["sample_id"]) == ["1", "02"]
