"""The pictures of one place in the demo's small country, from the look of its state to pixels.

Each is painted from fields that vary smoothly over the map (climate, relief, soil), from a style that jumps at state
borders (paint, signs, poles, fences), and from chance (season, weather, hour, camera, traffic).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.floating[Any]]

STATE_IDX: Final = (
    *(0, 1, 2, 4, 5, 8, 9, 11, 12, 14, 15, 17, 18, 21, 22, 25, 26),
    *(27, 30, 31, 32, 33, 34, 35, 36, 37, 39, 40, 42, 43, 45, 46, 47),
)

_COUNTRY = 50
# One for each kind of chance, so that none repeats another's; `synthetic` draws places with 1.
_LOOK, _BANK, _SPRITE, _STYLE = 2, 3, 4, 5
_CAMERA_HEIGHT = 2.0
_FOCAL = 0.62
_BANK_SIZE = 512
_SPRITE_SIZE = 192
_SPRITE_VARIANTS = 4
# This share of places looks like some other state: no model can know them all.
_BORROWED = 0.06


def paint_place(
    state_idx: int, latitude: float, longitude: float, *, visit: tuple[int, ...], size: int
) -> Iterator[NDArray[np.uint8]]:
    """Paint what a camera there sees facing north, east, south and west, one after the other.

    Args:
        state_idx: decides the style, one of `STATE_IDX`.
        latitude: in degrees, as `longitude`: they decide climate and ground.
        longitude: in degrees.
        visit: numbers, none negative, that name the visit: season, weather and traffic follow from them alone.
        size: side of a picture in pixels.

    Yields:
        (size, size, 3) RGB.
    """
    place = _visit(state_idx, latitude, longitude, visit)
    for view in range(4):
        rng = np.random.default_rng(np.random.SeedSequence([_LOOK, *visit, view + 1]))
        yield _paint(place, view, rng, size)


# ---------------------------------------------------------------- what a place looks like


@dataclass(frozen=True)
class _Style:
    """What a state's road department decides: it jumps at the border."""

    asphalt: Floats
    shoulder: Floats
    shoulder_width: float
    centre_line: Floats
    centre_double: bool
    dash: float
    edge_line: Floats | None
    pole: str
    pole_colour: Floats
    pole_spacing: float
    wires: int
    sign: str
    sign_colours: tuple[Floats, Floats]
    fence: str
    fence_colour: Floats
    walls: Floats
    roofs: Floats
    grass_tint: Floats


@dataclass(frozen=True)
class _Place:
    """Everything the four pictures of one place share; colours are (3, 1, 1) in [0, 1], shares in [0, 1]."""

    style: _Style
    road_axis: int
    skew: float
    bend: float
    lane: float
    grass: Floats
    soil: Floats
    leaf: Floats
    rock: Floats
    cover: float
    crop: float
    forest: float
    relief: float
    snow: float
    trees: tuple[tuple[str, float], ...]
    houses: float
    zenith: Floats
    horizon: Floats
    cloud: float
    visibility: float
    sun_azimuth: float
    sun_height: float
    light: Floats
    gain: Floats
    contrast: float
    pitch: float


def _rgb(red: float, green: float, blue: float) -> Floats:
    return np.array([[[red]], [[green]], [[blue]]], dtype=np.float32)


def _any_colour(rng: np.random.Generator) -> Floats:
    bright: Floats = (0.1 + 0.85 * rng.random((3, 1, 1))).astype(np.float32)
    return _mix(bright, np.full_like(bright, bright.mean()), 0.5)


def _mix(a: Floats, b: Floats, share: float | Floats) -> Floats:
    return a + (b - a) * np.float32(share) if isinstance(share, float) else a + (b - a) * share


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@lru_cache(maxsize=1)
def _waves() -> NDArray[np.float64]:
    """(12 fields, 4 waves, 3): angular frequency per degree east, per degree north, phase."""
    rng = np.random.default_rng(np.random.SeedSequence([_COUNTRY, _LOOK]))
    length, angle = rng.uniform(7.0, 24.0, (12, 4)), rng.uniform(0, 2 * np.pi, (12, 4))
    k = 2 * np.pi / length
    return np.stack(
        [k * np.cos(angle), k * np.sin(angle) * 1.25, rng.uniform(0, 2 * np.pi, (12, 4))], axis=-1
    )


