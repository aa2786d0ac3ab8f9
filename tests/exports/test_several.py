"""A run over several backbones, and an ensemble of runs on different ones, are exported like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from small import command, files
from twofold import Twofold, make_twofold

from geo_embed import GeoPredictor, export
from geo_embed.blocks import blocks_of
from geo_embed.data.images import decode, resize
from geo_embed.errors import GeoError
from geo_embed.explorer.memory import RunInMemory
from geo_embed.exports.onnx import run_onnx
from geo_embed.fitting.fit import fit_heads
from geo_embed.geography import haversine_km
from geo_embed.prediction.combine import average
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.pictures import predict_arrays, predict_images
from geo_embed.runs.run import load_run
from geo_embed.synthetic.backbone import write_backbone

if TYPE_CHECKING:
    from conftest import Country

# What the exports call them: after the models that their cards name.
COLUMNS = ("maker/siglip", "maker/clip", "maker/clip:token_mean"), (32, 768, 160)


@pytest.fixture(scope="module")
def twofold(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Twofold:
    made = make_twofold(country, tmp_path_factory.mktemp("twofold"))
    for name in ("clip", "siglip"):
        fit_heads(made.config(name), name=name)
    names = ["clip", "both", "siglip"]
    ensemble(made.config(), names, method="average", point="mean", name="all")
    return made


@pytest.fixture(scope="module")
def exported(twofold: Twofold, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "predictor"
    export(twofold.config(), twofold.run("both"), out)
    return out


@pytest.fixture(scope="module")
def predictor(twofold: Twofold, exported: Path) -> GeoPredictor:
    # As many pictures in a pass as where the run answers: rounding depends on it.
    return GeoPredictor.from_pretrained(exported, device="cpu", settings=twofold.config())


def described(directory: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((directory / "config.json").read_text())
    return content


def test_each_backbone_goes_along_once_and_the_answer_is_the_runs(
    twofold: Twofold, exported: Path, predictor: GeoPredictor, tmp_path: Path
) -> None:
    """To the last digit; and nothing in it says where the run, its backbones and its data were."""
    places = [
        twofold.pictures(2),
        [None, *map(Image.open, twofold.pictures(3)[1:])],
        {"south": twofold.pictures(4)[2]},
    ]
    wanted = predict_images(twofold.config(), twofold.run("both"), places)
    assert predictor.predict(places) == [wanted.describe(row) for row in range(3)]
    assert predictor.blocks == blocks_of(*COLUMNS)
    kept = files(exported)
    assert {name for name in kept if "backbone/" in name} == {
        f"backbone/{k}/{name}"
        for k in (1, 2)
        for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    }
    assert len(set(kept.values())) == len(kept)
    root = str(Path(twofold.backbones["clip"]).parents[1]).encode()
    for name in kept:
        assert root not in (exported / name).read_bytes()
    predictor.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == kept
    # A backbone in the other's place has the wrong weights, and is no backbone of this export.
    shutil.copytree(
        tmp_path / "again" / "backbone" / "1", tmp_path / "again" / "backbone" / "2", dirs_exist_ok=True
    )
    with pytest.raises(GeoError, match="has other weights than the one this run was fitted on"):
        GeoPredictor(tmp_path / "again", device="cpu")


def test_in_onnx_each_backbone_has_pixels_of_its_own(twofold: Twofold, tmp_path: Path) -> None:
    done = export(twofold.config(), twofold.run("both"), tmp_path / "e", onnx=True)
    assert done.onnx is not None
    assert done.onnx["of"] == "held out"
    assert [*done.onnx["inputs"]] == ["pixels_1", "pixels_2", "present"]
    assert done.onnx["probability_error"] < 1e-5
    assert done.onnx["point_error_km"] < 0.05
    predictor = GeoPredictor(tmp_path / "e", device="cpu")
    pictures = [[decode(path.read_bytes()) for path in twofold.pictures(row)] for row in (5, 6, 7)]
    pixels = [
        np.stack([[resize(picture, spec) for picture in place] for place in pictures])
        for spec in predictor.preprocessings
    ]
    assert [block.shape[-1] for block in pixels] == [32, 96]
    present = np.ones((3, 4), dtype=bool)
    present[1, 2] = False
    places = [
        [p if is_there else None for p, is_there in zip(*pair, strict=True)]
        for pair in zip(pictures, present, strict=True)
    ]
    wanted = predictor.predictions(places)
    states, points = run_onnx(
        tmp_path / "e" / "model.onnx", {"pixels_1": pixels[0], "pixels_2": pixels[1], "present": present}
    )
    np.testing.assert_allclose(states, wanted.probabilities, rtol=0, atol=1e-5)
    assert haversine_km(points[:, 0], points[:, 1], wanted.latitude, wanted.longitude).max() < 0.05
    # As a module it takes the same.
    tensors, seen = [torch.from_numpy(array) for array in pixels], torch.from_numpy(present)
    np.testing.assert_allclose(predictor(tensors, seen)[0].numpy(), wanted.probabilities, rtol=0, atol=1e-6)
    with pytest.raises(GeoError, match="1 tensors, where 2 are taken"):
        predictor(tensors[0], seen)
    with pytest.raises(GeoError, match="2 backbones, each with its own"):
        _ = predictor.preprocessing
    # Lines of code, by which the exporter knows where each node is from, tell whose machine it was.
    assert b".py" not in (tmp_path / "e" / "model.onnx").read_bytes()


def test_heads_alone_say_which_columns_are_whose(twofold: Twofold, tmp_path: Path) -> None:
    copied = shutil.copytree(twofold.run("both").path, tmp_path / "both")
    # As of a race, which names its sources as the settings do.
    metrics = json.loads((copied / "metrics.json").read_text())
    raced = {"shares": {f"{twofold.backbones['clip']}:token_mean": 1.0}, "scores": {}}
    (copied / "metrics.json").write_text(json.dumps(metrics | {"parts": [{"sources": raced}]}))
    run = load_run(tmp_path, "both")
    export(twofold.config(), run, tmp_path / "e", heads_only=True)
    card = (tmp_path / "e" / "README.md").read_text()
    assert (
        "960 numbers each: 32 of maker/siglip, image_embeds, then 768 of maker/clip, image_embeds, then 160 of"
        in card
    )
    assert "by the names in `predictor.blocks`" in card
    heads = GeoPredictor(tmp_path / "e")
    assert heads.blocks == blocks_of(*COLUMNS)
    (part,) = heads.run.read_all_metrics()["parts"]
    assert part["sources"]["shares"] == {"maker/clip:token_mean": 1.0}
    joined = np.random.default_rng(0).normal(size=(3, 4, 960)).astype(np.float32)
    wanted = predict_arrays(twofold.config(), run, joined)
    by_name = {block.name: joined[..., block.start : block.stop] for block in heads.blocks[::-1]}
    for embeddings in (joined, by_name):
        answers = heads.predictions(embeddings=embeddings)
        np.testing.assert_array_equal(answers.probabilities, wanted.probabilities)
        np.testing.assert_array_equal(answers.latitude, wanted.latitude)
    by_name["maker/tower"] = by_name.pop("maker/clip")
    with pytest.raises(GeoError, match=r"where run was fitted on maker/siglip \(32\), maker/clip \(768\)"):
        heads.predict(embeddings=by_name)
    with pytest.raises(GeoError, match="4 × 768 numbers a place, where run was fitted on 4 × 960"):
        heads.predict(embeddings=joined[..., :768])


def test_every_backbones_licence_is_carried_and_the_strictest_is_said(
    twofold: Twofold, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = export(twofold.config(), twofold.run("both"), tmp_path / "e", heads_only=True)
    warned = " ".join(capsys.readouterr().err.split())
    assert "the backbone, maker/clip, is licensed cc-by-nc-4.0: not for commercial use" in warned
    assert "maker/siglip" not in warned
    assert (done.license, done.base_model) == ("mit, cc-by-nc-4.0", "maker/siglip, maker/clip")
    text = (tmp_path / "e" / "README.md").read_text()
    card = ModelCard(text).data
    assert (card.license, card.base_model) == (["mit", "cc-by-nc-4.0"], ["maker/siglip", "maker/clip"])
    assert "the strictest is that of maker/clip." in text
    assert "**Not for commercial use.**" in text


def test_an_ensemble_of_runs_on_different_backbones_takes_each_of_them_once(
    twofold: Twofold, tmp_path: Path
) -> None:
    config, run = twofold.config(), twofold.run("all")
    places = [twofold.pictures(8), [*twofold.pictures(9)[:3], None]]
    wanted = predict_images(config, run, places)
    alone = [predict_images(config, twofold.run(name), places) for name in ("clip", "both", "siglip")]
    mean = average(np.stack([predictions.probabilities for predictions in alone]), np.full(3, 1 / 3))
    np.testing.assert_allclose(wanted.probabilities, mean, rtol=0, atol=1e-6)
    export(config, run, tmp_path / "e")
    # In the order in which the members name them.
    assert [backbone["name"] for backbone in described(tmp_path / "e")["backbones"]] == [
        "maker/clip",
        "maker/siglip",
    ]  # type: ignore[attr-defined]
    predictor = GeoPredictor(tmp_path / "e", device="cpu", settings=config)
    assert predictor.predict(places) == [wanted.describe(row) for row in range(2)]
    pixels = [
        torch.from_numpy(np.stack([[resize(decode(p.read_bytes()), spec) for p in twofold.pictures(8)]]))
        for spec in predictor.preprocessings
    ]
    states, _ = predictor(pixels, torch.ones(1, 4, dtype=torch.bool))
    np.testing.assert_allclose(states[0].numpy(), wanted.probabilities[0], rtol=0, atol=1e-6)


def test_an_explorer_answers_pictures_by_an_ensemble_of_different_backbones(twofold: Twofold) -> None:
    """Its learnt space is one member's, which looks through some of them."""
    config, run = twofold.config(), twofold.run("all")
    memory = RunInMemory(config, run)
    assert memory.why_not() is None
    pictures = [decode(path.read_bytes()) for path in twofold.pictures(8)]
    answered = memory.answer_pictures(dict(zip(run.config.model.view_names, pictures, strict=True)))
    wanted = predict_images(config, run, twofold.pictures(8))
    np.testing.assert_array_equal(answered.predictions.probabilities, wanted.probabilities)
    assert np.isfinite(answered.vector).all()


