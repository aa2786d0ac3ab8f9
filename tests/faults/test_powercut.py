"""The power goes at any moment: every disk that this can leave opens, `verify` tells the truth, the same command goes on, and what was
said to be done is there.

`powercut.py` says what is recorded and what a cut may leave. Each test looks at a sample of the disks, and takes the command up again on
a few of them; `POWER_CUTS=all python -m pytest -s tests/faults/test_powercut.py` looks at all of them, and says how many they were.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from powercut import Disk
from small import Small, content, files

from geo_embed import files as files_module
from geo_embed.cache.exchange import cache_import
from geo_embed.cache.rebuild import rebuild_metadata
from geo_embed.cache.store import (
    OK,
    PENDING,
    list_stores,
    open_store,
    read_content_hash,
    read_has_feature,
    read_rows,
    read_status,
)
from geo_embed.cache.verify import find_pending, unreadable_stores, verify
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.extraction import writer
from geo_embed.extraction.extract import extract
from geo_embed.finetuning.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.submission import submit
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import load_run
from geo_embed.runs.tags import tag_run

pytestmark = pytest.mark.cut(train=6, test=2)

EVERYTHING = os.environ.get("POWER_CUTS") == "all"
Look = Callable[[Path, Sequence[object]], object]
# By a picture's content: its embedding.
Embedded = dict[int, bytes]


def try_all(disk: Disk, tmp_path: Path, look: Look, go_on: Look, *, looks: int = 40, goes: int = 3) -> None:
    """Have `look` at the disks that a cut could leave, and `go_on` with some of them."""
    cuts, changes = list(disk.cuts()), len(disk.events)
    chance = random.Random(0)
    # The last of them is what the command left.
    chosen = cuts if EVERYTHING else [*chance.sample(cuts, min(looks, len(cuts))), cuts[-1]]
    taken_up = {*chance.sample(range(len(chosen)), min(len(chosen), goes * (60 if EVERYTHING else 1)))}
    for k, cut in enumerate(chosen):
        root = cut.build(tmp_path / "after the cut")
        try:
            look(root, cut.promised)
            if k in taken_up:
                go_on(root, cut.promised)
        except (AssertionError, GeoError) as error:
            raise AssertionError(f"{error}\nafter {cut.promised}, with {sorted(cut.tree)}") from error
        shutil.rmtree(root)
    print(
        f"\n{changes:,} changes and fsyncs, {disk.tried:,} disks, {len(cuts):,} different: "
        f"{len(chosen):,} looked at, {len(taken_up):,} gone on with"
    )


def embedded(cache: Path) -> Embedded:
    """What is committed in a cache, earlier stores of the split included, each embedding read with its checksum."""
    committed: Embedded = {}
    for path in sorted(cache.glob("*/train.zarr*")):
        store = open_store(path, writable=False)
        values = read_rows(store, "embeddings", slice(0, store.shape[0]))
        content_hash = read_content_hash(store)
        for row, view in np.argwhere(read_status(store) == OK):
            committed[int(content_hash[row, view])] = values[row, view].tobytes()
    return committed


def look_at_cache(truth: Embedded, kept: Embedded) -> Look:
    """Whether a cache is what it says.

    Args:
        truth: every embedding that there can be.
        kept: those that were committed before.
    """

    def look(cache: Path, promises: Sequence[object]) -> None:
        assert unreadable_stores(cache) == []
        after_cut = embedded(cache)
        assert after_cut.items() <= truth.items()
        assert after_cut.keys() >= kept.keys() or "done" in promises
        promised = [rows for rows in promises if isinstance(rows, tuple)]
        stores = list_stores(cache, "train")
        assert stores or not promised
        for store in stores:
            assert verify(store) == []
            pending = (read_status(store) == PENDING).any(axis=1)
            for start, stop in promised:
                assert not pending[start:stop].any(), f"rows {start} to {stop} are lost"
            left = find_pending(store)
            assert (left.samples if left else 0) == pending.sum()
            assert not (left and "done" in promises)

    return look


def go_on_extracting(small: Small, whole: dict[str, object], truth: Embedded) -> Look:
    def go_on(cache: Path, promises: Sequence[object]) -> None:
        before = embedded(cache)
        done = extract(small.config(paths__cache_dir=str(cache)), "train")
        assert content(done.store) == whole
        assert verify(open_store(done.store)) == []
        # Whatever was committed is not computed again.
        wanted = set(np.unique(read_content_hash(open_store(done.store))).tolist())
        assert done.computed <= len(wanted - before.keys())
        assert embedded(cache).keys() >= wanted

    return go_on


@pytest.fixture
def say_commits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], None]:
    """Every chunk that is committed from now on has been promised."""
    commit = writer.commit_chunk

    def begin(disk: Disk) -> None:
        def commit_and_say(store: object, rows: slice, *arrays: object) -> None:
            commit(store, rows, *arrays)  # type: ignore[arg-type]
            disk.say((rows.start, rows.stop))

        monkeypatch.setattr(writer, "commit_chunk", commit_and_say)

    return begin


def whole_of(small: Small, tmp_path: Path) -> tuple[dict[str, object], Embedded]:
    """The store that there is to be in the end, and its embeddings."""
    elsewhere = tmp_path / "whole"
    store = extract(small.config(paths__cache_dir=str(elsewhere)), "train").store
    whole, truth = content(store), embedded(elsewhere)
    shutil.rmtree(elsewhere)
    return whole, truth


def recorded_extraction(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say_commits: Callable[[Disk], None]
) -> tuple[Disk, Look, Look]:
    """An extraction that was stopped in the middle of a chunk, taken up: that chunk is written again, with rows that were committed."""
    whole, truth = whole_of(small, tmp_path)
    extract(small.config(), "train", limit=3)
    kept = embedded(small.cache)
    assert len(kept) == 12
    disk = Disk(small.cache)
    with disk.recording(monkeypatch):
        disk.say((0, 3))
        say_commits(disk)
        extract(small.config(), "train")
        disk.say("done")
    return disk, look_at_cache(truth, kept), go_on_extracting(small, whole, truth)


def test_an_extraction_outlasts_a_power_cut(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say_commits: Callable[[Disk], None]
) -> None:
    whole, truth = whole_of(small, tmp_path)
    disk = Disk(small.cache)
    say_commits(disk)
    with disk.recording(monkeypatch):
        extract(small.config(), "train")
        disk.say("done")
    assert len([event for event in disk.events if type(event).__name__ == "Promised"]) == 4
    try_all(disk, tmp_path, look_at_cache(truth, {}), go_on_extracting(small, whole, truth))


def test_an_extraction_that_was_taken_up_in_the_middle_of_a_chunk_outlasts_it(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say_commits: Callable[[Disk], None]
) -> None:
    disk, look, go_on = recorded_extraction(small, tmp_path, monkeypatch, say_commits)
    try_all(disk, tmp_path, look, go_on)


def test_an_extraction_after_pictures_and_samples_changed_outlasts_it(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is moved aside, another copies from it, and it goes."""
    extract(small.config(), "train")
    before = embedded(small.cache)
    small.picture(1, "east").write_bytes(small.other_picture(0))
    small.write(small.table().iloc[[3, 0, 1, 5, 2]])
    whole, truth = whole_of(small, tmp_path)
    disk = Disk(small.cache)
    with disk.recording(monkeypatch):
        extract(small.config(), "train")
        disk.say("done")
    # Nothing of the earlier store is lost before the new one is whole.
    kept = {key: value for key, value in before.items() if key in truth}
    try_all(disk, tmp_path, look_at_cache(truth | before, kept), go_on_extracting(small, whole, truth))


