"""Fitting learns, is the same every time, keeps its best epoch, and reads nothing but the store."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from small import saved_predictions

from geo_embed.answers import Predictions, Truth
from geo_embed.cache.store import MISSING, open_store
from geo_embed.config import Config, Training
from geo_embed.data.holdout import Places, folds, stratified_split
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.fitting.examples import Examples, find_prior, open_training_data
from geo_embed.fitting.fit import Dataset, _describe_labels, fit_heads, fit_splits, plan
from geo_embed.geography import class_centroids, distance_matrix_km, haversine_km, soft_labels
from geo_embed.heads.predictor import Panel, averaged
from geo_embed.metrics import metrics
from geo_embed.optim import warmup_cosine
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.predict import predict_split
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, load_run
from geo_embed.settings import resolve

if TYPE_CHECKING:
    from conftest import Country


def with_training(config: Config, **changes: object) -> Config:
    training = config.training.model_validate(config.training.model_dump() | changes)
    return config.model_copy(update={"training": training})


@pytest.fixture
def two_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def split_of(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "split.parquet")


def test_the_run_directory_holds_every_file_of_the_contract(fitted: Path) -> None:
    assert sorted(path.name for path in fitted.iterdir()) == [
        "config.toml",
        "haversine_matrix.npy",
        "heads.safetensors",
        "history.parquet",
        "labels.json",
        "metrics.json",
        "provenance.json",
        "recipe.json",
        "split.parquet",
        "state_centroids.json",
        "val_predictions.parquet",
    ]


def test_it_learns(config: Config) -> None:
    """Well above guessing at random and pointing at the middle of the training set, on samples it never saw."""
    fit_heads(with_training(config, batch_size=16, epochs=40, patience=40), name="x")
    run = load_run(config.paths.runs_dir, "x")
    truth = saved_predictions(run.path / "val_predictions.parquet")[1]
    assert truth is not None
    middle = haversine_km(run.prior.latitude, run.prior.longitude, truth.latitude, truth.longitude).mean()
    credit = (1 + 0.6 + 0.4 + 0.25 + 0.15) / len(run.labels)
    chance = 0.7 * credit + 0.3 * max(0, 1 - middle / 5000)
    held_out, seen = evaluate(config, run, "val"), evaluate(config, run, "train")
    assert 0.1 < chance < 0.35
    assert chance + 0.1 < held_out["score"] < 1
    assert seen["score"] > chance + 0.2
    assert seen["samples"] + held_out["samples"] == len(load_samples(config, "train"))
    history = pd.read_parquet(run.path / "history.parquet")
    gps = history["train_gps_loss"]
    assert gps.iloc[-1] < 0.75 * gps.iloc[0]
    # Of a cross-entropy with soft labels only what exceeds their own entropy can be learnt.
    counts, distances = run.read_classes()
    soft = soft_labels(distances, 300.0)
    above = history["train_state_loss"] + 0.8 * counts @ (soft * np.log(soft)).sum(axis=1) / counts.sum()
    assert 0 < above.iloc[-1] < 0.75 * above.iloc[0]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    config: Config, two_threads: None
) -> None:
    def heads(name: str, seed: int) -> bytes:
        fit_heads(with_training(config, seed=seed, epochs=2), name=name)
        return (config.paths.runs_dir / name / "heads.safetensors").read_bytes()

    first = heads("a", 3)
    assert heads("b", 3) == first
    assert heads("c", 4) != first
    assert split_of(config.paths.runs_dir / "a").equals(split_of(config.paths.runs_dir / "b"))
    assert split_of(config.paths.runs_dir / "a").equals(split_of(config.paths.runs_dir / "c"))


def test_the_split_has_a_seed_of_its_own(config: Config) -> None:
    runs = config.paths.runs_dir
    for name, seed in (("a", 0), ("b", 1)):
        fit_heads(with_training(config, split_seed=seed, epochs=1), name=name)
    assert not split_of(runs / "a").equals(split_of(runs / "b"))


def test_fitting_leaves_the_callers_random_numbers_alone(config: Config) -> None:
    import torch

    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    fit_heads(with_training(config, epochs=1), name="x")
    assert torch.equal(torch.rand(3), wanted)


def test_the_split_that_was_used_is_stratified_seeded_and_saved(config: Config, fitted: Path) -> None:
    samples = load_samples(config, "train")
    val = stratified_split(samples.sample_id, samples.truth.state_idx, 0.1, seed=0)
    saved = split_of(fitted)
    assert saved["sample_id"].astype(str).tolist() == samples.sample_id.tolist()
    assert (saved["part"] == "val").tolist() == val.tolist()
    predictions, truth = saved_predictions(fitted / "val_predictions.parquet")
    assert predictions.sample_id.tolist() == samples.sample_id[val].tolist()
    assert truth.state_idx.tolist() == samples.truth.state_idx[val].tolist()
    assert truth.latitude.tolist() == samples.truth.latitude[val].tolist()


# ---------------------------------------------------------------- the schedule


def test_the_rate_rises_on_a_line_and_falls_on_half_a_cosine() -> None:
    factors = [warmup_cosine(step, 100, 0.1) for step in range(101)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 11)
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-15)
    assert factors[10 + 30] == pytest.approx(0.5 * (1 + np.cos(np.pi / 3)))
    assert (np.diff(factors[:11]) > 0).all()
    assert (np.diff(factors[10:]) < 0).all()


def test_without_a_warm_up_the_rate_starts_at_its_peak() -> None:
    assert warmup_cosine(0, 100, 0.0) == 1


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_first_step_of_the_shortest_training_still_moves(steps: int, warmup: float) -> None:
    factors = [warmup_cosine(step, steps, warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


def test_the_rate_of_training_follows_the_schedule(config: Config) -> None:
    samples = len(load_samples(config, "train"))
    held_out = round(samples * 0.1)
    fit_heads(with_training(config, epochs=4, batch_size=32, patience=4, warmup=0.25), name="x")
    steps = -(-(samples - held_out) // 32)
    history = pd.read_parquet(config.paths.runs_dir / "x" / "history.parquet")
    # An epoch's entry holds the rate of its last step.
    wanted = [1e-3 * warmup_cosine(steps * epoch - 1, steps * 4, 0.25) for epoch in range(1, 5)]
    np.testing.assert_allclose(history["learning_rate"], wanted)
    assert history["epoch"].tolist() == [1, 2, 3, 4]


# ---------------------------------------------------------------- the best epoch


def test_it_stops_early_and_keeps_the_best_epoch_not_the_last(config: Config) -> None:
    fit = fit_heads(with_training(config, epochs=300, patience=3, learning_rate=3e-3), name="x")
    path = config.paths.runs_dir / "x"
    history = pd.read_parquet(path / "history.parquet")
    assert fit.epochs == len(history) < 300
    # The parts of the held-out samples may look on after the third epoch without a better score.
    waited = [
        n
        for n in range(3, len(history))
        if history["val_score"][: n - 2].max() >= history["val_score"][: n + 1].max()
    ]
    best = int(history["val_score"][: waited[0]].argmax())
    assert best == waited[0] - 3
    written = json.loads((path / "metrics.json").read_text())
    val = written["val"]
    assert val == fit.val
    row = history.iloc[best]
    assert row["val_score"] == written["chosen"]["score"] == fit.chosen_score
    # And the heads on disk are those of that epoch: they give the same answers.
    run = load_run(config.paths.runs_dir, "x")
    everything, _ = predict_split(config, run, "train")
    predictions, truth = saved_predictions(path / "val_predictions.parquet")
    place = {sample_id: n for n, sample_id in enumerate(everything.sample_id)}
    rows = [place[sample_id] for sample_id in predictions.sample_id]
    assert truth is not None
    of_heads = metrics(everything.take(np.array(rows)), truth)
    assert of_heads["score"] == pytest.approx(row["val_score"], abs=1e-6)
    assert of_heads["nll"] == pytest.approx(row["val_nll"], rel=1e-5)
    # What is reported is of answers that these samples had no say in.
    again = metrics(predictions, truth)
    assert val == evaluate(config, run)
    assert again == {key: val[key] for key in again}


# ---------------------------------------------------------------- what is written


def test_centroids_and_the_distance_matrix_come_from_training_samples_alone(
    config: Config, fitted: Path
) -> None:
    samples = load_samples(config, "train")
    kept = (split_of(fitted)["part"] == "train").to_numpy()
    labels = json.loads((fitted / "labels.json").read_text())["classes"]
    order = [entry["state_idx"] for entry in labels]
    classes = np.searchsorted(order, samples.truth.state_idx[kept])
    wanted = class_centroids(samples.truth.latitude[kept], samples.truth.longitude[kept], classes, len(order))
    saved = json.loads((fitted / "state_centroids.json").read_text())
    assert list(saved) == [str(index) for index in order]
    points = np.array([[entry["latitude"], entry["longitude"]] for entry in saved.values()])
    np.testing.assert_allclose(points, wanted, rtol=1e-12)
    assert [entry["state"] for entry in saved.values()] == [entry["state"] for entry in labels]
    matrix = np.load(fitted / "haversine_matrix.npy")
    np.testing.assert_allclose(matrix, distance_matrix_km(points), atol=1e-6)
    assert matrix.shape == (len(order), len(order))
    assert [entry["samples"] for entry in labels] == np.bincount(classes).tolist()


def test_the_prior_is_the_training_samples_mix_of_states_and_their_middle(config: Config, run: Run) -> None:
    samples = load_samples(config, "train")
    kept = (split_of(run.path)["part"] == "train").to_numpy()
    shares = pd.Series(samples.truth.state_idx[kept]).value_counts(normalize=True).sort_index()
    assert shares.index.tolist() == run.labels.state_idx.tolist()
    np.testing.assert_allclose(run.prior.probabilities, shares)
    ((lat, lon),) = class_centroids(
        samples.truth.latitude[kept], samples.truth.longitude[kept], np.zeros(kept.sum(), int), 1
    )
    assert (run.prior.latitude, run.prior.longitude) == (pytest.approx(lat), pytest.approx(lon))


def test_settings_and_provenance_are_kept_with_the_run(country: Country, config: Config, run: Run) -> None:
    tracked = config.model_copy(update={"tracking": config.tracking.model_copy(update={"note": "try 7"})})
    fit_heads(with_training(tracked, seed=5, epochs=1), name="noted")
    path = config.paths.runs_dir / "noted"
    assert resolve(path / "config.toml")[0] == with_training(tracked, seed=5, epochs=1)
    provenance = json.loads((path / "provenance.json").read_text())
    assert provenance["note"] == "try 7"
    assert provenance["seed"] == 5
    assert provenance["data"]["sha256"] == hashlib.sha256(country.train_csv.read_bytes()).hexdigest()
    store = open_store(country.store())
    for key in ("fingerprint", "weights_sha256", "manifest_sha256", "backbone"):
        assert provenance["store"][key] == store.attrs[key]
    assert (
        provenance["store"]["samples"],
        provenance["store"]["views"],
        provenance["store"]["dim"],
    ) == store.shape
    assert {"python", "torch", "numpy", "geo-embed"} <= set(provenance["versions"])
    assert provenance["seconds"] > 0


def test_a_run_without_a_name_gets_one(config: Config) -> None:
    fit = fit_heads(with_training(config, epochs=1))
    assert [path.name for path in config.paths.runs_dir.iterdir()] == [fit.run]


# ---------------------------------------------------------------- what is read


def test_no_picture_is_read(own: Country) -> None:
    shutil.rmtree(own.data / "train_images")
    shutil.rmtree(own.data / "test_images")
    assert fit_heads(with_training(own.config(), epochs=1), name="blind").epochs == 1


def test_nothing_is_written_to_the_cache_or_the_data(own: Country) -> None:
    def state() -> dict[Path, int]:
        below = [path for top in (own.cache, own.data, own.backbone) for path in top.rglob("*")]
        return {path: path.stat().st_mtime_ns for path in below}

    before = state()
    fit_heads(with_training(own.config(), epochs=1), name="quiet")
    assert state() == before


def test_the_backbone_need_not_be_on_this_machine(own: Country) -> None:
    from geo_embed.extraction.extract import extract

    shutil.rmtree(own.cache)
    extract(own.config(), "train")
    shutil.rmtree(own.backbone)
    assert fit_heads(with_training(own.config(), epochs=1), name="bare").epochs == 1


def test_truth_may_be_corrected_without_extracting_again(own: Country) -> None:
    table = pd.read_csv(own.train_csv)
    table["latitude"] += 0.001
    table.assign(note="x")[["note", *table.columns[::-1]]].to_csv(own.train_csv, index=False)
    assert fit_heads(with_training(own.config(), epochs=1), name="x").epochs == 1


# ---------------------------------------------------------------- too little


def test_where_shared_pictures_leave_nothing_to_hold_out_that_is_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    n = 30
    ids = np.array([str(k) for k in range(n)], dtype=object)
    labels, latitude = np.zeros(n, dtype=np.int64), np.linspace(30.0, 40.0, n)
    places = Places(ids, labels, latitude, latitude, tied=np.zeros(n, dtype=np.int64))
    (split,) = plan(places, Training())
    assert not split.val.any()
    err = capsys.readouterr().err
    assert "samples that share pictures are too many of their class to hold any out" in err
    assert "too few" not in err


def test_where_nothing_can_be_held_out_all_epochs_are_run_and_no_score_is_claimed(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = load_samples(config, "train")
    assert len(set(samples.truth.state_idx[:4])) == 4
    fit = fit_heads(with_training(config, epochs=7, patience=1), name="few", limit=4)
    assert "too few samples to hold any out" in capsys.readouterr().err
    assert fit.epochs == 7
    assert fit.val["samples"] == 0
    assert fit.val["score"] is None
    history = pd.read_parquet(config.paths.runs_dir / "few" / "history.parquet")
    assert list(history) == [
        "epoch",
        "learning_rate",
        "train_loss",
        "train_state_loss",
        "train_gps_loss",
        "seed",
        "fold",
    ]
    run = load_run(config.paths.runs_dir, "few")
    assert len(run.labels) == 4
    assert split_of(run.path)["part"].tolist() == ["train"] * 4
    assert evaluate(config, run) == fit.val
    assert predict_split(config, run, "test")[0].probabilities.shape[1] == 4


def test_limit_takes_the_first_samples(config: Config) -> None:
    fit_heads(with_training(config, epochs=1), name="x", limit=50)
    saved = split_of(config.paths.runs_dir / "x")
    assert saved["sample_id"].astype(str).tolist() == load_samples(config, "train").sample_id[:50].tolist()


def test_samples_without_pictures_are_left_out_and_said(
    own: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(own.store())
    status, values = np.asarray(store.status[:]), np.asarray(store.embeddings[:])
    status[3], status[4, 1] = MISSING, MISSING
    values[status == MISSING] = 0
    store.status[:], store.embeddings[:] = status, values
    fit_heads(with_training(own.config(), epochs=1), name="x")
    warnings = capsys.readouterr().err
    assert "1 sample has no picture and is left out of training" in warnings
    assert "1 sample lacks some of its views" in warnings
    saved = split_of(own.root / "runs" / "x")["sample_id"].astype(str).tolist()
    ids = load_samples(own.config(), "train").sample_id.tolist()
    assert saved == ids[:3] + ids[4:]


def test_a_rate_that_blows_up_is_an_error_not_a_run(config: Config) -> None:
    with pytest.raises(GeoError, match=r"the loss became|answers are NaN or infinite") as caught:
        fit_heads(with_training(config, learning_rate=1e30, clip_norm=1e30), name="x")
    assert "training.learning_rate" in caught.value.hint
    assert not config.paths.runs_dir.exists()


# ---------------------------------------------------------------- seeds and folds


@dataclass(frozen=True)
class Saved:
    """What a run says of itself."""

    run: Run
    predictions: Predictions
    truth: Truth
    split: pd.DataFrame
    metrics: dict[str, Any]

    @classmethod
    def of(cls, config: Config, name: str) -> Saved:
        run = load_run(config.paths.runs_dir, name)
        predictions, truth = saved_predictions(run.path / "val_predictions.parquet")
        assert truth is not None
        described = json.loads((run.path / "metrics.json").read_text())
        return cls(run, predictions, truth, split_of(run.path), described)


def fitted_as(config: Config, **training: object) -> tuple[Config, Saved, Examples]:
    config = with_training(config, **({"epochs": 2, "batch_size": 32} | training))
    fit_heads(config, name="x")
    return config, Saved.of(config, "x"), open_training_data(config).examples


SHAPES = [{"seeds": 2}, {"folds": 3}, {"folds": 3, "seeds": 2}]


@pytest.mark.parametrize("training", SHAPES)
def test_there_is_a_set_of_heads_per_fold_and_seed_and_the_run_answers_with_their_average(
    config: Config, training: dict[str, int]
) -> None:
    config, saved, data = fitted_as(config, **training)
    panel = load_heads(saved.run)
    wanted = [
        (seed, fold) for fold in range(training.get("folds", 1)) for seed in range(training.get("seeds", 1))
    ]
    parts = saved.metrics["parts"]
    assert [(part["seed"], part["fold"]) for part in parts] == wanted
    assert len(panel.parts) == len(wanted)
    assert all(0 < part["score"] < 1 and part["epochs"] == 2 for part in parts)
    history = pd.read_parquet(saved.run.path / "history.parquet")
    assert history.groupby(["seed", "fold"])["epoch"].agg(list).tolist() == [[1, 2]] * len(wanted)
    everything = predict_split(config, saved.run, "train")[0]
    views, present = torch.from_numpy(data.values), torch.from_numpy(data.present)
    with torch.inference_mode():
        each = torch.stack([part.predict(views, present)[0] for part in panel.parts])
    np.testing.assert_allclose(everything.probabilities, each.mean(0), rtol=1e-4, atol=1e-6)
    assert float((each[0] - each[1]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "training", [SHAPES[1], SHAPES[2], {"folds": 3, "validation": "spatial", "group_km": 5}]
)
def test_out_of_fold_every_sample_is_held_out_once_but_those_that_never_can_be(
    config: Config, training: dict[str, object]
) -> None:
    config, saved, data = fitted_as(config, **training)
    wanted = folds(data.places, config.training)
    assert saved.split["sample_id"].astype(str).tolist() == data.sample_id.tolist()
    assert saved.split["fold"].tolist() == wanted.tolist()
    assert ((saved.split["part"] == "val") == (wanted >= 0)).all()
    assert saved.predictions.sample_id.tolist() == data.sample_id[wanted >= 0].tolist()
    assert saved.truth.state_idx.tolist() == data.truth.state_idx[wanted >= 0].tolist()
    alone = np.bincount(data.labels)[data.labels] == 1
    if "validation" not in training:
        assert ((wanted < 0) == alone).all()
    assert saved.metrics["val"]["samples"] == (wanted >= 0).sum()


@pytest.mark.parametrize("training", SHAPES)
def test_each_rows_answer_comes_from_heads_that_have_not_seen_it(
    config: Config, training: dict[str, int]
) -> None:
    config, saved, data = fitted_as(config, **training)
    splits = plan(data.places, config.training)
    prior = find_prior(data, np.logical_or.reduce([split.train for split in splits]))
    dataset = Dataset(data, prior, torch.device("cpu"))
    place = {sample_id: row for row, sample_id in enumerate(saved.predictions.sample_id)}
    for fold in {split.fold for split in splits}:
        of_fold = [split for split in splits if split.fold == fold]
        assert not any((split.train & split.val).any() for split in of_fold)
        again = fit_splits(dataset, of_fold, config.model, config.training)
        val = np.flatnonzero(of_fold[0].val)
        views, present = torch.from_numpy(data.values[val]), torch.from_numpy(data.present[val])
        with torch.inference_mode():
            states, points = Panel([part.heads for part in again]).predict(views, present)
        chosen = averaged([part.chosen or part.predictions for part in again])
        np.testing.assert_allclose(chosen.probabilities, states, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(chosen.latitude, points[:, 0], rtol=1e-5)
        np.testing.assert_allclose(chosen.longitude, points[:, 1], rtol=1e-5)
        rows = [place[sample_id] for sample_id in data.sample_id[val]]
        reported = averaged([part.predictions for part in again])
        np.testing.assert_allclose(saved.predictions.probabilities[rows], reported.probabilities, rtol=1e-6)
        np.testing.assert_allclose(saved.predictions.latitude[rows], reported.latitude)
        np.testing.assert_allclose(saved.predictions.longitude[rows], reported.longitude)


@pytest.mark.parametrize(
    "training", [*SHAPES, {"validation": "spatial", "group_km": 5}, {"folds": 3, "calibration": "vector"}]
)
def test_the_score_of_the_run_is_that_of_its_predictions(config: Config, training: dict[str, object]) -> None:
    config, saved, _ = fitted_as(config, **training)
    assert evaluate(config, saved.run) == saved.metrics["val"]
    low, high = saved.metrics["val"]["score_interval"]
    assert low <= saved.metrics["val"]["score"] <= high


def test_of_many_fits_the_first_race_is_told_in_full_and_each_in_one_line(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    _, saved, _ = fitted_as(config, preset="best", budget_seconds=1e-6, folds=2, seeds=2)
    lines = capsys.readouterr().err.splitlines()
    raced = [line for line in lines if line.startswith("race ")]
    told = [line for line in lines if line.startswith("fit ")]
    assert len(raced) == int(raced[0].split(":")[0].split()[-1])
    assert len([line for line in lines if line.startswith(("best: ", "race: places"))]) == 2
    assert [line.split(": ")[0] for line in told] == [
        f"fit {place} of 4, fold {fold}, seed {seed}"
        for place, (fold, seed) in enumerate(itertools.product((0, 1), (0, 1)), start=1)
    ]
    assert all("chosen: " in line and "state labels: hard" in line for line in told)
    leads = [float(line.split("best candidate ")[1]) for line in told]
    assert leads[0] == max(float(line.split(",")[0].split()[-1]) for line in raced)
    assert all(part["state_labels"] == pytest.approx({"hard": 1.0}) for part in saved.metrics["parts"])


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"hard": 0.44, "soft": 0.56}, "soft (haversine) won, 0.56 to 0.44"),
        ({"hard": 1.0, "soft": 0.0}, "hard won, 1.00 to 0.00"),
        ({"hard": 1.0}, "hard, no others raced"),
    ],
)
def test_which_state_labels_won_is_said(shares: dict[str, float], said: str) -> None:
    assert _describe_labels(shares) == f"state labels: {said}"


def test_other_seeds_are_the_next_ones(config: Config) -> None:
    _, both, _ = fitted_as(config, seeds=2, seed=4)
    fit_heads(with_training(config, epochs=2, batch_size=32, seed=4), name="alone")
    first = load_heads(both.run).parts[0].state_dict()
    alone = load_heads(load_run(config.paths.runs_dir, "alone")).parts[0].state_dict()
    assert all(torch.equal(value, alone[key]) for key, value in first.items())
    assert [part["seed"] for part in both.metrics["parts"]] == [4, 5]


def test_spatial_validation_holds_neighbours_out_together(config: Config) -> None:
    config, saved, data = fitted_as(config, validation="spatial", group_km=30)
    val = (saved.split["part"] == "val").to_numpy()
    assert 0 < val.sum() < len(val) / 2
    km = distance_matrix_km(np.stack([data.truth.latitude, data.truth.longitude], axis=1))
    assert km[val][:, ~val].min() > 30
    shuffled = plan(data.places, Training(validation="random"))[0]
    assert km[shuffled.val][:, shuffled.train].min() < 30


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("training", [{"folds": 3}, {"val_split": 0.4}])
def test_calibration_is_reported_before_and_after_and_answers_from_then_on(
    config: Config, training: dict[str, object]
) -> None:
    # After one epoch answers are less certain than they could be.
    config, saved, data = fitted_as(config, calibration="temperature", epochs=1, **training)
    reliability = saved.metrics["calibration"]
    assert reliability["after"]["nll"] < reliability["before"]["nll"]
    assert saved.metrics["val"]["nll"] == pytest.approx(reliability["after"]["nll"], rel=1e-4)
    assert saved.metrics["val"]["ece"] == pytest.approx(reliability["after"]["ece"], abs=1e-4)
    panel = load_heads(saved.run)
    assert panel.calibration is not None
    assert panel.calibration.kind == "temperature"
    views, present = torch.from_numpy(data.values), torch.from_numpy(data.present)
    with torch.inference_mode():
        calibrated = panel.predict(views, present)[0]
        panel.calibration = None
        bare = panel.predict(views, present)[0]
    np.testing.assert_allclose(
        predict_split(config, saved.run, "train")[0].probabilities, calibrated, rtol=1e-4, atol=1e-6
    )
    assert float((calibrated - bare).abs().max()) > 1e-3


def test_a_calibration_that_does_not_help_is_reported_and_left_out(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    # So few samples are too few for a factor and an offset per state.
    _, saved, _ = fitted_as(config, calibration="vector", epochs=6, folds=3)
    reliability = saved.metrics["calibration"]
    assert reliability["after"]["nll"] > reliability["before"]["nll"]
    assert saved.metrics["val"]["nll"] == pytest.approx(reliability["before"]["nll"], rel=1e-4)
    assert load_heads(saved.run).calibration is None
    assert "calibration by vector is left out" in capsys.readouterr().err


def test_a_temperature_of_ones_own_is_kept_reported_and_answers(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config, plain, data = fitted_as(config, epochs=4, val_split=0.4)
    before = predict_split(config, plain.run, "train")[0]
    fit_heads(with_training(config, temperature=1.7), name="own")
    saved = Saved.of(config, "own")

    def cooled(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
        powers = probabilities.astype(np.float64) ** (1 / 1.7)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    after = predict_split(config, saved.run, "train")[0]
    np.testing.assert_allclose(after.probabilities, cooled(before.probabilities), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(after.latitude, before.latitude)
    np.testing.assert_allclose(
        saved.predictions.probabilities, cooled(plain.predictions.probabilities), rtol=1e-4, atol=1e-6
    )
    labels = data.encoder.encode(saved.truth.state_idx)
    p_true = cooled(plain.predictions.probabilities)[np.arange(len(labels)), labels]
    reliability = saved.metrics["calibration"]
    assert reliability["after"]["nll"] == pytest.approx(-np.log(p_true).mean(), rel=1e-4)
    assert reliability["before"]["nll"] == pytest.approx(plain.metrics["val"]["nll"], rel=1e-4)
    assert saved.metrics["val"]["nll"] == pytest.approx(reliability["after"]["nll"], rel=1e-4)
    worse = reliability["after"]["nll"] > reliability["before"]["nll"]
    assert ("makes held-out samples less likely" in capsys.readouterr().err) is worse


def test_without_calibration_none_is_told(config: Config) -> None:
    _, saved, _ = fitted_as(config)
    assert "calibration" not in saved.metrics
    assert load_heads(saved.run).calibration is None


# ---------------------------------------------------------------- odd training sets, by either recipe

PRESETS = ["pigeon", "best"]


def with_states(own: Country, state_idx: list[int]) -> Config:
    """The country with only so many rows, of these states; the rest of the store isn't looked at."""
    table = pd.read_csv(own.train_csv)
    names = dict(zip(table["state_idx"], table["state"], strict=True))
    known = sorted(names)
    table.loc[: len(state_idx) - 1, "state_idx"] = [known[k] for k in state_idx]
    table["state"] = [names[k] for k in table["state_idx"]]
    table.to_csv(own.train_csv, index=False)
    return own.config(training__epochs=3, training__budget_seconds=1e-6)


