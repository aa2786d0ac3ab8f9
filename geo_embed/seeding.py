"""One seed, and everything random follows from it."""

import random

import numpy as np
import torch


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, CUDA's included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries draw from the global generator
    torch.manual_seed(seed)


def seed_worker(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: torch has seeded itself in each worker, the others follow it."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)


def get_generator(seed: int, *stream: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own; streams of one seed (order, dropout, epoch 3, …) don't repeat each other.

    Args:
        seed: of the whole work.
        stream: which of its independent parts.
        device: where it draws.
    """
    mixed = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(mixed >> np.uint64(1)))
