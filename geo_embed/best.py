"""`--preset best`: geocells, evidence pooled over views, a geometric-median point, chosen by inner validation.

What wins depends on the data: on weak features a linear probe or a narrow network, on views that differ in worth a gated
one. So members race on held-out rows, and the winner, or a mixture of the best, is fitted on everything.
docs/heads.md has the evidence.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from geo_embed.geocells import Cells, cell_tables, geometric_median, great_circle_km, make_cells, nearest
from geo_embed.geography import to_degrees
from geo_embed.members import Answer, Member, Rows, answer, build_member, fit_member
from geo_embed.metrics import competition_score, top_states
from geo_embed.progress import say

# The race, cheapest first. On both planted sets no other fusion beat the gate by more than 0.002, the transformer
# included; averages and probes win where views agree or features are weak.
_PROBES = tuple(Member(f"probe-{l2:g}", "probe", l2=l2) for l2 in (0.01, 0.001, 0.0001))
_NETWORKS = (
    Member("average", "average", dropout=0.3),
    Member("gate", "gate", swap=0.5, view_dropout=0.15, dropout=0.3, epochs=14, batch=256),
)
_WIDE_TAU_KM = 100.0
_RACE_ROWS, _RACE_HELD, _RACE_EPOCHS = 16_000, 4_000, 4
# Up to so many samples folds, not a hold-out, carry the inner validation, and members are mixed.
_SMALL = 4000
_SMALL_FOLDS = 4
_MIXED = 6

# A second of a two-core machine in training. The budget is counted in arithmetic, not on a clock: a plan made by the
# clock would differ from run to run, and the same seed must give the same bits.
_GFLOP_PER_SECOND = 110.0


@dataclass(frozen=True)
class Decision:
    """Turns members' answers into one; fitted on the inner validation.

    Attributes:
        weights: of the members, sum 1.
        head_share: log-linear weight of the state head against the summed cells.
        cell_temperature, state_temperature: divide the log-probabilities.
    """

    weights: tuple[float, ...]
    head_share: float = 0.5
    cell_temperature: float = 1.0
    state_temperature: float = 1.0


@dataclass(frozen=True)
class Trial:
    """One member in the race: its score on inner validation."""

    member: str
    score: float
    state_score: float
    gps_score: float


@dataclass
class Race:
    """What the race saw and chose; the inner score serves to choose, not to report."""

    trials: list[Trial] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    epochs: int = 0


class Best(nn.Module):
    """Members with their decision over cells.

    Its state dict and `description` are all that a run keeps of it.
    """

    centres: Tensor
    to_state: Tensor

    def __init__(
        self, members: list[Member], modules: list[nn.Module], decision: Decision, cells: Cells
    ) -> None:
        super().__init__()
        self.members, self.decision = members, decision
        self.parts = nn.ModuleList(modules)
        self.register_buffer("centres", cells.centres)
        self.register_buffer("to_state", cells.to_state)

    def predict(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(n, V, D) raw embeddings and (n, V) bool to P(state) (n, C) and latitude, longitude (n, 2) in degrees."""
        answers = [answer(part, views, present) for part in self.parts]
        states, points = decide(answers, self.decision, self.centres, self.to_state)
        latitude, longitude = to_degrees(points.cpu().numpy())
        return states, torch.from_numpy(np.stack([latitude, longitude], axis=1))

    def description(self) -> dict[str, Any]:
        """What the state dict doesn't say, as plain values."""
        return {
            "members": [asdict(member) for member in self.members],
            "decision": asdict(self.decision),
            "cells": len(self.centres),
        }


def build_best(description: dict[str, Any], dim: int, views: int, classes: int) -> Best:
    """A `Best` whose weights are still to be loaded. Raises KeyError or TypeError for a damaged description."""
    members = [Member(**entry) for entry in description["members"]]
    decision = dict(description["decision"])
    count = int(description["cells"])
    empty = Cells(
        torch.zeros(count, 3), torch.zeros(0), torch.zeros(count, classes), torch.zeros(classes, count)
    )
    modules = [build_member(member, dim, views, count, classes) for member in members]
    return Best(members, modules, Decision(tuple(decision.pop("weights")), **decision), empty)


