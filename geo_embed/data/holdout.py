"""Which samples are held out: at random, by place, or fold by fold. Every split and every fold of the package is dealt here.

A random split scores too well where samples lie metres apart: the head has seen the place. With
`training.validation = "spatial"` samples closer than `training.group_km` are held out together, or not at all. Samples that
share a picture are so in any case (`duplicates.py`); where none do, they have no part in any draw.
A run's splits depend on ids, labels, places and seed, and not on the order of rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.config import Training
from geo_embed.console import counted, warn
from geo_embed.data.spatial import merge_groups, number_by_first, spatial_groups
from geo_embed.errors import GeoError

# The fold of samples that are never held out.
ALWAYS_TRAINING = -1
# An inner validation has so many rows, where they are no more than this share of the training rows: with fewer, the
# noise of the score, some 0.3/√n, is what chooses.
_ENOUGH_ROWS, _MOST_OF_ROWS = 1000, 0.25
# Of `group_km`, where groups are too large: to a thousandth.
_HALVINGS = 10


@dataclass(frozen=True)
class Places:
    """Samples as a split sees them.

    Attributes:
        sample_id: (N,) unique ids, text.
        labels: (N,) classes.
        latitude, longitude: (N,) degrees.
        tied: (N,) groups of samples that share pictures; None where nothing is shared, or known of it.
    """

    sample_id: NDArray[np.object_]
    labels: NDArray[np.int64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    tied: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, rows: NDArray[Any]) -> "Places":
        """Some of them, by mask or index."""
        tied = None if self.tied is None else self.tied[rows]
        return Places(
            self.sample_id[rows], self.labels[rows], self.latitude[rows], self.longitude[rows], tied
        )


def validation_masks(places: Places, training: Training) -> list[NDArray[np.bool_]]:
    """A run's validation samples (N,): of each of its `training.folds`, or without folds those of `held_out`.

    Raises:
        GeoError: as `held_out` and `folds` do.
    """
    if training.folds > 1:
        fold = folds(places, training)
        return [fold == k for k in range(training.folds)]
    return [held_out(places, training)]


def inner_held_out(places: Places, train: NDArray[np.bool_], training: Training) -> NDArray[np.bool_]:
    """Of a run's training samples, those that choose between settings, held out as the run's own validation samples are.

    Args:
        places: N samples.
        train: (N,) True for those that the run is fitted on.
        training: as in `held_out`; more than `val_split` of them are taken where that would be too few to choose by.

    Returns:
        (N,) True for the samples that choose; none of them where the run holds none out either.
    """
    chosen = np.zeros(len(train), dtype=bool)
    rows = np.flatnonzero(train)
    if len(rows) < len(train):
        share = max(training.val_split, min(_MOST_OF_ROWS, _ENOUGH_ROWS / len(rows)))
        chosen[rows] = held_out(places.take(rows), training.model_copy(update={"val_split": share}))
    return chosen


def held_out(places: Places, training: Training) -> NDArray[np.bool_]:
    """Choose validation samples: `training.val_split` of them, as `training.validation` says.

    Random: `stratified_split`; then of samples that share pictures, whole groups in the place of as many samples, as below.
    Spatial: whole groups in an order drawn from the seed, each taken where it
    brings the classes closer to the counts of the random split, then where it brings the whole closer to its share.
    Every class keeps a training sample; a group that is too large to hold out stays in training.

    Args:
        places: N samples.
        training: validation, val_split, group_km and split_seed.

    Returns:
        (N,) True for validation.

    Raises:
        GeoError: spatial, and no group can be held out.
    """
    quota_of = stratified_split(places.sample_id, places.labels, training.val_split, training.split_seed)
    wanted = int(quota_of.sum())
    if not wanted:
        return quota_of
    if training.validation == "random":
        return _with_whole_groups(quota_of, places, training.split_seed)
    groups = _group(places, training.group_km)
    quota = np.bincount(groups.labels[quota_of[groups.order]], minlength=len(groups.counts))
    chosen, taken = _choose(groups, quota, groups.counts - 1, training.split_seed)
    held_count = int(taken.sum())
    if held_count < wanted / 2:
        hint = _smaller_step(places, training.group_km, wanted) or (
            "raise training.val_split"
            if len(groups) > 1
            else "samples of one place can't be held out by place: --set training.validation=random"
        )
        if not held_count:
            raise GeoError(
                f"no group of samples can be held out: {groups.describe()}, and {wanted:,} are to be held out",
                where=f"training.group_km = {training.group_km:g}",
                hint=hint,
            )
        warn(
            f"only {held_count:,} of {counted(wanted, 'sample could', 'samples could')} be held out: {groups.describe()}; {hint}"
        )
    return groups.rows(chosen)


def _choose(
    groups: "_Groups", quota: NDArray[np.int64], most: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Groups (G,) that together come as close to a quota as an order drawn from the seed brings them; and their samples of
    each class (C,).

    Args:
        groups: to choose among.
        quota, most: (C,) samples that are wanted of each class, and that may be taken at all.
        seed: of the order.
    """
    taken = np.zeros_like(quota)
    chosen = np.zeros(len(groups), dtype=bool)
    wanted = int(quota.sum())
    # First round: a group is taken where it lowers Σ (taken − quota)² over the classes, which grows by Σ n (n + 2 (taken − quota))
    # for its n samples of each class. Second round: where it brings the sum of all closer to what is wanted.
    for fill in (False, True):
        for group in np.random.default_rng(seed).permutation(len(groups)):
            classes, counts = groups.content(group)
            if chosen[group] or (taken[classes] + counts > most[classes]).any():
                continue
            size = counts.sum()
            if fill:
                better = size < 2 * (wanted - taken.sum())
            else:
                better = (counts * (counts + 2 * (taken - quota)[classes])).sum() < 0
            if better:
                chosen[group] = True
                taken[classes] += counts
    return chosen, taken


