"""`--preset best`: geocells, evidence pooled over views, a geometric-median point, chosen by inner validation.

What wins depends on the data: on weak features a linear probe or a narrow network, on views that differ in worth a gated
one. So members race on held-out rows, and the winner, or a mixture of the best, answers.
docs/heads.md has the evidence.

The race is an inner one: its rows are the training rows of a split, and the run's own validation rows take no part. By
their number n:

- n < 40: nothing to choose by, and one candidate with wide labels is taken.
- n ≤ 4,000: every candidate that the budget allows is fitted once per fold and predicts the fold; out-of-fold predictions
  choose a mixture of candidates, its temperatures and its weights. Of it, what is solved at once is solved again on all
  rows, and a network is those of its folds.
- more: a tenth is held out, candidates are trained briefly on a part of the rest, and the best alone is fitted on all rows,
  for as many epochs as the rest of the budget allows.

Of several sources (backbones) the candidates race once over all of them side by side (early fusion), and once over each
alone, whose answers are mixed (late fusion). Among few samples all are members of one mixture; among more, where each costs a
training, either the best over all is taken or the best over each.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geo_embed.blocks import Block, short_names
from geo_embed.config import Fusion, Model, Training
from geo_embed.console import Advance, progress, say
from geo_embed.data.holdout import Places, class_folds, inner_groups
from geo_embed.devices import side_by_side
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.outlook import SMALL, TOO_FEW, budget_for, outlook
from geo_embed.fitting.train import find_refiner, gallery_of, sampled_epochs, train
from geo_embed.heads.calibration import fit_temperature
from geo_embed.heads.cells import Cells, cell_tables, nearest
from geo_embed.heads.decision import Answer, Decision, decide
from geo_embed.heads.discriminant import Discriminant
from geo_embed.heads.heads import CellHeads, step_flop
from geo_embed.heads.mixture import Member, Mixture
from geo_embed.heads.refine import Refiner
from geo_embed.heads.region import Region, make_region
from geo_embed.metrics import competition_score, top_states
from geo_embed.optim import minimise
from geo_embed.registry import HEADS
from geo_embed.sphere import great_circle_km, unit_to_degrees

# All of them: geocells over standardised features. τ = 40 km for the cells; the states' labels are hard.
_MODEL = {"head": "geocells", "standardise": True, "head_hidden": 512, "head_depth": 2, "dropout": 0.3}
_TRAINING = {
    "state_loss": "cross_entropy",
    "state_weight": 0.5,
    "cell_weight": 1.0,
    "tau_km": 40.0,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "warmup": 0.1,
    "epochs": 8,
}
# Samples of a step. Of 512 an epoch has too few steps below some thousand samples: of 6,000, fourteen epochs of those lost to as many of
# 128, which cost a fifth more.
_BATCH, _MANY_BATCH, _MANY = 128, 512, 16_000
# Mixing and hiding views keeps a network that looks at each of them from learning them by heart.
# Two views a step cost half of four, and are better: docs/heads.md.
_MIXED_VIEWS = {"view_swap": 0.5, "view_dropout": 0.15, "step_views": 2, "weight_decay": 0.3, "epochs": 14}
_MIXED_WIDTH = 384
# Of the last training, for who gives it the time; the dropout from twice the usual epochs on.
_LONG_EPOCHS, _LONG_DROPOUT = 30, 0.4
# Each races for so many steps, but for no more than half the epochs that it would be trained for, and for so many epochs at least: in
# fewer steps a probe leads where a network will be far better.
_RACE_ROWS, _RACE_VAL_ROWS, _RACE_EPOCHS, _RACE_STEPS = 8_000, 2_000, 5, 450
# A member with less of the mixture than this is left out: it would have to be kept and asked for nothing.
_LEAST_SHARE, _MIX_ROUNDS, _HOTTEST = 0.02, 60, 20.0
_SMALL_L2, _CELL_L2 = 0.1, 0.03
_SOFTENINGS = 3
# Steps towards a point: so many tell members apart, what a run answers with takes more.
_MEDIAN_ROUNDS = 8

# Seconds of a two-core machine in training. The budget is counted in arithmetic and steps, not on a clock: a plan made by
# the clock would differ from run to run, and the same seed must give the same bits.
_GFLOP_PER_SECOND = 110.0
_STEP_SECONDS = 0.0015


@dataclass(frozen=True)
class _SmallPlan:
    """How few samples race.

    Attributes:
        folds: that they are dealt into.
        held_out: so many of them, the first, are each held out once; what is said of their rows chooses.
        batch_size, epochs: of a network.
    """

    folds: int
    held_out: int
    batch_size: int
    epochs: int


def _small_plan(n: int, views: int) -> _SmallPlan:
    """Views that are mixed can't be learnt by heart, so that more epochs of a network pay, and two or three trainings on nine tenths beat
    four of half as many epochs on three quarters, which cost as much. The fewer rows, the more of them are held out: they have to
    choose, and cost less. With one view it doesn't pay. Of few rows batches are halved: there would be too few steps in an epoch.
    """
    if views == 1:
        batch_size = _BATCH // 2 if n < 480 else _BATCH
        epochs = min(60, max(30, round(240 / math.ceil(n / batch_size))))
        return _SmallPlan(folds=4, held_out=4, batch_size=batch_size, epochs=epochs)
    batch_size = _BATCH // 2 if n < 2_000 else _BATCH
    return _SmallPlan(folds=10, held_out=min(10, max(2, round(2_000 / n))), batch_size=batch_size, epochs=40)


# What fusion is called that puts all sources side by side first, and what that is called which mixes each one's answers.
EARLY, LATE = "early", "late"
# What all of it is called in a comparison.
TOGETHER = "together"

# Settings that follow from the race, whatever the configuration says.
CHOSEN_SETTINGS = (
    *(f"model.{key}" for key in _MODEL),
    "model.point",
    "model.unit_length",
    *(f"training.{key}" for key in {**_TRAINING, **_MIXED_VIEWS}),
    *(
        f"training.{key}"
        for key in ("batch_size", "l2", "shrinkage", "gps_loss", "gps_normalise", "gps_weight", "refine")
    ),
)


@dataclass(frozen=True)
class Trial:
    """One member in the race: its score on inner validation."""

    member: str
    score: float
    state_score: float
    gps_score: float


@dataclass
class Race:
    """The trials of a race, what it chose, and the epochs of the final fit; inner scores serve to choose, not to report.

    Attributes:
        state_labels: kinds of labels that members learnt the states from, `hard` and `soft` (by haversine distance), as far as they
            took part; and how much of what was chosen is of each kind.
        shares: of several sources, how much of what was chosen looks at all of them (`early`), and at each alone.
        alternatives: of several sources, what would answer by early or late fusion alone, or by one source.
        brief: whether those were trained briefly, and aren't what a whole fit would give.
        tell: takes lines of news.
    """

    trials: list[Trial] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    epochs: int = 0
    state_labels: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    alternatives: dict[str, Mixture] = field(default_factory=dict)
    brief: bool = False
    tell: Callable[[str], None] = field(default=say, compare=False)

    @property
    def best_score(self) -> float:
        """Of the trials so far."""
        return max(trial.score for trial in self.trials)

    def choose(self, members: Iterable[Member], weights: Iterable[float]) -> None:
        """Note what all members that took part weigh in what is chosen; those that weigh nothing are left out of it."""
        for member, weight in zip(members, weights, strict=True):
            if weight:
                self.chosen.append(f"{member.name} × {weight:.2f}")
            kind = "hard" if member.training.state_loss == "cross_entropy" else "soft"
            self.state_labels[kind] = self.state_labels.get(kind, 0.0) + weight
            source = EARLY if member.block is None else name_of_source(member.block)
            self.shares[source] = self.shares.get(source, 0.0) + weight


def fit_best(
    rows: Rows,
    classes: int,
    model: Model,
    training: Training,
    *,
    seed: int,
    every: float | None = None,
    tell: Callable[[str], None] = say,
) -> tuple[Mixture, Race]:
    """Race members on inner validation, then fit the winner on all rows, or mix the best.

    Args:
        rows: training rows, each with at least one view.
        classes: C.
        model: `fusion`, where given, is the only one to take part.
        training: `budget_seconds`, about what it may cost on a two-core machine, bounds the race and the epochs.
        seed: of everything random but the inner folds, which are `training.split_seed`'s.
        every: seconds between lines of progress; default `tracking.progress_seconds`.
        tell: takes lines of news.
    """
    base = Member("", model.model_copy(update=_MODEL), training.model_copy(update=_TRAINING))
    budget = training.budget_seconds
    tell(outlook(len(rows), budget))
    race, refiner = Race(tell=tell), None
    weights: tuple[float, ...] = (1.0,)
    if len(rows) < TOO_FEW:
        candidates = _small_members(base, model.fusion or "average", *rows.present.shape)
        network = next(candidate for candidate in candidates if _by_steps(candidate))
        members = [network]
        race.choose(members, weights)
    elif len(rows) <= SMALL:
        region = _region(rows, base, classes, seed)
        return _race_small(rows, region, base, model.fusion, seed, budget, race), race
    else:
        members, weights, refiner, spent = _race_large(rows, classes, base, model.fusion, seed, budget, race)
        members = [member.variant("", batch_size=_batch_size(len(rows))) for member in members]
        # Of several sources each candidate raced over all of them and over each: by default that much more time is there.
        races = 1 if budget is not None else len(_by_source(base, rows))
        budget = races * budget_for(len(rows), budget) - spent
    region = _region(rows, members[0], classes, seed)
    each = sum(epoch_seconds(member, rows, region) for member in members)
    fitted: list[Member] = []
    heads: list[CellHeads] = []
    for member in members:
        usual, most = member.training.epochs, _most_epochs(member, len(rows), training.budget_seconds)
        epochs = usual if not each or budget is None else int(min(most, max(3, budget / each)))
        dropout = _LONG_DROPOUT if epochs >= 2 * usual else member.model.dropout
        member = member.variant("", {"dropout": dropout}, epochs=epochs)
        race.epochs = max(race.epochs, epochs)
        seconds = epoch_seconds(member, rows, region)
        if seconds:
            about = f"{epochs} epochs, about {epochs * seconds:,.0f} s on two cores"
            tell(f"training: {member.name} on {len(rows):,} samples, {about}")
        with progress("training", epochs if seconds else 0, "epochs", every) as advance:
            heads.append(_train(rows.of(member.block), region, member.model, member.training, seed, advance))
        fitted.append(member)
    if refiner is not None:
        heads[0].look_up(gallery_of(heads[0], rows, region), refiner)
    return Mixture(fitted, heads, Decision(weights)), race


def epoch_seconds(member: Member, rows: Rows, region: Region) -> float:
    """What an epoch costs, about: its arithmetic, as fusion and head declare it, and its steps. 0 for what is solved at once."""
    n, views, _ = rows.views.shape
    dim = rows.of(member.block).width
    training = member.training
    sampled = sampled_epochs(training) / training.epochs
    some = sampled * min(training.step_views, views) + (1 - sampled) * views
    cells = 0 if region.centres is None else len(region.centres)
    flop = step_flop(member.model, dim, views, region.classes, cells) * some / views
    if not flop:
        return 0.0
    gflop = flop * n / 1e9
    return gflop / _GFLOP_PER_SECOND + _STEP_SECONDS * math.ceil(n / member.training.batch_size)


def _train(
    rows: Rows,
    region: Region,
    model: Model,
    training: Training,
    seed: int,
    advance: Advance | None = None,
) -> CellHeads:
    """Heads of a member, all epochs of it; `advance` is told of each."""
    heads = train(rows, region, model, training, seed=seed, advance=advance).heads
    assert isinstance(heads, CellHeads)
    return heads


def _train_each(parts: list[tuple[Rows, Region]], member: Member, seed: int) -> list[CellHeads]:
    """Heads of a member for each part of the rows."""
    device = parts[0][0].views.device
    return side_by_side(
        lambda part, _: _train(part[0].of(member.block), part[1], member.model, member.training, seed),
        parts,
        device,
    )


@dataclass(frozen=True)
class _InnerValidation:
    """Rows that members are scored on, part by part, each part with cell tables that its own labels were not counted in.

    Attributes:
        rows: n of them.
        centres: (M, 3) of the cells.
        parts: rows of each part; together all.
        to_state: for each part P(state | cell) (M, C).
    """

    rows: Rows
    centres: Tensor
    parts: list[Tensor]
    to_state: list[Tensor]

    @cached_property
    def owner(self) -> Tensor:
        """(n,) the cell that each row lies in."""
        owner = nearest(self.rows.points.cpu().numpy(), self.centres.cpu().numpy())
        return torch.from_numpy(owner).to(self.centres.device)

    def score(self, answers: list[Answer], decision: Decision) -> tuple[float, float, float]:
        """Score, state score and GPS score of members' answers for all rows, decided together."""
        states = torch.empty(len(self.rows), answers[0].states.shape[1])
        km = torch.empty(len(self.rows), dtype=torch.float64)
        for part, to_state in zip(self.parts, self.to_state, strict=True):
            of_part = [answer.take(part) for answer in answers]
            p, points = decide(of_part, decision, self.centres, to_state, rounds=_MEDIAN_ROUNDS)
            states[part.cpu()] = p.cpu()
            km[part.cpu()] = great_circle_km(points, self.rows.points[part]).cpu().double()
        return competition_score(top_states(states.numpy()), self.rows.labels.cpu().numpy(), km.numpy())