def fit_best(rows: Rows, classes: int, *, seed: int, budget_seconds: float) -> tuple[Best, Race]:
    """Race members on inner validation, then fit the winner, or a mixture, on all rows.

    Args:
        rows: training samples, each with at least one view.
        classes: C.
        seed: of everything random.
        budget_seconds: about what it may cost on a two-core machine; bounds the epochs, by arithmetic.
    """
    n, views, dim = rows.views.shape
    device = rows.views.device
    cells = make_cells(
        rows.points.cpu().numpy(), rows.labels.cpu().numpy(), cell_count(n), classes, seed=seed
    )
    cells = Cells(*(part.to(device) for part in (cells.centres, cells.owner, cells.to_state, cells.in_state)))
    budget = budget_seconds * _GFLOP_PER_SECOND
    race = Race()
    if n <= _SMALL:
        members, weights, decision = _race_small(rows, cells, classes, seed, race)
    else:
        members, weights, decision, spent = _race_large(rows, cells, classes, seed, race)
        budget -= spent
    race.chosen = [f"{member.name} × {weight:.2f}" for member, weight in zip(members, weights, strict=True)]
    modules = []
    for member in members:
        if member.fusion != "probe":
            each = gflop(member, n, views, dim, len(cells.centres), classes)
            epochs = int(min(member.epochs, max(3, budget / len(members) / each)))
            member = replace(member, epochs=epochs)
            race.epochs = max(race.epochs, epochs)
        modules.append(fit_member(member, rows, cells, classes, seed=seed))
    return Best(members, modules, decision, cells), race


def decide(
    answers: list[Answer], decision: Decision, centres: Tensor, to_state: Tensor
) -> tuple[Tensor, Tensor]:
    """State probabilities (n, C) and points (n, 3), consistent with each other.

    Members are averaged as log-probabilities. P(state) mixes the state head with the cells' sums log-linearly; the cells
    are then reweighted to agree with it, p(cell) ← Σ_s p(cell | s) P(s), so that the point and the list tell one story.
    The point is the geometric median of the cells: that, not the mode, minimises the expected distance.
    """
    cell_log = _weighted([a.cells for a in answers], decision.weights) / decision.cell_temperature
    state_log = _weighted([a.states for a in answers], decision.weights) / decision.state_temperature
    cells = torch.softmax(cell_log, 1)
    summed = cells @ to_state
    share = decision.head_share
    states = torch.softmax(share * F.log_softmax(state_log, 1) + (1 - share) * (summed + 1e-6).log(), 1)
    cells = cells * ((states / (summed + 1e-6)) @ to_state.T)
    return states, geometric_median(cells / cells.sum(1, keepdim=True), centres)


def calibrate(answers: list[Answer], weights: tuple[float, ...], cells: Cells, truth: Rows) -> Decision:
    """Temperatures by likelihood, then the head's share by score where that tells more than noise."""
    owner = torch.from_numpy(nearest(truth.points.cpu().numpy(), cells.centres.cpu().numpy())).to(
        truth.labels.device
    )
    even = Decision(
        weights,
        0.5,
        fit_temperature(_weighted([a.cells for a in answers], weights), owner),
        fit_temperature(_weighted([a.states for a in answers], weights), truth.labels),
    )
    options = [replace(even, head_share=share) for share in (0.5, 0.25, 0.75)]
    scores = [_score(answers, option, cells, truth)[0] for option in options]
    best = int(np.argmax(scores))
    return options[best] if scores[best] > scores[0] + 0.025 / math.sqrt(len(truth)) else even


