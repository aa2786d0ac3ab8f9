"""Cells on the sphere: soft labels over them, and the point of least expected distance to them.

A state is too coarse a label for a place, and a regression in degrees too vague an answer: some hundred cells with
per-sample soft labels win back the distance score (PIGEON, Haas et al., CVPR 2024, sections 3.1 and 3.2).
"""

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geo_embed.config import CellKind

# Places closer than this, 6 mm, are one place.
_SAME_PLACE = 1e-9
# A quad leaf with less than this share of the limit joins a neighbour.
_SMALL_LEAF = 0.25
# Sizes of a state's Voronoi cells lie within this factor of their mean.
_EVEN = 2.0


@dataclass(frozen=True)
class Cells:
    """K cells over the training places.

    Attributes:
        centres: (K, 3) float32 unit vectors.
        owner: (N,) the cell of each training sample.
        to_state: (K, C) P(state | cell), rows sum to 1.
        in_state: (C, K) P(cell | state), rows sum to 1.
    """

    centres: Tensor
    owner: Tensor
    to_state: Tensor
    in_state: Tensor


def make_cells(
    points: NDArray[np.float64],
    labels: NDArray[np.int64],
    count: int,
    classes: int,
    *,
    seed: int,
    kind: CellKind = "kmeans",
) -> Cells:
    """Cells over training places.

    `kmeans` looks at places alone: at most `count` cells, each sample in the one with the nearest centre. The other two
    respect borders: each sample lies in a cell of its own state, so `to_state` is one-hot, and a centre across the border
    may be nearer. `quad` (see `quad_groups`) makes at most max(count, states) cells; `voronoi` (see `even_groups`) that
    many before their sizes are evened out, which may leave some more or fewer.

    Args:
        points: (N, 3) unit vectors.
        labels: (N,) classes in [0, classes).
        count: cells wanted; fewer come out where there are fewer distinct places.
        classes: C.
        seed: of the first centres of `kmeans` and `voronoi`; `quad` needs none.
        kind: how the country is cut.
    """
    if kind == "kmeans":
        centres = sphere_kmeans(points, count, seed=seed)
        owner = torch.from_numpy(nearest(points, centres))
    else:
        groups = (
            quad_groups(points, labels, count)
            if kind == "quad"
            else even_groups(points, labels, count, seed=seed)
        )
        centres = np.stack([_middle(points[group]) for group in groups])
        owner = torch.empty(len(points), dtype=torch.int64)
        for cell, group in enumerate(groups):
            owner[torch.from_numpy(group)] = cell
    return cell_tables(torch.from_numpy(centres).float(), owner, torch.from_numpy(labels), classes)


def cell_tables(centres: Tensor, owner: Tensor, labels: Tensor, classes: int) -> Cells:
    """Cells with their tables counted over some rows.

    A cell without rows gets the states' shares, a state without rows a uniform distribution.

    Args:
        centres: (K, 3).
        owner, labels: (n,) cells and classes of the rows.
        classes: C.
    """
    count = len(centres)
    joint = torch.bincount(owner * classes + labels, minlength=count * classes).view(count, classes).double()
    in_cell, in_state = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    to_state = torch.where(in_cell > 0, joint / in_cell.clamp_min(1), in_state / in_state.sum().clamp_min(1))
    to_cell = torch.where(in_state > 0, joint / in_state.clamp_min(1), 1 / count)
    return Cells(centres, owner, to_state.float(), to_cell.T.contiguous().float())


