"""The embedding store: one Zarr v3 group per split, and the chunks of rows in it.

A chunk of rows is the unit of work and of commit. Its embeddings and content hashes are written first, and its chunk of `status`
once a power cut can't undo them: rows whose status is still 0 do not count, whatever else lies on disk. A committed embedding is
never overwritten: a store whose images changed is superseded by a new one. Each chunk is written whole and in one step, with a
CRC-32C of its bytes.

A further feature of the same pass is an array of its name, and beside it one that says of which pictures it is: a picture has the
feature where its status is OK and the hash there is its content hash. That array is to the feature what `status` is to the
embeddings, written after the numbers. So a feature may be added to a store that is whole, in any order of its chunks, killed and
begun again; and whoever writes embeddings without it, such as an earlier version, leaves pictures without the feature, never with
another's.
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
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geo_embed import __version__
from geo_embed.cache.layout import ARRAYS, FORMAT_VERSION, check_layout, further_arrays, hash_array
from geo_embed.cache.locks import give_back, put_right
from geo_embed.cache.medium import Storage
from geo_embed.cache.storage import creating, has_store, storage_at, store_paths
from geo_embed.config import DEFAULT_BACKBONE, FEATURES
from geo_embed.console import counted, progress
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
# A further feature of a chunk: the numbers (R, V, D'), and the content hash (R, V) of the picture that each is of.
FeatureBlock: TypeAlias = tuple[NDArray[Any], NDArray[np.uint64]]
# Content hashes that a run remembers of an import.
_SAMPLE = 32
_VERSIONED = ("torch", "transformers", "zarr", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Store:
    """An open store. N samples, V views, D numbers each.

    Attributes:
        storage: its bytes.
        attrs: what made it.
        arrays: by name: `embeddings` (N, V, D) float16 or float32, `status` (N, V) uint8, `content_hash` (N, V) uint64, `sample_id`
            (N,) integers or text, which `read_ids` gives as text; for each further feature its numbers (N, V, D') and, under
            `hash_array`, the content hash (N, V) uint64 of the pictures that they are of.
    """

    storage: Storage
    attrs: dict[str, Any]
    arrays: "Mapping[str, zarr.Array[Any]]"

    @property
    def embeddings(self) -> "zarr.Array[Any]":
        """(N, V, D)."""
        return self.arrays["embeddings"]

    @property
    def status(self) -> "zarr.Array[Any]":
        """(N, V)."""
        return self.arrays["status"]

    @property
    def content_hash(self) -> "zarr.Array[Any]":
        """(N, V)."""
        return self.arrays["content_hash"]

    @property
    def ids(self) -> "zarr.Array[Any]":
        """(N,)."""
        return self.arrays["sample_id"]

    @property
    def feature(self) -> str:
        """What its embeddings are; of an import, where nobody knows, the usual one."""
        return str(self.attrs.get("feature") or FEATURES[0])

    @property
    def further(self) -> tuple[str, ...]:
        """The further features that it has room for, complete or not, by name."""
        return tuple(self.attrs.get("features", ()))

    @property
    def features(self) -> tuple[str, ...]:
        """Its own feature, and the further ones."""
        return (self.feature, *self.further)

    def array_of(self, feature: str | None) -> str:
        """The array of one of its features, by name; None stands for its own. Raises GeoError where it has no such feature."""
        if feature in (None, self.feature):
            return "embeddings"
        if feature not in self.further:
            raise GeoError(
                f"the store has no {feature}, only {' and '.join(self.features)}",
                where=self.path,
                hint=add_hint(self, [str(feature)]),
            )
        return feature

    def dim_of(self, feature: str | None) -> int:
        """How many numbers one of its features has. Raises GeoError as `array_of`."""
        return int(self.arrays[self.array_of(feature)].shape[2])

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
        feature: which of its features they are.
    """

    sample_id: NDArray[np.object_]
    values: NDArray[Any]
    present: NDArray[np.bool_]
    store: Store
    feature: str = FEATURES[0]


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
    path: Path,
    samples: Samples,
    *,
    dim: int,
    dtype: str,
    chunk_rows: int,
    attrs: dict[str, Any],
    further: Mapping[str, int] | None = None,
) -> Store:
    """Lay out a store in which every row is pending.

    Args:
        path: `…/<split>.zarr`; nothing may be there yet.
        samples: whose ids, in order, become its rows.
        dim: D.
        dtype: `float16` or `float32`.
        chunk_rows: rows per chunk.
        attrs: what made the embeddings; ids, views, format and versions are added here.
        further: how many numbers each further feature has, by name.

    Raises:
        GeoError: the directory can't be written.
    """
    with creating(path, replace=False) as storage:
        lay_out(storage, samples, dim=dim, dtype=dtype, chunk_rows=chunk_rows, attrs=attrs, further=further)
    return open_store(path)


