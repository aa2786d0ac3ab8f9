"""Stage 1: images to the embedding store.

Threads read, hash, decode and resize ahead of the model; the main thread fills one batch while the model works on
another; one thread writes. A picture whose bytes were embedded before, in this store or another with the same
fingerprint, is copied, not computed.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.backbone import Backbone
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.backbones.weights import find_backbone
from geo_embed.cache.find import store_attributes
from geo_embed.cache.locks import only_writer
from geo_embed.cache.storage import discard, sibling_paths, store_path, supersede, superseded_paths
from geo_embed.cache.store import (
    MISSING,
    OK,
    PENDING,
    UNREADABLE,
    Store,
    chunks_of,
    commit_chunk,
    create_store,
    hash_content,
    is_whole,
    manifest_sha256,
    open_store,
    read_chunk,
    read_content_hash,
    read_status,
    write_ids,
)
from geo_embed.config import Config
from geo_embed.console import progress, say, warn
from geo_embed.data import images
from geo_embed.data.samples import Samples, load_samples, missing_images
from geo_embed.devices import pick_device, pick_dtype
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch

# Pictures read ahead of the model, in batches: enough to ride out a slow disk, few enough to fit in memory.
_AHEAD = 4
_LOOKED_AT = 8192


@dataclass(frozen=True)
class BadImage:
    """A picture without an embedding, and why."""

    sample_id: str
    view: str
    path: str
    reason: str


@dataclass
class Extraction:
    """What an extraction did.

    `computed`, `reused` and `skipped` count pictures; `images_per_second` leaves out the loading of the backbone,
    `seconds` leaves out nothing.
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
    images_per_second: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Picture:
    """One picture on its way: pixels to embed, or where its embedding is already, or why there is none."""

    content_hash: int
    status: int = OK
    pixels: images.Pixels | None = None
    source: int | None = None
    reason: str = ""


class _PictureChanged(Exception):
    """A picture is not the one that the store's committed embedding was made from."""


@dataclass(frozen=True)
class _Sources:
    """Embeddings at hand, by content: parallel arrays sorted by hash, pointing into open stores."""

    stores: tuple[Store, ...]
    hashes: NDArray[np.uint64]
    place: NDArray[np.int64]
    whole: dict[tuple[int, int], bool] = field(default_factory=dict)

    def find(self, content_hash: int) -> int | None:
        """Index of a picture with this content, if there is one in a chunk that is whole. Called from many threads."""
        at = int(np.searchsorted(self.hashes, np.uint64(content_hash)))
        if at == len(self.hashes) or self.hashes[at] != content_hash:
            return None
        number, row, _ = self.place[at].tolist()
        store = self.stores[number]
        start = row - row % store.chunk_rows
        if (number, start) not in self.whole:
            self.whole[number, start] = is_whole(store, start)
        return at if self.whole[number, start] else None


def extract(config: Config, split: str, *, limit: int | None = None) -> Extraction:
    """Embed a split, as far as it is not embedded already.

    Args:
        config: all settings.
        split: `train` or `test`.
        limit: stop after this many samples, in manifest order; the rest stays pending.

    Raises:
        GeoError: bad data, bad pictures with `on_bad_image = fail`, no weights, a busy store, a full disk.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, once what is in flight is written.
    """
    started = time.monotonic()
    samples = load_samples(config, split)
    device = pick_device(config.model.device)
    directory = find_backbone(config.model.backbone_name)
    attrs = store_attributes(config, directory, pick_dtype(config.model.dtype, device))
    path = store_path(config.paths.cache_dir, config.model.backbone_name, attrs["fingerprint"], split)
    last = len(samples) if limit is None else min(limit, len(samples))
    with only_writer(path):
        store = _matching_store(path, samples)
        _refuse_bad_images(config, store, samples, last)
        if store is None:
            store = _new_store(path, samples, attrs, config, directory)
        try:
            result = _run(config, store, samples, last)
        except _PictureChanged as change:
            say(f"{change}; what is the same is copied into a new store")
            result = _run(config, _new_store(path, samples, attrs, config, directory), samples, last)
        if result.skipped and config.inference.on_bad_image == "fail":
            raise _bad_images(result.skipped)
        if last == len(samples):
            for old in superseded_paths(path):
                discard(old)
    result.seconds = time.monotonic() - started
    return result


