"""Refinement finds the place where the learnt space knows it, and leaves the guess where it doesn't."""

from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from geo_embed import geography, sphere
from geo_embed.heads import cells as geocells
from geo_embed.heads import refine as retrieval


@dataclass(frozen=True)
class Planted:
    """A gallery and queries whose vectors tell the place, and cells that tell it coarsely."""

    gallery: retrieval.Gallery
    vectors: Tensor
    cells: geocells.Cells
    places: Tensor
    queries: Tensor
    probabilities: Tensor
    guess: Tensor
    truth: Tensor


def plant(*, signal: float = 1.0, vague_km: float = 60, seed: int = 0) -> Planted:
    """`signal`: how much the vectors say about the place; `vague_km`: how far probabilities spread."""
    rng = np.random.default_rng(seed)
    points = geography.to_unit_vectors(rng.uniform(35, 45, 700), rng.uniform(-105, -90, 700))
    waves = rng.normal(0, 25, (3, 32))
    vectors = torch.from_numpy(signal * np.cos(points @ waves) + rng.normal(0, 0.15, (700, 32))).float() + 3
    unit = torch.from_numpy(points)
    cells = geocells.make_cells(points[:500], np.zeros(500, dtype=np.int64), 20, 1, seed=0)
    km = sphere.pairwise_km(unit[500:].float(), cells.centres)
    probabilities = torch.softmax(-km / vague_km, dim=1)
    return Planted(
        retrieval.make_gallery(vectors[:500], cells.owner, unit[:500]),
        vectors[:500],
        cells,
        unit[:500],
        vectors[500:],
        probabilities,
        sphere.geometric_median(probabilities, cells.centres),
        unit[500:],
    )


def mean_km(points: Tensor, truth: Tensor) -> float:
    return float(sphere.great_circle_km(points, truth).mean())


def test_refinement_lowers_the_mean_distance_where_the_space_tells_the_place() -> None:
    p = plant()
    refined = retrieval.refine(p.gallery, p.queries, p.probabilities, p.guess)
    torch.testing.assert_close(refined.norm(dim=1), torch.ones(200, dtype=torch.float64))
    assert mean_km(refined, p.truth) < 0.8 * mean_km(p.guess, p.truth)


def test_a_query_that_is_in_the_gallery_lands_on_its_place() -> None:
    p = plant()
    rows = torch.arange(0, 500, 25)
    sure = torch.nn.functional.one_hot(p.cells.owner[rows], 20).double()
    refined = retrieval.refine(
        p.gallery, p.vectors[rows], sure, p.cells.centres[p.cells.owner[rows]], temperature=0.01, max_km=2000
    )
    assert sphere.great_circle_km(refined, p.places[rows]).max() < 0.1


def test_candidates_are_the_nearest_of_each_likely_cell_weighed_as_promised() -> None:
    p = plant()
    refined = retrieval.refine(
        p.gallery, p.queries, p.probabilities, p.guess, cells=3, neighbours=4, temperature=0.2, max_km=1e5
    )
    centred = torch.nn.functional.normalize(p.vectors - p.vectors.mean(dim=0), dim=1).half().float()
    for query in range(10):
        q = torch.nn.functional.normalize(p.queries[query] - p.vectors.mean(dim=0), dim=0)
        weights, places = [], []
        for cell in p.probabilities[query].argsort(descending=True)[:3].tolist():
            members = [row for row in range(500) if int(p.cells.owner[row]) == cell]
            members.sort(key=lambda row: float(1 - centred[row] @ q))
            for row in members[:4]:
                closeness = np.exp(-float(1 - centred[row] @ q) / 0.2)
                weights.append(float(p.probabilities[query, cell]) * closeness)
                places.append(p.places[row])
        expected = sphere.geometric_median_of(torch.stack(places)[None], torch.tensor(weights)[None])
        assert sphere.great_circle_km(refined[query], expected[0]) < 0.5


def test_a_point_too_far_from_the_guess_is_refused() -> None:
    p = plant()
    free = retrieval.refine(p.gallery, p.queries, p.probabilities, p.guess, max_km=1e5)
    way = sphere.great_circle_km(free, p.guess)
    limit = float(way.median())
    held = retrieval.refine(p.gallery, p.queries, p.probabilities, p.guess, max_km=limit)
    torch.testing.assert_close(held[way > limit], p.guess[way > limit])
    torch.testing.assert_close(held[way <= limit], free[way <= limit])


