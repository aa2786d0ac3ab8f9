"""Where a training stands, in memory and as a checkpoint: weights, moments, averages, and how far it is."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from geo_embed.answers import Predictions
from geo_embed.console import say
from geo_embed.devices import amp_dtype
from geo_embed.errors import GeoError
from geo_embed.finetuning import sharding
from geo_embed.finetuning.checkpoint import (
    Checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    tensors_below,
)
from geo_embed.finetuning.lora import is_lora_a
from geo_embed.finetuning.model import GeoModel, Summary
from geo_embed.finetuning.task import Task, new_model, passes_per_step, samples_per_pass
from geo_embed.optim import BETAS

# Of predictions, in a checkpoint.
_ANSWER = ("probabilities", "latitude", "longitude")


@dataclass
class Progress:
    """How far a training is; with the weights and moments, all that a checkpoint holds.

    Attributes:
        step: steps that are done, over all epochs.
        epoch: epochs that are done.
        step_rows, pass_rows: samples per step and per pass, of all processes together.
        frozen_score: on the validation samples, before any step.
        best_score, best_epoch: of the best epoch so far, counted from 1; 0 is the frozen run.
        part_scores, part_epochs: the same of the validation samples without each part of them in turn, which is answered by that
            epoch; empty in a checkpoint of an earlier version.
        history: a row per epoch.
        loss, loss_parts, good_steps, skipped_steps: of the epoch under way: the sum of its losses, and of each part of them
            (`losses.LOSS_PARTS`), its steps that counted, and those that were skipped.
        skipped_in_a_row: steps that were skipped since the last that counted.
    """

    step: int = 0
    epoch: int = 0
    step_rows: int = 0
    pass_rows: int = 0
    frozen_score: float | None = None
    best_score: float = -1.0
    best_epoch: int = 0
    part_scores: list[float] = field(default_factory=list)
    part_epochs: list[int] = field(default_factory=list)
    history: list[dict[str, float | None]] = field(default_factory=list)
    loss: float = 0.0
    loss_parts: dict[str, float] = field(default_factory=dict)
    good_steps: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


@dataclass
class TrainingState:
    """What a training changes.

    Attributes:
        parameters: the model's, by name.
        average: of each, where there is one (`finetune.ema`).
        answers: predictions for the validation samples, by the epochs of `progress.part_epochs`.
        start: what each was before any step, where the result is to lie between (`finetune.wise_ft`).
        progress: how far it is.
        samples, seconds: what the steps since this start, but the first, saw and took.
        warm: whether there was a first.
    """

    model: GeoModel
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: dict[str, Tensor]
    start: dict[str, Tensor]
    progress: Progress
    answers: dict[int, Predictions] = field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0
    warm: bool = False


def new_state(task: Task) -> tuple[TrainingState, Summary]:
    """The state before any step, in every process, and the counts of the whole model's parameters."""
    finetune = task.finetune
    model = new_model(task)
    counts = model.summary()
    if task.sharded:
        sharding.shard(model, task.device, task.team.size)
    parameters = dict(model.named_parameters())
    state = TrainingState(
        model,
        parameters,
        torch.optim.AdamW(model.parameter_groups(finetune), betas=BETAS, fused=True),
        torch.amp.GradScaler(task.device.type, enabled=amp_dtype(task.device) == torch.float16),
        {key: p.detach().clone() for key, p in parameters.items()} if finetune.ema else {},
        _interpolation_start(parameters) if finetune.wise_ft < 1 else {},
        Progress(step_rows=samples_per_pass(task) * passes_per_step(task), pass_rows=samples_per_pass(task)),
    )
    return state, counts


def make_checkpoint(task: Task, state: TrainingState, settings: dict[str, Any]) -> Checkpoint:
    """All that the next step depends on, whole; of a divided model in the first process only, with the others' help."""
    tensors = {f"model/{key}": value for key, value in state.model.state_dict().items()}
    tensors |= optimizer_tensors(state.optimizer, state.parameters)
    tensors |= {f"average/{key}": value for key, value in state.average.items()}
    if task.sharded:
        # One at a time, and out of the device's memory, which needn't hold them all.
        gathered = ((key, sharding.whole(value)) for key, value in tensors.items())
        tensors = {key: value.cpu() for key, value in gathered if task.team.first}
    for epoch, predictions in state.answers.items():
        arrays = {name: getattr(predictions, name) for name in _ANSWER}
        tensors |= {f"answers/{epoch}/{name}": torch.from_numpy(array) for name, array in arrays.items()}
    content = {
        "settings": settings,
        "training": dataclasses.asdict(state.progress),
        "scaler": state.scaler.state_dict(),
    }
    return Checkpoint(state.progress.step, tensors, content)


def resume(task: Task, state: TrainingState, loaded: Checkpoint, settings: dict[str, Any]) -> None:
    """Stand where a checkpoint stands. Raises GeoError where it was made with other settings."""
    saved = loaded.state["settings"]
    if saved != settings:
        changed = [key for key in {**settings, **saved} if saved.get(key) != settings.get(key)]
        raise GeoError(
            f"an unfinished training of this name has other settings: {', '.join(changed[:3])}",
            where=task.directory,
            hint="give it the same ones, choose another --name, or start it again with --overwrite",
        )
    state.progress = Progress(**loaded.state["training"])
    answers = {key: value.cpu().numpy() for key, value in tensors_below(loaded.tensors, "answers/").items()}
    ids = task.examples.sample_id[task.val_rows]
    for epoch in sorted({int(key.partition("/")[0]) for key in answers}):
        probabilities, latitude, longitude = (answers[f"{epoch}/{name}"] for name in _ANSWER)
        state.answers[epoch] = Predictions(ids, probabilities, latitude, longitude, task.run.labels)
    tensors = {
        key: sharding.divide(value, state.parameters.get(_owner(key)))
        for key, value in loaded.tensors.items()
        if not key.startswith("answers/")
    }
    state.model.load_state_dict(tensors_below(tensors, "model/"))
    load_optimizer_tensors(state.optimizer, state.parameters, tensors)
    state.scaler.load_state_dict(loaded.state["scaler"])
    state.average = tensors_below(tensors, "average/")
    if task.team.first:
        say(f"going on from step {state.progress.step:,}, epoch {state.progress.epoch + 1}")


def _owner(key: str) -> str:
    """The parameter that a checkpoint's tensor is, or belongs to: `average/NAME`, `optimizer/NAME/exp_avg`."""
    kind, _, name = key.partition("/")
    return name.rpartition("/")[0] if kind == "optimizer" else name


def _interpolation_start(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What to start between from: of a low-rank update B·A, B alone, so that the whole lies between."""
    return {key: p.detach().clone() for key, p in parameters.items() if not is_lora_a(key)}
