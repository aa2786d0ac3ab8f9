"""From degrees to the plane of a map: the United States as d3.geoAlbersUsa shows them, any other region by its extent."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.geography import bounding_box, wrap_longitude
from geo_embed.reporting.areas import TERRITORIES, Ring
from geo_embed.reporting.outlines import Outlines

Floats = NDArray[np.float64]
# Left, right, lower and upper edge.
Frame = tuple[float, float, float, float]

# Wider or higher than this in degrees, a region is shown as part of the world.
_WIDEST, _HIGHEST = 150.0, 80.0
# A part of the US narrower than this is shown by itself.
_PART_OF_US = 20.0
_MARGIN = 0.06
# Of the frame's longer side: a single place gets so much land around it, in Earth radii.
_LEAST_SIDE = 2e-3


@dataclass(frozen=True)
class _Conic:
    """Albers' equal-area conic projection (Snyder 1987, p. 100), one radius of the Earth to the unit, y upwards."""

    parallels: tuple[float, float]
    longitude: float
    latitude: float

    def __call__(self, lat: Floats, lon: Floats) -> Floats:
        first, second = np.radians(self.parallels)
        n = (np.sin(first) + np.sin(second)) / 2
        turned, phi, origin = (
            np.radians(wrap_longitude(lon - self.longitude)),
            np.radians(lat),
            np.radians(self.latitude),
        )
        if abs(n) < 1e-6:
            # Parallels on both sides of the equator: the cone is a cylinder (Snyder 1987, p. 76).
            scale = np.cos(first)
            return np.stack([turned * scale, (np.sin(phi) - np.sin(origin)) / scale], axis=-1)
        c = np.cos(first) ** 2 + 2 * n * np.sin(first)
        rho, rho_origin = (np.sqrt(np.maximum(c - 2 * n * np.sin(angle), 0)) / n for angle in (phi, origin))
        return np.stack([rho * np.sin(n * turned), rho_origin - rho * np.cos(n * turned)], axis=-1)


@dataclass(frozen=True)
class _EqualEarth:
    """Šavrič, Patterson & Jenny, The Equal Earth map projection, IJGIS 2019, eq. 2; one radius of the Earth to the unit."""

    longitude: float

    def __call__(self, lat: Floats, lon: Floats) -> Floats:
        a = (1.340264, -0.081106, 0.000893, 0.003796)
        root = np.sqrt(3)
        theta = np.arcsin(root / 2 * np.sin(np.radians(lat)))
        turned = np.radians(wrap_longitude(lon - self.longitude))
        slope = 9 * a[3] * theta**8 + 7 * a[2] * theta**6 + 3 * a[1] * theta**2 + a[0]
        x = 2 * root * turned * np.cos(theta) / (3 * slope)
        return np.stack([x, a[3] * theta**9 + a[2] * theta**7 + a[1] * theta**3 + a[0] * theta], axis=-1)


@dataclass(frozen=True)
class _Panel:
    """One of the three maps that show the United States: where on the plane, how large, and up to where."""

    conic: _Conic
    scale: float
    middle: tuple[float, float]
    frame: Frame

    def __call__(self, lat: Floats, lon: Floats) -> Floats:
        return self.conic(lat, lon) * self.scale + self.middle


# d3-geo 3.1.1, src/projection/albersUsa.js and albers.js (ISC licence, Mike Bostock), in units of its scale, y upwards.
def _panel(
    parallels: tuple[float, float],
    turn: float,
    centre: tuple[float, float],
    scale: float,
    middle: tuple[float, float],
    frame: Frame,
) -> _Panel:
    # d3 puts `centre`, counted from the central meridian, into the panel's middle.
    upright = _Conic(parallels, -turn, 0.0)
    x, y = scale * upright(np.array([centre[1]]), np.array([centre[0] - turn]))[0]
    return _Panel(upright, scale, (middle[0] - x, middle[1] - y), frame)


