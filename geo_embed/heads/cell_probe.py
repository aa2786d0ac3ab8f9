"""States and cells by linear layers on soft labels, solved by L-BFGS: no seed and no step size to choose.

Soft labels let states and cells of few samples borrow from those near by, which logistic regression on hard ones can't.
"""

import torch
from torch import Tensor, nn

from geo_embed.config import Training
from geo_embed.heads.heads import CELLED
from geo_embed.heads.layers import Drop, keep
from geo_embed.heads.losses import make_tables, objective
from geo_embed.heads.probe import Probe, fit_linear
from geo_embed.registry import HEADS, Size


@HEADS.register(
    "cell-probe",
    settings=CELLED
    | {"model.head", "model.standardise", "model.unit_length", "training.l2"}
    | {"training.state_loss", "training.tau_km", "training.label_smoothing", "training.class_weights"}
    | {"training.state_weight", "training.cell_weight", "training.score_weight"},
    # Solved in seconds, whatever the budget.
    flop=lambda size: 0,
)
class CellProbe(Probe):
    """One linear layer for the states and one for the cells: geocells and its losses, without hidden layers.

    >>> from geo_embed.config import Model
    >>> heads = CellProbe(Size(dim=2, views=1, width=8, depth=1, classes=2, cells=3), Model())
    >>> views = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 20)[:, None]
    >>> present = torch.ones(40, 1, dtype=torch.bool)
    >>> heads.solve(views, present, torch.tensor([0, 1] * 20), torch.zeros(40, 3), Training(state_loss="cross_entropy"))
    >>> heads(views[:2], present[:2])["logits"].argmax(dim=1).tolist()
    [0, 1]
    """

    def add_layers(self, size: Size) -> None:
        super().add_layers(size)
        self.cells = nn.Linear(size.dim, size.cells)

    def solve(
        self, views: Tensor, present: Tensor, labels: Tensor, points: Tensor, training: Training
    ) -> None:
        classes, cells = self.size.classes, self.size.cells
        counts = torch.bincount(labels, minlength=classes).cpu().numpy()
        centroids = self.centroids.double().cpu().numpy()
        tables = make_tables(centroids, counts, self.centres, training, labels.device)

        def loss(outputs: Tensor) -> Tensor:
            out = {"logits": outputs[:, :classes], "cells": outputs[:, classes:]}
            return objective(out, labels, points, tables, training)

        weight, bias = fit_linear(
            self.prepare(views, present), classes + cells, loss, training.l2, alike=self.model.unit_length
        )
        for layer, rows in ((self.states, slice(classes)), (self.cells, slice(classes, None))):
            layer.weight.data, layer.bias.data = weight[rows].contiguous(), bias[rows].contiguous()

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        x = self.shortened(vector)
        return {"logits": self.states(x), "vector": vector, "cells": self.cells(x)}
