"""Samples in the space that a run's heads have learnt: who lies near whom, and a plane to see it on.

Of heads that have a learnt space (`refinable`) it is theirs; of others the logits, centred, since raw embeddings are dominated by what has
nothing to do with the place. Of several heads those with the largest say stand for all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.join import Source, read_joined
from geo_embed.cache.store import read_ids
from geo_embed.devices import pick_device
from geo_embed.runs.recipe import load_ensemble
from geo_embed.runs.run import Run
from geo_embed.runs.store import find_sources_of

if TYPE_CHECKING:
    from geo_embed.heads.heads import Heads
    from geo_embed.heads.predictor import Panel

Floats = NDArray[np.float32]
# Rows that are read at once, a few chunks of the store.
_ROWS = 8192


@dataclass(frozen=True)
class Embedder:
    """Embeddings to the learnt space.

    Attributes:
        run: whose heads make it: the run itself, or the weightiest member of an ensemble.
        heads: the weightiest of its heads.
        name: what to call the space.
    """

    run: Run
    heads: "Heads"
    name: str

    def vectors(self, values: NDArray[Any], present: NDArray[np.bool_]) -> Floats:
        """Embeddings (n, V, D), of which some are there (n, V), to vectors (n, W); NaN of a sample without views."""
        import torch

        device = self.heads.centroids.device
        seen = np.flatnonzero(present.any(axis=1))
        parts = []
        with torch.inference_mode():
            x, mask = torch.from_numpy(values[seen]).to(device), torch.from_numpy(present[seen]).to(device)
            for out in self.heads.walk(x, mask):
                vector = out["vector"] if self.heads.refinable else out["logits"]
                if not self.heads.refinable:
                    vector = vector - vector.mean(dim=1, keepdim=True)
                parts.append(vector.float().cpu().numpy())
        width = parts[0].shape[1] if parts else 1
        result = np.full((len(values), width), np.nan, dtype=np.float32)
        if parts:
            result[seen] = np.concatenate(parts)
        return result


@dataclass(frozen=True)
class Space:
    """The samples of a store in the learnt space.

    Attributes:
        sample_id: (N,) text.
        vectors: (N, W) float16, centred and of length 1; 0 of a sample without views.
        mean: (W,) what they were centred by.
        seen: (N,) which samples have a view.
    """

    sample_id: NDArray[np.object_]
    vectors: NDArray[np.float16]
    mean: Floats
    seen: NDArray[np.bool_]

    def directions(self, vectors: Floats) -> Floats:
        """Vectors (n, W) centred as the samples are, and of length 1; 0 where NaN."""
        return _directions(vectors, self.mean)

    def nearest(
        self, direction: Floats, count: int, allowed: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], Floats]:
        """The rows most alike to a direction (W,), the most alike first, and their cosines.

        Args:
            direction: of length 1.
            count: how many, at most.
            allowed: (N,) rows that may be among them.
        """
        # Part by part: whole floats would take twice the memory of the vectors.
        cosine = np.concatenate(
            [part.astype(np.float32) @ direction for part in _parts(self.vectors)]
            or [np.zeros(0, np.float32)]
        )
        allowed = allowed & self.seen
        cosine[~allowed] = -np.inf
        count = min(count, int(allowed.sum()))
        rows = np.argpartition(-cosine, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
        rows = rows[np.argsort(-cosine[rows], kind="stable")]
        return rows, cosine[rows]


def embedder_of(run: Run, heads_of: "Callable[[Run], Panel]") -> Embedder:
    """What takes embeddings to the learnt space of a run. Raises GeoError where its heads are damaged."""
    while (ensemble := load_ensemble(run)) is not None:
        run = ensemble.members[int(np.argmax(ensemble.weights))]
    leaves = heads_of(run).leaves(run.config.training)
    learnt = [leaf for leaf in leaves if leaf[0].refinable and leaf[1] > 0]
    heads, _, _ = max(learnt or leaves, key=lambda leaf: leaf[1])
    heads = heads.to(pick_device(run.config.model.device, float64=True)).eval()
    kind = "learnt space" if heads.refinable else "logits"
    return Embedder(run, heads, f"{kind} of {run.name}, head {heads.model.head}")


def space_of(embedder: Embedder, split: str) -> tuple[Space, tuple[Source, ...]]:
    """The samples of a split's stores in the learnt space, and the stores.

    Args:
        embedder: of a run with the paths of this machine.
        split: `train` or `test`.

    Raises:
        GeoError: the split isn't cached with the run's backbone, or is damaged.
    """
    sources = find_sources_of(embedder.run, split)
    sample_id = read_ids(sources[0].store)
    return _space(sources, sample_id, embedder.vectors), sources


def raw_space(sources: Sequence[Source]) -> Space:
    """The samples of stores by the mean of their views' embeddings. Raises GeoError where one is damaged."""

    def mean(values: NDArray[Any], present: NDArray[np.bool_]) -> Floats:
        total = np.einsum("nvd,nv->nd", values.astype(np.float32), present.astype(np.float32))
        count = present.sum(axis=1, dtype=np.float32)[:, None]
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)

    return _space(sources, read_ids(sources[0].store), mean)


def _space(
    sources: Sequence[Source],
    sample_id: NDArray[np.object_],
    to_vectors: Callable[[NDArray[Any], NDArray[np.bool_]], Floats],
) -> Space:
    parts = []
    for start in range(0, len(sample_id), _ROWS):
        part = read_joined(sources, sample_id[start : start + _ROWS])
        parts.append(to_vectors(part.values, part.present).astype(np.float16))
    # A part without any view doesn't know how wide it is.
    width = max((part.shape[1] for part in parts), default=1)
    vectors = np.concatenate(
        [
            part if part.shape[1] == width else np.full((len(part), width), np.nan, np.float16)
            for part in parts
        ]
        or [np.zeros((0, width), np.float16)]
    )
    mean, seen = _mean(vectors), np.isfinite(vectors).all(axis=1)
    for rows in _parts(vectors):
        rows[:] = _directions(rows.astype(np.float32), mean)
    return Space(sample_id, vectors, mean, seen)


def plane_of(vectors: NDArray[np.floating[Any]]) -> Floats:
    """The first two principal components (n, 2) of vectors (n, W), the larger spread first; NaN where a vector is NaN.

    An axis points to where its largest loading is positive, so that the picture stays the same.
    """
    x = vectors.astype(np.float32)
    finite = np.isfinite(x).all(axis=1)
    plane = np.full((len(x), 2), np.nan, dtype=np.float32)
    if not finite.any():
        return plane
    centred = x[finite] - x[finite].mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    plane[finite] = 0
    plane[finite, : axes.shape[1]] = centred @ axes
    return plane


def _mean(vectors: NDArray[np.float16]) -> Floats:
    total, count = np.zeros(vectors.shape[1], dtype=np.float64), 0
    for part in _parts(vectors):
        finite = np.isfinite(part).all(axis=1)
        total += part[finite].sum(axis=0, dtype=np.float64)
        count += int(finite.sum())
    return (total / max(count, 1)).astype(np.float32)


def _directions(vectors: Floats, mean: Floats) -> Floats:
    centred = np.nan_to_num(vectors - mean, nan=0.0, posinf=0.0, neginf=0.0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(length, 1e-12), dtype=np.float32)


def _parts(vectors: NDArray[np.float16]) -> Iterator[NDArray[np.float16]]:
    return (vectors[start : start + _ROWS] for start in range(0, len(vectors), _ROWS))
