"""A store in a bucket, of an S3 server that runs on this machine (moto's), against the same store in a folder."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from geo_embed.bench.measure import Measurement, figures_apart, seconds
from geo_embed.cache.store import OK, chunks_of, commit_chunk, create_store, open_store, read_store
from geo_embed.data.image_names import ImageNames
from geo_embed.data.samples import Samples
from geo_embed.settings import resolve

_BUCKET = "geo-bench"
_DIM, _CHUNK_ROWS = 768, 512
_ROUNDS = 3
# Starting the server takes some seconds of imports.
_WAIT_SECONDS = 120.0


def from_a_bucket(folder: Path, samples: int) -> list[Measurement]:
    """Reading a store of so many samples; nothing where obstore or the server isn't installed. `folder` is empty."""
    if not has_server():
        return []
    with _serving() as url:
        figures = figures_apart(__name__, "read_both", url, str(folder), str(samples))
    return [
        Measurement(
            f"read {samples:,} × 4 × {_DIM} float16 from a bucket on this machine, every checksum verified",
            figures["bucket"],
            figures["folder"],
            figures["folder"] / figures["bucket"],
            figures["again"],
            "s",
            "the same from a folder",
            "read again: what was read before is kept on this machine",
        )
    ]


def has_server() -> bool:
    """Whether buckets can be read, and moto's server is at hand."""
    return all(find_spec(name) is not None for name in ("obstore", "moto", "flask"))


def read_both(url: str, folder: str, samples: str) -> dict[str, float]:
    """Write a store into a bucket of the server at a URL and into a folder, and read both; the best of some rounds, in seconds.

    To be called in a process of its own: it sets the environment. Nothing of the bucket is on this machine when `bucket` is read,
    all of it when it is read `again`.
    """
    os.environ |= {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
    }
    n = int(samples)
    ids = [str(row) for row in range(n)]
    manifest = Samples(
        "train",
        Path("bench.csv"),
        Path(),
        ("north", "east", "south", "west"),
        np.array(ids, dtype=object),
        ImageNames([ids] * 4),
        None,
    )
    values = np.random.default_rng(0).standard_normal((n, 4, _DIM)).astype(np.float16)
    paths = {}
    for name, cache in (("bucket", f"s3://{_BUCKET}/cache"), ("folder", f"{folder}/cache")):
        os.environ["XDG_CACHE_HOME"] = f"{folder}/while-writing"
        paths[name] = (
            resolve(overrides={"paths.cache_dir": cache})[0].paths.cache_dir / "bench-f" / "train.zarr"
        )
        attrs = {"fingerprint": "f", "backbone": "bench"}
        store = create_store(
            paths[name], manifest, dim=_DIM, dtype="float16", chunk_rows=min(_CHUNK_ROWS, n), attrs=attrs
        )
        for rows in chunks_of(store):
            hashes = np.ones((rows.stop - rows.start, 4), dtype=np.uint64)
            commit_chunk(store, rows, values[rows], hashes, np.full(hashes.shape, OK, dtype=np.uint8))

    def read(name: str) -> float:
        return seconds(lambda: read_store(open_store(paths[name], writable=False)))

    taken: dict[str, list[float]] = {"folder": [], "bucket": [], "again": []}
    for k in range(_ROUNDS):
        os.environ["XDG_CACHE_HOME"] = f"{folder}/kept-{k}"
        for figure, name in (("folder", "folder"), ("bucket", "bucket"), ("again", "bucket")):
            taken[figure].append(read(name))
    return {figure: min(values) for figure, values in taken.items()}


@contextmanager
def _serving() -> Iterator[str]:
    """The URL of a server with an empty bucket, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/{_BUCKET}", method="PUT"), timeout=10)
                break
            except OSError as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"moto's server doesn't begin: {error}") from error
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()
