"""Further features of one pass: in the same store, of the same pictures, whenever they were asked for."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import Nursery, Small, chunk_files, command, content, forty_places, holding

from geo_embed.backbones import backbone as backbones
from geo_embed.cache.exchange import cache_export, cache_import
from geo_embed.cache.store import OK, lacking, open_store, read_has_feature, read_status, read_store
from geo_embed.cache.verify import verify, verify_deep
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import Extraction, extract
from geo_embed.extraction.plan import further_features

pytestmark = pytest.mark.cut(train=7, chunk_rows=2)

ALL = ("image_embeds", "pooler_output", "token_mean")


def featured(small: Small, *features: str, **changes: Any) -> Config:
    return small.config(model__features=features or ALL, **changes)


def extracted(small: Small, *features: str, **options: Any) -> Extraction:
    return extract(featured(small, *features), "train", **options)


def one_pass(small: Small, *features: str) -> Path:
    """The store that one process makes of all, elsewhere."""
    return extract(featured(small, *features, paths__cache_dir=str(small.root / "whole")), "train").store


def assert_one_pass(small: Small, *features: str) -> None:
    """The store of the training split is byte for byte the one of a single pass, and sound."""
    whole = one_pass(small, *features)
    assert chunk_files(small.store()) == chunk_files(whole)
    assert content(small.store()) == content(whole)
    assert verify(open_store(small.store())) == []


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures went through the backbone, pass by pass, from now on."""
    seen: list[int] = []
    embed = backbones.embed_features

    def counted(backbone: backbones.Backbone, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(pixels))
        return embed(backbone, pixels)

    monkeypatch.setattr(backbones, "embed_features", counted)
    return seen


def test_one_pass_writes_what_transformers_gives_for_each(small: Small, passes: list[int]) -> None:
    from transformers import CLIPVisionModelWithProjection

    done = extracted(small)
    # Batches of five, and none straddles two chunks of two rows: 5 + 3, 5 + 3, 5 + 3, 4.
    assert (done.computed, done.features, len(passes)) == (28, ALL, 7)
    store = open_store(done.store, writable=False)
    tower = CLIPVisionModelWithProjection.from_pretrained(small.backbone).eval()
    seen: dict[str, Any] = {}
    tower.vision_model.post_layernorm.register_forward_hook(lambda *words: seen.update(pooled=words[2]))
    from geo_embed.backbones.preprocessing import recorded_preprocessing
    from geo_embed.data import images

    spec = recorded_preprocessing(store.attrs["preprocessing"], store.path)
    pixels = torch.from_numpy(images.resize(images.decode(small.picture(3, "east").read_bytes()), spec))[None]
    with torch.inference_mode():
        output = tower(pixel_values=images.normalise(pixels, spec, torch.float32))
    wanted = {
        "image_embeds": output.image_embeds[0],
        "pooler_output": seen["pooled"][0],
        "token_mean": output.last_hidden_state[0].mean(dim=0),
    }
    for name, expected in wanted.items():
        read = read_store(store, feature=name)
        assert (read.feature, read.values.dtype, read.values.shape) == (
            name,
            np.dtype("float16"),
            (7, 4, len(expected)),
        )
        assert read.present.all()
        np.testing.assert_allclose(read.values[3, 1], expected.numpy(), rtol=2e-3, atol=2e-3)
    assert verify_deep(featured(small), store) == []
    # The embeddings are those of a pass for them alone.
    alone = extract(small.config(paths__cache_dir=str(small.root / "alone")), "train")
    assert (alone.fingerprint, alone.features) == (done.fingerprint, ("image_embeds",))
    plain = open_store(alone.store, writable=False)
    assert "features" not in plain.attrs
    assert (read_store(plain).values == read_store(store).values).all()