@lru_cache(maxsize=64)
def _style(state_idx: int) -> _Style:
    rng = np.random.default_rng(np.random.SeedSequence([_COUNTRY, _STYLE, state_idx]))

    def pick(*options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    white, yellow, amber = _rgb(0.93, 0.93, 0.9), _rgb(0.95, 0.8, 0.2), _rgb(0.93, 0.62, 0.12)
    tone = rng.uniform(0.27, 0.58)
    tint = rng.normal(0, 0.022, (3, 1, 1))
    shoulder = pick(
        _rgb(0.62, 0.56, 0.47), _rgb(0.55, 0.35, 0.25), _rgb(0.45, 0.45, 0.46), _rgb(0.72, 0.68, 0.6)
    )
    board = pick(
        _rgb(0.05, 0.42, 0.25),
        _rgb(0.1, 0.28, 0.62),
        _rgb(0.42, 0.25, 0.12),
        _rgb(0.95, 0.77, 0.1),
        _rgb(0.93, 0.93, 0.93),
        _rgb(0.92, 0.42, 0.1),
        _rgb(0.72, 0.1, 0.12),
    )
    return _Style(
        asphalt=np.asarray(tone + tint, dtype=np.float32),
        shoulder=shoulder,
        shoulder_width=float(rng.uniform(0.5, 2.4)),
        centre_line=pick(yellow, amber, white),
        centre_double=bool(rng.random() < 0.5),
        dash=float(pick(0.0, 6.0, 9.0)),
        edge_line=pick(white, white, yellow, None),
        pole=pick("pole_cross", "pole_lamp", "pole_plain", "pole_tower"),
        pole_colour=pick(
            _rgb(0.36, 0.25, 0.17), _rgb(0.66, 0.66, 0.64), _rgb(0.3, 0.42, 0.38), _rgb(0.82, 0.8, 0.74)
        ),
        pole_spacing=float(rng.uniform(12.0, 26.0)),
        wires=int(rng.integers(0, 4)),
        sign=pick("sign_board", "sign_diamond", "sign_round", "sign_tall"),
        sign_colours=(board, _rgb(0.1, 0.1, 0.1) if float(board.sum()) > 1.7 else white),
        fence=pick("none", "rail", "planks", "wire"),
        fence_colour=pick(
            _rgb(0.74, 0.75, 0.76), _rgb(0.92, 0.91, 0.88), _rgb(0.42, 0.29, 0.19), _rgb(0.25, 0.22, 0.2)
        ),
        walls=pick(
            _rgb(0.9, 0.88, 0.83),
            _rgb(0.62, 0.27, 0.2),
            _rgb(0.83, 0.7, 0.5),
            _rgb(0.5, 0.6, 0.68),
            _rgb(0.55, 0.42, 0.3),
        ),
        roofs=pick(
            _rgb(0.3, 0.29, 0.31), _rgb(0.55, 0.27, 0.18), _rgb(0.32, 0.4, 0.36), _rgb(0.62, 0.6, 0.58)
        ),
        grass_tint=np.asarray(rng.normal(0, 0.022, (3, 1, 1)), dtype=np.float32),
    )


def _local(state_idx: int, rng: np.random.Generator) -> _Style:
    """The state's style as one stretch of road has it: aged, patched, and not always by the book."""

    def elsewhere() -> _Style:
        return _style(STATE_IDX[int(rng.integers(len(STATE_IDX)))])

    style = elsewhere() if rng.random() < _BORROWED else _style(state_idx)
    fade, dust = float(rng.uniform(0, 0.6)), float(rng.uniform(0, 0.7))
    asphalt = np.clip(style.asphalt + rng.normal(0, 0.045), 0.15, 0.75).astype(np.float32)
    signs, poles, fences = (elsewhere() if rng.random() < share else style for share in (0.25, 0.25, 0.25))
    return replace(
        style,
        asphalt=asphalt,
        shoulder=_mix(style.shoulder, _rgb(0.57, 0.5, 0.41), dust),
        shoulder_width=style.shoulder_width * float(rng.uniform(0.6, 1.5)),
        centre_line=_mix(style.centre_line, asphalt, fade),
        edge_line=None
        if style.edge_line is None or rng.random() < 0.15
        else _mix(style.edge_line, asphalt, fade),
        pole=poles.pole,
        pole_colour=poles.pole_colour,
        pole_spacing=style.pole_spacing * float(rng.uniform(0.7, 1.4)),
        sign=signs.sign,
        sign_colours=signs.sign_colours,
        fence=fences.fence if rng.random() < 0.75 else "none",
        fence_colour=fences.fence_colour,
        walls=_mix(style.walls, _any_colour(rng), 0.3),
    )


def _visit(state_idx: int, latitude: float, longitude: float, key: tuple[int, ...]) -> _Place:
    """The look of one place on one day: climate from the map, style from the state, the rest from chance."""
    rng = np.random.default_rng(np.random.SeedSequence([_LOOK, *key, 0]))
    style = _local(state_idx, rng)
    waves = _waves()
    swell = np.sin(waves[..., 0] * longitude + waves[..., 1] * latitude + waves[..., 2]).mean(axis=1)
    # Plain floats: a float64 scalar would turn every float32 array it meets into float64.
    field: list[float] = (swell + rng.normal(0, 0.16, swell.shape)).tolist()

    coast = math.exp(-(((longitude + 123.5) / 2.5) ** 2)) * _sigmoid((latitude - 40) / 1.5)
    dry = _sigmoid((-99.5 - longitude) / 3.0) * _sigmoid((52 - latitude) / 2) * (1 - coast)
    dry = min(1.0, max(0.0, dry * (0.55 + 0.45 * _sigmoid((42 - latitude) / 3)) + 0.22 * field[0]))
    rockies = math.exp(-(((longitude + 112) / 8) ** 2)) + 0.8 * math.exp(-(((longitude + 121) / 3) ** 2))
    ridge = longitude + 80.5 - 0.9 * (latitude - 37.5)
    appalachia = 0.45 * math.exp(-((ridge / 2.6) ** 2))
    relief = min(1.0, max(0.03, rockies + appalachia + 0.7 * float(latitude > 54) + 0.16 * field[1]))
    plains = math.exp(-(((longitude + 96.5) / 7.5) ** 2)) * math.exp(-(((latitude - 42) / 6) ** 2))
    warm = min(1.0, max(0.0, (47 - latitude) / 20))
    forest = min(1.0, max(0.0, (1 - dry) * (0.75 - 0.7 * plains) + 0.25 * field[2] + 0.1 * coast))

    season = float(rng.random())
    winter = max(0.0, math.cos(2 * math.pi * season))
    autumn = max(0.0, math.cos(2 * math.pi * (season - 0.8))) ** 4
    snow = max(0.0, min(1.0, (winter * (1.35 - 1.3 * warm) - 0.75) * 3)) * float(rng.uniform(0.5, 1))
    thaw = 1 - 0.35 * winter * (1 - warm)

    lush = _mix(_rgb(0.3, 0.47, 0.17), _rgb(0.2, 0.42, 0.14), 0.5 + 0.5 * math.tanh(2 * field[3]))
    straw = _mix(_rgb(0.66, 0.57, 0.33), _rgb(0.55, 0.55, 0.36), 0.5 + 0.5 * math.tanh(2 * field[4]))
    grass = _mix(straw, lush, float((1 - 0.85 * dry) * thaw)) + style.grass_tint
    red_earth = 0.5 + 0.5 * math.tanh(2.2 * field[5] + 1.3 * (warm - 0.5))
    pale = _mix(_rgb(0.6, 0.52, 0.41), _rgb(0.75, 0.67, 0.5), dry)
    soil = _mix(
        _mix(pale, _rgb(0.33, 0.26, 0.2), float(plains * 0.8)), _rgb(0.66, 0.36, 0.22), 0.75 * red_earth
    )
    leaf = _mix(_rgb(0.16, 0.3, 0.12), _rgb(0.27, 0.38, 0.12), 0.5 + 0.5 * math.tanh(2 * field[6]))
    leaf = _mix(
        leaf, _mix(_rgb(0.72, 0.42, 0.1), _rgb(0.6, 0.2, 0.1), float(rng.random())), 0.8 * autumn * (1 - warm)
    )
    rock = _mix(_mix(_rgb(0.37, 0.36, 0.4), soil, 0.55), leaf, 0.6 * forest)

    conifer = max(0.02, (0.25 + 0.9 * (1 - warm) + 0.5 * relief + coast) * (1 - 0.75 * dry))
    mixture = {
        "conifer": conifer,
        "broadleaf": max(0.02, (1.1 - relief * 0.6) * (1 - dry) + 0.25 * field[7]),
        "bare": winter * (1 - warm) * (1 - dry) * 1.2,
        "palm": max(0.0, (31.5 - latitude) / 3) * 0.9 + 0.35 * dry * max(0.0, (36 - latitude) / 6),
        "shrub": 0.15 + 2.2 * dry,
        "cactus": max(0.0, dry * (35.5 - latitude) / 3),
    }
    total = sum(mixture.values())

    overcast = float(np.clip(rng.beta(0.9, 1.3) + 0.15 * field[8] + 0.1 * (0.5 - dry), 0, 1))
    hour = float(rng.uniform(-1, 1))
    tilt = 23.4 * -math.cos(2 * math.pi * season)
    sun_height = math.radians(max(6.0, (90 - latitude + tilt) * (1 - 0.75 * hour**2)))
    low_sun = max(0.0, 1 - sun_height / 0.5) * (1 - overcast)
    humid = float(np.clip(0.3 + 0.6 * (1 - dry) * warm + 0.2 * field[9], 0, 1))
    blue = _mix(_rgb(0.22, 0.43, 0.78), _rgb(0.4, 0.6, 0.87), humid)
    blue = _mix(blue, _rgb(0.36, 0.45, 0.62), float(np.clip((latitude - 30) / 30, 0, 1)) * 0.6)
    haze = _mix(_rgb(0.72, 0.83, 0.93), _rgb(0.88, 0.87, 0.82), float(np.clip(0.5 + 0.6 * field[10], 0, 1)))
    grey = np.full((3, 1, 1), rng.uniform(0.55, 0.8), dtype=np.float32)
    glow = 0.5 * low_sun
    light = _mix(_rgb(1.0, 0.98, 0.94), _rgb(0.8, 0.83, 0.88), overcast) * _mix(
        _rgb(1, 1, 1), _rgb(1.02, 0.86, 0.7), float(low_sun)
    )
    return _Place(
        style=style,
        road_axis=int(rng.integers(2)),
        skew=float(rng.normal(0, 0.12)),
        bend=float(rng.normal(0, 0.0022 + 0.003 * relief)),
        lane=float(rng.uniform(1.5, 2.1)),
        grass=grass,
        soil=soil,
        leaf=leaf,
        rock=rock,
        cover=float(np.clip(1.05 - 0.95 * dry + 0.12 * field[11], 0.05, 1)),
        crop=float(rng.random() < 0.75 * plains),
        forest=forest,
        relief=relief,
        snow=snow,
        trees=tuple((kind, share / total) for kind, share in mixture.items()),
        houses=float(rng.uniform(0, 1.6)),
        zenith=_mix(_mix(blue, grey * 0.95, 0.85 * overcast), _rgb(0.5, 0.42, 0.55), glow),
        horizon=_mix(_mix(haze, grey * 1.08, 0.7 * overcast), _rgb(0.98, 0.72, 0.45), glow),
        cloud=float(np.clip(overcast + rng.normal(0, 0.12), 0, 1)),
        visibility=float(np.exp(rng.normal(4.9 - 0.7 * humid, 0.35))),
        sun_azimuth=180 + 95 * hour,
        sun_height=sun_height,
        light=light * np.float32(rng.uniform(0.95, 1.22)),
        gain=np.asarray(np.exp(rng.normal(0, 0.08) + rng.normal(0, 0.04, (3, 1, 1))), dtype=np.float32),
        contrast=float(rng.uniform(0.85, 1.15)),
        pitch=float(rng.normal(0, 0.02)),
    )


# ---------------------------------------------------------------- texture and sprites, made once


@lru_cache(maxsize=1)
def _bank() -> tuple[Floats, Floats, Floats]:
    """Tileable noise, each with mean 0 and spread 1: soft (B, B), grainy (B, B), and ridge lines (8, 4B)."""
    rng = np.random.default_rng(np.random.SeedSequence([_COUNTRY, _BANK]))
    size = _BANK_SIZE
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None, :] * size
    radius = np.maximum(np.hypot(fx, fy), 1.0)

    def noise(power: float, lowest: float) -> Floats:
        spectrum = np.fft.rfft2(rng.normal(size=(size, size))) * radius**-power * (radius >= lowest)
        field = np.fft.irfft2(spectrum, (size, size))
        return np.asarray(field / field.std(), dtype=np.float32)

    lines = np.fft.rfft(rng.normal(size=(8, 4 * size)))
    lines *= np.maximum(np.arange(lines.shape[1]), 1.0) ** -1.5 * (np.arange(lines.shape[1]) >= 6)
    ridges = np.fft.irfft(lines, 4 * size)
    ridges /= ridges.std(axis=1, keepdims=True)
    return noise(1.6, 3), noise(0.55, 8), np.asarray(ridges, dtype=np.float32)


