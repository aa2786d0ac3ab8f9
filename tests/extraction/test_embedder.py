"""Batches of one shape, embeddings in the order that pixels came, and a backbone that is loaded when first needed."""

from __future__ import annotations

import ctypes
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from geo_embed.backbones.backbone import Backbone, embed, embed_features, load_backbone
from geo_embed.data import images
from geo_embed.devices import default_batch_size
from geo_embed.extraction.embedder import Embedder

if TYPE_CHECKING:
    from conftest import Country
    from small import Nursery

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(country: Country) -> Backbone:
    return load_backbone(country.config().model, CPU, torch.float32)


@pytest.fixture
def pixels(backbone: Backbone) -> np.ndarray:
    spec = backbone.preprocessing
    return np.random.default_rng(0).integers(0, 256, (11, 3, spec.height, spec.width), dtype=np.uint8)


def embedder_of(backbone: Backbone, batch_size: int) -> Embedder:
    return Embedder(lambda: backbone, backbone.preprocessing, CPU, batch_size)


def embeddings(
    embedder: Embedder, pixels: np.ndarray, chunks: list[int]
) -> dict[tuple[int, int], np.ndarray]:
    """By (row, view) of all rows, chunk after chunk."""
    result, start = {}, 0
    for count in chunks:
        for row in range(count):
            embedder.add(pixels[start + row], (row, 0))
        for places, batch in embedder.finish_chunk():
            values = batch["image_embeds"].numpy()
            result |= {(start + row, view): value for (row, view), value in zip(places, values, strict=True)}
        start += count
    return result


def test_each_image_gets_the_embedding_of_its_own_pixels(backbone: Backbone, pixels: np.ndarray) -> None:
    result = embeddings(embedder_of(backbone, 4), pixels, [11])
    assert list(result) == [(row, 0) for row in range(11)]
    for row in range(11):
        normal = images.normalise(
            torch.from_numpy(pixels[row : row + 1]), backbone.preprocessing, torch.float32
        )
        with torch.inference_mode():
            alone = embed(backbone, normal)[0].numpy()
        np.testing.assert_allclose(result[row, 0], alone, rtol=1e-4, atol=1e-5)


def test_bits_do_not_depend_on_where_chunks_end(backbone: Backbone, pixels: np.ndarray) -> None:
    whole = embeddings(embedder_of(backbone, 4), pixels, [11])
    for chunks in ([1] * 11, [3, 8], [5, 5, 1]):
        divided = embeddings(embedder_of(backbone, 4), pixels, chunks)
        assert all((divided[place] == whole[place]).all() for place in whole)


def test_every_pass_has_the_same_shape(
    backbone: Backbone, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geo_embed.backbones import backbone as backbones

    shapes = []

    def noted(backbone: Backbone, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        shapes.append(tuple(batch.shape))
        return embed_features(backbone, batch)

    monkeypatch.setattr(backbones, "embed_features", noted)
    embeddings(embedder_of(backbone, 4), pixels, [3, 8])
    assert set(shapes) == {(4, 3, backbone.preprocessing.height, backbone.preprocessing.width)}
    assert len(shapes) == 3


def test_pixels_may_change_once_they_are_taken(backbone: Backbone, pixels: np.ndarray) -> None:
    whole = embeddings(embedder_of(backbone, 4), pixels, [11])
    embedder, buffer, result = embedder_of(backbone, 4), np.empty_like(pixels[0]), {}
    for row in range(11):
        buffer[:] = pixels[row]
        embedder.add(buffer, (row, 0))
        buffer[:] = 0
    for places, batch in embedder.finish_chunk():
        result |= dict(zip(places, batch["image_embeds"].numpy(), strict=True))
    assert all((result[place] == whole[place]).all() for place in whole)


def test_the_backbone_is_loaded_with_the_first_pixels_and_once(
    backbone: Backbone, pixels: np.ndarray
) -> None:
    loaded = []

    def load() -> Backbone:
        loaded.append(1)
        return backbone

    embedder = Embedder(load, backbone.preprocessing, CPU, 4)
    assert embedder.finish_chunk() == []
    assert not loaded
    embeddings(embedder, pixels, [6, 5])
    assert len(loaded) == 1
    assert embedder.load_seconds > 0
    assert embedder.finish_chunk() == []


def test_a_card_takes_larger_batches_by_default() -> None:
    assert default_batch_size(CPU) == 32
    assert default_batch_size(torch.device("cuda")) == 256


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="memory is not glibc's")
def test_memory_that_a_pass_frees_is_at_hand_for_the_next(backbone: Backbone, pixels: np.ndarray) -> None:
    embeddings(embedder_of(backbone, 4), pixels, [11])
    pages, size = 5 * 16_384, 64 << 20
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(size)[:: 1 << 12] = b"x" * (size >> 12)
    assert getrusage(RUSAGE_SELF).ru_minflt - before < pages / 2


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="memory is not glibc's")
def test_what_the_environment_says_of_malloc_stands(nursery: Nursery, tmp_path: Path) -> None:
    """A process that keeps nothing of its own accord asks for every page again."""
    ask = """
import pathlib, resource
from geo_embed.devices import keep_freed_memory
keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(64 << 20)[:: 1 << 12] = b"x" * (64 << 8)
pathlib.Path("pages").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""
    pages = {}
    for threshold in ("", "131072"):
        environment = {"MALLOC_MMAP_THRESHOLD_": threshold} if threshold else {}
        nursery.start_in(tmp_path, "--version", before=ask, environment=environment).end()
        pages[threshold] = int((tmp_path / "pages").read_text())
    assert pages[""] < 3 * 16_384 < 5 * 16_384 <= pages["131072"]
