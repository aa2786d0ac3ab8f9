"""Logistic regression over fused embeddings, solved by L-BFGS: convex, so no seed and no step size to choose."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geo_embed.config import Training
from geo_embed.heads.heads import CELLED, CellHeads
from geo_embed.heads.layers import Drop, keep
from geo_embed.heads.region import Region
from geo_embed.optim import minimise
from geo_embed.registry import HEADS, Size

ROUNDS = 60
# Of the features' mean standard deviation.
_LEAST_STD = 1e-3


class StateHeads(CellHeads):
    """Base class of linear heads for the states, fitted at once; cells by P(cell | state).

    Attributes:
        in_state: (C, K) P(cell | state).
    """

    by_steps = False

    in_state: Tensor

    def add_layers(self, size: Size) -> None:
        self.states = nn.Linear(size.dim, size.classes)
        self.add_cells(size)
        self.register_buffer("in_state", torch.zeros(size.classes, size.cells))

    def settle(self, region: Region) -> None:
        super().settle(region)
        assert region.cells is not None
        self.in_state.copy_(region.cells.in_state)

    def with_cells(self, logits: Tensor, vector: Tensor) -> dict[str, Tensor]:
        """What `read` gives, of logits (B, C) and fused vectors (B, W)."""
        cells = (torch.softmax(logits, -1) @ self.in_state + 1e-9).log()
        return {"logits": logits, "vector": vector, "cells": cells}


@HEADS.register(
    "probe",
    settings=CELLED | {"model.head", "model.standardise", "model.unit_length", "training.l2"},
    # Solved in seconds, whatever the budget.
    flop=lambda size: 0,
)
class Probe(StateHeads):
    """One linear layer for the states.

    >>> from geo_embed.config import Model
    >>> heads = Probe(Size(dim=2, views=1, width=8, depth=1, classes=2, cells=3), Model())
    >>> views = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 20)[:, None]
    >>> present = torch.ones(40, 1, dtype=torch.bool)
    >>> heads.solve(views, present, torch.tensor([0, 1] * 20), torch.zeros(40, 3), Training())
    >>> heads(views[:2], present[:2])["logits"].argmax(dim=1).tolist()
    [0, 1]
    """

    middle: Tensor

    def add_layers(self, size: Size) -> None:
        super().add_layers(size)
        if self.model.unit_length:
            self.register_buffer("middle", torch.zeros(size.dim))

    def solve(
        self, views: Tensor, present: Tensor, labels: Tensor, points: Tensor, training: Training
    ) -> None:
        vectors = self.prepare(views, present)
        self.states.weight.data, self.states.bias.data = fit_probe(
            vectors, labels, self.size.classes, training.l2, alike=self.model.unit_length
        )

    def prepare(self, views: Tensor, present: Tensor) -> Tensor:
        """The vectors (N, W) to fit to, of all samples; and what stays of them: their mean."""
        vectors = self.fuse_all(views, present)
        if self.model.unit_length:
            self.middle.copy_(vectors.mean(dim=0))
        return self.shortened(vectors)

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        return self.with_cells(self.states(self.shortened(vector)), vector)

    def shortened(self, vector: Tensor) -> Tensor:
        """Fused vectors (B, W), centred and at length 1 where `model.unit_length` asks for it."""
        return F.normalize(vector - self.middle, dim=-1) if self.model.unit_length else vector


def fit_probe(
    x: Tensor, labels: Tensor, classes: int, l2: float, *, alike: bool = False
) -> tuple[Tensor, Tensor]:
    """`fit_linear` of the mean cross-entropy with labels (N,) of C classes."""
    return fit_linear(x, classes, lambda logits: F.cross_entropy(logits, labels), l2, alike=alike)


def fit_linear(
    x: Tensor, outputs: int, loss: Callable[[Tensor], Tensor], l2: float, *, alike: bool = False
) -> tuple[Tensor, Tensor]:
    """Minimise a convex loss of outputs x W + b, and l2/2 · |W|² over standardised features.

    Args:
        x: (N, D) float32.
        outputs: C.
        loss: of outputs (N, C), to a scalar.
        l2: of the penalty; it acts on the weights of standardised features.
        alike: divide all features by their mean standard deviation, not each by its own.

    Returns:
        Weights (C, D) and offsets (C,) for features as they came: the standardisation is folded in.
    """
    mean, std = x.mean(0), x.std(0, correction=0)
    # A feature that hardly varies here would shout wherever it does.
    std = std.clamp_min(float(std.mean()) * _LEAST_STD + 1e-12)
    std = std.mean().expand_as(std) if alike else std
    # Among many samples each copy of them counts.
    x = (x - mean).div_(std)

    def penalised(w: Tensor) -> Tensor:
        # The last row holds the offsets, which no penalty touches.
        return loss(torch.addmm(w[-1], x, w[:-1])) + 0.5 * l2 * w[:-1].square().sum()

    # With fewer samples than features the solution lies in the samples' span, where penalty and outputs are what they were.
    span = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None
    if span is not None:
        x = x @ span
    solved = minimise(penalised, x.new_zeros(x.shape[1] + 1, outputs), rounds=ROUNDS)
    weight, bias = solved[:-1] if span is None else span @ solved[:-1], solved[-1]
    folded = weight / std[:, None]
    return folded.T.contiguous(), bias - mean @ folded
