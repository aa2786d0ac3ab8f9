"""The official score to the last digit, and the rest by hand."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.geography import haversine_km
from geo_embed.metrics import (
    STATE_WEIGHT,
    bootstrap_interval,
    calibration_error,
    competition_score,
    difference_interval,
    final_metrics,
    mean_intervals,
    metrics,
    state_credit,
    top_states,
)

NO_KM = np.zeros(1)


def ranked(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


@pytest.mark.parametrize(
    ("states", "credit"),
    [
        ([7, 1, 2, 3, 4], 1.00),
        ([1, 7, 2, 3, 4], 0.60),
        ([1, 2, 7, 3, 4], 0.40),
        ([1, 2, 3, 7, 4], 0.25),
        ([1, 2, 3, 4, 7], 0.15),
        ([1, 2, 3, 4, 5], 0.00),
    ],
)
def test_the_rank_of_the_first_hit_decides_the_credit(states: list[int], credit: float) -> None:
    assert state_credit(ranked(states), np.array([7])).tolist() == [credit]


def test_a_repeated_state_counts_only_at_its_first_place() -> None:
    assert state_credit(ranked([7, 7, 7, 7, 7], [1, 7, 7, 7, 7]), np.array([7, 7])).tolist() == [1.0, 0.6]
    # A wrong state that is repeated still takes up its ranks.
    assert state_credit(ranked([1, 1, 7, 7, 7]), np.array([7])).tolist() == [0.4]


def test_a_rank_left_open_never_hits() -> None:
    assert state_credit(ranked([1, -1, -1, -1, -1], [0, -1, -1, -1, 7]), np.array([7, 7])).tolist() == [
        0,
        0.15,
    ]


def test_fewer_classes_than_ranks_are_fine() -> None:
    assert state_credit(ranked([2, 1, 0], [0, 1, 2]), np.array([1, 2])).tolist() == [0.6, 0.4]


def test_the_score_is_seven_tenths_states_and_three_tenths_distance() -> None:
    states = ranked([7, 1, 2, 3, 4], [1, 7, 2, 3, 4], [1, 2, 3, 4, 7], [1, 2, 3, 4, 5])
    km = np.array([0.0, 1000.0, 500.0, 2500.0])
    score, state, gps = competition_score(states, np.full(4, 7), km)
    assert state == (1.0 + 0.6 + 0.15 + 0.0) / 4 == 0.4375
    assert gps == 0.8
    assert score == 0.7 * 0.4375 + 0.3 * 0.8


def test_the_mean_distance_is_clipped_not_each_distance() -> None:
    hit = ranked([7, 1, 2, 3, 4], [7, 1, 2, 3, 4])
    assert competition_score(hit, np.full(2, 7), np.array([0.0, 15000.0])) == (0.7, 1.0, 0.0)
    assert competition_score(hit, np.full(2, 7), np.array([0.0, 8000.0]))[2] == pytest.approx(0.2, rel=1e-15)


def test_a_mean_distance_beyond_5000_km_brings_the_gps_score_to_nought_and_no_lower() -> None:
    miss = ranked([1, 2, 3, 4, 5])
    assert competition_score(miss, np.array([7]), np.array([20000.0])) == (0.0, 0.0, 0.0)
    assert competition_score(miss, np.array([7]), np.array([5000.0]))[2] == 0.0


def test_the_most_probable_classes_come_first_and_ties_go_to_the_lower_class() -> None:
    assert top_states(np.array([[0.1, 0.3, 0.2, 0.3, 0.05, 0.05]])).tolist() == [[1, 3, 2, 0, 4]]
    assert top_states(np.array([[0.25, 0.75]])).tolist() == [[1, 0]]


def answers(
    probabilities: NDArray[Any],
    latitude: NDArray[Any],
    longitude: NDArray[Any],
    labels: NDArray[Any],
    true_latitude: NDArray[Any],
    true_longitude: NDArray[Any],
) -> tuple[Predictions, Truth]:
    """Predictions and truth of samples whose states are numbered as their classes are."""
    classes = np.arange(probabilities.shape[1])
    encoder = LabelEncoder(classes, tuple(map(str, classes)))
    ids = np.array([str(i) for i in range(len(labels))], dtype=object)
    return Predictions(ids, probabilities, latitude, longitude, encoder), Truth(
        labels, true_latitude, true_longitude
    )


def test_every_metric_of_the_contract_agrees_with_a_case_done_by_hand() -> None:
    probabilities = np.array(
        [
            [0.7, 0.1, 0.1, 0.05, 0.03, 0.02],
            [0.5, 0.3, 0.1, 0.05, 0.03, 0.02],
            [0.5, 0.3, 0.1, 0.05, 0.03, 0.02],
        ]
    )
    labels = np.array([0, 1, 5])
    # One degree along the equator is 111.19 km.
    predicted = np.zeros(3), np.array([0.0, 1.0, 10.0])
    result = metrics(*answers(probabilities, *predicted, labels, np.zeros(3), np.zeros(3)))
    degree = float(haversine_km(0, 0, 0, 1))
    assert result["state_score"] == pytest.approx((1.0 + 0.6 + 0.0) / 3, rel=1e-15)
    assert result["mean_km"] == pytest.approx(11 * degree / 3, rel=1e-12)
    assert result["median_km"] == pytest.approx(degree, rel=1e-12)
    assert result["gps_score"] == pytest.approx(1 - 11 * degree / 3 / 5000, rel=1e-12)
    assert result["score"] == pytest.approx(
        0.7 * result["state_score"] + 0.3 * result["gps_score"], rel=1e-15
    )
    assert result["top1"] == pytest.approx(1 / 3)
    assert result["top5"] == pytest.approx(2 / 3)
    third = 1 / 3
    assert result["within_km"] == pytest.approx(
        {
            "1": third,
            "25": third,
            "100": third,
            "200": 2 * third,
            "500": 2 * third,
            "750": 2 * third,
            "1000": 2 * third,
            "2500": 1,
        }
    )
    assert list(result["within_km"]) == ["1", "25", "100", "200", "500", "750", "1000", "2500"]
    # GeoGuessr's world map: 5000 at the place itself, 1/e of it 1,492.7 km away.
    rounds = [5000, 5000 * math.exp(-degree / 1492.7), 5000 * math.exp(-10 * degree / 1492.7)]
    assert result["geoscore"] == pytest.approx(sum(rounds) / 3, rel=1e-12)
    assert result["nll"] == pytest.approx(-(np.log(0.7) + np.log(0.3) + np.log(0.02)) / 3, rel=1e-12)
    # Two bins: one sample of confidence 0.7, right; two of confidence 0.5, both wrong.
    assert result["ece"] == pytest.approx(1 / 3 * abs(1 - 0.7) + 2 / 3 * abs(0 - 0.5), rel=1e-12)
    assert result["samples"] == 3
    assert list(result) == [
        *("score", "state_score", "gps_score", "geoscore", "top1", "top5", "mean_km", "median_km"),
        *("within_km", "nll", "ece", "samples"),
    ]


def test_a_report_says_at_which_rank_the_truth_stands_and_how_far_distances_spread() -> None:
    # Seven classes, each row best first: the truth at ranks 1, 1, 2, 4, 7.
    ranked = np.array([0.4, 0.2, 0.15, 0.1, 0.08, 0.04, 0.03])
    probabilities, labels = np.tile(ranked, (5, 1)), np.array([0, 0, 1, 3, 6])
    degree = float(haversine_km(0, 0, 0, 1))
    predicted = np.zeros(5), np.array([1.0, 2.0, 4.0, 4.0, 9.0])
    result = final_metrics(*answers(probabilities, *predicted, labels, np.zeros(5), np.zeros(5)))
    assert result["rank_rates"] == pytest.approx({"1": 0.4, "2": 0.2, "3": 0, "4": 0.2, "5": 0, "none": 0.2})
    assert result["rank_rates"]["1"] == result["top1"]
    assert (result["min_km"], result["max_km"]) == pytest.approx((degree, 9 * degree))
    # Mean 4, squares 9 + 4 + 0 + 0 + 25 = 38.
    assert result["std_km"] == pytest.approx(math.sqrt(38 / 5) * degree)


def test_with_fewer_states_than_ranks_none_stands_at_the_last_ranks() -> None:
    shares, labels = np.array([[0.6, 0.4], [0.6, 0.4]]), np.array([0, 1])
    result = final_metrics(*answers(shares, np.zeros(2), np.zeros(2), labels, np.zeros(2), np.zeros(2)))
    assert result["rank_rates"] == {"1": 0.5, "2": 0.5, "3": 0.0, "4": 0.0, "5": 0.0, "none": 0.0}


def test_a_report_of_no_samples_knows_nothing() -> None:
    empty = np.zeros(0)
    result = final_metrics(*answers(np.zeros((0, 3)), empty, empty, empty.astype(np.int64), empty, empty))
    assert list(result["rank_rates"]) == ["1", "2", "3", "4", "5", "none"]
    assert {*result["rank_rates"].values(), *(result[key] for key in ("min_km", "max_km", "std_km"))} == {
        None
    }


def test_a_distance_of_just_the_limit_lies_within_it() -> None:
    at_25_km = float(np.degrees(25 / 6371))
    result = metrics(
        *answers(
            np.array([[1.0, 0.0]]), np.zeros(1), np.array([at_25_km - 1e-9]), np.array([0]), NO_KM, NO_KM
        )
    )
    assert (result["within_km"]["1"], result["within_km"]["25"]) == (0.0, 1.0)
    result = metrics(
        *answers(
            np.array([[1.0, 0.0]]), np.zeros(1), np.array([at_25_km + 1e-6]), np.array([0]), NO_KM, NO_KM
        )
    )
    assert (result["within_km"]["25"], result["within_km"]["100"]) == (0.0, 1.0)


def test_calibration_error_weighs_each_of_15_bins_by_its_samples() -> None:
    confidence = np.array([0.05, 0.95, 0.95, 0.98, 1.0])
    correct = np.array([False, True, True, False, True])
    # Bins 0 and 14: |0 − 0.05| × 1/5 + |3/4 − 0.97| × 4/5
    assert calibration_error(confidence, correct) == pytest.approx(
        0.05 / 5 + abs(0.75 - 0.97) * 4 / 5, rel=1e-12
    )
    # Either side of a bin's edge at 1/15 the errors don't cancel; inside one bin they do.
    apart = calibration_error(np.array([0.06, 0.07]), np.array([False, True]))
    together = calibration_error(np.array([0.068, 0.07]), np.array([False, True]))
    assert apart == pytest.approx((0.06 + 0.93) / 2, rel=1e-12)
    assert together == pytest.approx((1 - 0.138) / 2, rel=1e-12)


def test_a_probability_of_nought_costs_much_but_not_everything() -> None:
    result = metrics(*answers(np.array([[1.0, 0.0]]), NO_KM, NO_KM, np.array([1]), NO_KM, NO_KM))
    assert result["nll"] == pytest.approx(-np.log(1e-12))


def test_of_no_samples_nothing_is_known() -> None:
    empty = np.zeros(0)
    result = metrics(*answers(np.zeros((0, 3)), empty, empty, empty.astype(np.int64), empty, empty))
    assert result.pop("samples") == 0
    within = result.pop("within_km")
    assert list(within) == ["1", "25", "100", "200", "500", "750", "1000", "2500"]
    assert set(within.values()) == set(result.values()) == {None}
    assert len(result) == 10


# ---------------------------------------------------------------- the interval


def credits_and_km(random: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Right and near, or wrong and far: mean credit 0.7 and mean km 580."""
    right = random.random(samples) < 0.7
    return right.astype(float), random.exponential(np.where(right, 400.0, 1000.0))


