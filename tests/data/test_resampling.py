"""A part of an enlarged picture is what PIL's resize has there, and costs no more than it shows."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from PIL import Image

from geo_embed.data.images import Preprocessing, resize
from geo_embed.data.resampling import resize_part

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX]
)
def test_any_part_is_bit_equal_to_pils(resample: int) -> None:
    for _ in range(60):
        height, width = (int(n) for n in RNG.integers(1, 60, 2))
        factor = float(np.exp(RNG.uniform(0, 3)))
        size = max(int(height * factor), height), max(int(width * factor), width)
        pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = np.asarray(Image.fromarray(pixels).resize(size[::-1], resample))
        top, left = int(RNG.integers(0, size[0])), int(RNG.integers(0, size[1]))
        bottom, right = int(RNG.integers(top + 1, size[0] + 1)), int(RNG.integers(left + 1, size[1] + 1))
        part = resize_part(pixels, size, (top, bottom), (left, right), resample)
        assert (part == whole[top:bottom, left:right]).all(), (height, width, size)


def spec(edge: int, resize: str, crop: tuple[int, int] | None = None, resample: int = 3) -> Preprocessing:
    height, width = crop or (edge, edge)
    return Preprocessing(edge, height, width, resample, 1 / 255, (0, 0, 0), (1, 1, 1), resize)  # type: ignore[arg-type]


def by_pil(pixels: np.ndarray, edge: int, crop: tuple[int, int], resample: int = 3) -> np.ndarray:
    """Resize, then crop, by nothing but PIL; what lies outside is black."""
    height, width = pixels.shape[:2]
    long = int(edge * max(height, width) / min(height, width))
    size = (edge, long) if width <= height else (long, edge)
    image = Image.fromarray(pixels).resize(size, resample)
    top, left = (size[1] - crop[0]) // 2, (size[0] - crop[1]) // 2
    cropped = image.crop((left, top, left + crop[1], top + crop[0]))
    return np.asarray(cropped).transpose(2, 0, 1)


# Beyond four megapixels once resized: these are cropped first.
LONG = [(1, 300), (300, 1), (2, 900), (900, 3), (7, 1001), (1, 65), (30, 2000)]


@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize("resample", [2, 3])
def test_a_long_picture_is_bit_equal_to_resize_then_crop(shape: tuple[int, int], resample: int) -> None:
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for edge, crop in ((336, (336, 336)), (336, (224, 300))):
        resized = resize(pixels, spec(edge, "pil", crop, resample))
        assert (resized == by_pil(pixels, edge, crop, resample)).all()


@pytest.mark.parametrize("shape", LONG)
def test_and_within_two_grey_levels_of_torchs(shape: tuple[int, int]) -> None:
    smooth = np.linspace(0, 255, max(shape)).astype(np.uint8)
    pixels = np.broadcast_to(smooth[:, None] if shape[0] > shape[1] else smooth[None], shape)
    pixels = np.ascontiguousarray(np.repeat(pixels[..., None], 3, axis=2))
    long = int(336 * max(shape) / min(shape))
    size = (336, long) if shape[0] < shape[1] else (long, 336)
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    whole = torch.nn.functional.interpolate(
        batch, size=size, mode="bicubic", antialias=True, align_corners=False
    )
    top, left = (size[0] - 336) // 2, (size[1] - 336) // 2
    by_torch = whole[0, :, top : top + 336, left : left + 336].numpy()
    resized = resize(pixels, spec(336, "torch"))
    assert np.abs(resized.astype(int) - by_torch).max() <= 2


@pytest.mark.parametrize("shape", [(256, 256), (200, 640), (1536, 2048), (336, 3000), (90, 700)])
@pytest.mark.parametrize("way", ["torch", "pil"])
def test_ordinary_pictures_never_come_here(
    shape: tuple[int, int], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their cached embeddings stay what they are, to the bit."""

    def called(*_: object) -> None:
        raise AssertionError("cropped first")

    monkeypatch.setattr("geo_embed.data.images.resize_part", called)
    assert resize(np.zeros((*shape, 3), dtype=np.uint8), spec(336, way)).shape == (3, 336, 336)


@pytest.mark.parametrize("way", ["torch", "pil"])
@pytest.mark.parametrize("shape", [(1, 65500), (65500, 1), (40, 60000), (1, 5_000_000), (3000, 30)])
def test_the_longest_pictures_take_next_to_nothing(shape: tuple[int, int], way: str) -> None:
    """Before, 40,000 × 1 took 2.8 GB: so much would not pass for an eighth of it."""
    pixels = np.full((*shape, 3), 99, dtype=np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (resize(pixels, spec(336, way)) == 99).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 350_000
