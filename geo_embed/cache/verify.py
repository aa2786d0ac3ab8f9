"""Whether a store is whole: every byte against its checksum, and embeddings against their images."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.families import family_of
from geo_embed.backbones.preprocessing import recorded_preprocessing
from geo_embed.backbones.weights import find_backbone, hash_weights
from geo_embed.cache.find import check_fits, choose_store, variant_stores
from geo_embed.cache.layout import hash_array
from geo_embed.cache.locks import only_writer
from geo_embed.cache.storage import folders, store_paths
from geo_embed.cache.store import (
    OK,
    PENDING,
    UNREADABLE,
    Store,
    add_hint,
    chunks_of,
    count_missing,
    forget_chunk,
    forget_feature,
    has_chunk,
    hash_content,
    is_finite,
    lacking,
    metadata_faults,
    open_store,
    part_rows,
    read_chunk,
    read_content_hash,
    read_has_feature,
    read_ids,
    read_rows,
    read_status,
    rebuild_hint,
)
from geo_embed.config import FEATURES, Config, Model
from geo_embed.console import counted, progress, track
from geo_embed.data import images
from geo_embed.data.samples import SPLITS, Samples, load_samples
from geo_embed.data.variants import AS_THEY_ARE
from geo_embed.devices import pick_device, with_torch_switches
from geo_embed.errors import GeoError

# How alike an image embedded again must be; bfloat16 on another device stays above it, another image doesn't.
SAME_COSINE = 0.999
DEEP_IMAGES = 32
# Machines that an extraction is divided among.
_MOST_PARTS = 64


@dataclass(frozen=True)
class StoreProblem:
    """What is wrong with a store, and which of its rows are concerned."""

    store: Path
    where: str
    message: str


def choose_stores(
    cache_dir: Path, model: Model, split: str, path: Path | None = None
) -> tuple[list[Store], list[StoreProblem]]:
    """The stores to look after, those of variants of their pictures among them, and what stands in the place of one but can't be opened at all.

    Args:
        cache_dir: where stores lie.
        model: the settings that choose, where no path is named.
        split: `train`, `test`, or `all` for as many of them as exist.
        path: a store, whatever the settings.

    Raises:
        GeoError: neither a store nor anything that should be one.
    """
    if path is not None:
        problems = _unreadable(path) if path.exists() else []
        return ([] if problems else [open_store(path)]), problems
    splits = SPLITS if split == "all" else (split,)
    problems = unreadable_stores(cache_dir, splits)
    stores: list[Store] = []
    absent: list[GeoError] = []
    for backbone, name in itertools.product(model.backbone_names, splits):
        try:
            store = choose_store(cache_dir, model.with_backbone(backbone), name)
            stores += [store, *variant_stores(cache_dir, store)]
        except GeoError as error:
            absent.append(error)
    if not stores and not problems:
        raise absent[0]
    return stores, problems


def other_stores(cache_dir: Path, split: str, looked_at: Sequence[Path]) -> list[Path]:
    """Stores of a split, or of `all`, that are not among those looked at."""
    splits = SPLITS if split == "all" else (split,)
    return [path for name in splits for path in store_paths(cache_dir, name) if path not in looked_at]


def unreadable_stores(cache_dir: Path, splits: Sequence[str] = SPLITS) -> list[StoreProblem]:
    """Stores of these splits that can't be opened, and folders that can't be looked into."""
    problems = []
    for folder in folders(cache_dir):
        try:
            next(folder.iterdir(), None)
        except OSError as error:
            problems.append(StoreProblem(folder, "the whole folder", f"can't read: {error.strerror}"))
    paths = [path for split in splits for path in store_paths(cache_dir, split)]
    return problems + [problem for path in paths for problem in _unreadable(path)]


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
        repair: let the rows of damaged chunks be pending again, so that `geo extract` computes them anew; where a further feature
            alone is damaged, its rows lack it again. Damaged ids it writes again by itself.
    """
    problems = [StoreProblem(store.path, where, message) for where, message in metadata_faults(store)]
    damaged: list[tuple[slice, set[str]]] = []
    of_feature = {array: name for name in store.further for array in (name, hash_array(name))}
    with progress(f"verify {store.split}", store.shape[0], "samples") as advance:
        for rows in chunks_of(store):
            faults = list(_chunk_faults(store, rows))
            if faults:
                damaged.append((rows, {name for name, _ in faults}))
            where = f"rows {rows.start}–{rows.stop - 1}"
            problems += [StoreProblem(store.path, f"{name}, {where}", why) for name, why in faults]
            advance(rows.stop - rows.start, counted(len(problems), "problem"))
    try:
        read_ids(store)
    except GeoError as error:
        problems.append(StoreProblem(store.path, "sample_id", error.what))
    if repair and damaged:
        with only_writer(store.path):
            writable = open_store(store.path)
            for rows, arrays in damaged:
                for feature in {of_feature[array] for array in arrays & of_feature.keys()}:
                    forget_feature(writable, rows, feature)
                if arrays - of_feature.keys():
                    forget_chunk(writable, rows)
    return problems


