"""From the views of a sample to state logits and a place. The same heads serve stages 2 and 3."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geo_embed.config import Model
from geo_embed.geography import to_unit_vectors
from geo_embed.heads.decision import Answer, Decision, decide_cells
from geo_embed.heads.fusion import build_fusion
from geo_embed.heads.layers import Drop, Trunk, keep
from geo_embed.heads.refine import Gallery, Refiner, blank_gallery, refine
from geo_embed.heads.region import Atlas, blank_atlas
from geo_embed.registry import Size
from geo_embed.sphere import geometric_median, unit_to_degrees

# A small last layer starts the classifier near the uniform distribution.
_LAST_LAYER_GAIN = 0.01
# Samples that pass through at once where no gradient is wanted: bounded memory, no measurable cost.
_ROWS = 2048


def in_parts(views: Tensor, present: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings (N, V, D) and which are there (N, V), up to 2,048 samples at once."""
    return zip(torch.split(views, _ROWS), torch.split(present, _ROWS), strict=True)


def answer_of(out: Mapping[str, Tensor]) -> Answer:
    """What `Heads.forward` gave, as log-probabilities over cells and states; for heads that have cells."""
    return Answer(F.log_softmax(out["cells"], 1), F.log_softmax(out["logits"], 1))


class ClassificationHead(nn.Module):
    """D → hidden → GELU → dropout → C logits."""

    def __init__(self, dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, classes)
        nn.init.xavier_uniform_(self.out.weight, gain=_LAST_LAYER_GAIN)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor, drop: Drop = keep) -> Tensor:
        """(B, D) to logits (B, C)."""
        logits: Tensor = self.out(drop(F.gelu(self.hidden(vectors))))
        return logits


