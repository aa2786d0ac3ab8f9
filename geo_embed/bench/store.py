"""`geo bench store`: the full train split through the store, against np.save and np.load of the same bytes."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from geo_embed.bench.measure import Bench, Measurement, in_turn, seconds, this_machine
from geo_embed.cache.store import OK, chunks_of, commit_chunk, create_store, open_store, read_store
from geo_embed.config import Config
from geo_embed.data.samples import Samples

_ROUNDS = 5


def bench_store(config: Config, *, samples: int = 65_980, dim: int = 768) -> Bench:
    """Write and read `samples` × views × `dim` float16 numbers, below the cache directory's disk."""
    views = config.model.view_names
    shape = (samples, len(views), dim)
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(np.float16)
    manifest = Samples(
        "train",
        Path("bench.csv"),
        Path(),
        views,
        np.array([str(i) for i in range(samples)], dtype=object),
        np.full((samples, len(views)), "picture.jpg", dtype=object),
        None,
    )
    config.paths.cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.paths.cache_dir, prefix=".bench-") as folder:
        plain, path = Path(folder) / "plain.npy", Path(folder) / "stores" / "train.zarr"
        hashes = np.zeros(shape[:2], dtype=np.uint64)
        status = np.full(shape[:2], OK, dtype=np.uint8)
        copy = np.empty_like(values)

        # Ours and NumPy's take turns on the same disk: both write to a file that isn't there, and read what is in the page cache.
        def write() -> None:
            attrs = {"fingerprint": "bench", "backbone": "bench"}
            rows = config.inference.chunk_rows
            store = create_store(path, manifest, dim=dim, dtype="float16", chunk_rows=rows, attrs=attrs)
            for chunk in chunks_of(store):
                commit_chunk(store, chunk, values[chunk], hashes[chunk], status[chunk])

        def write_anew() -> float:
            shutil.rmtree(path.parent, ignore_errors=True)
            return seconds(write)

        def save_anew() -> float:
            plain.unlink(missing_ok=True)
            return seconds(lambda: np.save(plain, values))

        wrote, saved, moved = in_turn(
            _ROUNDS, write_anew, save_anew, lambda: seconds(lambda: np.copyto(copy, values))
        )
        read, loaded, copied = in_turn(
            _ROUNDS,
            lambda: seconds(lambda: read_store(open_store(path, writable=False))),
            lambda: seconds(lambda: np.load(plain)),
            lambda: seconds(lambda: np.copyto(copy, values)),
        )
    size = f"{samples:,} × {len(views)} × {dim} float16 ({values.nbytes / 1e6:.0f} MB)"
    bound = "copying the bytes in memory"
    return Bench(
        "store",
        this_machine(),
        [
            Measurement(f"read {size}", read, loaded, loaded / read, copied, "s", "np.load", bound),
            Measurement(f"write {size}", wrote, saved, saved / wrote, moved, "s", "np.save", bound),
        ],
    )
