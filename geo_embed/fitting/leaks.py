"""`geo data leaks`: held-out samples that training samples give away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.find import check_fits
from geo_embed.cache.join import Source, find_sources, read_content, read_joined
from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data.holdout import Places, validation_masks
from geo_embed.data.samples import Samples, load_mapping, load_samples, truth_of
from geo_embed.errors import GeoError
from geo_embed.fitting.examples import Examples, join
from geo_embed.geography import haversine_km, to_unit_vectors

# Places closer than this are the same; samples whose mean views are at least so similar show the same.
SAME_KM, SAME_COSINE = 0.1, 0.999
# Axes that twins are first looked for along, the samples that say which, and what float32 may add to a squared distance.
_AXES, _AXES_ROUNDS, _AXES_ROWS, _ROUNDING = 32, 3, 4000, 1e-5
# Similarities that are held at once, 16 MB.
_BLOCK = 4_000_000
# Rows whose views are averaged at once, in float32.
_MEAN_ROWS = 1024


@dataclass(frozen=True)
class Leak:
    """A held-out sample, and the training sample that gives it away.

    Attributes:
        kind: `place`, `embedding` (the mean of the views) or `view` (a view with the very same image).
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


@dataclass(frozen=True)
class CachedViews:
    """What a store holds of N samples.

    Attributes:
        values: (N, V, D) embeddings of any float type, zeros where a view is missing.
        present: (N, V) True where a view has an embedding.
        content_hash: (N, V) uint64, equal where the images are the same.
    """

    values: NDArray[Any]
    present: NDArray[np.bool_]
    content_hash: NDArray[np.uint64]


def check_leaks(config: Config, *, km: float = SAME_KM, cosine: float = SAME_COSINE) -> Leakage:
    """Look for leaks in the split that the settings make of the train CSV, before anything is trained on it.

    Args:
        config: paths, model, and training: validation, group_km, val_split, folds and split_seed.
        km, cosine: as in `leaks`.

    Raises:
        GeoError: the CSV is at fault, the store no longer fits it, or the settings hold nothing out.
    """
    samples = load_samples(config, "train")
    sources: tuple[Source, ...] = ()
    try:
        sources = find_sources(config, "train")
    except GeoError as error:
        _warn_of_places_alone(error)
    for source in sources:
        check_fits(source.store, samples, any_order=True)
    places, views = _open(samples, sources, load_mapping(config.paths.mapping()))
    masks = validation_masks(places, config.training)
    all_leaks = [
        leak
        for val in masks
        for leak in leaks(val, places.latitude, places.longitude, views, km=km, cosine=cosine)
    ]
    return Leakage(
        held_out=int(sum(val.sum() for val in masks)),
        training=int((~masks[0]).sum()) if len(masks) == 1 else len(places),
        leaking=len({leak.held_out for leak in all_leaks}),
        embeddings=views is not None,
        leaks=[
            {
                "kind": leak.kind,
                "held_out": str(places.sample_id[leak.held_out]),
                "training": str(places.sample_id[leak.training]),
                "value": leak.value,
            }
            for leak in all_leaks
        ],
    )


def leaks(
    val: NDArray[np.bool_],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    views: CachedViews | None,
    *,
    km: float = SAME_KM,
    cosine: float = SAME_COSINE,
) -> list[Leak]:
    """Held-out samples that a training sample gives away: for each, and for each kind, the closest one.

    Cosines are taken about the mean of all samples: embeddings share a large common part, which would make
    strangers look alike.

    Args:
        val: (N,) True for those held out; the others are trained on.
        latitude, longitude: (N,) degrees.
        views: of the N samples; None: places alone are compared.
        km: places closer than this are the same.
        cosine: views' means at least this similar are the same picture.

    Returns:
        By kind, then row.
    """
    val_rows, train_rows = np.flatnonzero(val), np.flatnonzero(~val)
    if not (len(val_rows) and len(train_rows)):
        return []
    all_leaks = _same_place(val_rows, train_rows, latitude, longitude, km)
    if views is not None:
        all_leaks += _alike(val_rows, train_rows, _Directions(views.values, views.present), cosine)
        all_leaks += _same_image(val_rows, train_rows, views)
    return all_leaks