def _race_small(
    rows: Rows,
    region: Region,
    base: Member,
    fusion: Fusion | None,
    seed: int,
    budget: float | None,
    race: Race,
) -> Mixture:
    """Every affordable candidate, out of fold, and the mixture of them that is likeliest for the rows left out.

    Heads that are solved at once are solved again on all rows. A network isn't trained again, which would cost another fold:
    those of its folds answer together.
    """
    # All folds share the cells of the whole, so that members' answers can be mixed. What their labels tell, P(state | cell)
    # and P(cell | state), is counted anew without each fold.
    cells, device = region.cells, rows.labels.device
    assert cells is not None
    groups = _by_source(base, rows)
    share = None if budget is None else budget / len(groups)
    members = [
        member
        for group in groups
        for member in _affordable(_small_members(group, fusion, *rows.present.shape), rows, region, share)
        # Of several sources it would see the one with the largest numbers: it doesn't standardise.
        if group.block is not None or len(groups) == 1 or member.model.head != "view-discriminant"
    ]
    plan = _small_plan(*rows.present.shape)
    val_parts = [part.to(device) for part in _folds(rows, base.training, plan.folds, race)[: plan.held_out]]
    train_parts = [_without(part, len(rows)) for part in val_parts]
    tables = [
        cell_tables(cells.centres, cells.owner[train_part], rows.labels[train_part], region.classes)
        for train_part in train_parts
    ]
    held_out = torch.cat(val_parts).sort().values
    inner = _InnerValidation(
        rows.take(held_out),
        cells.centres,
        [torch.searchsorted(held_out, part) for part in val_parts],
        [table.to_state for table in tables],
    )

    # Each member's out-of-fold answers: one training per fold, which answers for the rows that it left out.
    folds = [
        (rows.take(train_part), replace(region, cells=table))
        for train_part, table in zip(train_parts, tables, strict=True)
    ]
    answers: list[Answer] = []
    of_folds: list[list[CellHeads]] = []
    temperatures: list[float] = []
    with progress("race", len(members), "members") as advance:
        for member in members:
            fold_heads = _train_each(folds, member, seed)
            temperatures.append(_soften(fold_heads, rows, val_parts, inner.rows.labels))
            answer = _answer(fold_heads, rows, val_parts)
            answers.append(answer)
            of_folds.append(fold_heads)
            _note(race, member, inner.score([answer], _alone(answer, inner)), len(members))
            advance(1, f"best {race.best_score:.4f}")

    # Their mixture; and of several sources, what would be mixed of a part of them.
    decision = _mix(answers, inner)
    race.choose(members, decision.weights)
    decisions = {"": decision}
    for name, blocks in _alternatives(rows).items():
        asked = [k for k, member in enumerate(members) if member.block in blocks]
        of_part = _mix([answers[k] for k in asked], inner)
        weights = dict(zip(asked, of_part.weights, strict=True))
        decisions[name] = replace(of_part, weights=tuple(weights.get(k, 0.0) for k in range(len(members))))

    # What answers for each member from now on.
    fitted: dict[int, list[CellHeads]] = {}
    for k, member in enumerate(members):
        if not any(choice.weights[k] for choice in decisions.values()):
            continue
        if _by_steps(member):
            fitted[k] = of_folds[k]
            for heads in fitted[k]:
                heads.settle(region)
        else:
            fitted[k] = _train_each([(rows, region)], member, seed)
            if isinstance(discriminant := fitted[k][0], Discriminant):
                discriminant.soften(temperatures[k])
        if decision.weights[k] and _by_steps(member):
            race.epochs = max(race.epochs, member.training.epochs)
    mixtures = {name: _mixture_of(members, fitted, choice) for name, choice in decisions.items()}
    chosen = mixtures.pop("")
    race.alternatives = mixtures
    return chosen


