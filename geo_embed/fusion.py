"""How the views of a sample become one vector. Missing views are left out, never counted as zeros."""

import torch
from torch import Tensor


def fuse_average(views: Tensor, present: Tensor) -> Tensor:
    """Mean over the views that are there.

    Args:
        views: (B, V, D) floats; whatever stands where `present` is False is ignored.
        present: (B, V) bool, at least one True in each row.

    Returns:
        (B, D).
    """
    weights = present.to(views.dtype)[..., None]
    return torch.where(present[..., None], views, 0).sum(dim=1) / weights.sum(dim=1)
