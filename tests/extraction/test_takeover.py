"""A store of an earlier version is checked by some of its pictures and taken over, or left alone; nothing is paid for twice."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from small import EARLIER, Nursery, Small, age, command, content, encode, files

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.weights import fingerprint_of
from geo_embed.cache import verify
from geo_embed.cache.find import find_store, is_of_old_kind
from geo_embed.cache.store import open_store, rewrite_attributes
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract

if TYPE_CHECKING:
    from conftest import Country

ROWS, VIEWS = 12, 4


@pytest.fixture
def small(country: Country, tmp_path: Path) -> Small:
    shutil.copytree(country.backbone, tmp_path / "backbone")
    cut = Small.cut(country, tmp_path / "small", train=ROWS, test=3)
    return Small(cut.root, tmp_path / "backbone")


def config_json(small: Small, **changes: Any) -> None:
    file = small.backbone / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each pass through the backbone was of, from now on, but for the grey one that each loading tries."""
    passes: list[int] = []

    def counted(embed: Callable[..., Any], backbone: backbones.Backbone, pixels: Any) -> Any:
        passes.extend([len(pixels)] if pixels.any() else [])
        return embed(backbone, pixels)

    monkeypatch.setattr(backbones, "embed_features", partial(counted, backbones.embed_features))
    return passes


