"""Projections against the numbers of d3-geo, and maps that show what they should."""

import numpy as np
import pytest

from geo_embed.reporting.outlines import outlines
from geo_embed.reporting.projections import Projection, fit_projection, project, project_rings

USA = Projection("albers-usa", (-0.5, 0.5, -0.25, 0.25))


def by_d3(projection: Projection, latitude: float, longitude: float) -> tuple[float, float]:
    """As d3.geoAlbersUsa gives it by default: scale 1070, middle at 480, 250, y downwards."""
    x, y = project(projection, [latitude], [longitude])[0]
    return 480 + 1070 * x, 250 - 1070 * y


@pytest.mark.parametrize(
    ("longitude", "latitude", "x", "y"),
    [
        # d3-geo's own test of albersUsa (test/projection/albersUsa-test.js).
        (-122.4194, 37.7749, 107.4, 214.1),
        (-74.0059, 40.7128, 794.6, 176.5),
        (-95.9928, 36.1540, 488.8, 298.0),
        (-149.9003, 61.2181, 171.2, 446.9),
        (-157.8583, 21.3069, 298.5, 451.0),
    ],
    ids=["San Francisco", "New York", "Tulsa", "Anchorage", "Honolulu"],
)
def test_the_united_states_lie_where_d3_puts_them(
    longitude: float, latitude: float, x: float, y: float
) -> None:
    assert by_d3(USA, latitude, longitude) == pytest.approx((x, y), abs=0.05)


def test_what_lies_in_no_panel_has_no_place_on_the_map() -> None:
    """As with d3: London, San Juan, and no number at all."""
    assert np.isnan(project(USA, [51.5, 18.5, np.nan], [-0.1, -66.1, -100.0])).all()


@pytest.mark.parametrize(
    ("point", "expected"),
    # geoConicEqualArea().parallels([35, 65]).rotate([-10, 0]).center([0, 50]).scale(1).translate([0, 0]) of d3-geo 3.1.1, y turned.
    [
        ((50, 10), (0, 0)),
        ((60.5, 24), (0.1170048395180771, 0.1997641768948627)),
        ((38.7, -9), (-0.25313859486899637, -0.17101456)),
        ((70, 30), (0.12407944496615776, 0.3701805413636382)),
    ],
)
def test_the_cone_agrees_with_d3(point: tuple[float, float], expected: tuple[float, float]) -> None:
    cone = Projection("conic-equal-area", (-1, 1, -1, 1), (35, 65), 10, 50)
    assert project(cone, [point[0]], [point[1]])[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("point", "expected"),
    # geoEqualEarth().scale(1).translate([0, 0]) of d3-geo 3.1.1, y turned.
    [
        ((0, 0), (0, 0)),
        ((20, 10), (0.1460171092621033, 0.4008252175624881)),
        ((-45, -120), (-1.5464726654706447, -0.8602310855220102)),
    ],
)
def test_equal_earth_agrees_with_d3(point: tuple[float, float], expected: tuple[float, float]) -> None:
    world = Projection("equal-earth", (-3, 3, -2, 2))
    assert project(world, [point[0]], [point[1]])[0] == pytest.approx(expected, abs=1e-12)


def area(pieces: list[np.ndarray]) -> float:
    """Of closed pieces, by the shoelace formula."""
    return abs(sum(float((p[:-1, 0] * p[1:, 1] - p[1:, 0] * p[:-1, 1]).sum() / 2) for p in pieces))


@pytest.mark.parametrize("longitude", [0, 90, 175, -120])
def test_a_country_keeps_its_size_wherever_the_map_is_cut(longitude: float) -> None:
    """Russia, Fiji and Antarctica on the whole earth: in one piece or in two, as large as they are (in units of R²)."""
    drawn = outlines([0, 1, 2], [55.8, -17.8, -80.0], [37.6, 178.0, 0.0], ["RU", "FJ", "AQ"])
    world = Projection("equal-earth", (-3, 3, -2, 2), longitude=longitude)
    square_km = [area(project_rings(world, rings)) * 6371**2 for rings in drawn.rings]
    assert square_km == pytest.approx([16.9e6, 18.3e3, 12.3e6], rel=0.1)


def test_every_panel_of_the_united_states_shows_its_states_within_the_frame() -> None:
    names = ["Alaska", "Hawaii", "Maine", "Texas"]
    lat, lon = [61.2, 21.3, 44.3, 30.3], [-149.9, -157.86, -69.8, -97.7]
    drawn = outlines(range(4), lat, lon, names)
    chosen = fit_projection(drawn, lat, lon)
    assert chosen.name == "albers-usa"
    left, right, lower, upper = chosen.frame
    for rings, on_plane in zip(drawn.rings, project(chosen, lat, lon), strict=True):
        pieces = project_rings(chosen, rings)
        corners = np.concatenate(pieces)
        assert corners[:, 0].min() > left
        assert corners[:, 0].max() < right
        assert corners[:, 1].min() > lower
        assert corners[:, 1].max() < upper
        assert (corners.min(axis=0) < on_plane).all()
        assert (corners.max(axis=0) > on_plane).all()


@pytest.mark.parametrize(
    ("names", "latitude", "longitude", "expected"),
    [
        (["UT", "CO"], [40.8, 39.7], [-111.9, -105.0], "conic-equal-area"),
        (["FR", "DE", "PL"], [48.9, 52.5, 52.2], [2.4, 13.4, 21.0], "conic-equal-area"),
        (["FR", "NZ", "CL"], [48.9, -41.3, -33.5], [2.4, 174.8, -70.7], "equal-earth"),
        (["East", "West"], [-17.0, -16.5], [179.5, -179.5], "conic-equal-area"),
        (["Texas", "Puerto Rico"], [30.3, 18.4], [-97.7, -66.1], "conic-equal-area"),
    ],
    ids=["two states", "Europe", "world", "antimeridian", "territory"],
)
def test_every_region_gets_a_map_that_shows_all_of_its_places(
    names: list[str], latitude: list[float], longitude: list[float], expected: str
) -> None:
    drawn = outlines(range(len(names)), latitude, longitude, names)
    chosen = fit_projection(drawn, latitude, longitude)
    assert chosen.name == expected
    left, right, lower, upper = chosen.frame
    points = project(chosen, latitude, longitude)
    assert ((points > [left, lower]) & (points < [right, upper])).all()
    # Closely: a map of Fiji isn't one of the Pacific.
    extent = np.ptp(points, axis=0).max()
    assert max(right - left, upper - lower) < 4 * extent
    for rings in drawn.rings:
        assert project_rings(chosen, rings)


def test_a_single_place_has_land_around_it() -> None:
    drawn = outlines([0], [47.0], [8.0], ["here"])
    left, right, lower, upper = fit_projection(drawn, [47.0], [8.0]).frame
    assert right > left
    assert upper > lower
    assert np.isfinite([left, right, lower, upper]).all()


def test_without_any_place_the_world_is_shown() -> None:
    assert fit_projection(outlines([], [], [], []), [], []).name == "equal-earth"
