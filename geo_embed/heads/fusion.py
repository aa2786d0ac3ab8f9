"""How the views of a sample become one vector. Missing views are left out, never counted as zeros.

Every fusion takes views (B, V, D) floats, `present` (B, V) bool with at least one True in each row, and a dropout, and gives
the vector (B, W) and what each view weighed in it (B, V), 0 for a view that is absent. Whatever stands where `present` is
False is ignored, NaN included.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geo_embed.config import Fusion
from geo_embed.heads.layers import Drop, Trunk, keep

_TRANSFORMER_LAYERS, _TRANSFORMER_HEADS = 2, 4


def build_fusion(name: Fusion, dim: int, views: int, width: int, depth: int) -> "FusionModule":
    """The fusion of this name for V views of D numbers; `width` and `depth` are those of its hidden layers, if any."""
    if name == "average":
        return Average(dim)
    if name == "concat":
        return Concat(dim, views)
    if name == "attention":
        return Attention(dim, width)
    if name == "weighted":
        return Weighted(dim, views)
    if name == "transformer":
        return ViewTransformer(dim, width)
    return Evidence(dim, width, depth)


class FusionModule(nn.Module):
    """What all fusions have in common.

    Attributes:
        out_dim: W, the width of the fused vector.
        deep: whether the views have passed through hidden layers by then, so that linear heads may follow.
        fixed: whether nothing in it is learnt, so that it may be done once for all epochs.
    """

    deep = False
    fixed = False

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim


class Average(FusionModule):
    """The mean of the views that are there."""

    fixed = True

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        weights = _shares(present, views.dtype)
        return fuse_average(views, present), weights


class Concat(FusionModule):
    """One linear map of all views side by side, V·D → D; an absent view adds nothing."""

    def __init__(self, dim: int, views: int) -> None:
        super().__init__(dim)
        self.map = nn.Linear(views * dim, dim)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        return self.map(_masked(views, present).flatten(1)), _shares(present, views.dtype)


class Attention(FusionModule):
    """Σ aᵥ xᵥ with a = softmax(w·tanh(U xᵥ)) over the views that are there (Ilse et al., ICML 2018, eq. 8)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim)
        self.key = nn.Linear(dim, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        x = _masked(views, present)
        score = self.score(torch.tanh(self.key(x)))[..., 0]
        weights = torch.softmax(score.masked_fill(~present, -torch.inf), dim=1)
        return (weights[..., None] * x).sum(dim=1), weights


class Weighted(FusionModule):
    """Σ aᵥ xᵥ with one learnt number per view: a = softmax(s) over the views that are there. Starts as the average."""

    def __init__(self, dim: int, views: int) -> None:
        super().__init__(dim)
        self.score = nn.Parameter(torch.zeros(views))

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(self.score.masked_fill(~present, -torch.inf), dim=1)
        return (weights[..., None] * _masked(views, present)).sum(dim=1), weights


class Evidence(FusionModule):
    """Every view passes through the trunk, then Σ σ(w·hᵥ + b) hᵥ over those that are there.

    With linear heads above, this is a gated sum of every view's evidence for every class at the price of one view's head.
    Unlike softmax attention the sum grows with the number of good views: more agreement, more certainty.
    """

    deep = True

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__(width)
        self.trunk = Trunk(dim, width, depth)
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        h = self.trunk(_masked(views, present), drop)
        gate = torch.sigmoid(self.gate(h))[..., 0] * present
        return (gate[..., None] * h).sum(dim=1), gate


class ViewTransformer(FusionModule):
    """Two pre-norm layers of self-attention over the view tokens (Vaswani et al., NeurIPS 2017), then their mean.

    Attention is written out: over a handful of tokens `nn.TransformerEncoder` takes several times as long on a CPU.
    """

    deep = True

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(width)
        self.heads = _TRANSFORMER_HEADS if width % _TRANSFORMER_HEADS == 0 else 1
        self.first = nn.Linear(dim, width)
        layers = range(_TRANSFORMER_LAYERS)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * _TRANSFORMER_LAYERS))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in layers)
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in layers)
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in layers)
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in layers)
        self.last = nn.LayerNorm(width)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        h = self.first(_masked(views, present))
        for i, (qkv, out, up, down) in enumerate(zip(self.qkv, self.out, self.up, self.down, strict=True)):
            h = h + drop(out(self._attend(qkv(self.norms[2 * i](h)), present)))
            h = h + drop(down(F.gelu(up(self.norms[2 * i + 1](h)))))
        return fuse_average(self.last(h), present), _shares(present, views.dtype)

    def _attend(self, qkv: Tensor, present: Tensor) -> Tensor:
        b, v, three = qkv.shape
        q, k, x = qkv.view(b, v, 3, self.heads, three // 3 // self.heads).permute(2, 0, 3, 1, 4)
        score = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        share = torch.softmax(score.masked_fill(~present[:, None, None, :], -torch.inf), dim=-1)
        attended: Tensor = (share @ x).transpose(1, 2).reshape(b, v, -1)
        return attended


def fuse_average(views: Tensor, present: Tensor) -> Tensor:
    """Mean (B, D) over the views (B, V, D) that are there."""
    return _masked(views, present).sum(dim=1) / present.to(views.dtype).sum(dim=1, keepdim=True)


def _masked(views: Tensor, present: Tensor) -> Tensor:
    return torch.where(present[..., None], views, 0)


def _shares(present: Tensor, dtype: torch.dtype) -> Tensor:
    there = present.to(dtype)
    return there / there.sum(dim=1, keepdim=True)