def _by_steps(member: Member) -> bool:
    """Whether it is a network, and not solved at once."""
    return bool(HEADS[member.model.head].make.by_steps)


def _mixture_of(members: list[Member], fitted: dict[int, list[CellHeads]], decision: Decision) -> Mixture:
    """The members with a weight, each with its one or several sets of heads, which share the weight."""
    used = [(k, weight) for k, weight in enumerate(decision.weights) if weight]
    return Mixture(
        [members[k] for k, _ in used for _ in fitted[k]],
        [heads for k, _ in used for heads in fitted[k]],
        replace(decision, weights=tuple(weight / len(fitted[k]) for k, weight in used for _ in fitted[k])),
    )


def _by_source(base: Member, rows: Rows) -> list[Member]:
    """What candidates are made from: for all sources side by side, and where there are several, for each alone."""
    if len(rows.blocks) < 2:
        return [base]
    names = short_names([block.name for block in rows.blocks])
    alone = [
        replace(base, name=f"{name}: ", block=block) for name, block in zip(names, rows.blocks, strict=True)
    ]
    return [replace(base, name="all: "), *alone]


def _alternatives(rows: Rows) -> dict[str, list[Block | None]]:
    """Of several sources, which members would answer by early fusion, by late fusion, and by each source alone."""
    if len(rows.blocks) < 2:
        return {}
    members: dict[str, list[Block | None]] = {EARLY: [None], LATE: list(rows.blocks)}
    return members | {name_of_source(block): [block] for block in rows.blocks}


