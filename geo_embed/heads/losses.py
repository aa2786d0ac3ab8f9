"""What the heads are trained to make small: pure functions of tensors.

Targets that know distances come from elsewhere: rows of `geography.soft_labels` between the states' centroids, and
`sphere.soft_targets` from the sample's own place.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from geo_embed.errors import GeoError
from geo_embed.geography import EARTH_RADIUS_KM
from geo_embed.metrics import GPS_RANGE_KM, RANK_CREDIT

# sin²(d/2R) is kept this far from 0 and 1, 13 m in distance, where the arcsine has no finite slope.
_OFF_THE_EDGE = 1e-12


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy against distributions over classes, averaged over the batch.

    Args:
        logits: (B, C).
        targets: (B, C), rows sum to 1.
        weights: (B,) of the samples, mean 1 over the training set: `inverse_frequency(counts)[labels]`. The mean is over
            B, not over the weights, so that a batch of rare samples counts as much as it should.
    """
    each = -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1)
    return each.mean() if weights is None else (weights * each).mean()


def smoothed(labels: Tensor, classes: int, smoothing: float | Tensor) -> Tensor:
    """(B, C) targets: 1 − s on the label, s spread evenly over all C classes (Szegedy et al., CVPR 2016, section 7).

    Args:
        labels: (B,) integers in [0, classes).
        classes: C.
        smoothing: s in [0, 1).
    """
    own = labels[:, None] == torch.arange(classes, device=labels.device)
    return own.float() * (1 - smoothing) + smoothing / classes


def inverse_frequency(counts: Tensor) -> Tensor:
    """(C,) weights ∝ 1/n_c with mean 1 over samples: N / (C₊ n_c), C₊ the classes that have samples.

    Args:
        counts: (C,) samples of each class, n_c; a class without any gets 0.
    """
    n = counts.double()
    return torch.where(n > 0, n.sum() / ((n > 0).sum() * n.clamp_min(1)), 0.0).float()


def gps_loss(name: str, points: Tensor, truth: Tensor) -> Tensor:
    """`mse`, `mae`, `smooth_l1` or `haversine` of points (B, 2) against true latitudes and longitudes (B, 2) in degrees.

    Raises:
        GeoError: there is no such loss.
    """
    if name not in _GPS_LOSSES:
        raise GeoError(
            f"no such loss of the point: {name!r}", where="training.gps_loss", hint=", ".join(_GPS_LOSSES)
        )
    return _GPS_LOSSES[name](points, truth)


def gps_mse(points: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error in degrees² of points (B, 2) against true latitudes and longitudes (B, 2)."""
    return degrees_apart(points, truth).square().mean()


def gps_mae(points: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error in degrees of points (B, 2) against true latitudes and longitudes (B, 2)."""
    return degrees_apart(points, truth).abs().mean()


def gps_smooth_l1(points: Tensor, truth: Tensor) -> Tensor:
    """Squared/2 below one degree, absolute − 1/2 above (Girshick, ICCV 2015, eq. 3), of (B, 2) against (B, 2) degrees."""
    apart = degrees_apart(points, truth)
    return F.smooth_l1_loss(apart, torch.zeros_like(apart))


def gps_haversine(points: Tensor, truth: Tensor) -> Tensor:
    """Mean great-circle distance, in units of the score's 5000 km, of (B, 2) against (B, 2) degrees.

    The formula of `geography.haversine_km`, in float64. Its gradient is finite everywhere, and 0 within 13 m of the truth
    and of its antipode, where the true one has a kink.
    """
    (phi1, lam1), (phi2, lam2) = (torch.deg2rad(x.double()).unbind(dim=-1) for x in (points, truth))
    half = torch.sin((phi2 - phi1) / 2).square()
    half = half + torch.cos(phi1) * torch.cos(phi2) * torch.sin((lam2 - lam1) / 2).square()
    km = 2 * EARTH_RADIUS_KM * torch.asin(half.clamp(_OFF_THE_EDGE, 1 - _OFF_THE_EDGE).sqrt())
    return (km.mean() / GPS_RANGE_KM).to(points.dtype)


_GPS_LOSSES = {"mse": gps_mse, "mae": gps_mae, "smooth_l1": gps_smooth_l1, "haversine": gps_haversine}


def degrees_apart(points: Tensor, truth: Tensor) -> Tensor:
    """points − truth (B, 2) in degrees, the longitude the short way round: in [−180, 180]."""
    latitude, longitude = (points - truth).unbind(dim=-1)
    return torch.stack([latitude, longitude - 360 * torch.round(longitude / 360)], dim=-1)


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
    own = logits.gather(1, labels[:, None])
    above = torch.sigmoid((logits - own) / temperature).sum(dim=1) - 0.5  # the class itself is σ(0)
    loss = torch.zeros_like(above)
    for rank, (credit, below) in enumerate(zip(RANK_CREDIT, (*RANK_CREDIT[1:], 0.0), strict=True)):
        loss = loss + (credit - below) * (above - rank).clamp(0, 1)
    return (1 - RANK_CREDIT[0]) + loss.mean()
