"""Classes in an order in which neighbours on the ground are neighbours."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.geography import distance_matrix_km, to_degrees, to_unit_vectors


def by_geography(distances_km: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """An order of C classes with short ways from each to the next: the leaves of their average-linkage tree, turned so that the sum of
    the distances between neighbours is least (Bar-Joseph et al., Bioinformatics 2001).

    Args:
        distances_km: (C, C) between the classes.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    classes = len(distances_km)
    if classes < 3:
        return np.arange(classes)
    # Of a symmetric matrix that rounding may have left not quite so.
    even = (distances_km + distances_km.T) / 2
    return np.asarray(
        leaves_list(linkage(even[np.triu_indices(classes, 1)], "average", optimal_ordering=True)),
        dtype=np.int64,
    )


def middles(
    labels: ArrayLike, latitude: ArrayLike, longitude: ArrayLike, classes: int
) -> NDArray[np.float64]:
    """The middle of each class (C, 2), latitude and longitude in degrees; NaN of one without places.

    Args:
        labels: (N,) classes in [0, C).
        latitude, longitude: (N,) degrees.
        classes: C.
    """
    sums = np.zeros((classes, 3))
    np.add.at(sums, np.asarray(labels), to_unit_vectors(latitude, longitude))
    points = np.stack(to_degrees(sums), axis=-1)
    points[np.linalg.norm(sums, axis=1) < 1e-12] = np.nan
    return points


def distances_between(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Great-circle distances (C, C) in km of points (C, 2); of those that are NaN, half way round the Earth from all others."""
    km = distance_matrix_km(np.nan_to_num(points))
    nowhere = np.isnan(points).any(axis=1)
    km[nowhere] = km[:, nowhere] = 20015.0
    np.fill_diagonal(km, 0.0)
    return km
