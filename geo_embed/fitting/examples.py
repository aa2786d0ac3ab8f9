"""Training examples: the train split's cached embeddings beside its truth. Samples, store and truth are joined here alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed import geography
from geo_embed.answers import LabelEncoder, Prior, Truth, label_encoder
from geo_embed.blocks import Block
from geo_embed.cache.find import check_fits
from geo_embed.cache.join import (
    JoinedEmbeddings,
    Source,
    find_sources,
    read_content,
    read_joined,
    warn_of_lacking,
)
from geo_embed.cache.store import content_sample, is_finite
from geo_embed.config import Config
from geo_embed.console import counted, say, warn
from geo_embed.data.duplicates import shared_pictures, tied_samples
from geo_embed.data.holdout import Places
from geo_embed.data.samples import Samples, load_mapping, load_samples, truth_of
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MOVED_ROWS = 1024


@dataclass(frozen=True)
class Examples:
    """Training samples with at least one view, aligned.

    Attributes:
        sample_id: (N,) text.
        values: (N, V, D) as stored, finite; zeros where `present` is False.
        present: (N, V) True where a view has an embedding.
        labels: (N,) classes of `encoder`.
        truth: of the N samples.
        encoder: the states that occur among them.
        tied: (N,) groups of samples that share pictures; None where nothing is shared, or known of it.
        blocks: which columns of `values` are which source's; of arrays without a name none.
    """

    sample_id: NDArray[np.object_]
    values: NDArray[Any]
    present: NDArray[np.bool_]
    labels: NDArray[np.int64]
    truth: Truth
    encoder: LabelEncoder
    tied: NDArray[np.int64] | None = None
    blocks: tuple[Block, ...] = ()

    def __len__(self) -> int:
        return len(self.sample_id)

    @property
    def places(self) -> Places:
        """What a split is dealt by."""
        return Places(self.sample_id, self.labels, self.truth.latitude, self.truth.longitude, self.tied)


@dataclass(frozen=True)
class TrainingData:
    """The train split, opened.

    Attributes:
        samples: all of the CSV.
        sources: their embeddings, on disk; one, or several that are joined.
        examples: the N samples that can be trained on, in memory.
        rows: (N,) for each example its row in `samples`.
        content_samples: of each source, empty where it is no import.
    """

    samples: Samples
    sources: tuple[Source, ...]
    examples: Examples
    rows: NDArray[np.int64]
    content_samples: Sequence[Sequence[str]] = ()


def open_training_data(
    config: Config, *, limit: int | None = None, fingerprint: str | None = None
) -> TrainingData:
    """Read the train split: its CSV, the stores that belong to the settings, and all joined by sample id.

    Samples without a picture are left out, with a warning.

    Args:
        config: paths and the `model` group.
        limit: only the first samples of the CSV.
        fingerprint: of the store to take; by default the one that fits the settings.

    Raises:
        GeoError: the CSV is at fault, no store fits, one no longer fits the CSV or is damaged, or embeddings aren't finite.
    """
    samples = load_samples(config, "train")
    sources = find_sources(config, "train", fingerprint=fingerprint)
    for source in sources:
        check_fits(source.store, samples, any_order=True)
    # Before the embeddings: if somebody replaces the import meanwhile, the run counts as fitted on other ones.
    remembered = [
        content_sample(source.store) if source.store.attrs.get("imported") else [] for source in sources
    ]
    embeddings = read_joined(sources, samples.sample_id[:limit])
    rows = np.flatnonzero(embeddings.present.any(axis=1))
    examples = join(embeddings, truth_of(samples), load_mapping(config.paths.mapping()))
    return TrainingData(samples, sources, examples, rows, remembered)


def join(embeddings: JoinedEmbeddings, truth: Truth, mapping: dict[int, str]) -> Examples:
    """The samples that have an embedding, with their truth; the others are left out, with a warning.

    Args:
        embeddings: of the first n samples of the split.
        truth: of the split.
        mapping: state_idx to state name.

    Raises:
        GeoError: no sample has an embedding, or one of them isn't finite.
    """
    warn_of_lacking(embeddings)
    seen = embeddings.present.any(axis=1)
    if not seen.any():
        raise GeoError(f"no sample has a {embeddings.least}", where=embeddings.where)
    if not seen.all():
        absent, least = int((~seen).sum()), embeddings.least
        singular, plural = f"sample has no {least} and is", f"samples have no {least} and are"
        warn(f"{counted(absent, singular, plural)} left out of training")
    partly = int((seen & ~embeddings.present.all(axis=1)).sum())
    if partly:
        some = counted(partly, "sample lacks some of its views", "samples lack some of their views")
        warn(f"{some}; those views are left out of the fusion")
    if not is_finite(embeddings.values):
        finite = np.isfinite(embeddings.values).all(axis=(1, 2))
        first = embeddings.sample_id[~finite][0]
        raise GeoError(
            f"embeddings of {counted(int((~finite).sum()), 'sample is', 'samples are')} NaN or infinite, sample {first} first",
            where=embeddings.where,
            hint="geo cache verify",
        )
    rows = np.flatnonzero(seen)
    truth = truth.take(rows)
    encoder = label_encoder(truth.state_idx, mapping)
    return Examples(
        embeddings.sample_id[seen],
        # A copy of all embeddings only where it must be.
        embeddings.values if seen.all() else embeddings.values[seen],
        embeddings.present[seen],
        encoder.encode(truth.state_idx),
        truth,
        encoder,
        _tied_in_store(embeddings, rows, truth),
        embeddings.blocks,
    )


def put_first(examples: Examples, mask: NDArray[np.bool_]) -> tuple[Examples, NDArray[np.int64]]:
    """The same examples, those of a mask (N,) before all others, and of each the row (N,) that it had.

    Their embeddings are moved where they lie, so that `to_rows` needs no copy of them: the examples that were given are no
    longer to be used.
    """
    values, others = examples.values, examples.values[~mask]
    kept = np.flatnonzero(mask)
    # A row moves towards the first one, onto rows that have moved already or lie in its own part.
    for start in range(0, len(kept), _MOVED_ROWS):
        part = kept[start : start + _MOVED_ROWS]
        values[start : start + len(part)] = values[part]
    values[len(kept) :] = others
    order = np.concatenate([kept, np.flatnonzero(~mask)])
    return Examples(
        examples.sample_id[order],
        values,
        examples.present[order],
        examples.labels[order],
        examples.truth.take(order),
        examples.encoder,
        None if examples.tied is None else examples.tied[order],
        examples.blocks,
    ), order


def _tied_in_store(
    embeddings: JoinedEmbeddings, rows: NDArray[np.int64], truth: Truth
) -> NDArray[np.int64] | None:
    """Which of some rows (N,) of embeddings share pictures, by the bytes that they were made from; None where that can't be told."""
    try:
        content = read_content(embeddings)[rows]
    except GeoError as error:
        # Embeddings are whole without it.
        warn(f"which samples share pictures can't be told, and splits don't go by it: {error}")
        return None
    # An import's content is the embedding's own bytes; 0 stands for nothing known.
    return find_tied(content, embeddings.present[rows] & (content != 0), truth)


