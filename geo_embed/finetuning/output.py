"""The weights that a run gets: the last or the averaged ones, part of the way from where they started, of the best epoch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from geo_embed.config import Finetune
from geo_embed.console import warn
from geo_embed.finetuning import sharding
from geo_embed.finetuning.checkpoint import best_checkpoint, load_checkpoint, tensors_below
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.state import TrainingState
from geo_embed.finetuning.task import Task, new_model


def best_model(task: Task, state: TrainingState) -> GeoModel:
    """The model, whole, with the weights of its best epoch; as it was before any step, if no epoch was better."""
    progress = state.progress
    if progress.best_epoch == 0:
        if task.team.first:
            warn("no epoch was better than the frozen backbone: the run is the one that it started from")
        return new_model(task)
    # A divided model can't take whole weights: a new one does.
    model = state.model
    if task.sharded:
        model = new_model(task)
        model.leave_frozen()
    parameters = dict(model.named_parameters())
    best = task.team.broadcast(best_checkpoint(task.checkpoints) if task.team.first else None)
    loaded = None if best is None else load_checkpoint(best, task.device)
    if loaded is None or loaded.state["training"]["epoch"] != progress.best_epoch:
        if task.team.first:
            warn(f"the checkpoint of the best epoch, {progress.best_epoch}, is lost; the last epoch is taken")
        weights, average = state.model.state_dict(), state.average
    else:
        weights, average = tensors_below(loaded.tensors, "model/"), tensors_below(loaded.tensors, "average/")
    weights, average, start = (
        {key: sharding.whole(value) for key, value in tensors.items()}
        for tensors in (weights, average, state.start)
    )
    model.load_state_dict(weights)
    with torch.no_grad():
        for key, value in _output_weights(parameters, average, start, task.finetune.wise_ft).items():
            parameters[key].copy_(value)
    return model


@contextmanager
def output_in_place(state: TrainingState, finetune: Finetune) -> Iterator[None]:
    """The model as it would be written, while the block runs."""
    output = _output_weights(state.parameters, state.average, state.start, finetune.wise_ft)
    trained = {key: state.parameters[key].detach().clone() for key in output}
    with torch.no_grad():
        for key, value in output.items():
            state.parameters[key].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for key, value in trained.items():
                state.parameters[key].copy_(value)


def _output_weights(
    trained: Mapping[str, Tensor], average: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """The weights that a run would have if it ended now, where they aren't the model's own: the average's, and by WiSE-FT
    (Wortsman et al., CVPR 2022, eq. 1) that share of the way from where they started.
    """
    # θ = θ_start + share · (θ_end − θ_start), where θ_end is the average over steps, if there is one. Averages of what
    # isn't interpolated (the A of a low-rank update) are taken as they are.
    ends = average or trained
    between = {key: torch.lerp(begun, ends[key].detach(), share) for key, begun in start.items()}
    return {**average, **between}
