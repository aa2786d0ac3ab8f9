"""Who may write to a store: one writer per range of rows, or one for all of it.

A lock file per writer lies beside the store: `train.lock` for all of it, `train.rows-0-4096.lock` for a range. Writers begin
under one short lock, `train.layout.lock`: two that overlap never both begin, and none is refused because another merely looked.
In a bucket each of them is a lease (leases.py) of the same name.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.cache.leases import held_leases, holder, lease, watch
from geo_embed.cache.storage import clear_leftovers, folders
from geo_embed.data.samples import SPLITS
from geo_embed.errors import BusyError
from geo_embed.files import is_locked, lock, lock_holder, restore_replaced

_HINT = "wait until it is done, or stop it; it loses nothing"
# Laying out a store of a million samples takes seconds; everything else under this lock takes less.
_LAYOUT_SECONDS = 120.0
# Somebody may be looking at a lock file just now, for a moment.
_LOOKED_AT_SECONDS = 1.0


@contextmanager
def only_writer(path: Path, rows: slice | None = None) -> Iterator[None]:
    """Hold a store, or a range of its rows, as the only writer. The kernel lets go of a dead writer's lock.

    Args:
        path: the store's, which need not exist yet.
        rows: the range; all of the store if left out, and whatever is to take its place. An empty one excludes nobody.

    Raises:
        BusyError: somebody else writes to some of these rows, by process, host and time.
    """
    if rows is not None and rows.start == rows.stop:
        yield
        return
    with ExitStack() as held:
        # Whether the holder of a lease lives takes a while to see; others shouldn't wait for it.
        if isinstance(path, Address):
            leased = [file for file, taken in _lock_files(path) if _overlap(rows, taken)]
            watch(_addresses(leased), busy=_BUSY, where=path, hint=_HINT)
        with changing_layout(path):
            others = _locked(path)
            for file, taken in others:
                if _overlap(rows, taken):
                    raise _busy(path, file)
            _remove_dead(path, others)
            file = _lock_file(path, rows)
            held.enter_context(
                exclusive(
                    file,
                    busy=_BUSY,
                    where=path,
                    hint=_HINT,
                    keep=rows is None,
                    wait_seconds=_LOOKED_AT_SECONDS,
                )
            )
            if not others:
                clear_leftovers(path)
        yield


@contextmanager
def changing_layout(path: Path) -> Iterator[None]:
    """Hold for a moment the right to change what store stands at `path`, or who writes to it. Others wait for it."""
    busy = "another command has been laying out this store for minutes"
    file = path.with_suffix(".layout.lock")
    with exclusive(file, busy=busy, where=path, hint=_HINT, keep=False, wait_seconds=_LAYOUT_SECONDS):
        yield


def exclusive(
    file: Path, *, busy: str, where: Path, hint: str, keep: bool, wait_seconds: float
) -> AbstractContextManager[None]:
    """`files.lock`, or in a bucket `leases.lease`, which has the same arguments."""
    if isinstance(file, Address):
        return lease(file, busy=busy, where=where, hint=hint, wait_seconds=wait_seconds)
    return lock(file, busy=busy, where=where, hint=hint, keep=keep, wait_seconds=wait_seconds)


def is_busy(path: Path) -> bool:
    """Whether somebody is writing to this store, or to a part of it, now."""
    return bool(_locked(path))


def give_back(path: Path) -> None:
    """Give a store its name back that was about to be replaced when the writer was killed."""
    if not isinstance(path, Address):
        restore_replaced(path.parent, is_busy, only=[path.name])


def put_right(cache_dir: Path) -> None:
    """`give_back` for every store of a cache."""
    for folder in [] if isinstance(cache_dir, Address) else folders(cache_dir):
        restore_replaced(folder, is_busy, only=[f"{split}.zarr" for split in SPLITS])


def refuse_other_writers(path: Path, rows: slice | None) -> None:
    """Raise BusyError where somebody beside the writer of `rows` is writing. To be asked under `changing_layout`."""
    for file, _ in _locked(path):
        if file != _lock_file(path, rows):
            raise _busy(path, file)


_BUSY = "another extraction is writing to this store"


def _busy(path: Path, file: Path) -> BusyError:
    holding = holder(file) if isinstance(file, Address) else lock_holder(file)
    return BusyError(f"{_BUSY}: {holding}", where=path, hint=_HINT)


def _lock_file(path: Path, rows: slice | None) -> Path:
    return path.with_suffix(".lock" if rows is None else f".rows-{rows.start}-{rows.stop}.lock")


def _lock_files(path: Path) -> list[tuple[Path, slice | None]]:
    """What may be a lock file of this store, whether there or not, and what it stands for."""
    files: list[tuple[Path, slice | None]] = [(_lock_file(path, None), None)]
    for file in sorted(path.parent.glob(f"{path.stem}.rows-*.lock")):
        bounds = re.fullmatch(
            r"rows-(\d+)-(\d+)", file.name.removeprefix(f"{path.stem}.").removesuffix(".lock")
        )
        if bounds:
            files.append((file, slice(int(bounds[1]), int(bounds[2]))))
    return files


def _locked(path: Path) -> list[tuple[Path, slice | None]]:
    """Lock files of this store that somebody holds, and what they stand for."""
    files = _lock_files(path)
    if isinstance(path, Address):
        held = held_leases(_addresses([file for file, _ in files]))
        return [(file, taken) for file, taken in files if file in held]
    return [(file, taken) for file, taken in files if is_locked(file)]


def _remove_dead(path: Path, others: list[tuple[Path, slice | None]]) -> None:
    """Remove the lock files of killed writers of ranges."""
    held = {file for file, _ in others}
    dead = [file for file in path.parent.glob(f"{path.stem}.rows-*.lock") if file not in held]
    if isinstance(path, Address):
        buckets.delete(_addresses(dead))
        return
    for file in dead:
        with suppress(OSError):
            file.unlink()


def _addresses(files: Sequence[Path]) -> list[Address]:
    return [file for file in files if isinstance(file, Address)]


def _overlap(a: slice | None, b: slice | None) -> bool:
    return a is None or b is None or max(a.start, b.start) < min(a.stop, b.stop)