def name_of_source(block: Block) -> str:
    """What a source is called beside the fusions, with whose names some folder may be called as well."""
    return f"the source {block.name}" if block.name in (EARLY, LATE, TOGETHER) else block.name


def _answer(fold_heads: list[CellHeads], rows: Rows, val_parts: list[Tensor]) -> Answer:
    """What each fold's heads say of the rows that were left out of it, in the order of the rows."""
    answers = [
        heads.answer(rows.views[part], rows.present[part])
        for heads, part in zip(fold_heads, val_parts, strict=True)
    ]
    order = torch.cat(val_parts).argsort()
    return Answer(
        torch.cat([answer.cells for answer in answers])[order],
        torch.cat([answer.states for answer in answers])[order],
    )


def _soften(fold_heads: list[CellHeads], rows: Rows, val_parts: list[Tensor], labels: Tensor) -> float:
    """Soften the folds' discriminants together until what they say out of fold is likeliest; by how much. 1 for other heads."""
    temperature = 1.0
    discriminants = [heads for heads in fold_heads if isinstance(heads, Discriminant)]
    # Those of the mean are there at once; those of the views, whose evidence is summed after it was softened, in steps.
    for _ in range(_SOFTENINGS if discriminants else 0):
        factor = fit_temperature(_answer(fold_heads, rows, val_parts).states, labels)
        for heads in discriminants:
            heads.soften(factor)
        temperature *= factor
    return temperature


