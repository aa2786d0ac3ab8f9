"""Distances, centroids and soft labels on the sphere. Degrees in, kilometres out; NumPy throughout."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS_KM = 6371.0

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
