"""A backbone by its name embeds pictures in any form, to the embeddings that an extraction caches; what is no picture is refused by its number."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import Nursery, Small

from geo_embed.cache.store import open_store, read_store
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.prediction.embedding import NotebookBackbone, load_backbone


@pytest.fixture
def backbone(small: Small) -> NotebookBackbone:
    return load_backbone(small.backbone, config=small.config(inference__batch_size=3))


@pytest.fixture
def files(small: Small) -> list[Path]:
    samples = load_samples(small.config(), "train")
    return [samples.image_root / name for name in samples.images[:2].ravel()]


def test_they_are_what_an_extraction_caches(
    small: Small, backbone: NotebookBackbone, files: list[Path]
) -> None:
    cached = read_store(open_store(extract(small.config(model__dtype="float32"), "train").store))
    embedded = backbone.embed(files)
    assert (embedded.shape, embedded.dtype) == ((8, backbone.dim), np.float32)
    np.testing.assert_allclose(embedded, cached.values[:2].reshape(8, -1), rtol=1e-4, atol=1e-5)


def test_pictures_may_have_any_form_and_one_alone_is_one_row(
    backbone: NotebookBackbone, files: list[Path]
) -> None:
    as_files = backbone.embed(files[:4])
    opened = Image.open(files[3])
    mixed = backbone.embed([str(files[0]), files[1].read_bytes(), Image.open(files[2]), opened])
    np.testing.assert_allclose(mixed, as_files, atol=1e-3)
    np.testing.assert_allclose(backbone.embed(opened), mixed[3:], atol=1e-6)
    np.testing.assert_allclose(backbone.embed(np.asarray(opened)), mixed[3:], atol=1e-6)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="memory is not glibc's")
def test_memory_that_a_batch_frees_is_at_hand_for_the_next(small: Small, nursery: Nursery) -> None:
    ask = f"""
import pathlib, resource
import numpy as np
from geo_embed.prediction.embedding import load_backbone
from geo_embed.settings import get_config
config = get_config(model={{"device": "cpu"}})
load_backbone({str(small.backbone)!r}, config=config).embed(np.zeros((9, 9, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(64 << 20)[:: 1 << 12] = b"x" * (64 << 8)
pathlib.Path("pages").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""
    nursery.start_in(small.root, "--version", before=ask).end()
    assert int((small.root / "pages").read_text()) < 3 * 16_384


def test_it_says_what_it_is(small: Small, backbone: NotebookBackbone) -> None:
    assert repr(backbone) == f"<backbone {small.backbone}: image_embeds of 768 numbers, float32 on cpu>"


@pytest.mark.parametrize(
    ("pictures", "what", "where"),
    [
        ([], "0 pictures", ""),
        ([np.zeros((4, 4, 3), np.float32)], "array of float32", "picture 0"),
        (["nowhere.jpg"], "No such file", "nowhere.jpg"),
        ([b"GIF89a, or is it?"], "can't read the picture", "picture 0"),
        (7, "int is no picture", ""),
    ],
)
def test_what_is_no_picture_is_refused_by_its_number(
    backbone: NotebookBackbone, pictures: Any, what: str, where: str
) -> None:
    with pytest.raises(GeoError, match=what) as caught:
        backbone.embed(pictures)
    assert str(caught.value.where or "") == where


def test_a_damaged_picture_is_refused_or_a_row_of_nan(small: Small, files: list[Path]) -> None:
    # The upper half of a JPEG, and an end marker.
    whole = files[0].read_bytes()
    pictures = [whole[: len(whole) // 2] + b"\xff\xd9", files[1]]
    with pytest.raises(GeoError, match="the picture is damaged"):
        load_backbone(small.backbone, config=small.config()).embed(pictures)
    skipping = load_backbone(small.backbone, config=small.config(inference__on_damaged_image="skip"))
    embedded = skipping.embed(pictures)
    assert np.isnan(embedded[0]).all()
    assert np.isfinite(embedded[1]).all()


def test_a_backbone_that_is_not_here_is_refused(small: Small) -> None:
    with pytest.raises(GeoError, match="Hugging Face cache"):
        load_backbone("somebody/else", config=small.config())
