"""Samples that share a picture stay together in every split, placeholders tie nothing, and without duplicates nothing changes."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from geo_embed.config import Training
from geo_embed.data.duplicates import FEW, shared_pictures, tied_samples
from geo_embed.data.holdout import (
    ALWAYS_TRAINING,
    Places,
    class_folds,
    folds,
    held_out,
    inner_held_out,
    random_folds,
    validation_masks,
)
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.fitting.examples import open_training_data, to_rows
from geo_embed.fitting.fit import fit_heads, plan
from geo_embed.runs.run import load_run

if TYPE_CHECKING:
    from conftest import Country


def population(seed: int, tied: bool = False) -> Places:
    """Some hundred samples of a few classes side by side; where asked, with pairs, chains and a large group tied."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(60, 700)), int(rng.integers(2, 9))
    labels = rng.integers(0, classes, n)
    latitude = np.clip(40 + labels * 2 + rng.normal(0, 0.5, n), -90, 90)
    longitude = -100 + labels * 3 + rng.normal(0, 0.5, n)
    ids = np.array([f"s{k}" for k in rng.permutation(n)], dtype=object)
    groups = None
    if tied:
        groups = np.arange(n)
        rows = rng.permutation(n)
        start = 0
        for size in [*rng.choice([2, 2, 2, 3, 5], n // 10), n // 5]:
            groups[rows[start : start + size]] = groups[rows[start]]
            start += size
    return Places(ids, labels, latitude, longitude, groups)


def every_split(places: Places, seed: int) -> list[np.ndarray]:
    """Random and spatial, alone and in folds, the inner ones of each, and those of rows."""
    parts: list[np.ndarray] = []
    for validation in ("random", "spatial"):
        for count in (1, 3):
            training = Training(
                split_seed=seed, validation=validation, folds=count, group_km=5, val_split=0.15
            )
            masks = validation_masks(places, training)
            parts += [*masks, inner_held_out(places, ~masks[0], training)]
    parts.append(class_folds(places.labels, 4, seed, places.tied))
    parts.append(random_folds(len(places), 5, seed, places.tied))
    return parts


def split_groups(part: np.ndarray, tied: np.ndarray) -> int:
    """How many groups have samples on both sides, or in several folds."""
    return sum(len(np.unique(part[tied == group])) > 1 for group in np.unique(tied))


# As they were dealt before samples could be tied (version 0.1.0).
BEFORE = [
    "03b90b2df0cedc73",
    "8f22bf883263e8f4",
    "f67981134be3a535",
    "168d22f9ffe51112",
    "6b2255c296a22e81",
    "4958b66c92e50a34",
]


@pytest.mark.parametrize("tied", ["unknown", "none"])
@pytest.mark.filterwarnings("ignore")
def test_where_nothing_is_shared_every_split_is_what_it_was(tied: str) -> None:
    for seed, before in enumerate(BEFORE):
        places = population(seed)
        if tied == "none":
            places = Places(
                places.sample_id, places.labels, places.latitude, places.longitude, np.arange(len(places))
            )
        digest = hashlib.sha256()
        for part in every_split(places, seed):
            digest.update(np.ascontiguousarray(part).astype(np.int64).tobytes())
        assert digest.hexdigest()[:16] == before


@pytest.mark.parametrize("seed", range(12))
def test_no_split_of_any_kind_parts_samples_that_share_pictures(seed: int) -> None:
    places = population(seed, tied=True)
    assert places.tied is not None
    parts = every_split(places, seed)
    for part in parts:
        if part.dtype == bool:
            # An inner split is of the training rows alone.
            assert split_groups(part, places.tied) == 0
    assert [split_groups(part, places.tied) for part in parts[-2:]] == [0, 0]
    # The same population's usual splits do part them: there is something to keep together.
    usual = population(seed)
    assert all(split_groups(part, places.tied) > 0 for part in every_split(usual, seed) if part.any())


@pytest.mark.parametrize("seed", range(6))
def test_shares_and_classes_stay_what_they_are_without_ties(seed: int) -> None:
    places, usual = population(seed, tied=True), population(seed)
    training = Training(seed=seed, val_split=0.15)
    chosen, before = held_out(places, training), held_out(usual, training)
    assert abs(int(chosen.sum()) - int(before.sum())) <= 10
    by_class = [np.bincount(places.labels[part], minlength=9) for part in (chosen, before)]
    assert np.abs(by_class[0] - by_class[1]).max() <= 5
    assert set(places.labels[~chosen]) == set(places.labels)
    # Samples that share nothing stay where they were.
    assert places.tied is not None
    alone = np.bincount(places.tied)[places.tied] == 1
    assert (chosen[alone] == before[alone]).all()
    fold = folds(places, training.model_copy(update={"folds": 4}))
    assert (fold[alone] == folds(usual, training.model_copy(update={"folds": 4}))[alone]).all()
    sizes = np.bincount(fold[fold >= 0])
    assert sizes.max() - sizes.min() <= 0.15 * len(places)
    for k in range(4):
        assert set(places.labels[fold != k]) == set(places.labels)


@pytest.mark.parametrize("validation", ["random", "spatial"])
def test_the_choice_does_not_depend_on_the_order_of_rows_or_the_groups_numbers(validation: str) -> None:
    places = population(3, tied=True)
    training = Training(seed=1, validation=validation, group_km=5, folds=3)
    order = np.random.default_rng(0).permutation(len(places))
    shuffled = places.take(order)
    assert shuffled.tied is not None
    renumbered = Places(
        shuffled.sample_id,
        shuffled.labels,
        shuffled.latitude,
        shuffled.longitude,
        shuffled.tied.max() - shuffled.tied,
    )
    for choose in (held_out, folds):
        assert np.array_equal(choose(renumbered, training), choose(places, training)[order])


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_group_larger_than_what_is_held_out_stays_in_training(share: float) -> None:
    places = population(0)
    n = len(places)
    tied = np.arange(n)
    large = np.random.default_rng(0).permutation(n)[: int(share * n)]
    tied[large] = large[0]
    places = Places(places.sample_id, places.labels, places.latitude, places.longitude, tied)
    assert not held_out(places, Training(val_split=0.1))[large].any()
    fold = folds(places, Training(folds=3))
    assert len(set(fold[large])) == 1
    assert (fold[large][0] == ALWAYS_TRAINING) == (share > 0.5)


def test_fewer_groups_than_folds_are_an_error_and_no_empty_fold() -> None:
    places = population(0)
    one_group = Places(
        places.sample_id, places.labels, places.latitude, places.longitude, np.zeros(len(places), dtype=int)
    )
    with pytest.raises(GeoError, match="share pictures"):
        folds(one_group, Training(folds=3))
    assert not held_out(one_group, Training()).any()
    # Where rows have to be dealt, they are.
    assert len(np.unique(class_folds(places.labels, 4, 0, one_group.tied))) == 4


def test_what_the_store_knows_of_pictures_ties_the_examples_and_a_runs_splits(own: Country) -> None:
    """From copied files to a run: chained copies are one group; every split of a fit keeps it, and its run says so."""
    images = own.data / "train_images"
    chain = [5, 40, 77, 101]
    for left, right in itertools.pairwise(chain):
        shutil.copy(images / f"img_{left:06d}_north.jpg", images / f"img_{right:06d}_west.jpg")
    blank = images / "img_000000_south.jpg"
    for n in range(10, 30):
        shutil.copy(blank, images / f"img_{n:06d}_south.jpg")
    config = own.config()
    assert extract(config, "train").computed == 0
    examples = open_training_data(config).examples
    assert examples.tied is not None
    ids = examples.sample_id[np.bincount(examples.tied)[examples.tied] > 1]
    assert sorted(map(int, ids)) == chain
    rows = np.flatnonzero(np.isin(examples.sample_id, ids))
    parted = 0
    for seed in range(8):
        settings: list[dict[str, Any]] = [{}, {"folds": 3}, {"validation": "spatial", "group_km": 5.0}]
        for changes in settings:
            training = Training(seed=seed, val_split=0.3, **changes)
            for split in plan(examples.places, training):
                assert len(set(split.val[rows])) == 1
                inner = inner_held_out(examples.places, split.train, training)
                assert len(set(inner[rows[split.train[rows]]])) <= 1
            untied = replace(examples, tied=None).places
            parted += any(len(set(split.val[rows])) > 1 for split in plan(untied, training))
    assert parted > 8
    # The race's rows, as tensors.
    rows_of_all = to_rows(examples, np.ones(len(examples), dtype=bool), torch.device("cpu"))
    assert rows_of_all.tied is not None
    assert rows_of_all.take(torch.tensor(rows)).tied.unique().numel() == 1
    fit = fit_heads(config.model_copy(update={"training": Training(val_split=0.3, epochs=1)}), name="tied")
    part = load_run(config.paths.runs_dir, fit.run).read_split().set_index("sample_id")["part"]
    assert part.loc[chain].nunique() == 1


# ---------------------------------------------------------------- which samples are tied


def content_of(*samples: str) -> tuple[np.ndarray, np.ndarray]:
    """A picture per letter; a point is a view that isn't there."""
    content = np.array([[ord(letter) for letter in sample] for sample in samples], dtype=np.uint64)
    return content, content != ord(".")


def tied_by(*samples: str, longitude: float = 1.0) -> list[int] | None:
    content, known = content_of(*samples)
    places = np.zeros(len(samples)), np.arange(len(samples)) * longitude
    tied = tied_samples(shared_pictures(content, known, *places), len(samples))
    return None if tied is None else tied.tolist()


def test_a_shared_picture_ties_whichever_way_it_looks_and_chains_are_one_group() -> None:
    assert tied_by("ab", "cd", "ef") is None
    assert tied_by("aa", "bb") is None
    assert tied_by("..", "..") is None
    assert tied_by("ab", "cd", "xa") == [0, 1, 0]
    assert tied_by("ab", "bc", "zz", "cd", "yd") == [0, 0, 1, 0, 0]
    assert tied_by("ab", "cd", "ab", "dc") == [0, 1, 0, 1]


def test_a_placeholder_ties_nothing_but_many_samples_of_one_place_are_tied() -> None:
    blank = ["a" + chr(0x4E00 + n) for n in range(FEW + 1)]
    assert tied_by(*blank) is None
    assert tied_by(*blank[:FEW]) == [0] * FEW
    # A hundred metres in all: one place, seen often.
    assert tied_by(*blank, longitude=0.0001) == [0] * (FEW + 1)
    # What else they share ties them still.
    assert tied_by(*blank, "ax", "yx") == [*range(FEW + 1), FEW + 1, FEW + 1]


def test_the_spread_of_two_is_their_distance_also_across_180() -> None:
    content, known = content_of("a", "a")
    (picture,) = shared_pictures(content, known, np.array([0.0, 0.0]), np.array([179.5, -179.5]))
    assert picture.spread_km == pytest.approx(111.1949, rel=1e-4)
    assert picture.rows.tolist() == [0, 1]