@lru_cache(maxsize=256)
def _sprite_master(kind: str, variant: int) -> Image.Image:
    """One object as three channels: opacity, shade, and the share of its second colour."""
    rng = np.random.default_rng(np.random.SeedSequence([_COUNTRY, _SPRITE, variant, *kind.encode()]))
    side = 2 * _SPRITE_SIZE
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)

    def points(*xy: float) -> list[tuple[float, float]]:
        return [(x * side, y * side) for x, y in zip(xy[::2], xy[1::2], strict=True)]

    def box(
        x0: float, y0: float, x1: float, y1: float, shade: float, second: float = 0, alpha: int = 255
    ) -> None:
        draw.rectangle(points(x0, y0, x1, y1), fill=(alpha, int(shade * 160), int(second * 255)))

    def blob(
        x: float, y: float, rx: float, ry: float, shade: float, second: float = 0, alpha: int = 255
    ) -> None:
        fill = (alpha, int(max(0.0, shade) * 160), int(second * 255))
        draw.ellipse(points(x - rx, y - ry, x + rx, y + ry), fill=fill)

    def shape(shade: float, second: float, *xy: float) -> None:
        draw.polygon(points(*xy), fill=(255, int(shade * 160), int(second * 255)))

    def shadow(width: float) -> None:
        blob(0.5, 0.975, width, 0.022, 0.12, 0, 110)

    if kind == "broadleaf":
        shadow(0.34)
        box(0.475, 0.6, 0.525, 0.975, 0.8, 1)
        for step in range(150):
            angle, reach = rng.uniform(0, 2 * np.pi), rng.random() ** 0.5
            x, y = 0.5 + 0.33 * reach * math.cos(angle), 0.38 + 0.32 * reach * math.sin(angle)
            lit = 0.55 + 0.55 * (step / 150) - 0.7 * (y - 0.38) - 0.35 * (x - 0.5) + rng.normal(0, 0.07)
            wide, tall = rng.uniform(0.03, 0.085, 2)
            blob(x, y, wide, tall, lit)
    elif kind == "conifer":
        shadow(0.22)
        box(0.48, 0.85, 0.52, 0.975, 0.7, 1)
        for tier in range(15):
            y = 0.9 - tier * 0.06
            width = 0.25 * (1 - tier / 15.5) + 0.012
            for _ in range(11):
                x = 0.5 + width * rng.uniform(-1, 1)
                lit = 0.62 - 0.9 * (x - 0.5) + rng.normal(0, 0.12)
                shape(max(0.1, lit), 0, x - 0.045, y + 0.03, x + 0.045, y + 0.03, (x + 0.5) / 2, y - 0.09)
    elif kind == "bare":
        shadow(0.15)
        stack = [(0.5, 0.975, -np.pi / 2, 0.24, 0.022)]
        while stack:
            x, y, angle, length, width = stack.pop()
            x1, y1 = x + length * math.cos(angle), y + length * math.sin(angle)
            draw.line(points(x, y, x1, y1), fill=(255, 130, 255), width=max(2, int(width * side)))
            if length > 0.035:
                for _ in range(3 if length < 0.15 else 2):
                    stack.append(
                        (x1, y1, angle + rng.normal(0, 0.5), length * rng.uniform(0.6, 0.82), width * 0.62)
                    )
    elif kind == "palm":
        shadow(0.2)
        lean = rng.normal(0, 0.06)
        for step in range(40):
            t = step / 39
            blob(0.5 + lean * t * t, 0.97 - 0.68 * t, 0.02 - 0.007 * t, 0.013, 0.75 + 0.2 * (step % 2), 1)
        for step in range(26):
            angle, droop = rng.uniform(-np.pi, 0.5), rng.uniform(0.1, 0.24)
            tip = rng.uniform(0.2, 0.32)
            x, y = 0.5 + lean, 0.29
            mid = (x + 0.6 * tip * math.cos(angle), y + 0.45 * tip * math.sin(angle) - 0.03)
            end = (x + tip * math.cos(angle), y + 0.5 * tip * math.sin(angle) + droop * 0.7)
            lit = (200 - 60 * droop * 4) * 0.6 + 4 * step
            draw.line([*points(x, y, *mid, *end)], fill=(255, int(lit), 0), width=9, joint="curve")
    elif kind == "shrub":
        shadow(0.42)
        for step in range(90):
            x = rng.normal(0.5, 0.15)
            y = 0.95 - abs(rng.normal(0, 0.2)) * (1 - abs(x - 0.5) * 1.6)
            wide, tall = rng.uniform(0.02, 0.06, 2)
            lit = 0.5 + 0.6 * step / 90 + (0.7 - y) * 0.4 + rng.normal(0, 0.08)
            blob(x, y, wide, tall, lit)
    elif kind == "cactus":
        shadow(0.16)

        def limb(x: float, y0: float, y1: float, width: float) -> None:
            for stripe in range(6):
                left = x - width + stripe * width / 3
                box(left, y0, left + width / 3, y1, 0.65 + 0.14 * (stripe % 2) + 0.05 * stripe)
            blob(x, y0, width, width, 0.85)

        limb(0.5, 0.12, 0.97, 0.05)
        for side_of in (-1, 1):
            if rng.random() < 0.85:
                y, reach = rng.uniform(0.45, 0.65), rng.uniform(0.15, 0.22)
                x0, x1 = sorted((0.5, 0.5 + side_of * reach))
                box(x0, y - 0.035, x1, y + 0.035, 0.75)
                limb(0.5 + side_of * reach, y - rng.uniform(0.15, 0.3), y + 0.03, 0.036)
    elif kind == "house":
        shadow(0.46)
        wide, eaves = rng.uniform(0.34, 0.44), rng.uniform(0.55, 0.66)
        box(0.5 - wide, eaves, 0.5 + wide, 0.97, 1.0)
        top = eaves - rng.uniform(0.16, 0.26)
        inset = rng.uniform(0.02, 0.14)
        shape(
            1.0,
            1,
            *(
                0.46 - wide,
                eaves + 0.02,
                0.54 + wide,
                eaves + 0.02,
                0.5 + wide - inset,
                top,
                0.5 - wide + inset,
                top,
            ),
        )
        box(0.5 - wide, eaves + 0.02, 0.5 + wide, eaves + 0.045, 0.7)
        for window in range(int(rng.integers(3, 5))):
            x = 0.5 - wide + 0.08 + window * (2 * wide - 0.1) / 4
            box(x, eaves + 0.09, x + 0.085, eaves + 0.21, 1.1)
            box(x + 0.008, eaves + 0.098, x + 0.077, eaves + 0.202, 0.3)
        x = 0.5 + wide * rng.uniform(-0.2, 0.6)
        box(x, 0.78, x + 0.08, 0.97, 0.8, 1)
    elif kind == "truck":
        shadow(0.5)
        box(0.02, 0.3, 0.74, 0.86, 1.0)
        box(0.02, 0.3, 0.74, 0.33, 1.25)
        box(0.02, 0.7, 0.74, 0.735, 0.8, 1)
        box(0.76, 0.48, 0.97, 0.88, 0.95, 1)
        box(0.84, 0.52, 0.955, 0.66, 0.28)
        box(0.02, 0.86, 0.97, 0.9, 0.2)
        for x in (0.14, 0.27, 0.6, 0.87):
            blob(x, 0.905, 0.062, 0.062, 0.1)
            blob(x, 0.905, 0.026, 0.026, 0.8, 0)
    elif kind == "car":
        shadow(0.46)
        shape(0.55, 0, 0.2, 0.66, 0.32, 0.44, 0.68, 0.44, 0.82, 0.66)
        shape(0.22, 0, 0.25, 0.65, 0.345, 0.47, 0.49, 0.47, 0.49, 0.65)
        shape(0.25, 0, 0.52, 0.65, 0.52, 0.47, 0.665, 0.47, 0.76, 0.65)
        shape(1.0, 0, 0.06, 0.9, 0.05, 0.7, 0.2, 0.645, 0.84, 0.645, 0.96, 0.73, 0.95, 0.9)
        box(0.06, 0.84, 0.95, 0.9, 0.55)
        for x in (0.23, 0.78):
            blob(x, 0.9, 0.082, 0.082, 0.1)
            blob(x, 0.9, 0.04, 0.04, 1.0, 1)
    elif kind.startswith("pole"):
        shadow(0.07)
        box(0.487, 0.04, 0.513, 0.975, 0.95)
        box(0.505, 0.04, 0.513, 0.975, 0.6)
        if kind == "pole_cross":
            box(0.36, 0.1, 0.64, 0.122, 0.85)
            box(0.39, 0.17, 0.61, 0.19, 0.8)
            for x in (0.37, 0.43, 0.57, 0.63):
                box(x - 0.006, 0.075, x + 0.006, 0.1, 0.5)
        elif kind == "pole_lamp":
            box(0.5, 0.05, 0.72, 0.066, 0.9)
            box(0.65, 0.06, 0.74, 0.085, 1.3)
        elif kind == "pole_tower":
            for x in (0.45, 0.55):
                draw.line(points(0.5, 0.04, x + (x - 0.5), 0.975), fill=(255, 140, 0), width=6)
            for y in (0.14, 0.24):
                box(0.34, y, 0.66, y + 0.014, 0.85)
    elif kind.startswith("sign"):
        shadow(0.1)
        box(0.485, 0.4, 0.515, 0.975, 0.55, 0.5)
        if kind == "sign_board":
            box(0.1, 0.1, 0.9, 0.56, 1.0, 1)
            box(0.125, 0.125, 0.875, 0.535, 1.0)
            for y, width in ((0.2, 0.55), (0.3, 0.4), (0.4, 0.5)):
                box(0.19, y, 0.19 + width, y + 0.05, 1.0, 1)
        elif kind == "sign_diamond":
            shape(1.0, 1, 0.5, 0.04, 0.8, 0.34, 0.5, 0.64, 0.2, 0.34)
            shape(1.0, 0, 0.5, 0.08, 0.76, 0.34, 0.5, 0.6, 0.24, 0.34)
            box(0.47, 0.22, 0.53, 0.46, 1.0, 1)
        elif kind == "sign_round":
            blob(0.5, 0.34, 0.27, 0.27, 1.0)
            blob(0.5, 0.34, 0.205, 0.205, 1.0, 1)
            box(0.4, 0.3, 0.6, 0.38, 1.0)
        else:
            box(0.3, 0.06, 0.7, 0.66, 1.0, 1)
            box(0.325, 0.085, 0.675, 0.635, 1.0)
            box(0.4, 0.15, 0.6, 0.23, 1.0, 1)
            box(0.38, 0.32, 0.62, 0.54, 1.0, 1)
    else:
        raise ValueError(f"no sprite is called {kind}")
    return image.resize((_SPRITE_SIZE, _SPRITE_SIZE), Image.Resampling.BOX)


