"""Every kind of file that PIL writes, whole and damaged: our picture is PIL's, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from fuzz.differential import by_pil, damaged, files, finding
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.config import Model
from geo_embed.data import images
from geo_embed.data.images import decode, normalise, resize

if TYPE_CHECKING:
    from conftest import Country

# `make fuzz` goes on from other numbers, for an hour.
COUNT, BLOCK = 2000, 250


def test_every_whole_file_is_the_picture_that_pil_makes_of_it() -> None:
    assert len(files()) > 150
    for name, data in files():
        reference, reason = by_pil(data)
        assert reference is not None, (name, reason)
        assert np.array_equal(decode(data), reference), name


@pytest.mark.parametrize("first", range(0, COUNT, BLOCK))
def test_a_damaged_file_is_pils_picture_or_has_a_reason(first: int) -> None:
    wrong = {}
    for number in range(first, first + BLOCK):
        name, data = damaged(number)
        what, _ = finding(data)
        if what:
            wrong[number, name] = what
    assert wrong == {}


def test_another_picture_another_exception_and_a_reason_of_two_lines_are_findings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge itself: an honest decoder passes, three dishonest ones don't."""
    name, data = next(entry for entry in files() if entry[0].startswith("PNG RGB "))
    assert finding(data) == ("", "decoded"), name

    def raising(error: Exception) -> object:
        def decode(_: bytes, **__: bool) -> images.Pixels:
            raise error

        return decode

    for other in (
        lambda data, **_: decode(data) ^ 8,
        raising(TypeError("odd")),
        raising(images.UnreadableImage("two\nlines")),
    ):
        monkeypatch.setattr("fuzz.differential.decode", other)
        assert finding(data)[0]


def test_embeddings_of_every_kind_of_file_are_those_of_transformers(country: Country) -> None:
    """Decoded, resized and embedded by nothing but PIL and transformers: pixels to the bit, embeddings to rounding."""
    processor = CLIPImageProcessorPil.from_pretrained(country.backbone)
    reference = CLIPVisionModelWithProjection.from_pretrained(country.backbone).eval()
    backbone = backbones.load_backbone(
        Model(backbone_name=str(country.backbone)), torch.device("cpu"), torch.float32
    )
    spec = read_preprocessing(Path(country.backbone), exact=True)
    pixels, expected = [], []
    # One of each format and mode, of the odd sizes too.
    kinds = {name.split(" (")[0] + name[-9:]: data for name, data in files()}
    for name, data in kinds.items():
        picture, _ = by_pil(data)
        assert picture is not None
        expected.append(processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0])
        batch = torch.from_numpy(resize(decode(data), spec))[None]
        pixels.append(normalise(batch, spec, torch.float32)[0].clone())
        assert torch.equal(pixels[-1], expected[-1]), name
    with torch.inference_mode():
        embedded = backbones.embed(backbone, torch.stack(pixels))
        wanted = reference(pixel_values=torch.stack(expected)).image_embeds
    assert torch.nn.functional.cosine_similarity(embedded, wanted).min() > 0.99999
