"""The stores of a cache at a glance, and what of it nothing needs any more."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geo_embed.cache.find import find_store
from geo_embed.cache.store import (
    PENDING,
    Store,
    damaged_chunks,
    is_busy,
    list_stores,
    open_store,
)
from geo_embed.config import Config
from geo_embed.data.samples import SPLITS
from geo_embed.errors import GeoError, disk_errors

# Litter younger than this may belong to a writer at work.
_LITTER_SECONDS = 3600


@dataclass(frozen=True)
class StoreSummary:
    """A store at a glance. `bytes` on disk, `age_days` since its last write, `runs` fitted on it."""

    path: Path
    split: str
    backbone: str
    fingerprint: str
    samples: int
    views: int
    dim: int
    complete: float
    bytes: int
    age_days: float
    runs: list[str]


@dataclass
class Garbage:
    """What nothing needs: paths and what they are; `bytes` in all; whether it was deleted."""

    stores: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    deleted: bool = False


def summarise(cache_dir: Path, runs: Mapping[str, list[str]]) -> list[StoreSummary]:
    """Every store of the cache, by path; `runs` gives the names of the runs fitted on each fingerprint."""
    return [summarise_store(store, runs) for store in list_stores(cache_dir)]


def summarise_store(store: Store, runs: Mapping[str, list[str]]) -> StoreSummary:
    """One store at a glance; `runs` gives the names of the runs fitted on each fingerprint."""
    files = [path.stat() for path in store.path.rglob("*") if path.is_file()]
    with damaged_chunks(store.path):
        complete = float((np.asarray(store.status[:]) != PENDING).mean())
    return StoreSummary(
        store.path,
        store.split,
        store.attrs["backbone"],
        store.fingerprint,
        *store.shape,
        complete=complete,
        bytes=sum(file.st_size for file in files),
        age_days=(time.time() - max(file.st_mtime for file in files)) / 86_400,
        runs=runs.get(store.fingerprint, []),
    )


def collect_garbage(
    config: Config, *, runs: Mapping[str, list[str]] | None = None, delete: bool = False
) -> Garbage:
    """Find, and on request delete, what no command will read again.

    Args:
        config: where the cache lies, and which stores belong to the present settings.
        runs: the names of the runs fitted on each fingerprint; where it is given, stores that no run was fitted on and
            that don't belong to the present settings are garbage, too.
        delete: do it, instead of only saying it.
    """
    garbage = Garbage()
    candidates = list(_litter(config.paths.cache_dir))
    if runs is not None:
        used = set(runs)
        for split in SPLITS:
            with suppress(GeoError):
                used.add(find_store(config, split).fingerprint)
        candidates += [
            (store.path, "no run was fitted on it")
            for store in list_stores(config.paths.cache_dir)
            if store.fingerprint not in used and not is_busy(store.path)
        ]
    for path, reason in candidates:
        size = _size(path)
        garbage.stores.append({"path": path, "reason": reason, "bytes": size})
        garbage.bytes += size
        if delete:
            with disk_errors(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    garbage.deleted = delete
    return garbage


def _litter(cache_dir: Path) -> Iterator[tuple[Path, str]]:
    now = time.time()
    for path in sorted(cache_dir.glob("*/*")):
        store = path.with_name(path.name.strip(".").partition(".")[0] + ".zarr")
        if is_busy(store):
            continue
        if path.name.startswith(".") and path.suffix in (".creating", ".importing", ".replaced"):
            if now - path.stat().st_mtime > _LITTER_SECONDS:
                yield path, "left by an interrupted command"
        elif path.name.startswith(f"{store.name}.") and path.suffix[1:].isdigit():
            if _is_complete(store):
                yield path, "an earlier state of the split, whose successor is whole"
        elif path == store:
            for part in sorted(path.rglob("*.partial")):
                if now - part.stat().st_mtime > _LITTER_SECONDS:
                    yield part, "left by an interrupted write"


def _is_complete(path: Path) -> bool:
    try:
        store = open_store(path, writable=False)
        with damaged_chunks(path):
            return bool((np.asarray(store.status[:]) != PENDING).all())
    except GeoError:
        return False


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
