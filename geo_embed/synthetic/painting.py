"""The pictures of one place in the demo's small country: sky, hills, ground, what stands on it, and what the camera adds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from geo_embed.synthetic.chance import of_visit
from geo_embed.synthetic.colour import Floats, any_colour, mix, rgb
from geo_embed.synthetic.place import Place, look_of
from geo_embed.synthetic.sprites import VARIANTS, sprite
from geo_embed.synthetic.texture import TEXTURE_SIZE, textures
from geo_embed.synthetic.views import VIEWS

_CAMERA_HEIGHT = 2.0
_FOCAL = 0.62


def paint_place(
    state_idx: int, latitude: float, longitude: float, *, visit: tuple[int, ...], size: int
) -> Iterator[NDArray[np.uint8]]:
    """Paint what a camera there sees in each direction of `VIEWS`, one after the other.

    Args:
        state_idx: decides the style, one of `STATE_IDX`.
        latitude: in degrees, as `longitude`: they decide climate and ground.
        longitude: in degrees.
        visit: numbers, none negative, that name the visit: season, weather and traffic follow from them alone.
        size: side of a picture in pixels.

    Yields:
        (size, size, 3) RGB.
    """
    place = look_of(state_idx, latitude, longitude, visit)
    for number, heading in enumerate(VIEWS.values(), start=1):
        yield _paint(place, heading, of_visit(visit, number), size)


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
        (layer[:, ::-1] if mirrored else layer)[window] for layer in sprite(kind, variant, side)
    )
    colour: Floats = (colours[0] + (colours[1] - colours[0]) * second) * shade
    if veil is not None:
        colour = mix(colour, veil[0], veil[1])
    target = canvas[:, y0:y1, x0:x1]
    target += (colour - target) * alpha


def _sky(canvas: Floats, place: Place, turn: float, horizon: int, rng: np.random.Generator) -> None:
    """Paint the rows above `horizon`; `turn` is the sun's bearing from the middle of the picture, in degrees."""
    size = canvas.shape[2]
    soft, _, _ = textures()
    rows = np.arange(horizon, dtype=np.float32)
    columns = np.arange(size, dtype=np.float32) - size / 2
    fall = ((rows + 1) / horizon)[:, None] ** 1.7
    sky = mix(place.zenith, place.horizon, fall)
    facing = 0.5 + 0.5 * math.cos(math.radians(turn))
    side = math.sin(math.radians(turn)) * columns / size
    sky = sky * (0.86 + 0.2 * facing + 0.16 * side[None, :]).astype(np.float32)

    depth = size * 0.22 / (horizon - rows + size * 0.03)
    shift_y, shift_x = rng.integers(TEXTURE_SIZE, size=2).astype(np.float64).tolist()
    v = (depth * 100 + shift_y).astype(np.int32)[:, None] % TEXTURE_SIZE
    u = (columns[None, :] * (256 / size) * (0.35 + 0.65 * depth[:, None]) + shift_x).astype(
        np.int32
    ) % TEXTURE_SIZE
    tuft = soft[v, u]
    cover = np.clip((tuft + (place.cloud - 0.5) * 3.6 - 0.4) * 0.9, 0, 1) * (1 - 0.75 * fall)
    body = np.clip(1.04 - 0.09 * tuft - 0.3 * place.cloud**2, 0.5, 1) * (0.9 + 0.12 * facing)
    sky += (body * mix(rgb(1, 1, 1), place.horizon, 0.3) - sky) * cover

    if abs(turn) < 80:
        x = size * _FOCAL * math.tan(math.radians(turn))
        y = horizon - size * _FOCAL * math.tan(min(place.sun_height, 1.2))
        across, down = (columns - x) / size, (rows - y) / size
        wide = np.exp(-(down**2) * 7)[:, None] * np.exp(-(across**2) * 7)[None, :]
        core = np.exp(-(down**2) * 260)[:, None] * np.exp(-(across**2) * 260)[None, :]
        power = 1 - 0.85 * place.cloud
        glow = (0.4 * wide + 1.1 * core) * power
        sky += (mix(rgb(1.0, 0.97, 0.88), place.horizon, 0.25) * 1.1 - sky) * np.clip(glow, 0, 0.97)
    canvas[:, :horizon] = sky


