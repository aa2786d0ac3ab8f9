"""Samples, store and truth are joined row by row, and what doesn't belong together is refused with the command that mends it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch

from geo_embed.cache.join import find_sources, read_joined
from geo_embed.cache.store import MISSING, open_store, read_ids
from geo_embed.config import Config
from geo_embed.data.samples import load_mapping, load_samples, truth_of
from geo_embed.errors import GeoError
from geo_embed.fitting.examples import find_prior, join, open_training_data, put_first, rows_where, to_rows
from geo_embed.geography import haversine_km, to_degrees

if TYPE_CHECKING:
    from conftest import Country


def test_each_example_has_its_own_embedding_truth_and_row(own: Country) -> None:
    table = pd.read_csv(own.train_csv, dtype={"sample_id": str})
    store = open_store(own.store())
    stored, status = np.asarray(store.embeddings[:]), np.asarray(store.status[:])
    status[3], status[4, 1] = MISSING, MISSING
    stored[status == MISSING] = 0
    store.status[:], store.embeddings[:] = status, stored
    opened = open_training_data(own.config(), limit=50)
    examples = opened.examples
    rows = np.delete(np.arange(50), 3)
    assert opened.rows.tolist() == rows.tolist()
    assert len(opened.samples) == len(table)
    assert opened.samples.sample_id[opened.rows].tolist() == examples.sample_id.tolist()
    assert examples.sample_id.tolist() == table["sample_id"][rows].tolist()
    assert np.array_equal(examples.values, stored[rows])
    assert not examples.present[3, 1]
    assert examples.present.sum() == examples.present.size - 1
    assert examples.truth.latitude.tolist() == table["latitude"][rows].tolist()
    assert examples.encoder.decode(examples.labels).tolist() == table["state_idx"][rows].tolist()
    assert set(examples.encoder.names) == set(table["state"][rows])


def test_examples_put_first_are_the_same_in_another_order_and_are_copied_nowhere(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several parts are moved, and the last isn't whole.
    monkeypatch.setattr("geo_embed.fitting.examples._MOVED_ROWS", 3)
    given, untouched = (open_training_data(config, limit=20).examples for _ in range(2))
    memory, mask = given.values.ctypes.data, np.random.default_rng(0).random(20) < 0.6
    examples, order = put_first(given, mask)
    assert order.tolist() == [*np.flatnonzero(mask), *np.flatnonzero(~mask)]
    assert np.array_equal(examples.values, untouched.values[order])
    assert np.array_equal(examples.present, untouched.present[order])
    for name in ("sample_id", "labels"):
        assert getattr(examples, name).tolist() == getattr(untouched, name)[order].tolist()
    assert examples.truth.latitude.tolist() == untouched.truth.latitude[order].tolist()
    rows = to_rows(examples, mask[order], torch.device("cpu"))
    assert len(rows) == mask.sum()
    assert examples.values.ctypes.data == rows.views.data_ptr() == memory
    assert np.array_equal(rows.views.numpy(), untouched.values[mask])


def test_rows_of_a_mask_are_those_examples_as_tensors(config: Config) -> None:
    examples = open_training_data(config, limit=20).examples
    mask = np.arange(20) % 3 == 0
    rows = to_rows(examples, mask, torch.device("cpu"))
    assert len(rows) == 7
    assert np.array_equal(rows.views.numpy(), examples.values[mask])
    assert np.array_equal(rows.present.numpy(), examples.present[mask])
    assert rows.labels.tolist() == examples.labels[mask].tolist()
    latitude, longitude = to_degrees(rows.points.numpy())
    truth = examples.truth.take(mask)
    assert haversine_km(latitude, longitude, truth.latitude, truth.longitude).max() < 1e-6
    assert rows.take(torch.tensor([6, 0])).labels.tolist() == rows.labels[[6, 0]].tolist()


def test_the_prior_counts_training_examples_alone(config: Config) -> None:
    examples = open_training_data(config, limit=40).examples
    train = examples.labels != examples.labels[0]
    prior = find_prior(examples, train)
    assert prior.probabilities[examples.labels[0]] == 0
    np.testing.assert_allclose(
        prior.probabilities,
        np.bincount(examples.labels[train], minlength=len(examples.encoder)) / train.sum(),
    )


def edited(own: Country, change: str) -> Config:
    table = pd.read_csv(own.train_csv, dtype=str)
    if change == "a row removed":
        table = table.drop(index=5)
    elif change == "rows reordered":
        table = table.iloc[::-1]
    elif change == "rows reordered and a picture renamed":
        table = table.iloc[::-1]
        table.loc[5, "image_east"] = "another.jpg"
    elif change == "a picture renamed":
        table.loc[5, "image_east"] = "another.jpg"
    elif change == "an id changed":
        table.loc[5, "sample_id"] = "new-id"
    elif change == "views swapped":
        table = table.rename(columns={"image_east": "image_west", "image_west": "image_east"})
    table.to_csv(own.train_csv, index=False)
    return own.config()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("a row removed", "the store holds 128 samples, the CSV 127"),
        ("rows reordered and a picture renamed", "the same samples name other images"),
        ("a picture renamed", "the same samples name other images"),
        ("an id changed", "the CSV's sample 'new-id' is not in the store"),
        ("views swapped", "the same samples name other images"),
    ],
)
def test_a_store_that_no_longer_fits_the_csv_is_refused_with_the_command_that_mends_it(
    own: Country, change: str, what: str
) -> None:
    with pytest.raises(GeoError, match=what) as caught:
        open_training_data(edited(own, change))
    assert str(own.train_csv) in str(caught.value)
    assert caught.value.where == str(own.store())
    assert caught.value.hint.startswith("geo extract --split train")


def test_where_no_store_fits_the_command_that_makes_one_is_named_backbone_and_all(
    country: Country, tmp_path: Path
) -> None:
    config = country.config(tmp_path, paths__cache_dir=str(tmp_path / "nothing"))
    with pytest.raises(GeoError, match="no embeddings of the train split") as caught:
        open_training_data(config)
    assert caught.value.hint == f"geo extract --split train --backbone {country.backbone}"
    default = config.model_copy(
        update={"model": config.model.model_copy(update={"backbone_name": "geolocal/StreetCLIP"})}
    )
    with pytest.raises(GeoError) as caught:
        open_training_data(default)
    assert caught.value.hint == "geo extract --split train"


def test_a_store_that_is_half_extracted_is_refused_with_the_command(own: Country) -> None:
    from geo_embed.extraction.extract import extract

    shutil.rmtree(own.cache)
    extract(own.config(inference__chunk_rows=16), "train", limit=20)
    with pytest.raises(GeoError, match="108 of 128 samples are not extracted yet") as caught:
        open_training_data(own.config())
    assert caught.value.hint.startswith("geo extract --split train")
    assert len(open_training_data(own.config(), limit=20).examples) == 20


def test_a_nan_among_the_embeddings_is_named_by_row(own: Country) -> None:
    store = open_store(own.store())
    values = np.asarray(store.embeddings[:])
    values[17, 2, 300] = np.nan
    store.embeddings[:] = values
    with pytest.raises(GeoError, match="the embedding of row 17 is NaN or infinite"):
        open_training_data(own.config())


def test_rows_of_a_store_are_found_by_their_ids_whatever_their_order(own: Country) -> None:
    before = open_training_data(own.config()).examples
    after = open_training_data(edited(own, "rows reordered")).examples
    assert after.sample_id.tolist() == before.sample_id.tolist()[::-1]
    assert (after.values == before.values[::-1]).all()
    assert (after.truth.latitude == before.truth.latitude[::-1]).all()


def test_where_no_sample_has_a_picture_there_is_nothing_to_join(config: Config) -> None:
    (source,) = find_sources(config, "train")
    embeddings = read_joined([source], read_ids(source.store))
    bare = replace(embeddings, present=np.zeros_like(embeddings.present))
    with pytest.raises(GeoError, match="no sample has a picture"):
        join(bare, truth_of(load_samples(config, "train")), load_mapping(config.paths.mapping()))


@pytest.mark.parametrize(
    ("wanted", "copied"), [([1, 2, 3], False), ([4], False), ([0, 2], True), ([], True)], ids=str
)
def test_rows_without_a_gap_are_taken_where_they_lie(wanted: list[int], copied: bool) -> None:
    values = np.arange(10.0).reshape(5, 2)
    taken = values[rows_where(np.isin(np.arange(5), wanted))]
    assert np.array_equal(taken, values[wanted])
    assert np.shares_memory(taken, values) is not copied
