"""scikit-learn's baselines on a handful of places: each answers as it says, from training rows alone."""

import numpy as np
import pytest

from geo_embed.answers import Truth
from geo_embed.bench.baselines import (
    BASELINES,
    BOTH,
    LOGISTIC,
    NEIGHBOURS,
    Known,
    answer_all,
    logistic,
    majority,
    neighbours,
    unit_vectors,
)
from geo_embed.errors import GeoError
from geo_embed.geography import haversine_km


@pytest.fixture
def known() -> Known:
    """Three states of 12, 15 and 18 rows, each in a direction of its own and around a town of its own."""
    rng = np.random.default_rng(0)
    state = np.repeat([3, 7, 20], [12, 15, 18])
    kind = np.searchsorted([3, 7, 20], state)
    embeddings = 4 * np.eye(8)[kind] + rng.normal(scale=0.3, size=(len(state), 8))
    truth = Truth(state, 10.0 + 20 * kind + rng.normal(size=len(state)), rng.normal(size=len(state)))
    return Known(unit_vectors(embeddings[:, None]), truth, np.arange(len(state)))


def test_the_majority_ranks_states_by_their_rows(known: Known) -> None:
    answers = majority(known, 2)
    assert answers.ranked.tolist() == [[20, 7, 3]] * 2
    assert answers.latitude.shape == (2,)
    assert answers.latitude[0] == pytest.approx(30, abs=3)


def test_neighbours_and_logistic_regression_know_a_states_direction(known: Known) -> None:
    vectors = unit_vectors(np.eye(8)[:3, None])
    for answers in (neighbours(known, vectors), logistic(known, vectors, 0)):
        assert answers.ranked[:, 0].tolist() == [3, 7, 20]
        assert haversine_km(answers.latitude, answers.longitude, [10, 30, 50], 0).max() < 200


def test_the_point_of_logistic_regression_is_a_training_place_of_its_state(known: Known) -> None:
    answers = logistic(known, unit_vectors(np.eye(8)[:1, None]), 0)
    of_state = known.truth.take(known.truth.state_idx == 3)
    assert (answers.latitude[0], answers.longitude[0]) in set(
        zip(of_state.latitude, of_state.longitude, strict=True)
    )


def test_the_fourth_has_the_states_of_one_and_the_point_of_the_other(known: Known) -> None:
    answers = {name: answer for name, (answer, _) in answer_all(known, known.vectors[:5], 0).items()}
    assert tuple(answers) == BASELINES
    assert np.array_equal(answers[BOTH].ranked, answers[LOGISTIC].ranked)
    assert np.array_equal(answers[BOTH].latitude, answers[NEIGHBOURS].latitude)


def test_fewer_rows_than_neighbours_are_fine(known: Known) -> None:
    rows = np.array([0, 20, 40])
    few = Known(known.vectors[rows], known.truth.take(rows), known.groups[rows])
    assert neighbours(few, known.vectors[:1]).ranked.shape == (1, 3)


def test_a_state_alone_is_no_task_for_logistic_regression(known: Known) -> None:
    rows = np.arange(12)
    single_state = Known(known.vectors[rows], known.truth.take(rows), known.groups[rows])
    with pytest.raises(GeoError, match="two states"):
        logistic(single_state, known.vectors[:1], 0)


def test_views_are_averaged_before_they_get_a_length_of_one() -> None:
    vectors = unit_vectors(np.array([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert vectors[0] == pytest.approx(np.array([3, 1]) / np.sqrt(10))
    assert vectors[1].tolist() == [0, 0]
