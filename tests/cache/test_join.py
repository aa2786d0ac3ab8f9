"""Embeddings of several sources are joined by sample id, and what doesn't belong together is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from worlds import make_world

from geo_embed.cache.exchange import cache_export, cache_import
from geo_embed.cache.join import find_sources, read_content, read_joined
from geo_embed.cache.store import MISSING, Store, open_store, read_content_hash, read_store
from geo_embed.cache.tidy import summarise
from geo_embed.cache.verify import Missing, choose_stores, find_missing
from geo_embed.config import Config, Model
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.explorer.atlas import export_atlas
from geo_embed.fitting.examples import open_training_data
from geo_embed.settings import with_changes

VIEWS = ("front", "back")


def other_values(samples: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(samples, 2, 7)).astype(np.float32)


def two(root: Path, *, reorder: bool = False) -> Config:
    """A world with the sources `made-elsewhere` (12 numbers) and `another` (7), the latter with its rows in another order if asked for."""
    config = make_world(root, ["a", "b", "c"], views=VIEWS, samples=30)
    csv = config.paths.csv("train")
    table = pd.read_csv(csv, dtype=str)
    order = np.random.default_rng(1).permutation(30) if reorder else np.arange(30)
    table.iloc[order].to_csv(csv, index=False)
    np.save(root / "other.npy", other_values(30)[order])
    cache_import(config, root / "other.npy", "train", "another")
    table.to_csv(csv, index=False)
    return with_changes(config, {"model.backbones": ["made-elsewhere", "another"]})


def store_of(config: Config, name: str) -> Store:
    return next(source.store for source in find_sources(config, "train") if source.name == name)


@pytest.mark.parametrize("reorder", [False, True])
def test_rows_are_joined_by_id_whatever_their_order_in_either_store(tmp_path: Path, reorder: bool) -> None:
    config = two(tmp_path / "world", reorder=reorder)
    joined = read_joined(find_sources(config, "train"), load_samples(config, "train").sample_id)
    assert [(block.name, block.start, block.stop) for block in joined.blocks] == [
        ("another", 0, 7),
        ("made-elsewhere", 7, 19),
    ]
    np.testing.assert_array_equal(joined.values[..., :7], other_values(30).astype(np.float16))
    first = np.load(tmp_path / "world" / "train.npy").astype(np.float16)
    np.testing.assert_array_equal(joined.values[..., 7:], first)
    assert joined.present.all()
    # Imports alone: what is known of pictures is the first source's, found by its rows.
    wanted = read_content_hash(store_of(config, "another"))[joined.store_rows[0]]
    np.testing.assert_array_equal(read_content(joined), wanted)
    part = read_joined(joined.sources, joined.sample_id[[8, 2]])
    np.testing.assert_array_equal(part.values, joined.values[[8, 2]])


def test_the_order_in_which_backbones_are_named_makes_no_difference(tmp_path: Path) -> None:
    config = two(tmp_path / "world")
    swapped = with_changes(config, {"model.backbones": ["another", "made-elsewhere"]})
    first, second = (open_training_data(c).examples for c in (config, swapped))
    assert first.blocks == second.blocks
    np.testing.assert_array_equal(first.values, second.values)


def test_a_view_counts_where_every_source_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = two(tmp_path / "world")
    store = open_store(store_of(config, "another").path)
    status = np.asarray(store.status[:])
    status[3, 1], status[4] = MISSING, MISSING
    store.status[:] = status
    capsys.readouterr()
    examples = open_training_data(config).examples
    assert capsys.readouterr().err.splitlines() == [
        "warning: another lacks 3 pictures of train that another source has: a view counts where every source has it, "
        "which leaves 1 sample without any",
        "warning: 1 sample has no view that every source has and is left out of training",
        "warning: 1 sample lacks some of its views; those views are left out of the fusion",
    ]
    # Sample 4 has no view left by both.
    assert "s4" not in examples.sample_id
    assert examples.present[3].tolist() == [True, False]
    assert not examples.values[3, 1].any()
    assert examples.values[3, 0].all()
    # The table for others has a place for no sample that nothing can be placed by.
    made = export_atlas(config, "train", tmp_path / "atlas.parquet")
    assert made.samples == 29
    assert "1 sample has no view to be placed by: left out" in capsys.readouterr().err
    table = pd.read_parquet(tmp_path / "atlas.parquet")
    assert "s4" not in table["sample_id"].to_list()
    assert max(row["ids"].max() for row in table["neighbors"]) < 29
    # Every backbone's store is looked after, and what it lacks is counted.
    stores, problems = choose_stores(config.paths.cache_dir, config.model, "all")
    assert problems == []
    missing = {store.attrs["backbone"]: find_missing(store) for store in stores}
    assert missing == {"another": Missing(store.path, 3), "made-elsewhere": None}
    (summary,) = (described for described in summarise(stores, {})[0] if described.backbone == "another")
    assert (summary.missing, summary.complete) == (3, 1.0)


def test_a_file_of_one_backbone_is_not_written_of_several(tmp_path: Path) -> None:
    config = two(tmp_path / "world")
    with pytest.raises(
        GeoError, match="of one backbone, and the settings name made-elsewhere, another"
    ) as caught:
        cache_export(config, "train", tmp_path / "out.npy")
    assert caught.value.hint == "geo cache export --backbone made-elsewhere"
    assert not (tmp_path / "out.npy").exists()


def test_sources_of_two_precisions_lose_nothing(tmp_path: Path) -> None:
    config = two(tmp_path / "world")
    single = with_changes(config, {"model.dtype": "float32", "model.backbones": []})
    values = 1 + 1e-5 * other_values(30)
    np.save(tmp_path / "fine.npy", values)
    cache_import(single, tmp_path / "fine.npy", "train", "fine")
    of_both = with_changes(config, {"model.backbones": ["fine", "another"]})
    joined = read_joined(find_sources(of_both, "train"), load_samples(config, "train").sample_id)
    np.testing.assert_array_equal(joined.values[..., 7:], values)
    alone = read_store(store_of(of_both, "another")).values
    np.testing.assert_array_equal(joined.values[..., :7], alone)


def test_the_same_source_twice_is_refused(tmp_path: Path) -> None:
    config = two(tmp_path / "world")
    with pytest.raises(GeoError, match=r"model\.backbones: another is named twice"):
        with_changes(config, {"model.backbones": ["another", "another"]})
    with pytest.raises(GeoError, match=r"names one store, and model\.backbones several"):
        with_changes(config, {"model.fingerprint": "abc"})


def test_a_backbone_without_a_store_is_named_with_the_stores_that_are_there(tmp_path: Path) -> None:
    config = with_changes(two(tmp_path / "world"), {"model.backbones": ["another", "nobody"]})
    with pytest.raises(GeoError, match="no embeddings of the train split by nobody") as caught:
        find_sources(config, "train")
    assert "takes what is there: another (" in str(caught.value)
    assert "made-elsewhere (" in str(caught.value)
    assert caught.value.hint == "geo extract --split train --backbone nobody"


def test_a_source_of_other_views_or_samples_is_refused(tmp_path: Path) -> None:
    config = two(tmp_path / "world")
    csv = config.paths.csv("train")
    table = pd.read_csv(csv, dtype=str)
    # One source that looks at one view.
    one_view = with_changes(config, {"model.view_names": ["front"], "model.backbones": []})
    table.drop(columns="image_back").to_csv(csv, index=False)
    np.save(tmp_path / "one.npy", other_values(30)[:, :1])
    cache_import(one_view, tmp_path / "one.npy", "train", "one")
    table.to_csv(csv, index=False)
    with pytest.raises(GeoError, match=r"view_names: \['front'\], not \['front', 'back'\]"):
        find_sources(with_changes(config, {"model.backbones": ["another", "one"]}), "train")
    # One source that lacks a sample that the other has.
    table.iloc[:-1].to_csv(csv, index=False)
    np.save(tmp_path / "fewer.npy", other_values(29))
    cache_import(with_changes(config, {"model.backbones": []}), tmp_path / "fewer.npy", "train", "fewer")
    table.to_csv(csv, index=False)
    fewer = with_changes(config, {"model.backbones": ["another", "fewer"]})
    with pytest.raises(GeoError, match="the store holds 29 samples, the CSV 30") as caught:
        open_training_data(fewer)
    assert "fewer" in caught.value.where
    with pytest.raises(GeoError, match="1 sample is not in the store, s29 first"):
        read_joined(find_sources(fewer, "train"), load_samples(fewer, "train").sample_id)


def test_several_backbones_take_the_place_of_one_in_the_settings() -> None:
    several = Model.model_validate({"backbone_name": "x", "backbones": ["a", "b"]})
    assert (several.backbone_name, several.backbone_names) == ("a", ("a", "b"))
    assert several.with_backbone("c").backbone_names == ("c",)
    assert Model(backbone_name="x").backbone_names == ("x",)
