"""The region is what the training places say: centres, a box with room to spare, and cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import CLASSES, region_of, rows_of, tiny

from geo_embed.errors import GeoError
from geo_embed.geography import class_centroids, region_box, to_degrees, to_unit_vectors, wrap_longitude
from geo_embed.heads.region import denormalize, make_region, normalize

LATITUDE, LONGITUDE = np.array([10.0, 20.0, 14.0, 10.0]), np.array([-60.0, -50.0, -52.0, -54.0])
LABELS = np.array([0, 0, 1, 1])


def test_centres_and_counts_are_those_of_the_training_samples() -> None:
    rows = rows_of()
    region = region_of(rows, tiny())
    labels = rows.labels.numpy()
    wanted = class_centroids(*to_degrees(rows.points.numpy()), labels, CLASSES)
    np.testing.assert_allclose(region.centroids, wanted)
    assert region.counts.tolist() == np.bincount(labels).tolist()
    assert region.classes == CLASSES


def test_the_box_is_that_of_the_places_and_a_twentieth_more_on_every_side() -> None:
    region = make_region(to_unit_vectors(LATITUDE, LONGITUDE), LABELS, 2, tiny(), seed=0)
    assert region.middle.tolist() == pytest.approx([15, -55])
    assert region.reach.tolist() == pytest.approx([5 + 0.5, 5 + 0.5])


def test_places_are_scaled_by_the_box_and_back() -> None:
    region = make_region(to_unit_vectors(LATITUDE, LONGITUDE), LABELS, 2, tiny(), seed=0)
    assert region.spans.tolist() == pytest.approx([11, 11])
    # The box reaches from 9.5 to 20.5 and from −60.5 to −49.5.
    corner = torch.tensor([9.5, -60.5])
    places = torch.tensor([[9.5, -60.5], [20.5, -49.5], [15.0, -57.75]])
    shares = normalize(places, corner, region.spans)
    torch.testing.assert_close(shares, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]]))
    around = normalize(places, region.middle, region.reach)
    torch.testing.assert_close(around, torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, -0.5]]))
    torch.testing.assert_close(denormalize(shares, corner, region.spans), places)
    torch.testing.assert_close(denormalize(around, region.middle, region.reach), places)


def test_scaling_goes_the_short_way_round_and_back_without_wrapping() -> None:
    # A box of 8 degrees around 178: −178 is its eastern edge, 4 degrees from the middle.
    middle, reach = torch.tensor([-17.0, 178.0]), torch.tensor([2.0, 4.0])
    around = normalize(torch.tensor([-18.0, -178.0]), middle, reach)
    torch.testing.assert_close(around, torch.tensor([-0.5, 1.0]))
    torch.testing.assert_close(denormalize(around, middle, reach), torch.tensor([-18.0, 182.0]))


def test_one_place_alone_gets_a_box_that_is_not_empty() -> None:
    region = make_region(to_unit_vectors([10.0], [20.0]), np.array([0]), 1, tiny(head="geocells"), seed=0)
    assert region.middle.tolist() == pytest.approx([10, 20])
    assert region.reach.tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
    assert region.state_reach.tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
    assert region.cells is not None
    assert region.cells.to_state.tolist() == [[1.0]]


def test_edges_that_are_given_win_one_by_one() -> None:
    def edges(**bounds: float) -> list[float]:
        model = tiny(gps_box=bounds)
        region = make_region(to_unit_vectors(LATITUDE, LONGITUDE), LABELS, 2, model, seed=0)
        low, high = region.middle - region.reach, region.middle + region.reach
        return [float(low[0]), float(high[0]), float(low[1]), float(high[1])]

    assert edges() == pytest.approx([9.5, 20.5, -60.5, -49.5], abs=1e-4)
    assert edges(lat_min=-5.0) == pytest.approx([-5, 20.5, -60.5, -49.5], abs=1e-4)
    assert edges(lat_max=80.0, lon_min=-170.0) == pytest.approx([9.5, 80, -170, -49.5], abs=1e-4)
    assert edges(lat_min=0, lat_max=1, lon_min=2, lon_max=3) == pytest.approx([0, 1, 2, 3], abs=1e-4)


def test_a_box_across_the_antimeridian_is_narrow_and_goes_on_beyond_180() -> None:
    longitude = np.array([176.0, -176.0])
    assert region_box([0.0, 1.0], longitude) == pytest.approx((-0.1, 1.1, 175.6, 184.4))
    assert region_box([0.0, 1.0], longitude, (None, None, None, -170)) == pytest.approx(
        (-0.1, 1.1, 175.6, 190)
    )
    region = make_region(to_unit_vectors([0.0, 1.0], longitude), np.array([0, 0]), 1, tiny(), seed=0)
    assert float(region.middle[1]) == pytest.approx(180)
    assert float(region.reach[1]) == pytest.approx(4.4, rel=1e-4)


def test_a_given_edge_beyond_the_places_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(GeoError, match="southern edge 80") as caught:
        region_box(LATITUDE, LONGITUDE, (80.0, None, None, None))
    assert caught.value.where == "model.gps_box"


@pytest.mark.parametrize("middle", [(40.0, -100.0), (60.0, 179.0)])
def test_a_states_reach_is_the_farthest_any_place_lies_from_its_states_centre(
    middle: tuple[float, float],
) -> None:
    rows = rows_of(middle=middle)
    region = region_of(rows, tiny())
    latitude, longitude = to_degrees(rows.points.numpy())
    labels = rows.labels.numpy()
    up = np.abs(latitude - region.centroids[labels, 0]).max()
    along = np.abs(wrap_longitude(longitude - region.centroids[labels, 1])).max()
    assert region.state_reach.tolist() == pytest.approx([1.05 * up, 1.05 * along], rel=1e-5)
    assert along < 6


@pytest.mark.parametrize(
    ("n", "settings", "wanted"),
    [
        (96, {"cell_samples": 3}, 32),
        (96, {"cell_samples": 48}, 16),
        (96, {"cell_samples": 3, "most_cells": 20}, 20),
        (96, {"cell_samples": 3, "most_cells": 5}, 5),
        (10, {"cell_samples": 1}, 10),
    ],
)
def test_there_is_a_cell_per_so_many_samples_sixteen_at_least_and_no_more_than_allowed(
    n: int, settings: dict[str, int], wanted: int
) -> None:
    cells = region_of(rows_of(n), tiny(head="geocells", **settings)).cells
    assert cells is not None
    assert wanted * 0.8 <= len(cells.centres) <= wanted
    torch.testing.assert_close(cells.to_state.sum(1), torch.ones(len(cells.centres)))
    torch.testing.assert_close(cells.in_state.sum(1), torch.ones(CLASSES))


@pytest.mark.parametrize("kind", ["quad", "voronoi"])
def test_cells_are_of_the_kind_that_is_asked_for(kind: str) -> None:
    rows = rows_of()
    cells = region_of(rows, tiny(head="geocells", cells=kind)).cells
    assert cells is not None
    assert ((cells.to_state == 0) | (cells.to_state == 1)).all()
    assert (cells.to_state[cells.owner].argmax(1) == rows.labels).all()


def test_heads_without_cells_get_none() -> None:
    for head in ("separate", "dual", "hierarchical"):
        assert region_of(rows_of(), tiny(head=head)).cells is None
