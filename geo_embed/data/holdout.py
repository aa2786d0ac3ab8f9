"""Which samples are held out: at random, by place, or fold by fold; and whether the held-out ones leak.

A random split scores too well where samples lie metres apart: the head has seen the place. With
`training.validation = "spatial"` samples closer than `training.group_km` are held out together, or not at all.
Every choice depends on ids, labels, places and seed, and not on the order of rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.store import Embeddings, check_fits, find_store, read_store
from geo_embed.config import Config, Training
from geo_embed.console import warn
from geo_embed.data.samples import load_samples, shuffle_by_class, stratified_split, truth_of
from geo_embed.errors import GeoError
from geo_embed.geography import EARTH_RADIUS_KM, haversine_km, to_unit_vectors

# The fold of samples that are never held out.
ALWAYS_TRAINING = -1

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


def spatial_groups(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], km: float
) -> NDArray[np.int64]:
    """Samples that are linked by steps of at most `km`: the connected components of that graph.

    The graph itself would not fit into memory where a town has thousands of samples. So samples are put into cubes
    whose diagonal is one step: a cube is one node. Of two cubes the boxes around their samples mostly tell whether
    they are linked; where they don't, the nearest samples of both are looked for.

    Args:
        latitude, longitude: (N,) degrees.
        km: longest step (km), > 0.

    Returns:
        (N,) groups, numbered from 0 in the order of their first rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    points = to_unit_vectors(latitude, longitude)
    step = 2 * np.sin(min(km / EARTH_RADIUS_KM, np.pi) / 2)
    # A hair less than the cube of this diagonal, so that rounding can't part two samples of a cube.
    cubes, cube = np.unique(
        np.floor(points / (step / np.sqrt(3) * (1 - 1e-9))).astype(np.int64), axis=0, return_inverse=True
    )
    cube = cube.ravel()
    order = np.argsort(cube, kind="stable")
    size = np.bincount(cube)
    first = np.cumsum(size) - size
    low = np.minimum.reduceat(points[order], first)
    high = np.maximum.reduceat(points[order], first)

    # Two samples within a step lie at most two cubes apart along each axis.
    a, b = cKDTree(cubes).query_pairs(2.5, p=np.inf, output_type="ndarray").T
    gap = np.maximum(0, np.maximum(low[b] - high[a], low[a] - high[b]))
    span = np.maximum(high[a], high[b]) - np.minimum(low[a], low[b])
    near = np.linalg.norm(gap, axis=1) <= step
    sure = np.linalg.norm(span, axis=1) <= step

    def linked(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
        graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(cubes), len(cubes)))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    group = linked(a[sure], b[sure])
    doubtful = near & ~sure & (group[a] != group[b])
    left, right = a[doubtful], b[doubtful]
    touching = _touching(points[order], first, size, left, right, group, step)
    group = linked(np.append(a[sure], left[touching]), np.append(b[sure], right[touching]))[cube]
    _, rows, number = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(rows))[number.ravel()]