TRUE_SCORE = 0.7 * 0.7 + 0.3 * (1 - 580 / 5000)


def test_the_interval_holds_the_true_score_19_times_in_20() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = bootstrap_interval(*credits_and_km(random, 150))
        held += low <= TRUE_SCORE <= high
    # Two standard deviations of 400 trials are 0.022; the percentile bootstrap of 150 samples is a little narrow.
    assert 0.92 <= held / 400 <= 0.975


def test_groups_of_like_samples_widen_the_interval_to_what_is_true_of_the_groups() -> None:
    random = np.random.default_rng(1)
    held_by_groups = held_by_samples = 0
    groups = np.repeat(np.arange(80), 5)
    for _ in range(200):
        credit, km = (values.repeat(5) for values in credits_and_km(random, 80))
        low, high = bootstrap_interval(credit, km, groups)
        held_by_groups += low <= TRUE_SCORE <= high
        low, high = bootstrap_interval(credit, km)
        held_by_samples += low <= TRUE_SCORE <= high
    assert 0.90 <= held_by_groups / 200 <= 0.98
    assert held_by_samples / 200 < 0.8


def test_the_interval_is_the_percentiles_of_the_scores_of_resampled_sets() -> None:
    random = np.random.default_rng(2)
    credit, km = credits_and_km(random, 60)
    # Far enough that some sets lose their whole GPS score.
    km *= 9
    sets = random.integers(60, size=(4000, 60))
    scores = 0.7 * credit[sets].mean(axis=1) + 0.3 * np.maximum(0, 1 - km[sets].mean(axis=1) / 5000)
    interval = bootstrap_interval(credit, km, resamples=4000)
    assert interval == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])), abs=0.005)


