"""The training loss: of the states, of the point or the cells, and their sum as the settings weigh it.

A new loss is a function here, or in a file named by `model.plugins`:

- of the states, `@STATE_LOSSES.register(name)`: from logits (B, C), labels (B,), true places (B, 3) as unit vectors and the
  training's tables (`make_tables`) to a loss per sample (B,);
- of the point, `@GPS_LOSSES.register(name)`: from points (B, 2) and true places (B, 2), latitudes and longitudes in degrees,
  longitudes of points not wrapped, to the mean loss of the batch. One that declares the setting `training.gps_normalise` gets as
  a third argument the degrees (2,) that errors are divided by: the spans of the region's box, or ones.

All of them are pure functions of tensors, so that they can run over stacked models (`torch.func.vmap`).
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from geo_embed.config import Training
from geo_embed.geography import EARTH_RADIUS_KM, distance_matrix_km, soft_labels, to_unit_vectors
from geo_embed.heads.region import normalize
from geo_embed.metrics import GPS_RANGE_KM, RANK_CREDIT
from geo_embed.registry import GPS_LOSSES, STATE_LOSSES
from geo_embed.sphere import soft_targets

# sin²(d/2R) is kept this far from 0 and 1, 13 m in distance, where the arcsine has no finite slope.
_OFF_THE_EDGE = 1e-12


# Numbers that may differ between trainings that share a program (`fitting/stacked.py`); other settings choose code.
NUMBERS = ("tau_km", "label_smoothing", "state_weight", "cell_weight", "gps_weight", "score_weight")
# What a training's loss is the sum of.
LOSS_PARTS = ("state", "gps", "cell", "score")


def make_tables(
    centroids: NDArray[np.float64],
    counts: NDArray[np.int64],
    centres: Tensor | None,
    training: Training,
    device: torch.device,
    *,
    spans: Tensor | None = None,
) -> dict[str, Tensor]:
    """What a batch's loss is looked up in: numbers and targets that hold for a whole training.

    Args:
        centroids: (C, 2) latitudes and longitudes of the states' centres, degrees.
        counts: (C,) training samples of each state.
        centres: (K, 3) unit vectors of the cells, for heads that have cells.
        training: the losses' numbers.
        device: of the tables.
        spans: (2,) height and width of the region's box in degrees, which `training.gps_normalise` divides errors by; None
            leaves them in degrees.

    Returns:
        Each of `NUMBERS` as a scalar; `soft` (C, C) haversine labels of each state; `class_weights` (C,); `centroids`
        (C, 3) unit vectors; `spans` (2,), ones where errors stay in degrees; and `centres`, where given.
    """
    tables = {name: torch.tensor(float(getattr(training, name))) for name in NUMBERS}
    tables |= {
        "soft": torch.from_numpy(soft_labels(distance_matrix_km(centroids), training.tau_km)).float(),
        "class_weights": inverse_frequency(torch.from_numpy(counts)),
        "centroids": torch.from_numpy(to_unit_vectors(*centroids.T)).float(),
        "spans": torch.ones(2) if spans is None or not training.gps_normalise else spans.float(),
    }
    if centres is not None:
        tables["centres"] = centres
    return {name: table.to(device) for name, table in tables.items()}


def objective(
    out: Mapping[str, Tensor],
    labels: Tensor,
    points: Tensor,
    tables: Mapping[str, Tensor],
    training: Training,
) -> Tensor:
    """The mean training loss of a batch: the sum of `loss_parts`, which has the arguments."""
    return total_loss(loss_parts(out, labels, points, tables, training))


def loss_parts(
    out: Mapping[str, Tensor],
    labels: Tensor,
    points: Tensor,
    tables: Mapping[str, Tensor],
    training: Training,
) -> dict[str, Tensor]:
    """What the mean training loss of a batch is the sum of, each part with its weight: names of `LOSS_PARTS`, in their order.

    `state` is `state_weight` × the states' loss; `cell` `cell_weight` × the cells' cross-entropy with PIGEON's soft labels, or
    `gps` `gps_weight` × the point's loss; `score`, where it has a weight, `score_weight` × (1 − the expected score of the states).

    Args:
        out: of `Heads.forward`: `logits`, and `cells` or `points`.
        labels: (B,) classes.
        points: (B, 3) float32 unit vectors of the true places.
        tables: of `make_tables`.
        training: which losses there are.
    """
    logits = out["logits"]
    each = STATE_LOSSES[training.state_loss].make(logits, labels, points, tables)
    state_loss = (tables["class_weights"][labels] * each).mean() if training.class_weights else each.mean()
    parts: dict[str, Tensor] = {"state": tables["state_weight"] * state_loss}
    if "cells" in out:
        near = soft_targets(points, tables["centres"], tables["tau_km"])
        parts["cell"] = tables["cell_weight"] * soft_cross_entropy(out["cells"], near)
    else:
        x, y, z = points.unbind(-1)
        truth = torch.stack([torch.asin(z.clamp(-1, 1)), torch.atan2(y, x)], dim=-1).rad2deg()
        parts["gps"] = tables["gps_weight"] * gps_loss(
            training.gps_loss, out["points"], truth, tables["spans"]
        )
    if training.score_weight:
        parts["score"] = tables["score_weight"] * expected_score_loss(logits, labels)
    return parts


def total_loss(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum of a loss's parts, in the order of `LOSS_PARTS`."""
    first, *others = (parts[name] for name in LOSS_PARTS if name in parts)
    return sum(others, start=first)