def near_twins(examples: Examples, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Held-out samples (N,) with a near twin among those that their heads are trained on: the same place, or next to the same picture.

    Samples that share a picture are on one side of every split, and are no twins.

    Args:
        examples: N of them.
        masks: (N,) each, True for those that one set of heads holds out.
    """
    twins = np.zeros(len(examples), dtype=bool)
    truth, directions = examples.truth, _Directions(examples.values, examples.present)
    for val in masks:
        val_rows, train_rows = np.flatnonzero(val), np.flatnonzero(~val)
        if len(val_rows) and len(train_rows):
            for leak in (
                *_same_place(val_rows, train_rows, truth.latitude, truth.longitude, SAME_KM),
                *_alike(val_rows, train_rows, directions, SAME_COSINE),
            ):
                twins[leak.held_out] = True
    return twins


def _open(
    samples: Samples, sources: Sequence[Source], mapping: dict[int, str]
) -> tuple[Places, CachedViews | None]:
    """The samples that a split is made of, and what is cached of them; all samples where nothing is."""
    truth = truth_of(samples)
    if sources:
        try:
            embeddings = read_joined(sources, samples.sample_id)
            examples = join(embeddings, truth, mapping)
            content_hash = read_content(embeddings)[embeddings.present.any(axis=1)]
            return examples.places, CachedViews(examples.values, examples.present, content_hash)
        except GeoError as error:
            _warn_of_places_alone(error)
    labels = np.unique(truth.state_idx, return_inverse=True)[1]
    return Places(samples.sample_id, labels, truth.latitude, truth.longitude), None


def _warn_of_places_alone(error: GeoError) -> None:
    warn(f"places alone are compared: {error}")


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


class _Directions:
    """Where samples look in the space of embeddings: the mean of each one's views about the mean of all samples, as a unit vector (D,).

    Made a block at a time, whenever asked for: all N together would take a quarter of what the split takes as float32.

    Args:
        values: (N, V, D) floats.
        present: (N, V) True where a view is there. A sample without any resembles nothing: its vector is 0.
    """

    def __init__(self, values: NDArray[Any], present: NDArray[np.bool_]) -> None:
        self._values, self._present = values, present
        total, count = np.zeros(values.shape[2]), 0
        for part in self._parts():
            means, seen = self._mean_views(part)
            total += means[seen].sum(axis=0, dtype=np.float64)
            count += int(seen.sum())
        self._middle = (total / max(count, 1)).astype(np.float32)

    def of(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Those of some samples (n, D)."""
        vectors, seen = self._mean_views(rows)
        vectors -= self._middle
        vectors[~seen] = 0
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        vectors /= np.maximum(lengths, 1e-12)[:, None]
        return vectors

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """All of them, in order."""
        for part in self._parts():
            yield part, self.of(part)

    def _parts(self) -> Iterator[slice]:
        for start in range(0, len(self._values), _MEAN_ROWS):
            yield slice(start, start + _MEAN_ROWS)

    def _mean_views(self, rows: NDArray[np.int64] | slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        present = self._present[rows]
        summed = np.zeros((len(present), self._values.shape[2]), dtype=np.float32)
        for view in range(present.shape[1]):
            summed += self._values[rows, view] * present[:, view, None]
        counts = present.sum(axis=1)
        return summed / np.maximum(counts, 1).astype(np.float32)[:, None], counts > 0


def _alike(
    val: NDArray[np.int64], train: NDArray[np.int64], directions: _Directions, cosine: float
) -> list[Leak]:
    # 1. Twins stay near in any projection: |Pu − Pv|² ≤ |u − v|² = 2 − 2 cos(u, v) for orthonormal axes P. In the few axes along which
    # samples vary most hardly any other pair is as near, so that a small part of the held-out samples needs whole cosines.
    axes = _main_axes(directions.of(train[:: max(1, len(train) // _AXES_ROWS)]))
    all_near = np.concatenate([vectors @ axes for _, vectors in directions.blocks()])
    near, train_near = all_near[val], all_near[train]
    square, most = np.square(train_near).sum(axis=1), 2 - 2 * cosine + _ROUNDING
    block = max(1, _BLOCK // len(train))
    doubtful = [
        start
        + np.flatnonzero((square - 2 * part @ train_near.T).min(axis=1) + np.square(part).sum(axis=1) <= most)
        for start in range(0, len(val), block)
        for part in [near[start : start + block]]
    ]
    candidates = val[np.concatenate(doubtful)]

    # 2. Of each of those the most similar training sample: a block of the matrix of cosines after the other.
    is_train = np.zeros(len(all_near), dtype=bool)
    is_train[train] = True
    alike: list[Leak] = []
    for start in range(0, len(candidates), _BLOCK // _MEAN_ROWS):
        rows = candidates[start : start + _BLOCK // _MEAN_ROWS]
        vectors = directions.of(rows)
        best, nearest = np.full(len(rows), -np.inf, dtype=np.float32), np.zeros(len(rows), dtype=np.int64)
        for part, others in directions.blocks():
            similar = vectors @ others.T
            similar[:, ~is_train[part]] = -np.inf
            closest = similar.argmax(axis=1)
            largest = similar[np.arange(len(rows)), closest]
            nearest = np.where(largest > best, part.start + closest, nearest)
            best = np.maximum(best, largest)
        alike += [
            Leak("embedding", int(rows[k]), int(nearest[k]), min(float(best[k]), 1.0))
            for k in np.flatnonzero(best >= cosine)
        ]
    return alike


def _main_axes(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Axes (D, 32 at most) along which vectors (n, D) vary most, or nearly so, orthonormal.

    By subspace iteration from a random start (Halko, Martinsson & Tropp, SIAM Review 53, 2011, algorithm 4.4): the eigenvectors of the
    covariance are a hundredth better, and of joined sources, 2,816 numbers, cost six seconds.
    """
    dim = vectors.shape[1]
    axes = np.random.default_rng(0).standard_normal((dim, min(_AXES, dim)), dtype=np.float32)
    for _ in range(_AXES_ROUNDS):
        axes = np.linalg.qr(vectors.T @ (vectors @ axes))[0]
    return axes


def _same_image(val: NDArray[np.int64], train: NDArray[np.int64], views: CachedViews) -> list[Leak]:
    """Views whose image is that of a training sample's view, whichever way they look: one per held-out sample."""
    (train_row, train_view), (val_row, val_view) = (
        (rows[at[:, 0]], at[:, 1]) for rows in (train, val) for at in [np.argwhere(views.present[rows])]
    )
    hashes, first = np.unique(views.content_hash[train_row, train_view], return_index=True)
    if not len(hashes):
        return []
    wanted = views.content_hash[val_row, val_view]
    place = np.searchsorted(hashes, wanted).clip(max=len(hashes) - 1)
    first_leaks: dict[int, Leak] = {}
    for k in np.flatnonzero(hashes[place] == wanted):
        first_leaks.setdefault(
            int(val_row[k]), Leak("view", int(val_row[k]), int(train_row[first[place[k]]]), 1.0)
        )
    return list(first_leaks.values())
