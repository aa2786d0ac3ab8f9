"""Training pictures as another camera might have taken them, and test-time variants, on the device, a batch at a time.

What is one for the scene is drawn once a sample, and is the same in all its views: the light, the blur, the mirror.
The crop and whether a view is hidden are each view's own.

Colour is one linear map of a pixel, and a crop, its scaling and the mirror are one sampling of the picture: a batch is two
passes, whatever is asked for, and a third over the few samples that are blurred.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from geo_embed.config import Augment
from geo_embed.data.variants import AS_THEY_ARE, Variant, flipped_order, scene_order, variants_of

# Floats of pixels at work at once: bounded memory on a GPU, and within a CPU's cache.
_FLOATS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 26}

# RGB to luma and two colour axes (NTSC's YIQ, FCC 1953): greys have no colour, and hue is an angle.
_TO_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))

# Blur, as the standard deviation of a Gaussian: from where it blurs at all to what halves the finest details of a picture
# scaled up to 336 pixels (256 is what the dataset has).
_LEAST_BLUR_PX = 0.5
_MOST_BLUR_OF_HEIGHT = 1 / 168


@dataclass(frozen=True)
class _Light:
    """For B samples: colours become matrix · colour + lift · the sample's mean grey. (B, 3, 3) and (B,)."""

    matrix: Tensor
    lift: Tensor


@torch.no_grad()
def augment(
    pixels: Tensor,
    present: Tensor,
    settings: Augment,
    view_names: Sequence[str],
    generator: torch.Generator,
    *,
    skip: int = 0,
) -> tuple[Tensor, Tensor]:
    """A batch with random changes.

    Every sample takes the same number of draws, in order: a batch in two halves gets the changes of the whole.

    Args:
        pixels: uint8 (B, V, 3, H, W), before `normalise`; on any device.
        present: (B, V) bool, on the same.
        settings: how strongly. A mirrored street drives on the other side and its writing can't be read, and both tell countries
            apart: `flip` is off unless asked for.
        view_names: V names.
        generator: on the CPU, the source of all randomness.
        skip: samples of the batch that come before these, and are changed elsewhere.

    Returns:
        Pixels, as uint8, and `present`. Views that are missing stay as they were; those that are hidden are zero. Where
            nothing changes, the same pixels.

    Raises:
        GeoError: a flip is asked for, and these views can't be mirrored.
    """
    order = flipped_order(settings, view_names)
    samples, views, _, height, _ = pixels.shape
    drawn = torch.rand(skip + samples, 7 + 4 * views, generator=generator)[skip:]
    mirror = drawn[:, 4] < settings.flip
    most = max(height * _MOST_BLUR_OF_HEIGHT, _LEAST_BLUR_PX)
    blur = torch.where(drawn[:, 5] < settings.blur, _LEAST_BLUR_PX + drawn[:, 6] * (most - _LEAST_BLUR_PX), 0)
    side, across, down, kept = drawn[:, 7:].view(samples, 4, views).unbind(1)
    light = frame = None
    if settings.brightness or settings.contrast or settings.saturation or settings.hue:
        light = _light(drawn[:, :4], settings)
    if settings.crop < 1 or settings.flip:
        frame = _frame((1 - side * (1 - settings.crop)).sqrt(), 2 * across - 1, 2 * down - 1, mirror)

    if order is not None:
        pixels, present = _swap(pixels, present, mirror, order)
    changed = _change(pixels, present, light, frame, blur)
    kept = kept.to(present.device)
    # The likeliest view to stay is never hidden.
    likeliest = kept.masked_fill(~present, -1).argmax(1, keepdim=True)
    shown = present & (kept >= settings.view_dropout).scatter(1, likeliest, True)
    if settings.view_dropout:
        changed = changed.clone() if changed is pixels else changed
        changed.masked_fill_((present & ~shown)[..., None, None, None], 0)
    return changed, shown


@torch.no_grad()
def tta_views(
    pixels: Tensor, present: Tensor, settings: Augment, view_names: Sequence[str]
) -> list[tuple[Tensor, Tensor]]:
    """A batch of scenes in the variants of `variants_of`, for predictions that are averaged.

    Args and errors as in `augment`.
    """
    views = []
    for variant in variants_of(settings, view_names):
        order = list(scene_order(variant, view_names)) if variant.mirror else slice(None)
        shown, seen = pixels[:, order], present[:, order]
        views.append((change_pictures(shown, seen, variant), seen))
    return views


@torch.no_grad()
def change_pictures(pixels: Tensor, present: Tensor, variant: Variant) -> Tensor:
    """Pictures as a variant has them, each at its own view.

    Args:
        pixels: uint8 (B, V, 3, H, W), before `normalise`; on any device.
        present: (B, V) bool, on the same.
        variant: what is changed.

    Returns:
        uint8 (B, V, 3, H, W); the same pixels where nothing changes. Views that are missing stay as they were.
    """
    if variant == AS_THEY_ARE:
        return pixels
    samples, views = present.shape
    zeros = torch.zeros(samples, views)
    mirror = torch.full((samples,), variant.mirror)
    frame = _frame(zeros + variant.crop**0.5, zeros, zeros, mirror)
    return _change(pixels, present, None, frame, torch.zeros(samples))


