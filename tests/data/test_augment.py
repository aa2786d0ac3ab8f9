"""Augmented pictures are plausible ones of the same place: one light, true directions, nothing invented."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geo_embed.config import Augment
from geo_embed.data.augment import augment, tta_views
from geo_embed.data.variants import mirror_order
from geo_embed.errors import GeoError

COMPASS = ("north", "east", "south", "west")
NOTHING = Augment(brightness=0, contrast=0, saturation=0, hue=0, crop=1, blur=0, view_dropout=0, flip=0)
COLOURS = ("brightness", "contrast", "saturation", "hue")


def only(**strengths: float) -> Augment:
    """Nothing but these changes."""
    return NOTHING.model_copy(update=strengths)


def scenes(samples: int = 6, views: int = 4, size: int = 24) -> tuple[Tensor, Tensor]:
    """Smooth pictures, no two alike, far from black and white; some views missing, one in every sample."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    phase = torch.arange(samples * views * 3).view(samples, views, 3, 1, 1)
    pixels = (128 + 40 * torch.sin(x / 3 + phase) + 25 * torch.cos(y / 4 + 2 * phase)).to(torch.uint8)
    present = torch.ones(samples, views, dtype=torch.bool)
    present[torch.arange(samples), torch.arange(samples) % views] = views == 1
    pixels[~present] = 0
    return pixels, present


def changed(
    pixels: Tensor, present: Tensor, how: Augment, seed: int = 0, names: tuple[str, ...] = COMPASS
) -> tuple[Tensor, Tensor]:
    return augment(pixels, present, how, names, torch.Generator().manual_seed(seed))


def test_strength_zero_changes_nothing() -> None:
    pixels, present = scenes()
    after, seen = changed(pixels, present, NOTHING)
    assert torch.equal(after, pixels)
    assert torch.equal(seen, present)


def test_the_same_generator_gives_the_same_batch_and_another_another() -> None:
    pixels, present = scenes()
    before = pixels.clone(), present.clone()
    how = Augment(blur=0.5, flip=0.5)
    first, again, other = (changed(pixels, present, how, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(pixels, before[0])
    assert torch.equal(present, before[1])


def test_a_batch_in_parts_gets_the_changes_of_the_whole() -> None:
    pixels, present = scenes()
    how = Augment(blur=0.5, flip=0.5)
    whole, seen = changed(pixels, present, how)
    generator = torch.Generator().manual_seed(0)
    parts = [
        augment(pixels[rows], present[rows], how, COMPASS, generator) for rows in (slice(0, 4), slice(4, 6))
    ]
    assert torch.equal(torch.cat([part[1] for part in parts]), seen)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]).int(), whole.int(), atol=1, rtol=0)


def test_what_is_drawn_for_one_change_does_not_depend_on_the_others() -> None:
    pixels, present = scenes()
    _, hidden = changed(pixels, present, only(view_dropout=0.5))
    _, hidden_too = changed(pixels, present, Augment(view_dropout=0.5))
    assert torch.equal(hidden, hidden_too)


@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 30)])
def test_shape_type_and_range_stay(samples: int, height: int, width: int) -> None:
    pixels = torch.randint(0, 256, (samples, 4, 3, height, width)).to(torch.uint8)
    how = Augment(
        brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, crop=0.3, blur=0.5, view_dropout=0.5, flip=0.5
    )
    after, seen = changed(pixels, torch.ones(samples, 4, dtype=torch.bool), how)
    assert (after.shape, after.dtype) == (pixels.shape, torch.uint8)
    assert (seen.shape, seen.dtype) == ((samples, 4), torch.bool)
    # White made brighter stays white: nothing wraps around.
    white = torch.full_like(pixels, 255)
    after, _ = changed(white, torch.ones(samples, 4, dtype=torch.bool), only(brightness=0.9))
    assert (after.float().std((1, 2, 3, 4)) == 0).all()
    assert after.min() >= 25


@pytest.mark.parametrize("strength", COLOURS)
def test_all_views_of_a_sample_have_one_light(strength: str) -> None:
    pixels, _ = scenes()
    same = pixels[:1, 1:2].expand(6, 4, -1, -1, -1).contiguous()
    all_present = torch.ones(len(same), 4, dtype=torch.bool)
    after, _ = changed(same, all_present, only(**{strength: 0.4}))
    assert torch.equal(after, after[:, :1].expand_as(after))
    assert not torch.equal(after[0], after[1]), "and samples have lights of their own"


def test_the_light_of_a_sample_does_not_depend_on_its_missing_views() -> None:
    pixels, present = scenes()
    after, _ = changed(pixels, present, only(contrast=0.5))
    filled = torch.where(present[..., None, None, None], pixels, 200)
    after_filled, _ = changed(filled, present, only(contrast=0.5))
    assert torch.equal(after[present], after_filled[present])


def luma(pixels: Tensor) -> Tensor:
    return torch.einsum("c,bvchw->bvhw", torch.tensor([0.299, 0.587, 0.114]), pixels.float())


