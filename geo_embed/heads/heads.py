"""Heads: from the views of a sample to state logits and a place. The same ones serve stages 2 and 3.

A kind of head is a class in a file of its own, here or named by `model.plugins`, with `@HEADS.register(name, settings=…,
flop=…)`. It is a `PointHeads`, which answers with a point, or `CellHeads`, which answer with a distribution over cells; it
adds its layers and reads fused vectors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geo_embed.config import Model, Training
from geo_embed.geography import to_unit_vectors
from geo_embed.heads.decision import Answer, Decision, decide_cells
from geo_embed.heads.fusion import build_fusion
from geo_embed.heads.layers import Drop, keep
from geo_embed.heads.refine import Gallery, Refiner, blank_gallery, refine
from geo_embed.heads.region import Region
from geo_embed.registry import FUSIONS, GPS_LOSSES, HEADS, STATE_LOSSES, Size
from geo_embed.sphere import geometric_median, unit_to_degrees

# Samples that pass through at once where no gradient is wanted: bounded memory, no measurable cost.
_ROWS = 512

# Settings with an effect in any head that is trained by steps, by itself or through its fusion and its losses.
TRAINED = frozenset(
    {
        *("model.head", "model.standardise", "model.fusion", "model.directional"),
        *("model.head_hidden", "model.head_depth", "model.dropout"),
        *(f"model.gps_box.{edge}" for edge in ("lat_min", "lat_max", "lon_min", "lon_max")),
        *("training.batch_size", "training.learning_rate", "training.weight_decay", "training.warmup"),
        *("training.clip_norm", "training.patience", "training.view_dropout", "training.step_views"),
        *("training.state_loss", "training.tau_km", "training.label_smoothing", "training.class_weights"),
        *("training.state_weight", "training.score_weight"),
    }
)
# Those of heads that answer with a point, and of heads that answer over cells.
POINTED = frozenset({"model.point", "training.gps_loss", "training.gps_weight"})
CELLED = frozenset({"model.cells", "model.cell_samples", "model.most_cells"})


def in_parts(views: Tensor, present: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings (N, V, D) and which are there (N, V), up to 512 samples at once."""
    return zip(torch.split(views, _ROWS), torch.split(present, _ROWS), strict=True)


def answer_of(out: Mapping[str, Tensor]) -> Answer:
    """What `CellHeads.forward` gave, as log-probabilities over cells and states."""
    return Answer(F.log_softmax(out["cells"], 1), F.log_softmax(out["logits"], 1))


