"""What stands in the demo's country: plants, houses, cars, poles and signs, as lists of shapes.

A sprite has two colours, which the painter chooses: each shape says how light it is and how much of the second it takes.
Lengths are shares of the sprite's side, from its upper left corner; `SPRITES` holds every sprite by its name. What grows or
is built in variants is drawn by a function of chance, the rest is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from geo_embed.synthetic.chance import SPRITE, of_country
from geo_embed.synthetic.colour import Floats

VARIANTS: Final = 4

# Drawn at twice this size, so that edges are smooth.
_MASTER_SIZE = 192
# The channel that holds a shade of 1; lighter ones reach up to 1.59.
_SHADE = 160


class Shape(NamedTuple):
    """A part of a sprite.

    Attributes:
        form: what `corners` are: of the rectangle, of the box around an ellipse, of the polygon, or the line's points.
        corners: x, y, x, y, …
        fill: opacity, shade (160 is as light as the colour) and share of the second colour, each 0 … 255.
        width: of a line.
    """

    form: Literal["rectangle", "ellipse", "polygon", "line"]
    corners: tuple[float, ...]
    fill: tuple[int, int, int]
    width: float = 0.0


def _box(x0: float, y0: float, x1: float, y1: float, shade: float, second: float = 0) -> Shape:
    return Shape("rectangle", (x0, y0, x1, y1), (255, int(shade * _SHADE), int(second * 255)))


def _blob(
    x: float, y: float, rx: float, ry: float, shade: float, second: float = 0, alpha: int = 255
) -> Shape:
    fill = (alpha, int(max(0.0, shade) * _SHADE), int(second * 255))
    return Shape("ellipse", (x - rx, y - ry, x + rx, y + ry), fill)


def _polygon(shade: float, second: float, *corners: float) -> Shape:
    return Shape("polygon", corners, (255, int(shade * _SHADE), int(second * 255)))


def _line(width: float, light: float, second: int, *points: float) -> Shape:
    return Shape("line", points, (255, int(light), second), width)


def _shadow(width: float) -> Shape:
    return _blob(0.5, 0.975, width, 0.022, 0.12, 0, 110)


# ---------------------------------------------------------------- what grows, and houses


def _broadleaf(rng: np.random.Generator) -> Iterator[Shape]:
    yield _shadow(0.34)
    yield _box(0.475, 0.6, 0.525, 0.975, 0.8, 1)
    for step in range(150):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.random() ** 0.5
        x, y = 0.5 + 0.33 * reach * math.cos(angle), 0.38 + 0.32 * reach * math.sin(angle)
        lit = 0.55 + 0.55 * (step / 150) - 0.7 * (y - 0.38) - 0.35 * (x - 0.5) + rng.normal(0, 0.07)
        wide, tall = rng.uniform(0.03, 0.085, 2)
        yield _blob(x, y, wide, tall, lit)


def _conifer(rng: np.random.Generator) -> Iterator[Shape]:
    yield _shadow(0.22)
    yield _box(0.48, 0.85, 0.52, 0.975, 0.7, 1)
    for tier in range(15):
        y = 0.9 - tier * 0.06
        width = 0.25 * (1 - tier / 15.5) + 0.012
        for _ in range(11):
            x = 0.5 + width * rng.uniform(-1, 1)
            lit = 0.62 - 0.9 * (x - 0.5) + rng.normal(0, 0.12)
            twig = (x - 0.045, y + 0.03, x + 0.045, y + 0.03, (x + 0.5) / 2, y - 0.09)
            yield _polygon(max(0.1, lit), 0, *twig)


def _bare(rng: np.random.Generator) -> Iterator[Shape]:
    yield _shadow(0.15)
    branches = [(0.5, 0.975, -np.pi / 2, 0.24, 0.022)]
    while branches:
        x, y, angle, length, width = branches.pop()
        x1, y1 = x + length * math.cos(angle), y + length * math.sin(angle)
        yield _line(width, 130, 255, x, y, x1, y1)
        if length > 0.035:
            for _ in range(3 if length < 0.15 else 2):
                turned, shorter = angle + rng.normal(0, 0.5), length * rng.uniform(0.6, 0.82)
                branches.append((x1, y1, turned, shorter, width * 0.62))


def _palm(rng: np.random.Generator) -> Iterator[Shape]:
    yield _shadow(0.2)
    lean = rng.normal(0, 0.06)
    for step in range(40):
        t = step / 39
        x, y, thick = 0.5 + lean * t * t, 0.97 - 0.68 * t, 0.02 - 0.007 * t
        yield _blob(x, y, thick, 0.013, 0.75 + 0.2 * (step % 2), 1)
    x, y = 0.5 + lean, 0.29
    for step in range(26):
        angle, droop = rng.uniform(-np.pi, 0.5), rng.uniform(0.1, 0.24)
        tip = rng.uniform(0.2, 0.32)
        middle = (x + 0.6 * tip * math.cos(angle), y + 0.45 * tip * math.sin(angle) - 0.03)
        end = (x + tip * math.cos(angle), y + 0.5 * tip * math.sin(angle) + droop * 0.7)
        light = (200 - 60 * droop * 4) * 0.6 + 4 * step
        yield _line(0.0234375, light, 0, x, y, *middle, *end)


def _shrub(rng: np.random.Generator) -> Iterator[Shape]:
    yield _shadow(0.42)
    for step in range(90):
        x = rng.normal(0.5, 0.15)
        y = 0.95 - abs(rng.normal(0, 0.2)) * (1 - abs(x - 0.5) * 1.6)
        wide, tall = rng.uniform(0.02, 0.06, 2)
        lit = 0.5 + 0.6 * step / 90 + (0.7 - y) * 0.4 + rng.normal(0, 0.08)
        yield _blob(x, y, wide, tall, lit)


def _cactus(rng: np.random.Generator) -> Iterator[Shape]:
    def limb(x: float, y0: float, y1: float, width: float) -> Iterator[Shape]:
        for stripe in range(6):
            left = x - width + stripe * width / 3
            yield _box(left, y0, left + width / 3, y1, 0.65 + 0.14 * (stripe % 2) + 0.05 * stripe)
        yield _blob(x, y0, width, width, 0.85)

    yield _shadow(0.16)
    yield from limb(0.5, 0.12, 0.97, 0.05)
    for side in (-1, 1):
        if rng.random() < 0.85:
            y, reach = rng.uniform(0.45, 0.65), rng.uniform(0.15, 0.22)
            x0, x1 = sorted((0.5, 0.5 + side * reach))
            yield _box(x0, y - 0.035, x1, y + 0.035, 0.75)
            yield from limb(0.5 + side * reach, y - rng.uniform(0.15, 0.3), y + 0.03, 0.036)


def _house(rng: np.random.Generator) -> Iterator[Shape]:
    yield _shadow(0.46)
    wide, eaves = rng.uniform(0.34, 0.44), rng.uniform(0.55, 0.66)
    left, right = 0.5 - wide, 0.5 + wide
    yield _box(left, eaves, right, 0.97, 1.0)
    top = eaves - rng.uniform(0.16, 0.26)
    inset = rng.uniform(0.02, 0.14)
    roof = (0.46 - wide, eaves + 0.02, 0.54 + wide, eaves + 0.02, right - inset, top, left + inset, top)
    yield _polygon(1.0, 1, *roof)
    yield _box(left, eaves + 0.02, right, eaves + 0.045, 0.7)
    for window in range(int(rng.integers(3, 5))):
        x = left + 0.08 + window * (2 * wide - 0.1) / 4
        yield _box(x, eaves + 0.09, x + 0.085, eaves + 0.21, 1.1)
        yield _box(x + 0.008, eaves + 0.098, x + 0.077, eaves + 0.202, 0.3)
    x = 0.5 + wide * rng.uniform(-0.2, 0.6)
    yield _box(x, 0.78, x + 0.08, 0.97, 0.8, 1)


# ---------------------------------------------------------------- what is made, always alike

_POLE = (_shadow(0.07), _box(0.487, 0.04, 0.513, 0.975, 0.95), _box(0.505, 0.04, 0.513, 0.975, 0.6))
_POST = (_shadow(0.1), _box(0.485, 0.4, 0.515, 0.975, 0.55, 0.5))

SPRITES: Final[dict[str, tuple[Shape, ...] | Callable[[np.random.Generator], Iterable[Shape]]]] = {
    "broadleaf": _broadleaf,
    "conifer": _conifer,
    "bare": _bare,
    "palm": _palm,
    "shrub": _shrub,
    "cactus": _cactus,
    "house": _house,
    "truck": (
        _shadow(0.5),
        _box(0.02, 0.3, 0.74, 0.86, 1.0),
        _box(0.02, 0.3, 0.74, 0.33, 1.25),
        _box(0.02, 0.7, 0.74, 0.735, 0.8, 1),
        _box(0.76, 0.48, 0.97, 0.88, 0.95, 1),
        _box(0.84, 0.52, 0.955, 0.66, 0.28),
        _box(0.02, 0.86, 0.97, 0.9, 0.2),
        _blob(0.14, 0.905, 0.062, 0.062, 0.1),
        _blob(0.14, 0.905, 0.026, 0.026, 0.8),
        _blob(0.27, 0.905, 0.062, 0.062, 0.1),
        _blob(0.27, 0.905, 0.026, 0.026, 0.8),
        _blob(0.6, 0.905, 0.062, 0.062, 0.1),
        _blob(0.6, 0.905, 0.026, 0.026, 0.8),
        _blob(0.87, 0.905, 0.062, 0.062, 0.1),
        _blob(0.87, 0.905, 0.026, 0.026, 0.8),
    ),
    "car": (
        _shadow(0.46),
        _polygon(0.55, 0, 0.2, 0.66, 0.32, 0.44, 0.68, 0.44, 0.82, 0.66),
        _polygon(0.22, 0, 0.25, 0.65, 0.345, 0.47, 0.49, 0.47, 0.49, 0.65),
        _polygon(0.25, 0, 0.52, 0.65, 0.52, 0.47, 0.665, 0.47, 0.76, 0.65),
        _polygon(1.0, 0, 0.06, 0.9, 0.05, 0.7, 0.2, 0.645, 0.84, 0.645, 0.96, 0.73, 0.95, 0.9),
        _box(0.06, 0.84, 0.95, 0.9, 0.55),
        _blob(0.23, 0.9, 0.082, 0.082, 0.1),
        _blob(0.23, 0.9, 0.04, 0.04, 1.0, 1),
        _blob(0.78, 0.9, 0.082, 0.082, 0.1),
        _blob(0.78, 0.9, 0.04, 0.04, 1.0, 1),
    ),
    "pole_plain": _POLE,
    "pole_cross": (
        *_POLE,
        _box(0.36, 0.1, 0.64, 0.122, 0.85),
        _box(0.39, 0.17, 0.61, 0.19, 0.8),
        *(_box(x - 0.006, 0.075, x + 0.006, 0.1, 0.5) for x in (0.37, 0.43, 0.57, 0.63)),
    ),
    "pole_lamp": (*_POLE, _box(0.5, 0.05, 0.72, 0.066, 0.9), _box(0.65, 0.06, 0.74, 0.085, 1.3)),
    "pole_tower": (
        *_POLE,
        _line(0.015625, 140, 0, 0.5, 0.04, 0.4, 0.975),
        _line(0.015625, 140, 0, 0.5, 0.04, 0.6, 0.975),
        _box(0.34, 0.14, 0.66, 0.154, 0.85),
        _box(0.34, 0.24, 0.66, 0.254, 0.85),
    ),
    "sign_board": (
        *_POST,
        _box(0.1, 0.1, 0.9, 0.56, 1.0, 1),
        _box(0.125, 0.125, 0.875, 0.535, 1.0),
        _box(0.19, 0.2, 0.74, 0.25, 1.0, 1),
        _box(0.19, 0.3, 0.59, 0.35, 1.0, 1),
        _box(0.19, 0.4, 0.69, 0.45, 1.0, 1),
    ),
    "sign_diamond": (
        *_POST,
        _polygon(1.0, 1, 0.5, 0.04, 0.8, 0.34, 0.5, 0.64, 0.2, 0.34),
        _polygon(1.0, 0, 0.5, 0.08, 0.76, 0.34, 0.5, 0.6, 0.24, 0.34),
        _box(0.47, 0.22, 0.53, 0.46, 1.0, 1),
    ),
    "sign_round": (
        *_POST,
        _blob(0.5, 0.34, 0.27, 0.27, 1.0),
        _blob(0.5, 0.34, 0.205, 0.205, 1.0, 1),
        _box(0.4, 0.3, 0.6, 0.38, 1.0),
    ),
    "sign_tall": (
        *_POST,
        _box(0.3, 0.06, 0.7, 0.66, 1.0, 1),
        _box(0.325, 0.085, 0.675, 0.635, 1.0),
        _box(0.4, 0.15, 0.6, 0.23, 1.0, 1),
        _box(0.38, 0.32, 0.62, 0.54, 1.0, 1),
    ),
}


# ---------------------------------------------------------------- drawing


@lru_cache(maxsize=256)
def sprite_master(kind: str, variant: int) -> Image.Image:
    """A sprite as three channels: opacity, shade, and the share of its second colour."""
    side = 2 * _MASTER_SIZE
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    shapes = SPRITES[kind]
    for shape in shapes(of_country(SPRITE, variant, *kind.encode())) if callable(shapes) else shapes:
        corners = [(x * side, y * side) for x, y in zip(shape.corners[::2], shape.corners[1::2], strict=True)]
        if shape.form == "line":
            draw.line(corners, shape.fill, max(2, int(shape.width * side)), joint="curve")
        elif shape.form == "polygon":
            draw.polygon(corners, shape.fill)
        elif shape.form == "ellipse":
            draw.ellipse(corners, shape.fill)
        else:
            draw.rectangle(corners, shape.fill)
    return image.resize((_MASTER_SIZE, _MASTER_SIZE), Image.Resampling.BOX)


@lru_cache(maxsize=4096)
def sprite(kind: str, variant: int, side: int) -> tuple[Floats, Floats, Floats]:
    """Opacity, shade and second colour of a sprite, each (side, side)."""
    master = sprite_master(kind, variant)
    pixels = np.asarray(master.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)
    # Colour was drawn on black: dividing by the softened opacity keeps edges from darkening.
    opaque = np.asarray(
        master.getchannel(0).point(lambda a: 255 * (a > 0)).resize((side, side), 2), np.float32
    )
    share = np.maximum(opaque, 1.0) / 255
    return pixels[..., 0] / 255, pixels[..., 1] / (_SHADE * share), pixels[..., 2] / (255 * share)
