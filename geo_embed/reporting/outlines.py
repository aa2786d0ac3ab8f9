"""Outlines of classes for maps: states of the US and countries of the world as they are, anywhere else the hulls of the places."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.geography import EARTH_RADIUS_KM, bounding_box, to_degrees, to_unit_vectors
from geo_embed.reporting.areas import Area, Ring, continuous, countries, key_of, us_states

Region = Literal["us", "world", "hulls"]
Source = Literal["us-atlas", "world-atlas", "hull", "none"]
Floats = NDArray[np.float64]

CREDITS: Final[dict[Region, str]] = {
    "us": "state outlines: US Census Bureau, by us-atlas",
    "world": "country outlines: Natural Earth, by world-atlas",
    "hulls": "outlines: hulls of the training places; land: Natural Earth, by world-atlas",
}

# A class is the area of its name where so many of its places lie in it or so near: a coast has fewer corners here than it has.
_SHARE, _NEAR_KM = 0.5, 50.0
_LOOKED_AT = 500
# Around the places of a hull, as a share of the diagonal of the box of all, within these.
_HULL_REACH, _LEAST_REACH_KM, _MOST_REACH_KM = 0.012, 0.5, 60.0
_EDGE_KM = 100.0
_KM_PER_DEGREE = EARTH_RADIUS_KM * np.pi / 180


@dataclass(frozen=True)
class Outlines:
    """The outlines of C classes.

    Attributes:
        classes: their names.
        rings: for each its rings (K, 2) of longitude and latitude in degrees, closed, islands among them; what an odd number of them
            holds is inside. Longitudes beyond ±180 go on across the antimeridian. Empty for a class without place and name.
        sources: for each where its outline comes from.
        codes: for each the short code of its area (`CA`, `CH`), or "" where it has none.
        region: which atlas the classes are of.
        context: rings of areas around that are none of the classes.
    """

    classes: tuple[str, ...]
    rings: tuple[tuple[Ring, ...], ...]
    sources: tuple[Source, ...]
    codes: tuple[str, ...]
    region: Region
    context: tuple[Ring, ...]

    @property
    def credit(self) -> str:
        """Whom the outlines are owed to, in a line to print below a map."""
        return CREDITS[self.region]


def outlines(
    labels: ArrayLike, latitude: ArrayLike, longitude: ArrayLike, classes: Sequence[str]
) -> Outlines:
    """Outlines of classes by their names, where the places agree, else by their places.

    The classes are states of the US or countries where most are called so (name or code, in any case) and their places lie there: `GA`
    is Georgia in one data set and Gabon in another. A class that is none of them among others that are gets the hull of its places.

    Args:
        labels: (N,) integers in [0, C), the class of each training place.
        latitude, longitude: (N,) degrees; what isn't finite is left out.
        classes: C names.
    """
    label = np.asarray(labels, dtype=np.int64)
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    finite = np.isfinite(lat) & np.isfinite(lon)
    label, lat, lon = label[finite], lat[finite], lon[finite]

    us, world = (_areas_of(atlas, label, lat, lon, classes) for atlas in (us_states(), countries()))
    places_in_us, places_in_world = (_places_in(areas, label) for areas in (us, world))
    named, atlas, source, region = us, us_states(), "us-atlas", "us"
    if (places_in_world, sum(map(bool, world))) > (places_in_us, sum(map(bool, us))):
        named, atlas, source, region = world, countries(), "world-atlas", "world"
    if 2 * sum(map(bool, named)) < len(classes) or not any(named):
        named, atlas, source, region = [None] * len(classes), countries(), "none", "hulls"

    reach = (
        float(np.clip(_HULL_REACH * _diagonal_km(lat, lon), _LEAST_REACH_KM, _MOST_REACH_KM))
        if len(lat)
        else 0.0
    )
    rings: list[tuple[Ring, ...]] = []
    sources: list[Source] = []
    for k, area in enumerate(named):
        in_class = label == k
        rings.append(
            area.rings if area else (hull(lat[in_class], lon[in_class], reach),) if in_class.any() else ()
        )
        sources.append(source if area else "hull" if in_class.any() else "none")  # type: ignore[arg-type]
    taken = {id(area) for area in named if area}
    return Outlines(
        tuple(classes),
        tuple(rings),
        tuple(sources),
        tuple(area.code if area else "" for area in named),
        region,  # type: ignore[arg-type]
        tuple(ring for area in atlas if id(area) not in taken for ring in area.rings),
    )


def contains(rings: Sequence[Ring], latitude: ArrayLike, longitude: ArrayLike) -> NDArray[np.bool_]:
    """Whether points (N,) in degrees lie inside an outline: a ray to the east crosses its rings an odd number of times.

    Longitudes may be written either way round; NaN lies nowhere.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    inside = np.zeros(len(lat), dtype=bool)
    for ring in rings:
        (west, south), (east, north) = ring.min(axis=0), ring.max(axis=0)
        # The same meridian, as the ring writes it.
        wrapped = west + (lon - west) % 360
        rows = np.flatnonzero((lat >= south) & (lat <= north) & (wrapped <= east))
        (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
        for part in np.array_split(rows, 1 + rows.size * len(x0) // 4_000_000):
            y, x = lat[part, None], wrapped[part, None]
            crosses = (y0 > y) != (y1 > y)
            with np.errstate(divide="ignore", invalid="ignore"):
                crosses &= x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            inside[part] ^= crosses.sum(axis=1) % 2 == 1
    return inside


def class_at(drawn: Outlines, latitude: ArrayLike, longitude: ArrayLike) -> NDArray[np.int64]:
    """The class whose outline holds each of the points (N,), −1 where none does; hulls may overlap, then the first one."""
    lat = np.asarray(latitude, dtype=np.float64)
    labels = np.full(len(lat), -1, dtype=np.int64)
    for k, rings in enumerate(drawn.rings):
        labels[(labels < 0) & contains(rings, lat, longitude)] = k
    return labels


def km_outside(rings: Sequence[Ring], latitude: ArrayLike, longitude: ArrayLike) -> Floats:
    """How far points (N,) lie from an outline in km, 0 inside and infinite without one.

    Measured on the plane that touches the sphere at the point, with meridians as far apart as at its latitude: good where near.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    away = np.where(contains(rings, lat, lon), 0.0, np.inf)
    if not rings:
        return away
    starts, ends = (np.concatenate([ring[part] for ring in rings]) for part in (np.s_[:-1], np.s_[1:]))
    for i in np.flatnonzero(away):
        along = _KM_PER_DEGREE * np.array([np.cos(np.radians(lat[i])), 1.0])
        # Both ends on the same side of the antimeridian as the point.
        turn = 360 * np.round((lon[i] - starts[:, 0]) / 360)[:, None] * [1.0, 0.0]
        a, b = ((corner + turn - [lon[i], lat[i]]) * along for corner in (starts, ends))
        edge = b - a
        length = (edge**2).sum(axis=1)
        share = np.clip(-(a * edge).sum(axis=1) / np.where(length > 0, length, 1.0), 0.0, 1.0)
        away[i] = np.hypot(*(a + share[:, None] * edge).T).min()
    return away


def km_outside_own(
    drawn: Outlines, labels: NDArray[np.int64], latitude: ArrayLike, longitude: ArrayLike
) -> Floats:
    """`km_outside` of points (N,), each of the outline of its own class, labels (N,)."""
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    km = np.zeros(len(labels))
    for k in np.unique(labels):
        rows = labels == k
        km[rows] = km_outside(drawn.rings[k], lat[rows], lon[rows])
    return km


def hull(latitude: ArrayLike, longitude: ArrayLike, reach_km: float) -> Ring:
    """The convex hull of places (N,), N > 0, with `reach_km` > 0 around each of them.

    Taken on the plane of the azimuthal equidistant projection around the places' middle (Snyder 1987, p. 195), where no meridian is a
    seam and a pole is a point like others; edges are cut short enough to stay straight on any other map.
    """
    from scipy.spatial import ConvexHull

    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    middle = to_unit_vectors(lat, lon).mean(axis=0)
    if np.linalg.norm(middle) < 1e-9:
        middle = to_unit_vectors(lat[:1], lon[:1])[0]
    middle /= np.linalg.norm(middle)
    east = np.array([-middle[1], middle[0], 0.0])
    east = east / np.linalg.norm(east) if np.linalg.norm(east) > 1e-9 else np.array([0.0, 1.0, 0.0])
    frame = np.stack([east, np.cross(middle, east), middle])

    x, y, z = frame @ to_unit_vectors(lat, lon).T
    across = np.hypot(x, y)
    km = EARTH_RADIUS_KM * np.arctan2(across, z)
    plane = np.stack([x, y], axis=1) * (km / np.where(across > 0, across, 1.0))[:, None]
    turns = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    around = reach_km * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    points = (plane[:, None] + around).reshape(-1, 2)
    corners = points[ConvexHull(points).vertices]

    closed = np.concatenate([corners, corners[:1]])
    steps = np.maximum(np.hypot(*np.diff(closed, axis=0).T) // _EDGE_KM, 0).astype(int) + 1
    ring = np.concatenate(
        [a + (b - a) * np.arange(n)[:, None] / n for a, b, n in zip(closed, closed[1:], steps, strict=False)]
    )
    ring = np.concatenate([ring, ring[:1]])
    angle = np.hypot(*ring.T) / EARTH_RADIUS_KM
    side = ring * (np.sin(angle) / np.where(angle > 0, angle * EARTH_RADIUS_KM, 1.0))[:, None]
    ring_lat, ring_lon = to_degrees(np.column_stack([side, np.cos(angle)]) @ frame)
    return continuous(np.stack([ring_lon, ring_lat], axis=1))


def _areas_of(
    atlas: tuple[Area, ...], label: NDArray[np.int64], lat: Floats, lon: Floats, classes: Sequence[str]
) -> list[Area | None]:
    """For each class the area that it is called after, if its places lie there."""
    by_key = {key: area for area in reversed(atlas) for key in area.keys}
    areas: list[Area | None] = []
    for k, name in enumerate(classes):
        area = by_key.get(key_of(name))
        rows = np.flatnonzero(label == k)
        # Evenly spread ones of many: enough to see a country.
        rows = rows[np.linspace(0, len(rows) - 1, _LOOKED_AT).astype(int)] if len(rows) > _LOOKED_AT else rows
        if area and len(rows) and (km_outside(area.rings, lat[rows], lon[rows]) < _NEAR_KM).mean() < _SHARE:
            area = None
        areas.append(area)
    return areas


def _places_in(areas: list[Area | None], label: NDArray[np.int64]) -> int:
    """How many places are of a class that has an area."""
    known = np.array([area is not None for area in areas], dtype=bool)
    return int(known[label].sum()) if len(label) else 0


def _diagonal_km(lat: Floats, lon: Floats) -> float:
    """How far across the box of all places is."""
    south, north, west, east = bounding_box(lat, lon)
    middle = np.cos(np.radians((south + north) / 2))
    return float(_KM_PER_DEGREE * np.hypot(north - south, (east - west) * middle))
