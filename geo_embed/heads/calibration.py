"""Probabilities that mean what they say: one temperature, or a factor and an offset per class, fitted on held-out rows."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from geo_embed.data.holdout import random_folds
from geo_embed.errors import GeoError
from geo_embed.metrics import calibration_error

Kind = Literal["none", "temperature", "vector"]

# Probabilities below this one are taken for it, as in the metrics.
_LEAST_LOG = math.log(1e-12)
# The prior of vector scaling: as strong as this much curvature of the summed likelihood, around factor 1 and offset 0.
_PRIOR = 1.0


@dataclass(frozen=True)
class Calibration:
    """p ← softmax(scale ∘ log p + offset). `dataclasses.asdict` of it is JSON.

    Raises ValueError for an unknown kind, another number of factors than of offsets, or one that is not finite.

    Attributes:
        kind: how it was fitted.
        scale: C factors; 1/T each for a temperature.
        offset: C offsets; 0 each for a temperature.
    """

    kind: Kind
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            self.kind not in get_args(Kind)
            or len(self.scale) != len(self.offset)
            or not all(map(math.isfinite, (*self.scale, *self.offset)))
        ):
            raise ValueError(
                f"not a calibration: {self.kind!r}, {len(self.scale)} factors, {len(self.offset)} offsets"
            )


def fit_calibration(log_probabilities: Tensor, labels: Tensor, kind: Kind) -> Calibration:
    """A calibration of least negative log-likelihood.

    Args:
        log_probabilities: (n, C) of rows that the model wasn't fitted on.
        labels: (n,) true classes.
        kind: `none` changes nothing; so does any kind where there are no rows.
    """
    classes = log_probabilities.shape[1]
    if kind == "vector" and len(labels):
        return _fit_vector(log_probabilities, labels)
    scale = 1.0
    if kind == "temperature" and len(labels):
        scale = 1 / fit_temperature(log_probabilities.clamp_min(_LEAST_LOG), labels)
    return Calibration(kind, (scale,) * classes, (0.0,) * classes)


def fit_temperature(log_probabilities: Tensor, targets: Tensor) -> float:
    """Temperature of least negative log-likelihood (Guo et al., ICML 2017), by golden-section search over [0.3, 5].

    Args:
        log_probabilities: (n, C).
        targets: (n,) true classes.
    """
    low, high = math.log(0.3), math.log(5.0)
    golden = (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        return float(F.nll_loss(F.log_softmax(log_probabilities / math.exp(log_temperature), 1), targets))

    for _ in range(20):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return math.exp((low + high) / 2)


def apply(calibration: Calibration, log_probabilities: Tensor) -> Tensor:
    """Calibrated log-probabilities (n, C), rows normalised.

    Raises:
        GeoError: the calibration belongs to another number of classes.
    """
    classes = log_probabilities.shape[1]
    if len(calibration.scale) != classes:
        raise GeoError(
            f"a calibration of {len(calibration.scale)} classes doesn't fit {classes} classes",
            hint="fit it again on this model's held-out samples",
        )
    scale, offset = (log_probabilities.new_tensor(part) for part in (calibration.scale, calibration.offset))
    return torch.log_softmax(log_probabilities.clamp_min(_LEAST_LOG) * scale + offset, dim=1)


def cross_fitted(
    log_probabilities: Tensor, labels: Tensor, kind: Kind, *, folds: int = 5, seed: int = 0
) -> Tensor:
    """Log-probabilities (n, C), each row calibrated by a calibration that hasn't seen it.

    Args:
        log_probabilities: (n, C) of rows that the model wasn't fitted on.
        labels: (n,) true classes.
        kind: of the calibration.
        folds: parts that the rows are dealt into, at least 2; a single row stays as it is.
        seed: of the dealing.
    """
    fold = torch.from_numpy(random_folds(len(labels), max(2, folds), seed)).to(labels.device)
    calibrated = torch.empty_like(log_probabilities)
    for part in range(max(2, folds)):
        held = fold == part
        calibrated[held] = apply(
            fit_calibration(log_probabilities[~held], labels[~held], kind), log_probabilities[held]
        )
    return calibrated


def reliability(
    log_probabilities: Tensor, labels: Tensor, kind: Kind, *, folds: int = 5, seed: int = 0
) -> dict[str, dict[str, float]]:
    """What a calibration is worth: `{before: {ece, nll}, after: {ece, nll}}`, the latter cross-fitted.

    The arguments are those of `cross_fitted`. There is at least one row.
    """
    after = cross_fitted(log_probabilities, labels, kind, folds=folds, seed=seed)
    return {"before": _measure(log_probabilities, labels), "after": _measure(after, labels)}


def _measure(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    confidence, chosen = log_probabilities.max(dim=1)
    correct = (chosen == labels).cpu().numpy()
    ece = calibration_error(confidence.exp().double().cpu().numpy(), correct)
    return {"ece": ece, "nll": float(F.nll_loss(log_probabilities.clamp_min(_LEAST_LOG), labels))}


def _fit_vector(log_probabilities: Tensor, labels: Tensor, *, rounds: int = 100) -> Calibration:
    """Vector scaling (Guo et al., ICML 2017, section 4.2), softmax(w ∘ z + b), with L-BFGS from w = 1, b = 0.

    Minimises the mean negative log-likelihood + (|w − 1|² + |b|²) / 2n. A class that no row has keeps w = 1, b = 0.
    """
    z = log_probabilities.detach().double().clamp_min(_LEAST_LOG)
    n, classes = z.shape
    seen = torch.bincount(labels, minlength=classes) > 0
    change = torch.zeros(2, classes, dtype=z.dtype, device=z.device, requires_grad=True)
    solver = torch.optim.LBFGS([change], max_iter=rounds, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        w, b = change * seen
        loss = F.cross_entropy(z + z * w + b, labels) + _PRIOR / (2 * n) * change.square().sum()
        torch.autograd.backward(loss)
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    w, b = change.detach().tolist()
    return Calibration("vector", tuple(1 + x for x in w), tuple(b))
