"""`geo bench store`: the full train split through the store, against np.save and np.load of the same bytes, and what fsync costs."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geo_embed import files
from geo_embed.bench.measure import Bench, Measurement, at_most, in_turn, seconds, this_machine
from geo_embed.cache.store import OK, chunks_of, commit_chunk, create_store, open_store, read_store
from geo_embed.config import Config
from geo_embed.data.image_names import ImageNames
from geo_embed.data.samples import Samples, load_samples
from geo_embed.extraction.extract import extract
from geo_embed.settings import resolve
from geo_embed.synthetic.backbone import write_backbone
from geo_embed.synthetic.country import write_country

_ROUNDS = 5
# Two chunks of the default size, and as many places as their pictures are painted from.
_EXTRACTED, _PAINTED = 1024, 40
# Of an extraction's time, what waiting for the disk may take.
_MOST_SHARE = 0.1


def bench_store(config: Config, *, samples: int = 65_980, dim: int = 768) -> Bench:
    """Write and read `samples` × views × `dim` float16 numbers, and extract pictures, below the cache directory's disk."""
    views = config.model.view_names
    shape = (samples, len(views), dim)
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(np.float16)
    config.paths.cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.paths.cache_dir, prefix=".bench-") as folder:
        read, written, forced = _written_and_read(config, Path(folder), values)
        extraction = (
            samples * len(views) / _pictures_per_second(config, Path(folder), min(samples, _EXTRACTED))
        )
        share = at_most(
            f"fsync's share of the time in which the demo's backbone embeds as many pictures ({extraction:,.0f} s), if nothing were done meanwhile",
            max(forced.ours - forced.baseline, 1e-9) / extraction,
            _MOST_SHARE,
            forced.limit / extraction,
            "of 1",
            "all bytes written and forced once",
        )
        return Bench("store", this_machine(), [read, written, forced, share])


@contextmanager
def _without_fsync() -> Iterator[None]:
    """Nothing waits for the disk while the block runs."""
    whole = files.fsync
    files.fsync = lambda handle: None
    try:
        yield
    finally:
        files.fsync = whole


def _written_and_read(config: Config, folder: Path, values: NDArray[np.float16]) -> list[Measurement]:
    samples, views, dim = values.shape
    manifest = Samples(
        "train",
        Path("bench.csv"),
        Path(),
        config.model.view_names,
        np.array([str(i) for i in range(samples)], dtype=object),
        ImageNames([["picture.jpg"] * samples] * views),
        None,
    )
    plain, path = folder / "plain.npy", folder / "stores" / "train.zarr"
    hashes = np.zeros(values.shape[:2], dtype=np.uint64)
    status = np.full(values.shape[:2], OK, dtype=np.uint8)
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
        # What others left for the disk to do is none of ours.
        os.sync()
        return seconds(write)

    def write_unforced() -> float:
        with _without_fsync():
            return write_anew()

    def save_anew() -> float:
        plain.unlink(missing_ok=True)
        return seconds(lambda: np.save(plain, values))

    def save_forced() -> float:
        plain.unlink(missing_ok=True)
        os.sync()

        def save() -> None:
            np.save(plain, values)
            files.force_to_disk(plain)

        return seconds(save)

    wrote, forced, saved, saved_forced, moved = in_turn(
        _ROUNDS,
        write_unforced,
        write_anew,
        save_anew,
        save_forced,
        lambda: seconds(lambda: np.copyto(copy, values)),
    )
    read, loaded, copied = in_turn(
        _ROUNDS,
        lambda: seconds(lambda: read_store(open_store(path, writable=False))),
        lambda: seconds(lambda: np.load(plain)),
        lambda: seconds(lambda: np.copyto(copy, values)),
    )
    size = f"{samples:,} × {views} × {dim} float16 ({values.nbytes / 1e6:.0f} MB)"
    bound = "copying the bytes in memory"
    return [
        Measurement(f"read {size}", read, loaded, loaded / read, copied, "s", "np.load", bound),
        Measurement(
            f"write {size}, without fsync", wrote, saved, saved / wrote, moved, "s", "np.save", bound
        ),
        Measurement(
            f"write {size}, chunk by chunk forced to the disk",
            forced,
            wrote,
            wrote / forced,
            saved_forced,
            "s",
            "the same without fsync",
            "np.save and one fsync",
        ),
    ]


def _pictures_per_second(config: Config, folder: Path, samples: int) -> float:
    """The pace of extraction by a backbone so small that decoding is most of it: the least time for the disk's waits to hide in."""
    write_country(folder / "data", locations=_PAINTED, seed=0)
    write_backbone(folder / "backbone")
    overrides = {
        "paths.data_root": folder / "data",
        "paths.cache_dir": folder / "cache",
        "model.backbone_name": str(folder / "backbone"),
        "inference.chunk_rows": config.inference.chunk_rows,
        "inference.workers": config.inference.workers,
    }
    settings = resolve(overrides=overrides)[0]
    multiply_pictures(settings, samples)

    def run() -> float:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return extract(settings, "train").images_per_second

    (pace,) = in_turn(3, run)
    return pace


def multiply_pictures(settings: Config, samples: int) -> None:
    """Make a train split of so many samples from the pictures that are there: no two have the same bytes, and none is another picture."""
    import pandas as pd

    painted = load_samples(settings, "train")
    table = pd.read_csv(painted.csv)
    rows = list(itertools.islice(itertools.cycle(range(len(table))), samples))
    more = table.iloc[rows].reset_index(drop=True)
    more["sample_id"] = range(samples)
    for v, view in enumerate(painted.view_names):
        names = [f"{i}-{view}.jpg" for i in range(samples)]
        for i, (row, name) in enumerate(zip(rows, names, strict=True)):
            data = (painted.image_root / painted.images[row, v]).read_bytes()
            # Behind a JPEG's end anything may stand.
            (painted.image_root / name).write_bytes(data + i.to_bytes(8, "little"))
        more[f"image_{view}"] = names
    more.to_csv(painted.csv, index=False)
