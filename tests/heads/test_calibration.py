"""Calibration finds what was planted, and tells its worth from rows that it hasn't seen."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from geo_embed import metrics
from geo_embed.errors import GeoError
from geo_embed.heads import calibration
from geo_embed.heads.calibration import Calibration


def planted(
    n: int = 3000,
    classes: int = 4,
    *,
    scale: Tensor | float = 1.0,
    offset: Tensor | float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities z and labels drawn from softmax(scale ∘ z + offset)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.log_softmax(2.5 * torch.randn(n, classes, generator=generator), dim=1)
    labels = torch.multinomial(torch.softmax(z * scale + offset, dim=1), 1, generator=generator)[:, 0]
    return z, labels


def nll(log_probabilities: Tensor, labels: Tensor) -> float:
    return float(-log_probabilities[torch.arange(len(labels)), labels].mean())


def test_the_planted_temperature_is_found() -> None:
    z, labels = planted(scale=1 / 2.0)
    temperature = calibration.fit_temperature(z, labels)
    assert temperature == pytest.approx(2.0, rel=0.1)
    grid = np.exp(np.linspace(np.log(0.3), np.log(5), 400))
    costs = [nll(torch.log_softmax(z / float(t), dim=1), labels) for t in grid]
    assert nll(torch.log_softmax(z / temperature, dim=1), labels) <= min(costs) + 1e-5
    assert temperature == pytest.approx(grid[int(np.argmin(costs))], rel=0.02)


def test_temperatures_stay_in_their_range() -> None:
    z, labels = planted(scale=0.0)
    assert calibration.fit_temperature(z, labels) == pytest.approx(5.0, rel=0.01)
    assert calibration.fit_temperature(z, z.argmax(dim=1)) == pytest.approx(0.3, rel=0.01)


def test_vector_scaling_finds_planted_factors_and_offsets() -> None:
    scale, offset = torch.tensor([0.5, 0.8, 1.2, 1.0]), torch.tensor([-1.0, 0.0, 0.5, 0.5])
    z, labels = planted(8000, scale=scale, offset=offset)
    fitted = calibration.fit_calibration(z, labels, "vector")
    torch.testing.assert_close(torch.tensor(fitted.scale), scale, atol=0.12, rtol=0)
    # One constant on all offsets changes no probability.
    shift = torch.tensor(fitted.offset) - offset
    torch.testing.assert_close(shift - shift.mean(), torch.zeros(4), atol=0.2, rtol=0)


def test_vector_scaling_minimises_its_own_objective() -> None:
    z, labels = planted(300, scale=0.6)
    fitted = calibration.fit_calibration(z, labels, "vector")

    def cost(scale: np.ndarray, offset: np.ndarray) -> float:
        calibrated = torch.log_softmax(z.double() * torch.from_numpy(scale) + torch.from_numpy(offset), dim=1)
        return nll(calibrated, labels) + float(((scale - 1) ** 2).sum() + (offset**2).sum()) / (2 * 300)

    scale, offset = np.array(fitted.scale), np.array(fitted.offset)
    least = cost(scale, offset)
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert least < cost(scale + rng.normal(0, 0.02, 4), offset + rng.normal(0, 0.02, 4))


def test_a_class_that_no_row_has_keeps_its_factor_and_offset() -> None:
    z, labels = planted(500, scale=0.5)
    kept = labels != 2
    fitted = calibration.fit_calibration(z[kept], labels[kept], "vector")
    assert (fitted.scale[2], fitted.offset[2]) == (1.0, 0.0)
    assert fitted.scale[0] != 1.0


@pytest.mark.parametrize("kind", ["none", "temperature", "vector"])
def test_a_calibration_comes_back_from_json_as_it_was(kind: str) -> None:
    z, labels = planted(200)
    fitted = calibration.fit_calibration(z, labels, kind)
    read = json.loads(json.dumps(asdict(fitted)))
    back = Calibration(read["kind"], tuple(read["scale"]), tuple(read["offset"]))
    assert back == fitted
    p = calibration.apply(back, z).exp()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(200))


def test_one_temperature_is_the_same_factor_for_every_class_and_keeps_the_order() -> None:
    z, labels = planted(scale=0.5)
    fitted = calibration.fit_calibration(z, labels, "temperature")
    assert fitted.scale == (1 / calibration.fit_temperature(z, labels),) * 4
    assert fitted.offset == (0.0,) * 4
    after = calibration.apply(fitted, z)
    np.testing.assert_array_equal(metrics.top_states(after.numpy()), metrics.top_states(z.numpy()))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_a_given_temperature_is_the_power_of_its_inverse(temperature: float) -> None:
    z, _ = planted(40)
    p = z.exp() ** (1 / temperature)
    at = calibration.given_temperature(temperature, 4)
    torch.testing.assert_close(calibration.apply(at, z).exp(), p / p.sum(dim=1, keepdim=True))
    assert Calibration(**json.loads(json.dumps(asdict(at)))).kind == "given"


def test_none_changes_nothing() -> None:
    z, labels = planted(50)
    torch.testing.assert_close(calibration.apply(calibration.fit_calibration(z, labels, "none"), z), z)


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_without_rows_nothing_is_changed(kind: str) -> None:
    fitted = calibration.fit_calibration(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), kind)
    assert (fitted.scale, fitted.offset) == ((1.0,) * 3, (0.0,) * 3)


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_a_probability_of_zero_is_survived(kind: str) -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.2, 0.0, 0.8], [0.3, 0.3, 0.4]])
    labels = torch.tensor([1, 1, 2, 0])
    fitted = calibration.fit_calibration(p.log(), labels, kind)
    assert np.isfinite(fitted.scale).all()
    assert np.isfinite(fitted.offset).all()
    assert torch.isfinite(calibration.apply(fitted, p.log())).all()


def test_each_row_is_calibrated_without_its_own_label() -> None:
    z, labels = planted(60, classes=3)
    before = calibration.cross_fitted(z, labels, "vector", folds=60)
    for row in (0, 17, 59):
        other = labels.clone()
        other[row] = (other[row] + 1) % 3
        after = calibration.cross_fitted(z, other, "vector", folds=60)
        assert torch.equal(after[row], before[row])
        assert not torch.equal(after, before)


def test_folds_come_from_the_seed() -> None:
    z, labels = planted(60)
    first, again, reseeded = (calibration.cross_fitted(z, labels, "vector", seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, reseeded)


def test_reliability_promises_what_new_rows_bear_out() -> None:
    offset = torch.linspace(-1, 1, 12)
    z, labels = planted(600, classes=12, scale=0.5, offset=offset)
    reliability = calibration.reliability(z, labels, "vector")
    new_z, new_labels = planted(20_000, classes=12, scale=0.5, offset=offset, seed=1)
    fitted = calibration.fit_calibration(z, labels, "vector")
    truly = nll(calibration.apply(fitted, new_z), new_labels)
    fitted_nll = nll(calibration.apply(fitted, z), labels)
    assert reliability["after"]["nll"] == pytest.approx(truly, abs=0.08)
    assert fitted_nll < reliability["after"]["nll"]
    assert reliability["after"]["nll"] < reliability["before"]["nll"] - 0.1
    assert reliability["after"]["ece"] < reliability["before"]["ece"] / 2


def test_reliability_before_is_the_plain_measure() -> None:
    z, labels = planted(400)
    reliability = calibration.reliability(z, labels, "none")
    p = z.exp().double().numpy()
    ece = metrics.calibration_error(p.max(axis=1), p.argmax(axis=1) == labels.numpy())
    assert reliability["before"] == {
        "ece": pytest.approx(ece, abs=1e-6),
        "nll": pytest.approx(nll(z, labels)),
    }
    assert reliability["after"]["nll"] == pytest.approx(reliability["before"]["nll"])


def test_one_row_stays_as_it_is() -> None:
    z = torch.log_softmax(torch.tensor([[1.0, 2.0]]), dim=1)
    torch.testing.assert_close(calibration.cross_fitted(z, torch.tensor([0]), "vector"), z)


def test_a_calibration_of_other_classes_is_refused() -> None:
    with pytest.raises(GeoError, match="doesn't fit 3 classes"):
        calibration.apply(Calibration("vector", (1.0, 1.0), (0.0, 0.0)), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("kind", "scale", "offset"),
    [("isotonic", (1.0,), (0.0,)), ("vector", (1.0,), (0.0, 0.0)), ("vector", (1.0,), (float("nan"),))],
)
def test_a_damaged_calibration_is_refused(
    kind: str, scale: tuple[float, ...], offset: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="not a calibration"):
        Calibration(kind, scale, offset)