def _hills(canvas: Floats, place: Place, turn: float, horizon: int, rng: np.random.Generator) -> None:
    size = canvas.shape[2]
    _, grain, ridges = textures()
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
            rng.integers(TEXTURE_SIZE - highest),
            rng.integers(TEXTURE_SIZE - size) if size < TEXTURE_SIZE else 0,
        )
        rough = grain[oy : oy + highest, (ox + np.arange(size)) % TEXTURE_SIZE]
        lit = (1.05 + slope * 0.9 + 0.08 * rough) * place.light * (0.55 + 0.25 * near)
        colour = mix(place.rock, place.leaf, 0.5 * near * place.forest) * lit
        if place.relief > 0.45:
            cap = np.clip(
                (horizon - rows - size * (0.16 - 0.1 * place.snow)) / (size * 0.03) + 0.6 * rough, 0, 1
            )
            colour = mix(colour, rgb(0.93, 0.95, 0.98) * place.light, cap)
        veil = float(0.62 - 0.42 * near) * float(np.clip(150 / place.visibility, 0.35, 1.2))
        colour = mix(colour, place.horizon, min(0.9, veil))
        band = canvas[:, horizon - highest : horizon]
        band += (colour - band) * inside


def _ground(
    canvas: Floats, place: Place, along: bool, turn: float, horizon: int, rng: np.random.Generator
) -> None:
    """Paint everything below `horizon`: soil, grass, crops, snow, the road and its paint."""
    size = canvas.shape[2]
    soft, grain, _ = textures()
    style = place.style
    focal = _FOCAL * size
    rows = np.arange(horizon, size, dtype=np.float32)[:, None]
    z = _CAMERA_HEIGHT * focal / (rows - horizon + 0.8)
    x = (np.arange(size, dtype=np.float32)[None, :] + 0.5 - size / 2) * (z / focal)
    pixel = z / focal
    shifts: list[float] = rng.integers(TEXTURE_SIZE, size=4).astype(np.float64).tolist()

    def sample(texture: Floats, per_metre: float, shift: int) -> Floats:
        v = (z * per_metre + shifts[shift]).astype(np.int32) & (TEXTURE_SIZE - 1)
        u = (x * per_metre + shifts[shift + 1]).astype(np.int32) & (TEXTURE_SIZE - 1)
        picked: Floats = texture[v, u]
        return picked

    patches = sample(soft, 5.0, 0)
    fine = sample(grain, 48.0, 2) * np.clip(9 / z, 0.12, 1)
    grassy = np.clip((place.cover - 0.5) * 3.2 + 0.5 + 0.55 * patches + 0.2 * fine, 0, 1)
    colour = mix(place.soil, place.grass, grassy)

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
        ripe = mix(place.grass, rgb(0.74, 0.62, 0.28), 0.55)
        field = mix(ripe, place.soil, 0.35) * (1 + 0.28 * furrow * strength)
        colour = mix(colour, field, np.clip((off - half - 4) / 2, 0, 1))
    colour = colour * (1 + 0.1 * fine + 0.07 * patches)
    if place.snow > 0:
        white = np.clip(place.snow * 2.1 - 0.7 + 0.4 * patches + 0.15 * fine, 0, 1)
        colour = mix(colour, rgb(0.9, 0.93, 0.98) * (1 + 0.03 * fine), white)

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
    canvas[:, horizon:] = mix(colour, place.horizon, veil)


def _ground_objects(
    canvas: Floats, place: Place, along: bool, turn: float, horizon: int, rng: np.random.Generator
) -> None:
    """Paint what stands on the ground, from far to near: the tree line, plants, houses, poles, signs, fences."""
    size = canvas.shape[2]
    focal = _FOCAL * size
    style = place.style
    _, _, ridges = textures()
    mirrored = math.sin(math.radians(turn)) > 0
    bark = rgb(0.33, 0.25, 0.19) * place.light
    frost = 0.45 * place.snow

    def veil(z: float) -> tuple[Floats, float]:
        return place.horizon, float(0.85 * (1 - math.exp(-z / place.visibility)))

    def column(side_x: float, z: float) -> float:
        bend: float = place.bend * min(z, 60.0) ** 2 if along else 0.0
        middle: float = size / 2 + focal * (side_x - place.lane - place.skew * z - bend) / z
        return middle

    def base(z: float) -> float:
        return float(horizon + _CAMERA_HEIGHT * focal / z)

    # The tree line at the horizon: two ridges of noise, its height and its crowns, behind the haze of 90 m.
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
        colour = mix(place.leaf, rgb(0.85, 0.88, 0.92), frost) * place.light * lit
        band = canvas[:, foot - tall : foot]
        band += (mix(colour, *veil(90.0)) - band) * inside

    # What stands there is listed first, as (distance, sprite, metres to the side, height, colours), and stamped farthest first.
    jobs: list[tuple[float, str, float, float, tuple[Floats, Floats]]] = []
    # Plants, in the place's mixture of kinds.
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
            leaf = mix(leaf, rgb(0.17, 0.3, 0.16), 0.7)
        elif kind in ("shrub", "cactus"):
            leaf = mix(leaf, rgb(0.47, 0.5, 0.33), 0.6)
        leaf = mix(leaf, rgb(0.88, 0.9, 0.94), frost) * place.light
        jobs.append((z, kind, side_x, heights[kind] * float(rng.uniform(0.7, 1.25)), (leaf, bark)))
    # Houses in the state's colours.
    for _ in range(int(rng.poisson(place.houses))):
        z = float(rng.uniform(18, 60))
        side_x = (
            float(rng.choice((-1, 1)) * rng.uniform(12, 14 + 0.5 * z))
            if along
            else float(rng.uniform(-12, 12))
        )
        walls = mix(style.walls, any_colour(rng), 0.25) * place.light
        jobs.append((z, "house", side_x, 9.0, (walls, mix(style.roofs, rgb(0.9, 0.92, 0.96), place.snow))))
    # A row of poles at the state's spacing, along the road or across the view.
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
    # A sign, and now and then a car.
    if rng.random() < 0.75:
        z = float(rng.uniform(8, 15))
        side_x = float(rng.choice((-1, 1, 1)) * rng.uniform(4.8, 6)) if along else float(rng.uniform(-5, 5))
        board, border = style.sign_colours
        jobs.append((z, style.sign, side_x, 3.1, (board * place.light, border * place.light)))
    if rng.random() < 0.3 and along:
        paint = any_colour(rng)
        jobs.append(
            (float(rng.uniform(9, 40)), "car", float(rng.choice((-1.8, 1.8))), 2.4, (paint, paint + 0.2))
        )
    # By the pinhole: columns by side_x / z, heights by height / z.
    for z, kind, side_x, height, colours in sorted(jobs, key=lambda job: -job[0]):
        variant = int(rng.integers(VARIANTS))
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


