"""Pictures are changed on a card as they are on the CPU."""

from __future__ import annotations

import pytest
import torch

from geo_embed.config import Augment
from geo_embed.data.augment import augment, tta_views
from geo_embed.seeding import get_generator

COMPASS = ("north", "east", "south", "west")


@pytest.fixture(scope="module")
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random pictures (6, 4, 3, 48, 48), one view absent."""
    drawn = torch.rand(24, 3, 6, 6, generator=get_generator(5))
    smooth = torch.nn.functional.interpolate(drawn, size=(48, 48), mode="bicubic", align_corners=False)
    pixels = (smooth.clamp(0, 1) * 255).to(torch.uint8).view(6, 4, 3, 48, 48)
    present = torch.ones(6, 4, dtype=torch.bool)
    present[2, 1] = False
    return pixels, present


@pytest.mark.parametrize("how", [Augment(), Augment(blur=0.5, flip=0.5, view_dropout=0.4)])
def test_a_card_makes_the_same_pictures(
    scene: tuple[torch.Tensor, torch.Tensor], how: Augment, device: torch.device
) -> None:
    pixels, present = scene
    made = {}
    for where in ("cpu", device):
        # As within a training step: half precision must not coarsen the pictures.
        with torch.autocast(torch.device(where).type, dtype=torch.bfloat16):
            made[where] = augment(pixels.to(where), present.to(where), how, COMPASS, get_generator(3))
    (on_cpu, shown_here), (on_device, shown) = made["cpu"], made[device]
    assert torch.equal(shown.cpu(), shown_here)
    torch.testing.assert_close(on_device.cpu().int(), on_cpu.int(), atol=1, rtol=0)
    assert not torch.equal(on_cpu, pixels)


def test_the_variants_of_a_prediction_are_the_same(
    scene: tuple[torch.Tensor, torch.Tensor], device: torch.device
) -> None:
    pixels, present = scene
    how = Augment(flip=0.5)
    on_cpu = tta_views(pixels, present, how, COMPASS)
    on_device = tta_views(pixels.to(device), present.to(device), how, COMPASS)
    assert len(on_cpu) == len(on_device) == 3
    for (a, shown_a), (b, shown_b) in zip(on_cpu, on_device, strict=True):
        assert torch.equal(shown_a, shown_b.cpu())
        torch.testing.assert_close(b.cpu().int(), a.int(), atol=1, rtol=0)
