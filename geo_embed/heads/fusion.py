"""How the views of a sample become one vector. Missing views are left out, never counted as zeros.

A new fusion is a class here, or in a file named by `model.plugins`, with `@FUSIONS.register(name, settings=…, flop=…)`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geo_embed.heads.layers import Drop, Trunk, keep, trunk_flop
from geo_embed.registry import FUSIONS, Size

_TRANSFORMER_LAYERS, _TRANSFORMER_HEADS = 2, 4


def build_fusion(name: str, size: Size) -> "FusionModule":
    """A fusion, built-in or a plugin's; its parameters are drawn from torch's global generator.

    Raises:
        GeoError: there is none of this name.
    """
    fusion: FusionModule = FUSIONS[name].make(size)
    return fusion


class FusionModule(nn.Module):
    """Base class of all fusions: a module that is made from a `Size` and turns the views of a sample into one vector.

    Attributes:
        out_dim: W, the width of the fused vector.
        deep: whether the views have passed through hidden layers by then, so that linear heads may follow; W is then
            `size.width`.
        fixed: whether nothing in it is learnt, so that it may be done once for all epochs.
        alike: whether it treats views alike, so that it takes any number of them in any order.
    """

    deep = False
    fixed = False
    alike = False

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        """Fuse a batch.

        Args:
            views: (B, V, D) floats; whatever stands where `present` is False is ignored, NaN included.
            present: (B, V) bool, at least one True in each row.
            drop: the dropout of hidden tensors; `keep` in prediction.

        Returns:
            The vectors (B, W), and what each view weighed in them (B, V), 0 for a view that is absent.
        """
        raise NotImplementedError


@FUSIONS.register("average", flop=lambda size: 0)
class Average(FusionModule):
    """The mean of the views that are there.

    >>> fusion = Average(Size(dim=2, views=3, width=8, depth=1))
    >>> views = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> vector, weights = fusion(views, torch.tensor([[True, True, False]]))
    >>> vector.tolist(), weights.tolist()
    ([[2.0, 3.0]], [[0.5, 0.5, 0.0]])
    """

    fixed = True
    alike = True

    def __init__(self, size: Size) -> None:
        super().__init__(size.dim)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        return fuse_average(views, present), shares(present, views.dtype)


@FUSIONS.register("concat", flop=lambda size: size.views * 6 * size.dim**2)
class Concat(FusionModule):
    """One linear map of all views side by side, V·D → D; an absent view adds nothing.

    >>> fusion = Concat(Size(dim=2, views=3, width=8, depth=1))
    >>> vector, weights = fusion(torch.randn(5, 3, 2), torch.ones(5, 3, dtype=torch.bool))
    >>> vector.shape, tuple(fusion.map.weight.shape)
    (torch.Size([5, 2]), (2, 6))
    """

    def __init__(self, size: Size) -> None:
        super().__init__(size.dim)
        self.map = nn.Linear(size.views * size.dim, size.dim)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        return self.map(masked(views, present).flatten(1)), shares(present, views.dtype)


@FUSIONS.register(
    "attention",
    settings={"model.head_hidden"},
    flop=lambda size: size.views * 4 * size.dim * size.width,
)
class Attention(FusionModule):
    """Σ aᵥ xᵥ with a = softmax(w·tanh(U xᵥ)) over the views that are there (Ilse et al., ICML 2018, eq. 8).

    >>> fusion = Attention(Size(dim=2, views=3, width=8, depth=1))
    >>> vector, weights = fusion(torch.randn(5, 3, 2), torch.tensor([[True, True, False]] * 5))
    >>> bool((weights[:, 2] == 0).all()), weights.sum(dim=1).round(decimals=4).tolist()
    (True, [1.0, 1.0, 1.0, 1.0, 1.0])
    """

    alike = True

    def __init__(self, size: Size) -> None:
        super().__init__(size.dim)
        self.key = nn.Linear(size.dim, size.width)
        self.score = nn.Linear(size.width, 1, bias=False)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        x = masked(views, present)
        score = self.score(torch.tanh(self.key(x)))[..., 0]
        weights = torch.softmax(score.masked_fill(~present, -torch.inf), dim=1)
        return (weights[..., None] * x).sum(dim=1), weights


@FUSIONS.register("weighted", flop=lambda size: 0)
class Weighted(FusionModule):
    """Σ aᵥ xᵥ with one learnt number per view: a = softmax(s) over the views that are there. Starts as the average.

    >>> fusion = Weighted(Size(dim=2, views=4, width=8, depth=1))
    >>> fusion(torch.randn(1, 4, 2), torch.ones(1, 4, dtype=torch.bool))[1].tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def __init__(self, size: Size) -> None:
        super().__init__(size.dim)
        self.score = nn.Parameter(torch.zeros(size.views))

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(self.score.masked_fill(~present, -torch.inf), dim=1)
        return (weights[..., None] * masked(views, present)).sum(dim=1), weights


