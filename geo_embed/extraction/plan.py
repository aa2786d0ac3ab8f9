"""What an extraction is to do: what the settings come to, which store, and which of its rows."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.families import family_of
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.backbones.weights import find_backbone
from geo_embed.cache.find import store_attributes
from geo_embed.cache.locks import changing_layout, is_busy, refuse_other_writers
from geo_embed.cache.storage import delete, has_store, store_path, supersede, superseded_paths
from geo_embed.cache.store import (
    PENDING,
    Store,
    add_features,
    create_store,
    manifest_sha256,
    open_store,
    part_rows,
    read_status,
    write_ids,
)
from geo_embed.config import Config, Dtype, Model, OnDamagedImage
from geo_embed.data.images import Preprocessing
from geo_embed.data.samples import Samples, load_samples
from geo_embed.data.variants import Variant
from geo_embed.devices import default_batch_size, pick_device, pick_dtype
from geo_embed.errors import GeoError
from geo_embed.extraction.takeover import Wanted, settle

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Plan:
    """What the settings come to for one split, resolved once.

    Attributes:
        samples, manifest: what is to be embedded, and what names it.
        path, attrs: of the store.
        model: the settings of the backbone; `directory` is where its weights lie.
        features: the further ones that every picture is to have.
        device, dtype: where and in which precision it runs.
        spec: how images are resized and normalised.
        chunk_rows: of a new store.
        batch_size: images per pass.
        compiled: whether torch.compile compiles the backbone first.
        workers: decoding threads.
        skip_bad: record images that can't be read and go on, instead of stopping.
        with_damaged: what to do with images that decode with a loss.
        progress_seconds: between two lines of news.
    """

    samples: Samples
    manifest: str
    path: Path
    attrs: dict[str, Any]
    model: Model
    directory: Path
    features: tuple[str, ...]
    device: "torch.device"
    dtype: "torch.dtype"
    spec: Preprocessing
    chunk_rows: int
    batch_size: int
    compiled: bool
    workers: int
    skip_bad: bool
    with_damaged: OnDamagedImage
    progress_seconds: float


def parse_part(text: str | None) -> tuple[int, int] | None:
    """`2/4` to (2, 4), the second of four parts. Raises GeoError for anything else."""
    if text is None:
        return None
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    if not numbers:
        raise GeoError(f"{text!r} is no part", where="--part", hint="K/N, such as 1/4, K from 1 to N")
    return int(numbers[1]), int(numbers[2])


def check_part(part: tuple[int, int] | None, limit: int | None) -> None:
    """Raise GeoError where there is no such part, or it doesn't go together with the limit."""
    if part is None:
        return
    if not 1 <= part[0] <= part[1]:
        raise GeoError(f"no part {part[0]} of {part[1]}", where="part", hint="parts are 1/n to n/n")
    if limit is not None:
        raise GeoError("a part and a limit don't go together", where="limit", hint="leave one of them out")


def make_plan(
    config: Config,
    split: str,
    variant: Variant,
    dtype_name: Dtype | None,
    device: "torch.device | None" = None,
) -> Plan:
    """Read the samples, find the backbone, choose the store; one of an earlier version that agrees is taken over.

    Args:
        config: all settings.
        split: `train` or `test`.
        variant: what is done to every picture first.
        dtype_name: the backbone's precision, in place of the settings'.
        device: where it runs, in place of the settings', which ask for one of this machine.

    Raises:
        GeoError: bad data, no weights, somebody else at work on a store of an earlier version.
    """
    samples = load_samples(config, split)
    model, inference = config.model, config.inference
    device = device or pick_device(model.device)
    dtype = pick_dtype(dtype_name or model.dtype, device)
    directory = find_backbone(model.backbone_name)
    attrs = store_attributes(model, directory, dtype, variant)
    plan = Plan(
        samples,
        manifest_sha256(samples),
        store_path(config.paths.cache_dir, model.backbone_name, attrs["fingerprint"], split),
        attrs,
        model,
        directory,
        further_features(model, directory, device),
        device,
        dtype,
        read_preprocessing(directory, exact=model.exact),
        inference.chunk_rows,
        inference.batch_size or default_batch_size(device),
        inference.compile,
        inference.workers or os.cpu_count() or 1,
        inference.on_bad_image == "skip",
        inference.with_damaged,
        config.tracking.progress_seconds,
    )
    path, fingerprint = settle(Wanted(plan.path, attrs, samples, model, device, dtype))
    return replace(plan, path=path, attrs=attrs | {"fingerprint": fingerprint})


