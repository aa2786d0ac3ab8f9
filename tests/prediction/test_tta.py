"""A split is answered by the average over variants of its pictures, each embedded once, and nobody takes that for the plain answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small import Small, command

from geo_embed.cache.find import variant_stores
from geo_embed.cache.join import JoinedEmbeddings, Source, read_joined
from geo_embed.cache.store import Store, content_digest, open_store, read_ids
from geo_embed.config import Config
from geo_embed.data.samples import load_samples
from geo_embed.data.variants import Variant
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.extraction.for_run import extract_for_run
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.pictures import predict_images
from geo_embed.prediction.predict import predict_embeddings, predict_split
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.table import is_tta, read_stores

pytestmark = pytest.mark.cut(train=12, test=3)
TABLE = "test_predictions.parquet"


def joined(store: Store) -> JoinedEmbeddings:
    return read_joined([Source("backbone", store)], read_ids(store))


def set_of_run(run: Run, **augment: float) -> Run:
    """The run, as if its pictures had been augmented otherwise."""
    path = run.path / "config.toml"
    lines = path.read_text().splitlines()
    for key, value in augment.items():
        (place,) = (i for i, line in enumerate(lines) if line.startswith(f"{key} = "))
        lines[place] = f"{key} = {float(value)}"
    path.write_text("\n".join(lines))
    return load_run(run.path.parent, run.name)


def fitted(small: Small, name: str = "first", **settings: object) -> Run:
    """Heads that know which view is which; pictures were cropped and mirrored in training, or would have been."""
    config = small.config(model__fusion="concat", training__epochs=12, **settings)
    extract(config, "train")
    fit_heads(config, name=name)
    return set_of_run(load_run(config.paths.runs_dir, name), crop=0.5, flip=0.5)


def store_of(small: Small, run: Run) -> Path:
    """Where the test pictures as they are lie, embedded by the run's backbone."""
    (path,) = small.cache.glob(f"*-{run.provenance['store']['fingerprint']}/test.zarr")
    return path


def asking(small: Small, **settings: object) -> Config:
    return small.config(inference__tta=True, **settings)


def answered(config: Config, run: Run) -> np.ndarray:
    return predict_split(config, run, "test", embed=extract_for_run)[0].probabilities


@pytest.mark.parametrize("views", [["north", "east", "south", "west"], ["east", "west"]])
def test_a_place_gets_the_same_answer_from_its_pictures_and_from_the_stores(
    small: Small, views: list[str]
) -> None:
    """To float16, in which the stores hold embeddings."""
    run = fitted(small, model__view_names=views)
    config = asking(small, model__view_names=views)
    cached = predict_split(config, run, "test", embed=extract_for_run)[0]
    plain = answered(small.config(model__view_names=views), run)
    assert np.abs(cached.probabilities - plain).max() > 3e-3
    samples = load_samples(run.config, "test")
    for row in range(len(samples)):
        fresh = predict_images(config, run, [samples.image_root / name for name in samples.images[row]])
        np.testing.assert_allclose(cached.probabilities[row], fresh.probabilities[0], atol=1e-3)
        assert fresh.latitude[0] == pytest.approx(cached.latitude[row], abs=0.05)
        assert fresh.longitude[0] == pytest.approx(cached.longitude[row], abs=0.05)


def test_it_is_the_mean_over_three_stores_of_which_the_mirrored_ones_views_swap_sides(small: Small) -> None:
    run = fitted(small)
    small.picture(1, "east", "test").unlink()
    config = asking(small, inference__on_bad_image="skip")
    both = answered(config, run)
    plain = open_store(store_of(small, run))
    middle, mirrored = sorted(variant_stores(small.cache, plain), key=lambda store: store.variant.mirror)
    assert (str(middle.variant), str(mirrored.variant)) == ("the middle 75 %", "mirrored")
    swapped = joined(mirrored)
    assert swapped.present[1].tolist() == [True, False, True, True]
    swapped.values[:] = swapped.values[:, [0, 3, 2, 1]]
    swapped.present[:] = swapped.present[:, [0, 3, 2, 1]]
    parts = [predict_embeddings(run, e).probabilities for e in (joined(plain), joined(middle), swapped)]
    np.testing.assert_allclose(both, np.mean(parts, axis=0), atol=1e-6)