def answers_of(config: Config, limit: int, **training: object) -> tuple[Saved, Predictions]:
    config = with_training(config, **training)
    fit_heads(config, name="odd", limit=limit)
    saved = Saved.of(config, "odd")
    predictions = predict_split(config, saved.run, "test")[0]
    assert np.isfinite(predictions.probabilities).all()
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (np.abs(predictions.latitude) <= 90).all()
    assert (np.abs(predictions.longitude) <= 180).all()
    assert evaluate(config, saved.run) == saved.metrics["val"]
    return saved, predictions


@pytest.mark.parametrize("preset", PRESETS)
def test_a_class_with_one_sample_stays_in_training(own: Country, preset: str) -> None:
    config = with_states(own, [0] * 20 + [1] * 20 + [2])
    saved, predictions = answers_of(config, 41, preset=preset, val_split=0.3)
    assert saved.split["part"].tolist()[40] == "train"
    assert (saved.split["part"] == "val").sum() == 12
    assert predictions.probabilities.shape[1] == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_folds_leave_a_class_with_one_sample_in_training_always(own: Country, preset: str) -> None:
    config = with_states(own, [0] * 20 + [1] * 20 + [2])
    saved, _ = answers_of(config, 41, preset=preset, folds=2)
    assert saved.split["fold"].tolist()[40] == -1
    assert len(saved.predictions.sample_id) == 40


