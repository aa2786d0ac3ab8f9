"""Each method is its formula, and learnt weights are learnt from the score itself."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.config import EnsembleMethod
from geo_embed.geography import haversine_km, to_degrees, to_unit_vectors
from geo_embed.metrics import competition_score, top_states
from geo_embed.prediction import combine as combining
from geo_embed.prediction.combine import (
    average,
    by_state,
    combine,
    majority,
    mean_points,
    median_points,
    mixing_learner,
    reciprocal_ranks,
    voting,
)

CREDIT = [1.00, 0.60, 0.40, 0.25, 0.15, 0.0, 0.0]
Floats = NDArray[np.float64]


def points(*degrees: tuple[float, float]) -> Floats:
    """M points of one sample, (M, 1, 3)."""
    return to_unit_vectors(*np.array(degrees).T)[:, None]


def normalised(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


Runs = list[Predictions]


def run_of(shares: Any, latitude: Any, longitude: Any) -> Predictions:
    """A run's predictions, where states are numbered 10, 11, … class by class."""
    shares = np.asarray(shares, dtype=np.float32)
    labels = LabelEncoder(10 + np.arange(shares.shape[1]), tuple(map(str, range(shares.shape[1]))))
    ids = np.array([str(i) for i in range(len(shares))], dtype=object)
    return Predictions(ids, shares, np.asarray(latitude, float), np.asarray(longitude, float), labels)


def take(runs: Runs, rows: Any) -> Runs:
    return [run.take(rows) for run in runs]


def learn(method: EnsembleMethod, runs: Runs, truth: Truth, rows: NDArray[np.bool_] | None = None) -> Floats:
    rows = np.ones(len(truth), dtype=bool) if rows is None else rows
    return mixing_learner(method, "median", runs, truth)(rows)[0]


def score(weights: Floats, runs: Runs, truth: Truth) -> float:
    combined = combine("average", weights, runs)
    km = haversine_km(combined.latitude, combined.longitude, truth.latitude, truth.longitude)
    return competition_score(top_states(combined.probabilities), truth.state_idx - 10, km)[0]


