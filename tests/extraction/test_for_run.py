"""A run that lacks embeddings of a split gets them by its very own backbone and settings, as `geo extract` would make them."""

from __future__ import annotations

import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from small import Small, age, command, content

import geo_embed
from geo_embed.backbones import backbone as backbones
from geo_embed.cache.exchange import cache_import
from geo_embed.cache.store import PENDING, open_store, read_status
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.extraction.for_run import extract_for_run
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.predict import predict_split
from geo_embed.runs.run import Run, load_run
from geo_embed.synthetic.backbone import write_backbone

pytestmark = pytest.mark.cut(train=12, test=3)


def fitted(small: Small, name: str = "first", dtype: str | None = None, **settings: object) -> Run:
    """A run on the train split; nothing is known of the test split."""
    config = small.config(**settings)
    done = extract(config, "train", dtype=dtype)
    fit_heads(small.config(**settings, model__fingerprint=done.fingerprint), name=name)
    return load_run(config.paths.runs_dir, name)


def forbidden_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_backbone(*_: object) -> None:
        raise AssertionError("a backbone is loaded, and for nothing")

    monkeypatch.setattr(backbones, "load_backbone", load_backbone)


@pytest.mark.parametrize("asked", [("submit", "first"), ("predict", "first", "--split", "test")])
def test_commands_embed_what_is_missing_and_say_so_once(
    small: Small, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...]
) -> None:
    fitted(small)
    refused = command(capsys, *small.options(), *asked, "--no-extract")
    assert refused.code == 1
    assert "error: no test store has the fingerprint" in refused.err
    assert f"geo {shlex.join(small.options())} extract --split test --backbone" in refused.err
    assert not list(small.cache.glob("*/test.zarr"))
    ran = command(capsys, *small.options(), "--json", *asked)
    assert ran.code == 0, ran.err
    assert "first needs the test pictures embedded by" in ran.err
    assert "12 pictures computed" in ran.err
    store = content(small.store("test"))
    shutil.rmtree(small.store("test"))
    extract(small.config(), "test")
    assert content(small.store("test")) == store
    again = command(capsys, *small.options(), *asked, "--no-extract")
    assert (again.code, "needs the" in again.err) == (0, False)


def test_the_verbs_for_notebooks_do_as_the_commands_unless_they_are_to_refuse(small: Small) -> None:
    run = fitted(small)
    for verb in (geo_embed.submit, partial(geo_embed.predict_split, split="test")):
        with pytest.raises(GeoError, match="no test store has the fingerprint"):
            verb(small.config(), run, embed=None)
    assert geo_embed.submit(small.config(), run)[1].valid
    shutil.rmtree(small.store("test"))
    assert len(geo_embed.predict_split(small.config(), run, "test")[0]) == 3


