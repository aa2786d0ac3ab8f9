"""What the heads are trained to make small."""

import torch
from torch import Tensor


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against distributions over classes, averaged over the batch.

    Args:
        logits: (B, C).
        targets: (B, C), rows sum to 1; with haversine smoothing, rows of `geography.soft_labels`.
    """
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()


def gps_mse(points: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error in degrees² of points (B, 2) against true latitudes and longitudes (B, 2)."""
    return torch.nn.functional.mse_loss(points, truth)


def combined(
    logits: Tensor, points: Tensor, targets: Tensor, truth: Tensor, *, state_weight: float, gps_weight: float
) -> Tensor:
    """`state_weight` × soft cross-entropy + `gps_weight` × GPS loss."""
    return state_weight * soft_cross_entropy(logits, targets) + gps_weight * gps_mse(points, truth)
