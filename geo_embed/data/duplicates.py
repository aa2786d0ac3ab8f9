"""Pictures that occur in several samples, by their bytes: what they say of a dataset, and which samples they tie together.

Samples that share a picture are no independent witnesses: a split keeps them on one side (`holdout.py`). A picture that stands
for more than `FEW` samples at distant places is taken for a placeholder ("no picture here"), which says nothing about any of
them and ties nothing together.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geo_embed.data.spatial import components, number_by_first
from geo_embed.geography import haversine_km, to_degrees, to_unit_vectors

FEW = 10
# Farther apart, two samples of one picture contradict each other.
SAME_PLACE_KM = 1.0


@dataclass(frozen=True)
class SharedPicture:
    """A picture of two samples or more.

    Attributes:
        rows: (k,) the samples, ascending.
        spread_km: twice the farthest that one lies from their middle: of two samples, their distance.
    """

    rows: NDArray[np.int64]
    spread_km: float

    @property
    def is_placeholder(self) -> bool:
        """Whether it stands for too many places to be a picture of any."""
        return len(self.rows) > FEW and self.spread_km > SAME_PLACE_KM


def shared_pictures(
    content: NDArray[np.uint64],
    known: NDArray[np.bool_],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
) -> list[SharedPicture]:
    """The pictures that occur in several samples, in the order of their first rows.

    Args:
        content: (N, V) of the images' bytes: equal where these are.
        known: (N, V) where there is an image whose content is known.
        latitude, longitude: (N,) degrees; zeros where places aren't known.
    """
    rows, views = np.nonzero(known)
    # Twice in one sample is once.
    pairs = np.unique(np.stack([content[rows, views], rows.astype(np.uint64)]), axis=1)
    starts = (
        np.flatnonzero(np.append(True, pairs[0, 1:] != pairs[0, :-1])) if pairs.size else np.zeros(0, int)
    )
    sizes = np.diff(np.append(starts, pairs.shape[1]))
    shared = []
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        samples = pairs[1, start : start + size].astype(np.int64)
        lat, lon = latitude[samples], longitude[samples]
        middle = to_degrees(to_unit_vectors(lat, lon).sum(axis=0))
        shared.append(SharedPicture(samples, 2 * float(haversine_km(lat, lon, *middle).max())))
    return sorted(shared, key=lambda picture: picture.rows.tolist())


def tied_samples(shared: list[SharedPicture], samples: int) -> NDArray[np.int64] | None:
    """Groups (N,) of samples that are linked by pictures they share, numbered by their first rows; None where nothing is shared.

    Placeholders link nothing.
    """
    links = [picture.rows for picture in shared if not picture.is_placeholder]
    if not links:
        return None
    left = np.concatenate([rows[:-1] for rows in links])
    right = np.concatenate([rows[1:] for rows in links])
    return number_by_first(components(samples, left, right))
