"""Outlines, by numbers: known places lie in them, and names of one country aren't taken for another's."""

import numpy as np
import pytest

from geo_embed.geography import haversine_km
from geo_embed.reporting.areas import countries, us_states
from geo_embed.reporting.outlines import class_at, contains, hull, km_outside, outlines

# The states' capitals, and Washington.
CAPITALS = {
    "AL": (32.377, -86.300), "AK": (58.302, -134.420), "AZ": (33.448, -112.097), "AR": (34.746, -92.289), "CA": (38.577, -121.494),
    "CO": (39.739, -104.985), "CT": (41.764, -72.682), "DE": (39.157, -75.520), "DC": (38.890, -77.009), "FL": (30.438, -84.281),
    "GA": (33.749, -84.388), "HI": (21.307, -157.857), "ID": (43.618, -116.200), "IL": (39.798, -89.654), "IN": (39.769, -86.163),
    "IA": (41.591, -93.604), "KS": (39.048, -95.678), "KY": (38.187, -84.875), "LA": (30.457, -91.187), "ME": (44.307, -69.782),
    "MD": (38.979, -76.491), "MA": (42.358, -71.064), "MI": (42.734, -84.555), "MN": (44.955, -93.102), "MS": (32.304, -90.182),
    "MO": (38.579, -92.173), "MT": (46.586, -112.018), "NE": (40.808, -96.700), "NV": (39.164, -119.766), "NH": (43.207, -71.538),
    "NJ": (40.220, -74.770), "NM": (35.682, -105.940), "NY": (42.653, -73.757), "NC": (35.780, -78.639), "ND": (46.821, -100.783),
    "OH": (39.961, -82.999), "OK": (35.492, -97.503), "OR": (44.939, -123.030), "PA": (40.264, -76.884), "RI": (41.831, -71.415),
    "SC": (34.000, -81.033), "SD": (44.367, -100.346), "TN": (36.166, -86.784), "TX": (30.275, -97.740), "UT": (40.777, -111.888),
    "VT": (44.262, -72.581), "VA": (37.539, -77.434), "WA": (47.036, -122.905), "WV": (38.336, -81.612), "WI": (43.075, -89.384),
    "WY": (41.140, -104.820),
}  # fmt: skip
CITIES = {
    "CH": (46.95, 7.44), "FR": (48.86, 2.35), "IS": (64.14, -21.90), "JP": (35.68, 139.75), "NZ": (-37.79, 175.28), "CL": (-33.45, -70.66),
    "ZA": (-25.75, 28.19), "US": (39.74, -104.98), "RU": (55.76, 37.62), "AD": (42.51, 1.52), "LU": (49.61, 6.13),
}  # fmt: skip


def test_every_capital_lies_in_its_own_state_and_in_no_other() -> None:
    areas = {area.code: area for area in us_states()}
    lat, lon = np.array(list(CAPITALS.values())).T
    for k, code in enumerate(CAPITALS):
        inside = contains(areas[code].rings, lat, lon)
        assert inside[k], code
        assert inside.sum() == 1, code


def test_cities_lie_in_their_countries_small_ones_too() -> None:
    areas = {area.code: area for area in countries()}
    lat, lon = np.array(list(CITIES.values())).T
    for k, code in enumerate(CITIES):
        assert np.flatnonzero(contains(areas[code].rings, lat, lon)).tolist() == [k], code


def test_a_country_across_the_antimeridian_holds_what_lies_on_either_side_however_it_is_written() -> None:
    areas = {area.code: area for area in countries()}
    chukotka = ([66.0, 66.0, 66.0], [-172.5, 187.5, 178.0])
    assert contains(areas["RU"].rings, *chukotka).all()
    # Taveuni, on the meridian itself, and the sea to the west.
    assert contains(areas["FJ"].rings, [-16.85, -17.0], [-179.97, 170.0]).tolist() == [True, False]
    assert contains(areas["AQ"].rings, [-89.9, -80.0, -60.0], [10.0, -120.0, 0.0]).tolist() == [
        True,
        True,
        False,
    ]


def test_a_hole_is_outside_and_nan_is_nowhere() -> None:
    areas = {area.code: area for area in countries()}
    maseru, rome = (-29.6, 28.0), (41.9, 12.6)
    assert not contains(areas["ZA"].rings, *np.array([maseru]).T)[0]
    assert contains(areas["IT"].rings, *np.array([rome, (np.nan, 12.6), (41.9, np.nan)]).T).tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "write", [str, str.lower, "US-{}".format, " {} ".format], ids=["code", "case", "iso", "spaces"]
)
def test_states_are_found_by_whatever_the_data_call_them(write) -> None:
    lat, lon = np.array(list(CAPITALS.values())).T
    drawn = outlines(np.arange(len(lat)), lat, lon, [write(code) for code in CAPITALS])
    assert drawn.region == "us"
    assert drawn.codes == tuple(CAPITALS)
    assert class_at(drawn, lat, lon).tolist() == list(range(len(lat)))


