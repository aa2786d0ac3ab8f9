"""The training loop of stage 2: embeddings in memory, whole tensors, no loader."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from geo_embed.config import Model, Training
from geo_embed.console import Advance
from geo_embed.errors import GeoError
from geo_embed.fitting.epochs import EpochChoice
from geo_embed.fitting.examples import Rows
from geo_embed.heads.decision import Decision, decide_cells
from geo_embed.heads.heads import CellHeads, Heads, answer_of, in_parts, make_heads
from geo_embed.heads.layers import dropping
from geo_embed.heads.losses import epoch_losses, loss_parts, make_tables, total_loss
from geo_embed.heads.refine import Gallery, Refiner, fit_refiner, make_gallery
from geo_embed.heads.region import Region
from geo_embed.optim import make_adamw, warmup_cosine
from geo_embed.seeding import get_generator
from geo_embed.sphere import geometric_median

# Of the features' mean variance.
_LEAST_VARIANCE = 1e-6
# Streams of a seed: what is drawn for one must not move when another draws more.
_ORDER, _DROPOUT, _VIEWS = range(3)


@dataclass(frozen=True)
class Validated:
    """What an epoch's heads score on the held-out rows.

    Attributes:
        metrics: `val_score` decides which epoch is kept; without it, the last is.
        without: the score without each part of these rows in turn, which decides which epoch that part is answered by
            (epochs.py); empty where nobody asks.
    """

    metrics: dict[str, float]
    without: list[float] = field(default_factory=list)


# Called after an epoch with the heads in eval mode.
Validate = Callable[[Heads], Validated]


@dataclass
class TrainedHeads:
    """A training's result.

    Attributes:
        heads: in eval mode, with the weights of the epoch that is kept.
        history: one entry per epoch: epoch, learning_rate, train_loss and its parts, and the validation metrics.
        epoch: the one that is kept, where held-out rows chose it; else 0.
        part_epochs: of each part of the held-out rows the epoch that was chosen without it.
        weights: state dicts, by epoch, of all in `part_epochs`.
    """

    heads: Heads
    history: list[dict[str, float]] = field(default_factory=list)
    epoch: int = 0
    part_epochs: list[int] = field(default_factory=list)
    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)


def train(
    rows: Rows,
    region: Region,
    model: Model,
    training: Training,
    *,
    seed: int,
    validate: Validate | None = None,
    advance: Advance | None = None,
) -> TrainedHeads:
    """Fit one set of heads; the same seed gives the same bits on the same machine.

    With validation, the epoch with the best `val_score` is kept, and training stops after `training.patience` epochs without
    a better one, as well for every part of the held-out rows (epochs.py). Without, all epochs are run and the last is kept.

    Args:
        rows: the training set.
        region: what the heads know of its places: centroids, cells.
        model: the network.
        training: losses, optimizer and schedule.
        seed: of weights, order, dropout and hidden views; `training.seed` isn't looked at.
        validate: gives an epoch's validation metrics.
        advance: is told of each epoch.

    Raises:
        GeoError: the loss or a weight became NaN or infinite.
    """
    heads = new_heads(rows, region, model, seed)
    if not heads.by_steps:
        heads.solve(rows.views, rows.present, rows.labels, rows.points.float(), training)
        metrics = validate(heads.eval()).metrics if validate else {}
        return TrainedHeads(heads.eval(), [{"epoch": 1.0, **metrics}])

    tables = make_tables(
        region.centroids, region.counts, region.centres, training, rows.views.device, spans=region.spans
    )
    source = make_source(heads, rows, region, model, training, seed)
    drop = dropping(model.dropout, dropout_of(seed, rows.views.device))
    parameters = list(heads.parameters())
    optimizer = make_adamw(parameters, training)
    steps = math.ceil(len(rows) / training.batch_size)
    best_epoch = BestEpoch(heads, training.patience, advance)
    steps_done = 0
    for epoch in range(1, training.epochs + 1):
        heads.train()
        totals: dict[str, Tensor] = {}
        for batch in source.epoch():
            out = heads.read(batch.views, drop) if source.fused else heads(batch.views, batch.present, drop)
            parts = loss_parts(out, batch.labels, batch.points, tables, training)
            optimizer.zero_grad()
            torch.autograd.backward(total_loss(parts))
            nn.utils.clip_grad_norm_(parameters, training.clip_norm, foreach=True)
            rate = training.learning_rate * warmup_cosine(
                steps_done, steps * training.epochs, training.warmup
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            steps_done += 1
            add_losses(totals, parts, len(batch.labels))
        losses = epoch_losses({name: float(total) / len(rows) for name, total in totals.items()})
        entry = {"epoch": float(epoch), "learning_rate": rate, **losses}
        check_finite(heads, entry["train_loss"], epoch)
        if best_epoch.end_epoch(entry, validate):
            break
    return best_epoch.restore()


def add_losses(totals: dict[str, Tensor], parts: Mapping[str, Tensor], samples: int) -> None:
    """Add the parts of a batch's mean loss, times its samples, to those of the epoch so far."""
    for name, part in parts.items():
        summand = part.detach() * samples
        totals[name] = totals[name] + summand if name in totals else summand


