"""`geo demo`: from nothing to a validated submission, on a country that says it is synthetic."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small import saved_predictions

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.finetuning.finetune import Finetuned
from geo_embed.finetuning.finetune import finetune as real_finetune
from geo_embed.fitting.fit import fit_heads
from geo_embed.geography import haversine_km
from geo_embed.prediction.evaluate import evaluate
from geo_embed.runs.run import load_run
from geo_embed.settings import resolve
from geo_embed.synthetic.backbone import write_backbone
from geo_embed.synthetic.country import write_country
from geo_embed.synthetic.demo import RECIPE, demo, demo_settings, make_country

if TYPE_CHECKING:
    from conftest import Country, Geo, Ran


# What is said by hand holds before what the demo says.
QUICK = [
    word
    for setting in ("training.budget_seconds=0.5", "finetune.epochs=2", "inference.workers=1")
    for word in ("--set", setting)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def first(place: Path, geo_in: Geo) -> Ran:
    # A geo.toml about other data must not lead the demo astray.
    (place / "geo.toml").write_text('[paths]\ndata_root = "mine"\nruns_dir = "mine"\n')
    return geo_in(place, "--json", *QUICK, "demo", "--root", "X", "--locations", 60)


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_ends_well_with_one_json_object(first: Ran, place: Path) -> None:
    assert first.code == 0, first.err
    wanted = {
        "root",
        "run",
        "score",
        "geoscore",
        "finetuned",
        "finetuned_score",
        "submitted",
        "submission",
        "report",
        "seconds",
    }
    assert wanted <= first.json.keys()
    assert first.json["root"] == "X"
    assert "epoch 2: " in first.err
    assert "epoch 3: " not in first.err
    assert (place / first.json["submission"]).is_file()
    page = (place / first.json["report"]).read_text()
    assert first.json["report"] == "X/reports/demo.html"
    assert "--set paths.data_root=X/data" in page
    assert (place / "X" / "runs" / first.json["run"] / "heads.safetensors").is_file()
    assert sorted(path.name for path in place.iterdir()) == ["X", "geo.toml"]


def test_it_tells_its_stages_on_stderr_in_order(first: Ran) -> None:
    stages_told = [line.split()[0] for line in first.err.splitlines()]
    stages = [
        "country",
        "check",
        "check",
        "extract",
        "extract",
        "fit",
        "evaluate",
        "finetune",
        "submit",
        "report",
    ]
    assert [word for word in stages_told if word in stages] == stages


def test_the_score_lies_between_chance_and_one(first: Ran, place: Path) -> None:
    run = load_run(place / "X" / "runs", first.json["run"])
    truth = saved_predictions(run.path / "val_predictions.parquet")[1]
    assert truth is not None
    middle = haversine_km(run.prior.latitude, run.prior.longitude, truth.latitude, truth.longitude).mean()
    chance = 0.7 * (1 + 0.6 + 0.4 + 0.25 + 0.15) / len(run.labels) + 0.3 * max(0, 1 - middle / 5000)
    assert 0 < chance < first.json["score"] < 1
    val = json.loads((run.path / "metrics.json").read_text())["val"]
    assert (val["score"], val["geoscore"]) == (first.json["score"], first.json["geoscore"])


def test_the_submission_is_the_better_ones_of_heads_and_finetuned_run(first: Ran, place: Path) -> None:
    summary = first.json
    tuned = load_run(place / "X" / "runs", summary["finetuned"])
    assert json.loads((tuned.path / "metrics.json").read_text())["val"]["score"] == summary["finetuned_score"]
    assert tuned.provenance["init"] == summary["run"]
    better = summary["finetuned"] if summary["finetuned_score"] > summary["score"] else summary["run"]
    assert summary["submitted"] == better
    assert Path(summary["submission"]).stem == better


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_a_finetuned_run_is_submitted_only_if_it_is_better(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    root = tmp_path / "X"
    shutil.copytree(country.data, root / "data")
    shutil.copytree(country.backbone, root / "backbone")
    (root / ".synthetic").write_text("60 locations, seed 0\n")
    settings = demo_settings(root) | {
        "training.preset": "pigeon",
        "finetune.epochs": 1,
        "model.device": "cpu",
    }

    def finetune(config: Config, *, init: str, **options: Any) -> Finetuned:
        done = real_finetune(config, init=init, **options)
        frozen = evaluate(config, load_run(config.paths.runs_dir, init))["score"]
        return dataclasses.replace(done, val=done.val | {"score": frozen + gain})

    monkeypatch.setattr(sys.modules["geo_embed.synthetic.demo"], "finetune", finetune)
    done = demo(resolve(overrides=settings)[0], root, 60)
    assert done.submitted == ("demo-finetuned" if gain > 0 else "demo")
    assert done.submission == root / "submissions" / f"{done.submitted}.csv"
    assert done.submission.is_file()


@pytest.mark.slow
def test_finetuning_beats_the_frozen_backbone(tmp_path: Path) -> None:
    """0.07 better where this was written; on the demo of 1,200 places see docs/finetuning.md."""
    write_country(tmp_path / "data", locations=400, seed=0, image_size=96, workers=1)
    write_backbone(tmp_path / "backbone")
    settings = RECIPE | demo_settings(tmp_path) | {"model.device": "cpu", "training.val_split": 0.25}
    settings |= {"training.budget_seconds": 1.0, "finetune.epochs": 6, "finetune.patience": 6}
    settings |= {"finetune.batch_size": 8, "finetune.backbone_lr": 5e-4}
    config = resolve(overrides=settings)[0]
    extract(config, "train")
    frozen = fit_heads(config, name="frozen").val
    tuned = real_finetune(config, name="tuned", init="frozen").val
    assert tuned["samples"] == frozen["samples"] == 80
    assert tuned["score"] > frozen["score"] + 0.03


def test_its_submission_is_valid(first: Ran, place: Path, geo_in: Geo) -> None:
    options = [p for k, v in demo_settings(Path("X")).items() for p in ("--set", f"{k}={v}")]
    checked = geo_in(place, "--json", *options, "submission", "validate", first.json["submission"])
    assert checked.code == 0
    assert (checked.json["rows"], checked.json["errors"]) == (12, [])


def test_the_data_has_the_exact_layout_of_the_real_dataset_and_says_it_is_synthetic(
    first: Ran, place: Path
) -> None:
    data = place / "X" / "data"
    names = {
        "train_ground_truth.csv",
        "sample_submission.csv",
        "state_mapping.csv",
        "train_images",
        "test_images",
    }
    assert {path.name for path in data.iterdir()} == names | {"README.txt"}
    assert "SYNTHETIC" in (data / "README.txt").read_text()
    assert {path.name for path in (place / "X" / "backbone").iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json"),
    }


GEO_SCRIPT = Path(sys.executable).with_name("geo")


def test_run_again_it_works_paints_nothing_and_ends_the_same_and_tells_people_what_is_next(
    first: Ran, place: Path, geo_in: Geo
) -> None:
    before = everything(place / "X" / "data")
    again = geo_in(place, *QUICK, "demo", "--root", "X", "--locations", 60)
    assert again.code == 0
    assert "are there already" in again.err
    assert "0 pictures computed, 192 reused" in again.err
    assert everything(place / "X" / "data") == before
    assert f"{first.json['score']:.4f}" in again.out
    assert first.json["submission"] in again.out
    assert "synthetic" in again.out
    last = [line.strip() for line in again.out.splitlines()[-4:]]
    assert all("YOUR_DATA" in line for line in last)
    for command in (line.split()[0] for line in last):
        assert shutil.which("geo") if command == "geo" else (place / command).samefile(GEO_SCRIPT)
    assert [line.split()[3] for line in last] == ["data", "extract", "fit-heads", "submit"]


def test_in_its_directory_commands_need_no_settings(first: Ran, place: Path, geo_in: Geo) -> None:
    runs = geo_in(place / "X", "--json", "runs")
    assert {run["run"] for run in runs.json["runs"]} == {"demo", "demo-finetuned"}
    evaluated = geo_in(place / "X", "--json", "evaluate", "demo")
    assert evaluated.json["score"] == first.json["score"]
    extracted = geo_in(place / "X", "--json", "extract", "--split", "train")
    assert extracted.json["computed"] == 0, extracted.err


PAINTING: Any = {"seed": 0, "workers": 1, "progress_seconds": 10.0}


def test_another_size_in_the_same_place_is_painted_anew(tmp_path: Path) -> None:
    for locations in (3, 2):
        make_country(tmp_path / "X", locations, **PAINTING)
        assert (tmp_path / "X" / ".synthetic").read_text() == f"{locations} locations, seed 0\n"
    rows = (tmp_path / "X" / "data" / "train_ground_truth.csv").read_text().splitlines()
    assert len(rows) == 1 + 1


def test_a_directory_that_is_somebody_elses_is_refused_and_left_as_it_is(geo: Geo, tmp_path: Path) -> None:
    root = tmp_path / "precious"
    (root / "data").mkdir(parents=True)
    (root / "data" / "train_ground_truth.csv").write_text("mine")
    ran = geo("--json", "demo", "--root", root, "--locations", 60)
    assert (ran.code, ran.out) == (1, "")
    assert f"error: this directory is neither empty nor a demo's ({root})" in ran.err
    assert "hint: " in ran.err
    assert everything(root) == {"data/train_ground_truth.csv": b"mine"}


def test_an_empty_directory_is_as_good_as_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "X").mkdir()
    make_country(tmp_path / "X", 2, **PAINTING)
    assert (tmp_path / "X" / "data" / "train_ground_truth.csv").is_file()


def test_a_file_in_the_directorys_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "X").write_text("a file")
    with pytest.raises(GeoError):
        make_country(tmp_path / "X", 2, **PAINTING)
    assert (tmp_path / "X").read_text() == "a file"


def test_a_demo_that_was_interrupted_while_painting_is_taken_up_again(tmp_path: Path) -> None:
    (tmp_path / "X" / "data" / "train_images").mkdir(parents=True)
    (tmp_path / "X" / "data" / "train_images" / "img_000000_north.jpg").write_bytes(b"half a pic")
    (tmp_path / "X" / ".synthetic").write_text("")
    make_country(tmp_path / "X", 2, **PAINTING)
    assert (tmp_path / "X" / "data" / "train_images" / "img_000000_north.jpg").read_bytes()[:2] == b"\xff\xd8"
