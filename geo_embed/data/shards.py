"""Files that hold many pictures, tar archives and Parquet files: which names they have, and the bytes of each, from any thread.

Names are keys, as the CSV writes them; no file is ever opened by one. A shard is opened anew for every read, so that threads
share nothing, and one that was replaced meanwhile is noticed.
"""

import hashlib
import io
import json
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.console import progress
from geo_embed.data import tar
from geo_embed.data.images import UnreadableImage
from geo_embed.errors import AbsentError, GeoError, PlainError
from geo_embed.files import TEXT_TYPES, open_regular, read_columns, replacing

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

TAR, PARQUET = ".tar", ".parquet"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
# Of one shard; an index's columns take some thirty bytes a picture.
_MOST_PICTURES = 1 << 30
_INDEX_COLUMNS = ("name", "start", "size", "kind")
# Of what an index says; one more whenever that changes.
_INDEX_VERSION = 1
_ABOUT = b"geo_embed"
# Of an object in a bucket, at once: what lies between two headers of an archive is mostly less, and a request costs as much as megabytes.
_RANGE_BYTES = 4 << 20
# At once, while they are opened.
_LOOKED_INTO = 8
# Once unpacked: what a group of rows may take, and what all that are kept may. Two are always kept, since threads that read in
# order are at the end of one and the beginning of the next.
MOST_OF_GROUP = 512 << 20
_KEPT_BYTES, _KEPT = 1 << 30, 2
# In a place within Parquet: the group of rows, and the row in it.
_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_BYTES_TYPES = ("binary", "large_binary")
_PATH_COLUMNS, _BYTES_COLUMNS = ("path", "file_name"), ("bytes", "image")
_AS_HERE = "its pictures lie in columns path (or file_name) and bytes (or image), or in ones of {bytes, path}"


# Of a file its bytes and when it was written; of an object in a bucket its bytes and its tag.
Stamp = tuple[int, int | str]


@dataclass(frozen=True)
class Names:
    """What a shard holds, by name.

    Attributes:
        names: of its n pictures, as bytes; in a tar archive each once.
        start, size: (n,) int64, where each lies and how many bytes it has; in Parquet the row, and the column.
        kind: (n,) uint8, an index of `tar.KINDS`: what isn't 0 isn't read.
    """

    names: "pa.Array"
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    kind: NDArray[np.uint8]


class Tar:
    """A tar archive of pictures.

    Attributes:
        path: the file.
        names: what it holds.

    Args:
        path: the file.
        index_dir: where its index is kept for the next time; None for nowhere.

    Raises:
        GeoError: it can't be read, is compressed, no tar archive, damaged or cut short.
    """

    def __init__(self, path: Path, index_dir: Path | None = None) -> None:
        self.path = path
        with _open_shard(path) as (file, self._stamp):
            kept = None if index_dir is None else index_dir / _index_name(path)
            names = None if kept is None else _read_index(kept, self._stamp)
            if names is None:
                names = _walk(file, self._stamp[0], path)
                if kept is not None:
                    # A cache that may only be read, or is full, costs the next command some seconds.
                    with suppress(GeoError, OSError):
                        _write_index(kept, names, self._stamp)
            self.names = names

    def size(self, start: int, size: int) -> int:
        """How many bytes the picture has that `names` places there."""
        return size

    def read(self, start: int, size: int, first: int = 0, count: int | None = None) -> bytes:
        """The bytes of a picture, or `count` of them from `first` on.

        Raises:
            GeoError: the file can't be read, or is another one by now.
        """
        return _read_part(self.path, self._stamp, start, size, first, count)