def test_what_is_there_is_not_embedded_and_no_backbone_is_loaded(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fitted(small)
    extract(small.config(), "test")
    forbidden_to_load(monkeypatch)
    assert extract_for_run(small.config(), run, "test") == []
    assert extract_for_run(small.config(), run, "train") == []


def test_a_store_that_is_begun_or_older_than_the_csv_is_completed(small: Small) -> None:
    run = fitted(small)
    extract(small.config(), "test", limit=1)
    (done,) = extract_for_run(small.config(), run, "test")
    assert (done.computed, done.reused) == (8, 4)
    assert (read_status(open_store(done.store)) != PENDING).all()
    # In another order rows are found by their ids.
    small.write(small.table("test").iloc[::-1], "test")
    assert extract_for_run(small.config(), run, "test") == []
    predict_split(small.config(), run, "test")
    small.write(small.table("test").iloc[1:], "test")
    (done,) = extract_for_run(small.config(), run, "test")
    assert (done.computed, done.reused) == (0, 8)
    assert predict_split(small.config(), run, "test")[0].sample_id.tolist() == [
        str(i) for i in small.table("test")["sample_id"]
    ]


def test_without_the_pictures_both_they_and_the_store_that_is_missing_are_named(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fitted(small)
    shutil.rmtree(small.images("test"))
    assert extract_for_run(small.config(), run, "test") == []
    with pytest.raises(GeoError, match="no test store has the fingerprint"):
        predict_split(small.config(), run, "test", embed=extract_for_run)
    assert f"there is no folder {small.images('test')}" in capsys.readouterr().err


def test_a_picture_that_is_gone_stops_it_as_it_stops_an_extraction(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(small)
    small.picture(1, "east", "test").unlink()
    ran = command(capsys, *small.options(), "submit", "first")
    assert ran.code == 1
    assert "view east" in ran.err
    assert "--on-bad-image skip" in ran.err
    ran = command(capsys, *small.options(), "submit", "first", "--on-bad-image", "skip")
    assert ran.code == 0, ran.err
    assert "11 pictures computed, 0 reused, 1 skipped" in ran.err


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("settings", ["auto", "float32"])
def test_the_precision_is_that_of_the_runs_embeddings_whatever_this_machine_would_take(
    small: Small, dtype: str | None, settings: str
) -> None:
    """`auto` is bfloat16 on a GPU: here a run that was fitted there is answered for by a CPU."""
    if settings == "float32" and dtype == "bfloat16":
        pytest.skip("embeddings in bfloat16 are never stored as float32")
    run = fitted(small, dtype=dtype, model__dtype=settings)
    (done,) = extract_for_run(small.config(), run, "test")
    assert done.fingerprint == run.provenance["store"]["fingerprint"]
    attrs = open_store(done.store).attrs
    assert attrs["dtype"] == (dtype or "float32")
    assert attrs["stored"] == ("float32" if settings == "float32" else "float16")
    predict_split(small.config(), run, "test")


def test_views_and_feature_are_the_runs_own_and_not_the_present_settings(small: Small) -> None:
    run = fitted(
        small, model__view_names=["west", "north"], model__feature="pooler_output", model__exact=True
    )
    (done,) = extract_for_run(small.config(), run, "test")
    assert (done.views, done.dim) == (2, 160)
    assert open_store(done.store).attrs["view_names"] == ["west", "north"]
    assert len(predict_split(small.config(), run, "test")[0]) == 3


def test_a_backbone_with_other_weights_is_refused_before_anything_is_computed(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small.backbone, tmp_path / "backbone")
    run = fitted(small, model__backbone_name=str(tmp_path / "backbone"))
    shutil.rmtree(tmp_path / "backbone")
    write_backbone(tmp_path / "backbone", seed=5)
    forbidden_to_load(monkeypatch)
    with pytest.raises(GeoError, match="has other weights than the one that first was fitted on") as caught:
        extract_for_run(small.config(), run, "test")
    assert caught.value.hint.endswith("geo extract --split test --backbone DIR")
    assert not list(small.cache.glob("*/test.zarr"))


def with_own_backbone(small: Small, name: str, seed: int) -> Run:
    """A run that keeps its backbone in its own directory, as a fine-tuned one does."""
    place = small.config().paths.runs_dir / name / "backbone"
    write_backbone(small.root / "made", seed=seed)
    run = fitted(small, name, model__backbone_name=str(small.root / "made"))
    shutil.move(small.root / "made", place)
    config = (run.path / "config.toml").read_text()
    (run.path / "config.toml").write_text(config.replace(str(small.root / "made"), str(place)))
    return load_run(run.path.parent, name)


def test_a_run_that_was_moved_has_its_own_backbone_with_it(small: Small, tmp_path: Path) -> None:
    run = with_own_backbone(small, "tuned", 3)
    shutil.move(run.path, tmp_path / "elsewhere")
    moved = load_run(tmp_path, "elsewhere")
    (done,) = extract_for_run(small.config(), moved, "test")
    assert done.fingerprint == run.provenance["store"]["fingerprint"]
    assert (done.computed, done.reused) == (12, 0)


def test_every_backbone_of_an_ensembles_members_embeds_the_pictures(
    small: Small, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("one", 3), ("other", 4)):
        with_own_backbone(small, name, seed)
    fitted(small, "plain")
    ensemble(small.config(), ["one", "other", "plain"], method="average", name="all")
    # The copies within the ensemble answer, whatever becomes of the runs that it was made of.
    for name in ("one", "other"):
        shutil.rmtree(small.root / "runs" / name)
    ran = command(capsys, *small.options(), "submit", "all")
    assert ran.code == 0, ran.err
    assert ran.err.count("all needs the test pictures embedded by") == 3
    assert len(list(small.cache.glob("*/test.zarr"))) == 3
    run = load_run(small.config().paths.runs_dir, "all")
    assert extract_for_run(small.config(), run, "test") == []


def test_a_run_of_an_earlier_version_gets_a_store_that_it_knows(small: Small) -> None:
    before = fitted(small)
    old = age(small.store("train"))
    provenance = before.path / "provenance.json"
    text = provenance.read_text()
    earlier = text.replace(before.provenance["store"]["fingerprint"], old.parent.name.rpartition("-")[2])
    assert earlier != text
    provenance.write_text(earlier)
    run = load_run(before.path.parent, "first")
    (done,) = extract_for_run(small.config(), run, "test")
    assert done.computed == 12
    predict_split(small.config(), run, "test")


def test_an_import_is_left_to_whoever_made_it(small: Small) -> None:
    file = small.root / "train.npy"
    np.save(file, np.random.default_rng(0).normal(size=(12, 4, 7)).astype(np.float32))
    cache_import(small.config(), file, "train", "mine")
    settings = small.config(model__backbone_name="mine")
    fit_heads(settings, name="first")
    run = load_run(settings.paths.runs_dir, "first")
    with pytest.raises(GeoError, match="no test store has the fingerprint") as caught:
        predict_split(settings, run, "test", embed=extract_for_run)
    assert caught.value.hint == "geo cache import FILE --split test --backbone mine"


def test_a_backbone_that_was_moved_is_named_and_another_is_refused_be_it_needed_or_not(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`geo predict --split … --backbone`."""
    shutil.copytree(small.backbone, tmp_path / "old")
    fitted(small, model__backbone_name=str(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    write_backbone(tmp_path / "other", seed=1)
    asked = (*small.options(), "predict", "first", "--split", "test")
    assert command(capsys, *asked).code == 1
    ran = command(capsys, *asked, "--backbone", tmp_path / "new")
    assert ran.code == 0, ran.err
    assert f"embedded by {tmp_path / 'new'}" in ran.err
    assert command(capsys, *asked, "--no-extract").code == 0
    refused = command(capsys, *asked, "--backbone", tmp_path / "other")
    assert refused.code == 1
    assert "has other weights than the one that first was fitted on" in refused.err
    assert command(capsys, *asked, "--backbone", tmp_path / "new", "--no-extract").code == 2


def test_a_backbone_that_is_named_for_a_run_fitted_on_an_import_is_refused(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(12, 4, 8)).astype(np.float16))
    cache_import(small.config(), tmp_path / "e.npy", "train", "mine")
    fit_heads(small.config(model__backbone_name="mine"), name="first")
    refused = command(
        capsys, *small.options(), "predict", "first", "--split", "test", "--backbone", small.backbone
    )
    assert refused.code == 1
    assert "first was fitted on imported embeddings" in refused.err
