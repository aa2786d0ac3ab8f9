"""A run that a notebook loads shows itself in a line and in a table, and answers for its splits, for pictures and for embeddings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from rows import planted_arrays

import geo_embed
from geo_embed.answers import Predictions
from geo_embed.cache.store import open_store, read_store
from geo_embed.config import Config
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.notebook import NotebookRun, load_run
from geo_embed.prediction.predict import predict_split
from geo_embed.prediction.results import per_sample
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run
from geo_embed.runs.table import read_predictions
from geo_embed.settings import get_config
from geo_embed.synthetic.backbone import write_backbone

if TYPE_CHECKING:
    from small import Country


@pytest.fixture
def loaded(run: Run, config: Config) -> NotebookRun:
    return load_run("first", config=config)


def test_a_run_is_found_by_name_by_directory_or_as_the_newest(
    run: Run, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = run.path.with_name("older")
    shutil.copytree(run.path, older)
    os.utime(older / "provenance.json", (1, 1))
    for newest in (
        load_run(config=config),
        load_run(run.path),
        load_run(str(run.path)),
        load_run(run.path.parent),
    ):
        assert newest.path == run.path
    for named in (load_run("older", config=config), load_run(older), load_run(run.path.parent, "older")):
        assert named.path == older
    # As whoever types in the folder of the runs' folder.
    monkeypatch.chdir(run.path.parent.parent)
    assert load_run().name == "first"
    assert load_run("older").name == "older"


def test_a_run_that_is_not_there_is_refused_with_the_nearest_name(
    run: Run, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(GeoError, match="there is no run 'frist'") as caught:
        load_run("frist", config=config)
    assert "did you mean first?" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(GeoError, match="there is no run yet"):
        load_run(tmp_path / "empty")
    with pytest.raises(GeoError, match="there is no run"):
        load_run(tmp_path / "nowhere")


def test_it_tells_what_the_run_scored_in_a_line_and_in_a_table(loaded: NotebookRun) -> None:
    score = f"{loaded.metrics['score']:.4f}"
    assert loaded.metrics == loaded.read_metrics()
    assert repr(loaded).startswith(f"<run first: score {score}")
    assert "\n" not in repr(loaded)
    assert len(repr(loaded)) < 120
    shown = loaded._repr_html_()
    assert f">{score} (" in shown
    assert "north, east, south, west" in shown


def test_a_damaged_run_still_shows_itself(loaded: NotebookRun) -> None:
    (loaded.path / "metrics.json").write_text("{")
    assert "damaged" in repr(loaded)
    assert "metrics.json" in loaded._repr_html_()
    with pytest.raises(GeoError, match="damaged"):
        _ = loaded.metrics


def test_html_in_names_is_shown_and_never_runs(tmp_path: Path) -> None:
    config = get_config(
        paths={"runs_dir": str(tmp_path / "<b>runs")},
        model={"view_names": ["<script>alert(1)</script>", "b & c", "d"]},
        training={"preset": "pigeon", "epochs": 1},
    )
    fit_heads(config, **planted_arrays(), name="x")
    run = load_run("x", config=config)
    shown = (
        run._repr_html_()
        + run.predictions()._repr_html_()
        + run.predict(embeddings=np.ones((1, 3, 6)))._repr_html_()
    )
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, b &amp; c, d" in shown
    assert "&lt;b&gt;Länd 0&lt;/b&gt;" in shown


def test_the_held_out_samples_come_with_their_truth_and_the_others_as_they_are_predicted_now(
    loaded: NotebookRun, config: Config
) -> None:
    val, train = loaded.predictions(), loaded.predictions("train")
    recorded = per_sample(*read_predictions(loaded.predictions_path("val"), loaded.labels))  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(val, recorded)
    assert val["score"].mean() == pytest.approx(loaded.metrics["score"], abs=2e-3)
    assert set(val["sample_id"]).isdisjoint(train["sample_id"])
    assert len(val) + len(train) == len(load_samples(config, "train"))
    with pytest.raises(GeoError, match="there is no split 'validation'"):
        loaded.predictions("validation")


def test_the_test_split_is_answered_as_it_is_submitted(loaded: NotebookRun, config: Config) -> None:
    table = loaded.predictions("test")
    path, verdict = submit(config, loaded)
    assert verdict.valid
    submitted = pd.read_csv(path)
    assert table["sample_id"].tolist() == submitted["sample_id"].tolist()
    for rank in range(1, 6):
        assert table[f"state_idx_{rank}"].tolist() == submitted[f"predicted_state_idx_{rank}"].tolist()
    np.testing.assert_allclose(table["latitude"], submitted["predicted_latitude"], atol=1e-5)
    assert "true_state" not in table


def test_pictures_and_embeddings_are_answered_as_the_cache_is(
    country: Country, loaded: NotebookRun, config: Config
) -> None:
    recorded = loaded.predictions("test").head(4)
    samples = load_samples(config, "test")
    places = [[samples.image_root / name for name in names] for names in samples.images[:4]]
    embeddings = read_store(open_store(country.store("test"))).values[:4]
    for table in (loaded.predict(places), loaded.predict(embeddings=embeddings)):
        assert table["sample_id"].tolist() == [0, 1, 2, 3]
        assert table.columns.tolist() == recorded.columns.tolist()
        assert table["state_1"].tolist() == recorded["state_1"].tolist()
        np.testing.assert_allclose(table["probability_1"], recorded["probability_1"], atol=1e-3)
    assert len(loaded.predict(places[0])) == 1


def test_a_backbone_that_was_moved_is_named_and_another_is_refused(
    country: Country, run: Run, config: Config, tmp_path: Path
) -> None:
    samples = load_samples(config, "test")
    place = [samples.image_root / name for name in samples.images[0]]
    shutil.copytree(country.backbone, tmp_path / "moved")
    moved = load_run("first", config=config, backbone=tmp_path / "moved")
    pd.testing.assert_frame_equal(moved.predict(place), load_run("first", config=config).predict(place))
    write_backbone(tmp_path / "other", seed=1)
    with pytest.raises(GeoError, match="other weights"):
        load_run("first", config=config, backbone=tmp_path / "other").predict(place)


def test_what_is_asked_for_must_be_pictures_or_embeddings(loaded: NotebookRun) -> None:
    embeddings = np.ones((1, 4, 768))
    for arguments in ({}, {"images": [None] * 4, "embeddings": embeddings}):
        with pytest.raises(GeoError, match="give pictures, or embeddings"):
            loaded.predict(**arguments)
    with pytest.raises(GeoError, match="present goes with embeddings"):
        loaded.predict([None] * 4, present=np.ones((1, 4), dtype=bool))
    embeddings[0, 2, 5] = np.nan
    with pytest.raises(GeoError, match="NaN") as caught:
        loaded.predict(embeddings=embeddings)
    assert "present=" in caught.value.hint
    present = np.array([[True, True, False, True]])
    assert np.isfinite(loaded.predict(embeddings=embeddings, present=present)["probability_1"]).all()


def test_a_run_of_several_seeds_and_an_ensemble_answer_alike(tmp_path: Path) -> None:
    config = get_config(
        paths={"runs_dir": str(tmp_path / "runs")},
        training={"preset": "pigeon", "epochs": 3, "seeds": 2, "folds": 2},
    )
    arrays = planted_arrays()
    for name, seed in (("one", 0), ("two", 5)):
        training = config.training.model_copy(update={"seed": seed})
        fit_heads(config.model_copy(update={"training": training}), **arrays, name=name)
    ensemble(config, ["one", "two"], method="average", point="mean", name="both")
    both, first, second = (load_run(name, config=config) for name in ("both", "one", "two"))
    assert "ensemble, average" in both._repr_html_()
    assert len(both.predictions()) == len(arrays["states"])
    answered = [run.predict(embeddings=arrays["embeddings"]) for run in (both, first, second)]
    sure = [table.set_index("state_1", append=True)["probability_1"] for table in answered]
    agreed = sure[1].index.intersection(sure[2].index)
    assert len(agreed) > 10
    np.testing.assert_allclose(sure[0][agreed], (sure[1][agreed] + sure[2][agreed]) / 2, atol=1e-5)
    # What made the embeddings isn't known, so pictures can't be answered.
    with pytest.raises(GeoError, match="fitted on imported embeddings") as caught:
        both.predict([None, None, None])
    assert "run.predict(embeddings=" in caught.value.hint


def test_a_run_that_was_replaced_since_it_was_loaded_does_not_answer(
    loaded: NotebookRun, config: Config
) -> None:
    fit_heads(config, name="first", overwrite=True)
    for answer in (lambda: loaded.predictions(), lambda: loaded.predict(embeddings=np.ones((1, 4, 768)))):
        with pytest.raises(GeoError, match="was replaced"):
            answer()
    assert len(load_run("first", config=config).predictions())


def test_a_loaded_run_is_what_every_verb_takes(loaded: NotebookRun, config: Config) -> None:
    predictions, _ = predict_split(config, loaded, "test")
    assert isinstance(predictions, Predictions)
    assert geo_embed.evaluate(config, loaded)["score"] == loaded.metrics["score"]