class Groups:
    """Groups of rows of Parquet files, unpacked; the last few that were asked for are kept. For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Path, int, int], _Group] = OrderedDict()

    def get(
        self, key: tuple[Path, int, int], size: int, unpack: "Callable[[], pa.ChunkedArray]"
    ) -> "pa.ChunkedArray":
        """The values of a group, unpacked by the first that asks for it, while others that do wait."""
        with self._lock:
            group = self._kept.setdefault(key, _Group(size))
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT and sum(kept.size for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        with group.lock:
            if group.values is None:
                group.values = unpack()
            return group.values


class _Group:
    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.values: pa.ChunkedArray | None = None


class _Chunk(NamedTuple):
    """A column's part of a group of rows: where it begins in the file, its bytes there and unpacked, and whether both are the same."""

    rows: int
    begin: int
    stored: int
    unpacked: int
    is_plain: bool


class Parquet:
    """A Parquet file of pictures. Rows are unpacked by groups: cheap in the file's order, dear at random.

    Where the file isn't compressed, the pictures lie in it byte by byte. Once a group was unpacked it is known where, and they are read
    there.

    Attributes:
        path: the file.
        names: what it holds.
        packed: bytes of its pictures, unpacked, that can't be read in their place.

    Args:
        path: the file.
        groups: where unpacked groups of rows are kept.

    Raises:
        GeoError: it can't be read, is damaged, has no pictures, or groups of rows that are too large.
    """

    def __init__(self, path: Path, groups: Groups) -> None:
        self.path, self._groups = path, groups
        with _open_shard(path) as (file, self._stamp):
            opened = _open_parquet(file, path)
            self._meta = opened.metadata
            try:
                self._columns = _picture_columns(opened.schema_arrow)
                self._chunks = [_chunks_of(self._meta, leaf) for _, leaf in self._columns]
            # A damaged head claims anything.
            except Exception as error:
                raise _unreadable(error, path) from error
            if not self._columns:
                raise GeoError(
                    f"no column of this Parquet file holds pictures by name; it has {', '.join(opened.schema_arrow.names)[:200]}",
                    where=path,
                    hint=_AS_HERE,
                )
            self._check_groups()
            self.packed = sum(
                chunk.unpacked for chunks in self._chunks for chunk in chunks if not chunk.is_plain
            )
            # Of groups that were unpacked once and aren't compressed: (2, rows) where each picture starts in the file, and its size.
            self._places: dict[tuple[int, int], NDArray[np.int64]] = {}
            self.names = self._read_names(opened)

    def size(self, start: int, size: int) -> int:
        """How many bytes the picture has that `names` places there; its group of rows is unpacked for it."""
        place = self._find_place(start, size)
        return place[1] if place else int(self._value(start, size).as_buffer().size)

    def read(self, start: int, size: int, first: int = 0, count: int | None = None) -> bytes:
        """The bytes of a picture, or `count` of them from `first` on.

        Raises:
            UnreadableImage: the row has none.
            GeoError: the file can't be read, is damaged, or is another one by now.
        """
        if place := self._find_place(start, size):
            return _read_part(self.path, self._stamp, *place, first, count)
        view = memoryview(self._value(start, size).as_buffer())[first:]
        return bytes(view if count is None else view[:count])

    def _find_place(self, start: int, column: int) -> tuple[int, int] | None:
        """Where a picture's bytes start in the file, and how many there are; None where that isn't known, or they don't lie there as such."""
        places = self._places.get((start >> _ROW_BITS, column))
        if places is None:
            return None
        begin, size = places[:, start & _ROW_MASK].tolist()
        return (begin, size) if begin else None

    def _value(self, start: int, column: int) -> "pa.BinaryScalar":
        group, row = start >> _ROW_BITS, start & _ROW_MASK
        values = self._groups.get(
            (self.path, group, column),
            self._chunks[column][group].unpacked,
            partial(self._unpack, group, column),
        )
        value = values[row]
        if not value.is_valid:
            raise UnreadableImage(f"its row in {self.path.name} has no bytes, only a name")
        return value

    def _unpack(self, group: int, column: int) -> "pa.ChunkedArray":
        leaf, chunk = self._columns[column][1], self._chunks[column][group]
        with _open_shard(self.path) as (file, stamp):
            if stamp != self._stamp:
                raise _changed(self.path)
            values = _read_leaf(_open_parquet(file, self.path, self._meta), group, leaf, self.path)
            if len(values) != chunk.rows:
                raise _unreadable(
                    ValueError(f"{len(values):,} of {chunk.rows:,} values in a group"), self.path
                )
            if chunk.is_plain and (group, column) not in self._places:
                self._places[group, column] = _places_of(values, file, chunk)
        return values

    def _read_names(self, opened: "parquet.ParquetFile") -> Names:
        import pyarrow as pa

        names, starts, columns = [], array("q"), array("q")
        for column, (path_leaf, _) in enumerate(self._columns):
            for group in range(self._meta.num_row_groups):
                values = _read_leaf(opened, group, path_leaf, self.path).to_pylist()
                for row, name in enumerate(values):
                    if name:
                        names.append(name.encode("utf-8", "surrogatepass"))
                        starts.append(group << _ROW_BITS | row)
                        columns.append(column)
        return Names(
            pa.array(names, pa.large_binary()),
            np.array(starts, dtype=np.int64),
            np.array(columns, dtype=np.int64),
            np.zeros(len(names), dtype=np.uint8),
        )

    def _check_groups(self) -> None:
        for (_, leaf), chunks in zip(self._columns, self._chunks, strict=True):
            largest = max((chunk.unpacked for chunk in chunks), default=0)
            if largest > MOST_OF_GROUP:
                raise GeoError(
                    f"a group of its rows has {largest / 1e6:,.0f} MB in column {leaf}, and to read one picture all of them "
                    f"are unpacked: up to {MOST_OF_GROUP / 1e6:,.0f} MB can be",
                    where=self.path,
                    hint="write it with smaller ones, to_parquet(…, row_group_size=100, compression=None), or pack a tar archive",
                )


