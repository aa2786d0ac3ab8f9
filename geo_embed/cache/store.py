"""The embedding store: one Zarr v3 group per split, and the chunks of rows in it.

A chunk of rows is the unit of work and of commit. Its embeddings and content hashes are written first, and its chunk of `status`
once a power cut can't undo them: rows whose status is still 0 do not count, whatever else lies on disk. A committed embedding is
never overwritten: a store whose images changed is superseded by a new one. Each chunk is written whole and in one step, with a
CRC-32C of its bytes.
"""

import contextlib
import hashlib
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed import __version__
from geo_embed.cache.layout import ARRAYS, FORMAT_VERSION, check_layout
from geo_embed.cache.locks import give_back, put_right
from geo_embed.cache.medium import Storage
from geo_embed.cache.storage import creating, has_store, storage_at, store_paths
from geo_embed.config import DEFAULT_BACKBONE
from geo_embed.console import progress
from geo_embed.data.samples import Samples, natural_ids, text_ids
from geo_embed.data.variants import Variant
from geo_embed.errors import GeoError, UnreachableError, disk_errors
from geo_embed.files import JSON_BYTES, parse_json

if TYPE_CHECKING:
    import zarr

PENDING, OK, MISSING, UNREADABLE = 0, 1, 2, 3

# Rows that are hashed at once: few calls, bounded memory.
_MANIFEST_ROWS = 65_536
_IDS = "sample_id/c/0"
_GROUP = {"zarr_format": 3, "node_type": "group"}
# Of an embedding's length, by rounding.
_LARGEST_ERROR = 0.01
# Content hashes that a run remembers of an import.
_SAMPLE = 32
_VERSIONED = ("torch", "transformers", "zarr", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Store:
    """An open store. N samples, V views, D numbers each.

    Attributes:
        storage: its bytes.
        attrs: what made it.
        embeddings: (N, V, D) float16 or float32.
        status: (N, V) uint8.
        content_hash: (N, V) uint64.
        ids: (N,) as stored, integers or text; `read_ids` gives them as text.
    """

    storage: Storage
    attrs: dict[str, Any]
    embeddings: "zarr.Array[Any]"
    status: "zarr.Array[Any]"
    content_hash: "zarr.Array[Any]"
    ids: "zarr.Array[Any]"

    @property
    def path(self) -> Path:
        """Its root, `…/<split>.zarr`."""
        return self.storage.root

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

    @property
    def variant(self) -> Variant:
        """Which variant of the pictures is embedded; nearly always as they are."""
        return Variant.model_validate(self.attrs.get("variant") or {})


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
        digest.update(samples.images.joined(samples.sample_id[rows].tolist(), rows))
    return digest.hexdigest()


def stored_dtype(dtype: str) -> str:
    """How embeddings are stored: float16, float32 where it is asked for by name."""
    return "float32" if dtype == "float32" else "float16"


def rounded_away(values: NDArray[Any], dtype: str) -> NDArray[np.bool_]:
    """Which embeddings a store's precision can't hold: rounded to it, they are more than 1 % of their length off.

    That happens to small numbers alone: float16 steps by 6e-8 below 6e-5, and by 2⁻¹¹ of a number above.

    Args:
        values: (…, D) finite floats.
        dtype: `float16` or `float32`.

    Returns:
        (…,); False where all D numbers are zero.
    """
    # Half a step in each of D numbers is as far off as rounding small ones gets, whatever the embedding.
    largest = np.abs(values).max(axis=-1, initial=0)
    least = 100 * float(np.finfo(dtype).smallest_subnormal) * math.sqrt(values.shape[-1])
    lost = np.asarray((largest > 0) & (largest < least))
    if lost.any():
        # Divided first: the squares of such numbers may be too small for any precision.
        scale = largest[lost].astype(np.float64)[:, None]
        exact = values[lost].astype(np.float64)
        rounded = values[lost].astype(dtype).astype(np.float64)
        error = np.linalg.norm((rounded - exact) / scale, axis=-1)
        lost[lost] = error > _LARGEST_ERROR * np.linalg.norm(exact / scale, axis=-1)
    return lost


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
    with creating(path, replace=False) as storage:
        lay_out(storage, samples, dim=dim, dtype=dtype, chunk_rows=chunk_rows, attrs=attrs)
    return open_store(path)


def lay_out(
    storage: Storage, samples: Samples, *, dim: int, dtype: str, chunk_rows: int, attrs: dict[str, Any]
) -> Store:
    """Write a store's metadata and ids into an empty root; arguments and errors as in `create_store`."""
    import zarr
    from zarr.codecs import Crc32cCodec

    n, v = samples.images.shape
    with disk_errors(storage.root):
        attributes = attrs | {
            "format_version": FORMAT_VERSION,
            "view_names": list(samples.view_names),
            "manifest_sha256": manifest_sha256(samples),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"geo-embed": __version__, **{name: version(name) for name in _VERSIONED}},
        }
        group = zarr.create_group(storage.zarr(writable=True), attributes=attributes)
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
        group.attrs["checksums"] = _metadata_checksums(storage, attributes)
    return open_store(storage.root)