def _with_whole_groups(chosen: NDArray[np.bool_], places: Places, seed: int) -> NDArray[np.bool_]:
    """A choice (N,) with whole groups of samples that share pictures in the place of as many such samples; the others stay."""
    tied = _tied_groups(places)
    if tied is None:
        return chosen
    shares, groups = tied
    total, alone, quota = (
        np.bincount(places.labels[rows], minlength=int(places.labels.max()) + 1)
        for rows in (slice(None), chosen & ~shares, chosen & shares)
    )
    whole = chosen & ~shares
    whole[shares] = groups.rows(_choose(groups, quota, total - alone - 1, seed)[0])
    return whole


def _shares(tied: NDArray[np.int64] | None) -> NDArray[np.bool_] | None:
    """(N,) whether a sample shares pictures with another one; None where none does."""
    if tied is None or not len(tied):
        return None
    shares = np.bincount(tied)[tied] > 1
    return shares if shares.any() else None


def _tied_groups(places: Places) -> "tuple[NDArray[np.bool_], _Groups] | None":
    """(N,) whether a sample shares pictures with another one, and the groups of those that do; None where none does."""
    shares = _shares(places.tied)
    if shares is None or places.tied is None:
        return None
    return shares, _grouped(places.take(shares), places.tied[shares])


def folds(places: Places, training: Training) -> NDArray[np.int64]:
    """Deal samples into `training.folds` parts of the same mixture; each is held out once, by the others predicted.

    Every class has a training sample whichever fold is held out. What can't be dealt so is in no fold but −1, always
    training: the only sample of a class; spatial: the only group of a class, and a group of more than half of all
    samples. Such samples get no out-of-fold prediction.

    Args:
        places: N samples.
        training: folds ≥ 2, validation, group_km and split_seed.

    Returns:
        (N,) in [0, folds), or −1. No fold is empty.

    Raises:
        GeoError: fewer samples, or groups, than folds.
    """
    if training.folds < 2:
        raise GeoError(
            f"{training.folds} fold holds nothing out", where="training.folds", hint="give 2 or more"
        )
    return (
        _random_folds(places, training)
        if training.validation == "random"
        else _spatial_folds(places, training)
    )


def _random_folds(places: Places, training: Training) -> NDArray[np.int64]:
    order = _by_id(places.sample_id)
    by_class = order[shuffle_by_class(places.labels[order], training.split_seed)]
    dealt = by_class[np.bincount(places.labels)[places.labels[by_class]] > 1]
    if len(dealt) < training.folds:
        raise GeoError(
            f"{training.folds} folds of {len(dealt):,} samples that can be held out "
            f"({counted(len(places), 'sample')}, {len(places) - len(dealt):,} of them alone in their class)",
            where="training.folds",
            hint=_fewer_folds(len(dealt)),
        )
    fold = np.full(len(places), ALWAYS_TRAINING, dtype=np.int64)
    fold[dealt] = np.arange(len(dealt)) % training.folds
    tied = _tied_groups(places)
    if tied is None:
        return fold
    # Samples that share pictures are dealt again, group by group, to what the others have made of the folds.
    shares, groups = tied
    alone = fold.copy()
    alone[shares] = ALWAYS_TRAINING
    total = np.bincount(places.labels)
    so_far = _content_of(alone, places.labels, training.folds, len(total))
    fold[shares] = groups.rows(_deal_groups(groups, so_far, total, len(places), training.split_seed))
    if len(np.unique(fold[fold >= 0])) < training.folds:
        raise GeoError(
            f"{training.folds} folds of {len(dealt):,} samples, of which {int(shares.sum()):,} share pictures with others",
            where="training.folds",
            hint=_fewer_folds(len(np.unique(fold[fold >= 0]))),
        )
    return fold


