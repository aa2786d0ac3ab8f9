"""Embeddings made elsewhere, in and out."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo_embed.cache.arrays import first_unfit
from geo_embed.cache.find import find_store, import_attributes
from geo_embed.cache.formats import FORMAT_HINT, FORMATS, Vectors, check_holds, read_vectors, write_vectors
from geo_embed.cache.layout import MOST_LETTERS
from geo_embed.cache.locks import only_writer
from geo_embed.cache.storage import creating, has_store, store_path
from geo_embed.cache.store import (
    OK,
    Embeddings,
    Store,
    chunks_of,
    commit_chunk,
    hash_embeddings,
    lay_out,
    open_store,
    read_content_hash,
    read_ids,
    read_status,
    read_store,
    stored_dtype,
)
from geo_embed.config import Config
from geo_embed.console import progress, warn
from geo_embed.data.outputs import check_output
from geo_embed.data.samples import SPLITS, Samples, load_samples
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import file_sha256, replacing

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Imported:
    """A store made from a file; `by_position` says which of `samples` and `views` the file didn't name."""

    store: Path
    fingerprint: str
    samples: int
    views: int
    dim: int
    by_position: tuple[str, ...] = ()


def cache_import(
    config: Config,
    file: Path,
    split: str,
    name: str,
    *,
    overwrite: bool = False,
    runs: Mapping[str, Sequence[str]] | None = None,
) -> Imported:
    """Make a store from embeddings computed elsewhere.

    Args:
        config: paths, views and `model.dtype` (float16 unless float32 is asked for).
        file: embeddings in any of the formats of formats.py. Rows go by their ids and views by their names; by position
            only where the file names none, which is said.
        split: whose samples they are.
        name: what the backbone is to be called from now on.
        overwrite: replace an import of this name that holds something else.
        runs: the names of the runs fitted on each fingerprint, to say which lose what they were fitted on.

    Raises:
        GeoError: shapes, ids or views don't fit the CSV, values aren't finite, or the name is taken, by another backbone's
            embeddings of the other split, too.
    """
    if not name.strip() or len(name) > MOST_LETTERS:
        raise GeoError(
            f"a backbone's name has 1 to {MOST_LETTERS:,} letters, this one {len(name):,}", where="--backbone"
        )
    samples = load_samples(config, split)
    vectors = read_vectors(file, samples)
    stored = stored_dtype(config.model.dtype)
    _check_values(file, samples, vectors, stored)
    if vectors.by_position:
        places = {
            "samples": f"samples in the order of {samples.csv.name}",
            "views": f"views as {', '.join(samples.view_names)}",
        }
        taken = " and ".join(places[what] for what in vectors.by_position)
        warn(
            f"{file.name} doesn't name its {' and '.join(vectors.by_position)}; they are taken by position: {taken}"
        )
    attrs = import_attributes(name, list(samples.view_names), stored, vectors.values.shape[2])
    fingerprint = attrs["fingerprint"]
    path = store_path(config.paths.cache_dir, name, fingerprint, split)
    attrs |= {"source": file.name, "source_sha256": file_sha256(file), "source_made_by": vectors.made_by}
    _refuse_other_backbone(path, name, vectors.made_by)
    # Written aside and moved into place: an import that fails leaves the earlier one as it was.
    with only_writer(path), creating(path) as storage:
        store = lay_out(
            storage,
            samples,
            dim=vectors.values.shape[2],
            dtype=stored,
            chunk_rows=config.inference.chunk_rows,
            attrs=attrs,
        )
        with progress(f"import {split}", len(samples), "samples") as advance:
            for rows in chunks_of(store):
                values, status = vectors.block(rows)
                block = values.astype(stored)
                commit_chunk(store, rows, block, hash_embeddings(block), status)
                advance(rows.stop - rows.start)
        replaces = has_store(path) and not _is_same(path, store, overwrite)
        if replaces and not overwrite:
            raise GeoError(
                "an import of this name holds other embeddings",
                where=path,
                hint="choose another --backbone name, or replace it with --overwrite",
            )
    concerned = ", ".join((runs or {}).get(fingerprint, ()))
    if replaces and concerned and split == "train":
        warn(
            f"{path} was replaced; runs that were fitted on it: {concerned}; where the new embeddings are another backbone's, "
            "they refuse to predict, and are to be fitted again"
        )
    elif replaces and concerned and not vectors.made_by:
        warn(
            f"{path} was replaced; {concerned} will predict from it: it must be by the backbone of the train split"
        )
    samples_count, views, dim = vectors.values.shape
    return Imported(path, fingerprint, samples_count, views, dim, vectors.by_position)