def missing_parts(store: Store, parts: int) -> list[int]:
    """Of `parts` equal parts, those (from 1) that `geo extract --part K/N` still has something to do for."""
    pending = (read_status(store) == PENDING).any(axis=1)
    ranges = [part_rows(store.shape[0], store.chunk_rows, (k, parts)) for k in range(1, parts + 1)]
    return [k for k, rows in enumerate(ranges, start=1) if pending[rows].any()]


@dataclass(frozen=True)
class Pending:
    """What of a store isn't extracted yet.

    Attributes:
        store: its path.
        samples: how many lack an embedding.
        missing_parts: where it was divided into equal parts, as K/N, those that lack any.
        commands: that make them.
    """

    store: Path
    samples: int
    missing_parts: list[str]
    commands: list[str]


def find_pending(store: Store, parts: int | None = None) -> Pending | None:
    """What is left to extract, None where nothing is. Raises GeoError for damage.

    Args:
        store: any.
        parts: into how many it was divided. That isn't written anywhere: taken else is the least number of parts of which each is
            done or not begun, and none where there is none, as after a kill. Whatever it was, the commands make what is missing.
    """
    pending = (read_status(store) == PENDING).any(axis=1)
    if not pending.any():
        return None
    command = rebuild_hint(store.path, store.attrs)
    # Of variants no part is made alone.
    if store.variant != AS_THEY_ARE:
        parts = None
    elif parts is None:
        parts = _parts_done_or_not_begun(store, pending)
    missing = [] if parts is None else [f"{k}/{parts}" for k in missing_parts(store, parts)]
    commands = [f"{command} --part {k}" for k in missing] or [command]
    return Pending(store.path, int(pending.sum()), missing, commands)


@dataclass(frozen=True)
class Missing:
    """How many `pictures` of a store were looked for and have no embedding: they weren't there, or couldn't be read."""

    store: Path
    pictures: int


def find_missing(store: Store) -> Missing | None:
    """The pictures that an extraction couldn't have; None where it had all. Raises GeoError for damage."""
    count = count_missing(read_status(store))
    return Missing(store.path, count) if count else None


@dataclass(frozen=True)
class Lacking:
    """Pictures of a store that have an embedding, and not yet a further feature that it has room for.

    Attributes:
        store: its path.
        feature: which.
        pictures: how many.
        command: that gives it to them.
    """

    store: Path
    feature: str
    pictures: int
    command: str


def find_lacking(store: Store) -> list[Lacking]:
    """Further features that aren't complete, as after an addition that was killed. Raises GeoError for damage."""
    command = add_hint(store, ())
    counts = {feature: lacking(store, feature) for feature in store.further}
    return [Lacking(store.path, feature, count, command) for feature, count in counts.items() if count]


def damaged_features(problems: Iterable[StoreProblem]) -> dict[Path, list[str]]:
    """By store, the further features of which `verify` found chunks damaged."""
    damaged: dict[Path, list[str]] = {}
    for problem in problems:
        array = problem.where.partition(", rows ")[0]
        for feature in FEATURES:
            if array in (feature, hash_array(feature)) and feature not in damaged.setdefault(
                problem.store, []
            ):
                damaged[problem.store].append(feature)
    return {path: features for path, features in damaged.items() if features}