def _fewer_folds(most: int) -> str:
    """What to do where no more than so many folds hold something out."""
    if most < 2:
        return "do without --folds: a fold needs samples that can be held out, and so a class two of them"
    return "lower training.folds"


def _content_of(
    fold: NDArray[np.int64], labels: NDArray[np.int64], count: int, classes: int
) -> NDArray[np.int64]:
    """How many samples of each class are in each fold: (folds, C)."""
    content = np.zeros((count, classes), dtype=np.int64)
    np.add.at(content, (fold[fold >= 0], labels[fold >= 0]), 1)
    return content


def _deal_groups(
    groups: "_Groups",
    dealt: NDArray[np.int64],
    total: NDArray[np.int64],
    samples: int,
    seed: int,
    *,
    all_of_them: bool = False,
) -> NDArray[np.int64]:
    """The fold of each group (G,); `ALWAYS_TRAINING` where a class would have no training sample, or a group is most of all.

    Args:
        groups: to deal.
        dealt: (folds, C) samples that are dealt already; changed.
        total: (C,) samples of each class.
        samples: their sum.
        seed: of the order among groups of one size.
        all_of_them: deal those, too.
    """
    fold_of = np.full(len(groups), ALWAYS_TRAINING, dtype=np.int64)
    random = np.random.default_rng(seed).permutation(len(groups))
    # The largest first: the small ones even out what they leave. Each goes where the folds stay most alike.
    for group in random[np.argsort(-groups.sizes[random], kind="stable")]:
        classes, counts = groups.content(group)
        after = dealt[:, classes] + counts
        allowed = (after < total[classes]).all(axis=1)
        if not all_of_them and (not allowed.any() or groups.sizes[group] > samples / 2):
            continue
        # The growth of Σ dealt² ÷ all, over the classes and the whole: even parts make it least.
        cost = (counts * (after + dealt[:, classes]) / total[classes]).sum(axis=1)
        size = groups.sizes[group]
        cost += size * (size + 2 * dealt.sum(axis=1)) / samples
        best = np.lexsort((cost, ~allowed))[0]
        fold_of[group] = best
        dealt[best, classes] += counts
    return fold_of


