"""Distances, centroids and soft labels on the sphere, against numbers from elsewhere."""

import numpy as np
import pytest

from geo_embed.geography import (
    class_centroids,
    distance_matrix_km,
    haversine_km,
    in_box,
    on_earth,
    region_box,
    soft_labels,
    to_degrees,
    to_unit_vectors,
    wrap_longitude,
)

JFK, LAX, LHR = (40.6398, -73.7789), (33.9425, -118.4081), (51.4775, -0.4614)
SYD, SIN, EWR = (-33.9461, 151.1772), (1.3502, 103.9944), (40.6925, -74.1687)
HNL, BOS, SEA, MIA = (21.3187, -157.9225), (42.3630, -71.0064), (47.4490, -122.3093), (25.7932, -80.2906)


@pytest.mark.parametrize(
    ("a", "b", "miles"),
    [
        (LAX, JFK, 2475),
        (JFK, LHR, 3451),
        (SYD, LAX, 7488),
        (SIN, EWR, 9534),
        (HNL, BOS, 5095),
        (SEA, MIA, 2724),
    ],
    ids=["LAX-JFK", "JFK-LHR", "SYD-LAX", "SIN-EWR", "HNL-BOS", "SEA-MIA"],
)
def test_known_airport_distances_are_met_to_half_a_percent(
    a: tuple[float, float], b: tuple[float, float], miles: float
) -> None:
    # Great-circle statute miles as airline schedules print them, which are taken on the ellipsoid: the sphere of
    # 6371 km may differ from it by up to 0.5 %.
    assert haversine_km(*a, *b) == pytest.approx(miles * 1.609344, rel=0.005)


def test_exact_arcs_follow_from_the_earths_radius_of_6371_km() -> None:
    quarter = np.pi / 2 * 6371
    assert haversine_km(0, 0, 90, 0) == pytest.approx(quarter, rel=1e-12)
    assert haversine_km(0, 0, 0, 90) == pytest.approx(quarter, rel=1e-12)
    assert haversine_km(0, 0, 0, 1) == pytest.approx(quarter / 90, rel=1e-12)
    # Along a parallel: the chord of 60° of longitude at 60° north is half of that at the equator.
    assert haversine_km(60, 0, 60, 60) == pytest.approx(2 * 6371 * np.arcsin(0.25), rel=1e-12)


def test_antipodes_are_half_way_round_and_never_nan() -> None:
    half = np.pi * 6371
    for lat, lon in ((0.0, 0.0), (90.0, 0.0), (37.1, -122.9), (-12.345678, 66.6)):
        assert haversine_km(lat, lon, -lat, lon + 180) == pytest.approx(half, rel=1e-7)


def test_a_point_is_no_distance_from_itself_and_distances_are_symmetric() -> None:
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-90, 90, 200), rng.uniform(-180, 180, 200)
    assert (haversine_km(lat, lon, lat, lon) == 0).all()
    np.testing.assert_array_equal(
        haversine_km(lat[:100], lon[:100], lat[100:], lon[100:]),
        haversine_km(lat[100:], lon[100:], lat[:100], lon[:100]),
    )


def test_the_date_line_is_no_obstacle() -> None:
    assert haversine_km(52, 179.9, 52, -179.9) == pytest.approx(haversine_km(52, 0, 52, 0.2), rel=1e-9)
    assert haversine_km(10, 180, 10, -180) == pytest.approx(0, abs=1e-6)


def test_unit_vectors_and_degrees_undo_each_other() -> None:
    rng = np.random.default_rng(1)
    lat, lon = rng.uniform(-89, 89, 50), rng.uniform(-180, 180, 50)
    vectors = to_unit_vectors(lat, lon)
    assert vectors.shape == (50, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-12)
    back = to_degrees(3.7 * vectors)
    np.testing.assert_allclose(back, (lat, lon), atol=1e-9)


def test_the_centroid_of_points_on_both_sides_of_the_date_line_lies_between_them() -> None:
    ((lat, lon),) = class_centroids([52.0, 52.0], [179.0, -177.0], [0, 0], 1)
    assert lon == pytest.approx(-179)
    assert lat == pytest.approx(52, abs=0.05)


def test_each_class_gets_the_centroid_of_its_own_points() -> None:
    centroids = class_centroids([10, 40, 10, 40], [0, -100, 20, -100], [1, 0, 1, 0], 2)
    np.testing.assert_allclose(centroids[0], (40, -100), atol=1e-9)
    assert centroids[1, 1] == pytest.approx(10)
    assert centroids.shape == (2, 2)


def test_the_distance_matrix_holds_every_pair() -> None:
    points = np.array([JFK, LAX, LHR])
    matrix = distance_matrix_km(points)
    assert matrix.shape == (3, 3)
    for i in range(3):
        for j in range(3):
            assert matrix[i, j] == haversine_km(*points[i], *points[j])


