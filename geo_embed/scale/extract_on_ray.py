"""Stage 1 on Ray: actors, one for each GPU, bring parts of one store to what one process would make of them.

    this process   plans, looks for bad pictures, lays the store out, deals out parts, counts
    an actor       reads, hashes, decodes and resizes ahead of its model, and commits chunk by chunk, as one process does

A part is a range of whole chunks, and its actor is its only writer. What an actor left half done when it died, the next one goes on with.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geo_embed.buckets import Address
from geo_embed.cache.leases import lease_seconds
from geo_embed.cache.locks import only_writer
from geo_embed.cache.store import Store, open_store
from geo_embed.config import Config, Dtype
from geo_embed.console import counted, progress, say
from geo_embed.data.variants import AS_THEY_ARE, Variant
from geo_embed.devices import dtype_name, pick_device, pick_dtype, torch_switches, with_torch_switches
from geo_embed.errors import BusyError, GeoError
from geo_embed.extraction.embedder import Embedder
from geo_embed.extraction.extract import (
    Extraction,
    ImageChanged,
    combined,
    embed_rows,
    new_embedder,
    prepare_store,
    progress_label,
    refuse_skipped,
    say_interrupted,
)
from geo_embed.extraction.plan import Plan, discard_superseded, lay_out_store, make_plan
from geo_embed.extraction.reuse import Sources, gather_sources
from geo_embed.scale.cluster import Cluster, Room, Workers, begin_worker, room_of, unseen
from geo_embed.threads import wait_passively

# Of a part at most: a dead worker costs the chunk that it was at, a part costs a filling of the pipeline.
_PART_CHUNKS = 8
# For each worker at least, as far as there are chunks: then all end at about the same time.
_PARTS_EACH = 4
# A process that Ray is told to end does so within moments.
_ENDING_SECONDS = 30.0


@dataclass(frozen=True)
class Part:
    """Rows of a store, whole chunks of it but for the last of all."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"of rows {self.start}–{self.stop - 1}"


@dataclass(frozen=True)
class Embedded:
    """What a worker did for a part.

    Attributes:
        extraction: the part's.
        worker: its process.
        changed: said of an image that isn't the one that its committed embedding was made from; then the rest doesn't count.
    """

    extraction: Extraction | None
    worker: str
    changed: str = ""


@dataclass(frozen=True)
class Job:
    """What all workers of an extraction are told.

    Attributes:
        plan: of the extraction.
        folder: that relative paths start from.
        seen: paths that are there, wherever it runs.
        plugins: as `model.plugins` has them.
        threads: of torch; None for as many as it takes by itself.
    """

    plan: Plan
    folder: Path
    seen: tuple[Path, ...]
    plugins: tuple[str, ...]
    threads: int | None


class Extractor:
    """What an actor is: a part's embedder and only writer. Its backbone is loaded once.

    Args:
        jobs: a list of the reference to a `Job`.
    """

    def __init__(self, jobs: list[Any]) -> None:
        wait_passively()
        self._jobs = jobs
        self._job: Job | None = None
        self._name = f"{socket.gethostname()}, process {os.getpid()}"
        self._embedder: Embedder | None = None
        self._sources: Sources | None = None

    def work(self, part: Part) -> "Embedded | GeoError":
        """Bring a part to what its images are now."""
        try:
            return self._work(self._set_up(), part)
        except GeoError as error:
            # It may have left half a chunk.
            self._embedder = None
            return error

    def _set_up(self) -> Plan:
        if self._job is None:
            import ray

            job: Job = ray.get(self._jobs[0])
            begin_worker(job.folder, job.plugins, job.threads)
            for path in job.seen:
                if not path.exists():
                    raise unseen(path)
            self._job = job
        return self._job.plan

    def _work(self, plan: Plan, part: Part) -> Embedded:
        rows = slice(part.start, part.stop)
        with torch_switches(plan.model), only_writer(plan.path, rows):
            store = open_store(plan.path)
            self._embedder = self._embedder or new_embedder(plan, store)
            self._sources = self._sources or gather_sources(store.path, plan.features)
            try:
                extraction = embed_rows(plan, store, rows, self._embedder, self._sources)
            except ImageChanged as change:
                self._embedder = None
                return Embedded(None, self._name, str(change))
            return Embedded(extraction, self._name)


