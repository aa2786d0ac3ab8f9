"""The stores of a cache at a glance, and what of it nothing needs any more."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geo_embed.cache.find import choose_store, fingerprints_of, fitting_stores
from geo_embed.cache.locks import changing_layout, is_busy, put_right
from geo_embed.cache.objects import unread
from geo_embed.cache.storage import all_superseded, is_inside, leftovers, lexists, usage
from geo_embed.cache.storage import delete as delete_files
from geo_embed.cache.store import PENDING, Store, count_missing, lacking, list_stores, open_store, read_status
from geo_embed.cache.verify import StoreProblem
from geo_embed.config import Config, Paths
from geo_embed.console import warn
from geo_embed.data.samples import SPLITS
from geo_embed.errors import GeoError
from geo_embed.files import LEFTOVER_SECONDS, entries, is_locked, lock_beside, name_behind
from geo_embed.files import leftovers as old_leftovers


@dataclass(frozen=True)
class StoreSummary:
    """A store at a glance. `bytes` on disk, `age_days` since its last write, `runs` fitted on it.

    `missing` is how many pictures were looked for and have no embedding. `variant` is what was done to its pictures first, nothing to nearly all; its `runs` are those fitted on the pictures as they are.
    `feature` is what its embeddings are; `further` has by name the features beside them: `dim`, and how many pictures are `lacking` it.
    """

    path: Path
    split: str
    backbone: str
    fingerprint: str
    samples: int
    views: int
    dim: int
    complete: float
    missing: int
    bytes: int
    age_days: float
    runs: list[str]
    variant: dict[str, Any]
    feature: str
    further: dict[str, dict[str, int]]


@dataclass
class Garbage:
    """What nothing needs: paths and what they are; `bytes` in all; whether it was deleted.

    `kept` are imports that no run was fitted on: nothing here can make them again, so they go by name alone.
    """

    stores: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    deleted: bool = False
    kept: list[dict[str, Any]] = field(default_factory=list)


def summarise(
    stores: Iterable[Store], runs: Mapping[str, list[str]]
) -> tuple[list[StoreSummary], list[StoreProblem]]:
    """Stores at a glance, and what is wrong with those that can't be read; `runs` as in `summarise_store`."""
    summaries, problems = [], []
    for store in stores:
        try:
            summaries.append(summarise_store(store, runs))
        except GeoError as error:
            problems.append(StoreProblem(store.path, "the whole store", error.what))
    return summaries, problems


def summarise_store(store: Store, runs: Mapping[str, list[str]]) -> StoreSummary:
    """One store at a glance; `runs` gives the names of the runs fitted on each fingerprint. Raises GeoError for damage."""
    size, last_write = store.storage.usage()
    status = read_status(store)
    return StoreSummary(
        store.path,
        store.split,
        store.attrs["backbone"],
        store.fingerprint,
        *store.shape,
        complete=float((status != PENDING).mean()),
        missing=count_missing(status),
        bytes=size,
        age_days=(time.time() - last_write) / 86_400,
        runs=[run for name in fingerprints_of(store) for run in runs.get(name, [])],
        variant=store.variant.recorded(),
        feature=store.feature,
        further={
            name: {"dim": store.dim_of(name), "lacking": lacking(store, name)} for name in store.further
        },
    )


def collect_garbage(
    config: Config,
    *,
    runs: Mapping[str, list[str]] | None = None,
    imports: Collection[str] = (),
    delete: bool = False,
) -> Garbage:
    """Find, and on request delete, what no command will read again.

    Args:
        config: where the cache lies, and which stores belong to the present settings.
        runs: the names of the runs fitted on each fingerprint; where it is given, stores that no run was fitted on and
            that don't belong to the present settings are garbage, too.
        imports: names of imports that may be garbage like other stores.
        delete: do it, instead of only saying it.

    Raises:
        GeoError: there is no import of such a name.
    """
    cache_dir = config.paths.cache_dir
    put_right(cache_dir)
    candidates = list(_litter(cache_dir))
    garbage = Garbage(deleted=delete)
    if runs is not None:
        used = set(runs)
        for split in SPLITS:
            for name in config.model.backbone_names:
                with suppress(GeoError):
                    model = config.model.with_backbone(name)
                    used.add(choose_store(cache_dir, model, split).fingerprint)
        # Of a store that was taken over, a run may know the one name, and the other split's store have the other.
        stores = list_stores(cache_dir)
        for name in config.model.backbone_names:
            fitting = fitting_stores(stores, config.model.with_backbone(name), cache_dir)
            used |= {store.fingerprint for store in fitting}
        for names in map(fingerprints_of, stores):
            used |= set() if used.isdisjoint(names) else {*names}
        imported = {store.attrs["backbone"] for store in stores if store.attrs.get("imported")}
        for name in imports:
            if name not in imported:
                raise GeoError(
                    f"there is no import {name!r:.200}",
                    where="--import",
                    hint="`geo cache ls` lists the stores",
                )
        for store in stores:
            if (
                not used.isdisjoint(fingerprints_of(store))
                or not is_inside(store.path)
                or is_busy(store.path)
            ):
                continue
            if store.attrs.get("imported") and store.attrs["backbone"] not in imports:
                garbage.kept.append({"path": store.path, "backbone": store.attrs["backbone"]})
            else:
                candidates.append((store.path, store.path, "no run was fitted on it"))
    for path, owner, reason in candidates:
        size, _ = usage(path)
        if delete and not _delete(path, owner):
            continue
        garbage.stores.append({"path": path, "reason": reason, "bytes": size})
        garbage.bytes += size
    elsewhere = [(path, "left by an interrupted command") for path in _litter_elsewhere(config.paths)]
    elsewhere += [(path, "a chunk kept from a bucket, not read for thirty days") for path in unread()]
    for path, reason in elsewhere:
        size, _ = usage(path)
        if delete:
            delete_files(path)
        garbage.stores.append({"path": path, "reason": reason, "bytes": size})
        garbage.bytes += size
    return garbage


def _delete(path: Path, store: Path) -> bool:
    """Delete what belongs to a store, unless somebody has begun to write to it, or it can't be deleted, which is said."""
    try:
        with changing_layout(store):
            if is_busy(store) or not lexists(path):
                return False
            delete_files(path)
    except GeoError as error:
        warn(f"not deleted: {error}")
        return False
    return True


def _litter(cache_dir: Path) -> Iterator[tuple[Path, Path, str]]:
    """What killed commands left, once it is too old to be somebody's work, and superseded stores whose successor is whole; each
    with the store that it belongs to.
    """
    now = time.time()
    for path, store in leftovers(cache_dir):
        if now - usage(path)[1] > LEFTOVER_SECONDS and not is_busy(store):
            inside = store in path.parents
            yield path, store, f"left by an interrupted {'write' if inside else 'command'}"
    for path, store in all_superseded(cache_dir):
        if not is_busy(store) and _is_complete(store):
            yield path, store, "an earlier state of the split, whose successor is whole"


def _litter_elsewhere(paths: Paths) -> list[Path]:
    """What killed commands left an hour ago among the runs, in them, and among the submissions."""
    litter = old_leftovers(paths.submissions_dir) + old_leftovers(paths.runs_dir)
    for run in entries(paths.runs_dir, hidden=False):
        if not run.is_symlink():
            litter += old_leftovers(run)
    return [path for path in litter if not is_locked(lock_beside(path.with_name(name_behind(path))))]


def _is_complete(path: Path) -> bool:
    try:
        return bool((read_status(open_store(path, writable=False)) != PENDING).all())
    except GeoError:
        return False
