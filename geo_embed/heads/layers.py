"""The hidden layers that fusions and heads share, and the dropout of all of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Dropout is handed in as a function of a hidden tensor: modules then keep no random state, so that one module can be run
# for many stacked sets of weights (torch.func), each with the masks that it would have drawn alone.
Drop = Callable[[Tensor], Tensor]
# A small last layer starts the classifier near the uniform distribution.
_LAST_LAYER_GAIN = 0.01


def keep(hidden: Tensor) -> Tensor:
    """The dropout of prediction: none."""
    return hidden


def dropping(rate: float, generator: torch.Generator) -> Drop:
    """The dropout of training, drawn from `generator`."""
    if not rate:
        return keep
    return lambda hidden: hidden * keep_mask(hidden.shape, rate, generator)


def keep_mask(shape: torch.Size, dropout: float, generator: torch.Generator) -> Tensor:
    """A dropout mask, 0 or 1/keep, from random bytes: eight entries a draw, an eighth of `bernoulli_`'s time on a CPU.

    The rate is rounded to 1/256; the scale uses the rounded one, so that expectations are exact.
    """
    drop = round(dropout * 256)
    count = shape.numel()
    # All 64 bits: random_() alone draws [0, 2^63), which would halve the range of every eighth byte.
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    mask = words.view(torch.uint8)[:count].view(shape).float()
    return mask.ge_(drop).mul_(256 / (256 - drop))


class Trunk(nn.Module):
    """D → width, then depth − 1 residual layers, each GELU and normalised first (pre-norm)."""

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth - 1))

    def forward(self, x: Tensor, drop: Drop = keep) -> Tensor:
        """(..., D) to (..., width)."""
        h = drop(F.gelu(self.first(x)))
        for linear, norm in zip(self.layers, self.norms, strict=True):
            h = h + drop(F.gelu(linear(norm(h))))
        return h


def trunk_flop(dim: int, width: int, depth: int) -> int:
    """What a `Trunk` costs per sample and training step: 2 FLOP per multiply-add, forward and the gradients of its weights
    and between its layers, none towards its input.
    """
    return 4 * dim * width + 6 * (depth - 1) * width**2


class ClassificationHead(nn.Module):
    """D → hidden → GELU → dropout → C logits."""

    def __init__(self, dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, classes)
        nn.init.xavier_uniform_(self.out.weight, gain=_LAST_LAYER_GAIN)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor, drop: Drop = keep) -> Tensor:
        """(B, D) to logits (B, C)."""
        logits: Tensor = self.out(drop(F.gelu(self.hidden(vectors))))
        return logits


class GpsHead(nn.Module):
    """D → hidden → GELU → dropout → second → GELU → dropout → 2 → tanh: a place in a box, its edges at ±1."""

    def __init__(self, dim: int, hidden: int, second: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.second = nn.Linear(hidden, second)
        self.out = nn.Linear(second, 2)

    def forward(self, vectors: Tensor, drop: Drop = keep) -> Tensor:
        """(B, D) to (B, 2) in (−1, 1)."""
        hidden = drop(F.gelu(self.hidden(vectors)))
        return torch.tanh(self.out(drop(F.gelu(self.second(hidden)))))


def classification_flop(dim: int, hidden: int, classes: int) -> int:
    """What a `ClassificationHead` costs, counted as in `trunk_flop`."""
    return 4 * dim * hidden + 6 * hidden * classes


def gps_flop(dim: int, hidden: int, second: int) -> int:
    """What a `GpsHead` costs, counted as in `trunk_flop`."""
    return 4 * dim * hidden + 6 * hidden * second + 6 * second * 2
