"""What a place of the demo's country looks like on the day of a visit, before anything is painted.

Fields that vary smoothly over the map (climate, relief, soil), a style that jumps at state borders (paint, signs, poles,
fences), and chance (season, weather, hour, camera).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geo_embed.synthetic.chance import LOOK, STYLE, of_country, of_visit
from geo_embed.synthetic.colour import Floats, any_colour, mix, rgb

STATE_IDX: Final = (
    *(0, 1, 2, 4, 5, 8, 9, 11, 12, 14, 15, 17, 18, 21, 22, 25, 26),
    *(27, 30, 31, 32, 33, 34, 35, 36, 37, 39, 40, 42, 43, 45, 46, 47),
)

# This share of places looks like some other state: no model can know them all.
_BORROWED = 0.06


@dataclass(frozen=True)
class Style:
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
class Place:
    """Everything the pictures of one place share; colours are (3, 1, 1) in [0, 1], shares in [0, 1]."""

    style: Style
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


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@lru_cache(maxsize=1)
def _waves() -> NDArray[np.float64]:
    """(12 fields, 4 waves, 3): angular frequency per degree east, per degree north, phase."""
    rng = of_country(LOOK)
    length, angle = rng.uniform(7.0, 24.0, (12, 4)), rng.uniform(0, 2 * np.pi, (12, 4))
    k = 2 * np.pi / length
    return np.stack(
        [k * np.cos(angle), k * np.sin(angle) * 1.25, rng.uniform(0, 2 * np.pi, (12, 4))], axis=-1
    )


@lru_cache(maxsize=64)
def _style(state_idx: int) -> Style:
    rng = of_country(STYLE, state_idx)

    def pick(*options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    white, yellow, amber = rgb(0.93, 0.93, 0.9), rgb(0.95, 0.8, 0.2), rgb(0.93, 0.62, 0.12)
    tone = rng.uniform(0.27, 0.58)
    tint = rng.normal(0, 0.022, (3, 1, 1))
    shoulder = pick(rgb(0.62, 0.56, 0.47), rgb(0.55, 0.35, 0.25), rgb(0.45, 0.45, 0.46), rgb(0.72, 0.68, 0.6))
    board = pick(
        rgb(0.05, 0.42, 0.25),
        rgb(0.1, 0.28, 0.62),
        rgb(0.42, 0.25, 0.12),
        rgb(0.95, 0.77, 0.1),
        rgb(0.93, 0.93, 0.93),
        rgb(0.92, 0.42, 0.1),
        rgb(0.72, 0.1, 0.12),
    )
    return Style(
        asphalt=np.asarray(tone + tint, dtype=np.float32),
        shoulder=shoulder,
        shoulder_width=float(rng.uniform(0.5, 2.4)),
        centre_line=pick(yellow, amber, white),
        centre_double=bool(rng.random() < 0.5),
        dash=float(pick(0.0, 6.0, 9.0)),
        edge_line=pick(white, white, yellow, None),
        pole=pick("pole_cross", "pole_lamp", "pole_plain", "pole_tower"),
        pole_colour=pick(
            rgb(0.36, 0.25, 0.17), rgb(0.66, 0.66, 0.64), rgb(0.3, 0.42, 0.38), rgb(0.82, 0.8, 0.74)
        ),
        pole_spacing=float(rng.uniform(12.0, 26.0)),
        wires=int(rng.integers(0, 4)),
        sign=pick("sign_board", "sign_diamond", "sign_round", "sign_tall"),
        sign_colours=(board, rgb(0.1, 0.1, 0.1) if float(board.sum()) > 1.7 else white),
        fence=pick("none", "rail", "planks", "wire"),
        fence_colour=pick(
            rgb(0.74, 0.75, 0.76), rgb(0.92, 0.91, 0.88), rgb(0.42, 0.29, 0.19), rgb(0.25, 0.22, 0.2)
        ),
        walls=pick(
            rgb(0.9, 0.88, 0.83),
            rgb(0.62, 0.27, 0.2),
            rgb(0.83, 0.7, 0.5),
            rgb(0.5, 0.6, 0.68),
            rgb(0.55, 0.42, 0.3),
        ),
        roofs=pick(rgb(0.3, 0.29, 0.31), rgb(0.55, 0.27, 0.18), rgb(0.32, 0.4, 0.36), rgb(0.62, 0.6, 0.58)),
        grass_tint=np.asarray(rng.normal(0, 0.022, (3, 1, 1)), dtype=np.float32),
    )


def _local(state_idx: int, rng: np.random.Generator) -> Style:
    """The state's style as one stretch of road has it: aged, patched, and not always by the book."""

    def elsewhere() -> Style:
        return _style(STATE_IDX[int(rng.integers(len(STATE_IDX)))])

    style = elsewhere() if rng.random() < _BORROWED else _style(state_idx)
    fade, dust = float(rng.uniform(0, 0.6)), float(rng.uniform(0, 0.7))
    asphalt = np.clip(style.asphalt + rng.normal(0, 0.045), 0.15, 0.75).astype(np.float32)
    signs, poles, fences = (elsewhere() if rng.random() < share else style for share in (0.25, 0.25, 0.25))
    return replace(
        style,
        asphalt=asphalt,
        shoulder=mix(style.shoulder, rgb(0.57, 0.5, 0.41), dust),
        shoulder_width=style.shoulder_width * float(rng.uniform(0.6, 1.5)),
        centre_line=mix(style.centre_line, asphalt, fade),
        edge_line=None
        if style.edge_line is None or rng.random() < 0.15
        else mix(style.edge_line, asphalt, fade),
        pole=poles.pole,
        pole_colour=poles.pole_colour,
        pole_spacing=style.pole_spacing * float(rng.uniform(0.7, 1.4)),
        sign=signs.sign,
        sign_colours=signs.sign_colours,
        fence=fences.fence if rng.random() < 0.75 else "none",
        fence_colour=fences.fence_colour,
        walls=mix(style.walls, any_colour(rng), 0.3),
    )


