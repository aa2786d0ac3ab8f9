"""Samples that lie close together: groups that are held out whole, and drawn whole where a score's spread is asked for."""

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
    from scipy.spatial import cKDTree

    # 1. Unit vectors, and the step as a chord: straight distances order as great circles do, also across a pole or 180°.
    points = to_unit_vectors(latitude, longitude)
    step = 2 * np.sin(min(km / EARTH_RADIUS_KM, np.pi) / 2)

    # 2. Samples into cubes: all within one are linked. A hair less than the cube of this diagonal, so that rounding can't
    # part two samples of a cube.
    cubes, cube = np.unique(
        np.floor(points / (step / np.sqrt(3) * (1 - 1e-9))).astype(np.int64), axis=0, return_inverse=True
    )
    cube = cube.ravel()
    order = np.argsort(cube, kind="stable")
    size = np.bincount(cube)
    first = np.cumsum(size) - size
    low = np.minimum.reduceat(points[order], first)
    high = np.maximum.reduceat(points[order], first)

    # 3. Pairs of cubes that could be linked: two samples within a step lie at most two cubes apart along each axis.
    a, b = cKDTree(cubes).query_pairs(2.5, p=np.inf, output_type="ndarray").T

    # 4. What the boxes around their samples tell: a gap of more than a step parts them, a span of no more links them.
    gap = np.maximum(0, np.maximum(low[b] - high[a], low[a] - high[b]))
    span = np.maximum(high[a], high[b]) - np.minimum(low[a], low[b])
    near = np.linalg.norm(gap, axis=1) <= step
    sure = np.linalg.norm(span, axis=1) <= step
    group = components(len(cubes), a[sure], b[sure])

    # 5. The rest is measured, but for pairs that others have linked already.
    doubtful = near & ~sure & (group[a] != group[b])
    left, right = a[doubtful], b[doubtful]
    touching = _touching(points[order], first, size, left, right, group, step)
    group = components(len(cubes), np.append(a[sure], left[touching]), np.append(b[sure], right[touching]))

    # 6. From cubes back to samples, numbered by the first row of each group.
    return number_by_first(group[cube])


def number_by_first(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same groups (N,), numbered from 0 in the order of their first rows."""
    _, rows, number = np.unique(group, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(rows))[number.ravel()])


def merge_groups(group: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is together in either grouping (N,) of the same samples, numbered by first rows."""
    nodes = int(group.max(initial=-1)) + 1
    linked = components(nodes + int(other.max(initial=-1)) + 1, group, nodes + other)
    return number_by_first(linked[group])


def resampling_groups(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], training: Training
) -> NDArray[np.int64] | None:
    """What a score's bootstrap draws: the groups (N,) of held-out samples if they were held out so, else None.

    Groups are held out whole, so those among the held-out samples alone are the groups of the split.
    """
    if training.validation == "random":
        return None
    return spatial_groups(latitude, longitude, training.group_km)


def components(nodes: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """The connected component (nodes,) of each node, under links left[k]–right[k]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


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
        step: longest chord between linked samples.
    """
    from scipy.spatial import cKDTree

    trees: dict[int, Any] = {}
    # A disjoint-set forest over the groups: leader[g] leads towards the root of the set that g has been merged into.
    leader = list(range(int(group.max(initial=-1)) + 1))

    def root_of(node: int) -> int:
        while leader[node] != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    touching = np.zeros(len(left), dtype=bool)
    # The strict bound of a query, moved up so that a step of just that length counts.
    bound = np.nextafter(step, np.inf)
    for k, (a, b) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        root, other_root = root_of(int(group[a])), root_of(int(group[b]))
        if root == other_root:
            continue
        # The smaller cube's samples ask the larger one's tree, which is built once.
        small, large = (a, b) if size[a] <= size[b] else (b, a)
        if large not in trees:
            trees[large] = cKDTree(points[first[large] : first[large] + size[large]])
        distance = trees[large].query(
            points[first[small] : first[small] + size[small]], distance_upper_bound=bound
        )[0]
        if np.isfinite(distance).any():
            touching[k] = True
            leader[root] = other_root
    return touching
