"""Samples that lie close together: groups that are held out whole, and drawn whole where a score's spread is asked for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.config import Training
from geo_embed.geography import EARTH_RADIUS_KM, to_unit_vectors


def spatial_groups(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], km: float
) -> NDArray[np.int64]:
    """Samples that are linked by steps of at most `km`: the connected components of that graph.

    The graph itself would not fit into memory where a town has thousands of samples. So samples are put into cubes
    whose diagonal is one step: a cube is one node. Of two cubes the boxes around their samples mostly tell whether
    they are linked; where they don't, the nearest samples of both are looked for.

    Args:
        latitude, longitude: (N,) degrees.
        km: longest step (km), > 0.

    Returns:
        (N,) groups, numbered from 0 in the order of their first rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    points = to_unit_vectors(latitude, longitude)
    step = 2 * np.sin(min(km / EARTH_RADIUS_KM, np.pi) / 2)
    # A hair less than the cube of this diagonal, so that rounding can't part two samples of a cube.
    cubes, cube = np.unique(
        np.floor(points / (step / np.sqrt(3) * (1 - 1e-9))).astype(np.int64), axis=0, return_inverse=True
    )
    cube = cube.ravel()
    order = np.argsort(cube, kind="stable")
    size = np.bincount(cube)
    first = np.cumsum(size) - size
    low = np.minimum.reduceat(points[order], first)
    high = np.maximum.reduceat(points[order], first)

    # Two samples within a step lie at most two cubes apart along each axis.
    a, b = cKDTree(cubes).query_pairs(2.5, p=np.inf, output_type="ndarray").T
    gap = np.maximum(0, np.maximum(low[b] - high[a], low[a] - high[b]))
    span = np.maximum(high[a], high[b]) - np.minimum(low[a], low[b])
    near = np.linalg.norm(gap, axis=1) <= step
    sure = np.linalg.norm(span, axis=1) <= step

    def linked(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
        graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(cubes), len(cubes)))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    group = linked(a[sure], b[sure])
    doubtful = near & ~sure & (group[a] != group[b])
    left, right = a[doubtful], b[doubtful]
    touching = _touching(points[order], first, size, left, right, group, step)
    group = linked(np.append(a[sure], left[touching]), np.append(b[sure], right[touching]))[cube]
    _, rows, number = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(rows))[number.ravel()]


def resampling_groups(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], training: Training
) -> NDArray[np.int64] | None:
    """What a score's bootstrap draws: the groups (N,) of held-out samples if they were held out so, else None.

    Groups are held out whole, so those among the held-out samples alone are the groups of the split.
    """
    return (
        spatial_groups(latitude, longitude, training.group_km) if training.validation == "spatial" else None
    )


@dataclass(frozen=True)
class Groups:
    """Spatial groups in an order of their own: rows by id, groups by their first row.

    Attributes:
        order: (N,) rows, ascending by id.
        of_row, labels: (N,) group and class, in that order.
        sizes: (G,) samples.
        counts: (C,) samples per class.
        starts, classes, amounts: a group's classes and how many samples each has, one group after the other.
    """

    order: NDArray[np.int64]
    of_row: NDArray[np.int64]
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    classes: NDArray[np.int64]
    amounts: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        sample_id: NDArray[np.object_],
        labels: NDArray[np.int64],
        latitude: NDArray[np.float64],
        longitude: NDArray[np.float64],
        training: Training,
    ) -> "Groups":
        order = np.argsort(sample_id.astype(str), kind="stable")
        group = spatial_groups(latitude[order], longitude[order], training.group_km)
        own = labels[order]
        counts = np.bincount(own)
        pairs, amounts = np.unique(group * len(counts) + own, return_counts=True)
        sizes = np.bincount(group)
        starts = np.searchsorted(pairs // len(counts), np.arange(len(sizes) + 1))
        return cls(order, group, own, sizes, counts, starts, pairs % len(counts), amounts)

    def __len__(self) -> int:
        return len(self.sizes)

    def content(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        part = slice(self.starts[group], self.starts[group + 1])
        return self.classes[part], self.amounts[part]

    def rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value per group to a value per row, in the caller's order."""
        spread = np.empty(len(self.order), dtype=values.dtype)
        spread[self.order] = values[self.of_row]
        return spread

    def describe(self) -> str:
        n, g = len(self.order), len(self)
        return f"{n:,} samples form {g:,} group{'s' * (g != 1)}, the largest of {self.sizes.max():,}"


def smaller_step(latitude: NDArray[np.float64], longitude: NDArray[np.float64], km: float, most: int) -> str:
    """What to set `training.group_km` to so that no group has more than `most` samples; empty if nothing helps."""
    for halvings in range(1, 11):
        step = float(f"{km / 2**halvings:.1g}")
        largest = int(np.bincount(spatial_groups(latitude, longitude, step)).max())
        if largest <= most:
            return f"--set training.group_km={step:g} makes the largest group {largest:,}"
    return ""


def _touching(
    points: NDArray[np.float64],
    first: NDArray[np.int64],
    size: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    group: NDArray[np.int64],
    step: float,
) -> NDArray[np.bool_]:
    """Of pairs of cubes, those with two samples within a step; pairs that others have linked already may be left out.

    Args:
        points: (N, 3), cube after cube.
        first, size: (M,) each cube's rows.
        left, right: (P,) the pairs.
        group: (M,) what is linked so far.
    """
    from scipy.spatial import cKDTree

    trees: dict[int, Any] = {}
    leader = list(range(int(group.max()) + 1))

    def lead(one: int) -> int:
        while leader[one] != one:
            leader[one] = leader[leader[one]]
            one = leader[one]
        return one

    touching = np.zeros(len(left), dtype=bool)
    # The strict bound of a query, moved up so that a step of just that length counts.
    bound = np.nextafter(step, np.inf)
    for k, (a, b) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        one, other = lead(int(group[a])), lead(int(group[b]))
        if one == other:
            continue
        small, large = (a, b) if size[a] <= size[b] else (b, a)
        if large not in trees:
            trees[large] = cKDTree(points[first[large] : first[large] + size[large]])
        distance = trees[large].query(
            points[first[small] : first[small] + size[small]], distance_upper_bound=bound
        )[0]
        if np.isfinite(distance).any():
            touching[k] = True
            leader[one] = other
    return touching
