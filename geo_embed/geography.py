"""Distances, centroids and soft labels on the sphere. Degrees in, kilometres out; NumPy throughout."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.errors import GeoError

EARTH_RADIUS_KM = 6371.0
# Beyond the outermost places, as a share of their box, and at least so much.
MARGIN = 0.05
LEAST_REACH_DEGREES = 0.1
# What float32 makes of an edge, rounded up: some 10 m.
SAME_DEGREES = 1e-4

Floats = NDArray[np.float64]


def haversine_km(lat1: ArrayLike, lon1: ArrayLike, lat2: ArrayLike, lon2: ArrayLike) -> Floats:
    """Great-circle distance in km between points given in degrees; the four arguments broadcast.

    2 R asin(sqrt(sin²(Δφ/2) + cos φ₁ cos φ₂ sin²(Δλ/2))), R = 6371 km (Sinnott, 1984).
    """
    phi1, lam1, phi2, lam2 = (np.radians(np.asarray(x, dtype=np.float64)) for x in (lat1, lon1, lat2, lon2))
    a = np.sin((phi2 - phi1) / 2) ** 2 + np.cos(phi1) * np.cos(phi2) * np.sin((lam2 - lam1) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(a, 0.0, 1.0))))


def to_unit_vectors(latitude: ArrayLike, longitude: ArrayLike) -> Floats:
    """Degrees (...,) to unit vectors (..., 3)."""
    phi, lam = (np.radians(np.asarray(x, dtype=np.float64)) for x in (latitude, longitude))
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def to_degrees(vectors: ArrayLike) -> tuple[Floats, Floats]:
    """Vectors (..., 3) of any length but 0 to latitude and longitude in degrees, longitude in [-180, 180]."""
    x, y, z = np.moveaxis(np.asarray(vectors, dtype=np.float64), -1, 0)
    return np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))


def bounding_box(latitude: ArrayLike, longitude: ArrayLike) -> tuple[float, float, float, float]:
    """The smallest box around places (N,), N > 0: south, north, west, east in degrees.

    West lies in [-180, 180]; east follows it eastwards and passes 180 where the box crosses the antimeridian.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.sort(np.asarray(longitude, dtype=np.float64))
    gaps = np.append(np.diff(lon), lon[0] + 360 - lon[-1])
    widest = int(gaps.argmax())
    west = float(lon[(widest + 1) % len(lon)])
    return float(lat.min()), float(lat.max()), west, west + 360 - float(gaps[widest])


def region_box(
    latitude: ArrayLike,
    longitude: ArrayLike,
    edges: tuple[float | None, float | None, float | None, float | None] = (None, None, None, None),
) -> tuple[float, float, float, float]:
    """The box of a region: south, north, west, east in degrees. It ends at the poles, is no wider than 360, and has its east
    beyond 180 where it crosses the antimeridian.

    Args:
        latitude, longitude: (N,) known places; their smallest box, widened by `MARGIN`, gives each edge that isn't given.
        edges: south, north, west, east; None for one that isn't given. West may lie east of the eastern one: across 180.

    Raises:
        GeoError: the southern edge doesn't lie below the northern one.
    """
    south, north, west, east = bounding_box(latitude, longitude)
    up, along = (
        max(MARGIN * (high - low), LEAST_REACH_DEGREES) for low, high in ((south, north), (west, east))
    )
    along = min(along, (360 - (east - west)) / 2)
    widened = (max(south - up, -90.0), min(north + up, 90.0), west - along, east + along)
    south, north, west, east = (
        derived if edge is None else edge for derived, edge in zip(widened, edges, strict=True)
    )
    if south >= north:
        raise GeoError(
            f"the region's southern edge {south:g} doesn't lie below its northern one {north:g}",
            where="model.gps_box",
            hint="give both lat_min and lat_max, or neither",
        )
    # An edge that is given and one that isn't can lie a turn apart; and a whole turn is a box, too.
    width = east - west if 0 < east - west <= 360 else (east - west) % 360 or 360.0
    return south, north, west, west + width


def in_box(
    box: tuple[float, float, float, float], latitude: ArrayLike, longitude: ArrayLike
) -> NDArray[np.bool_]:
    """Whether points (N,) lie in a box or within `SAME_DEGREES` of it, whichever way round their longitudes are written.

    Args:
        box: south, north, west, east in degrees, as `region_box` gives it.
        latitude, longitude: (N,) degrees; NaN lies nowhere.
    """
    south, north, west, east = box
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    eastwards = (lon - west + SAME_DEGREES) % 360
    inside = (lat >= south - SAME_DEGREES) & (lat <= north + SAME_DEGREES)
    return np.asarray(inside & (eastwards <= east - west + 2 * SAME_DEGREES))


def wrap_longitude(longitude: ArrayLike) -> Floats:
    """Degrees of any size to [-180, 180]; 180 only where rounding says so."""
    return np.asarray((np.asarray(longitude, dtype=np.float64) + 180) % 360 - 180)


def on_earth(latitude: ArrayLike, longitude: ArrayLike) -> tuple[Floats, Floats]:
    """Points (N,) of any numbers as points that there are: latitudes end at the poles, longitudes beyond ±180 go on from the
    other side. What lies within the bounds stays as it is, to the last bit.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    return np.clip(lat, -90.0, 90.0), np.where(np.abs(lon) <= 180, lon, wrap_longitude(lon))


def class_centroids(latitude: ArrayLike, longitude: ArrayLike, labels: ArrayLike, classes: int) -> Floats:
    """Mean position of each class, taken on the sphere so that ±180° is no seam.

    Args:
        latitude, longitude: (N,) degrees.
        labels: (N,) integers in [0, classes); every class occurs.
        classes: C.

    Returns:
        (C, 2) latitude and longitude in degrees.
    """
    labels = np.asarray(labels)
    sums = np.zeros((classes, 3))
    np.add.at(sums, labels, to_unit_vectors(latitude, longitude))
    return np.stack(to_degrees(sums), axis=-1)


def distance_matrix_km(points: Floats) -> Floats:
    """Pairwise great-circle distances (C, C) in km of points (C, 2) in degrees."""
    lat, lon = points[:, 0], points[:, 1]
    return haversine_km(lat[:, None], lon[:, None], lat[None, :], lon[None, :])


def soft_labels(distances_km: Floats, tau_km: float) -> Floats:
    """Haversine label smoothing between class centroids: row i is exp(−d(cᵢ, cⱼ)/τ), normalised to sum to 1.

    The centroid form of PIGEON's label smoothing (Haas et al., CVPR 2024, eq. 2, with the true class's centroid
    in the place of the sample).

    Args:
        distances_km: (C, C) distances between centroids.
        tau_km: temperature τ in km, > 0.
    """
    weights = np.exp(-distances_km / tau_km)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
