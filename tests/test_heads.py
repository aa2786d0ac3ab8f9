"""Heads, fusion and losses do what the recipe says, number by number."""

import math

import numpy as np
import pytest
import torch

from geo_embed.config import GpsBox, Model
from geo_embed.fusion import fuse_average
from geo_embed.heads import ClassificationHead, GpsHead, Heads
from geo_embed.losses import combined, gps_mse, soft_cross_entropy


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_both_heads_have_the_recipes_layers() -> None:
    heads = Heads(768, 33, Model())
    shapes = {name: tuple(value.shape) for name, value in heads.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "state.hidden.weight": (512, 768),
        "state.out.weight": (33, 512),
        "gps.hidden.weight": (512, 768),
        "gps.second.weight": (256, 512),
        "gps.out.weight": (2, 256),
    }
    logits, points = heads(torch.randn(5, 768))
    assert logits.shape == (5, 33)
    assert points.shape == (5, 2)


def test_widths_and_box_come_from_the_settings() -> None:
    model = Model(head_hidden=7, gps_hidden=3, gps_box=GpsBox(lat_min=-5, lat_max=5, lon_min=10, lon_max=20))
    heads = Heads(11, 4, model)
    assert heads.state.hidden.weight.shape == (7, 11)
    assert heads.gps.second.weight.shape == (3, 7)
    _, points = heads(torch.randn(200, 11) * 1e4)
    assert points[:, 0].abs().max() <= 5
    assert points[:, 1].min() >= 10
    assert points[:, 1].max() <= 20


def test_the_classification_head_is_linear_gelu_linear() -> None:
    head = ClassificationHead(6, 5, 3, dropout=0.5).eval()
    x = torch.randn(4, 6)
    inner = x @ head.hidden.weight.T + head.hidden.bias
    gelu = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(head(x), gelu @ head.out.weight.T + head.out.bias)


def test_dropout_works_in_training_and_only_there() -> None:
    head = ClassificationHead(6, 64, 3, dropout=0.5)
    x = torch.randn(4, 6)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))


def test_the_last_layer_is_xavier_with_a_gain_of_a_hundredth() -> None:
    out = Heads(768, 33, Model()).state.out
    bound = math.sqrt(6 / (512 + 33)) * 0.01
    assert out.weight.abs().max() <= bound
    assert out.weight.abs().max() > 0.95 * bound
    # Uniform on ±bound has a standard deviation of bound/√3.
    assert float(out.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert (out.bias == 0).all()


def test_a_fresh_classifier_is_nearly_undecided() -> None:
    heads = Heads(768, 33, Model()).eval()
    probabilities = torch.softmax(heads(torch.randn(50, 768))[0], dim=1)
    assert (probabilities - 1 / 33).abs().max() < 0.005


@pytest.mark.parametrize("size", [1.0, 1e3, 1e12])
def test_points_stay_inside_the_box_however_extreme_the_input(size: float) -> None:
    head = GpsHead(8, 16, 8, dropout=0.0, box=GpsBox()).eval()
    points = head(torch.randn(500, 8) * size).double()
    assert torch.isfinite(points).all()
    assert points[:, 0].min() >= 18
    assert points[:, 0].max() <= 72
    assert points[:, 1].min() >= -180
    assert points[:, 1].max() <= -65
    if size > 1:
        assert {18.0, 72.0} <= set(points[:, 0].tolist())
        assert {-180.0, -65.0} <= set(points[:, 1].tolist())


def test_tanh_of_nought_is_the_middle_of_the_box() -> None:
    head = GpsHead(8, 16, 8, dropout=0.0, box=GpsBox()).eval()
    torch.nn.init.zeros_(head.out.weight)
    head.out.bias.data = torch.tensor([0.0, math.atanh(0.5)])
    assert head(torch.randn(1, 8)).tolist() == [[45.0, pytest.approx(-122.5 + 57.5 / 2, abs=1e-4)]]


def test_fusion_is_the_mean_of_the_views_that_are_there() -> None:
    views = torch.randn(3, 4, 5)
    present = torch.tensor([[True] * 4, [True, False, True, False], [False, False, False, True]])
    fused = fuse_average(views, present)
    torch.testing.assert_close(fused[0], views[0].mean(dim=0))
    torch.testing.assert_close(fused[1], (views[1, 0] + views[1, 2]) / 2)
    torch.testing.assert_close(fused[2], views[2, 3])


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_whatever_stands_in_a_missing_view_does_not_matter(garbage: float) -> None:
    views = torch.randn(2, 4, 5)
    present = torch.tensor([[True, False, True, True], [False, True, True, False]])
    clean = fuse_average(views, present)
    views[~present] = garbage
    torch.testing.assert_close(fuse_average(views, present), clean, rtol=0, atol=0)


def test_soft_cross_entropy_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)) * 5
    targets = rng.dirichlet(np.ones(4), size=6)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = -(targets * log_p).sum(axis=1).mean()
    got = soft_cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets))
    assert float(got) == pytest.approx(wanted, rel=1e-12)


def test_hard_targets_give_the_ordinary_cross_entropy() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(
        soft_cross_entropy(logits, torch.eye(4, dtype=torch.float64)[labels]),
        torch.nn.functional.cross_entropy(logits, labels),
    )


def test_the_gps_loss_is_the_mean_squared_error_in_degrees() -> None:
    # (9 + 16 + 0 + 1) / 4
    points, truth = (
        torch.tensor([[40.0, -100.0], [30.0, -80.0]]),
        torch.tensor([[43.0, -104.0], [30.0, -81.0]]),
    )
    assert float(gps_mse(points, truth)) == 6.5


def test_the_loss_is_eight_tenths_states_and_two_tenths_distance() -> None:
    logits, points = torch.randn(5, 3), torch.randn(5, 2)
    targets, truth = torch.softmax(torch.randn(5, 3), dim=1), torch.randn(5, 2)
    weights = {"state_weight": 0.8, "gps_weight": 0.2}
    both = combined(logits, points, targets, truth, **weights)
    torch.testing.assert_close(both, 0.8 * soft_cross_entropy(logits, targets) + 0.2 * gps_mse(points, truth))
