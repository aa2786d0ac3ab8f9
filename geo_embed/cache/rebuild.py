"""A store's metadata made again: what its chunks, its CSV and the name of its folder still say is all that a zarr.json says.

Lengths follow from the sizes of chunks, samples from the CSV, whose ids must be those of the store. What made the embeddings is taken
from the store of the other split, from the backbone or from an import's name, and only where its fingerprint is the folder's.
"""

import hashlib
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from geo_embed.backbones.weights import find_backbone
from geo_embed.cache.find import attributes_with, import_attributes, store_attributes
from geo_embed.cache.folder import FolderStorage
from geo_embed.cache.layout import (
    ARRAYS,
    FORMAT_VERSION,
    MOST_CHUNKS,
    MOST_NUMBERS,
    Attributes,
    further_arrays,
    hash_array,
)
from geo_embed.cache.locks import only_writer
from geo_embed.cache.medium import Storage
from geo_embed.cache.storage import sibling_paths, storage_at
from geo_embed.cache.store import (
    OK,
    Store,
    attributes_sha256,
    chunks_of,
    forget_chunk,
    hash_content,
    lay_out,
    metadata_faults,
    open_store,
    read_content_hash,
    read_status,
    write_metadata,
)
from geo_embed.cache.verify import StoreProblem
from geo_embed.config import FEATURES, Config
from geo_embed.console import progress
from geo_embed.data import images
from geo_embed.data.samples import Samples, load_samples
from geo_embed.errors import GeoError
from geo_embed.files import JSON_BYTES, parse_json, validated

_HEAD, _IDS = "zarr.json", "sample_id/c/0"
_CHECKSUM_BYTES = 4
_ITEM_BYTES = {"float16": 2, "float32": 4}
# Of the attributes, what is of one split, one file or one day.
_OWN = (
    *("manifest_sha256", "created", "versions", "checksums", "format_version", "features"),
    *("source", "source_sha256", "source_made_by"),
)


@dataclass(frozen=True)
class Rebuilt:
    """A store whose metadata was made again.

    Attributes:
        store: its path.
        files: which of its files.
        forgotten: rows that are pending again, since a picture that the CSV names for them is another than was embedded.
    """

    store: Path
    files: list[str]
    forgotten: int = 0


def rebuild_metadata(config: Config, path: Path) -> Rebuilt:
    """Make the zarr.json files of a store again that are damaged or gone.

    Args:
        config: paths, views, and the backbone or the import's name that the store is of, in case its own attributes are lost.
        path: of the store.

    Returns:
        What was made; no files where the metadata are as they were written.

    Raises:
        GeoError: why it can't be; or somebody is writing to the store.
    """
    with only_writer(path):
        storage = storage_at(path)
        attrs = _intact_attributes(storage)
        # 1. Whose samples: as the store says, or as the settings do.
        views = config.model.view_names if attrs is None else tuple(attrs["view_names"])
        model = config.model.model_copy(update={"view_names": views})
        samples = load_samples(config.model_copy(update={"model": model}), path.stem)
        # 2. How long: C rows a chunk, and the bytes of an embedding.
        rows, width = _measure(storage, len(samples), len(views))
        # 3. What made them, and by that D and the precision.
        made_by = {key: value for key, value in (attrs or {}).items() if key not in _OWN}
        if attrs is None:
            made_by = _made_by(config.model_copy(update={"model": model}), path, width)
        stored = made_by.get("stored")
        if (
            stored not in _ITEM_BYTES
            or width % _ITEM_BYTES[stored]
            or width // _ITEM_BYTES[stored] > MOST_NUMBERS
        ):
            raise _impossible(path, f"{width} bytes an embedding are none of {stored!r:.20}")
        # One that no chunk is of is left out: adding it again costs nothing.
        further = _features_there(storage, attrs, rows * len(views), _ITEM_BYTES[stored])
        is_less = attrs is not None and sorted(further) != attrs.get("features", [])
        if attrs is not None and is_less:
            attrs = {key: value for key, value in attrs.items() if key != "features"}
            attrs |= {"features": sorted(further)} if further else {}
        with tempfile.TemporaryDirectory(prefix="geo-rebuild-") as folder:
            # 4. What a new store of the same would say, and whether its samples are these.
            new = lay_out(
                FolderStorage(Path(folder)),
                samples,
                dim=width // _ITEM_BYTES[stored],
                dtype=stored,
                chunk_rows=rows,
                attrs=made_by,
                further=further,
            )
            _check_samples(storage, new, attrs)
            # 5. Arrays first: until the head is written, the store stays damaged, and can be mended again.
            written = list(_write_arrays(storage, new.storage, attrs, further))
        if attrs is None or is_less or metadata_faults(open_store(path)):
            write_metadata(storage, new.attrs if attrs is None else attrs)
            written.append(_HEAD)
        store = open_store(path)
        # 6. Which pictures the CSV names isn't in the ids: they are held against what was embedded.
        forgotten = 0
        if attrs is None and not made_by.get("imported"):
            for chunk in _of_other_pictures(store, samples):
                forget_chunk(store, chunk)
                forgotten += chunk.stop - chunk.start
        return Rebuilt(path, sorted(written), forgotten)


