"""A finished run is calibrated by the samples that it held out, in one piece, and can be put back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from small import command, files, saved_predictions

from geo_embed.config import Config
from geo_embed.errors import BusyError, GeoError
from geo_embed.files import write_json
from geo_embed.finetuning.finetune import finetune
from geo_embed.fitting.fit import fit_heads
from geo_embed.heads.calibration import Calibration, apply, cross_fitted
from geo_embed.metrics import metrics
from geo_embed.prediction import calibrate as room
from geo_embed.prediction.calibrate import Calibrated, calibrate, is_calibrated
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.predict import predict_split
from geo_embed.prediction.submission import submit
from geo_embed.runs.listing import summarise
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, load_run, only_run_writer
from geo_embed.runs.tags import read_tags, tag_run

if TYPE_CHECKING:
    from conftest import Country

VAL = "val_predictions.parquet"


def fit(config: Config, name: str, **training: object) -> Run:
    changes = {"folds": 2, "epochs": 12, "learning_rate": 0.01, "patience": 12} | training
    fit_heads(config.model_copy(update={"training": config.training.model_copy(update=changes)}), name=name)
    return load_run(config.paths.runs_dir, name)


@pytest.fixture(scope="module")
def made(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds, surer than it is right: every sample is held out."""
    return fit(country.config(tmp_path_factory.mktemp("sure")), "sure").path


@pytest.fixture
def sure(made: Path, config: Config) -> Run:
    shutil.copytree(made, config.paths.runs_dir / "sure")
    return load_run(config.paths.runs_dir, "sure")


def test_a_run_is_calibrated_by_the_samples_it_held_out_and_scored_by_those_that_chose_nothing(
    config: Config, sure: Run
) -> None:
    before, truth = saved_predictions(sure.path / VAL)
    assert truth is not None
    done = calibrate(config, "sure")
    assert (done.run, done.kind, done.applied, done.changed) == ("sure", "temperature", True, True)
    assert done.samples == len(truth) > 100
    assert done.nll["after"] < done.nll["before"]
    # Before is what the run said; after is what it says now of samples that chose nothing.
    after, _ = saved_predictions(sure.path / VAL)
    measured = {"before": metrics(before, truth), "after": metrics(after, truth)}
    for when, scores in measured.items():
        assert done.nll[when] == pytest.approx(scores["nll"], rel=1e-5)
        assert done.ece[when] == pytest.approx(scores["ece"], abs=1e-5)
    recorded = json.loads((sure.path / "metrics.json").read_text())
    assert recorded["val"]["nll"] == pytest.approx(done.nll["after"], rel=1e-5)
    assert recorded["calibration"]["before"]["nll"] == done.nll["before"]
    assert recorded["parts"], "what else is known of the training stays"
    # The calibration of all samples would say otherwise, and better than it should.
    fitted = load_heads(load_run(sure.path.parent, "sure")).calibration
    assert fitted is not None
    by_all = apply(fitted, torch.from_numpy(before.probabilities).log()).exp().numpy()
    assert not np.allclose(by_all, after.probabilities, atol=1e-6)
    np.testing.assert_array_equal(after.latitude, before.latitude)
    assert np.array_equal(after.probabilities.argmax(axis=1), before.probabilities.argmax(axis=1))


def test_predictions_and_submissions_use_it_and_those_of_before_are_not_used_again(
    config: Config, sure: Run
) -> None:
    before, path = predict_split(config, sure, "test")
    calibrate(config, "sure")
    assert not path.exists()
    now = load_run(sure.path.parent, "sure")
    submit(config, now, None)
    after, _ = saved_predictions(path)
    fitted = load_heads(now).calibration
    assert fitted is not None
    wanted = apply(fitted, torch.from_numpy(before.probabilities).log()).exp().numpy()
    np.testing.assert_allclose(after.probabilities, wanted, atol=1e-5)
    assert np.abs(after.probabilities - before.probabilities).max() > 0.01