def test_names_of_states_are_read_with_accents_case_and_stops() -> None:
    names = ["new  mexico", "DISTRICT OF COLUMBIA", "Hawaiʻi", "N. Dakota"]
    lat, lon = np.array([CAPITALS[code] for code in ("NM", "DC", "HI", "ND")]).T
    drawn = outlines(np.arange(4), lat, lon, names)
    assert drawn.codes[:2] == ("NM", "DC")
    # What nobody calls so gets the hull of its places, which holds them.
    assert drawn.sources[3] == "hull"
    assert contains(drawn.rings[3], lat[3:], lon[3:]).all()


def test_the_same_codes_are_states_or_countries_by_where_their_places_lie() -> None:
    codes = ["CA", "DE", "GA", "IN", "CO"]
    states = np.array([CAPITALS[code] for code in codes]).T
    nations = np.array([(45.4, -75.7), (52.5, 13.4), (0.39, 9.5), (28.6, 77.2), (4.7, -74.1)]).T
    assert outlines(np.arange(5), *states, codes).region == "us"
    drawn = outlines(np.arange(5), *nations, codes)
    assert drawn.region == "world"
    assert set(drawn.sources) == {"world-atlas"}


@pytest.mark.parametrize("name", ["Switzerland", "CHE", "756", "ch"])
def test_a_country_is_found_by_name_and_every_iso_code(name: str) -> None:
    assert outlines([0], [46.95], [7.44], [name]).codes == ("CH",)


def test_the_own_country_of_a_data_set_gets_hulls_that_hold_its_places() -> None:
    """Also on the antimeridian, on a pole, and of a single place."""
    rng = np.random.default_rng(0)
    centres = [(10.0, 179.9), (-17.0, -179.8), (89.5, 40.0), (48.0, 2.0)]
    labels = np.repeat(np.arange(4), 40)
    lat = np.concatenate([np.clip(c[0] + rng.normal(0, 0.6, 40), -90, 89.99) for c in centres])
    lon = np.concatenate([(c[1] + rng.normal(0, 2, 40) + 180) % 360 - 180 for c in centres])
    labels, lat, lon = np.append(labels, 4), np.append(lat, 0.0), np.append(lon, 0.0)
    drawn = outlines(labels, lat, lon, ["Alpha", "Beta", "<b>", "", "lonely"])
    assert set(drawn.sources) == {"hull"}
    for k in range(5):
        in_class = labels == k
        assert contains(drawn.rings[k], lat[in_class], lon[in_class]).all(), k
    assert not contains(drawn.rings[0], lat[labels == 3], lon[labels == 3]).any()


def test_a_hull_reaches_as_far_around_its_places_as_it_is_told() -> None:
    ring = hull([47.0], [8.0], 30.0)
    km = haversine_km(47.0, 8.0, ring[:, 1], ring[:, 0])
    assert km == pytest.approx(np.full(len(ring), 30.0), rel=1e-6)
    assert len(ring) > 12


def test_a_class_whose_places_lie_elsewhere_is_not_the_area_of_its_name() -> None:
    lat, lon = np.array([CAPITALS["TX"], CAPITALS["UT"], CAPITALS["ME"]]).T
    drawn = outlines([0, 1, 2], lat, lon, ["Texas", "Utah", "Florida"])
    assert drawn.sources == ("us-atlas", "us-atlas", "hull")


def test_classes_without_places_and_places_without_numbers_are_no_error() -> None:
    drawn = outlines([0, 0, 1], [np.nan, 48.0, 49.0], [2.0, np.inf, 2.0], ["Gaul", "Belgica", "nowhere"])
    assert drawn.sources == ("none", "hull", "none")
    assert drawn.rings[0] == ()
    assert np.isinf(km_outside(drawn.rings[0], [48.0], [2.0])).all()
    assert outlines([], [], [], []).classes == ()


def test_the_distance_to_an_outline_is_that_to_its_nearest_edge() -> None:
    square = (np.array([[0.0, 0.0], [0.0, 10.0], [10.0, 10.0], [10.0, 0.0], [0.0, 0.0]]),)
    km = km_outside(square, [5.0, 5.0, -2.0, 5.0], [5.0, 12.0, 5.0, 372.0])
    across, down = haversine_km(5, 10, 5, 12), haversine_km(-2, 5, 0, 5)
    assert km == pytest.approx(np.array([0.0, across, down, across]), rel=1e-3)