class Shards:
    """Every picture that some shards hold, by name.

    Attributes:
        count: of the pictures.

    Args:
        paths: of the shards.
        index_dir: where indexes of tar archives are kept; None for nowhere.

    Raises:
        GeoError: the first of the shards that can't be used, and why.
    """

    def __init__(self, paths: Sequence[Path], index_dir: Path | None) -> None:
        groups = Groups()

        def opened(path: Path) -> Tar | Parquet:
            return Parquet(path, groups) if path.name.endswith(PARQUET) else Tar(path, index_dir)

        self._shards: list[Tar | Parquet] = []
        with (
            progress("look into shards", len(paths), "files") as advance,
            ThreadPoolExecutor(_LOOKED_INTO) as pool,
        ):
            for shard in pool.map(opened, paths):
                self._shards.append(shard)
                advance(1)
        # 40 bytes a picture: a hash in place of its name, and where it lies. Two names of one hash, once in half a million such
        # tables of 10 million names, would be refused as one name of two pictures.
        names = [shard.names for shard in self._shards]
        keys = np.concatenate([_keys(shard_names.names) for shard_names in names] or [np.zeros(0, np.uint64)])
        order = np.argsort(keys, kind="stable")
        of = np.repeat(
            np.arange(len(names), dtype=np.uint32), [len(shard_names.names) for shard_names in names]
        )
        self._keys, self._of = keys[order], of[order]
        self._start, self._size, self._kind = (
            np.concatenate([np.zeros(0, dtype), *(getattr(shard_names, column) for shard_names in names)])[
                order
            ]
            for column, dtype in (("start", np.int64), ("size", np.int64), ("kind", np.uint8))
        )
        self.count = len(keys)

    def find(self, name: str) -> range:
        """The places of a name; more than one where several shards have it."""
        key = np.uint64(_key(_clean(os.fsencode(name))))
        first = int(np.searchsorted(self._keys, key))
        stop = first
        while stop < len(self._keys) and self._keys[stop] == key:
            stop += 1
        return range(first, stop)

    def look_up(self, names: Sequence[str]) -> list[str | None]:
        """Of each name what `fault` says of it; None where no shard has it."""
        if not self.count:
            return [None] * len(names)
        keys = np.fromiter((_key(_clean(os.fsencode(name))) for name in names), np.uint64, len(names))
        first, stop = (np.searchsorted(self._keys, keys, side=side) for side in ("left", "right"))
        faults: list[str | None] = [None if absent else "" for absent in first == stop]
        odd = (stop - first > 1) | (self._kind[np.minimum(first, self.count - 1)] > 0)
        for i in np.flatnonzero(odd & (stop > first)):
            faults[i] = self.fault(range(int(first[i]), int(stop[i])))
        return faults

    def fault(self, places: range) -> str:
        """Why the picture at these places can't be read, as far as can be told without reading one that has one place; else empty."""
        place = places[0]
        if self._kind[place]:
            return f"is {tar.KINDS[self._kind[place]]} ({self.shard(places).name})"
        for other in places[1:]:
            if (
                self._kind[other]
                or self._size_at(place) != self._size_at(other)
                or self._at(place) != self._at(other)
            ):
                shard_paths = [self._shard_at(at).path for at in (place, other)]
                where = (
                    f"twice in {shard_paths[0].name}"
                    if shard_paths[0] == shard_paths[1]
                    else f"in {shard_paths[0].name} and in {shard_paths[1].name}"
                )
                return f"is {where}, with other bytes: which one is meant can't be told"
        return ""

    def size(self, places: range) -> int:
        """How many bytes the picture at these places has."""
        return self._size_at(places[0])

    def read(self, places: range, first: int = 0, count: int | None = None) -> bytes:
        """The bytes of the picture at these places, or `count` of them from `first` on; see `Tar.read` and `Parquet.read`."""
        return self._at(places[0], first, count)

    def shard(self, places: range) -> Path:
        """The file that the picture lies in."""
        return self._shard_at(places[0]).path

    def names(self) -> Iterator[tuple[str, Path]]:
        """Every name, with its shard."""
        for shard in self._shards:
            for name in shard.names.names:
                yield os.fsdecode(_clean(name.as_py())), shard.path

    def dear_at_random(self) -> int:
        """How many bytes have to be unpacked in groups, where they are more than are kept; else 0."""
        size = sum(shard.packed for shard in self._shards if isinstance(shard, Parquet))
        return size if size > _KEPT_BYTES else 0

    def _shard_at(self, place: int) -> Tar | Parquet:
        return self._shards[int(self._of[place])]

    def _size_at(self, place: int) -> int:
        return self._shard_at(place).size(int(self._start[place]), int(self._size[place]))

    def _at(self, place: int, first: int = 0, count: int | None = None) -> bytes:
        return self._shard_at(place).read(int(self._start[place]), int(self._size[place]), first, count)


