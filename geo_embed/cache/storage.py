"""Where stores lie, and making, moving, listing and deleting whole ones; on a folder of this machine, or in a bucket.

The bytes of one are a `Storage` (medium.py): folder.py has those of a folder, objects.py those of a bucket. Nothing else in the package
touches them.
"""

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from geo_embed.buckets import Address
from geo_embed.cache import objects
from geo_embed.cache.folder import EARLIER_PARTIAL, FolderStorage
from geo_embed.cache.medium import Storage
from geo_embed.data.samples import SPLITS
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import (
    entries,
    is_leftover,
    remove_directory,
    replacing_directory,
    restore_replaced,
)

# Names that earlier versions gave to what they were writing, beside those that `files` gives.
_EARLIER_LEFTOVERS = (".creating", ".importing", ".replaced")
# Folder names may have 255 bytes, and fingerprint and temporary names want some of them.
_SLUG_LETTERS = 150

_SomePath = TypeVar("_SomePath", bound=Path)


def storage_at(root: Path) -> Storage:
    """The bytes of the store at a root."""
    if isinstance(root, Address):
        return objects.ObjectStorage(root)
    return FolderStorage(root)


def store_path(cache_dir: Path, backbone_name: str, fingerprint: str, split: str) -> Path:
    """Where a store lies. One that has this fingerprint under another name of the backbone is that store."""
    for directory in sorted(cache_dir.glob(f"*-{fingerprint}")):
        return directory / f"{split}.zarr"
    # A name that no folder can have is none of a folder.
    is_folder = False
    with suppress(OSError):
        is_folder = Path(backbone_name).is_dir()
    tail = "--".join(Path(backbone_name).parts[-2:]) if is_folder else backbone_name
    slug = re.sub(r"[^A-Za-z0-9._-]+", "--", tail).strip("-.")[:_SLUG_LETTERS] or "backbone"
    return cache_dir / f"{slug}-{fingerprint}" / f"{split}.zarr"


def store_paths(cache_dir: Path, split: str | None = None) -> list[Path]:
    """The roots of all stores below a cache, or of those of one split, sorted."""
    names = [f"{name}.zarr" for name in ((split,) if split else SPLITS)]
    paths = (folder / name for folder in folders(cache_dir) for name in names)
    return sorted(path for path in paths if has_store(path))


def has_store(path: Path) -> bool:
    """Whether a store stands at a path, whatever its state. In a bucket it does once it has a `zarr.json`, which is written last."""
    return storage_at(path).exists("zarr.json") if isinstance(path, Address) else os.path.lexists(path)


def lexists(path: Path) -> bool:
    """Whether anything has this name, be it what is left of a store."""
    return path.exists() if isinstance(path, Address) else os.path.lexists(path)


def folders(cache_dir: Path) -> list[Path]:
    """Where stores may lie: every folder of a cache, and what links lead to; nothing where there is no cache."""
    if isinstance(cache_dir, Address):
        return sorted(cache_dir.iterdir())
    return [path for path in entries(cache_dir) if not path.is_file()]


def is_inside(path: Path) -> bool:
    """Whether a store lies in the cache itself, and not where a link leads to: deleting never goes through a link."""
    return not path.is_symlink() and not path.parent.is_symlink()


def sibling_paths(path: Path) -> list[Path]:
    """The roots of all stores of the same fingerprint, whatever their split, sorted; and the superseded ones of this split."""
    return [*sorted(path.parent.glob("*.zarr")), *superseded_paths(path)]


@contextmanager
def creating(path: Path, *, replace: bool = True) -> Iterator[Storage]:
    """An empty root to write into, which takes its place at `path` once the block ends well.

    Args:
        path: of the store.
        replace: take the place of what is there; else the caller knows that nothing is.

    Raises:
        GeoError: the disk is full or read-only; what was there before stays.
    """
    if isinstance(path, Address):
        with objects.creating(path, aside=_aside(path) if replace else None) as storage:
            yield storage
    else:
        with replacing_directory(path) as temporary:
            yield FolderStorage(temporary)