def _spatial_folds(places: Places, training: Training) -> NDArray[np.int64]:
    count, samples = training.folds, len(places)
    groups = _group(places, training.group_km)
    dealt = np.zeros((count, len(groups.counts)), dtype=np.int64)
    fold_of = _deal_groups(groups, dealt, groups.counts, samples, training.split_seed)
    in_folds, never = int((fold_of >= 0).sum()), int(groups.sizes[fold_of < 0].sum())
    if in_folds < count:
        raise GeoError(
            f"{count} folds of {in_folds:,} groups that can be held out: {groups.describe()}",
            where=f"training.folds, training.group_km = {training.group_km:g}",
            hint=_smaller_step(places, training.group_km, samples // count) or _fewer_folds(in_folds),
        )
    if never > samples / 10:
        hint = _smaller_step(places, training.group_km, samples // count)
        only = sum(
            int(groups.sizes[group])
            for group in np.flatnonzero(fold_of < 0).tolist()
            if groups.is_all_of_a_class(group)
        )
        why = f" ({only:,} of them in the only group of a class)" if only else ""
        warn(
            f"{never:,} of {samples:,} samples are in no fold, always in training{why}: {groups.describe()}"
            + (f"; {hint}" if hint else "")
        )
    return groups.rows(fold_of)


def inner_groups(places: Places, training: Training, folds: int) -> tuple[NDArray[np.int64], float]:
    """What stays together in folds within a run's training samples: samples that share pictures, and places.

    Where the run's own split is by place, the same places as there. Else those closer than `group_km`, halved until no
    group is larger than half a fold, ten times at most: towns that run into one another would be the whole country.

    Args:
        places: N samples.
        training: validation and group_km.
        folds: how many there will be.

    Returns:
        Groups (N,), and the distance (km).
    """
    most = max(1, len(places) // (2 * folds))
    halvings = 0 if training.validation == "spatial" else _HALVINGS
    for km in (training.group_km / 2**k for k in range(halvings + 1)):
        group = spatial_groups(places.latitude, places.longitude, km)
        if int(np.bincount(group).max(initial=0)) <= most:
            break
    return (group if places.tied is None else merge_groups(group, places.tied)), km


def class_folds(
    labels: NDArray[np.int64], folds: int, seed: int, tied: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Folds (N,) of rows with these labels (N,), each with near equal shares of every class. Unlike `folds`, this depends on the
    order of rows. Rows that are `tied` (N,) come into one fold, if that leaves none empty.
    """
    return _keep_together(deal(shuffle_by_class(labels, seed), folds), labels, folds, seed, tied)


def random_folds(
    count: int, folds: int, seed: int, tied: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Folds (N,) of `count` rows, whatever their labels, of sizes that differ by one at most; but for rows that are `tied` (N,),
    which come into one fold, if that leaves none empty.
    """
    fold = np.random.default_rng(seed).permutation(count) % folds
    return _keep_together(fold, np.zeros(count, dtype=np.int64), folds, seed, tied)


def _keep_together(
    fold: NDArray[np.int64],
    labels: NDArray[np.int64],
    count: int,
    seed: int,
    tied: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """The same folds (N,), but for rows that are tied to others: these are dealt again, group by group."""
    shares = _shares(tied)
    if shares is None or tied is None:
        return fold
    total = np.bincount(labels)
    alone = np.where(shares, ALWAYS_TRAINING, fold)
    groups = _group_rows(np.arange(int(shares.sum())), number_by_first(tied[shares]), labels[shares])
    so_far = _content_of(alone, labels, count, len(total))
    again = fold.copy()
    again[shares] = groups.rows(_deal_groups(groups, so_far, total, len(labels), seed, all_of_them=True))
    # Of fewer groups than folds some fold would be empty, and nothing could be chosen at all.
    return again if len(np.unique(again)) == len(np.unique(fold)) else fold


def deal(order: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Folds (N,) of rows that are dealt on and on in this order (N,), a permutation."""
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def shuffle_by_class(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The rows of labels (N,), class after class, each class's in an order drawn from the seed.

    Dealt to folds on and on, from class to class, each class is spread evenly, and so is the whole.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _by_id(sample_id: NDArray[Any]) -> NDArray[np.int64]:
    """The order (N,) of ids as text, whichever kind of array they are."""
    return np.argsort(sample_id.astype(object).astype(str), kind="stable")


def stratified_split(
    sample_id: NDArray[Any], labels: NDArray[np.int64], val_split: float, seed: int
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
    order = _by_id(sample_id)
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


@dataclass(frozen=True)
class _Groups:
    """Spatial groups, independent of the order of rows: rows by id, groups by their first row.

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

    def __len__(self) -> int:
        return len(self.sizes)

    def content(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A group's classes, and how many samples it has of each."""
        part = slice(self.starts[group], self.starts[group + 1])
        return self.classes[part], self.amounts[part]

    def is_all_of_a_class(self, group: int) -> bool:
        """Whether some class has samples in this group alone."""
        classes, amounts = self.content(group)
        return bool((amounts == self.counts[classes]).any())

    def rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value per group to a value per row, in the caller's order."""
        spread = np.empty(len(self.order), dtype=values.dtype)
        spread[self.order] = values[self.of_row]
        return spread

    def describe(self) -> str:
        """Their numbers, for people."""
        n, g = len(self.order), len(self)
        return f"{counted(n, 'sample forms', 'samples form')} {counted(g, 'group')}, the largest of {self.sizes.max():,}"


def _group(places: Places, km: float) -> _Groups:
    order = _by_id(places.sample_id)
    group = spatial_groups(places.latitude[order], places.longitude[order], km)
    if places.tied is not None:
        group = merge_groups(group, places.tied[order])
    return _group_rows(order, group, places.labels[order])


def _grouped(places: Places, group: NDArray[np.int64]) -> _Groups:
    """Groups that are given (N,), whatever their numbers."""
    order = _by_id(places.sample_id)
    return _group_rows(order, number_by_first(group[order]), places.labels[order])


def _group_rows(order: NDArray[np.int64], group: NDArray[np.int64], labels: NDArray[np.int64]) -> _Groups:
    """Groups and labels (N,) of rows in an order (N,)."""
    counts = np.bincount(labels)
    # Group and class as one number: sorted, a group's classes stand side by side.
    pairs, amounts = np.unique(group * len(counts) + labels, return_counts=True)
    sizes = np.bincount(group)
    starts = np.searchsorted(pairs // len(counts), np.arange(len(sizes) + 1))
    return _Groups(order, group, labels, sizes, counts, starts, pairs % len(counts), amounts)


def _smaller_step(places: Places, km: float, most: int) -> str:
    """What to set `training.group_km` to so that no group has more than `most` samples; empty if nothing helps, or none has."""

    def largest_of(step: float) -> int:
        return int(np.bincount(spatial_groups(places.latitude, places.longitude, step)).max())

    if largest_of(km) <= most:
        return ""
    for halvings in range(1, _HALVINGS + 1):
        step = float(f"{km / 2**halvings:.1g}")
        largest = largest_of(step)
        if largest <= most:
            return f"--set training.group_km={step:g} makes the largest group {largest:,}"
    return ""
