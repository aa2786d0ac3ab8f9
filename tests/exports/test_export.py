"""An export answers as its run does, wherever it lies; and takes the place of nothing but an export."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from networks import changed
from PIL import Image
from small import NO_LARGE_FILES, Nursery, command, files
from worlds import NAME, made_run, make_world

from geo_embed import GeoPredictor, export
from geo_embed.cache.exchange import cache_import
from geo_embed.config import Config
from geo_embed.data.images import decode, resize
from geo_embed.errors import GeoError
from geo_embed.finetuning.finetune import finetune
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.pictures import predict_arrays, predict_images
from geo_embed.runs.run import Run, load_run

if TYPE_CHECKING:
    from conftest import Country, Geo

THREE_LINES = """
import json, sys
from geo_embed import GeoPredictor
predictor = GeoPredictor.from_pretrained("export")
answer = predictor.predict(sys.argv[1:])[0]
print(json.dumps(answer))
"""


def pictures(country: Country, row: int) -> list[str]:
    return [
        str(country.images() / f"img_{row:06d}_{view}.jpg") for view in ("north", "east", "south", "west")
    ]


def same(answer: object, wanted: object) -> None:
    assert json.dumps(answer) == json.dumps(wanted)


def test_the_directory_alone_answers_in_a_process_of_its_own_as_the_run_did(
    copy_country: object,
    geo_in: Geo,
    fitted: Path,
    tmp_path: Path,
    country: Country,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither data nor cache, backbone or run are there any more; the answer is that of `geo predict`, to the last digit."""
    root = tmp_path / "machine"
    machine = copy_country(root)  # type: ignore[operator]
    shutil.copytree(fitted, root / "runs" / "first")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in pictures(machine, 7):
        shutil.copy(path, elsewhere)
    names = [Path(path).name for path in pictures(machine, 7)]
    options = ["--json", *machine.options(), "--backbone", machine.backbone]
    copies = [elsewhere / name for name in names]
    wanted = command(capsys, "predict", "first", "--images", *copies, *options)
    made = command(capsys, "export", "first", "--out", elsewhere / "export", *options)
    assert (wanted.code, made.code) == (0, 0), wanted.err + made.err
    assert made.json["directory"] == str(elsewhere / "export")
    files = {
        str(p.relative_to(elsewhere / "export")) for p in (elsewhere / "export").rglob("*") if p.is_file()
    }
    assert set(made.json["files"]) == files
    shutil.rmtree(root)
    for path in (elsewhere / "export").rglob("*"):
        if path.is_file():
            assert not any(str(place).encode() in path.read_bytes() for place in (tmp_path, country.root))
    ran = geo_in(elsewhere, *names, command=[sys.executable, "-c", THREE_LINES])
    assert ran.code == 0, ran.err
    same(json.loads(ran.out), wanted.json)


@pytest.fixture(scope="module")
def exported(country: Country, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "predictor"
    export(country.config(), load_run(fitted.parent, "first"), out)
    return out


@pytest.fixture(scope="module")
def predictor(exported: Path) -> GeoPredictor:
    return GeoPredictor.from_pretrained(exported, device="cpu")


def test_pictures_in_any_form_views_that_are_missing_and_many_places(
    predictor: GeoPredictor, run: Run, config: Config, country: Country
) -> None:
    paths, others = pictures(country, 3), pictures(country, 4)
    forms = [
        paths[0],
        Path(paths[1]).read_bytes(),
        Image.open(paths[2]),
        np.asarray(Image.open(io.BytesIO(Path(paths[3]).read_bytes()))),
    ]
    places = [paths, forms, {"north": others[0], "south": others[2]}, [None, *others[1:]]]
    wanted = predict_images(config, run, places)
    answers = predictor.predict(places)
    same(answers, [wanted.describe(row) for row in range(4)])
    same(answers[0], answers[1])
    assert predictor.views == ("north", "east", "south", "west")
    assert predictor.states == run.labels.names


def test_as_a_module_it_maps_pixels_to_the_same_answers(predictor: GeoPredictor, country: Country) -> None:
    spec = predictor.preprocessing
    assert spec is not None
    paths = pictures(country, 5)
    pixels = np.stack([resize(decode(Path(path).read_bytes()), spec) for path in paths])
    states, point = predictor(torch.from_numpy(pixels)[None], torch.ones(1, 4, dtype=torch.bool))
    wanted = predictor.predictions(paths)
    np.testing.assert_allclose(states.numpy(), wanted.probabilities, rtol=0, atol=1e-6)
    np.testing.assert_allclose(point.numpy()[0], [wanted.latitude[0], wanted.longitude[0]], rtol=0, atol=1e-4)


def test_saved_again_it_is_the_same_directory(
    predictor: GeoPredictor, exported: Path, tmp_path: Path
) -> None:
    predictor.save_pretrained(tmp_path / "again")
    for path in exported.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(exported)).read_bytes() == path.read_bytes()
    with pytest.raises(GeoError, match="it lies there already"):
        predictor.save_pretrained(exported)
    assert (exported / "config.json").exists()


