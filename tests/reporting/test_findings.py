"""What a report says of a run, as numbers: each is counted here again, another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Country
from small import saved_predictions
from worlds import made_run, make_world

from geo_embed.config import Config
from geo_embed.geography import haversine_km
from geo_embed.heads.calibration import apply
from geo_embed.metrics import bootstrap_interval, state_credit, top_states
from geo_embed.prediction.calibrate import calibrate
from geo_embed.prediction.difference import compare_runs
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.evaluate import evaluate
from geo_embed.reporting.areas import us_states
from geo_embed.reporting.evidence import gather
from geo_embed.reporting.figures import reliability
from geo_embed.reporting.findings import findings
from geo_embed.reporting.outlines import contains
from geo_embed.reporting.places import atlas, journeys
from geo_embed.reporting.scores import training_km
from geo_embed.reporting.weights import view_weights
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, load_run, on_this_machine

STATES = ("Kansas", "Missouri", "Illinois", "Indiana")


def world(root: Path, **changes: Any) -> Config:
    shape = {"samples": 120, "middle": (39.0, -98.0), "step": 4.0, "noise": 4.0, "views": ("n", "s")}
    return make_world(root, STATES, **(shape | changes))


def of(config: Config, *names: str, **options: Any) -> dict[str, Any]:
    return findings(config, [load_run(config.paths.runs_dir, name) for name in names], **options)


def test_all_of_it_is_json_and_says_what_evaluate_says(config: Config, run: Run) -> None:
    report = of(config, run.name)
    json.dumps(report, allow_nan=False)
    (run_findings,) = report["runs"]
    scores = evaluate(config, run)
    rows = {row["key"]: row for row in run_findings["headline"]}
    assert {key: row["value"] for key, row in rows.items()} == {key: scores[key] for key in rows}
    assert [rows["score"]["low"], rows["score"]["high"]] == scores["score_interval"]
    for key in ("state_score", "gps_score", "top1", "top5", "geoscore", "mean_km"):
        assert rows[key]["low"] < rows[key]["value"] < rows[key]["high"], key
    assert not [name for name, part in run_findings.items() if isinstance(part, dict) and "missing" in part]


def test_the_parts_make_up_the_scores_interval(config: Config, run: Run) -> None:
    """Where the points are all right the score is 0.7 times its states' part and 0.3."""
    path = run.predictions_path("val")
    table = pd.read_parquet(path)
    table["latitude"], table["longitude"] = table["true_latitude"], table["true_longitude"]
    table.to_parquet(path)
    rows = {row["key"]: row for row in of(config, run.name)["runs"][0]["headline"]}
    assert rows["gps_score"]["low"] == rows["gps_score"]["high"] == pytest.approx(1)
    for end in ("low", "high"):
        assert rows["score"][end] == pytest.approx(0.7 * rows["state_score"][end] + 0.3)


@pytest.mark.parametrize("folds", [1, 3])
def test_the_way_to_the_nearest_training_sample_is_measured_to_what_the_heads_have_seen(
    tmp_path: Path, folds: int
) -> None:
    config = world(tmp_path / "w", samples=40, training__folds=folds, training__epochs=1)
    evidence = gather(config, made_run(config, "a"))
    away = training_km(evidence)
    split = evidence.run.read_split()
    fold = dict(zip(split["sample_id"], split.get("fold", split["part"]), strict=True))
    truth = pd.read_csv(config.paths.csv("train")).set_index("sample_id")
    for k, sample_id in enumerate(evidence.predictions.sample_id):
        row = truth.loc[sample_id]
        others = truth[[fold[other] != fold[sample_id] for other in truth.index]]
        km = haversine_km(row["latitude"], row["longitude"], others["latitude"], others["longitude"])
        assert away is not None
        assert away[k] == pytest.approx(km.min(), abs=1e-3)


def test_random_and_spatial_stand_side_by_side_where_both_are_at_hand(tmp_path: Path) -> None:
    config = world(tmp_path / "w", training__epochs=1)
    made_run(config, "random")
    (alone,) = of(config, "random")["runs"]
    assert [column["kind"] for column in alone["validation"]["columns"]] == ["random"]
    assert alone["validation"]["lacking"] == "spatial"
    assert "training.validation=spatial" in alone["next"][0]["command"]

    training = config.training.model_copy(update={"validation": "spatial", "group_km": 30.0})
    spatial = made_run(config.model_copy(update={"training": training}), "spatial")
    for name in ("random", "spatial"):
        (run_findings,) = of(config, name)["runs"]
        assert [column["run"] for column in run_findings["validation"]["columns"]] == ["random", "spatial"]
        assert run_findings["validation"]["lacking"] is None
        assert run_findings["validation"]["columns"][1]["score"] == evaluate(config, spatial)["score"]


