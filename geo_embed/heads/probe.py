"""Logistic regression over fused embeddings, solved by L-BFGS: convex, so no seed and no step size to choose."""

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 60
_HISTORY = 10
# Of the features' mean standard deviation.
_LEAST_STD = 1e-3


def fit_probe(x: Tensor, labels: Tensor, classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + l2/2 · |W|² over standardised features.

    Args:
        x: (N, D) float32.
        labels: (N,) classes.
        classes: C.
        l2: of the penalty; it acts on the weights of standardised features.

    Returns:
        Weights (C, D) and offsets (C,) for features as they came: the standardisation is folded in.
    """
    mean, std = x.mean(0), x.std(0, correction=0)
    # A feature that hardly varies here would shout wherever it does.
    std = std.clamp_min(float(std.mean()) * _LEAST_STD + 1e-12)
    x = (x - mean) / std
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=ROUNDS, history_size=_HISTORY, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, labels) + 0.5 * l2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    folded = weight.detach() / std[:, None]
    return folded.T.contiguous(), bias.detach() - mean @ folded