def _matching_store(path: Path, samples: Samples) -> Store | None:
    """The store at `path` if its rows are these samples."""
    if not path.exists():
        return None
    store = open_store(path)
    if store.attrs["manifest_sha256"] != manifest_sha256(samples):
        say(f"the samples changed since {path} was made; embeddings of the same pictures are copied from it")
        return None
    write_ids(store, samples)
    return store


def _new_store(path: Path, samples: Samples, attrs: dict[str, Any], config: Config, directory: Path) -> Store:
    """An empty store at `path`; one that is there is moved aside, as a source."""
    if path.exists():
        supersede(path)
    return create_store(
        path,
        samples,
        dim=backbones.embedding_dim(directory, config.model.feature),
        dtype=attrs["stored"],
        chunk_rows=config.inference.chunk_rows,
        attrs=attrs,
    )


def _gather_sources(path: Path) -> _Sources:
    """Every embedding that stores of this fingerprint hold: other splits, superseded stores, and this one.

    A committed embedding is never overwritten, so that what is found here stays true while the store grows.
    """
    stores: list[Store] = []
    hashes: list[NDArray[np.uint64]] = []
    places: list[NDArray[np.int64]] = []
    for other in sibling_paths(path):
        try:
            store = open_store(other, writable=False)
            ok = read_status(store) == OK
            content = read_content_hash(store)
        except GeoError:
            continue
        rows, views = np.nonzero(ok)
        hashes.append(content[ok])
        places.append(np.stack([np.full(len(rows), len(stores)), rows, views], axis=1))
        stores.append(store)
    joined = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
    place = np.concatenate(places) if places else np.zeros((0, 3), dtype=np.int64)
    order = np.argsort(joined, kind="stable")
    return _Sources(tuple(stores), joined[order], place[order])


def _refuse_bad_images(config: Config, store: Store | None, samples: Samples, last: int) -> None:
    """Where bad pictures are to fail, look for them before anything is paid for: cheaply, at pending views only."""
    if config.inference.on_bad_image == "skip":
        return
    bad = [_bad(samples, i, v, reason) for i, v, reason in missing_images(samples, last)]
    named = {(item.sample_id, item.view) for item in bad}
    if store is None:
        pending = np.argwhere(np.ones((last, len(samples.view_names)), dtype=bool))
    else:
        pending = np.argwhere(read_status(store)[:last] != OK)

    def look(place: NDArray[np.int64]) -> BadImage | None:
        i, v = place
        if (samples.sample_id[i], samples.view_names[v]) in named:
            return None
        reason = images.find_fault(samples.image_root / samples.images[i, v])
        return _bad(samples, i, v, reason) if reason else None

    every = config.tracking.progress_seconds
    with (
        progress("look at pictures", len(pending), "images", every) as advance,
        ThreadPoolExecutor(_workers(config), "look") as pool,
    ):
        # A pool's map takes all its tasks at once: by blocks, a million samples need no more memory than a thousand.
        for start in range(0, len(pending), _LOOKED_AT):
            block = pending[start : start + _LOOKED_AT]
            bad += [item for item in pool.map(look, block) if item]
            advance(len(block))
    if bad:
        raise _bad_images(bad)


def _bad(samples: Samples, i: int, v: int, reason: str) -> BadImage:
    path = samples.image_root / samples.images[i, v] if samples.images[i, v] else samples.image_root
    return BadImage(samples.sample_id[i], samples.view_names[v], str(path), reason)


def _bad_images(bad: list[BadImage]) -> GeoError:
    for item in bad:
        warn(f"sample {item.sample_id}, view {item.view}: {item.reason} ({item.path})")
    count = f"{len(bad):,} picture{'s' if len(bad) > 1 else ''}"
    return GeoError(
        f"{count} can't be read, listed above",
        where=Path(bad[0].path).parent,
        hint="put them right, or leave them out with --on-bad-image skip",
    )


def _workers(config: Config) -> int:
    return config.inference.workers or os.cpu_count() or 1


def _run(config: Config, store: Store, samples: Samples, last: int) -> Extraction:
    """Bring the first `last` rows of `store` to what the pictures on disk are now, and say how far where interrupted."""
    try:
        return _fill(config, store, samples, last)
    except KeyboardInterrupt:
        done = int((read_status(store) != PENDING).all(axis=1).sum())
        warn(
            f"interrupted: {done:,} of {len(samples):,} {store.split} samples are done and stay; "
            "the same command goes on from there"
        )
        raise


