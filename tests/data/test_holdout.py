"""Held-out samples are what they say: apart in place where asked, the same for any order of rows, and never leaky."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Country
from small import command

from geo_embed.config import Config, Training
from geo_embed.data.holdout import ALWAYS_TRAINING, folds, held_out, stratified_split
from geo_embed.data.spatial import resampling_groups, spatial_groups
from geo_embed.errors import GeoError
from geo_embed.fitting.leaks import check_leaks, leaks
from geo_embed.geography import distance_matrix_km, to_degrees

# Along a meridian.
KM = 1 / 111.19492664455873
Places = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def towns(count: int = 60, seed: int = 0) -> Places:
    """Ids, classes and places: towns a few km wide, far from one another, one class for each four of them."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 9, count)
    town = np.repeat(np.arange(count), sizes)
    latitude = 30 + (town // 8) * 2.0 + random.normal(0, 1.5, len(town)) * KM
    longitude = -110 + (town % 8) * 4.0 + random.normal(0, 1.5, len(town)) * KM
    ids = np.array([f"s{n}" for n in random.permutation(len(town))], dtype=object)
    return ids, town // 4, latitude, longitude


def spatial(**changes: Any) -> Training:
    return Training(**({"validation": "spatial", "group_km": 20.0} | changes))


def nearest_km(one: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> float:
    """From the samples of a part to the others."""
    distances = distance_matrix_km(np.stack([latitude, longitude], axis=1))
    return float(distances[one][:, ~one].min())


# ---------------------------------------------------------------- groups


def test_a_chain_of_steps_is_one_group_and_a_longer_step_ends_it() -> None:
    latitude = np.array([0, 9, 18, 27, 38, 47]) * KM
    assert spatial_groups(latitude, np.zeros(6), 10).tolist() == [0, 0, 0, 0, 1, 1]
    assert spatial_groups(latitude, np.zeros(6), 8.9).tolist() == [0, 1, 2, 3, 4, 5]
    assert spatial_groups(latitude, np.zeros(6), 11.1).tolist() == [0] * 6


def test_groups_cross_the_antimeridian_and_the_pole() -> None:
    assert spatial_groups(np.zeros(2), np.array([179.99, -179.99]), 3).tolist() == [0, 0]
    assert spatial_groups(np.array([89.99, 89.99]), np.array([0.0, 180.0]), 3).tolist() == [0, 0]
    assert spatial_groups(np.array([-90.0, 90.0]), np.zeros(2), 30_000).tolist() == [0, 0]
    assert spatial_groups(np.array([-90.0, 90.0]), np.zeros(2), 19_000).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(40))
def test_groups_are_the_connected_components_that_all_pairwise_distances_give(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, spread = int(random.integers(2, 250)), 10 ** random.uniform(-3, 1.5)
    middle = random.integers(6, size=n)
    latitude = np.clip(random.uniform(-80, 80, 6)[middle] + random.normal(0, spread, n), -90, 90)
    longitude = (random.uniform(-180, 180, 6)[middle] + random.normal(0, spread, n) + 180) % 360 - 180
    km = spread * 111 * 10 ** random.uniform(-1.5, 0.7)
    near = distance_matrix_km(np.stack([latitude, longitude], axis=1)) <= km
    reach = near
    while not np.array_equal(reach, wider := (reach.astype(np.int64) @ near) > 0):
        reach = wider
    group = spatial_groups(latitude, longitude, km)
    assert np.array_equal(group[:, None] == group[None, :], reach)
    firsts = np.unique(group, return_index=True)[1]
    assert (np.diff(firsts) > 0).all()


def test_a_pair_a_hair_farther_apart_than_a_step_is_never_one_group() -> None:
    # Along the diagonal of the cubes that samples are put into, where a cube reaches farthest.
    along = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
    turn = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)[:, None]
    places = np.cos(turn) * np.array([1, -1, 0]) / np.sqrt(2) + np.sin(turn) * np.array([1, 1, -2]) / np.sqrt(
        6
    )
    places = places + along * np.random.default_rng(0).random((20_000, 1)) * 0.1 / 6371
    for stretch, groups in ((1.001, 40_000), (0.999, 20_000)):
        pairs = np.concatenate([places, places + along * 0.1 / 6371 * stretch])
        assert len(np.unique(spatial_groups(*to_degrees(pairs), 0.1))) == groups


def test_thousands_of_samples_of_one_town_need_no_graph_of_all_their_pairs() -> None:
    random = np.random.default_rng(0)
    # 1.6 billion pairs lie within a step.
    latitude = np.append(40 + random.normal(0, 2, 40_000) * KM, 50)
    assert np.bincount(spatial_groups(latitude, np.zeros(40_001), 100)).tolist() == [40_000, 1]


# ---------------------------------------------------------------- held out


def test_random_validation_is_the_stratified_split() -> None:
    ids, labels, latitude, longitude = towns()
    for seed in (0, 1):
        chosen = held_out(ids, labels, latitude, longitude, Training(seed=seed))
        assert np.array_equal(chosen, stratified_split(ids, labels, 0.1, seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("km", [1.0, 5.0, 20.0])
def test_no_held_out_sample_lies_within_group_km_of_a_training_sample(seed: int, km: float) -> None:
    ids, labels, latitude, longitude = towns(seed=seed)
    chosen = held_out(ids, labels, latitude, longitude, spatial(group_km=km, seed=seed))
    assert nearest_km(chosen, latitude, longitude) > km
    # The random split would not have passed.
    assert nearest_km(stratified_split(ids, labels, 0.1, seed), latitude, longitude) < 20


@pytest.mark.parametrize("val_split", [0.1, 0.25, 0.5])
def test_about_the_share_is_held_out_and_every_class_keeps_a_training_sample(val_split: float) -> None:
    for seed in range(5):
        ids, labels, latitude, longitude = towns(seed=seed)
        training = spatial(val_split=val_split, seed=seed)
        chosen = held_out(ids, labels, latitude, longitude, training)
        assert abs(chosen.mean() - val_split) < 0.05
        assert set(labels[~chosen]) == set(labels)


def test_small_groups_are_held_out_in_every_class_alike() -> None:
    ids = np.array([str(n) for n in range(400)], dtype=object)
    labels = np.repeat(np.arange(4), 100)
    # Pairs a kilometre apart, the pairs far from one another.
    latitude = np.arange(200).repeat(2) * 0.2 + np.tile([0, KM], 200)
    chosen = held_out(ids, labels, latitude, np.zeros(400), spatial(val_split=0.2, group_km=2.0))
    assert np.bincount(labels[chosen]).tolist() == [20, 20, 20, 20]
    assert (chosen[0::2] == chosen[1::2]).all()


@pytest.mark.parametrize("choose", [held_out, folds])
@pytest.mark.parametrize("validation", ["random", "spatial"])
def test_the_choice_comes_from_the_seed_and_not_from_the_order_of_rows(
    choose: Callable[..., np.ndarray], validation: str
) -> None:
    ids, labels, latitude, longitude = towns()
    training = spatial(validation=validation, folds=4, seed=3)
    chosen = choose(ids, labels, latitude, longitude, training)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(ids))
        again = choose(ids[order], labels[order], latitude[order], longitude[order], training)
        assert np.array_equal(again, chosen[order])
    other = choose(ids, labels, latitude, longitude, training.model_copy(update={"seed": 4}))
    assert not np.array_equal(other, chosen)


def test_a_group_that_is_too_large_to_hold_out_stays_in_training() -> None:
    ids = np.array([str(n) for n in range(100)], dtype=object)
    # Ninety samples of one town, ten lonely ones.
    latitude = np.append(np.full(90, 40.0), 50 + np.arange(10))
    for seed in range(10):
        chosen = held_out(ids, np.zeros(100, dtype=np.int64), latitude, np.zeros(100), spatial(seed=seed))
        assert not chosen[:90].any()
        assert chosen[90:].sum() == 10


def test_a_class_of_one_group_is_never_held_out_and_a_class_of_one_sample_neither() -> None:
    ids = np.array([str(n) for n in range(44)], dtype=object)
    labels = np.repeat([0, 1, 2], [40, 3, 1])
    latitude = np.concatenate([np.arange(40.0), np.full(3, 60.0), [70.0]])
    for seed in range(20):
        chosen = held_out(ids, labels, latitude, np.zeros(44), spatial(val_split=0.5, seed=seed))
        assert not chosen[40:].any()
        assert chosen.sum() == 22


def test_where_nothing_can_be_held_out_by_place_the_error_says_what_to_set() -> None:
    ids, labels, latitude, longitude = towns()
    with pytest.raises(GeoError, match="form 1 group") as fault:
        held_out(ids, labels, latitude, longitude, spatial(group_km=2000.0))
    assert fault.value.where == "training.group_km = 2000"
    setting, _, value = fault.value.hint.split()[1].partition("=")
    assert setting == "training.group_km"
    assert held_out(ids, labels, latitude, longitude, spatial(group_km=float(value))).any()


def test_where_little_can_be_held_out_a_warning_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.array([str(n) for n in range(100)], dtype=object)
    latitude = np.append(40 + np.arange(98) * KM, [50.0, 60.0])
    chosen = held_out(ids, np.zeros(100, dtype=np.int64), latitude, np.zeros(100), spatial(group_km=2.0))
    assert chosen.sum() == 2
    said = capsys.readouterr().err
    assert "only 2 of 10 samples" in said
    assert "--set training.group_km=" in said


def test_too_few_samples_to_hold_any_out_are_all_for_training_as_in_a_random_split() -> None:
    ids = np.array(["a", "b"], dtype=object)
    assert not held_out(ids, np.array([0, 1]), np.array([0.0, 50.0]), np.zeros(2), spatial()).any()


# ---------------------------------------------------------------- folds


@pytest.mark.parametrize("seed", range(3))
def test_random_folds_hold_every_sample_out_once_and_each_fold_has_the_same_mixture(seed: int) -> None:
    ids, labels, latitude, longitude = towns(seed=seed)
    fold = folds(ids, labels, latitude, longitude, Training(folds=5, seed=seed))
    assert np.ptp(np.bincount(fold, minlength=5)) <= 1
    for k in np.unique(labels):
        assert np.ptp(np.bincount(fold[labels == k], minlength=5)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_spatial_folds_lie_apart_and_share_the_samples_about_evenly(seed: int) -> None:
    ids, labels, latitude, longitude = towns(120, seed=seed)
    fold = folds(ids, labels, latitude, longitude, spatial(folds=4, seed=seed))
    assert (fold >= 0).all()
    counts = np.bincount(fold, minlength=4)
    assert np.ptp(counts) < 0.1 * len(ids)
    for k in range(4):
        assert nearest_km(fold == k, latitude, longitude) > 20
        assert set(labels[fold != k]) == set(labels)


def test_every_class_has_a_training_sample_whichever_fold_is_held_out() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 3, 3, 3, 3])
    ids = np.array([str(n) for n in range(10)], dtype=object)
    latitude = np.arange(10.0)
    for validation in ("random", "spatial"):
        for seed in range(20):
            training = spatial(validation=validation, folds=3, seed=seed)
            fold = folds(ids, labels, latitude, np.zeros(10), training)
            # The only sample of its class is never held out.
            assert fold[5] == ALWAYS_TRAINING
            assert (np.delete(fold, 5) >= 0).all()
            for k in range(3):
                assert (fold == k).any()
                assert set(labels[fold != k]) == {0, 1, 2, 3}


def test_a_group_of_more_than_half_of_all_samples_is_in_no_fold(capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.array([str(n) for n in range(20)], dtype=object)
    latitude = np.append(np.full(12, 40.0), 50 + np.arange(8))
    fold = folds(ids, np.zeros(20, dtype=np.int64), latitude, np.zeros(20), spatial(folds=4))
    assert fold[:12].tolist() == [ALWAYS_TRAINING] * 12
    assert np.bincount(fold[12:]).tolist() == [2, 2, 2, 2]
    assert "12 of 20 samples are in no fold" in capsys.readouterr().err


def test_more_folds_than_samples_or_groups_are_refused_with_the_numbers() -> None:
    ids, labels = np.array(["a", "b", "c", "d"], dtype=object), np.array([0, 0, 0, 1])
    with pytest.raises(GeoError, match="4 folds of 3 samples") as fault:
        folds(ids, labels, np.arange(4.0), np.zeros(4), Training(folds=4))
    assert fault.value.where == "training.folds"
    assert folds(ids, labels, np.arange(4.0), np.zeros(4), Training(folds=3))[3] == ALWAYS_TRAINING
    pairs = np.array([0, KM, 30, 30 + KM])
    with pytest.raises(GeoError, match="3 folds of 2 groups") as fault:
        folds(ids, np.zeros(4, dtype=np.int64), pairs, np.zeros(4), spatial(folds=3))
    assert "training.group_km = 20" in fault.value.where
    with pytest.raises(GeoError, match="holds nothing out"):
        folds(ids, labels, np.arange(4.0), np.zeros(4), Training())


# ---------------------------------------------------------------- bootstrap groups


def test_a_score_is_resampled_by_the_groups_of_a_spatial_split_alone() -> None:
    ids, labels, latitude, longitude = towns()
    chosen = held_out(ids, labels, latitude, longitude, spatial())
    assert resampling_groups(latitude, longitude, Training()) is None
    alone = resampling_groups(latitude[chosen], longitude[chosen], spatial())
    among_all = spatial_groups(latitude, longitude, 20)[chosen]
    assert alone is not None
    assert np.array_equal(alone[:, None] == alone, among_all[:, None] == among_all)


# ---------------------------------------------------------------- leaks


def strangers(n: int = 40, dtype: str = "float16") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Held out: every fourth. Places a degree apart, embeddings at random about a large common part."""
    embeddings = np.random.default_rng(0).normal(5, 1, (n, 3, 16)).astype(dtype)
    return np.arange(n) % 4 == 0, np.arange(n, dtype=float), np.zeros(n), embeddings


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_strangers_do_not_leak_though_their_embeddings_share_a_large_common_part(dtype: str) -> None:
    val, latitude, longitude, embeddings = strangers(dtype=dtype)
    assert leaks(val, latitude, longitude, embeddings) == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_planted_leak_of_each_kind_is_found_and_nothing_else(dtype: str) -> None:
    val, latitude, longitude, embeddings = strangers(dtype=dtype)
    latitude[8] = latitude[13] + 0.05 * KM
    embeddings[4] = embeddings[21] + np.random.default_rng(1).normal(0, 0.004, (3, 16)).astype(dtype)
    embeddings[12, 0] = embeddings[30, 2]
    # Alike and close, but on the same side of the split.
    embeddings[17], latitude[17] = embeddings[18], latitude[18]
    embeddings[20], latitude[20] = embeddings[24], latitude[24]
    place, embedding, view = leaks(val, latitude, longitude, embeddings)
    assert (place.kind, place.held_out, place.training) == ("place", 8, 13)
    assert place.value == pytest.approx(0.05, rel=1e-6)
    assert (embedding.kind, embedding.held_out, embedding.training) == ("embedding", 4, 21)
    assert 0.999 <= embedding.value <= 1
    assert (view.kind, view.held_out, view.training, view.value) == ("view", 12, 30, 1.0)


def test_the_limits_of_a_leak_are_the_callers() -> None:
    val, latitude, longitude, embeddings = strangers()
    latitude[8] = latitude[13] + 0.5 * KM
    embeddings[4] = embeddings[21] + np.random.default_rng(1).normal(0, 0.1, (3, 16))
    assert leaks(val, latitude, longitude, embeddings) == []
    assert leaks(val, latitude, longitude, embeddings, km=0.4) == []
    found = leaks(val, latitude, longitude, embeddings, km=0.6, cosine=0.95)
    assert [(leak.kind, leak.held_out) for leak in found] == [("place", 8), ("embedding", 4)]


def test_views_that_are_missing_on_both_sides_are_no_leak() -> None:
    val, latitude, longitude, embeddings = strangers()
    present = np.ones(embeddings.shape[:2], dtype=bool)
    present[::3, 1] = False
    present[[4, 5]] = False
    embeddings[~present] = 0
    assert leaks(val, latitude, longitude, embeddings, present=present) == []
    assert {leak.kind for leak in leaks(val, latitude, longitude, embeddings)} == {"view", "embedding"}


def test_without_embeddings_places_are_compared_alone_and_an_empty_part_leaks_nothing() -> None:
    val, latitude, longitude, embeddings = strangers()
    latitude[8], embeddings[4] = latitude[13], embeddings[21]
    assert [leak.kind for leak in leaks(val, latitude, longitude, None)] == ["place"]
    assert leaks(np.zeros(40, dtype=bool), latitude, longitude, embeddings) == []
    assert leaks(np.ones(40, dtype=bool), latitude, longitude, embeddings) == []


# ---------------------------------------------------------------- the command


def test_a_dataset_without_leaks_passes_the_check(
    country: Country, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command(capsys, *country.options(), "--json", "data", "leaks", "--km", "0.001")
    assert said.code == 0, said.out
    assert said.json == {"held_out": 13, "training": 115, "leaking": 0, "embeddings": True, "leaks": []}


def move_next_to_a_training_sample(own: Country) -> tuple[str, str]:
    """One held-out sample of a random split, to the place of one in training."""
    config = own.config()
    table = pd.read_csv(own.train_csv)
    labels = np.unique(table["state_idx"], return_inverse=True)[1]
    ids = table["sample_id"].astype(str).to_numpy(dtype=object)
    val = stratified_split(ids, labels, config.training.val_split, config.training.seed)
    one, other = np.flatnonzero(val)[0], np.flatnonzero(~val)[0]
    for column in ("latitude", "longitude"):
        table.loc[one, column] = table.loc[other, column]
    table.to_csv(own.train_csv, index=False)
    return ids[one], ids[other]


def test_a_leak_is_named_with_both_samples_and_the_exit_code_of_a_failed_check(
    own: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = move_next_to_a_training_sample(own)
    said = command(capsys, *own.options(), "data", "leaks")
    assert said.code == 3
    assert f"{one} is held out, {other} is not (0.000 km)" in said.out
    assert "--set training.validation=spatial" in said.err
    as_json = command(capsys, *own.options(), "--json", "data", "leaks").json
    assert as_json["leaking"] == 1
    assert as_json["leaks"] == [{"kind": "place", "held_out": one, "training": other, "value": 0.0}]


def test_a_spatial_split_and_spatial_folds_leak_no_place(own: Country) -> None:
    move_next_to_a_training_sample(own)
    random = [check_leaks(own.config(training__folds=3, training__seed=seed)).leaks for seed in range(4)]
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
