"""What each view weighs in a run's answers: attention, gates or learnt shares, as its heads have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.cache.join import read_joined
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError
from geo_embed.heads.heads import Heads, in_parts
from geo_embed.runs.recipe import load_ensemble, load_heads
from geo_embed.runs.run import Run
from geo_embed.runs.store import find_sources_of

_SAME = 1e-4


@dataclass(frozen=True)
class ViewWeights:
    """Shares (N, V) of the views in each sample's answer, rows sum to 1, NaN of a sample without views; how many of how many sets of
    heads weigh views at all, and by which fusions.
    """

    shares: NDArray[np.float64]
    weighing: int
    sets: int
    fusions: tuple[str, ...]


def view_weights(run: Run, split: str, sample_id: NDArray[np.object_]) -> ViewWeights:
    """What the views of samples weigh, the mean over those sets of heads that weigh them, by each one's say in the answer.

    A fusion gives numbers of its own scale (a gate's grow with the evidence): they are shares of their sum here.

    Args:
        run: with heads, and the paths and the device of this machine.
        split: `train`, where the held-out samples are, too, or `test`.
        sample_id: (N,) text.

    Raises:
        GeoError: the run is an ensemble or has one view; no set of heads weighs views; or the split isn't cached, or lacks a sample.
    """
    ensemble = load_ensemble(run)
    if ensemble is not None:
        raise GeoError(
            "an ensemble weighs runs, not views",
            where=run.path,
            hint=f"plot one of its members: geo plot attention {ensemble.members[0].path}",
        )
    views = run.config.model.view_names
    if len(views) == 1:
        raise GeoError("the run looks at one view, which always weighs everything", where=run.path)
    panel, device = load_heads(run), pick_device(run.config.model.device)
    embeddings = read_joined(find_sources_of(run, split), sample_id)
    leaves = panel.leaves(run.config.training)
    weights = weights_of(
        [(heads.to(device).eval(), weight) for heads, weight, _ in leaves],
        embeddings.values,
        embeddings.present,
    )
    if weights is None:
        names = ", ".join(dict.fromkeys(heads.model.fusion or "average" for heads, _, _ in leaves))
        raise GeoError(
            f"this run weighs all views alike (fusion {names}): there is nothing to show",
            where=run.path,
            hint="a fusion that weighs them: geo fit-heads --fusion attention, evidence or weighted",
        )
    return weights


def weights_of(
    leaves: Sequence[tuple[Heads, float]], values: NDArray[Any], present: NDArray[np.bool_]
) -> ViewWeights | None:
    """What the views of samples weigh; None where no set of heads weighs them otherwise than alike.

    Args:
        leaves: sets of heads, in eval mode, and the say of each in the answer.
        values: (N, V, D) embeddings.
        present: (N, V) which are there.
    """
    import torch

    seen = np.flatnonzero(present.any(axis=1))
    x, is_there = torch.from_numpy(values[seen]), torch.from_numpy(present[seen])
    alike = present[seen] / present[seen].sum(axis=1, keepdims=True)

    total, say, weighing, fusions = np.zeros(alike.shape), 0.0, 0, []
    for heads, weight in leaves:
        shares = _shares(heads, x, is_there)
        if np.abs(shares - alike).max(initial=0.0) > _SAME and weight > 0:
            total += weight * shares
            say += weight
            weighing += 1
            fusions.append(heads.model.fusion or "average")
    if not weighing:
        return None
    result = np.full(present.shape, np.nan)
    result[seen] = total / say
    return ViewWeights(result, weighing, len(leaves), tuple(dict.fromkeys(fusions)))


def _shares(heads: Heads, x: "object", is_there: "object") -> NDArray[np.float64]:
    """What the views (n, V, D) weigh, as shares of their sum (n, V)."""
    import torch

    device = heads.centroids.device
    with torch.inference_mode():
        parts = [
            heads(part.to(device), mask.to(device))["view_weights"].double().cpu()
            for part, mask in in_parts(x, is_there)  # type: ignore[arg-type]
        ]
    weights = torch.cat(parts).numpy() if parts else np.zeros((0, heads.size.views))
    return np.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12))
