"""The members of `--preset best`: small networks and probes that give a sample log-probabilities over cells and states.

All of them share one set of cells, so that any of them can be averaged.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geo_embed.geocells import Cells, soft_targets
from geo_embed.schedule import warmup_cosine

# Rows that are turned to float32 at once.
_ROWS = 4096
_WARMUP = 0.1
_CLIP_NORM = 1.0
_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Rows:
    """Samples to learn from, on one device.

    Attributes:
        views: (N, V, D) float16 or float32.
        present: (N, V) bool.
        labels: (N,) classes.
        points: (N, 3) float64 unit vectors of the true places.
    """

    views: Tensor
    present: Tensor
    labels: Tensor
    points: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Rows":
        """Some of them."""
        return Rows(self.views[index], self.present[index], self.labels[index], self.points[index])


@dataclass(frozen=True)
class Member:
    """One candidate of the race.

    Attributes:
        name: for people.
        fusion: `gate` and `average` are networks, `probe` is linear over the mean of the views.
        width, depth: of the trunk.
        dropout: share of hidden units dropped.
        view_dropout: chance that a view is hidden in training.
        swap: chance that a view is taken from another training sample of the same cell: it tells the same place.
        tau_km: temperature of the soft labels over cells (km).
        state_weight: of the states' cross-entropy beside the cells'.
        epochs, batch, learning_rate, weight_decay: of AdamW.
        l2: of the probe: the penalty is l2/2 · |W|² beside the mean cross-entropy.
    """

    name: str
    fusion: Literal["gate", "average", "probe"] = "gate"
    width: int = 512
    depth: int = 2
    dropout: float = 0.2
    view_dropout: float = 0.0
    swap: float = 0.0
    tau_km: float = 40.0
    state_weight: float = 0.5
    epochs: int = 8
    batch: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    l2: float = 0.0


@dataclass(frozen=True)
class Answer:
    """Log-probabilities over cells (n, K), and over states by the state head (n, C)."""

    cells: Tensor
    states: Tensor


def fit_member(member: Member, rows: Rows, cells: Cells, classes: int, *, seed: int) -> nn.Module:
    """Train one member on all rows; the same seed gives the same weights on the same machine."""
    if member.fusion == "probe":
        return fit_probe(rows, cells, classes, member.l2)
    n, views, dim = rows.views.shape
    device = rows.views.device
    count = len(cells.centres)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = Pooled(member, dim, views, count, classes)
        model.scale, model.shift = scale_and_shift(rows)
        model.noise.manual_seed(seed + 2)
        model = model.to(device).train()
        batch = min(member.batch, n)
        parameters = list(model.parameters())
        solver = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": member.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=member.learning_rate,
            betas=_BETAS,
            fused=True,
        )
        by_cell = torch.argsort(cells.owner, stable=True)
        sizes = torch.bincount(cells.owner, minlength=count)
        starts = sizes.cumsum(0) - sizes
        points = rows.points.float()
        done, total = 0, member.epochs * math.ceil(n / batch)
        for _ in range(member.epochs):
            for drawn in torch.split(torch.randperm(n, generator=generator), batch):
                index = drawn.to(device)
                x, there = rows.views[index], rows.present[index]
                if member.swap:
                    cell = cells.owner[index]
                    pick = (torch.rand(len(index), generator=generator).to(device) * sizes[cell]).long()
                    other = by_cell[starts[cell] + pick]
                    swapped = torch.rand(there.shape, generator=generator).to(device) < member.swap
                    i, v = swapped.nonzero(as_tuple=True)
                    x[i, v] = rows.views[other[i], v]
                    there[i, v] = rows.present[other[i], v]
                if member.view_dropout:
                    kept = torch.rand(there.shape, generator=generator).to(device) >= member.view_dropout
                    there = there & kept
                cell_log, state_log = model(x, there)
                target = soft_targets(points[index], cells.centres, member.tau_km)
                loss = -torch.dot(target.view(-1), cell_log.view(-1)) / len(index)
                loss = loss + member.state_weight * F.nll_loss(state_log, rows.labels[index])
                solver.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, _CLIP_NORM, foreach=True)
                for group in solver.param_groups:
                    group["lr"] = member.learning_rate * warmup_cosine(done, total, _WARMUP)
                solver.step()
                done += 1
    return model.eval()


def answer(model: nn.Module, views: Tensor, present: Tensor) -> Answer:
    """A member's log-probabilities for (n, V, D) views and (n, V) which of them are there."""
    with torch.no_grad():
        parts = [
            model(x, p) for x, p in zip(torch.split(views, _ROWS), torch.split(present, _ROWS), strict=True)
        ]
    return Answer(torch.cat([cells for cells, _ in parts]), torch.cat([states for _, states in parts]))


def build_member(member: Member, dim: int, views: int, cells: int, classes: int) -> nn.Module:
    """A member whose weights are still to be loaded."""
    if member.fusion == "probe":
        return Probe(dim, cells, classes)
    return Pooled(member, dim, views, cells, classes)


