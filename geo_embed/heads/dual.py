"""State and point over one trunk."""

import torch
from torch import Tensor, nn

from geo_embed.heads.heads import POINTED, TRAINED, PointHeads
from geo_embed.heads.layers import Drop, Trunk, keep, trunk_flop
from geo_embed.heads.region import denormalize
from geo_embed.registry import HEADS, Size


@HEADS.register(
    "dual",
    settings=TRAINED | POINTED,
    flop=lambda size: (
        6 * size.width * (size.classes + 2)
        + (0 if size.deep else trunk_flop(size.dim, size.width, size.depth))
    ),
)
class Dual(PointHeads):
    """A shared `Trunk`, then one linear layer for the states and one for the point in the region's box.

    A fusion with hidden layers of its own takes the trunk's place.

    >>> from geo_embed.config import Model
    >>> heads = Dual(Size(dim=6, views=4, width=8, depth=2, classes=3), Model())
    >>> heads(torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool))["vector"].shape
    torch.Size([2, 8])
    """

    def add_layers(self, size: Size) -> None:
        self.trunk = nn.Identity() if size.deep else Trunk(size.dim, size.width, size.depth)
        self.states = nn.Linear(size.width, size.classes)
        self.gps = nn.Linear(size.width, 2)
        self.add_box()

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        vector = vector if self.fusion.deep else self.trunk(vector, drop)
        points = denormalize(torch.tanh(self.gps(vector)), self.middle, self.reach)
        return {"logits": self.states(vector), "vector": vector, "points": points}