def test_a_predictor_goes_on_when_its_directory_is_replaced_and_saves_no_other_export(
    run: Run, config: Config, country: Country, tmp_path: Path
) -> None:
    """Members, weights and heads of an ensemble are read once: never a part of one export and a part of another."""
    shutil.copytree(run.path, run.path.parent / "again")
    ensemble(config, ["first", "again"], method="average", name="twice")
    twice = load_run(config.paths.runs_dir, "twice")
    export(config, twice, tmp_path / "e")
    predictor = GeoPredictor.from_pretrained(os.path.relpath(tmp_path / "e"), device="cpu")
    places = [pictures(country, 2)]
    before = predictor.predict(places)
    (tmp_path / "away").mkdir()
    os.chdir(tmp_path / "away")
    export(config, run, tmp_path / "e", heads_only=True)
    same(predictor.predict(places), before)
    with pytest.raises(GeoError, match="another export lies now where this predictor was loaded from"):
        predictor.save_pretrained(tmp_path / "copy")
    shutil.rmtree(tmp_path / "e")
    same(predictor.predict(places), before)


def test_saved_in_the_place_of_another_export_nothing_of_that_one_stays(
    predictor: GeoPredictor, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "other")
    (tmp_path / "other" / "model.onnx").write_bytes(b"of another run")
    predictor.save_pretrained(tmp_path / "other")
    assert files(tmp_path / "other") == files(exported)


def test_a_fine_tuned_run_and_a_mixture_of_it_bring_their_own_backbone(own: Country, tmp_path: Path) -> None:
    config = own.config(tmp_path, finetune__epochs=1, finetune__batch_size=32, finetune__lora_rank=2)
    finetune(config, name="tuned")
    run = load_run(config.paths.runs_dir, "tuned")
    fit_heads(own.config(tmp_path, model__backbone_name=str(run.path / "backbone")), name="on-tuned")
    ensemble(config, ["tuned", "on-tuned"], method="average", name="twice")
    shutil.move(run.path, tmp_path / "moved")
    places = [pictures(own, row) for row in (1, 2)]
    for source in (load_run(tmp_path, "moved"), load_run(config.paths.runs_dir, "twice")):
        out = tmp_path / f"of-{source.name}"
        done = export(config, source, out)
        wanted = predict_images(config, source, places, backbone=str(out / "backbone"))
        answers = GeoPredictor(out, device="cpu").predict(places)
        same(answers, [wanted.describe(row) for row in range(2)])
        assert "backbone/model.safetensors" in done.files


@pytest.fixture
def imported(tmp_path: Path) -> Config:
    return make_world(tmp_path / "w", ("a", "b", "c"), views=("x", "y"))


