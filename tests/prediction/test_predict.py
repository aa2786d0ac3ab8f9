"""Whole probability vectors, from the store and from pictures, that agree with each other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from small import command, saved_predictions

from geo_embed.cache.join import JoinedEmbeddings, read_joined
from geo_embed.cache.store import open_store, read_ids
from geo_embed.config import Config
from geo_embed.data.samples import load_samples, truth_of
from geo_embed.errors import GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.geography import region_box
from geo_embed.heads.heads import Heads
from geo_embed.prediction.pictures import predict_images
from geo_embed.prediction.predict import predict_embeddings, predict_split
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.store import find_sources_of
from geo_embed.synthetic.backbone import write_backbone

if TYPE_CHECKING:
    from conftest import Country

TABLE = [
    "sample_id",
    "probabilities",
    *(f"state_idx_{rank}" for rank in range(1, 6)),
    "latitude",
    "longitude",
]
TRUTH = ["true_state_idx", "true_latitude", "true_longitude"]


def pictures(config: Config, split: str, index: int) -> list[Path]:
    samples = load_samples(config, split)
    return [samples.image_root / name for name in samples.images[index]]


def joined(run: Run) -> JoinedEmbeddings:
    """What the cache has of the test split."""
    sources = find_sources_of(run, "test")
    return read_joined(sources, read_ids(sources[0].store))


def answer_for(run: Run, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The classification head's softmax and the GPS head's point for fused vectors (B, D)."""
    (heads,) = load_heads(run).parts
    assert isinstance(heads, Heads)
    with torch.inference_mode():
        logits, place = heads.states(vectors), heads.gps(vectors)
    return torch.softmax(logits, dim=1), heads.middle + heads.reach * place


def test_every_sample_of_the_split_gets_a_distribution_over_all_classes(config: Config, run: Run) -> None:
    predictions, _ = predict_split(config, run, "test")
    samples = load_samples(config, "test")
    assert predictions.sample_id.tolist() == samples.sample_id.tolist()
    assert predictions.probabilities.shape == (len(samples), len(run.labels))
    assert (predictions.probabilities >= 0).all()
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-6)