def _clean(name: bytes) -> bytes:
    """A name as it is compared: `./a//b` is `a/b`. Nothing is resolved: `..` stays, and what begins with a slash does so."""
    if b"//" not in name and not name.startswith((b"./", b"/")) and b"/./" not in name:
        return name
    return b"/" * name.startswith(b"/") + b"/".join(
        part for part in name.split(b"/") if part not in (b"", b".")
    )


def _key(name: bytes) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(name)


def _keys(names: "pa.Array") -> NDArray[np.uint64]:
    return np.fromiter((_key(_clean(name)) for name in names.to_pylist()), np.uint64, len(names))


def _walk(file: BufferedReader, size: int, path: Path) -> Names:
    """What a tar archive holds. Of a name that it has several times the last one stands, as for `tar`."""
    import pyarrow as pa

    def read(start: int, count: int) -> bytes:
        if isinstance(path, Address):
            file.seek(start)
            return file.read(count)
        # Past the buffer, which would be filled anew for every header.
        os.lseek(file.fileno(), start, os.SEEK_SET)
        return os.read(file.fileno(), count)

    by_name: dict[bytes, tuple[int, int, int]] = {}
    for member in tar.members(read, size, path):
        by_name[_clean(member.name)] = member[1:]
    columns = np.array(list(by_name.values()), dtype=np.int64).reshape(-1, 3)
    return Names(
        pa.array(list(by_name), pa.large_binary()),
        columns[:, 0],
        columns[:, 1],
        columns[:, 2].astype(np.uint8),
    )


