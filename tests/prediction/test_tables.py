"""Every table is right by hand, and adds up to the metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.geography import haversine_km
from geo_embed.metrics import calibration_error, metrics, top_states
from geo_embed.prediction.tables import (
    border_km,
    border_table,
    class_table,
    distance_table,
    reliability_table,
    view_table,
)

# On the equator, so many degrees are a km.
DEGREE_KM = float(haversine_km(0, 0, 0, 1))


def answers_with(
    probabilities: Any, labels: Any, km: Any = 0.0, names: tuple[str, ...] | None = None
) -> tuple[Predictions, Truth]:
    """Predictions with these probabilities (N, C) whose points lie so many km off, and the truth, of states 10, 11, …"""
    shares, classes = np.asarray(probabilities), np.asarray(labels, dtype=np.int64)
    count, states = shares.shape
    encoder = LabelEncoder(10 + np.arange(states), names or tuple(map(str, range(states))))
    ids, zeros = np.array([str(i) for i in range(count)], dtype=object), np.zeros(count)
    east = np.broadcast_to(np.asarray(km) / DEGREE_KM, count)
    return Predictions(ids, shares, zeros, east, encoder), Truth(classes + 10, zeros, zeros)


def truth(latitude: Any, longitude: Any, states: Any) -> Truth:
    return Truth(np.asarray(states), np.asarray(latitude, dtype=float), np.asarray(longitude, dtype=float))


def test_percentiles_of_the_distance_lie_between_samples() -> None:
    def table(km: NDArray[np.float64]) -> list[dict[str, Any]]:
        return distance_table(*answers_with(np.ones((len(km), 1)), np.zeros(len(km)), km))

    rows = table(np.arange(101.0))
    assert [row["percentile"] for row in rows] == [5, 25, 50, 75, 90, 95, 99]
    assert [row["km"] for row in rows] == pytest.approx([5, 25, 50, 75, 90, 95, 99])
    assert table(np.array([1.0, 2.0]))[2] == {"percentile": 50, "km": pytest.approx(1.5)}
    assert {row["km"] for row in table(np.zeros(0))} == {None}


def test_the_table_of_classes_is_right_by_hand() -> None:
    probabilities = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    rows = class_table(*answers_with(probabilities, [0, 1, 1, 1], [10, 20, 60, 30], ("A", "B", "C")))
    assert rows == [
        {
            **{"state": "A", "state_idx": 10, "class": 0, "samples": 1},
            **{"top1": 1.0, "precision": 1 / 3, "top5": 1.0, "credit": 1.0, "median_km": pytest.approx(10)},
            "geoscore": pytest.approx(5000 * np.exp(-10 / 1492.7)),
        },
        {
            **{"state": "B", "state_idx": 11, "class": 1, "samples": 3},
            **{"top1": 1 / 3, "precision": 1.0, "top5": 1.0},
            **{"credit": pytest.approx((0.6 + 0.6 + 1.0) / 3), "median_km": pytest.approx(30)},
            "geoscore": pytest.approx(5000 / 3 * np.exp(np.array([-20, -60, -30]) / 1492.7).sum()),
        },
        {
            **{"state": "C", "state_idx": 12, "class": 2, "samples": 0},
            **dict.fromkeys(("top1", "precision", "top5", "credit", "median_km", "geoscore")),
        },
    ]


def test_the_table_of_classes_adds_up_to_the_metrics() -> None:
    random = np.random.default_rng(6)
    predictions, true = answers_with(
        random.dirichlet(np.ones(9), 200), random.integers(8, size=200), random.uniform(0, 5000, 200)
    )
    whole = metrics(predictions, true)
    rows = class_table(predictions, true)
    assert sum(row["samples"] for row in rows) == 200
    for key, metric in (
        ("top1", "top1"),
        ("top5", "top5"),
        ("credit", "state_score"),
        ("geoscore", "geoscore"),
    ):
        total = sum(row["samples"] * row[key] for row in rows if row["samples"])
        assert total / 200 == pytest.approx(whole[metric])
    answered = np.bincount(top_states(predictions.probabilities)[:, 0], minlength=9)
    right = sum(row["precision"] * answered[row["class"]] for row in rows if row["precision"] is not None)
    assert right / 200 == pytest.approx(whole["top1"])


def confident(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[Predictions, Truth]:
    """Predictions among 40 states whose top one has this probability, and is right or not."""
    shares = np.tile(((1 - confidence) / 39)[:, None], (1, 40))
    shares[:, 0] = confidence
    return answers_with(shares, np.where(correct, 0, 1))


def test_the_reliability_table_has_the_bins_that_the_calibration_error_is_made_of() -> None:
    confidence = np.array([0.05, 0.95, 0.95, 0.98, 1.0])
    correct = np.array([False, True, True, False, True])
    rows = reliability_table(*confident(confidence, correct))
    assert [row["samples"] for row in rows] == [1, *[0] * 13, 4]
    assert rows[0] == {"from": 0.0, "to": 1 / 15, "samples": 1, "confidence": 0.05, "accuracy": 0.0}
    assert rows[14]["confidence"] == pytest.approx(0.97)
    assert (rows[14]["accuracy"], rows[14]["to"]) == (0.75, 1.0)
    assert (rows[7]["confidence"], rows[7]["accuracy"]) == (None, None)
    random = np.random.default_rng(7)
    confidence, correct = random.uniform(0.05, 1, 300), random.random(300) < 0.4
    gaps = [
        row["samples"] / 300 * abs(row["accuracy"] - row["confidence"])
        for row in reliability_table(*confident(confidence, correct))
        if row["samples"]
    ]
    assert sum(gaps) == pytest.approx(calibration_error(confidence, correct))


def test_the_border_is_as_far_as_the_nearest_sample_of_another_state() -> None:
    samples = truth([0, 1, 3, 60], np.zeros(4), [4, 4, 7, 9])
    assert border_km(samples, samples) == pytest.approx(np.array([3, 2, 2, 57]) * DEGREE_KM)
    # The samples to measure to may be others than those measured.
    assert border_km(truth([2.5], [0], [4]), samples) == pytest.approx([0.5 * DEGREE_KM])
    assert border_km(truth([0], [-179.5], [1]), truth([0], [179.5], [2])) == pytest.approx([DEGREE_KM])
    alone = truth([0, 1, 3, 60], np.zeros(4), [4, 4, 4, 4])
    assert np.isinf(border_km(alone, alone)).all()


def test_the_table_by_border_is_right_by_hand() -> None:
    away = np.array([5.0, 10.0, 24.9, np.inf])
    shares = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1]]
    rows = border_table(*answers_with(shares, [0, 0, 1, 0], [50, 500, 1000, 10]), away)
    assert [(row["from_km"], row["to_km"]) for row in rows] == [
        *((0, 10), (10, 25), (25, 50), (50, 100), (100, 250), (250, None))
    ]
    assert [row["samples"] for row in rows] == [1, 2, 0, 0, 0, 1]
    assert rows[0]["score"] == pytest.approx(0.7 + 0.3 * (1 - 50 / 5000))
    assert rows[1]["score"] == pytest.approx(0.7 * 0.6 + 0.3 * (1 - 750 / 5000))
    assert [row["top1"] for row in rows] == [1, 0, None, None, None, 1]
    assert [row["median_km"] for row in rows] == [
        *(pytest.approx(50), pytest.approx(750), None, None, None, pytest.approx(10))
    ]
    assert rows[1]["geoscore"] == pytest.approx(2500 * (np.exp(-500 / 1492.7) + np.exp(-1000 / 1492.7)))
    assert rows[2]["score"] is rows[2]["geoscore"] is None


def test_a_views_worth_is_the_score_with_it_alone_and_what_hiding_it_costs() -> None:
    """The first view knows the state, the second doesn't; without any the second state is the guess."""
    present = np.array([[True, True], [True, False], [False, True]])
    true = answers_with(np.zeros((3, 2)), [0, 0, 0])[1]

    def predict(mask: NDArray[np.bool_]) -> Predictions:
        return answers_with(np.where(mask[:, :1], [0.9, 0.1], [0.1, 0.9]), [0, 0, 0])[0]

    first, second = view_table(predict, present, ("north", "south"), true)
    known, unknown = 0.7 * 1.0 + 0.3, 0.7 * 0.6 + 0.3
    assert (first["view"], first["samples"]) == ("north", 2)
    assert first["alone"] == pytest.approx((2 * known + unknown) / 3)
    assert first["hidden"] == pytest.approx(unknown)
    assert first["cost"] == pytest.approx((2 * known + unknown) / 3 - unknown)
    assert (second["view"], second["samples"]) == ("south", 2)
    assert second["alone"] == pytest.approx(unknown)
    assert second["cost"] == pytest.approx(0)
