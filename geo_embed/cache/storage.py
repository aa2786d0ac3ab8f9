"""The bytes of a store, by name below one root. Nothing else in the package touches them.

A root is a folder of this machine today. Another medium, such as an object store, has to offer what `Storage` offers, and
the functions below it that make, move and list whole roots; the rest of the package asks for no more.
"""

import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.data.samples import SPLITS
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import (
    entries,
    file_sha256,
    force_names,
    force_to_disk,
    is_leftover,
    is_unnamed,
    open_regular,
    remove_directory,
    replacing,
    replacing_all,
    replacing_directory,
    restore_replaced,
)

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

# Names that earlier versions gave to what they were writing, beside those that `files` gives.
_EARLIER_LEFTOVERS = (".creating", ".importing", ".replaced")
_EARLIER_PARTIAL = ".partial"
_CHECKSUM_BYTES = 4
# Folder names may have 255 bytes, and fingerprint and temporary names want some of them.
_SLUG_LETTERS = 150


@dataclass(frozen=True)
class Storage:
    """The bytes of one store.

    Attributes:
        root: its folder.
    """

    root: Path

    def zarr(self, *, writable: bool) -> "ZarrStore":
        """The same bytes for Zarr, which reads and writes metadata and ids by itself."""
        from zarr.storage import LocalStore

        return LocalStore(self.root, read_only=not writable)

    def exists(self, name: str) -> bool:
        """Whether anything has this name, such as `status/c/3/0`: what isn't a file of bytes fails once it is read."""
        return os.path.lexists(self.root / name)

    def size(self, name: str) -> int:
        """How many bytes a name has. Raises GeoError where it is absent, or no regular file."""
        with open_regular(self.root / name) as file:
            return os.fstat(file.fileno()).st_size

    def chunks(self, array: str) -> list[str]:
        """The names of an array's chunks that are there, such as `status/c/3/0`, sorted."""
        places = (self.root / array / "c").rglob("*")
        return sorted(
            place.relative_to(self.root).as_posix()
            for place in places
            if not place.name.startswith(".") and place.is_file()
        )

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a name. Raises GeoError where it can't be read."""
        with open_regular(self.root / name) as file:
            return file.read(count)

    def checksum(self, name: str) -> str:
        """The sha256 of the bytes of a name."""
        return file_sha256(self.root / name)

    def write_chunks(self, blocks: Mapping[str, NDArray[Any]]) -> None:
        """Write whole chunks by name, little-endian and contiguous, each in one step, with the CRC-32C of its bytes.

        Once this returns, none is lost in a power cut; in which order they get to the disk is open. In a root that has yet to get
        its name nothing is forced: `creating` does so for all of it.

        The bytes that Zarr's own codecs write, but without its half a millisecond a file and its copies: writing the full
        train split took it nine times as long as np.save.

        Raises:
            GeoError: the disk is full or read-only.
        """
        import google_crc32c

        paths = [self.root / name for name in blocks]
        for path in paths:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                # A chunk has a folder to itself and a range of chunks one writer: the rest was left by a killed one.
                for beside in path.parent.iterdir():
                    if is_leftover(beside) or beside.suffix == _EARLIER_PARTIAL:
                        beside.unlink(missing_ok=True)
                # Nothing but a chunk has its name: a link, a pipe or an empty folder is in its way.
                if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        with replacing_all(paths) as temporary:
            for written, path, block in zip(temporary, paths, blocks.values(), strict=True):
                raw = block.reshape(-1).view(np.uint8)
                checksum = google_crc32c.value(raw).to_bytes(_CHECKSUM_BYTES, "little")
                with disk_errors(path), written.open("wb", buffering=0) as file:
                    # An unbuffered write may take less than all, as on a disk that fills up just now.
                    for part in (raw.data, memoryview(checksum)):
                        while part:
                            part = part[file.write(part) :]

    def write_chunk(self, name: str, block: NDArray[Any]) -> None:
        """`write_chunks` for one."""
        self.write_chunks({name: block})

    def write_durably(self, name: str, data: bytes) -> None:
        """Write the bytes of a name in one step that a power cut doesn't undo. Raises GeoError as `write_chunks` does."""
        path = self.root / name
        with disk_errors(path):
            for beside in path.parent.glob(f".{path.name}.*"):
                if is_leftover(beside):
                    beside.unlink(missing_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)

    def force(self, names: Sequence[str]) -> None:
        """Let what others wrote under these names outlast a power cut: Zarr, or a writer that was killed before it waited for the disk."""
        paths = [self.root / name for name in names]
        if paths and not is_unnamed(paths[0]):
            with disk_errors(self.root):
                force_to_disk(*paths)
                force_names(*(path.parent for path in paths))

    def read_chunk(self, name: str, block: NDArray[Any]) -> None:
        """Read a chunk into `block`, which has the size of all of it.

        What Zarr would give, in a third of the time, since nothing is copied on the way.

        Raises:
            ValueError: its bytes are not those that were written.
            GeoError: it can't be read.
        """
        import google_crc32c

        with open_regular(self.root / name) as file:
            raw = block.reshape(-1).view(np.uint8)
            complete = file.readinto(raw.data) == len(raw)
            checksum = file.read(_CHECKSUM_BYTES + 1)
        if not complete or google_crc32c.value(raw).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
            raise ValueError(f"the checksum of {name} does not match")

    def read_parts(self, name: str, starts: Sequence[int], block: NDArray[Any]) -> None:
        """Read some bytes of a chunk, no checksum compared: into each `block[k]` as many as it has, from byte `starts[k]` on.

        Raises:
            ValueError: the chunk ends before.
            GeoError: it can't be read.
        """
        with open_regular(self.root / name) as file:
            for start, part in zip(starts, block, strict=True):
                file.seek(start)
                raw = part.reshape(-1).view(np.uint8)
                if file.readinto(raw.data) != len(raw):
                    raise ValueError(f"{name} ends before byte {start + len(raw):,}")

    def usage(self) -> tuple[int, float]:
        """Bytes in all, and when the last of them was written (seconds since 1970)."""
        files = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                # A link's own few bytes: what it points to is no part of the store, and may be gone.
                with suppress(OSError):
                    files.append((Path(folder) / name).lstat())
        return sum(file.st_size for file in files), max((file.st_mtime for file in files), default=0.0)


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
    return sorted(path for path in paths if os.path.lexists(path))


