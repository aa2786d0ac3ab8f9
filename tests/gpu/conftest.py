"""Tests of what only a GPU does: `make gpu` runs them. Where torch sees none they are skipped.

`TEST_GPU_ON=cpu` runs their bodies on the CPU, with what only CUDA has left out: it shows that the tests themselves are right.
What a test measures goes into the table of `make gpu` by `record_property`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

# cuBLAS reads it once: sums in the same order each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from geo_embed.config import Config

if TYPE_CHECKING:
    from conftest import Country

DEVICE = os.environ.get("TEST_GPU_ON", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE != "cuda" or torch.cuda.is_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture
def on_card(country: Country, tmp_path: Path, device: torch.device) -> Config:
    """Settings over the country, cached on the CPU in float32, for work on the card; what is written is the test's own."""
    return country.config(tmp_path, model__device=device.type)
