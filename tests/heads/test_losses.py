"""Losses are their formulas, and their gradients are finite wherever a network may stand."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geo_embed import geography, metrics
from geo_embed.errors import GeoError
from geo_embed.heads import losses

GPS_LOSSES = ("mse", "mae", "smooth_l1", "haversine")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at)[0]


def test_cross_entropy_sums_over_classes_and_weighs_samples() -> None:
    logits, targets = random(4, 3), torch.softmax(random(4, 3, seed=1), dim=1)
    weights = torch.tensor([0.5, 2.0, 0.0, 1.5])
    total = plain = 0.0
    for row in range(4):
        normaliser = math.log(sum(math.exp(float(z)) for z in logits[row]))
        row_loss = -sum(float(targets[row, c]) * (float(logits[row, c]) - normaliser) for c in range(3))
        plain += row_loss / 4
        total += float(weights[row]) * row_loss / 4
    assert float(losses.soft_cross_entropy(logits, targets)) == pytest.approx(plain, rel=1e-5)
    assert float(losses.soft_cross_entropy(logits, targets, weights)) == pytest.approx(total, rel=1e-5)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    smoothed = losses.smoothed(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(smoothed, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    logits = random(2, 4)
    by_torch = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0]), label_smoothing=0.2)
    torch.testing.assert_close(losses.soft_cross_entropy(logits, smoothed), by_torch)


def test_class_weights_are_inverse_frequencies_of_mean_one_over_samples() -> None:
    counts = torch.tensor([6, 0, 3, 1])
    weights = losses.inverse_frequency(counts)
    assert weights.tolist() == pytest.approx([10 / 18, 0.0, 10 / 9, 10 / 3])
    labels = torch.repeat_interleave(torch.arange(4), counts)
    assert float(weights[labels].mean()) == pytest.approx(1.0)


def test_losses_in_degrees_take_the_short_way_round() -> None:
    points = torch.tensor([[10.0, 179.5], [-3.0, 20.0]])
    truth = torch.tensor([[10.25, -179.0], [0.0, 20.5]])
    # Errors: −0.25 and −1.5, −3 and −0.5 degrees.
    assert float(losses.gps_loss("mse", points, truth)) == pytest.approx((0.0625 + 2.25 + 9 + 0.25) / 4)
    assert float(losses.gps_loss("mae", points, truth)) == pytest.approx((0.25 + 1.5 + 3 + 0.5) / 4)
    smooth = (0.25**2 / 2 + 1.0 + 2.5 + 0.5**2 / 2) / 4
    assert float(losses.gps_loss("smooth_l1", points, truth)) == pytest.approx(smooth)


def test_the_haversine_loss_is_mean_km_over_5000() -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(np.stack([rng.uniform(-90, 90, 50), rng.uniform(-180, 180, 50)], axis=1))
    truth = points.flip(0)
    km = geography.haversine_km(*points.numpy().T, *truth.numpy().T)
    assert float(losses.gps_loss("haversine", points, truth)) == pytest.approx(km.mean() / 5000, rel=1e-9)


@pytest.mark.parametrize("name", GPS_LOSSES)
def test_gradients_of_the_point_agree_with_finite_differences(name: str) -> None:
    points = torch.tensor([[10.0, 179.5], [-3.0, 20.0], [60.0, -5.0]], dtype=torch.float64)
    truth = torch.tensor([[10.3, -179.1], [1.0, 20.4], [-20.0, 100.0]], dtype=torch.float64)
    points.requires_grad_(True)
    slopes = gradient(losses.gps_loss(name, points, truth), points)
    for place in itertools.product(range(3), range(2)):
        step = torch.zeros(3, 2, dtype=torch.float64)
        step[place] = 1e-5
        above, below = (losses.gps_loss(name, points.detach() + s, truth) for s in (step, -step))
        assert float(slopes[place]) == pytest.approx(float(above - below) / 2e-5, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GPS_LOSSES)
def test_gradients_are_finite_at_the_truth_at_its_antipode_and_at_the_poles(
    name: str, dtype: torch.dtype
) -> None:
    truth = torch.tensor([[12.0, 34.0], [0.0, 0.0], [90.0, 0.0], [0.0, 180.0], [90.0, 10.0]], dtype=dtype)
    near = truth.clone()
    near[:, 1] += 1e-5
    antipode = torch.stack([-truth[:, 0], truth[:, 1] + 180], dim=1)
    for place in (truth, near, antipode, antipode + 1e-5, antipode + 1e-7):
        points = place.clone().requires_grad_(True)
        loss = losses.gps_loss(name, points, truth)
        assert loss.dtype == dtype
        assert torch.isfinite(loss)
        slope = gradient(loss, points)
        assert torch.isfinite(slope).all()
        if name == "haversine":  # nowhere steeper than a degree's 111 km
            assert slope.norm(dim=1).max() * 5 <= 111.2 / 5000 * 1.01


def test_an_unknown_loss_of_the_point_is_refused_with_the_known_ones() -> None:
    with pytest.raises(GeoError, match="huber") as refused:
        losses.gps_loss("huber", torch.zeros(1, 2), torch.zeros(1, 2))
    assert "smooth_l1" in refused.value.hint


def test_the_score_loss_is_one_minus_the_credit_where_it_is_sharp() -> None:
    logits, labels = 3 * random(200, 9), torch.arange(200) % 9
    ranked = metrics.top_states(logits.numpy())
    credit = metrics.state_credit(ranked, labels.numpy()).mean()
    sharp = losses.expected_score_loss(logits, labels, temperature=1e-5)
    assert float(sharp) == pytest.approx(1 - credit, abs=1e-4)


def test_the_score_loss_is_the_credit_curve_at_a_smooth_rank() -> None:
    logits, labels = 2 * random(30, 8), torch.arange(30) % 8
    expected = []
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        rank = 1 + sum(1 / (1 + math.exp(-(z[j] - z[y]) / 0.7)) for j in range(8) if j != y)
        expected.append(1 - np.interp(rank, range(1, 7), [*metrics.RANK_CREDIT, 0.0]))
    loss = losses.expected_score_loss(logits, labels, temperature=0.7)
    assert float(loss) == pytest.approx(np.mean(expected), abs=1e-5)
    assert 0 <= float(loss) <= 1


def test_the_score_loss_falls_as_the_true_class_rises() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -2.0]], requires_grad=True)
    slope = gradient(losses.expected_score_loss(logits, torch.tensor([2])), logits)
    assert slope[0, 2] < 0
    assert (slope[0, [0, 1, 3, 4, 5]] >= 0).all()
    wide = (
        torch.full((1, 3), 1e4).masked_fill(torch.tensor([[True, False, False]]), -1e4).requires_grad_(True)
    )
    assert torch.isfinite(gradient(losses.expected_score_loss(wide, torch.tensor([0])), wide)).all()


def test_a_single_class_costs_nothing() -> None:
    assert float(losses.expected_score_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))) == 0.0


def test_losses_run_over_stacked_models() -> None:
    logits, labels = random(4, 6, 5), torch.arange(6) % 5
    stacked = torch.func.vmap(lambda z: losses.expected_score_loss(z, labels))(logits)
    torch.testing.assert_close(stacked, torch.stack([losses.expected_score_loss(z, labels) for z in logits]))
    points, truth = random(4, 6, 2), random(6, 2, seed=1)
    for name in GPS_LOSSES:
        stacked_gps = torch.func.vmap(lambda p, name=name: losses.gps_loss(name, p, truth))(points)
        torch.testing.assert_close(
            stacked_gps, torch.stack([losses.gps_loss(name, p, truth) for p in points])
        )