class Heads(nn.Module):
    """Fusion and heads: base class of all kinds.

    A new one has the right sizes and knows no place: `settle` tells it where states, cells and the region lie, or a state
    dict does.

    Args:
        size: of embeddings, and how many classes and cells there are.
        model: the fusion and everything else that the kind reads.

    Attributes:
        columns: from which number of an embedding to before which it looks at, `size.dim` of them; None: at all there are.
        celled: whether answers are over cells: whether it is a `CellHeads`.
        by_steps: whether it is trained by gradient steps; else `solve` fits it at once.
        tunable: whether fine-tuning can go on from its weights.
        refinable: whether `vector` is a learnt space, `size.width` wide, that training samples can be looked up in.
    """

    celled = False
    by_steps = True
    tunable = True
    refinable = False

    scale: Tensor
    shift: Tensor
    centroids: Tensor

    def __init__(self, size: Size, model: Model) -> None:
        super().__init__()
        self.size, self.model = size, model
        self.columns: tuple[int, int] | None = None
        # The order is part of what a seed means: weights are drawn from one generator.
        self.register_buffer("scale", torch.ones(size.dim))
        self.register_buffer("shift", torch.zeros(size.dim))
        self.direction = nn.Parameter(torch.randn(size.views, size.dim) * 0.02) if model.directional else None
        self.fusion = build_fusion(model.fusion or "average", size)
        self.register_buffer("centroids", torch.zeros(size.classes, 2))
        self.add_layers(replace(size, dim=self.fusion.out_dim, deep=self.fusion.deep))

    def add_layers(self, size: Size) -> None:
        """Make the layers and buffers of this kind. `size.dim` is W, the width of the fused vector."""
        raise NotImplementedError

    def settle(self, region: Region) -> None:
        """Take over where states, cells and the region lie; kept in the state dict from now on."""
        self.centroids.copy_(torch.from_numpy(region.centroids))

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        """Fused vectors (B, W) to `logits`, `vector`, and `cells` or `points`, as in `forward`."""
        raise NotImplementedError

    def conclude(self, out: Mapping[str, Tensor], decision: Decision | None = None) -> tuple[Tensor, Tensor]:
        """What `forward` gave, to P(state) (B, C) and latitude, longitude (B, 2) in degrees.

        Args:
            out: of `forward`.
            decision: how states and cells are brought together, for heads that have cells.
        """
        raise NotImplementedError

    def solve(
        self, views: Tensor, present: Tensor, labels: Tensor, points: Tensor, training: Training
    ) -> None:
        """Fit at once, for heads that aren't trained by steps: embeddings (N, V, D), which are there (N, V), classes (N,), and
        true places (N, 3) as unit vectors.
        """
        raise NotImplementedError(f"{type(self).__name__} is trained by steps")

    def taken(self, views: Tensor) -> Tensor:
        """Of embeddings (…, D) the numbers (…, `size.dim`) that it looks at; no copy."""
        return views if self.columns is None else views[..., self.columns[0] : self.columns[1]]

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        """Raw embeddings (B, V, D) of any float type and (B, V) bool to everything there is to know.

        Returns:
            `logits` (B, C); `vector` (B, W), the sample in the learnt space; `view_weights` (B, V); and `cells` (B, K), or
            `points` (B, 2) latitude and longitude in degrees, longitude not wrapped.
        """
        vector, weights = self.fuse(views, present, drop)
        return self.read(vector, drop) | {"view_weights": weights}

    def fuse(self, views: Tensor, present: Tensor, drop: Drop = keep) -> tuple[Tensor, Tensor]:
        """Standardise and fuse: (B, V, D) to (B, W), and what each view weighed (B, V)."""
        x = self.taken(views).float()
        if self.model.standardise:
            x = torch.addcmul(self.shift, x, self.scale)
        if self.direction is not None:
            x = x + self.direction
        vector, weights = self.fusion(x, present, drop)
        return vector, weights

    @torch.no_grad()
    def fuse_all(self, views: Tensor, present: Tensor) -> Tensor:
        """The vectors (N, W) that `fuse` makes of any number of samples, without gradients."""
        vectors = torch.empty(len(views), self.fusion.out_dim, device=views.device)
        # Filled in place: a list of parts, put together, would be twice as large.
        for place, part in zip(torch.split(vectors, _ROWS), in_parts(views, present), strict=True):
            place.copy_(self.fuse(*part)[0])
        return vectors

    @torch.no_grad()
    def walk(self, views: Tensor, present: Tensor) -> Iterator[dict[str, Tensor]]:
        """What `forward` gives for any number of samples, part after part, without gradients."""
        for x, is_there in in_parts(views, present):
            yield self(x, is_there)

    def forget_gallery(self) -> None:
        """Let no point be refined any more, where one was."""

    def description(self) -> dict[str, Any]:
        """What the state dict doesn't say, as plain values."""
        # Plugins are named by the run's settings, and loaded from the user's.
        model = self.model.model_dump(mode="json", exclude={"plugins"})
        looks_at = {} if self.columns is None else {"columns": list(self.columns)}
        return {"model": model, "cells": self.size.cells, "refiner": None, **looks_at}

    def predict(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, D) embeddings and (B, V) bool to P(state) (B, C) and latitude, longitude (B, 2) in degrees."""
        return self.conclude(self(views, present))


class PointHeads(Heads):
    """Base class of heads that answer with a point in a box.

    Attributes:
        middle, reach: (2,) centre and half extent of the box, degrees of latitude and longitude.
    """

    middle: Tensor
    reach: Tensor

    def add_box(self) -> None:
        """Make the buffers of the box."""
        self.register_buffer("middle", torch.zeros(2))
        self.register_buffer("reach", torch.zeros(2))

    def settle(self, region: Region) -> None:
        super().settle(region)
        self.middle.copy_(region.middle)
        self.reach.copy_(region.reach)

    def conclude(self, out: Mapping[str, Tensor], decision: Decision | None = None) -> tuple[Tensor, Tensor]:
        states = torch.softmax(out["logits"], dim=1)
        if self.model.point == "median":
            centres = torch.from_numpy(to_unit_vectors(*self.centroids.cpu().double().numpy().T))
            return states, unit_to_degrees(geometric_median(states, centres.to(states.device)))
        latitude, longitude = out["points"].unbind(dim=1)
        # A state's reach, and the box of a run of earlier versions, can pass a pole.
        return states, torch.stack(
            [latitude.clamp(-90, 90), torch.remainder(longitude + 180, 360) - 180], dim=1
        )


class CellHeads(Heads):
    """Base class of heads that answer over cells: the point is the cells' geometric median, refined where a gallery helps.

    Attributes:
        centres: (K, 3) unit vectors.
        to_state: (K, C) P(state | cell).
        refiner: how points are refined among the training samples in `gallery_…`; None where they are not.
    """

    celled = True

    centres: Tensor
    to_state: Tensor
    gallery_cells: Tensor

    def __init__(self, size: Size, model: Model) -> None:
        super().__init__(size, model)
        self.refiner: Refiner | None = None

    def add_cells(self, size: Size) -> None:
        """Make the buffers of the cells."""
        self.register_buffer("centres", torch.zeros(size.cells, 3))
        self.register_buffer("to_state", torch.zeros(size.cells, size.classes))

    def settle(self, region: Region) -> None:
        super().settle(region)
        assert region.cells is not None
        self.centres.copy_(region.cells.centres)
        self.to_state.copy_(region.cells.to_state)

    def answer(self, views: Tensor, present: Tensor) -> Answer:
        """`answer_of` any number of samples, without gradients."""
        parts = [answer_of(out) for out in self.walk(views, present)]
        return Answer(torch.cat([part.cells for part in parts]), torch.cat([part.states for part in parts]))

    def look_up(self, gallery: Gallery, refiner: Refiner) -> None:
        """Let the point be refined among training samples from now on (`refine.refine`)."""
        self.refiner = refiner
        for field in fields(Gallery):
            self.register_buffer(f"gallery_{field.name}", getattr(gallery, field.name))

    def forget_gallery(self) -> None:
        self.refiner = None
        for field in fields(Gallery):
            self._buffers.pop(f"gallery_{field.name}", None)

    def description(self) -> dict[str, Any]:
        if self.refiner is None:
            return super().description()
        return super().description() | {
            "refiner": asdict(self.refiner) | {"samples": len(self.gallery_cells)}
        }

    def locate(self, vector: Tensor, cells: Tensor) -> Tensor:
        """Samples in the learnt space (n, W) and their cells' probabilities (n, K) to points (n, 3), unit vectors."""
        points = geometric_median(cells, self.centres)
        if self.refiner is None:
            return points
        gallery = Gallery(*(getattr(self, f"gallery_{field.name}") for field in fields(Gallery)))
        return refine(gallery, vector, cells, points, **asdict(self.refiner))

    def spread(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Where a few samples may be: the cells' centres (K, 3), and P(cell) (n, K), which the points are medians of."""
        return self.centres, decide_cells([self.answer(views, present)], Decision(), self.to_state)[1]

    def conclude(self, out: Mapping[str, Tensor], decision: Decision | None = None) -> tuple[Tensor, Tensor]:
        states, cells = decide_cells([answer_of(out)], decision or Decision(), self.to_state)
        return states, unit_to_degrees(self.locate(out["vector"], cells))


def size_of(model: Model, dim: int, views: int, classes: int = 0, cells: int = 0) -> Size:
    """The sizes of heads over embeddings of V views and D numbers, by the settings."""
    return Size(dim, views, model.head_hidden, model.head_depth, model.gps_hidden, classes, cells)


def make_heads(
    dim: int, views: int, model: Model, region: Region, columns: tuple[int, int] | None = None
) -> Heads:
    """Untrained heads that know where states, cells and the region lie; weights come from torch's global generator.

    Args:
        dim, views: D and V.
        model: the kind, the fusion, their sizes.
        region: of the training places.
        columns: which of an embedding's numbers are their D, where there are more.

    Raises:
        GeoError: there is no such head or fusion.
    """
    cells = 0 if region.centres is None else len(region.centres)
    heads: Heads = HEADS[model.head].make(size_of(model, dim, views, region.classes, cells), model)
    heads.settle(region)
    heads.columns = columns
    return heads


def build_heads(description: Mapping[str, Any], dim: int, views: int, classes: int) -> Heads:
    """Heads whose weights are still to be loaded. Raises KeyError, TypeError or ValueError for a damaged description."""
    model = Model.model_validate(description["model"])
    columns = None
    if (looks_at := description.get("columns")) is not None:
        start, stop = map(int, looks_at)
        if not 0 <= start < stop <= dim:
            raise ValueError(f"columns {start} to {stop} of embeddings of {dim} numbers")
        columns, dim = (start, stop), stop - start
    size = size_of(model, dim, views, classes, int(description["cells"]))
    heads: Heads = HEADS[model.head].make(size, model)
    heads.columns = columns
    if description["refiner"] is not None:
        refiner = dict(description["refiner"])
        if not isinstance(heads, CellHeads):
            raise ValueError(f"points of a {model.head!r} head can't be refined")
        heads.look_up(blank_gallery(int(refiner.pop("samples")), model.head_hidden), Refiner(**refiner))
    return heads


def step_flop(model: Model, dim: int, views: int, classes: int, cells: int) -> int:
    """What a training step costs per sample, about: what fusion and head say, the fused vector taken to be as wide as an
    embedding where the fusion has no hidden layers. 0 for heads that aren't trained by steps.
    """
    head, fusion = HEADS[model.head], FUSIONS[model.fusion or "average"]
    if not head.make.by_steps:
        return 0
    assert head.flop is not None
    assert fusion.flop is not None
    size = size_of(model, dim, views, classes, cells)
    return fusion.flop(size) + head.flop(replace(size, deep=fusion.make.deep))


def effective_settings(chosen: Mapping[str, str | None]) -> frozenset[str]:
    """Dotted settings that have an effect in heads: those that the head declares, and where it has a fusion, a loss of the
    states or a loss of the point to choose, those that the chosen one declares.

    Args:
        chosen: names by `model.head`, `model.fusion`, `training.state_loss` and `training.gps_loss`.
    """
    settings: frozenset[str] = HEADS[chosen[HEADS.setting] or ""].settings
    entries = [
        registry[chosen[registry.setting] or "average"].settings
        for registry in (FUSIONS, STATE_LOSSES, GPS_LOSSES)
        if registry.setting in settings
    ]
    return settings.union(*entries)
