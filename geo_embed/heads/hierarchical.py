"""First the state, then a point near its centre."""

from torch import Tensor

from geo_embed.heads.heads import POINTED, TRAINED
from geo_embed.heads.layers import Drop, classification_flop, gps_flop, keep
from geo_embed.heads.region import Region, denormalize
from geo_embed.heads.separate import Separate
from geo_embed.registry import HEADS


@HEADS.register(
    "hierarchical",
    settings=TRAINED | POINTED | {"model.gps_hidden"},
    flop=lambda size: (
        classification_flop(size.dim, size.width, size.classes)
        + gps_flop(size.dim, size.width, size.gps_width)
    ),
)
class Hierarchical(Separate):
    """A `ClassificationHead`; the point is the likeliest state's centre, moved by a `GpsHead` whose box is as large as the
    widest state.

    >>> from geo_embed.config import Model
    >>> from geo_embed.registry import Size
    >>> heads = Hierarchical(Size(dim=6, views=4, width=8, depth=1, gps_width=5, classes=1), Model())
    >>> _ = heads.centroids.copy_(torch.tensor([[40.0, -100.0]]))
    >>> heads(torch.randn(1, 4, 6), torch.ones(1, 4, dtype=torch.bool))["points"].tolist()  # a state that has no extent
    [[40.0, -100.0]]
    """

    def settle(self, region: Region) -> None:
        super().settle(region)
        self.reach.copy_(region.state_reach)

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        logits = self.states(vector, drop)
        points = denormalize(self.gps(vector, drop), self.centroids[logits.argmax(-1)], self.reach)
        return {"logits": logits, "vector": vector, "points": points}
