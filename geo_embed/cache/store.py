"""The embedding store: one Zarr v3 group per split.

A chunk of rows is the unit of work and of commit. Its embeddings are written first, then its content hashes, and its
chunk of `status` last: rows whose status is still 0 do not count, whatever else lies on disk. A committed embedding is never overwritten: a store whose
pictures changed is superseded by a new one. Each chunk file is
written whole by Zarr, to a temporary name and renamed, with a CRC-32C of its bytes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from geo_embed import __version__
from geo_embed.config import DEFAULT_BACKBONE
from geo_embed.data.samples import SPLITS, Samples, natural_ids, text_ids
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import file_sha256

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    import zarr

FORMAT_VERSION = 1
PENDING, OK, MISSING, UNREADABLE = 0, 1, 2, 3

# Rows that are hashed at once: few calls, bounded memory.
_MANIFEST_ROWS = 65_536
_ARRAYS = ("embeddings", "status", "content_hash", "sample_id")
_VERSIONED = ("torch", "transformers", "zarr", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Store:
    """An open store. N samples, V views, D numbers each.

    Attributes:
        path: its directory, `…/<split>.zarr`.
        attrs: what made it.
        embeddings: (N, V, D) float16 or float32.
        status: (N, V) uint8.
        content_hash: (N, V) uint64.
        ids: (N,) as stored, integers or text; `sample_id` gives them as text.
    """

    path: Path
    attrs: dict[str, Any]
    embeddings: "zarr.Array[Any]"
    status: "zarr.Array[Any]"
    content_hash: "zarr.Array[Any]"
    ids: "zarr.Array[Any]"

    @property
    def sample_id(self) -> NDArray[np.object_]:
        """(N,) ids as text."""
        with damaged_chunks(self.path):
            return text_ids(np.asarray(self.ids[:]).tolist())

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, V, D."""
        n, v, d = self.embeddings.shape
        return n, v, d

    @property
    def chunk_rows(self) -> int:
        """Rows per chunk."""
        return int(self.embeddings.chunks[0])

    @property
    def fingerprint(self) -> str:
        """Names everything that made the embeddings."""
        return str(self.attrs["fingerprint"])

    @property
    def split(self) -> str:
        """`train` or `test`."""
        return self.path.stem


@dataclass(frozen=True)
class Embeddings:
    """A split in memory.

    Attributes:
        sample_id: (N,) text, in manifest order.
        values: (N, V, D) as stored; zeros where `present` is False.
        present: (N, V) True where a view has an embedding.
        store: where they came from.
    """

    sample_id: NDArray[np.object_]
    values: NDArray[Any]
    present: NDArray[np.bool_]
    store: Store


def manifest_sha256(samples: Samples) -> str:
    """What a store's rows stand for: ids, views and image names, in order."""
    digest = hashlib.sha256("\0".join(samples.view_names).encode())
    for start in range(0, len(samples), _MANIFEST_ROWS):
        rows = slice(start, start + _MANIFEST_ROWS)
        table = np.column_stack([samples.sample_id[rows], samples.images[rows].astype(object)])
        digest.update("\0".join(table.ravel().tolist()).encode() + b"\0")
    return digest.hexdigest()


def stored_dtype(dtype: str) -> str:
    """How embeddings are stored: float16, float32 where it is asked for by name."""
    return "float32" if dtype == "float32" else "float16"


def store_path(cache_dir: Path, backbone_name: str, fingerprint: str, split: str) -> Path:
    """Where a store lies. One that has this fingerprint under another name of the backbone is that store."""
    for directory in sorted(cache_dir.glob(f"*-{fingerprint}")):
        return directory / f"{split}.zarr"
    tail = "--".join(Path(backbone_name).parts[-2:]) if Path(backbone_name).is_dir() else backbone_name
    slug = re.sub(r"[^A-Za-z0-9._-]+", "--", tail).strip("-.") or "backbone"
    return cache_dir / f"{slug}-{fingerprint}" / f"{split}.zarr"


