"""Stores can be listed and cleaned up, and nothing that is needed goes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from small import Small, command, content

from geo_embed.cache.exchange import cache_import
from geo_embed.cache.find import find_store
from geo_embed.cache.tidy import collect_garbage
from geo_embed.extraction.extract import extract
from geo_embed.runs.run import run_stores

DIM = 7


def import_made_up(small: Small) -> None:
    np.save(small.root / "in.npy", np.random.default_rng(0).normal(size=(8, 4, DIM)).astype(np.float32))
    cache_import(small.config(), small.root / "in.npy", "train", "mine")


def test_ls_shows_every_store_and_the_runs_fitted_on_it(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = command(capsys, *small.options(), "cache", "ls")
    assert (ran.code, ran.out.strip()) == (0, "the cache is empty")
    extract(small.config(), "train")
    extract(small.config(), "test", limit=2)
    import_made_up(small)
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0
    stores = command(capsys, *small.options(), "--json", "cache", "ls").json["stores"]
    shown = {(store["backbone"], store["split"]): store for store in stores}
    assert len(stores) == 3
    assert shown["mine", "train"]["runs"] == []
    assert shown["mine", "train"]["dim"] == DIM
    assert shown[str(small.backbone), "train"]["runs"] == ["first"]
    assert shown[str(small.backbone), "test"]["complete"] == 0.5
    assert all(store["bytes"] > 1000 and 0 <= store["age_days"] < 1 for store in stores)
    text = command(capsys, *small.options(), "cache", "ls").out
    assert "50% complete" in text
    assert "runs: first" in text


def test_info_tells_what_made_a_store(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    done = extract(small.config(), "train")
    (store,) = command(capsys, *small.options(), "--json", "cache", "info", "--split", "train").json["stores"]
    assert store["path"] == str(done.store)
    assert store["attrs"]["fingerprint"] == done.fingerprint
    assert store["attrs"]["preprocessing"]["resize"] == "torch"
    text = command(capsys, *small.options(), "cache", "info", "--split", "train").out
    assert "weights_sha256" in text


def runs(small: Small) -> dict[str, list[str]]:
    return run_stores(small.config().paths.runs_dir)


def age(path: Path, hours: float = 2) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def test_gc_lists_first_and_deletes_only_when_told(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    done = extract(small.config(), "train")
    before = content(done.store)
    litter = [
        done.store.with_name(".train.zarr.creating"),
        done.store.with_name(".train.zarr.importing"),
        done.store.with_name("train.zarr.3"),
        done.store / "embeddings" / "c" / "0" / "0" / "0.abc.partial",
    ]
    for path in litter:
        path.write_text("left") if path.suffix == ".partial" else path.mkdir()
        age(path)
    ran = command(capsys, *small.options(), "--json", "cache", "gc")
    assert ran.code == 0
    assert {store["path"] for store in ran.json["stores"]} == {str(path) for path in litter}
    assert not ran.json["deleted"]
    assert all(path.exists() for path in litter)
    assert "delete with --yes" in command(capsys, *small.options(), "cache", "gc").out
    assert command(capsys, *small.options(), "--json", "cache", "gc", "--yes").json["deleted"]
    assert not any(path.exists() for path in litter)
    assert content(done.store) == before
    assert "nothing to delete" in command(capsys, *small.options(), "cache", "gc").out


def test_gc_leaves_what_is_young_and_what_is_still_needed(small: Small) -> None:
    done = extract(small.config(), "train")
    done.store.with_name(".train.zarr.creating").mkdir()
    assert collect_garbage(small.config()).stores == []
    shutil.rmtree(done.store.with_name(".train.zarr.creating"))

    # An extraction over a changed CSV was stopped half way: the earlier store is its source.
    small.write(small.table().iloc[::-1])
    extract(small.config(), "train", limit=3)
    for path in small.cache.glob("*/*"):
        age(path, hours=1000)
    assert collect_garbage(small.config(), runs=runs(small), delete=True).stores == []
    assert extract(small.config(), "train").reused == 32


def test_gc_unused_spares_what_runs_and_settings_point_at(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    present = extract(small.config(), "train")
    fitted = extract(small.config(model__exact=True), "train")
    exact = ["--set", "model.exact=true"]
    assert command(capsys, *small.options(), *exact, "fit-heads", "--name", "first").code == 0
    unused = extract(small.config(model__feature="pooler_output"), "train")
    assert collect_garbage(small.config()).stores == []
    listed = collect_garbage(small.config(), runs=runs(small))
    assert [store["path"] for store in listed.stores] == [unused.store]
    collect_garbage(small.config(), runs=runs(small), delete=True)
    assert not unused.store.exists()
    assert present.store.exists()
    assert fitted.store.exists()
    assert find_store(small.config(), "train").path == present.store


def test_gc_unused_spares_every_store_that_fits_where_none_can_be_chosen(small: Small) -> None:
    extract(small.config(model__dtype="float32"), "train")
    extract(small.config(model__dtype="bfloat16"), "train")
    assert len(list(small.cache.glob("*/train.zarr"))) == 2
    collect_garbage(small.config(), runs={}, delete=True)
    assert len(list(small.cache.glob("*/train.zarr"))) == 2


@pytest.mark.parametrize("fault", ["empty", "of another kind", "gone", "the whole folder", "all runs"])
def test_gc_unused_offers_no_store_where_a_run_does_not_say_what_it_was_fitted_on(
    small: Small, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    used = extract(small.config(), "train")
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0
    runs_dir = small.config().paths.runs_dir
    provenance = runs_dir / "first" / "provenance.json"
    if fault == "empty":
        provenance.write_text("")
    elif fault == "of another kind":
        provenance.write_text("{}")
    elif fault == "gone":
        provenance.unlink()
    else:
        broken = runs_dir if fault == "all runs" else runs_dir / "first"
        shutil.rmtree(broken)
        broken.symlink_to("a disk that is not there")
    litter = used.store.with_name(".train.zarr.creating")
    litter.mkdir()
    age(litter)
    gc = (*small.options(), "--set", "model.exact=true", "--json", "cache", "gc", "--unused", "--yes")
    ran = command(capsys, *gc)
    assert ran.code == 0
    assert [item["path"] for item in ran.json["stores"]] == [str(litter)]
    assert "so no store passes for unused" in ran.err
    assert str(runs_dir if fault == "all runs" else runs_dir / "first") in ran.err
    assert used.store.exists()
    assert "isn't known" in command(capsys, *small.options(), "cache", "ls").err

    if fault != "all runs":
        shutil.rmtree(runs_dir)
        command(capsys, *gc)
        assert not used.store.exists()


def test_gc_unused_takes_an_import_by_its_name_alone(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    import_made_up(small)
    gc = (*small.options(), "--json", "cache", "gc", "--unused", "--yes")
    ran = command(capsys, *gc)
    assert (ran.code, ran.json["stores"]) == (0, [])
    (kept,) = ran.json["kept"]
    assert Path(kept["path"]).exists()
    assert "with --import mine it goes" in ran.err
    ran = command(capsys, *gc, "--import", "mime")
    assert (ran.code, "no import 'mime'" in ran.err) == (1, True)
    assert [item["path"] for item in command(capsys, *gc, "--import", "mine").json["stores"]] == [
        kept["path"]
    ]
    assert not Path(kept["path"]).exists()
    assert command(capsys, *small.options(), "cache", "gc", "--import", "mine").code == 2
