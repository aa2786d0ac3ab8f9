"""What each view of held-out samples is worth: the heads answer again, over the cached train split, with views masked."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.cache.join import JoinedEmbeddings, read_joined
from geo_embed.console import warn
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError
from geo_embed.heads.predictor import apply_heads
from geo_embed.prediction.predict import predict_by_members
from geo_embed.prediction.tables import view_table
from geo_embed.runs.recipe import load_ensemble, load_heads
from geo_embed.runs.run import Run, on_this_machine
from geo_embed.runs.store import find_sources_of


def score_by_view(run: Run, predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    """`view_table` of a run: its heads, or its members', answer again with views masked.

    The heads of a run made with folds have seen its held-out samples through the other folds: a warning says so.

    Args:
        run: any run, with the paths of this machine (`on_this_machine`).
        predictions, truth: of its samples.

    Raises:
        GeoError: the train split isn't cached with the run's backbone, or lacks samples of the run; or members look at other views.
    """
    if run.config.training.folds > 1:
        warn(
            "the run was made with folds: its heads have seen these samples through the other folds, and the scores "
            "by view are a little too good"
        )
    elif run.read_chosen_score() is not None:
        warn(
            "these samples chose an epoch of the run's heads, which answer them here: scores by view are a little too good"
        )
    views: dict[Path, JoinedEmbeddings] = {}
    heads: dict[Path, Any] = {}
    device = pick_device(run.config.model.device, float64=True)
    for member in _members(run):
        views[member.path] = _views_of(member, predictions.sample_id)
        heads[member.path] = load_heads(member)

    def predict(mask: NDArray[np.bool_]) -> Predictions:
        return predict_by_members(
            run,
            lambda member: apply_heads(
                heads[member.path],
                device,
                member.prior,
                member.labels,
                predictions.sample_id,
                views[member.path].values,
                mask & views[member.path].present,
            ),
        )

    present = np.logical_or.reduce([embeddings.present for embeddings in views.values()])
    return view_table(predict, present, run.config.model.view_names, truth)


def _members(run: Run) -> list[Run]:
    """The runs with heads that answer for a run, with the paths of this machine."""
    ensemble = load_ensemble(run)
    if ensemble is None:
        return [run]
    members = [on_this_machine(m, run.config.paths, run.config.model.device) for m in ensemble.members]
    _check_views(run, members)
    return [leaf for member in members for leaf in _members(member)]


def _check_views(run: Run, members: list[Run]) -> None:
    for member in members:
        if member.config.model.view_names != run.config.model.view_names:
            raise GeoError(
                f"the members look at different views: {', '.join(member.config.model.view_names)}",
                where=member.path,
                hint="ask a member by itself",
            )


def _views_of(run: Run, sample_id: NDArray[np.object_]) -> JoinedEmbeddings:
    """The cached embeddings of these samples, in their order. Raises GeoError where some are not in the stores."""
    return read_joined(find_sources_of(run, "train"), sample_id)