@FUSIONS.register(
    "evidence",
    settings={"model.head_hidden", "model.head_depth", "model.dropout"},
    flop=lambda size: size.views * trunk_flop(size.dim, size.width, size.depth),
)
class Evidence(FusionModule):
    """Every view passes through the trunk, then Σ σ(w·hᵥ + b) hᵥ over those that are there.

    With linear heads above, this is a gated sum of every view's evidence for every class at the price of one view's head.
    Unlike softmax attention the sum grows with the number of good views: more agreement, more certainty.

    >>> fusion = Evidence(Size(dim=2, views=3, width=8, depth=2))
    >>> vector, weights = fusion(torch.randn(5, 3, 2), torch.ones(5, 3, dtype=torch.bool))
    >>> vector.shape, bool(((weights > 0) & (weights < 1)).all())
    (torch.Size([5, 8]), True)
    """

    deep = True
    alike = True

    def __init__(self, size: Size) -> None:
        super().__init__(size.width)
        self.trunk = Trunk(size.dim, size.width, size.depth)
        self.gate = nn.Linear(size.width, 1)
        nn.init.zeros_(self.gate.weight)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        h = self.trunk(masked(views, present), drop)
        gate = torch.sigmoid(self.gate(h))[..., 0] * present
        return (gate[..., None] * h).sum(dim=1), gate


@FUSIONS.register(
    "transformer",
    settings={"model.head_hidden", "model.dropout"},
    # The first map, then queries, keys, values (3 W²), out (W²), up and down (2 W² each) in either layer.
    flop=lambda size: size.views * (4 * size.dim * size.width + 6 * 8 * _TRANSFORMER_LAYERS * size.width**2),
)
class ViewTransformer(FusionModule):
    """Two pre-norm layers of self-attention over the view tokens (Vaswani et al., NeurIPS 2017), then their mean.

    Attention is written out: over a handful of tokens `nn.TransformerEncoder` takes several times as long on a CPU.

    >>> fusion = ViewTransformer(Size(dim=2, views=3, width=8, depth=1))
    >>> vector, weights = fusion(torch.randn(5, 3, 2), torch.ones(5, 3, dtype=torch.bool))
    >>> vector.shape, fusion.heads
    (torch.Size([5, 8]), 4)
    """

    deep = True
    alike = True

    def __init__(self, size: Size) -> None:
        width = size.width
        super().__init__(width)
        self.heads = _TRANSFORMER_HEADS if width % _TRANSFORMER_HEADS == 0 else 1
        self.first = nn.Linear(size.dim, width)
        layers = range(_TRANSFORMER_LAYERS)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * _TRANSFORMER_LAYERS))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in layers)
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in layers)
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in layers)
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in layers)
        self.last = nn.LayerNorm(width)

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        h = self.first(masked(views, present))
        for i, (qkv, out, up, down) in enumerate(zip(self.qkv, self.out, self.up, self.down, strict=True)):
            h = h + drop(out(self._attend(qkv(self.norms[2 * i](h)), present)))
            h = h + drop(down(F.gelu(up(self.norms[2 * i + 1](h)))))
        return fuse_average(self.last(h), present), shares(present, views.dtype)

    def _attend(self, qkv: Tensor, present: Tensor) -> Tensor:
        b, v, three = qkv.shape
        q, k, x = qkv.view(b, v, 3, self.heads, three // 3 // self.heads).permute(2, 0, 3, 1, 4)
        score = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        # A view that is absent is attended by nobody.
        share = torch.softmax(score.masked_fill(~present[:, None, None, :], -torch.inf), dim=-1)
        attended: Tensor = (share @ x).transpose(1, 2).reshape(b, v, -1)
        return attended


def fuse_average(views: Tensor, present: Tensor) -> Tensor:
    """Mean (B, D) over the views (B, V, D) that are there."""
    return masked(views, present).sum(dim=1) / present.to(views.dtype).sum(dim=1, keepdim=True)


def masked(views: Tensor, present: Tensor) -> Tensor:
    """The views (B, V, D), 0 where one is absent."""
    return torch.where(present[..., None], views, 0)


def shares(present: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, V) the same weight for every view that is there, sum 1."""
    counted = present.to(dtype)
    return counted / counted.sum(dim=1, keepdim=True)