def test_once_or_again_is_the_same_and_none_puts_everything_back(config: Config, sure: Run) -> None:
    before, predictions = files(sure.path), pd.read_parquet(sure.path / VAL)
    once = calibrate(config, "sure")
    calibrated, inode = files(sure.path), sure.path.stat().st_ino
    again = calibrate(config, "sure")
    assert (again.nll, again.ece, again.changed) == (once.nll, once.ece, False)
    assert (files(sure.path), sure.path.stat().st_ino) == (calibrated, inode), "nothing was written"
    vector = calibrate(config, "sure", kind="vector")
    assert vector.nll["before"] == once.nll["before"], "from what the run said before the first"
    back = calibrate(config, "sure", kind="none")
    assert (back.kind, back.applied, back.nll["after"]) == ("none", False, once.nll["before"])
    after = files(sure.path)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    # Who did what is remembered; tables and scores are written anew, with the same content.
    assert changed <= {"provenance.json", "metrics.json", VAL}
    pd.testing.assert_frame_equal(pd.read_parquet(sure.path / VAL), predictions)
    scores = json.loads((sure.path / "metrics.json").read_text())
    assert scores["val"]["nll"] == pytest.approx(once.nll["before"], rel=1e-5)
    assert "calibration" not in scores


def test_what_would_not_help_new_samples_is_left_out_and_said(
    config: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run.path)
    # Thirteen samples are too few for a number per state.
    done = calibrate(config, run, kind="vector")
    assert (done.applied, done.kind, done.changed) == (False, "none", False)
    assert done.nll["after"] >= done.nll["before"]
    assert "calibration by vector is left out" in capsys.readouterr().err
    assert files(run.path) == before


def test_the_run_keeps_its_age_its_tags_and_its_files(config: Config, sure: Run) -> None:
    tag_run(sure.path.parent, "sure", ["good"])
    when = sure.path / "provenance.json"
    os.utime(when, (1e9, 1e9))
    heads = sure.heads_path.stat().st_ino
    calibrate(config, "sure", command=["geo", "calibrate", "sure"])
    now = load_run(sure.path.parent, "sure")
    assert when.stat().st_mtime == 1e9
    assert read_tags(now).tags == ("good",)
    assert now.heads_path.stat().st_ino == heads, "linked, not copied"
    assert now.provenance["calibrated"]["command"] == ["geo", "calibrate", "sure"]
    assert now.provenance["store"] == sure.provenance["store"]
    assert [path.name for path in sure.path.parent.iterdir()] == ["sure"], "nothing is left beside it"


def test_an_ensemble_is_calibrated_and_answers_so(config: Config, sure: Run) -> None:
    fit(config, "second", seed=1)
    ensemble(config, ["sure", "second"], method="average", name="both")
    before, _ = predict_split(config, load_run(config.paths.runs_dir, "both"), "test")
    done = calibrate(config, "both")
    assert done.applied
    both = load_run(config.paths.runs_dir, "both")
    assert summarise(both).calibration == "temperature"
    after, _ = predict_split(config, both, "test")
    described = json.loads(both.recipe_path.read_text())["calibration"]
    fitted = Calibration(described["kind"], tuple(described["scale"]), tuple(described["offset"]))
    wanted = apply(fitted, torch.from_numpy(before.probabilities).log()).exp().numpy()
    np.testing.assert_allclose(after.probabilities, wanted, atol=1e-5)
    described["scale"] = described["scale"][:-1]
    recipe = json.loads(both.recipe_path.read_text())
    write_json(both.recipe_path, recipe | {"calibration": described})
    with pytest.raises(GeoError, match="the ensemble's calibration can't be used"):
        predict_split(config, both, "test")


def test_a_fine_tuned_run_is_calibrated(config: Config, run: Run) -> None:
    tuning = config.finetune.model_copy(update={"epochs": 1, "batch_size": 4, "accumulate": 1})
    finetune(config.model_copy(update={"finetune": tuning}), name="tuned", init="first", limit=8)
    backbone = files(config.paths.runs_dir / "tuned" / "backbone")
    done = calibrate(config, "tuned")
    assert done.samples == run.read_metrics()["samples"]
    tuned = load_run(config.paths.runs_dir, "tuned")
    assert (load_heads(tuned).calibration is not None) == done.applied
    assert files(tuned.path / "backbone") == backbone


