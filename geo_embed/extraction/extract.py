"""Stage 1: images to the embedding store. What there is to do is planned here, and done by reader, embedder and writer.

Threads read, hash, decode and resize ahead of the model; the main thread fills one batch while the model works on
another; one thread writes. An image whose bytes were embedded before, in this store or another with the same
fingerprint, is copied, not computed.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.backbones.weights import find_backbone
from geo_embed.cache.find import store_attributes
from geo_embed.cache.locks import changing_layout, is_busy, only_writer, refuse_other_writers
from geo_embed.cache.storage import delete, store_path, supersede, superseded_paths
from geo_embed.cache.store import (
    OK,
    PENDING,
    Store,
    chunks_of,
    create_store,
    force_committed,
    manifest_sha256,
    open_store,
    part_rows,
    read_content_hash,
    read_status,
    write_ids,
)
from geo_embed.config import Config, Dtype, Model, OnDamagedImage
from geo_embed.console import progress, say, warn
from geo_embed.data.images import Preprocessing
from geo_embed.data.samples import Samples, leave_out_empty_views, load_samples
from geo_embed.data.variants import AS_THEY_ARE, Variant
from geo_embed.devices import default_batch_size, pick_device, pick_dtype, with_torch_switches
from geo_embed.errors import GeoError
from geo_embed.extraction.embedder import Embedder
from geo_embed.extraction.outlook import Outlook
from geo_embed.extraction.reader import (
    BadImage,
    DamagedImage,
    ReadImage,
    bad_image,
    find_bad_images,
    read_images,
)
from geo_embed.extraction.reuse import gather_sources
from geo_embed.extraction.takeover import Wanted, settle
from geo_embed.extraction.writer import Chunk, Writer

if TYPE_CHECKING:
    import torch

# Images read ahead of the model, in batches: enough to ride out a slow disk, few enough to fit in memory.
_AHEAD = 4
# Bad pictures that are listed one by one before an extraction is refused; more are counted.
_LISTED = 50


@dataclass
class Extraction:
    """What an extraction did.

    `variant` says what was done to the pictures first; `computed`, `reused` and `skipped` count images; `damaged` are those of the computed ones whose loss was accepted; `images_per_second` is of those
    computed, over `working_seconds`, which leave out the loading of the backbone; `seconds` leave out nothing.
    """

    split: str
    store: Path
    fingerprint: str
    samples: int
    views: int
    dim: int
    computed: int = 0
    reused: int = 0
    skipped: list[BadImage] = field(default_factory=list)
    damaged: list[BadImage] = field(default_factory=list)
    images_per_second: float = 0.0
    working_seconds: float = 0.0
    seconds: float = 0.0
    variant: str = str(AS_THEY_ARE)


@dataclass(frozen=True)
class _Plan:
    """What the settings come to for one split, resolved once.

    Attributes:
        samples, manifest: what is to be embedded, and what names it.
        path, attrs: of the store.
        model: the settings of the backbone; `directory` is where its weights lie.
        device, dtype: where and in which precision it runs.
        spec: how images are resized and normalised.
        chunk_rows: of a new store.
        batch_size: images per pass.
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
    device: "torch.device"
    dtype: "torch.dtype"
    spec: Preprocessing
    chunk_rows: int
    batch_size: int
    workers: int
    skip_bad: bool
    with_damaged: OnDamagedImage
    progress_seconds: float


class _ImageChanged(Exception):
    """An image is not the one that the store's committed embedding was made from."""