@lru_cache(maxsize=4096)
def _sprite(kind: str, variant: int, side: int) -> tuple[Floats, Floats, Floats]:
    """Opacity, shade and second colour of a sprite, each (side, side)."""
    master = _sprite_master(kind, variant)
    pixels = np.asarray(master.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)
    # Colour was drawn on black: dividing by the softened opacity keeps edges from darkening.
    opaque = np.asarray(
        master.getchannel(0).point(lambda a: 255 * (a > 0)).resize((side, side), 2), np.float32
    )
    share = np.maximum(opaque, 1.0) / 255
    return pixels[..., 0] / 255, pixels[..., 1] / (160 * share), pixels[..., 2] / (255 * share)


@lru_cache(maxsize=8)
def _vignette(size: int) -> Floats:
    ramp = (np.arange(size) / size - 0.5) ** 2
    return np.asarray(1.06 - 0.26 * (ramp[:, None] + ramp[None, :]), dtype=np.float32)


@lru_cache(maxsize=8)
def _watermark(size: int) -> Floats:
    """Opacity (size, size) of the mark that every picture carries at the same spot."""
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(6.0, size / 18))
    draw.text((size * 0.97, size * 0.985), "SYNTHETIC", fill=170, font=font, anchor="rs")
    return np.asarray(image, dtype=np.float32) / 255


