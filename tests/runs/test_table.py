"""A prediction table tells what its predictions were made from, and is read by people with any other tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.runs.table import read_predictions, read_stores, write_predictions

LABELS = LabelEncoder(np.array([3, 8]), ("A", "B"))


def predictions(count: int = 2) -> Predictions:
    shares = np.tile(np.array([0.25, 0.75], dtype=np.float32), (count, 1))
    ids = np.array([str(i) for i in range(count)], dtype=object)
    return Predictions(ids, shares, np.arange(count) / 3, -np.arange(count) / 7, LABELS)


def test_what_a_table_was_made_from_comes_back_and_changes_nothing_in_it(tmp_path: Path) -> None:
    stores = {"0123abcd": "f" * 64, "4567": "0" * 64}
    write_predictions(tmp_path / "noted.parquet", predictions(), None, stores)
    write_predictions(tmp_path / "plain.parquet", predictions(), None)
    assert read_stores(tmp_path / "noted.parquet") == stores
    assert read_stores(tmp_path / "plain.parquet") is None
    noted, plain = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("noted", "plain"))
    pd.testing.assert_frame_equal(noted, plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noted.parquet", "plain.parquet"]


@pytest.mark.parametrize("damage", ["absent", "no parquet", "cut", "another's note"])
def test_a_table_that_tells_nothing_of_its_stores_is_no_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.parquet"
    write_predictions(path, predictions(), None, {"a": "b"})
    if damage == "absent":
        path.unlink()
    elif damage == "no parquet":
        path.write_text("text")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        table = parquet.read_table(path)
        parquet.write_table(table.replace_schema_metadata({b"geo_embed.stores": b'["a", "b!'}), path)
    assert read_stores(path) is None


@pytest.mark.parametrize("with_truth", [True, False])
def test_a_table_without_rows_keeps_the_number_of_classes(tmp_path: Path, with_truth: bool) -> None:
    truth = Truth(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)) if with_truth else None
    write_predictions(tmp_path / "empty.parquet", predictions(0), truth)
    again, true = read_predictions(tmp_path / "empty.parquet", LABELS)
    assert again.probabilities.shape == (0, 2)
    assert (true is None) == (truth is None)
