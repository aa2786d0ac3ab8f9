"""From log-probabilities over cells and states to one answer: a distribution over states, and a point that agrees with it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from geo_embed.sphere import geometric_median


@dataclass(frozen=True)
class Answer:
    """Log-probabilities over cells (n, K), and over states by the state head (n, C)."""

    cells: Tensor
    states: Tensor

    def take(self, index: Tensor) -> "Answer":
        """For some of the rows."""
        return Answer(self.cells[index], self.states[index])


@dataclass(frozen=True)
class Decision:
    """Turns members' answers into one.

    Attributes:
        weights: of the members, sum 1.
        head_share: log-linear weight of the state head against the summed cells: half and half beat either alone in
            every trial.
        cell_temperature, state_temperature: divide the log-probabilities.
    """

    weights: tuple[float, ...] = (1.0,)
    head_share: float = 0.5
    cell_temperature: float = 1.0
    state_temperature: float = 1.0


def decide_cells(answers: list[Answer], decision: Decision, to_state: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of states (n, C) and cells (n, K), consistent with each other.

    Members are averaged as log-probabilities. P(state) mixes the state head with the cells' sums log-linearly; the cells
    are then reweighted to agree with it, p(cell) ← Σ_s p(cell | s) P(s), so that the point and the list tell one story.

    Args:
        answers: one per member.
        decision: how they are mixed.
        to_state: (K, C) P(state | cell).
    """
    cell_log = mix_logs([a.cells for a in answers], decision.weights) / decision.cell_temperature
    state_log = mix_logs([a.states for a in answers], decision.weights) / decision.state_temperature
    cells = torch.softmax(cell_log, 1)
    summed = cells @ to_state
    share = decision.head_share
    states = torch.softmax(share * F.log_softmax(state_log, 1) + (1 - share) * (summed + 1e-6).log(), 1)
    cells = cells * ((states / (summed + 1e-6)) @ to_state.T)
    return states, cells / cells.sum(1, keepdim=True)


def decide(
    answers: list[Answer], decision: Decision, centres: Tensor, to_state: Tensor, *, rounds: int = 30
) -> tuple[Tensor, Tensor]:
    """State probabilities (n, C), and the points (n, 3) that minimise the expected distance: the cells' geometric median.

    Args:
        answers: one per member.
        decision: how they are mixed.
        centres: (K, 3) unit vectors of the cells.
        to_state: (K, C) P(state | cell).
        rounds: most steps towards a point.
    """
    states, cells = decide_cells(answers, decision, to_state)
    return states, geometric_median(cells, centres, rounds=rounds)


def mix_logs(parts: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """The members' log-probabilities (n, K), averaged by weight."""
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total = total + part * weight
    return total
