"""Which run is better is told by samples that both held out, each drawn for both."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small import saved_predictions

from geo_embed.answers import LabelEncoder, Predictions
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.metrics import (
    STATE_WEIGHT,
    difference_interval,
    difference_intervals,
    metrics,
)
from geo_embed.prediction.difference import compare_runs
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.table import write_predictions

VAL = "val_predictions.parquet"


def second(run: Run, keep: Any = slice(None), *, wrong: Any = slice(0, 0)) -> Run:
    """A copy of a run that held some of its samples out, and puts some of these (rows) at the other end of the world."""
    copy = run.path.with_name("second")
    shutil.copytree(run.path, copy)
    predictions, truth = saved_predictions(run.path / VAL)
    assert truth is not None
    latitude, longitude = predictions.latitude.copy(), predictions.longitude.copy()
    latitude[wrong], longitude[wrong] = -truth.latitude[wrong], truth.longitude[wrong] + 90
    shares = predictions.probabilities.copy()
    shares[wrong] = shares[wrong][:, ::-1]
    moved = Predictions(predictions.sample_id, shares, latitude, longitude, predictions.labels)
    write_predictions(copy / VAL, moved.take(keep), truth.take(keep))
    table = pd.read_parquet(copy / "split.parquet")
    held_out = set(moved.take(keep).sample_id)
    table["part"] = ["val" if str(sample) in held_out else "train" for sample in table["sample_id"]]
    table.to_parquet(copy / "split.parquet", index=False)
    return load_run(run.path.parent, "second")


def test_a_run_and_its_copy_do_not_differ(run: Run) -> None:
    second(run)
    same = compare_runs(run.path.parent, "first", "second")
    assert (same.difference, same.interval) == (0, (0, 0))
    assert (same.state_score.interval, same.gps_score.interval) == ((0, 0), (0, 0))
    assert [scored.left_out for scored in same.runs] == [0, 0]


def test_the_better_run_is_told_with_its_parts_and_the_order_turns_the_sign(run: Run) -> None:
    other = second(run, wrong=slice(0, 6))
    forth = compare_runs(run.path.parent, "first", "second")
    back = compare_runs(run.path.parent, "second", "first")
    scores = [metrics(*saved_predictions(path / VAL)) for path in (run.path, other.path)]  # type: ignore[arg-type]
    assert forth.difference == pytest.approx(scores[0]["score"] - scores[1]["score"])
    assert forth.gps_score.difference == pytest.approx(scores[0]["gps_score"] - scores[1]["gps_score"])
    assert forth.state_score.difference == pytest.approx(scores[0]["state_score"] - scores[1]["state_score"])
    assert forth.samples == scores[0]["samples"]
    low, high = forth.interval
    assert low is not None
    assert high is not None
    assert 0 < low < forth.difference < high
    assert (back.difference, back.interval) == (-forth.difference, pytest.approx((-high, -low)))


def test_parts_are_drawn_as_the_whole_is() -> None:
    random = np.random.default_rng(0)
    a, b = ((random.uniform(size=40), np.full(40, km)) for km in (100.0, 600.0))
    parts = difference_intervals(a, b)
    low, high = difference_interval(a, b)
    assert low is not None
    assert high is not None
    # The points' part is the same in every draw: what the whole varies by is the states'.
    assert parts["gps_score"] == pytest.approx((0.1, 0.1))
    assert parts["state_score"] == pytest.approx(((low - 0.03) / STATE_WEIGHT, (high - 0.03) / STATE_WEIGHT))
    alone = (np.ones(1), np.ones(1))
    assert difference_intervals(alone, alone)["state_score"] == (None, None)


def test_only_samples_that_both_held_out_count_and_the_others_are_told(run: Run) -> None:
    predictions, truth = saved_predictions(run.path / VAL)
    assert truth is not None
    kept = np.arange(len(truth)) >= 4
    split = second(run, kept).path / "split.parquet"
    # One of the four was not there yet when the second was fitted.
    table = pd.read_parquet(split)
    table[table["sample_id"].astype(str) != predictions.sample_id[0]].to_parquet(split, index=False)
    compared = compare_runs(run.path.parent, "first", "second")
    first, other = compared.runs
    assert compared.samples == len(truth) - 4
    assert (first.held_out, first.left_out, first.trained_on_by_other) == (len(truth), 4, 3)
    assert (other.left_out, other.trained_on_by_other) == (0, 0)
    assert first.score == pytest.approx(metrics(predictions.take(kept), truth.take(kept))["score"])


def test_states_are_compared_by_their_index_whatever_a_run_calls_its_classes(run: Run) -> None:
    other = second(run)
    predictions, truth = saved_predictions(run.path / VAL)
    order = np.random.default_rng(1).permutation(len(run.labels))
    labels = LabelEncoder(run.labels.state_idx[order], tuple(run.labels.names[k] for k in order))
    path = other.path / "labels.json"
    described = json.loads(path.read_text())
    described["classes"] = [{**described["classes"][k], "class": c} for c, k in enumerate(order)]
    path.write_text(json.dumps(described))
    shuffled = Predictions(
        predictions.sample_id,
        predictions.probabilities[:, order],
        predictions.latitude,
        predictions.longitude,
        labels,
    )
    write_predictions(other.path / VAL, shuffled, truth)
    assert compare_runs(run.path.parent, "first", "second").state_score.difference == pytest.approx(
        0, abs=0.02
    )


def test_places_are_drawn_together_where_either_run_was_split_by_place(run: Run) -> None:
    other = second(run, wrong=slice(0, 3))
    assert compare_runs(run.path.parent, "first", "second").groups is None
    path = other.path / "config.toml"
    path.write_text(
        path.read_text()
        .replace('validation = "random"', 'validation = "spatial"')
        .replace("group_km = 5.0", "group_km = 400.0")
    )
    grouped = compare_runs(run.path.parent, "first", "second")
    assert grouped.groups is not None
    assert 1 < grouped.groups < grouped.samples
    assert [scored.validation for scored in grouped.runs] == ["random", "spatial"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"true_latitude": 1.0}, "another truth than first: 2 samples"),
        ({"sample_id": 100_000}, "no sample in common"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(run: Run, change: dict[str, float], what: str) -> None:
    other = second(run)
    table = pd.read_parquet(other.path / VAL)
    for column, by in change.items():
        table.loc[: 1 if column == "true_latitude" else len(table), column] += by
    table.to_parquet(other.path / VAL, index=False)
    with pytest.raises(GeoError, match=what) as caught:
        compare_runs(run.path.parent, "first", "second")
    assert caught.value.hint


def test_a_run_is_not_compared_with_itself_and_an_unknown_one_is_named(config: Config, run: Run) -> None:
    with pytest.raises(GeoError, match="compared with itself"):
        compare_runs(config.paths.runs_dir, "first", str(run.path))
    with pytest.raises(GeoError, match="there is no run 'second'"):
        compare_runs(config.paths.runs_dir, "first", "second")
