"""Never the wrong cache: whatever changes an embedding names another store, and what doesn't fit is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from small import Small, command, files

from geo_embed.cache.exchange import cache_import
from geo_embed.cache.find import find_store
from geo_embed.cache.store import rebuild_hint
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.synthetic.backbone import write_backbone

if TYPE_CHECKING:
    from conftest import Country


@pytest.fixture
def small(country: Country, tmp_path: Path) -> Small:
    shutil.copytree(country.backbone, tmp_path / "backbone")
    cut = Small.cut(country, tmp_path / "small", train=8)
    return Small(cut.root, tmp_path / "backbone")


def other_weights(small: Small) -> None:
    write_backbone(small.backbone, seed=1)


def preprocessor(small: Small, **changes: Any) -> None:
    file = small.backbone / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"model__exact": True},
        {"model__dtype": "float32"},
        {"model__dtype": "bfloat16"},
        {"model__feature": "pooler_output"},
        {"model__view_names": ["north", "east"]},
        {"model__view_names": ["east", "north", "south", "west"]},
    ],
    ids=str,
)
def test_another_setting_is_another_store(small: Small, changes: dict[str, Any]) -> None:
    first = extract(small.config(), "train")
    before = files(first.store)
    other = extract(small.config(**changes), "train")
    assert other.fingerprint != first.fingerprint
    assert other.store.parent != first.store.parent
    # A picture's embedding is the same, whichever views stand beside it.
    assert other.reused == (0 if changes.keys() != {"model__view_names"} else other.samples * other.views)
    assert files(first.store) == before
    assert find_store(small.config(**changes), "train").path == other.store


def test_other_weights_under_the_same_name_are_another_store(small: Small) -> None:
    first = extract(small.config(), "train")
    other_weights(small)
    with pytest.raises(GeoError, match="no embeddings of the train split"):
        find_store(small.config(), "train")
    second = extract(small.config(), "train")
    assert second.fingerprint != first.fingerprint
    assert (second.computed, second.reused) == (32, 0)
    assert find_store(small.config(), "train").path == second.store


@pytest.mark.parametrize(
    "change", [{"image_mean": [0.5, 0.5, 0.5]}, {"resample": 2}, {"size": {"shortest_edge": 112}}]
)
def test_other_preprocessing_is_another_store(small: Small, change: dict[str, Any]) -> None:
    first = extract(small.config(), "train")
    preprocessor(small, **change)
    assert extract(small.config(), "train").fingerprint != first.fingerprint


def test_what_changes_no_embedding_is_the_same_store(small: Small, tmp_path: Path) -> None:
    first = extract(small.config(), "train")
    shutil.copytree(small.backbone, tmp_path / "moved" / "elsewhere")
    moved = small.config(
        model__backbone_name=str(tmp_path / "moved" / "elsewhere"),
        inference__batch_size=3,
        inference__workers=1,
        inference__chunk_rows=5,
        training__seed=5,
    )
    again = extract(moved, "train")
    assert again.store == first.store
    assert again.computed == 0
    assert find_store(moved, "train").path == first.store


def test_fit_heads_refuses_a_store_that_no_longer_fits_the_csv(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(small.config(), "train")
    small.write(small.table().iloc[:0:-1])
    ran = command(capsys, *small.options(), "fit-heads", "--name", "first")
    assert ran.code == 1
    assert "error: the store no longer fits" in ran.err
    assert f"hint: {small.geo} extract --split train --backbone {small.backbone}" in ran.err
    assert not (small.root / "runs").exists()

    assert command(capsys, *small.options(), "extract", "--split", "train").code == 0
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0


def test_fit_heads_refuses_a_half_extracted_store(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    extract(small.config(), "train", limit=5)
    ran = command(capsys, *small.options(), "fit-heads", "--name", "first")
    assert ran.code == 1
    assert "3 of 8 samples are not extracted yet" in ran.err
    assert f"hint: {small.geo} extract --split train" in ran.err


def test_a_prediction_refuses_a_test_store_that_no_longer_fits(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        extract(small.config(), split)
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0
    small.write(small.table("test").iloc[:0:-1], "test")
    predict = [*small.options(), "predict", "first", "--split", "test"]
    ran = command(capsys, *predict, "--no-extract")
    assert ran.code == 1
    assert f"hint: {small.geo} extract --split test --backbone {small.backbone}" in ran.err
    assert command(capsys, *predict).code == 0
    table = pd.read_parquet(small.root / "runs" / "first" / "test_predictions.parquet")
    assert table["sample_id"].tolist() == small.table("test")["sample_id"].tolist()


def test_a_run_predicts_from_the_store_of_its_own_backbone(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(small.config(), "train")
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0
    other_weights(small)
    extract(small.config(), "test")
    predict = [*small.options(), "predict", "first", "--split", "test"]
    ran = command(capsys, *predict, "--no-extract")
    assert ran.code == 1
    assert "no test store has the fingerprint" in ran.err
    ran = command(capsys, *predict)
    assert ran.code == 1
    assert "has other weights" in ran.err


def test_of_two_stores_that_fit_neither_is_guessed(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    half = extract(small.config(), "train")
    single = extract(small.config(model__dtype="bfloat16"), "train")
    ran = command(capsys, *small.options(), "fit-heads", "--name", "first")
    assert ran.code == 1
    assert "2 train stores fit the settings" in ran.err
    assert half.fingerprint in ran.err
    assert single.fingerprint in ran.err
    assert "hint: choose one with --set model.fingerprint=" in ran.err
    chosen = ["--set", f"model.fingerprint={single.fingerprint}"]
    ran = command(capsys, *small.options(), *chosen, "fit-heads", "--name", "first")
    assert ran.code == 0, ran.err
    provenance = json.loads((small.root / "runs" / "first" / "provenance.json").read_text())
    assert provenance["store"]["fingerprint"] == single.fingerprint
    assert find_store(small.config(model__dtype="bfloat16"), "train").path == single.store


def test_a_store_is_found_by_its_name_where_the_weights_are_not(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """A laptop that was given the cache alone."""
    done = extract(small.config(), "train")
    shutil.rmtree(small.backbone)
    shutil.rmtree(small.images())
    assert find_store(small.config(), "train").path == done.store
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0
    with pytest.raises(GeoError, match="no embeddings of the train split by another"):
        find_store(small.config(model__backbone_name="another/name"), "train")


def test_an_error_lists_the_stores_that_are_there(small: Small) -> None:
    with pytest.raises(GeoError, match="these settings; there are no others"):
        find_store(small.config(), "train")
    extracted = extract(small.config(), "train")
    listed = rf"--backbone takes what is there: {re.escape(str(small.backbone))} \({extracted.fingerprint}"
    for changes, split, end in (
        ({"model__backbone_name": "another/name"}, "train", r"\)"),
        ({"model__fingerprint": "0123456789abcdef"}, "train", r"\)"),
        ({}, "test", r", train alone\)"),
    ):
        with pytest.raises(GeoError, match=listed + end):
            find_store(small.config(**changes), split)


def test_the_hint_names_the_only_backbone_that_could_be_meant(small: Small) -> None:
    extract(small.config(), "train")
    other = small.config(model__backbone_name="another/name")
    with pytest.raises(GeoError) as refused:
        find_store(other, "train")
    assert refused.value.hint == (
        f"go on with what is there by --backbone {small.backbone}; "
        "or embed by another/name: geo extract --split train --backbone another/name"
    )
    # Its views are others: no option alone makes it fit.
    fewer = small.config(model__backbone_name="another/name", model__view_names=["north", "east"])
    with pytest.raises(GeoError) as refused:
        find_store(fewer, "train")
    assert "go on with" not in (refused.value.hint or "")


def test_a_hint_quotes_the_name_of_a_backbone() -> None:
    assert rebuild_hint(Path("x/test.zarr"), {"backbone": "my model"}) == (
        "geo extract --split test --backbone 'my model'"
    )


def test_the_nearest_store_is_named_with_what_sets_it_apart(small: Small) -> None:
    extract(small.config(), "train")
    with pytest.raises(GeoError, match="differs in resize: 'torch', not 'pil'") as refused:
        find_store(small.config(model__exact=True), "train")
    assert refused.value.hint == f"geo extract --split train --backbone {small.backbone}"


def test_a_folder_of_an_imports_name_that_holds_no_model_is_no_obstacle(small: Small, tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.ones((8, 4, 3), dtype=np.float32))
    config = small.config(model__backbone_name="mine")
    made = cache_import(config, tmp_path / "e.npy", "train", "mine")
    Path("mine").mkdir()
    assert find_store(config, "train").path == made.store


def test_weights_that_are_there_but_damaged_are_not_passed_over_for_a_name(small: Small) -> None:
    extract(small.config(), "train")
    (small.backbone / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(GeoError, match="not a readable safetensors file"):
        find_store(small.config(), "train")