def test_near_twins_are_counted_and_the_score_without_them_is_said(tmp_path: Path) -> None:
    config = world(tmp_path / "w", samples=60)
    made = made_run(config, "a")
    measured = json.loads((made.path / "metrics.json").read_text())
    measured["twins"] = {"samples": 7, "score_without": 0.25}
    (made.path / "metrics.json").write_text(json.dumps(measured))
    (run_findings,) = of(config, "a")["runs"]
    (column,) = run_findings["validation"]["columns"]
    assert (column["twins"], column["without_twins"]) == (7, 0.25)
    assert "7 held-out samples have a near twin" in run_findings["next"][0]["why"]


def test_what_is_called_uncalibrated_is_what_the_heads_say_without_their_calibration(tmp_path: Path) -> None:
    config = world(tmp_path / "w", training__calibration="temperature", noise=6.0)
    evidence = gather(config, made_run(config, "a"))
    panel = load_heads(evidence.run)
    assert panel.calibration is not None
    # As recorded, by the calibration of all samples in the place of the folds'.
    raw = torch.softmax(
        torch.randn(len(evidence), len(STATES), generator=torch.Generator().manual_seed(0)), 1
    )
    recorded = apply(panel.calibration, raw.log()).exp().numpy()
    evidence.predictions.probabilities[:] = recorded
    before, after = reliability(evidence)["curves"]
    right = raw.numpy()[np.arange(len(evidence)), evidence.labels]
    assert before["nll"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert after["nll"] != pytest.approx(before["nll"], rel=1e-3)
    for curve in (before, after):
        assert sum(row["samples"] for row in curve["bins"]) == len(evidence)


def test_a_run_that_was_calibrated_afterwards_remembers_what_it_said_before(tmp_path: Path) -> None:
    config = world(tmp_path / "w", noise=6.0)
    made_run(config, "a")
    before = evaluate(config, load_run(config.paths.runs_dir, "a"))
    path = load_run(config.paths.runs_dir, "a").predictions_path("val")
    table = pd.read_parquet(path)
    sharp = np.stack(table["probabilities"].to_numpy()) ** 20
    table["probabilities"] = list((sharp / sharp.sum(axis=1, keepdims=True)).astype(np.float32))
    table.to_parquet(path)
    sharpened = evaluate(config, load_run(config.paths.runs_dir, "a"))
    assert sharpened["nll"] != before["nll"]
    assert calibrate(config, "a").applied
    section = of(config, "a")["runs"][0]["reliability"]
    after = evaluate(config, load_run(config.paths.runs_dir, "a"))
    assert section["calibrated"] == "temperature"
    assert [curve["nll"] for curve in section["curves"]] == pytest.approx([sharpened["nll"], after["nll"]])
    assert [curve["ece"] for curve in section["curves"]] == pytest.approx([sharpened["ece"], after["ece"]])


def test_without_a_calibration_it_shows_what_one_temperature_would_bring(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    evidence = gather(config, made_run(config, "a"))
    # Sharpened eightfold, a temperature must help.
    sharp = evidence.predictions.probabilities**8
    evidence.predictions.probabilities[:] = sharp / sharp.sum(axis=1, keepdims=True)
    section = reliability(evidence)
    before, after = section["curves"]
    assert section["calibrated"] is None
    assert after["nll"] < before["nll"]


def test_confusion_holds_every_sample_and_its_classes_once_each_neighbours_together(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    (run_findings,) = of(config, made_run(config, "a").name)["runs"]
    confusion, evidence = run_findings["confusion"], gather(config, load_run(config.paths.runs_dir, "a"))
    assert sum(n for _, _, n in confusion["cells"]) == len(evidence)
    # The classes lie in a row, west to east.
    assert confusion["order"] in ([0, 1, 2, 3], [3, 2, 1, 0])
    for label, answer, n in confusion["cells"]:
        assert n == ((evidence.labels == label) & (evidence.ranked[:, 0] == answer)).sum()
    wrong = sum(n for label, answer, n in confusion["cells"] if label != answer)
    assert sum(pair["samples"] for pair in confusion["pairs"]) == wrong > 0


def test_true_places_lie_in_their_states_on_the_pages_map(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    evidence = gather(config, made_run(config, "a"))
    shown, projection = atlas(evidence)
    drawn = journeys(evidence, projection)
    assert drawn["of"] == drawn["shown"] == len(evidence)
    assert len(drawn["points"]) + drawn["outside"] == len(evidence)
    row = {sample_id: k for k, sample_id in enumerate(evidence.ids)}
    states = {area.name: area.rings for area in us_states()}
    inside = []
    for sample_id, label, answer, km, confidence, path in drawn["points"]:
        k = row[sample_id]
        assert (label, answer) == (evidence.labels[k], evidence.ranked[k, 0])
        assert km == pytest.approx(evidence.km[k], abs=0.06)
        assert confidence == pytest.approx(evidence.confidence[k], abs=1e-3)
        x, y = path[0][0]
        assert 0 <= x <= shown["width"]
        assert 0 <= y <= shown["height"]
        # Longitudes come round after 360: the page's thousand units are made hundred.
        on_page = contains([np.array(ring) / 10 for ring in shown["classes"][label]], [y / 10], [x / 10])[0]
        truth = evidence.truth.take(slice(k, k + 1))
        inside.append((on_page, contains(states[STATES[label]], truth.latitude, truth.longitude)[0]))
    # Some of the places lie beside the state that they are called after; the page agrees with the globe on which.
    assert {on_page == on_globe for on_page, on_globe in inside} == {True}
    assert {on_page for on_page, _ in inside} == {True, False}


def test_errors_are_a_distribution_whose_marks_are_evaluates(config: Config, run: Run) -> None:
    (run_findings,) = of(config, run.name)["runs"]
    scores = evaluate(config, run)
    curve = run_findings["errors"]["curve"]
    assert [km for km, _, _ in curve] == sorted(km for km, _, _ in curve)
    assert curve[-1][1] == 1.0
    for mark in run_findings["errors"]["marks"]:
        assert mark["share"] == scores["within_km"][str(mark["km"])]
    predictions, _ = saved_predictions(run.predictions_path("val"))
    assert {sample_id for _, _, sample_id in curve} == set(predictions.sample_id)


def test_the_worst_the_best_and_the_least_certain_are_that(tmp_path: Path) -> None:
    config = world(tmp_path / "w", samples=200)
    evidence = gather(config, made_run(config, "a"))
    cases = of(config, "a")["runs"][0]["cases"]
    assert [len(rows) for rows in cases.values()] == [20, 20, 20]
    scores = evidence.table["score"].to_numpy()
    assert [case["score"] for case in cases["worst"]] == pytest.approx(np.sort(scores)[:20], abs=1e-4)
    assert [case["score"] for case in cases["best"]] == pytest.approx(np.sort(scores)[::-1][:20], abs=1e-4)
    sure = [case["top"][0][1] for case in cases["unsure"]]
    assert sure == pytest.approx(np.sort(evidence.confidence)[:20], abs=1e-4)
    for case in cases["worst"]:
        k = evidence.ids.index(case["id"])
        assert case["true"] == STATES[evidence.labels[k]]
        assert [name for name, _ in case["top"]] == [STATES[label] for label in evidence.ranked[k]]
        assert "views" not in case


def test_pictures_are_in_it_only_where_they_are_asked_for(config: Config, run: Run, country: Country) -> None:
    (plain,) = of(config, run.name)["runs"]
    (shown,) = of(config, run.name, pictures=True)["runs"]
    assert "data:image" not in json.dumps(plain)
    for case in shown["cases"]["worst"]:
        assert [name for name, _, _ in case["views"]] == list(run.config.model.view_names)
        assert all(
            url.startswith("data:image/jpeg;base64,") and len(url) < 20_000 for _, url, _ in case["views"]
        )


def test_a_picture_that_is_lost_is_said_to_be(own: Country, tmp_path: Path) -> None:
    from geo_embed.fitting.fit import fit_heads

    config = own.config()
    fit_heads(config, name="a")
    for picture in own.images().glob("*_north.jpg"):
        picture.unlink()
    (run_findings,) = of(config, "a", pictures=True)["runs"]
    for case in run_findings["cases"]["worst"]:
        (_, url, why), *others = case["views"]
        assert url == ""
        assert "No such file" in why
        assert all(url for _, url, _ in others)


def test_views_weigh_what_the_fusion_says(tmp_path: Path) -> None:
    config = world(tmp_path / "w", model__fusion="attention", views=("n", "e", "s"))
    made = on_this_machine(made_run(config, "a"), config.paths, "cpu")
    views = of(config, "a")["runs"][0]["views"]
    shares = view_weights(made, "train", gather(config, made).predictions.sample_id).shares
    assert [row["mean"] for row in views["weights"]] == pytest.approx(shares.mean(axis=0))
    assert sum(row["mean"] for row in views["weights"]) == pytest.approx(1)
    assert views["fusions"] == ["attention"]
    assert [row["view"] for row in views["ablation"]] == ["n", "e", "s"]


def test_an_average_weighs_all_views_alike_and_says_so(tmp_path: Path) -> None:
    config = world(tmp_path / "w", model__fusion="average")
    views = of(config, made_run(config, "a").name)["runs"][0]["views"]
    assert "weighs all views alike" in views["weights"]["missing"]
    assert len(views["ablation"]) == 2


def test_an_ensemble_shows_its_members_and_what_their_views_are_worth_together(tmp_path: Path) -> None:
    config = world(tmp_path / "w", model__fusion="attention")
    made_run(config, "a")
    training = config.training.model_copy(update={"seed": 3})
    made_run(config.model_copy(update={"training": training}), "b")
    ensemble(config, ["a", "b"], method="average", point="median", name="both")
    (run_findings,) = of(config, "both")["runs"]
    assert run_findings["kind"] == "ensemble"
    assert [(row["name"], row["weight"]) for row in run_findings["training"]["members"]] == [
        ("a", 0.5),
        ("b", 0.5),
    ]
    # Nothing was chosen, so what it answers with is what was scored: but for the epochs that the held-out samples chose.
    whole = {row["hidden"] + row["cost"] for row in run_findings["views"]["ablation"]}
    assert len(whole) == 1 or max(whole) - min(whole) < 1e-9
    assert {row["samples"] for row in run_findings["views"]["ablation"]} == {36}
    assert len({row["alone"] for row in run_findings["views"]["ablation"]}) == 2
    assert not [name for name, part in run_findings.items() if isinstance(part, dict) and "missing" in part]


def test_the_difference_of_two_runs_is_the_one_that_runs_compare_gives(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    made_run(config, "a")
    training = config.training.model_copy(update={"epochs": 1})
    made_run(config.model_copy(update={"training": training}), "b")
    report = of(config, "a", "b")
    (comparison,) = report["comparisons"]
    whole = compare_runs(config.paths.runs_dir, "a", "b")
    assert (comparison["rows"][0]["difference"], comparison["rows"][0]["low"]) == (
        whole.difference,
        whole.interval[0],
    )
    a, b = (run["headline"][0]["value"] for run in report["runs"])
    assert comparison["rows"][0]["difference"] == pytest.approx(a - b)


def test_runs_that_held_out_other_samples_are_shown_and_not_compared(tmp_path: Path) -> None:
    config = world(tmp_path / "w", samples=24, training__epochs=1, training__val_split=0.1)
    made_run(config, "a")
    for seed in range(1, 30):
        training = config.training.model_copy(update={"split_seed": seed})
        other = made_run(config.model_copy(update={"training": training}), f"b{seed}")
        held = [
            set(gather(config, load_run(config.paths.runs_dir, n)).predictions.sample_id)
            for n in ("a", other.name)
        ]
        if not held[0] & held[1]:
            break
    (comparison,) = of(config, "a", other.name)["comparisons"]
    assert "held out no sample in common" in comparison["missing"]


def test_a_run_whose_data_are_gone_says_what_it_still_knows(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    made_run(config, "a")
    (config.paths.data_root / "train_ground_truth.csv").unlink()
    for store in config.paths.cache_dir.rglob("zarr.json"):
        store.unlink()
    (run_findings,) = of(config, "a")["runs"]
    assert run_findings["headline"][0]["value"] > 0
    assert run_findings["map"]["source"] == "the held-out samples"
    assert run_findings["validation"]["columns"][0]["apart"] is None
    assert run_findings["views"]["missing"]


def test_a_run_that_held_nothing_out_has_a_report_that_says_so(config: Config, run: Run) -> None:
    path = run.predictions_path("val")
    pd.read_parquet(path).head(0).to_parquet(path)
    (run_findings,) = of(config, run.name)["runs"]
    for part in ("headline", "validation", "map", "confusion", "reliability", "errors", "views", "cases"):
        assert "held nothing out" in run_findings[part]["missing"]
    assert run_findings["next"]


def test_one_held_out_sample_has_no_interval_and_a_report(config: Config, run: Run) -> None:
    path = run.predictions_path("val")
    pd.read_parquet(path).head(1).to_parquet(path)
    report = of(config, run.name)
    json.dumps(report, allow_nan=False)
    assert {row["low"] for row in report["runs"][0]["headline"]} == {None}


def test_credit_is_that_of_the_metrics(config: Config, run: Run) -> None:
    evidence = gather(config, run)
    ranked = top_states(evidence.predictions.probabilities)
    low, high = bootstrap_interval(state_credit(ranked, evidence.labels), evidence.km)
    column = of(config, run.name)["runs"][0]["validation"]["columns"][0]
    assert (column["low"], column["high"]) == (low, high)