def _read_part(path: Path, stamp: Stamp, start: int, size: int, first: int, count: int | None) -> bytes:
    """`count` of the `size` bytes that start somewhere in a shard, from `first` on; all of the rest if left out."""
    count = max(size - first if count is None else min(count, size - first), 0)
    data: bytes | None = b""
    if isinstance(path, Address):
        data = buckets.get_part(path, start + first, count, str(stamp[1])) if count else b""
    else:
        with open_regular(path) as file:
            if _stamp(file) != stamp:
                raise _changed(path)
            file.seek(start + first)
            data = file.read(count)
    if data is None or len(data) < count:
        raise _changed(path)
    return data


def _places_of(values: "pa.ChunkedArray", file: BufferedReader, chunk: _Chunk) -> NDArray[np.int64]:
    """(2, n) where each of n values starts in a file, 0 where it isn't found, and its size, in a column that isn't compressed."""
    # Plain values follow one another, each after its length in four bytes, with heads of pages between them; what is repeated may lie
    # there once. What is found is the value, byte by byte, whatever the format has between them.
    file.seek(chunk.begin)
    raw, after = file.read(chunk.stored), 0
    places = np.zeros((2, len(values)), dtype=np.int64)
    for row, value in enumerate(values):
        if not value.is_valid:
            continue
        data = value.as_buffer().to_pybytes()
        plain = len(data).to_bytes(4, "little") + data
        offset = raw.find(plain, after)
        if offset < 0:
            offset = raw.find(plain)
        if offset >= 0:
            places[:, row] = chunk.begin + offset + 4, len(data)
            after = offset + len(plain)
    return places


@contextmanager
def _open_shard(path: Path) -> Iterator[tuple[BufferedReader, Stamp]]:
    """A file, or an object in a bucket, which is read by ranges; and what tells it from others that had its name.

    Raises:
        GeoError: there is none, or it can't be read.
    """
    if not isinstance(path, Address):
        with open_regular(path) as file:
            yield file, _stamp(file)
        return
    entry = buckets.head(path)
    if entry is None:
        raise AbsentError("there is no such object", where=path)
    yield BufferedReader(_Object(path, entry), _RANGE_BYTES), (entry.size, entry.e_tag)


