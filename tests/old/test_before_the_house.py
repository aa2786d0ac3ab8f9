"""Stores and runs from before the files moved into wings open, and answer as they did.

`before-the-house.tar.xz` was written by the code of commit f58f5ea, as make.py says.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small import Ran, command

from geo_embed.cli.show import metric_rows
from geo_embed.runs.run import load_run
from geo_embed.synthetic import write_backbone

ARCHIVE = Path(__file__).with_name("before-the-house.tar.xz")
RUNS = (
    *("separate", "median", "dual", "hierarchical", "geocells", "transformer", "probe", "folds", "best"),
    "stacked",
)
# float32 arithmetic on another machine.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}

IMPORTED = (
    *("--set", 'model.view_names=["left","ahead","right"]', "--set", "model.backbone_name=mine"),
    *("--set", "paths.data_root=data", "--set", "model.device=cpu"),
)
EXTRACTED = (
    *("--set", "paths.data_root=pictures", "--set", "paths.cache_dir=pictures/cache"),
    *("--set", "model.backbone_name=backbone", "--set", "model.device=cpu"),
)


@pytest.fixture(autouse=True)
def _unpacked(tmp_path: Path, _empty_directory: None) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")


def geo(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    ran = command(capsys, "--json", *arguments)
    assert ran.code == 0, ran.err
    return ran


def columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name != "probabilities"]


def assert_same(new: pd.DataFrame, old: pd.DataFrame) -> None:
    assert columns(new) == columns(old)
    for name in columns(old):
        if old[name].dtype.kind == "f":
            np.testing.assert_allclose(new[name], old[name], **CLOSE, err_msg=name)
        else:
            assert new[name].tolist() == old[name].tolist(), name
    if "probabilities" in old:
        np.testing.assert_allclose(np.stack(new["probabilities"]), np.stack(old["probabilities"]), **CLOSE)


def test_the_archive_is_small_and_holds_every_run_named_here() -> None:
    assert ARCHIVE.stat().st_size < 300_000
    assert {path.name for path in Path("runs").iterdir() if path.is_dir()} == set(RUNS)


@pytest.mark.parametrize("run", RUNS)
def test_a_run_predicts_the_numbers_that_it_predicted(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("runs") / run / "test_predictions.parquet"
    old = pd.read_parquet(path)
    path.unlink()
    assert geo(capsys, *IMPORTED, "predict", run, "--split", "test").json["predictions"] == str(path)
    assert_same(pd.read_parquet(path), old)
    assert np.stack(old["probabilities"]).std(axis=0).max() > 0.01


def test_a_run_says_that_it_was_fitted_by_errors_in_degrees() -> None:
    assert not load_run(Path("runs"), "separate").config.training.gps_normalise


def test_a_run_was_split_by_the_seed_of_its_weights() -> None:
    path = Path("runs") / "separate" / "config.toml"
    settings = path.read_text()
    assert "split_seed" not in settings
    assert load_run(Path("runs"), "separate").config.training.split_seed == 0
    path.write_text(settings.replace("\nseed = 0\n", "\nseed = 5\n"))
    training = load_run(Path("runs"), "separate").config.training
    assert (training.seed, training.split_seed) == (5, 5)


@pytest.mark.parametrize("run", RUNS)
def test_a_run_has_the_metrics_that_it_had(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    old = json.loads((Path("runs") / run / "metrics.json").read_text())["val"]
    new = geo(capsys, *IMPORTED, "evaluate", run).json
    assert old["samples"] > 0
    for key, value in old.items():
        same = {mark: new[key][mark] for mark in value} if isinstance(value, dict) else new[key]
        assert same == pytest.approx(value, rel=1e-6), key
    # As a sweep prints them that goes on and finds its winner's run.
    rows = dict(metric_rows(old))
    assert f"median {old['median_km']:,.0f} km" in rows["distance"]
    assert "geoscore" not in rows


def test_its_submission_is_the_one_that_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    old = pd.read_csv("submissions/geocells.csv")
    (Path("runs") / "geocells" / "test_predictions.parquet").unlink()
    assert geo(capsys, *IMPORTED, "submit", "geocells", "--out", "again.csv").json["valid"]
    assert_same(pd.read_csv("again.csv"), old)


def test_runs_can_be_made_on_an_old_store_and_combined_with_old_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = ("training.preset=pigeon", "training.val_split=0.2", "model.head_hidden=6", "training.epochs=2")
    options = [part for setting in tiny for part in ("--set", setting)]
    geo(capsys, *IMPORTED, *options, "fit-heads", "--name", "new")
    made = geo(capsys, *IMPORTED, "ensemble", "new", "geocells", "--name", "both").json
    assert len(made["weights"]) == 2
    assert geo(capsys, *IMPORTED, "submit", "both").json["valid"]


def test_old_stores_are_whole_and_listed_with_the_runs_that_use_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert geo(capsys, *IMPORTED, "cache", "verify", "--split", "all").json["problems"] == []
    stores = geo(capsys, *IMPORTED, "cache", "ls").json["stores"]
    assert {store["split"]: store["complete"] for store in stores} == {"train": 1.0, "test": 1.0}
    assert set(stores[0]["runs"]) == set(RUNS)


def test_no_picture_of_an_old_store_is_embedded_again(capsys: pytest.CaptureFixture[str]) -> None:
    write_backbone(Path("backbone"))
    done = geo(capsys, *EXTRACTED, "extract", "--split", "train").json
    assert (done["computed"], done["reused"]) == (0, 24)
    assert done["fingerprint"] == "da91378c24d98299"
    assert geo(capsys, *EXTRACTED, "cache", "verify", "--split", "train", "--deep").json["problems"] == []
