"""State and cell over one trunk; the point is the cells' geometric median."""

from torch import Tensor, nn

from geo_embed.heads.heads import CELLED, TRAINED, CellHeads
from geo_embed.heads.layers import Drop, Trunk, keep, trunk_flop
from geo_embed.registry import HEADS, Size


@HEADS.register(
    "geocells",
    settings=TRAINED | CELLED | {"training.cell_weight", "training.view_swap"},
    flop=lambda size: (
        6 * size.width * (size.cells + size.classes)
        + (0 if size.deep else trunk_flop(size.dim, size.width, size.depth))
    ),
)
class Geocells(CellHeads):
    """A shared `Trunk`, then one linear layer for the states and one for the cells (PIGEON; Haas et al., CVPR 2024).

    A fusion with hidden layers of its own takes the trunk's place.

    >>> from geo_embed.config import Model
    >>> heads = Geocells(Size(dim=6, views=4, width=8, depth=2, classes=3, cells=20), Model())
    >>> out = heads(torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool))
    >>> out["logits"].shape, out["cells"].shape
    (torch.Size([2, 3]), torch.Size([2, 20]))
    """

    refinable = True

    def add_layers(self, size: Size) -> None:
        self.trunk = nn.Identity() if size.deep else Trunk(size.dim, size.width, size.depth)
        self.states = nn.Linear(size.width, size.classes)
        self.add_cells(size)
        self.cells = nn.Linear(size.width, size.cells)

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        vector = vector if self.fusion.deep else self.trunk(vector, drop)
        return {"logits": self.states(vector), "vector": vector, "cells": self.cells(vector)}
