"""A store of a variant of its pictures is a store like any other, and never taken for that of the pictures as they are."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from small import Small, command, content

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.cache.exchange import cache_export
from geo_embed.cache.find import choose_store, find_store
from geo_embed.cache.store import Store, open_store, read_store, rewrite_attributes
from geo_embed.cache.tidy import collect_garbage
from geo_embed.cache.verify import verify_deep
from geo_embed.data import images
from geo_embed.data.augment import change_pictures
from geo_embed.data.variants import AS_THEY_ARE, Variant
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import Extraction, extract

pytestmark = pytest.mark.cut(train=3, test=2)

MIDDLE, MIRRORED = Variant(crop=0.7), Variant(mirror=True)


def made(small: Small, variant: Variant = AS_THEY_ARE, split: str = "train") -> Extraction:
    return extract(small.config(), split, variant=variant)


def chosen(small: Small, split: str, fingerprint: str, variant: Variant = AS_THEY_ARE) -> Store:
    config = small.config()
    return choose_store(config.paths.cache_dir, config.model, split, fingerprint, variant)


@pytest.mark.parametrize("variant", [MIDDLE, MIRRORED])
def test_it_holds_every_picture_changed_at_its_own_view(small: Small, variant: Variant) -> None:
    stored = read_store(open_store(made(small, variant).store)).values
    config, spec = small.config(), read_preprocessing(small.backbone, exact=False)
    tower = backbones.load_backbone(config.model, torch.device("cpu"), torch.float32)
    for row in range(3):
        for view, name in enumerate(("north", "east", "south", "west")):
            pixels = images.resize(images.decode(small.picture(row, name).read_bytes()), spec)
            scene = torch.from_numpy(pixels)[None, None]
            changed = change_pictures(scene, torch.ones(1, 1, dtype=torch.bool), variant)[0]
            assert not torch.equal(changed, scene[0])
            with torch.inference_mode():
                expected = backbones.embed(tower, images.normalise(changed, spec, torch.float32))[0]
            np.testing.assert_allclose(stored[row, view], expected, rtol=2e-3, atol=1e-3)


def test_every_variant_is_another_store_and_none_passes_for_another(small: Small) -> None:
    middle, mirrored = made(small, MIDDLE), made(small, MIRRORED)
    with pytest.raises(GeoError, match="no embeddings of the train split"):
        find_store(small.config(), "train")
    plain = made(small)
    assert len({plain.store.parent, middle.store.parent, mirrored.store.parent}) == 3
    assert "variant" not in open_store(plain.store).attrs
    assert find_store(small.config(), "train").path == plain.store
    for variant, done in ((AS_THEY_ARE, plain), (MIDDLE, middle), (MIRRORED, mirrored)):
        # By the name of the pictures as they are, which is what a run knows.
        assert chosen(small, "train", plain.fingerprint, variant).path == done.store
    with pytest.raises(
        GeoError, match=r"no train store of a variant of the pictures \(the middle 90 %\)"
    ) as absent:
        chosen(small, "train", plain.fingerprint, Variant(crop=0.9))
    assert absent.value.hint == "geo predict RUN --split train --tta"
    with pytest.raises(GeoError, match="but of the pictures mirrored"):
        chosen(small, "train", mirrored.fingerprint)
    config = small.config(model__fingerprint=middle.fingerprint)
    with pytest.raises(GeoError, match="but of the pictures the middle 70 %"):
        cache_export(config, "train", small.root / "out.npy")


def test_embeddings_are_copied_within_a_variant_and_never_from_one_to_another(small: Small) -> None:
    assert [made(small, v).reused for v in (AS_THEY_ARE, MIDDLE, MIRRORED)] == [0, 0, 0]
    again = made(small, MIDDLE)
    assert (again.computed, again.reused) == (0, 12)
    before = content(again.store)
    small.write(small.table().iloc[::-1])
    moved = made(small, MIDDLE)
    assert (moved.computed, moved.reused) == (0, 12)
    assert content(moved.store)["sample_id"] == before["sample_id"][::-1]
    small.picture(0).write_bytes(small.other_picture(1))
    assert [made(small, v).computed for v in (MIDDLE, MIRRORED)] == [1, 1]


def test_verify_looks_at_variants_and_says_which_they_are(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, mirrored = made(small), made(small, MIRRORED)
    asked = ("cache", "verify", "--split", "train")
    verified = command(capsys, *small.options(), *asked, "--deep")
    assert verified.code == 0, verified.out + verified.err
    assert re.search(rf"{mirrored.store} +mirrored, 3 samples", verified.out)
    assert re.search(rf"{plain.store} +3 samples", verified.out)
    assert verify_deep(small.config(), open_store(mirrored.store)) == []
    # What is embedded again is the mirrored picture: as it is it would differ.
    store = open_store(mirrored.store)
    rewrite_attributes(store, {key: value for key, value in store.attrs.items() if key != "variant"})
    assert verify_deep(small.config(), open_store(mirrored.store))
    rewrite_attributes(store, store.attrs)
    chunk = mirrored.store / "embeddings" / "c" / "0" / "0" / "0"
    chunk.write_bytes(b"no embedding")
    assert command(capsys, *small.options(), *asked, "--repair").code == 3
    left = command(capsys, *small.options(), "--json", *asked).json["pending"]
    assert [(pending["store"], pending["commands"]) for pending in left] == [
        (str(mirrored.store), ["geo predict RUN --split train --tta"])
    ]


def test_ls_and_info_tell_the_variant_and_the_runs_that_may_answer_by_it(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    made(small)
    middle = made(small, MIDDLE)
    runs = small.root / "runs" / "first"
    runs.mkdir(parents=True)
    fitted_on = {"fingerprint": made(small).fingerprint, "backbone": "b", "dim": 1}
    fitted_on |= {"weights_sha256": None, "preprocessing": None}
    (runs / "provenance.json").write_text(json.dumps({"store": fitted_on}))
    listed = command(capsys, *small.options(), "--json", "cache", "ls").json["stores"]
    assert {store["path"]: store["variant"] for store in listed}[str(middle.store)] == {"crop": 0.7}
    assert [store["runs"] for store in listed] == [["first"], ["first"]]
    assert "the middle 70 %, 3 × 4" in command(capsys, *small.options(), "cache", "ls").out
    assert "{'crop': 0.7}" in command(capsys, *small.options(), "cache", "info", "--split", "train").out


def test_gc_keeps_a_variant_as_long_as_the_pictures_as_they_are(small: Small) -> None:
    # The split alone that a run is to answer for: its train split may lie on another machine.
    plain, mirrored = made(small, split="test"), made(small, MIRRORED, "test")
    other = small.config(model__feature="pooler_output")
    listed = collect_garbage(other, runs={plain.fingerprint: ["first"]}).stores
    assert listed == []
    assert collect_garbage(small.config(), runs={}).stores == []
    listed = collect_garbage(other, runs={}).stores
    assert {store["path"] for store in listed} == {plain.store, mirrored.store}


def test_a_variant_that_no_version_knows_is_no_store(small: Small) -> None:
    mirrored = open_store(made(small, MIRRORED).store)
    rewrite_attributes(mirrored, mirrored.attrs | {"variant": {"upside_down": True}})
    with pytest.raises(GeoError, match=r"not a readable store: .*variant"):
        open_store(mirrored.path)
