"""The API says of a run what its files say, and of pictures what the command line says."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from served import client_of
from small import VIEWS, Country, encode

from geo_embed.cache.store import read_store
from geo_embed.data.samples import load_samples
from geo_embed.explorer.explore import open_scene
from geo_embed.explorer.scene import Scene
from geo_embed.fitting.fit import fit_heads
from geo_embed.geography import to_unit_vectors
from geo_embed.metrics import metrics
from geo_embed.prediction.pictures import predict_images
from geo_embed.prediction.results import per_sample
from geo_embed.reporting.weights import view_weights
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.store import find_sources_of
from geo_embed.runs.table import read_predictions
from geo_embed.sphere import geometric_median, unit_to_degrees


def table_of(client: TestClient, address: str = "/api/samples.arrow") -> pa.Table:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return pa.ipc.open_stream(answer.content).read_all()


def test_the_run_is_told_as_its_files_have_it(client: TestClient, scene: Scene) -> None:
    about = client.get("/api/run").json()
    run = scene.run
    assert (about["run"], about["split"], about["splits"]) == ("first", "val", ["val"])
    assert [state["name"] for state in about["classes"]] == list(run.labels.names)
    assert [state["samples"] for state in about["classes"]] == run.read_classes()[0].tolist()
    assert about["metrics"]["score"] == run.read_metrics()["score"]
    assert about["interval"] == run.read_metrics()["score_interval"]
    assert about["view_names"] == list(VIEWS)
    assert about["has_pictures"]
    assert about["can_predict"], about["why_not"]


def test_the_table_has_each_sample_as_evaluate_has_it(client: TestClient, scene: Scene) -> None:
    predictions, truth = read_predictions(scene.run.predictions_path("val"), scene.run.labels)
    assert truth is not None
    table, wanted = table_of(client), per_sample(predictions, truth)
    assert table["sample_id"].to_pylist() == list(predictions.sample_id)
    for name in ("km", "score", "confidence"):
        assert table[name].type == pa.float32()
        np.testing.assert_allclose(table[name].to_numpy(), wanted[name], rtol=1e-5)
    np.testing.assert_array_equal(table["state"].to_numpy(), scene.run.labels.encode(truth.state_idx))
    rank = np.where(wanted["true_rank"] <= 5, wanted["true_rank"], 0)
    np.testing.assert_array_equal(table["rank"].to_numpy(), rank)
    plane = np.stack([table["x"].to_numpy(), table["y"].to_numpy()])
    assert np.isfinite(plane).all()
    assert (plane.std(axis=1) > 0).all()


def test_a_sample_is_told_in_full(client: TestClient, scene: Scene, ids: list[str], country: Country) -> None:
    sample = client.get(f"/api/samples/val/{ids[3]}").json()
    samples = load_samples(scene.run.config, "train")
    row = list(samples.sample_id).index(ids[3])
    assert samples.truth is not None
    assert (sample["truth"]["latitude"], sample["truth"]["longitude"]) == (
        samples.truth.latitude[row],
        samples.truth.longitude[row],
    )
    assert [view["name"] for view in sample["views"]] == list(VIEWS)
    assert len(sample["prediction"]["top"]) == 5
    # Its heads have no cells: its states stand for them, at their middles.
    assert sample["distribution"]["kind"] == "classes"
    top = sample["prediction"]["top"]
    assert sample["distribution"]["state"][:5] == [state["state"] for state in top]
    shares = [state["probability"] for state in top]
    assert sample["distribution"]["probability"][:5] == pytest.approx(shares, abs=1e-6)
    # Neighbours were learnt from, the most alike first, and each has a picture.
    table = scene.run.read_split()
    learnt = set(table["sample_id"][table["part"] == "train"].astype(str))
    assert len(sample["neighbours"]) == 8
    assert {near["sample_id"] for near in sample["neighbours"]} <= learnt - {ids[3]}
    alike = [near["similarity"] for near in sample["neighbours"]]
    assert alike == sorted(alike, reverse=True)
    assert client.get(sample["neighbours"][0]["picture"]).status_code == 200
    assert client.get("/api/samples/val/there-is-none").status_code == 404


def test_neighbours_are_those_most_alike_by_what_the_heads_make_of_them(
    client: TestClient, scene: Scene, ids: list[str]
) -> None:
    neighbours = client.get(f"/api/samples/val/{ids[1]}").json()["neighbours"]
    embeddings = read_store(find_sources_of(scene.run, "train")[0].store)
    heads, _, _ = load_heads(scene.run).leaves(scene.run.config.training)[0]
    with torch.inference_mode():
        out = heads(torch.from_numpy(embeddings.values), torch.from_numpy(embeddings.present))
    vectors = out["logits"].numpy()
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    vectors -= vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    row = {str(text): k for k, text in enumerate(embeddings.sample_id)}
    cosine = vectors @ vectors[row[ids[1]]]
    table = scene.run.read_split()
    learnt = [row[text] for text in table["sample_id"][table["part"] == "train"].astype(str)]
    wanted = np.sort(cosine[learnt])[::-1][:8]
    np.testing.assert_allclose([neighbour["similarity"] for neighbour in neighbours], wanted, atol=2e-3)
    np.testing.assert_allclose(
        [cosine[row[neighbour["sample_id"]]] for neighbour in neighbours], wanted, atol=2e-3
    )


def test_heads_over_cells_say_where_a_sample_may_be_and_their_point_is_the_middle_of_it(
    country: Country, tmp_path: Path
) -> None:
    config = country.config(
        tmp_path,
        **{"model__head": "geocells", "model__fusion": "attention"},
        **{"training__epochs": 2, "training__refine": False},
    )
    fit_heads(config, name="celled")
    scene, split = open_scene(config, "celled")
    with client_of(scene, split) as client:
        sample_id = table_of(client)["sample_id"][0].as_py()
        sample = client.get(f"/api/samples/val/{sample_id}").json()
        assert sample["distribution"]["kind"] == "cells"
        shares = view_weights(scene.run, "train", np.array([sample_id], dtype=object)).shares[0]
        assert [view["weight"] for view in sample["views"]] == pytest.approx(shares.tolist(), abs=1e-6)
        assert scene.memory.embedder().name == "learnt space of celled, head geocells"
        picture = (country.images("test") / "img_000003_north.jpg").read_bytes()
        prediction = client.post("/api/predict", files={"north": ("x.jpg", picture)}).json()
    spread = prediction["distribution"]
    assert spread["kind"] == "cells"
    assert sum(spread["probability"]) == pytest.approx(1, abs=0.01)
    points = torch.from_numpy(to_unit_vectors(spread["latitude"], spread["longitude"]))
    middle = unit_to_degrees(geometric_median(torch.tensor([spread["probability"]]).double(), points))[0]
    assert middle.tolist() == pytest.approx(
        [prediction["prediction"]["latitude"], prediction["prediction"]["longitude"]], abs=0.05
    )


def test_pictures_get_the_answer_that_the_command_line_gives(
    client: TestClient, scene: Scene, country: Country
) -> None:
    files = {view: (country.images("test") / f"img_000003_{view}.jpg").read_bytes() for view in VIEWS}
    answer = client.post("/api/predict", files={view: ("x.jpg", data) for view, data in files.items()})
    assert answer.status_code == 200, answer.text
    prediction = answer.json()
    wanted = predict_images(scene.config, scene.run, [files[view] for view in VIEWS])
    assert prediction["prediction"]["latitude"] == pytest.approx(wanted.latitude[0])
    assert prediction["prediction"]["top"][0]["probability"] == pytest.approx(wanted.probabilities.max())
    assert prediction["truth"] is None
    assert len(prediction["neighbours"]) == 8
    # Two of the views, in any field: the next view that has none takes it.
    two = client.post(
        "/api/predict", files=[("views", ("a.jpg", files["north"])), ("south", ("b", files["south"]))]
    )
    wanted = predict_images(scene.config, scene.run, {view: files[view] for view in ("north", "south")})
    assert two.json()["prediction"]["longitude"] == pytest.approx(wanted.longitude[0])


def test_where_a_picture_was_taken_is_the_truth(client: TestClient, scene: Scene) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (40.0, 30.0, 0.0), 3: "W", 4: (100.0, 0.0, 0.0)}
    data = encode(Image.new("RGB", (64, 64), (90, 120, 60)), "JPEG", exif=exif)
    prediction = client.post("/api/predict", files={"north": ("x.jpg", data)}).json()
    assert (prediction["truth"]["latitude"], prediction["truth"]["longitude"]) == (40.5, -100.0)
    assert prediction["truth"]["name"] == "Nebraska"
    assert prediction["prediction"]["km"] > 0


def test_a_game_is_dealt_by_its_seed_and_tells_nothing(client: TestClient, ids: list[str]) -> None:
    first, again, other = (client.get(f"/api/game?rounds=4&seed={seed}").json() for seed in (5, 5, 6))
    assert first == again
    assert first["rounds"] != other["rounds"]
    assert {place["sample_id"] for place in first["rounds"]} <= set(ids)
    assert len({place["sample_id"] for place in first["rounds"]}) == 4
    assert all(view["picture"] for place in first["rounds"] for view in place["views"])
    assert not any(word in json.dumps(first) for word in ("latitude", "state", "truth"))


def test_a_guess_scores_as_a_run_does(client: TestClient, scene: Scene, ids: list[str]) -> None:
    shown = scene.shown("val")
    assert shown.truth is not None
    row = 2
    place = {"latitude": float(shown.truth.latitude[row]), "longitude": float(shown.truth.longitude[row])}
    judged = client.post("/api/guess", json={"sample_id": ids[row], **place}).json()
    assert (judged["person"]["score"], judged["person"]["geoscore"]) == (
        pytest.approx(1),
        pytest.approx(5000),
    )
    assert judged["person"]["state"] == judged["truth"]["state"]
    alone = metrics(shown.predictions.take(slice(row, row + 1)), shown.truth.take(slice(row, row + 1)))
    for name in ("score", "geoscore"):
        assert judged["model"][name] == pytest.approx(alone[name])
    # Another state earns nothing for the state, and the distance its part.
    wrong = next(k for k in range(len(scene.run.labels)) if k != judged["truth"]["state"])
    judged_wrong = client.post("/api/guess", json={"sample_id": ids[row], **place, "state": wrong}).json()
    assert judged_wrong["person"]["score"] == pytest.approx(0.3)


def test_outlines_are_those_of_the_report(client: TestClient, scene: Scene) -> None:
    outlines = client.get("/api/outlines").json()
    assert [feature["name"] for feature in outlines["features"]] == list(scene.run.labels.names)
    assert all(ring[0] == ring[-1] for feature in outlines["features"] for ring in feature["rings"])
    assert outlines["projection"] == "albers-usa"


def test_a_thumbnail_is_small_has_no_exif_and_is_kept(client: TestClient, ids: list[str]) -> None:
    address = f"/pictures/val/{ids[0]}/north?side=32"
    first = client.get(address)
    with Image.open(io.BytesIO(first.content)) as image:
        assert (image.format, max(image.size), dict(image.getexif())) == ("JPEG", 32, {})
    again = client.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["cache-control"].startswith("private")
    assert client.get(address.replace("32", "48")).headers["etag"] != first.headers["etag"]


def test_the_documentation_names_every_route_and_asks_nobody_else(client: TestClient) -> None:
    described, page = client.get("/openapi.json").json(), client.get("/docs").text
    routes = set(described["paths"])
    assert {
        "/api/run",
        "/api/samples.arrow",
        "/api/outlines",
        "/api/predict",
        "/api/game",
        "/api/guess",
    } < routes
    assert all(path in page for path in routes)
    assert "//" not in page.replace("<!doctype html>", "")
    assert "<script" not in page
    assert client.get("/docs.css").headers["content-type"].startswith("text/css")


def test_the_page_and_its_files_are_served(client: TestClient) -> None:
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/assets/index.html").status_code == 200
    assert client.get("/assets/../api.py").status_code == 404


@pytest.mark.parametrize(
    ("method", "address", "body", "status"),
    [
        ("GET", "/nothing", None, 404),
        ("DELETE", "/api/run", None, 405),
        ("GET", "/api/run?split=test", None, 404),
        ("GET", "/api/samples.arrow?compare=../../first", None, 404),
        ("GET", "/api/game?rounds=1000000", None, 422),
        ("POST", "/api/guess", {"sample_id": "x", "latitude": 1e400, "longitude": 0}, 422),
        ("POST", "/api/guess", {"sample_id": "x", "latitude": 0, "longitude": 0, "state": 10**9}, 400),
        ("POST", "/api/guess", {"sample_id": "nobody", "latitude": 0, "longitude": 0}, 404),
    ],
)
def test_what_goes_wrong_is_an_error_and_a_hint(
    client: TestClient, method: str, address: str, body: Any, status: int
) -> None:
    content = None if body is None else json.dumps(body)
    answer = client.request(method, address, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "hint"}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"[]",
        b'{"sample_id": "\xff"}',
        b"[" * 8000,
        b'{"state": 1' + b"0" * 5000 + b"}",
        b'{"\\ud800": 1}',
        b'{"sample_id": "\\ud800", "latitude": 0, "longitude": 0}',
        b'{"sample_id": "x", "latitude": NaN, "longitude": 0}',
    ],
    ids=["half", "empty", "list", "no text", "deep", "long number", "no name", "no id", "NaN"],
)
def test_a_body_that_is_no_guess_is_told_so_as_anything_else_is(client: TestClient, content: bytes) -> None:
    answer = client.post("/api/guess", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json().keys() == {"error", "hint"}
    assert not answer.json()["error"].startswith(("1", "body"))


def test_head_is_answered_as_get_without_a_body(client: TestClient) -> None:
    for address in ("/", "/api/run", "/assets/main.js"):
        asked, whole = client.head(address), client.get(address)
        assert (asked.status_code, asked.headers) == (200, whole.headers)
    assert client.head("/api/predict").status_code == 405


def test_nothing_but_the_run_is_needed_to_look_at_it(country: Country, fitted: Path, tmp_path: Path) -> None:
    """Without CSV, pictures and cache the recorded predictions are still there; what is missing is said."""
    shutil.copytree(fitted, tmp_path / "runs" / "first")
    config = country.config(
        tmp_path, paths__data_root=str(tmp_path / "none"), paths__cache_dir=str(tmp_path / "empty")
    )
    scene, split = open_scene(config, "first")
    with client_of(scene, split) as client:
        about = client.get("/api/run").json()
        assert not about["has_pictures"]
        assert "none" in about["why_no_pictures"]
        assert about["embedding_view"] == "predicted distributions"
        assert np.isfinite(table_of(client)["x"].to_numpy()).all()
        sample_id = table_of(client)["sample_id"][0].as_py()
        sample = client.get(f"/api/samples/val/{sample_id}").json()
        assert sample["distribution"]["kind"] == "classes"
        assert sample["neighbours"] == []
        assert [view["picture"] for view in sample["views"]] == [None] * 4
        assert client.get("/api/outlines").status_code == 200
        game = client.get("/api/game")
        assert (game.status_code, "nothing to guess by" in game.json()["error"]) == (404, True)
        assert about["why_no_game"] == game.json()["error"]
