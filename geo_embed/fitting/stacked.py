"""Many trainings of one shape as one program: seeds, folds and sweep points side by side along a leading axis.

Each has its own samples, order, dropout, learning rate and loss weights, and ends where it would have ended alone, to float
tolerance. It pays where a step's overhead outweighs its arithmetic: small networks, few samples, a GPU. Large ones on a CPU
are better fitted apart (`devices.side_by_side`), since a single training's weights and moments stay in the cache (8 seeds of the
plain recipe on 2 cores take 8.6 times as long as one seed when stacked, 7.8 times in turn).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geo_embed.config import Model, Training
from geo_embed.console import Advance
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.train import (
    BestEpoch,
    Source,
    TrainedHeads,
    Validate,
    add_losses,
    check_finite,
    dropout_of,
    make_source,
    new_heads,
    train,
)
from geo_embed.heads.heads import Heads
from geo_embed.heads.layers import Drop, keep, keep_mask
from geo_embed.heads.losses import NUMBERS, epoch_losses, loss_parts, make_tables, total_loss
from geo_embed.heads.region import Region
from geo_embed.optim import AdamW, make_adamw, warmup_cosine
from geo_embed.registry import HEADS

# What may differ between jobs that share a program.
_FREE = {"seed", "learning_rate", "weight_decay", "gps_normalise", *NUMBERS}


@dataclass(frozen=True)
class TrainingJob:
    """One training: the arguments of `train`."""

    rows: Rows
    region: Region
    model: Model
    training: Training
    seed: int
    validate: Validate | None = None


def stackable(jobs: Sequence[TrainingJob]) -> bool:
    """Whether these trainings can share a program: the same network, the same number of samples and views, the same losses."""
    return len({_shape(job) for job in jobs}) == 1 and all(
        HEADS[job.model.head].make.by_steps and not job.training.step_views for job in jobs
    )


def train_all(jobs: Sequence[TrainingJob], advance: Advance | None = None) -> list[TrainedHeads]:
    """What `train` gives for each job, by the faster way: on a GPU as one program, where they can share one; else in turn.

    `advance` is told of each epoch of each job.
    """
    if len(jobs) > 1 and jobs[0].rows.views.device.type == "cuda" and stackable(jobs):
        return train_stacked(jobs, advance)
    return [
        train(
            job.rows,
            job.region,
            job.model,
            job.training,
            seed=job.seed,
            validate=job.validate,
            advance=advance,
        )
        for job in jobs
    ]


def train_stacked(jobs: Sequence[TrainingJob], advance: Advance | None = None) -> list[TrainedHeads]:
    """What `train` gives for each job, from one program. The jobs are `stackable`."""
    # Of K jobs:
    # 1. Heads and batches are made as if each were alone, from its own seed.
    # 2. Parameters p → (K, *p), the losses' tables likewise: one vmapped call gives K losses. Their sum's gradient holds each
    #    job's own gradient, since no job's loss depends on another's parameters.
    # 3. A step: K batches side by side (K, B, …), K dropout masks from K generators, gradients clipped per job, AdamW with
    #    each job's rate and decay.
    # 4. After an epoch each job's slice is copied back into its heads and validated. A job that has stopped goes on being
    #    trained, since the program has K places, but its best epoch stands. All stop when the last has.
    first = jobs[0]
    device, training = first.rows.views.device, first.training
    heads = [new_heads(job.rows, job.region, job.model, job.seed) for job in jobs]
    sources = [
        make_source(job_heads, job.rows, job.region, job.model, job.training, job.seed)
        for job_heads, job in zip(heads, jobs, strict=True)
    ]
    modules = [_HeadsOnBatch(*pair) for pair in zip(heads, sources, strict=True)]
    parameters, buffers = torch.func.stack_module_state(modules)
    tables = [
        make_tables(
            job.region.centroids,
            job.region.counts,
            job.region.centres,
            job.training,
            device,
            spans=job.region.spans,
        )
        for job in jobs
    ]
    stacked_tables = {name: torch.stack([table[name] for table in tables]) for name in tables[0]}

    def loss_of(
        p: dict[str, Tensor],
        b: dict[str, Tensor],
        table: dict[str, Tensor],
        batch: dict[str, Tensor],
        masks: list[Tensor],
    ) -> dict[str, Tensor]:
        unused = iter(masks)
        out = torch.func.functional_call(
            modules[0], (p, b), (batch["views"], batch["present"], lambda h: h * next(unused) if masks else h)
        )
        return loss_parts(out, batch["labels"], batch["points"], table, training)

    losses_of = torch.func.vmap(loss_of, in_dims=(0, 0, 0, 0, 0))
    leaves = list(parameters.values())
    optimizer = make_adamw(leaves, training, axes=2)
    # It moves by a rate of one, without decay: each job's own rate and decay are applied around it.
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1.0, 0.0
    rates = torch.tensor([job.training.learning_rate for job in jobs], device=device)
    decays = torch.tensor([job.training.weight_decay for job in jobs], device=device)
    dropout_shapes = _dropout_shapes(modules[0], sources[0])
    generators = [dropout_of(job.seed, device) for job in jobs]
    best_epochs = [
        BestEpoch(job_heads, job.training.patience, advance)
        for job_heads, job in zip(heads, jobs, strict=True)
    ]
    running = [True] * len(jobs)
    steps, steps_done = math.ceil(len(first.rows) / training.batch_size), 0
    for epoch in range(1, training.epochs + 1):
        totals: dict[str, Tensor] = {}
        for batches in zip(*(source.epoch() for source in sources), strict=True):
            batch = {
                name: torch.stack([getattr(job_batch, name) for job_batch in batches])
                for name in ("views", "present", "labels", "points")
            }
            size = batch["labels"].shape[1]
            masks = [_draw_masks(jobs, torch.Size((size, *shape)), generators) for shape in dropout_shapes]
            parts = losses_of(parameters, buffers, stacked_tables, batch, masks)
            optimizer.zero_grad()
            torch.autograd.backward(total_loss(parts).sum())
            factor = warmup_cosine(steps_done, steps * training.epochs, training.warmup)
            _step(optimizer, leaves, rates * factor, decays, training.clip_norm)
            steps_done += 1
            add_losses(totals, parts, size)
        for k, (job_heads, job) in enumerate(zip(heads, jobs, strict=True)):
            if not running[k]:
                continue
            with torch.no_grad():
                for name, parameter in job_heads.named_parameters():
                    parameter.copy_(parameters[f"heads.{name}"][k])
            entry = {
                "epoch": float(epoch),
                "learning_rate": float(rates[k]) * factor,
                **epoch_losses({name: float(total[k]) / len(job.rows) for name, total in totals.items()}),
            }
            check_finite(job_heads, entry["train_loss"], epoch)
            running[k] = not best_epochs[k].end_epoch(entry, job.validate)
        if not any(running):
            break
    return [best_epoch.restore() for best_epoch in best_epochs]


class _HeadsOnBatch(nn.Module):
    """Heads over the batches of a `Source`, of views or of fused vectors."""

    def __init__(self, heads: Heads, source: Source) -> None:
        super().__init__()
        self.heads, self.fused = heads, source.fused

    def forward(self, views: Tensor, present: Tensor, drop: Drop = keep) -> dict[str, Tensor]:
        if self.fused:
            return self.heads.read(views, drop)
        out: dict[str, Tensor] = self.heads(views, present, drop)
        return out


def _draw_masks(
    jobs: Sequence[TrainingJob], size: torch.Size, generators: Sequence[torch.Generator]
) -> Tensor:
    """A dropout mask (K, *size): each job's with its own rate and from its own generator."""
    return torch.stack(
        [
            keep_mask(size, job.model.dropout, generator)
            for job, generator in zip(jobs, generators, strict=True)
        ]
    )


