"""`--preset best`: geocells, evidence pooled over views, a geometric-median point, chosen by inner validation.

What wins depends on the data: on weak features a linear probe or a narrow network, on views that differ in worth a gated
one. So members race on held-out rows, and the winner, or a mixture of the best, is fitted on everything.
docs/heads.md has the evidence.

The race is an inner one: its rows are the training rows of a split, and the run's own validation rows take no part. By
their number n:

- n < 40: nothing to choose by, and one candidate with wide labels is taken.
- n ≤ 4,000: every candidate that the budget allows is fitted once per fold and predicts the fold; out-of-fold predictions
  choose a mixture of candidates, its temperatures and its weights.
- more: a tenth is held out, candidates are trained briefly on a part of the rest, and the best alone goes on.

Last, what was chosen is fitted on all rows, for as many epochs as the rest of the budget allows.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geo_embed.config import Fusion, Model, Training
from geo_embed.console import say
from geo_embed.data.holdout import Places, class_folds, inner_groups
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.train import find_refiner, gallery_of, sampled_epochs, train
from geo_embed.heads.calibration import fit_temperature
from geo_embed.heads.cells import Cells, cell_tables, nearest
from geo_embed.heads.decision import Answer, Decision, decide, mix_logs
from geo_embed.heads.heads import CellHeads, step_flop
from geo_embed.heads.mixture import Member, Mixture
from geo_embed.heads.refine import Refiner
from geo_embed.heads.region import Region, make_region
from geo_embed.metrics import competition_score, top_states
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
    "batch_size": 512,
    "epochs": 8,
}
# Mixing and hiding views keeps a network that looks at each of them from learning them by heart.
# Two views a step cost half of four, and are better: docs/heads.md.
_MIXED_VIEWS = {"view_swap": 0.5, "view_dropout": 0.15, "step_views": 2, "weight_decay": 0.3, "epochs": 14}
_MIXED_WIDTH = 384
_WIDE_TAU_KM = 100.0
_RACE_ROWS, _RACE_VAL_ROWS, _RACE_EPOCHS = 16_000, 4_000, 4
# Up to so many samples folds, not a hold-out, carry the inner validation, and members are mixed.
_SMALL = 4000
_SMALL_FOLDS, _SMALL_STEPS, _MOST_SMALL_EPOCHS = 4, 900, 60
_MIXED = 6
# Below this there is nothing to choose by.
_TOO_FEW = 40

# Seconds of a two-core machine in training. The budget is counted in arithmetic and steps, not on a clock: a plan made by
# the clock would differ from run to run, and the same seed must give the same bits.
_GFLOP_PER_SECOND = 110.0
_STEP_SECONDS = 0.0015


# Settings that follow from the race, whatever the configuration says.
CHOSEN_SETTINGS = (
    *(f"model.{key}" for key in _MODEL),
    "model.point",
    *(f"training.{key}" for key in {**_TRAINING, **_MIXED_VIEWS}),
    *(f"training.{key}" for key in ("l2", "gps_loss", "gps_normalise", "gps_weight", "refine")),
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
    """The trials of a race, what it chose, and the epochs of the final fit; inner scores serve to choose, not to report."""

    trials: list[Trial] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    epochs: int = 0


def fit_best(
    rows: Rows, classes: int, model: Model, training: Training, *, seed: int
) -> tuple[Mixture, Race]:
    """Race members on inner validation, then fit the winner, or a mixture, on all rows.

    Args:
        rows: training rows, each with at least one view.
        classes: C.
        model: `fusion`, where given, is the only one to take part.
        training: `budget_seconds`, about what it may cost on a two-core machine, bounds the race and the epochs.
        seed: of everything random.
    """
    base = Member("", model.model_copy(update=_MODEL), training.model_copy(update=_TRAINING))
    budget = training.budget_seconds
    race, refiner = Race(), None
    if len(rows) < _TOO_FEW:
        members = _small_members(base, model.fusion or "average", len(rows))[-2:-1]
        region = _region(rows, members[0], classes, seed)
        decision = Decision()
    elif len(rows) <= _SMALL:
        region = _region(rows, base, classes, seed)
        members, decision, spent = _race_small(rows, region, base, model.fusion, seed, budget, race)
        budget -= spent
    else:
        member, refiner, spent = _race_large(rows, classes, base, model.fusion, seed, race)
        members, decision = [member], Decision()
        region = _region(rows, member, classes, seed)
        budget -= spent
    race.chosen = [
        f"{member.name} × {weight:.2f}" for member, weight in zip(members, decision.weights, strict=True)
    ]
    parts, fitted = [], []
    for member in members:
        each = epoch_seconds(member, rows, region)
        most = member.training.epochs
        epochs = most if not each else int(min(most, max(3, budget / len(members) / each)))
        fitted.append(member.variant("", epochs=epochs))
        race.epochs = max(race.epochs, epochs)
        parts.append(_train(rows, region, member.model, fitted[-1].training, seed))
    if refiner is not None:
        parts[0].look_up(gallery_of(parts[0], rows, region), refiner)
    return Mixture(fitted, parts, decision), race


def epoch_seconds(member: Member, rows: Rows, region: Region) -> float:
    """What an epoch costs, about: its arithmetic, as fusion and head declare it, and its steps. 0 for a probe."""
    n, views, dim = rows.views.shape
    training = member.training
    sampled = sampled_epochs(training) / training.epochs
    some = sampled * min(training.step_views, views) + (1 - sampled) * views
    cells = 0 if region.centres is None else len(region.centres)
    flop = step_flop(member.model, dim, views, region.classes, cells) * some / views
    if not flop:
        return 0.0
    gflop = flop * n / 1e9
    return gflop / _GFLOP_PER_SECOND + _STEP_SECONDS * math.ceil(n / member.training.batch_size)


def _train(rows: Rows, region: Region, model: Model, training: Training, seed: int) -> CellHeads:
    """Heads of a member, all epochs of it."""
    heads = train(rows, region, model, training, seed=seed).heads
    assert isinstance(heads, CellHeads)
    return heads


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

    def score(self, answers: list[Answer], decision: Decision) -> tuple[float, float, float]:
        """Score, state score and GPS score of members' answers for all rows, decided together."""
        states = torch.empty(len(self.rows), answers[0].states.shape[1])
        km = torch.empty(len(self.rows), dtype=torch.float64)
        for part, to_state in zip(self.parts, self.to_state, strict=True):
            of_part = [Answer(answer.cells[part], answer.states[part]) for answer in answers]
            p, points = decide(of_part, decision, self.centres, to_state)
            states[part.cpu()] = p.cpu()
            km[part.cpu()] = great_circle_km(points, self.rows.points[part]).cpu().double()
        return competition_score(top_states(states.numpy()), self.rows.labels.cpu().numpy(), km.numpy())