def epoch_losses(parts: Mapping[str, float]) -> dict[str, float]:
    """An epoch's losses as history.parquet names them: `train_loss`, and `train_NAME_loss` of each part of it.

    Args:
        parts: mean over the epoch's samples of each part, weighted as in the sum.
    """
    return {"train_loss": sum(parts.values())} | {
        f"train_{name}_loss": parts[name] for name in LOSS_PARTS if name in parts
    }


@STATE_LOSSES.register("haversine", settings={"training.tau_km"})
def state_haversine(logits: Tensor, labels: Tensor, points: Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """(B,) cross-entropies with soft labels from the distances between the states' centres: exp(−d(cᵢ, c_true)/τ).

    >>> tables = {"soft": torch.tensor([[0.8, 0.2], [0.2, 0.8]])}
    >>> loss = state_haversine(torch.zeros(3, 2), torch.tensor([0, 1, 1]), torch.zeros(3, 3), tables)
    >>> [round(x, 3) for x in loss.tolist()]
    [0.693, 0.693, 0.693]
    """
    return soft_cross_entropies(logits, tables["soft"][labels])


@STATE_LOSSES.register("pigeon", settings={"training.tau_km"})
def state_pigeon(logits: Tensor, labels: Tensor, points: Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """(B,) cross-entropies with soft labels from the distances between the sample and the states' centres.

    (PIGEON; Haas et al., CVPR 2024, eq. 2.)

    >>> poles = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    >>> tables = {"centroids": poles, "tau_km": torch.tensor(75.0)}
    >>> loss = state_pigeon(torch.tensor([[1.0, 0.0]] * 2), torch.tensor([0, 1]), poles, tables)
    >>> [round(x, 3) for x in loss.tolist()]
    [0.313, 1.313]
    """
    return soft_cross_entropies(logits, soft_targets(points, tables["centroids"], tables["tau_km"]))


@STATE_LOSSES.register("cross_entropy", settings={"training.label_smoothing"})
def state_cross_entropy(
    logits: Tensor, labels: Tensor, points: Tensor, tables: Mapping[str, Tensor]
) -> Tensor:
    """(B,) cross-entropies with hard labels, smoothed by `label_smoothing`.

    >>> tables = {"label_smoothing": torch.tensor(0.0)}
    >>> loss = state_cross_entropy(torch.tensor([[1.0, 0.0]] * 2), torch.tensor([0, 1]), torch.zeros(2, 3), tables)
    >>> [round(x, 3) for x in loss.tolist()]
    [0.313, 1.313]
    """
    return soft_cross_entropies(logits, smoothed(labels, logits.shape[-1], tables["label_smoothing"]))


def soft_cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) cross-entropies of logits (B, C) against distributions (B, C) over classes."""
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy against distributions over classes, averaged over the batch.

    Args:
        logits: (B, C).
        targets: (B, C), rows sum to 1.
        weights: (B,) of the samples, mean 1 over the training set: `inverse_frequency(counts)[labels]`. The mean is over
            B, not over the weights, so that a batch of rare samples counts as much as it should.
    """
    each = soft_cross_entropies(logits, targets)
    return each.mean() if weights is None else (weights * each).mean()


def smoothed(labels: Tensor, classes: int, smoothing: float | Tensor) -> Tensor:
    """(B, C) targets: 1 − s on the label, s spread evenly over all C classes (Szegedy et al., CVPR 2016, section 7).

    Args:
        labels: (B,) integers in [0, classes).
        classes: C.
        smoothing: s in [0, 1).
    """
    true = labels[:, None] == torch.arange(classes, device=labels.device)
    return true.float() * (1 - smoothing) + smoothing / classes


def inverse_frequency(counts: Tensor) -> Tensor:
    """(C,) weights ∝ 1/n_c with mean 1 over samples: N / (C₊ n_c), C₊ the classes that have samples.

    Args:
        counts: (C,) samples of each class, n_c; a class without any gets 0.
    """
    n = counts.double()
    return torch.where(n > 0, n.sum() / ((n > 0).sum() * n.clamp_min(1)), 0.0).float()


def gps_loss(name: str, points: Tensor, truth: Tensor, spans: Tensor | float = 1.0) -> Tensor:
    """The loss of a name in `GPS_LOSSES`, of points (B, 2) against true latitudes and longitudes (B, 2) in degrees.

    Args:
        spans: (2,) degrees that errors are divided by, in a loss that declares `training.gps_normalise`.

    Raises:
        GeoError: there is no such loss.
    """
    entry = GPS_LOSSES[name]
    scale = (spans,) if "training.gps_normalise" in entry.settings else ()
    loss: Tensor = entry.make(points, truth, *scale)
    return loss


@GPS_LOSSES.register("mse", settings={"training.gps_normalise"})
def gps_mse(points: Tensor, truth: Tensor, spans: Tensor | float = 1.0) -> Tensor:
    """Mean squared error, in units of `spans` (2,), of points (B, 2) against true latitudes and longitudes (B, 2) in degrees.

    >>> float(gps_mse(torch.tensor([[0.0, 179.0]]), torch.tensor([[0.0, -179.0]])))
    2.0
    >>> float(gps_mse(torch.tensor([[0.0, 179.0]]), torch.tensor([[0.0, -179.0]]), torch.tensor([4.0, 8.0])))
    0.03125
    """
    return normalize(points, truth, spans).square().mean()


@GPS_LOSSES.register("mae", settings={"training.gps_normalise"})
def gps_mae(points: Tensor, truth: Tensor, spans: Tensor | float = 1.0) -> Tensor:
    """Mean absolute error, in units of `spans` (2,), of points (B, 2) against true latitudes and longitudes (B, 2) in degrees.

    >>> float(gps_mae(torch.tensor([[1.0, 179.0]]), torch.tensor([[0.0, -179.0]])))
    1.5
    """
    return normalize(points, truth, spans).abs().mean()


@GPS_LOSSES.register("smooth_l1", settings={"training.gps_normalise"})
def gps_smooth_l1(points: Tensor, truth: Tensor, spans: Tensor | float = 1.0) -> Tensor:
    """Squared/2 below one of `spans` (2,), absolute − 1/2 above (Girshick, ICCV 2015, eq. 3), of (B, 2) against (B, 2) degrees.

    >>> float(gps_smooth_l1(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)))
    1.5
    """
    apart = normalize(points, truth, spans)
    return F.smooth_l1_loss(apart, torch.zeros_like(apart))


@GPS_LOSSES.register("haversine")
def gps_haversine(points: Tensor, truth: Tensor) -> Tensor:
    """Mean great-circle distance, in units of the score's 5000 km, of (B, 2) against (B, 2) degrees.

    The formula of `geography.haversine_km`, in float64. Its gradient is finite everywhere, and 0 within 13 m of the truth
    and of its antipode, where the true one has a kink.

    >>> round(float(gps_haversine(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 0.0]]))), 3)  # a quarter of 40,030 km
    2.002
    """
    (phi1, lam1), (phi2, lam2) = (torch.deg2rad(x.double()).unbind(dim=-1) for x in (points, truth))
    half = torch.sin((phi2 - phi1) / 2).square()
    half = half + torch.cos(phi1) * torch.cos(phi2) * torch.sin((lam2 - lam1) / 2).square()
    km = 2 * EARTH_RADIUS_KM * torch.asin(half.clamp(_OFF_THE_EDGE, 1 - _OFF_THE_EDGE).sqrt())
    return (km.mean() / GPS_RANGE_KM).to(points.dtype)


def expected_score_loss(logits: Tensor, labels: Tensor, *, temperature: float = 0.5) -> Tensor:
    """1 − the state part of the competition score, made smooth; in [0, 1].

    The rank of the true class y counts the classes above it: r = 1 + Σ_{j≠y} 1[z_j > z_y]. A sigmoid in place of the
    step, σ((z_j − z_y)/t), gives a rank with a gradient (Qin, Liu & Li, 2010, "A general approximation framework for
    direct optimization of information retrieval measures", eq. 15), and the credit is linear between the ranks: 1 at
    r = 1, 0.6 at 2, …, 0 from 6 on. As t → 0 it is 1 − `metrics.state_credit`, ties aside. A sample far beyond rank six
    has no gradient: this goes beside a cross-entropy, not in its place.

    Args:
        logits: (B, C).
        labels: (B,) true classes.
        temperature: t, in logits.
    """
    true = logits.gather(1, labels[:, None])
    above = torch.sigmoid((logits - true) / temperature).sum(dim=1) - 0.5  # the class itself is σ(0)
    loss = torch.zeros_like(above)
    for rank, (credit, below) in enumerate(zip(RANK_CREDIT, (*RANK_CREDIT[1:], 0.0), strict=True)):
        loss = loss + (credit - below) * (above - rank).clamp(0, 1)
    return (1 - RANK_CREDIT[0]) + loss.mean()