def _dropout_shapes(module: _HeadsOnBatch, source: Source) -> list[tuple[int, ...]]:
    """Shapes, without the batch's axis, of the hidden tensors that dropout is applied to, in order."""
    shapes: list[tuple[int, ...]] = []
    if not module.heads.model.dropout:
        return shapes

    def note(hidden: Tensor) -> Tensor:
        shapes.append(tuple(hidden.shape[1:]))
        return hidden

    with torch.no_grad():
        module(*source.sample(), note)
    return shapes


def _step(optimizer: AdamW, leaves: list[Tensor], rates: Tensor, decays: Tensor, clip: float) -> None:
    """Clip each job's gradient, then AdamW with each job's rate, on matrices with each job's decay.

    Args:
        optimizer: AdamW over `leaves` with a rate of one and no decay.
        leaves: parameters (K, …) with gradients.
        rates, decays: (K,).
        clip: largest norm of a job's gradient.
    """
    # One optimizer has one rate, here there are K. AdamW is p ← (1 − η λ) p − η u, where its direction u doesn't depend on
    # the rate η. So the decay comes first, the optimizer moves p to p − u, and of that move the share η is kept:
    # p + η ((p − u) − p).
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = (clip / (norms + 1e-6)).clamp(max=1.0)
    with torch.no_grad():
        for gradient in gradients:
            gradient.mul_(_along(scale, gradient))
        before = []
        for leaf in leaves:
            # Only matrices decay; K of them have three axes.
            if leaf.ndim > 2:
                leaf.mul_(_along(1 - rates * decays, leaf))
            before.append(leaf.clone())
        optimizer.step()
        for leaf, old in zip(leaves, before, strict=True):
            torch.lerp(old, leaf, _along(rates, leaf), out=leaf)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """(K,) as (K, 1, …), to be multiplied with `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _shape(job: TrainingJob) -> tuple[object, ...]:
    """What must be equal for jobs to share a program."""
    cells = 0 if job.region.cells is None else len(job.region.cells.centres)
    model = job.model.model_copy(update={"dropout": float(job.model.dropout > 0)})
    free = dict.fromkeys(_FREE & set(Training.model_fields), 0)
    # Whether there is a score loss at all is code, not a number.
    training = job.training.model_copy(update=free | {"score_weight": float(job.training.score_weight > 0)})
    return len(job.rows), tuple(job.rows.views.shape[1:]), job.region.classes, cells, model, training