def find_tied(
    content: NDArray[np.uint64], known: NDArray[np.bool_], truth: Truth
) -> NDArray[np.int64] | None:
    """Groups (N,) of samples that share pictures, by hashes (N, V) of those whose content is known (N, V); None where none do."""
    shared = shared_pictures(content, known, truth.latitude, truth.longitude)
    tied = tied_samples(shared, len(truth))
    if tied is not None:
        count = int((np.bincount(tied)[tied] > 1).sum())
        shares = counted(count, "sample shares", "samples share")
        say(
            f"{shares} pictures with others: {'it stays' if count == 1 else 'they stay'} on one side of every split"
        )
    return tied


def find_prior(examples: Examples, train: NDArray[np.bool_]) -> Prior:
    """The answer without pictures, from the examples (N,) that are trained on: their share of each class, and their middle."""
    truth, labels = examples.truth.take(train), examples.labels[train]
    counts = np.bincount(labels, minlength=len(examples.encoder))
    middle = geography.to_degrees(geography.to_unit_vectors(truth.latitude, truth.longitude).sum(axis=0))
    return Prior(counts / counts.sum(), float(middle[0]), float(middle[1]))


@dataclass(frozen=True)
class Rows:
    """Examples as tensors on one device.

    Attributes:
        views: (N, V, D) float16 or float32.
        present: (N, V) bool, at least one True in each row.
        labels: (N,) classes.
        points: (N, 3) float64 unit vectors of the true places.
        tied: (N,) int64 groups of examples that share pictures, or None.
        blocks: which of the D numbers are which source's; of arrays without a name none.
        columns: from which of the D numbers to before which heads are fitted; None: on all.
    """

    views: "Tensor"
    present: "Tensor"
    labels: "Tensor"
    points: "Tensor"
    tied: "Tensor | None" = None
    blocks: tuple[Block, ...] = ()
    columns: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: "Tensor") -> "Rows":
        """Some of them."""
        tied = None if self.tied is None else self.tied[index]
        return Rows(
            self.views[index],
            self.present[index],
            self.labels[index],
            self.points[index],
            tied,
            self.blocks,
            self.columns,
        )

    def of(self, block: Block | None) -> "Rows":
        """The same, for heads that look at one source; None: at all."""
        return replace(self, columns=None if block is None else (block.start, block.stop))

    @property
    def spans(self) -> list[slice]:
        """Of the numbers that heads are fitted on those of each source."""
        if self.columns is not None or not self.blocks:
            return [slice(0, self.width)]
        return [slice(block.start, block.stop) for block in self.blocks]

    @property
    def width(self) -> int:
        """How many numbers of a view heads are fitted on."""
        return self.views.shape[2] if self.columns is None else self.columns[1] - self.columns[0]


def rows_where(mask: NDArray[np.bool_]) -> NDArray[np.int64] | slice:
    """Where a mask (N,) is True: a slice, which copies nothing, from a first to a last row without a gap; else the rows."""
    rows = np.flatnonzero(mask)
    together = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
    return slice(int(rows[0]), int(rows[-1]) + 1) if together else rows


def to_rows(examples: Examples, mask: NDArray[np.bool_], device: "torch.device") -> Rows:
    """Some of the examples, those where the mask (N,) is True, as tensors on a device.

    On a CPU they are the examples' own memory where the mask is True from a first to a last one without a gap.
    """
    import torch

    taken, truth = rows_where(mask), examples.truth.take(np.flatnonzero(mask))
    points = geography.to_unit_vectors(truth.latitude, truth.longitude)
    return Rows(
        torch.from_numpy(examples.values[taken]).to(device),
        torch.from_numpy(examples.present[taken]).to(device),
        torch.from_numpy(examples.labels[taken]).to(device),
        torch.from_numpy(points).to(device),
        None if examples.tied is None else torch.from_numpy(examples.tied[taken]).to(device),
        examples.blocks,
    )
