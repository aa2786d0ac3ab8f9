"""Embeddings made elsewhere, in and out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.backbones.weights import fingerprint_of
from geo_embed.cache.find import find_store
from geo_embed.cache.locks import only_writer
from geo_embed.cache.storage import creating, store_path
from geo_embed.cache.store import (
    MISSING,
    OK,
    Embeddings,
    Store,
    chunks_of,
    commit_chunk,
    hash_content,
    lay_out,
    open_store,
    read_content_hash,
    read_status,
    read_store,
    stored_dtype,
)
from geo_embed.config import Config
from geo_embed.data.samples import Samples, load_samples, natural_ids, text_ids
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import file_sha256, replacing, save_tensors

FORMATS = (".npy", ".npz", ".safetensors", ".parquet")


@dataclass(frozen=True)
class Imported:
    """A store made from a file."""

    store: Path
    fingerprint: str
    samples: int
    views: int
    dim: int


def import_embeddings(
    config: Config, file: Path, split: str, name: str, *, overwrite: bool = False
) -> Imported:
    """Make a store from embeddings computed elsewhere.

    Args:
        config: paths, views and `model.dtype` (float16 unless float32 is asked for).
        file: `.npy` (N, V, D) in manifest order; `.npz` or `.safetensors` with `embeddings` (N, V, D) and, where the
            order is another, `sample_id` (N,); or `.parquet` with `sample_id`, `view`, `embedding`.
        split: whose samples they are.
        name: what the backbone is to be called from now on.
        overwrite: replace an import of this name that holds something else.

    Raises:
        GeoError: shapes, ids or views don't fit the CSV, values aren't finite, or the name is taken.
    """
    samples = load_samples(config, split)
    values, present = _read_file(file, samples)
    stored = stored_dtype(config.model.dtype)
    _check_values(file, samples, values, present, stored)
    made_by = {
        "imported": True,
        "backbone": name,
        "view_names": list(samples.view_names),
        "stored": stored,
        "dim": values.shape[2],
    }
    fingerprint = fingerprint_of(made_by)
    path = store_path(config.paths.cache_dir, name, fingerprint, split)
    source = {"source": file.name, "source_sha256": file_sha256(file)}
    attrs = made_by | source | {"fingerprint": fingerprint, "feature": None, "weights_sha256": None}
    attrs |= {"preprocessing": None, "dtype": stored}
    # Written aside and moved into place: an import that fails leaves the earlier one as it was.
    with only_writer(path), creating(path) as storage:
        store = lay_out(
            storage,
            samples,
            dim=values.shape[2],
            dtype=stored,
            chunk_rows=config.inference.chunk_rows,
            attrs=attrs,
        )
        for rows in chunks_of(store):
            block = np.array(values[rows], dtype=stored)
            block[~present[rows]] = 0
            content = [[hash_content(view.tobytes()) for view in sample] for sample in block]
            status = np.where(present[rows], OK, MISSING).astype(np.uint8)
            commit_chunk(store, rows, block, np.array(content, dtype=np.uint64), status)
        if not overwrite and path.exists():
            _refuse_other_embeddings(open_store(path), store)
    return Imported(path, fingerprint, *values.shape)


def export_embeddings(config: Config, split: str, out: Path) -> Embeddings:
    """Write a split's embeddings to a file that `import_embeddings` reads; its format is the file's ending.

    Raises:
        GeoError: no such store, or an ending that isn't one of `FORMATS`.
    """
    if out.suffix not in FORMATS:
        raise GeoError(
            f"can't write {out.suffix or 'a file without an ending'}", where=out, hint=_FORMAT_HINT
        )
    embeddings = read_store(find_store(config, split))
    if out.suffix != ".parquet" and not embeddings.present.all():
        lacking = int((~embeddings.present).sum())
        raise GeoError(f"{lacking:,} views have no embedding, which only .parquet can say", where=out)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        _write_file(temporary, embeddings)
    return embeddings


_FORMAT_HINT = "use one of " + ", ".join(FORMATS)


def _refuse_other_embeddings(earlier: Store, store: Store) -> None:
    same = np.array_equal(read_content_hash(earlier), read_content_hash(store))
    if not (same and np.array_equal(read_status(earlier), read_status(store))):
        raise GeoError(
            "an import of this name holds other embeddings",
            where=earlier.path,
            hint="choose another --backbone name, or replace it with --overwrite",
        )


def _read_file(file: Path, samples: Samples) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Embeddings (N, V, D) in manifest order, and (N, V) which of them there are."""
    if file.suffix not in FORMATS:
        raise GeoError(
            f"can't read {file.suffix or 'a file without an ending'}", where=file, hint=_FORMAT_HINT
        )
    try:
        if file.suffix == ".parquet":
            return _from_rows(file, samples)
        arrays = _arrays(file)
    except FileNotFoundError as error:
        raise GeoError("no such file", where=file) from error
    except GeoError:
        raise
    # Every reader has exceptions of its own for a file that isn't what its ending says.
    except Exception as error:
        raise GeoError(f"not a readable {file.suffix} file: {error}".splitlines()[0], where=file) from error
    values = arrays["embeddings"]
    expected = (len(samples), len(samples.view_names))
    if values.ndim != 3 or values.shape[:2] != expected or not values.shape[2]:
        raise GeoError(
            f"shape {values.shape}, where the CSV asks for ({expected[0]}, {expected[1]}, D): samples, views, numbers",
            where=file,
            hint="check --split and --set model.view_names=[…]",
        )
    if "sample_id" in arrays:
        values = values[_order(file, text_ids(arrays["sample_id"].tolist()), samples)]
    return values, np.ones(expected, dtype=bool)


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    if file.suffix == ".npy":
        return {"embeddings": np.load(file, mmap_mode="r", allow_pickle=False)}
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    else:
        from safetensors.torch import load_file

        # NumPy knows no bfloat16.
        arrays = {
            name: (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
            for name, tensor in load_file(file).items()
        }
    if "embeddings" not in arrays and len(arrays) == 1:
        arrays = {"embeddings": next(iter(arrays.values()))}
    if "embeddings" not in arrays:
        raise GeoError(f"no array named 'embeddings' among {', '.join(arrays)}", where=file)
    return arrays


def _order(file: Path, ids: NDArray[np.object_], samples: Samples) -> NDArray[np.int64]:
    place = {sample_id: k for k, sample_id in enumerate(ids)}
    if len(place) != len(ids):
        raise GeoError("a sample_id is repeated", where=file)
    lacking = [sample_id for sample_id in samples.sample_id if sample_id not in place]
    if lacking or len(ids) != len(samples):
        strange = [sample_id for sample_id in ids if sample_id not in set(samples.sample_id)]
        what = (
            f"lacks sample {lacking[0]!r}"
            if lacking
            else f"holds sample {strange[0]!r}, which the CSV doesn't"
        )
        raise GeoError(f"the file {what}", where=file, hint="check --split")
    return np.array([place[sample_id] for sample_id in samples.sample_id])


def _from_rows(file: Path, samples: Samples) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    table = pd.read_parquet(file)
    lacking = [name for name in ("sample_id", "view", "embedding") if name not in table]
    if lacking:
        raise GeoError(f"missing column {', '.join(map(repr, lacking))}", where=file)
    widths = table["embedding"].map(len).unique()
    if len(widths) != 1 or not widths[0]:
        raise GeoError(f"embeddings of different lengths: {sorted(widths)[:5]}", where=file)
    rows = {sample_id: i for i, sample_id in enumerate(samples.sample_id)}
    columns = {view: v for v, view in enumerate(samples.view_names)}
    i = table["sample_id"].astype(str).map(rows)
    v = table["view"].astype(str).map(columns)
    for column, place in (("sample_id", i), ("view", v)):
        if place.isna().any():
            strange = str(table[column][place.isna()].iloc[0])
            raise GeoError(f"{column} {strange!r} is not the CSV's", where=file)
    places = np.stack([i.to_numpy(dtype=np.int64), v.to_numpy(dtype=np.int64)])
    if len(np.unique(places, axis=1).T) != len(table):
        raise GeoError("a sample's view stands there twice", where=file)
    flat = np.stack(table["embedding"].to_list())
    values = np.zeros((len(samples), len(columns), int(widths[0])), dtype=flat.dtype)
    present = np.zeros(values.shape[:2], dtype=bool)
    values[places[0], places[1]] = flat
    present[places[0], places[1]] = True
    return values, present


def _check_values(
    file: Path, samples: Samples, values: NDArray[Any], present: NDArray[np.bool_], stored: str
) -> None:
    if values.dtype.kind != "f":
        raise GeoError(f"{values.dtype} values, where floats are needed", where=file)
    largest = float(np.finfo(stored).max)
    for start in range(0, len(values), 4096):
        block = np.asarray(values[start : start + 4096])
        for what, wrong in (
            ("is NaN or infinite", ~np.isfinite(block)),
            (f"is too large for {stored}", np.abs(block) > largest),
        ):
            bad = wrong.any(axis=2) & present[start : start + 4096]
            if bad.any():
                i, v = np.argwhere(bad)[0]
                raise GeoError(
                    f"the embedding of sample {samples.sample_id[start + i]}, view {samples.view_names[v]} {what}",
                    where=file,
                    hint="--dtype float32 stores larger values" if "large" in what else "compute it again",
                )


def _write_file(path: Path, embeddings: Embeddings) -> None:
    values, ids = embeddings.values, natural_ids(embeddings.sample_id)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        plain = ids.astype(str) if ids.dtype == object else ids
        np.savez(path, embeddings=values, sample_id=plain)
    elif path.suffix == ".safetensors":
        import torch

        # safetensors holds numbers alone; text ids go by manifest order.
        arrays = {"embeddings": values} | ({} if ids.dtype == object else {"sample_id": ids})
        save_tensors({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    else:
        i, v = np.nonzero(embeddings.present)
        views = np.array(embeddings.store.attrs["view_names"], dtype=object)
        table = {"sample_id": ids[i], "view": views[v], "embedding": list(values[i, v].astype(np.float32))}
        pd.DataFrame(table).to_parquet(path, index=False)