def create_store(
    path: Path, samples: Samples, *, dim: int, dtype: str, chunk_rows: int, attrs: dict[str, Any]
) -> Store:
    """Lay out a store in which every row is pending.

    Args:
        path: `…/<split>.zarr`; nothing may be there yet.
        samples: whose ids, in order, become its rows.
        dim: D.
        dtype: `float16` or `float32`.
        chunk_rows: rows per chunk.
        attrs: what made the embeddings; ids, views, format and versions are added here.

    Raises:
        GeoError: the directory can't be written.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    n, v = samples.images.shape
    temporary = path.with_name(f".{path.name}.creating")
    with disk_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        attributes = attrs | {
            "format_version": FORMAT_VERSION,
            "view_names": list(samples.view_names),
            "manifest_sha256": manifest_sha256(samples),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"geo-embed": __version__, **{name: version(name) for name in _VERSIONED}},
        }
        group = zarr.create_group(temporary, attributes=attributes)
        for name, shape, kind in (
            ("embeddings", (n, v, dim), dtype),
            ("status", (n, v), "uint8"),
            ("content_hash", (n, v), "uint64"),
        ):
            group.create_array(
                name,
                shape=shape,
                chunks=(min(chunk_rows, n), *shape[1:]),
                dtype=kind,
                compressors=[Crc32cCodec()],
                fill_value=0,
                # A chunk of zeros is written too: a chunk file that is absent is then always a fault.
                config={"write_empty_chunks": True},
            )
        ids = natural_ids(samples.sample_id)
        stored = group.create_array(
            "sample_id",
            shape=(n,),
            chunks=(n,),
            dtype=np.dtypes.StringDType() if ids.dtype == object else ids.dtype,
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        stored[:] = ids
        group.attrs["checksums"] = _metadata_checksums(temporary, attributes)
        temporary.rename(path)
    return open_store(path)


def open_store(path: Path, *, writable: bool = True) -> Store:
    """Open a store. Raises GeoError where there is none, or one of another format."""
    import zarr

    try:
        group = zarr.open_group(path, mode="r+" if writable else "r", zarr_format=3)
        attrs = dict(group.attrs)
        arrays: dict[str, Any] = {name: group[name] for name in _ARRAYS}
    except (FileNotFoundError, KeyError, ValueError, TypeError, OSError) as error:
        if not path.exists():
            raise GeoError(
                "there is no such store", where=path, hint="`geo cache ls` lists the stores"
            ) from error
        raise GeoError(f"not a readable store: {error}".splitlines()[0], where=path, hint=_RESTORE) from error
    if attrs.get("format_version") != FORMAT_VERSION:
        raise GeoError(
            f"store format {attrs.get('format_version')!r}, where this version reads {FORMAT_VERSION}",
            where=path,
            hint=rebuild_hint(path),
        )
    return Store(
        path, attrs, arrays["embeddings"], arrays["status"], arrays["content_hash"], arrays["sample_id"]
    )


def chunks_of(store: Store) -> Iterator[slice]:
    """The rows of each chunk, in order."""
    n = store.shape[0]
    for start in range(0, n, store.chunk_rows):
        yield slice(start, min(start + store.chunk_rows, n))


def commit_chunk(
    store: Store,
    rows: slice,
    embeddings: NDArray[Any],
    content_hash: NDArray[np.uint64],
    status: NDArray[np.uint8],
) -> None:
    """Write one whole chunk of rows so that it counts only once all of it is on disk.

    Args:
        store: opened for writing, by one writer.
        rows: the chunk, from `chunks_of`.
        embeddings, content_hash, status: (R, V, D), (R, V), (R, V).

    Raises:
        GeoError: the disk is full or read-only, or the store is gone.
    """
    with disk_errors(store.path):
        # Zarr would recreate the folders of a store deleted under a running job, and leave a store without a head.
        if not (store.path / "zarr.json").is_file():
            raise GeoError(
                "the store was deleted while it was being written",
                where=store.path,
                hint=rebuild_hint(store.path, store.attrs),
            )
        _write_chunk(store, "embeddings", rows, embeddings)
        _write_chunk(store, "content_hash", rows, content_hash)
        _write_chunk(store, "status", rows, status)


def write_ids(store: Store, samples: Samples) -> None:
    """Write the ids of a store again where the disk no longer holds them; `samples` are its manifest."""
    with contextlib.suppress(GeoError):
        if (read_ids(store) == samples.sample_id).all():
            return
    with disk_errors(store.path):
        store.ids[:] = natural_ids(samples.sample_id)


def forget_chunk(store: Store, rows: slice) -> None:
    """Make a chunk's rows pending again, whatever its files hold. The opposite of `commit_chunk`, status first."""
    with disk_errors(store.path):
        for name in ("status", "content_hash", "embeddings"):
            array: zarr.Array[Any] = getattr(store, name)
            _write_chunk(store, name, rows, np.zeros((rows.stop - rows.start, *array.shape[1:])))