# ---------------------------------------------------------------- painting


def _stamp(
    canvas: Floats,
    kind: str,
    variant: int,
    mirrored: bool,
    column: float,
    base: float,
    height: float,
    colours: tuple[Floats, Floats],
    veil: tuple[Floats, float] | None = None,
) -> None:
    """Put a sprite on the canvas: `column` its middle, `base` its foot, `height` its side, in pixels."""
    # A coarse ladder of sizes lets nearly every sprite come from the cache.
    side = max(3, round(2 ** (round(math.log2(max(height, 3.0)) * 5) / 5)))
    left, top = round(column - side / 2), round(base - 0.975 * side)
    x0, x1 = max(left, 0), min(left + side, canvas.shape[2])
    y0, y1 = max(top, 0), min(top + side, canvas.shape[1])
    if x0 >= x1 or y0 >= y1:
        return
    window = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    alpha, shade, second = (
        (layer[:, ::-1] if mirrored else layer)[window] for layer in _sprite(kind, variant, side)
    )
    colour: Floats = (colours[0] + (colours[1] - colours[0]) * second) * shade
    if veil is not None:
        colour = _mix(colour, veil[0], veil[1])
    target = canvas[:, y0:y1, x0:x1]
    target += (colour - target) * alpha


def _sky(canvas: Floats, place: _Place, turn: float, horizon: int, rng: np.random.Generator) -> None:
    """Paint the rows above `horizon`; `turn` is the sun's bearing from the middle of the picture, in degrees."""
    size = canvas.shape[2]
    soft, _, _ = _bank()
    rows = np.arange(horizon, dtype=np.float32)
    columns = np.arange(size, dtype=np.float32) - size / 2
    fall = ((rows + 1) / horizon)[:, None] ** 1.7
    sky = _mix(place.zenith, place.horizon, fall)
    facing = 0.5 + 0.5 * math.cos(math.radians(turn))
    side = math.sin(math.radians(turn)) * columns / size
    sky = sky * (0.86 + 0.2 * facing + 0.16 * side[None, :]).astype(np.float32)

    depth = size * 0.22 / (horizon - rows + size * 0.03)
    shift_y, shift_x = rng.integers(_BANK_SIZE, size=2).astype(np.float64).tolist()
    v = (depth * 100 + shift_y).astype(np.int32)[:, None] % _BANK_SIZE
    u = (columns[None, :] * (256 / size) * (0.35 + 0.65 * depth[:, None]) + shift_x).astype(
        np.int32
    ) % _BANK_SIZE
    tuft = soft[v, u]
    cover = np.clip((tuft + (place.cloud - 0.5) * 3.6 - 0.4) * 0.9, 0, 1) * (1 - 0.75 * fall)
    body = np.clip(1.04 - 0.09 * tuft - 0.3 * place.cloud**2, 0.5, 1) * (0.9 + 0.12 * facing)
    sky += (body * _mix(_rgb(1, 1, 1), place.horizon, 0.3) - sky) * cover

    if abs(turn) < 80:
        x = size * _FOCAL * math.tan(math.radians(turn))
        y = horizon - size * _FOCAL * math.tan(min(place.sun_height, 1.2))
        across, down = (columns - x) / size, (rows - y) / size
        wide = np.exp(-(down**2) * 7)[:, None] * np.exp(-(across**2) * 7)[None, :]
        core = np.exp(-(down**2) * 260)[:, None] * np.exp(-(across**2) * 260)[None, :]
        power = 1 - 0.85 * place.cloud
        glow = (0.4 * wide + 1.1 * core) * power
        sky += (_mix(_rgb(1.0, 0.97, 0.88), place.horizon, 0.25) * 1.1 - sky) * np.clip(glow, 0, 0.97)
    canvas[:, :horizon] = sky


