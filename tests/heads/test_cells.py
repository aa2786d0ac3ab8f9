"""Cells: where they lie, what they teach, and the point that is chosen over them."""

import numpy as np
import pytest
import torch

from geo_embed import geography, sphere
from geo_embed.config import CellKind
from geo_embed.heads import cells as geocells

BORDERED: tuple[CellKind, ...] = ("quad", "voronoi")


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
    targets = sphere.soft_targets(
        torch.from_numpy(geography.to_unit_vectors(latitude, longitude)),
        torch.from_numpy(geography.to_unit_vectors(centre_lat, centre_lon)),
        tau,
    )
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_point_minimises_the_expected_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    latitude, longitude = places(6, seed=seed)
    weights = rng.dirichlet(np.ones(6))
    centres = torch.from_numpy(geography.to_unit_vectors(latitude, longitude)).float()
    point = sphere.geometric_median(torch.from_numpy(weights)[None].float(), centres)
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
    point = sphere.geometric_median(torch.tensor([[0.6, 0.2, 0.2]]), centres)
    assert float(sphere.great_circle_km(point[0], centres[0].double())) < 0.1


def country(n: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors and states: five uneven states, a town in one of them, the last one across the date line."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, size=n, p=[0.45, 0.3, 0.15, 0.06, 0.04])
    latitude = rng.uniform(30, 40, n)
    longitude = -100 + 8 * labels + rng.uniform(0, 8, n)
    town = (labels == 0) & (rng.random(n) < 0.6)
    latitude = np.where(town, 33 + rng.normal(0, 0.05, n), latitude)
    longitude = np.where(town, -97 + rng.normal(0, 0.05, n), longitude)
    far = labels == 4
    longitude[far] = 176 + rng.uniform(0, 8, far.sum())
    return geography.to_unit_vectors(latitude, longitude), labels


@pytest.mark.parametrize("kind", BORDERED)
def test_no_cell_crosses_a_border_and_each_sample_is_in_one_of_its_state(kind: CellKind) -> None:
    points, labels = country()
    cells = geocells.make_cells(points, labels, 40, 6, seed=0, kind=kind)
    assert set(cells.owner.tolist()) == set(range(len(cells.centres)))
    of_true_state = cells.to_state[cells.owner, torch.from_numpy(labels)]
    torch.testing.assert_close(of_true_state, torch.ones(len(labels)))
    torch.testing.assert_close(cells.to_state.max(dim=1).values, torch.ones(len(cells.centres)))
    torch.testing.assert_close(cells.in_state.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("kind", BORDERED)
def test_a_centre_is_the_mean_of_its_members_on_the_sphere(kind: CellKind) -> None:
    points, labels = country()
    cells = geocells.make_cells(points, labels, 40, 5, seed=0, kind=kind)
    for cell, centre in enumerate(cells.centres):
        total = points[cells.owner.numpy() == cell].sum(axis=0)
        np.testing.assert_allclose(centre.numpy(), total / np.linalg.norm(total), atol=1e-6)


@pytest.mark.parametrize("kind", BORDERED)
@pytest.mark.parametrize("count", [1, 5, 12, 40, 150])
def test_bordered_cells_number_about_as_many_as_asked_for(kind: CellKind, count: int) -> None:
    points, labels = country()
    made = len(geocells.make_cells(points, labels, count, 5, seed=0, kind=kind).centres)
    most = max(count, 5)
    assert made <= (most if kind == "quad" else 1.2 * most)
    assert made >= 0.7 * most


def test_quad_leaves_keep_to_the_limit_and_have_a_quarter_of_it_at_least() -> None:
    points, labels = country()
    labels = np.zeros_like(labels)
    groups = geocells.quad_groups(points, labels, 40)
    sizes = np.array([len(group) for group in groups])
    assert len(groups) <= 40
    # Some power of 1.15 times N/40 is the limit.
    limit = 900 / 40 * 1.15 ** np.arange(12)
    fits = (sizes.max() <= limit) & (sizes.min() >= limit / 4)
    assert fits.any()


def test_quad_cells_are_small_where_samples_are_dense() -> None:
    points, labels = country()
    cells = geocells.make_cells(points, labels, 40, 5, seed=0, kind="quad")
    apart = sphere.great_circle_km(torch.from_numpy(points), cells.centres.double()[cells.owner]).numpy()
    town = sphere.great_circle_km(torch.from_numpy(points), unit(33, -97)).numpy() < 15
    assert np.median(apart[town]) < np.median(apart[~town]) / 8


def test_a_quad_tree_cuts_squares_not_slivers() -> None:
    rng = np.random.default_rng(0)
    points = geography.to_unit_vectors(rng.uniform(-1, 1, 800), rng.uniform(0, 16, 800))
    for group in geocells.quad_groups(points, np.zeros(800, dtype=np.int64), 64):
        latitude, longitude = geography.to_degrees(points[group])
        assert np.ptp(longitude) < 2.5
        assert np.ptp(latitude) <= 2.0


def test_voronoi_cells_are_of_even_size_within_a_state() -> None:
    points, labels = country()
    cells = geocells.make_cells(points, labels, 60, 5, seed=0, kind="voronoi")
    sizes = np.bincount(cells.owner.numpy())
    states = cells.to_state.argmax(dim=1).numpy()
    # Each state gets its share of the cells by its samples, and sizes lie within a factor of two of N/count.
    assert (np.bincount(states)[np.bincount(labels) >= 100] >= 7).all()
    assert sizes.max() <= 2.2 * 900 / 60
    assert sizes.min() >= 900 / 60 / 2.2


@pytest.mark.parametrize("kind", BORDERED)
def test_a_state_across_the_date_line_is_not_torn(kind: CellKind) -> None:
    rng = np.random.default_rng(0)
    longitude = 180 + rng.normal(0, 0.2, 60)
    points = geography.to_unit_vectors(52 + rng.normal(0, 0.2, 60), (longitude + 180) % 360 - 180)
    shifted = geography.to_unit_vectors(*(geography.to_degrees(points)[0], longitude - 80))
    cells = geocells.make_cells(points, np.zeros(60, dtype=np.int64), 5, 1, seed=0, kind=kind)
    shifted_cells = geocells.make_cells(shifted, np.zeros(60, dtype=np.int64), 5, 1, seed=0, kind=kind)
    apart = sphere.great_circle_km(torch.from_numpy(points), cells.centres.double()[cells.owner])
    assert apart.max() < 80
    if kind == "quad":  # k-means draws its first centres in an order that longitudes decide
        np.testing.assert_array_equal(cells.owner.numpy(), shifted_cells.owner.numpy())


@pytest.mark.parametrize("kind", BORDERED)
def test_one_place_is_one_cell_however_many_samples_it_has(kind: CellKind) -> None:
    rng = np.random.default_rng(0)
    latitude = np.concatenate([np.full(300, 40.0), rng.uniform(30, 45, 40), [10.0]])
    longitude = np.concatenate([np.full(300, -90.0), rng.uniform(-95, -85, 40), [10.0]])
    labels = np.concatenate([np.zeros(340, dtype=np.int64), [2]])
    cells = geocells.make_cells(
        geography.to_unit_vectors(latitude, longitude), labels, 30, 3, seed=0, kind=kind
    )
    assert len(set(cells.owner[:300].tolist())) == 1
    assert 2 <= len(cells.centres) <= 31
    # The state of one sample has a cell to itself; the state without any is anywhere.
    assert cells.to_state[cells.owner[340]].tolist() == [0.0, 0.0, 1.0]
    torch.testing.assert_close(cells.in_state[1], torch.full((len(cells.centres),), 1 / len(cells.centres)))


@pytest.mark.parametrize("kind", BORDERED)
def test_antipodes_and_poles_break_nothing(kind: CellKind) -> None:
    points = geography.to_unit_vectors([90.0, -90.0, 0.0, 0.0], [0.0, 0.0, 0.0, 180.0])
    cells = geocells.make_cells(points, np.array([0, 0, 1, 1]), 4, 2, seed=0, kind=kind)
    torch.testing.assert_close(cells.centres.norm(dim=1), torch.ones(len(cells.centres)))
    assert torch.isfinite(cells.to_state).all()
    opposite = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    cells = geocells.make_cells(opposite, np.array([0, 0]), 1, 1, seed=0, kind=kind)
    assert cells.centres.norm(dim=1).tolist() == [1.0]


@pytest.mark.parametrize("kind", ["kmeans", *BORDERED])
def test_the_same_seed_makes_the_same_cells(kind: CellKind) -> None:
    points, labels = country()
    first, second = (geocells.make_cells(points, labels, 40, 5, seed=3, kind=kind) for _ in range(2))
    assert torch.equal(first.centres, second.centres)
    assert torch.equal(first.owner, second.owner)


def test_each_row_can_have_points_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(7, 5, 3, generator=generator).double() + 2, dim=-1)
    weights = torch.rand(7, 5, generator=generator).double()
    medians = sphere.geometric_median_of(points, weights)
    one_by_one = torch.cat(
        [sphere.geometric_median(w[None], p) for p, w in zip(points, weights, strict=True)]
    )
    assert sphere.great_circle_km(medians, one_by_one).max() < 0.5
    shuffled = torch.randperm(5, generator=generator)
    again = sphere.geometric_median_of(points[:, shuffled], weights[:, shuffled])
    assert sphere.great_circle_km(medians, again).max() < 0.5


def test_the_heaviest_point_is_found_wherever_it_stands() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(1, 20, 3, generator=generator).double() + 2, dim=-1)
    weights = torch.rand(1, 20, generator=generator).double()
    weights[0, 17] = weights.sum() * 1.01
    median = sphere.geometric_median_of(points, weights)
    assert float(sphere.great_circle_km(median[0], points[0, 17])) < 1e-4


def test_many_rows_are_answered_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(9, 3, generator=generator), dim=1)
    probabilities = torch.rand(50, 9, generator=generator)
    whole = sphere.geometric_median(probabilities, centres)
    monkeypatch.setattr(sphere, "_MEDIAN_ROWS", 8)
    parts = sphere.geometric_median(probabilities, centres)
    assert sphere.great_circle_km(whole, parts).max() < 0.5