def cache_export(config: Config, split: str, out: Path, *, feature: str | None = None) -> Embeddings:
    """Write a split's embeddings to a file that `cache_import` reads; its format is the file's ending.

    Args:
        config: which store.
        split: `train` or `test`.
        out: the file.
        feature: a further feature of the store in place of its embeddings.

    Raises:
        GeoError: no such store, an ending that isn't one of `FORMATS`, or one whose format can't hold them.
    """
    if out.suffix not in FORMATS:
        raise GeoError(f"can't write {out.suffix or 'a file without an ending'}", where=out, hint=FORMAT_HINT)
    check_output(config.paths, out)
    if len(config.model.backbone_names) > 1:
        names = config.model.backbone_names
        raise GeoError(
            f"a file holds the embeddings of one backbone, and the settings name {', '.join(names)}",
            where="model.backbones",
            hint=f"geo cache export --backbone {shlex.quote(names[0])}",
        )
    embeddings = read_store(find_store(config, split), feature=feature)
    check_holds(out, embeddings)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        write_vectors(temporary, embeddings)
    return embeddings


def other_source(first: object, second: object) -> str:
    """How two imports' `source_made_by` name different backbones, or features, for people; empty where they don't, or one says nothing.

    Of the backbone a fingerprint decides where both have it: its name may be a path, and differ from machine to machine. A feature is named
    beside either, since a store has several under one fingerprint.
    """
    if not isinstance(first, dict) or not isinstance(second, dict):
        return ""
    shared = [key for key in ("fingerprint", "backbone", "feature") if first.get(key) and second.get(key)]
    if "fingerprint" in shared and "backbone" in shared:
        shared.remove("backbone")
    for key in shared:
        if first[key] != second[key]:
            return f"its {key} is {second[key]!r:.200}, not {first[key]!r:.200}"
    return ""


def _refuse_other_backbone(path: Path, name: str, made_by: Mapping[str, str]) -> None:
    """Raise GeoError where the other split's import of this name says that another backbone made it."""
    for split in SPLITS:
        beside = path.with_name(f"{split}{path.suffix}")
        if beside == path:
            continue
        try:
            recorded = open_store(beside, writable=False).attrs.get("source_made_by")
        # There is none, or none that can be read.
        except GeoError:
            continue
        other = other_source(recorded, made_by)
        if other:
            raise GeoError(
                f"the {split} split of {name!r} is another backbone's than this file: {other}",
                where=beside,
                hint="choose another --backbone name; where both splits are to be replaced, delete that store first",
            )


def _is_same(path: Path, store: Store, overwrite: bool) -> bool:
    """Whether both stores hold the same embeddings of the same samples, whatever their order; what can't be read is none to be overwritten."""
    try:
        earlier = open_store(path)
        place = {sample_id: i for i, sample_id in enumerate(read_ids(earlier))}
        order = [place.get(sample_id, -1) for sample_id in read_ids(store)]
        if len(place) != len(order) or min(order) < 0:
            return False
        return all(
            np.array_equal(read(earlier)[order], read(store)) for read in (read_content_hash, read_status)
        )
    except GeoError:
        if overwrite:
            return False
        raise


def _check_values(file: Path, samples: Samples, vectors: Vectors, stored: str) -> None:
    """Raise GeoError, by sample and view, for the first embedding that `stored` can't hold."""
    if vectors.values.dtype.kind != "f":
        raise GeoError(f"{vectors.values.dtype} values, where floats are needed", where=file)
    for start in range(0, len(samples), _BLOCK_ROWS):
        block, status = vectors.block(slice(start, start + _BLOCK_ROWS))
        unfit = first_unfit(block, status == OK, stored, asks="--dtype float32")
        if unfit is not None:
            i, v, what, hint = unfit
            raise GeoError(
                f"the embedding of sample {samples.sample_id[start + i]}, view {samples.view_names[v]} {what}",
                where=file,
                hint=hint,
            )