def gallery_of(heads: Heads, rows: Rows, region: Region) -> Gallery:
    """The samples that heads were fitted on, to be looked among when points are refined."""
    assert region.cells is not None
    vectors = torch.cat([out["vector"].half() for out in heads.walk(rows.views, rows.present)])
    return make_gallery(vectors, region.cells.owner.to(vectors.device), rows.points)


def find_refiner(heads: Heads, region: Region, train_rows: Rows, val_rows: Rows) -> Refiner | None:
    """How refinement helps most on validation rows, looking among the rows that the heads were fitted on; None where it doesn't."""
    if not (isinstance(heads, CellHeads) and heads.refinable):
        return None
    vectors, cells = [], []
    for out in heads.walk(val_rows.views, val_rows.present):
        cells.append(decide_cells([answer_of(out)], Decision(), heads.to_state)[1])
        vectors.append(out["vector"])
    probabilities = torch.cat(cells)
    guess = geometric_median(probabilities, heads.centres)
    return fit_refiner(
        gallery_of(heads, train_rows, region), torch.cat(vectors), probabilities, guess, val_rows.points
    )


class BestEpoch:
    """Keeps the weights of a training's best epoch, of those that the parts of the held-out rows need, and the history of all."""

    def __init__(self, heads: Heads, patience: int, advance: Advance | None = None) -> None:
        self._heads, self._advance = heads, advance
        self._history: list[dict[str, float]] = []
        self._choice = EpochChoice(patience)
        self._weights: dict[int, dict[str, Tensor]] = {}

    def end_epoch(self, entry: dict[str, float], validate: Validate | None) -> bool:
        """Note an epoch, with its validation metrics; True where training should end."""
        ended = self._end_epoch(entry, validate)
        if self._advance is not None:
            best = f"best score {self._choice.scores[0]:.4f}" if self._choice.scores else ""
            self._advance(1, best or f"loss {entry['train_loss']:.4f}")
        return ended

    def _end_epoch(self, entry: dict[str, float], validate: Validate | None) -> bool:
        self._history.append(entry)
        if validate is None:
            return False
        validated = validate(self._heads.eval())
        entry |= validated.metrics
        if "val_score" not in entry:
            return False
        epoch, choice = len(self._history), self._choice
        choice.note(epoch, [entry["val_score"], *validated.without])
        if epoch in choice.best:
            self._weights[epoch] = {key: value.clone() for key, value in self._heads.state_dict().items()}
        self._weights = {kept: self._weights[kept] for kept in set(choice.best) & set(self._weights)}
        return choice.ended

    def restore(self) -> TrainedHeads:
        """The heads as they were in their best epoch, or in their last where none was validated."""
        best, *part_epochs = self._choice.best or [0]
        if best:
            self._heads.load_state_dict(self._weights[best])
        return TrainedHeads(self._heads.eval(), self._history, best, part_epochs, self._weights)