def has_chunk(store: Store, name: str, rows: slice) -> bool:
    """Whether the file of a chunk is there: Zarr reads an absent one as zeros."""
    return _chunk_file(store, name, rows).is_file()


def _chunk_file(store: Store, name: str, rows: slice) -> Path:
    array: zarr.Array[Any] = getattr(store, name)
    place = [str(rows.start // store.chunk_rows), *["0"] * (array.ndim - 1)]
    return store.path.joinpath(name, "c", *place)


def is_whole(store: Store, start: int) -> bool:
    """Whether the embeddings of the chunk that starts at row `start` are on disk, as they were written."""
    try:
        read_chunk(store, slice(start, start + store.chunk_rows))
    except GeoError:
        return False
    return True


def read_chunk(store: Store, rows: slice) -> NDArray[Any]:
    """The embeddings (R, V, D) of a chunk that was committed. Raises GeoError where they are damaged or gone."""
    if not has_chunk(store, "embeddings", rows):
        raise _gone(store, rows)
    whole = np.empty((store.chunk_rows, *store.shape[1:]), _on_disk(store.embeddings))
    with damaged_chunks(store.path):
        _fill(store, rows, whole)
    return whole[: store.shape[0] - rows.start]


def read_ids(store: Store) -> NDArray[np.object_]:
    """The ids (N,) as text. Raises GeoError where they are damaged or gone."""
    if not (store.path / "sample_id" / "c" / "0").is_file():
        raise GeoError("the ids are gone from the disk", where=store.path, hint=verify_hint(store.path))
    return store.sample_id


def metadata_faults(store: Store) -> list[tuple[str, str]]:
    """(file, message) for every metadata file that is not as it was written; chunks have checksums of their own."""
    recorded = store.attrs.get("checksums", {})
    now = _metadata_checksums(store.path, store.attrs)
    return [
        (name, "the metadata changed since it was written") for name in now if now[name] != recorded.get(name)
    ]


def read_store(store: Store, rows: slice | None = None) -> Embeddings:
    """Read embeddings into memory, checksums verified.

    Args:
        store: any store.
        rows: part of it; default all.

    Raises:
        GeoError: rows are pending, or bytes are damaged, with the command that mends it.
    """
    rows = rows or slice(0, store.shape[0])
    faults = metadata_faults(store)
    if faults:
        raise GeoError(f"{faults[0][0]}: {faults[0][1]}", where=store.path, hint=_RESTORE)
    with damaged_chunks(store.path):
        status = np.asarray(store.status[rows])
        pending = int((status == PENDING).any(axis=1).sum())
        if pending:
            raise GeoError(
                f"{pending:,} of {len(status):,} samples are not extracted yet",
                where=store.path,
                hint=rebuild_hint(store.path, store.attrs),
            )
        for chunk in chunks_of(store):
            if chunk.start < rows.stop and not has_chunk(store, "embeddings", chunk):
                raise _gone(store, chunk)
        values = _read_chunks(store, rows)
        return Embeddings(read_ids(store)[rows], values, status == OK, store)


def _write_chunk(store: Store, name: str, rows: slice, block: NDArray[Any]) -> None:
    """One chunk file of an array: its rows, little-endian, padded to a whole chunk, and their CRC-32C.

    The bytes that Zarr's own codecs write, renamed into place as it does, but without its half a millisecond a file and
    its copies: writing the full train split took it nine times as long as np.save.
    """
    import google_crc32c

    array: zarr.Array[Any] = getattr(store, name)
    whole = np.zeros(array.chunks, _on_disk(array))
    if block.shape == whole.shape and block.dtype == whole.dtype and block.flags.c_contiguous:
        whole = block
    else:
        whole[: rows.stop - rows.start] = block
    raw = whole.reshape(-1).view(np.uint8)
    path = _chunk_file(store, name, rows)
    temporary = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb", buffering=0) as file:
        # An unbuffered write may take less than all, as on a disk that fills up just now.
        for part in (raw.data, memoryview(google_crc32c.value(raw).to_bytes(4, "little"))):
            while part:
                part = part[file.write(part) :]
    temporary.replace(path)


def _read_chunks(store: Store, rows: slice) -> NDArray[Any]:
    """Embeddings of `rows`, file by file on threads, straight into place."""
    values = np.empty((rows.stop - rows.start, *store.shape[1:]), _on_disk(store.embeddings))

    def read(chunk: slice) -> None:
        first, last = max(rows.start, chunk.start), min(rows.stop, chunk.stop)
        place = values[first - rows.start : last - rows.start]
        if len(place) == store.chunk_rows:
            _fill(store, chunk, place)
        else:
            place[:] = read_chunk(store, chunk)[first - chunk.start : last - chunk.start]

    wanted = [chunk for chunk in chunks_of(store) if chunk.start < rows.stop and chunk.stop > rows.start]
    with ThreadPoolExecutor() as pool:
        list(pool.map(read, wanted))
    return values


def _fill(store: Store, rows: slice, whole: NDArray[Any]) -> None:
    """Read the embeddings of a chunk into `whole`, which has room for all of its file.

    A chunk file is its rows, little-endian, and their CRC-32C: what Zarr would give, in a third of the time, since
    nothing is copied on the way.
    """
    import google_crc32c

    with _chunk_file(store, "embeddings", rows).open("rb", buffering=0) as file:
        raw = whole.reshape(-1).view(np.uint8)
        complete = file.readinto(raw.data) == len(raw)
        checksum = file.read()
    if not complete or google_crc32c.value(raw).to_bytes(4, "little") != checksum:
        raise ValueError(f"the checksum of rows {rows.start}–{rows.stop - 1} does not match")


def _on_disk(array: "zarr.Array[Any]") -> np.dtype[Any]:
    return np.dtype(array.dtype).newbyteorder("<")


def list_stores(cache_dir: Path, split: str | None = None) -> list[Store]:
    """Every store below the cache that can be opened, by path."""
    stores = []
    for name in (split,) if split else SPLITS:
        for path in sorted(cache_dir.glob(f"*/{name}.zarr")):
            with contextlib.suppress(GeoError):
                stores.append(open_store(path, writable=False))
    return sorted(stores, key=lambda store: store.path)


@contextlib.contextmanager
def damaged_chunks(path: Path) -> Iterator[None]:
    """Turn a checksum that does not match, or a chunk of the wrong length, into one line."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise GeoError(
            f"a chunk is damaged: {error}".splitlines()[0], where=path, hint=verify_hint(path)
        ) from error


def _gone(store: Store, rows: slice) -> GeoError:
    return GeoError(
        f"the chunk of rows {rows.start}–{rows.stop - 1} is gone from the disk",
        where=store.path,
        hint=verify_hint(store.path),
    )


def _metadata_checksums(path: Path, attrs: dict[str, Any]) -> dict[str, str]:
    """sha256 of each array's zarr.json, and of the group's attributes as canonical JSON."""
    own = {key: value for key, value in attrs.items() if key != "checksums"}
    sums = {"attributes": hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()}
    for name in _ARRAYS:
        sums[f"{name}/zarr.json"] = file_sha256(path / name / "zarr.json")
    return sums


_RESTORE = "restore the store from a copy, or delete it and run geo extract"


def rebuild_hint(path: Path, attrs: Mapping[str, Any] | None = None) -> str:
    """The command that fills a store; the backbone is named where it isn't the default one."""
    attrs = attrs or {}
    name = attrs.get("backbone", DEFAULT_BACKBONE)
    backbone = "" if name == DEFAULT_BACKBONE else f" --backbone {name}"
    if attrs.get("imported"):
        return f"geo cache import FILE --split {path.stem}{backbone}"
    return f"geo extract --split {path.stem}{backbone}"


def verify_hint(path: Path) -> str:
    return (
        f"geo cache verify --split {path.stem} says what is damaged, and with --repair has it computed again"
    )


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a store. The kernel lets go of a dead writer's.

    Raises:
        GeoError: somebody else writes to it, by host, process and time.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".lock").open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise GeoError(
                f"another extraction is writing to this store: {_holder(file)}",
                where=path,
                hint="wait until it is done, or stop it; it loses nothing",
            ) from error
        with disk_errors(path):
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}, file)
            file.flush()
        yield
        file.truncate(0)


def is_busy(path: Path) -> bool:
    """Whether somebody is writing to this store now."""
    try:
        file = path.with_suffix(".lock").open(encoding="utf-8")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        who = json.loads(file.read())
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (ValueError, KeyError):
        return "its name is not written yet"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def hash_content(data: bytes) -> int:
    """The 64-bit XXH3 of an image file's bytes."""
    import xxhash

    return xxhash.xxh3_64_intdigest(data)
