"""One Ray cluster for all tests of this folder, begun where the first asks for it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from geo_embed.scale.cluster import Cluster, ray_cluster


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Of a cluster with two CPUs, as `ray start` begins one."""
    # Read when ray is first imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    pytest.importorskip("ray")
    # Short: paths of sockets have 107 letters at most.
    folder = Path(tempfile.mkdtemp(prefix="geo-ray-"))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        port, unused = (free.getsockname()[1] for free in (first, second))
    options = {
        "--port": port,
        "--node-ip-address": "127.0.0.1",
        "--ray-client-server-port": unused,
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--num-cpus": 2,
        "--num-gpus": 0,
        "--object-store-memory": 80_000_000,
        "--temp-dir": folder,
        "--include-dashboard": "false",
    }
    words = [str(word) for option in options.items() for word in option]
    # It stays in the foreground, and ends its processes when it is ended.
    start = [
        sys.executable,
        "-c",
        "from ray.scripts.scripts import main; main()",
        "start",
        "--head",
        "--block",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*start, *words], stdout=log, stderr=log) as head,
    ):
        while "Ray runtime started" not in (folder / "log").read_text():
            assert head.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
        head.terminate()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(ray_address: str) -> Iterator[Cluster]:
    """A connection of this process to it."""
    with ray_cluster(ray_address) as connected:
        yield connected
