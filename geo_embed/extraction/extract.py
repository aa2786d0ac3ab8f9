"""Stage 1: images to the embedding store. What there is to do is planned by plan, and done by reader, embedder and writer.

Threads read, hash, decode and resize ahead of the model; the main thread fills one batch while the model works on
another; one thread writes. An image whose bytes were embedded before, in this store or another with the same
fingerprint, is copied, not computed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.families import family_of
from geo_embed.cache.layout import hash_array
from geo_embed.cache.locks import only_writer
from geo_embed.cache.storage import has_store
from geo_embed.cache.store import (
    OK,
    PENDING,
    Store,
    chunks_of,
    force_committed,
    lacking,
    part_rows,
    read_content_hash,
    read_lacking,
    read_rows,
    read_status,
)
from geo_embed.config import Config, Dtype
from geo_embed.console import counted, progress, say, warn
from geo_embed.data.samples import Samples, leave_out_empty_views
from geo_embed.data.variants import AS_THEY_ARE, Variant
from geo_embed.devices import with_torch_switches
from geo_embed.errors import GeoError
from geo_embed.extraction.embedder import Embedder
from geo_embed.extraction.outlook import Outlook
from geo_embed.extraction.plan import (
    Plan,
    check_part,
    discard_superseded,
    existing_store,
    lay_out_store,
    make_plan,
    planned_rows,
)
from geo_embed.extraction.reader import (
    BadImage,
    DamagedImage,
    ReadImage,
    bad_image,
    find_bad_images,
    read_images,
)
from geo_embed.extraction.reuse import Sources, gather_sources
from geo_embed.extraction.writer import Chunk, Writer

# Images read ahead of the model, in batches: enough to ride out a slow disk, few enough to fit in memory.
_AHEAD = 4
# Bad pictures that are listed one by one before an extraction is refused; more are counted.
_LISTED = 50


@dataclass
class Extraction:
    """What an extraction did.

    `variant` says what was done to the pictures first; `computed`, `reused` and `skipped` count images; `damaged` are those of the computed ones whose loss was accepted; `images_per_second` is of those
    computed, over `working_seconds`, which leave out the loading of the backbone; `seconds` leave out nothing. `features` are what the
    store has, its own first.
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
    features: tuple[str, ...] = ()


class ImageChanged(Exception):
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
    check_part(part, limit)
    plan = make_plan(config, split, variant, dtype)
    count = len(plan.samples)
    range_rows = planned_rows(plan, part)
    rows = range_rows if limit is None else slice(0, min(limit, count))
    if part is not None and rows.start == rows.stop:
        say(
            f"part {part[0]}/{part[1]} is empty: parts are ranges of whole chunks of samples (inference.chunk_rows)"
        )

    with only_writer(plan.path, None if part is None else range_rows):
        store = prepare_store(plan, rows, None if part is None else range_rows)
        if part_rows(count, store.chunk_rows, part) != range_rows:
            raise GeoError(
                "another command laid the store out just now, with other chunks",
                where=plan.path,
                hint="run the same command again: it goes by the chunks of the store",
            )
        try:
            result = _run(plan, store, rows)
        except ImageChanged as change:
            if part is not None:
                raise GeoError(
                    f"{change} after it was embedded",
                    where=plan.path,
                    hint=f"geo extract --split {split} without --part makes the store anew, and copies what is the same",
                ) from change
            say(f"{change}; what is the same is copied into a new store")
            store = lay_out_store(plan, None, anew=True)
            result = _run(plan, store, rows)
        refuse_skipped(plan, result)
    discard_superseded(store)
    result.seconds = time.monotonic() - started
    return result


def prepare_store(plan: Plan, rows: slice, writer_rows: slice | None) -> Store:
    """The store to write to, once the images of the rows have been looked at: nothing is made or moved before.

    Args:
        plan: what it is of.
        rows: that are to be embedded.
        writer_rows: what the caller is the writer of; None for all.

    Raises:
        GeoError: bad images that may not be skipped; a store is to be moved aside while somebody else writes to it.
    """
    store = existing_store(plan)
    if store is None and has_store(plan.path):
        say(
            f"the samples changed since {plan.path} was made; embeddings of the same pictures are copied from it"
        )
    if store is not None:
        _say_what_is_added(plan, store, rows)
    if not plan.skip_bad:
        _refuse_bad_images(plan, store, rows)
    return lay_out_store(plan, writer_rows)