def look_of(state_idx: int, latitude: float, longitude: float, visit: tuple[int, ...]) -> Place:
    """The look of one place on one day: climate from the map, style from the state, the rest from chance.

    Args:
        state_idx: decides the style, one of `STATE_IDX`.
        latitude: in degrees, as `longitude`: they decide climate and ground.
        longitude: in degrees.
        visit: numbers, none negative, that name the visit: season and weather follow from them alone.
    """
    rng = of_visit(visit, 0)
    style = _local(state_idx, rng)
    waves = _waves()
    swell = np.sin(waves[..., 0] * longitude + waves[..., 1] * latitude + waves[..., 2]).mean(axis=1)
    # Plain floats: a float64 scalar would turn every float32 array it meets into float64.
    field: list[float] = (swell + rng.normal(0, 0.16, swell.shape)).tolist()

    # Climate and ground: smooth functions of the map (a wet coast, a dry west, two ranges, plains), each stirred by a field.
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

    # The day: a season, and the snow that goes with it and with the climate.
    season = float(rng.random())
    winter = max(0.0, math.cos(2 * math.pi * season))
    autumn = max(0.0, math.cos(2 * math.pi * (season - 0.8))) ** 4
    snow = max(0.0, min(1.0, (winter * (1.35 - 1.3 * warm) - 0.75) * 3)) * float(rng.uniform(0.5, 1))
    thaw = 1 - 0.35 * winter * (1 - warm)

    lush = mix(rgb(0.3, 0.47, 0.17), rgb(0.2, 0.42, 0.14), 0.5 + 0.5 * math.tanh(2 * field[3]))
    straw = mix(rgb(0.66, 0.57, 0.33), rgb(0.55, 0.55, 0.36), 0.5 + 0.5 * math.tanh(2 * field[4]))
    grass = mix(straw, lush, float((1 - 0.85 * dry) * thaw)) + style.grass_tint
    # Soil and leaves, after the grass: by ground, climate and season.
    red_earth = 0.5 + 0.5 * math.tanh(2.2 * field[5] + 1.3 * (warm - 0.5))
    pale = mix(rgb(0.6, 0.52, 0.41), rgb(0.75, 0.67, 0.5), dry)
    soil = mix(mix(pale, rgb(0.33, 0.26, 0.2), float(plains * 0.8)), rgb(0.66, 0.36, 0.22), 0.75 * red_earth)
    leaf = mix(rgb(0.16, 0.3, 0.12), rgb(0.27, 0.38, 0.12), 0.5 + 0.5 * math.tanh(2 * field[6]))
    leaf = mix(
        leaf, mix(rgb(0.72, 0.42, 0.1), rgb(0.6, 0.2, 0.1), float(rng.random())), 0.8 * autumn * (1 - warm)
    )
    rock = mix(mix(rgb(0.37, 0.36, 0.4), soil, 0.55), leaf, 0.6 * forest)

    # Which trees grow there, as shares.
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

    # Sky and light: clouds, the sun's height by latitude, season and hour, haze.
    overcast = float(np.clip(rng.beta(0.9, 1.3) + 0.15 * field[8] + 0.1 * (0.5 - dry), 0, 1))
    hour = float(rng.uniform(-1, 1))
    tilt = 23.4 * -math.cos(2 * math.pi * season)
    sun_height = math.radians(max(6.0, (90 - latitude + tilt) * (1 - 0.75 * hour**2)))
    low_sun = max(0.0, 1 - sun_height / 0.5) * (1 - overcast)
    humid = float(np.clip(0.3 + 0.6 * (1 - dry) * warm + 0.2 * field[9], 0, 1))
    blue = mix(rgb(0.22, 0.43, 0.78), rgb(0.4, 0.6, 0.87), humid)
    blue = mix(blue, rgb(0.36, 0.45, 0.62), float(np.clip((latitude - 30) / 30, 0, 1)) * 0.6)
    haze = mix(rgb(0.72, 0.83, 0.93), rgb(0.88, 0.87, 0.82), float(np.clip(0.5 + 0.6 * field[10], 0, 1)))
    grey = np.full((3, 1, 1), rng.uniform(0.55, 0.8), dtype=np.float32)
    glow = 0.5 * low_sun
    light = mix(rgb(1.0, 0.98, 0.94), rgb(0.8, 0.83, 0.88), overcast) * mix(
        rgb(1, 1, 1), rgb(1.02, 0.86, 0.7), float(low_sun)
    )
    return Place(
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
        zenith=mix(mix(blue, grey * 0.95, 0.85 * overcast), rgb(0.5, 0.42, 0.55), glow),
        horizon=mix(mix(haze, grey * 1.08, 0.7 * overcast), rgb(0.98, 0.72, 0.45), glow),
        cloud=float(np.clip(overcast + rng.normal(0, 0.12), 0, 1)),
        visibility=float(np.exp(rng.normal(4.9 - 0.7 * humid, 0.35))),
        sun_azimuth=180 + 95 * hour,
        sun_height=sun_height,
        light=light * np.float32(rng.uniform(0.95, 1.22)),
        gain=np.asarray(np.exp(rng.normal(0, 0.08) + rng.normal(0, 0.04, (3, 1, 1))), dtype=np.float32),
        contrast=float(rng.uniform(0.85, 1.15)),
        pitch=float(rng.normal(0, 0.02)),
    )