def _race_large(
    rows: Rows,
    classes: int,
    base: Member,
    fusion: Fusion | None,
    seed: int,
    budget: float | None,
    race: Race,
) -> tuple[list[Member], tuple[float, ...], Refiner | None, float]:
    """The winner of short trainings on a part of the rows, scored on rows held out, or of several sources the winner of each; their
    weights; how the points of a single one are refined, if that helps; and the seconds that it cost.

    It ranks members, it doesn't finish them. Only what a short race ranks fairly takes part: it would drop the mixing
    of views, which pays after some ten epochs. Temperatures are not taken from it: its models are short of epochs.
    """
    # A tenth is held out; of it, and of a shuffle of the rest, the first rows take part.
    val_part, *train_parts = _folds(rows, base.training, 10, race)
    shuffled = torch.cat(train_parts)[
        torch.randperm(sum(map(len, train_parts)), generator=torch.Generator().manual_seed(seed))
    ]
    device = rows.labels.device
    train_rows = rows.take(shuffled[:_RACE_ROWS].sort().values.to(device))
    val_rows = rows.take(val_part[:_RACE_VAL_ROWS].to(device))
    all_of_them = torch.arange(len(val_rows), device=device)
    # As many cells as the final fit will have: the race is about the same task. All members share them.
    samples = max(1, round(base.model.cell_samples * len(train_rows) / len(rows)))
    region = _region(train_rows, base.variant("", {"cell_samples": samples}), classes, seed)
    assert region.cells is not None
    inner = _InnerValidation(val_rows, region.cells.centres, [all_of_them], [region.cells.to_state])
    candidates = [member for group in _by_source(base, rows) for member in _large_members(group, fusion)]
    costs: list[float] = []
    # Of all sources together, and of each alone: its best member, as trained here, its answers and their score.
    best: dict[Block | None, tuple[float, Member, CellHeads, Answer]] = {}

    def run(member: Member) -> None:
        batch = _batch_size(len(train_rows))
        half = _most_epochs(member, len(rows), budget) // 2
        epochs = max(_RACE_EPOCHS, min(half, round(_RACE_STEPS / math.ceil(len(train_rows) / batch))))
        scaled = member.variant("", {"cell_samples": samples}, epochs=epochs, batch_size=batch)
        heads = _train(train_rows.of(member.block), region, scaled.model, scaled.training, seed)
        answer = heads.answer(val_rows.views, val_rows.present)
        score = inner.score([answer], Decision())
        if member.block not in best or score[0] > best[member.block][0]:
            best[member.block] = score[0], member, heads, answer
        _note(race, member, score, len(candidates))
        costs.append(epochs * epoch_seconds(scaled, train_rows, region))

    with progress("race", len(candidates), "members") as advance:
        for member in candidates:
            run(member)
            advance(1, f"best {race.best_score:.4f}")

    # 1. By early fusion one member answers, by late fusion each source's, mixed by the weights that make the truth likeliest.
    options: dict[str, dict[Block | None, float]] = {EARLY: {None: 1.0}}
    scores = {EARLY: best[None][0]}
    if len(rows.blocks) > 1:
        answers = [best[block][3] for block in rows.blocks]
        weights = _mix(answers, inner).weights
        options[LATE] = {block: weight for block, weight in zip(rows.blocks, weights, strict=True) if weight}
        scores[LATE] = inner.score(answers, Decision(weights))[0]
        options |= {name_of_source(block): {block: 1.0} for block in rows.blocks}
        race.brief = True
        race.alternatives = {
            name: Mixture(
                [best[block][1] for block in option],
                [best[block][2] for block in option],
                Decision(tuple(option.values())),
            )
            for name, option in options.items()
        }

    # 2. The better of the two.
    chosen = options[max(scores, key=lambda name: scores[name])]
    race.choose(
        candidates,
        [chosen.get(member.block, 0.0) * (best[member.block][1] is member) for member in candidates],
    )
    refiner = None
    if len(chosen) == 1:
        (block,) = chosen
        refiner = find_refiner(best[block][2], region, train_rows, val_rows)
    return [best[block][1] for block in chosen], tuple(chosen.values()), refiner, sum(costs)


