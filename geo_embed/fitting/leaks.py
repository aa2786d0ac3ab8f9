"""`geo data leaks`: held-out samples that training samples give away."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.find import check_fits, find_store
from geo_embed.cache.store import Embeddings, read_store
from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data.holdout import Places, validation_masks
from geo_embed.data.samples import load_samples, truth_of
from geo_embed.errors import GeoError
from geo_embed.geography import haversine_km, to_unit_vectors

# Similarities that are held at once, 64 MB.
_BLOCK = 16_000_000
# Rows of embeddings that are hashed at once.
_HASH_ROWS = 4096


@dataclass(frozen=True)
class Leak:
    """A held-out sample, and the training sample that gives it away.

    Attributes:
        kind: `place`, `embedding` (the mean of the views) or `view` (a view with the very same embedding).
        held_out, training: their rows.
        value: km between them; cosine; or 1 for equal views.
    """

    kind: str
    held_out: int
    training: int
    value: float


@dataclass(frozen=True)
class Leakage:
    """What a split gives away.

    Attributes:
        held_out, training: samples of each part; with folds, most samples are in both, each in its turn.
        leaking: held-out samples with a leak of any kind.
        embeddings: whether embeddings were compared too; not where none are cached.
        leaks: each with kind, held_out and training (sample ids), value.
    """

    held_out: int
    training: int
    leaking: int
    embeddings: bool
    leaks: list[dict[str, Any]]


def leaks(
    held_out: NDArray[np.bool_],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    embeddings: NDArray[Any] | None,
    *,
    present: NDArray[np.bool_] | None = None,
    km: float = 0.1,
    cosine: float = 0.999,
) -> list[Leak]:
    """Held-out samples that a training sample gives away: for each, and for each kind, the closest one.

    Cosines are taken about the mean of all samples: embeddings share a large common part, which would make
    strangers look alike.

    Args:
        held_out: (N,) True for validation.
        latitude, longitude: (N,) degrees.
        embeddings: (N, V, D) of any float type, zeros where a view is missing; None: places alone.
        present: (N, V) True where a view has an embedding; default all.
        km: places closer than this are the same.
        cosine: views' means at least this similar are the same picture.

    Returns:
        By kind, then row.
    """
    val, train = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    if not (len(val) and len(train)):
        return []
    found = _same_place(val, train, latitude, longitude, km)
    if embeddings is not None:
        there = np.ones(embeddings.shape[:2], dtype=bool) if present is None else present
        found += _alike(val, train, embeddings, there, cosine)
        found += _same_view(val, train, embeddings, there)
    return found


def check_leaks(config: Config, *, km: float = 0.1, cosine: float = 0.999) -> Leakage:
    """Look for leaks in the split that the settings make of the train CSV, before anything is trained on it.

    Args:
        config: paths, model, and training: validation, group_km, val_split, folds and seed.
        km, cosine: as in `leaks`.

    Raises:
        GeoError: the CSV is at fault, the store no longer fits it, or the settings hold nothing out.
    """
    samples = load_samples(config, "train")
    truth = truth_of(samples)
    embeddings = _cached(config)
    rows, values, present = np.arange(len(samples)), None, None
    if embeddings is not None:
        check_fits(embeddings.store, samples)
        # Samples without a picture are in no part of the split.
        rows = np.flatnonzero(embeddings.present.any(axis=1))
        values, present = embeddings.values[rows], embeddings.present[rows]
    ids, (latitude, longitude) = samples.sample_id[rows], (truth.latitude[rows], truth.longitude[rows])
    labels = np.unique(truth.state_idx[rows], return_inverse=True)[1]
    parts = validation_masks(Places(ids, labels, latitude, longitude), config.training)
    found = [
        leak
        for part in parts
        for leak in leaks(part, latitude, longitude, values, present=present, km=km, cosine=cosine)
    ]
    return Leakage(
        held_out=int(sum(part.sum() for part in parts)),
        training=int((~parts[0]).sum()) if len(parts) == 1 else len(rows),
        leaking=len({leak.held_out for leak in found}),
        embeddings=embeddings is not None,
        leaks=[
            {
                "kind": leak.kind,
                "held_out": str(ids[leak.held_out]),
                "training": str(ids[leak.training]),
                "value": leak.value,
            }
            for leak in found
        ],
    )


def _cached(config: Config) -> Embeddings | None:
    try:
        return read_store(find_store(config, "train"))
    except GeoError as error:
        warn(f"places alone are compared, no embeddings: {error}")
        return None


def _same_place(
    val: NDArray[np.int64],
    train: NDArray[np.int64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    km: float,
) -> list[Leak]:
    from scipy.spatial import cKDTree

    points = to_unit_vectors(latitude, longitude)
    nearest = train[cKDTree(points[train]).query(points[val])[1]]
    away = haversine_km(latitude[val], longitude[val], latitude[nearest], longitude[nearest])
    close = np.flatnonzero(away < km)
    return [Leak("place", int(val[k]), int(nearest[k]), float(away[k])) for k in close]


def _alike(
    val: NDArray[np.int64],
    train: NDArray[np.int64],
    embeddings: NDArray[Any],
    present: NDArray[np.bool_],
    cosine: float,
) -> list[Leak]:
    means = np.empty((len(embeddings), embeddings.shape[2]), dtype=np.float32)
    for start in range(0, len(means), _HASH_ROWS):
        part = slice(start, start + _HASH_ROWS)
        summed = (embeddings[part].astype(np.float32) * present[part, :, None]).sum(axis=1)
        means[part] = summed / np.maximum(present[part].sum(axis=1, keepdims=True), 1)
    seen = np.asarray(present.any(axis=1))
    means -= means[seen].mean(axis=0)
    # A sample without a view resembles nothing.
    means[~seen] = 0
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    found = []
    known = means[train].T
    rows = max(1, _BLOCK // len(train))
    for start in range(0, len(val), rows):
        asked = val[start : start + rows]
        similar = means[asked] @ known
        nearest = similar.argmax(axis=1)
        best = similar[np.arange(len(asked)), nearest]
        found += [
            Leak("embedding", int(asked[k]), int(train[nearest[k]]), min(float(best[k]), 1.0))
            for k in np.flatnonzero(best >= cosine)
        ]
    return found


def _same_view(
    val: NDArray[np.int64], train: NDArray[np.int64], embeddings: NDArray[Any], present: NDArray[np.bool_]
) -> list[Leak]:
    """Views with equal embeddings, whichever way they look: found by a hash of their bits, then compared."""
    n, v, d = embeddings.shape
    key = np.empty((n, v), dtype=np.uint64)
    bits = np.dtype(f"u{embeddings.dtype.itemsize}")
    factors = np.random.default_rng(0).integers(1, 2**63, size=d, dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )
    for start in range(0, n, _HASH_ROWS):
        part = np.ascontiguousarray(embeddings[start : start + _HASH_ROWS]).view(bits).astype(np.uint64)
        key[start : start + _HASH_ROWS] = (part * factors).sum(axis=2, dtype=np.uint64)
    where = [np.argwhere(present[rows]) for rows in (train, val)]
    (known_row, known_view), (row, view) = (
        (rows[at[:, 0]], at[:, 1]) for rows, at in zip((train, val), where, strict=True)
    )
    known, first = np.unique(key[known_row, known_view], return_index=True)
    if not len(known):
        return []
    place = np.searchsorted(known, key[row, view]).clip(max=len(known) - 1)
    found: dict[int, Leak] = {}
    for k in np.flatnonzero(known[place] == key[row, view]):
        one, other = (row[k], view[k]), (known_row[first[place[k]]], known_view[first[place[k]]])
        if np.array_equal(embeddings[one], embeddings[other]):
            found.setdefault(int(row[k]), Leak("view", int(row[k]), int(other[0]), 1.0))
    return list(found.values())