def test_heads_and_inputs_go_where_the_module_was_moved(twofold: Twofold, tmp_path: Path) -> None:
    """To what computes no numbers, but refuses tensors of two devices as a GPU does."""
    for name in ("clip", "siglip"):
        fit_heads(twofold.config(name), name=f"{name}-too", overwrite=True)
    ensemble(
        twofold.config(), ["clip-too", "siglip-too"], method="rrf", point="mean", name="rrf", overwrite=True
    )
    export(twofold.config(), twofold.run("rrf"), tmp_path / "e")
    predictor = GeoPredictor(tmp_path / "e", device="cpu")
    predictor.to("meta")
    # As `predict` leaves them, where it answers elsewhere.
    for panel in predictor._heads.values():
        panel.to_empty(device="cpu")
    pixels = [torch.zeros(2, 4, 3, s.height, s.width, dtype=torch.uint8) for s in predictor.preprocessings]
    states, points = predictor(pixels, torch.ones(2, 4, dtype=torch.bool))
    assert {states.device.type, points.device.type} == {"meta"}
    assert (states.shape, points.shape) == ((2, len(predictor.states)), (2, 2))


def test_backbones_that_moved_are_named_in_any_order_and_one_that_is_gone_is_told(
    twofold: Twofold, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = [shutil.copytree(path, tmp_path / name) for name, path in twofold.backbones.items()]
    options = [*twofold.small.options(), "export", "both", "--out", tmp_path / "e"]
    named = [word for path in moved for word in ("--backbone", path)]
    ran = command(capsys, *options, *named)
    assert ran.code == 0, ran.err
    assert described(tmp_path / "e")["backbones"] == described_of_both(twofold, tmp_path)
    write_backbone(tmp_path / "stranger", seed=9)
    for wrong, what in (
        ([*named, "--backbone", moved[0]], "is named twice"),
        ([*named[:2], "--backbone", tmp_path / "stranger"], "stranger is none of those"),
        (["--backbone", tmp_path / "gone"], "gone"),
    ):
        ran = command(capsys, *options[:-1], tmp_path / "w", *wrong)
        assert ran.code == 1
        assert what in ran.err
        assert [line.split(":")[0] for line in ran.err.splitlines()] == ["error", "hint"]
        assert not (tmp_path / "w").exists()
    run = shutil.copytree(twofold.run("both").path, tmp_path / "both")
    for file in ("config.toml", "provenance.json"):
        text = (run / file).read_text()
        (run / file).write_text(text.replace(twofold.backbones["siglip"], "/moved/away"))
    ran = command(capsys, *options[:-3], run, "--out", tmp_path / "w")
    assert "'/moved/away' is neither" in ran.err
    assert "hint: where it has moved, say so with --backbone DIR" in ran.err


def described_of_both(twofold: Twofold, tmp_path: Path) -> object:
    export(twofold.config(), twofold.run("both"), tmp_path / "unmoved")
    return described(tmp_path / "unmoved")["backbones"]