def _fill(config: Config, store: Store, samples: Samples, last: int) -> Extraction:
    device = pick_device(config.model.device)
    directory = find_backbone(config.model.backbone_name)
    spec = read_preprocessing(directory, exact=config.model.exact)
    started = time.monotonic()
    result = Extraction(store.split, store.path, store.fingerprint, *store.shape)
    sources = _gather_sources(store.path)
    embedder = _Embedder(config, device, spec)
    skip = config.inference.on_bad_image == "skip"
    views = len(samples.view_names)
    hashes, statuses = read_content_hash(store), read_status(store)

    def prepare(i: int, v: int) -> _Picture:
        return _prepare(samples, i, v, spec, sources, int(hashes[i, v]) if statuses[i, v] == OK else None)

    ahead = _AHEAD * embedder.batch_size
    places = ((i, v) for i in range(last) for v in range(views))
    writing: Future[None] | None = None
    label = f"extract {store.split}"
    with (
        progress(label, last * views, "images", config.tracking.progress_seconds) as advance,
        ThreadPoolExecutor(1, "write") as writer,
        read_ahead(places, prepare, ahead, _workers(config)) as pictures,
    ):
        for rows in chunks_of(store):
            if rows.start >= last:
                break
            content, status = hashes[rows].copy(), statuses[rows].copy()
            copies: list[tuple[int, int, int]] = []
            for i in range(rows.start, min(rows.stop, last)):
                for v in range(views):
                    picture = next(pictures)
                    here = (i - rows.start, v)
                    committed = statuses[i, v] == OK
                    if committed and picture.content_hash != hashes[i, v]:
                        raise _PictureChanged(
                            f"the picture of sample {samples.sample_id[i]}, view {samples.view_names[v]} changed on disk"
                        )
                    content[here] = picture.content_hash
                    status[here] = picture.status if picture.status == OK or skip else PENDING
                    if picture.pixels is not None:
                        embedder.add(picture.pixels, here)
                        result.computed += 1
                    elif picture.status != OK:
                        result.skipped.append(_bad(samples, i, v, picture.reason))
                    else:
                        result.reused += 1
                        if picture.source is not None:
                            copies.append((*here, picture.source))
                    advance(1)
            computed = embedder.finish_chunk()
            if writing is not None:
                writing.result()
            if (status != statuses[rows]).any() or (content != hashes[rows]).any():
                writing = writer.submit(
                    _write, store, rows, content, status, computed, copies, sources, samples
                )
        if writing is not None:
            writing.result()
    handled = result.computed + result.reused
    result.images_per_second = handled / max(time.monotonic() - started - embedder.load_seconds, 1e-9)
    return result


def _prepare(
    samples: Samples, i: int, v: int, spec: images.Preprocessing, sources: _Sources, committed: int | None
) -> _Picture:
    """Read one picture, and decode it unless its content was embedded before. Runs on a decoding thread."""
    if not samples.images[i, v]:
        return _Picture(0, MISSING, reason="the CSV names no image")
    try:
        data = (samples.image_root / samples.images[i, v]).read_bytes()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        return _Picture(0, MISSING if gone else UNREADABLE, reason=error.strerror or str(error))
    content_hash = hash_content(data)
    if content_hash == committed:
        return _Picture(content_hash)
    source = sources.find(content_hash)
    if source is not None:
        return _Picture(content_hash, source=source)
    try:
        return _Picture(content_hash, pixels=images.resize(images.decode(data), spec))
    except images.UnreadableImage as error:
        return _Picture(content_hash, UNREADABLE, reason=str(error))