def lay_out(
    storage: Storage,
    samples: Samples,
    *,
    dim: int,
    dtype: str,
    chunk_rows: int,
    attrs: dict[str, Any],
    further: Mapping[str, int] | None = None,
) -> Store:
    """Write a store's metadata and ids into an empty root; arguments and errors as in `create_store`."""
    import zarr
    from zarr.codecs import Crc32cCodec

    n, v = samples.images.shape
    further = further or {}
    with disk_errors(storage.root):
        attributes = attrs | {
            "format_version": FORMAT_VERSION,
            "view_names": list(samples.view_names),
            "manifest_sha256": manifest_sha256(samples),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"geo-embed": __version__, **{name: version(name) for name in _VERSIONED}},
        }
        # A store without any says nothing of them, as those of earlier versions.
        if further:
            attributes["features"] = sorted(further)
        group = zarr.create_group(storage.zarr(writable=True), attributes=attributes)
        for name, shape, kind in (
            ("embeddings", (n, v, dim), dtype),
            ("status", (n, v), "uint8"),
            ("content_hash", (n, v), "uint64"),
        ):
            _create_array(group, name, shape, kind, chunk_rows)
        _create_further(group, n, v, further, dtype, chunk_rows)
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


def _create_array(group: "zarr.Group", name: str, shape: tuple[int, ...], kind: str, chunk_rows: int) -> None:
    from zarr.codecs import Crc32cCodec

    group.create_array(
        name,
        shape=shape,
        chunks=(min(chunk_rows, shape[0]), *shape[1:]),
        dtype=kind,
        compressors=[Crc32cCodec()],
        fill_value=0,
        # A chunk of zeros is written too: a chunk file that is absent is then always a fault.
        config={"write_empty_chunks": True},
    )


def _create_further(
    group: "zarr.Group", n: int, v: int, further: Mapping[str, int], dtype: str, chunk_rows: int
) -> None:
    for feature in sorted(further):
        _create_array(group, feature, (n, v, further[feature]), dtype, chunk_rows)
        _create_array(group, hash_array(feature), (n, v), "uint64", chunk_rows)


def add_features(store: Store, further: Mapping[str, int]) -> Store:
    """Give a store room for further features that it has none for; no picture has them yet.

    Its zarr.json, which names them, is written last: killed before, the store is what it was.

    Args:
        store: opened for writing; nobody changes its layout meanwhile.
        further: how many numbers each has, by name.

    Returns:
        The store, opened again.

    Raises:
        GeoError: the disk is full or read-only.
    """
    import tempfile

    import zarr

    new = {name: dim for name, dim in further.items() if name not in store.further}
    if not new:
        return store
    _refuse_deleted(store)
    n, v, _ = store.shape
    with tempfile.TemporaryDirectory(prefix="geo-features-") as folder:
        group = zarr.create_group(folder)
        _create_further(group, n, v, new, str(store.embeddings.dtype), store.chunk_rows)
        for name in further_arrays(new):
            file = f"{name}/zarr.json"
            store.storage.write_durably(file, Path(folder, file).read_bytes())
    rewrite_attributes(store, store.attrs | {"features": sorted({*store.further, *new})})
    return open_store(store.path)


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
        names = [*ARRAYS, *further_arrays(attrs.get("features", ()))]
        arrays: dict[str, Any] = {name: group[name] for name in names}
    except UnreachableError:
        raise
    # Zarr, its codecs and the file system have exceptions of their own for what is not as it should be.
    except Exception as error:
        raise GeoError(f"not a readable store: {error}".splitlines()[0], where=path, hint=_RESTORE) from error
    return Store(storage, attrs, arrays)


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
    further: Mapping[str, FeatureBlock] | None = None,
) -> None:
    """Write one whole chunk of rows so that it counts only once all of it is on disk; then no power cut loses it.

    Args:
        store: opened for writing, by the only writer of these rows.
        rows: the chunk, from `chunks_of`.
        embeddings, content_hash, status: (R, V, D), (R, V), (R, V).
        further: of further features, as in `commit_features`.

    Raises:
        GeoError: the disk is full or read-only, or the store is gone.
    """
    values, hashes = _by_array(further or {})
    _refuse_deleted(store)
    _write_chunks(store, rows, {"embeddings": embeddings, "content_hash": content_hash, **values})
    _write_chunks(store, rows, {"status": status, **hashes})


def commit_features(store: Store, rows: slice, further: Mapping[str, FeatureBlock]) -> None:
    """Write a chunk of further features, in the same manner, beside embeddings that stay as they are.

    Args:
        store, rows: as in `commit_chunk`.
        further: by feature: the numbers (R, V, D'), and the content hash (R, V) of the picture that each is of, 0 where there is none.

    Raises:
        GeoError: as `commit_chunk`.
    """
    values, hashes = _by_array(further)
    _refuse_deleted(store)
    _write_chunks(store, rows, values)
    _write_chunks(store, rows, hashes)