def fit_temperature(log_probabilities: Tensor, targets: Tensor) -> float:
    """Temperature of least negative log-likelihood (Guo et al., ICML 2017), by golden-section search over [0.3, 5]."""
    low, high = math.log(0.3), math.log(5.0)
    golden = (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        return float(F.nll_loss(F.log_softmax(log_probabilities / math.exp(log_temperature), 1), targets))

    for _ in range(20):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return math.exp((low + high) / 2)


def cell_count(n: int) -> int:
    """K for n samples: n/15, between 16 and 1200.

    Below a dozen samples a cell learns nothing; beyond 1,200 the heads cost more than they tell.
    """
    return int(min(1200, max(16, n / 15)))


def gflop(member: Member, n: int, views: int, dim: int, cells: int, classes: int) -> float:
    """GFLOP of one epoch over n samples: 2 per multiply-add, forward and both gradients, none towards the input."""
    tokens = 1 if member.fusion == "average" else views
    width = member.width
    trunk = tokens * (4 * dim * width + 6 * (member.depth - 1) * width * width)
    return (trunk + 6 * width * (cells + classes)) * n / 1e9


def _race_small(
    rows: Rows, cells: Cells, classes: int, seed: int, race: Race
) -> tuple[list[Member], tuple[float, ...], Decision]:
    members = list(_small_members(len(rows)))
    parts = [part.to(rows.labels.device) for part in _folds(rows.labels.cpu().numpy(), _SMALL_FOLDS, seed)]
    answers = []
    for member in members:
        answers.append(_out_of_fold(member, rows, parts, cells, classes, seed))
        _note(race, member, _score([answers[-1]], Decision((1.0,)), cells, rows))
    weights = _mix(answers, cells, rows)
    used = [i for i, weight in enumerate(weights) if weight > 0]
    shares = tuple(weights[i] for i in used)
    return [members[i] for i in used], shares, calibrate([answers[i] for i in used], shares, cells, rows)


def _race_large(
    rows: Rows, cells: Cells, classes: int, seed: int, race: Race
) -> tuple[list[Member], tuple[float, ...], Decision, float]:
    """The winner of short trainings on a part of the rows, judged on rows held out, and the GFLOP that it cost.

    It ranks members, it doesn't finish them. Only what a short race judges fairly takes part: it would drop the mixing
    of views, which pays after some ten epochs.
    """
    views, dim = rows.views.shape[1:]
    held, *rest = _folds(rows.labels.cpu().numpy(), 10, seed)
    shuffled = torch.cat(rest)[
        torch.randperm(sum(map(len, rest)), generator=torch.Generator().manual_seed(seed))
    ]
    learnt = shuffled[:_RACE_ROWS].sort().values.to(rows.labels.device)
    part, truth = rows.take(learnt), rows.take(held[:_RACE_HELD].to(rows.labels.device))
    counted = cell_tables(cells.centres, cells.owner[learnt], part.labels, classes)
    members: list[Member] = []
    answers: list[Answer] = []
    scores: list[float] = []
    spent = 0.0

    def run(member: Member) -> None:
        nonlocal spent
        model = fit_member(replace(member, epochs=_RACE_EPOCHS), part, counted, classes, seed=seed)
        members.append(member)
        answers.append(answer(model, truth.views, truth.present))
        score = _score([answers[-1]], Decision((1.0,)), counted, truth)
        scores.append(score[0])
        _note(race, member, score)
        if member.fusion != "probe":
            spent += _RACE_EPOCHS * gflop(member, len(part), views, dim, len(cells.centres), classes)

    for member in (_PROBES[0], *_NETWORKS):
        run(member)
    leader = members[int(np.argmax(scores))]
    if leader.fusion != "probe":
        run(replace(leader, name=f"{leader.name}-tau{_WIDE_TAU_KM:g}", tau_km=_WIDE_TAU_KM))
    winner = int(np.argmax(scores))
    decision = calibrate([answers[winner]], (1.0,), counted, truth)
    # The race's models are short of epochs and rows: their temperatures don't carry over to the final one.
    decision = replace(decision, cell_temperature=1.0, state_temperature=1.0)
    return [members[winner]], (1.0,), decision, spent


def _small_members(n: int) -> tuple[Member, ...]:
    """Candidates for few samples: probes, and networks kept narrow and wet with dropout, for some 900 steps.

    Labels are wider than for many samples, since cells are.
    """
    batch = min(512, max(64, n // 30))
    epochs = max(12, round(900 / math.ceil(n / batch)))
    net = Member("", width=256, dropout=0.4, weight_decay=0.3, epochs=epochs, learning_rate=1e-3, batch=batch)
    return (
        *_PROBES,
        replace(net, name="average-tau75", fusion="average", dropout=0.5, tau_km=75.0),
        replace(net, name="average-tau200", fusion="average", dropout=0.5, tau_km=200.0),
        replace(net, name="gate-tau75", swap=0.5, tau_km=75.0),
        replace(net, name="gate-tau200", swap=0.5, tau_km=200.0),
    )


def _out_of_fold(
    member: Member, rows: Rows, parts: list[Tensor], cells: Cells, classes: int, seed: int
) -> Answer:
    """Every row's answer by the model that didn't see it. The cells are shared: they know coordinates alone."""
    device = rows.labels.device
    cell_log = torch.empty(len(rows), len(cells.centres), device=device)
    state_log = torch.empty(len(rows), classes, device=device)
    for part in parts:
        rest = torch.ones(len(rows), dtype=torch.bool, device=device)
        rest[part] = False
        learnt = rows.take(rest)
        counted = cell_tables(cells.centres, cells.owner[rest], learnt.labels, classes)
        model = fit_member(member, learnt, counted, classes, seed=seed)
        out = answer(model, rows.views[part], rows.present[part])
        cell_log[part], state_log[part] = out.cells, out.states
    return Answer(cell_log, state_log)


def _mix(answers: list[Answer], cells: Cells, truth: Rows) -> tuple[float, ...]:
    """Greedy ensemble selection with replacement (Caruana et al., ICML 2004) by score; shares are multiples of 1/6 or more.

    The single best comes first, so the mixture is no worse on these rows than any of its members.
    """

    def score(counts: NDArray[np.float64]) -> float:
        used = [i for i, count in enumerate(counts) if count]
        shares = tuple(float(counts[i] / counts.sum()) for i in used)
        return _score([answers[i] for i in used], Decision(shares), cells, truth)[0]

    chosen = np.zeros(len(answers))
    best, best_counts = -1.0, chosen
    for _ in range(_MIXED):
        trials = [chosen + np.eye(len(answers))[i] for i in range(len(answers))]
        scores = [score(trial) for trial in trials]
        chosen = trials[int(np.argmax(scores))]
        if max(scores) > best:
            best, best_counts = max(scores), chosen
    return tuple(float(count) for count in best_counts / best_counts.sum())


def _folds(labels: NDArray[np.int64], count: int, seed: int) -> list[Tensor]:
    """Disjoint sets of rows that cover everything, each with near equal shares of every class."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [torch.from_numpy(np.sort(order[i::count])) for i in range(count)]


def _score(
    answers: list[Answer], decision: Decision, cells: Cells, truth: Rows
) -> tuple[float, float, float]:
    states, points = decide(answers, decision, cells.centres, cells.to_state)
    km = great_circle_km(points, truth.points.to(points.device)).cpu().numpy()
    return competition_score(top_states(states.cpu().numpy()), truth.labels.cpu().numpy(), km)


def _note(race: Race, member: Member, score: tuple[float, float, float]) -> None:
    race.trials.append(Trial(member.name, *score))
    say(f"race: {member.name} {score[0]:.4f}")


def _weighted(parts: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total = total + part * weight
    return total
