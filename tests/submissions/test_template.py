"""A template is filled by id, and keeps what is its own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from geo_embed.answers import LabelEncoder, Predictions
from geo_embed.errors import GeoError
from geo_embed.submissions.template import fill_template

STATES = [f"predicted_state_idx_{rank}" for rank in range(1, 6)]
COLUMNS = ["sample_id", *STATES, "predicted_latitude", "predicted_longitude"]
LABELS = LabelEncoder(np.array([3, 8, 20, 41, 42, 49]), ("A", "B", "C", "D", "E", "F"))


def some_predictions(ids: list[str]) -> Predictions:
    """Sample k of `ids` is most surely of class k, and lies at latitude 30 + k."""
    n = len(ids)
    probabilities = np.full((n, 6), 0.05, dtype=np.float32)
    for k in range(n):
        for rank, share in enumerate((0.5, 0.2, 0.12, 0.08, 0.06)):
            probabilities[k, (k + rank) % 6] = share
        probabilities[k, (k + 5) % 6] = 0.04
    return Predictions(
        np.array(ids, dtype=object), probabilities, 30.0 + np.arange(n), -100.0 - np.arange(n), LABELS
    )


def test_rows_follow_the_template_by_id_and_never_by_position() -> None:
    template = pd.DataFrame({"sample_id": ["z9", "a1", "m5"]} | {name: ["0"] * 3 for name in COLUMNS[1:]})
    table = fill_template(template, some_predictions(["a1", "m5", "extra", "z9"]))
    assert table["sample_id"].tolist() == ["z9", "a1", "m5"]
    assert table["predicted_latitude"].tolist() == [33, 30, 31]
    assert table["predicted_longitude"].tolist() == [-103, -100, -101]
    assert table[STATES].to_numpy().tolist() == [
        [41, 42, 49, 3, 8],
        [3, 8, 20, 41, 42],
        [8, 20, 41, 42, 49],
    ]


def test_other_columns_and_their_order_are_the_templates() -> None:
    template = pd.DataFrame(
        {
            "note": ["7,5", ""],
            "predicted_longitude": ["", ""],
            **{name: ["", ""] for name in STATES},
            "sample_id": ["b", "a"],
            "predicted_latitude": ["", ""],
            "image_north": ["007.jpg", "x"],
        }
    )
    table = fill_template(template, some_predictions(["a", "b"]))
    assert list(table) == list(template)
    assert table["note"].tolist() == ["7,5", ""]
    assert table["image_north"].tolist() == ["007.jpg", "x"]


def test_fewer_classes_than_ranks_leave_the_last_ranks_open() -> None:
    labels = LabelEncoder(np.array([3, 8, 20]), ("A", "B", "C"))
    predictions = Predictions(
        np.array(["a"], dtype=object),
        np.array([[0.2, 0.5, 0.3]], dtype=np.float32),
        np.ones(1),
        np.ones(1),
        labels,
    )
    template = pd.DataFrame({name: ["a" if name == "sample_id" else ""] for name in COLUMNS})
    assert fill_template(template, predictions)[STATES].to_numpy().tolist() == [[8, 20, 3, -1, -1]]


def test_a_sample_of_the_template_without_a_prediction_is_an_error() -> None:
    template = pd.DataFrame({name: ["a", "b"] for name in COLUMNS})
    with pytest.raises(GeoError, match=r"1 sample of the template has no prediction, 'b' first") as caught:
        fill_template(template, some_predictions(["a"]))
    assert "geo predict --split test" in caught.value.hint


def test_predictions_beyond_a_pole_of_an_earlier_version_are_written_as_points_that_there_are() -> None:
    predictions = some_predictions(["a", "b"])
    predictions.latitude[:], predictions.longitude[:] = [94.5, 40.25], [-100.1, 190.5]
    template = pd.DataFrame({name: ["a", "b"] for name in COLUMNS})
    table = fill_template(template, predictions)
    assert table["predicted_latitude"].tolist() == [90, 40.25]
    assert table["predicted_longitude"].tolist() == [-100.1, -169.5]