def sphere_kmeans(
    points: NDArray[np.float64], cells: int, *, seed: int, rounds: int = 12
) -> NDArray[np.float64]:
    """k-means on the sphere. points (N, 3) unit vectors → (K, 3) unit centres, K ≤ cells; no cell is empty.

    Lloyd's rounds over 3-D unit vectors, centres projected back (spherical k-means; Dhillon & Modha, 2001). Starts from
    distinct samples chosen with probability ∝ 1/√(local density), so that sparse country gets cells too.
    """
    import scipy.spatial

    unique = np.unique(points.round(9), axis=0)
    unique /= np.linalg.norm(unique, axis=1, keepdims=True)
    if len(unique) <= cells:
        return unique
    rng = np.random.default_rng(seed)
    near = min(8, len(unique) - 1)
    radius = scipy.spatial.cKDTree(unique).query(unique, k=near + 1)[0][:, -1]
    weight = np.maximum(radius, 1e-6) ** 0.5
    centres = unique[rng.choice(len(unique), size=cells, replace=False, p=weight / weight.sum())]
    for _ in range(rounds):
        owner = scipy.spatial.cKDTree(centres).query(points)[1]
        sums = np.zeros_like(centres)
        np.add.at(sums, owner, points)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        # Places that cancel have no middle: their centre stays.
        centres = np.where(length > _SAME_PLACE, sums / np.maximum(length, _SAME_PLACE), centres)
        centres = centres[np.bincount(owner, minlength=len(centres)) > 0]
    return centres


def quad_groups(
    points: NDArray[np.float64], labels: NDArray[np.int64], count: int
) -> list[NDArray[np.int64]]:
    """Rows of each cell of an adaptive quadtree in every state (as PlaNet's; Weyand et al., ECCV 2016).

    A state's places, on an equal-area plane around its middle, are cut in four squares until a leaf holds at most a
    limit of samples or one place alone. A leaf with less than a quarter of the limit joins the nearest leaf of its parent
    if both together keep to the limit, else of its grandparent, and so on; in the end that of its state, whatever comes
    of it. The limit is N/count, or the least multiple of it by a power of 1.15 that makes no more than
    max(count, states) cells.

    Args:
        points: (N, 3) unit vectors.
        labels: (N,) states.
        count: most cells, where there are no more states than that.
    """
    states = [np.flatnonzero(labels == state) for state in np.unique(labels)]
    planes = [_equal_area(points[rows]) for rows in states]
    limit = max(1.0, len(points) / count)
    while True:
        groups = []
        for rows, plane in zip(states, planes, strict=True):
            leaves = _quad_leaves(plane, np.arange(len(rows)), limit)
            leaves = _join_small(plane, leaves, limit, at_any_size=True)
            groups += [rows[leaf.members] for leaf in leaves]
        if len(groups) <= max(count, len(states)):
            return groups
        limit *= 1.15


class _Leaf(NamedTuple):
    """Rows of a plane (n,) and their mean (2,)."""

    members: NDArray[np.int64]
    middle: NDArray[np.float64]


def _quad_leaves(plane: NDArray[np.float64], members: NDArray[np.int64], limit: float) -> list[_Leaf]:
    xy = plane[members]
    low = xy.min(axis=0)
    # The square around the members alone: each cut parts at least two of them.
    side = (xy.max(axis=0) - low).max()
    if len(members) <= limit or side <= _SAME_PLACE:
        return [_Leaf(members, xy.mean(axis=0))]
    upper = xy >= low + side / 2
    quadrant = 2 * upper[:, 0] + upper[:, 1]
    leaves = [
        leaf
        for part in range(4)
        if (quadrant == part).any()
        for leaf in _quad_leaves(plane, members[quadrant == part], limit)
    ]
    return _join_small(plane, leaves, limit)


def _join_small(
    plane: NDArray[np.float64], leaves: list[_Leaf], limit: float, *, at_any_size: bool = False
) -> list[_Leaf]:
    # The smallest leaf below a quarter of the limit joins the nearest one. If both together were too large, it stays and is
    # looked at again one level up, where it has more neighbours; at the top, `at_any_size`, it joins whatever comes of it.
    stays: set[int] = set()
    while len(leaves) > 1:
        small = [
            i
            for i, leaf in enumerate(leaves)
            if len(leaf.members) < _SMALL_LEAF * limit and id(leaf) not in stays
        ]
        if not small:
            break
        smallest = leaves[min(small, key=lambda i: len(leaves[i].members))]
        rest = [leaf for leaf in leaves if leaf is not smallest]
        far = np.square(np.stack([leaf.middle for leaf in rest]) - smallest.middle).sum(axis=1)
        near = rest[int(far.argmin())]
        if not at_any_size and len(smallest.members) + len(near.members) > limit:
            stays.add(id(smallest))
            continue
        members = np.concatenate([near.members, smallest.members])
        leaves = [leaf for leaf in rest if leaf is not near]
        leaves.append(_Leaf(members, plane[members].mean(axis=0)))
    return leaves