class _Object(io.RawIOBase):
    """An object in a bucket as a file."""

    def __init__(self, address: Address, entry: buckets.Entry) -> None:
        self._address, self._entry, self._place = address, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._entry.size)[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._entry.size - self._place)
        if count <= 0:
            return 0
        data = buckets.get_part(self._address, self._place, count, self._entry.e_tag)
        if data is None:
            raise _changed(self._address)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _stamp(file: BufferedReader) -> Stamp:
    """What tells a file from the one that had its name before: its size in bytes, and when it was written (ns)."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _changed(path: Path) -> GeoError:
    return GeoError("this file was replaced while it was read", where=path, hint="run the same command again")


def _index_name(path: Path) -> str:
    place = hashlib.sha256(os.fsencode(str(path.resolve()))).hexdigest()[:16]
    return f"{path.name[:100]}-{place}{PARQUET}"


def _read_index(path: Path, stamp: Stamp) -> Names | None:
    """The index of a tar archive with this stamp; None where there is none, of an earlier one, or a damaged one."""
    with suppress(GeoError, KeyError, ValueError):
        table = read_columns(path, _INDEX_COLUMNS, most_rows=_MOST_PICTURES)
        if (table.schema.metadata or {})[_ABOUT] == json.dumps([_INDEX_VERSION, *stamp]).encode():
            start, size, kind = (table[name].to_numpy() for name in _INDEX_COLUMNS[1:])
            return Names(table["name"].combine_chunks(), start, size, kind)
    return None


def _write_index(path: Path, names: Names, stamp: Stamp) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table([names.names, names.start, names.size, names.kind], names=list(_INDEX_COLUMNS))
    about = {_ABOUT: json.dumps([_INDEX_VERSION, *stamp]).encode()}
    with replacing(path, forced=False) as temporary:
        parquet.write_table(table.replace_schema_metadata(about), temporary, compression="zstd")


def _open_parquet(
    file: BufferedReader, path: Path, meta: "parquet.FileMetaData | None" = None
) -> "parquet.ParquetFile":
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Read ahead, damaged pages have ended the process.
        return parquet.ParquetFile(
            pa.PythonFile(file, mode="r"), metadata=meta, pre_buffer=False, page_checksum_verification=True
        )
    except PlainError:
        raise
    except Exception as error:
        raise _unreadable(error, path) from error


def _read_leaf(opened: "parquet.ParquetFile", group: int, leaf: str, path: Path) -> "pa.ChunkedArray":
    """One column of a group of rows: `image`, or a struct's `image.bytes`."""
    import pyarrow.compute as pc

    try:
        table = opened.read_row_group(group, columns=[leaf], use_threads=False)
        column = table.column(0)
        if "." in leaf:
            column = pc.struct_field(column, leaf.rpartition(".")[2])
        # Text that isn't UTF-8 passes the reader.
        column.validate(full=True)
    except PlainError:
        raise
    # Arrow's decoders fail in many ways.
    except Exception as error:
        raise _unreadable(error, path) from error
    return column


def _unreadable(error: Exception, path: Path) -> GeoError:
    why = str(error).partition("\n")[0] or type(error).__name__
    return GeoError(
        f"not a readable Parquet file: {why:.200}",
        where=path,
        hint="copy or download it again: it is damaged or cut short",
    )


def _picture_columns(schema: "pa.Schema") -> list[tuple[str, str]]:
    """The columns of names and of bytes that belong together."""
    import pyarrow as pa

    pairs = []
    for field in schema:
        if pa.types.is_struct(field.type):
            inner = {field.type.field(i).name: field.type.field(i).type for i in range(field.type.num_fields)}
            if str(inner.get("path")) in TEXT_TYPES and str(inner.get("bytes")) in _BYTES_TYPES:
                pairs.append((f"{field.name}.path", f"{field.name}.bytes"))
    flat = {field.name: field.type for field in schema}
    named = [name for name in _PATH_COLUMNS if str(flat.get(name)) in TEXT_TYPES]
    holding = [name for name in _BYTES_COLUMNS if str(flat.get(name)) in _BYTES_TYPES]
    if named and holding:
        pairs.append((named[0], holding[0]))
    return pairs


def _chunks_of(meta: "parquet.FileMetaData", leaf: str) -> list[_Chunk]:
    """A column's part of each group of rows."""
    chunks = []
    for number in range(meta.num_row_groups):
        group = meta.row_group(number)
        columns = (group.column(i) for i in range(group.num_columns))
        (column,) = (column for column in columns if column.path_in_schema == leaf)
        begin = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset:
            begin = min(begin, column.dictionary_page_offset)
        stored, unpacked = column.total_compressed_size, column.total_uncompressed_size
        if min(begin, stored, unpacked) < 0:
            raise ValueError("its head gives a negative size")
        is_plain = column.compression == "UNCOMPRESSED" and stored <= MOST_OF_GROUP
        chunks.append(_Chunk(group.num_rows, begin, stored, unpacked, is_plain))
    return chunks
