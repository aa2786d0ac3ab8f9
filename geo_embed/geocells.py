"""Cells on the sphere: soft labels over them, and the point of least expected distance to them.

A state is too coarse a label for a place, and a regression in degrees too vague an answer: some hundred cells with
per-sample soft labels win back the distance score (PIGEON, Haas et al., CVPR 2024, sections 3.1 and 3.2).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geo_embed.geography import EARTH_RADIUS_KM

# A chord this short, 60 m, means that a point sits on a cell's centre.
_ON_CENTRE = 1e-5


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
    points: NDArray[np.float64], labels: NDArray[np.int64], count: int, classes: int, *, seed: int
) -> Cells:
    """At most `count` cells over training places.

    Args:
        points: (N, 3) unit vectors.
        labels: (N,) classes in [0, classes).
        count: K, or fewer where there are fewer distinct places.
        classes: C.
        seed: of the first centres.
    """
    centres = sphere_kmeans(points, count, seed=seed)
    owner = torch.from_numpy(nearest(points, centres))
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
        centres = sums[np.bincount(owner, minlength=len(centres)) > 0]
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return centres


def nearest(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index (N,) of the nearest of `centres` (K, 3) to each of `points` (N, 3), unit vectors."""
    import scipy.spatial

    return np.asarray(scipy.spatial.cKDTree(centres).query(points)[1])


def pairwise_km(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) km between unit vectors (n, 3) and (m, 3). |a − b|² = 2 − 2 a·b: one GEMM instead of n·m·3 differences.

    In float32 the cancellation leaves an error of some 2 km below 5 km: fine for labels with τ ≥ 25 km, not for metrics.
    """
    half_chord = ((1 - a @ b.T) / 2).clamp_(0, 1).sqrt_()
    return half_chord.asin_().mul_(2 * EARTH_RADIUS_KM)


def soft_targets(points: Tensor, centres: Tensor, tau_km: float) -> Tensor:
    """(n, K) PIGEON's haversine-smoothed labels exp(−(d(cᵢ, x) − d(c_true, x))/τ), normalised.

    (Haas et al., CVPR 2024, eq. 2.) d(c_true, x) is one number per sample, so normalising cancels it: softmax(−d/τ).
    """
    return torch.softmax(pairwise_km(points, centres) / -tau_km, dim=1)


def great_circle_km(a: Tensor, b: Tensor) -> Tensor:
    """Distances in km between unit vectors (..., 3) that broadcast: 2 R asin(|a − b| / 2), the haversine formula."""
    return 2 * EARTH_RADIUS_KM * torch.asin(((a - b).norm(dim=-1) / 2).clamp(max=1.0))


def geometric_median(probabilities: Tensor, centres: Tensor, *, top: int = 48, rounds: int = 30) -> Tensor:
    """(n, 3) unit vectors: the point of least expected great-circle distance to cells drawn from `probabilities`.

    Weiszfeld's iteration on the sphere, all samples at once, over each sample's `top` likeliest cells: y ← normalised
    Σ wᵢ/sin(dᵢ) cᵢ with d the angle to cell i. For small angles it is the plain Weiszfeld step; setting the gradient of
    Σ wᵢ dᵢ on the sphere to zero gives exactly these weights. Starts at the best of the mean and the eight
    likeliest cells and takes only steps that help, so it is never worse than the mode.
    """
    p, index = probabilities.double().topk(min(top, probabilities.shape[1]), dim=1)
    p = p / p.sum(dim=1, keepdim=True)
    c = centres.double()[index]  # (n, top, 3)
    start = (p[:, :, None] * c).sum(dim=1)
    y = start / start.norm(dim=1, keepdim=True).clamp_min(1e-12)
    candidates = c[:, : min(8, c.shape[1])]  # (n, 8, 3)
    best = torch.stack(
        [(p * great_circle_km(c, candidates[:, j : j + 1])).sum(1) for j in range(candidates.shape[1])], 1
    )
    here = (p * great_circle_km(c, y[:, None])).sum(1)
    seed = candidates[torch.arange(len(y)), best.argmin(1)]
    y = torch.where((best.min(1).values < here)[:, None], seed, y)
    cost = torch.minimum(best.min(1).values, here)
    for _ in range(rounds):
        cosine = (c * y[:, None]).sum(-1, keepdim=True)
        tangent = c - cosine * y[:, None]  # (n, top, 3), of length sin d
        sine = tangent.norm(dim=-1)
        on_cell = sine < _ON_CENTRE
        pull = torch.where(on_cell, 0.0, p / sine.clamp_min(1e-9))[:, :, None]
        step = (pull * c).sum(dim=1)
        step = step / step.norm(dim=1, keepdim=True).clamp_min(1e-12)
        # Vardi & Zhang, 2000: leave a cell only as far as the others' pull outweighs its own probability.
        stay = (p * on_cell).sum(1) / (pull * tangent).sum(1).norm(dim=1).clamp_min(1e-12)
        stay = stay.clamp(max=1.0)[:, None]
        step = (1 - stay) * step + stay * y
        step = step / step.norm(dim=1, keepdim=True).clamp_min(1e-12)
        step_cost = (p * great_circle_km(c, step[:, None])).sum(1)
        better = step_cost < cost
        y = torch.where(better[:, None], step, y)
        cost = torch.where(better, step_cost, cost)
        if not bool(better.any()):
            break
    return y