def _by_array(
    further: Mapping[str, FeatureBlock],
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.uint64]]]:
    values = {name: block for name, (block, _) in further.items()}
    return values, {hash_array(name): hashes for name, (_, hashes) in further.items()}


def _refuse_deleted(store: Store) -> None:
    # Writing would recreate the folders of a store deleted under a running job, and leave a store without a head.
    if not store.storage.exists("zarr.json"):
        raise GeoError(
            "the store was deleted while it was being written",
            where=store.path,
            hint=rebuild_hint(store.path, store.attrs),
        )


def force_committed(store: Store, within: slice) -> None:
    """Let no power cut undo what is committed of a range of rows: a writer may have been killed just before it waited for the disk.

    Raises:
        GeoError: what the disk says.
    """
    arrays = ["status", *map(hash_array, store.further)]
    names = [_chunk_name(store, array, rows) for rows in chunks_of(store, within) for array in arrays]
    # Their data were forced before they were written.
    store.storage.force([name for name in names if store.storage.exists(name)])


def forget_chunk(store: Store, rows: slice) -> None:
    """Make a chunk's rows pending again, whatever its files hold. The opposite of `commit_chunk`, status first."""
    for names in (("status",), ("content_hash", "embeddings")):
        _write_chunks(store, rows, {name: _zeros(store, name, rows) for name in names})


def forget_feature(store: Store, rows: slice, feature: str) -> None:
    """Leave the pictures of a chunk without a further feature, whatever its files hold. Their embeddings stay."""
    for name in (hash_array(feature), feature):
        _write_chunks(store, rows, {name: _zeros(store, name, rows)})


def _zeros(store: Store, name: str, rows: slice) -> NDArray[Any]:
    return np.zeros((rows.stop - rows.start, *store.arrays[name].shape[1:]))


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


def read_chunk(store: Store, rows: slice, name: str = "embeddings") -> NDArray[Any]:
    """The embeddings (R, V, D) of a chunk that was committed, or a further feature's. Raises GeoError where they are damaged or gone."""
    if not has_chunk(store, name, rows):
        raise _gone(store, rows, name)
    with damaged_chunks(store.path):
        _check_size(store, name, rows)
        whole = _empty_chunk(store, name)
        _fill_chunk(store, name, rows, whole)
    return whole[: store.shape[0] - rows.start]


def read_single_rows(
    store: Store, chunk: slice, rows: Sequence[int], name: str = "embeddings"
) -> NDArray[Any]:
    """The embeddings (K, V, D) of K rows of a chunk, counted from its first, and no others: what `is_whole` has read before.

    Raises:
        GeoError: they are gone.
    """
    if not has_chunk(store, name, chunk):
        raise _gone(store, chunk, name)
    block = np.empty((len(rows), *store.arrays[name].shape[1:]), _empty_chunk(store, name).dtype)
    with damaged_chunks(store.path):
        _check_size(store, name, chunk)
        starts = [row * block[0].nbytes for row in rows]
        store.storage.read_parts(_chunk_name(store, name, chunk), starts, block)
    return block


def is_whole(store: Store, start: int, name: str = "embeddings") -> bool:
    """Whether the embeddings of the chunk that starts at row `start`, or a further feature's, are on disk as they were written."""
    try:
        read_chunk(store, slice(start, start + store.chunk_rows), name)
    except GeoError:
        return False
    return True


def count_missing(status: NDArray[np.uint8]) -> int:
    """How many pictures of a status (R, V) were looked for and have no embedding: they weren't there, or couldn't be read."""
    return int(np.isin(status, (MISSING, UNREADABLE)).sum())


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


def read_has_feature(store: Store, feature: str, rows: slice | None = None) -> NDArray[np.bool_]:
    """Which pictures (R, V) of rows, all of them if left out, have one of the store's features: none has more than have embeddings.

    Raises:
        GeoError: they are damaged, or it has no room for such a feature.
    """
    rows = rows or slice(0, store.shape[0])
    has: NDArray[np.bool_] = read_status(store, rows) == OK
    array = store.array_of(feature)
    if array != "embeddings":
        has = has & (read_rows(store, hash_array(array), rows) == read_content_hash(store, rows))
    return has


def read_lacking(store: Store, features: Sequence[str], rows: slice | None = None) -> NDArray[np.bool_]:
    """Which pictures (R, V) of rows, all of them if left out, have an embedding and lack any of some features.

    Raises:
        GeoError: bytes are damaged.
    """
    embedded: NDArray[np.bool_] = read_status(store, rows) == OK
    lacks = np.zeros_like(embedded)
    for feature in features:
        lacks |= embedded & ~read_has_feature(store, feature, rows) if feature in store.features else embedded
    return lacks