def _parts_done_or_not_begun(store: Store, pending: NDArray[np.bool_]) -> int | None:
    samples, chunk_rows = store.shape[0], store.chunk_rows
    for parts in range(2, min(-(-samples // chunk_rows), _MOST_PARTS) + 1):
        ranges = [part_rows(samples, chunk_rows, (k, parts)) for k in range(1, parts + 1)]
        done = [not pending[rows].any() for rows in ranges]
        if any(done) and all(
            is_done or pending[rows].all() for is_done, rows in zip(done, ranges, strict=True)
        ):
            return parts
    return None


@with_torch_switches
def verify_deep(config: Config, store: Store, *, count: int = DEEP_IMAGES) -> list[StoreProblem]:
    """Embed a sample of images again, and compare file and embedding with what the store says.

    Args:
        config: paths, device, and the backbone's place.
        store: a store that was extracted, not imported.
        count: how many, spread evenly over the store.

    Raises:
        GeoError: the backbone is not the store's.
    """
    import torch

    # The store's own samples, and the backbone that made it.
    if store.attrs.get("imported"):
        raise GeoError("an imported store can't be embedded again", where=store.path)
    for key in ("feature", "dtype", "weights_sha256", "preprocessing"):
        if not store.attrs.get(key):
            raise GeoError(f"the store doesn't say its {key}: it can't be embedded again", where=store.path)
    samples = load_samples(config, store.split)
    check_fits(store, samples)
    device = pick_device(config.model.device)
    model = _model_of(store, config.model).model_copy(update={"feature": store.attrs["feature"]})
    known = [name for name in store.further if name in family_of(find_backbone(model.backbone_name)).features]
    dtype = getattr(torch, store.attrs["dtype"])
    backbone = backbones.load_backbone(model, device, dtype, further=known)
    if backbone.weights_sha256 != store.attrs["weights_sha256"]:
        raise GeoError(f"{backbone.name} has other weights than made this store", where=store.path)
    if store.attrs.get("function") not in (None, backbone.function):
        raise GeoError(
            f"{backbone.name} has other settings in its config.json than made this store", where=store.path
        )
    present = np.argwhere(read_status(store) == OK)
    picked = present[np.linspace(0, len(present) - 1, min(count, len(present))).astype(int)]
    return [
        StoreProblem(
            store.path, again.where, again.fault or f"embedded again it differs: cosine {again.cosine:.4f}"
        )
        for again in embed_again(store, samples, [(int(i), int(v), int(i)) for i, v in picked], backbone)
        # NaN is no likeness.
        if again.fault or not again.cosine >= SAME_COSINE
    ]


def _model_of(store: Store, model: Model) -> Model:
    """The settings with the backbone that made a store, where they name several; the first where none did."""
    for name in model.backbones:
        with suppress(GeoError):
            if hash_weights(find_backbone(name, download=False)) == store.attrs["weights_sha256"]:
                return model.with_backbone(name)
    return model.with_backbone(model.backbone_name)


@dataclass(frozen=True)
class EmbeddedAgain:
    """A picture's embedding, or a further feature of it, beside the one that a store has for it.

    Attributes:
        where: its sample and view, and which feature if it isn't the store's own, for people.
        cosine: of the two; NaN where there is a fault.
        fault: why they can't be compared; empty where they can.
    """

    where: str
    cosine: float = float("nan")
    fault: str = ""


def embed_again(
    store: Store,
    samples: Samples,
    places: Iterable[tuple[int, int, int]],
    backbone: backbones.Backbone,
) -> Iterator[EmbeddedAgain]:
    """Compare embeddings of a store with those that its pictures have now, and further features as far as both have them.

    Args:
        store: that has an embedding for each of the places.
        samples: whose pictures are read.
        places: row of the store, view, and row of the samples.
        backbone: that embeds, as the store's preprocessing says.

    Raises:
        GeoError: a chunk of the store is damaged or gone.
    """
    import torch

    from geo_embed.data.augment import change_pictures

    variant = store.variant
    spec = recorded_preprocessing(store.attrs["preprocessing"], store.path)
    content = read_content_hash(store)
    has = {name: read_has_feature(store, name) for name in backbone.features if name in store.features}
    for i, v, row in track("embed again", list(places), "images"):
        where = f"sample {samples.sample_id[row]}, view {samples.view_names[v]}"
        picture = samples.images[row, v]
        try:
            data = samples.pictures.read(picture)
            same = hash_content(data) == content[i, v]
            pixels = images.resize(images.decode(data, accept_damage=True), spec) if same else None
        except (OSError, GeoError, images.UnreadableImage) as error:
            yield EmbeddedAgain(where, fault=f"the picture can't be read any more: {error}")
            continue
        if pixels is None:
            yield EmbeddedAgain(
                where, fault=f"the picture changed on disk: {samples.pictures.where(picture)}"
            )
            continue
        with torch.inference_mode():
            shown = torch.from_numpy(pixels)[None, None].to(backbone.device)
            changed = change_pictures(
                shown, torch.ones(1, 1, dtype=torch.bool, device=backbone.device), variant
            )
            batch = images.normalise(changed[0], spec, backbone.dtype)
            embedded = backbones.embed_features(backbone, batch)
        first = i - i % store.chunk_rows
        chunk = slice(first, first + store.chunk_rows)
        for name, mask in has.items():
            if mask[i, v]:
                stored = read_chunk(store, chunk, store.array_of(name))[i - first, v].astype(np.float32)
                suffix = "" if name == store.feature else f", {name}"
                embedding = embedded[name][0].float().cpu().numpy()
                yield EmbeddedAgain(f"{where}{suffix}", _cosine(embedding, stored))


def _chunk_faults(store: Store, rows: slice) -> Iterator[tuple[str, str]]:
    """What is wrong with a chunk of rows: array and reason. Once its status is known, the others are held against it."""
    status = np.full((rows.stop - rows.start, store.shape[1]), OK, dtype=np.uint8)
    for name in ("status", "content_hash", "embeddings"):
        try:
            block = read_rows(store, name, rows)
        except GeoError as error:
            yield name, error.what
            continue
        if name == "status":
            status = block
            if status.max() > UNREADABLE:
                yield name, f"unknown status {status.max()}"
        elif (status != PENDING).any() and not has_chunk(store, name, rows):
            yield name, "the chunk is gone from the disk"
        elif name == "embeddings" and not is_finite(block[status == OK]):
            yield name, "numbers that are NaN or infinite"
    # A further feature is held against what says of which pictures it is, be their embeddings committed or not.
    for feature in store.further:
        name = hash_array(feature)
        try:
            present = read_rows(store, name, rows) != 0
            name = feature
            if present.any() and not has_chunk(store, feature, rows):
                yield feature, "the chunk is gone from the disk"
            elif not is_finite(read_rows(store, feature, rows)[present]):
                yield feature, "numbers that are NaN or infinite"
        except GeoError as error:
            yield name, error.what


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
