"""Planted embeddings: a benchmark whose labels depend nonlinearly on location and whose views differ in worth.

No image and no network is involved. Locations cluster in towns inside a US-like box; states are unions of Voronoi
regions, so their borders are irregular and their shapes are not convex. A random, fixed location encoder (Fourier
features from 2000 km down to 20 km through a random MLP) makes a code for every place, and a view's embedding is that
code, scaled by how telling the view is, plus low-rank scene nuisance that dominates the raw cosine, plus noise. Some
views are misleading (the code of another place) and some are blank (no code at all); a cue in the embedding, itself
noisy and nonlinear, says which.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geo_embed.geography import EARTH_RADIUS_KM, Floats, haversine_km, to_unit_vectors
from geo_embed.metrics import competition_score

BOX_DEGREES = (25.0, 49.0, -124.0, -67.0)  # south, north, west, east
SCALES_KM = (2000.0, 600.0, 200.0, 60.0, 20.0)
SCALE_WEIGHTS = (1.0, 1.0, 0.9, 0.8, 0.7)  # how strongly each scale enters the location code
SCENE_FREEDOM = 5  # degrees of freedom of a scene's numbers, Student's t
SCALE = 0.3  # of all embeddings


@dataclass(frozen=True)
class Difficulty:
    """What makes the task hard. The defaults give the plain recipe about 0.75 and a good one about 0.94 at N = 20,000."""

    code_dim: int = 256
    nuisance_rank: int = 48
    signal: float = (
        0.5  # standard deviation of the location code's part of an embedding, per direction of the code
    )
    nuisance: float = 4.0  # the same for the scene nuisance: this is what dominates the raw cosine
    noise: float = 0.55  # isotropic
    misleading: float = 0.32  # chance that a view carries another place's code
    blank: float = 0.15  # chance that a view carries none
    strength_spread: float = 0.6  # standard deviation of the log of a telling view's signal
    cue: float = (
        2.5  # distance of the cue between telling and other views, in its own noise's standard deviations
    )


@dataclass(frozen=True)
class Maker:
    """How a place's code and everything else become an embedding: (offset + gain · (signal · s · code · mix + …)) · SCALE.

    mix: (code_dim, D). scene_mix: (rank, D). cue_axes: (2, D). offset, gain: (D,). code: (N, code_dim) of every place.
    """

    difficulty: Difficulty
    mix: Floats
    scene_mix: Floats
    cue_axes: Floats
    offset: Floats
    gain: Floats
    code: Floats


@dataclass(frozen=True)
class Planted:
    """A planted data set. N samples, V views, D features.

    embeddings: (N, V, D) float16. state_idx: (N,) ints in [0, 49], not consecutive. latitude, longitude: (N,) degrees.
    sample_id: (N,). kind: (N, V) 0 telling, 1 misleading, 2 blank. train, test: sorted row numbers, 90 % and 10 %. maker: what made
    the embeddings.
    """

    embeddings: NDArray[np.float16]
    state_idx: NDArray[np.int64]
    latitude: Floats
    longitude: Floats
    sample_id: NDArray[np.int64]
    kind: NDArray[np.int8]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    maker: Maker


def _uniform(rng: np.random.Generator, n: int) -> Floats:
    """(n, 2) points uniform on the sphere inside the box, degrees."""
    south, north, west, east = BOX_DEGREES
    z = rng.uniform(np.sin(np.radians(south)), np.sin(np.radians(north)), n)
    return np.stack([np.degrees(np.arcsin(z)), rng.uniform(west, east, n)], axis=-1)


def _locations(rng: np.random.Generator, n: int) -> Floats:
    """(n, 2) degrees: 85 % in towns of Zipf-like sizes and 3–30 km spread that gather in regions, the rest anywhere."""
    towns = max(20, n // 18)
    regions = _uniform(rng, 40)
    centres = regions[rng.integers(40, size=towns)] + rng.normal(size=(towns, 2)) * (1.6, 2.0)
    scattered = rng.random(towns) < 0.4
    centres[scattered] = _uniform(rng, int(scattered.sum()))
    size = 1.0 / (np.arange(towns) + 5.0) ** 0.7
    town = rng.choice(towns, size=n, p=size / size.sum())
    spread_km = np.exp(rng.uniform(np.log(3.0), np.log(30.0), towns))[town]
    step = rng.normal(size=(n, 2)) * (spread_km / 111.2)[:, None]
    points = centres[town] + step / np.stack([np.ones(n), np.cos(np.radians(centres[town, 0]))], axis=-1)
    rural = rng.random(n) < 0.15
    points[rural] = _uniform(rng, int(rural.sum()))
    south, north, west, east = BOX_DEGREES
    return np.asarray(np.clip(points, (south, west), (north, east)))


def _states(rng: np.random.Generator, points: Floats, classes: int) -> NDArray[np.int64]:
    """(N,) class of each point: Voronoi regions of `classes` cores and three times as many outliers that join a near core."""
    cores = _uniform(rng, classes)
    seeds = np.concatenate([cores, _uniform(rng, 3 * classes)])
    core_vectors = to_unit_vectors(cores[:, 0], cores[:, 1])
    seed_vectors = to_unit_vectors(seeds[:, 0], seeds[:, 1])
    # An outlier joins the core that is nearest up to jitter: regions get arms and bays but stay in one area.
    distance = np.arccos(np.clip(seed_vectors @ core_vectors.T, -1, 1)) * np.exp(
        0.15 * rng.normal(size=(len(seeds), classes))
    )
    owner = distance.argmin(axis=1)
    owner[:classes] = np.arange(classes)
    return np.asarray(owner[(to_unit_vectors(points[:, 0], points[:, 1]) @ seed_vectors.T).argmax(axis=1)])


def _location_code(rng: np.random.Generator, points: Floats, dim: int) -> Floats:
    """(N, dim) fixed random nonlinear code of places, each feature with mean 0 and standard deviation 1."""
    vectors = to_unit_vectors(points[:, 0], points[:, 1]) * EARTH_RADIUS_KM
    width = 64
    parts = []
    for scale, weight in zip(SCALES_KM, SCALE_WEIGHTS, strict=True):
        # Random Fourier features of a Gaussian kernel with this length scale.
        angle = vectors @ (rng.normal(size=(3, width)) / scale) + rng.uniform(0, 2 * np.pi, width)
        parts.append(weight * np.sqrt(2.0) * np.cos(angle))
    fourier = np.concatenate(parts, axis=1)
    hidden = np.tanh(fourier @ rng.normal(size=(fourier.shape[1], 512)) / np.sqrt(fourier.shape[1]) * 1.5)
    code = hidden @ rng.normal(size=(512, dim)) / np.sqrt(512)
    return np.asarray((code - code.mean(axis=0)) / code.std(axis=0))


def _maker(rng: np.random.Generator, code: Floats, dim: int, difficulty: Difficulty) -> Maker:
    return Maker(
        difficulty,
        mix=rng.normal(size=(difficulty.code_dim, dim)) / np.sqrt(difficulty.code_dim),
        scene_mix=rng.normal(size=(difficulty.nuisance_rank, dim)) / np.sqrt(difficulty.nuisance_rank),
        cue_axes=rng.normal(size=(2, dim)) / np.sqrt(dim) * np.sqrt(24.0),
        # Raw features aren't standardised.
        offset=rng.normal(size=dim),
        gain=np.exp(0.5 * rng.normal(size=dim)),
        code=code,
    )


def _embeddings(
    rng: np.random.Generator, maker: Maker, kind: NDArray[np.int8], strength: Floats
) -> NDArray[np.float16]:
    """(N, V, D) embeddings of views of these kinds and strengths (N, V)."""
    difficulty = maker.difficulty
    (n, views), dim = kind.shape, len(maker.gain)
    strength = np.where(kind == 2, 0.0, strength)
    embeddings = np.empty((n, views, dim), dtype=np.float16)
    for view in range(views):  # a view at a time keeps the peak memory low
        source = np.where(kind[:, view] == 1, rng.permutation(n), np.arange(n))
        # Scenes: heavy-tailed weights on few directions, skewed so that a view's mean isn't 0.
        scene = rng.standard_t(SCENE_FREEDOM, size=(n, difficulty.nuisance_rank))
        scene *= scene_spread(difficulty)
        # The cue is a sign on one axis and its product with a second: a linear probe of either alone sees half of it.
        flip = rng.choice([-1.0, 1.0], size=n)
        telling = np.where(kind[:, view] == 0, 1.0, -1.0)
        first, second = cue_means(difficulty, telling)
        first = first + rng.normal(size=n)
        second = flip * second + rng.normal(size=n)
        x = difficulty.signal * strength[:, view, None] * (maker.code[source] @ maker.mix)
        x += difficulty.nuisance * (scene @ maker.scene_mix)
        x += first[:, None] * maker.cue_axes[0] + second[:, None] * maker.cue_axes[1]
        x += difficulty.noise * rng.normal(size=(n, dim))
        embeddings[:, view] = (maker.offset + maker.gain * x) * SCALE
    return embeddings


def scene_spread(difficulty: Difficulty) -> Floats:
    """(rank,) how strongly a scene enters each of its directions."""
    return np.asarray(np.exp(-np.arange(difficulty.nuisance_rank) / 16.0))


def cue_means(difficulty: Difficulty, telling: Floats | float) -> tuple[Floats, Floats]:
    """The means of the cue's two numbers, of the second without its sign, where a view tells the place (1) and where not (−1)."""
    told = np.asarray(telling)
    return told * difficulty.cue / 2, (1.0 + 0.5 * told) * difficulty.cue / 2