def test_soft_labels_are_the_written_formula_and_their_rows_sum_to_one() -> None:
    distances = distance_matrix_km(np.array([JFK, LAX, LHR, HNL]))
    tau = 300.0
    labels = soft_labels(distances, tau)
    for i in range(4):
        weights = [np.exp(-distances[i, j] / tau) for j in range(4)]
        np.testing.assert_allclose(labels[i], np.array(weights) / sum(weights), rtol=1e-12)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-12)
    # By hand: two classes 300 km apart at τ = 300 km share 1 : 1/e.
    np.testing.assert_allclose(
        soft_labels(np.array([[0.0, 300.0], [300.0, 0.0]]), 300),
        [[0.7310585786, 0.2689414214]] * 1 + [[0.2689414214, 0.7310585786]],
    )


def test_a_small_temperature_makes_hard_labels_and_a_large_one_even_ones() -> None:
    distances = distance_matrix_km(np.array([JFK, LAX, LHR]))
    np.testing.assert_allclose(soft_labels(distances, 1e-3), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(soft_labels(distances, 1e12), 1 / 3, rtol=1e-6)


# ---------------------------------------------------------------- boxes and bounds


def places_of(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Somewhere on Earth, often at a pole, often at the date line, near or wide apart."""
    spread = 10 ** rng.uniform(-3, 2.3)
    middle = rng.choice([-90.0, -89.2, 0.0, 45.0, 89.2, 90.0]), rng.choice([-180.0, -100.0, 0.0, 179.95])
    latitude = np.clip(middle[0] + rng.normal(0, spread / 4, n), -90, 90)
    return latitude, wrap_longitude(middle[1] + rng.normal(0, spread, n))


@pytest.mark.parametrize("seed", range(200))
def test_a_derived_box_holds_its_places_passes_no_pole_and_is_no_wider_than_the_earth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    latitude, longitude = places_of(rng, int(rng.integers(1, 40)))
    south, north, west, east = box = region_box(latitude, longitude)
    assert -90 <= south < north <= 90
    assert 0 < east - west <= 360
    # The same places, with their longitudes written as others write them.
    for turns in (-360, 0, 360):
        assert in_box(box, latitude, longitude + turns).all()
    # Of every way to write a longitude, one lies between the edges or none does.
    probes = rng.uniform(-180, 180, 50)
    between = [any(west <= probe + turn <= east for turn in (-720, -360, 0, 360, 720)) for probe in probes]
    assert in_box(box, np.full(50, (south + north) / 2), probes).tolist() == between


@pytest.mark.parametrize(
    ("name", "west", "east", "inside", "outside"),
    [
        ("Fiji", 176, -178, [177, 179.99, 180, -180, -179, -178], [175.5, 0, -177.5, -100]),
        ("Alaska", 172, -130, [172, 180, -150, -130], [171, -129, 0]),
        ("Chukotka", 158, -169, [160, 180, -180, -170], [157, -168, 90]),
        ("everywhere", -180, 180, [-180, -1, 0, 1, 180], []),
        ("the western half", -180, 0, [-180, -90, 0], [1, 90, 179]),
    ],
)
def test_a_box_that_is_given_across_180_holds_what_lies_in_it(
    name: str, west: float, east: float, inside: list[float], outside: list[float]
) -> None:
    box = region_box([-20, 70], [0, 0], (-20, 70, west, east))
    assert in_box(box, np.zeros(len(inside)), inside).all(), name
    assert not in_box(box, np.zeros(len(outside)), outside).any(), name


def test_an_edge_that_is_given_a_turn_away_from_a_derived_one_makes_no_box_around_the_earth() -> None:
    # Derived: 170 to 190, and a little more. From −180 eastwards to −169 are 11°, not 371.
    assert region_box([0.0, 1.0], [170.0, -170.0], (None, None, -180, None)) == pytest.approx(
        (-0.1, 1.1, -180, -169)
    )


def test_the_edge_of_a_box_is_inside_it_in_single_precision_too() -> None:
    edges = np.array([-33.3, 33.3, 100.1, 140.7])
    box = region_box([0], [0], tuple(edges))
    south, north, west, east = edges.astype(np.float32)
    assert in_box(box, [south, south, north, north], [west, east, west, east]).all()
    assert not in_box(box, [0.0, np.nan, 0.0], [100.0, 120.0, np.nan]).any()


def test_points_are_brought_onto_the_earth_and_those_on_it_stay_to_the_last_bit() -> None:
    latitude, longitude = on_earth([94.5, -90.1, 12.3456789012345, 90], [179.0, -181, 180, 540.5])
    assert latitude.tolist() == [90, -90, 12.3456789012345, 90]
    assert longitude.tolist() == [179, 179, 180, -179.5]
