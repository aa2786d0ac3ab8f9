"""`geo bench scale`: a manifest of millions planned and parted, a slice of it written as embeddings are, and extraction by several processes."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from geo_embed.backbones.pace import STREETCLIP
from geo_embed.bench.bucket import from_a_bucket
from geo_embed.bench.fitting import peak_bytes
from geo_embed.bench.measure import Bench, Measurement, figures_apart, seconds, this_machine
from geo_embed.bench.store import multiply_pictures
from geo_embed.bench.towers import flop_per_image
from geo_embed.cache.store import OK, chunks_of, commit_chunk, create_store, manifest_sha256, part_rows
from geo_embed.config import Config
from geo_embed.console import say
from geo_embed.data.samples import PREDICTED_POINT, PREDICTED_STATES, load_samples
from geo_embed.settings import resolve
from geo_embed.synthetic.backbone import write_backbone
from geo_embed.synthetic.country import write_country

# Of the store's chunks, those that are written.
_CHUNKS = 40
_DIM = 768
# Into how many parts a manifest is cut, each time to see that every row is in one part.
_PARTS = (1, 7, 64, 1000)
# Samples that are extracted, painted from as many places, in chunks of so many rows.
_EXTRACTED, _PAINTED, _CHUNK_ROWS = 1536, 40, 64
# Samples that are read from a bucket, 50 MB.
_READ = 8192
_ROUNDS = 3
# A dense bfloat16 product on an H100, as it was measured.
_H100_FLOP_PER_SECOND = 798e12
_BLOCK = 16 << 20


def bench_scale(config: Config, *, samples: int = 1_000_000) -> Bench:
    """Plan a made-up manifest of so many samples, write a slice of its store, and extract painted pictures in one process and in two.

    Args:
        config: chunk rows of the store that is written, and the cache directory, on whose disk all lies.
        samples: of the manifest; ten million take half a minute, 1.6 GB of memory and 1.2 GB of disk.
    """
    config.paths.cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.paths.cache_dir, prefix=".bench-") as folder:
        root = Path(folder)
        planned = _planned(root, samples)
        written = _written(config, root, samples)
        (root / "read").mkdir()
        bucket = from_a_bucket(root / "read", min(samples, _READ))
        return Bench("scale", this_machine(), [*planned, written, *_processes(root), *bucket])


def write_manifest(folder: Path, samples: int, views: tuple[str, ...]) -> Path:
    """The CSV of a test split of so many made-up samples, with names as the dataset has them."""
    folder.mkdir(parents=True)
    path = folder / "sample_submission.csv"
    header = ["sample_id", *(f"image_{view}" for view in views), *PREDICTED_STATES, *PREDICTED_POINT]
    rest = ",0" * (len(PREDICTED_STATES) + len(PREDICTED_POINT))
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(header) + "\n")
        for row in range(samples):
            names = ",".join(f"img_{row:08d}_{view}.jpg" for view in views)
            file.write(f"{row},{names}{rest}\n")
    return path


def plan_manifest(folder: str) -> dict[str, float]:
    """What it takes to plan the manifest in a folder: seconds of processor time, and bytes at the peak beyond what the imports took.

    Raises:
        RuntimeError: a row is in no part, or in two.
    """
    config = resolve(overrides={"paths.data_root": folder})[0]
    import pandas  # noqa: F401
    import pyarrow.compute
    import pyarrow.csv  # noqa: F401

    before = peak_bytes()
    started = time.process_time()
    samples = load_samples(config, "test")
    manifest_sha256(samples)
    for parts in _PARTS:
        check_parts(len(samples), config.inference.chunk_rows, parts)
    return {"seconds": time.process_time() - started, "bytes": peak_bytes() - before}


def check_parts(samples: int, chunk_rows: int, parts: int) -> None:
    """Raise RuntimeError where not every row is in one of n parts, and in one only."""
    begin = 0
    for k in range(1, parts + 1):
        rows = part_rows(samples, chunk_rows, (k, parts))
        if rows.start != begin:
            raise RuntimeError(
                f"part {k}/{parts} begins at row {rows.start}, the one before it ends at {begin}"
            )
        begin = rows.stop
    if begin != samples:
        raise RuntimeError(f"{parts} parts end at row {begin} of {samples}")


def read_by_csv(path: str) -> dict[str, float]:
    """The seconds of processor time that the csv module takes for a file, keeping nothing, and those for its bytes alone."""

    def rows() -> None:
        with Path(path).open(newline="", encoding="utf-8") as file:
            for _ in csv.reader(file):
                pass

    def data() -> None:
        with Path(path).open("rb") as file:
            while file.read(_BLOCK):
                pass

    def taken(action: Callable[[], None]) -> float:
        started = time.process_time()
        action()
        return max(time.process_time() - started, 1e-6)

    return {"rows": taken(rows), "bytes": taken(data)}


def write_slice(folder: str, cache: str, chunk_rows: str, chunks: str) -> dict[str, float]:
    """Lay out the store of the manifest in a folder, and commit some of its chunks, spread over it, as extraction does.

    Returns:
        `layout`, `commit` and `plain`: seconds to lay it out, to commit the chunks, and to write the same bytes to one file and force
        it to the disk; `pictures`, `bytes`, `objects` of the slice, and `fixed` bytes of metadata and ids.
    """
    samples = load_samples(resolve(overrides={"paths.data_root": folder})[0], "test")
    path = Path(cache) / "test.zarr"
    attrs = {"fingerprint": "bench", "backbone": "bench"}
    started = time.perf_counter()
    store = create_store(path, samples, dim=_DIM, dtype="float16", chunk_rows=int(chunk_rows), attrs=attrs)
    layout = time.perf_counter() - started
    fixed = store.storage.usage()[0]
    whole = list(chunks_of(store))
    places = np.unique(np.linspace(0, len(whole) - 1, min(int(chunks), len(whole))).astype(int))
    views = len(samples.view_names)
    # In place of a backbone: numbers of an embedding's size, ready in memory.
    embedded = np.random.default_rng(0).standard_normal((int(chunk_rows), views, _DIM)).astype(np.float16)
    commit = 0.0
    pictures = 0
    for place in places:
        rows = whole[place]
        count = rows.stop - rows.start
        hashes = np.arange(count * views, dtype=np.uint64).reshape(count, views)
        status = np.full((count, views), OK, dtype=np.uint8)
        commit += seconds(lambda: commit_chunk(store, rows, embedded[:count], hashes, status))  # noqa: B023
        pictures += count * views

    def write_plainly() -> None:
        with (Path(cache) / "plain").open("wb") as file:
            for _ in places:
                file.write(embedded.data)
            os.fsync(file.fileno())

    objects = sum(len(store.storage.chunks(name)) for name in ("embeddings", "content_hash", "status"))
    return {
        "layout": layout,
        "commit": commit,
        "plain": seconds(write_plainly),
        "pictures": pictures,
        "bytes": store.storage.usage()[0] - fixed,
        "objects": objects,
        "fixed": fixed,
    }


def _planned(root: Path, samples: int) -> list[Measurement]:
    views = resolve(overrides={})[0].model.view_names
    say(f"bench: writing a manifest of {samples:,} samples")
    path = write_manifest(root / "manifest", samples, views)
    write_manifest(root / "tenth", max(samples // 10, 1), views)
    whole = figures_apart(__name__, "plan_manifest", str(path.parent))
    tenth = figures_apart(__name__, "plan_manifest", str(root / "tenth"))
    read = figures_apart(__name__, "read_by_csv", str(path))
    size = path.stat().st_size / 1e9
    millions = samples / 1e6
    least = sum(len(name) for name in (f"img_{0:08d}_{view}.jpg" for view in views)) + 8
    return [
        Measurement(
            f"plan {samples:,} samples × {len(views)}: read, check, hash and part a CSV of {size:.2f} GB, processor time",
            whole["seconds"],
            read["rows"],
            read["rows"] / whole["seconds"],
            read["bytes"],
            "s",
            "the csv module over the same rows, which are forgotten",
            "its bytes read",
        ),
        Measurement(
            f"the same, a million of {samples:,}",
            whole["seconds"] / millions,
            tenth["seconds"] / (max(samples // 10, 1) / 1e6),
            tenth["seconds"] / max(samples // 10, 1) * samples / whole["seconds"],
            read["bytes"] / millions,
            "s",
            "a million of a tenth of them",
            "their bytes read",
        ),
        Measurement(
            "memory for it at the peak, beyond the imports",
            whole["bytes"] / 1e9,
            size,
            size / (whole["bytes"] / 1e9),
            least * samples / 1e9,
            "GB",
            "the CSV",
            "ids as integers and the letters of the names",
        ),
    ]


def _written(config: Config, root: Path, samples: int) -> Measurement:
    rows = min(config.inference.chunk_rows, samples)
    cache = root / "slice"
    cache.mkdir()
    w = figures_apart(__name__, "write_slice", str(root / "manifest"), str(cache), str(rows), str(_CHUNKS))
    views = len(config.model.view_names)
    scale = samples * views / w["pictures"]
    needed = _H100_FLOP_PER_SECOND / flop_per_image(SimpleNamespace(**STREETCLIP))
    return Measurement(
        f"commit {w['pictures']:,.0f} embeddings × {_DIM} in {w['objects']:,.0f} objects, forced to the disk; all of {samples:,} samples: "
        f"{(w['bytes'] * scale + w['fixed']) / 1e9:,.1f} GB in {w['objects'] * scale:,.0f} objects, {w['commit'] * scale:,.0f} s, "
        f"and {w['layout']:.1f} s to lay the store out",
        w["pictures"] / w["commit"],
        needed,
        w["pictures"] / w["commit"] / needed,
        w["pictures"] / w["plain"],
        "images/s",
        "what an H100 can make at most, ViT-L/14 at 336 px and 798 TFLOP/s",
        "the same bytes in one file, forced once",
    )


def _processes(root: Path) -> list[Measurement]:
    """Extraction by a backbone so small that decoding is most of it: two processes, a core each, against one; and Ray, where it is installed."""
    write_country(root / "data", locations=_PAINTED, seed=0)
    write_backbone(root / "backbone")
    overrides = {
        "paths.data_root": str(root / "data"),
        "paths.cache_dir": str(root / "cache"),
        "model.backbone_name": str(root / "backbone"),
        "model.device": "cpu",
        "inference.chunk_rows": _CHUNK_ROWS,
    }
    settings = resolve(overrides=overrides)[0]
    multiply_pictures(settings, _EXTRACTED)
    given = [part for key, value in overrides.items() for part in ("--set", f"{key}={json.dumps(value)}")]

    def pace(*jobs: tuple[int | None, list[str]]) -> float:
        """Images/s of processes that begin together, each on a core or on all, start-up left out."""
        shutil.rmtree(root / "cache", ignore_errors=True)
        return _pace([(core, [*given, "extract", "--split", "train", *more]) for core, more in jobs])

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    measurements = []
    if len(cores) > 1:
        own = ["--workers", "1"]
        alone = [(cores[0], own)]
        both = [(cores[k], [*own, "--part", f"{k + 1}/2"]) for k in range(2)]
        one, two = _best(lambda: pace(*alone), lambda: pace(*both))
        measurements.append(
            Measurement(
                "two processes, a core and half of the parts each",
                two,
                one,
                two / one,
                2 * one,
                "images/s",
                "one process on one core",
                "twice as many",
            )
        )
    if has_ray():
        local, ray, two = _best(
            lambda: pace((None, [])),
            lambda: pace((None, ["--engine", "ray"])),
            lambda: pace(*((None, ["--part", f"{k}/2"]) for k in (1, 2))),
        )
        measurements.append(
            Measurement(
                "geo extract --engine ray, once its workers work",
                ray,
                local,
                ray / local,
                two,
                "images/s",
                "in this process",
                "two processes that know nothing of each other",
            )
        )
    return measurements


def has_ray() -> bool:
    """Whether Ray is installed."""
    return find_spec("ray") is not None


def _best(*actions: Callable[[], float]) -> list[float]:
    """The best of some rounds in which actions take turns: what else a machine does makes them slower, never faster."""
    figures: list[list[float]] = [[] for _ in actions]
    for k in range(_ROUNDS):
        say(f"bench: measuring, round {k + 1} of {_ROUNDS}")
        for values, action in zip(figures, actions, strict=True):
            values.append(action())
    return [max(values) for values in figures]


def _pace(jobs: list[tuple[int | None, list[str]]]) -> float:
    """Images/s of `geo` commands that begin at once: their pictures over the longest of their times without loading the backbone."""
    running = []
    for core, arguments in jobs:
        pinned = "" if core is None else f"os.sched_setaffinity(0, {{{core}}}); "
        code = f"import os, sys; {pinned}sys.argv[0] = 'geo'; from geo_embed.cli import main; main()"
        command = [sys.executable, "-c", code, "--json", *arguments]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    computed, longest = 0, 0.0
    for process in running:
        out, err = process.communicate()
        if process.returncode:
            raise RuntimeError(f"geo failed: {(err.strip().splitlines() or ['no word'])[-1]}")
        result = json.loads(out)
        computed += result["computed"]
        longest = max(longest, result["computed"] / result["images_per_second"])
    return computed / longest
