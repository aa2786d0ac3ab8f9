"""The cell probe minimises the losses of geocells, and lets states of few samples borrow from their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import CLASSES, region_of, rows_of, tiny

from geo_embed.config import Training
from geo_embed.fitting.train import train
from geo_embed.heads.cell_probe import CellProbe
from geo_embed.heads.losses import make_tables, objective
from geo_embed.heads.probe import fit_linear

ROWS = rows_of(120, noise=1.0)


@pytest.mark.parametrize("state_loss", ["haversine", "pigeon", "cross_entropy"])
def test_no_step_from_the_solution_lowers_the_penalised_loss(state_loss: str) -> None:
    model, training = tiny(head="cell-probe"), Training.model_validate({"state_loss": state_loss, "l2": 0.1})
    region = region_of(ROWS, model, CLASSES)
    heads = train(ROWS, region, model, training, seed=0).heads
    assert isinstance(heads, CellProbe)
    tables = make_tables(
        region.centroids, region.counts, region.centres, training, torch.device("cpu"), spans=region.spans
    )
    std = heads.fuse_all(ROWS.views, ROWS.present).std(0, correction=0)

    def loss() -> torch.Tensor:
        out = heads(ROWS.views, ROWS.present)
        weights = torch.cat([heads.states.weight, heads.cells.weight]) * std
        fit = objective(out, ROWS.labels, ROWS.points.float(), tables, training)
        return fit + 0.5 * training.l2 * weights.square().sum()

    with torch.no_grad():
        solved = float(loss())
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            for p in heads.parameters():
                step = 0.02 * p.abs().mean() * torch.randn(p.shape, generator=generator)
                p += step
                assert float(loss()) > solved - 1e-4
                p -= step


def test_with_fewer_samples_than_features_the_solution_is_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 20, generator=generator)
    labels = torch.arange(30) % 3

    def loss(outputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, labels)

    # Twenty features that are nought beside them: more features than samples, and nothing else to learn from.
    wide = torch.cat([x, torch.zeros(30, 20)], dim=1)
    for alike in (False, True):
        narrow_weight, narrow_bias = fit_linear(x, 3, loss, 0.05)
        if alike:
            scale = float(x.std(0, correction=0).mean())
            narrow_weight, narrow_bias = fit_linear(x / scale, 3, loss, 0.05, alike=True)
            weight, bias = fit_linear(torch.cat([x / scale, x / scale], dim=1), 3, loss, 0.1, alike=True)
            weight = weight[:, :20] + weight[:, 20:]
        else:
            weight, bias = fit_linear(wide, 3, loss, 0.05)
            assert not weight[:, 20:].any()
            weight = weight[:, :20]
        np.testing.assert_allclose(weight, narrow_weight, atol=2e-3)
        np.testing.assert_allclose(bias, narrow_bias, atol=2e-3)
