"""Runs of every kind can be looked at, and what one lacks is said in a line."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import sys
import urllib.request
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from served import client_of
from small import Country
from worlds import made_run, make_world

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.explorer.atlas import export_atlas
from geo_embed.explorer.explore import explore, open_scene
from geo_embed.explorer.scene import Scene
from geo_embed.explorer.serving import bind
from geo_embed.explorer.space import plane_of
from geo_embed.extraction.extract import extract
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.predict import predict_split
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.table import read_predictions, write_predictions


def rows_of(client: TestClient, address: str = "/api/samples.arrow") -> pd.DataFrame:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return pa.ipc.open_stream(answer.content).read_all().to_pandas()


def test_another_run_stands_beside(config: Config, run: Run) -> None:
    other = shutil.copytree(run.path, run.path.with_name("other"))
    path = run.predictions_path("val")
    answers, truth = read_predictions(path, run.labels)
    # The other one lacks a sample, and answers another as if it were the opposite.
    other_answers = answers.take(np.arange(1, len(answers)))
    other_answers.probabilities[0] = other_answers.probabilities[0][::-1]
    other_answers.latitude[0] = -other_answers.latitude[0]
    write_predictions(other / path.name, other_answers, truth and truth.take(np.arange(1, len(answers))))
    scene, split = open_scene(config, "first", compare="other")
    with client_of(scene, split) as client:
        assert client.get("/api/run").json()["compare"] == "other"
        table = rows_of(client, "/api/samples.arrow?compare=other")
        assert "agrees" not in rows_of(client)
    assert pd.isna(table["agrees"][0])
    assert pd.isna(table["compare_km"][0])
    assert not table["agrees"][1]
    assert table["compare_km"][1] > table["km"][1]
    assert table["agrees"][2:].all()
    np.testing.assert_allclose(table["compare_km"][2:], table["km"][2:], rtol=1e-6)


def test_the_test_split_has_no_truth_and_is_shown_all_the_same(config: Config, run: Run) -> None:
    with pytest.raises(GeoError, match="no predictions of the test split") as lacking:
        open_scene(config, "first", split="test")
    assert lacking.value.hint == "geo predict first --split test"
    predict_split(config, run, "test")
    scene, split = open_scene(config, "first", split="test")
    with client_of(scene, split) as client:
        about = client.get("/api/run").json()
        assert (about["split"], about["splits"], about["has_truth"]) == ("test", ["val", "test"], False)
        assert about["metrics"] is None
        table = rows_of(client)
        assert {"km", "score", "state", "rank", "latitude"}.isdisjoint(table)
        sample = client.get(f"/api/samples/test/{table['sample_id'][0]}").json()
        assert sample["truth"] is None
        assert sample["prediction"]["km"] is None
        assert len(sample["neighbours"]) == 8
        assert client.get(sample["views"][0]["picture"]).status_code == 200
        # The game is of held-out samples, whatever is shown.
        assert client.get("/api/game?rounds=1").json()["rounds"][0]["split"] == "val"


def test_an_ensemble_is_looked_at_as_any_run(config: Config, run: Run) -> None:
    shutil.copytree(run.path, run.path.with_name("second"))
    ensemble(config, ["first", "second"], method="average", name="both")
    scene, split = open_scene(config, "both")
    with client_of(scene, split) as client:
        sample_id = rows_of(client)["sample_id"][0]
        sample = client.get(f"/api/samples/val/{sample_id}").json()
        assert sample["distribution"]["kind"] == "classes"
        assert len(sample["neighbours"]) == 8
        assert [view["weight"] for view in sample["views"]] == [None] * 4
        assert client.get("/api/run").json()["can_predict"]


def test_a_run_that_is_damaged_or_held_out_nothing_says_so_before_it_serves(config: Config, run: Run) -> None:
    def refused() -> GeoError:
        with pytest.raises(GeoError) as error:
            explore(config, "first")
        return error.value

    path = run.predictions_path("val")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert "not a readable prediction table" in refused().what
    path.unlink()
    assert "no predictions to show" in refused().what
    path.write_bytes(whole)
    run.heads_path.write_bytes(b"nothing")
    # Recorded predictions are still there; what needs the heads isn't.
    scene, split = open_scene(config, "first")
    with client_of(scene, split) as client:
        assert client.get("/api/run").json()["embedding_view"] == "predicted distributions"
        picture = (config.paths.images("test") / "img_000003_north.jpg").read_bytes()
        answer = client.post("/api/predict", files={"north": picture})
        assert (answer.status_code, "heads can't be loaded" in answer.json()["error"]) == (503, True)


def test_a_run_that_is_replaced_while_it_is_shown_does_not_answer_by_the_other_ones_heads(
    config: Config, run: Run
) -> None:
    scene, split = open_scene(config, "first")
    picture = (config.paths.images("test") / "img_000003_north.jpg").read_bytes()
    shutil.copytree(run.path, run.path.with_name("next"))
    shutil.rmtree(run.path)
    run.path.with_name("next").rename(run.path)
    with client_of(scene, split) as client:
        answer = client.post("/api/predict", files={"north": picture})
        assert (answer.status_code, "was replaced" in answer.json()["error"]) == (503, True)
        assert client.get("/api/run").status_code == 200


def test_a_run_that_is_removed_while_it_is_shown_is_said_to_be_gone(config: Config, run: Run) -> None:
    scene, split = open_scene(config, "first")
    shutil.rmtree(run.path)
    picture = (config.paths.images("test") / "img_000003_north.jpg").read_bytes()
    with client_of(scene, split) as client:
        answers = [client.get("/api/run"), client.post("/api/predict", files={"north": picture})]
        assert client.get("/api/samples.arrow").status_code == 200
    assert [answer.status_code for answer in answers] == [404, 503]
    assert {answer.json()["error"] for answer in answers} == {"the run first is no longer there"}


def test_a_run_without_its_backbone_at_hand_says_why_it_cannot_answer(
    country: Country, run: Run, tmp_path: Path
) -> None:
    text = run.settings_path.read_text()
    assert str(country.backbone) in text
    run.settings_path.write_text(text.replace(str(country.backbone), str(tmp_path / "gone")))
    scene, split = open_scene(country.config(tmp_path), "first")
    with client_of(scene, split) as client:
        about = client.get("/api/run").json()
        assert (about["can_predict"], "gone" in about["why_not"]) == (False, True)
        assert client.post("/api/predict", files={"north": b"x"}).status_code == 503


def test_without_the_extra_it_says_what_to_install(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(GeoError, match="fastapi") as lacking:
        explore(config)
    assert lacking.value.hint == "pip install 'geo-embed[explore]'"


def test_a_port_that_is_taken_is_known_before_a_run_is_looked_for(config: Config) -> None:
    with bind("127.0.0.1", None) as taken, pytest.raises(GeoError, match="can't listen on port"):
        explore(config, "no-such-run", port=taken.getsockname()[1])


def test_a_notebook_serves_a_run_beside_its_work_and_ends_it(config: Config, run: Run) -> None:
    with bind("127.0.0.1", None) as free:
        port = free.getsockname()[1]
    with pytest.raises(GeoError, match="no predictions of the test split"):
        explore(config, run, port=port, split="test")
    # A port is let go where nothing comes of it.
    with explore(config, run, port=port) as page:
        assert page.url == f"http://127.0.0.1:{port}/"
        assert page.url in page._repr_html_()
        with urllib.request.urlopen(f"{page.url}api/run") as answer:
            assert json.load(answer)["run"] == "first"
    page.close()
    assert "closed" in repr(page)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("host", ["*", "0.0.0.0"])
def test_where_others_can_reach_it_the_address_has_the_token(config: Config, run: Run, host: str) -> None:
    with explore(config, run, host=host) as page:
        address, _, token = page.url.partition("?token=")
        port = address.rstrip("/").rpartition(":")[2]
        assert len(token) > 20
        for query, status in ((f"?token={token}", 200), ("", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", int(port))
            connection.request("GET", f"/api/run{query}")
            assert connection.getresponse().status == status
            connection.close()


def test_a_run_that_held_out_nothing_is_shown_by_its_test_samples(config: Config, run: Run) -> None:
    path = run.predictions_path("val")
    predictions, truth = read_predictions(path, run.labels)
    assert truth is not None
    write_predictions(path, predictions.take(slice(0)), truth.take(slice(0)))
    with pytest.raises(GeoError, match="no predictions to show: it held out no samples") as lacking:
        open_scene(config, "first")
    assert "geo predict first --split test" in lacking.value.hint
    predict_split(config, run, "test")
    scene, split = open_scene(config, "first")
    with client_of(scene, split) as client:
        about = client.get("/api/run").json()
        assert (about["split"], about["splits"]) == ("test", ["test"])
        assert about["why_no_game"].startswith("the run held out no samples")
        assert client.get("/api/game").json()["error"] == about["why_no_game"]


def test_neighbours_of_folds_are_all_others_and_no_heads_say_where_they_learnt_a_sample(
    config: Config, run: Run
) -> None:
    """Each sample was held out by one fold, and learnt from by the others."""
    settings = {"head": "geocells", "fusion": "average"}
    update = {"training": config.training.model_copy(update={"folds": 2, "epochs": 1})}
    update |= {"model": config.model.model_copy(update=settings)}
    fit_heads(config.model_copy(update=update), name="folded")
    scene, split = open_scene(config, "folded")
    with client_of(scene, split) as client:
        sample = client.get(f"/api/samples/val/{rows_of(client)['sample_id'][0]}").json()
    assert len(sample["neighbours"]) == 8
    assert sample["distribution"]["kind"] == "classes"


def test_a_sample_without_any_view_lies_nowhere_in_the_learnt_space(own: Country, fitted: Path) -> None:
    config = own.config(inference__on_bad_image="skip")
    shutil.copytree(fitted, config.paths.runs_dir / "first")
    for picture in own.images("test").glob("img_000000_*"):
        picture.unlink()
    extract(config, "test")
    predict_split(config, load_run(config.paths.runs_dir, "first"), "test")
    scene, split = open_scene(config, "first", split="test")
    with client_of(scene, split) as client:
        table = rows_of(client)
        sample = client.get(f"/api/samples/test/{table['sample_id'][0]}").json()
    assert table["x"].isna().tolist() == [True] + [False] * (len(table) - 1)
    assert sample["neighbours"] == []
    assert len(sample["prediction"]["top"]) == 5


def test_ids_and_views_of_any_name_have_their_pictures(tmp_path: Path) -> None:
    views, names = ("up/down", "down", "<b>"), ("a.jpg", "b.jpg", "c.jpg")
    config = make_world(tmp_path, ["A", "B"], views=views, ids="{}/up/../é #?", samples=24)
    made_run(config, "first")
    csv = config.paths.csv("train")
    csv.write_text(csv.read_text(encoding="utf-8").replace(",,,,", f",{','.join(names)},"), encoding="utf-8")
    config.paths.images("train").mkdir()
    for k, name in enumerate(names):
        Image.new("RGB", (8 + k, 8)).save(config.paths.images("train") / name)
    scene, split = open_scene(config, "first")
    with client_of(scene, split) as client:
        sample_id = rows_of(client)["sample_id"][0]
        sample = client.get(f"/api/samples/val/{quote(sample_id, safe='')}").json()
        assert sample["sample_id"] == sample_id
        answers = [client.get(view["picture"]) for view in sample["views"]]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [Image.open(io.BytesIO(answer.content)).width for answer in answers] == [8, 9, 10]


def test_a_split_that_the_other_run_has_no_answers_for_is_shown_without_it(config: Config, run: Run) -> None:
    shutil.copytree(run.path, run.path.with_name("other"))
    predict_split(config, run, "test")
    scene, split = open_scene(config, "first", compare="other")
    with client_of(scene, split) as client:
        assert client.get("/api/run").json()["compare"] == "other"
        assert client.get("/api/run?split=test").json()["compare"] is None
    with pytest.raises(GeoError, match="no predictions of the test split to compare") as lacking:
        open_scene(config, "first", compare="other", split="test")
    assert lacking.value.hint == "geo predict other --split test"


def test_the_plane_has_the_two_widest_directions() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * (1, 5, 1, 20, 1, 1)
    plane = plane_of(np.vstack([x, np.full(6, np.nan)]).astype(np.float32))
    centred = x - x.mean(axis=0)
    for axis, column in ((0, 3), (1, 1)):
        assert abs(np.corrcoef(plane[:200, axis], centred[:, column])[0, 1]) > 0.99
    assert np.isnan(plane[200]).all()


def test_an_atlas_has_every_sample_with_its_neighbours(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "atlas.parquet"
    made = export_atlas(scene.config, "train", out, "first")
    table = pd.read_parquet(out)
    assert (made.samples, len(table)) == (128, 128)
    assert table["projection_x"].notna().all()
    assert table["projection_y"].std() > 0
    # Neighbours are rows of the table, never the row itself, the nearest first.
    for row, near in enumerate(table["neighbors"]):
        assert len(set(near["ids"]) - {row}) == 10
        assert (np.diff(near["distances"]) >= 0).all()
    shown = scene.shown("val")
    held_out = table[table["part"] == "val"].set_index("sample_id")
    assert sorted(held_out.index) == sorted(shown.predictions.sample_id)
    assert shown.km is not None
    np.testing.assert_allclose(held_out.loc[list(shown.predictions.sample_id), "km"], shown.km, rtol=1e-5)
    assert table.loc[table["part"] == "train", "km"].isna().all()
    # Of raw embeddings, without a run.
    raw = export_atlas(scene.config, "test", tmp_path / "raw.parquet")
    assert raw.samples == 32
    assert "state" not in pd.read_parquet(raw.atlas)
