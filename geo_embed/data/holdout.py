"""Which samples are held out: at random, by place, or fold by fold; and whether the held-out ones leak.

A random split scores too well where samples lie metres apart: the head has seen the place. With
`training.validation = "spatial"` samples closer than `training.group_km` are held out together, or not at all.
Every choice depends on ids, labels, places and seed, and not on the order of rows.
"""

import numpy as np
from numpy.typing import NDArray

from geo_embed.config import Training
from geo_embed.console import warn
from geo_embed.data.spatial import Groups, smaller_step
from geo_embed.errors import GeoError

# The fold of samples that are never held out.
ALWAYS_TRAINING = -1


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
    groups = Groups.of(sample_id, labels, latitude, longitude, training)
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
        hint = smaller_step(latitude, longitude, training.group_km, wanted) or "raise training.val_split"
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

    groups = Groups.of(sample_id, labels, latitude, longitude, training)
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
            hint=smaller_step(latitude, longitude, training.group_km, len(labels) // count)
            or "lower training.folds",
        )
    if never > len(labels) / 10:
        hint = smaller_step(latitude, longitude, training.group_km, len(labels) // count)
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


def shuffle_by_class(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The rows of labels (N,), class after class, each class's in an order drawn from the seed.

    Dealt to folds on and on, from class to class, each class is spread evenly, and so is the whole.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def stratified_split(
    sample_id: NDArray[np.object_], labels: NDArray[np.int64], val_split: float, seed: int
) -> NDArray[np.bool_]:
    """Choose validation samples so that every class keeps its share, and at least one training sample.

    The choice depends on the ids, labels and seed alone, not on the order of rows.

    Args:
        sample_id: (N,) unique ids.
        labels: (N,) classes.
        val_split: share to hold out, in (0, 1).
        seed: of the choice.

    Returns:
        (N,) True for validation.
    """
    order = np.argsort(sample_id.astype(str), kind="stable")
    by_class = order[shuffle_by_class(labels[order], seed)]
    counts = np.unique(labels, return_counts=True)[1]

    # Largest remainders, so that the classes' rounded shares add up to the share of the whole.
    ideal = counts * val_split
    take = np.minimum(np.floor(ideal).astype(int), counts - 1)
    spare = counts - 1 - take
    wanted = min(round(len(labels) * val_split) - int(take.sum()), int((spare > 0).sum()))
    remainder = np.where(spare > 0, ideal - take, -1.0)
    take[np.argsort(-remainder, kind="stable")[: max(wanted, 0)]] += 1

    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[by_class[rank < np.repeat(take, counts)]] = True
    return chosen