def test_a_run_that_was_calibrated_when_it_was_fitted_says_how_well_and_is_not_calibrated_twice(
    config: Config,
) -> None:
    run = fit(config, "fitted", calibration="temperature")
    recorded = json.loads((run.path / "metrics.json").read_text())["calibration"]
    before = files(run.path)
    done = calibrate(config, "fitted")
    assert (done.nll["before"], done.nll["after"]) == (recorded["before"]["nll"], recorded["after"]["nll"])
    assert not done.changed
    for kind in ("vector", "none"):
        with pytest.raises(GeoError, match="calibrated when it was fitted") as caught:
            calibrate(config, "fitted", kind=kind)
        assert "training.calibration" in caught.value.hint
    assert files(run.path) == before


def test_samples_of_one_place_calibrate_each_other_in_no_part(
    config: Config, sure: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sure.path / "config.toml"
    path.write_text(
        path.read_text()
        .replace('validation = "random"', 'validation = "spatial"')
        .replace("group_km = 5.0", "group_km = 150.0")
    )
    tied: list[np.ndarray | None] = []

    def watched(*arguments: object, **options: object) -> torch.Tensor:
        tied.append(options["tied"])  # type: ignore[arg-type]
        return cross_fitted(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(room.calibration, "cross_fitted", watched)
    calibrate(config, "sure")
    (groups,) = tied
    assert groups is not None
    assert 1 < len(np.unique(groups)) < 128


def nothing_held_out(run: Run) -> None:
    pd.read_parquet(run.path / VAL).head(0).to_parquet(run.path / VAL)


def half_a_table(run: Run) -> None:
    (run.path / VAL).write_bytes((run.path / VAL).read_bytes()[:100])


def no_recipe(run: Run) -> None:
    run.recipe_path.write_text("{")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (nothing_held_out, "held no samples out"),
        (half_a_table, "not a readable prediction table"),
        (no_recipe, "can't be loaded"),
    ],
)
def test_a_run_that_cannot_be_calibrated_is_refused_and_stays(
    config: Config, sure: Run, damage: Callable[[Run], None], what: str
) -> None:
    damage(sure)
    before = files(sure.path.parent)
    with pytest.raises(GeoError, match=what) as caught:
        calibrate(config, "sure")
    assert caught.value.hint
    assert files(sure.path.parent) == before


def test_while_it_is_being_written_or_the_disk_fails_the_run_stays(
    config: Config, sure: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(sure.path)
    with only_run_writer(sure.path.parent, "sure", overwrite=True), pytest.raises(BusyError):
        calibrate(config, "sure")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("geo_embed.runs.run.RunWriter.write_metrics", full)
    with pytest.raises(GeoError, match="No space left"):
        calibrate(config, "sure")
    assert files(sure.path) == before
    assert [path.name for path in sure.path.parent.iterdir()] == ["sure"]


def test_the_command_prints_before_and_after(
    country: Country, sure: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = country.options(tmp_path)
    ran = command(capsys, *options, "--json", "calibrate", "sure")
    assert ran.code == 0, ran.err
    assert {"run", "nll", "ece"} <= ran.json.keys()
    assert ran.json.keys() == Calibrated.__dataclass_fields__.keys()
    assert set(ran.json["nll"]) == set(ran.json["ece"]) == {"before", "after"}
    again = command(capsys, *options, "calibrate", "sure")
    assert "temperature, as before: nothing was changed" in again.out
    wrong = command(capsys, *options, "calibrate", "sure", "--kind", "platt")
    assert wrong.code == 1
    assert "'platt' is no calibration" in wrong.err
    assert "vector" in wrong.err


def test_submit_calibrates_a_run_first_if_asked_and_keeps_a_calibration_that_is_there(
    country: Country,
    sure: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def submitted(*more: str) -> bytes:
        ran = command(capsys, *country.options(tmp_path), "--json", "submit", "sure", *more)
        assert ran.code == 0, ran.err
        return Path(ran.json["submission"]).read_bytes()

    submitted()
    assert not is_calibrated(country.config(tmp_path), "sure")
    calibrated = submitted("--calibrate")
    assert is_calibrated(country.config(tmp_path), "sure")
    assert submitted() == calibrated

    monkeypatch.setattr(room, "calibrate", lambda *_, **__: pytest.fail("calibrated again"))
    assert submitted("--calibrate") == calibrated
