"""Which variants of pictures there are, and what a store calls them."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from geo_embed.config import Augment
from geo_embed.data.augment import change_pictures, tta_views
from geo_embed.data.variants import AS_THEY_ARE, Variant, scene_order, variants_of
from geo_embed.errors import GeoError

COMPASS = ("north", "east", "south", "west")
MIRRORED = Variant(mirror=True)


def test_they_are_those_that_the_trainings_augmentation_allows_for() -> None:
    assert variants_of(Augment(crop=1, flip=0), COMPASS) == [AS_THEY_ARE]
    assert variants_of(Augment(crop=0.8, flip=0), COMPASS) == [AS_THEY_ARE, Variant(crop=0.9)]
    assert variants_of(Augment(crop=1, flip=0.1), ("left", "right")) == [AS_THEY_ARE, MIRRORED]
    with pytest.raises(GeoError, match="first, second can't be mirrored"):
        variants_of(Augment(flip=0.1), ("first", "second"))


def test_what_is_recorded_gives_the_variant_back_and_what_no_version_has_is_refused() -> None:
    for variant in (AS_THEY_ARE, MIRRORED, Variant(crop=0.9)):
        assert Variant.model_validate(variant.recorded()) == variant
    assert AS_THEY_ARE.recorded() == {}
    for other in ({"blur": 1}, {"crop": 0}, {"crop": 1.5}, {"crop": float("nan")}, {"mirror": "yes"}):
        with pytest.raises(ValidationError):
            Variant.model_validate(other)


def test_people_read_what_they_are() -> None:
    assert [str(v) for v in (AS_THEY_ARE, MIRRORED, Variant(crop=0.9), Variant(crop=1 / 3))] == [
        "as they are",
        "mirrored",
        "the middle 90 %",
        "the middle 33.3333 %",
    ]


@pytest.mark.parametrize("names", [COMPASS, ("front_left", "front_right", "rear")])
def test_pictures_changed_one_by_one_and_put_in_the_scenes_order_are_the_variants_of_a_batch(
    names: tuple[str, ...],
) -> None:
    """So a store may hold each picture at its own view, whatever scene it is shown in later."""
    how = Augment(crop=0.6, flip=0.5)
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, len(names), 3, 40, 40), dtype=torch.uint8, generator=random)
    present = torch.ones(5, len(names), dtype=torch.bool)
    present[1, 0] = present[2, 1] = False
    expected = tta_views(pixels, present, how, names)
    variants = variants_of(how, names)
    assert len(variants) == len(expected) == 3
    for variant, (shown, seen) in zip(variants, expected, strict=True):
        alone = [
            change_pictures(picture[None, None], torch.ones(1, 1, dtype=torch.bool), variant)[0, 0]
            for picture in pixels.flatten(0, 1)
        ]
        order = list(scene_order(variant, names))
        arranged, arranged_present = torch.stack(alone).view_as(pixels)[:, order], present[:, order]
        assert torch.equal(arranged_present, seen)
        assert torch.equal(arranged[arranged_present], shown[seen])
