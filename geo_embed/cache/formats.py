"""The files that embeddings travel in, and what each says of whose they are.

| ending | samples | views | what is missing | what made them |
|---|---|---|---|---|
| `.npz` | `sample_id` (N,) | `view_names` (V,) | `status` (N, V) | `fingerprint`, `backbone`, `feature`, `dtype` |
| `.safetensors` | `sample_id` (N,), or `sample_id_json`, the bytes of a JSON list, where ids are text | `view_names` in the metadata, as JSON | `status` (N, V) | in the metadata, by the same names |
| `.parquet` | column `sample_id` | column `view` | a row that isn't there, or whose `embedding` is null | as JSON under `geo_embed` in the schema's metadata |
| `.npy` | the CSV's order | the settings' order | it can't say | |

Embeddings lie in `embeddings` (N, V, D), in `.parquet` one a row. Of all but `.npy`, rows are found by id and views by name;
a file of others that names none is taken by position.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from geo_embed.cache.layout import MOST_NUMBERS
from geo_embed.cache.store import MISSING, OK, UNREADABLE, Embeddings, read_status
from geo_embed.console import counted
from geo_embed.data.samples import Samples, natural_ids
from geo_embed.errors import GeoError
from geo_embed.files import (
    TABLE_BYTES,
    TEXT_TYPES,
    little_memory,
    open_regular,
    open_tensors,
    parse_json,
    save_tensors,
    validated,
)

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".npy", ".npz", ".safetensors", ".parquet")
FORMAT_HINT = "use one of " + ", ".join(FORMATS)

# What made the embeddings, by the names of a store's attributes.
_MADE_BY = ("fingerprint", "backbone", "feature", "dtype")
_METADATA = "geo_embed"
_BATCH_ROWS = 256
# Parquet packs equal values without end: a file that unpacks to more than this many times its bytes holds no embeddings.
_MOST_PACKED = 1000
# Bytes of a number at most, and how many names, and bytes of them, a file may have that are not the manifest's: to be refused by name.
_LARGEST_NUMBER, _OTHER_NAMES, _OTHER_BYTES = 32, 100_000, 64 << 20


class _ParquetMetadata(BaseModel):
    """What an export says under `geo_embed`; a file of others says nothing."""

    view_names: list[str] | None = None
    unreadable: list[tuple[str, str]] = []
    fingerprint: str | None = None
    backbone: str | None = None
    feature: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Vectors:
    """Embeddings read from a file. N samples and V views are the manifest's, wherever they lie in the file.

    Attributes:
        values: (N, V, D) floats as in the file.
        status: (N, V) as in the file: OK, MISSING or UNREADABLE.
        rows: (N,) where each sample of the manifest lies; None for the same order.
        columns: (V,) likewise of the views.
        by_position: which of `samples` and `views` the file doesn't name.
        made_by: what the file says of what made them.
    """

    values: NDArray[Any]
    status: NDArray[np.uint8]
    rows: NDArray[np.int64] | None = None
    columns: NDArray[np.int64] | None = None
    by_position: tuple[str, ...] = ()
    made_by: dict[str, str] = field(default_factory=dict)

    def block(self, rows: slice) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Values (R, V, D) and status (R, V) of rows of the manifest; zeros where the status isn't OK."""
        place: Any = rows if self.rows is None else self.rows[rows]
        values, status = np.array(self.values[place]), self.status[place]
        if self.columns is not None:
            values, status = values[:, self.columns], status[:, self.columns]
        values[status != OK] = 0
        return values, status


def read_vectors(file: Path, samples: Samples) -> Vectors:
    """Embeddings from a file of any of `FORMATS`, found by the ids and views of a manifest.

    Raises:
        GeoError: no such file, not of its format, without embeddings; ids or views that are strange, missing or there twice.
    """
    readers = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
        ".parquet": _read_parquet,
    }
    if file.suffix not in readers:
        raise GeoError(
            f"can't read {file.suffix or 'a file without an ending'}", where=file, hint=FORMAT_HINT
        )
    try:
        return readers[file.suffix](file, samples)
    except GeoError:
        raise
    # Every reader has exceptions of its own for a file that isn't what its ending says.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise GeoError(f"not a readable {file.suffix} file: {reason:.200}", where=file) from error


