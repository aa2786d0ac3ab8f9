"""A training's passes: pictures to the device, forward and backward, and the answer for the held-out samples."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geo_embed import geography
from geo_embed.answers import Predictions
from geo_embed.backbones import backbone as backbones
from geo_embed.config import Config, Finetune
from geo_embed.data import images
from geo_embed.data.augment import augment, tta_views
from geo_embed.data.loader import PixelBatch, read_batches
from geo_embed.data.samples import Samples
from geo_embed.devices import amp_dtype
from geo_embed.errors import GeoError
from geo_embed.finetuning import sharding
from geo_embed.finetuning.lora import add_lora, train_lora_only
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.team import Share, Team
from geo_embed.fitting.examples import Examples
from geo_embed.metrics import metrics
from geo_embed.runs.backbone import load_backbone_of
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, checkpoints_dir
from geo_embed.seeding import get_generator

# What a seed is split into.
ORDER, _AUGMENT, _DROPOUT, _TOWER, _LORA = range(5)
_LARGE_CARD_BYTES = 70e9


class OutOfMemory(Exception):
    """A pass of some process was too large; nothing of its step was applied."""


@dataclass(frozen=True)
class Task:
    """What is trained on what; it stays as it is throughout.

    Attributes:
        config: the initial run's settings, with those of now for places, seed and how the backbone is trained.
        run: the initial one.
        samples: of the training CSV.
        data: those of them that have embeddings.
        index: of each row of `data`, the row of `samples`.
        learnt, held: rows of `data` to train on, and to judge by.
        directory: of the run that is made.
    """

    config: Config
    run: Run
    samples: Samples
    data: Examples
    index: NDArray[np.int64]
    learnt: NDArray[np.int64]
    held: NDArray[np.int64]
    device: torch.device
    team: Team
    directory: Path

    @property
    def how(self) -> Finetune:
        return self.config.finetune

    @property
    def checkpoints(self) -> Path:
        return checkpoints_dir(self.directory)

    @property
    def sharded(self) -> bool:
        """Whether each process keeps a part of the model only."""
        return self.how.sharded and self.team.size > 1


def new_model(task: Task) -> GeoModel:
    """The model as it is before any step, whole, in every process."""
    how = task.how
    backbone = load_backbone_of(task.config, task.run, task.config.model.backbone_name, dtype="float32")
    counts = torch.from_numpy(np.bincount(task.data.labels[task.learnt], minlength=len(task.data.encoder)))
    if how.lora_rank:
        add_lora(backbone.module, how.lora_rank, get_generator(task.config.training.seed, _LORA))
    model = GeoModel(backbone, load_heads(task.run), task.config.training, counts)
    if how.checkpointing:
        _recompute(backbone.module, task.config.model.backbone_name)
    if how.channels_last:
        backbone.module.to(memory_format=torch.channels_last)
    if how.compile:
        backbone.module.compile()
    let_train(model, how, 0)
    return model


def _recompute(tower: Any, name: str) -> None:
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


def let_train(model: GeoModel, how: Finetune, epoch: int) -> None:
    """Unfreeze what is trained in this epoch; with `gradual`, a larger part of the last layers each time."""
    layers = how.last_layers
    if how.gradual:
        most = len(backbones.blocks(model.tower)) if layers is None else layers
        part = -(-most * (epoch + 1) // how.epochs)
        layers = None if layers is None and part == most else part
    model.unfreeze(layers)
    if how.lora_rank:
        train_lora_only(model.tower)


def batch_size(task: Task) -> int:
    """Samples per pass, of all processes together."""
    return task.how.batch_size or (512 if _is_large(task.device) else 32)


def passes_per_step(task: Task) -> int:
    return task.how.accumulate or (2 if _is_large(task.device) else 4)


def _is_large(device: torch.device) -> bool:
    return (
        device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= _LARGE_CARD_BYTES
    )


def _autocast(device: torch.device) -> torch.autocast:
    dtype = amp_dtype(device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def read_pixels(task: Task, model: GeoModel, shares: list[Share]) -> Iterator[Iterator[PixelBatch]]:
    """The pictures of each share's rows of `data`, in order."""
    present = np.zeros((len(task.samples), len(task.samples.view_names)), dtype=bool)
    present[task.index] = task.data.present
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with read_batches(
        task.samples,
        present,
        [task.index[share.rows] for share in shares],
        model.backbone.preprocessing,
        task.config.inference.workers or max(1, (os.cpu_count() or 1) // here),
        pinned=task.device.type == "cuda",
    ) as pictures:
        yield pictures


def _normal(model: GeoModel, pixels: Tensor, how: Finetune) -> Tensor:
    """uint8 (B, V, 3, H, W) to what the tower takes, in float32."""
    flat = images.normalise(pixels.flatten(0, 1), model.backbone.preprocessing, torch.float32)
    if how.channels_last:
        flat = flat.contiguous(memory_format=torch.channels_last)
    return flat.view(pixels.shape)


def accumulate_gradients(
    task: Task,
    model: GeoModel,
    scaler: torch.amp.GradScaler,
    step: int,
    pictures: Iterator[PixelBatch],
    shares: list[Share],
) -> float:
    """Gradients of a step's mean loss over all its rows, pass by pass, added up over the team; and that loss.

    Args:
        step: its number, which all that is drawn follows from.
        pictures: of the shares.
        shares: this process's.

    Raises:
        OutOfMemory: in any process; there are no gradients then.
        torch.OutOfMemoryError: in this one, where the model is divided. The others wait for its part, and can't be asked to
            try again.
    """
    team = task.team
    total = torch.zeros((), device=task.device)
    short = False
    try:
        for number, share in enumerate(shares):
            total += _pass(task, model, scaler, step, next(pictures), share, number)
    except torch.OutOfMemoryError:
        if task.sharded:
            raise
        short = True
    if not task.sharded:
        if team.any(short):
            model.zero_grad(set_to_none=True)
            if task.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory
        team.add_gradients(model.parameters())
    return team.sum(total)


def _pass(
    task: Task,
    model: GeoModel,
    scaler: torch.amp.GradScaler,
    step: int,
    batch: PixelBatch,
    share: Share,
    number: int,
) -> Tensor:
    """Add to the gradients what some samples contribute to those of the step's loss; and to that loss."""
    how, seed, device = task.how, task.config.training.seed, task.device
    pixels = batch.pixels.to(device, non_blocking=True)
    present = batch.present.to(device, non_blocking=True)
    # Each of these draws for the whole step, and gives the samples of this pass theirs.
    drawn = get_generator(seed, _AUGMENT, step)
    dropped = get_generator(seed, _DROPOUT, step, device=device)
    pixels, present = augment(pixels, present, how.augment, task.samples.view_names, drawn, skip=share.before)
    # The backbone's own dropout, where it has some, draws from the global generator.
    torch.manual_seed(get_generator(seed, _TOWER, step, number, task.team.rank).initial_seed())
    truth = task.data.truth.take(share.rows)
    points = geography.to_unit_vectors(truth.latitude, truth.longitude)
    with _autocast(device):
        out = model(_normal(model, pixels, how), present, share.drops(dropped))
    loss = model.loss(
        out,
        torch.from_numpy(task.data.labels[share.rows]).to(device),
        torch.from_numpy(points).float().to(device),
    )
    part = loss * (share.weight * len(share.rows) / share.total)
    torch.autograd.backward(scaler.scale(part))
    return part.detach()


def answer(
    task: Task, model: GeoModel, *, tta: bool = False, stop: threading.Event | None = None
) -> Predictions | None:
    """The model's answer for the held-out samples, each process asked for its part; None where `stop` was set meanwhile.

    Raises:
        GeoError: an answer is NaN or infinite.
    """
    shares = task.team.passes(task.held, batch_size(task))
    order, states, places = (
        [np.zeros(0, dtype=np.int64)],
        [np.zeros((0, len(task.run.labels)), dtype=np.float32)],
        [np.zeros((0, 2))],
    )
    model.eval()
    with read_pixels(task, model, shares) as pictures, torch.no_grad():
        for share, batch in zip(shares, pictures, strict=True):
            pixels, present = batch.pixels.to(task.device), batch.present.to(task.device)
            variants = (
                tta_views(pixels, present, task.how.augment, task.samples.view_names)
                if tta
                else [(pixels, present)]
            )
            embedded = []
            for changed, there in variants:
                with _autocast(task.device):
                    embedded.append((model.encode_views(_normal(model, changed, task.how), there), there))
            given, point = model.answer(embedded)
            if share.weight:
                order.append(np.arange(share.before, share.before + len(share.rows)))
                states.append(given.float().cpu().numpy())
                places.append(point.double().cpu().numpy())
            if stop is not None and task.team.any(stop.is_set()):
                return None
    sharding.forget_whole(model)
    heard = task.team.gather((np.concatenate(order), np.concatenate(states), np.concatenate(places)))
    said, p, at = (np.concatenate(parts) for parts in zip(*heard, strict=True))
    if not (np.isfinite(p).all() and np.isfinite(at).all()):
        raise GeoError(
            "the model's answers are NaN or infinite",
            where=task.checkpoints,
            hint="lower finetune.backbone_lr and head_lr, and start again with --overwrite",
        )
    in_turn = np.argsort(said)
    p, at = p[in_turn], at[in_turn]
    return Predictions(task.data.sample_id[task.held], p, at[:, 0], at[:, 1], task.run.labels)


def judge(task: Task, model: GeoModel, stop: threading.Event) -> dict[str, float] | None:
    """Scores on the held-out samples, none where there are none; None where `stop` was set meanwhile."""
    if not len(task.held):
        return {}
    said = answer(task, model, stop=stop)
    if said is None:
        return None
    scores = score_held(task, said)
    return {f"val_{key}": scores[key] for key in ("score", "state_score", "gps_score", "mean_km", "nll")}


def score_held(task: Task, said: Predictions) -> dict[str, Any]:
    """The metrics of an answer for the held-out samples."""
    return metrics(said, task.data.truth.take(task.held))