def _race_small(
    rows: Rows, region: Region, base: Member, fusion: Fusion | None, seed: int, budget: float, race: Race
) -> tuple[list[Member], Decision, float]:
    """Every affordable candidate, out of fold, and the mixture of them that scores best; and the seconds that it cost."""
    # All folds share the cells of the whole, so that members' answers can be mixed. What their labels tell, P(state | cell)
    # and P(cell | state), is counted anew without each fold.
    cells, device = region.cells, rows.labels.device
    assert cells is not None
    members = _affordable(_small_members(base, fusion, len(rows)), rows, region, budget)
    val_parts = [part.to(device) for part in _folds(rows, base.training, _SMALL_FOLDS, seed)]
    train_parts = [_without(part, len(rows)) for part in val_parts]
    tables = [
        cell_tables(cells.centres, cells.owner[train_part], rows.labels[train_part], region.classes)
        for train_part in train_parts
    ]
    inner = _InnerValidation(rows, cells.centres, val_parts, [table.to_state for table in tables])

    # Each member's out-of-fold answers: one training per fold, which answers for the rows that it left out.
    answers: list[Answer] = []
    spent = 0.0
    for member in members:
        out_of_fold = Answer(
            torch.empty(len(rows), len(cells.centres), device=device),
            torch.empty(len(rows), region.classes, device=device),
        )
        for val_part, train_part, table in zip(val_parts, train_parts, tables, strict=True):
            fold_region = replace(region, cells=table)
            heads = _train(rows.take(train_part), fold_region, member.model, member.training, seed)
            answer = heads.answer(rows.views[val_part], rows.present[val_part])
            out_of_fold.cells[val_part], out_of_fold.states[val_part] = answer.cells, answer.states
        answers.append(out_of_fold)
        spent += (_SMALL_FOLDS - 1) * member.training.epochs * epoch_seconds(member, rows, region)
        _note(race, member, inner.score([out_of_fold], Decision()))

    # The mixture that scores best on them, then its temperatures and weights.
    weights = _mix(answers, inner)
    used = [i for i, weight in enumerate(weights) if weight > 0]
    shares = tuple(weights[i] for i in used)
    return [members[i] for i in used], _calibrate([answers[i] for i in used], shares, inner), spent