@with_torch_switches
def extract(
    config: Config,
    split: str,
    *,
    part: tuple[int, int] | None = None,
    limit: int | None = None,
    variant: Variant = AS_THEY_ARE,
    dtype: Dtype | None = None,
) -> Extraction:
    """Embed a split, as far as it is not embedded already.

    Args:
        config: all settings.
        split: `train` or `test`.
        part: (k, n), k from 1 to n: only the k-th of n ranges of whole chunks. Parts may run in any order, at once in n
            processes, killed and begun again: once all are done the store holds the very bytes of one run.
        limit: stop after this many samples, in manifest order; the rest stays pending. Not together with `part`.
        variant: what is done to every picture first; its embeddings lie in a store of their own.
        dtype: the backbone's precision, in place of the settings', which then say how embeddings are stored and no more.

    Raises:
        GeoError: bad data, bad images with `on_bad_image = fail`, no weights, somebody else at work on the same rows, a
            full disk; with `part`, an image that changed since it was embedded.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, once what is in flight is written.
    """
    started = time.monotonic()
    _check_part(part, limit)
    plan = _make_plan(config, split, variant, dtype)
    count = len(plan.samples)
    path, fingerprint = settle(
        Wanted(plan.path, plan.attrs, plan.samples, plan.model, plan.device, plan.dtype)
    )
    plan = replace(plan, path=path, attrs=plan.attrs | {"fingerprint": fingerprint})

    # Which rows: a range of whole chunks, of the store that exists or of the one to be made.
    existing = _existing_store(plan)
    range_rows = part_rows(count, existing.chunk_rows if existing else plan.chunk_rows, part)
    rows = range_rows if limit is None else slice(0, min(limit, count))
    if part is not None and rows.start == rows.stop:
        say(
            f"part {part[0]}/{part[1]} is empty: parts are ranges of whole chunks of samples (inference.chunk_rows)"
        )

    with only_writer(plan.path, None if part is None else range_rows):
        # Nothing is made or moved before the images have been looked at.
        store = _existing_store(plan)
        if store is None and plan.path.exists():
            say(
                f"the samples changed since {plan.path} was made; embeddings of the same pictures are copied from it"
            )
        if not plan.skip_bad:
            _refuse_bad_images(plan, store, rows)
        store = _lay_out(plan, None if part is None else range_rows)
        if part_rows(count, store.chunk_rows, part) != range_rows:
            raise GeoError(
                "another command laid the store out just now, with other chunks",
                where=plan.path,
                hint="run the same command again: it goes by the chunks of the store",
            )
        try:
            result = _run(plan, store, rows)
        except _ImageChanged as change:
            if part is not None:
                raise GeoError(
                    f"{change} after it was embedded",
                    where=plan.path,
                    hint=f"geo extract --split {split} without --part makes the store anew, and copies what is the same",
                ) from change
            say(f"{change}; what is the same is copied into a new store")
            store = _lay_out(plan, None, anew=True)
            result = _run(plan, store, rows)
        refused = [image for image in result.skipped if not _may_skip(plan, isinstance(image, DamagedImage))]
        if refused:
            raise _bad_images(refused, plan.samples)
    _discard_superseded(store)
    result.seconds = time.monotonic() - started
    return result


def parse_part(text: str | None) -> tuple[int, int] | None:
    """`2/4` to (2, 4), the second of four parts. Raises GeoError for anything else."""
    if text is None:
        return None
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    if not numbers:
        raise GeoError(f"{text!r} is no part", where="--part", hint="K/N, such as 1/4, K from 1 to N")
    return int(numbers[1]), int(numbers[2])


def _check_part(part: tuple[int, int] | None, limit: int | None) -> None:
    if part is None:
        return
    if not 1 <= part[0] <= part[1]:
        raise GeoError(f"no part {part[0]} of {part[1]}", where="part", hint="parts are 1/n to n/n")
    if limit is not None:
        raise GeoError("a part and a limit don't go together", where="limit", hint="leave one of them out")


def _make_plan(config: Config, split: str, variant: Variant, dtype_name: Dtype | None) -> _Plan:
    samples = load_samples(config, split)
    model, inference = config.model, config.inference
    device = pick_device(model.device)
    dtype = pick_dtype(dtype_name or model.dtype, device)
    directory = find_backbone(model.backbone_name)
    attrs = store_attributes(model, directory, dtype, variant)
    return _Plan(
        samples,
        manifest_sha256(samples),
        store_path(config.paths.cache_dir, model.backbone_name, attrs["fingerprint"], split),
        attrs,
        model,
        directory,
        device,
        dtype,
        read_preprocessing(directory, exact=model.exact),
        inference.chunk_rows,
        inference.batch_size or default_batch_size(device),
        inference.workers or os.cpu_count() or 1,
        inference.on_bad_image == "skip",
        inference.with_damaged,
        config.tracking.progress_seconds,
    )