def score_of(
    data: Planted,
    rows: NDArray[np.int64] | slice,
    ranked: NDArray[np.int64],
    latitude: Floats,
    longitude: Floats,
) -> tuple[float, Floats]:
    """The score of answers for some rows, and how far off their points are, km (n,).

    Args:
        data: of which they are.
        rows: which.
        ranked: (n, 5) their `state_idx`, the likeliest first.
        latitude, longitude: (n,) degrees.
    """
    km = haversine_km(latitude, longitude, data.latitude[rows], data.longitude[rows])
    return competition_score(ranked, data.state_idx[rows], km)[0], km


def another_source(
    data: Planted, *, seed: int, dim: int = 768, difficulty: Difficulty | None = None
) -> NDArray[np.float16]:
    """Embeddings (N, V, dim) of the same pictures by another backbone: the same places, and the same views are misleading or blank; the
    code of a place, how strongly a view tells it, scenes and noise are its own.
    """
    difficulty = difficulty or Difficulty()
    rng = np.random.default_rng(seed)
    code = _location_code(rng, np.stack([data.latitude, data.longitude], axis=-1), difficulty.code_dim)
    strength = np.exp(difficulty.strength_spread * rng.normal(size=data.kind.shape))
    return _embeddings(rng, _maker(rng, code, dim, difficulty), data.kind, strength)


