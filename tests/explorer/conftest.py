"""A scene over the session's run, and a client that asks about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from served import client_of
from small import Country

from geo_embed.explorer.explore import open_scene
from geo_embed.explorer.scene import Scene


@pytest.fixture(scope="session")
def scene(country: Country, fitted: Path) -> Scene:
    return open_scene(country.config(fitted.parents[1]), "first")[0]


@pytest.fixture(scope="session")
def client(scene: Scene) -> Iterator[TestClient]:
    with client_of(scene) as opened:
        yield opened


@pytest.fixture(scope="session")
def ids(scene: Scene) -> list[str]:
    """Of the held-out samples."""
    return [str(text) for text in scene.shown("val").predictions.sample_id]