def _say_what_is_added(plan: Plan, store: Store, rows: slice) -> None:
    """Say what further features cost of pictures that are embedded already: how long they take, the outlook says, once it is measured."""
    pictures, numbers, lacked = 0, 0, []
    for feature in plan.features:
        left = lacking(store, feature, rows)
        if left:
            lacked.append(feature)
            pictures = max(pictures, left)
            numbers += left * backbones.embedding_dim(plan.directory, feature)
    if lacked:
        megabytes = numbers * store.embeddings.dtype.itemsize / 1e6
        singular = "picture that is embedded already: it passes"
        already_embedded = counted(pictures, singular, "pictures that are embedded already: they pass")
        say(
            f"{' and '.join(lacked)} of {already_embedded} the backbone once more, "
            f"and the store grows by {megabytes:,.1f} MB; their embeddings stay as they are"
        )


def refuse_skipped(plan: Plan, result: Extraction) -> None:
    """Raise GeoError where images were found to be bad that may not be skipped."""
    refused = [image for image in result.skipped if not _may_skip(plan, isinstance(image, DamagedImage))]
    if refused:
        raise _bad_images(refused, plan.samples)


def combined(parts: Sequence[Extraction]) -> Extraction:
    """What several extractions of one split did together, in the order of their rows; they ran at once, for as long as the longest."""
    first, *_ = parts
    whole = replace(first, skipped=[], damaged=[])
    for name in ("computed", "reused"):
        setattr(whole, name, sum(getattr(part, name) for part in parts))
    for name in ("working_seconds", "seconds"):
        setattr(whole, name, max(getattr(part, name) for part in parts))
    for part in parts:
        whole.skipped += part.skipped
        whole.damaged += part.damaged
    whole.images_per_second = whole.computed / max(whole.working_seconds, 1e-9)
    return whole


def _refuse_bad_images(plan: Plan, store: Store | None, rows: slice) -> None:
    """Look for bad images before anything is paid for: cheaply, at those without an embedding only."""
    shape = (rows.stop - rows.start, len(plan.samples.view_names))
    pending = np.ones(shape, dtype=bool) if store is None else read_status(store)[rows] != OK
    if pending.any() and not plan.samples.pictures.are_there():
        raise GeoError(
            f"there are no pictures of the {plan.path.stem} split: no such folder or archive, or nothing in it",
            where=plan.samples.image_root,
            hint=f"put them there, or name where they are: --set paths.{plan.path.stem}_images=FOLDER",
        )
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
    count = counted(len(bad), "picture")
    listed = "listed" if len(bad) <= _LISTED else f"the first {_LISTED} listed"
    hint = "put them right, or leave them out with --on-bad-image skip"
    if without := leave_out_empty_views(samples):
        hint = f"{without}; or {hint}"
    if any(isinstance(image, DamagedImage) for image in bad):
        hint += "; --on-damaged-image accept takes damaged ones as they are"
    return GeoError(
        f"{count} can't be read, {listed} above",
        where=bad[0].path.rpartition("/")[0],
        hint=hint,
    )


def _may_skip(plan: Plan, damaged: bool) -> bool:
    """Whether an image without an embedding is recorded as such, instead of refused."""
    return plan.with_damaged == "skip" if damaged else plan.skip_bad


def _run(plan: Plan, store: Store, rows: slice) -> Extraction:
    """Bring rows of `store` to what the images on disk are now, and say how far where interrupted."""
    try:
        sources = gather_sources(store.path, plan.features)
        return embed_rows(plan, store, rows, new_embedder(plan, store), sources)
    except KeyboardInterrupt:
        say_interrupted(store)
        raise


def say_interrupted(store: Store) -> None:
    """How far an extraction came that is interrupted."""
    done = int((read_status(store) != PENDING).all(axis=1).sum())
    warn(
        f"interrupted: {done:,} of {store.shape[0]:,} {store.split} samples are done and stay; "
        "the same command goes on from there"
    )


def new_embedder(plan: Plan, store: Store) -> Embedder:
    """An embedder by the plan, of all features that the store has room for: they come of one pass.

    Its backbone is loaded once, however many ranges of rows it embeds.
    """
    variant = Variant.model_validate(plan.attrs.get("variant") or {})
    return Embedder(
        lambda: _load(plan, store.further),
        plan.spec,
        plan.device,
        plan.batch_size,
        variant,
        compiled=plan.compiled,
    )