def check_holds(path: Path, embeddings: Embeddings) -> None:
    """Raise GeoError where the format of a file's ending can't hold what there is to write."""
    if path.suffix == ".npy" and not embeddings.present.all():
        lacking = int((~embeddings.present).sum())
        raise GeoError(
            f"{counted(lacking, 'view has', 'views have')} no embedding, which only .parquet can say, or .npz or .safetensors",
            where=path,
            hint="name one of these endings",
        )
    # NumPy's texts end at the last character that isn't NUL.
    if path.suffix == ".npz" and any(text.endswith("\0") for text in embeddings.sample_id):
        raise GeoError("an id ends in NUL, which .npz can't hold", where=path, hint="use .parquet")


def write_vectors(path: Path, embeddings: Embeddings) -> None:
    """Write a split's embeddings, and whose they are, to a file; its format is the file's ending. OSError is the disk's."""
    attrs = embeddings.store.attrs
    made_by = {key: str(attrs[key]) for key in _MADE_BY if attrs.get(key)}
    if "feature" in made_by:
        made_by["feature"] = embeddings.feature
    views = [str(name) for name in attrs["view_names"]]
    ids = natural_ids(embeddings.sample_id)
    if path.suffix == ".npy":
        np.save(path, embeddings.values)
        return
    status = read_status(embeddings.store)
    arrays = {"embeddings": embeddings.values, "status": status}
    if path.suffix == ".npz":
        texts = {"sample_id": ids.astype(str) if ids.dtype == object else ids, "view_names": np.array(views)}
        named: dict[str, Any] = arrays | texts | {key: np.array(value) for key, value in made_by.items()}
        np.savez(path, **named)
    elif path.suffix == ".safetensors":
        import torch

        # safetensors holds numbers alone, and in its metadata texts of moderate length.
        if ids.dtype == object:
            arrays["sample_id_json"] = np.frombuffer(
                bytearray(json.dumps(ids.tolist()).encode()), dtype=np.uint8
            )
        else:
            arrays["sample_id"] = ids
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        save_tensors(tensors, path, made_by | {"view_names": json.dumps(views)})
    else:
        _write_parquet(path, embeddings, ids, views, status, made_by)


