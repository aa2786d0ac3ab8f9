"""Two networks side by side: one for the state, one for the point."""

from torch import Tensor

from geo_embed.heads.heads import POINTED, TRAINED, PointHeads
from geo_embed.heads.layers import (
    ClassificationHead,
    Drop,
    GpsHead,
    classification_flop,
    gps_flop,
    keep,
)
from geo_embed.heads.region import denormalize
from geo_embed.registry import HEADS, Size


@HEADS.register(
    "separate",
    settings=TRAINED | POINTED | {"model.gps_hidden"},
    flop=lambda size: (
        classification_flop(size.dim, size.width, size.classes)
        + gps_flop(size.dim, size.width, size.gps_width)
    ),
)
class Separate(PointHeads):
    """A `ClassificationHead` and a `GpsHead` over the fused vector; the point lies in the region's box.

    >>> from geo_embed.config import Model
    >>> heads = Separate(Size(dim=6, views=4, width=8, depth=1, gps_width=5, classes=3), Model())
    >>> out = heads(torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool))
    >>> out["logits"].shape, out["points"].shape
    (torch.Size([2, 3]), torch.Size([2, 2]))
    """

    def add_layers(self, size: Size) -> None:
        self.states = ClassificationHead(size.dim, size.width, size.classes)
        self.gps = GpsHead(size.dim, size.width, size.gps_width)
        self.add_box()

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        logits = self.states(vector, drop)
        return {
            "logits": logits,
            "vector": vector,
            "points": denormalize(self.gps(vector, drop), self.middle, self.reach),
        }