def test_cells_without_samples_leave_the_guess() -> None:
    p = plant()
    wider = torch.cat([torch.zeros(200, 20), torch.ones(200, 2) / 2], dim=1)
    refined = retrieval.refine(p.gallery, p.queries, wider, p.guess, cells=2)
    torch.testing.assert_close(refined, p.guess)
    # One empty cell beside one with samples: those count alone.
    wider[:, 0], wider[:, 21] = 0.5, 0.0
    alone = torch.nn.functional.one_hot(torch.zeros(200, dtype=torch.int64), 22).double()
    torch.testing.assert_close(
        retrieval.refine(p.gallery, p.queries, wider, p.guess, cells=2, max_km=1e5),
        retrieval.refine(p.gallery, p.queries, alone, p.guess, cells=1, max_km=1e5),
    )


def test_more_cells_and_neighbours_than_there_are_do_no_harm() -> None:
    p = plant()
    refined = retrieval.refine(p.gallery, p.queries, p.probabilities, p.guess, cells=99, neighbours=999)
    assert torch.isfinite(refined).all()


def test_the_gallerys_order_and_the_block_size_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    p = plant()
    first = retrieval.refine(p.gallery, p.queries, p.probabilities, p.guess)
    assert torch.equal(first, retrieval.refine(p.gallery, p.queries, p.probabilities, p.guess))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    shuffled = retrieval.make_gallery(p.vectors[order], p.cells.owner[order], p.places[order])
    monkeypatch.setattr(retrieval, "_BLOCK", 64)
    again = retrieval.refine(shuffled, p.queries, p.probabilities, p.guess)
    assert sphere.great_circle_km(first, again).max() < 0.5


def test_no_queries_are_no_points() -> None:
    p = plant()
    assert retrieval.refine(p.gallery, p.queries[:0], p.probabilities[:0], p.guess[:0]).shape == (0, 3)


def test_a_fitted_refiner_helps_rows_that_it_has_not_seen() -> None:
    p = plant()
    half = slice(0, 100), slice(100, 200)
    refiner = retrieval.fit_refiner(
        p.gallery, p.queries[half[0]], p.probabilities[half[0]], p.guess[half[0]], p.truth[half[0]]
    )
    assert refiner is not None
    refined = retrieval.refine(
        p.gallery, p.queries[half[1]], p.probabilities[half[1]], p.guess[half[1]], **asdict(refiner)
    )
    assert mean_km(refined, p.truth[half[1]]) < 0.8 * mean_km(p.guess[half[1]], p.truth[half[1]])


def test_a_refiner_is_found_where_far_misses_drown_what_it_does_to_the_mean_distance() -> None:
    p = plant()
    # Four of five are taken for another place altogether, as by heads that are short of training.
    known = torch.arange(200) % 5 == 0
    truth = torch.where(known[:, None], p.truth, p.truth.roll(1, dims=0))
    refiner = retrieval.fit_refiner(p.gallery, p.queries, p.probabilities, p.guess, truth)
    assert refiner is not None
    refined = retrieval.refine(p.gallery, p.queries, p.probabilities, p.guess, **asdict(refiner))
    before, after = (sphere.great_circle_km(points, truth) for points in (p.guess, refined))
    assert float(after.mean()) <= float(before.mean())
    # The gain in distance alone is within its noise.
    gain = before - after
    assert float(gain.mean()) < 2 * float(gain.std()) / 200**0.5
    assert float(after[known].mean()) < 0.7 * float(before[known].mean())


@pytest.mark.parametrize("seed", range(5))
def test_no_refiner_comes_of_a_space_that_tells_nothing(seed: int) -> None:
    p = plant(signal=0.0, vague_km=10, seed=seed)
    assert retrieval.fit_refiner(p.gallery, p.queries, p.probabilities, p.guess, p.truth) is None


def test_no_refiner_is_fitted_on_a_single_row() -> None:
    p = plant()
    assert (
        retrieval.fit_refiner(p.gallery, p.queries[:1], p.probabilities[:1], p.guess[:1], p.truth[:1]) is None
    )