def even_groups(
    points: NDArray[np.float64], labels: NDArray[np.int64], count: int, *, seed: int
) -> list[NDArray[np.int64]]:
    """Rows of each cell: k-means inside every state, then evened out.

    That a cell stays inside one administrative border is PIGEON's idea (Haas et al., CVPR 2024, section 3.1). Each state
    gets one cell, and each cell beyond that goes to the state with the most samples per cell, so that there are
    max(count, states) of them. Then a cell of more than twice its state's mean is halved, and one of less than half of it
    joins the nearest cell, until none is left. Only a cell whose places (nearly) coincide may stay larger.

    Args:
        points: (N, 3) unit vectors.
        labels: (N,) states.
        count: cells wanted.
        seed: of the first centres.
    """
    states = [np.flatnonzero(labels == state) for state in np.unique(labels)]
    wanted = [1] * len(states)
    queue = [(-float(len(rows)), state) for state, rows in enumerate(states)]
    heapq.heapify(queue)
    for _ in range(count - len(states)):
        state = queue[0][1]
        wanted[state] += 1
        heapq.heapreplace(queue, (-len(states[state]) / wanted[state], state))
    groups = []
    for rows, cells in zip(states, wanted, strict=True):
        groups += [rows[group] for group in _even_out(points[rows], cells, seed)]
    return groups


def _even_out(points: NDArray[np.float64], cells: int, seed: int) -> list[NDArray[np.int64]]:
    # A halving leaves no part below half of the mean and a joining takes one such cell away: this comes to an end.
    mean = len(points) / cells
    owner = nearest(points, sphere_kmeans(points, cells, seed=seed))
    queue = [np.flatnonzero(owner == cell) for cell in np.unique(owner)]
    finished: list[NDArray[np.int64]] = []
    while queue:
        group = queue.pop()
        halves = _halve(points, group, mean / _EVEN) if len(group) > _EVEN * mean else []
        if halves:
            queue += halves
            continue
        rest = finished + queue
        if len(group) >= mean / _EVEN or not rest:
            finished.append(group)
            continue
        middles = np.stack([_middle(points[other]) for other in rest])
        near = int((middles @ _middle(points[group])).argmax())
        (finished if near < len(finished) else queue).pop(
            near if near < len(finished) else near - len(finished)
        )
        queue.append(np.concatenate([rest[near], group]))
    return finished


def _halve(points: NDArray[np.float64], group: NDArray[np.int64], least: float) -> list[NDArray[np.int64]]:
    """Two halves across the longer axis, each of at least `least` rows and no place in both; else nothing."""
    plane = _equal_area(points[group])
    along = plane[:, plane.std(axis=0).argmax()]
    order = np.argsort(along, kind="stable")
    cuts = np.flatnonzero(np.diff(along[order]) > _SAME_PLACE) + 1
    if len(cuts) == 0:
        return []
    cut = int(cuts[np.abs(cuts - len(group) / 2).argmin()])
    return [group[order[:cut]], group[order[cut:]]] if min(cut, len(group) - cut) >= least else []


def _middle(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalised mean (3,) of unit vectors (n, 3); the first of them where they cancel."""
    total = points.sum(axis=0)
    length = np.linalg.norm(total)
    return np.asarray(total / length if length > _SAME_PLACE else points[0])


def _equal_area(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lambert's azimuthal equal-area plane (n, 2) around the points' own middle, in Earth radii: no seam at ±180°."""
    centre = _middle(points)
    east = np.array([-centre[1], centre[0], 0.0])
    length = np.linalg.norm(east)
    east = east / length if length > _SAME_PLACE else np.array([1.0, 0.0, 0.0])
    stretch = np.sqrt(2 / np.maximum(1 + points @ centre, 1e-12))
    return np.asarray(stretch[:, None] * (points @ np.stack([east, np.cross(centre, east)], axis=1)))


def nearest(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index (N,) of the nearest of `centres` (K, 3) to each of `points` (N, 3), unit vectors."""
    import scipy.spatial

    return np.asarray(scipy.spatial.cKDTree(centres).query(points)[1])