def open_store(path: Path, *, writable: bool = True) -> Store:
    """Open a store. Raises GeoError where there is none, or one whose metadata is not as this package writes it."""
    import zarr

    if not has_store(path):
        give_back(path)
    if not has_store(path):
        raise GeoError("there is no such store", where=path, hint="`geo cache ls` lists the stores")
    storage = storage_at(path)
    try:
        attrs = check_layout(storage)
    except GeoError as error:
        other_format = error.what.startswith("store format")
        what = error.what if other_format else f"not a readable store: {error.what}"
        raise GeoError(
            what, where=error.where or path, hint=rebuild_hint(path) if other_format else _RESTORE
        ) from error
    try:
        # Metadata gathered elsewhere, which Zarr would prefer, is not what was checked.
        group = zarr.open_group(
            storage.zarr(writable=writable),
            mode="r+" if writable else "r",
            zarr_format=3,
            use_consolidated=False,
        )
        arrays: dict[str, Any] = {name: group[name] for name in ARRAYS}
    except UnreachableError:
        raise
    # Zarr, its codecs and the file system have exceptions of their own for what is not as it should be.
    except Exception as error:
        raise GeoError(f"not a readable store: {error}".splitlines()[0], where=path, hint=_RESTORE) from error
    return Store(
        storage,
        attrs,
        arrays["embeddings"],
        arrays["status"],
        arrays["content_hash"],
        arrays["sample_id"],
    )


def rewrite_attributes(store: Store, attrs: dict[str, Any]) -> None:
    """Give a store other attributes, in one step that a power cut doesn't undo.

    Args:
        store: whose only writer the caller is.
        attrs: all of them; their checksums are made here.

    Raises:
        GeoError: the disk is full or read-only; the store stays as it was.
    """
    write_metadata(
        store.storage,
        attrs,
        head=parse_json(store.storage.read("zarr.json", limit=JSON_BYTES), store.path / "zarr.json"),
    )


def write_metadata(storage: Storage, attrs: dict[str, Any], *, head: Mapping[str, Any] = _GROUP) -> None:
    """Write the zarr.json of a store, with its attributes and their checksums; `head` is what else it says. Raises GeoError as `rewrite_attributes`."""
    attrs = {key: value for key, value in attrs.items() if key != "checksums"}
    attrs["checksums"] = _metadata_checksums(storage, attrs)
    storage.write_durably("zarr.json", json.dumps({**head, "attributes": attrs}, indent=2).encode())


def list_stores(cache_dir: Path, split: str | None = None) -> list[Store]:
    """Every store below the cache that can be opened, by path."""
    stores = []
    put_right(cache_dir)
    for path in store_paths(cache_dir, split):
        with contextlib.suppress(GeoError):
            stores.append(open_store(path, writable=False))
    return stores