def _write(
    store: Store,
    rows: slice,
    content: NDArray[np.uint64],
    status: NDArray[np.uint8],
    computed: "list[tuple[list[tuple[int, int]], torch.Tensor]]",
    copies: list[tuple[int, int, int]],
    sources: _Sources,
    samples: Samples,
) -> None:
    """Put a chunk together and commit it. Runs on the writing thread, where waiting for the device costs nothing."""
    committed = (read_status(store, rows) != PENDING).any()
    shape = (rows.stop - rows.start, *store.shape[1:])
    # Rows that are all pending may hold anything, torn by a fault or a kill: they are not read.
    values = read_chunk(store, rows) if committed else np.zeros(shape, store.embeddings.dtype)
    for places, embeddings in computed:
        at = np.array(places)
        values[at[:, 0], at[:, 1]] = embeddings.cpu().numpy()
        finite = np.isfinite(values[at[:, 0], at[:, 1]]).all(axis=1)
        if not finite.all():
            row, view = at[~finite][0]
            raise GeoError(
                f"the backbone gave NaN or infinity for sample {samples.sample_id[rows.start + row]}, "
                f"view {samples.view_names[view]}",
                where=store.path,
                hint="try --dtype float32; if that gives the same, the weights are damaged",
            )
    wanted = np.array([source for *_, source in copies], dtype=np.int64)
    for number, source in enumerate(sources.stores):
        here = [k for k, s in enumerate(wanted) if sources.place[s, 0] == number]
        found = sources.place[wanted[here]]
        for part in np.unique(found[:, 1] // source.chunk_rows):
            start = part * source.chunk_rows
            block = read_chunk(source, slice(start, start + source.chunk_rows))
            for k, (_, row, view) in zip(here, found, strict=True):
                if row // source.chunk_rows == part:
                    values[copies[k][0], copies[k][1]] = block[row - start, view]
    commit_chunk(store, rows, values, content, status)


class _Embedder:
    """Fills batches with pixels and passes them through the backbone, which is loaded when first needed.

    Two batches take turns, so that one can be filled while the device still reads the other. Nothing here waits for
    the device: embeddings stay there until a chunk is written.
    """

    def __init__(self, config: Config, device: "torch.device", spec: images.Preprocessing) -> None:
        self._config, self._device, self._spec = config, device, spec
        self.batch_size = config.inference.batch_size or (256 if device.type == "cuda" else 32)
        self.load_seconds = 0.0
        self._backbone: Backbone | None = None
        self._batches: list[torch.Tensor] = []
        self._read: list[Any] = []
        self._normal: torch.Tensor | None = None
        self._turn = 0
        self._places: list[tuple[int, int]] = []
        self._chunk: list[tuple[list[tuple[int, int]], torch.Tensor]] = []

    def add(self, pixels: images.Pixels, place: tuple[int, int]) -> None:
        """Take uint8 pixels (3, H, W) for a (row, view) of the current chunk; embed once a batch is full."""
        if self._backbone is None:
            started = time.monotonic()
            self._backbone = self._load()
            self.load_seconds = time.monotonic() - started
        if not self._places and self._read[self._turn] is not None:
            self._read[self._turn].synchronize()
        self._batches[self._turn].numpy()[len(self._places)] = pixels
        self._places.append(place)
        if len(self._places) == self.batch_size:
            self._flush()

    def finish_chunk(self) -> "list[tuple[list[tuple[int, int]], torch.Tensor]]":
        """Embed what is left of the chunk; (row, view) places and their embeddings (B, D), batch by batch."""
        if self._places:
            self._flush()
        chunk, self._chunk = self._chunk, []
        return chunk

    def _load(self) -> Backbone:
        import torch

        dtype = pick_dtype(self._config.model.dtype, self._device)
        backbone = backbones.load_backbone(self._config.model, self._device, dtype)
        shape = (self.batch_size, 3, self._spec.height, self._spec.width)
        pinned = self._device.type == "cuda"
        self._batches = [torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._read = [None, None]
        self._normal = None if pinned else torch.zeros(shape)
        return backbone

    def _flush(self) -> None:
        import torch

        assert self._backbone is not None
        cuda = self._device.type == "cuda"
        # Every batch has the same shape, whatever is left over from the one before it in the last rows: then an
        # embedding is the same to the last bit, whichever pictures share its batch.
        with torch.inference_mode():
            pixels = self._batches[self._turn].to(self._device, non_blocking=True)
            if cuda:
                self._read[self._turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._read[self._turn].record()
            normal = images.normalise(pixels, self._spec, self._backbone.dtype, self._normal)
            embeddings = backbones.embed(self._backbone, normal)[: len(self._places)].float()
        self._chunk.append((self._places, embeddings))
        self._places = []
        self._turn = 1 - self._turn


@contextmanager
def read_ahead(
    places: Iterator[tuple[int, int]],
    prepare: Callable[[int, int], _Picture],
    ahead: int,
    workers: int,
) -> Iterator[Iterator[_Picture]]:
    """Prepare pictures on threads, at most `ahead` of the reader, and yield them in order."""
    window: deque[Future[_Picture]] = deque()
    pool = ThreadPoolExecutor(workers, "decode", initializer=images.one_thread)

    def in_order() -> Iterator[_Picture]:
        while True:
            while len(window) < ahead and (place := next(places, None)) is not None:
                window.append(pool.submit(prepare, *place))
            if not window:
                return
            yield window.popleft().result()

    try:
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)
