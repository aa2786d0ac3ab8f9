"""One answer from cells and states: the list and the point tell one story."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geo_embed import geography
from geo_embed.heads.decision import Answer, Decision, decide, decide_cells, mix_logs

CENTRES = torch.from_numpy(geography.to_unit_vectors([40.0, 41.0, 30.0], [-100.0, -101.0, -90.0])).float()
TO_STATE = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]])


def answer(seed: int, rows: int = 6) -> Answer:
    generator = torch.Generator().manual_seed(seed)
    return Answer(
        torch.log_softmax(torch.randn(rows, 3, generator=generator) * 2, 1),
        torch.log_softmax(torch.randn(rows, 2, generator=generator) * 2, 1),
    )


def test_states_and_cells_tell_one_story() -> None:
    # Two cells of state 0, one of state 1; the state head is sure of state 1, so the point moves there.
    to_state = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    cells = torch.log(torch.tensor([[0.4, 0.3, 0.3]]))
    unsure = Answer(cells, torch.log(torch.tensor([[0.7, 0.3]])))
    sure = Answer(cells, torch.log(torch.tensor([[0.001, 0.999]])))
    for certainty, state in ((unsure, 0), (sure, 1)):
        states, point = decide([certainty], Decision((1.0,)), CENTRES, to_state)
        assert int(states.argmax()) == state
        nearest = int((point.float() @ CENTRES.T).argmax())
        assert int(to_state[nearest].argmax()) == state
        assert float(states.sum()) == pytest.approx(1.0)


def test_the_mixture_of_state_head_and_cells_is_the_formula() -> None:
    first, second = answer(0), answer(1)
    decision = Decision((0.25, 0.75), 0.3, 1.7, 0.6)
    states, cells = decide_cells([first, second], decision, TO_STATE)

    def softmax(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        raised = np.exp(x - x.max())
        return np.asarray(raised / raised.sum())

    table = TO_STATE.double().numpy()
    for row in range(6):
        c = softmax((0.25 * first.cells[row].numpy() + 0.75 * second.cells[row].numpy()) / 1.7)
        head = softmax((0.25 * first.states[row].numpy() + 0.75 * second.states[row].numpy()) / 0.6)
        summed = c @ table
        mixed = head**0.3 * summed**0.7
        mixed /= mixed.sum()
        np.testing.assert_allclose(states[row], mixed, atol=1e-5)
        again = c * (table @ (mixed / summed))
        np.testing.assert_allclose(cells[row], again / again.sum(), atol=1e-5)


def test_probabilities_of_both_sum_to_one() -> None:
    states, cells = decide_cells([answer(3)], Decision(), TO_STATE)
    torch.testing.assert_close(states.sum(1), torch.ones(6))
    torch.testing.assert_close(cells.sum(1), torch.ones(6))


def test_cells_of_one_state_each_add_up_to_the_states_afterwards() -> None:
    to_state = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    states, cells = decide_cells([answer(4)], Decision(), to_state)
    torch.testing.assert_close(cells @ to_state, states, atol=1e-4, rtol=0)


def test_a_head_share_of_one_is_the_state_head_and_of_nought_the_cells() -> None:
    single = answer(5)
    states, _ = decide_cells([single], Decision(head_share=1.0), TO_STATE)
    torch.testing.assert_close(states, single.states.exp())
    states, _ = decide_cells([single], Decision(head_share=0.0), TO_STATE)
    torch.testing.assert_close(states, single.cells.exp() @ TO_STATE, atol=1e-5, rtol=0)


def test_members_that_agree_are_one_member() -> None:
    member = answer(6)
    alone = decide([member], Decision(), CENTRES, TO_STATE)
    thrice = decide([member] * 3, Decision((0.5, 0.25, 0.25)), CENTRES, TO_STATE)
    for a, b in zip(alone, thrice, strict=True):
        torch.testing.assert_close(a, b)


def test_mixing_takes_as_many_weights_as_members() -> None:
    with pytest.raises(ValueError, match="zip"):
        mix_logs([torch.zeros(1, 2)] * 2, (1.0,))