def further_features(model: Model, directory: Path, device: "torch.device") -> tuple[str, ...]:
    """The features that a store is to have beside its own.

    Left to itself, none on a CPU, where a pass takes long and the disk is a laptop's; on a GPU all that the backbone has.

    Raises:
        GeoError: the model has no such feature, by name.
    """
    if model.features == "auto":
        has = family_of(directory).other_features(model.feature)
        return () if device.type == "cpu" else tuple(sorted(has))
    return tuple(sorted({*model.features} - {model.feature}))


def planned_rows(plan: Plan, part: tuple[int, int] | None) -> slice:
    """The rows of a part, a range of whole chunks: of the store that exists, or of the one to be made."""
    existing = existing_store(plan)
    return part_rows(len(plan.samples), existing.chunk_rows if existing else plan.chunk_rows, part)


def existing_store(plan: Plan) -> Store | None:
    """The store of these samples; None where there is none yet, or one of other samples."""
    if not has_store(plan.path):
        return None
    store = open_store(plan.path)
    return store if store.attrs["manifest_sha256"] == plan.manifest else None


def lay_out_store(plan: Plan, rows: slice | None, *, anew: bool = False) -> Store:
    """The store of these samples, made by whoever comes first; one that stands in its place is moved aside, as a source.

    Args:
        plan: what it is of.
        rows: what its caller is the writer of; None for all.
        anew: make a new one, though there is one of these samples.

    Raises:
        GeoError: a store is to be moved aside while somebody else writes to it.
    """
    with changing_layout(plan.path):
        store = None if anew else existing_store(plan)
        if store is not None:
            write_ids(store, plan.samples)
            return add_features(store, _dims(plan, ()))
        # What the store before had, its successor gets: those pictures that are the same needn't pass the backbone again.
        further = _dims(plan, _features_before(plan.path))
        if has_store(plan.path):
            refuse_other_writers(plan.path, rows)
            supersede(plan.path)
        return create_store(
            plan.path,
            plan.samples,
            dim=backbones.embedding_dim(plan.directory, plan.model.feature),
            dtype=plan.attrs["stored"],
            chunk_rows=plan.chunk_rows,
            attrs=plan.attrs,
            further=further,
        )


def _dims(plan: Plan, features: Sequence[str]) -> dict[str, int]:
    """How many numbers the plan's further features have, and others that the backbone has as well."""
    known = [name for name in features if name in family_of(plan.directory).features]
    return {name: backbones.embedding_dim(plan.directory, name) for name in [*plan.features, *known]}


def _features_before(path: Path) -> tuple[str, ...]:
    """The further features of a store that is about to be superseded, and of those that were."""
    features: set[str] = set()
    for earlier in [path, *superseded_paths(path)]:
        with suppress(GeoError):
            features |= set(open_store(earlier, writable=False).further)
    return tuple(sorted(features))


def discard_superseded(store: Store) -> None:
    """Delete earlier stores of the split once this one is whole and nobody writes to it who may still copy from them.

    To be called when its own lock is let go of: of several parts the last one to end finds nobody at work.
    """
    if not superseded_paths(store.path):
        return
    with changing_layout(store.path):
        if not is_busy(store.path) and (read_status(store) != PENDING).all():
            for earlier in superseded_paths(store.path):
                delete(earlier)
