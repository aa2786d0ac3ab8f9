"""An ONNX file does in ONNX Runtime, without torch, what the run does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from networks import CLASSES, VIEWS, antimeridian, changed, places, refine
from worlds import made_run

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.exports.export import export
from geo_embed.exports.onnx import run_onnx, write_onnx
from geo_embed.exports.predictor import GeoPredictor
from geo_embed.geography import haversine_km
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.pictures import predict_arrays
from geo_embed.runs.run import Run, load_run

if TYPE_CHECKING:
    from conftest import Country


class Angles(torch.nn.Module):
    """What the points need in double precision."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.asin(x.clamp(-1, 1)), torch.atan2(y, x)


def test_angles_are_those_of_double_precision_which_the_runtime_has_not(tmp_path: Path) -> None:
    angle = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)
    x, y = torch.cos(angle), torch.sin(angle)
    write_onnx(Angles(), (x, y), ("x", "y"), tmp_path / "angles.onnx")
    sines, around = run_onnx(tmp_path / "angles.onnx", {"x": x.numpy(), "y": y.numpy()})
    np.testing.assert_allclose(around, np.arctan2(y.numpy(), x.numpy()), rtol=0, atol=1e-14)
    flat = np.abs(x.numpy()) < 0.99
    np.testing.assert_allclose(sines[flat], np.arcsin(x.numpy()[flat]), rtol=0, atol=1e-11)
    np.testing.assert_allclose(sines, np.arcsin(x.numpy()), rtol=0, atol=1e-3)


class Tiny(torch.nn.Module):
    """What keeps logarithms from 0 in heads whose answers are sure."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x.relu() + 1e-9).log(), x * 1.000001


def test_a_tiny_constant_is_no_0_and_one_near_1_no_1(tmp_path: Path) -> None:
    x = torch.tensor([[0.0, 1.0], [-1.0, 3.0]])
    write_onnx(Tiny(), (x,), ("x",), tmp_path / "tiny.onnx")
    logs, scaled = run_onnx(tmp_path / "tiny.onnx", {"x": x.numpy()})
    np.testing.assert_allclose(logs, (x.relu() + 1e-9).log().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(scaled, (x * 1.000001).numpy())


class Sorted(torch.nn.Module):
    """How an ensemble ranks classes, which are often as likely as each other."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = torch.sort(x, dim=1, descending=True, stable=True)
        return values, indices


def test_of_equal_ones_the_first_comes_first(tmp_path: Path) -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (20, 300)).astype(np.float32))
    write_onnx(Sorted(), (x,), ("x",), tmp_path / "sorted.onnx")
    _, ranked = run_onnx(tmp_path / "sorted.onnx", {"x": x.numpy()})
    np.testing.assert_array_equal(ranked, np.argsort(-x.numpy(), axis=1, kind="stable"))


def test_pictures_to_answers_by_the_runtime_are_the_predictors(
    run: Run, own: Country, tmp_path: Path
) -> None:
    """The file is run by what is said of it alone; the batch is of another size than any that it was made with. Nor must every view be there
    of the places that it is checked on.
    """
    for path in own.images().glob("*_west.jpg"):
        path.unlink()
    exported = export(own.config(tmp_path), run, tmp_path / "e", onnx=True)
    assert exported.onnx is not None
    assert exported.onnx["of"] == "held out"
    assert 0 <= exported.onnx["probability_error"] < 1e-5
    assert 0 <= exported.onnx["point_error_km"] < 0.05
    described = json.loads((tmp_path / "e" / "config.json").read_text())
    assert described["onnx"] == exported.onnx
    assert f"{exported.onnx['probability_error']:.1e}" in (tmp_path / "e" / "README.md").read_text()
    predictor = GeoPredictor.from_pretrained(tmp_path / "e", device="cpu")
    spec = predictor.preprocessing
    assert spec is not None
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (9, 4, 3, spec.height, spec.width), dtype=np.uint8)
    present = rng.random((9, 4)) < 0.6
    present[2] = False
    states, points = run_onnx(tmp_path / "e" / "model.onnx", {"pixels": pixels, "present": present})
    pictures = [
        [
            view.transpose(1, 2, 0) if is_there else None
            for view, is_there in zip(place, views_present, strict=True)
        ]
        for place, views_present in zip(pixels, present, strict=True)
    ]
    wanted = predictor.predictions(pictures)
    np.testing.assert_allclose(states, wanted.probabilities, rtol=0, atol=1e-5)
    assert haversine_km(points[:, 0], points[:, 1], wanted.latitude, wanted.longitude).max() < 0.05