def test_every_variant_is_embedded_once(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(small)
    refused = command(capsys, *small.options(), "submit", "first", "--tta", "--no-extract")
    assert refused.code == 1
    ran = command(capsys, *small.options(), "submit", "first", "--tta")
    assert ran.code == 0, ran.err
    assert ran.err.count("12 pictures computed") == 3
    assert "test pictures, the middle 75 %, embedded by" in ran.err
    for asked in (("submit", "first"), ("predict", "first", "--split", "test")):
        again = command(capsys, *small.options(), *asked, "--tta", "--no-extract")
        assert (again.code, "pictures computed" in again.err) == (0, False), again.err


def test_variants_can_be_embedded_ahead(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """`geo extract --tta`: by the settings' augmentation, as that of the run that is to answer."""
    fitted(small)
    augment = ("--set", "finetune.augment.crop=0.5", "--set", "finetune.augment.flip=0.5")
    made = command(capsys, *small.options(), *augment, "--json", "extract", "--split", "test", "--tta")
    assert made.code == 0, made.err
    assert [variant["variant"] for variant in made.json["splits"]] == [
        "as they are",
        "the middle 75 %",
        "mirrored",
    ]
    assert [variant["computed"] for variant in made.json["splits"]] == [12, 12, 12]
    again = command(capsys, *small.options(), *augment, "extract", "--split", "test", "--tta")
    assert again.out.count("0 computed, 12 reused") == 3
    assert again.out.count("mirrored") == 1
    assert command(capsys, *small.options(), "submit", "first", "--tta", "--no-extract").code == 0
    plain = command(capsys, *small.options(), "--json", "extract", "--split", "test")
    assert plain.json["variant"] == "as they are"


def test_the_log_of_submissions_tells_which_are_averages(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(small)
    for options in (("--out", "a.csv"), ("--out", "b.csv", "--tta")):
        assert command(capsys, *small.options(), "submit", "first", *options).code == 0
    log = command(capsys, *small.options(), "--json", "submission", "log").json["log"]
    assert {Path(entry["file"]).name: entry["texts"] for entry in log} == {
        "a.csv": [],
        "b.csv": ["averaged over variants of the pictures (--tta)"],
    }


def test_a_variant_that_is_missing_is_named_with_the_command_that_makes_it(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(small)
    extract(small.config(), "test")
    for asked in (("submit", "first"), ("predict", "first", "--split", "test")):
        ran = command(capsys, *small.options(), *asked, "--tta", "--no-extract")
        assert ran.code == 1
        assert "no test store of a variant of the pictures (the middle 75 %)" in ran.err
        assert "predict first --split test --tta" in ran.err
        assert "Traceback" not in ran.err
    # Or half of it, after Ctrl-C.
    extract(small.config(), "test", variant=Variant(crop=0.75), limit=1)
    ran = command(capsys, *small.options(), "submit", "first", "--tta", "--no-extract")
    assert ran.code == 1
    assert "2 of 3 samples are not extracted yet" in ran.err
    assert "predict first --split test --tta" in ran.err


def test_the_table_tells_which_stores_it_was_made_from_and_that_they_were_averaged(small: Small) -> None:
    run = fitted(small)
    answered(asking(small), run)
    plain = open_store(store_of(small, run))
    stores = [plain, *variant_stores(small.cache, plain)]
    assert len(stores) == 3
    assert read_stores(run.path / TABLE) == {s.fingerprint: content_digest(s) for s in stores}
    assert is_tta(run.path / TABLE)
    answered(small.config(), run)
    assert read_stores(run.path / TABLE) == {plain.fingerprint: content_digest(plain)}
    assert not is_tta(run.path / TABLE)


def test_a_submission_of_the_one_kind_is_never_made_from_answers_of_the_other(small: Small) -> None:
    run, table = fitted(small), None
    written = {}
    for kind, config in (("plain", small.config()), ("tta", asking(small))):
        path, _ = submit(config, run, embed=extract_for_run)
        written[kind] = path.read_bytes()
    assert written["plain"] != written["tta"]
    for kind, config in (("plain", small.config()), ("tta", asking(small))):
        for _ in range(2):
            path, _ = submit(config, run)
            assert path.read_bytes() == written[kind]
            # The second finds answers of its kind, and takes them.
            before, table = table, (run.path / TABLE).stat().st_ino
        assert before == table
    # Neither where the stores are gone, and nothing can be made again.
    shutil.rmtree(small.cache)
    path, _ = submit(asking(small), run)
    assert path.read_bytes() == written["tta"]
    with pytest.raises(GeoError, match="no test store"):
        submit(small.config(), run)


def test_pictures_that_change_are_noticed_in_whatever_store_they_are(small: Small) -> None:
    run = fitted(small)
    submit(asking(small), run, embed=extract_for_run)
    made = (run.path / TABLE).stat().st_ino
    # The store of the pictures as they are alone gets to know of it.
    small.picture(2, "south", "test").write_bytes(small.other_picture(1))
    assert extract(small.config(), "test").computed == 1
    with pytest.raises(GeoError, match=r"is of other pictures \(the middle 75 %\)") as caught:
        submit(asking(small), run)
    assert caught.value.hint.endswith("geo predict first --split test --tta")
    path, _ = submit(asking(small), run, embed=extract_for_run)
    assert (run.path / TABLE).stat().st_ino != made
    before = path.read_bytes()
    for store in small.cache.glob("*/test.zarr"):
        shutil.rmtree(store)
    (run.path / TABLE).unlink()
    path, _ = submit(asking(small), run, embed=extract_for_run)
    assert path.read_bytes() == before


def test_answers_are_stale_where_the_store_of_a_variant_alone_holds_something_else(small: Small) -> None:
    run = fitted(small)
    submit(asking(small), run, embed=extract_for_run)
    submit(asking(small), run)
    small.picture(0, "west", "test").write_bytes(small.other_picture(1))
    assert extract(small.config(), "test", variant=Variant(mirror=True)).computed == 1
    with pytest.raises(GeoError, match=r"is of other pictures \(mirrored\)"):
        submit(asking(small), run)


def test_a_run_that_changes_no_picture_says_that_there_is_nothing_to_average(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    run = set_of_run(fitted(small), crop=1, flip=0)
    plain = answered(small.config(), run)
    capsys.readouterr()
    np.testing.assert_allclose(answered(asking(small), run), plain, atol=1e-6)
    assert "neither crops nor flips" in capsys.readouterr().err
    assert len(list(small.cache.glob("*/test.zarr"))) == 1


def test_views_that_cannot_be_mirrored_are_refused_in_one_line(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        table = small.table(split).rename(
            columns={"image_north": "image_first", "image_east": "image_second"}
        )
        small.write(table, split)
    fitted(small, model__view_names=["first", "second"])
    ran = command(capsys, *small.options(), "submit", "first", "--tta")
    assert ran.code == 1
    assert "first, second can't be mirrored" in ran.err


def test_an_ensemble_averages_over_the_variants_of_each_member(small: Small) -> None:
    for name in ("one", "other"):
        fitted(small, name, training__seed=len(name))
    ensemble(small.config(), ["one", "other"], method="average", name="both")
    config = small.config()
    run = set_of_run(load_run(config.paths.runs_dir, "both"), crop=0.5, flip=0.5)
    both = answered(asking(small), run)
    alone = [answered(asking(small), load_run(config.paths.runs_dir, name)) for name in ("one", "other")]
    np.testing.assert_allclose(both, np.mean(alone, axis=0), atol=1e-5)
    samples = load_samples(config, "test")
    fresh = predict_images(asking(small), run, [samples.image_root / name for name in samples.images[0]])
    np.testing.assert_allclose(both[0], fresh.probabilities[0], atol=1e-3)


def test_embeddings_that_were_imported_have_no_variants(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, rows in (("train", 12), ("test", 3)):
        file = small.root / f"{split}.npy"
        np.save(file, np.random.default_rng(rows).normal(size=(rows, 4, 7)).astype(np.float32))
        asked = ("cache", "import", file, "--split", split, "--backbone", "mine")
        assert command(capsys, *small.options(), *asked).code == 0
    assert command(capsys, *small.options(), "fit-heads", "--backbone", "mine", "--name", "first").code == 0
    ran = command(capsys, *small.options(), "submit", "first", "--tta")
    assert ran.code == 1
    assert "imported embeddings (mine)" in ran.err
    assert "without --tta" in ran.err


def test_a_run_that_was_scored_on_variants_is_told_how_to_answer_by_them(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fitted(small, inference__tta=True)
    path = run.path / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init": "elsewhere"}))
    run = load_run(run.path.parent, run.name)
    for config, warned in ((small.config(), True), (asking(small), False)):
        capsys.readouterr()
        answered(config, run)
        assert ("was scored on variants" in capsys.readouterr().err) == warned
