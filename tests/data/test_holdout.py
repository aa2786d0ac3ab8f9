"""Held-out samples are what they say: apart in place where asked, and the same for any order of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geo_embed.config import Training
from geo_embed.data.holdout import (
    ALWAYS_TRAINING,
    Places,
    class_folds,
    deal,
    folds,
    held_out,
    inner_held_out,
    random_folds,
    stratified_split,
    validation_masks,
)
from geo_embed.errors import GeoError
from geo_embed.geography import distance_matrix_km

# Along a meridian.
KM = 1 / 111.19492664455873


def towns(count: int = 60, seed: int = 0) -> Places:
    """Ids, classes and places: towns a few km wide, far from one another, one class for each four of them."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 9, count)
    town = np.repeat(np.arange(count), sizes)
    latitude = 30 + (town // 8) * 2.0 + random.normal(0, 1.5, len(town)) * KM
    longitude = -110 + (town % 8) * 4.0 + random.normal(0, 1.5, len(town)) * KM
    ids = np.array([f"s{n}" for n in random.permutation(len(town))], dtype=object)
    return Places(ids, town // 4, latitude, longitude)


def line(latitude: np.ndarray, labels: Any = None) -> Places:
    """Samples along the meridian of Greenwich, of one class unless said."""
    n = len(latitude)
    ids = np.array([str(k) for k in range(n)], dtype=object)
    classes = np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels)
    return Places(ids, classes, np.asarray(latitude, dtype=float), np.zeros(n))


def spatial(**changes: Any) -> Training:
    return Training(**({"validation": "spatial", "group_km": 20.0} | changes))


def nearest_km(val: np.ndarray, places: Places) -> float:
    """From the samples of a part to the others."""
    distances = distance_matrix_km(np.stack([places.latitude, places.longitude], axis=1))
    return float(distances[val][:, ~val].min())


# ---------------------------------------------------------------- held out


def test_random_validation_is_the_stratified_split() -> None:
    places = towns()
    for seed in (0, 1):
        chosen = held_out(places, Training(split_seed=seed))
        assert np.array_equal(chosen, stratified_split(places.sample_id, places.labels, 0.1, seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("km", [1.0, 5.0, 20.0])
def test_no_held_out_sample_lies_within_group_km_of_a_training_sample(seed: int, km: float) -> None:
    places = towns(seed=seed)
    chosen = held_out(places, spatial(group_km=km, split_seed=seed))
    assert nearest_km(chosen, places) > km
    # The random split would not have passed.
    assert nearest_km(stratified_split(places.sample_id, places.labels, 0.1, seed), places) < 20


@pytest.mark.parametrize("val_split", [0.1, 0.25, 0.5])
def test_about_the_share_is_held_out_and_every_class_keeps_a_training_sample(val_split: float) -> None:
    for seed in range(5):
        places = towns(seed=seed)
        training = spatial(val_split=val_split, split_seed=seed)
        chosen = held_out(places, training)
        assert abs(chosen.mean() - val_split) < 0.05
        assert set(places.labels[~chosen]) == set(places.labels)


def test_small_groups_are_held_out_in_every_class_alike() -> None:
    labels = np.repeat(np.arange(4), 100)
    # Pairs a kilometre apart, the pairs far from one another.
    latitude = np.arange(200).repeat(2) * 0.2 + np.tile([0, KM], 200)
    chosen = held_out(line(latitude, labels), spatial(val_split=0.2, group_km=2.0))
    assert np.bincount(labels[chosen]).tolist() == [20, 20, 20, 20]
    assert (chosen[0::2] == chosen[1::2]).all()


@pytest.mark.parametrize("choose", [held_out, folds])
@pytest.mark.parametrize("validation", ["random", "spatial"])
def test_the_choice_comes_from_the_seed_and_not_from_the_order_of_rows(
    choose: Callable[..., np.ndarray], validation: str
) -> None:
    places = towns()
    training = spatial(validation=validation, folds=4, split_seed=3)
    chosen = choose(places, training)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(places))
        again = choose(places.take(order), training)
        assert np.array_equal(again, chosen[order])
    other = choose(places, training.model_copy(update={"split_seed": 4}))
    assert not np.array_equal(other, chosen)
    weights = choose(places, training.model_copy(update={"seed": 4}))
    assert np.array_equal(weights, chosen), "the seed of the weights has no say"


def test_a_group_that_is_too_large_to_hold_out_stays_in_training() -> None:
    # Ninety samples of one town, ten lonely ones.
    latitude = np.append(np.full(90, 40.0), 50 + np.arange(10))
    for seed in range(10):
        chosen = held_out(line(latitude), spatial(split_seed=seed))
        assert not chosen[:90].any()
        assert chosen[90:].sum() == 10


def test_a_class_of_one_group_is_never_held_out_and_a_class_of_one_sample_neither() -> None:
    labels = np.repeat([0, 1, 2], [40, 3, 1])
    latitude = np.concatenate([np.arange(40.0), np.full(3, 60.0), [70.0]])
    for seed in range(20):
        chosen = held_out(line(latitude, labels), spatial(val_split=0.5, split_seed=seed))
        assert not chosen[40:].any()
        assert chosen.sum() == 22


def test_where_nothing_can_be_held_out_by_place_the_error_says_what_to_set() -> None:
    places = towns()
    with pytest.raises(GeoError, match="form 1 group") as fault:
        held_out(places, spatial(group_km=2000.0))
    assert fault.value.where == "training.group_km = 2000"
    setting, _, value = fault.value.hint.split()[1].partition("=")
    assert setting == "training.group_km"
    assert held_out(places, spatial(group_km=float(value))).any()


def test_where_little_can_be_held_out_a_warning_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    latitude = np.append(40 + np.arange(98) * KM, [50.0, 60.0])
    chosen = held_out(line(latitude), spatial(group_km=2.0))
    assert chosen.sum() == 2
    warning = capsys.readouterr().err
    assert "only 2 of 10 samples" in warning
    assert "--set training.group_km=" in warning


def test_too_few_samples_to_hold_any_out_are_all_for_training_as_in_a_random_split() -> None:
    assert not held_out(line(np.array([0.0, 50.0]), [0, 1]), spatial()).any()


# ---------------------------------------------------------------- folds


@pytest.mark.parametrize("seed", range(3))
def test_random_folds_hold_every_sample_out_once_and_each_fold_has_the_same_mixture(seed: int) -> None:
    places = towns(seed=seed)
    fold = folds(places, Training(folds=5, split_seed=seed))
    assert np.ptp(np.bincount(fold, minlength=5)) <= 1
    for k in np.unique(places.labels):
        assert np.ptp(np.bincount(fold[places.labels == k], minlength=5)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_spatial_folds_lie_apart_and_share_the_samples_about_evenly(seed: int) -> None:
    places = towns(120, seed=seed)
    fold = folds(places, spatial(folds=4, split_seed=seed))
    assert (fold >= 0).all()
    counts = np.bincount(fold, minlength=4)
    assert np.ptp(counts) < 0.1 * len(places)
    for k in range(4):
        assert nearest_km(fold == k, places) > 20
        assert set(places.labels[fold != k]) == set(places.labels)


def test_every_class_has_a_training_sample_whichever_fold_is_held_out() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 3, 3, 3, 3])
    latitude = np.arange(10.0)
    for validation in ("random", "spatial"):
        for seed in range(20):
            training = spatial(validation=validation, folds=3, split_seed=seed)
            fold = folds(line(latitude, labels), training)
            # The only sample of its class is never held out.
            assert fold[5] == ALWAYS_TRAINING
            assert (np.delete(fold, 5) >= 0).all()
            for k in range(3):
                assert (fold == k).any()
                assert set(labels[fold != k]) == {0, 1, 2, 3}


def test_a_group_of_more_than_half_of_all_samples_is_in_no_fold(capsys: pytest.CaptureFixture[str]) -> None:
    latitude = np.append(np.full(12, 40.0), 50 + np.arange(8))
    fold = folds(line(latitude), spatial(folds=4))
    assert fold[:12].tolist() == [ALWAYS_TRAINING] * 12
    assert np.bincount(fold[12:]).tolist() == [2, 2, 2, 2]
    assert "12 of 20 samples are in no fold" in capsys.readouterr().err


def test_more_folds_than_samples_or_groups_are_refused_with_the_numbers() -> None:
    places = line(np.arange(4.0), [0, 0, 0, 1])
    with pytest.raises(GeoError, match="4 folds of 3 samples") as fault:
        folds(places, Training(folds=4))
    assert fault.value.where == "training.folds"
    assert folds(places, Training(folds=3))[3] == ALWAYS_TRAINING
    pairs = np.array([0, KM, 30, 30 + KM])
    with pytest.raises(GeoError, match="3 folds of 2 groups") as fault:
        folds(line(pairs), spatial(folds=3))
    assert "training.group_km = 20" in fault.value.where
    with pytest.raises(GeoError, match="holds nothing out"):
        folds(places, Training())


def test_advice_helps_where_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    # All of a class at one place: no distance parts them.
    latitude = np.append(np.full(3, 40.0), 50 + np.arange(12))
    fold = folds(line(latitude, [1] * 3 + [0] * 12), spatial(folds=3))
    assert fold[:3].tolist() == [ALWAYS_TRAINING] * 3
    warning = capsys.readouterr().err
    assert (
        "3 of 15 samples are in no fold, always in training (3 of them in the only group of a class)"
        in warning
    )
    assert "group_km" not in warning
    # What can't be held out isn't in fewer folds either.
    for places, training in (
        (line(np.arange(4.0), [0, 1, 2, 3]), Training(folds=2)),
        (line(np.full(4, 40.0)), spatial(folds=3)),
    ):
        with pytest.raises(GeoError) as fault:
            folds(places, training)
        assert "do without --folds" in str(fault.value.hint)
    with pytest.raises(GeoError, match="form 1 group") as fault:
        held_out(line(np.full(30, 40.0)), spatial())
    assert "training.validation=random" in str(fault.value.hint)


def test_a_runs_validation_samples_are_those_of_its_folds_or_of_its_one_split() -> None:
    places = towns()
    (mask,) = validation_masks(places, spatial())
    assert np.array_equal(mask, held_out(places, spatial()))
    masks = validation_masks(places, spatial(folds=3))
    assert np.array_equal(np.argmax(masks, axis=0), folds(places, spatial(folds=3)))
    assert (np.sum(masks, axis=0) == 1).all()


# ---------------------------------------------------------------- within a run's training samples


@pytest.mark.parametrize("validation", ["random", "spatial"])
def test_the_samples_that_choose_are_training_samples_and_held_out_as_the_runs_own_are(
    validation: str,
) -> None:
    places, training = towns(120), spatial(validation=validation)
    val = held_out(places, training)
    chosen = inner_held_out(places, ~val, training)
    assert not (chosen & val).any()
    # A quarter of so few, not a tenth: enough to choose by.
    assert 0.2 < chosen.sum() / (~val).sum() < 0.35
    if validation == "spatial":
        assert nearest_km(chosen[~val], places.take(~val)) > 20


def test_where_a_run_holds_nothing_out_nothing_chooses_either() -> None:
    places = towns()
    assert not inner_held_out(places, np.ones(len(places), dtype=bool), spatial()).any()


# ---------------------------------------------------------------- rows without a place


def test_class_folds_cover_every_row_and_share_every_class_evenly() -> None:
    labels = np.random.default_rng(0).integers(5, size=203)
    fold = class_folds(labels, 4, seed=7)
    assert np.ptp(np.bincount(fold)) <= 1
    for k in range(5):
        assert np.ptp(np.bincount(fold[labels == k], minlength=4)) <= 1
    assert not np.array_equal(fold, class_folds(labels, 4, seed=8))


def test_random_folds_and_those_dealt_in_an_order_are_even() -> None:
    for fold in (random_folds(23, 5, seed=1), deal(np.random.default_rng(1).permutation(23), 5)):
        assert np.bincount(fold).tolist() == [5, 5, 5, 4, 4]
    assert deal(np.array([2, 0, 3, 1]), 2).tolist() == [1, 1, 0, 0]


def test_a_seed_deals_the_same_folds_in_every_version() -> None:
    """Races, calibrations and ensembles of earlier runs are made again to the bit only while these stay."""
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 0, 0])
    assert class_folds(labels, 3, seed=4).tolist() == [0, 2, 2, 1, 1, 0, 0, 0, 2, 1]
    assert random_folds(10, 3, seed=4).tolist() == [1, 0, 1, 2, 0, 2, 0, 1, 0, 2]
    assert deal(np.random.default_rng(4).permutation(10), 3).tolist() == [1, 0, 0, 2, 1, 0, 0, 2, 2, 1]