# Weights are drawn from torch's global generator, which trainings in several threads take turns with.
_global_generator = threading.Lock()


def new_heads(rows: Rows, region: Region, model: Model, seed: int) -> Heads:
    """Untrained heads for these rows; leaves torch's global generator as it was."""
    device = rows.views.device
    with _global_generator, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        heads = make_heads(rows.width, rows.views.shape[1], model, region, rows.columns)
    if model.standardise:
        heads.scale, heads.shift = scale_and_shift(rows, heads.taken)
    return heads.to(device)


def dropout_of(seed: int, device: torch.device) -> torch.Generator:
    """The generator that a training's dropout is drawn from."""
    return get_generator(seed, _DROPOUT, device=device)


def check_finite(heads: nn.Module, loss: float, epoch: int) -> None:
    """Raise GeoError for a loss or a weight that is NaN or infinite: the last step's weights have met no loss yet."""
    if not math.isfinite(loss) or not all(bool(torch.isfinite(p).all()) for p in heads.parameters()):
        raise GeoError(f"the loss became {loss} in epoch {epoch}", hint="lower training.learning_rate")


def scale_and_shift(
    rows: Rows, taken: Callable[[Tensor], Tensor] = lambda views: views
) -> tuple[Tensor, Tensor]:
    """(D,) factors and offsets that give every feature mean 0 and variance 1 over the views that are there.

    One that is constant, or next to it, becomes 0.

    Args:
        rows: whose features.
        taken: of embeddings the numbers that count; `Heads.taken`.
    """
    total = torch.zeros(rows.width, dtype=torch.float64, device=rows.views.device)
    square, count = torch.zeros_like(total), 0
    for views, present in in_parts(taken(rows.views), rows.present):
        flat = views[present].float()
        total += flat.sum(0)
        square += flat.square().sum(0)
        count += len(flat)
    mean = total / count
    variance = square / count - mean.square()
    # A feature that hardly varies here would drown the others wherever it does. What is hardly, every source says by itself.
    least = torch.cat([variance[span].mean().expand_as(variance[span]) for span in rows.spans])
    scale = torch.where(variance > _LEAST_VARIANCE * least, variance.rsqrt(), 0.0)
    return scale.float(), (-mean * scale).float()


@dataclass(frozen=True)
class Batch:
    """B samples of a training set.

    Attributes:
        views: (B, V, D) embeddings, or (B, W) where they were fused once for all epochs.
        present: (B, V) bool.
        labels: (B,) classes.
        points: (B, 3) float32 unit vectors.
    """

    views: Tensor
    present: Tensor
    labels: Tensor
    points: Tensor


@dataclass(frozen=True)
class _RowsByCell:
    """Rows in order of their cells, so that drawing a random one of a cell is one look-up.

    Attributes:
        cell: (N,) of each row.
        rows: (N,) cell after cell.
        starts, sizes: (M,) where a cell's rows begin in `rows`, and how many there are.
    """

    cell: Tensor
    rows: Tensor
    starts: Tensor
    sizes: Tensor

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """For each row of `index` (B,) a random row of its cell, maybe itself."""
        cell = self.cell[index]
        nth = (torch.rand(len(index), generator=generator).to(cell.device) * self.sizes[cell]).long()
        return self.rows[self.starts[cell] + nth]


def sampled_epochs(training: Training) -> int:
    """How many of a training's epochs look at `step_views` views a step; the last fifth of them looks at all."""
    return training.epochs - math.ceil(training.epochs / 5) if training.step_views else 0