@with_torch_switches
def extract_on_ray(
    config: Config,
    split: str,
    cluster: Cluster,
    *,
    limit: int | None = None,
    variant: Variant = AS_THEY_ARE,
    dtype: Dtype | None = None,
) -> Extraction:
    """Embed a split on a Ray cluster, as `extract` does in this process: the store holds the same bytes.

    Args:
        config: all settings. `inference.workers` are decoding threads of each worker; default: all its CPUs.
        split: `train` or `test`.
        cluster: every machine of it sees the same files under the same names.
        limit, variant, dtype: as in `extract`.

    Raises:
        GeoError: what `extract` raises; no room in the cluster, or a part whose workers died three times.
        KeyboardInterrupt: on Ctrl-C or SIGTERM. What is committed stays.
    """
    started = time.monotonic()
    plan, room, threads = _plan(config, split, cluster, variant, dtype)
    count = len(plan.samples)
    rows = slice(0, count if limit is None else min(limit, count))
    with only_writer(plan.path):
        store = prepare_store(plan, rows, None)
    # What is open here is opened again there.
    samples = replace(plan.samples, truth=None)
    seen = tuple(path for path in (plan.path, samples.image_root) if path.exists())
    worker_plan = replace(plan, samples=samples)
    job = Job(worker_plan, Path.cwd(), seen, tuple(config.model.plugins), threads)
    try:
        try:
            result = _embed(cluster, job, store, rows, room)
        except ImageChanged as change:
            say(f"{change}; what is the same is copied into a new store")
            with _all_of(plan.path):
                store = lay_out_store(plan, None, anew=True)
            result = _embed(cluster, job, store, rows, room)
    except KeyboardInterrupt:
        say_interrupted(store)
        raise
    refuse_skipped(plan, result)
    discard_superseded(store)
    result.seconds = time.monotonic() - started
    return result


def parts_of(store: Store, rows: slice, workers: int) -> list[Part]:
    """The parts that the rows of a store are divided into for so many workers."""
    chunks = -(-(rows.stop - rows.start) // store.chunk_rows)
    size = max(1, min(_PART_CHUNKS, chunks // (_PARTS_EACH * workers))) * store.chunk_rows
    return [Part(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def _plan(
    config: Config, split: str, cluster: Cluster, variant: Variant, dtype: Dtype | None
) -> tuple[Plan, Room, int | None]:
    """The plan for the device that workers have, the room for them, and their threads of torch."""
    import torch

    wanted = config.model.device
    device: torch.device | None = None
    gpus = wanted in ("auto", "cuda") and cluster.has_gpus()
    if gpus:
        # This machine may have none.
        asked = (
            cluster.ray.remote(_seen_device).options(num_gpus=1).remote(wanted, dtype or config.model.dtype)
        )
        name, dtype = cluster.ray.get(asked)
        device = torch.device(name)
    room = room_of(cluster, gpus=gpus, threads=torch.get_num_threads())
    plan = make_plan(config, split, variant, dtype, device)
    plan = replace(plan, workers=config.inference.workers or room.cpus)
    return plan, room, None if gpus else room.cpus


def _seen_device(device: str, dtype: Dtype) -> tuple[str, Dtype]:
    """The device that a worker with a GPU computes on, and in which precision."""
    seen = pick_device(device)
    precision = dtype_name(pick_dtype(dtype, seen))
    return seen.type, precision  # type: ignore[return-value]


def _embed(cluster: Cluster, job: Job, store: Store, rows: slice, room: Room) -> Extraction:
    """Have all parts of the rows embedded. Raises ImageChanged, once all workers have ended, where one was told of."""
    ray, parts = cluster.ray, parts_of(store, rows, room.workers)
    room = replace(room, workers=min(room.workers, len(parts)))
    say(f"{progress_label(store)}: {counted(len(parts), 'part')} on Ray, {room}")
    kind = ray.remote(Extractor).options(num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=0)
    # In a list it travels as a reference, and is read by each worker once.
    shared = [ray.put(job)]
    done: dict[int, Extraction] = {}
    views = len(job.plan.samples.view_names)
    seconds: dict[str, float] = {}
    again = "elsewhere"
    if isinstance(store.path, Address):
        again += (
            f", where a worker's machine died once its lease has ended: {lease_seconds():g} seconds at most"
        )
    with (
        progress(
            progress_label(store), (rows.stop - rows.start) * views, "images", job.plan.progress_seconds
        ) as advance,
        Workers[Part, Embedded](
            cluster, lambda: kind.remote(shared), room.workers, "the part", again
        ) as workers,
    ):
        for part, embedded in workers.run(parts):
            if embedded.extraction is None:
                raise ImageChanged(embedded.changed)
            done[part.start] = embedded.extraction
            worked = seconds.get(embedded.worker, 0.0)
            seconds[embedded.worker] = worked + embedded.extraction.working_seconds
            advance((part.stop - part.start) * views)
    result = combined([done[start] for start in sorted(done)])
    result.working_seconds = max(seconds.values())
    result.images_per_second = result.computed / result.working_seconds
    return result


@contextmanager
def _all_of(path: Path) -> Iterator[None]:
    """Be the only writer of a store whose workers were just told to end."""
    with ExitStack() as held:
        deadline = time.monotonic() + _ENDING_SECONDS
        while True:
            try:
                held.enter_context(only_writer(path))
                break
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield
