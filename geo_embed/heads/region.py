"""What the training places tell the heads: where the states lie, how far the region reaches, and its cells."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from geo_embed.config import GpsBox, Model
from geo_embed.geography import (
    LEAST_REACH_DEGREES,
    MARGIN,
    class_centroids,
    region_box,
    to_degrees,
    wrap_longitude,
)
from geo_embed.heads.cells import Cells, make_cells
from geo_embed.registry import HEADS

# Few samples make few cells: below a dozen samples a cell learns nothing, and below so many cells a point is vague.
_FEWEST_CELLS = 16


@dataclass(frozen=True)
class Region:
    """The region that the training places cover; made from training rows alone.

    Attributes:
        centroids: (C, 2) float64 latitudes and longitudes of the states' centres, degrees.
        counts: (C,) samples of each state.
        middle, reach: (2,) centre and half extent of the region's box, degrees of latitude and longitude.
        state_reach: (2,) the farthest that a place lies from its state's centre, degrees.
        cells: K cells over the places, for heads that need them.
    """

    centroids: NDArray[np.float64]
    counts: NDArray[np.int64]
    middle: Tensor
    reach: Tensor
    state_reach: Tensor
    cells: Cells | None

    @property
    def classes(self) -> int:
        """C."""
        return len(self.counts)

    @property
    def spans(self) -> Tensor:
        """(2,) height and width of the region's box, degrees of latitude and longitude."""
        return 2 * self.reach

    @property
    def centres(self) -> Tensor | None:
        """(K, 3) unit vectors of the cells; None without cells."""
        return None if self.cells is None else self.cells.centres


def make_region(
    points: NDArray[np.float64], labels: NDArray[np.int64], classes: int, model: Model, *, seed: int
) -> Region:
    """The region of the training places, and its cells where the head has any.

    Args:
        points: (N, 3) unit vectors.
        labels: (N,) classes; each of them occurs.
        classes: C.
        model: the kind and size of the cells, the box where it is given.
        seed: of the cells.
    """
    latitude, longitude = to_degrees(points)
    middle, reach = _box(latitude, longitude, model.gps_box)
    cells = None
    if HEADS[model.head].make.celled:
        count = int(min(model.most_cells, max(_FEWEST_CELLS, len(points) / model.cell_samples)))
        cells = make_cells(points, labels, count, classes, seed=seed, kind=model.cells)
    centroids = class_centroids(latitude, longitude, labels, classes)
    away = np.stack([latitude - centroids[labels, 0], wrap_longitude(longitude - centroids[labels, 1])])
    state_reach = np.maximum(np.abs(away).max(axis=1) * (1 + MARGIN), LEAST_REACH_DEGREES)
    return Region(
        centroids,
        np.bincount(labels, minlength=classes),
        middle,
        reach,
        torch.from_numpy(state_reach).float(),
        cells,
    )


def normalize(points: Tensor | ArrayLike, origin: Tensor | ArrayLike, spans: Tensor | ArrayLike) -> Tensor:
    """Points in degrees as shares of a box: (points − origin) / spans, longitudes the short way round from the origin.

    From a box's centre and half extent it is [−1, 1] inside; from its south-western corner and whole extent [0, 1], where the box
    is at most 180 degrees wide. From the true places it is the error that a loss on scaled coordinates takes.

    Args:
        points: (..., 2) latitudes and longitudes in degrees, longitudes not wrapped.
        origin: (..., 2) degrees.
        spans: (2,) degrees of one unit, > 0.

    >>> normalize([[40.0, -75.0]], origin=[25.0, -125.0], spans=[30.0, 100.0]).tolist()
    [[0.5, 0.5]]
    """
    latitude, longitude = (torch.as_tensor(points) - torch.as_tensor(origin)).unbind(dim=-1)
    around = torch.stack([latitude, longitude - 360 * torch.round(longitude / 360)], dim=-1)
    return around / torch.as_tensor(spans)


def denormalize(scaled: Tensor | ArrayLike, origin: Tensor | ArrayLike, spans: Tensor | ArrayLike) -> Tensor:
    """The inverse of `normalize`: shares of a box (..., 2) to latitudes and longitudes in degrees, longitudes not wrapped.

    Args:
        scaled: (..., 2).
        origin, spans: as in `normalize`.

    >>> denormalize([[0.5, 0.5]], origin=[25.0, -125.0], spans=[30.0, 100.0]).tolist()
    [[40.0, -75.0]]
    """
    return torch.as_tensor(origin) + torch.as_tensor(spans) * torch.as_tensor(scaled)


def _box(latitude: NDArray[np.float64], longitude: NDArray[np.float64], box: GpsBox) -> tuple[Tensor, Tensor]:
    south, north, west, east = region_box(latitude, longitude, box.edges)
    low, high = torch.tensor([[south, west], [north, east]])
    return (low + high) / 2, (high - low) / 2