def test_features_that_are_added_outlast_it(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a store of which two rows are still pending: these are embedded whole in the same pass."""
    config = small.config(model__features=("pooler_output", "token_mean"))
    elsewhere = extract(
        config.model_copy(update={"paths": small.config(paths__cache_dir=str(tmp_path / "whole")).paths}),
        "train",
    ).store
    whole, truth = content(elsewhere), embedded(tmp_path / "whole")
    values = {
        name: np.asarray(open_store(elsewhere).arrays[name][:]) for name in open_store(elsewhere).further
    }
    extract(small.config(), "train", limit=4)
    kept = embedded(small.cache)
    disk = Disk(small.cache)
    for name in ("commit_features", "commit_chunk"):
        commit = getattr(writer, name)

        def commit_and_say(
            store: object, rows: slice, *blocks: object, commit: Callable[..., None] = commit
        ) -> None:
            commit(store, rows, *blocks)
            disk.say((rows.start, rows.stop))

        monkeypatch.setattr(writer, name, commit_and_say)
    with disk.recording(monkeypatch):
        assert extract(config, "train").computed == 24
        disk.say("done")

    def look(cache: Path, promises: Sequence[object]) -> None:
        assert unreadable_stores(cache) == []
        (store,) = list_stores(cache, "train")
        assert verify(store) == []
        after_cut = embedded(cache)
        assert kept.items() <= after_cut.items() <= truth.items()
        for name in values:
            has = read_has_feature(store, name) if name in store.further else np.zeros((6, 4), dtype=bool)
            for promised in promises:
                assert has.all() if promised == "done" else has[slice(*promised)].all(), "a feature is lost"  # type: ignore[misc]
            if has.any():
                assert (np.asarray(store.arrays[name][:])[has] == values[name][has]).all()

    def go_on(cache: Path, promises: Sequence[object]) -> None:
        (store,) = list_stores(cache, "train")
        has = [
            read_has_feature(store, name) if name in store.further else np.zeros((6, 4), dtype=bool)
            for name in values
        ]
        left = 24 - int(np.logical_and.reduce(has).sum())
        at = config.model_copy(update={"paths": small.config(paths__cache_dir=str(cache)).paths})
        assert extract(at, "train").computed == left
        assert content(store.path) == whole

    try_all(disk, tmp_path, look, go_on, looks=30, goes=2)


def test_a_repair_outlasts_it(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows lose their status before they lose their data."""
    store = extract(small.config(), "train").store
    whole, truth = content(store), embedded(small.cache)
    damaged = store / "embeddings/c/1/0/0"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    disk = Disk(small.cache)
    with disk.recording(monkeypatch):
        assert len(verify(open_store(store), repair=True)) == 1
        disk.say("forgotten")

    def look(cache: Path, promises: Sequence[object]) -> None:
        (store,) = list_stores(cache, "train")
        status, problems = read_status(store), verify(store)
        assert (status[[0, 1, 4, 5]] == OK).all()
        # Damaged and said to be, or pending; never zeros for embeddings.
        assert problems or (status[2:4] == PENDING).all()
        assert not (problems and "forgotten" in promises)

    def go_on(cache: Path, promises: Sequence[object]) -> None:
        (repaired,) = list_stores(cache, "train")
        verify(repaired, repair=True)
        done = extract(small.config(paths__cache_dir=str(cache)), "train")
        assert done.computed == 8
        assert content(done.store) == whole
        assert embedded(cache) == truth

    try_all(disk, tmp_path, look, go_on)


def test_metadata_that_are_made_again_outlast_it(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = extract(small.config(), "train").store
    whole = content(store)
    for name in ("zarr.json", "embeddings/zarr.json", "status/zarr.json"):
        (store / name).unlink()
    disk = Disk(small.cache)
    with disk.recording(monkeypatch):
        rebuild_metadata(small.config(), store)
        disk.say("made again")

    def look(cache: Path, promises: Sequence[object]) -> None:
        problems = unreadable_stores(cache)
        assert not (problems and "made again" in promises)
        if not problems:
            (store,) = list_stores(cache, "train")
            assert content(store.path) == whole
            assert verify(store) == []

    def go_on(cache: Path, promises: Sequence[object]) -> None:
        (path,) = cache.glob("*/train.zarr")
        config = small.config(paths__cache_dir=str(cache))
        rebuild_metadata(config, path)
        assert content(path) == whole
        assert extract(config, "train").computed == 0

    try_all(disk, tmp_path, look, go_on, looks=30, goes=3)


def test_an_import_that_replaces_another_outlasts_it(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for name in ("old", "new"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(6, 4, 8)).astype(np.float16))
    disk = Disk(small.cache)

    def bring_in(name: str, cache: Path, *, overwrite: bool = False) -> dict[str, object]:
        config = small.config(paths__cache_dir=str(cache))
        return content(
            cache_import(config, tmp_path / f"{name}.npy", "train", "mine", overwrite=overwrite).store
        )

    with disk.recording(monkeypatch):
        old = bring_in("old", small.cache)
        disk.say("old")
        new = bring_in("new", small.cache, overwrite=True)
        disk.say("new")

    def look(cache: Path, promises: Sequence[object]) -> None:
        assert unreadable_stores(cache) == []
        stores = list_stores(cache, "train")
        assert stores or "old" not in promises
        for store in stores:
            assert verify(store) == []
            assert content(store.path) in ([new] if "new" in promises else [old, new])

    def go_on(cache: Path, promises: Sequence[object]) -> None:
        assert bring_in("new", cache, overwrite=True) == new

    try_all(disk, tmp_path, look, go_on, looks=80, goes=5)


def test_checkpoints_of_a_training_outlast_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checkpoint(step: int) -> Checkpoint:
        tensors = {"model/a": torch.full((5, 7), float(step)), "model/b": torch.arange(3) * step}
        return Checkpoint(step, tensors, {"losses": [1.5] * step})

    def save(directory: Path, step: int) -> None:
        save_checkpoint(directory, checkpoint(step), keep_last=1, best=step == 2)

    disk = Disk(tmp_path / "runs")
    with disk.recording(monkeypatch):
        for step in (1, 2, 3, 4):
            directory = tmp_path / "runs" / "tuned" / "checkpoints"
            directory.mkdir(parents=True, exist_ok=True)
            save(directory, step)
            disk.say(step)

    def look(runs: Path, promises: Sequence[object]) -> None:
        # No warning of a damaged one: warnings of ours go to stderr.
        latest = latest_checkpoint(runs / "tuned" / "checkpoints")
        assert (latest is not None) or not promises
        if latest is not None:
            loaded = load_checkpoint(latest)
            assert loaded.step >= max(map(int, map(str, promises)), default=0)
            assert loaded.state == checkpoint(loaded.step).state
            assert all(
                torch.equal(loaded.tensors[name], tensor)
                for name, tensor in checkpoint(loaded.step).tensors.items()
            )

    def go_on(runs: Path, promises: Sequence[object]) -> None:
        directory = runs / "tuned" / "checkpoints"
        directory.mkdir(parents=True, exist_ok=True)
        save(directory, 5)
        latest = latest_checkpoint(directory)
        assert latest is not None
        assert load_checkpoint(latest).step == 5

    try_all(disk, tmp_path, look, go_on, looks=200, goes=40)


def test_a_run_its_submission_and_its_tags_outlast_it(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run takes the place of another, is submitted and tagged."""
    for split in ("train", "test"):
        extract(small.config(), split)
    work = tmp_path / "work"

    def config(at: Path) -> Config:
        return small.config(at)

    fit_heads(config(work), name="first")
    later = {"test_predictions.parquet", "tags.json"}

    def of_training(at: Path) -> dict[str, str]:
        run_files = files(at / "runs/first")
        # What was under way has a hidden name.
        return {name: run_files[name] for name in run_files if name not in later and not name.startswith(".")}

    old = of_training(work)
    disk = Disk(work)
    with disk.recording(monkeypatch):
        fit_heads(config(work), name="first", overwrite=True)
        disk.say("fitted")
        submission, _ = submit(config(work), load_run(work / "runs", "first"))
        disk.say("submitted")
        tag_run(work / "runs", "first", ["good"])
        disk.say("tagged")
    new, all_files = of_training(work), files(work)
    assert new != old
    name = str(submission.relative_to(work))

    def look(at: Path, promises: Sequence[object]) -> None:
        assert of_training(at) in ([new] if "fitted" in promises else [old, new])
        load_heads(load_run(at / "runs", "first"))
        after_cut = files(at)
        for file, word in {
            name: "submitted",
            "runs/first/test_predictions.parquet": "submitted",
            "runs/first/tags.json": "tagged",
        }.items():
            assert after_cut.get(file, all_files[file]) == all_files[file]
            assert file in after_cut or word not in promises

    def go_on(at: Path, promises: Sequence[object]) -> None:
        _, verdict = submit(config(at), load_run(at / "runs", "first"))
        assert not verdict.errors
        fit_heads(config(at), name="first", overwrite=True)
        load_heads(load_run(at / "runs", "first"))

    try_all(disk, tmp_path, look, go_on, looks=30, goes=1)


LEFT_OUT = {
    "the bytes of files": ("force_to_disk", lambda path: path.suffix != ".writing" or path.is_dir()),
    "the names in folders": ("force_to_disk", lambda path: not path.is_dir()),
    "the folders above": ("force_names", None),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_where_an_fsync_is_left_out_this_is_seen(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    say_commits: Callable[[Disk], None],
    what: str,
) -> None:
    """A test of the tests here."""
    name, kept = LEFT_OUT[what]
    whole = getattr(files_module, name)

    def less(*paths: Path) -> None:
        if kept is None:
            files_module.force_to_disk(*paths)
        else:
            whole(*filter(kept, paths))

    monkeypatch.setattr(files_module, name, less)
    monkeypatch.setattr("geo_embed.cache.folder.force_to_disk", files_module.force_to_disk)
    disk, look, go_on = recorded_extraction(small, tmp_path, monkeypatch, say_commits)
    with pytest.raises(AssertionError):
        try_all(disk, tmp_path, look, go_on, looks=10_000, goes=0)


_RECORDED = """
import json, sys
from pathlib import Path
import pytest
sys.path.insert(0, sys.argv[1])
from powercut import Disk, Forced
from geo_embed.cli import main
import torch, zarr, pandas, geo_embed.fitting.fit, geo_embed.cache.exchange

root, results = Path(sys.argv[2]), []
disk = Disk(root / "work")
with disk.recording(pytest.MonkeyPatch()):
    for words in json.loads(sys.argv[3]):
        try:
            main(words)
        except SystemExit as end:
            results.append(end.code)
seen = {"codes": results, "seen": sorted(disk.seen), "forced": [e.path for e in disk.events if isinstance(e, Forced)]}
(root / "recorded.json").write_text(json.dumps(seen))
"""


def has_strace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_strace(), reason="there is no strace here, or it may trace nothing")
@pytest.mark.cut(train=40, test=2)
def test_what_strace_sees_of_zarr_safetensors_arrow_and_numpy_is_recorded(
    small: Small, tmp_path: Path
) -> None:
    """A store is imported and a run fitted on it: every file written, every name given, every fsync."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 4, 8)).astype(np.float16))
    work = tmp_path / "work"
    places = {"cache_dir": work / "cache", "runs_dir": work / "runs", "submissions_dir": work / "submissions"}
    options = [*small.options(), *(f"--set=paths.{name}={path}" for name, path in places.items())]
    commands = [
        [*options, "cache", "import", str(tmp_path / "x.npy"), "--split", "train", "--backbone", "mine"],
        [*options, "fit-heads", "--backbone", "mine", "--name", "first"],
        [*options, "runs", "tag", "first", "good"],
    ]
    calls = "fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,write,pwrite64,writev,link,linkat"
    trace = [
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-y",
        "-s0",
        f"-etrace={calls}",
        "-o",
        str(tmp_path / "trace"),
    ]
    program = [
        sys.executable,
        "-c",
        _RECORDED,
        str(Path(__file__).parents[1]),
        str(tmp_path),
        json.dumps(commands),
    ]
    ran = subprocess.run([*trace, *program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    recorded = json.loads((tmp_path / "recorded.json").read_text())
    assert recorded["codes"] == [0, 0, 0], ran.stderr
    below = f"{work}/"
    calls_seen, forced, named, passing = set(), [], set(), set()
    for line in (tmp_path / "trace").read_text().splitlines():
        call = line.split(maxsplit=1)[1].partition("(")[0]
        paths = re.findall(r'[<"]([^<>"]+)[>"]', line)
        paths = [path.removeprefix(below) for path in paths if path.startswith(below)]
        if not paths or " = -1 " in line:
            continue
        calls_seen.add(call)
        forced += paths if "sync" in call else []
        # What safetensors writes has another name until it is whole: it comes and goes between two looks.
        passing |= {paths[0]} if call.startswith("rename") else set()
        named.update(path.removesuffix("(deleted)") for path in paths)
    assert {"write", "rename", "fsync"} <= calls_seen
    seen = set(recorded["seen"])
    assert len(named & seen) > 50
    assert {Path(path).name[:4] for path in named - seen} <= {".tmp"}
    assert named - seen <= passing
    assert Counter(forced) == Counter(path for path in recorded["forced"] if path)
