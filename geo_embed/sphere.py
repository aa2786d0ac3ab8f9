"""Distances, soft labels and geometric medians on the sphere, of many rows at once: unit vectors in, kilometres out; torch throughout."""

import torch
from torch import Tensor

from geo_embed.geography import EARTH_RADIUS_KM, to_degrees

# A chord this short, 60 m, means that a point sits on a cell's centre.
_ON_CENTRE = 1e-5
# Rows whose geometric medians are sought at once, so that memory stays bounded.
_MEDIAN_ROWS = 8192
# Labels are at least e to this, relative to the largest: 1e-26.
_NO_LABEL = -60.0
# Expected distances that differ by less are the same.
_SAME_KM = 1e-6


def pairwise_km(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) km between unit vectors (n, 3) and (m, 3). |a − b|² = 2 − 2 a·b: one GEMM instead of n·m·3 differences.

    In float32 the cancellation leaves an error of some 2 km below 5 km: fine for labels with τ ≥ 25 km, not for metrics.
    """
    # In place where it can be: as many new tensors of this size would take longer than what is done to them.
    half = torch.full((), 0.5, dtype=a.dtype, device=a.device)
    half_chord = torch.addmm(half, a, b.T, alpha=-0.5).clamp(0, 1).sqrt_()
    return half_chord.asin_().mul_(2 * EARTH_RADIUS_KM)


def soft_targets(points: Tensor, centres: Tensor, tau_km: float | Tensor) -> Tensor:
    """(n, K) PIGEON's haversine-smoothed labels exp(−(d(cᵢ, x) − d(c_true, x))/τ), normalised.

    (Haas et al., CVPR 2024, eq. 2.) d(c_true, x) is one number per sample, so normalising cancels it: softmax(−d/τ).
    """
    km = pairwise_km(points, centres)
    closer = (km.amin(dim=1, keepdim=True) - km) / tau_km
    # Labels that add nothing to the sum would be subnormal numbers, with which a CPU takes several times as long, here and in the loss.
    return torch.softmax(closer.clamp_min(_NO_LABEL), dim=1)


def great_circle_km(a: Tensor, b: Tensor) -> Tensor:
    """Distances in km between unit vectors (..., 3) that broadcast: 2 R asin(|a − b| / 2), the haversine formula."""
    return 2 * EARTH_RADIUS_KM * torch.asin(((a - b).norm(dim=-1) / 2).clamp(max=1.0))


def geometric_median(probabilities: Tensor, centres: Tensor, *, top: int = 48, rounds: int = 30) -> Tensor:
    """(n, 3) unit vectors: the point of least expected great-circle distance to cells drawn from `probabilities`.

    Over each sample's `top` likeliest cells; see `geometric_median_of`.
    """
    p, index = probabilities.double().topk(min(top, probabilities.shape[1]), dim=1)
    return geometric_median_of(centres.double()[index], p, rounds=rounds)


def geometric_median_of(points: Tensor, weights: Tensor, *, rounds: int = 30) -> Tensor:
    """(n, 3) float64 unit vectors: for each row the point of least weighted great-circle distance to k points.

    Weiszfeld's iteration on the sphere, many rows at once: y ← normalised Σ wᵢ/sin(dᵢ) cᵢ with d the angle to point i. For
    small angles it is the plain Weiszfeld step; setting the gradient of Σ wᵢ dᵢ on the sphere to zero gives exactly these
    weights. Starts at the best of the mean and the eight heaviest points and takes only steps that help, so it is never
    worse than the heaviest.

    Args:
        points: (n, k, 3) unit vectors.
        weights: (n, k), not negative; no row is all zero.
        rounds: most steps.
    """
    if torch.compiler.is_compiling():
        # A graph has no rows to count: they pass through at once.
        return _weiszfeld(points.double(), weights.double(), rounds)
    parts = zip(torch.split(points, _MEDIAN_ROWS), torch.split(weights, _MEDIAN_ROWS), strict=True)
    return torch.cat([_weiszfeld(c.double(), w.double(), rounds) for c, w in parts])


def _weiszfeld(c: Tensor, weights: Tensor, rounds: int) -> Tensor:
    """`geometric_median_of` points c (n, k, 3) for few enough rows, in float64."""
    # f(y) = Σ pᵢ dᵢ(y) with dᵢ the angle between y and cᵢ. On the sphere −∇f(y) = Σ pᵢ tᵢ / sin dᵢ, where tᵢ = cᵢ − (cᵢ·y) y is
    # the part of cᵢ in the tangent plane at y, and |tᵢ| = sin dᵢ. It vanishes where Σ (pᵢ / sin dᵢ) cᵢ points along y: the
    # fixed point of y ← normalised Σ (pᵢ / sin dᵢ) cᵢ.
    #
    # 1. Start: the best of the weighted mean and the eight heaviest points. f isn't convex on the sphere.
    # 2. Step, all rows at once. At a point cᵢ = y the weight pᵢ / sin dᵢ has no value: it is left out, and y goes only part of
    #    the way, by Vardi & Zhang's rule.
    # 3. A row takes the step if f falls; when no row's does, all are done.
    p = weights / weights.sum(dim=1, keepdim=True)
    start = (p[:, :, None] * c).sum(dim=1)
    length = start.norm(dim=1, keepdim=True)
    y = start / length.clamp_min(1e-12)
    heaviest = p.topk(min(8, p.shape[1]), dim=1).indices
    candidates = c.gather(1, heaviest[:, :, None].expand(-1, -1, 3))  # (n, 8, 3)
    best = torch.stack(
        [(p * great_circle_km(c, candidates[:, j : j + 1])).sum(1) for j in range(candidates.shape[1])], 1
    )
    # Between two points of one weight every point is as good: take the middle, whatever rounding says, unless they are
    # antipodes and have none.
    mean_cost = (p * great_circle_km(c, y[:, None])).sum(1) - _SAME_KM
    mean_cost = torch.where(length[:, 0] > 1e-9, mean_cost, torch.inf)
    seed = candidates.gather(1, best.argmin(1)[:, None, None].expand(-1, 1, 3))[:, 0]
    y = torch.where((best.min(1).values < mean_cost)[:, None], seed, y)
    cost = torch.minimum(best.min(1).values, mean_cost)
    if torch.compiler.is_compiling():
        return _rounds_of_graph(c, p, y, cost, rounds)
    for _ in range(rounds):
        y, cost, moved = _step(c, p, y, cost)
        if not bool(moved):
            break
    return y


def _step(c: Tensor, p: Tensor, y: Tensor, cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step of Weiszfeld's from points y (n, 3) of these costs (n,): the new ones, and whether any row took it."""
    cosine = (c * y[:, None]).sum(-1, keepdim=True)
    tangent = c - cosine * y[:, None]  # (n, k, 3), of length sin d
    sine = tangent.norm(dim=-1)
    on_cell = sine < _ON_CENTRE
    pull = torch.where(on_cell, 0.0, p / sine.clamp_min(1e-9))[:, :, None]
    step = (pull * c).sum(dim=1)
    step = step / step.norm(dim=1, keepdim=True).clamp_min(1e-12)
    # Vardi & Zhang, 2000: leave a point only as far as the others' pull outweighs its own weight.
    stay = (p * on_cell).sum(1) / (pull * tangent).sum(1).norm(dim=1).clamp_min(1e-12)
    stay = stay.clamp(max=1.0)[:, None]
    step = (1 - stay) * step + stay * y
    step = step / step.norm(dim=1, keepdim=True).clamp_min(1e-12)
    step_cost = (p * great_circle_km(c, step[:, None])).sum(1)
    better = step_cost < cost
    return torch.where(better[:, None], step, y), torch.where(better, step_cost, cost), better.any()


def _rounds_of_graph(c: Tensor, p: Tensor, y: Tensor, cost: Tensor, rounds: int) -> Tensor:
    """The rounds of `_weiszfeld` as one loop of a graph: unrolled, they would be a thousand steps of it."""
    from torch._higher_order_ops.while_loop import while_loop

    def goes_on(left: Tensor, moved: Tensor, y: Tensor, cost: Tensor) -> Tensor:
        return moved & (left > 0)

    def round_of(left: Tensor, moved: Tensor, y: Tensor, cost: Tensor) -> tuple[Tensor, ...]:
        y, cost, moved = _step(c, p, y, cost)
        return left - 1, moved, y, cost

    start = (torch.tensor(rounds), torch.tensor(True), y, cost)
    points: Tensor = while_loop(goes_on, round_of, start)[2]  # type: ignore[no-untyped-call]
    return points


def unit_to_degrees(points: Tensor) -> Tensor:
    """Unit vectors (n, 3) to latitude and longitude (n, 2) float64 in degrees, on the CPU."""
    latitude, longitude = to_degrees(points.detach().cpu().numpy())
    return torch.stack([torch.from_numpy(latitude), torch.from_numpy(longitude)], dim=1)
