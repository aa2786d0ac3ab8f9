"""Every setting of the loss reaches its formula, and the gradient is finite whatever is chosen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from rows import CLASSES, region_of, rows_of, tiny
from torch import Tensor

from geo_embed import geography
from geo_embed.config import Training
from geo_embed.heads import losses
from geo_embed.heads.losses import NUMBERS, make_tables, objective
from geo_embed.registry import GPS_LOSSES
from geo_embed.sphere import soft_targets

ROWS = rows_of()
POINTS = ROWS.points.float()
FLAT, CELLS = region_of(ROWS, tiny()), region_of(ROWS, tiny(head="geocells"))
LATITUDE, LONGITUDE = geography.to_degrees(ROWS.points.numpy())
TRUTH = torch.stack([torch.from_numpy(LATITUDE), torch.from_numpy(LONGITUDE)], dim=1).float()


def head_outputs(*, cells: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(ROWS), CLASSES, generator=generator) * 3
    if not cells:
        return {"logits": logits, "points": TRUTH + torch.randn(len(ROWS), 2, generator=generator)}
    assert CELLS.cells is not None
    return {"logits": logits, "cells": torch.randn(len(ROWS), len(CELLS.cells.centres), generator=generator)}


def loss(out: Mapping[str, Tensor], spans: Tensor | None = None, **settings: object) -> Tensor:
    training = Training.model_validate(settings)
    region = CELLS if "cells" in out else FLAT
    return objective(
        out,
        ROWS.labels,
        POINTS,
        make_tables(
            region.centroids, region.counts, region.centres, training, torch.device("cpu"), spans=spans
        ),
        training,
    )


ALONE = {"state_weight": 1.0, "gps_weight": 0.0, "cell_weight": 0.0}


def test_the_plain_recipes_loss_is_eight_tenths_states_and_two_tenths_distance() -> None:
    out = head_outputs()
    targets = torch.from_numpy(
        geography.soft_labels(geography.distance_matrix_km(FLAT.centroids), 300.0)
    ).float()
    wanted = 0.8 * losses.soft_cross_entropy(out["logits"], targets[ROWS.labels])
    wanted += 0.2 * losses.gps_mse(out["points"], TRUTH)
    torch.testing.assert_close(loss(out), wanted)


@pytest.mark.parametrize("tau", [75.0, 300.0])
def test_haversine_labels_are_between_centres_and_pigeons_from_the_sample(tau: float) -> None:
    out = head_outputs()
    table = geography.soft_labels(geography.distance_matrix_km(FLAT.centroids), tau)
    wanted = losses.soft_cross_entropy(out["logits"], torch.from_numpy(table).float()[ROWS.labels])
    torch.testing.assert_close(loss(out, state_loss="haversine", tau_km=tau, **ALONE), wanted)
    km = torch.from_numpy(
        geography.haversine_km(
            LATITUDE[:, None], LONGITUDE[:, None], FLAT.centroids[:, 0], FLAT.centroids[:, 1]
        )
    )
    pigeon = losses.soft_cross_entropy(out["logits"], torch.softmax(-km / tau, 1).float())
    torch.testing.assert_close(loss(out, state_loss="pigeon", tau_km=tau, **ALONE), pigeon, rtol=2e-3, atol=0)
    assert float(pigeon) != pytest.approx(float(wanted), rel=0.01)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_hard_labels_are_the_ordinary_cross_entropy_smoothed_as_asked(smoothing: float) -> None:
    out = head_outputs()
    wanted = torch.nn.functional.cross_entropy(out["logits"], ROWS.labels, label_smoothing=smoothing)
    cost = loss(out, state_loss="cross_entropy", label_smoothing=smoothing, **ALONE)
    torch.testing.assert_close(cost, wanted)


def test_class_weights_weigh_each_state_by_the_inverse_of_its_samples() -> None:
    out = head_outputs()
    counts = torch.bincount(ROWS.labels, minlength=CLASSES).double()
    row_losses = torch.nn.functional.cross_entropy(out["logits"], ROWS.labels, reduction="none")
    weights = (len(ROWS) / (CLASSES * counts)).float()[ROWS.labels]
    assert float(weights.mean()) == pytest.approx(1)
    cost = loss(out, state_loss="cross_entropy", class_weights=True, **ALONE)
    torch.testing.assert_close(cost, (weights * row_losses).mean())


@pytest.mark.parametrize("name", ["mse", "mae", "smooth_l1", "haversine"])
def test_the_points_loss_is_the_named_one_in_degrees_of_the_true_place(name: str) -> None:
    out = head_outputs()
    cost = loss(out, gps_loss=name, state_weight=0.0, gps_weight=0.7)
    torch.testing.assert_close(cost, 0.7 * losses.gps_loss(name, out["points"], TRUTH))


@pytest.mark.parametrize(
    ("name", "wanted"),
    # Errors of 2 and 10 degrees in a box of 8 by 20: a quarter and a half. Then 4 and 5: a half and a quarter.
    [("mse", 5 / 32), ("mae", 3 / 8), ("smooth_l1", 5 / 64)],
)
def test_errors_of_the_point_are_shares_of_the_box_unless_degrees_are_asked_for(
    name: str, wanted: float
) -> None:
    box = torch.tensor([8.0, 20.0])
    off = torch.tensor([[2.0, -10.0], [-4.0, 5.0]]).repeat(len(ROWS) // 2, 1)
    out = {"logits": head_outputs()["logits"], "points": TRUTH + off}
    points_only = {"gps_loss": name, "state_weight": 0.0, "gps_weight": 3.0}
    assert float(loss(out, box, **points_only)) == pytest.approx(3 * wanted, rel=1e-4)
    in_degrees = {"mse": 145 / 4, "mae": 21 / 4, "smooth_l1": 21 / 4 - 1 / 2}[name]
    assert float(loss(out, box, gps_normalise=False, **points_only)) == pytest.approx(
        3 * in_degrees, rel=1e-4
    )


def test_a_box_across_180_degrees_scales_the_short_way_round() -> None:
    east, west = torch.tensor([[-17.0, 179.0]]), torch.tensor([[-18.0, -179.0]])
    # 1 of 4 degrees and 2 of 8.
    assert float(losses.gps_loss("mae", east, west, torch.tensor([4.0, 8.0]))) == 0.25


def test_great_circles_and_losses_that_ask_for_no_scale_stay_as_they_are() -> None:
    @GPS_LOSSES.register("largest_degrees")
    def largest(points: Tensor, truth: Tensor) -> Tensor:
        return (points - truth).abs().amax()

    try:
        out, box = head_outputs(), torch.tensor([8.0, 20.0])
        for name in ("haversine", "largest_degrees"):
            cost = loss(out, box, gps_loss=name, state_weight=0.0, gps_weight=1.0)
            torch.testing.assert_close(cost, loss(out, gps_loss=name, state_weight=0.0, gps_weight=1.0))
    finally:
        GPS_LOSSES.forget(__name__)


def test_cells_are_learnt_from_pigeons_labels_in_the_place_of_points() -> None:
    out = head_outputs(cells=True)
    assert CELLS.cells is not None
    near = soft_targets(POINTS, CELLS.cells.centres, 40.0)
    wanted = 0.6 * losses.soft_cross_entropy(out["cells"], near)
    cost = loss(out, state_weight=0.0, cell_weight=0.6, gps_weight=5.0, tau_km=40.0)
    torch.testing.assert_close(cost, wanted)


def test_the_expected_score_joins_with_its_weight() -> None:
    out = head_outputs()
    without = loss(out)
    wanted = without + 0.4 * losses.expected_score_loss(out["logits"], ROWS.labels)
    torch.testing.assert_close(loss(out, score_weight=0.4), wanted)
    assert float(wanted) > float(without)


def test_every_number_of_a_training_is_in_its_tables() -> None:
    training = Training(tau_km=41, label_smoothing=0.1, state_weight=2, cell_weight=3, score_weight=0.5)
    tables = make_tables(CELLS.centroids, CELLS.counts, CELLS.centres, training, torch.device("cpu"))
    for name in NUMBERS:
        assert float(tables[name]) == pytest.approx(getattr(training, name))


@pytest.mark.parametrize(
    ("state_loss", "gps_loss"),
    itertools.product(["haversine", "pigeon", "cross_entropy"], ["mse", "mae", "smooth_l1", "haversine"]),
)
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_gradients_are_finite_also_at_the_truth_and_far_from_it(
    state_loss: str, gps_loss: str, size: float
) -> None:
    out = {"logits": head_outputs()["logits"] * size, "points": TRUTH.clone()}
    out["points"][::2] += size
    leaves = [value.requires_grad_() for value in out.values()]
    value = loss(
        out,
        state_loss=state_loss,
        gps_loss=gps_loss,
        class_weights=True,
        score_weight=0.5,
        label_smoothing=0.1,
    )
    assert torch.isfinite(value)
    for gradient in torch.autograd.grad(value, leaves):
        assert torch.isfinite(gradient).all()


def test_gradients_of_cells_are_finite() -> None:
    out = {key: (value * 1e4).requires_grad_() for key, value in head_outputs(cells=True).items()}
    for gradient in torch.autograd.grad(loss(out, tau_km=0.1, score_weight=1.0), list(out.values())):
        assert torch.isfinite(gradient).all()