@pytest.mark.parametrize("preset", PRESETS)
def test_one_class_only_is_certain_and_the_point_still_split_of(own: Country, preset: str) -> None:
    saved, predictions = answers_of(with_states(own, [0] * 50), 50, preset=preset)
    assert predictions.probabilities.tolist() == [[1.0]] * 32
    assert saved.metrics["val"]["top1"] == 1
    assert saved.metrics["val"]["state_score"] == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_a_validation_set_that_lacks_a_class_is_scored_like_any_other(own: Country, preset: str) -> None:
    config = with_states(own, [0] * 45 + [1] * 2 + [2] * 3)
    saved, _ = answers_of(config, 50, preset=preset, val_split=0.1)
    assert 1 not in saved.run.labels.encode(saved.truth.state_idx)
    assert len(saved.run.labels) == 3
    assert saved.metrics["val"]["samples"] == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_one_sample_is_a_run_that_says_nothing_of_its_score(
    own: Country, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, predictions = answers_of(with_states(own, [0]), 1, preset=preset, calibration="vector")
    assert "too few samples to hold any out" in capsys.readouterr().err
    assert saved.metrics["val"]["samples"] == 0
    assert saved.metrics["val"]["score"] is None
    assert predictions.probabilities.tolist() == [[1.0]] * 32
    here = haversine_km(
        predictions.latitude, predictions.longitude, saved.run.prior.latitude, saved.run.prior.longitude
    )
    assert here.max() < 20


@pytest.mark.parametrize("preset", PRESETS)
def test_more_folds_than_samples_is_an_error_that_names_the_setting(own: Country, preset: str) -> None:
    config = with_training(with_states(own, [0] * 3), preset=preset, folds=4)
    with pytest.raises(GeoError, match="4 folds of 3 samples") as caught:
        fit_heads(config, name="odd", limit=3)
    assert "training.folds" in caught.value.where
    assert not config.paths.runs_dir.exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_embeddings_of_nan_are_refused_by_either_recipe(own: Country, preset: str) -> None:
    store = open_store(own.store())
    values = np.asarray(store.embeddings[:])
    values[0, 0, 0] = np.inf
    store.embeddings[:] = values
    with pytest.raises(GeoError, match="NaN or infinite"):
        fit_heads(with_training(own.config(), preset=preset), name="x")
    assert not (own.root / "runs").exists()


def test_a_failed_fold_leaves_no_run(config: Config) -> None:
    with pytest.raises(GeoError, match=r"the loss became|NaN or infinite"):
        fit_heads(with_training(config, folds=2, learning_rate=1e30, clip_norm=1e30), name="x")
    assert not config.paths.runs_dir.exists()
