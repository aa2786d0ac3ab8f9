"""The truth of samples, the predictions for them, and the classes that both speak of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.errors import GeoError

# What picks rows of arrays: a mask, indices, a slice.
Rows = NDArray[Any] | slice


@dataclass(frozen=True)
class LabelEncoder:
    """States as contiguous classes 0…C−1; where they are counted from data, in ascending order of `state_idx`.

    Attributes:
        state_idx: (C,) the data's own indices.
        names: C state names.
    """

    state_idx: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, state_idx: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) state indices to (N,) classes. Raises GeoError for one that is not known."""
        # A run's classes stand in the order of its labels.json, which need not ascend.
        order = np.argsort(self.state_idx)
        place = order[np.searchsorted(self.state_idx, state_idx, sorter=order).clip(max=len(self) - 1)]
        unknown = self.state_idx[place] != state_idx
        if unknown.any():
            raise GeoError(f"state_idx {state_idx[unknown][0]} is not among the {len(self)} known states")
        return np.asarray(place)

    def decode(self, classes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes of any shape to the data's own state indices."""
        return self.state_idx[classes]


def label_encoder(state_idx: NDArray[np.int64], mapping: dict[int, str]) -> LabelEncoder:
    """The states that occur in `state_idx` (N,)."""
    present = np.unique(state_idx)
    return LabelEncoder(present, tuple(mapping[int(index)] for index in present))


@dataclass(frozen=True)
class Truth:
    """(N,) true states in the data's own indices, and points in degrees."""

    state_idx: NDArray[np.int64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.state_idx)

    def take(self, rows: Rows) -> "Truth":
        """Some of them, by mask, index or slice."""
        return Truth(self.state_idx[rows], self.latitude[rows], self.longitude[rows])


@dataclass(frozen=True)
class Predictions:
    """A distribution over states and a point for each of N samples.

    Attributes:
        sample_id: (N,) text.
        probabilities: (N, C) float32, rows sum to 1, classes in the order of `labels`.
        latitude, longitude: (N,) degrees.
        labels: the C classes.
    """

    sample_id: NDArray[np.object_]
    probabilities: NDArray[np.float32]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    labels: LabelEncoder

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, rows: Rows) -> "Predictions":
        """Those of some samples, by mask, index or slice."""
        return Predictions(
            self.sample_id[rows],
            self.probabilities[rows],
            self.latitude[rows],
            self.longitude[rows],
            self.labels,
        )

    def replaced(self, rows: NDArray[np.bool_], by: "Predictions") -> "Predictions":
        """The same, but for the samples where `rows` (N,) is True, whose predictions are `by`'s, in order."""
        probabilities = self.probabilities.copy()
        latitude, longitude = self.latitude.copy(), self.longitude.copy()
        probabilities[rows], latitude[rows], longitude[rows] = by.probabilities, by.latitude, by.longitude
        return Predictions(self.sample_id, probabilities, latitude, longitude, self.labels)

    def describe(self, row: int = 0) -> dict[str, Any]:
        """A sample's states, most probable first, and its point, as plain values."""
        order = np.argsort(-self.probabilities[row], kind="stable")
        return {
            "states": [
                {
                    "state_idx": int(self.labels.state_idx[k]),
                    "state": self.labels.names[k],
                    "probability": float(self.probabilities[row, k]),
                }
                for k in order
            ],
            "latitude": float(self.latitude[row]),
            "longitude": float(self.longitude[row]),
        }


@dataclass(frozen=True)
class Prior:
    """What is known of a sample without a single picture: (C,) probabilities, and a point in degrees."""

    probabilities: NDArray[np.float64]
    latitude: float
    longitude: float
