"""The optimizer and its learning rate."""

import math

import torch
from torch import Tensor, nn

from geo_embed.config import Training

# Of AdamW, in every training.
BETAS = (0.9, 0.98)


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


def make_adamw(
    parameters: list[nn.Parameter] | list[Tensor], training: Training, axes: int = 1
) -> torch.optim.AdamW:
    """AdamW that decays weight matrices only: what has more than `axes` axes."""
    decayed = [p for p in parameters if p.ndim > axes]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim <= axes], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=BETAS,
        fused=True,
    )