def test_each_colour_change_changes_what_it_names() -> None:
    pixels, _ = scenes()
    all_present = torch.ones(len(pixels), 4, dtype=torch.bool)
    before = torch.where(pixels == 0, 90, pixels)

    after, _ = changed(before, all_present, only(brightness=0.4))
    factor = after.float().mean((1, 2, 3, 4)) / before.float().mean((1, 2, 3, 4))
    assert factor.min() >= 0.6
    assert factor.max() <= 1.4
    assert factor.std() > 0.05
    torch.testing.assert_close(
        after.float(), (before * factor.view(-1, 1, 1, 1, 1)).clamp(0, 255), atol=1.5, rtol=0
    )

    after, _ = changed(before, all_present, only(contrast=0.4))
    torch.testing.assert_close(luma(after).mean((1, 2, 3)), luma(before).mean((1, 2, 3)), atol=0.5, rtol=0)
    spread = after.float().std((1, 2, 3, 4)) / before.float().std((1, 2, 3, 4))
    assert spread.std() > 0.05

    for strength in ("saturation", "hue"):
        after, _ = changed(before, all_present, only(**{strength: 0.1}))
        torch.testing.assert_close(luma(after), luma(before), atol=1.2, rtol=0)
        assert (after.int() - before.int()).abs().max() > 5
        grey = before[:, :, :1].expand_as(before).contiguous()
        after, _ = changed(grey, all_present, only(**{strength: 0.1}))
        assert torch.equal(after, grey), "greys have no colour to change"


