"""Embeddings of several sources, joined by sample id: what heads are fitted on and answer from. One source is a join of one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.blocks import Block, blocks_of, label_of
from geo_embed.cache.find import choose_store
from geo_embed.cache.store import Embeddings, Store, read_content_hash, read_ids, read_store, rebuild_hint
from geo_embed.config import Config, Model
from geo_embed.console import counted, warn
from geo_embed.data.samples import text_ids
from geo_embed.errors import GeoError


@dataclass(frozen=True)
class Source:
    """Embeddings of a split by one backbone: the backbone's name in the settings, the store, and which of the store's further features
    they are; None for its own.
    """

    name: str
    store: Store
    feature: str | None = None

    @property
    def label(self) -> str:
        """What to call it."""
        return label_of(self.name, self.feature)

    @property
    def dim(self) -> int:
        """How many numbers it gives."""
        return self.store.dim_of(self.feature)


@dataclass(frozen=True)
class JoinedEmbeddings:
    """Samples of a split in memory, their embeddings by S sources side by side.

    Attributes:
        sample_id: (N,) text.
        values: (N, V, D) as stored, D the sum of the sources' widths; zeros where `present` is False.
        present: (N, V) True where a view has an embedding by every source.
        sources: S of them.
        blocks: S; which columns of `values` are whose.
        store_rows: S; (N,) each, the samples' rows in the store.
        lacking: S; how many pictures each source lacks that another one has.
        lost: how many samples that leaves without any view.
    """

    sample_id: NDArray[np.object_]
    values: NDArray[Any]
    present: NDArray[np.bool_]
    sources: tuple[Source, ...]
    blocks: tuple[Block, ...]
    store_rows: tuple[NDArray[np.int64], ...]
    lacking: tuple[int, ...] = (0,)
    lost: int = 0

    @property
    def where(self) -> Path:
        """The first source's store, for messages."""
        return self.sources[0].store.path

    @property
    def split(self) -> str:
        """`train` or `test`."""
        return self.sources[0].store.split

    @property
    def least(self) -> str:
        """What a sample needs at least, for people: pictures may lie there that only some of the sources have."""
        return "picture" if len(self.sources) == 1 else "view that every source has"


def find_sources(config: Config, split: str, *, fingerprint: str | None = None) -> tuple[Source, ...]:
    """The sources that belong to the settings, by name: in which order these have them makes no difference to heads.

    Args:
        config: `paths.cache_dir`, and `model`, of which `backbones` or `backbone_name`.
        split: `train` or `test`.
        fingerprint: of the store to take, where there is one source.

    Raises:
        GeoError: a backbone has no store of this split, or more than one fits; or two names are one store's.
    """
    model = config.model
    names = sorted(model.backbone_names)
    sources: list[Source] = []
    for name in names:
        try:
            store = choose_store(config.paths.cache_dir, model.with_backbone(name), split, fingerprint)
        except GeoError as error:
            if len(names) > 1 and "model.fingerprint" in error.hint:
                error.hint = "keep one of them, or say by which precision with --set model.dtype=…"
            raise
        same = next((source.name for source in sources if source.store.path == store.path), None)
        if same is not None:
            raise GeoError(
                f"{same} and {name} are one and the same backbone", where=store.path, hint="name it once"
            )
        sources += [Source(name, store, feature) for feature in _features(store, model)]
    return tuple(sources)


def _features(store: Store, model: Model) -> list[str | None]:
    """Which of a store's features heads are fitted on: its own, as None, before further ones by name."""
    asked: set[str] = {store.feature}
    if model.head_features != "own":
        asked = set(store.features if model.head_features == "all" else model.head_features)
    further = sorted(feature for feature in asked if feature != store.feature)
    return [*([None] if store.feature in asked else []), *further]