def rebuild_stores(
    config: Config, stores: list[Store], problems: list[StoreProblem]
) -> tuple[list[Store], list[StoreProblem], list[Rebuilt]]:
    """Make the metadata of stores again where they are damaged.

    Args:
        config: as in `rebuild_metadata`.
        stores, problems: as `choose_stores` gives them: what can be opened, and what can't.

    Returns:
        What can be opened now; the problems as they were found, those of stores that open among them, each with the reason where it
        stays; and what was made again.
    """
    reported, rebuilt = [], list[Rebuilt]()
    faults = {store.path: metadata_faults(store) for store in stores}
    opened = [store for store in stores if not faults[store.path]]
    for store in stores:
        try:
            if faults[store.path]:
                rebuilt.append(rebuild_metadata(config, store.path))
                reported += [StoreProblem(store.path, where, why) for where, why in faults[store.path]]
                opened.append(open_store(store.path))
        except GeoError as error:
            # What is wrong with it `verify` says itself.
            reported.append(StoreProblem(store.path, _HEAD, _reason(error)))
            opened.append(store)
    for problem in problems:
        reported.append(problem)
        # A folder that can't be looked into is none.
        if problem.store.suffix != ".zarr":
            continue
        try:
            rebuilt.append(rebuild_metadata(config, problem.store))
            opened.append(open_store(problem.store))
        except GeoError as error:
            reported[-1] = replace(problem, message=f"{problem.message}; {_reason(error)}")
    return opened, reported, rebuilt


def _reason(error: GeoError) -> str:
    return f"{error.what}; {error.hint}" if error.hint else error.what


def _impossible(path: Path, why: str) -> GeoError:
    return GeoError(
        f"zarr.json can't be made again: {why}",
        where=path,
        hint="restore the store from a copy, or delete it and run geo extract",
    )


def _intact_attributes(storage: Storage) -> dict[str, Any] | None:
    """The attributes of a store as they were written; None where they are damaged. Raises GeoError for another format."""
    try:
        head = parse_json(storage.read(_HEAD, limit=JSON_BYTES), storage.root / _HEAD)
        attrs = head["attributes"]
        version = attrs["format_version"]
        checksums = attrs["checksums"]
    except (KeyError, TypeError, GeoError):
        return None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise _impossible(storage.root, f"it is of format {version}, of a later version")
    try:
        validated(Attributes, attrs, storage.root)
        whole = checksums["attributes"] == attributes_sha256(attrs) and head["node_type"] == "group"
    except (KeyError, TypeError, GeoError):
        return None
    return dict(attrs) if whole else None