def lacking(store: Store, feature: str, rows: slice | None = None) -> int:
    """How many pictures of rows, all of them if left out, have an embedding and lack a feature: each, where there is no room for it.

    Raises:
        GeoError: bytes are damaged.
    """
    return int(read_lacking(store, [feature], rows).sum())


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


def read_store(store: Store, rows: slice | None = None, *, feature: str | None = None) -> Embeddings:
    """Read embeddings into memory, checksums verified.

    Args:
        store: any store.
        rows: part of it; default all.
        feature: which of its features; default its own, the embeddings.

    Raises:
        GeoError: rows are pending, pictures lack the feature, bytes are damaged, or numbers are not finite, with the command that
            mends it.
    """
    rows = rows or slice(0, store.shape[0])
    array = store.array_of(feature)
    feature = feature or store.feature
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
    if array != "embeddings":
        _refuse_lacking(store, feature, rows)

    def check(first: int, block: NDArray[Any]) -> None:
        advance(len(block))
        if is_finite(block):
            return
        wrong = ~np.isfinite(block).all(axis=2) & present[first - rows.start :][: len(block)]
        if wrong.any():
            raise ValueError(
                f"the embedding of row {first + int(wrong.any(axis=1).argmax())} is NaN or infinite"
            )

    with store.storage.listed(array):
        # The bytes must be there before memory is taken for them.
        for chunk in _touched(store, rows):
            target = slice(max(chunk.start - rows.start, 0), chunk.stop - rows.start)
            if not has_chunk(store, array, chunk):
                # Nobody writes a further feature of pictures that have none.
                if array != "embeddings" and not present[target].any():
                    continue
                raise _gone(store, chunk, array)
            with damaged_chunks(store.path):
                _check_size(store, array, chunk)
        with progress(f"read {store.split}", len(status), "samples") as advance:
            values = read_rows(store, array, rows, check)
    if not present.all():
        values[~present] = 0
    return Embeddings(read_ids(store)[rows], values, present, store, feature)


def _refuse_lacking(store: Store, feature: str, rows: slice) -> None:
    """Raise GeoError where pictures that have an embedding lack a further feature."""
    left = lacking(store, feature, rows)
    if left:
        embedded = int((read_status(store, rows) == OK).sum())
        raise GeoError(
            f"{left:,} of {counted(embedded, 'picture has', 'pictures have')} no {feature} yet",
            where=store.path,
            hint=add_hint(store, [feature]),
        )


def metadata_faults(store: Store) -> list[tuple[str, str]]:
    """(file, message) for every metadata file that is not as it was written; chunks have checksums of their own."""
    recorded = store.attrs.get("checksums", {})
    now = _metadata_checksums(store.storage, store.attrs)
    return [
        (name, "the metadata changed since it was written") for name in now if now[name] != recorded.get(name)
    ]


def _chunk_name(store: Store, name: str, rows: slice) -> str:
    array = store.arrays[name]
    return "/".join([name, "c", str(rows.start // store.chunk_rows), *["0"] * (array.ndim - 1)])


def _empty_chunk(store: Store, name: str) -> NDArray[Any]:
    """Room for a whole chunk of an array, little-endian as on disk."""
    array = store.arrays[name]
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
        name: of the array, any but the ids.
        rows: which of them.
        check: called on those threads with a first row and the rows from there on, to raise ValueError for what they hold.

    Raises:
        GeoError: bytes are damaged, or more than there is memory for.
    """
    array = store.arrays[name]
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
    array = store.arrays[name]
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
    for name in [*ARRAYS, *further_arrays(attrs.get("features", ()))]:
        sums[f"{name}/zarr.json"] = storage.checksum(f"{name}/zarr.json")
    return sums


def _gone(store: Store, rows: slice, name: str = "embeddings") -> GeoError:
    of = "" if name == "embeddings" else f" of {name}"
    return GeoError(
        f"the chunk of rows {rows.start}–{rows.stop - 1}{of} is gone from the disk",
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


def add_hint(store: Store, features: Sequence[str]) -> str:
    """The command that adds further features to a store, or finishes adding them; an import has none."""
    if store.attrs.get("imported"):
        return "an import is one feature: import the other under another name"
    wanted = list(dict.fromkeys([*store.features, *features]))
    setting = f"model.features={json.dumps(wanted, separators=(',', ':'))}"
    feature_option = "" if store.feature == FEATURES[0] else f" --set model.feature={store.feature}"
    return f"{rebuild_hint(store.path, store.attrs)}{feature_option} --set {shlex.quote(setting)}"


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
