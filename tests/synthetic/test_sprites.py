"""Sprites are drawn as they always were, whatever library draws them."""

from __future__ import annotations

import numpy as np
import pytest

from geo_embed.synthetic.sprites import SPRITES, VARIANTS, sprite, sprite_master

# Means of opacity, shade and second colour over all variants, 0 … 255.
MEANS = {
    "broadleaf": (108.9, 63.4, 3.6),
    "conifer": (66.1, 25.2, 0.6),
    "bare": (24.6, 12.1, 23.4),
    "palm": (25.9, 14.9, 5.6),
    "shrub": (53.6, 27.1, 0.0),
    "cactus": (39.6, 20.4, 0.0),
    "house": (122.5, 71.5, 46.3),
    "truck": (144.9, 77.9, 23.4),
    "car": (91.1, 37.7, 2.6),
    "pole_plain": (6.7, 3.3, 0.0),
    "pole_cross": (9.7, 4.7, 0.0),
    "pole_lamp": (8.2, 4.2, 0.0),
    "pole_tower": (15.6, 8.1, 0.0),
    "sign_board": (98.8, 60.8, 37.3),
    "sign_diamond": (49.8, 30.1, 16.8),
    "sign_round": (62.6, 38.1, 31.4),
    "sign_tall": (64.8, 39.6, 31.2),
}


def test_all_of_them_are_known_here() -> None:
    assert SPRITES.keys() == MEANS.keys()


@pytest.mark.parametrize("kind", MEANS)
def test_a_sprite_is_as_large_and_as_light_as_ever(kind: str) -> None:
    drawn = np.stack([np.asarray(sprite_master(kind, variant), float) for variant in range(VARIANTS)])
    np.testing.assert_allclose(drawn.mean(axis=(0, 1, 2)), MEANS[kind], atol=0.5)


@pytest.mark.parametrize("kind", MEANS)
def test_what_grows_or_is_built_has_variants_and_what_is_made_has_none(kind: str) -> None:
    first, second = (np.asarray(sprite_master(kind, variant)) for variant in (0, 1))
    assert np.array_equal(first, second) == (not callable(SPRITES[kind]))


def test_edges_keep_their_colour() -> None:
    """Where a sprite is half transparent, it is as light as beside: it was drawn on black, and black must not show."""
    opacity, shade, _ = sprite("sign_round", 0, 40)
    assert opacity.min() == 0
    # The board's bright disc, from the middle of its left edge inwards.
    edge, inside = shade[13, 8], shade[13, 11]
    assert 0 < opacity[13, 8] < 0.5
    assert edge == pytest.approx(inside, rel=0.1)