def _existing_store(plan: _Plan) -> Store | None:
    """The store of these samples; None where there is none yet, or one of other samples."""
    if not plan.path.exists():
        return None
    store = open_store(plan.path)
    return store if store.attrs["manifest_sha256"] == plan.manifest else None


def _lay_out(plan: _Plan, rows: slice | None, *, anew: bool = False) -> Store:
    """The store of these samples, made by whoever comes first; one that stands in its place is moved aside, as a source.

    Args:
        plan: what it is of.
        rows: what its caller is the writer of; None for all.
        anew: make a new one, though there is one of these samples.

    Raises:
        GeoError: a store is to be moved aside while somebody else writes to it.
    """
    with changing_layout(plan.path):
        store = None if anew else _existing_store(plan)
        if store is not None:
            write_ids(store, plan.samples)
            return store
        if plan.path.exists():
            refuse_other_writers(plan.path, rows)
            supersede(plan.path)
        return create_store(
            plan.path,
            plan.samples,
            dim=backbones.embedding_dim(plan.directory, plan.model.feature),
            dtype=plan.attrs["stored"],
            chunk_rows=plan.chunk_rows,
            attrs=plan.attrs,
        )


def _discard_superseded(store: Store) -> None:
    """Delete earlier stores of the split once this one is whole and nobody writes to it who may still copy from them.

    To be called when its own lock is let go of: of several parts the last one to end finds nobody at work.
    """
    if not superseded_paths(store.path):
        return
    with changing_layout(store.path):
        if not is_busy(store.path) and (read_status(store) != PENDING).all():
            for earlier in superseded_paths(store.path):
                delete(earlier)


def _refuse_bad_images(plan: _Plan, store: Store | None, rows: slice) -> None:
    """Look for bad images before anything is paid for: cheaply, at those without an embedding only."""
    shape = (rows.stop - rows.start, len(plan.samples.view_names))
    pending = np.ones(shape, dtype=bool) if store is None else read_status(store)[rows] != OK
    bad = find_bad_images(
        plan.samples,
        rows,
        pending,
        workers=plan.workers,
        progress_seconds=plan.progress_seconds,
        accept_damage=plan.with_damaged != "fail",
    )
    if bad:
        raise _bad_images(bad, plan.samples)


def _bad_images(bad: list[BadImage], samples: Samples) -> GeoError:
    for image in bad[:_LISTED]:
        warn(f"sample {image.sample_id}, view {image.view}: {image.reason} ({image.path})")
    count = f"{len(bad):,} picture{'s' if len(bad) > 1 else ''}"
    listed = "listed" if len(bad) <= _LISTED else f"the first {_LISTED} listed"
    hint = "put them right, or leave them out with --on-bad-image skip"
    if without := leave_out_empty_views(samples):
        hint = f"{without}; or {hint}"
    if any(isinstance(image, DamagedImage) for image in bad):
        hint += "; --on-damaged-image accept takes damaged ones as they are"
    return GeoError(
        f"{count} can't be read, {listed} above",
        where=Path(bad[0].path).parent,
        hint=hint,
    )


def _may_skip(plan: _Plan, damaged: bool) -> bool:
    """Whether an image without an embedding is recorded as such, instead of refused."""
    return plan.with_damaged == "skip" if damaged else plan.skip_bad


def _run(plan: _Plan, store: Store, rows: slice) -> Extraction:
    """Bring rows of `store` to what the images on disk are now, and say how far where interrupted."""
    try:
        return _update(plan, store, rows)
    except KeyboardInterrupt:
        done = int((read_status(store) != PENDING).all(axis=1).sum())
        warn(
            f"interrupted: {done:,} of {len(plan.samples):,} {store.split} samples are done and stay; "
            "the same command goes on from there"
        )
        raise