def test_the_interval_of_groups_of_one_is_that_of_samples_whatever_the_groups_are_called() -> None:
    credit, km = credits_and_km(np.random.default_rng(3), 50)
    assert bootstrap_interval(credit, km, np.arange(50) * 7 - 3) == bootstrap_interval(credit, km)
    assert bootstrap_interval(credit, km, seed=1) != bootstrap_interval(credit, km)


def test_more_samples_than_fit_into_one_block_of_draws_give_the_same_kind_of_interval() -> None:
    credit, km = credits_and_km(np.random.default_rng(4), 30_000)
    low, high = bootstrap_interval(credit, km, resamples=200)
    spread = 1.96 * (0.7 * credit - 0.3 * km / 5000).std() / np.sqrt(30_000)
    assert (high - low) / 2 == pytest.approx(spread, rel=0.2)


def test_one_sample_or_one_group_tells_nothing_of_a_spread() -> None:
    empty = np.zeros(0)
    assert bootstrap_interval(empty, empty) == (None, None)
    assert bootstrap_interval(np.ones(1), np.ones(1)) == (None, None)
    assert bootstrap_interval(np.ones(3), np.ones(3), np.zeros(3, dtype=np.int64)) == (None, None)


def test_final_metrics_are_the_metrics_with_the_interval_of_their_score() -> None:
    random = np.random.default_rng(5)
    probabilities = random.dirichlet(np.ones(6), 40)
    places = [random.uniform(-60, 60, 40) for _ in range(4)]
    labels = random.integers(6, size=40)
    answer = answers(probabilities, *places[:2], labels, *places[2:])
    result = final_metrics(*answer)
    low, high = result.pop("score_interval")
    for more in ("min_km", "max_km", "std_km", "rank_rates"):
        del result[more]
    assert result == metrics(*answer)
    assert low < result["score"] < high
    wide = final_metrics(*answer, groups=np.arange(40) // 10)["score_interval"]
    credit = state_credit(top_states(probabilities), labels)
    km = haversine_km(*places)
    assert wide == list(bootstrap_interval(credit, km, np.arange(40) // 10)) != [low, high]
    no_samples = np.zeros(0)
    empty = final_metrics(
        *answers(
            np.zeros((0, 3)), no_samples, no_samples, no_samples.astype(np.int64), no_samples, no_samples
        )
    )
    assert (empty["score_interval"], empty["samples"]) == ([None, None], 0)


def test_the_interval_of_a_difference_pairs_samples() -> None:
    random = np.random.default_rng(6)
    credit, km = credits_and_km(random, 200)
    better = np.minimum(credit + 0.05 * (random.random(200) < 0.5), 1.05), km
    low, high = difference_interval(better, (credit, km))
    assert low is not None
    assert high is not None
    difference = STATE_WEIGHT * float((better[0] - credit).mean())
    assert 0 < low < difference < high
    # Unpaired, the samples' own spread would drown it.
    alone_low, alone_high = bootstrap_interval(credit, km)
    assert alone_low is not None
    assert alone_high is not None
    assert high - low < (alone_high - alone_low) / 5


def test_nothing_differs_from_itself_and_the_other_way_round_is_the_negative() -> None:
    first, second = (credits_and_km(np.random.default_rng(seed), 60) for seed in (7, 8))
    groups = np.arange(60) // 6
    assert difference_interval(first, first, groups) == (0, 0)
    low, high = difference_interval(first, second, groups)
    assert low is not None
    assert high is not None
    assert difference_interval(second, first, groups) == pytest.approx((-high, -low))
    assert difference_interval(first, second, groups) != difference_interval(first, second)
    single = np.ones(1), np.ones(1)
    assert difference_interval(single, single) == (None, None)


def test_intervals_of_means_are_drawn_as_the_scores() -> None:
    """With every distance 5000 km or more the score is 0.7 times the mean credit, draw by draw; groups are drawn whole."""
    rng = np.random.default_rng(3)
    credit, groups = rng.random(60), np.arange(60) // 4
    for drawn_together in (None, groups):
        low, high = bootstrap_interval(credit, np.full(60, 6000.0), drawn_together)
        (mean, constant) = mean_intervals(np.stack([credit, np.full(60, 7.0)], axis=1), drawn_together)
        assert low is not None
        assert high is not None
        assert mean == pytest.approx((low / 0.7, high / 0.7))
        assert constant == pytest.approx((7, 7))
    assert mean_intervals(np.ones((1, 2))) == [(None, None)] * 2
    assert mean_intervals(np.ones((8, 1)), np.zeros(8, dtype=int)) == [(None, None)]