_USA: Final = (
    _panel((29.5, 45.5), 96.0, (-0.6, 38.7), 1.0, (0.0, 0.0), (-0.455, 0.455, -0.238, 0.238)),
    _panel((55.0, 65.0), 154.0, (-2.0, 58.5), 0.35, (-0.307, -0.201), (-0.425, -0.214, -0.234, -0.120)),
    _panel((8.0, 18.0), 157.0, (-3.0, 19.9), 1.0, (-0.205, -0.212), (-0.214, -0.115, -0.234, -0.166)),
)


@dataclass(frozen=True)
class Projection:
    """How a map shows its region.

    Attributes:
        name: `albers-usa`, `conic-equal-area` or `equal-earth`.
        frame: what of the plane is shown: left, right, lower, upper; y grows upwards, and the unit is the Earth's radius (but for the
            insets of `albers-usa`).
        parallels, longitude, latitude: the cone's standard parallels and the map's middle, in degrees; of `equal-earth` the longitude
            alone counts, of `albers-usa` none.
    """

    name: Literal["albers-usa", "conic-equal-area", "equal-earth"]
    frame: Frame
    parallels: tuple[float, float] = (0.0, 0.0)
    longitude: float = 0.0
    latitude: float = 0.0


def project(projection: Projection, latitude: ArrayLike, longitude: ArrayLike) -> Floats:
    """Points (N,) in degrees to the plane (N, 2).

    NaN for what isn't a number, and with `albers-usa` for what lies in none of its three panels.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    if projection.name != "albers-usa":
        return _plane(projection)(lat, lon)
    points = np.full((len(lat), 2), np.nan)
    for panel in reversed(_USA):
        projected = panel(lat, lon)
        left, right, lower, upper = panel.frame
        inside = (
            (projected[:, 0] >= left)
            & (projected[:, 0] <= right)
            & (projected[:, 1] >= lower)
            & (projected[:, 1] <= upper)
        )
        points[inside] = projected[inside]
    return points


def project_rings(projection: Projection, rings: Iterable[Ring]) -> list[Floats]:
    """Rings (K, 2) of longitude and latitude to the plane, cut where the map is: as many pieces (L, 2), closed, as are to be seen.

    A ring across the map's outer meridian comes apart into a piece on either side; pieces beside the frame are left out.
    """
    pieces = []
    for ring in rings:
        if projection.name == "albers-usa":
            # A state lies in one panel: that of its middle.
            lon, lat = (ring.min(axis=0) + ring.max(axis=0)) / 2
            panel = _USA[1] if lat > 50 else _USA[2] if lat < 30 and wrap_longitude(lon) < -140 else _USA[0]
            pieces.append(_clip(panel(ring[:, 1], ring[:, 0]), panel.frame))
        else:
            plane = _plane(projection)
            for part in _cut(ring, projection.longitude):
                pieces.append(plane(part[:, 1], part[:, 0]))
    left, right, lower, upper = projection.frame
    return [
        piece
        for piece in pieces
        if len(piece) > 3
        and piece[:, 0].max() >= left
        and piece[:, 0].min() <= right
        and piece[:, 1].max() >= lower
        and piece[:, 1].min() <= upper
    ]


def page_height(projection: Projection, width: float) -> float:
    """How high a page's map is that is `width` wide, in the same unit."""
    left, right, lower, upper = projection.frame
    return width * (upper - lower) / (right - left)


def to_page(projection: Projection, plane: Floats, width: float) -> Floats:
    """Points (N, 2) of the plane on a page's map, `width` wide: x to the right, y downwards."""
    left, right, _, upper = projection.frame
    scale = width / (right - left)
    return np.stack([(plane[:, 0] - left) * scale, (upper - plane[:, 1]) * scale], axis=1)