def _race_large(
    rows: Rows, classes: int, base: Member, fusion: Fusion | None, seed: int, race: Race
) -> tuple[Member, Refiner | None, float]:
    """The winner of short trainings on a part of the rows, scored on rows held out; how its points are
    refined, if that helps; and the seconds that it cost.

    It ranks members, it doesn't finish them. Only what a short race ranks fairly takes part: it would drop the mixing
    of views, which pays after some ten epochs. Temperatures are not taken from it: its models are short of epochs.
    """
    # A tenth is held out; of it, and of a shuffle of the rest, the first rows take part.
    val_part, *train_parts = _folds(rows, base.training, 10, seed)
    shuffled = torch.cat(train_parts)[
        torch.randperm(sum(map(len, train_parts)), generator=torch.Generator().manual_seed(seed))
    ]
    device = rows.labels.device
    train_rows = rows.take(shuffled[:_RACE_ROWS].sort().values.to(device))
    val_rows = rows.take(val_part[:_RACE_VAL_ROWS].to(device))
    all_of_them = torch.arange(len(val_rows), device=device)
    members: list[Member] = []
    scores: list[float] = []
    winner: tuple[CellHeads, Region] | None = None
    spent = 0.0

    def run(member: Member) -> None:
        nonlocal spent, winner
        # As many cells as the final fit will have: the race is about the same task.
        samples = max(1, round(member.model.cell_samples * len(train_rows) / len(rows)))
        scaled = member.variant("", {"cell_samples": samples}, epochs=_RACE_EPOCHS)
        region = _region(train_rows, scaled, classes, seed)
        assert region.cells is not None
        heads = _train(train_rows, region, scaled.model, scaled.training, seed)
        inner = _InnerValidation(val_rows, region.cells.centres, [all_of_them], [region.cells.to_state])
        score = inner.score([heads.answer(val_rows.views, val_rows.present)], Decision())
        if score[0] > max(scores, default=-1.0):
            winner = heads, region
        members.append(member)
        scores.append(score[0])
        _note(race, member, score)
        spent += _RACE_EPOCHS * epoch_seconds(member, train_rows, region)

    for member in _large_members(base, fusion):
        run(member)
    # The leader once more with wider labels, and with half as many cells.
    leader = members[int(np.argmax(scores))]
    if HEADS[leader.model.head].make.by_steps:
        run(leader.variant(f"-tau{_WIDE_TAU_KM:g}", tau_km=_WIDE_TAU_KM))
        run(leader.variant("-half", {"cell_samples": 2 * leader.model.cell_samples}))
    assert winner is not None
    return members[int(np.argmax(scores))], find_refiner(*winner, train_rows, val_rows), spent


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