def _measure(storage: Storage, n: int, v: int) -> tuple[int, int]:
    """Rows a chunk, and bytes of an embedding, from the sizes that most chunks of an array have."""

    rows = next(
        (
            size // (v * item)
            for array, item in (("status", 1), ("content_hash", 8))
            if (size := _usual_size(storage, array)) is not None and size > 0 and size % (v * item) == 0
        ),
        None,
    )
    embeddings = _usual_size(storage, "embeddings")
    if rows is None or embeddings is None:
        raise _impossible(storage.root, "nothing was committed yet, or no chunk is whole")
    if rows > n or -(-n // rows) > MOST_CHUNKS or embeddings <= 0 or embeddings % (rows * v):
        raise _impossible(
            storage.root,
            f"chunks of {embeddings:,} bytes are none of {v} views, of which the CSV has {n:,} samples",
        )
    return rows, embeddings // (rows * v)


def _usual_size(storage: Storage, array: str) -> int | None:
    """The bytes that most chunks of an array have, less their checksum; None where there are none."""
    sizes: Counter[int] = Counter()
    for name in storage.chunks(array):
        with suppress(GeoError):
            sizes[storage.size(name) - _CHECKSUM_BYTES] += 1
    return sizes.most_common(1)[0][0] if sizes else None


def _features_there(
    storage: Storage, attrs: dict[str, Any] | None, pictures: int, item: int
) -> dict[str, int]:
    """The further features that chunks lie there of, and how many numbers each has: those that the store names, or all that are known.

    Args:
        storage: of the store.
        attrs: its attributes, as far as they are whole.
        pictures: of a chunk.
        item: the bytes of a number.
    """
    dims = {}
    for feature in FEATURES if attrs is None else attrs.get("features", ()):
        size, hashes = _usual_size(storage, feature), _usual_size(storage, hash_array(feature))
        if size and hashes == 8 * pictures and size % (pictures * item) == 0:
            dims[feature] = min(size // (pictures * item), MOST_NUMBERS)
    return dims


def _made_by(config: Config, path: Path, width: int) -> dict[str, Any]:
    """The attributes of embeddings whose fingerprint the store's folder is named by."""
    model, fingerprint = config.model, path.parent.name.rpartition("-")[2]
    views = list(model.view_names)
    # 1. The other split's store was made by the same; or it is an import of this name.
    for attrs in _of_others(path):
        if attrs["view_names"] == views and _fingerprint(attrs) == fingerprint:
            return attrs
    for name, (stored, size) in itertools.product(model.backbone_names, _ITEM_BYTES.items()):
        attrs = import_attributes(name, views, stored, width // size)
        if attrs["fingerprint"] == fingerprint:
            return attrs
    # 2. A backbone, in any precision: its weights are read once.
    import torch

    why = ""
    for name in model.backbone_names:
        try:
            named = model.with_backbone(name)
            base = store_attributes(named, find_backbone(name, download=False), torch.float32)
            for dtype, stored in itertools.product(("float32", "float16", "bfloat16"), _ITEM_BYTES):
                attrs = attributes_with(base, dtype=dtype, stored=stored)
                if attrs["fingerprint"] == fingerprint:
                    return attrs
        except GeoError as error:
            why = why or f" ({error.what})"
    names = " or ".join(model.backbone_names)
    raise GeoError(
        f"zarr.json can't be made again: {names} with these settings didn't make this store{why}",
        where=path,
        hint="name the backbone, or the import, that made it with --backbone, and its settings with --set model.…; or delete the store and run geo extract",
    )


def _of_others(path: Path) -> Iterator[dict[str, Any]]:
    """What made the stores that lie beside this one, as far as they are whole."""
    for other in sibling_paths(path):
        with suppress(GeoError):
            store = open_store(other, writable=False) if other != path else None
            if store is not None and not metadata_faults(store):
                yield {key: value for key, value in store.attrs.items() if key not in _OWN}


def _fingerprint(attrs: dict[str, Any]) -> str:
    """The fingerprint over all that made embeddings; empty where the attributes don't say all of it."""
    try:
        if attrs.get("imported"):
            name, views, stored, dim = (attrs[key] for key in ("backbone", "view_names", "stored", "dim"))
            return str(import_attributes(name, views, stored, dim)["fingerprint"])
        return str(attributes_with(attrs)["fingerprint"])
    except KeyError:
        return ""


def _check_samples(storage: Storage, new: Store, attrs: dict[str, Any] | None) -> None:
    """Raise GeoError where the CSV's samples are not those of the store: by what it says, or else by its ids, byte for byte."""
    if attrs is not None:
        same = attrs["manifest_sha256"] == new.attrs["manifest_sha256"]
    else:
        ids = new.storage.read(_IDS, limit=new.storage.size(_IDS))
        same = (
            storage.exists(_IDS)
            and storage.size(_IDS) == len(ids)
            and storage.read(_IDS, limit=len(ids)) == ids
        )
    if not same:
        raise GeoError(
            "zarr.json can't be made again: the CSV's samples are not those of this store",
            where=storage.root,
            hint="put the CSV back as it was; or delete the store and run geo extract",
        )


def _write_arrays(
    storage: Storage, new: Storage, attrs: dict[str, Any] | None, further: Iterable[str]
) -> Iterator[str]:
    """Write those arrays' metadata that are not as they were, or don't say what they have to; gives their names."""
    recorded = (attrs or {}).get("checksums", {})
    for array in [*ARRAYS, *further_arrays(further)]:
        name = f"{array}/{_HEAD}"
        content = new.read(name, limit=JSON_BYTES)
        with suppress(GeoError):
            stored = storage.read(name, limit=JSON_BYTES)
            as_recorded = recorded.get(name) == hashlib.sha256(stored).hexdigest()
            if as_recorded or parse_json(stored, name) == parse_json(content, name):
                continue
        storage.write_durably(name, content)
        yield name


def _of_other_pictures(store: Store, samples: Samples) -> Iterator[slice]:
    """Chunks of which a committed embedding is of another picture than the CSV names, as far as pictures are at hand."""
    with progress("compare pictures", math.prod(store.shape[:2]), "pictures") as advance:
        for rows in chunks_of(store):
            try:
                status, content_hash = read_status(store, rows), read_content_hash(store, rows)
            except GeoError:
                # Damage is another matter.
                continue
            differs = False
            for row, view in np.argwhere(status == OK):
                name = samples.images[rows.start + row, view]
                with suppress(OSError, GeoError, images.UnreadableImage):
                    data = samples.pictures.read(name)
                    differs |= hash_content(data) != content_hash[row, view]
            advance(status.size)
            if differs:
                yield rows