def test_saturation_scales_colours_and_hue_only_turns_them() -> None:
    colours = torch.tensor([[150, 110, 110], [110, 150, 110], [110, 110, 150], [150, 150, 100]])
    pixels = colours.view(1, 4, 3, 1, 1).expand(30, 4, 3, 4, 4).to(torch.uint8).contiguous()
    axes = torch.tensor([[0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    all_present = torch.ones(30, 4, dtype=torch.bool)

    def by_view(pixels: Tensor) -> Tensor:
        return torch.einsum("ac,bvc->bva", axes, pixels[..., 0, 0].float())

    before = by_view(pixels)
    turned = by_view(changed(pixels, all_present, only(hue=0.2))[0])
    torch.testing.assert_close(turned.norm(dim=-1), before.norm(dim=-1), atol=1, rtol=0)
    cosine = torch.cosine_similarity(turned, before, dim=-1)
    assert torch.allclose(cosine, cosine[:, :1], atol=0.05), "one angle for all colours"
    assert cosine.min() < 0.6
    assert cosine.min() > 0.2, "72 degrees at most"

    factor = by_view(changed(pixels, all_present, only(saturation=0.3))[0]) / before
    strong = before.abs() > 10
    assert (factor[strong] > 0.6).all()
    assert (factor[strong] < 1.4).all()
    assert factor[strong].std() > 0.1


def test_a_crop_shows_a_part_in_its_own_proportions_another_in_each_view() -> None:
    size = 64
    ramp = torch.arange(size, dtype=torch.float32) * 3 + 20
    pixels = torch.stack(
        [ramp.expand(size, size), ramp[:, None].expand(size, size), torch.full((size, size), 7.0)]
    )
    pixels = pixels.to(torch.uint8).expand(8, 4, -1, -1, -1).contiguous()
    all_present = torch.ones(8, 4, dtype=torch.bool)
    after = changed(pixels, all_present, only(crop=0.5))[0].float()
    # A ramp tells where each pixel comes from: its slope is the side, its start the place.
    across = (after[:, :, 0, 5, -5] - after[:, :, 0, 5, 4]) / (3 * (size - 9))
    down = (after[:, :, 1, -5, 5] - after[:, :, 1, 4, 5]) / (3 * (size - 9))
    torch.testing.assert_close(across, down, atol=0.02, rtol=0)
    assert across.min() >= 0.5**0.5 - 0.02
    assert across.max() <= 1.02
    assert across.std(1).min() > 0.001
    assert (after[:, :, 2] == 7).all()
    assert after[:, :, :2].min() >= 20
    assert after[:, :, :2].max() <= 20 + 3 * (size - 1)
    starts = after[:, :, 0, 0, 0]
    assert starts.max() - starts.min() > 10


def test_blur_smooths_some_samples_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(60, 200, (40, 2, 3, 32, 32)).to(torch.uint8)
    all_present = torch.ones(40, 2, dtype=torch.bool)
    after, _ = changed(pixels, all_present, only(blur=0.5), names=("a", "b"))
    same = (after == pixels).all((-1, -2)).all(-1)
    assert torch.equal(same[:, 0], same[:, 1]), "all views of a sample, or none"
    assert 8 <= int(same[:, 0].sum()) <= 32
    smoothed = after[~same[:, 0]].float()
    assert (smoothed.std((-1, -2)) < 0.9 * pixels[~same[:, 0]].float().std((-1, -2))).all()
    # No edge gets darker: a flat picture stays flat.
    flat = torch.full_like(pixels, 130)
    assert torch.equal(changed(flat, all_present, only(blur=1.0), names=("a", "b"))[0], flat)


def test_hidden_views_are_zero_and_the_last_one_stays() -> None:
    pixels, present = scenes(samples=300, size=4)
    present[:4] = False
    present[0, 2] = True
    pixels[~present] = 0
    after, seen = changed(pixels, present, only(view_dropout=0.6))
    assert not (seen & ~present).any(), "a missing view never appears"
    assert torch.equal(seen.any(1), present.any(1))
    assert seen[0].tolist() == [False, False, True, False]
    assert (after[~seen] == 0).all()
    assert torch.equal(after[seen], pixels[seen])
    assert 0.3 < seen.sum() / present.sum() < 0.6
    _, all_but_one = changed(pixels, present, only(view_dropout=0.999999))
    assert (all_but_one.sum(1) == present.any(1)).all()
    assert len(set(all_but_one[4:].int().argmax(1).tolist())) == 4, "any of them may be the last"


def test_missing_views_are_left_as_they_are() -> None:
    pixels, present = scenes()
    after, seen = changed(pixels, present, Augment(blur=1.0, view_dropout=0))
    assert torch.equal(seen, present)
    assert (after[~present] == 0).all()


def test_a_mirrored_scene_swaps_east_and_west() -> None:
    pixels, present = scenes()
    after, seen = changed(pixels, present, only(flip=1.0))
    for view, source in enumerate((0, 3, 2, 1)):
        assert torch.equal(after[:, view], pixels[:, source].flip(-1))
        assert torch.equal(seen[:, view], present[:, source])
    half, seen = changed(pixels.repeat(20, 1, 1, 1, 1), present.repeat(20, 1), only(flip=0.5))
    turned = (half[:, 0] != pixels.repeat(20, 1, 1, 1, 1)[:, 0]).flatten(1).any(1)
    assert 25 < int(turned.sum()) < 75


def test_by_default_no_scene_is_mirrored() -> None:
    """A mirrored street drives on the other side."""
    ramp = torch.arange(24).mul(8).to(torch.uint8).expand(50, 4, 3, 24, 24).contiguous()
    after, seen = changed(ramp, torch.ones(50, 4, dtype=torch.bool), Augment())
    assert (after[seen][..., -1] > after[seen][..., 0]).all()


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (COMPASS, (0, 3, 2, 1)),
        (("East", "WEST"), (1, 0)),
        (("n", "ne", "e", "se", "s", "sw", "w", "nw"), (0, 7, 6, 5, 4, 3, 2, 1)),
        (("north-east", "north-west"), (1, 0)),
        (("left", "front", "right"), (2, 1, 0)),
        (("front_left", "front_right", "rear"), (1, 0, 2)),
        (("up",), (0,)),
        (("north", "east"), None),
        (("left", "right", "third"), None),
        (("bright", "dark"), None),
        (("0", "90", "180", "270"), None),
    ],
)
def test_which_views_swap_comes_from_their_names(
    names: tuple[str, ...], order: tuple[int, ...] | None
) -> None:
    assert mirror_order(names) == order


def test_views_that_cannot_be_mirrored_are_said() -> None:
    pixels, present = scenes(views=2)
    for call in (
        lambda how: changed(pixels, present, how, names=("first", "second")),
        lambda how: tta_views(pixels, present, how, ("first", "second")),
    ):
        call(Augment())
        with pytest.raises(GeoError, match="first, second can't be mirrored") as refused:
            call(Augment(flip=0.1))
        assert "set it to 0" in refused.value.hint


def test_test_time_variants_are_sure_ones() -> None:
    pixels, present = scenes()
    before = pixels.clone()
    how = Augment(flip=0.5)
    variants = tta_views(pixels, present, how, COMPASS)
    again = tta_views(pixels, present, how, COMPASS)
    assert len(variants) == 3
    for (images, seen), (images_again, seen_again) in zip(variants, again, strict=True):
        assert images.dtype == torch.uint8
        assert torch.equal(images, images_again)
        assert torch.equal(seen, seen_again)
        assert (images[~seen] == 0).all()
    assert torch.equal(variants[0][0], before)
    mirrored, seen = variants[2]
    assert torch.equal(mirrored[:, 1], pixels[:, 3].flip(-1))
    assert torch.equal(seen[:, 1], present[:, 3])
    assert len(tta_views(pixels, present, Augment(), COMPASS)) == 2
    assert len(tta_views(pixels, present, NOTHING, COMPASS)) == 1


def test_the_middle_of_a_picture_is_its_middle() -> None:
    ramp = (torch.arange(65.0) * 3 + 20).expand(1, 1, 3, 65, 65).to(torch.uint8).contiguous()
    middle = tta_views(ramp, torch.ones(1, 1, dtype=torch.bool), Augment(crop=0.62), ("a",))[1][0]
    side = 0.81**0.5
    row = middle[0, 0, 0, 30].float()
    assert row[32] == ramp[0, 0, 0, 0, 32]
    assert abs(float(row[60] - row[4]) / (3 * 56) - side) < 0.01


def test_a_training_step_in_half_precision_does_not_coarsen_the_pictures() -> None:
    pixels, present = scenes()
    whole, _ = changed(pixels, present, Augment(blur=1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within, _ = changed(pixels, present, Augment(blur=1.0))
    assert torch.equal(whole, within)
