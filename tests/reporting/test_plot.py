"""`geo plot`: every figure of a real run, from its own files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Geo
from drawn import cut_off, texts
from PIL import Image

from geo_embed.cli.reporting import Name
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.reporting.plot import FIGURES, Choice, draw, plot
from geo_embed.reporting.subject import subject_of
from geo_embed.reporting.weights import view_weights
from geo_embed.runs.run import Run, load_run


@pytest.fixture
def weighing(config: Config) -> Run:
    """A run whose heads weigh views, as the mixture of the session's run needn't."""
    training = config.training.model_copy(update={"preset": "pigeon", "epochs": 3, "folds": 2})
    model = config.model.model_copy(update={"fusion": "attention"})
    fit_heads(config.model_copy(update={"training": training, "model": model}), name="weighing")
    return load_run(config.paths.runs_dir, "weighing")


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "attention"])
def test_every_figure_is_drawn_of_a_run(config: Config, run: Run, name: str, tmp_path: Path) -> None:
    path = plot(config, run, name)
    assert path == Path(f"first-{name}.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 300
    assert len(np.unique(pixels)) > 20
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".first")] == []


def test_the_command_knows_every_figure() -> None:
    assert list(Name.__args__) == list(FIGURES)


def test_the_command_writes_the_file_that_it_names(
    geo: Geo, fitted: Path, config: Config, tmp_path: Path
) -> None:
    done = geo(
        "--json",
        "--set",
        f"paths.runs_dir={fitted.parent}",
        "plot",
        "states",
        "first",
        "--out",
        "new/states.svg",
    )
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed == {"run": "first", "name": "states", "plot": "new/states.svg"}
    assert (tmp_path / "new" / "states.svg").read_text().startswith("<?xml")


def test_figures_of_a_run_whose_data_are_gone_are_drawn_from_what_it_keeps(
    config: Config, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = config.model_copy(
        update={
            "paths": config.paths.model_copy(update={"data_root": tmp_path, "train_csv": tmp_path / "no.csv"})
        }
    )
    figure = draw(lost, run, "map")
    assert cut_off(figure) == []
    assert "the training places aren't at hand" in capsys.readouterr().err


def test_places_of_training_are_those_that_the_run_learnt_from(config: Config, run: Run) -> None:
    labels, latitude, longitude = subject_of(config, run, "val").training
    learnt = int((run.read_split()["part"] == "train").sum())
    assert len(labels) == len(latitude) == len(longitude) == learnt
    assert np.bincount(labels).tolist() == run.read_classes()[0].tolist()


def test_the_worst_sample_comes_first_and_any_can_be_asked_for(config: Config, run: Run) -> None:
    subject = subject_of(config, run, "val")
    sample_id = str(subject.predictions.sample_id[3])
    assert f"Sample {sample_id}:" in texts(draw(config, run, "sample", choice=Choice(sample=sample_id)))
    worst, best = (
        texts(draw(config, run, "sample", choice=Choice(order=order))) for order in ("worst", "best")
    )
    assert "answered rightly" in best
    assert "answered rightly" not in worst
    with pytest.raises(GeoError, match="is none of the"):
        draw(config, run, "sample", choice=Choice(sample="nobody"))


def test_test_samples_have_no_truth_and_say_so(geo: Geo, config: Config, run: Run) -> None:
    with pytest.raises(GeoError, match="no predictions for the test samples") as raised:
        draw(config, run, "states", split="test")
    assert raised.value.hint == "geo predict first --split test"
    from geo_embed.prediction.predict import predict_split

    predict_split(config, run, "test")
    assert "test samples of run first" in texts(draw(config, run, "states", split="test"))
    assert "its truth isn't known" in texts(
        draw(config, run, "sample", split="test", choice=Choice(order="least-certain"))
    )
    with pytest.raises(GeoError, match="truth of the test samples isn't known"):
        draw(config, run, "map", split="test")


def test_pictures_that_are_gone_are_named_in_the_grid_and_left_out_of_the_sample(
    config: Config, run: Run, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    lost = config.model_copy(update={"paths": config.paths.model_copy(update={"train_images": empty})})
    with pytest.raises(
        GeoError, match="none of these samples has a picture at hand; of the first: no such file"
    ):
        draw(lost, run, "samples")
    figure = draw(lost, run, "sample")
    assert "no picture is at hand" in texts(figure).replace("\n", " ")
    assert cut_off(figure) == []


def test_what_views_weigh_and_how_each_fold_went_is_drawn(config: Config, weighing: Run) -> None:
    read = texts(draw(config, weighing, "attention")).replace("\n", " ")
    assert "the fusion attention" in read
    held_out = weighing.read_metrics()["samples"]
    assert f"{held_out} held-out samples" in read
    assert "2 fits (2 folds)" in texts(draw(config, weighing, "curves"))


def test_heads_that_weigh_views_alike_have_no_weights_to_show(config: Config, run: Run) -> None:
    with pytest.raises(GeoError, match="weighs all views alike") as raised:
        draw(config, run, "attention")
    assert "--fusion" in raised.value.hint


def test_shares_of_views_are_those_of_the_heads_that_weigh_them(config: Config, weighing: Run) -> None:
    run = weighing
    subject = subject_of(config, run, "val")
    weights = view_weights(subject.run, "train", subject.predictions.sample_id)
    assert weights.shares.shape == (len(subject.predictions), 4)
    assert weights.shares.sum(axis=1) == pytest.approx(np.ones(len(weights.shares)))
    assert 0 < weights.weighing <= weights.sets
    assert np.ptp(weights.shares) > 1e-3
    with pytest.raises(GeoError, match="1 sample is not in the store, nobody first"):
        view_weights(subject.run, "train", np.array(["nobody"], dtype=object))


def test_a_run_that_is_no_run_or_lost_its_answers_is_an_error_in_one_line(
    geo: Geo, fitted: Path, tmp_path: Path
) -> None:
    shutil.copytree(fitted, tmp_path / "runs" / "broken")
    (tmp_path / "runs" / "broken" / "val_predictions.parquet").write_bytes(b"PAR1 nothing")
    for name in ("map", "sample"):
        done = geo("plot", name, "broken")
        assert done.code == 1
        assert "Traceback" not in done.err
        assert done.err.count("error:") == 1
        assert not list(tmp_path.glob("*.png"))