def test_heads_alone_of_runs_combined_with_neighbours_sorts_and_medians(tmp_path: Path) -> None:
    world = antimeridian(tmp_path / "w")
    for name, head in {"first": "geocells", "second": "separate", "third": "dual"}.items():
        made_run(changed(world, model__head=head), name)
    refine(load_run(world.paths.runs_dir, "first"))
    ensemble(world, ["first", "second", "third"], method="rrf", point="median", name="all")
    run = load_run(world.paths.runs_dir, "all")
    exported = export(world, run, tmp_path / "e", onnx=True, heads_only=True)
    assert "resized" not in (tmp_path / "e" / "README.md").read_text()
    views, present = places()
    states, points = run_onnx(tmp_path / "e" / "heads.onnx", {"embeddings": views, "present": present})
    wanted = predict_arrays(world, run, views, present)
    assert states.shape == (len(views), len(CLASSES))
    np.testing.assert_allclose(states, wanted.probabilities, rtol=0, atol=1e-6)
    assert haversine_km(points[:, 0], points[:, 1], wanted.latitude, wanted.longitude).max() < 0.05
    assert exported.neighbours["samples"] == 90
    assert exported.neighbours["bytes"] > 90 * (8 * 2 + 8 + 3 * 8)
    opened = onnx.load(tmp_path / "e" / "heads.onnx")
    onnx.checker.check_model(opened)
    inside = [a.g for node in opened.graph.node for a in node.attribute if a.HasField("g")]
    used = {name for graph in (opened.graph, *inside) for node in graph.node for name in node.input}
    assert {entry.name for entry in opened.graph.initializer} <= used
    assert [entry.name for entry in opened.graph.input] == ["embeddings", "present"]
    assert [d.dim_value for d in opened.graph.input[0].type.tensor_type.shape.dim][1:] == [len(VIEWS), 12]


def test_weights_beyond_what_a_file_may_have_lie_beside_it_and_move_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geo_embed.exports.onnx.MOST_BYTES", 100)
    config = antimeridian(tmp_path / "w")
    run = made_run(changed(config, model__head="separate"), "first")
    done = export(config, run, tmp_path / "e", onnx=True, heads_only=True)
    assert done.files["heads.onnx.data"] > 100
    views, present = places()
    (tmp_path / "e").rename(tmp_path / "moved")
    states, _ = run_onnx(tmp_path / "moved" / "heads.onnx", {"embeddings": views, "present": present})
    wanted = predict_arrays(config, run, views, present)
    np.testing.assert_allclose(states, wanted.probabilities, rtol=0, atol=1e-6)
    export(config, run, tmp_path / "moved", heads_only=True)
    assert not (tmp_path / "moved" / "heads.onnx.data").exists()


class Branching(torch.nn.Module):
    """Of no form in ONNX: what it does depends on a number."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x, x) if float(x.sum()) > 0 else (x + 1, x)


def test_what_has_no_form_in_onnx_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(GeoError, match="torch can't write this model as ONNX: ") as refused:
        write_onnx(Branching(), (torch.ones(2, 3),), ("x",), tmp_path / "no.onnx")
    assert "\n" not in refused.value.what
    assert "--heads-only" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_without_what_writes_onnx_nothing_is_begun(
    run: Run, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(GeoError, match="--onnx needs onnxscript, which isn't installed") as refused:
        export(config, run, tmp_path / "e", onnx=True)
    assert "geo-embed[onnx]" in refused.value.hint
    assert not (tmp_path / "e").exists()