class GpsHead(nn.Module):
    """D → hidden → GELU → dropout → second → GELU → 2 → tanh: a place in a box, its edges at ±1."""

    def __init__(self, dim: int, hidden: int, second: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.second = nn.Linear(hidden, second)
        self.out = nn.Linear(second, 2)

    def forward(self, vectors: Tensor, drop: Drop = keep) -> Tensor:
        """(B, D) to (B, 2) in (−1, 1)."""
        hidden = drop(F.gelu(self.hidden(vectors)))
        return torch.tanh(self.out(F.gelu(self.second(hidden))))


class Heads(nn.Module):
    """Fusion and heads, as `model.fusion` and `model.head` say.

    - separate: a `ClassificationHead` and a `GpsHead` over the fused vector.
    - dual: a shared `Trunk`, then one linear layer for the states and one for the point.
    - hierarchical: a `ClassificationHead`; the point is the likeliest state's centre, moved by a `GpsHead` whose box is as
      large as the widest state.
    - geocells: a shared `Trunk`, then one linear layer for the states and one for the cells.
    - probe: one linear layer for the states; cells by P(cell | state).

    A fusion with hidden layers of its own (`evidence`, `transformer`) takes the trunk's place.

    Args:
        dim, views: D and V.
        model: what to build.
        atlas: where states, cells and the region lie; kept in the state dict.
    """

    scale: Tensor
    shift: Tensor
    middle: Tensor
    reach: Tensor
    centroids: Tensor
    centres: Tensor
    to_state: Tensor
    in_state: Tensor
    gallery_cells: Tensor

    def __init__(self, dim: int, views: int, model: Model, atlas: Atlas) -> None:
        super().__init__()
        self.model, self.kind = model, model.head
        self.refiner: Refiner | None = None
        classes, hidden = atlas.classes, model.head_hidden
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("shift", torch.zeros(dim))
        self.direction = nn.Parameter(torch.randn(views, dim) * 0.02) if model.directional else None
        self.fusion = build_fusion(
            model.fusion or "average", Size(dim, views, hidden, model.head_depth, classes)
        )
        width = self.fusion.out_dim
        self.register_buffer("centroids", torch.from_numpy(atlas.centroids).float())
        self.states: nn.Module
        if self.kind in ("dual", "geocells"):
            self.trunk = nn.Identity() if self.fusion.deep else Trunk(width, hidden, model.head_depth)
            self.states = nn.Linear(hidden, classes)
        elif self.kind == "probe":
            self.states = nn.Linear(width, classes)
        else:
            self.states = ClassificationHead(width, hidden, classes)
        if self.kind in ("geocells", "probe"):
            assert atlas.cells is not None
            self.register_buffer("centres", atlas.cells.centres.clone())
            self.register_buffer("to_state", atlas.cells.to_state.clone())
            if self.kind == "geocells":
                self.cells = nn.Linear(hidden, len(atlas.cells.centres))
            else:
                self.register_buffer("in_state", atlas.cells.in_state.clone())
        else:
            self.gps = (
                nn.Linear(hidden, 2) if self.kind == "dual" else GpsHead(width, hidden, model.gps_hidden)
            )
            self.register_buffer("middle", atlas.middle.clone())
            reach = atlas.reach if self.kind != "hierarchical" else atlas.state_reach
            self.register_buffer("reach", reach.clone())

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
        x = views.float()
        if self.model.standardise:
            x = torch.addcmul(self.shift, x, self.scale)
        if self.direction is not None:
            x = x + self.direction
        vector, weights = self.fusion(x, present, drop)
        return vector, weights

    def read(self, vector: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        """Fused vectors (B, W) to `logits`, `vector`, and `cells` or `points`, as in `forward`."""
        if self.kind in ("dual", "geocells"):
            vector = vector if self.fusion.deep else self.trunk(vector, drop)
            logits = self.states(vector)
        else:
            logits = self.states(vector) if self.kind == "probe" else self.states(vector, drop)
        out = {"logits": logits, "vector": vector}
        if self.kind == "geocells":
            return out | {"cells": self.cells(vector)}
        if self.kind == "probe":
            return out | {"cells": (torch.softmax(logits, -1) @ self.in_state + 1e-9).log()}
        where = torch.tanh(self.gps(vector)) if self.kind == "dual" else self.gps(vector, drop)
        if self.kind == "hierarchical":
            return out | {"points": self.centroids[logits.argmax(-1)] + self.reach * where}
        return out | {"points": self.middle + self.reach * where}

    def answer(self, views: Tensor, present: Tensor) -> Answer:
        """`answer_of` any number of samples, without gradients."""
        parts = [answer_of(out) for out in self.walk(views, present)]
        return Answer(torch.cat([part.cells for part in parts]), torch.cat([part.states for part in parts]))

    @torch.no_grad()
    def walk(self, views: Tensor, present: Tensor) -> Iterator[dict[str, Tensor]]:
        """What `forward` gives for any number of samples, part after part, without gradients."""
        for x, there in in_parts(views, present):
            yield self(x, there)

    def look_up(self, gallery: Gallery, refiner: Refiner) -> None:
        """Let the point be refined among training samples from now on (`retrieval.refine`)."""
        self.refiner = refiner
        for field in fields(Gallery):
            self.register_buffer(f"gallery_{field.name}", getattr(gallery, field.name))

    def forget_gallery(self) -> None:
        """Let no point be refined any more."""
        self.refiner = None
        for field in fields(Gallery):
            self._buffers.pop(f"gallery_{field.name}", None)

    def locate(self, vector: Tensor, cells: Tensor) -> Tensor:
        """Samples in the learnt space (n, W) and their cells' probabilities (n, K) to points (n, 3), unit vectors."""
        points = geometric_median(cells, self.centres)
        if self.refiner is None:
            return points
        gallery = Gallery(*(getattr(self, f"gallery_{field.name}") for field in fields(Gallery)))
        return refine(gallery, vector, cells, points, **asdict(self.refiner))

    def conclude(self, out: Mapping[str, Tensor], decision: Decision | None = None) -> tuple[Tensor, Tensor]:
        """What `forward` gave, to P(state) (B, C) and latitude, longitude (B, 2) in degrees."""
        states = torch.softmax(out["logits"], dim=1)
        if "cells" in out:
            states, cells = decide_cells([answer_of(out)], decision or Decision(), self.to_state)
            points = self.locate(out["vector"], cells)
        elif self.model.point == "median":
            centres = torch.from_numpy(to_unit_vectors(*self.centroids.cpu().double().numpy().T))
            points = geometric_median(states, centres.to(states.device))
        else:
            return states, torch.stack(
                [out["points"][:, 0], torch.remainder(out["points"][:, 1] + 180, 360) - 180], dim=1
            )
        return states, unit_to_degrees(points)

    def description(self) -> dict[str, Any]:
        """What the state dict doesn't say, as plain values."""
        cells = len(self.centres) if self.kind in ("geocells", "probe") else 0
        found = None
        if self.refiner is not None:
            found = asdict(self.refiner) | {"samples": len(self.gallery_cells)}
        return {"model": self.model.model_dump(mode="json"), "cells": cells, "refiner": found}

    def predict(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, D) embeddings and (B, V) bool to P(state) (B, C) and latitude, longitude (B, 2) in degrees."""
        return self.conclude(self(views, present))


def build_heads(description: Mapping[str, Any], dim: int, views: int, classes: int) -> Heads:
    """Heads whose weights are still to be loaded. Raises KeyError, TypeError or ValueError for a damaged description."""
    model = Model.model_validate(description["model"])
    heads = Heads(dim, views, model, blank_atlas(classes, int(description["cells"])))
    if description["refiner"] is not None:
        refiner = dict(description["refiner"])
        heads.look_up(blank_gallery(int(refiner.pop("samples")), model.head_hidden), Refiner(**refiner))
    return heads
