"""The application of `geo explore` in this process, asked as a browser on this machine asks."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from geo_embed.explorer.api import build_app
from geo_embed.explorer.guard import Guard, own_names
from geo_embed.explorer.scene import Scene

HOME = "http://127.0.0.1:8000"


def client_of(scene: Scene, split: str = "val", **guarded: Any) -> TestClient:
    """A browser that has the page open; what the guard is told may be changed."""
    settings: dict[str, Any] = {"hosts": own_names("127.0.0.1"), "token": None, "port": 8000}
    return TestClient(Guard(build_app(scene, split), **settings | guarded), base_url=HOME)