def test_probabilities_are_the_softmax_of_the_heads_over_the_mean_of_the_views(
    country: Country, config: Config, run: Run
) -> None:
    predictions, _ = predict_split(config, run, "test")
    values = torch.from_numpy(np.asarray(open_store(country.store("test")).embeddings[:])).float()
    states, points = answer_for(run, values.mean(dim=1))
    np.testing.assert_allclose(predictions.probabilities, states, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(predictions.latitude, points[:, 0], rtol=1e-5)
    np.testing.assert_allclose(predictions.longitude, points[:, 1], rtol=1e-5)


def test_the_table_has_the_contracts_columns_and_the_truth_where_it_is_known(
    config: Config, run: Run
) -> None:
    test = pd.read_parquet(predict_split(config, run, "test")[1])
    train = pd.read_parquet(predict_split(config, run, "train")[1])
    assert list(test) == TABLE
    assert list(train) == list(pd.read_parquet(run.path / "val_predictions.parquet")) == [*TABLE, *TRUTH]
    truth = truth_of(load_samples(config, "train"))
    assert train["true_state_idx"].tolist() == truth.state_idx.tolist()
    assert train["true_latitude"].tolist() == truth.latitude.tolist()
    assert train["true_longitude"].tolist() == truth.longitude.tolist()
    assert test["sample_id"].dtype == np.int64
    assert sorted(path.name for path in run.path.glob("*_predictions.parquet")) == [
        "test_predictions.parquet",
        "train_predictions.parquet",
        "val_predictions.parquet",
    ]


def test_ranked_states_are_the_most_probable_in_the_order_of_labels_json(config: Config, run: Run) -> None:
    table = pd.read_parquet(predict_split(config, run, "test")[1])
    for row in table.to_dict("records"):
        order = np.argsort(-row["probabilities"], kind="stable")[:5]
        assert [row[f"state_idx_{rank}"] for rank in range(1, 6)] == run.labels.state_idx[order].tolist()


def test_the_table_comes_back_as_it_was_written(config: Config, run: Run) -> None:
    predictions, path = predict_split(config, run, "train")
    again, truth = saved_predictions(path)
    assert again.sample_id.tolist() == predictions.sample_id.tolist()
    assert (again.probabilities == predictions.probabilities).all()
    assert (again.latitude == predictions.latitude).all()
    assert (again.longitude == predictions.longitude).all()
    assert truth is not None
    assert saved_predictions(predict_split(config, run, "test")[1])[1] is None


@pytest.mark.parametrize("index", [0, 7])
def test_pictures_give_the_same_answer_as_their_cached_embeddings(
    config: Config, run: Run, index: int
) -> None:
    """To float16: the store rounds each embedding to 11 bits, 5e-4 of its size, and the heads see the mean of four."""
    cached, _ = predict_split(config, run, "test")
    fresh = predict_images(config, run, pictures(config, "test", index))
    np.testing.assert_allclose(fresh.probabilities[0], cached.probabilities[index], atol=1e-3)
    assert fresh.latitude[0] == pytest.approx(cached.latitude[index], abs=0.05)
    assert fresh.longitude[0] == pytest.approx(cached.longitude[index], abs=0.05)
    assert fresh.probabilities[0].argmax() == cached.probabilities[index].argmax()


def test_the_order_of_pictures_is_that_of_the_runs_views_and_average_fusion_does_not_mind(
    config: Config, run: Run
) -> None:
    paths = pictures(config, "test", 0)
    np.testing.assert_allclose(
        predict_images(config, run, paths).probabilities,
        predict_images(config, run, paths[::-1]).probabilities,
        atol=1e-6,
    )


def set_of_run(run: Run, old: str, new: str) -> Run:
    """The run, as if one line of its settings had been another."""
    path = run.path / "config.toml"
    assert path.read_text().count(f"\n{old}\n") == 1
    path.write_text(path.read_text().replace(f"\n{old}\n", f"\n{new}\n"))
    return load_run(run.path.parent, run.name)


def test_variants_of_pictures_are_averaged_and_a_mirrored_scene_swaps_east_and_west(
    country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Heads that know which view is which.
    config = country.config(tmp_path, model__fusion="concat", training__epochs=12)
    fit_heads(config, name="concat")
    run = load_run(config.paths.runs_dir, "concat")
    run = set_of_run(set_of_run(run, "crop = 0.8", "crop = 1.0"), "flip = 0.0", "flip = 1.0")
    north, east, south, west = plain = pictures(config, "test", 2)
    # The mirrored scene, made by PIL: what was seen in the west is seen in the east.
    mirrored = []
    for place, path in enumerate((north, west, south, east)):
        with Image.open(path) as picture:
            mirrored.append(tmp_path / f"{place}.png")
            ImageOps.mirror(picture).save(mirrored[-1])
    unswapped = [mirrored[place] for place in (0, 3, 2, 1)]
    answers = [predict_images(config, run, paths).probabilities[0] for paths in (plain, mirrored, unswapped)]
    assert np.abs(answers[1] - answers[0]).max() > 1e-3
    assert np.abs(answers[1] - answers[2]).max() > 1e-3
    asked = ("--json", "predict", run.name, "--images", *plain)
    ran = command(capsys, *country.options(tmp_path), *asked, "--tta")
    assert ran.code == 0, ran.err
    both = {state["state_idx"]: state["probability"] for state in ran.json["states"]}
    averaged = [both[int(state)] for state in run.labels.state_idx]
    np.testing.assert_allclose(averaged, np.mean(answers[:2], axis=0), atol=1e-5)


def test_a_run_that_was_scored_on_variants_says_so_where_it_answers_from_a_store(
    config: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_split(config, set_of_run(run, "tta = false", "tta = true"), "test")
    # Heads on a frozen backbone are scored from the store, whatever the setting.
    assert "scored on variants" not in capsys.readouterr().err
    path = run.path / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init": "elsewhere"}))
    predict_split(config, load_run(run.path.parent, run.name), "test")
    assert "was scored on variants of its held-out pictures" in capsys.readouterr().err


def test_an_answer_in_plain_values_lists_every_state_most_probable_first(config: Config, run: Run) -> None:
    answer = predict_images(config, run, pictures(config, "test", 0)).describe()
    shares = [state["probability"] for state in answer["states"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, rel=1e-5)
    names = dict(zip(run.labels.state_idx.tolist(), run.labels.names, strict=True))
    assert {state["state_idx"]: state["state"] for state in answer["states"]} == names
    truth = truth_of(load_samples(config, "train"))
    south, north, west, east = region_box(truth.latitude, truth.longitude)
    assert south <= answer["latitude"] <= north
    assert west <= answer["longitude"] <= east


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_the_wrong_number_of_pictures_is_refused_with_the_views_by_name(
    config: Config, run: Run, count: int
) -> None:
    paths = (pictures(config, "test", 0) * 2)[:count]
    with pytest.raises(GeoError, match=f"{count} pictures?,.* 4 views: north, east, south, west"):
        predict_images(config, run, paths)


@pytest.mark.parametrize("fault", ["absent", "a directory", "no picture"])
def test_a_picture_that_cannot_be_read_is_named(config: Config, run: Run, tmp_path: Path, fault: str) -> None:
    paths = pictures(config, "test", 0)
    paths[2] = tmp_path / "bad.jpg"
    if fault == "a directory":
        paths[2].mkdir()
    elif fault == "no picture":
        paths[2].write_text("not a picture")
    with pytest.raises(GeoError, match="can't read the picture") as caught:
        predict_images(config, run, paths)
    assert caught.value.where == str(paths[2])


def test_a_backbone_with_other_weights_is_refused_and_the_runs_own_is_named(
    country: Country, run: Run, tmp_path: Path
) -> None:
    write_backbone(tmp_path / "other", seed=1)
    config = country.config(tmp_path)
    with pytest.raises(GeoError, match="other weights") as caught:
        predict_images(config, run, pictures(config, "test", 0), backbone=str(tmp_path / "other"))
    assert str(country.backbone) in str(caught.value)
    assert "--backbone" in caught.value.hint


def test_the_same_weights_under_another_name_are_the_runs_own(
    country: Country, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(country.backbone, tmp_path / "renamed")
    config = country.config(tmp_path)
    paths = pictures(config, "test", 0)
    fresh = predict_images(config, run, paths, backbone=str(tmp_path / "renamed"))
    usual = predict_images(config, run, paths)
    assert (fresh.probabilities == usual.probabilities).all()


def test_a_sample_without_any_view_gets_the_prior_and_a_warning(
    country: Country, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings = joined(run)
    usual = predict_embeddings(run, embeddings)
    values, present = embeddings.values.copy(), embeddings.present.copy()
    present[[2, 5]] = False
    values[[2, 5]] = np.nan
    bare = predict_embeddings(run, replace(embeddings, values=values, present=present))
    for row in (2, 5):
        np.testing.assert_allclose(bare.probabilities[row], run.prior.probabilities, rtol=1e-6)
        assert (bare.latitude[row], bare.longitude[row]) == (run.prior.latitude, run.prior.longitude)
    others = np.setdiff1d(np.arange(len(values)), [2, 5])
    np.testing.assert_allclose(bare.probabilities[others], usual.probabilities[others], rtol=1e-5)
    assert "2 samples of test have no picture" in capsys.readouterr().err


def test_a_sample_that_lacks_a_view_is_answered_from_the_others(country: Country, run: Run) -> None:
    embeddings = joined(run)
    values, present = embeddings.values.copy(), embeddings.present.copy()
    present[0, 1] = False
    values[0, 1] = np.inf
    partly = predict_embeddings(run, replace(embeddings, values=values, present=present))
    mean = torch.from_numpy(embeddings.values[0, [0, 2, 3]].astype(np.float32)).mean(dim=0, keepdim=True)
    np.testing.assert_allclose(partly.probabilities[:1], answer_for(run, mean)[0], rtol=1e-4)


def test_embeddings_of_another_width_are_refused(country: Country, run: Run) -> None:
    embeddings = joined(run)
    narrow = replace(embeddings, values=embeddings.values[:, :, :700])
    with pytest.raises(GeoError, match="embeddings of 700 numbers, where the run was fitted on 768"):
        predict_embeddings(run, narrow)


def test_a_split_that_this_runs_backbone_never_saw_names_the_command(own: Country, run: Run) -> None:
    shutil.rmtree(own.store("test"))
    with pytest.raises(GeoError, match="no test store has the fingerprint") as caught:
        predict_split(own.config(), run, "test")
    assert caught.value.hint.startswith("geo extract --split test")


def test_a_store_that_no_longer_fits_the_template_is_refused(own: Country, run: Run) -> None:
    lines = own.template.read_text().splitlines(keepends=True)
    own.template.write_text("".join(lines[:-1]))
    with pytest.raises(GeoError, match="no longer fits") as caught:
        predict_split(own.config(), run, "test")
    assert caught.value.hint.startswith("geo extract --split test")


@pytest.mark.parametrize("damage", ["gone", "cut", "a column less"])
def test_a_prediction_table_that_is_damaged_is_named(config: Config, run: Run, damage: str) -> None:
    _, path = predict_split(config, run, "test")
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    else:
        pd.read_parquet(path).drop(columns="latitude").to_parquet(path)
    with pytest.raises(GeoError) as caught:
        saved_predictions(path)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