def test_heads_alone_answer_embeddings_and_no_pictures(imported: Config, tmp_path: Path) -> None:
    """The only export of a run on embeddings that were made elsewhere: what made them isn't known."""
    run = made_run(imported, "of-import")
    with pytest.raises(GeoError, match="fitted on imported embeddings") as refused:
        export(imported, run, tmp_path / "e")
    assert refused.value.hint.endswith("geo export of-import --out DIR --heads-only")
    assert not (tmp_path / "e").exists()
    done = export(imported, run, tmp_path / "e", heads_only=True)
    assert not any(name.startswith("backbone") for name in done.files)
    heads = GeoPredictor.from_pretrained(tmp_path / "e")
    embeddings = np.random.default_rng(0).normal(size=(3, 2, run.dim)).astype(np.float32)
    present = np.array([[True, True], [False, True], [True, True]])
    wanted = predict_arrays(imported, run, embeddings, present)
    same(heads.predict(embeddings=embeddings, present=present), [wanted.describe(row) for row in range(3)])
    with pytest.raises(GeoError, match="heads alone"):
        heads.predict([["a.jpg", "b.jpg"]])
    with pytest.raises(GeoError, match="give pictures, or embeddings="):
        heads.predict()
    assert NAME in (tmp_path / "e" / "README.md").read_text()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda out: out.write_text("mine"), "this is a file"),
        (lambda out: (out.mkdir(), (out / "thesis.tex").touch()), "it holds thesis.tex"),
        (lambda out: (out.mkdir(), (out / ".git").mkdir()), "it holds .git"),
        (lambda out: (out.mkdir(), (out / "config.json").write_text("{}")), "no export of geo_embed"),
        (lambda out: out.symlink_to(out), "can't read"),
        (lambda out: out.symlink_to("gone"), "can't read"),
        # Whoever stands in it would be left in what is no more.
        (lambda out: (out.mkdir(), os.chdir(out)), "this is the working directory"),
        (lambda out: out.symlink_to("runs/first"), "this lies in the run itself|no part of an export"),
    ],
)
def test_what_is_no_export_stays_and_is_named(
    run: Run, config: Config, tmp_path: Path, make: object, why: str
) -> None:
    out = tmp_path / "out"
    make(out)  # type: ignore[operator]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GeoError, match=why):
        export(config, run, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_and_an_empty_directory_are_replaced_by_a_new_one_whole(
    run: Run, config: Config, exported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    (out / "run" / "old").touch()
    export(config, run, out, heads_only=True)
    assert not (out / "run" / "old").exists()
    assert not (out / "backbone").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    export(config, run, tmp_path / "link", heads_only=True)
    assert (tmp_path / "link").is_symlink()
    assert GeoPredictor(tmp_path / "empty").described.heads_only
    with pytest.raises(GeoError, match="this lies in the run itself"):
        export(config, run, run.path / "inside", heads_only=True)


@pytest.mark.parametrize("damage", ["heads.safetensors", "metrics.json", "state_centroids.json", "backbone"])
def test_a_run_that_is_damaged_or_whose_backbone_is_gone_leaves_nothing(
    run: Run,
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    country: Country,
) -> None:
    backbone: list[str] = []
    if damage == "backbone":
        backbone = ["--backbone", str(tmp_path / "gone")]
    elif damage == "state_centroids.json":
        (run.path / damage).unlink()
    else:
        (run.path / damage).write_bytes((run.path / damage).read_bytes()[:100])
    options = country.options(tmp_path)
    ran = command(capsys, *options, "export", "first", "--out", str(tmp_path / "out"), *backbone)
    assert ran.code == 1
    errors = [line for line in ran.err.splitlines() if not line.startswith("warning: ")]
    assert [line.split(":")[0] for line in errors] == ["error", "hint"]
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["heads.safetensors", "model.safetensors", "config.json"])
def test_an_export_that_is_damaged_says_so(exported: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(exported, tmp_path / "e")
    for path in (tmp_path / "e").rglob(damage):
        data = bytearray(path.read_bytes())
        data[-20] ^= 255
        path.write_bytes(data)
    with pytest.raises(GeoError):
        GeoPredictor.from_pretrained(tmp_path / "e")


def test_of_a_later_version_or_none_at_all_it_says_what_to_do(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "e")
    described = json.loads((tmp_path / "e" / "config.json").read_text())
    (tmp_path / "e" / "config.json").write_text(json.dumps(described | {"format": 3}))
    with pytest.raises(GeoError, match="no export that can be read here: format") as refused:
        GeoPredictor.from_pretrained(tmp_path / "e")
    assert "pip install -U geo-embed" in refused.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(GeoError, match="no export that can be read here"):
        GeoPredictor.from_pretrained(tmp_path / "empty")
    with pytest.raises(GeoError, match="neither a directory nor the name of a repository"):
        GeoPredictor.from_pretrained(str(tmp_path / "not-there" / "at all"))


def test_a_head_of_a_plugin_is_refused_by_name(
    run: Run, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = json.loads((run.path / "recipe.json").read_text())
    from geo_embed.registry import HEADS

    head = recipe["parts"][0]["heads"]["model"]["head"]
    built_in = {name: module for name, module in HEADS.built_in.items() if name != head}
    monkeypatch.setattr(HEADS, "built_in", built_in)
    with pytest.raises(GeoError, match=f"the head '{head}' is a plugin's"):
        export(config, run, tmp_path / "e")


def test_one_backbone_that_is_named_as_several_are_is_exported_without_its_path(
    country: Country, tmp_path: Path
) -> None:
    config = country.config(tmp_path, model__backbones=[str(country.backbone)], training__epochs=1)
    fit_heads(config, name="listed")
    export(config, load_run(config.paths.runs_dir, "listed"), tmp_path / "e")
    for path in (tmp_path / "e" / "run").iterdir():
        assert str(country.root).encode() not in path.read_bytes()
    assert GeoPredictor(tmp_path / "e", device="cpu").predict(pictures(country, 1))


def test_an_ensemble_on_embeddings_by_different_things_takes_both_side_by_side(
    imported: Config, tmp_path: Path
) -> None:
    """No array of one's width could be right for both."""
    made_run(imported, "one")
    cache_import(imported, imported.paths.data_root.parent / "train.npy", "train", "another")
    other = imported.model_copy(update={"model": imported.model.with_backbone("another")})
    made_run(other, "two")
    ensemble(imported, ["two", "one"], method="average", name="both")
    run = load_run(imported.paths.runs_dir, "both")
    with pytest.raises(GeoError, match="fitted on imported embeddings"):
        export(imported, run, tmp_path / "e")
    export(imported, run, tmp_path / "e", heads_only=True)
    heads = GeoPredictor(tmp_path / "e")
    assert [block.name for block in heads.blocks] == ["another", NAME]
    assert (
        f"(24 numbers each: 12 of another, then 12 of {NAME})" in (tmp_path / "e" / "README.md").read_text()
    )
    second, first = np.random.default_rng(0).normal(size=(2, 5, 2, 12)).astype(np.float32)
    answers = heads.predictions(embeddings=np.concatenate([second, first], axis=-1))
    alone = [
        predict_arrays(imported, load_run(imported.paths.runs_dir, name), embeddings).probabilities
        for name, embeddings in (("two", second), ("one", first))
    ]
    np.testing.assert_allclose(answers.probabilities, np.mean(alone, axis=0), rtol=0, atol=1e-6)
    with pytest.raises(GeoError, match="2 × 12 numbers a place, where run was fitted on 2 × 24"):
        heads.predict(embeddings=first)


def test_a_plugins_loss_is_nothing_that_an_export_needs(
    imported: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geo_embed.registry import GPS_LOSSES

    run = made_run(changed(imported, training__gps_loss="mae", training__calibration="temperature"), "lossy")
    with monkeypatch.context() as plugged:
        # As a plugin's: known while it is loaded, and not where the export is used.
        plugged.setattr(GPS_LOSSES, "built_in", {k: v for k, v in GPS_LOSSES.built_in.items() if k != "mae"})
        export(imported, run, tmp_path / "e", heads_only=True)
    assert GeoPredictor(tmp_path / "e").run.config.training.gps_loss == "mse"
    assert run.config.training.gps_loss == "mae"


def test_a_full_disk_leaves_what_was_there(
    nursery: Nursery, run: Run, exported: Path, tmp_path: Path, country: Country
) -> None:
    shutil.copytree(exported, tmp_path / "out")
    arguments = [*country.options(tmp_path), "export", "first", "--out", tmp_path / "out"]
    ran = nursery.start_in(tmp_path, *arguments, before=NO_LARGE_FILES).end()
    assert ran.code == 1
    assert "error: can't write" in ran.err
    assert "Traceback" not in ran.err
    for path in exported.rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(exported)).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".writing")] == []
