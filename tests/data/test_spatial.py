"""Groups are the components that steps of a length give, wherever on the sphere, and cost little where samples are dense."""

from __future__ import annotations

import numpy as np
import pytest

from geo_embed.config import Training
from geo_embed.data.spatial import resampling_groups, spatial_groups
from geo_embed.geography import distance_matrix_km, to_degrees

# Along a meridian.
KM = 1 / 111.19492664455873


def test_a_chain_of_steps_is_one_group_and_a_longer_step_ends_it() -> None:
    latitude = np.array([0, 9, 18, 27, 38, 47]) * KM
    assert spatial_groups(latitude, np.zeros(6), 10).tolist() == [0, 0, 0, 0, 1, 1]
    assert spatial_groups(latitude, np.zeros(6), 8.9).tolist() == [0, 1, 2, 3, 4, 5]
    assert spatial_groups(latitude, np.zeros(6), 11.1).tolist() == [0] * 6


def test_no_samples_are_in_no_group() -> None:
    assert spatial_groups(np.zeros(0), np.zeros(0), 10).tolist() == []


def test_groups_cross_the_antimeridian_and_the_pole() -> None:
    assert spatial_groups(np.zeros(2), np.array([179.99, -179.99]), 3).tolist() == [0, 0]
    assert spatial_groups(np.array([89.99, 89.99]), np.array([0.0, 180.0]), 3).tolist() == [0, 0]
    assert spatial_groups(np.array([-90.0, 90.0]), np.zeros(2), 30_000).tolist() == [0, 0]
    assert spatial_groups(np.array([-90.0, 90.0]), np.zeros(2), 19_000).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(40))
def test_groups_are_the_connected_components_that_all_pairwise_distances_give(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, spread = int(random.integers(2, 250)), 10 ** random.uniform(-3, 1.5)
    middle = random.integers(6, size=n)
    latitude = np.clip(random.uniform(-80, 80, 6)[middle] + random.normal(0, spread, n), -90, 90)
    longitude = (random.uniform(-180, 180, 6)[middle] + random.normal(0, spread, n) + 180) % 360 - 180
    km = spread * 111 * 10 ** random.uniform(-1.5, 0.7)
    near = distance_matrix_km(np.stack([latitude, longitude], axis=1)) <= km
    reach = near
    while not np.array_equal(reach, wider := (reach.astype(np.int64) @ near) > 0):
        reach = wider
    group = spatial_groups(latitude, longitude, km)
    assert np.array_equal(group[:, None] == group[None, :], reach)
    firsts = np.unique(group, return_index=True)[1]
    assert (np.diff(firsts) > 0).all()


def test_a_pair_a_hair_farther_apart_than_a_step_is_never_one_group() -> None:
    # Along the diagonal of the cubes that samples are put into, where a cube reaches farthest.
    along = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
    turn = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)[:, None]
    places = np.cos(turn) * np.array([1, -1, 0]) / np.sqrt(2) + np.sin(turn) * np.array([1, 1, -2]) / np.sqrt(
        6
    )
    places = places + along * np.random.default_rng(0).random((20_000, 1)) * 0.1 / 6371
    for stretch, groups in ((1.001, 40_000), (0.999, 20_000)):
        pairs = np.concatenate([places, places + along * 0.1 / 6371 * stretch])
        assert len(np.unique(spatial_groups(*to_degrees(pairs), 0.1))) == groups


def test_thousands_of_samples_of_one_town_need_no_graph_of_all_their_pairs() -> None:
    random = np.random.default_rng(0)
    # 1.6 billion pairs lie within a step.
    latitude = np.append(40 + random.normal(0, 2, 40_000) * KM, 50)
    assert np.bincount(spatial_groups(latitude, np.zeros(40_001), 100)).tolist() == [40_000, 1]


def test_a_score_is_resampled_by_the_groups_of_a_spatial_split_alone() -> None:
    random = np.random.default_rng(0)
    town = np.repeat(np.arange(60), random.integers(1, 9, 60))
    latitude = 30 + (town // 8) * 2.0 + random.normal(0, 1.5, len(town)) * KM
    longitude = -110 + (town % 8) * 4.0 + random.normal(0, 1.5, len(town)) * KM
    assert resampling_groups(latitude, longitude, Training()) is None
    chosen = np.isin(town, random.permutation(60)[:15])
    spatial = Training(validation="spatial", group_km=20.0)
    alone = resampling_groups(latitude[chosen], longitude[chosen], spatial)
    among_all = spatial_groups(latitude, longitude, 20)[chosen]
    assert alone is not None
    assert np.array_equal(alone[:, None] == alone, among_all[:, None] == among_all)