def _swap(pixels: Tensor, present: Tensor, mirror: Tensor, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The views of the samples to be mirrored, in mirrored order; each picture is still as it was."""
    samples, views = present.shape
    source = torch.where(mirror[:, None], torch.tensor(order), torch.arange(views)).to(present.device)
    rows = torch.arange(samples, device=present.device)[:, None]
    return pixels[rows, source], present[rows, source]


def _light(drawn: Tensor, settings: Augment) -> _Light:
    """From (B, 4) draws. In luma and colour axes, saturation is a length, hue an angle; contrast is about the mean grey."""
    strengths = torch.tensor(
        [settings.brightness, settings.contrast, settings.saturation, settings.hue * 2 * math.pi]
    )
    brightness, contrast, saturation, hue = ((2 * drawn.double() - 1) * strengths).T
    brightness, contrast, saturation = 1 + brightness, 1 + contrast, 1 + saturation
    to_yiq = torch.tensor(_TO_YIQ, dtype=torch.float64)
    turn = torch.zeros(len(drawn), 3, 3, dtype=torch.float64)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * hue.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -saturation * hue.sin(), saturation * hue.sin()
    matrix = (brightness * contrast)[:, None, None] * (to_yiq.inverse() @ turn @ to_yiq)
    return _Light(matrix.float(), (brightness * (1 - contrast)).float())


def _frame(side: Tensor, across: Tensor, down: Tensor, mirror: Tensor) -> Tensor:
    """Where each view's pixels come from, (B, V, 2, 3), in coordinates from −1 to 1.

    Args:
        side: (B, V) share of the height and of the width that is shown.
        across, down: (B, V) where, from −1 (left, top) to 1.
        mirror: (B,) bool.
    """
    frame = torch.zeros(*side.shape, 2, 3)
    frame[..., 0, 0] = torch.where(mirror[:, None], -side, side)
    frame[..., 1, 1] = side
    frame[..., 0, 2], frame[..., 1, 2] = across * (1 - side), down * (1 - side)
    return frame


def _change(
    pixels: Tensor, present: Tensor, light: _Light | None, frame: Tensor | None, blur: Tensor
) -> Tensor:
    """uint8 pixels, new ones if there is something to change; missing views as they were. A few samples at a time, so that memory is bounded.

    Args:
        pixels, present: on the device; all else on the CPU, so that no GPU is waited for.
        light: for the B samples, or None.
        frame: (B, V, 2, 3), or None.
        blur: (B,) standard deviations in pixels, 0 for none.
    """
    assert pixels.dtype == torch.uint8
    if light is None and frame is None and not blur.any():
        return pixels
    device, changed = pixels.device, pixels.clone()
    at_once = _FLOATS_AT_ONCE.get(device.type, _FLOATS_AT_ONCE["cuda"])
    count = max(1, at_once // max(pixels[:1].numel(), 1))
    # Whole floats even within a training step's autocast: bfloat16 can't tell neighbouring grey levels apart.
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(pixels), count):
            rows = slice(start, start + count)
            blurred = blur[rows].nonzero().flatten()
            if light is None and frame is None and not len(blurred):
                continue
            x = pixels[rows].float()
            if light is not None:
                x = _relight(x, present[rows], light.matrix[rows].to(device), light.lift[rows].to(device))
            if frame is not None:
                flat = x.flatten(0, 1)
                grid = F.affine_grid(
                    frame[rows].flatten(0, 1).to(device), list(flat.shape), align_corners=False
                )
                x = F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view_as(x)
            if len(blurred):
                deviations, index = blur[rows][blurred].to(device), blurred.to(device)
                x[index] = _blur(x[index], deviations)
            seen = present[rows, :, None, None, None]
            changed[rows] = torch.where(seen, x.round_().clamp_(0, 255).to(torch.uint8), pixels[rows])
    return changed


def _relight(x: Tensor, present: Tensor, matrix: Tensor, lift: Tensor) -> Tensor:
    _, views, _, height, width = x.shape
    luma = x.mean((-2, -1)) @ torch.tensor(_TO_YIQ[0], device=x.device)
    grey = (luma * present).sum(1) / present.sum(1).clamp(min=1)
    by_view = matrix.repeat_interleave(views, 0)
    offset = (lift * grey).repeat_interleave(views)[:, None, None]
    return torch.baddbmm(offset, by_view, x.view(-1, 3, height * width)).view_as(x)


def _blur(x: Tensor, deviation: Tensor) -> Tensor:
    """A Gaussian over the rows, then the columns, of each sample's own width, cut off and made whole again at the edges."""
    for axis in (-1, -2):
        places = torch.arange(x.shape[axis], device=x.device, dtype=torch.float32)
        distance = places[:, None] - places
        weights = torch.exp(-0.5 * (distance / deviation[:, None, None]) ** 2)
        weights = (weights / weights.sum(-1, keepdim=True))[:, None, None]
        x = x @ weights.mT if axis == -1 else weights @ x
    return x
