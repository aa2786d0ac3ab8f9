"""Validation: the model's predictions for the held-out samples, each process asked for its part, and their scores."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geo_embed.answers import Predictions
from geo_embed.console import progress as progress_bar
from geo_embed.data.augment import tta_views
from geo_embed.errors import GeoError
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.sharding import reshard
from geo_embed.finetuning.state import TrainingState
from geo_embed.finetuning.step import autocast, normalise, read_images, to_device
from geo_embed.finetuning.task import Task, samples_per_pass
from geo_embed.fitting.epochs import answered_by_part, parts_of
from geo_embed.metrics import metrics

_HISTORY = ("score", "state_score", "gps_score", "mean_km", "nll")


@dataclass(frozen=True)
class Validation:
    """What a model predicts for the validation samples, and its scores, `val_score` and so on; neither where there are none."""

    scores: dict[str, float]
    predictions: Predictions | None


def validate(task: Task, model: GeoModel, stop: threading.Event) -> Validation | None:
    """The model on the validation samples; None where `stop` was set meanwhile."""
    if not len(task.val_rows):
        return Validation({}, None)
    predictions = predict_val(task, model, stop=stop)
    if predictions is None:
        return None
    scores = score_val(task, predictions)
    return Validation({f"val_{key}": scores[key] for key in _HISTORY}, predictions)


def deal_val(task: Task) -> NDArray[np.int64]:
    """The part of each validation sample: it is answered by the epoch that the other parts choose (fitting/epochs.py)."""
    tied = task.examples.tied
    return parts_of(task.val_truth, None if tied is None else tied[task.val_rows], task.training)


def answer_val(task: Task, state: TrainingState, chosen: Predictions) -> Predictions:
    """Predictions for the validation samples, each part's by the epoch that the others chose.

    Args:
        task, state: of a training at its end.
        chosen: predictions of the epoch that is kept, as the run will make them. A part whose own epoch is another one is answered
            as that epoch was validated, without variants of its pictures.
    """
    progress = state.progress
    if not progress.part_epochs:
        return chosen
    epochs = enumerate(progress.part_epochs)
    answers = {p: state.answers[epoch] for p, epoch in epochs if epoch != progress.best_epoch}
    return answered_by_part(chosen, deal_val(task), answers)


def score_val(task: Task, predictions: Predictions) -> dict[str, Any]:
    """The metrics of predictions for the validation samples."""
    return metrics(predictions, task.val_truth)


def predict_val(
    task: Task, model: GeoModel, *, tta: bool = False, stop: threading.Event | None = None
) -> Predictions | None:
    """The model's predictions for the validation samples; None where `stop` was set meanwhile.

    Args:
        task: what is trained on what.
        model: as it is; put into evaluation mode.
        tta: average over the variants that training's augmentation allows for sure.
        stop: looked at after every pass.

    Raises:
        GeoError: a prediction is NaN or infinite.
    """
    # Each process predicts its part of every pass, and says which samples they are: their places in `val_rows`. All parts
    # are gathered in all processes and put in that order.
    shares = task.team.passes(task.val_rows, samples_per_pass(task))
    order: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    probabilities: list[NDArray[np.float32]] = [np.zeros((0, len(task.run.labels)), dtype=np.float32)]
    points: list[NDArray[np.float64]] = [np.zeros((0, 2))]
    model.eval()
    with (
        progress_bar(
            "validate", len(shares) if task.team.first else 0, "passes", task.progress_seconds
        ) as advance,
        read_images(task, model, shares) as batches,
        torch.no_grad(),
    ):
        for share, batch in zip(shares, batches, strict=True):
            variants = [to_device(batch, task.device)]
            if tta:
                variants = tta_views(*variants[0], task.finetune.augment, task.samples.view_names)
            embedded = []
            for pixels, present in variants:
                with autocast(task.device):
                    embedded.append(
                        (model.encode_views(normalise(model, pixels, task.finetune), present), present)
                    )
            p_state, point = model.predict_variants(embedded)
            # A process that had nothing to do repeated another's sample: it doesn't count twice.
            if share.weight:
                order.append(np.arange(share.before, share.before + len(share.rows)))
                probabilities.append(p_state.float().cpu().numpy())
                points.append(point.double().cpu().numpy())
            advance(1)
            if stop is not None and task.team.any(stop.is_set()):
                return None
    reshard(model)
    parts = task.team.gather((np.concatenate(order), np.concatenate(probabilities), np.concatenate(points)))
    rows, p, at = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not (np.isfinite(p).all() and np.isfinite(at).all()):
        raise GeoError(
            "the model's answers are NaN or infinite",
            where=task.checkpoints,
            hint="lower finetune.backbone_lr and head_lr, and start again with --overwrite",
        )
    in_order = np.argsort(rows)
    p, at = p[in_order], at[in_order]
    return Predictions(task.examples.sample_id[task.val_rows], p, at[:, 0], at[:, 1], task.run.labels)
