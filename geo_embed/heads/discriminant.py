"""Linear discriminant analysis: a Gaussian per state, one shrunk covariance for all, in closed form.

Of few samples it makes more than a network: it has no step size, no epochs, and one number to choose.
"""

from dataclasses import replace

import torch
from torch import Tensor

from geo_embed.config import Training
from geo_embed.heads.fusion import fuse_average, shares
from geo_embed.heads.heads import CELLED
from geo_embed.heads.layers import Drop, keep
from geo_embed.heads.probe import StateHeads
from geo_embed.heads.region import Region
from geo_embed.registry import HEADS, Size

_SETTINGS = CELLED | {"model.head", "training.shrinkage"}
# The chance that a view says nothing: no view alone may rule a state out.
_MUTE = 0.2
# Of the mean variance: a covariance of samples that are all alike can still be inverted.
_LEAST_VARIANCE = 1e-6


@HEADS.register("discriminant", settings=_SETTINGS | {"model.standardise"}, flop=lambda size: 0)
class Discriminant(StateHeads):
    """P(state | x) ∝ P(state) exp(xᵀ Σ⁻¹ μ − μᵀ Σ⁻¹ μ / 2) of the fused vector x; cells by P(cell | state).

    >>> from geo_embed.config import Model
    >>> heads = Discriminant(Size(dim=2, views=1, width=8, depth=1, classes=2, cells=3), Model())
    >>> views = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 20)[:, None] + 0.1 * torch.randn(40, 1, 2)
    >>> present = torch.ones(40, 1, dtype=torch.bool)
    >>> heads.solve(views, present, torch.tensor([0, 1] * 20), torch.zeros(40, 3), Training())
    >>> heads(views[:2], present[:2])["logits"].argmax(dim=1).tolist()
    [0, 1]
    """

    # Its weights are large where features hardly vary, and those features are the first that a trained backbone moves.
    tunable = False

    log_prior: Tensor

    def add_layers(self, size: Size) -> None:
        super().add_layers(size)
        self.register_buffer("log_prior", torch.zeros(size.classes))

    def settle(self, region: Region) -> None:
        super().settle(region)
        counts = torch.from_numpy(region.counts).to(self.log_prior)
        self.log_prior.copy_((counts.clamp_min(0.5) / counts.sum()).log())

    def solve(
        self, views: Tensor, present: Tensor, labels: Tensor, points: Tensor, training: Training
    ) -> None:
        self.states.weight.data, self.states.bias.data = fit_discriminant(
            self.fuse_all(views, present), labels, self.size.classes, training.shrinkage
        )

    @torch.no_grad()
    def soften(self, temperature: float) -> None:
        """Divide what the Gaussians, and the prior, say of a vector by a temperature, from now on.

        Of few samples they are ten times too sure, and a network below them that is trained gets gradients to match.
        """
        for part in (self.states.weight, self.states.bias, self.log_prior):
            part /= temperature

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        return self.with_cells(self.states(vector) + self.log_prior, vector)


@HEADS.register("view-discriminant", settings=_SETTINGS, flop=lambda size: 0)
class ViewDiscriminant(Discriminant):
    """The same of every view by itself, and their evidence multiplied: Σ log(0.8 P(state | view) + 0.2 / C).

    Views that differ in worth are told apart, which their average can't; none of them rules a state out. The fusion has no say.

    >>> from geo_embed.config import Model
    >>> heads = ViewDiscriminant(Size(dim=2, views=2, width=8, depth=1, classes=2, cells=3), Model())
    >>> telling = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 20)
    >>> views = torch.stack([telling, torch.full_like(telling, 0.5)], dim=1) + 0.1 * torch.randn(40, 2, 2)
    >>> present = torch.ones(40, 2, dtype=torch.bool)
    >>> heads.solve(views, present, torch.tensor([0, 1] * 20), torch.zeros(40, 3), Training())
    >>> heads(views[:2], present[:2])["logits"].argmax(dim=1).tolist()
    [0, 1]
    """

    def add_layers(self, size: Size) -> None:
        super().add_layers(replace(size, dim=self.size.dim))

    def solve(
        self, views: Tensor, present: Tensor, labels: Tensor, points: Tensor, training: Training
    ) -> None:
        vectors, of_views = self.taken(views)[present].float(), labels[:, None].expand(present.shape)[present]
        self.states.weight.data, self.states.bias.data = fit_discriminant(
            vectors, of_views, self.size.classes, training.shrinkage
        )

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        x = self.taken(views).float()
        sure = torch.softmax(self.states(torch.where(present[..., None], x, 0)), dim=-1)
        evidence = ((1 - _MUTE) * sure + _MUTE / self.size.classes).log()
        logits = (evidence * present[..., None]).sum(dim=1) + self.log_prior
        return self.with_cells(logits, fuse_average(x, present)) | {"view_weights": shares(present, x.dtype)}


def fit_discriminant(x: Tensor, labels: Tensor, classes: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Discriminant functions of Gaussians with one covariance: x·w + b = xᵀ Σ⁻¹ μ − μᵀ Σ⁻¹ μ / 2, priors apart.

    Σ is the covariance within classes, shrunk towards a multiple of the identity with the same trace:
    (1 − s) S + s tr(S)/D · I (Friedman, JASA 1989, eq. 18, with one covariance for all).

    Args:
        x: (N, D) float32.
        labels: (N,) classes. A class without samples lies at the mean of all.
        classes: C.
        shrinkage: s, in (0, 1].

    Returns:
        Weights (C, D) and offsets (C,).
    """
    n, dim = x.shape
    middle = x.mean(dim=0)
    centred = x - middle
    counts = torch.bincount(labels, minlength=classes).to(x.dtype)
    means = x.new_zeros(classes, dim).index_add_(0, labels, centred) / counts.clamp_min(1)[:, None]
    scatter = centred.T @ centred - (means * counts[:, None]).T @ means
    covariance = (1 - shrinkage) / n * scatter
    variance = scatter.diagonal().mean().clamp_min(0) / n
    covariance.diagonal().add_(shrinkage * variance + _LEAST_VARIANCE * (variance + _LEAST_VARIANCE))
    weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance)).T
    bias = -0.5 * (weight * means).sum(dim=1) - weight @ middle
    return weight.contiguous(), bias