def supersede(path: Path) -> None:
    """Move a store aside, as a source of embeddings, until the one that takes its place is whole."""
    if isinstance(path, Address):
        objects.move(path, _aside(path))
    else:
        with disk_errors(path):
            path.rename(_aside(path))


def _aside(path: _SomePath) -> _SomePath:
    """The next name that a store is given when it is moved aside."""
    numbers = [int(earlier.suffix[1:]) for earlier in _numbered(path)]
    return path.with_name(f"{path.name}.{max(numbers, default=0) + 1}")


def superseded_paths(path: Path) -> list[Path]:
    """Earlier stores of this split that were moved aside."""
    return [earlier for earlier in _numbered(path) if has_store(earlier)]


def _numbered(path: Path) -> list[Path]:
    return sorted(
        earlier
        for earlier in path.parent.glob(f"{path.name}.*")
        if re.fullmatch(r"\.[0-9]{1,9}", earlier.suffix)
    )


def leftovers(cache_dir: Path) -> Iterator[tuple[Path, Path]]:
    """(path, the store it belongs to) of whatever killed commands left beside or inside the stores of a cache, by any version.

    No link is followed, nor is one listed; nor a store that has yet to get its name back. In a bucket, that is objects without a
    `zarr.json`, and what writers of ranges held.
    """
    if isinstance(cache_dir, Address):
        for path in _inside(cache_dir):
            is_part = ".rows-" in path.name and path.suffix == ".lock"
            if is_part or (path.name.startswith(_store_of(path).name) and not has_store(path)):
                yield path, _store_of(path)
        return
    for path in _inside(cache_dir):
        store = _store_of(path)
        waits = path.name == f".{store.name}.replaced" and not os.path.lexists(store)
        if _is_leftover_root(path) and not waits:
            yield path, store
        elif path == store:
            for folder, _, names in os.walk(path):
                for inside in sorted(Path(folder) / name for name in names):
                    partial = is_leftover(inside) or inside.suffix == EARLIER_PARTIAL
                    if partial and not inside.is_symlink():
                        yield inside, store


def all_superseded(cache_dir: Path) -> Iterator[tuple[Path, Path]]:
    """(path, its successor) of every superseded store of a cache; no link is followed, nor listed."""
    for path in _inside(cache_dir):
        store = _store_of(path)
        if path.is_dir() and path in superseded_paths(store):
            yield path, store


def _inside(cache_dir: Path) -> Iterator[Path]:
    """What lies in the folders of a cache under the names of its splits, but for links and what they lead to."""
    for folder in folders(cache_dir):
        for path in folder.iterdir() if isinstance(folder, Address) else entries(folder):
            if is_inside(path) and _store_of(path).stem in SPLITS:
                yield path


def usage(path: Path) -> tuple[int, float]:
    """Bytes in all of a leftover or a store, and when it was last changed (seconds since 1970); now, if it has gone."""
    if isinstance(path, Address):
        return objects.usage(path)
    try:
        status = path.lstat()
    except OSError:
        return 0, time.time()
    size = FolderStorage(path).usage()[0] if stat.S_ISDIR(status.st_mode) else status.st_size
    return size, status.st_mtime


def delete(path: Path) -> None:
    """Delete what `leftovers` and `all_superseded` list, or a store; half of one is never taken for a source."""
    if isinstance(path, Address):
        objects.delete(path)
    elif path.is_dir() and not path.is_symlink():
        remove_directory(path)
    else:
        with disk_errors(path):
            path.unlink()


def clear_leftovers(path: Path) -> None:
    """Remove what killed commands left beside a store, which nobody else writes to now.

    A store that was about to be replaced, and isn't yet, gets its name back.
    """
    if isinstance(path, Address):
        # What lies there without a head goes when the next store is made: nobody takes it for one.
        return
    restore_replaced(path.parent, only=[path.name])
    for beside in path.parent.glob(f".{path.name}.*"):
        if _is_leftover_root(beside):
            with suppress(GeoError):
                delete(beside)


def _store_of(path: Path) -> Path:
    return path.with_name(path.name.strip(".").partition(".")[0] + ".zarr")


def _is_leftover_root(path: Path) -> bool:
    return path.name.startswith(".") and (is_leftover(path) or path.suffix in _EARLIER_LEFTOVERS)
