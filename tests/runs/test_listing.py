"""All runs at a glance, whatever lies among them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble
from geo_embed.runs.listing import Listing, describe_run, list_runs
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.tags import note_run, tag_run


def with_training(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def copied(
    run: Run, name: str, *, age_seconds: float = 0, score: float | None = 0.5, km: float = 100
) -> Path:
    """A copy of a run, some seconds older, that scored otherwise."""
    copy = run.path.with_name(name)
    shutil.copytree(run.path, copy)
    scores = json.loads((copy / "metrics.json").read_text())
    scores["val"] |= {"score": score, "mean_km": km}
    (copy / "metrics.json").write_text(json.dumps(scores))
    when = (run.path / "provenance.json").stat().st_mtime - age_seconds
    os.utime(copy / "provenance.json", (when, when))
    return copy


def names(listing: Listing) -> list[str]:
    return [run.run for run in listing.runs]


def test_a_run_is_listed_with_what_it_is(run: Run) -> None:
    (listed,) = list_runs(run.path.parent).runs
    scores = json.loads((run.path / "metrics.json").read_text())["val"]
    assert (listed.run, listed.kind, listed.samples) == ("first", "heads", scores["samples"])
    assert (listed.score, list(listed.score_interval)) == (scores["score"], scores["score_interval"])
    assert listed.recipe == {"preset": "pigeon", "head": "separate", "fusion": "average"}
    assert (listed.backbone, listed.store) == (
        run.provenance["store"]["backbone"],
        run.store_fingerprints[0],
    )
    assert listed.data["sha256"] == run.provenance["data"]["sha256"]
    assert listed.validation == {"kind": "random", "folds": 1, "val_split": 0.1, "split_seed": 0}
    assert listed.created == run.provenance["created"]
    assert (listed.tags, listed.note, listed.calibration) == ((), "", None)


def test_runs_of_every_kind_say_how_they_were_made(config: Config, run: Run) -> None:
    runs = config.paths.runs_dir
    fit_heads(with_training(config, preset="best", budget_seconds=0.001), name="best")
    fit_heads(
        with_training(
            config, epochs=1, validation="spatial", group_km=1.0, folds=2, calibration="temperature"
        ),
        name="spatial",
    )
    fit_heads(with_training(config, epochs=1, seed=3), name="second")
    ensemble(config, ["first", "second"], method="average", name="both")
    tuned = copied(run, "tuned")
    provenance = json.loads((tuned / "provenance.json").read_text())
    (tuned / "provenance.json").write_text(json.dumps(provenance | {"init": "first"}))
    listed = {summary.run: summary for summary in list_runs(runs).runs}
    assert {name: summary.kind for name, summary in listed.items()} == {
        **{"best": "heads", "spatial": "heads", "second": "heads", "first": "heads"},
        **{"both": "ensemble", "tuned": "finetuned"},
    }
    assert listed["both"].recipe == {"method": "average", "members": ["1-first", "2-second"]}
    assert listed["tuned"].recipe["init"] == "first"
    assert listed["best"].recipe["chosen"]
    assert listed["spatial"].validation["kind"] == "spatial"
    assert listed["spatial"].validation["group_km"] == 1.0
    assert listed["spatial"].validation["folds"] == 2
    assert listed["second"].seed == 3


def test_runs_are_sorted_and_those_without_a_number_come_last(run: Run) -> None:
    copied(run, "b", age_seconds=200, score=0.9, km=300)
    copied(run, "a", age_seconds=100, score=0.8, km=10_000)
    copied(run, "c", age_seconds=300, score=None)
    runs = run.path.parent
    assert names(list_runs(runs)) == ["first", "a", "b", "c"]
    assert names(list_runs(runs, sort="name")) == ["a", "b", "c", "first"]
    assert names(list_runs(runs, sort="score"))[-1] == "c"
    assert names(list_runs(runs, "[abc]", sort="score")) == ["b", "a", "c"]
    assert names(list_runs(runs, "[abc]", sort="km")) == ["c", "b", "a"]
    with pytest.raises(GeoError, match="can't be sorted by 'size'"):
        list_runs(runs, sort="size")  # type: ignore[arg-type]


def test_runs_are_found_by_pattern_and_by_tags(run: Run) -> None:
    runs = run.path.parent
    for name in ("heads-1", "heads-2", "other"):
        copied(run, name)
    tag_run(runs, "heads-1", ["good", "old"])
    tag_run(runs, "other", ["good"])
    assert sorted(names(list_runs(runs, "heads-*"))) == ["heads-1", "heads-2"]
    assert sorted(names(list_runs(runs, tags=["good"]))) == ["heads-1", "other"]
    assert names(list_runs(runs, tags=["good", "old"])) == ["heads-1"]
    assert names(list_runs(runs, "HEADS-*")) == [], "names are what they are"


def test_what_is_no_run_is_listed_with_the_reason_and_never_stops_the_others(run: Run) -> None:
    runs = run.path.parent
    (copied(run, "no-scores") / "metrics.json").unlink()
    (copied(run, "no-recipe") / "recipe.json").write_text("{")
    (copied(run, "no-origin") / "provenance.json").write_text("[]")
    (copied(run, "gone") / "provenance.json").unlink()
    (copied(run, "odd-settings") / "config.toml").write_text("[training]\nepochs = 'many'\n")
    (runs / "holiday").mkdir()
    (runs / "tuning" / "checkpoints").mkdir(parents=True)
    (runs / "loop").symlink_to("loop")
    (runs / "notes.txt").write_text("mine")
    listing = list_runs(runs)
    assert names(listing) == ["first"]
    reasons = {broken.path.name: broken.reason for broken in listing.broken}
    assert reasons.keys() == {
        *("no-scores", "no-recipe", "no-origin", "gone", "odd-settings"),
        *("holiday", "tuning", "loop"),
    }
    assert "the run lacks this file" in reasons["no-scores"]
    assert "recipe.json" in reasons["no-recipe"]
    assert "epochs" in reasons["odd-settings"]
    assert reasons["gone"] == "provenance.json is gone"
    assert reasons["holiday"] == "it holds none of a run's files"
    assert reasons["tuning"] == "an unfinished training: go on with geo finetune --name tuning"
    assert [broken.path.name for broken in list_runs(runs, "h*").broken] == ["holiday"]


def test_no_folder_yet_has_no_runs_and_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "runs") == Listing([], [])
    (tmp_path / "file").write_text("")
    assert [broken.path for broken in list_runs(tmp_path / "file").broken] == [tmp_path / "file"]


def test_damaged_tags_are_said_and_hide_no_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.tags_path.write_text('{"tags": 7}')
    assert names(list_runs(run.path.parent)) == ["first"]
    assert "tags and note can't be read" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_has_no_interval(run: Run) -> None:
    scores = json.loads((run.path / "metrics.json").read_text())
    del scores["val"]["score_interval"]
    (run.path / "metrics.json").write_text(json.dumps(scores))
    (listed,) = list_runs(run.path.parent).runs
    assert listed.score_interval == (None, None)


def test_one_run_is_described_with_its_scores_settings_and_files(config: Config, run: Run) -> None:
    note_run(config.paths.runs_dir, "first", "the one to beat")
    described = describe_run(config.paths.runs_dir, "first")
    assert described["run"] == "first"
    assert described["note"] == "the one to beat"
    assert described["val"] == load_run(config.paths.runs_dir, "first").read_metrics()
    assert described["settings"]["training.preset"] == "pigeon"
    assert "training.seed" not in described["settings"], "it is the default"
    assert described["files"]["heads.safetensors"] == run.heads_path.stat().st_size
    with pytest.raises(GeoError, match="there is no run 'second'"):
        describe_run(config.paths.runs_dir, "second")
