"""Cells: where they lie, what they teach, and the point that is chosen over them."""

import numpy as np
import pytest
import torch

from geo_embed import geocells, geography


def places(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(25, 49, n), rng.uniform(-124, -67, n)


def unit(latitude: float, longitude: float) -> torch.Tensor:
    return torch.from_numpy(geography.to_unit_vectors(latitude, longitude))


def test_every_cell_has_places_and_every_place_the_nearest_cell() -> None:
    latitude, longitude = places(500)
    points = geography.to_unit_vectors(latitude, longitude)
    cells = geocells.make_cells(points, np.zeros(500, dtype=np.int64), 30, 1, seed=0)
    assert len(cells.centres) == 30
    assert set(cells.owner.tolist()) == set(range(30))
    centres = np.stack(geography.to_degrees(cells.centres.numpy()), axis=1)
    km = geography.haversine_km(
        latitude[:, None], longitude[:, None], centres[None, :, 0], centres[None, :, 1]
    )
    np.testing.assert_array_equal(km.argmin(axis=1), cells.owner.numpy())


def test_fewer_places_than_cells_give_a_cell_to_each_place() -> None:
    points = geography.to_unit_vectors([10.0, 10.0, 20.0], [5.0, 5.0, 6.0])
    cells = geocells.make_cells(points, np.array([0, 0, 1]), 16, 2, seed=0)
    assert len(cells.centres) == 2


def test_cells_across_the_date_line_stay_together() -> None:
    points = geography.to_unit_vectors([52.0, 52.0, 52.1, 40.0], [179.9, -179.9, 179.95, -100.0])
    cells = geocells.make_cells(points, np.zeros(4, dtype=np.int64), 2, 1, seed=0)
    owner = cells.owner.tolist()
    assert owner[0] == owner[1] == owner[2] != owner[3]


def test_tables_are_the_shares_of_states_in_cells_and_of_cells_in_states() -> None:
    centres = torch.eye(3)
    cells = geocells.cell_tables(centres, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 3)
    torch.testing.assert_close(cells.to_state[:2], torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    torch.testing.assert_close(cells.in_state[:2], torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 2 / 3, 0.0]]))
    # A cell without rows gets the states' shares, a state without rows is anywhere.
    torch.testing.assert_close(cells.to_state[2], torch.tensor([0.25, 0.75, 0.0]))
    torch.testing.assert_close(cells.in_state[2], torch.full((3,), 1 / 3))


def test_soft_labels_are_pigeons_per_sample_form() -> None:
    latitude, longitude = places(5, seed=1)
    centre_lat, centre_lon = places(7, seed=2)
    tau = 75.0
    km = geography.haversine_km(latitude[:, None], longitude[:, None], centre_lat[None], centre_lon[None])
    # exp(−(d(cᵢ, x) − d(c_true, x)) / τ), normalised; the nearest cell is the true one.
    weights = np.exp(-(km - km.min(axis=1, keepdims=True)) / tau)
    expected = weights / weights.sum(axis=1, keepdims=True)
    found = geocells.soft_targets(
        torch.from_numpy(geography.to_unit_vectors(latitude, longitude)),
        torch.from_numpy(geography.to_unit_vectors(centre_lat, centre_lon)),
        tau,
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_point_minimises_the_expected_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    latitude, longitude = places(6, seed=seed)
    weights = rng.dirichlet(np.ones(6))
    centres = torch.from_numpy(geography.to_unit_vectors(latitude, longitude)).float()
    point = geocells.geometric_median(torch.from_numpy(weights)[None].float(), centres)
    found_lat, found_lon = geography.to_degrees(point[0].numpy())

    def expected_km(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        km = geography.haversine_km(
            np.asarray(lat)[..., None], np.asarray(lon)[..., None], latitude, longitude
        )
        return np.asarray((km * weights).sum(axis=-1))

    grid = np.meshgrid(np.linspace(20, 55, 351), np.linspace(-130, -60, 701), indexing="ij")
    least = expected_km(*grid).min()
    assert expected_km(found_lat, found_lon) <= least + 0.5
    assert (
        expected_km(found_lat, found_lon) <= expected_km(latitude, longitude).min() + 0.002
    )  # float32 centres: half a metre


def test_a_cell_with_more_than_half_of_the_probability_is_the_point() -> None:
    centres = torch.stack([unit(40, -100), unit(30, -90), unit(45, -80)]).float()
    point = geocells.geometric_median(torch.tensor([[0.6, 0.2, 0.2]]), centres)
    assert float(geocells.great_circle_km(point[0], centres[0].double())) < 0.1
