"""Looking after the stores: what is there, is it whole, what can go; embeddings made elsewhere, in and out."""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.weights import fingerprint_of
from geo_embed.cache.find import check_fits, find_store
from geo_embed.cache.store import (
    MISSING,
    OK,
    PENDING,
    UNREADABLE,
    Embeddings,
    Store,
    chunks_of,
    commit_chunk,
    create_store,
    damaged_chunks,
    forget_chunk,
    has_chunk,
    hash_content,
    is_busy,
    list_stores,
    metadata_faults,
    only_writer,
    open_store,
    read_ids,
    read_store,
    store_path,
    stored_dtype,
)
from geo_embed.config import Config
from geo_embed.data import images
from geo_embed.data.samples import SPLITS, Samples, load_samples, natural_ids, text_ids
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import file_sha256, save_tensors
from geo_embed.runs.run import run_stores

FORMATS = (".npy", ".npz", ".safetensors", ".parquet")

# How alike a picture embedded again must be; bfloat16 on another device stays above it, another picture doesn't.
_SAME_COSINE = 0.999
_DEEP_PICTURES = 32
# Litter younger than this may belong to a writer at work.
_LITTER_SECONDS = 3600


@dataclass(frozen=True)
class StoreSummary:
    """A store at a glance. `bytes` on disk, `age_days` since its last write, `runs` fitted on it."""

    path: Path
    split: str
    backbone: str
    fingerprint: str
    samples: int
    views: int
    dim: int
    complete: float
    bytes: int
    age_days: float
    runs: list[str]


@dataclass(frozen=True)
class StoreProblem:
    """What is wrong with a store, and which of its rows are concerned."""

    store: Path
    where: str
    message: str


@dataclass
class Garbage:
    """What nothing needs: paths and what they are; `bytes` in all; whether it was deleted."""

    stores: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    deleted: bool = False


@dataclass(frozen=True)
class Imported:
    """A store made from a file."""

    store: Path
    fingerprint: str
    samples: int
    views: int
    dim: int


def summarise(config: Config) -> list[StoreSummary]:
    """Every store of the cache, by path."""
    users = run_stores(config.paths.runs_dir)
    return [summarise_store(store, users) for store in list_stores(config.paths.cache_dir)]


def summarise_store(store: Store, users: dict[str, list[str]]) -> StoreSummary:
    """One store at a glance; `users` gives the runs of each fingerprint."""
    files = [path.stat() for path in store.path.rglob("*") if path.is_file()]
    with damaged_chunks(store.path):
        complete = float((np.asarray(store.status[:]) != PENDING).mean())
    return StoreSummary(
        store.path,
        store.split,
        store.attrs["backbone"],
        store.fingerprint,
        *store.shape,
        complete=complete,
        bytes=sum(file.st_size for file in files),
        age_days=(time.time() - max(file.st_mtime for file in files)) / 86_400,
        runs=users.get(store.fingerprint, []),
    )


def choose_stores(
    config: Config, split: str, path: Path | None = None
) -> tuple[list[Store], list[StoreProblem]]:
    """The stores to look after, and what is there but can't be opened at all.

    Args:
        config: the settings that choose, where no path is given.
        split: `train`, `test`, or `all` for as many of them as there are.
        path: one store, whatever the settings.

    Raises:
        GeoError: there is neither.
    """
    if path is not None:
        problems = _unreadable(path) if path.exists() else []
        return ([] if problems else [open_store(path)]), problems
    splits = SPLITS if split == "all" else (split,)
    problems = unreadable_stores(config.paths.cache_dir, splits)
    stores: list[Store] = []
    absent: list[GeoError] = []
    for one in splits:
        try:
            stores.append(find_store(config, one))
        except GeoError as error:
            absent.append(error)
    if not stores and not problems:
        raise absent[0]
    return stores, problems


def unreadable_stores(cache_dir: Path, splits: Sequence[str] = SPLITS) -> list[StoreProblem]:
    """Stores of these splits that can't be opened."""
    paths = [path for split in splits for path in sorted(cache_dir.glob(f"*/{split}.zarr"))]
    return [problem for path in paths for problem in _unreadable(path)]


def _unreadable(path: Path) -> list[StoreProblem]:
    try:
        open_store(path, writable=False)
    except GeoError as error:
        return [StoreProblem(path, "the whole store", error.what)]
    return []


def verify(store: Store, *, repair: bool = False) -> list[StoreProblem]:
    """Read every byte of a store against its checksums.

    Args:
        store: any store.
        repair: let the rows of damaged chunks be pending again, so that `geo extract` computes them anew. Damaged ids
            it writes again by itself.
    """
    problems = [StoreProblem(store.path, where, message) for where, message in metadata_faults(store)]
    damaged: list[slice] = []
    for rows in chunks_of(store):
        faults = list(_chunk_faults(store, rows))
        if faults:
            damaged.append(rows)
        where = f"rows {rows.start}–{rows.stop - 1}"
        problems += [StoreProblem(store.path, f"{name}, {where}", why) for name, why in faults]
    try:
        read_ids(store)
    except GeoError as error:
        problems.append(StoreProblem(store.path, "sample_id", error.what))
    if repair and damaged:
        with only_writer(store.path):
            writable = open_store(store.path)
            for rows in damaged:
                forget_chunk(writable, rows)
    return problems


