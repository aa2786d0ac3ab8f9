"""Everything random follows from one seed, and its streams don't repeat each other."""

from __future__ import annotations

import random

import numpy as np
import torch

from geo_embed.seeding import get_generator, seed_worker, set_seed


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_sets_all_three_global_generators() -> None:
    set_seed(3)
    first = draws()
    set_seed(3)
    assert draws() == first
    set_seed(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_the_largest_seed_of_the_settings_is_taken() -> None:
    set_seed(2**63 - 1)
    assert get_generator(2**63 - 1, 5).initial_seed() >= 0


def test_a_worker_follows_torchs_seed() -> None:
    torch.manual_seed(11)
    seed_worker(0)
    first = draws()[:2]
    torch.manual_seed(11)
    seed_worker(1)
    assert draws()[:2] == first
    torch.manual_seed(12)
    seed_worker(0)
    assert all(a != b for a, b in zip(draws()[:2], first, strict=True))


def test_a_generator_is_the_same_every_time_and_another_for_every_seed_and_stream() -> None:
    def first(seed: int, stream: int) -> float:
        return float(torch.rand((), generator=get_generator(seed, stream)))

    assert first(1, 2) == first(1, 2)
    assert len({first(seed, stream) for seed in range(10) for stream in range(10)}) == 100


def test_a_generator_leaves_the_global_ones_alone() -> None:
    set_seed(5)
    wanted = draws()
    set_seed(5)
    torch.rand(3, generator=get_generator(1))
    assert draws() == wanted