class Pooled(nn.Module):
    """Views → trunk → one hidden vector → cells and states.

    With the gate, h = Σ_v σ(w·h_v + b) h_v. The heads are linear, so this is a gated sum of every view's evidence for
    every cell at the price of one view's head; unlike softmax attention the sum grows with the number of good views:
    more agreement, more certainty. A view that is absent counts nothing in either fusion.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, member: Member, dim: int, views: int, cells: int, classes: int) -> None:
        super().__init__()
        self.member, width = member, member.width
        self.noise = torch.Generator()
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("shift", torch.zeros(dim))
        self.inp = nn.Linear(dim, width)
        self.direction = nn.Parameter(torch.randn(views, width) * 0.02)
        self.trunk = nn.ModuleList(nn.Linear(width, width) for _ in range(member.depth - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(member.depth - 1))
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        self.cells = nn.Linear(width, cells)
        self.states = nn.Linear(width, classes)

    def forward(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(n, V, D) raw embeddings and (n, V) bool to log-probabilities (n, K) and (n, C)."""
        x = torch.addcmul(self.shift, views.float(), self.scale)
        there = present[..., None]
        average = self.member.fusion == "average"
        h = self.inp(_mean(x, present)) if average else self.inp(torch.where(there, x, 0)) + self.direction
        h = self._drop(F.gelu(h))
        for linear, norm in zip(self.trunk, self.norms, strict=True):
            h = h + self._drop(F.gelu(linear(norm(h))))
        if not average:
            h = (torch.sigmoid(self.gate(h)) * there * h).sum(1)
        return F.log_softmax(self.cells(h), -1), F.log_softmax(self.states(h), -1)

    def _drop(self, h: Tensor) -> Tensor:
        if not self.training or not self.member.dropout:
            return h
        if h.is_cuda:
            return F.dropout(h, self.member.dropout)
        return h * keep_mask(h.shape, self.member.dropout, self.noise)


class Probe(nn.Module):
    """Multinomial logistic regression over the mean of the views: states, and cells through P(cell | state)."""

    weight: Tensor
    bias: Tensor
    in_state: Tensor

    def __init__(self, dim: int, cells: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(dim, classes))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("in_state", torch.zeros(classes, cells))

    def forward(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(n, V, D) raw embeddings and (n, V) bool to log-probabilities (n, K) and (n, C)."""
        states = F.log_softmax(_mean(views.float(), present) @ self.weight + self.bias, -1)
        return (states.exp() @ self.in_state + 1e-9).log(), states


def fit_probe(rows: Rows, cells: Cells, classes: int, l2: float, *, rounds: int = 60) -> Probe:
    """Minimise mean cross-entropy + l2/2 · |W|² over standardised features, with L-BFGS from 0.

    Convex: no seed, and no step size to choose. The standardisation is folded into the weights.
    """
    x = torch.cat(
        [
            _mean(v.float(), p)
            for v, p in zip(torch.split(rows.views, _ROWS), torch.split(rows.present, _ROWS), strict=True)
        ]
    )
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / std
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=rounds, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, rows.labels) + 0.5 * l2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    probe = Probe(x.shape[1], len(cells.centres), classes)
    probe.weight = weight.detach() / std[:, None]
    probe.bias = bias.detach() - mean @ probe.weight
    probe.in_state = cells.in_state
    return probe.eval()


def scale_and_shift(rows: Rows) -> tuple[Tensor, Tensor]:
    """(D,) factors and offsets that give every feature mean 0 and variance 1 over the views that are there."""
    total = torch.zeros(rows.views.shape[2], dtype=torch.float64, device=rows.views.device)
    square, count = torch.zeros_like(total), 0
    for views, present in zip(torch.split(rows.views, _ROWS), torch.split(rows.present, _ROWS), strict=True):
        flat = views[present].float()
        total += flat.sum(0)
        square += flat.square().sum(0)
        count += len(flat)
    mean = total / count
    scale = (square / count - mean.square()).clamp_min(1e-12).rsqrt()
    return scale.float(), (-mean * scale).float()


def keep_mask(shape: torch.Size, dropout: float, generator: torch.Generator) -> Tensor:
    """A dropout mask, 0 or 1/keep, from random bytes: eight entries a draw, an eighth of `bernoulli_`'s time on a CPU.

    The rate is rounded to 1/256; the scale uses the rounded one, so that expectations are exact.
    """
    drop = round(dropout * 256)
    count = shape.numel()
    # All 64 bits: random_() alone draws [0, 2^63), which would halve the range of every eighth byte.
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return (words.view(torch.uint8)[:count].view(shape) >= drop).float().mul_(256 / (256 - drop))


def _mean(views: Tensor, present: Tensor) -> Tensor:
    """(n, V, D) to (n, D): the mean of the views that are there, 0 where there is none."""
    there = present[..., None]
    return torch.where(there, views, 0).sum(1) / there.sum(1).clamp_min(1)