def _write_parquet(
    path: Path,
    embeddings: Embeddings,
    ids: NDArray[Any],
    views: list[str],
    status: NDArray[np.uint8],
    made_by: dict[str, str],
) -> None:
    """A row for each embedding, and for each view of a sample that has none at all: no id may get lost."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    unreadable = [
        [str(embeddings.sample_id[i]), views[v]] for i, v in np.argwhere(status == UNREADABLE).tolist()
    ]
    metadata = {_METADATA: json.dumps(made_by | {"view_names": views, "unreadable": unreadable})}
    kind = pa.string() if ids.dtype == object else pa.int64()
    schema = pa.schema(
        {"sample_id": kind, "view": pa.string(), "embedding": pa.list_(pa.float32())}, metadata=metadata
    )
    listed = embeddings.present | ~embeddings.present.any(axis=1, keepdims=True)
    dim = embeddings.values.shape[2]
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for start in range(0, len(ids), 16 * _BATCH_ROWS):
            rows = slice(start, start + 16 * _BATCH_ROWS)
            i, v = np.nonzero(listed[rows])
            present = embeddings.present[rows][i, v]
            numbers = embeddings.values[rows][i[present], v[present]].astype(np.float32)
            ends = np.concatenate([[0], np.cumsum(np.where(present, dim, 0))]).astype(np.int32)
            lists = pa.ListArray.from_arrays(
                pa.array(ends), pa.array(numbers.ravel()), mask=pa.array(~present)
            )
            names = [pa.array(ids[rows][i], kind), pa.array([views[k] for k in v], pa.string())]
            writer.write_table(pa.Table.from_arrays([*names, lists], schema=schema))


# ---------------------------------------------------------------- arrays


def _read_npy(file: Path, samples: Samples) -> Vectors:
    with open_regular(file):
        values = np.lib.format.open_memmap(file, mode="r")
    return _from_arrays(file, {"embeddings": values}, {}, samples)


def _read_npz(file: Path, samples: Samples) -> Vectors:
    with open_regular(file) as opened:
        archive = np.load(opened, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise GeoError("not a readable .npz file: it holds one bare array", where=file, hint=FORMAT_HINT)
        with archive:
            name = _embeddings_name(file, archive.files)
            arrays = {
                key: _numbers_of(file, archive, key, samples)
                for key in (name, "status")
                if key in archive.files
            }
            names = ("sample_id", "view_names", *_MADE_BY)
            texts = {key: _names_of(file, archive, key, samples) for key in names if key in archive.files}
    if "sample_id" in texts:
        arrays["sample_id"] = texts.pop("sample_id")
    arrays["embeddings"] = arrays.pop(name)
    described: dict[str, Any] = {
        key: array.tolist() for key, array in texts.items() if array.dtype.kind == "U" and array.ndim < 2
    }
    return _from_arrays(file, arrays, described, samples)


def _numbers_of(file: Path, archive: "np.lib.npyio.NpzFile", key: str, samples: Samples) -> NDArray[Any]:
    """An array of a row for each sample and view; of another shape, which is refused later and by a better name, zeros without memory."""
    shape, dtype = _claim(archive, key)
    if dtype.itemsize > _LARGEST_NUMBER:
        raise GeoError(f"{key}: {dtype}, where numbers are needed", where=file)
    expected = (len(samples), len(samples.view_names))
    is_embeddings = (
        key != "status" and len(shape) == 3 and shape[:2] == expected and 0 < shape[2] <= MOST_NUMBERS
    )
    if is_embeddings or (key == "status" and shape == expected):
        return np.asarray(archive[key])
    return np.broadcast_to(np.zeros((), dtype), shape)


def _names_of(file: Path, archive: "np.lib.npyio.NpzFile", key: str, samples: Samples) -> NDArray[Any]:
    """An array of names, which need not be those of the manifest, but no more memory than they could."""
    shape, dtype = _claim(archive, key)
    count, longest = math.prod(shape), max(map(len, samples.sample_id), default=0)
    if (
        count > 2 * len(samples) + _OTHER_NAMES
        or count * dtype.itemsize > 8 * len(samples) * longest + _OTHER_BYTES
    ):
        raise GeoError(
            f"{key}: {count:,} times {dtype}, where the CSV has {counted(len(samples), 'sample of', 'samples of')} at most {longest} letters",
            where=file,
            hint="check --split",
        )
    return np.asarray(archive[key])


def _claim(archive: "np.lib.npyio.NpzFile", key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a member by its header: a few kilobytes can stand for gigabytes of zeros."""
    members = archive.zip
    assert members is not None
    with members.open(f"{key}.npy" if f"{key}.npy" in members.namelist() else key) as member:
        # Headers of later versions may be gigabytes, too; arrays of numbers and texts need none.
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{key} has a header for records")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    return shape, dtype


def _read_safetensors(file: Path, samples: Samples) -> Vectors:
    import torch

    with open_tensors(file) as handle:
        # Untyped, all of it.
        opened: Any = handle
        names = list(opened.keys())
        name = _embeddings_name(file, names)
        _check_shape(file, tuple(opened.get_slice(name).get_shape()))
        wanted = [name, "sample_id", "sample_id_json", "status"]
        tensors = {key: opened.get_tensor(key) for key in wanted if key in names}
        metadata: dict[str, Any] = dict(opened.metadata() or {})
    numpys = (torch.float16, torch.float32, torch.float64)
    # NumPy knows no bfloat16, nor anything smaller.
    arrays = {
        key: (tensor.float() if tensor.is_floating_point() and tensor.dtype not in numpys else tensor).numpy()
        for key, tensor in tensors.items()
    }
    arrays["embeddings"] = arrays.pop(name)
    if "sample_id_json" in arrays:
        ids = json.loads(arrays.pop("sample_id_json").tobytes())
        if not isinstance(ids, list) or not all(isinstance(text, str) for text in ids):
            raise GeoError("sample_id_json: a JSON list of texts is needed", where=file)
        arrays["sample_id"] = np.array(ids, dtype=np.dtypes.StringDType())
    if "view_names" in metadata:
        metadata["view_names"] = json.loads(metadata["view_names"])
    return _from_arrays(file, arrays, metadata, samples)


