"""A held-out sample that a training sample gives away is found, by its place, its embedding or one of its views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Country
from small import Small, command

from geo_embed.cache.exchange import cache_import
from geo_embed.cache.find import find_store
from geo_embed.cache.store import open_store, read_content_hash
from geo_embed.config import Config
from geo_embed.data.holdout import stratified_split
from geo_embed.data.samples import load_samples, truth_of
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.fitting.examples import open_training_data
from geo_embed.fitting.leaks import CachedViews, Leak, check_leaks, leaks
from geo_embed.geography import haversine_km
from geo_embed.metrics import competition_score
from geo_embed.runs.run import load_run

# Along a meridian.
KM = 1 / 111.19492664455873


def strangers(n: int = 40, dtype: str = "float16") -> tuple[np.ndarray, np.ndarray, np.ndarray, CachedViews]:
    """Held out: every fourth. Places a degree apart, embeddings at random about a large common part."""
    values = np.random.default_rng(0).normal(5, 1, (n, 3, 16)).astype(dtype)
    hashes = np.random.default_rng(1).permutation(n * 3).reshape(n, 3).astype(np.uint64)
    views = CachedViews(values, np.ones((n, 3), dtype=bool), hashes)
    return np.arange(n) % 4 == 0, np.arange(n, dtype=float), np.zeros(n), views


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_strangers_do_not_leak_though_their_embeddings_share_a_large_common_part(dtype: str) -> None:
    val, latitude, longitude, views = strangers(dtype=dtype)
    assert leaks(val, latitude, longitude, views) == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_planted_leak_of_each_kind_is_found_and_nothing_else(dtype: str) -> None:
    val, latitude, longitude, views = strangers(dtype=dtype)
    latitude[8] = latitude[13] + 0.05 * KM
    views.values[4] = views.values[21] + np.random.default_rng(1).normal(0, 0.004, (3, 16)).astype(dtype)
    views.content_hash[12, 0] = views.content_hash[30, 2]
    # Alike and close, but on the same side of the split.
    for row, twin in ((17, 18), (20, 24)):
        views.values[row], latitude[row], views.content_hash[row] = (
            views.values[twin],
            latitude[twin],
            views.content_hash[twin],
        )
    place, embedding, view = leaks(val, latitude, longitude, views)
    assert (place.kind, place.held_out, place.training) == ("place", 8, 13)
    assert place.value == pytest.approx(0.05, rel=1e-6)
    assert (embedding.kind, embedding.held_out, embedding.training) == ("embedding", 4, 21)
    assert 0.999 <= embedding.value <= 1
    assert (view.kind, view.held_out, view.training, view.value) == ("view", 12, 30, 1.0)


def test_the_limits_of_a_leak_are_the_callers() -> None:
    val, latitude, longitude, views = strangers()
    latitude[8] = latitude[13] + 0.5 * KM
    views.values[4] = views.values[21] + np.random.default_rng(1).normal(0, 0.1, (3, 16))
    assert leaks(val, latitude, longitude, views) == []
    assert leaks(val, latitude, longitude, views, km=0.4) == []
    found = leaks(val, latitude, longitude, views, km=0.6, cosine=0.95)
    assert [(leak.kind, leak.held_out) for leak in found] == [("place", 8), ("embedding", 4)]


def test_views_that_are_missing_on_both_sides_are_no_leak() -> None:
    val, latitude, longitude, views = strangers()
    present = views.present.copy()
    present[::3, 1] = False
    present[[4, 5]] = False
    views.values[~present], views.content_hash[~present] = 0, 0
    assert leaks(val, latitude, longitude, replace(views, present=present)) == []
    assert {leak.kind for leak in leaks(val, latitude, longitude, views)} == {"view", "embedding"}


@pytest.mark.parametrize("cosine", [0.999, 0.9, 0.5, -1.0])
def test_of_each_held_out_sample_the_most_similar_one_is_found_as_by_comparing_them_all(
    cosine: float,
) -> None:
    rng = np.random.default_rng(5)
    n, dim = 300, 48
    base = rng.normal(size=(n, dim))
    # Neighbours at all distances, in a space where a few directions dominate.
    base[1::2] = base[::2] + rng.normal(size=(n // 2, dim)) * np.geomspace(1e-3, 3, n // 2)[:, None]
    values = (base * np.geomspace(10, 0.5, dim))[:, None].astype(np.float32)
    views = CachedViews(values, np.ones((n, 1), dtype=bool), np.arange(1, n + 1, dtype=np.uint64)[:, None])
    val = np.arange(n) % 3 == 0
    far_apart = rng.permutation(n) / n * 100 - 50

    found = leaks(val, far_apart, far_apart, views, cosine=cosine)

    centred = values[:, 0].astype(np.float64) - values[:, 0].mean(axis=0, dtype=np.float64)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = unit[val] @ unit[~val].T
    expected = {
        int(np.flatnonzero(val)[k]): int(np.flatnonzero(~val)[cosines[k].argmax()])
        for k in np.flatnonzero(cosines.max(axis=1) >= cosine)
    }
    assert {leak.held_out: leak.training for leak in found if leak.kind == "embedding"} == expected
    assert len(expected) > 3


def test_without_embeddings_places_are_compared_alone_and_an_empty_part_leaks_nothing() -> None:
    val, latitude, longitude, views = strangers()
    latitude[8], views.values[4] = latitude[13], views.values[21]
    assert [leak.kind for leak in leaks(val, latitude, longitude, None)] == ["place"]
    assert leaks(np.zeros(40, dtype=bool), latitude, longitude, views) == []
    assert leaks(np.ones(40, dtype=bool), latitude, longitude, views) == []


# ---------------------------------------------------------------- the command


def test_a_dataset_without_leaks_passes_the_check(
    country: Country, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = command(capsys, *country.options(), "--json", "data", "leaks", "--km", "0.001")
    assert ran.code == 0, ran.out
    assert ran.json == {"held_out": 13, "training": 115, "leaking": 0, "embeddings": True, "leaks": []}


@pytest.mark.cut(train=3)
def test_where_nothing_is_held_out_there_is_nothing_to_check(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = command(capsys, *small.options(), "data", "leaks")
    assert ran.code == 0, ran.err
    assert "held out  0 samples: nothing is held out, so there is nothing to check" in ran.out
    assert "leaking" not in ran.out


def move_next_to_a_training_sample(own: Country) -> tuple[str, str]:
    """One held-out sample of a random split, to the place of one in training."""
    config = own.config()
    table = pd.read_csv(own.train_csv)
    labels = np.unique(table["state_idx"], return_inverse=True)[1]
    ids = table["sample_id"].astype(str).to_numpy(dtype=object)
    val = stratified_split(ids, labels, config.training.val_split, config.training.split_seed)
    held_out, training = np.flatnonzero(val)[0], np.flatnonzero(~val)[0]
    for column in ("latitude", "longitude"):
        table.loc[held_out, column] = table.loc[training, column]
    table.to_csv(own.train_csv, index=False)
    return ids[held_out], ids[training]


def test_a_leak_is_named_with_both_samples_and_the_exit_code_of_a_failed_check(
    own: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out, training = move_next_to_a_training_sample(own)
    ran = command(capsys, *own.options(), "data", "leaks")
    assert ran.code == 3
    assert f"{held_out} is held out, {training} is not (0.000 km)" in ran.out
    assert "--set training.validation=spatial" in ran.err
    as_json = command(capsys, *own.options(), "--json", "data", "leaks").json
    assert as_json["leaking"] == 1
    assert as_json["leaks"] == [{"kind": "place", "held_out": held_out, "training": training, "value": 0.0}]


def one_of_each_part(config: Config) -> tuple[int, int]:
    """Rows of a random split: one held out, one in training."""
    samples = load_samples(config, "train")
    labels = np.unique(truth_of(samples).state_idx, return_inverse=True)[1]
    val = stratified_split(samples.sample_id, labels, config.training.val_split, config.training.split_seed)
    return int(np.flatnonzero(val)[0]), int(np.flatnonzero(~val)[0])


def usual_split(config: Config) -> tuple[np.ndarray, CachedViews]:
    """The split as it would be if nothing were known of shared pictures, and what is cached."""
    examples = open_training_data(config).examples
    content = read_content_hash(find_store(config, "train"))
    val = stratified_split(
        examples.sample_id, examples.labels, config.training.val_split, config.training.split_seed
    )
    return val, CachedViews(examples.values, examples.present, content)


def assert_found_and_kept_together(config: Config, held_out: int, training: int) -> None:
    val, views = usual_split(config)
    zeros = np.zeros(len(val))
    far = np.arange(len(val)) * 2.0
    found = [leak for leak in leaks(val, zeros, far, views, km=0) if leak.kind == "view"]
    assert found == [Leak("view", held_out, training, 1.0)]
    # And the split that is made knows of it.
    assert [leak for leak in check_leaks(config, km=0).leaks if leak["kind"] == "view"] == []


def test_the_same_image_on_both_sides_is_found_and_no_split_has_it_there(own: Country) -> None:
    held_out, training = one_of_each_part(own.config())
    samples = load_samples(own.config(), "train")
    north, west = (samples.view_names.index(view) for view in ("north", "west"))
    image = samples.image_root / str(samples.images[held_out, west])
    image.write_bytes((samples.image_root / str(samples.images[training, north])).read_bytes())
    extract(own.config(), "train")
    assert_found_and_kept_together(own.config(), held_out, training)


def test_a_placeholder_on_both_sides_is_a_leak_that_no_split_can_avoid(own: Country) -> None:
    samples = load_samples(own.config(), "train")
    blank = (samples.image_root / str(samples.images[0, 0])).read_bytes()
    for row in range(1, 60):
        (samples.image_root / str(samples.images[row, 2])).write_bytes(blank)
    extract(own.config(), "train")
    assert any(leak["kind"] == "view" for leak in check_leaks(own.config(), km=0).leaks)


def test_the_same_embedding_imported_on_both_sides_is_found_likewise(config: Config, tmp_path: Path) -> None:
    held_out, training = one_of_each_part(config)
    samples = load_samples(config, "train")
    values = np.random.default_rng(0).normal(size=(*samples.images.shape, 8)).astype(np.float16)
    values[held_out, 3] = values[training, 0]
    np.save(tmp_path / "train.npy", values)
    paths = config.paths.model_copy(update={"cache_dir": tmp_path / "cache"})
    model = config.model.model_copy(update={"backbone_name": "mine"})
    config = config.model_copy(update={"paths": paths, "model": model})
    cache_import(config, tmp_path / "train.npy", "train", "mine")
    assert_found_and_kept_together(config, held_out, training)


def test_a_spatial_split_and_spatial_folds_leak_no_place(own: Country) -> None:
    move_next_to_a_training_sample(own)
    random = [
        check_leaks(own.config(training__folds=3, training__split_seed=seed)).leaks for seed in range(4)
    ]
    assert any(random)
    for changes in ({}, {"training__folds": 3}):
        found = check_leaks(own.config(training__validation="spatial", training__group_km=1.0, **changes))
        assert found.held_out > 10
        assert found.leaks == []


def test_without_a_cache_the_check_says_that_it_compares_places_alone(
    own: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check_leaks(own.config(paths__cache_dir="nowhere"))
    assert not found.embeddings
    assert "places alone are compared" in capsys.readouterr().err


def test_a_store_of_another_csv_is_an_error_and_one_that_cannot_be_compared_a_warning(
    own: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(own.store())
    values = np.asarray(store.embeddings[:])
    values[7, 0, 0] = np.nan
    store.embeddings[:] = values
    assert not check_leaks(own.config()).embeddings
    assert "NaN or infinite" in capsys.readouterr().err
    pd.read_csv(own.train_csv).iloc[1:].to_csv(own.train_csv, index=False)
    with pytest.raises(GeoError, match="no longer fits"):
        check_leaks(own.config())


def score_of_others(table: pd.DataFrame, held_out: str) -> float:
    """The score of a prediction table without one sample."""
    others = table[table.sample_id.astype(str) != held_out]
    assert len(others) == len(table) - 1
    ranked = others[[f"state_idx_{rank}" for rank in range(1, 6)]].to_numpy()
    km = haversine_km(*others[["latitude", "longitude", "true_latitude", "true_longitude"]].to_numpy(float).T)
    return competition_score(ranked, others.true_state_idx.to_numpy(), km)[0]


def test_a_fit_says_how_many_held_out_samples_have_a_near_twin_and_what_the_others_score(
    own: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out, _ = move_next_to_a_training_sample(own)
    ran = command(capsys, *own.options(), "--json", "fit-heads", "--preset", "pigeon", "--name", "fit")

    table = pd.read_parquet(own.config().paths.runs_dir / "fit" / "val_predictions.parquet")
    score = score_of_others(table, held_out)
    assert ran.json["twins"] == {"samples": 1, "score_without": pytest.approx(score)}
    # One of thirteen is many.
    assert f"1 of {len(table)} held-out samples have a near twin" in ran.err
    assert "--set training.validation=spatial" in ran.err
    split = own.config().paths.runs_dir / "fit" / "split.parquet"
    assert f"(near_twin in {split})" in ran.err
    named = pd.read_parquet(split)
    assert named.sample_id[named.near_twin].astype(str).tolist() == [held_out]

    options = [*own.options(), "--set", "training.validation=spatial"]
    by_place = command(capsys, *options, "fit-heads", "--preset", "pigeon", "--name", "by-place")
    assert "near twins" in by_place.out
    assert "0 held-out samples" in by_place.out


def test_sweeps_ensembles_and_calibrated_runs_say_it_as_well(
    own: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out, _ = move_next_to_a_training_sample(own)
    runs_dir, options = own.config().paths.runs_dir, own.options()
    quick = [*options, "--set", "training.epochs=2"]

    def check(twins: dict[str, Any], run: str) -> None:
        table = pd.read_parquet(runs_dir / run / "val_predictions.parquet")
        assert twins == {"samples": 1, "score_without": pytest.approx(score_of_others(table, held_out))}
        assert load_run(runs_dir, run).read_all_metrics()["twins"] == twins

    swept = command(capsys, *quick, "--json", "sweep", "--trials", "1", "--name", "first").json
    check(swept["best"]["twins"], "first")
    again = command(capsys, *quick, "sweep", "--trials", "1", "--name", "first")
    assert "1 held-out sample has one in training; score without them" in again.out
    command(capsys, *quick, "--quiet", "fit-heads", "--preset", "pigeon", "--seed", "1", "--name", "second")
    # What a run's own copy of the split forgets, another one's tells.
    forgetful = runs_dir / "first" / "split.parquet"
    pd.read_parquet(forgetful).drop(columns="near_twin").to_parquet(forgetful, index=False)
    both = command(capsys, *options, "--json", "ensemble", "first", "second", "--name", "both").json
    check(both["twins"], "both")
    said = command(capsys, *options, "ensemble", "first", "second", "--name", "again")
    assert "1 held-out sample has one in training; score without them" in said.out
    command(capsys, *options, "--quiet", "calibrate", "second", "--kind", "vector")
    check(load_run(runs_dir, "second").read_all_metrics()["twins"], "second")


def test_of_runs_of_earlier_versions_nothing_is_said(
    own: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    runs_dir = own.config().paths.runs_dir
    for seed in ("0", "1"):
        command(
            capsys, *own.options(), "-q", "fit-heads", "--preset", "pigeon", "--seed", seed, "--name", seed
        )
        split = runs_dir / seed / "split.parquet"
        pd.read_parquet(split).drop(columns="near_twin").to_parquet(split, index=False)
    said = command(capsys, *own.options(), "ensemble", "0", "1", "--name", "both")
    assert said.code == 0
    assert "near twins" not in said.out
    assert "twins" not in load_run(runs_dir, "both").read_all_metrics()
