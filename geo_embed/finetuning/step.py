"""The passes of a step: images to the device, forward and backward, gradients added up over passes and processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from geo_embed import geography
from geo_embed.config import Finetune
from geo_embed.data import images
from geo_embed.data.augment import augment
from geo_embed.data.loader import PixelBatch, read_batches
from geo_embed.devices import amp_dtype
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.task import AUGMENT_STREAM, DROPOUT_STREAM, TOWER_STREAM, Task
from geo_embed.finetuning.team import Share
from geo_embed.heads.losses import total_loss
from geo_embed.seeding import get_generator


class OutOfMemory(Exception):
    """A pass of some process was too large; nothing of its step was applied."""


def accumulate_gradients(
    task: Task,
    model: GeoModel,
    scaler: torch.amp.GradScaler,
    step: int,
    batches: Iterator[PixelBatch],
    shares: list[Share],
) -> dict[str, float]:
    """Gradients of a step's mean loss over all its rows, pass by pass, added up over the team; and the parts of that loss.

    Args:
        task: what is trained on what.
        model: whose gradients are None before.
        scaler: of the loss, against float16's underflow.
        step: its number, which all that is drawn follows from.
        batches: images of the shares.
        shares: this process's.

    Raises:
        OutOfMemory: in any process; there are no gradients then.
        torch.OutOfMemoryError: in this one, where the model is divided. The others wait for its part, and can't be asked to
            try again.
    """
    team = task.team
    parts: dict[str, Tensor] = {}
    out_of_memory = False
    # Each pass adds its samples' part of the step's mean loss, and of its gradients: L = Σ over passes of (n/N) · mean.
    try:
        for number, share in enumerate(shares):
            for name, part in backward_pass(task, model, scaler, step, next(batches), share, number).items():
                parts[name] = parts[name] + part if name in parts else part
    except torch.OutOfMemoryError:
        if task.sharded:
            raise
        out_of_memory = True
    # A divided model has exchanged its gradients within the passes. Copies of a whole one do it now, once a step, after
    # telling each other whether anybody ran out of memory: then all drop the step together and try it in smaller passes.
    if not task.sharded:
        if team.any(out_of_memory):
            model.zero_grad(set_to_none=True)
            if task.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory
        team.add_gradients(model.parameters())
    return {name: team.sum(part) for name, part in parts.items()}


def backward_pass(
    task: Task,
    model: GeoModel,
    scaler: torch.amp.GradScaler,
    step: int,
    batch: PixelBatch,
    share: Share,
    number: int,
) -> dict[str, Tensor]:
    """Add to the gradients what some samples contribute to those of the step's loss; and give what they contribute to its parts.

    Args:
        number: of the pass within the step.
    """
    device = task.device
    pixels, present = to_device(batch, device)
    # Each of these draws for the whole step, and gives the samples of this pass theirs.
    augment_draws = get_generator(task.seed, AUGMENT_STREAM, step)
    dropout_draws = get_generator(task.seed, DROPOUT_STREAM, step, device=device)
    pixels, present = augment(
        pixels, present, task.finetune.augment, task.samples.view_names, augment_draws, skip=share.before
    )
    # The backbone's own dropout, where it has some, draws from the global generator.
    torch.manual_seed(get_generator(task.seed, TOWER_STREAM, step, number, task.team.rank).initial_seed())
    truth = task.examples.truth.take(share.rows)
    points = geography.to_unit_vectors(truth.latitude, truth.longitude)
    with autocast(device):
        out = model(normalise(model, pixels, task.finetune), present, share.drops(dropout_draws))
    means = model.loss_parts(
        out,
        torch.from_numpy(task.examples.labels[share.rows]).to(device),
        torch.from_numpy(points).float().to(device),
    )
    parts = {name: mean * (share.weight * len(share.rows) / share.total) for name, mean in means.items()}
    torch.autograd.backward(scaler.scale(total_loss(parts)))
    return {name: part.detach() for name, part in parts.items()}


@contextmanager
def read_images(task: Task, model: GeoModel, shares: list[Share]) -> Iterator[Iterator[PixelBatch]]:
    """The images of each share's rows of the examples, in order, decoded ahead."""
    present = np.zeros((len(task.samples), len(task.samples.view_names)), dtype=bool)
    present[task.sample_rows] = task.examples.present
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with read_batches(
        task.samples,
        present,
        [task.sample_rows[share.rows] for share in shares],
        model.backbone.preprocessing,
        task.inference.workers or max(1, (os.cpu_count() or 1) // processes_here),
        pinned=task.device.type == "cuda",
        with_damaged=task.inference.with_damaged,
    ) as batches:
        yield batches


def to_device(batch: PixelBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (B, V, 3, H, W) and `present` (B, V), without waiting for them."""
    return batch.pixels.to(device, non_blocking=True), batch.present.to(device, non_blocking=True)


def normalise(model: GeoModel, pixels: Tensor, settings: Finetune) -> Tensor:
    """uint8 (B, V, 3, H, W) to what the tower takes, in float32."""
    flat = images.normalise(pixels.flatten(0, 1), model.backbone.preprocessing, torch.float32)
    if settings.channels_last:
        flat = flat.contiguous(memory_format=torch.channels_last)
    return flat.view(pixels.shape)


def autocast(device: torch.device) -> torch.autocast:
    """Half precision for the backbone's passes where the device has it; float32 on a CPU."""
    dtype = amp_dtype(device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