def read_joined(sources: Sequence[Source], sample_id: NDArray[Any]) -> JoinedEmbeddings:
    """Read the embeddings of samples from every source, whatever the order of its rows.

    Beside the whole, one source's embeddings at a time are in memory; of a single source that has the samples in this order, nothing is.

    Args:
        sources: S of them, of one split and the same views.
        sample_id: (N,) the samples, in the order that is wanted.

    Raises:
        GeoError: a store lacks a sample, or as `read_store`; or there isn't memory for all.
    """
    sample_id = text_ids(sample_id)
    rows = [_rows_of(source, sample_id) for source in sources]
    blocks = blocks_of((s.label for s in sources), (s.dim for s in sources))
    if len(sources) == 1:
        only = _read(sources[0], rows[0])
        return JoinedEmbeddings(sample_id, only.values, only.present, tuple(sources), blocks, tuple(rows))
    views = {source.store.shape[1] for source in sources}
    if len(views) > 1:
        raise GeoError(
            f"stores of {', '.join(str(v) for v in sorted(views))} views can't be joined",
            where=sources[0].store.path,
        )
    kind = np.result_type(*(np.dtype(source.store.embeddings.dtype) for source in sources))
    shape = (len(sample_id), *views, blocks[-1].stop)
    try:
        values = np.zeros(shape, kind.newbyteorder("="))
    except MemoryError as error:
        raise GeoError(f"no memory for embeddings of shape {shape}", where=sources[0].store.path) from error
    seen = []
    for source, block, at in zip(sources, blocks, rows, strict=True):
        part = _read(source, at)
        values[..., block.start : block.stop] = part.values
        seen.append(part.present)
        del part
    present = np.logical_and.reduce(seen)
    seen_by_any = np.logical_or.reduce(seen)
    if not present.all():
        values[~present] = 0
    lacking = tuple(int((seen_by_any & ~of_source).sum()) for of_source in seen)
    lost = int((seen_by_any.any(axis=1) & ~present.any(axis=1)).sum())
    return JoinedEmbeddings(
        sample_id, values, present, tuple(sources), blocks, tuple(rows), lacking=lacking, lost=lost
    )


def warn_of_lacking(embeddings: JoinedEmbeddings) -> None:
    """Say in one line which sources lack pictures that another one has, what that costs, and what embeds them."""
    short = [(s, n) for s, n in zip(embeddings.sources, embeddings.lacking, strict=True) if n]
    if not short:
        return
    lacks = " and ".join(f"{source.label} lacks {counted(count, 'picture')}" for source, count in short)
    left = f", which leaves {counted(embeddings.lost, 'sample')} without any" if embeddings.lost else ""
    commands = [
        rebuild_hint(source.store.path, source.store.attrs)
        for source, _ in short
        if not source.store.attrs.get("imported")
    ]
    cure = f"; where they lie there now: {', then '.join(dict.fromkeys(commands))}" if commands else ""
    warn(
        f"{lacks} of {embeddings.split} that another source has: a view counts where every source has it{left}{cure}"
    )


def read_content(embeddings: JoinedEmbeddings) -> NDArray[np.uint64]:
    """The content hashes (N, V) of joined samples' pictures, as `read_content_hash` has them. Raises GeoError where they are damaged."""
    # All sources are of the same pictures, and an import doesn't know them.
    source, rows = min(
        zip(embeddings.sources, embeddings.store_rows, strict=True),
        key=lambda pair: bool(pair[0].store.attrs.get("imported")),
    )
    content: NDArray[np.uint64] = read_content_hash(source.store)[rows]
    return content


def _read(source: Source, rows: NDArray[np.int64]) -> Embeddings:
    """Rows of a store, in this order. Raises GeoError as `read_store`."""
    first, last = (int(rows.min()), int(rows.max())) if len(rows) else (0, -1)
    read = read_store(source.store, slice(first, last + 1), feature=source.feature)
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return read
    at = rows - first
    return replace(read, sample_id=read.sample_id[at], values=read.values[at], present=read.present[at])


def _rows_of(source: Source, sample_id: NDArray[np.object_]) -> NDArray[np.int64]:
    """(N,) the rows of these samples in a store. Raises GeoError where it lacks one."""
    ids = read_ids(source.store)
    n = len(sample_id)
    if n <= len(ids) and (ids[:n] == sample_id).all():
        return np.arange(n)
    place = {sample: row for row, sample in enumerate(ids)}
    lost = [sample for sample in sample_id if sample not in place]
    if lost:
        raise GeoError(
            f"{counted(len(lost), 'sample is', 'samples are')} not in the store, {lost[0]} first",
            where=source.store.path,
            hint="train the run again: geo fit-heads",
        )
    return np.array([place[sample] for sample in sample_id], dtype=np.int64)