def _fence(canvas: Floats, place: Place, along: bool, horizon: int) -> None:
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


def _in_the_way(canvas: Floats, place: Place, rng: np.random.Generator) -> None:
    """A truck, a wall or a hedge that hides a good part of the picture."""
    size = canvas.shape[2]
    _, grain, _ = textures()
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
            (any_colour(rng) * place.light, any_colour(rng) * place.light),
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
    rough = grain[(rows[:, None] * 2) % TEXTURE_SIZE, (columns[None, :] * 2) % TEXTURE_SIZE]
    if rng.random() < 0.5:
        colour = mix(place.leaf, rgb(0.3, 0.42, 0.2), 0.4)
        lit = 0.85 + 0.25 * rough - 0.35 * ((rows - top) / (bottom - top))[:, None]
    else:
        colour = mix(any_colour(rng), rgb(0.62, 0.55, 0.5), 0.5)
        course = max(4, size // 28)
        joint = (rows[:, None] - top) % course == 0
        upright = (columns[None, :] + ((rows[:, None] - top) // course % 2) * course) % (2 * course) == 0
        lit = (0.9 + 0.05 * rough) * np.where(joint | upright, 0.8, 1.0)
    canvas[:, top:bottom, x0:x1] = colour * place.light * lit


def _paint(place: Place, heading: int, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """One picture, (size, size, 3): the place as seen when facing `heading` degrees east of north."""
    turn = (place.sun_azimuth - heading + 180) % 360 - 180
    along = heading // 90 % 2 == place.road_axis
    horizon = round(size * (0.5 + place.pitch + rng.normal(0, 0.008)))
    canvas = np.empty((3, size, size), dtype=np.float32)
    _sky(canvas, place, turn, horizon, rng)
    _hills(canvas, place, turn, horizon, rng)
    _ground(canvas, place, along, turn, horizon, rng)
    _ground_objects(canvas, place, along, turn, horizon, rng)
    if rng.random() < 0.12:
        _in_the_way(canvas, place, rng)

    _, grain, _ = textures()
    oy, ox = rng.integers(TEXTURE_SIZE, size=2)
    at = np.arange(size)
    noise = grain[((at + oy) % TEXTURE_SIZE)[:, None], ((at + ox) % TEXTURE_SIZE)[None, :]]
    exposure = place.gain * np.float32(255 * np.exp(rng.normal(0, 0.05)))
    canvas *= vignette(size)
    canvas *= exposure * np.float32(place.contrast)
    canvas += exposure * np.float32(0.5 - 0.5 * place.contrast) + np.float32(2.0) * noise
    mark = watermark(size)
    canvas += (np.float32(255) - canvas) * mark
    np.clip(canvas, 0, 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))


@lru_cache(maxsize=8)
def vignette(size: int) -> Floats:
    ramp = (np.arange(size) / size - 0.5) ** 2
    return np.asarray(1.06 - 0.26 * (ramp[:, None] + ramp[None, :]), dtype=np.float32)


@lru_cache(maxsize=8)
def watermark(size: int) -> Floats:
    """Opacity (size, size) of the mark that every picture carries at the same spot."""
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(6.0, size / 18))
    draw.text((size * 0.97, size * 0.985), "SYNTHETIC", fill=170, font=font, anchor="rs")
    return np.asarray(image, dtype=np.float32) / 255
