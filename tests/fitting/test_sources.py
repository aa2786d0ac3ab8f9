"""Heads over several backbones: they are one run like any other, and what each source alone reaches is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from rows import CLASSES, region_of, rows_of, tiny
from small import Small, command, saved_predictions

from geo_embed import GeoPredictor
from geo_embed import fit_heads as fit_heads_of_package
from geo_embed.blocks import blocks_of
from geo_embed.cache.join import find_sources
from geo_embed.cache.rebuild import rebuild_stores
from geo_embed.cache.verify import choose_stores, verify_deep
from geo_embed.config import Config, Model, Training
from geo_embed.data.images import decode, resize
from geo_embed.errors import GeoError
from geo_embed.exports.export import export
from geo_embed.extraction.extract import extract
from geo_embed.extraction.for_run import extract_for_run
from geo_embed.finetuning.finetune import finetune
from geo_embed.fitting import race as room
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.fit import describe_comparison, fit_heads
from geo_embed.fitting.race import EARLY, LATE, TOGETHER, fit_best
from geo_embed.fitting.train import scale_and_shift, train
from geo_embed.heads.mixture import build_mixture
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.notebook import load_run
from geo_embed.prediction.pictures import predict_arrays, predict_images
from geo_embed.prediction.predict import predict_split
from geo_embed.prediction.submission import submit
from geo_embed.runs.listing import summarise
from geo_embed.runs.run import Run
from geo_embed.runs.run import load_run as open_run
from geo_embed.settings import get_config, with_changes
from geo_embed.synthetic.backbone import write_backbone

if TYPE_CHECKING:
    from conftest import Country


@pytest.fixture(scope="module")
def twofold(country: Country, tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, str]:
    """A few places, embedded by the country's backbone and by another one, and a run on both, `both`."""
    root = tmp_path_factory.mktemp("twofold")
    small = Small.cut(country, root / "small", train=24, test=4, chunk_rows=12)
    other = str(root / "other")
    write_backbone(Path(other), seed=1)
    for name in (str(small.backbone), other):
        for split in ("train", "test"):
            extract(small.config(model__backbone_name=name), split)
    fit_heads(several(small, other), name="both")
    return small, other


@pytest.fixture
def two(twofold: tuple[Small, str], tmp_path: Path) -> tuple[Config, Run]:
    """A copy of it that a test may break: the settings, and the run."""
    small, other = twofold
    config = several(small.copy(tmp_path / "small"), other)
    return config, open_run(config.paths.runs_dir, "both")


def several(small: Small, other: str) -> Config:
    names = [str(small.backbone), other]
    return small.config(model__backbones=names, model__head="probe", training__val_split=0.3)


def store_of(config: Config, name: str, split: str) -> Path:
    return next(s.store.path for s in find_sources(config, split) if s.name == name)


# ---------------------------------------------------------------- a run like any other


def test_a_run_over_two_backbones_answers_as_it_was_scored(two: tuple[Config, Run]) -> None:
    config, run = two
    assert run.dim == 2 * 768
    assert [source["name"] for source in run.sources] == sorted(config.model.backbones)
    assert len(set(run.store_fingerprints)) == 2
    assert run.config.model.standardise
    recorded, truth = saved_predictions(run.predictions_path("val"))
    predicted, _ = predict_split(config, run, "train")
    rows = [predicted.sample_id.tolist().index(sample) for sample in recorded.sample_id]
    np.testing.assert_allclose(predicted.probabilities[rows], recorded.probabilities, rtol=1e-5)
    np.testing.assert_allclose(predicted.latitude[rows], recorded.latitude, rtol=1e-6)
    scores = evaluate(config, run, by=["view"])
    assert scores["score"] == pytest.approx(run.read_metrics()["score"])
    assert scores["samples"] == len(truth)
    path, verdict = submit(config, run)
    assert verdict.valid
    test, _ = predict_split(config, run, "test")
    assert len(path.read_text().splitlines()) == 1 + len(test)