def verify_deep(config: Config, store: Store, *, pictures: int = _DEEP_PICTURES) -> list[StoreProblem]:
    """Embed a sample of pictures again, and compare file and embedding with what the store says.

    Args:
        config: paths, device, and the backbone's place.
        store: a store that was extracted, not imported.
        pictures: how many, spread evenly over the store.

    Raises:
        GeoError: the backbone is not the store's.
    """
    import torch

    if store.attrs.get("imported"):
        raise GeoError("an imported store can't be embedded again", where=store.path)
    samples = load_samples(config, store.split)
    check_fits(store, samples)
    device = pick_device(config.model.device)
    model = config.model.model_copy(update={"feature": store.attrs["feature"]})
    backbone = backbones.load_backbone(model, device, getattr(torch, store.attrs["dtype"]))
    if backbone.weights_sha256 != store.attrs["weights_sha256"]:
        raise GeoError(f"{backbone.name} has other weights than made this store", where=store.path)
    spec = images.Preprocessing(**store.attrs["preprocessing"])
    embeddings = read_store(store)
    rows, views = np.nonzero(embeddings.present)
    problems = []
    for k in np.linspace(0, len(rows) - 1, min(pictures, len(rows))).astype(int):
        i, v = rows[k], views[k]
        where = f"sample {samples.sample_id[i]}, view {samples.view_names[v]}"
        path = samples.image_root / samples.images[i, v]
        try:
            data = path.read_bytes()
            pixels = images.resize(images.decode(data), spec)
        except (OSError, images.UnreadableImage) as error:
            problems.append(StoreProblem(store.path, where, f"the picture can't be read any more: {error}"))
            continue
        if hash_content(data) != int(np.asarray(store.content_hash[i])[v]):
            problems.append(StoreProblem(store.path, where, f"the picture changed on disk: {path}"))
            continue
        with torch.inference_mode():
            batch = images.normalise(torch.from_numpy(pixels)[None].to(device), spec, backbone.dtype)
            again = backbones.embed(backbone, batch)[0].float().cpu().numpy()
        cosine = _cosine(again, embeddings.values[i, v].astype(np.float32))
        if cosine < _SAME_COSINE:
            problems.append(
                StoreProblem(store.path, where, f"embedded again it differs: cosine {cosine:.4f}")
            )
    return problems


def collect_garbage(config: Config, *, unused: bool = False, delete: bool = False) -> Garbage:
    """Find, and on request delete, what no command will read again.

    Args:
        config: where cache and runs lie.
        unused: also stores that no run was fitted on and that don't belong to the present settings.
        delete: do it, instead of only saying it.
    """
    garbage = Garbage()
    found = [(path, reason) for path, reason in _litter(config.paths.cache_dir)]
    if unused:
        used = set(run_stores(config.paths.runs_dir))
        for split in SPLITS:
            try:
                used.add(find_store(config, split).fingerprint)
            except GeoError:
                continue
        found += [
            (store.path, "no run was fitted on it")
            for store in list_stores(config.paths.cache_dir)
            if store.fingerprint not in used and not is_busy(store.path)
        ]
    for path, reason in found:
        size = _size(path)
        garbage.stores.append({"path": path, "reason": reason, "bytes": size})
        garbage.bytes += size
        if delete:
            with disk_errors(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    garbage.deleted = delete
    return garbage


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
    with only_writer(path):
        # Written aside and moved into place: an import that fails leaves the earlier one as it was.
        aside = path.with_name(f".{path.name}.importing")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            store = create_store(
                aside,
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
            _put_in_place(aside, path, overwrite=overwrite)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
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
        temporary = out.with_name(f".{out.name}.writing{out.suffix}")
        try:
            _write_file(temporary, embeddings)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    return embeddings


_FORMAT_HINT = "use one of " + ", ".join(FORMATS)


def _chunk_faults(store: Store, rows: slice) -> Iterator[tuple[str, str]]:
    committed = True
    for name in ("status", "content_hash", "embeddings"):
        try:
            with damaged_chunks(store.path):
                block = np.asarray(getattr(store, name)[rows])
        except GeoError as error:
            yield name, error.what
            continue
        if name == "status":
            committed = bool((block != PENDING).any())
            if block.max() > UNREADABLE:
                yield name, f"unknown status {block.max()}"
        elif committed and not has_chunk(store, name, rows):
            yield name, "the chunk is gone from the disk"


def _litter(cache_dir: Path) -> Iterator[tuple[Path, str]]:
    now = time.time()
    for path in sorted(cache_dir.glob("*/*")):
        store = path.with_name(path.name.strip(".").partition(".")[0] + ".zarr")
        if is_busy(store):
            continue
        if path.name.startswith(".") and path.suffix in (".creating", ".importing", ".replaced"):
            if now - path.stat().st_mtime > _LITTER_SECONDS:
                yield path, "left by an interrupted command"
        elif path.name.startswith(f"{store.name}.") and path.suffix[1:].isdigit():
            if _is_complete(store):
                yield path, "an earlier state of the split, whose successor is whole"
        elif path == store:
            for part in sorted(path.rglob("*.partial")):
                if now - part.stat().st_mtime > _LITTER_SECONDS:
                    yield part, "left by an interrupted write"


def _is_complete(path: Path) -> bool:
    try:
        store = open_store(path, writable=False)
        with damaged_chunks(path):
            return bool((np.asarray(store.status[:]) != PENDING).all())
    except GeoError:
        return False


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _put_in_place(aside: Path, path: Path, *, overwrite: bool) -> None:
    if path.exists():
        there, new = open_store(path), open_store(aside)
        same = all(
            np.array_equal(getattr(there, a)[:], getattr(new, a)[:]) for a in ("content_hash", "status")
        )
        if not (same or overwrite):
            raise GeoError(
                "an import of this name holds other embeddings",
                where=path,
                hint="choose another --backbone name, or replace it with --overwrite",
            )
    with disk_errors(path):
        replaced = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            path.rename(replaced)
        aside.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)


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
