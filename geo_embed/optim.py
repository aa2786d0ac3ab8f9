"""Optimizers, and the learning rate.

`torch.optim`'s classes import torch's compiler when the first of them is made: two seconds, a third of a small fit. So heads are
trained through its functional AdamW, and convex problems are solved by SciPy.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geo_embed.config import Training
from geo_embed.threads import one_blas_thread

# Of AdamW, in every training.
BETAS = (0.9, 0.98)
_EPS = 1e-8
# Of L-BFGS: pairs of steps that curvature is taken from.
_HISTORY = 10


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: a line from 0 to 1 over the first share `warmup` of `steps`, then half a cosine to 0."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def ema_decay(decay: float, step: int) -> float:
    """The decay of an average of the weights at a step, counted from 0: small at first, so that the start is soon forgotten.

    As TensorFlow's ExponentialMovingAverage with `num_updates`: min(decay, (1 + step) / (10 + step)). After T steps below
    the bound, the start has a share of 9! T! / (T + 9)!: a tenth after one, 1e-5 after ten; without this, decay^T.
    """
    return min(decay, (1 + step) / (10 + step))


class AdamW:
    """`torch.optim.AdamW(…, fused=True)` for parameters on one device, to the bit; without its state dicts and hooks.

    Args:
        groups: of parameters, each with its `params` and `weight_decay`.
        lr: the rate of all of them; `param_groups` has one for each, which may be changed between steps.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float) -> None:
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self._moments = [
            ([torch.zeros_like(p) for p in group["params"]], [torch.zeros_like(p) for p in group["params"]])
            for group in groups
        ]
        self._steps = [
            [torch.zeros((), dtype=torch.float32, device=p.device) for p in group["params"]]
            for group in groups
        ]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        from torch.optim.adamw import adamw

        for group, (means, squares), steps in zip(self.param_groups, self._moments, self._steps, strict=True):
            moved = [i for i, p in enumerate(group["params"]) if p.grad is not None]
            adamw(
                [group["params"][i] for i in moved],
                [group["params"][i].grad for i in moved],
                [means[i] for i in moved],
                [squares[i] for i in moved],
                [],
                [steps[i] for i in moved],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=_EPS,
                maximize=False,
            )


def make_adamw(parameters: list[nn.Parameter] | list[Tensor], training: Training, axes: int = 1) -> AdamW:
    """AdamW that decays weight matrices only: what has more than `axes` axes."""
    return AdamW(
        [
            {"params": [p for p in parameters if p.ndim > axes], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim <= axes], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
    )


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, *, rounds: int) -> Tensor:
    """Where a smooth function is least, by L-BFGS (SciPy's L-BFGS-B without bounds).

    Args:
        loss: of a tensor like `start`, to a scalar on its device.
        start: where to begin.
        rounds: most iterations.
    """
    from scipy.optimize import minimize

    def loss_and_gradient(flat: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, Any]:
        x = torch.from_numpy(flat).to(start).view_as(start).requires_grad_()
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient.double().cpu().numpy().ravel()

    with one_blas_thread():
        least = minimize(
            loss_and_gradient,
            start.detach().double().cpu().numpy().ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": rounds, "maxcor": _HISTORY, "maxfun": 2 * rounds},
        )
    return torch.from_numpy(least.x).to(start).view_as(start)