def _small_members(base: Member, fusion: Fusion | None, n: int) -> list[Member]:
    """Candidates for few samples: probes, and networks kept narrow and with much dropout, for some 900 steps.

    Labels are wider than for many samples, since cells are. The most useful come first: a small budget ends the list.
    """
    batch = min(512, max(64, n // 30))
    epochs = max(12, min(_MOST_SMALL_EPOCHS, round(_SMALL_STEPS / math.ceil(n / batch))))
    net = base.variant(
        "",
        {"head_hidden": 256, "dropout": 0.4},
        weight_decay=0.3,
        learning_rate=1e-3,
        batch_size=batch,
        epochs=epochs,
    )
    members = []
    if fusion in (None, "average"):
        probe = base.variant("probe", {"head": "probe", "fusion": "average"})
        members += [probe.variant(f"-{l2:g}", l2=l2) for l2 in (0.01, 0.001, 0.0001)]

    def network(name: Fusion, tau: float) -> Member:
        average = name == "average"
        swap, dropout = (0.0, 0.5) if average else (0.5, 0.4)
        return net.variant(
            f"{name}-tau{tau:g}",
            {"fusion": name, "dropout": dropout},
            tau_km=tau,
            view_swap=swap,
            step_views=0 if average else _MIXED_VIEWS["step_views"],
        )

    wide, narrow = 200.0, 75.0
    if fusion is None:
        return [*members, network("evidence", wide), network("average", wide), network("evidence", narrow)]
    return [*members, network(fusion, wide), network(fusion, narrow)]


def _affordable(members: list[Member], rows: Rows, region: Region, budget: float) -> list[Member]:
    """Candidates in their order while folds and a final fit of each stay within the budget; always the first."""
    kept: list[Member] = []
    spent = 0.0
    for member in members:
        cost = _SMALL_FOLDS * member.training.epochs * epoch_seconds(member, rows, region)
        if not kept or spent + cost <= budget:
            kept.append(member)
            spent += cost
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


def _calibrate(answers: list[Answer], weights: tuple[float, ...], inner: _InnerValidation) -> Decision:
    """Temperatures by likelihood, then the head's share by score where that tells more than noise."""
    owner = torch.from_numpy(nearest(inner.rows.points.cpu().numpy(), inner.centres.cpu().numpy()))
    cell_log = mix_logs([a.cells for a in answers], weights)
    state_log = mix_logs([a.states for a in answers], weights)
    even = Decision(
        weights,
        0.5,
        fit_temperature(cell_log, owner.to(cell_log.device)),
        fit_temperature(state_log, inner.rows.labels),
    )
    options = [replace(even, head_share=share) for share in (0.5, 0.25, 0.75)]
    scores = [inner.score(answers, option)[0] for option in options]
    best = int(np.argmax(scores))
    return options[best] if scores[best] > scores[0] + 0.025 / math.sqrt(len(inner.rows)) else even


def _mix(answers: list[Answer], inner: _InnerValidation) -> tuple[float, ...]:
    """Greedy ensemble selection with replacement (Caruana et al., ICML 2004) by score; shares are multiples of 1/6 or more.

    The single best comes first, so the mixture is no worse on these rows than any of its members.
    """

    def score(counts: NDArray[np.float64]) -> float:
        used = [i for i, count in enumerate(counts) if count]
        shares = tuple(float(counts[i] / counts.sum()) for i in used)
        return inner.score([answers[i] for i in used], Decision(shares))[0]

    chosen = np.zeros(len(answers))
    best, best_counts = -1.0, chosen
    for _ in range(_MIXED):
        trials = [chosen + np.eye(len(answers))[i] for i in range(len(answers))]
        scores = [score(trial) for trial in trials]
        chosen = trials[int(np.argmax(scores))]
        if max(scores) > best:
            best, best_counts = max(scores), chosen
    return tuple(float(count) for count in best_counts / best_counts.sum())


def _folds(rows: Rows, training: Training, count: int, seed: int) -> list[Tensor]:
    """The rows of each fold, ascending; a place, and a picture, are in one fold alone: else who remembers best would win."""
    latitude, longitude = unit_to_degrees(rows.points.cpu()).numpy().T
    labels = rows.labels.cpu().numpy()
    tied = None if rows.tied is None else rows.tied.cpu().numpy()
    places = Places(np.arange(len(rows)).astype(object), labels, latitude, longitude, tied)
    groups, km = inner_groups(places, training, count)
    say(f"race: places closer than {km:.3g} km are held out together")
    fold = class_folds(labels, count, seed, groups)
    return [torch.from_numpy(np.flatnonzero(fold == k)) for k in range(count)]


def _note(race: Race, member: Member, score: tuple[float, float, float]) -> None:
    race.trials.append(Trial(member.name, *score))
    say(f"race: {member.name} {score[0]:.4f}")