def world(count: int, skill: list[float], seed: int = 0, classes: int = 9) -> tuple[Runs, Truth]:
    """Runs that know the truth better or worse; 0 is noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    latitude, longitude = 30 + 2.0 * labels + rng.normal(size=count), -100 + 3.0 * labels
    runs = []
    for strength in skill:
        logits = rng.normal(size=(count, classes)) * 1.5
        logits[np.arange(count), labels] += 3 * strength
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        spread = 2.0 if strength else 30.0
        north = latitude + rng.normal(size=count) * spread
        runs.append(run_of(shares, north, longitude + rng.normal(size=count) * spread))
    return runs, Truth(labels + 10, latitude, longitude)


def test_average_is_the_weighted_mean_of_probabilities() -> None:
    shares = np.array([[[0.7, 0.2, 0.1]], [[0.1, 0.1, 0.8]]])
    np.testing.assert_allclose(average(shares, np.array([0.25, 0.75])), [[0.25, 0.125, 0.625]])


def test_average_sums_to_one_where_the_members_rows_do_not_quite() -> None:
    shares = np.array([[[0.7, 0.2, 0.2]], [[0.1, 0.1, 0.9]]])
    np.testing.assert_allclose(average(shares, np.array([0.5, 0.5])).sum(axis=1), 1, rtol=1e-12)


def test_a_vote_gives_the_five_first_classes_the_scores_credit() -> None:
    a = [0.40, 0.25, 0.15, 0.10, 0.06, 0.03, 0.01]
    b = [0.01, 0.03, 0.06, 0.10, 0.15, 0.25, 0.40]
    tally = [CREDIT[i] + CREDIT[6 - i] for i in range(7)]
    fused = voting(np.array([[a], [b]]))
    np.testing.assert_allclose(fused, [normalised(tally)], atol=0.005)
    np.testing.assert_allclose(fused.sum(axis=1), 1, rtol=1e-12)


def test_equal_votes_are_ordered_by_the_mean_probability_and_never_against_the_votes() -> None:
    # Classes 0 and 1 get 1.0 + 0.6 each, class 1 with the higher mean; 2 gets less, though its mean is higher than 0's.
    shares = np.array(
        [[[0.36, 0.30, 0.34]], [[0.20, 0.50, 0.30]], [[0.36, 0.30, 0.34]], [[0.20, 0.50, 0.30]]]
    )
    tie = np.array([[[0.50, 0.30, 0.20]], [[0.35, 0.45, 0.20]]])
    assert np.argsort(-voting(tie)[0]).tolist() == [0, 1, 2]
    assert np.argsort(-voting(tie[:, :, [1, 0, 2]])[0]).tolist() == [1, 0, 2]
    voted = voting(shares)[0]
    tally = np.array([2 * 1.0 + 2 * 0.4, 2 * 0.4 + 2 * 1.0, 4 * 0.6])
    assert voted[1] > voted[0] > voted[2]
    np.testing.assert_allclose(voted, tally / tally.sum(), atol=0.005)


def test_a_majority_of_first_choices_wins_against_any_mean_probability() -> None:
    # First choices: 0, 0, 1, 2, 3. Class 1 has the highest mean, class 4 no vote and a higher mean than class 5.
    shares = np.array(
        [
            [0.35, 0.34, 0.10, 0.10, 0.08, 0.03],
            [0.35, 0.34, 0.10, 0.10, 0.08, 0.03],
            [0.00, 1.00, 0.00, 0.00, 0.00, 0.00],
            [0.00, 0.30, 0.50, 0.20, 0.00, 0.00],
            [0.00, 0.30, 0.20, 0.50, 0.00, 0.00],
        ]
    )
    fused = majority(shares[:, None])
    votes, mean = np.array([2, 1, 1, 1, 0, 0]), shares.mean(axis=0)
    np.testing.assert_allclose(fused, [(votes + mean / 2) / 5.5], rtol=1e-12)
    assert np.argsort(-fused[0], kind="stable").tolist() == [0, 1, 2, 3, 4, 5]
    # By the mean probability, and by the credit of top-5 lists, class 1 would be first.
    assert mean.argmax() == voting(shares[:, None])[0].argmax() == 1


def test_one_vote_more_outweighs_a_mean_that_is_almost_all() -> None:
    shares = np.array([[[0.51, 0.49]], [[0.51, 0.49]], [[0.0, 1.0]]])
    assert majority(shares)[0].argmax() == 0
    assert average(shares, np.full(3, 1 / 3))[0].argmax() == 1
    np.testing.assert_allclose(majority(shares).sum(axis=1), 1, rtol=1e-12)


def test_the_mean_on_the_sphere_lies_between_two_points_as_their_weights_say() -> None:
    # Along the equator: weights w and 1 − w at −a and a balance at atan((1 − 2w) tan a).
    for w, half in ((0.25, 10.0), (0.4, 40.0)):
        mean = mean_points(points((0.0, -half), (0.0, half)), np.array([w, 1 - w]))
        (latitude,), (longitude,) = to_degrees(mean)
        expected = np.degrees(np.arctan((1 - 2 * w) * np.tan(np.radians(half))))
        assert (latitude, longitude) == pytest.approx((0, expected), abs=1e-9)
    # Across the date line, and over the pole.
    (latitude,), (longitude,) = to_degrees(mean_points(points((0, 179.0), (0, -177.0)), np.full(2, 0.5)))
    assert (latitude, longitude) == pytest.approx((0, -179), abs=1e-9)
    (latitude,), _ = to_degrees(mean_points(points((80, 0.0), (80, 180.0)), np.full(2, 0.5)))
    assert latitude == pytest.approx(90)


def test_of_antipodes_the_heavier_is_the_mean_or_the_first() -> None:
    antipodes = points((10.0, 20.0), (-10.0, -160.0))
    np.testing.assert_allclose(mean_points(antipodes, np.array([0.5, 0.5])), antipodes[0])
    np.testing.assert_allclose(mean_points(antipodes, np.array([0.3, 0.7])), antipodes[1])


def erring(count: int, spreads: list[float], outliers: float, seed: int = 0) -> tuple[Runs, Truth]:
    """Runs whose points err by so many degrees; a share of them lies anywhere."""
    rng = np.random.default_rng(seed)
    latitude, longitude = rng.uniform(30, 45, count), rng.uniform(-110, -80, count)
    shares = np.full((count, 3), 1 / 3)
    runs = []
    for spread in spreads:
        north, east = rng.normal(size=(2, count)) * spread
        away = rng.random(count) < outliers
        north[away], east[away] = rng.uniform(-30, 30, away.sum()), rng.uniform(-60, 60, away.sum())
        runs.append(run_of(shares, latitude + north, longitude + east))
    return runs, Truth(np.full(count, 10), latitude, longitude)


def mean_km(runs: Runs, truth: Truth, weights: Floats, point: Any) -> float:
    combined = combine("average", weights, runs, point)
    return float(haversine_km(combined.latitude, combined.longitude, truth.latitude, truth.longitude).mean())


def test_two_runs_take_the_mean_which_heeds_the_lighter_one() -> None:
    runs, truth = erring(400, [2.5, 3.0], 0.0)
    all_rows = np.ones(400, dtype=bool)
    weights, point = mixing_learner("stacking", "auto", runs, truth)(all_rows)
    assert point == "mean"
    assert 0.3 < weights[1] < 0.5
    uneven = np.array([0.55, 0.45])
    alone = mean_km(runs, truth, np.array([1.0, 0.0]), "median")
    # The median of two is the heavier one's point, whatever the other says.
    assert mean_km(runs, truth, uneven, "median") == pytest.approx(alone)
    assert mean_km(runs, truth, uneven, "mean") < 0.85 * alone


def test_three_runs_with_outliers_take_the_median() -> None:
    runs, truth = erring(400, [1.0, 1.0, 1.0], 0.1)
    weights, point = mixing_learner("average", "auto", runs, truth)(np.ones(400, dtype=bool))
    assert point == "median"
    assert mean_km(runs, truth, weights, "median") < 0.8 * mean_km(runs, truth, weights, "mean")


def test_three_runs_without_outliers_take_the_mean_and_what_is_asked_for_is_taken() -> None:
    runs, truth = erring(400, [2.0, 2.0, 2.0], 0.0)
    all_rows = np.ones(400, dtype=bool)
    assert mixing_learner("average", "auto", runs, truth)(all_rows)[1] == "mean"
    assert mixing_learner("average", "median", runs, truth)(all_rows)[1] == "median"
    assert mixing_learner("average", "mean", *erring(40, [1, 1, 1], 0.2))(all_rows[:40])[1] == "mean"


def test_where_both_are_as_good_or_nothing_is_known_it_is_the_median() -> None:
    runs, truth = erring(30, [2.0, 2.0], 0.0)
    learner = mixing_learner("average", "auto", runs, truth)
    # Of two runs of one weight either is the middle.
    assert learner(np.ones(30, dtype=bool))[1] == "median"
    assert learner(np.zeros(30, dtype=bool))[1] == "median"


def test_reciprocal_rank_fusion_is_the_sum_of_weights_over_sixty_plus_rank() -> None:
    shares = np.array([[[0.5, 0.3, 0.15, 0.05]], [[0.05, 0.4, 0.3, 0.25]]])
    weights = np.array([0.6, 0.4])
    ranks = [(1, 4), (2, 1), (3, 2), (4, 3)]
    sums = [0.6 / (60 + a) + 0.4 / (60 + b) for a, b in ranks]
    np.testing.assert_allclose(reciprocal_ranks(shares, weights), [normalised(sums)], rtol=1e-4)
    assert reciprocal_ranks(shares, weights)[0].argmax() == int(np.argmax(sums))


@pytest.mark.parametrize("swap", [False, True])
def test_two_runs_that_disagree_on_the_first_two_ranks_are_decided_by_the_mean(swap: bool) -> None:
    shares = np.array([[[0.80, 0.15, 0.05]], [[0.40, 0.50, 0.10]]], dtype=np.float32)
    shares = shares[:, :, [1, 0, 2]] if swap else shares
    fused = combine(
        "rrf",
        np.array([0.5, 0.5]),
        [run_of(probabilities, [0.0], [i]) for i, probabilities in enumerate(shares)],
    )
    assert fused.probabilities[0].argmax() == int(swap)


def test_the_point_has_the_least_weighted_distance_to_the_members_points() -> None:
    members = [(46.0, -104.0), (44.0, -90.0), (31.0, -97.0), (47.0, -120.0)]
    weights = np.array([0.25, 0.3, 0.3, 0.15])

    def distance(latitude: float, longitude: float) -> float:
        return sum(
            w * float(haversine_km(latitude, longitude, *p)) for w, p in zip(weights, members, strict=True)
        )

    (latitude,), (longitude,) = to_degrees(median_points(points(*members), weights))
    least = distance(latitude, longitude)
    around = [distance(latitude + dy, longitude + dx) for dy in (-0.3, 0, 0.3) for dx in (-0.3, 0, 0.3)]
    assert least <= min(around) + 0.05
    assert least < min(distance(*p) for p in members)
    mean = to_degrees((weights[:, None] * points(*members)[:, 0]).sum(axis=0))
    assert least < distance(float(mean[0]), float(mean[1]))


def test_an_outlier_does_not_pull_the_point_away() -> None:
    members = points((40.0, -100.0), (40.1, -100.0), (40.0, -100.1), (-30.0, 60.0))
    (latitude,), (longitude,) = to_degrees(median_points(members, np.full(4, 0.25)))
    assert haversine_km(latitude, longitude, 40, -100) < 15


def test_between_two_points_of_one_weight_it_is_the_middle_also_across_the_date_line() -> None:
    for (a, b), middle in [
        (((10.0, 179.0), (10.0, -177.0)), (10.0, -179.0)),
        (((0.0, 10.0), (0.0, 50.0)), (0.0, 30.0)),
        (((40.123, -101.77), (40.123, -101.75)), (40.123, -101.76)),
    ]:
        (latitude,), (longitude,) = to_degrees(median_points(points(a, b), np.array([0.5, 0.5])))
        assert haversine_km(latitude, longitude, *middle) < 1


def test_a_point_that_outweighs_the_others_is_the_answer() -> None:
    members = points((40.0, -100.0), (50.0, -90.0), (30.0, -80.0))
    np.testing.assert_array_equal(median_points(members, np.array([0.2, 0.6, 0.2])), members[1])
    np.testing.assert_array_equal(median_points(members, np.array([0.0, 0.0, 1.0])), members[2])


def test_antipodes_have_no_middle_and_one_of_them_is_taken() -> None:
    antipodes = points((10.0, 20.0), (-10.0, -160.0))
    median = median_points(antipodes, np.array([0.5, 0.5]))
    assert min(np.abs(median - antipodes[i]).max() for i in (0, 1)) < 1e-9


@pytest.mark.parametrize("method", get_args(EnsembleMethod))
def test_every_method_gives_a_distribution_and_a_point_on_the_globe(method: EnsembleMethod) -> None:
    runs, truth = world(20, [1.0, 0.5, 0.0])
    combined = combine(method, learn(method, runs, truth), runs)
    assert combined.probabilities.dtype == np.float32
    np.testing.assert_allclose(combined.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (combined.probabilities >= 0).all()
    assert (np.abs(combined.latitude) <= 90).all()
    assert (np.abs(combined.longitude) <= 180).all()
    assert combined.sample_id.tolist() == runs[0].sample_id.tolist()
    assert combined.labels == runs[0].labels


@pytest.mark.parametrize("method", get_args(EnsembleMethod))
def test_runs_that_agree_are_not_changed_in_their_order_or_point(method: EnsembleMethod) -> None:
    (run,), _ = world(20, [1.0])
    combined = combine(method, np.full(3, 1 / 3), [run] * 3)
    assert top_states(combined.probabilities).tolist() == top_states(run.probabilities).tolist()
    np.testing.assert_allclose(
        to_unit_vectors(combined.latitude, combined.longitude),
        to_unit_vectors(run.latitude, run.longitude),
        atol=1e-9,
    )


@pytest.mark.parametrize("method", ["average", "voting", "majority", "rrf"])
def test_methods_that_learn_nothing_give_every_run_the_same_weight(method: EnsembleMethod) -> None:
    np.testing.assert_array_equal(learn(method, *world(20, [1.0, 0.5, 0.0, 0.0])), [0.25] * 4)


def test_weighted_goes_by_the_squared_score_of_each_run_on_the_rows_given() -> None:
    runs, truth = world(60, [1.0, 0.5, 0.1])
    rows = np.arange(60) < 40
    squared = [score(alone, take(runs, rows), truth.take(rows)) ** 2 for alone in np.eye(3)]
    np.testing.assert_allclose(learn("weighted", runs, truth, rows), normalised(squared), rtol=1e-5)


def test_weights_of_runs_that_all_score_nothing_are_the_same() -> None:
    truth = Truth(np.full(3, 10), np.zeros(3), np.zeros(3))
    wrong = np.tile(np.array([0, 0.3, 0.25, 0.2, 0.15, 0.1], dtype=np.float32), (3, 1))
    runs = [run_of(wrong, np.zeros(3), np.full(3, 170.0))] * 2
    np.testing.assert_array_equal(learn("weighted", runs, truth), [0.5, 0.5])


@pytest.mark.parametrize("method", get_args(EnsembleMethod))
def test_without_rows_to_learn_from_weights_are_the_same(method: EnsembleMethod) -> None:
    runs, truth = world(10, [1.0, 0.0])
    np.testing.assert_array_equal(learn(method, runs, truth, np.zeros(10, dtype=bool)), [0.5, 0.5])


def test_stacking_is_no_worse_than_any_run_the_average_or_the_squared_scores_on_its_rows() -> None:
    runs, truth = world(120, [1.0, 0.9, 0.6, 0.0])
    weights = learn("stacking", runs, truth)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)
    others = [*np.eye(4), np.full(4, 0.25), learn("weighted", runs, truth)]
    assert score(weights, runs, truth) >= max(score(other, runs, truth) for other in others) - 1e-3


def test_stacking_gives_noise_no_weight() -> None:
    runs, truth = world(300, [1.0, 0.0, 0.9, 0.0])
    weights = learn("stacking", runs, truth)
    assert weights[[1, 3]].tolist() == [0, 0]
    assert (weights[[0, 2]] > 0.05).all()


def test_stacking_gives_the_same_weights_every_time_whatever_was_asked_before() -> None:
    runs, truth = world(80, [0.8, 0.7, 0.6])
    learner = mixing_learner("stacking", "median", runs, truth)
    all_rows, half = np.ones(80, dtype=bool), np.arange(80) < 40
    learner(half)
    np.testing.assert_array_equal(learner(all_rows)[0], learn("stacking", runs, truth))
    np.testing.assert_array_equal(learner(half)[0], learn("stacking", runs, truth, half))


def test_stacking_maximises_the_very_score_ties_included() -> None:
    runs, truth = world(40, [0.8, 0.3, 0.1])
    flat = [run.probabilities.round(1) for run in runs]
    runs = [
        run_of(shares / shares.sum(axis=1, keepdims=True), run.latitude, run.longitude)
        for shares, run in zip(flat, runs, strict=True)
    ]
    scorer = combining._Scorer(runs, truth)
    for weights in (*np.eye(3), np.full(3, 1 / 3), np.array([0.2, 0.3, 0.5])):
        # Rounds towards the median are cut short, which moves it by less than a km.
        asked = scorer.score(weights, np.ones(40, dtype=bool))
        assert asked == pytest.approx(score(weights, runs, truth), abs=2e-4)


def test_many_rows_are_thinned_for_stacking_and_weighted_takes_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, truth = world(200, [1.0, 0.5])
    weighted = learn("weighted", runs, truth)
    monkeypatch.setattr(combining, "_MOST_ROWS", 100)
    thin = slice(None, None, 2)
    np.testing.assert_array_equal(
        learn("stacking", runs, truth), learn("stacking", take(runs, thin), truth.take(thin))
    )
    np.testing.assert_array_equal(learn("weighted", runs, truth), weighted)


def test_classes_are_put_in_the_order_of_their_states() -> None:
    labels = LabelEncoder(np.array([30, 10, 20]), ("C", "A", "B"))
    shares = np.array([[0.5, 0.3, 0.2]], dtype=np.float32)
    mixed = Predictions(np.array(["x"], dtype=object), shares, np.array([1.0]), np.array([2.0]), labels)
    ascending = by_state(mixed)
    assert ascending.labels.state_idx.tolist() == [10, 20, 30]
    assert ascending.labels.names == ("A", "B", "C")
    assert ascending.probabilities.tolist() == shares[:, [1, 2, 0]].tolist()