def _most_epochs(member: Member, n: int, budget: float | None) -> int:
    """What it is trained for on n rows, if the budget has room. Views that are mixed can't be learnt by heart: more epochs of them pay,
    where they cost little or somebody asked for it.
    """
    longer = (n < _MANY or budget is not None) and member.training.view_swap > 0
    return max(member.training.epochs, _LONG_EPOCHS) if longer else member.training.epochs


def _batch_size(n: int) -> int:
    return _BATCH if n < _MANY else _MANY_BATCH


def _large_members(base: Member, fusion: Fusion | None) -> list[Member]:
    """Candidates for many samples, cheapest first."""
    members = []
    if fusion in (None, "average"):
        members.append(base.variant("probe", {"head": "probe", "fusion": "average"}))
        members.append(base.variant("average", {"fusion": "average"}))
    if fusion != "average":
        name = fusion or "evidence"
        members.append(base.variant(name, {"fusion": name, "head_hidden": _MIXED_WIDTH}, **_MIXED_VIEWS))
    return members


def _small_members(base: Member, fusion: Fusion | None, n: int, views: int) -> list[Member]:
    """Candidates for few samples: linear heads that are solved at once, and networks kept narrow and with much dropout.

    Labels are wider than for many samples, since cells are. The most useful come first: a small budget ends the list.
    """
    plan = _small_plan(n, views)
    net = base.variant(
        "",
        {"head_hidden": 256, "dropout": 0.4},
        weight_decay=0.3,
        learning_rate=2e-3,
        batch_size=plan.batch_size,
        epochs=plan.epochs,
    )

    def network(name: Fusion, tau: float) -> Member:
        average = name == "average"
        swap, dropout = (0.0, 0.5) if average else (0.5, 0.4)
        return net.variant(
            f"{name}-tau{tau:g}",
            {"fusion": name, "dropout": dropout},
            tau_km=tau,
            view_swap=swap,
            view_dropout=0.0 if average or views == 1 else _MIXED_VIEWS["view_dropout"],
            step_views=0 if average else _MIXED_VIEWS["step_views"],
        )

    wide, narrow = 200.0, 75.0
    if fusion not in (None, "average"):
        return [network(fusion, wide), network(fusion, narrow)]
    members = [_discriminant(base, "discriminant", shrinkage) for shrinkage in (0.8, 0.3)]
    if views > 1 and fusion is None:
        members += [_discriminant(base, "view-discriminant", shrinkage) for shrinkage in (0.5, 0.1)]
    members.append(
        base.variant("probe", {"head": "probe", "fusion": "average", "unit_length": True}, l2=_SMALL_L2)
    )
    # Where there are several views, networks that tell them apart leave it nothing to add.
    if views == 1:
        members.append(
            base.variant(
                f"cell-probe-tau{wide:g}",
                {"head": "cell-probe", "fusion": "average", "unit_length": True},
                l2=_CELL_L2,
                tau_km=wide,
                state_loss="haversine",
            )
        )
    if fusion == "average":
        return [*members, network("average", wide), network("average", narrow)]
    return [*members, network("evidence", wide), network("average", wide), network("evidence", narrow)]