def _embeddings_name(file: Path, names: list[str]) -> str:
    """The array that holds the embeddings: by its name, or the only one."""
    if "embeddings" in names or len(names) == 1:
        return "embeddings" if "embeddings" in names else names[0]
    listed = ", ".join(f"{name:.40}" for name in names[:10])
    raise GeoError(f"no array named 'embeddings' among {listed or 'none'}", where=file)


def _check_shape(file: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or not 0 < shape[2] <= MOST_NUMBERS:
        raise GeoError(
            f"shape {shape}, where the CSV asks for (samples, views, numbers)",
            where=file,
            hint="save the embeddings as (N, V, D)",
        )


def _from_arrays(
    file: Path, arrays: Mapping[str, NDArray[Any]], described: Mapping[str, Any], samples: Samples
) -> Vectors:
    """Find the manifest's samples and views in arrays.

    Args:
        file: where they are from.
        arrays: `embeddings` (N, V, D); `sample_id` (N,) and `status` (N, V), where they are there.
        described: `view_names` and what made them, where they are there.
        samples: the manifest.
    """
    values = arrays["embeddings"]
    expected = (len(samples), len(samples.view_names))
    rows = columns = None
    by_position = tuple(
        what
        for what, named in (("samples", "sample_id" in arrays), ("views", "view_names" in described))
        if not named
    )
    # Names say more than a shape does.
    if values.ndim == 3:
        if "sample_id" in arrays:
            ids = _ids_of(file, arrays["sample_id"])
            rows = _order(file, "sample", ids, samples.sample_id.tolist(), "check --split")
            _check_length(file, "sample_id", len(ids), values.shape[0])
        if "view_names" in described:
            views = described["view_names"]
            if not isinstance(views, list) or not all(isinstance(name, str) for name in views):
                raise GeoError("view_names: a list of texts is needed", where=file)
            columns = _order(file, "view", views, list(samples.view_names), "set model.view_names=[…]")
            _check_length(file, "view_names", len(views), values.shape[1])
    if values.ndim != 3 or values.shape[:2] != expected or not 0 < values.shape[2] <= MOST_NUMBERS:
        raise GeoError(
            f"shape {values.shape}, where the CSV asks for ({expected[0]}, {expected[1]}, D): samples, views, numbers",
            where=file,
            hint="check --split and --set model.view_names=[…]",
        )
    status = arrays.get("status", np.full(expected, OK, dtype=np.uint8))
    if (
        status.shape != expected
        or status.dtype.kind not in "iu"
        or not np.isin(status, (OK, MISSING, UNREADABLE)).all()
    ):
        raise GeoError(
            f"status: {OK} (ok), {MISSING} (missing) or {UNREADABLE} (unreadable) is needed for each of {expected}",
            where=file,
        )
    return Vectors(values, status.astype(np.uint8), rows, columns, by_position, _made_by(described))


def _made_by(described: Mapping[str, Any]) -> dict[str, str]:
    return {key: described[key] for key in _MADE_BY if isinstance(described.get(key), str)}


def _ids_of(file: Path, ids: NDArray[Any]) -> list[str]:
    """Ids as text: whole numbers as they are written, texts as they are."""
    if ids.ndim != 1 or ids.dtype.kind not in "iuUT":
        raise GeoError(
            f"sample_id: {ids.dtype} of shape {ids.shape}, where (N,) whole numbers or texts are needed",
            where=file,
        )
    return [str(value) for value in ids.tolist()]


def _check_length(file: Path, name: str, have: int, wanted: int) -> None:
    if have != wanted:
        raise GeoError(f"{name}: {counted(have, 'name')} for {counted(wanted, 'embedding')}", where=file)


def _check_has_all(file: Path, what: str, lacking: Sequence[str], wanted: int, hint: str) -> None:
    if lacking:
        lacked = f"{what} {lacking[0]!r:.80}"
        many = "" if len(lacking) == 1 else f" and {len(lacking) - 1:,} more"
        raise GeoError(f"the file lacks {lacked}{many} of {wanted:,}", where=file, hint=hint)


def _order(file: Path, what: str, names: list[str], wanted: list[str], hint: str) -> NDArray[np.int64] | None:
    """Where each wanted name stands; None where they stand in that order. Raises GeoError where they aren't the same names."""
    place = {name: k for k, name in enumerate(names)}
    if len(place) != len(names):
        twice = next(name for k, name in enumerate(names) if place[name] != k)
        raise GeoError(
            f"a {'sample_id' if what == 'sample' else what} is repeated: {twice!r:.80}", where=file
        )
    _check_has_all(file, what, [name for name in wanted if name not in place], len(wanted), hint)
    if len(names) != len(wanted):
        known = set(wanted)
        strange = next(name for name in names if name not in known)
        lacking_side = "the CSV doesn't" if what == "sample" else "model.view_names doesn't"
        raise GeoError(f"the file holds {what} {strange!r:.80}, which {lacking_side}", where=file, hint=hint)
    return None if names == wanted else np.array([place[name] for name in wanted], dtype=np.int64)


# ---------------------------------------------------------------- rows


def _read_parquet(file: Path, samples: Samples) -> Vectors:
    """Rows in any order into their places, batch by batch.

    What the file says of its size is held against the manifest first. Then every batch: ids and views to places, none of
    them twice, and embeddings of one length into `values`. A sample or a view that no row names is missing from the file.
    """
    import pyarrow.parquet as pq

    n, v = len(samples), len(samples.view_names)
    with open_regular(file) as opened:
        with little_memory(TABLE_BYTES):
            parquet = pq.ParquetFile(opened, page_checksum_verification=True)
            described = _check_parquet(file, parquet, samples)
            # As a dictionary a text that is repeated is there once, as in `read_columns`.
            fields = [(name, parquet.schema_arrow.field(name).type) for name in ("sample_id", "view")]
            texts = [name for name, kind in fields if str(kind) in TEXT_TYPES]
            parquet = pq.ParquetFile(
                opened, metadata=parquet.metadata, read_dictionary=texts, page_checksum_verification=True
            )
        row_of = {sample_id: i for i, sample_id in enumerate(samples.sample_id)}
        column_of = {view: k for k, view in enumerate(samples.view_names)}
        values: NDArray[Any] | None = None
        status, seen = np.full((n, v), MISSING, dtype=np.uint8), np.zeros((n, v), dtype=bool)
        first = 0
        # In threads, damaged pages have ended the process, as in `read_columns`.
        names = ["sample_id", "view", "embedding"]
        for batch in _within_memory(parquet.iter_batches(_BATCH_ROWS, columns=names, use_threads=False)):
            i = _places(file, batch.column("sample_id"), "sample_id", row_of, first)
            k = _places(file, batch.column("view"), "view", column_of, first)
            flat = i * v + k
            twice = seen[i, k]
            twice[np.setdiff1d(np.arange(len(flat)), np.unique(flat, return_index=True)[1])] = True
            if twice.any():
                at = int(twice.argmax())
                raise GeoError(
                    f"sample {samples.sample_id[i[at]]!r:.80}, view {samples.view_names[k[at]]!r} stands there twice",
                    where=file,
                )
            seen[i, k] = True
            present, numbers = _numbers(
                file, batch.column("embedding"), None if values is None else values.shape[2]
            )
            if len(numbers):
                if values is None:
                    values = np.zeros((n, v, numbers.shape[1]), dtype=numbers.dtype)
                values[i[present], k[present]] = numbers
                status[i[present], k[present]] = OK
            first += len(batch)
    for name, covered, wanted in (
        ("sample", seen.any(axis=1), samples.sample_id),
        ("view", seen.any(axis=0) | (described.view_names is not None), samples.view_names),
    ):
        lacking = [wanted[k] for k in np.flatnonzero(~covered)]
        hint = (
            "check --split and --set model.view_names=[…]; a view without an embedding may have a null there"
        )
        _check_has_all(file, name, lacking, len(wanted), hint)
    if values is None:
        raise GeoError("no row has an embedding", where=file)
    for sample_id, view in described.unreadable:
        if sample_id in row_of and view in column_of and status[row_of[sample_id], column_of[view]] != OK:
            status[row_of[sample_id], column_of[view]] = UNREADABLE
    return Vectors(values, status, made_by=_made_by(described.model_dump()))


def _within_memory(batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
    """Batches, each of which is unpacked in little memory; what is made of them has its own."""
    while True:
        with little_memory(TABLE_BYTES):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _check_parquet(file: Path, parquet: Any, samples: Samples) -> "_ParquetMetadata":
    """Hold a Parquet file's footer against what can be; what it says of the embeddings."""
    import pyarrow as pa

    most_rows = len(samples) * len(samples.view_names)
    schema: pa.Schema = parquet.schema_arrow
    for name in ("sample_id", "view", "embedding"):
        if schema.names.count(name) != 1:
            twice = "there twice: " if name in schema.names else "missing "
            raise GeoError(f"{twice}column {name!r}", where=file)
    kind = schema.field("embedding").type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        what = f"{kind.value_type} values" if is_list else f"embeddings of type {kind}"
        raise GeoError(f"{what}, where lists of floats are needed", where=file)
    footer = parquet.metadata
    columns = [
        footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns)
    ]
    count = sum(c.num_values for c in columns if c.path_in_schema.split(".")[0] == "embedding")
    packed = sum(c.total_compressed_size for c in columns)
    if count > most_rows * MOST_NUMBERS or 4 * count > _MOST_PACKED * packed + (1 << 20):
        raise GeoError(f"{count:,} numbers in {packed:,} bytes are no embeddings", where=file)
    metadata = (schema.metadata or {}).get(_METADATA.encode(), b"{}")
    described = validated(_ParquetMetadata, parse_json(metadata, file), file)
    if described.view_names is not None:
        _order(file, "view", described.view_names, list(samples.view_names), "set model.view_names=[…]")
    if footer.num_rows > most_rows:
        raise GeoError(
            f"{footer.num_rows:,} rows, where the CSV's samples have {most_rows:,} views",
            where=file,
            hint="check --split and --set model.view_names=[…]",
        )
    return described


def _places(
    file: Path, column: "pa.Array", name: str, place: Mapping[str, int], first: int
) -> NDArray[np.int64]:
    """Where the ids or views of a batch belong; the batch starts at row `first`."""
    import pyarrow as pa

    is_dictionary = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if is_dictionary else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise GeoError(f"{name}: {kind}, where whole numbers or texts are needed", where=file)
    if is_dictionary:
        # Each text once, however many rows have it.
        codes = column.indices.drop_null().unique()
        value_of = dict(
            zip([None, *codes.to_pylist()], [None, *column.dictionary.take(codes).to_pylist()], strict=True)
        )
        values = [value_of[code] for code in column.indices.to_pylist()]
    else:
        values = column.to_pylist()
    texts = [None if value is None else str(value) for value in values]
    for row, text in enumerate(texts, start=first):
        if text not in place:
            what = (
                f"row {row} has no {name}" if text is None else f"{name} {text[:200]!r:.80} is not the CSV's"
            )
            raise GeoError(what, where=file, hint="check --split and --set model.view_names=[…]")
    return np.array([place[text] for text in texts if text is not None], dtype=np.int64)


def _numbers(file: Path, column: "pa.Array", dim: int | None) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Which rows of a batch have an embedding (R,), and those (P, D); all of one length."""
    import pyarrow.compute as pc

    present = np.asarray(column.is_valid())
    lengths = set(pc.list_value_length(column).drop_null().to_pylist()) | ({dim} if dim else set())
    if len(lengths) > 1 or 0 in lengths:
        raise GeoError(f"embeddings of different lengths: {sorted(lengths)[:5]}", where=file)
    flat = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    return present, flat.reshape(int(present.sum()), -1) if len(flat) else flat.reshape(0, 0)
