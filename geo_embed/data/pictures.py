"""The pictures of a split, by the names that its CSV gives them: loose files of a folder, or in tar archives or Parquet files.

A loose file comes first. Where there is none of that name, the shards are looked into: `*.tar` and `*.parquet` in the folder, the
one file that stands in the folder's place, or one beside it that has its name (`train_images.tar`).
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NoReturn, TypeVar

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.data import images
from geo_embed.data.shards import COMPRESSED, PARQUET, TAR, Shards
from geo_embed.data.table import look_alike, shown
from geo_embed.errors import AbsentError, GeoError
from geo_embed.files import entries, open_regular

_SHARDS = (TAR, PARQUET)
_JPEG_ENDS = b"\xff\xd8\xff\xd9"
# Names in shards among which one that looks like a missing one is sought.
_MOST_COMPARED = 2_000_000
Answer = TypeVar("Answer")


class Pictures:
    """The pictures of a split. For any number of threads; shards are looked into once, when the first name asks for it.

    Args:
        root: a folder, or a shard, also in a bucket; what lies there is found out.
        index_dir: where indexes of tar archives are kept; None for nowhere.
    """

    def __init__(self, root: Path, index_dir: Path | None = None) -> None:
        self.root, self._index_dir = root, index_dir
        self._lock = threading.Lock()
        self._opened: Shards | GeoError | None = None

    def __reduce__(self) -> tuple[type["Pictures"], tuple[Path, Path | None]]:
        """For other processes: they open the shards themselves."""
        return Pictures, (self.root, self._index_dir)

    def read(self, name: str) -> bytes:
        """The bytes of a picture.

        Raises:
            FileNotFoundError: there is none of this name.
            UnreadableImage: it can't be read, is no regular file, too large, or two shards have other bytes under its name.
            GeoError: a shard can't be read.
        """

        def from_file(path: Path) -> bytes:
            if not isinstance(path, Address):
                return images.read_picture(path)
            _refuse_size(self._entry(name).size)
            stored = buckets.get(path)
            return _absent(path) if stored is None else stored[0]

        def from_shard(shards: Shards, places: range) -> bytes:
            if fault := shards.fault(places):
                raise images.UnreadableImage(fault)
            _refuse_size(shards.size(places))
            return shards.read(places)

        return self._answer(name, from_file, from_shard)

    def size(self, name: str) -> int:
        """How many bytes a picture has; 0 for what is no regular file. Raises as `read`."""

        def from_file(path: Path) -> int:
            if isinstance(path, Address):
                return self._entry(name).size
            status = path.stat()
            return status.st_size if stat.S_ISREG(status.st_mode) else 0

        return self._answer(name, from_file, lambda shards, places: shards.size(places))

    def part(self, name: str, first: int, count: int) -> bytes:
        """`count` bytes of a picture, from `first` on. Raises as `read`."""

        def from_file(path: Path) -> bytes:
            if isinstance(path, Address):
                entry = self._entry(name)
                return buckets.get_part(path, first, count, entry.e_tag) or b""
            with open_regular(path) as file:
                file.seek(first)
                return file.read(count)

        return self._answer(name, from_file, lambda shards, places: shards.read(places, first, count))

    def find_fault(self, name: str, *, accept_damage: bool = False) -> str:
        """Why a picture can't be read, looking as little as possible; empty where it seems fine; as `images.find_fault`.

        In a bucket no picture is looked at: each would cost a request or two.
        """
        if self._has_loose and isinstance(self.root, Address):
            if name in self._listing:
                return ""
        elif self._has_loose:
            fault = images.find_fault(self.root / name, accept_damage=accept_damage)
            if not fault or self._is_loose(name):
                return fault

        def from_shard(shards: Shards, places: range) -> str:
            if fault := shards.fault(places):
                return fault
            if isinstance(self.root, Address):
                return ""
            size = shards.size(places)
            ends = shards.read(places, 0, 2) + shards.read(places, max(size - 2, 0), 2)
            return "" if ends == _JPEG_ENDS else images.why_undecodable(self.read(name), accept_damage)

        try:
            return self._answer(name, _absent, from_shard)
        except OSError as error:
            return error.strerror or str(error)
        except (GeoError, images.UnreadableImage) as error:
            return str(error)

    def look_up(self, names: Sequence[str]) -> list[str | None]:
        """Of names that no loose file has: None where no shard has it either, else why it can't be read, or nothing.

        Raises:
            GeoError: a shard can't be read.
        """
        # A cell that names no picture is no reason to look for shards.
        return self._shards.look_up(names) if any(names) else [None] * len(names)

    def find_near(self, name: str) -> str:
        """What to say of a name that no shard has, where one has a name that a person would take for it; else empty."""
        for near, shard in self._near.get(look_alike(name.rpartition("/")[2]), ()):
            if look_alike(near) == look_alike(name):
                return f"{shard.name} has {shown(near)}: the names must be the same"
            if near.endswith(f"/{name}"):
                return f"{shard.name} has {shown(near)}: pack inside the folder, tar -C FOLDER -cf {shard.name} ."
        return ""

    def where(self, name: str) -> Path:
        """Where a picture lies, or would, for people; one in a shard as if the shard were a folder."""
        path = self.root / name
        with suppress(GeoError):
            if not (self._has_loose and self._is_loose(name)) and (places := self._shards.find(name)):
                return self._shards.shard(places) / name
        return path

    def are_there(self) -> bool:
        """Whether there is anything at all to look for pictures in."""
        return self._has_loose or bool(self._paths())

    def dear_at_random(self) -> int:
        """How many bytes of pictures, unpacked, lie in groups of rows that are unpacked again for every picture read at random; 0 where
        there are only loose files, or where all groups can be kept. Raises GeoError where a shard can't be read.
        """
        return 0 if self._opened is None and self._has_loose else self._shards.dear_at_random()

    def _answer(
        self, name: str, from_file: Callable[[Path], Answer], from_shard: Callable[[Shards, range], Answer]
    ) -> Answer:
        """Of the loose file of a name, or of its place in the shards. Raises FileNotFoundError where there is neither."""
        path = self.root / name
        if self._has_loose:
            try:
                return from_file(path)
            except (FileNotFoundError, AbsentError):
                if not self._shards.count:
                    raise
        places = self._shards.find(name)
        if not places:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return from_shard(self._shards, places)

    def files_in(self, folder: str) -> Iterator[str]:
        """The names of the files in a folder below the root, or of the root itself; none where it can't be listed."""
        if isinstance(self.root, Address):
            yield from self._folders.get(folder, ())
            return
        with suppress(OSError), os.scandir(self.root / folder) as entries:
            yield from (entry.name for entry in entries if entry.is_file())

    def is_folder(self, name: str) -> bool:
        """Whether a folder has this name."""
        if isinstance(self.root, Address):
            return name in self._folders
        return os.path.isdir(self.root / name)  # noqa: PTH112

    def _is_loose(self, name: str) -> bool:
        """Whether anything outside the shards has this name."""
        if isinstance(self.root, Address):
            return name in self._listing
        return os.path.lexists(self.root / name)

    def _entry(self, name: str) -> buckets.Entry:
        return self._listing.get(name) or _absent(self.root / name)

    @cached_property
    def _listing(self) -> dict[str, buckets.Entry]:
        """What lies in the bucket below the root, asked for once."""
        assert isinstance(self.root, Address)
        return buckets.listing(self.root)

    @cached_property
    def _folders(self) -> dict[str, list[str]]:
        folders: dict[str, list[str]] = {}
        for name in self._listing:
            folder, _, base = name.rpartition("/")
            folders.setdefault(folder, []).append(base)
        return folders

    @cached_property
    def _has_loose(self) -> bool:
        """Whether the folder holds anything but shards; the first of a million files says so."""
        if isinstance(self.root, Address):
            return any(not name.endswith((*_SHARDS, *COMPRESSED)) for name in self._listing)
        try:
            with os.scandir(self.root) as entries:
                return any(not entry.name.endswith((*_SHARDS, *COMPRESSED)) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    @property
    def _shards(self) -> Shards:
        """Raises GeoError, each time the same, where a shard can't be read."""
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = Shards(self._paths(), self._index_dir)
                except GeoError as error:
                    self._opened = error
            if isinstance(self._opened, GeoError):
                raise self._opened
            return self._opened

    def _paths(self) -> list[Path]:
        """The shards. Raises GeoError where there is nothing but compressed archives, of which no picture can be read by itself."""
        if _is_file(self.root):
            return [self.root]
        if isinstance(self.root, Address):
            paths: list[Path] = [self.root / name for name in self._listing if "/" not in name]
            is_folder = bool(self._listing)
        else:
            paths, is_folder = entries(self.root), os.path.isdir(self.root)  # noqa: PTH112
        if not is_folder:
            beside = (self.root.with_name(self.root.name + ending) for ending in (*_SHARDS, *COMPRESSED))
            paths = [path for path in beside if _is_file(path)]
        if not self._has_loose:
            names = {path.name for path in paths}
            compressed = [
                path for path in paths if _unpacked_name(path) not in {"", *names} and _is_file(path)
            ]
            if compressed:
                return compressed
        return [path for path in paths if path.suffix in _SHARDS and _is_file(path)]

    @cached_property
    def _near(self) -> dict[str, list[tuple[str, Path]]]:
        near: dict[str, list[tuple[str, Path]]] = {}
        if self._shards.count <= _MOST_COMPARED:
            for name, shard in self._shards.names():
                near.setdefault(look_alike(name.rpartition("/")[2]), []).append((name, shard))
        return near


def _unpacked_name(path: Path) -> str:
    """What a compressed archive is called once it is unpacked; empty for all else."""
    ending = next((ending for ending in COMPRESSED if path.name.endswith(ending)), "")
    return path.name.removesuffix(ending) + TAR if ending else ""


def _is_file(path: Path) -> bool:
    if isinstance(path, Address):
        return path.is_file()
    # pathlib raises where the folder may not be looked into.
    return os.path.isfile(path)  # noqa: PTH113


def _refuse_size(size: int) -> None:
    if size > images.MAX_BYTES:
        raise images.UnreadableImage(
            f"{size:,} bytes are more than a file of this kind may have ({images.MAX_BYTES:,})"
        )


def _absent(path: Path) -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
