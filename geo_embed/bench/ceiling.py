"""What planted test rows let anybody know: answers by who knows how they were made, all but what each view tells.

A head has to learn from some thousand rows what is given here. So its score is read beside this one, and not beside 1.
"""

import numpy as np
import torch
from torch import Tensor

from geo_embed.bench.planted import SCALE, SCENE_FREEDOM, Difficulty, Maker, Planted, cue_means, scene_spread
from geo_embed.geography import to_unit_vectors
from geo_embed.sphere import geometric_median, unit_to_degrees

# Strengths of a telling view that are tried, in standard deviations of their logarithm.
_STRENGTHS = torch.linspace(-2.5, 2.5, 11)
_ROWS = 128


def informed_answers(data: Planted) -> tuple[Tensor, Tensor]:
    """P(state) (n, C) of the test rows, in the order of the sorted `state_idx`, and latitude and longitude (n, 2) in degrees.

    By Bayes' rule over the training places j, each as likely as any other. A view tells the place, another one, or none:

        P(view | j) ∝ t · L_j + m · mean_k L_k + b        L_j = E_s[p(x | s · code_j)] / p(x | no code)

    with t, m, b by the maker's shares and the view's cue, s by its spread of strengths, and noise and scenes as one Gaussian. Views are
    independent. Not a bound to the last digit: scenes are heavier-tailed than that, and test places lie beside training places, not on
    them. Which views mislead is not known to it, as to nobody.
    """
    maker = data.maker
    labels = np.unique(data.state_idx, return_inverse=True)[1]
    train_labels = torch.from_numpy(labels[data.train])
    places = torch.from_numpy(to_unit_vectors(data.latitude, data.longitude))[data.train]
    whiten, told = _channel(maker)
    codes = torch.from_numpy(maker.code[data.train]).float()
    energy = (codes @ told).square().sum(dim=1)
    weights = torch.log_softmax(-_STRENGTHS.square() / 2, dim=0)
    read_cue = torch.linalg.pinv(torch.from_numpy(maker.cue_axes).float() @ whiten)

    probabilities, points = [], []
    for rows in torch.split(torch.from_numpy(data.test), _ROWS):
        x = (
            torch.from_numpy(data.embeddings[rows]).double() / SCALE - torch.from_numpy(maker.offset)
        ) / torch.from_numpy(maker.gain)
        y = (x.float() @ whiten).flatten(0, 1)

        # 1. How much likelier each view is with a place's code than with none: log L (views, places).
        match = y @ told.T @ codes.T
        log_l = torch.full_like(match, -torch.inf)
        for z, weight in zip(_STRENGTHS.tolist(), weights.tolist(), strict=True):
            s = float(np.exp(maker.difficulty.strength_spread * z))
            log_l = torch.logaddexp(log_l, s * match - s * s / 2 * energy + weight)

        # 2. What the view says of each place, whichever kind of view it is.
        tells, misleads, blank = _kinds(maker.difficulty, y @ read_cue)
        elsewhere = torch.logaddexp(misleads + log_l.logsumexp(dim=1) - np.log(len(codes)), blank)
        views = torch.logaddexp(tells[:, None] + log_l, elsewhere[:, None])

        # 3. All views of a sample together.
        p = torch.softmax(views.view(len(rows), -1, len(codes)).sum(dim=1), dim=1)
        probabilities.append(p.new_zeros(len(rows), int(labels.max()) + 1).index_add_(1, train_labels, p))
        points.append(geometric_median(p, places))
    return torch.cat(probabilities), unit_to_degrees(torch.cat(points))


def _channel(maker: Maker) -> tuple[Tensor, Tensor]:
    """(D, D) what makes noise, scenes and cue white, and (code_dim, D) what a code adds to a whitened view of strength 1."""
    difficulty = maker.difficulty
    scenes = scene_spread(difficulty)[:, None] * maker.scene_mix * difficulty.nuisance
    variance = SCENE_FREEDOM / (SCENE_FREEDOM - 2)
    cue_power = 1 + (1.5 * difficulty.cue / 2) ** 2
    covariance = variance * scenes.T @ scenes + cue_power * maker.cue_axes.T @ maker.cue_axes
    covariance += difficulty.noise**2 * np.eye(len(covariance))
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return torch.from_numpy(whiten).float(), torch.from_numpy(difficulty.signal * maker.mix @ whiten).float()


def _kinds(difficulty: Difficulty, cue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log P(kind, cue) of views by their cues (n, 2): telling, misleading and blank, up to what all three share."""

    def likelihood(telling: float) -> Tensor:
        first, second = (float(mean) for mean in cue_means(difficulty, telling))
        flips = torch.stack([-(cue[:, 1] - sign * second).square() / 2 for sign in (1, -1)])
        log_likelihood: Tensor = flips.logsumexp(dim=0) - (cue[:, 0] - first).square() / 2
        return log_likelihood

    told, other = likelihood(1.0), likelihood(-1.0)
    shares = [1 - difficulty.misleading - difficulty.blank, difficulty.misleading, difficulty.blank]
    tells, misleads, blank = torch.tensor(shares).clamp_min(0).log()
    return told + tells, other + misleads, other + blank
