"""Runs go whole, and not under somebody who needs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small import files

from geo_embed.config import Config
from geo_embed.errors import BusyError, GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble
from geo_embed.runs.remove import remove_runs
from geo_embed.runs.run import Run, load_run, only_run_writer


def copied(run: Run, name: str) -> Path:
    shutil.copytree(run.path, run.path.with_name(name))
    return run.path.with_name(name)


def test_runs_go_and_the_others_stay_as_they_are(run: Run) -> None:
    runs = run.path.parent
    size = sum(file.stat().st_size for file in copied(run, "a").rglob("*") if file.is_file())
    copied(run, "b")
    before = files(run.path)
    gone = remove_runs(runs, ["a", str(runs / "b"), "a"])
    assert gone.removed == ["a", "b"]
    assert gone.bytes == 2 * size
    assert [path.name for path in runs.iterdir()] == ["first"]
    assert files(run.path) == before


def test_what_is_left_of_a_run_can_go_too(run: Run) -> None:
    (copied(run, "broken") / "provenance.json").unlink()
    (run.path.parent / "tuning" / "checkpoints").mkdir(parents=True)
    assert remove_runs(run.path.parent, ["broken", "tuning"]).removed == ["broken", "tuning"]
    assert [path.name for path in run.path.parent.iterdir()] == ["first"]


@pytest.mark.parametrize(
    "name", ["absent", ".", "..", "", "holiday", "notes.txt", "../elsewhere", "both/members/1-a"]
)
def test_one_that_is_no_run_there_is_named_and_nothing_goes(run: Run, name: str) -> None:
    runs = run.path.parent
    (runs / "holiday").mkdir()
    (runs / "notes.txt").write_text("mine")
    shutil.copytree(run.path, runs.parent / "elsewhere")
    shutil.copytree(run.path, runs / "both" / "members" / "1-a")
    before = files(runs.parent)
    with pytest.raises(GeoError, match="there is no run") as caught:
        remove_runs(runs, ["first", name])
    assert "first" in caught.value.hint
    assert files(runs.parent) == before


def test_a_run_that_an_ensemble_was_made_of_goes_by_force_alone_or_with_it(config: Config, run: Run) -> None:
    runs = config.paths.runs_dir
    training = config.training.model_copy(update={"epochs": 1, "seed": 1})
    fit_heads(config.model_copy(update={"training": training}), name="second")
    ensemble(config, ["first", "second"], method="average", name="both")
    with pytest.raises(GeoError, match="the ensemble both was made of this run") as caught:
        remove_runs(runs, ["first"])
    assert "--force" in caught.value.hint
    assert (runs / "first").is_dir()
    assert remove_runs(runs, ["first"], force=True).removed == ["first"]
    assert load_run(runs, "both").read_metrics()["samples"] > 0
    assert remove_runs(runs, ["second", "both"]).removed == ["second", "both"]


def test_a_run_that_an_unfinished_training_starts_from_goes_by_force_alone(run: Run) -> None:
    runs = run.path.parent
    copied(run, "tuning-heads")
    (runs / "tuning" / "checkpoints").mkdir(parents=True)
    with pytest.raises(GeoError, match="the unfinished training tuning starts from this run"):
        remove_runs(runs, ["tuning-heads"])
    assert remove_runs(runs, ["tuning", "tuning-heads"]).removed == ["tuning", "tuning-heads"]


def test_a_run_that_is_being_written_stays(run: Run) -> None:
    with only_run_writer(run.path.parent, "first", overwrite=True), pytest.raises(BusyError):
        remove_runs(run.path.parent, ["first"])
    assert load_run(run.path.parent, "first").name == "first"


def test_of_a_link_the_link_alone_goes(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "kept")
    (run.path.parent / "link").symlink_to(tmp_path / "kept")
    assert remove_runs(run.path.parent, ["link"]).bytes == 0
    assert (tmp_path / "kept" / "provenance.json").is_file()