def planted(
    n: int,
    *,
    seed: int,
    classes: int = 33,
    views: int = 4,
    dim: int = 768,
    difficulty: Difficulty | None = None,
) -> Planted:
    """Draws a planted data set of `n` samples; the same arguments give the same arrays.

    x = signal · s · code · A + nuisance · z · B + cue + noise, with A (code_dim, dim) and B (rank, dim) random, scaled
    so that every coefficient of x has comparable size, s the view's strength and z its scene.
    """
    difficulty = difficulty or Difficulty()
    rng = np.random.default_rng(seed)
    points = _locations(rng, n)
    label = _states(rng, points, classes)
    code = _location_code(rng, points, difficulty.code_dim)

    kind = rng.choice(
        3,
        size=(n, views),
        p=[
            1 - difficulty.misleading - difficulty.blank,
            difficulty.misleading,
            difficulty.blank,
        ],
    ).astype(np.int8)
    strength = np.exp(difficulty.strength_spread * rng.normal(size=(n, views)))
    maker = _maker(rng, code, dim, difficulty)
    embeddings = _embeddings(rng, maker, kind, strength)

    numbers = np.sort(rng.choice(np.arange(max(50, classes)), size=classes, replace=False))
    order = rng.permutation(n)
    cut = n - n // 10
    return Planted(
        embeddings=embeddings,
        state_idx=numbers[label].astype(np.int64),
        latitude=points[:, 0],
        longitude=points[:, 1],
        sample_id=np.arange(n, dtype=np.int64),
        kind=kind,
        train=np.sort(order[:cut]),
        test=np.sort(order[cut:]),
        maker=maker,
    )
