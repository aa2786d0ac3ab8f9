"""Calibration of the states' probabilities: one temperature, or a factor and an offset per class, fitted on held-out rows; or a
temperature that is given, `training.temperature`.

A new kind is a function here, or in a file named by `model.plugins`, with `@CALIBRATIONS.register(name)`: from
log-probabilities (n, C) and labels (n,), n > 0, to a `Calibration`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from geo_embed.data.holdout import random_folds
from geo_embed.errors import GeoError
from geo_embed.metrics import calibration_error
from geo_embed.optim import minimise
from geo_embed.registry import CALIBRATIONS

# Probabilities below this one are taken for it, as in the metrics.
_LEAST_LOG = math.log(1e-12)
# The prior of vector scaling: as strong as this much curvature of the summed likelihood, around factor 1 and offset 0.
_PRIOR = 1.0
_VECTOR_ROUNDS = 100
# The kind of a temperature that is given. It is no entry of the registry: nothing is fitted.
_GIVEN = "given"
# The range of temperatures, and how exactly the logarithm of one is sought.
_COLDEST, _HOTTEST, _LOG_TOLERANCE = 0.3, 5.0, 1e-5


@dataclass(frozen=True)
class Calibration:
    """p ← softmax(scale ∘ log p + offset). `dataclasses.asdict` of it is JSON.

    Raises ValueError for an unknown kind, another number of factors than of offsets, or one that is not finite.

    Attributes:
        kind: how it was fitted: a name in `CALIBRATIONS`; or `given`, which wasn't.
        scale: C factors; 1/T each for a temperature.
        offset: C offsets; 0 each for a temperature.
    """

    kind: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            (self.kind != _GIVEN and self.kind not in CALIBRATIONS)
            or len(self.scale) != len(self.offset)
            or not all(map(math.isfinite, (*self.scale, *self.offset)))
        ):
            raise ValueError(
                f"not a calibration: {self.kind!r}, {len(self.scale)} factors, {len(self.offset)} offsets"
            )


def fit_calibration(log_probabilities: Tensor, labels: Tensor, kind: str) -> Calibration:
    """Fit a calibration of a kind.

    Args:
        log_probabilities: (n, C) of rows that the model wasn't fitted on.
        labels: (n,) true classes.
        kind: a name in `CALIBRATIONS`; where there are no rows, any kind changes nothing.
    """
    if not len(labels):
        return _unchanged(kind, log_probabilities.shape[1])
    fitted: Calibration = CALIBRATIONS[kind].make(log_probabilities, labels)
    return fitted


def given_temperature(temperature: float, classes: int) -> Calibration:
    """softmax(log p / T) of a T > 0 that somebody else has found.

    >>> apply(given_temperature(2.0, 2), torch.tensor([[0.9, 0.1]]).log()).exp().round(decimals=2).tolist()
    [[0.75, 0.25]]
    """
    return Calibration(_GIVEN, (1 / temperature,) * classes, (0.0,) * classes)


def _unchanged(kind: str, classes: int) -> Calibration:
    return Calibration(kind, (1.0,) * classes, (0.0,) * classes)


@CALIBRATIONS.register("none")
def fit_none(log_probabilities: Tensor, labels: Tensor) -> Calibration:
    """Probabilities stay as they are.

    >>> fit_none(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0]))
    Calibration(kind='none', scale=(1.0, 1.0), offset=(0.0, 0.0))
    """
    return _unchanged("none", log_probabilities.shape[1])


@CALIBRATIONS.register("temperature")
def fit_one_temperature(log_probabilities: Tensor, labels: Tensor) -> Calibration:
    """One temperature for all classes: `fit_temperature`.

    >>> sure = torch.tensor([[0.9, 0.1]] * 4).log()  # nine in ten, they say; three in four are right
    >>> fitted = fit_one_temperature(sure, torch.tensor([0, 0, 0, 1]))
    >>> apply(fitted, sure[:1]).exp().round(decimals=2).tolist()
    [[0.75, 0.25]]
    """
    scale = 1 / fit_temperature(log_probabilities.clamp_min(_LEAST_LOG), labels)
    classes = log_probabilities.shape[1]
    return Calibration("temperature", (scale,) * classes, (0.0,) * classes)


@CALIBRATIONS.register("vector")
def fit_vector(log_probabilities: Tensor, labels: Tensor) -> Calibration:
    """A factor and an offset per class: vector scaling (Guo et al., ICML 2017, section 4.2), softmax(w ∘ z + b).

    L-BFGS from w = 1, b = 0 minimises the mean negative log-likelihood + (|w − 1|² + |b|²) / 2n. A class that no row has
    keeps w = 1, b = 0.

    >>> logs = torch.tensor([[0.5, 0.5, 0.0]] * 8).log()
    >>> fitted = fit_vector(logs, torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]))
    >>> fitted.offset[0] > fitted.offset[1], fitted.offset[2]
    (True, 0.0)
    """
    z = log_probabilities.detach().double().clamp_min(_LEAST_LOG)
    n, classes = z.shape
    seen = torch.bincount(labels, minlength=classes) > 0

    def loss(change: Tensor) -> Tensor:
        w, b = change * seen
        return F.cross_entropy(z + z * w + b, labels) + _PRIOR / (2 * n) * change.square().sum()

    w, b = (minimise(loss, z.new_zeros(2, classes), rounds=_VECTOR_ROUNDS) * seen).tolist()
    return Calibration("vector", tuple(1 + x for x in w), tuple(b))


def fit_temperature(log_probabilities: Tensor, targets: Tensor) -> float:
    """Temperature of least negative log-likelihood (Guo et al., ICML 2017), in [0.3, 5].

    Args:
        log_probabilities: (n, C).
        targets: (n,) true classes.
    """
    from scipy.optimize import minimize_scalar

    z = log_probabilities.double()

    def loss(log_temperature: float) -> float:
        return float(F.nll_loss(F.log_softmax(z / math.exp(log_temperature), 1), targets))

    bounds = math.log(_COLDEST), math.log(_HOTTEST)
    least = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": _LOG_TOLERANCE})
    return math.exp(float(least.x))


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


def calibrated(fitted: Calibration, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """`apply` to probabilities (n, C) in memory."""
    return np.asarray(apply(fitted, torch.from_numpy(probabilities).log()).exp().numpy())


def cross_fitted(
    log_probabilities: Tensor,
    labels: Tensor,
    kind: str,
    *,
    folds: int = 5,
    seed: int = 0,
    tied: NDArray[np.int64] | None = None,
) -> Tensor:
    """Log-probabilities (n, C), each row calibrated by a calibration that hasn't seen it.

    Args:
        log_probabilities: (n, C) of rows that the model wasn't fitted on.
        labels: (n,) true classes.
        kind: of the calibration.
        folds: parts that the rows are dealt into, at least 2; a single row stays as it is.
        seed: of the dealing.
        tied: (n,) groups of rows that come into one part.
    """
    fold = torch.from_numpy(random_folds(len(labels), max(2, folds), seed, tied)).to(labels.device)
    calibrated = torch.empty_like(log_probabilities)
    for part in range(max(2, folds)):
        val = fold == part
        calibrated[val] = apply(
            fit_calibration(log_probabilities[~val], labels[~val], kind), log_probabilities[val]
        )
    return calibrated


def reliability(
    log_probabilities: Tensor,
    labels: Tensor,
    kind: str,
    *,
    folds: int = 5,
    seed: int = 0,
    tied: NDArray[np.int64] | None = None,
) -> dict[str, dict[str, float]]:
    """What a calibration is worth: `{before: {ece, nll}, after: {ece, nll}}`, the latter cross-fitted.

    The arguments are those of `cross_fitted`. There is at least one row.
    """
    after = cross_fitted(log_probabilities, labels, kind, folds=folds, seed=seed, tied=tied)
    return compare(log_probabilities, after, labels)


def compare(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """`{before: {ece, nll}, after: {ece, nll}}` of log-probabilities (n, C) of the same rows, n > 0, of these classes (n,)."""
    return {"before": _measure(before, labels), "after": _measure(after, labels)}


def _measure(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    confidence, chosen = log_probabilities.max(dim=1)
    correct = (chosen == labels).cpu().numpy()
    ece = calibration_error(confidence.exp().double().cpu().numpy(), correct)
    return {"ece": ece, "nll": float(F.nll_loss(log_probabilities.clamp_min(_LEAST_LOG), labels))}