def test_a_feature_that_is_added_later_makes_the_bytes_of_one_pass(
    small: Small, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    extract(small.config(), "train")
    before = chunk_files(small.store())
    inodes = {name: (small.store() / name).stat().st_ino for name in before}
    passes.clear()
    wanted = json.dumps(ALL[:2])
    ran = command(
        capsys, *small.options(), "--json", "extract", "--split", "train", "--set", f"model.features={wanted}"
    )
    assert (ran.code, ran.json["computed"], ran.json["features"]) == (0, 28, list(ALL[:2]))
    assert "pooler_output" in ran.err
    assert "28 pictures" in ran.err
    after = chunk_files(small.store())
    assert {name: after[name] for name in before} == before
    written = [name for name in before if (small.store() / name).stat().st_ino != inodes[name]]
    assert written == [], "embeddings are not written again"
    assert extracted(small, *ALL[:2]).computed == 0
    assert extract(small.config(), "train").computed == 0, "what has more than is asked for is simply used"
    assert extracted(small, "token_mean").computed == 28
    assert len(passes) == 14
    assert_one_pass(small)


def test_the_rest_of_a_store_gets_the_features_that_it_has_room_for(small: Small) -> None:
    extracted(small, limit=3)
    done = extract(small.config(), "train")
    assert done.computed == 16
    assert_one_pass(small)


def test_parts_in_any_order_add_what_one_pass_makes(country: Any, tmp_path: Path) -> None:
    small = forty_places(country, tmp_path / "small")
    extract(small.config(), "train")
    counts = [(done.computed, done.reused) for done in (extracted(small, part=(k, 3)) for k in (3, 1, 2))]
    assert sum(computed for computed, _ in counts) == 158, "an image that another part embedded is copied"
    assert_one_pass(small)


def test_two_parts_that_begin_an_addition_at_once_make_what_one_pass_makes(
    small: Small, nursery: Nursery
) -> None:
    extract(small.config(), "train")
    adding = ("extract", "--split", "train", "--set", f"model.features={json.dumps(ALL)}", "--part")
    first = nursery.start(small, *adding, "1/2", before=holding("extraction.plan.add_features"))
    assert first.wait_for((small.root / "held").exists)
    second = nursery.start(small, *adding, "2/2")
    (small.root / "go").touch()
    assert [first.end().code, second.end().code] == [0, 0]
    assert_one_pass(small)


def test_a_changed_picture_is_embedded_whole_and_the_others_features_are_copied(small: Small) -> None:
    extracted(small)
    small.picture(2).write_bytes(small.other_picture(1))
    done = extract(small.config(), "train")
    assert (done.computed, done.reused, done.features) == (1, 27, ALL)
    assert_one_pass(small)


def test_an_addition_meets_a_changed_picture(small: Small) -> None:
    extract(small.config(), "train")
    small.picture(5).write_bytes(small.other_picture(1))
    done = extracted(small)
    # The chunks before the changed picture had got their features already, and these are copied as well.
    assert done.computed + done.reused == 28
    assert done.reused
    assert_one_pass(small)


def test_what_an_earlier_version_wrote_lacks_the_feature_and_has_no_others(small: Small) -> None:
    """It forgets rows and embeds their pictures, which have changed, and knows nothing of features."""
    extracted(small)
    store = open_store(small.store())
    for name in ("status", "content_hash", "embeddings"):
        array = np.asarray(store.arrays[name][0:2])
        array[1, 2] = 5 if name == "content_hash" else OK if name == "status" else 1.5
        store.arrays[name][0:2] = array
    changed = open_store(small.store())
    assert (read_has_feature(changed, "token_mean") == False).sum() == 1  # noqa: E712
    with pytest.raises(GeoError, match="1 of 28 pictures have no token_mean yet"):
        read_store(changed, feature="token_mean")
    assert read_store(changed, feature="image_embeds").present.all()


def test_pictures_that_are_not_there_have_no_feature(small: Small) -> None:
    small.picture(1).unlink()
    for row in (2, 3):
        for view in ("north", "east", "south", "west"):
            small.picture(row, view).unlink()
    config = featured(small, inference__on_bad_image="skip")
    store = open_store(extract(config, "train").store)
    read = read_store(store, feature="token_mean")
    assert (read.present == (read_status(store) == OK)).all()
    assert not read.values[~read.present].any()
    assert lacking(store, "token_mean") == 0
    assert verify(store) == []


def test_a_store_without_a_feature_says_what_it_has_and_what_adds_it(small: Small) -> None:
    store = open_store(extracted(small, "pooler_output").store)
    assert lacking(store, "token_mean") == 28
    with pytest.raises(
        GeoError, match="the store has no token_mean, only image_embeds and pooler_output"
    ) as error:
        read_store(store, feature="token_mean")
    assert error.value.hint == (
        f"geo extract --split train --backbone {small.backbone} "
        """--set 'model.features=["image_embeds","pooler_output","token_mean"]'"""
    )


@pytest.mark.parametrize("array", ["token_mean", "token_mean_hash"])
def test_a_damaged_feature_is_found_and_computed_again_and_the_embeddings_stay(
    small: Small, array: str
) -> None:
    store = extracted(small).store
    chunk = next((store / array / "c" / "1").rglob("0"))
    chunk = chunk if chunk.is_file() else next(path for path in chunk.rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-3] + b"abc")
    with pytest.raises(GeoError, match="a chunk is damaged"):
        read_store(open_store(store), feature="token_mean")
    assert read_store(open_store(store)).present.all()
    (problem,) = verify(open_store(store), repair=True)
    assert problem.where == f"{array}, rows 2–3"
    assert verify(open_store(store)) == []
    assert lacking(open_store(store), "token_mean") == 8
    assert extract(small.config(), "train").computed == 0
    assert extracted(small).computed == 8
    assert_one_pass(small)