def test_pictures_are_embedded_by_every_backbone(
    two: tuple[Config, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = two
    cached, _ = predict_split(config, run, "test")
    folder = config.paths.images("test")
    names = [f"img_{int(cached.sample_id[0]):06d}_{view}.jpg" for view in run.config.model.view_names]
    fresh = predict_images(config, run, [folder / name for name in names])
    np.testing.assert_allclose(fresh.probabilities[0], cached.probabilities[0], atol=2e-3)
    named = predict_images(config, run, [folder / name for name in names], backbone=config.model.backbones)
    np.testing.assert_array_equal(named.probabilities, fresh.probabilities)
    # What is damaged is said once, and not by every backbone.
    cut = (folder / names[0]).read_bytes()
    (folder / names[0]).write_bytes(cut[: len(cut) // 2] + b"\xff\xd9")
    skipping = with_changes(config, {"inference.on_damaged_image": "skip"})
    capsys.readouterr()
    without = predict_images(skipping, run, [folder / name for name in names])
    assert " ".join(capsys.readouterr().err.split()).count("it is left out") == 1
    wanted = predict_images(config, run, [None, *(folder / name for name in names[1:])])
    np.testing.assert_array_equal(without.probabilities, wanted.probabilities)


def test_what_the_cache_lacks_is_embedded_by_the_backbone_that_lacks_it(two: tuple[Config, Run]) -> None:
    config, run = two
    before, _ = predict_split(config, run, "test")
    first, other = config.model.backbones
    shutil.rmtree(store_of(config, other, "test"))
    with pytest.raises(GeoError) as caught:
        predict_split(config, run, "test")
    assert caught.value.what.startswith(f"of {other}, one of 2 that both was fitted on, no test store has")
    assert caught.value.hint == f"geo extract --split test --backbone {other}"
    (done,) = extract_for_run(config, run, "test")
    assert done.store == store_of(config, other, "test")
    assert done.computed == 16
    again, _ = predict_split(config, run, "test")
    np.testing.assert_array_equal(again.probabilities, before.probabilities)
    write_backbone(Path("stranger"), seed=9)
    with pytest.raises(GeoError, match="has other weights"):
        extract_for_run(config, run, "test", backbone=[first, "stranger"])


def test_pictures_that_one_backbone_could_not_have_are_told_of_until_it_has_them(
    two: tuple[Config, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = two
    whole, _ = predict_split(config, run, "test")
    _, other = config.model.backbones
    store = store_of(config, other, "test")
    shutil.rmtree(store)
    away = config.paths.images("test").rename("away")
    config.paths.images("test").mkdir()
    kept = sorted(away.iterdir())[4:]
    for picture in kept[1:]:
        shutil.copy(picture, config.paths.images("test"))
    # Of one place all pictures were away, and of another the first.
    by_other = config.model_copy(
        update={
            "model": config.model.with_backbone(other),
            "inference": config.inference.model_copy(update={"on_bad_image": "skip"}),
        }
    )
    extract(by_other, "test")
    for picture in away.iterdir():
        shutil.copy(picture, config.paths.images("test"))
    capsys.readouterr()
    partly, _ = predict_split(config, run, "test")
    command_again = f"geo extract --split test --backbone {other}"
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {other} lacks 5 pictures of test that another source has: a view counts where every source has it, "
        f"which leaves 1 sample without any; where they lie there now: {command_again}",
        "warning: 1 sample of test has no view that every source has; it gets the training set's prior",
    ]
    np.testing.assert_array_equal(partly.probabilities[2:], whole.probabilities[2:])
    # Its pictures are held against the backbone that made them, and what it says of itself is made again by it.
    shutil.rmtree(store_of(config, other, "train"))
    (store / "zarr.json").unlink()
    paths, model = config.paths, config.model
    stores, problems = choose_stores(paths.cache_dir, model, "test")
    assert [problem.store for problem in problems] == [store]
    stores, _, made = rebuild_stores(config, stores, problems)
    assert [rebuilt.store for rebuilt in made] == [store]
    assert sorted(s.path for s in stores) == sorted(
        store_of(config, name, "test") for name in model.backbones
    )
    assert [verify_deep(config, each) for each in stores] == [[], []]
    assert extract(by_other, "test").computed == 5
    healed, _ = predict_split(config, run, "test")
    assert "lacks" not in capsys.readouterr().err
    np.testing.assert_array_equal(healed.probabilities, whole.probabilities)


def test_backbones_named_in_another_order_give_the_same_heads(two: tuple[Config, Run]) -> None:
    config, run = two
    fit_heads_of_package(config, backbones=config.model.backbones[::-1], name="swapped")
    swapped = open_run(config.paths.runs_dir, "swapped")
    assert swapped.heads_path.read_bytes() == run.heads_path.read_bytes()
    assert swapped.blocks == run.blocks
    assert swapped.store_fingerprints == run.store_fingerprints
    made = ensemble(config, ["both", "swapped"], method="average", name="ensemble")
    assert made.val["score"] == pytest.approx(run.read_metrics()["score"])
    assert open_run(config.paths.runs_dir, "ensemble").store_fingerprints == run.store_fingerprints


def test_on_the_command_line_a_backbone_is_named_as_often_as_there_are_some(
    two: tuple[Config, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = two
    options = [
        *("--set", f"paths.data_root={config.paths.data_root}"),
        *("--set", f"paths.cache_dir={config.paths.cache_dir}"),
        *("--set", f"paths.runs_dir={config.paths.runs_dir}", "--json"),
    ]
    named = [word for name in config.model.backbones for word in ("--backbone", name)]
    done = command(capsys, *options, "extract", "--split", "test", *named)
    assert done.code == 0, done.err
    assert [part["reused"] for part in json.loads(done.out)["splits"]] == [16, 16]
    done = command(
        capsys,
        *options,
        *("fit-heads", "--preset", "pigeon", "--name", "typed", *named),
    )
    assert done.code == 0, done.err
    run = open_run(config.paths.runs_dir, "typed")
    assert run.config.model.backbones == config.model.backbones
    # One that is named takes the place of several in the settings.
    alone = [*options, "--set", f"model.backbones={json.dumps(config.model.backbones)}"]
    done = command(
        capsys, *alone, "fit-heads", "--preset", "pigeon", "--name", "alone", "--backbone", named[1]
    )
    assert done.code == 0, done.err
    assert open_run(config.paths.runs_dir, "alone").dim == 768


def test_fine_tuning_of_several_backbones_is_refused(two: tuple[Config, Run]) -> None:
    config, _ = two
    with pytest.raises(
        GeoError, match="fine-tuning trains one backbone for its own feature, and the run was"
    ):
        finetune(config, name="tuned", init="both")
    with pytest.raises(GeoError, match="for its own feature, and the settings name 2 backbones"):
        finetune(config, name="tuned")


# ---------------------------------------------------------------- arrays


def by_two(n: int = 150) -> dict[str, Any]:
    """Places whose state two sources tell, each with noise of its own."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 5
    sources = {
        name: 40 * rng.normal(size=(5, dim))[labels][:, None] * 0.45
        + scale * 40 * rng.normal(size=(n, 2, dim)) * 0.9
        for name, dim, scale in (("b", 8, 1.0), ("a", 5, 1.0))
    }
    # The numbers of one are a thousand times those of the other.
    sources["a"] = sources["a"] / 1000
    return {
        "embeddings": sources,
        "states": [f"state {k}" for k in labels],
        "latitude": 40 + labels + rng.normal(size=n) / 9,
        "longitude": -90 + 2 * labels + rng.normal(size=n) / 9,
    }


def test_arrays_by_name_are_sources_in_the_order_of_their_names(tmp_path: Path) -> None:
    config = get_config(paths={"runs_dir": str(tmp_path)}, training={"preset": "pigeon", "epochs": 2})
    given = by_two()
    fit_heads(config, **given, name="named")
    run = load_run("named", config=config)
    assert run.blocks == blocks_of(["a", "b"], [5, 8])
    assert run.config.model.backbones == ()
    embeddings = given["embeddings"]
    whole = np.concatenate([embeddings["a"], embeddings["b"]], axis=-1)
    by_name, by_column = run.predict(embeddings=embeddings), run.predict(embeddings=whole)
    assert by_name.equals(by_column)
    with pytest.raises(
        GeoError, match=r"embeddings by a \(5\), c \(8\), where named was fitted on a \(5\), b"
    ):
        run.predict(embeddings={"a": embeddings["a"], "c": embeddings["b"]})
    for wrong, what in (
        ({}, "there is no array"),
        ({"a": embeddings["a"], "b": embeddings["b"][1:]}, "embeddings of shape"),
        ({"a": embeddings["a"], "b": np.full_like(embeddings["b"], np.nan)}, "is NaN or infinite"),
    ):
        with pytest.raises(GeoError, match=what):
            fit_heads(config, **given | {"embeddings": wrong}, name="wrong")


# ---------------------------------------------------------------- the race


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that a test has the time for."""
    made = room._small_members

    def small(*arguments: Any) -> list[Any]:
        return [
            member.variant("", {"head_hidden": 16}, epochs=min(2, member.training.epochs))
            for member in made(*arguments)
        ]

    monkeypatch.setattr(room, "_small_members", small)


def test_best_says_what_each_source_alone_reaches_and_beats_it(
    tmp_path: Path, narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = get_config(paths={"runs_dir": str(tmp_path)}, training={"val_split": 0.5})
    given = by_two()
    both = fit_heads(config, **given, name="both")
    told = capsys.readouterr().err
    alone = {
        name: fit_heads(config, **given | {"embeddings": given["embeddings"][name]}, name=name)
        for name in ("a", "b")
    }
    (part,) = both.parts
    scores, shares = part["sources"]["scores"], part["sources"]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == {EARLY, "a", "b"}
    # What is said of a source is what a fit of it alone gives.
    for name, fit in alone.items():
        assert scores[name] == pytest.approx(fit.val["score"], abs=1e-6)
    assert scores["together"] == both.val["score"]
    assert "a alone " in told
    assert " fusion won, " in told
    assert all(both.val["score"] > fit.val["score"] + 0.02 for fit in alone.values())


def rows_by_two(telling: str, n: int = 400) -> Rows:
    """Sources a and b: the state is in their difference, or in a alone beside a wide b of noise."""
    rows = rows_of(n, absent=0.1, dim=12, seed=3)
    generator = torch.Generator().manual_seed(0)
    nuisance = 9 * torch.randn(*rows.views.shape, generator=generator)
    a, b = (rows.views + nuisance, nuisance) if telling == EARLY else (rows.views.float(), None)
    if b is None:
        b = torch.randn(*rows.views.shape[:2], 300, generator=generator)
    return replace(rows, views=torch.cat([a, b], dim=2), blocks=blocks_of(["a", "b"], [12, b.shape[2]]))


def test_sources_that_are_called_as_fusions_are_told_apart_from_them(narrow: None) -> None:
    rows = replace(rows_by_two(EARLY, n=60), blocks=blocks_of([EARLY, TOGETHER], [12, 12]))
    _, race = fit_best(rows, CLASSES, Model(fusion="average"), Training(), seed=0)
    sources = {"the source early", "the source together"}
    assert set(race.alternatives) == {EARLY, LATE, *sources}
    assert set(race.shares) == {EARLY, *sources}
    scores = dict.fromkeys((TOGETHER, *race.alternatives), 0.5)
    told = describe_comparison({"shares": race.shares, "scores": scores, "brief": False}, 9)
    assert "together 0.5000, early 0.5000, late 0.5000, the source early alone 0.5000" in told


@pytest.mark.parametrize("telling", [EARLY, LATE])
def test_among_many_samples_the_better_fusion_is_fitted_whole(
    monkeypatch: pytest.MonkeyPatch, telling: str
) -> None:
    monkeypatch.setattr(room, "SMALL", 100)
    rows = rows_by_two(telling)
    model, training = Model(fusion="average"), Training(budget_seconds=1e-6)
    mixture, race = fit_best(rows, CLASSES, model, training, seed=0)
    assert set(race.alternatives) == {EARLY, LATE, "a", "b"}
    assert race.brief
    (shares,) = [{name for name, share in race.shares.items() if share}]
    columns = [heads.columns for heads in mixture.heads]
    if telling == EARLY:
        assert shares == {EARLY}
        assert columns == [None]
    else:
        assert "a" in shares
        assert EARLY not in shares
        assert (0, 12) in columns
    # On disk heads keep what they look at.
    described = json.loads(json.dumps(mixture.description()))
    rebuilt = build_mixture(described, rows.views.shape[2], rows.views.shape[1], CLASSES)
    rebuilt.load_state_dict(mixture.state_dict())
    for first, second in zip(
        mixture.predict(rows.views, rows.present), rebuilt.predict(rows.views, rows.present), strict=True
    ):
        assert torch.equal(first, second)
    for member in described["members"]:
        member["columns"] = [0, rows.views.shape[2] + 1]
    with pytest.raises(ValueError, match="columns 0 to"):
        build_mixture(described, rows.views.shape[2], rows.views.shape[1], CLASSES)


@pytest.mark.parametrize("head", ["geocells", "probe", "discriminant", "view-discriminant", "cell-probe"])
def test_heads_of_one_source_are_those_that_its_embeddings_alone_give(head: str) -> None:
    rows = rows_by_two(EARLY, n=60)
    narrow = replace(rows, views=rows.views[..., 12:].contiguous(), blocks=())
    model, training = tiny(head=head, standardise=True), Training(epochs=2, view_swap=0.5)
    region = region_of(rows, model)
    of_block, alone = (
        train(given, region, model, training, seed=0).heads for given in (rows.of(rows.blocks[1]), narrow)
    )
    for first, second in zip(of_block.state_dict().values(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    one, other = of_block.predict(rows.views, rows.present), alone.predict(narrow.views, rows.present)
    torch.testing.assert_close(one[0], other[0], rtol=1e-3, atol=1e-5)


def test_every_source_is_standardised_by_itself() -> None:
    rows = rows_of(80, dim=6)
    small = replace(
        rows,
        views=torch.cat([rows.views.float() * 1e-4, rows.views.float() * 1e3], dim=2),
        blocks=blocks_of(["a", "b"], [6, 6]),
    )
    scale, shift = scale_and_shift(small)
    standardised = (small.views * scale + shift)[small.present]
    torch.testing.assert_close(standardised.var(dim=0, correction=0), torch.ones(12), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(standardised[:, :6], standardised[:, 6:], rtol=1e-2, atol=1e-2)


# ---------------------------------------------------------------- features of one store


def test_features_of_a_store_are_sources_like_backbones(
    country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Small.cut(country, tmp_path / "small", train=24, test=3)
    both = ("image_embeds", "token_mean")
    config = small.config(model__features=both, model__head="probe", training__val_split=0.3)
    extract(config, "train")
    command(
        capsys,
        *small.options(),
        *("--set", "model.head=probe", "--set", "training.val_split=0.3"),
        *("fit-heads", "--feature", "all", "--name", "all"),
    )
    run = open_run(config.paths.runs_dir, "all")
    assert run.blocks == blocks_of([str(small.backbone), f"{small.backbone}:token_mean"], [768, 160])
    assert run.store_fingerprints == [run.provenance["store"]["fingerprint"]]
    assert summarise(run).backbone == f"{small.backbone}, {small.backbone}:token_mean"
    # What the cache lacks is made with the features that the run takes, and those alone.
    own = small.config()
    (done,) = extract_for_run(own, run, "test")
    assert done.computed == 12
    assert find_sources(own, "test")[0].store.features == both
    assert extract_for_run(own, run, "test") == []
    cached, _ = predict_split(own, run, "test")
    table = small.table("test")
    names = [small.images("test") / table[f"image_{view}"][0] for view in run.config.model.view_names]
    fresh = predict_images(own, run, names)
    np.testing.assert_allclose(fresh.probabilities[0], cached.probabilities[0], atol=2e-3)

    wrong = command(capsys, *small.options(), "fit-heads", "--feature", "tokens", "--name", "wrong")
    assert wrong.code == 1
    assert "Input should be 'image_embeds', 'pooler_output' or 'token_mean', got ['tokens']" in wrong.err
    # One further feature alone.
    fit_heads(with_changes(config, {"model.head_features": ["token_mean"]}), name="one")
    one = open_run(config.paths.runs_dir, "one")
    assert one.dim == 160
    assert one.blocks == blocks_of([f"{small.backbone}:token_mean"], [160])
    np.testing.assert_allclose(
        predict_images(own, one, names).probabilities[0],
        predict_split(own, one, "test")[0].probabilities[0],
        atol=2e-3,
    )
    with pytest.raises(GeoError, match="own feature"):
        finetune(config, name="tuned", init="one")

    # An export takes them along: the same pass, the same columns.
    shutil.copytree(run.path, run.path.parent / "again")
    ensemble(config, ["all", "again"], method="average", name="twice")
    for source in (run, one, open_run(config.paths.runs_dir, "twice")):
        export(own, source, Path(source.name))
        predictor = GeoPredictor(source.name, device="cpu")
        wanted = predict_images(own, source, [names])
        assert predictor.predict([names]) == [wanted.describe(0)]
        spec = predictor.preprocessing
        assert spec is not None
        pixels = np.stack([[resize(decode(name.read_bytes()), spec) for name in names]])
        states, _ = predictor(torch.from_numpy(pixels), torch.ones(1, 4, dtype=torch.bool))
        np.testing.assert_allclose(states.numpy(), wanted.probabilities, rtol=0, atol=1e-6)
        described = json.loads(Path(source.name, "config.json").read_text())
        assert described["dim"] == sum(described["features"].values()) == source.dim
        for path in Path(source.name, "run").iterdir():
            assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
    export(own, run, Path("heads"), heads_only=True)
    assert "(928 numbers each: 768 of image_embeds, then 160 of token_mean)" in Path(
        "heads/README.md"
    ).read_text().replace("\\", "")
    embeddings = np.random.default_rng(0).normal(size=(2, 4, 928)).astype(np.float32)
    answered = GeoPredictor("heads", device="cpu").predictions(embeddings=embeddings)
    np.testing.assert_array_equal(answered.probabilities, predict_arrays(own, run, embeddings).probabilities)

    with pytest.raises(GeoError, match="the store has no pooler_output") as caught:
        fit_heads(with_changes(config, {"model.head_features": ["pooler_output"]}), name="none")
    assert "model.features" in caught.value.hint