def fit_projection(drawn: Outlines, latitude: ArrayLike, longitude: ArrayLike) -> Projection:
    """The map that shows classes and places: the states of the US as d3.geoAlbersUsa does, a smaller region on a cone, the world by Equal Earth.

    Args:
        drawn: outlines of the classes.
        latitude, longitude: (N,) places in degrees that are to be seen; what isn't finite is left out.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    finite = np.isfinite(lat) & np.isfinite(lon)
    lat, lon = lat[finite], lon[finite]
    hulls = [
        ring
        for source, rings in zip(drawn.sources, drawn.rings, strict=True)
        for ring in rings
        if source == "hull" or drawn.region == "us"
    ]
    if hulls:
        corners = np.concatenate(hulls)
        lat, lon = np.append(lat, corners[:, 1]), np.append(lon, wrap_longitude(corners[:, 0]))
    if len(lat):
        _, _, west, east = bounding_box(lat, lon)
        plain = drawn.region == "us" and "hull" not in drawn.sources and not TERRITORIES & set(drawn.codes)
        if plain and east - west > _PART_OF_US:
            return Projection("albers-usa", (-0.44, 0.42, -0.245, 0.235))
    return fit_places(lat, lon)


def fit_places(
    latitude: ArrayLike, longitude: ArrayLike, margin: float = _MARGIN, least: float = _LEAST_SIDE
) -> Projection:
    """The map that shows places (N,) in degrees alone; the world where there are none.

    Args:
        latitude, longitude: finite.
        margin: land around them, as a share of their box's longer side.
        least: of that land, in Earth radii.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    if not len(lat):
        lat, lon = np.array([-60.0, 80.0]), np.array([-180.0, 179.0])
    south, north, west, east = bounding_box(lat, lon)
    middle = float(wrap_longitude((west + east) / 2))
    if east - west > _WIDEST or north - south > _HIGHEST:
        flat = Projection("equal-earth", (0, 0, 0, 0), longitude=middle)
    else:
        sixth = (north - south) / 6
        flat = Projection(
            "conic-equal-area", (0, 0, 0, 0), (south + sixth, north - sixth), middle, (south + north) / 2
        )
    x, y = project(flat, lat, lon).T
    pad = max(margin * max(np.ptp(x), np.ptp(y)), least)
    frame = (float(x.min() - pad), float(x.max() + pad), float(y.min() - pad), float(y.max() + pad))
    return Projection(flat.name, frame, flat.parallels, flat.longitude, flat.latitude)


def _plane(projection: Projection) -> _Conic | _EqualEarth:
    if projection.name == "equal-earth":
        return _EqualEarth(projection.longitude)
    return _Conic(projection.parallels, projection.longitude, projection.latitude)


def _cut(ring: Ring, longitude: float) -> list[Ring]:
    """A ring by the meridian opposite to `longitude`: pieces within 180 degrees of it, in longitudes that the projections take."""
    # A hair within, or the eastern edge would be wrapped to the western one.
    edge = 180 - 1e-9
    lon = ring[:, 0] - longitude
    lon = lon - 360 * np.round((lon.min() + lon.max()) / 720)
    pieces = []
    for turn in (-360, 0, 360):
        moved = np.stack([lon + turn, ring[:, 1]], axis=1)
        if moved[:, 0].max() > -edge and moved[:, 0].min() < edge:
            piece = _clip(moved, (-edge, edge, -np.inf, np.inf))
            pieces.append(piece + np.array([longitude, 0.0]))
    return pieces


def _clip(ring: Floats, frame: Frame) -> Floats:
    """A closed ring by a rectangle, edge after edge (Sutherland & Hodgman, CACM 1974)."""
    left, right, lower, upper = frame
    for axis, sign, limit in ((0, 1, left), (0, -1, right), (1, 1, lower), (1, -1, upper)):
        inside = sign * (ring[:, axis] - limit) >= 0
        if inside.all() or not len(ring):
            continue
        corners = []
        for a, b, a_in, b_in in zip(ring, ring[1:], inside, inside[1:], strict=False):
            if a_in:
                corners.append(a)
            if a_in != b_in:
                corners.append(a + (b - a) * (limit - a[axis]) / (b[axis] - a[axis]))
        ring = np.array([*corners, corners[0]]) if corners else np.empty((0, 2))
    return ring
