"""Heads fitted on plain arrays are those that the same embeddings give by a CSV and a cache; arrays that don't fit are refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from rows import planted_arrays
from safetensors.numpy import load_file

from geo_embed.cache.exchange import cache_export, cache_import
from geo_embed.config import Config
from geo_embed.data.samples import load_samples, truth_of
from geo_embed.errors import GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import load_run
from geo_embed.settings import get_config

if TYPE_CHECKING:
    from conftest import Country


def settings(tmp_path: Path, **training: Any) -> Config:
    return get_config(
        paths={"runs_dir": str(tmp_path / "runs")}, training={"preset": "pigeon", "epochs": 2} | training
    )


def same_run(config: Config, first: str, second: str) -> None:
    one, other = (load_run(config.paths.runs_dir, name) for name in (first, second))
    tensors, others = load_file(one.heads_path), load_file(other.heads_path)
    assert tensors.keys() == others.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], others[name], err_msg=name)
    assert one.read_split().equals(other.read_split())
    assert set(one.read_split()["part"]) == {"train", "val"}
    assert one.read_metrics() == other.read_metrics()


def held_out_by(config: Config, name: str) -> list[str]:
    table = load_run(config.paths.runs_dir, name).read_split()
    return table["sample_id"][table["part"] == "val"].tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training__seeds": 2, "training__folds": 3, "training__validation": "spatial"},
        {"training__calibration": "temperature", "model__head": "geocells", "model__dtype": "float32"},
    ],
    ids=["plain", "spatial folds of two seeds", "calibrated cells in float32"],
)
def test_arrays_give_the_split_and_the_heads_that_a_csv_gives(
    country: Country, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = country.config(tmp_path, training__epochs=2, **changes)
    cached = cache_export(country.config(), "train", tmp_path / "train.npy")
    if "model__dtype" in changes:
        # The cache of this precision is an import.
        config = country.config(tmp_path, paths__cache_dir=tmp_path / "cache", training__epochs=2, **changes)
        cache_import(config, tmp_path / "train.npy", "train", "mine")
        by_csv = config.model_copy(
            update={"model": config.model.model_copy(update={"backbone_name": "mine"})}
        )
    else:
        by_csv = config
    samples = load_samples(config, "train")
    truth = truth_of(samples)
    fit_heads(by_csv, name="csv")
    given = cached.values.astype(np.float64)
    fit_heads(
        config,
        embeddings=given,
        states=truth.state_idx,
        latitude=truth.latitude,
        longitude=truth.longitude,
        sample_id=samples.sample_id,
        name="arrays",
    )
    same_run(config, "csv", "arrays")
    assert (given == cached.values).all()


def test_so_do_names_ids_of_letters_and_three_views_in_any_order_of_rows(tmp_path: Path) -> None:
    arrays = planted_arrays(80)
    views = ("a", "b", "c")
    names = sorted(set(arrays["states"]))
    data = tmp_path / "data"
    data.mkdir()
    pd.DataFrame({"state_idx": range(4), "state": names}).to_csv(data / "state_mapping.csv", index=False)
    rows = {name: arrays[name] for name in ("sample_id", "latitude", "longitude")}
    rows |= {f"image_{view}": [f"{id}-{view}.jpg" for id in arrays["sample_id"]] for view in views}
    rows |= {"state": arrays["states"], "state_idx": [names.index(name) for name in arrays["states"]]}
    pd.DataFrame(rows).to_csv(data / "train_ground_truth.csv", index=False)
    np.save(tmp_path / "x.npy", arrays["embeddings"])
    config = get_config(
        paths={
            "data_root": str(data),
            "cache_dir": str(tmp_path / "cache"),
            "runs_dir": str(tmp_path / "runs"),
        },
        model={"view_names": views, "backbone_name": "mine"},
        training={"preset": "pigeon", "epochs": 2, "val_split": 0.3},
    )
    cache_import(config, tmp_path / "x.npy", "train", "mine")
    fit_heads(config, name="csv")
    fit_heads(config, **arrays, name="arrays")
    same_run(config, "csv", "arrays")
    # By their ids the same samples are held out, whatever the order of the rows; without ids rows stand for them.
    order = np.random.default_rng(1).permutation(80)
    shuffled = {name: [column[row] for row in order] for name, column in arrays.items()}
    fit_heads(config, **shuffled, name="shuffled")
    fit_heads(config, **(shuffled | {"sample_id": None}), name="numbered")
    held_out = {name: set(held_out_by(config, name)) for name in ("csv", "shuffled")}
    assert held_out["csv"] == held_out["shuffled"]
    numbered = held_out_by(config, "numbered")
    assert {f"ort-{order[int(row)]}" for row in numbered} != held_out["csv"]


def test_names_become_classes_in_the_order_of_the_alphabet_and_views_get_names(tmp_path: Path) -> None:
    arrays = planted_arrays()
    fit = fit_heads(settings(tmp_path), **arrays, name="mine")
    assert repr(fit).startswith("<fit mine: score 0.")
    run = load_run(tmp_path / "runs", "mine")
    assert run.labels.names == tuple(sorted(set(arrays["states"])))
    assert run.labels.state_idx.tolist() == [0, 1, 2, 3]
    assert run.config.model.view_names == ("view_1", "view_2", "view_3")
    assert set(run.read_split()["sample_id"]) == set(arrays["sample_id"])


def test_views_that_the_settings_name_keep_their_names_or_are_refused(tmp_path: Path) -> None:
    config = get_config(
        paths={"runs_dir": str(tmp_path / "runs")},
        model={"view_names": ["a", "b", "c"]},
        training={"epochs": 1},
    )
    config = config.model_copy(update={"training": settings(tmp_path).training})
    fit_heads(config, **planted_arrays(), name="mine")
    assert load_run(tmp_path / "runs", "mine").config.model.view_names == ("a", "b", "c")
    with pytest.raises(GeoError, match=r"embeddings of 2 views, where model.view_names has 3: a, b, c"):
        fit_heads(config, **planted_arrays(views=2), name="other")
    assert not (tmp_path / "runs" / "other").exists()


def test_whatever_a_missing_view_holds_the_heads_are_the_same(tmp_path: Path) -> None:
    config, arrays = settings(tmp_path), planted_arrays()
    present = np.ones((40, 3), dtype=bool)
    present[::3, 1] = False
    for name, junk in (("nan", np.nan), ("huge", 1e300), ("zero", 0)):
        values = arrays["embeddings"].copy()
        values[~present] = junk
        fit_heads(config, **(arrays | {"embeddings": values}), present=present, name=name)
    same_run(config, "nan", "huge")
    same_run(config, "nan", "zero")


def test_the_arrays_that_are_given_stay_as_they_are(tmp_path: Path) -> None:
    arrays = planted_arrays()
    for dtype in (np.float16, np.float32):
        given = arrays["embeddings"].astype(dtype)
        before = given.copy()
        fit_heads(settings(tmp_path), **(arrays | {"embeddings": given}))
        assert (given == before).all()


def test_samples_with_the_same_embedding_stay_on_one_side(tmp_path: Path) -> None:
    arrays = planted_arrays(60)
    arrays["embeddings"][30:, 0] = arrays["embeddings"][:30, 0]
    fit_heads(settings(tmp_path, val_split=0.3), **arrays, name="tied")
    table = load_run(tmp_path / "runs", "tied").read_split().set_index("sample_id")["part"]
    sides = [{table[f"ort-{k}"], table[f"ort-{k + 30}"]} for k in range(30)]
    assert all(len(side) == 1 for side in sides)
    assert {"val"} in sides


def change(name: str, row: int, value: Any) -> dict[str, Any]:
    column = list(planted_arrays()[name])
    column[row] = value
    return {name: column}


def broken(value: float) -> dict[str, Any]:
    values = planted_arrays()["embeddings"]
    values[7, 2, 0] = value
    return {"embeddings": values}


@pytest.mark.parametrize(
    ("wrong", "what", "where"),
    [
        ({"embeddings": np.zeros(40)}, "embeddings of shape", "embeddings"),
        ({"embeddings": np.zeros((0, 3, 6))}, "embeddings of shape", "embeddings"),
        ({"embeddings": [[1.0], [1.0, 2.0]]}, "no array", "embeddings"),
        ({"embeddings": np.full((40, 3, 6), "x")}, "where floats are needed", "embeddings"),
        (broken(np.nan), "NaN or infinite", "embeddings, row 7, view 2"),
        (broken(-np.inf), "NaN or infinite", "embeddings, row 7, view 2"),
        (broken(1e6), "too large for float16", "embeddings, row 7, view 2"),
        ({"embeddings": np.full((40, 3, 6), 1e-9)}, "too small for float16", "embeddings, row 0, view 0"),
        (
            {"embeddings": planted_arrays(39)["embeddings"]},
            "where there are embeddings of 39 samples",
            "states",
        ),
        ({"latitude": np.zeros((40, 1))}, "latitude of shape", "latitude"),
        ({"longitude": None}, "there is no longitude", "fit_heads"),
        ({"limit": 5}, "limit goes with the cached split", "fit_heads"),
        (change("latitude", 3, np.nan), "nan is no latitude", "latitude, row 3"),
        (change("latitude", 3, 90.5), "90.5 is no latitude", "latitude, row 3"),
        (change("longitude", 4, "east"), "isn't all numbers", "longitude"),
        (change("states", 5, None), "None is no state", "states, row 5"),
        ({"states": np.arange(40.0)}, "0.0 is no state", "states, row 0"),
        (change("states", 6, " "), "' ' is no state", "states, row 6"),
        (change("sample_id", 9, "ort-3"), "the id 'ort-3' is repeated", "sample_id"),
        ({"present": np.ones((40, 2), dtype=bool)}, "where bool of shape", "present"),
        ({"present": np.ones((40, 3))}, "where bool of shape", "present"),
        ({"present": np.arange(40)[:, None] + [0, 0, 0] != 11}, "1 sample has no view", "present, row 11"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name_and_leave_no_run(
    tmp_path: Path, wrong: dict[str, Any], what: str, where: str
) -> None:
    with pytest.raises(GeoError) as caught:
        fit_heads(settings(tmp_path), **(planted_arrays() | wrong), name="mine")
    assert what in caught.value.what
    assert caught.value.where == where
    assert not (tmp_path / "runs").exists()


def test_what_needs_a_csv_or_a_store_says_that_there_is_none(country: Country, tmp_path: Path) -> None:
    # Beside a dataset that is another one: its samples are not the run's.
    config = country.config(tmp_path, training__epochs=1)
    plain = config.model_copy(update={"model": get_config(model={"device": "cpu"}).model})
    fit_heads(plain, **planted_arrays(), name="mine")
    run = load_run(config.paths.runs_dir, "mine")
    assert evaluate(config, run, by=["class"])["samples"] == 4
    for needing in (
        lambda: evaluate(config, run, by=["border"]),
        lambda: evaluate(config, run, "train"),
        lambda: submit(config, run),
    ):
        with pytest.raises(GeoError, match="fitted on arrays"):
            needing()
