"""A finer point from the training samples that look most alike, inside the cells that a network thinks likely.

PIGEON's refiner (Haas et al., CVPR 2024, "hierarchical guess refinement"), with single samples in the place of its
clusters. It works in the space that the network has learnt; raw embeddings are dominated by what has nothing to do with
the place.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geo_embed.sphere import geometric_median_of, great_circle_km

# Similarities that are held at once, 16 MB.
_BLOCK = 2**22
# Vectors that are turned to float32 at once.
_ROWS = 4096
_TEMPERATURES = (0.01, 0.03, 0.1, 0.3)
_MOST_KM = (25.0, 50.0, 100.0, 250.0, 1000.0)
# A gain below so many standard errors is luck, the more so as it is the best of a grid.
_ERRORS, _NEAR_ERRORS = 2.0, 3.0
# Nearness is exp(−km / this).
_NEAR_KM = 100.0


@dataclass(frozen=True)
class Gallery:
    """Training samples in the learnt space, sorted by cell; made by `make_gallery`.

    Attributes:
        vectors: (N, W) float16, centred and of length 1.
        cells: (N,) int64, ascending.
        points: (N, 3) float64 unit vectors.
        mean: (W,) float32 that queries are centred with.
    """

    vectors: Tensor
    cells: Tensor
    points: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Refiner:
    """Settings of `refine`: `refine(…, **dataclasses.asdict(refiner))`."""

    cells: int
    neighbours: int
    temperature: float
    max_km: float


@dataclass(frozen=True)
class _Candidates:
    """Neighbours of n queries: cosine distances (n, k), P(cell) of each (n, k), 0 where there is none, points (n, k, 3)."""

    distance: Tensor
    cell_probability: Tensor
    points: Tensor


def make_gallery(vectors: Tensor, cells: Tensor, points: Tensor) -> Gallery:
    """Training samples to look among.

    Args:
        vectors: (N, W) the network's fused hidden vectors.
        cells: (N,) the samples' own cells.
        points: (N, 3) unit vectors.
    """
    order = torch.argsort(cells, stable=True)
    mean = vectors.mean(dim=0, dtype=torch.float32)
    # Part by part: whole floats would take several times the memory of the gallery.
    parts = [_directions(vectors[rows], mean).half() for rows in torch.split(order, _ROWS)]
    return Gallery(torch.cat(parts), cells[order].long(), points[order].double(), mean)


def blank_gallery(samples: int, width: int) -> Gallery:
    """A gallery of the right sizes and no content, to be loaded into."""
    return Gallery(
        torch.zeros(samples, width, dtype=torch.float16),
        torch.zeros(samples, dtype=torch.int64),
        torch.zeros(samples, 3, dtype=torch.float64),
        torch.zeros(width),
    )


def refine(
    gallery: Gallery,
    queries: Tensor,
    cell_probabilities: Tensor,
    guess: Tensor,
    *,
    cells: int = 5,
    neighbours: int = 8,
    temperature: float = 0.1,
    max_km: float = 250.0,
) -> Tensor:
    """Refined points (n, 3), float64 unit vectors.

    Among the nearest samples of a query's likeliest cells each weighs P(cell) · softmax(−(1 − cosine)/temperature), and
    their geometric median is the refined point. One farther than `max_km` from the guess is refused: the guess stays. It
    stays too where those cells hold no sample.

    Args:
        gallery: on the queries' device.
        queries: (n, W) hidden vectors, as the gallery was made from.
        cell_probabilities: (n, K), K more than any cell of the gallery.
        guess: (n, 3) unit vectors.
        cells: likeliest cells to look in.
        neighbours: samples taken from each.
        temperature: in cosine distance, > 0.
        max_km: of the way from the guess.
    """
    guess = guess.double()
    candidates = _look_up(gallery, queries, cell_probabilities, cells, neighbours)
    moved = _weigh(candidates, guess, temperature)
    return torch.where((great_circle_km(moved, guess) <= max_km)[:, None], moved, guess)


def fit_refiner(
    gallery: Gallery,
    queries: Tensor,
    cell_probabilities: Tensor,
    guess: Tensor,
    truth: Tensor,
    *,
    cells: int = 5,
    neighbours: int = 8,
) -> Refiner | None:
    """The temperature and `max_km` that help most, over a small grid, or None where refinement doesn't help.

    Helping means that points come near, the mean of exp(−km / 100) rising by more than three standard errors of the rise, while
    the mean distance doesn't grow; or, where none do so, that the mean distance falls by more than two of its fall's. Of heads that
    are short of training, whose far misses drown everything else in the mean distance, nearness tells what it will do in the end.

    Args:
        gallery, queries, cell_probabilities, guess: as in `refine`, of samples that the network wasn't fitted on.
        truth: (n, 3) unit vectors of their true places.
        cells, neighbours: as in `refine`.
    """
    n = len(queries)
    if n < 2:
        return None
    # For every temperature the candidates' median is found once; what the limit on the way does is then a matter of
    # leaving some of the moves out. Of all pairs that don't add to the mean distance the one with the largest gain is taken, by
    # nearness and then by distance, if it is more than luck.
    guess, truth = guess.double(), truth.double()
    candidates = _look_up(gallery, queries, cell_probabilities, cells, neighbours)
    before = great_circle_km(guess, truth)
    near: list[tuple[Refiner, Tensor]] = []
    far: list[tuple[Refiner, Tensor]] = []
    for temperature in _TEMPERATURES:
        moved = _weigh(candidates, guess, temperature)
        after, way = great_circle_km(moved, truth), great_circle_km(moved, guess)
        for max_km in _MOST_KM:
            reached = torch.where(way <= max_km, after, before)
            fall = before - reached
            if float(fall.mean()) >= 0:
                refiner = Refiner(cells, neighbours, temperature, max_km)
                near.append((refiner, torch.exp(-reached / _NEAR_KM) - torch.exp(-before / _NEAR_KM)))
                far.append((refiner, fall))
    for gains, errors in ((near, _NEAR_ERRORS), (far, _ERRORS)):
        best, gain = max(gains, key=lambda tried: float(tried[1].mean()), default=(None, before))
        if best is not None and float(gain.mean()) > errors * float(gain.std()) / n**0.5:
            return best
    return None


def _look_up(
    gallery: Gallery, queries: Tensor, cell_probabilities: Tensor, cells: int, neighbours: int
) -> _Candidates:
    # 1. Each query names its likeliest cells: `chosen` (n, ranks).
    # 2. The gallery is sorted by cell, so the samples of a cell are one range of it: for each cell that is named, one product of
    #    its queries with its range gives all cosines, in blocks of bounded size.
    # 3. The best of them go to the query's row, at the cell's rank. A cell with fewer samples leaves places empty: row −1,
    #    which gets no weight.
    n, device = len(queries), queries.device
    probability, chosen = cell_probabilities.double().topk(min(cells, cell_probabilities.shape[1]), dim=1)
    ranks = chosen.shape[1]
    neighbours = min(neighbours, int(torch.unique_consecutive(gallery.cells, return_counts=True)[1].max()))
    directions = _directions(queries, gallery.mean)
    distance = torch.zeros(n, ranks, neighbours, device=device)
    row = torch.full((n, ranks, neighbours), -1, dtype=torch.int64, device=device)
    for places, (first, last) in _by_cell(chosen, gallery.cells):
        samples = gallery.vectors[first:last].float()
        for part in torch.split(places, max(1, _BLOCK // len(samples))):
            i, rank = part // ranks, part % ranks
            near = (directions[i] @ samples.T).topk(min(neighbours, len(samples)), dim=1)
            distance[i, rank, : near.values.shape[1]] = 1 - near.values
            row[i, rank, : near.values.shape[1]] = near.indices + first
    weight = torch.where(row >= 0, probability[:, :, None], 0.0)
    return _Candidates(distance.flatten(1), weight.flatten(1), gallery.points[row.clamp_min(0).flatten(1)])


def _by_cell(chosen: Tensor, cells: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """For each cell that is chosen and holds samples: its places in `chosen`, flat, and its range in the gallery."""
    flat = chosen.flatten()
    order = torch.argsort(flat, stable=True)
    named, counts = torch.unique_consecutive(flat[order], return_counts=True)
    firsts = torch.searchsorted(cells, named).tolist()
    lasts = torch.searchsorted(cells, named, right=True).tolist()
    for places, first, last in zip(torch.split(order, counts.tolist()), firsts, lasts, strict=True):
        if last > first:
            yield places, (first, last)


def _weigh(candidates: _Candidates, guess: Tensor, temperature: float) -> Tensor:
    """Geometric medians (n, 3) of the candidates, the guess where there are none."""
    # log P(cell) − distance/temperature: the softmax over all candidates is P(cell) · exp(−distance/temperature), normalised.
    # log 0 = −∞ takes empty places out.
    weights = torch.log(candidates.cell_probability) - candidates.distance.double() / temperature
    any_there = (candidates.cell_probability > 0).any(dim=1)
    moved = guess.clone()
    moved[any_there] = geometric_median_of(
        candidates.points[any_there], torch.softmax(weights[any_there], dim=1)
    )
    return moved


def _directions(vectors: Tensor, mean: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float() - mean, dim=1)