def _discriminant(base: Member, head: str, shrinkage: float) -> Member:
    return base.variant(f"{head}-{shrinkage:g}", {"head": head, "fusion": "average"}, shrinkage=shrinkage)


def _affordable(members: list[Member], rows: Rows, region: Region, budget: float | None) -> list[Member]:
    """Candidates in their order, what is solved at once and networks while the folds of each stay within the budget; always the
    first. Without a budget one network takes part: more of them gain little, and take seconds. Beside one that tells several views
    apart no probe of their mean takes part.
    """
    kept: list[Member] = []
    plan, spent = _small_plan(*rows.present.shape), 0.0
    for member in members:
        cost = plan.held_out * member.training.epochs * epoch_seconds(member, rows, region)
        beyond = spent > 0 if budget is None else spent + cost > budget
        if kept and cost and beyond:
            break
        kept.append(member)
        spent += cost
    # Where a network tells several views apart, logistic regression on their mean adds nothing, and takes an eighth of the race's time.
    if rows.present.shape[1] > 1 and any(member.model.fusion != "average" for member in kept):
        kept = [member for member in kept if member.model.head != "probe"]
    return kept


def _region(rows: Rows, member: Member, classes: int, seed: int) -> Region:
    region = make_region(
        rows.points.cpu().numpy(), rows.labels.cpu().numpy(), classes, member.model, seed=seed
    )
    assert region.cells is not None
    cells, device = region.cells, rows.labels.device
    return replace(
        region,
        cells=Cells(
            cells.centres.to(device),
            cells.owner.to(device),
            cells.to_state.to(device),
            cells.in_state.to(device),
        ),
    )