def _update(plan: _Plan, store: Store, rows: slice) -> Extraction:
    # What the store holds of the rows, and what other embeddings there are to be copied.
    content_hash, status = read_content_hash(store), read_status(store)
    force_committed(store, rows)
    sources = gather_sources(store.path)

    started = time.monotonic()
    result = Extraction(store.split, store.path, store.fingerprint, *store.shape, variant=str(store.variant))
    embedder = Embedder(
        lambda: _load(plan),
        plan.spec,
        plan.device,
        plan.batch_size,
        store.variant,
    )
    kind = "" if store.variant == AS_THEY_ARE else f", {store.variant}"
    views = len(plan.samples.view_names)
    places = ((row, view) for row in range(rows.start, rows.stop) for view in range(views))
    label, total = f"extract {store.split}{kind}", (rows.stop - rows.start) * views
    outlook = Outlook(label, total, plan.batch_size, plan.device, plan.dtype)

    def committed(row: int, view: int) -> int | None:
        return int(content_hash[row, view]) if status[row, view] == OK else None

    # Chunk by chunk: the reader's images in order; pixels to the embedder; what came of them to the writer, which works
    # on while the next chunk is read. A chunk that is as it was is not written again.
    with (
        progress(label, total, "images", plan.progress_seconds) as advance,
        Writer(store, sources, plan.samples) as writer,
        read_images(
            plan.samples,
            places,
            plan.spec,
            sources,
            committed,
            ahead=_AHEAD * plan.batch_size,
            workers=plan.workers,
            accept_damage=plan.with_damaged == "accept",
        ) as read,
    ):
        for chunk_rows in chunks_of(store, rows):
            chunk = Chunk(chunk_rows, content_hash[chunk_rows].copy(), status[chunk_rows].copy())
            for row in range(chunk_rows.start, min(chunk_rows.stop, rows.stop)):
                for view in range(views):
                    _take(plan, next(read), row, view, committed, chunk, embedder, result)
                    advance(1)
                    outlook.look(result.computed + result.reused + len(result.skipped), result.computed)
            chunk.computed = embedder.finish_chunk()
            if _differs(chunk, content_hash, status):
                writer.write(chunk)
    result.working_seconds = max(time.monotonic() - started - embedder.load_seconds, 1e-9)
    result.images_per_second = result.computed / result.working_seconds
    return result


def _load(plan: _Plan) -> backbones.Backbone:
    """The backbone, as it was when the store was chosen: by the tensors and settings that were really loaded."""
    backbone = backbones.load_backbone(plan.model, plan.device, plan.dtype)
    now = {
        "weights_sha256": backbone.weights_sha256,
        "function": backbone.function,
        "preprocessing": backbone.preprocessing.to_dict(),
    }
    for key, value in now.items():
        if value != plan.attrs[key]:
            raise GeoError(
                f"the backbone changed on disk just now: other {key}",
                where=plan.directory,
                hint="run the same command again",
            )
    return backbone


def _take(
    plan: _Plan,
    image: ReadImage,
    row: int,
    view: int,
    committed: Callable[[int, int], int | None],
    chunk: Chunk,
    embedder: Embedder,
    result: Extraction,
) -> None:
    """Enter one image into its chunk, and count it."""
    hash_before = committed(row, view)
    if hash_before is not None and image.content_hash != hash_before:
        name = f"sample {plan.samples.sample_id[row]}, view {plan.samples.view_names[view]}"
        raise _ImageChanged(f"the picture of {name} changed on disk")
    place = (row - chunk.rows.start, view)
    chunk.content_hash[place] = image.content_hash
    kept = image.status == OK or _may_skip(plan, image.damaged)
    chunk.status[place] = image.status if kept else PENDING
    if image.pixels is not None:
        embedder.add(image.pixels, place)
        result.computed += 1
        if image.damaged:
            result.damaged.append(bad_image(plan.samples, row, view, image.reason, damaged=True))
    elif image.status != OK:
        result.skipped.append(bad_image(plan.samples, row, view, image.reason, damaged=image.damaged))
    else:
        result.reused += 1
        if image.source is not None:
            chunk.copies.append((*place, image.source))


def _differs(chunk: Chunk, content_hash: NDArray[np.uint64], status: NDArray[np.uint8]) -> bool:
    before = content_hash[chunk.rows], status[chunk.rows]
    return bool((chunk.content_hash != before[0]).any() or (chunk.status != before[1]).any())