def part_rows(samples: int, chunk_rows: int, part: tuple[int, int] | None) -> slice:
    """The rows of part k of n, k from 1: whole chunks, as many in each part as can be; all rows where there is no part.

    With fewer chunks than parts some parts are empty.
    """
    k, n = part or (1, 1)
    chunks = -(-samples // chunk_rows)
    first, last = ((j * chunks // n) * chunk_rows for j in (k - 1, k))
    return slice(min(first, samples), min(last, samples))


def chunks_of(store: Store, within: slice | None = None) -> Iterator[slice]:
    """The rows of each chunk, in order; of the chunks that begin within a range, where one is named."""
    n = store.shape[0]
    begin, end = (0, n) if within is None else (within.start, within.stop)
    for start in range(begin, end, store.chunk_rows):
        yield slice(start, min(start + store.chunk_rows, n))


def commit_chunk(
    store: Store,
    rows: slice,
    embeddings: NDArray[Any],
    content_hash: NDArray[np.uint64],
    status: NDArray[np.uint8],
) -> None:
    """Write one whole chunk of rows so that it counts only once all of it is on disk; then no power cut loses it.

    Args:
        store: opened for writing, by the only writer of these rows.
        rows: the chunk, from `chunks_of`.
        embeddings, content_hash, status: (R, V, D), (R, V), (R, V).

    Raises:
        GeoError: the disk is full or read-only, or the store is gone.
    """
    # Writing would recreate the folders of a store deleted under a running job, and leave a store without a head.
    if not store.storage.exists("zarr.json"):
        raise GeoError(
            "the store was deleted while it was being written",
            where=store.path,
            hint=rebuild_hint(store.path, store.attrs),
        )
    _write_chunks(store, rows, {"embeddings": embeddings, "content_hash": content_hash})
    _write_chunks(store, rows, {"status": status})


def force_committed(store: Store, within: slice) -> None:
    """Let no power cut undo what is committed of a range of rows: a writer may have been killed just before it waited for the disk.

    Raises:
        GeoError: what the disk says.
    """
    names = [_chunk_name(store, "status", rows) for rows in chunks_of(store, within)]
    # Their data were forced before they were written.
    store.storage.force([name for name in names if store.storage.exists(name)])


def forget_chunk(store: Store, rows: slice) -> None:
    """Make a chunk's rows pending again, whatever its files hold. The opposite of `commit_chunk`, status first."""
    for names in (("status",), ("content_hash", "embeddings")):
        shapes = {name: (rows.stop - rows.start, *getattr(store, name).shape[1:]) for name in names}
        _write_chunks(store, rows, {name: np.zeros(shape) for name, shape in shapes.items()})


def write_ids(store: Store, samples: Samples) -> None:
    """Write the ids of a store again where the disk no longer holds them; `samples` are its manifest.

    Raises:
        GeoError: the disk is full or read-only, or the store has no room for such ids.
    """
    if len(samples) != store.shape[0]:
        raise GeoError(
            f"room for {store.shape[0]:,} ids, not {len(samples):,}", where=store.path, hint=_RESTORE
        )
    with contextlib.suppress(GeoError):
        if (read_ids(store) == samples.sample_id).all():
            return
    with disk_errors(store.path):
        try:
            store.ids[:] = natural_ids(samples.sample_id)
        except ValueError as error:
            raise GeoError(f"no room for such ids: {error}"[:200], where=store.path, hint=_RESTORE) from error
    store.storage.force([_IDS])


def has_chunk(store: Store, name: str, rows: slice) -> bool:
    """Whether a chunk of an array is there: Zarr reads an absent one as zeros."""
    return store.storage.exists(_chunk_name(store, name, rows))


def read_chunk(store: Store, rows: slice) -> NDArray[Any]:
    """The embeddings (R, V, D) of a chunk that was committed. Raises GeoError where they are damaged or gone."""
    if not has_chunk(store, "embeddings", rows):
        raise _gone(store, rows)
    with damaged_chunks(store.path):
        _check_size(store, "embeddings", rows)
        whole = _empty_chunk(store, "embeddings")
        _fill_chunk(store, "embeddings", rows, whole)
    return whole[: store.shape[0] - rows.start]


def read_single_rows(store: Store, chunk: slice, rows: Sequence[int]) -> NDArray[Any]:
    """The embeddings (K, V, D) of K rows of a chunk, counted from its first, and no others: what `is_whole` has read before.

    Raises:
        GeoError: they are gone.
    """
    if not has_chunk(store, "embeddings", chunk):
        raise _gone(store, chunk)
    block = np.empty((len(rows), *store.shape[1:]), _empty_chunk(store, "embeddings").dtype)
    with damaged_chunks(store.path):
        _check_size(store, "embeddings", chunk)
        starts = [row * block[0].nbytes for row in rows]
        store.storage.read_parts(_chunk_name(store, "embeddings", chunk), starts, block)
    return block


def is_whole(store: Store, start: int) -> bool:
    """Whether the embeddings of the chunk that starts at row `start` are on disk, as they were written."""
    try:
        read_chunk(store, slice(start, start + store.chunk_rows))
    except GeoError:
        return False
    return True


def read_status(store: Store, rows: slice | None = None) -> NDArray[np.uint8]:
    """The status (R, V) of rows, all of them if left out: PENDING, OK, MISSING or UNREADABLE. Raises GeoError for damage."""
    rows = rows or slice(0, store.shape[0])
    status: NDArray[np.uint8] = read_rows(store, "status", rows)
    unknown = (status > UNREADABLE).any(axis=1)
    if unknown.any():
        row = int(unknown.argmax())
        raise GeoError(
            f"row {rows.start + row} has the unknown status {status[row].max()}",
            where=store.path,
            hint=verify_hint(store.path),
        )
    return status


def read_content_hash(store: Store, rows: slice | None = None) -> NDArray[np.uint64]:
    """The content hashes (R, V) of rows, all of them if left out: of each image file's bytes, of an import's embeddings themselves.

    Equal where images are equal; 0 where none is committed.

    Raises:
        GeoError: they are damaged.
    """
    return read_rows(store, "content_hash", rows or slice(0, store.shape[0]))


def read_ids(store: Store) -> NDArray[np.object_]:
    """The ids (N,) as text. Raises GeoError where they are damaged, gone, or not of one sample each."""
    if not store.storage.exists(_IDS):
        raise GeoError("the ids are gone from the disk", where=store.path, hint=verify_hint(store.path))
    n = store.shape[0]
    with damaged_chunks(store.path):
        size = store.storage.size(_IDS)
        # Texts lie one after the other, each behind its length of four bytes, and before them all how many there are.
        is_text = store.ids.dtype.kind not in "iu"
        fits = size >= 4 * n + 8 if is_text else size == 8 * n + 4
        if not fits:
            raise ValueError(f"{n:,} ids can't lie in the {size:,} bytes of {_IDS}")
        if is_text and (count := int.from_bytes(store.storage.head(_IDS, 4), "little")) != n:
            raise ValueError(f"{_IDS} holds {count:,} ids, where {n:,} belong")
        ids = text_ids(np.asarray(store.ids[:]).tolist())
    if len(set(ids)) != n:
        raise GeoError("an id stands there twice", where=store.path, hint=verify_hint(store.path))
    return ids


def content_digest(store: Store) -> str:
    """Names what a store holds now: the samples, in order, each view's status and its content's hash; 64 hex digits.

    No embedding is read, and no clock asked: with the same content in the same store it stays the same.

    Raises:
        GeoError: bytes are damaged.
    """
    digest = hashlib.sha256(str(store.attrs["manifest_sha256"]).encode())
    for array in (read_status(store), read_content_hash(store)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def content_sample(store: Store) -> list[str]:
    """The least of a store's content hashes in hexadecimal, by which a later state of it is recognised (`holds_sample`).

    Of a set of hashes the least are a random sample (Broder 1997, "On the resemblance and containment of documents"): most of them
    are still there where samples came, went or were reordered, none where another backbone made the embeddings of an import.

    Raises:
        GeoError: bytes are damaged.
    """
    hashes = np.unique(read_content_hash(store)[read_status(store) == OK])
    return [f"{value:016x}" for value in hashes[:_SAMPLE].tolist()]


def holds_sample(store: Store, sample: Sequence[str]) -> bool:
    """Whether at least half of a `content_sample` is among what a store holds now. Raises GeoError for damage."""
    now = read_content_hash(store)[read_status(store) == OK]
    wanted = np.array([int(value, 16) for value in sample], dtype=np.uint64)
    return bool(2 * np.isin(wanted, now).sum() >= len(wanted))


def read_store(store: Store, rows: slice | None = None) -> Embeddings:
    """Read embeddings into memory, checksums verified.

    Args:
        store: any store.
        rows: part of it; default all.

    Raises:
        GeoError: rows are pending, bytes are damaged, or numbers are not finite, with the command that mends it.
    """
    rows = rows or slice(0, store.shape[0])
    faults = metadata_faults(store)
    if faults:
        raise GeoError(f"{faults[0][0]}: {faults[0][1]}", where=store.path, hint=_RESTORE)
    status = read_status(store, rows)
    pending = int((status == PENDING).any(axis=1).sum())
    if pending:
        raise GeoError(
            f"{pending:,} of {len(status):,} samples are not extracted yet",
            where=store.path,
            hint=rebuild_hint(store.path, store.attrs),
        )
    present = status == OK

    def check(first: int, block: NDArray[Any]) -> None:
        advance(len(block))
        if is_finite(block):
            return
        wrong = ~np.isfinite(block).all(axis=2) & present[first - rows.start :][: len(block)]
        if wrong.any():
            raise ValueError(
                f"the embedding of row {first + int(wrong.any(axis=1).argmax())} is NaN or infinite"
            )

    with store.storage.listed("embeddings"):
        # The bytes must be there before memory is taken for them.
        for chunk in _touched(store, rows):
            if not has_chunk(store, "embeddings", chunk):
                raise _gone(store, chunk)
            with damaged_chunks(store.path):
                _check_size(store, "embeddings", chunk)
        with progress(f"read {store.split}", len(status), "samples") as advance:
            values = read_rows(store, "embeddings", rows, check)
    if not present.all():
        values[~present] = 0
    return Embeddings(read_ids(store)[rows], values, present, store)


def metadata_faults(store: Store) -> list[tuple[str, str]]:
    """(file, message) for every metadata file that is not as it was written; chunks have checksums of their own."""
    recorded = store.attrs.get("checksums", {})
    now = _metadata_checksums(store.storage, store.attrs)
    return [
        (name, "the metadata changed since it was written") for name in now if now[name] != recorded.get(name)
    ]


def _chunk_name(store: Store, name: str, rows: slice) -> str:
    array: zarr.Array[Any] = getattr(store, name)
    return "/".join([name, "c", str(rows.start // store.chunk_rows), *["0"] * (array.ndim - 1)])


def _empty_chunk(store: Store, name: str) -> NDArray[Any]:
    """Room for a whole chunk of an array, little-endian as on disk."""
    array: zarr.Array[Any] = getattr(store, name)
    return np.empty(array.chunks, np.dtype(array.dtype).newbyteorder("<"))


def _write_chunks(store: Store, rows: slice, blocks: Mapping[str, NDArray[Any]]) -> None:
    """Write the chunk of the same rows of several arrays: the rows, padded with zeros to a whole chunk."""
    chunks = {}
    for name, block in blocks.items():
        whole = _empty_chunk(store, name)
        if block.shape == whole.shape and block.dtype == whole.dtype and block.flags.c_contiguous:
            whole = block
        else:
            whole[: rows.stop - rows.start] = block
            whole[rows.stop - rows.start :] = 0
        chunks[_chunk_name(store, name, rows)] = whole
    store.storage.write_chunks(chunks)


def _fill_chunk(store: Store, name: str, rows: slice, block: NDArray[Any]) -> None:
    try:
        store.storage.read_chunk(_chunk_name(store, name, rows), block)
    except ValueError as error:
        raise ValueError(f"the checksum of rows {rows.start}–{rows.stop - 1} does not match") from error


def is_finite(block: NDArray[Any]) -> bool:
    """Whether no number of a float16 or float32 array is NaN or infinite.

    Those have the largest exponent: as integers they lie above all others of their sign. Two maxima tell it in a tenth of
    the time that np.isfinite takes for float16.
    """
    bits, infinity = {2: (np.int16, 0x7C00), 4: (np.int32, 0x7F800000)}[block.itemsize]
    integers = np.ascontiguousarray(block).view(bits)
    negative = integers.view(integers.dtype.str.replace("i", "u"))
    sign = 1 << (8 * block.itemsize - 1)
    return not block.size or bool(integers.max() < infinity and negative.max() < infinity + sign)


def read_rows(
    store: Store, name: str, rows: slice, check: Callable[[int, NDArray[Any]], None] | None = None
) -> NDArray[Any]:
    """Rows of an array, chunk by chunk on threads, straight into place; zeros where a chunk was never written.

    Args:
        store: any store.
        name: `embeddings`, `status` or `content_hash`.
        rows: which of them.
        check: called on those threads with a first row and the rows from there on, to raise ValueError for what they hold.

    Raises:
        GeoError: bytes are damaged, or more than there is memory for.
    """
    array: zarr.Array[Any] = getattr(store, name)
    shape = (rows.stop - rows.start, *array.shape[1:])
    try:
        # Zeros of the system's take no memory until they are written to.
        values = np.zeros(shape, np.dtype(array.dtype).newbyteorder("<"))
    except MemoryError as error:
        raise GeoError(f"no memory for {name} of shape {shape}", where=store.path) from error

    def read(chunk: slice) -> None:
        if not has_chunk(store, name, chunk):
            return
        first, last = max(rows.start, chunk.start), min(rows.stop, chunk.stop)
        place = values[first - rows.start : last - rows.start]
        if len(place) == store.chunk_rows:
            _fill_chunk(store, name, chunk, place)
        else:
            _check_size(store, name, chunk)
            block = _empty_chunk(store, name)
            _fill_chunk(store, name, chunk, block)
            place[:] = block[first - chunk.start : last - chunk.start]
        if check is not None:
            check(first, place)

    touched = _touched(store, rows)
    once = store.storage.listed(name) if len(touched) > 1 else contextlib.nullcontext()
    with damaged_chunks(store.path), once, ThreadPoolExecutor() as pool:
        list(pool.map(read, touched))
    return values


def _touched(store: Store, rows: slice) -> list[slice]:
    """The chunks that hold any of these rows."""
    return [chunk for chunk in chunks_of(store) if chunk.start < rows.stop and chunk.stop > rows.start]


def _check_size(store: Store, name: str, rows: slice) -> None:
    """Raise ValueError where a chunk's file can't hold it, before memory is taken for it."""
    array: zarr.Array[Any] = getattr(store, name)
    wanted = math.prod(array.chunks) * np.dtype(array.dtype).itemsize + 4
    size = store.storage.size(_chunk_name(store, name, rows))
    if size != wanted:
        raise ValueError(f"rows {rows.start}–{rows.stop - 1} have {size:,} bytes, where {wanted:,} belong")


def attributes_sha256(attrs: Mapping[str, Any]) -> str:
    """What a store records of its own attributes, but for the checksums: sha256 of them as canonical JSON."""
    described = {key: value for key, value in attrs.items() if key != "checksums"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _metadata_checksums(storage: Storage, attrs: dict[str, Any]) -> dict[str, str]:
    """sha256 of each array's zarr.json, and of the group's attributes as canonical JSON."""
    sums = {"attributes": attributes_sha256(attrs)}
    for name in ARRAYS:
        sums[f"{name}/zarr.json"] = storage.checksum(f"{name}/zarr.json")
    return sums


def _gone(store: Store, rows: slice) -> GeoError:
    return GeoError(
        f"the chunk of rows {rows.start}–{rows.stop - 1} is gone from the disk",
        where=store.path,
        hint=verify_hint(store.path),
    )


@contextlib.contextmanager
def damaged_chunks(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with a chunk into one line: its bytes, its length, or what lies in its place."""
    try:
        yield
    except UnreachableError:
        raise
    # Zarr and its codecs have exceptions of their own for bytes that are none of theirs.
    except Exception as error:
        why = error.what if isinstance(error, GeoError) else str(error)
        raise GeoError(
            (f"a chunk is damaged: {why}".splitlines() or [""])[0], where=path, hint=verify_hint(path)
        ) from error


_RESTORE = "geo cache verify --repair makes damaged metadata again; or restore the store from a copy, or delete it and run geo extract"


def rebuild_hint(path: Path, attrs: Mapping[str, Any] | None = None) -> str:
    """The command that fills a store; the backbone is named where it isn't the default one. Variants are made for a run that asks for them."""
    attrs = attrs or {}
    if attrs.get("variant"):
        return f"geo predict RUN --split {path.stem} --tta"
    name = attrs.get("backbone", DEFAULT_BACKBONE)
    backbone = "" if name == DEFAULT_BACKBONE else f" --backbone {shlex.quote(str(name))}"
    if attrs.get("imported"):
        return f"geo cache import FILE --split {path.stem}{backbone}"
    return f"geo extract --split {path.stem}{backbone}"


def verify_hint(path: Path) -> str:
    return (
        f"geo cache verify --split {path.stem} says what is damaged, and with --repair has it computed again"
    )


def hash_content(data: bytes) -> int:
    """The 64-bit XXH3 of an image file's bytes."""
    import xxhash

    return xxhash.xxh3_64_intdigest(data)


def hash_embeddings(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Content hashes (N, V) of embeddings (N, V, D) whose pictures nobody has: `hash_content` of their own bytes."""
    return np.array([[hash_content(view.tobytes()) for view in sample] for sample in values], dtype=np.uint64)
