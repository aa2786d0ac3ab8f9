"""The store holds what transformers would have computed, however the work was cut up."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small import VIEWS, Small, command, content
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.weights import hash_weights
from geo_embed.cache.store import OK, PENDING, open_store, read_store
from geo_embed.extraction.extract import extract


def by_transformers(small: Small, feature: str = "image_embeds") -> np.ndarray:
    """(N, V, D), one picture at a time, by nothing but transformers."""
    processor = CLIPImageProcessorPil.from_pretrained(small.backbone)
    model = CLIPVisionModelWithProjection.from_pretrained(small.backbone).eval()
    table = small.table()
    embeddings = []
    for names in table[[f"image_{view}" for view in VIEWS]].to_numpy().ravel():
        pixels = processor(Image.open(small.images() / names), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            if feature == "image_embeds":
                embeddings.append(model(pixel_values=pixels).image_embeds[0])
            else:
                embeddings.append(model.vision_model(pixel_values=pixels).pooler_output[0])
    return torch.stack(embeddings).numpy().reshape(len(table), len(VIEWS), -1)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize(("exact", "least"), [(False, 0.9999), (True, 0.999999)])
def test_embeddings_are_those_of_transformers(small: Small, exact: bool, least: float) -> None:
    for row, size in enumerate([(300, 200), (90, 140), (96, 96), (31, 77)]):
        image = Image.open(small.picture(row)).resize(size)
        image.save(small.picture(row), quality=95)
    store = extract(small.config(model__exact=exact, model__dtype="float32"), "train").store
    assert cosines(read_store(open_store(store)).values, by_transformers(small)).min() >= least


def test_the_pooled_state_is_cached_where_it_is_asked_for(small: Small) -> None:
    done = extract(small.config(model__feature="pooler_output", model__exact=True), "train")
    assert done.dim == 160
    reference = by_transformers(small, "pooler_output")
    assert cosines(read_store(open_store(done.store)).values, reference).min() >= 0.99999


def test_half_precision_is_stored_unless_single_is_asked_for(small: Small) -> None:
    half = read_store(open_store(extract(small.config(), "train").store)).values
    single = read_store(open_store(extract(small.config(model__dtype="float32"), "train").store)).values
    assert half.dtype == np.float16
    assert single.dtype == np.float32
    assert (single.astype(np.float16) == half).all()


def test_a_bfloat16_backbone_stays_close(small: Small) -> None:
    single = extract(small.config(model__dtype="float32"), "train")
    brain = extract(small.config(model__dtype="bfloat16"), "train")
    a, b = (read_store(open_store(done.store)).values for done in (single, brain))
    assert b.dtype == np.float16
    assert cosines(a, b).min() > 0.999


def test_a_row_is_the_same_to_the_last_bit_whichever_pictures_share_its_batch(small: Small) -> None:
    """Batches never straddle chunks and all have one shape: chunks of 1, 2, 3 or 8 rows give the same bits."""
    stores = []
    for rows in (1, 2, 3, 8):
        other = Small(small.root, small.backbone, rows)
        done = extract(
            other.config(paths__cache_dir=str(small.root / f"cache{rows}"), model__dtype="float32"), "train"
        )
        stores.append(content(done.store))
    assert all(store == stores[0] for store in stores)


@pytest.mark.parametrize("workers", [1, 5])
def test_pictures_end_up_in_their_own_rows_however_many_threads_read(small: Small, workers: int) -> None:
    config = small.config(inference__workers=workers, inference__batch_size=3, model__exact=True)
    assert (
        cosines(read_store(open_store(extract(config, "train").store)).values, by_transformers(small)).min()
        > 0.9999
    )


@pytest.mark.parametrize("limit", [1, 3, 4, 8, 100])
def test_a_limited_run_and_then_a_full_one_equal_a_full_one(small: Small, limit: int) -> None:
    first = extract(small.config(), "train", limit=limit)
    assert first.computed == 4 * min(limit, 8)
    status = np.asarray(open_store(first.store).status[:])
    assert (status[:limit] == OK).all()
    assert (status[limit:] == PENDING).all()
    second = extract(small.config(), "train")
    assert (second.computed, second.reused) == (32 - first.computed, first.computed)
    whole = extract(small.config(paths__cache_dir=str(small.root / "other")), "train")
    assert content(first.store) == content(whole.store)


def test_doing_it_again_computes_nothing_and_writes_nothing(small: Small) -> None:
    done = extract(small.config(), "train")
    before = {path: path.stat().st_mtime_ns for path in done.store.rglob("*")}
    again = extract(small.config(), "train")
    assert (done.computed, done.reused) == (32, 0)
    assert (again.computed, again.reused) == (0, 32)
    assert {path: path.stat().st_mtime_ns for path in done.store.rglob("*")} == before


def test_the_backbone_is_not_loaded_where_nothing_is_to_be_computed(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(small.config(), "train")

    def loaded(*_: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(backbones, "load_backbone", loaded)
    assert extract(small.config(), "train").reused == 32


def test_a_backbone_of_tiny_embeddings_is_refused_and_float32_stores_them(
    small: Small, tmp_path: Path
) -> None:
    from geo_embed.errors import GeoError

    weak = tmp_path / "weak"
    shutil.copytree(small.backbone, weak)
    weights = load_file(weak / "model.safetensors")
    weights["visual_projection.weight"] *= 1e-8
    save_file(weights, weak / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GeoError, match="view north is too small for float16") as refused:
        extract(small.config(model__backbone_name=str(weak)), "train")
    assert "--dtype float32" in refused.value.hint
    done = extract(small.config(model__backbone_name=str(weak), model__dtype="float32"), "train")
    assert (np.asarray(open_store(done.store).embeddings[:]) != 0).all()


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_a_backbone_that_gives_nan_is_refused(small: Small, tmp_path: Path, poison: float) -> None:
    sick = tmp_path / "sick"
    sick.mkdir()
    for file in small.backbone.iterdir():
        (sick / file.name).write_bytes(file.read_bytes())
    weights = load_file(sick / "model.safetensors")
    weights["visual_projection.weight"][5, 5] = poison
    save_file(weights, sick / "model.safetensors", metadata={"format": "pt"})
    from geo_embed.errors import GeoError

    with pytest.raises(
        GeoError, match=r"the backbone gave NaN or infinity for sample .*, view north"
    ) as refused:
        extract(small.config(model__backbone_name=str(sick)), "train")
    assert "--dtype float32" in refused.value.hint
    assert (np.asarray(open_store(small.store()).status[:]) == PENDING).all()


def test_json_has_every_key_of_the_contract(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    ran = command(capsys, *small.options(), "--json", "extract", "--split", "train")
    assert ran.code == 0
    assert set(ran.json) >= {
        "split", "store", "fingerprint", "samples", "views", "dim", "computed", "reused", "skipped",
        "images_per_second", "seconds",
    }  # fmt: skip
    shown = {key: ran.json[key] for key in ("split", "samples", "views", "dim", "computed", "reused")}
    assert shown == {"split": "train", "samples": 8, "views": 4, "dim": 768, "computed": 32, "reused": 0}
    assert Path(ran.json["store"]) == small.store()
    assert ran.json["fingerprint"] in ran.json["store"]
    assert ran.json["images_per_second"] > 0


def test_a_speed_is_that_of_computed_pictures_and_none_where_none_was_computed(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(small.config(), "train", limit=5)
    rest = extract(small.config(), "train")
    assert rest.computed == 12
    assert rest.images_per_second * rest.working_seconds == pytest.approx(12)
    again = command(capsys, *small.options(), "--json", "extract", "--split", "train")
    assert (again.json["reused"], again.json["images_per_second"]) == (32, 0)
    assert "images/s" not in command(capsys, *small.options(), "extract", "--split", "train").out
    test = command(capsys, *small.options(), "extract", "--split", "test").out
    assert re.search(
        r"^speed +[\d,]+ computed images/s over \d+\.\d\d s, without loading the backbone$", test, re.M
    )


def test_both_splits_make_one_json_object(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    ran = command(capsys, *small.options(), "--json", "extract", "--split", "all")
    assert [split["split"] for split in ran.json["splits"]] == ["train", "test"]


def test_progress_is_plain_lines_off_a_terminal_and_nothing_with_q(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    eager = [*small.options(), "--set", "tracking.progress_seconds=1e-9"]
    ran = command(capsys, *eager, "extract", "--split", "train")
    # Whether it lasts long enough to say how long is the machine's business; what comes next is no progress.
    by_the_way = ("hash weights: ", "extract train: about ", "next: ")
    looked, *lines = [line for line in ran.err.splitlines() if not line.startswith(by_the_way)]
    assert looked.startswith("look at pictures: 32 of 32 images, ")
    assert len(lines) == 32
    assert lines[0].startswith("extract train: 1 of 32 images, ")
    assert "ETA" in lines[0]
    assert "\r" not in ran.err
    assert "\x1b" not in ran.err + ran.out
    quiet = command(capsys, *eager, "-q", "extract", "--split", "test")
    assert quiet.err == ""


def test_the_store_records_what_made_it(small: Small) -> None:
    done = extract(small.config(), "train")
    attrs = json.loads((done.store / "zarr.json").read_text())["attributes"]
    assert attrs["fingerprint"] == done.fingerprint
    assert attrs["weights_sha256"] == hash_weights(small.backbone)
    assert attrs["dtype"] == "float32"
    assert attrs["preprocessing"]["resize"] == "torch"
    assert {"backbone", "feature", "view_names", "versions", "format_version"} <= attrs.keys()