def _without(part: Tensor, n: int) -> Tensor:
    """A mask (n,) of the rows that aren't in the part."""
    rest = torch.ones(n, dtype=torch.bool, device=part.device)
    rest[part] = False
    return rest


def _alone(answer: Answer, inner: _InnerValidation) -> Decision:
    """A member's own temperatures: how sure it is differs from kind to kind, and would blur its score."""
    return Decision(
        cell_temperature=fit_temperature(answer.cells, inner.owner),
        state_temperature=fit_temperature(answer.states, inner.rows.labels),
    )


def _mix(answers: list[Answer], inner: _InnerValidation) -> Decision:
    """Members' weights and temperatures by likelihood, then the head's share by score where that tells more than noise."""
    # The log-linear pool Σ wᵢ log pᵢ of least negative log-likelihood of states and cells together (logarithmic opinion
    # pools: Heskes, NIPS 1997). The w are not negative, w = u², and need not sum to one: their sum is the inverse of a
    # temperature, and cells have a factor of their own. Convex in w but for that factor, and most w come out zero.
    labels, owner, device = inner.rows.labels, inner.owner, inner.rows.labels.device
    cells = torch.stack([answer.cells for answer in answers])
    states = torch.stack([answer.states for answer in answers])

    def loss(u: Tensor) -> Tensor:
        w, factor = u[:-1].square()[:, None, None], u[-1].square()
        pooled_states, pooled_cells = (w * states).sum(dim=0), (w * cells).sum(dim=0)
        return F.cross_entropy(pooled_states, labels) + F.cross_entropy(factor * pooled_cells, owner)

    start = torch.full((len(answers) + 1,), len(answers) ** -0.5, device=device)
    start[-1] = 1.0
    *shares, factor = minimise(loss, start, rounds=_MIX_ROUNDS).square().tolist()
    least = _LEAST_SHARE * sum(shares)
    w = [weight if weight >= least else 0.0 for weight in shares]
    # Where all members agree, as on one class alone, no weight matters.
    total, coldest = sum(w) or 1.0, 1 / _HOTTEST
    even = Decision(
        tuple(weight / total for weight in w) if sum(w) else (1 / len(w),) * len(w),
        0.5,
        cell_temperature=1 / max(total * factor, coldest),
        state_temperature=1 / max(total, coldest),
    )
    options = [replace(even, head_share=share) for share in (0.5, 0.25, 0.75)]
    scores = [inner.score(answers, option)[0] for option in options]
    best = int(np.argmax(scores))
    return options[best] if scores[best] > scores[0] + 0.025 / math.sqrt(len(inner.rows)) else even


def _folds(rows: Rows, training: Training, count: int, race: Race) -> list[Tensor]:
    """The rows of each fold, ascending; a place, and a picture, are in one fold alone: else who remembers best would win."""
    latitude, longitude = unit_to_degrees(rows.points.cpu()).numpy().T
    labels = rows.labels.cpu().numpy()
    tied = None if rows.tied is None else rows.tied.cpu().numpy()
    places = Places(np.arange(len(rows)).astype(object), labels, latitude, longitude, tied)
    groups, km = inner_groups(places, training, count)
    race.tell(f"race: places closer than {km:.3g} km are held out together")
    fold = class_folds(labels, count, training.split_seed, groups)
    return [torch.from_numpy(np.flatnonzero(fold == k)) for k in range(count)]


def _note(race: Race, member: Member, score: tuple[float, float, float], of: int) -> None:
    race.trials.append(Trial(member.name, *score))
    race.tell(
        f"race {len(race.trials)} of {of}: {member.name} {score[0]:.4f}, best so far {race.best_score:.4f}"
    )