def folders(cache_dir: Path) -> list[Path]:
    """Where stores may lie: every folder of a cache, and what links lead to; nothing where there is no cache."""
    return [path for path in entries(cache_dir) if not path.is_file()]


def is_inside(path: Path) -> bool:
    """Whether a store lies in the cache itself, and not where a link leads to: deleting never goes through a link."""
    return not path.is_symlink() and not path.parent.is_symlink()


def sibling_paths(path: Path) -> list[Path]:
    """The roots of all stores of the same fingerprint, whatever their split, sorted; and the superseded ones of this split."""
    return [*sorted(path.parent.glob("*.zarr")), *superseded_paths(path)]


@contextmanager
def creating(path: Path) -> Iterator[Storage]:
    """An empty root to write into, which takes its place at `path` once the block ends well, replacing what is there.

    Raises:
        GeoError: the disk is full or read-only; what was there before stays.
    """
    with replacing_directory(path) as temporary:
        yield Storage(temporary)


def supersede(path: Path) -> None:
    """Move a store aside, as a source of embeddings, until the one that takes its place is whole."""
    numbers = [int(earlier.suffix[1:]) for earlier in superseded_paths(path)]
    with disk_errors(path):
        path.rename(path.with_name(f"{path.name}.{max(numbers, default=0) + 1}"))


def superseded_paths(path: Path) -> list[Path]:
    """Earlier stores of this split that were moved aside."""
    return sorted(
        earlier
        for earlier in path.parent.glob(f"{path.name}.*")
        if re.fullmatch(r"\.[0-9]{1,9}", earlier.suffix)
    )


def leftovers(cache_dir: Path) -> Iterator[tuple[Path, Path]]:
    """(path, the store it belongs to) of whatever killed commands left beside or inside the stores of a cache, by any version.

    No link is followed, nor is one listed; nor a store that has yet to get its name back.
    """
    for path in _inside(cache_dir):
        store = _store_of(path)
        waits = path.name == f".{store.name}.replaced" and not os.path.lexists(store)
        if _is_leftover_root(path) and not waits:
            yield path, store
        elif path == store:
            for folder, _, names in os.walk(path):
                for inside in sorted(Path(folder) / name for name in names):
                    partial = is_leftover(inside) or inside.suffix == _EARLIER_PARTIAL
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
        for path in entries(folder):
            if is_inside(path) and _store_of(path).stem in SPLITS:
                yield path


def usage(path: Path) -> tuple[int, float]:
    """Bytes in all of a leftover or a store, and when it was last changed (seconds since 1970); now, if it has gone."""
    try:
        status = path.lstat()
    except OSError:
        return 0, time.time()
    size = Storage(path).usage()[0] if stat.S_ISDIR(status.st_mode) else status.st_size
    return size, status.st_mtime


def delete(path: Path) -> None:
    """Delete what `leftovers` and `all_superseded` list, or a store; half of one is never taken for a source."""
    if path.is_dir() and not path.is_symlink():
        remove_directory(path)
    else:
        with disk_errors(path):
            path.unlink()


def clear_leftovers(path: Path) -> None:
    """Remove what killed commands left beside a store, which nobody else writes to now.

    A store that was about to be replaced, and isn't yet, gets its name back.
    """
    restore_replaced(path.parent, only=[path.name])
    for beside in path.parent.glob(f".{path.name}.*"):
        if _is_leftover_root(beside):
            with suppress(GeoError):
                delete(beside)


def _store_of(path: Path) -> Path:
    return path.with_name(path.name.strip(".").partition(".")[0] + ".zarr")


def _is_leftover_root(path: Path) -> bool:
    return path.name.startswith(".") and (is_leftover(path) or path.suffix in _EARLIER_LEFTOVERS)
