"""Embeddings in plain arrays are kept as a store would keep them, and refused where it would refuse them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from geo_embed.cache.arrays import check_embeddings
from geo_embed.errors import GeoError


@pytest.mark.parametrize("form", [np.float16, np.float32, np.float64, list])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_embeddings_are_copied_into_the_stores_precision(form: Any, dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(5000, 2, 3)).astype(np.float16)
    array = values.tolist() if form is list else values.astype(form)
    kept, present = check_embeddings(array, dtype=dtype)
    assert kept.dtype == (np.float32 if dtype == "float32" else np.float16)
    assert (kept == values).all()
    assert present.all()
    assert present.shape == (5000, 2)
    assert not np.shares_memory(kept, array) if form is not list else True


def test_one_view_needs_no_axis_and_a_missing_one_is_zero_whatever_it_holds() -> None:
    values = np.array([[1.0, 2.0], [np.nan, 1e300]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, present = check_embeddings(values, [True, False], dtype="auto")
    assert kept.tolist() == [[[1, 2]], [[0, 0]]]
    assert present.tolist() == [[True], [False]]


@pytest.mark.parametrize("row", [0, 4095, 4096, 4999])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_an_embedding_that_is_not_finite_is_named_in_whatever_block_it_lies(row: int, kind: Any) -> None:
    values = np.ones((5000, 2, 3), dtype=kind)
    values[row, 1, 2] = np.nan
    with pytest.raises(GeoError, match="NaN or infinite") as caught:
        check_embeddings(values, dtype="auto")
    assert caught.value.where == f"embeddings, row {row}, view 1"
    present = np.ones((5000, 2), dtype=bool)
    present[row, 1] = False
    assert check_embeddings(values, present, dtype="auto")[0][row, 1].tolist() == [0, 0, 0]


def test_numbers_that_only_float32_can_hold_are_taken_where_it_is_asked_for() -> None:
    for number, what in ((1e6, "too large for float16"), (1e-9, "too small for float16")):
        values = np.full((1, 1, 4), number)
        with pytest.raises(GeoError, match=what) as caught:
            check_embeddings(values, dtype="auto")
        assert "model.dtype=float32" in caught.value.hint
        np.testing.assert_allclose(check_embeddings(values, dtype="float32")[0], values)
