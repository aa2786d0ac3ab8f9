"""A run as one function of tensors, without a file, a loop over samples or a step outside torch: what an ONNX file is made of.

Its answers are those of `predict_images`, to rounding: the heads' own layers and decisions, then the same points. What differs is
the form. The medians make all of their rounds (`sphere.geometric_median_of` in a graph), neighbours are looked for among all samples of
the gallery at once, and runs are combined by torch in place of NumPy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geo_embed.answers import LabelEncoder, Prior
from geo_embed.backbones.backbone import Backbone, embed_features
from geo_embed.data.images import Preprocessing
from geo_embed.heads import calibration
from geo_embed.heads.calibration import Calibration
from geo_embed.heads.decision import Decision, decide_cells
from geo_embed.heads.heads import CellHeads, Heads, PointHeads, answer_of
from geo_embed.heads.mixture import Mixture
from geo_embed.heads.predictor import Panel
from geo_embed.heads.refine import Gallery
from geo_embed.metrics import RANK_CREDIT
from geo_embed.prediction.combine import LEAST_LENGTH, MAJORITY_TIE, RRF_K, RRF_TIE, VOTING_TIE
from geo_embed.runs.backbone import Inputs, inputs_of
from geo_embed.runs.recipe import Ensemble, EnsembleOf, load_ensemble, load_heads
from geo_embed.runs.run import Run
from geo_embed.sphere import geometric_median, geometric_median_of, great_circle_km

Answers = tuple[Tensor, Tensor]
# Gives a run's heads, which whoever answers more than once keeps.
HeadsOf = Callable[[Run], Panel]


def network_of(
    run: Run,
    heads_of: HeadsOf = load_heads,
    ensemble_of: EnsembleOf = load_ensemble,
    inputs: Inputs | None = None,
) -> nn.Module:
    """The heads of a run, or an ensemble's members together: embeddings (B, V, D) and which are there (B, V) bool to P(state) (B, C)
    float32, and latitude and longitude (B, 2) float64 in degrees. Raises GeoError as `load_heads` and `load_ensemble`.
    """
    inputs = inputs or inputs_of(run, ensemble_of)
    ensemble = ensemble_of(run)
    if ensemble is None:
        return PanelNetwork(heads_of(run), run.prior, inputs.columns_of(run))
    members = [network_of(member, heads_of, ensemble_of, inputs) for member in ensemble.members]
    return EnsembleNetwork(ensemble, run.labels, members)


class PictureNetwork(nn.Module):
    """One or several towers with a network of their embeddings, side by side, behind them.

    Args:
        backbones: in float32, on the CPU, in the order of the embeddings' columns.
        answer: as `network_of` gives it.
        by_backbone: which features of each, as `Inputs.by_backbone` has them.
    """

    means: Tensor
    stds: Tensor

    def __init__(
        self,
        backbones: Sequence[Backbone],
        answer: nn.Module,
        by_backbone: Sequence[Sequence[Mapping[str, Any]]],
    ) -> None:
        super().__init__()
        self.features = [
            [source.get("feature") or backbone.feature for source in sources]
            for backbone, sources in zip(backbones, by_backbone, strict=True)
        ]
        self.backbones, self.answer = list(backbones), answer
        self.towers = nn.ModuleList([backbone.module for backbone in backbones])
        specs: list[Preprocessing] = [backbone.preprocessing for backbone in backbones]
        self.scales = [spec.scale for spec in specs]
        device = backbones[0].device
        self.register_buffer("means", torch.tensor([spec.mean for spec in specs], device=device))
        self.register_buffer("stds", torch.tensor([spec.std for spec in specs], device=device))

    def forward(self, pixels: Tensor | Sequence[Tensor], present: Tensor) -> Answers:
        """Pictures (B, V, 3, H, W) uint8, resized and cropped, red first, of several towers for each as it wants them, and which are there
        (B, V) bool, to answers.
        """
        embeddings = []
        for k, of_one in enumerate([pixels] if isinstance(pixels, Tensor) else pixels):
            mean, std = self.means[k].view(3, 1, 1), self.stds[k].view(3, 1, 1)
            normal = (of_one.flatten(0, 1).float() * self.scales[k] - mean) / std
            by_feature = embed_features(self.backbones[k], normal.to(self.backbones[k].dtype))
            embeddings += [by_feature[feature].float() for feature in self.features[k]]
        joined = torch.cat(embeddings, dim=1).reshape(*present.shape, -1)
        # The heads may lie elsewhere: of a tower on mps they stay on the CPU.
        answers: Answers = self.answer(joined.to(present.device), present)
        return answers


class PanelNetwork(nn.Module):
    """A `Panel`, of all columns of the embeddings or of some; a sample without any view gets the prior."""

    prior_states: Tensor
    prior_point: Tensor

    def __init__(self, panel: Panel, prior: Prior, columns: Sequence[slice] | None = None) -> None:
        super().__init__()
        self.columns = columns
        self.parts, self.calibration = panel.parts, panel.calibration
        self.register_buffer("prior_states", torch.from_numpy(prior.probabilities).float())
        self.register_buffer(
            "prior_point", torch.tensor([prior.latitude, prior.longitude], dtype=torch.float64)
        )

    def forward(self, views: Tensor, present: Tensor) -> Answers:
        """As `network_of` has it."""
        if self.columns is not None:
            views = torch.cat([views[..., columns.start : columns.stop] for columns in self.columns], dim=-1)
        seen = present.any(dim=1, keepdim=True)
        looked_at = present | ~seen
        answers = [_answer(part, views, looked_at) for part in self.parts]
        states, points = answers[0]
        if len(answers) > 1:
            states = torch.stack([p for p, _ in answers]).mean(dim=0)
            # As a panel has it: by way of degrees.
            unit = torch.stack([unit_vectors(point) for _, point in answers], dim=1)
            points = degrees(geometric_median_of(unit, torch.ones_like(unit[..., 0]) / len(answers)))
        states = calibrated(self.calibration, states)
        return torch.where(seen, states, self.prior_states), torch.where(seen, points, self.prior_point)


class EnsembleNetwork(nn.Module):
    """An ensemble's members, and how they are combined (`prediction.combine`)."""

    def __init__(self, ensemble: Ensemble, labels: LabelEncoder, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.method, self.point, self.calibration = ensemble.method, ensemble.point, ensemble.calibration
        self.weights: NDArray[np.float64] = ensemble.weights
        # An ensemble's classes ascend by state, whatever their order in a member.
        self.orders = [np.argsort(member.labels.state_idx).tolist() for member in ensemble.members]
        self.classes = len(labels)

    def forward(self, views: Tensor, present: Tensor) -> Answers:
        """As `network_of` has it."""
        answers = [member(views, present) for member in self.members]
        states = [p[:, order] for (p, _), order in zip(answers, self.orders, strict=True)]
        if self.method == "voting":
            mixed = self._tallied(states, [*RANK_CREDIT[: self.classes]], 1, VOTING_TIE)
        elif self.method == "majority":
            mixed = self._tallied(states, [1.0], 1, MAJORITY_TIE)
        elif self.method == "rrf":
            credit = [1 / (RRF_K + rank) for rank in range(1, self.classes + 1)]
            mixed = self._tallied(states, credit, self.weights, RRF_TIE)
        else:
            mixed = _mean(states, self.weights)
        points = self._points(torch.stack([unit_vectors(point) for _, point in answers], dim=1))
        return calibrated(self.calibration, mixed.float()), degrees(points)

    def _tallied(
        self, states: list[Tensor], credit: list[float], weights: float | NDArray[np.float64], tie: float
    ) -> Tensor:
        """Credit of each member's first classes, and a share of the mean probability that decides between equal tallies."""
        tally = tie * _mean(states, np.full(len(states), 1 / len(states)))
        shares = tally.new_tensor([*credit, *[0.0] * (self.classes - len(credit))])
        for weight, p in zip(np.broadcast_to(weights, len(states)).tolist(), states, strict=True):
            # The likeliest first, and of equal ones the lower class.
            order = torch.sort(p, dim=1, descending=True, stable=True).indices
            votes = (weight * shares).expand(p.shape[0], -1)
            tally = tally + torch.zeros_like(tally).scatter(1, order, votes)
        return tally / tally.sum(dim=1, keepdim=True)

    def _points(self, points: Tensor) -> Tensor:
        """The point (B, 3) of the members' (B, M, 3)."""
        heaviest = int(self.weights.argmax())
        if self.point == "median" and self.weights.max() > 0.5:
            return points[:, heaviest]
        used = np.flatnonzero(self.weights).tolist()
        weights = points.new_tensor(self.weights[used])
        if self.point == "median":
            return geometric_median_of(points[:, used], weights.expand(points.shape[0], -1))
        return _mean_point(points, points.new_tensor(self.weights), points[:, heaviest])


def _answer(part: nn.Module, views: Tensor, present: Tensor) -> Answers:
    """What a panel's part answers, every sample having a view."""
    if isinstance(part, Mixture):
        first, decision = part.heads[0], part.decision
        outs = [heads(views, present) for heads in part.heads]
        if len(outs) == 1:
            return _over_cells(first, outs[0], decision)
        states, cells = decide_cells([answer_of(out) for out in outs], decision, first.to_state)
        return states, degrees(geometric_median(cells, first.centres))
    assert isinstance(part, Heads)
    out = part(views, present)
    if isinstance(part, CellHeads):
        return _over_cells(part, out, Decision())
    states = torch.softmax(out["logits"], dim=1)
    if isinstance(part, PointHeads) and part.model.point == "median":
        return states, degrees(geometric_median(states, unit_vectors(part.centroids)))
    latitude, longitude = out["points"].unbind(dim=1)
    # By floor: what ONNX calls a remainder keeps the sign of what is divided.
    around = longitude - 360 * torch.floor((longitude + 180) / 360)
    return states, torch.stack([latitude.clamp(-90, 90), around], dim=1).double()


def _over_cells(heads: CellHeads, out: dict[str, Tensor], decision: Decision) -> Answers:
    states, cells = decide_cells([answer_of(out)], decision, heads.to_state)
    points = geometric_median(cells, heads.centres)
    if heads.refiner is not None:
        points = _refined(heads, out["vector"], cells, points)
    return states, degrees(points)


def _refined(heads: CellHeads, vectors: Tensor, cells: Tensor, guess: Tensor) -> Tensor:
    """`refine.refine`, of all samples of the gallery at once."""
    # 1. Cosines of each sample with the whole gallery: (B, N).
    # 2. For each of its likeliest cells, those of other cells are ruled out, and the nearest of the rest are taken: a cell with fewer
    #    leaves places empty, which weigh nothing.
    # 3. Their geometric median, unless it lies too far off or there are none.
    refiner = heads.refiner
    assert refiner is not None
    gallery = Gallery(*(getattr(heads, f"gallery_{field.name}") for field in fields(Gallery)))
    ranks = min(refiner.cells, cells.shape[1])
    neighbours = min(refiner.neighbours, len(gallery.cells))
    probability, chosen = cells.double().topk(ranks, dim=1)
    cosine = nn.functional.normalize(vectors.float() - gallery.mean, dim=1) @ gallery.vectors.float().T
    nearness, rows = [], []
    for rank in range(ranks):
        inside = gallery.cells[None, :] == chosen[:, rank : rank + 1]
        nearest = torch.where(inside, cosine, -torch.inf).topk(neighbours, dim=1)
        nearness.append(nearest.values)
        rows.append(nearest.indices)
    near = torch.stack(nearness, dim=1)
    weight = torch.where(near > -torch.inf, probability[:, :, None], 0.0)
    weighs = weight.flatten(1).sum(dim=1, keepdim=True) > 0
    logs = torch.log(weight) - torch.where(near > -torch.inf, 1 - near, 0.0).double() / refiner.temperature
    # Without any, all weigh the same, and the median isn't used.
    shares = torch.softmax(torch.where(weighs, logs.flatten(1), 0.0), dim=1)
    moved = geometric_median_of(gallery.points[torch.stack(rows, dim=1).flatten(1)], shares)
    stays = ~weighs | (great_circle_km(moved, guess)[:, None] > refiner.max_km)
    return torch.where(stays, guess, moved)


def calibrated(fitted: Calibration | None, states: Tensor) -> Tensor:
    """Probabilities (B, C) by a calibration, if there is one."""
    return states if fitted is None else calibration.apply(fitted, states.log()).exp()


def _mean(states: Sequence[Tensor], weights: NDArray[np.float64]) -> Tensor:
    """Weighted mean of probabilities (B, C), in double."""
    total = sum(weight * p.double() for weight, p in zip(weights.tolist(), states, strict=True) if weight)
    assert isinstance(total, Tensor)
    return total / total.sum(dim=1, keepdim=True)


def _mean_point(points: Tensor, weights: Tensor, heaviest: Tensor) -> Tensor:
    total = (weights[:, None] * points).sum(dim=1)
    length = total.norm(dim=1, keepdim=True)
    return torch.where(length > LEAST_LENGTH, total / length.clamp_min(LEAST_LENGTH), heaviest)


def unit_vectors(points: Tensor) -> Tensor:
    """Latitudes and longitudes (..., 2) in degrees to unit vectors (..., 3), as `geography.to_unit_vectors`."""
    phi, lam = torch.deg2rad(points.double()).unbind(dim=-1)
    return torch.stack([phi.cos() * lam.cos(), phi.cos() * lam.sin(), phi.sin()], dim=-1)


def degrees(points: Tensor) -> Tensor:
    """Unit vectors (..., 3) to latitudes and longitudes (..., 2) in degrees, as `geography.to_degrees`."""
    x, y, z = points.double().unbind(dim=-1)
    across = (x * x + y * y).sqrt()
    return torch.rad2deg(torch.stack([torch.atan2(z, across), torch.atan2(y, x)], dim=-1))
