"""What is trained on what: the samples and their split, the settings, and the model before its first step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geo_embed.answers import Truth
from geo_embed.backbones import backbone as backbones
from geo_embed.config import Finetune, Inference, Training
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError
from geo_embed.finetuning.lora import add_lora, train_lora_only
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.team import Team
from geo_embed.fitting.examples import Examples
from geo_embed.geography import region_box
from geo_embed.runs.backbone import load_backbone_of
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, checkpoints_dir
from geo_embed.seeding import get_generator

# What a seed is split into: streams of draws that don't repeat each other.
ORDER_STREAM, AUGMENT_STREAM, DROPOUT_STREAM, TOWER_STREAM, LORA_STREAM = range(5)
_LARGE_CARD_BYTES = 70e9


@dataclass(frozen=True)
class Task:
    """What is trained on what; it stays as it is throughout.

    Attributes:
        run: the initial one.
        finetune, training, inference: settings: the initial run's losses, the seed and how the backbone is trained of now.
        backbone_name: where the initial run's backbone lies.
        samples: of the training CSV.
        examples: those of them that have embeddings.
        sample_rows: of each of the examples, its row in `samples`.
        train_rows, val_rows: rows of `examples` to train on, and to validate on.
        device: where the model is trained.
        team: the processes that train together.
        directory: of the run that is made.
        progress_seconds: between two lines about the progress.
    """

    run: Run
    finetune: Finetune
    training: Training
    inference: Inference
    backbone_name: str
    samples: Samples
    examples: Examples
    sample_rows: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    val_rows: NDArray[np.int64]
    device: torch.device
    team: Team
    directory: Path
    progress_seconds: float

    @property
    def seed(self) -> int:
        """What all draws follow from, with the number of the step."""
        return self.training.seed

    @property
    def checkpoints(self) -> Path:
        """Where they lie while the training is unfinished."""
        return checkpoints_dir(self.directory)

    @property
    def sharded(self) -> bool:
        """Whether each process keeps a part of the model only."""
        return self.finetune.sharded and self.team.size > 1

    @property
    def val_truth(self) -> Truth:
        """Of the validation samples."""
        return self.examples.truth.take(self.val_rows)

    @property
    def train_counts(self) -> NDArray[np.int64]:
        """(C,) training samples of each class."""
        return np.bincount(self.examples.labels[self.train_rows], minlength=len(self.examples.encoder))

    @property
    def train_spans(self) -> NDArray[np.float64]:
        """(2,) height and width of the training places' box, as stage 2 has it, degrees."""
        truth = self.examples.truth.take(self.train_rows)
        box = self.run.config.model.gps_box
        south, north, west, east = region_box(truth.latitude, truth.longitude, box.edges)
        return np.array([north - south, east - west])


def new_model(task: Task) -> GeoModel:
    """The model as it is before any step, whole, in every process."""
    settings = task.finetune
    backbone = load_backbone_of(task.run, task.device, task.backbone_name, dtype="float32", trainable=True)
    if settings.lora_rank:
        add_lora(backbone.module, settings.lora_rank, get_generator(task.seed, LORA_STREAM))
    model = GeoModel(
        backbone,
        load_heads(task.run),
        task.training,
        torch.from_numpy(task.train_counts),
        torch.from_numpy(task.train_spans),
    )
    if settings.checkpointing:
        _recompute_activations(backbone.module, task.backbone_name)
    if settings.channels_last:
        backbone.module.to(memory_format=torch.channels_last)
    if settings.compile:
        backbone.module.compile()
    unfreeze_for(model, settings, 0)
    return model


def _recompute_activations(tower: Any, name: str) -> None:
    """Keep no activations within a tower's layers. Raises GeoError where it can't do that."""
    # transformers calls it by another name from 5.24 on.
    enable = getattr(tower, "activation_checkpointing_enable", tower.gradient_checkpointing_enable)
    try:
        enable()
    except ValueError as error:
        raise GeoError(
            f"backbone {name} can't recompute activations",
            where="finetune.checkpointing",
            hint="set it to false",
        ) from error


def unfreeze_for(model: GeoModel, settings: Finetune, epoch: int) -> None:
    """Unfreeze what is trained in this epoch; with `gradual`, a larger part of the last layers each time."""
    layers = settings.last_layers
    if settings.gradual:
        most = len(backbones.blocks(model.tower)) if layers is None else layers
        part = -(-most * (epoch + 1) // settings.epochs)
        layers = None if layers is None and part == most else part
    model.unfreeze(layers)
    if settings.lora_rank:
        train_lora_only(model.tower)


def samples_per_pass(task: Task) -> int:
    """Of all processes together, as the settings have it: less memory may make it fewer."""
    return task.finetune.batch_size or (512 if _is_large(task.device) else 32)


def passes_per_step(task: Task) -> int:
    """Whose gradients are added up before the optimizer steps."""
    return task.finetune.accumulate or (2 if _is_large(task.device) else 4)


def _is_large(device: torch.device) -> bool:
    return (
        device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= _LARGE_CARD_BYTES
    )