def progress_label(store: Store) -> str:
    """What the extraction of a store is called while it lasts."""
    kind = "" if store.variant == AS_THEY_ARE else f", {store.variant}"
    return f"extract {store.split}{kind}"


def embed_rows(plan: Plan, store: Store, rows: slice, embedder: Embedder, sources: Sources) -> Extraction:
    """Bring rows of a store to what the images on disk are now.

    Args:
        plan: what the store is of.
        store: opened for writing, by the only writer of the rows.
        rows: beginning with a chunk.
        embedder: by the same plan.
        sources: embeddings to be copied where images are the same.

    Raises:
        ImageChanged: a committed embedding was made from another image.
        GeoError: what `write_chunk` says, and a backbone that changed on disk.
    """
    # What the store holds of the chunks that the rows lie in.
    covered = slice(rows.start, min(-(-rows.stop // store.chunk_rows) * store.chunk_rows, store.shape[0]))
    content_hash, status = read_content_hash(store, covered), read_status(store, covered)
    further = {name: read_rows(store, hash_array(name), covered) for name in store.further}
    wanting = read_lacking(store, plan.features, covered)
    force_committed(store, rows)

    started, loaded_before = time.monotonic(), embedder.load_seconds
    result = Extraction(
        store.split,
        store.path,
        store.fingerprint,
        *store.shape,
        variant=str(store.variant),
        features=store.features,
    )
    views = len(plan.samples.view_names)
    places = ((row, view) for row in range(rows.start, rows.stop) for view in range(views))
    label, total = progress_label(store), (rows.stop - rows.start) * views
    outlook = Outlook(label, total, plan.batch_size, plan.device, plan.dtype, plan.model)

    def committed(row: int, view: int) -> int | None:
        place = (row - covered.start, view)
        return int(content_hash[place]) if status[place] == OK else None

    def lacks(row: int, view: int) -> bool:
        return bool(wanting[row - covered.start, view])

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
            lacks=lacks,
        ) as read,
    ):
        for chunk_rows in chunks_of(store, rows):
            before = slice(chunk_rows.start - covered.start, chunk_rows.stop - covered.start)
            chunk = Chunk(
                chunk_rows,
                content_hash[before].copy(),
                status[before].copy(),
                status[before] == OK,
                {name: hashes[before] for name, hashes in further.items()},
            )
            for row in range(chunk_rows.start, min(chunk_rows.stop, rows.stop)):
                for view in range(views):
                    _take(plan, next(read), row, view, committed, chunk, embedder, result)
                    advance(1)
                    outlook.look(result.computed + result.reused + len(result.skipped), result.computed)
            chunk.computed = embedder.finish_chunk()
            chunk.changed = bool(
                (chunk.content_hash != content_hash[before]).any() or (chunk.status != status[before]).any()
            )
            if chunk.changed or chunk.computed or chunk.copies:
                writer.write(chunk)
    load_seconds = embedder.load_seconds - loaded_before
    result.working_seconds = max(time.monotonic() - started - load_seconds, 1e-9)
    result.images_per_second = result.computed / result.working_seconds
    return result


def _load(plan: Plan, further: Sequence[str]) -> backbones.Backbone:
    """The backbone, as it was when the store was chosen: by the tensors and settings that were really loaded."""
    # What a later version may have put into the store is left as it is.
    known = [name for name in further if name in family_of(plan.directory).features]
    backbone = backbones.load_backbone(plan.model, plan.device, plan.dtype, further=known)
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
    plan: Plan,
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
        raise ImageChanged(f"the picture of {name} changed on disk")
    place = (row - chunk.rows.start, view)
    # An embedding that is committed stays, though its picture can't be decoded any more.
    if hash_before is None:
        chunk.content_hash[place] = image.content_hash
        kept = image.status == OK or _may_skip(plan, image.damaged)
        chunk.status[place] = image.status if kept else PENDING
    if image.pixels is not None:
        embedder.add(image.pixels, place)
        result.computed += 1
        if image.damaged and hash_before is None:
            result.damaged.append(bad_image(plan.samples, row, view, image.reason, damaged=True))
    elif image.status != OK:
        result.skipped.append(bad_image(plan.samples, row, view, image.reason, damaged=image.damaged))
    else:
        result.reused += 1
        if image.source is not None:
            chunk.copies.append((*place, image.source))