class Source:
    """Gives the batches of an epoch, in a new order each time.

    Where the fusion learns nothing and no view is hidden or swapped, the samples are fused once.

    Args:
        rows: the training set.
        vectors: (N, W) their fused vectors, where they are fused once.
        region: with cells, where views are swapped within them.
        training: batch_size, view_swap, view_dropout, step_views and epochs.
        seed: of the order and the views.
        alike: whether some of the views may stand for all.
    """

    def __init__(
        self,
        rows: Rows,
        vectors: Tensor | None,
        region: Region,
        training: Training,
        seed: int,
        *,
        alike: bool = False,
    ) -> None:
        self.rows, self.vectors, self.training = rows, vectors, training
        self.order, self.view_draws = get_generator(seed, _ORDER), get_generator(seed, _VIEWS)
        self.points = rows.points.float()
        self.sampled_epochs = sampled_epochs(training) if alike else 0
        self.epochs = 0
        self.by_cell: _RowsByCell | None = None
        if training.view_swap and region.cells is not None:
            cell = region.cells.owner.to(rows.views.device)
            sizes = torch.bincount(cell, minlength=len(region.cells.centres))
            self.by_cell = _RowsByCell(cell, torch.argsort(cell, stable=True), sizes.cumsum(0) - sizes, sizes)

    @property
    def fused(self) -> bool:
        """Whether a batch's `views` are fused vectors (B, W) rather than (B, V, D)."""
        return self.vectors is not None

    def sample(self) -> tuple[Tensor, Tensor]:
        """Two samples' views and which are present, as in a batch."""
        views = self.rows.views[:2] if self.vectors is None else self.vectors[:2]
        return views, self.rows.present[:2]

    def epoch(self) -> Iterator[Batch]:
        """Every sample once."""
        rows, size = self.rows, self.training.batch_size
        self.epochs += 1
        shuffled = torch.randperm(len(rows), generator=self.order).to(rows.views.device)
        if self.vectors is None:
            place, present = self._swap_and_hide(shuffled)
            table = rows.views.flatten(0, 1)
        else:
            place, present, table = shuffled, rows.present[shuffled], self.vectors
        # Drawn and looked up for the whole epoch at once, but for what is large: of small steps a tenth went into that.
        whole = (place, present, rows.labels[shuffled], self.points[shuffled])
        for index, *others in zip(*(torch.split(part, size) for part in whole), strict=True):
            yield Batch(table.index_select(0, index.flatten()).view(*index.shape, -1), *others)

    def _swap_and_hide(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which views (B, V) samples show, as numbers of the flattened (N · V), some of them of other samples of the same cell; and those
        (B, V) that aren't hidden.

        In epochs that look at some views alone, V is their number.
        """
        rows, training = self.rows, self.training
        # One number for sample and view: a look-up along one axis is several times as fast as along two. What takes another's
        # place is known before the look-up, so that each view is moved once.
        all_present, count = rows.present.flatten(), rows.views.shape[1]
        view = self._draw_views(index)
        own = index[:, None] * count + view
        place, device = own, rows.views.device
        if self.by_cell is not None:
            other = self.by_cell.draw(index, self.view_draws)
            swapped = torch.rand(own.shape, generator=self.view_draws).to(device) < training.view_swap
            place = torch.where(swapped, other[:, None] * count + view, own)
        present = all_present[place]
        if training.view_dropout:
            kept = torch.rand(own.shape, generator=self.view_draws).to(device) >= training.view_dropout
            present = present & kept
        # A sample that would be left without a view keeps those that it has.
        bare = ~present.any(dim=1, keepdim=True)
        return torch.where(bare, own, place), torch.where(bare, all_present[own], present)

    def _draw_views(self, index: Tensor) -> Tensor:
        """Which views (B, V) of a batch are looked at: all, or some at random, of those that are there while there are enough."""
        present = self.rows.present[index]
        count, some = present.shape[1], self.training.step_views
        if self.epochs > self.sampled_epochs or some >= count:
            return torch.arange(count, device=present.device).expand(len(index), count)
        draws = torch.rand(present.shape, generator=self.view_draws).to(present.device)
        return draws.masked_fill(~present, 2.0).argsort(dim=1)[:, :some]


def make_source(
    heads: Heads, rows: Rows, region: Region, model: Model, training: Training, seed: int
) -> Source:
    alike = heads.fusion.alike and not model.directional
    once = heads.fusion.fixed and not (
        training.view_dropout or training.view_swap or training.step_views or model.directional
    )
    vectors = heads.fuse_all(rows.views, rows.present) if once else None
    return Source(rows, vectors, region, training, seed, alike=alike)