def test_features_are_none_on_a_cpu_and_all_on_a_card_unless_they_are_named(small: Small) -> None:
    model = small.config().model
    for device, wanted in (("cpu", ()), ("cuda", ("pooler_output", "token_mean"))):
        assert further_features(model, small.backbone, torch.device(device)) == wanted
    named = featured(small, "token_mean").model
    assert further_features(named, small.backbone, torch.device("cpu")) == ("token_mean",)


def test_what_was_interrupted_is_told_and_the_command_that_is_named_ends_it(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(small.config(), "train")
    extracted(small, "token_mean", part=(1, 2))
    ran = command(capsys, *small.options(), "cache", "verify", "--split", "train")
    assert ran.code == 0
    assert "12 pictures have no token_mean yet. Next:" in ran.out
    hint = next(
        line.strip()
        for line in ran.out.splitlines()
        if line.strip().startswith("geo extract") or "geo --set" in line
    )
    listed = command(capsys, *small.options(), "cache", "ls").out
    assert "+ token_mean × 160 (not of 12 pictures)" in listed
    done = command(capsys, *shlex.split(hint)[1:], "--json")
    assert (done.code, done.json["computed"]) == (0, 12), done.err
    report = command(capsys, *small.options(), "--json", "cache", "verify", "--split", "train").json
    assert (report["lacking"], report["problems"]) == ([], [])
    (summary,) = command(capsys, *small.options(), "--json", "cache", "info", "--split", "train").json[
        "stores"
    ]
    assert (summary["feature"], summary["further"]) == (
        "image_embeds",
        {"token_mean": {"dim": 160, "lacking": 0}},
    )


def test_a_feature_goes_out_and_comes_back_as_a_store_of_its_own(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(extracted(small, "token_mean").store)
    out = small.root / "mean.safetensors"
    export = ("--json", "cache", "export", "--split", "train", "--out", out, "--feature")
    wrong = command(capsys, *small.options(), *export, "pooler_output")
    assert (wrong.code, out.exists()) == (1, False)
    assert "the store has no pooler_output, only image_embeds and token_mean" in wrong.err
    ran = command(capsys, *small.options(), *export, "token_mean")
    assert (ran.code, ran.json["feature"], ran.json["dim"]) == (0, "token_mean", 160), ran.err
    imported = cache_import(small.config(), out, "train", "mean")
    back = open_store(imported.store)
    assert (read_store(back).values == read_store(store, feature="token_mean").values).all()
    assert back.attrs["source_made_by"]["feature"] == "token_mean"
    # The other split's must be the same feature, too.
    extract(featured(small), "test")
    cache_export(small.config(), "test", small.root / "test.safetensors", feature="pooler_output")
    with pytest.raises(GeoError, match="its feature is 'pooler_output', not 'token_mean'"):
        cache_import(small.config(), small.root / "test.safetensors", "test", "mean")


def test_a_feature_that_the_backbone_lacks_is_refused_by_name_and_nothing_is_changed(
    small: Small, tmp_path: Path
) -> None:
    clip = small.backbone
    geoclip = tmp_path / "geoclip"
    shutil.copytree(clip, geoclip)
    width = json.loads((clip / "config.json").read_text())["projection_dim"]
    save_file(
        {
            "0.weight": torch.ones(8, width),
            "0.bias": torch.ones(8),
            "2.weight": torch.ones(4, 8),
            "2.bias": torch.ones(4),
        },
        geoclip / "geoclip_mlp.safetensors",
    )
    config = featured(small, "token_mean", model__backbone_name=str(geoclip))
    with pytest.raises(GeoError, match="this model has no token_mean, only image_embeds"):
        extract(config, "train")
    assert not list(small.cache.glob("*/train.zarr"))
    assert (
        further_features(config.model.model_copy(update={"features": "auto"}), geoclip, torch.device("cuda"))
        == ()
    )