def held_out(
    sample_id: NDArray[np.object_],
    labels: NDArray[np.int64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    training: Training,
) -> NDArray[np.bool_]:
    """Choose validation samples: `training.val_split` of them, as `training.validation` says.

    Random: `dataset.stratified_split`. Spatial: whole groups in an order drawn from the seed, each taken where it
    brings the classes closer to the counts of the random split, then where it brings the whole closer to its share.
    Every class keeps a training sample; a group that is too large to hold out stays in training.

    Args:
        sample_id: (N,) unique ids.
        labels: (N,) classes.
        latitude, longitude: (N,) degrees.
        training: validation, val_split, group_km and seed.

    Returns:
        (N,) True for validation.

    Raises:
        GeoError: spatial, and no group can be held out.
    """
    quota_of = stratified_split(sample_id, labels, training.val_split, training.seed)
    wanted = int(quota_of.sum())
    if training.validation == "random" or not wanted:
        return quota_of
    groups = _Groups.of(sample_id, labels, latitude, longitude, training)
    quota = np.bincount(groups.labels[quota_of[groups.order]], minlength=len(groups.counts))
    held = np.zeros_like(quota)
    chosen = np.zeros(len(groups), dtype=bool)
    for fill in (False, True):
        for group in np.random.default_rng(training.seed).permutation(len(groups)):
            classes, counts = groups.content(group)
            if chosen[group] or (held[classes] + counts >= groups.counts[classes]).any():
                continue
            size = counts.sum()
            if fill:
                better = size < 2 * (wanted - held.sum())
            else:
                better = (counts * (counts + 2 * (held - quota)[classes])).sum() < 0
            if better:
                chosen[group] = True
                held[classes] += counts
    got = int(held.sum())
    if got < wanted / 2:
        hint = _smaller_step(latitude, longitude, training.group_km, wanted) or "raise training.val_split"
        if not got:
            raise GeoError(
                f"no group of samples can be held out: {groups.describe()}, and {wanted:,} are to be held out",
                where=f"training.group_km = {training.group_km:g}",
                hint=hint,
            )
        warn(f"only {got:,} of {wanted:,} samples could be held out: {groups.describe()}; {hint}")
    return groups.rows(chosen)


def folds(
    sample_id: NDArray[np.object_],
    labels: NDArray[np.int64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    training: Training,
) -> NDArray[np.int64]:
    """Deal samples into `training.folds` parts of the same mixture; each is held out once, by the others predicted.

    Every class has a training sample whichever fold is held out. What can't be dealt so is in no fold but −1, always
    training: the only sample of a class; spatial: the only group of a class, and a group of more than half of all
    samples. Such samples get no out-of-fold prediction.

    Args:
        sample_id: (N,) unique ids.
        labels: (N,) classes.
        latitude, longitude: (N,) degrees.
        training: folds ≥ 2, validation, group_km and seed.

    Returns:
        (N,) in [0, folds), or −1. No fold is empty.

    Raises:
        GeoError: fewer samples, or groups, than folds.
    """
    count = training.folds
    if count < 2:
        raise GeoError(f"{count} fold holds nothing out", where="training.folds", hint="give 2 or more")
    if training.validation == "random":
        order = np.argsort(sample_id.astype(str), kind="stable")
        by_class = order[shuffle_by_class(labels[order], training.seed)]
        dealt = by_class[np.bincount(labels)[labels[by_class]] > 1]
        if len(dealt) < count:
            raise GeoError(
                f"{count} folds of {len(dealt):,} samples that can be held out "
                f"({len(labels):,} samples, {len(labels) - len(dealt):,} of them alone in their class)",
                where="training.folds",
                hint="lower training.folds",
            )
        fold = np.full(len(labels), ALWAYS_TRAINING, dtype=np.int64)
        fold[dealt] = np.arange(len(dealt)) % count
        return fold

    groups = _Groups.of(sample_id, labels, latitude, longitude, training)
    held = np.zeros((count, len(groups.counts)), dtype=np.int64)
    fold_of = np.full(len(groups), ALWAYS_TRAINING, dtype=np.int64)
    random = np.random.default_rng(training.seed).permutation(len(groups))
    # The largest first: the small ones even out what they leave.
    for group in random[np.argsort(-groups.sizes[random], kind="stable")]:
        classes, counts = groups.content(group)
        after = held[:, classes] + counts
        allowed = (after < groups.counts[classes]).all(axis=1)
        if not allowed.any() or groups.sizes[group] > len(labels) / 2:
            continue
        # The growth of Σ held² ÷ all, over the classes and the whole: even parts make it least.
        cost = (counts * (after + held[:, classes]) / groups.counts[classes]).sum(axis=1)
        size = groups.sizes[group]
        cost += size * (size + 2 * held.sum(axis=1)) / len(labels)
        best = np.lexsort((cost, ~allowed))[0]
        fold_of[group] = best
        held[best, classes] += counts
    in_folds, never = int((fold_of >= 0).sum()), int(groups.sizes[fold_of < 0].sum())
    if in_folds < count:
        raise GeoError(
            f"{count} folds of {in_folds:,} groups that can be held out: {groups.describe()}",
            where=f"training.folds, training.group_km = {training.group_km:g}",
            hint=_smaller_step(latitude, longitude, training.group_km, len(labels) // count)
            or "lower training.folds",
        )
    if never > len(labels) / 10:
        hint = _smaller_step(latitude, longitude, training.group_km, len(labels) // count)
        warn(
            f"{never:,} of {len(labels):,} samples are in no fold, always in training: {groups.describe()}"
            + (f"; {hint}" if hint else "")
        )
    return groups.rows(fold_of)


def parts_held_out(
    sample_id: NDArray[np.object_],
    labels: NDArray[np.int64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    training: Training,
) -> list[NDArray[np.bool_]]:
    """What is held out, part by part: each of the `folds`, or without folds what is `held_out`. Arguments as theirs."""
    if training.folds > 1:
        fold = folds(sample_id, labels, latitude, longitude, training)
        return [fold == k for k in range(training.folds)]
    return [held_out(sample_id, labels, latitude, longitude, training)]


def resampling_groups(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], training: Training
) -> NDArray[np.int64] | None:
    """What a score's bootstrap draws: the groups (N,) of held-out samples if they were held out so, else None.

    Groups are held out whole, so those among the held-out samples alone are the groups of the split.
    """
    return (
        spatial_groups(latitude, longitude, training.group_km) if training.validation == "spatial" else None
    )


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
    parts = parts_held_out(ids, labels, latitude, longitude, config.training)
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


@dataclass(frozen=True)
class _Groups:
    """Spatial groups in an order of their own: rows by id, groups by their first row.

    Attributes:
        order: (N,) rows, ascending by id.
        of_row, labels: (N,) group and class, in that order.
        sizes: (G,) samples.
        counts: (C,) samples per class.
        starts, classes, amounts: a group's classes and how many samples each has, one group after the other.
    """

    order: NDArray[np.int64]
    of_row: NDArray[np.int64]
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    classes: NDArray[np.int64]
    amounts: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        sample_id: NDArray[np.object_],
        labels: NDArray[np.int64],
        latitude: NDArray[np.float64],
        longitude: NDArray[np.float64],
        training: Training,
    ) -> "_Groups":
        order = np.argsort(sample_id.astype(str), kind="stable")
        group = spatial_groups(latitude[order], longitude[order], training.group_km)
        own = labels[order]
        counts = np.bincount(own)
        pairs, amounts = np.unique(group * len(counts) + own, return_counts=True)
        sizes = np.bincount(group)
        starts = np.searchsorted(pairs // len(counts), np.arange(len(sizes) + 1))
        return cls(order, group, own, sizes, counts, starts, pairs % len(counts), amounts)

    def __len__(self) -> int:
        return len(self.sizes)

    def content(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        part = slice(self.starts[group], self.starts[group + 1])
        return self.classes[part], self.amounts[part]

    def rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value per group to a value per row, in the caller's order."""
        spread = np.empty(len(self.order), dtype=values.dtype)
        spread[self.order] = values[self.of_row]
        return spread

    def describe(self) -> str:
        n, g = len(self.order), len(self)
        return f"{n:,} samples form {g:,} group{'s' * (g != 1)}, the largest of {self.sizes.max():,}"


def _cached(config: Config) -> Embeddings | None:
    try:
        return read_store(find_store(config, "train"))
    except GeoError as error:
        warn(f"places alone are compared, no embeddings: {error}")
        return None


def _smaller_step(latitude: NDArray[np.float64], longitude: NDArray[np.float64], km: float, most: int) -> str:
    """What to set `training.group_km` to so that no group has more than `most` samples; empty if nothing helps."""
    for halvings in range(1, 11):
        step = float(f"{km / 2**halvings:.1g}")
        largest = int(np.bincount(spatial_groups(latitude, longitude, step)).max())
        if largest <= most:
            return f"--set training.group_km={step:g} makes the largest group {largest:,}"
    return ""


def _touching(
    points: NDArray[np.float64],
    first: NDArray[np.int64],
    size: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    group: NDArray[np.int64],
    step: float,
) -> NDArray[np.bool_]:
    """Of pairs of cubes, those with two samples within a step; pairs that others have linked already may be left out.

    Args:
        points: (N, 3), cube after cube.
        first, size: (M,) each cube's rows.
        left, right: (P,) the pairs.
        group: (M,) what is linked so far.
    """
    from scipy.spatial import cKDTree

    trees: dict[int, Any] = {}
    leader = list(range(int(group.max()) + 1))

    def lead(one: int) -> int:
        while leader[one] != one:
            leader[one] = leader[leader[one]]
            one = leader[one]
        return one

    touching = np.zeros(len(left), dtype=bool)
    # The strict bound of a query, moved up so that a step of just that length counts.
    bound = np.nextafter(step, np.inf)
    for k, (a, b) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        one, other = lead(int(group[a])), lead(int(group[b]))
        if one == other:
            continue
        small, large = (a, b) if size[a] <= size[b] else (b, a)
        if large not in trees:
            trees[large] = cKDTree(points[first[large] : first[large] + size[large]])
        distance = trees[large].query(
            points[first[small] : first[small] + size[small]], distance_upper_bound=bound
        )[0]
        if np.isfinite(distance).any():
            touching[k] = True
            leader[one] = other
    return touching


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