def test_a_store_that_agrees_is_taken_over_in_one_line_and_nothing_is_computed(
    small: Small, capsys: pytest.CaptureFixture[str], embedded: list[int]
) -> None:
    made = extract(small.config(), "train")
    old = age(made.store)
    arrays = {name: value for name, value in content(old).items() if name != "attrs"}
    name = open_store(old).fingerprint
    embedded.clear()
    ran = command(capsys, *small.options(), "--json", "extract", "--split", "train")
    assert (ran.json["computed"], ran.json["reused"]) == (0, ROWS * VIEWS)
    assert embedded == [1] * verify.DEEP_IMAGES
    assert (ran.json["store"], ran.json["fingerprint"]) == (str(old), name)
    assert [line for line in ran.err.splitlines() if "earlier version" in line] == [
        f"{old} is of an earlier version; pictures embedded again agree with it: it is taken over as it is"
    ]
    taken = open_store(old)
    assert not is_of_old_kind(taken)
    assert {name: value for name, value in content(old).items() if name != "attrs"} == arrays
    assert fingerprint_of({key: taken.attrs[key] for key in (*EARLIER, "function", "picture_semantics")}) == (
        made.fingerprint
    )
    assert command(capsys, *small.options(), "cache", "verify", "--split", "train", "--deep").code == 0
    # From now on it is a store like any other.
    embedded.clear()
    ran = command(capsys, *small.options(), "--json", "extract", "--split", "train")
    assert (ran.json["computed"], ran.json["store"], embedded) == (0, str(old), [])
    assert "earlier version" not in ran.err


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 4}, {"hidden_act": "gelu"}, {"layer_norm_eps": 0.3}], ids=str
)
def test_a_store_made_by_other_settings_is_left_alone_said_and_made_anew(
    small: Small, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    old = age(extract(small.config(), "train").store)
    before = files(old)
    config_json(small, **change)
    ran = command(capsys, *small.options(), "--json", "extract", "--split", "train")
    assert (ran.json["computed"], ran.json["reused"]) == (ROWS * VIEWS, 0)
    assert ran.json["store"] != str(old)
    assert files(old) == before
    assert "embedded again, has cosine" in ran.err
    assert "left alone" in ran.err
    assert find_store(small.config(), "train").path == Path(ran.json["store"])
    # Nobody is asked twice.
    assert "left alone" not in command(capsys, *small.options(), "extract", "--split", "train").err
    # With the settings that made it, it is found again.
    shutil.copy(small.backbone / "config.json", small.root / "changed.json")
    config_json(small, num_attention_heads=8, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    assert extract(small.config(), "train").store == old


def test_one_row_made_by_other_settings_is_enough_to_refuse_where_it_is_looked_at(small: Small) -> None:
    store = open_store(extract(small.config(), "train").store)
    config_json(small, num_attention_heads=4)
    other = open_store(extract(small.config(), "train").store)
    for row in range(0, ROWS, 2):
        for name in ("embeddings", "content_hash", "status"):
            chunk = f"{name}/c/{row // 2}" + ("/0/0" if name == "embeddings" else "/0")
            shutil.copy(other.path / chunk, store.path / chunk)
        break
    old = age(store.path)
    shutil.rmtree(other.path.parent)
    config_json(small, num_attention_heads=8)
    assert extract(small.config(), "train").store != old


def test_without_the_weights_it_is_used_by_its_name_and_that_is_said_once(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        age(extract(small.config(), split).store)
    small.backbone.rename(small.backbone.with_name("elsewhere"))
    shutil.rmtree(small.images())
    ran = command(capsys, *small.options(), "fit-heads", "--name", "first")
    assert ran.code == 0, ran.err
    warnings = [line for line in ran.err.splitlines() if "earlier version" in line]
    assert len(warnings) == 1
    assert "geo extract --split train" in warnings[0]
    for words in (("predict", "first", "--split", "test"), ("evaluate", "first"), ("submit", "first")):
        ran = command(capsys, *small.options(), *words)
        assert ran.code == 0, ran.err
        assert ran.err.count("earlier version") <= 1


def test_runs_know_it_by_its_name_before_and_after(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    options = small.options()
    old = {split: age(extract(small.config(), split).store) for split in ("train", "test")}
    assert command(capsys, *options, "fit-heads", "--name", "before").code == 0
    for split in ("train", "test"):
        done = extract(small.config(), split)
        assert (done.store, done.computed) == (old[split], 0)
    assert command(capsys, *options, "fit-heads", "--name", "after").code == 0
    for run in ("before", "after"):
        ran = command(capsys, *options, "--json", "predict", run, "--split", "test")
        assert ran.code == 0, ran.err
        ran = command(capsys, *options, "--json", "submit", run)
        assert ran.json["valid"]
    shown = command(capsys, *options, "--json", "cache", "ls").json["stores"]
    assert [store["runs"] for store in shown] == [["after", "before"]] * 2
    assert command(capsys, *options, "--json", "cache", "gc", "--unused", "--yes").json["stores"] == []


def test_a_run_of_before_predicts_a_test_split_extracted_since(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    age(extract(small.config(), "train").store)
    assert command(capsys, *small.options(), "fit-heads", "--name", "before").code == 0
    test = extract(small.config(), "test")
    for _ in range(2):
        ran = command(capsys, *small.options(), "predict", "before", "--split", "test")
        assert ran.code == 0, ran.err
        gone = command(capsys, *small.options(), "--json", "cache", "gc", "--unused", "--yes").json["stores"]
        assert gone == []
        assert test.store.exists()
        # The same once the train split was taken over.
        assert extract(small.config(), "train").computed == 0


def test_of_two_stores_of_one_name_that_were_made_by_different_settings_a_run_gets_its_own(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    train = age(extract(small.config(), "train").store)
    config_json(small, num_attention_heads=4)
    test = age(extract(small.config(), "test").store)
    assert train.parent == test.parent
    config_json(small, num_attention_heads=8)
    assert extract(small.config(), "train").store == train
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0
    made = extract(small.config(), "test")
    assert made.store != test
    assert made.computed == 3 * VIEWS
    ran = command(capsys, *small.options(), "--json", "predict", "first", "--split", "test")
    assert ran.code == 0, ran.err
    (names,) = [find_store(small.config(), "test", open_store(train).fingerprint).path]
    assert names == made.store


STOPS = {
    "before the attributes": "folder.FolderStorage.write_durably = lambda *_: os.kill(os.getpid(), 9)",
    "after the attributes": (
        "write = folder.FolderStorage.write_durably\n"
        "def once(*words):\n    write(*words)\n    os.kill(os.getpid(), 9)\n"
        "folder.FolderStorage.write_durably = once"
    ),
    "within the attributes": (
        "import pathlib\nrename = pathlib.Path.replace\n"
        "def stop(path, to):\n"
        "    if to.name == 'zarr.json':\n        os.kill(os.getpid(), 9)\n"
        "    return rename(path, to)\n"
        "pathlib.Path.replace = stop"
    ),
}


@pytest.mark.parametrize("stop", STOPS)
def test_killed_on_the_way_the_same_command_goes_on(small: Small, nursery: Nursery, stop: str) -> None:
    old = age(extract(small.config(), "train").store)
    before = f"import os\nfrom geo_embed.cache import folder\n{STOPS[stop]}"
    killed = nursery.run(small, "--json", "extract", "--split", "train", before=before)
    assert killed.code == -signal.SIGKILL
    assert find_store(small.config(), "train").path == old
    done = nursery.run(small, "--json", "extract", "--split", "train")
    assert (done.json["computed"], done.json["store"]) == (0, str(old))
    assert not is_of_old_kind(open_store(old))
    assert verify.verify(open_store(old)) == []
    assert not [path for path in old.rglob("*") if "writing" in path.name]
    assert {path.suffix for path in old.parent.iterdir()} <= {".zarr", ".lock"}


def test_parts_at_once_take_it_over_once(small: Small, nursery: Nursery) -> None:
    old = age(extract(small.config(), "train").store)
    parts = [
        nursery.start(small, "--json", "extract", "--split", "train", "--part", f"{k}/3") for k in (1, 2, 3)
    ]
    done = [part.end() for part in parts]
    assert [part.code for part in done] == [0, 0, 0], [part.err for part in done]
    assert {part.json["store"] for part in done} == {str(old)}
    assert sum(part.json["computed"] for part in done) == 0
    assert sum(part.err.count("taken over") for part in done) == 1


def half(small: Small) -> None:
    """The store has only half of its rows."""


def more(small: Small) -> None:
    """The CSV has other rows, in another order, than the store."""
    small.write(small.table().iloc[[9, 3, 1, 0, 2, 5, 4, 7]])


@pytest.mark.parametrize(("changed", "limit", "wanted"), [(half, 6, 24), (more, None, 0)])
def test_what_a_store_has_is_kept_and_only_what_it_lacks_is_computed(
    small: Small, changed: Callable[[Small], None], limit: int | None, wanted: int
) -> None:
    old = age(extract(small.config(), "train", limit=limit).store)
    changed(small)
    done = extract(small.config(), "train")
    assert (done.store, done.computed) == (old, wanted)
    assert not is_of_old_kind(open_store(old))


def test_superseded_stores_are_taken_along(small: Small) -> None:
    age(extract(small.config(), "train").store)
    old = next(small.cache.glob("*/train.zarr"))
    old.rename(old.with_name("train.zarr.1"))
    earlier = open_store(old.with_name("train.zarr.1"))
    # As if its successor had been begun, and killed after two rows.
    small.write(small.table().iloc[::-1])
    begun = extract(small.config(), "train", limit=2)
    age(begun.store)
    assert is_of_old_kind(earlier)
    done = extract(small.config(), "train")
    assert done.store == old
    assert done.computed == 0


def test_where_no_picture_can_be_compared_it_is_left_alone(small: Small) -> None:
    old = age(extract(small.config(), "train").store)
    for k, path in enumerate(sorted(small.images().iterdir())):
        path.write_bytes(small.other_picture(k))
    done = extract(small.config(), "train")
    assert done.store != old
    assert done.computed == ROWS * VIEWS
    assert is_of_old_kind(open_store(old))
    assert len(list(small.cache.iterdir())) == 2


def test_a_store_whose_metadata_is_damaged_is_not_made_good(small: Small) -> None:
    old = age(extract(small.config(), "train").store)
    head = old / "zarr.json"
    head.write_text(head.read_text().replace('"created": "2', '"created": "3'))
    assert extract(small.config(), "train").store != old
    assert verify.verify(open_store(old)) != []


def test_a_store_of_an_earlier_reading_of_pictures_is_checked_by_the_rare_kinds_of_pictures(
    small: Small,
) -> None:
    """Half of the pictures that are embedded again are no JPEGs, where there are such."""
    table = small.table()
    for row in (1, 7):
        png = small.picture(row).with_suffix(".png")
        png.write_bytes(encode(Image.open(small.picture(row)).convert("L"), "PNG"))
        table.loc[row, "image_north"] = png.name
    small.write(table)
    store = open_store(extract(small.config(), "train").store)
    rewrite_attributes(store, store.attrs | {"picture_semantics": 1})
    # As if that version had read the rarer of them otherwise.
    chunk = store.path / "embeddings/c/3/0/0"
    block = np.zeros((2, VIEWS, store.shape[2]), dtype="<f2")
    store.storage.read_chunk("embeddings/c/3/0/0", block)
    block[1, 0] = block[0, 0]
    store.storage.write_chunk(str(chunk.relative_to(store.path)), block)
    assert is_of_old_kind(open_store(store.path))
    assert extract(small.config(), "train").computed == 0


def test_somebody_at_work_on_an_old_store_is_waited_for_by_name(small: Small) -> None:
    from geo_embed.cache.locks import only_writer

    old = age(extract(small.config(), "train").store)
    with only_writer(old), pytest.raises(GeoError, match="another extraction is writing"):
        extract(small.config(), "train")
    assert is_of_old_kind(open_store(old))


def test_a_model_that_changes_while_it_is_loaded_is_said(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = backbones.load_backbone

    def changed(*words: Any, **named: Any) -> backbones.Backbone:
        config_json(small, num_attention_heads=4)
        return loaded(*words, **named)

    monkeypatch.setattr(backbones, "load_backbone", changed)
    with pytest.raises(GeoError, match="changed on disk just now: other function"):
        extract(small.config(), "train")