def _hills(canvas: Floats, place: _Place, turn: float, horizon: int, rng: np.random.Generator) -> None:
    size = canvas.shape[2]
    _, grain, ridges = _bank()
    line_length = ridges.shape[1]
    sunward = math.sin(math.radians(turn))
    for layer in range(3):
        near = layer / 2
        reach = max(2, size // 24)
        start = int(rng.integers(line_length))
        stretch = (1.5 - 0.5 * near) * 256 / size
        at = (start + np.arange(size + reach) * stretch).astype(np.int64) % line_length
        line = ridges[int(rng.integers(8))][at]
        tall = size * (0.02 + 0.17 * place.relief**1.3) * (1 - 0.45 * near)
        height = np.maximum(tall * (0.62 + 0.42 * line), 0.5)
        highest = min(horizon, int(height.max()) + 2)
        rows = np.arange(horizon - highest, horizon, dtype=np.float32)[:, None]
        crest = (horizon - height[:size])[None, :]
        inside = np.clip(rows - crest + 0.5, 0, 1)
        slope = np.clip((height[reach:] - height[:-reach]) / reach * (sunward + 0.35), -0.35, 0.35)
        # Spurs run down the flanks aslant; straight down they would look like a curtain.
        slope = slope[(np.arange(size) + ((rows - crest.min()) * 0.8).astype(np.int64)) % size]
        oy, ox = (
            rng.integers(_BANK_SIZE - highest),
            rng.integers(_BANK_SIZE - size) if size < _BANK_SIZE else 0,
        )
        rough = grain[oy : oy + highest, (ox + np.arange(size)) % _BANK_SIZE]
        lit = (1.05 + slope * 0.9 + 0.08 * rough) * place.light * (0.55 + 0.25 * near)
        colour = _mix(place.rock, place.leaf, 0.5 * near * place.forest) * lit
        if place.relief > 0.45:
            cap = np.clip(
                (horizon - rows - size * (0.16 - 0.1 * place.snow)) / (size * 0.03) + 0.6 * rough, 0, 1
            )
            colour = _mix(colour, _rgb(0.93, 0.95, 0.98) * place.light, cap)
        veil = float(0.62 - 0.42 * near) * float(np.clip(150 / place.visibility, 0.35, 1.2))
        colour = _mix(colour, place.horizon, min(0.9, veil))
        band = canvas[:, horizon - highest : horizon]
        band += (colour - band) * inside


def _ground(
    canvas: Floats, place: _Place, along: bool, turn: float, horizon: int, rng: np.random.Generator
) -> None:
    """Paint everything below `horizon`: soil, grass, crops, snow, the road and its paint."""
    size = canvas.shape[2]
    soft, grain, _ = _bank()
    style = place.style
    focal = _FOCAL * size
    rows = np.arange(horizon, size, dtype=np.float32)[:, None]
    z = _CAMERA_HEIGHT * focal / (rows - horizon + 0.8)
    x = (np.arange(size, dtype=np.float32)[None, :] + 0.5 - size / 2) * (z / focal)
    pixel = z / focal
    shifts: list[float] = rng.integers(_BANK_SIZE, size=4).astype(np.float64).tolist()

    def sample(texture: Floats, per_metre: float, shift: int) -> Floats:
        v = (z * per_metre + shifts[shift]).astype(np.int32) & (_BANK_SIZE - 1)
        u = (x * per_metre + shifts[shift + 1]).astype(np.int32) & (_BANK_SIZE - 1)
        picked: Floats = texture[v, u]
        return picked

    patches = sample(soft, 5.0, 0)
    fine = sample(grain, 48.0, 2) * np.clip(9 / z, 0.12, 1)
    grassy = np.clip((place.cover - 0.5) * 3.2 + 0.5 + 0.55 * patches + 0.2 * fine, 0, 1)
    colour = _mix(place.soil, place.grass, grassy)

    bent = x + place.skew * z + place.lane
    if along:
        bent = bent + place.bend * np.minimum(z, 60) ** 2
        across, lengthwise = bent, z
        half = 3.7
    else:
        across, lengthwise = np.broadcast_to(z - 2.3, x.shape) + place.skew * x * 0.4, x
        half = 3.3
    off = np.abs(across)
    if place.crop:
        furrow = np.sin(bent * 6.5 if along else bent * 2.2)
        strength = np.clip((off - half - 4) / 2, 0, 1) * np.clip(14 / z, 0, 1)
        ripe = _mix(place.grass, _rgb(0.74, 0.62, 0.28), 0.55)
        field = _mix(ripe, place.soil, 0.35) * (1 + 0.28 * furrow * strength)
        colour = _mix(colour, field, np.clip((off - half - 4) / 2, 0, 1))
    colour = colour * (1 + 0.1 * fine + 0.07 * patches)
    if place.snow > 0:
        white = np.clip(place.snow * 2.1 - 0.7 + 0.4 * patches + 0.15 * fine, 0, 1)
        colour = _mix(colour, _rgb(0.9, 0.93, 0.98) * (1 + 0.03 * fine), white)

    def paint(new: Floats, centre: float, width: float, broken: float = 0.0) -> None:
        inside = np.clip((width - np.abs(across - centre)) / pixel + 0.5, 0, 1)
        # Paint thinner than a pixel would shimmer: far away it fades instead.
        inside *= np.clip(2.4 * width / pixel, 0, 1)
        if broken:
            inside *= (lengthwise + shifts[0]) % broken < broken * 0.45
        row, column = np.nonzero(inside > 0)
        under = colour[:, row, column]
        colour[:, row, column] = under + (new[..., 0] - under) * inside[row, column]

    verge = np.clip((half + style.shoulder_width - off) / pixel + 0.5, 0, 1)
    colour += (style.shoulder * (1 + 0.12 * fine) - colour) * verge
    worn = 1 + 0.07 * fine + 0.03 * patches - 0.05 * np.exp(-((off - 1.8) ** 2) * 3)
    colour += (style.asphalt * worn - colour) * np.clip((half - off) / pixel + 0.5, 0, 1)
    if style.centre_double:
        for centre in (-0.16, 0.16):
            paint(style.centre_line, centre, 0.075)
    else:
        paint(style.centre_line, 0.0, 0.09, style.dash)
    if style.edge_line is not None:
        for centre in (-half + 0.35, half - 0.35):
            paint(style.edge_line, centre, 0.08)

    facing = 0.5 + 0.5 * math.cos(math.radians(turn))
    side = math.sin(math.radians(turn)) * (np.arange(size, dtype=np.float32) / size - 0.5)
    colour = colour * place.light * (0.84 + 0.1 * facing + 0.14 * side)[None, :].astype(np.float32)
    veil = (1 - np.exp(-np.minimum(z, 150) / place.visibility)) * 0.85
    canvas[:, horizon:] = _mix(colour, place.horizon, veil)


def _things(
    canvas: Floats, place: _Place, along: bool, turn: float, horizon: int, rng: np.random.Generator
) -> None:
    """Paint what stands on the ground, from far to near: the tree line, plants, houses, poles, signs, fences."""
    size = canvas.shape[2]
    focal = _FOCAL * size
    style = place.style
    _, _, ridges = _bank()
    mirrored = math.sin(math.radians(turn)) > 0
    bark = _rgb(0.33, 0.25, 0.19) * place.light
    frost = 0.45 * place.snow

    def veil(z: float) -> tuple[Floats, float]:
        return place.horizon, float(0.85 * (1 - math.exp(-z / place.visibility)))

    def column(side_x: float, z: float) -> float:
        bend: float = place.bend * min(z, 60.0) ** 2 if along else 0.0
        middle: float = size / 2 + focal * (side_x - place.lane - place.skew * z - bend) / z
        return middle

    def base(z: float) -> float:
        return float(horizon + _CAMERA_HEIGHT * focal / z)

    if place.forest > 0.12:
        start, row = int(rng.integers(ridges.shape[1])), int(rng.integers(8))
        wood = ridges[row][(start + np.arange(size) * (1200 // size)) % ridges.shape[1]]
        crowns = ridges[row - 1][(start + np.arange(size) * (2400 // size)) % ridges.shape[1]]
        height = size * 0.055 * place.forest * np.clip(0.8 + 0.35 * wood + 0.25 * crowns, 0, 2)
        tall = int(height.max()) + 2
        foot = horizon + max(1, size // 64)
        rows = np.arange(foot - tall, foot, dtype=np.float32)[:, None]
        inside = np.clip(rows - (foot - height[None, :]) + 0.5, 0, 1)
        lit = 0.6 + 0.5 * np.clip((foot - rows) / (height[None, :] + 1), 0, 1) + 0.08 * crowns[None, :]
        colour = _mix(place.leaf, _rgb(0.85, 0.88, 0.92), frost) * place.light * lit
        band = canvas[:, foot - tall : foot]
        band += (_mix(colour, *veil(90.0)) - band) * inside

    jobs: list[tuple[float, str, float, float, tuple[Floats, Floats]]] = []
    kinds = [kind for kind, _ in place.trees]
    shares = np.array([share for _, share in place.trees])
    count = int(rng.poisson(3 + 20 * place.forest + 4 * (1 - place.cover)))
    heights = {"broadleaf": 9.0, "conifer": 12.0, "bare": 8.0, "palm": 9.0, "shrub": 1.5, "cactus": 4.0}
    for number in rng.choice(len(kinds), size=count, p=shares):
        kind = kinds[int(number)]
        z = float(11 + 75 * rng.random() ** 1.3)
        if along:
            side_x = float(rng.choice((-1, 1)) * rng.uniform(9, 9 + 0.9 * z))
        else:
            side_x = float(rng.uniform(-0.9, 0.9) * z)
        leaf = place.leaf * np.float32(rng.uniform(0.85, 1.35)) + rng.normal(0, 0.02, (3, 1, 1)).astype(
            np.float32
        )
        if kind == "conifer":
            leaf = _mix(leaf, _rgb(0.17, 0.3, 0.16), 0.7)
        elif kind in ("shrub", "cactus"):
            leaf = _mix(leaf, _rgb(0.47, 0.5, 0.33), 0.6)
        leaf = _mix(leaf, _rgb(0.88, 0.9, 0.94), frost) * place.light
        jobs.append((z, kind, side_x, heights[kind] * float(rng.uniform(0.7, 1.25)), (leaf, bark)))
    for _ in range(int(rng.poisson(place.houses))):
        z = float(rng.uniform(18, 60))
        side_x = (
            float(rng.choice((-1, 1)) * rng.uniform(12, 14 + 0.5 * z))
            if along
            else float(rng.uniform(-12, 12))
        )
        walls = _mix(style.walls, _any_colour(rng), 0.25) * place.light
        jobs.append((z, "house", side_x, 9.0, (walls, _mix(style.roofs, _rgb(0.9, 0.92, 0.96), place.snow))))
    poles = (style.pole_colour * place.light, style.pole_colour)
    side_of = float(rng.choice((-1, 1)))
    first = float(rng.uniform(0.25, 1)) * style.pole_spacing
    spots = []
    for step in range(6):
        if along:
            spots.append((6.0 + first + step * style.pole_spacing, side_of * 7.5))
        else:
            spots.append((11.0, -30.0 + first + step * style.pole_spacing * 0.8))
    for z, side_x in spots:
        jobs.append((z, style.pole, side_x, 8.0, poles))
    if rng.random() < 0.75:
        z = float(rng.uniform(8, 15))
        side_x = float(rng.choice((-1, 1, 1)) * rng.uniform(4.8, 6)) if along else float(rng.uniform(-5, 5))
        board, border = style.sign_colours
        jobs.append((z, style.sign, side_x, 3.1, (board * place.light, border * place.light)))
    if rng.random() < 0.3 and along:
        paint = _any_colour(rng)
        jobs.append(
            (float(rng.uniform(9, 40)), "car", float(rng.choice((-1.8, 1.8))), 2.4, (paint, paint + 0.2))
        )
    for z, kind, side_x, height, colours in sorted(jobs, key=lambda job: -job[0]):
        variant = int(rng.integers(_SPRITE_VARIANTS))
        _stamp(
            canvas,
            kind,
            variant if kind in heights or kind == "house" else 0,
            mirrored,
            column(side_x, z),
            base(z),
            height * focal / z,
            colours,
            veil(z),
        )
    if style.wires:
        tops = [(column(side_x, z), base(z) - 6.9 * focal / z) for z, side_x in spots]
        _wires(canvas, tops, style.wires)
    if style.fence != "none":
        _fence(canvas, place, along, horizon)


def _wires(canvas: Floats, tops: list[tuple[float, float]], count: int) -> None:
    """Hang `count` sagging wires between neighbouring pole tops (column, row)."""
    size = canvas.shape[2]
    for (xa, ya), (xb, yb) in pairwise(tops):
        left, right = sorted((xa, xb))
        x0, x1 = max(0, math.ceil(left)), min(size, math.floor(right))
        if x1 - x0 < 2:
            continue
        columns = np.arange(x0, x1)
        t = (columns - xa) / (xb - xa)
        for wire in range(count):
            y = ya + (yb - ya) * t + 0.1 * (right - left) * t * (1 - t) + wire * size * 0.012
            row = np.floor(y).astype(np.int64)
            for shift, weight in ((0, 1 - (y - row)), (1, y - row)):
                seen = (row + shift >= 0) & (row + shift < size)
                canvas[:, row[seen] + shift, columns[seen]] *= (1 - 0.6 * weight[seen]).astype(np.float32)


def _fence(canvas: Floats, place: _Place, along: bool, horizon: int) -> None:
    size = canvas.shape[2]
    focal = _FOCAL * size
    style = place.style
    columns = np.arange(size, dtype=np.float32) + 0.5 - size / 2
    if along:
        side_x = 6.6
        tangent = columns / focal + place.skew
        offset = np.where(tangent > 0, side_x - place.lane, -side_x - place.lane)
        # Beyond 60 m a rail is thinner than a pixel.
        z = np.where(np.abs(tangent) > 1e-3, offset / np.where(tangent == 0, 1, tangent), 1e3)
        seen = (z > 1.5) & (z < 60)
        run = z
    else:
        z = np.full(size, 8.0, dtype=np.float32)
        seen = np.ones(size, dtype=bool)
        run = columns * z / focal
    bars = {
        "rail": ((0.45, 0.8),),
        "planks": ((0.3, 0.45), (0.62, 0.77), (0.95, 1.1)),
        "wire": ((0.4, 0.44), (0.8, 0.84)),
    }
    rows = np.arange(horizon, size, dtype=np.float32)[:, None] + 0.5
    scale = np.where(seen, focal / np.maximum(z, 1.5), 0).astype(np.float32)
    opacity = np.zeros((size - horizon, size), dtype=np.float32)

    def add(low: float, high: float, where: NDArray[np.bool_]) -> None:
        top = horizon + (_CAMERA_HEIGHT - high) * scale
        bottom = horizon + (_CAMERA_HEIGHT - low) * scale
        covered = np.minimum(rows + 0.5, bottom) - np.maximum(rows - 0.5, top)
        np.maximum(opacity, np.clip(covered, 0, 1) * where, out=opacity)

    for low, high in bars[style.fence]:
        add(low, high, seen)
    add(0.0, 1.15 if style.fence != "rail" else 0.7, seen & (run % 2.4 < 0.16))
    colour = style.fence_colour * place.light
    target = canvas[:, horizon:]
    target += (colour - target) * opacity


def _in_the_way(canvas: Floats, place: _Place, rng: np.random.Generator) -> None:
    """A truck, a wall or a hedge that hides a good part of the picture."""
    size = canvas.shape[2]
    _, grain, _ = _bank()
    if rng.random() < 0.5:
        column = size * float(rng.uniform(0.1, 0.9))
        _stamp(
            canvas,
            "truck",
            0,
            bool(rng.random() < 0.5),
            column,
            size * 0.96,
            size * float(rng.uniform(0.65, 1.0)),
            (_any_colour(rng) * place.light, _any_colour(rng) * place.light),
        )
        return
    top = int(size * rng.uniform(0.3, 0.5))
    left, right = np.sort(rng.uniform(-0.3, 1.3, 2))
    right = max(right, left + 0.5)
    x0, x1 = max(0, int(left * size)), min(size, int(right * size))
    bottom = int(size * rng.uniform(0.72, 0.85))
    if x0 >= x1:
        return
    rows, columns = np.arange(top, bottom), np.arange(x0, x1)
    rough = grain[(rows[:, None] * 2) % _BANK_SIZE, (columns[None, :] * 2) % _BANK_SIZE]
    if rng.random() < 0.5:
        colour = _mix(place.leaf, _rgb(0.3, 0.42, 0.2), 0.4)
        lit = 0.85 + 0.25 * rough - 0.35 * ((rows - top) / (bottom - top))[:, None]
    else:
        colour = _mix(_any_colour(rng), _rgb(0.62, 0.55, 0.5), 0.5)
        course = max(4, size // 28)
        joint = (rows[:, None] - top) % course == 0
        upright = (columns[None, :] + ((rows[:, None] - top) // course % 2) * course) % (2 * course) == 0
        lit = (0.9 + 0.05 * rough) * np.where(joint | upright, 0.8, 1.0)
    canvas[:, top:bottom, x0:x1] = colour * place.light * lit


def _paint(place: _Place, view: int, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """One picture, (size, size, 3): the place as seen when facing `view` quarter turns east of north."""
    turn = (place.sun_azimuth - 90 * view + 180) % 360 - 180
    along = view % 2 == place.road_axis
    horizon = round(size * (0.5 + place.pitch + rng.normal(0, 0.008)))
    canvas = np.empty((3, size, size), dtype=np.float32)
    _sky(canvas, place, turn, horizon, rng)
    _hills(canvas, place, turn, horizon, rng)
    _ground(canvas, place, along, turn, horizon, rng)
    _things(canvas, place, along, turn, horizon, rng)
    if rng.random() < 0.12:
        _in_the_way(canvas, place, rng)

    _, grain, _ = _bank()
    oy, ox = rng.integers(_BANK_SIZE, size=2)
    at = np.arange(size)
    noise = grain[((at + oy) % _BANK_SIZE)[:, None], ((at + ox) % _BANK_SIZE)[None, :]]
    exposure = place.gain * np.float32(255 * np.exp(rng.normal(0, 0.05)))
    canvas *= _vignette(size)
    canvas *= exposure * np.float32(place.contrast)
    canvas += exposure * np.float32(0.5 - 0.5 * place.contrast) + np.float32(2.0) * noise
    mark = _watermark(size)
    canvas += (np.float32(255) - canvas) * mark
    np.clip(canvas, 0, 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))
