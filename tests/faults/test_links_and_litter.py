"""`gc` stays inside the cache, and one broken thing in a cache or among the runs stops no command for the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small import UNPRIVILEGED, Nursery, Small, command, content, files

from geo_embed.cache.locks import only_writer
from geo_embed.cache.tidy import collect_garbage
from geo_embed.extraction.extract import extract

if TYPE_CHECKING:
    from conftest import Country


@pytest.fixture(scope="module")
def whole(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.cut(country, tmp_path_factory.mktemp("links") / "small", train=40, chunk_rows=10)
    extract(small.config(), "train")
    return small


@pytest.fixture
def small(whole: Small, tmp_path: Path) -> Small:
    return whole.copy(tmp_path / "small")


def long_ago(directory: Path) -> None:
    for path in [directory, *directory.rglob("*")]:
        os.utime(path, (0, 0), follow_symlinks=False)


LITTER = [
    ".train.zarr.0123abcd.writing",
    ".train.zarr.replaced",
    ".train.zarr.creating",
    "train.zarr.1",
    "train.zarr/embeddings/.c.0123abcd.writing",
]


def litter(folder: Path) -> list[Path]:
    for name in LITTER[:4]:
        (folder / name).mkdir(parents=True)
        (folder / name / "half").write_text("left")
    (folder / LITTER[4]).parent.mkdir(parents=True, exist_ok=True)
    (folder / LITTER[4]).write_text("left")
    return [folder / name for name in LITTER]


def test_gc_deletes_nothing_that_a_link_leads_to(small: Small, tmp_path: Path) -> None:
    """A linked folder, store, superseded store, leftover, array: each full of what would be litter in the cache itself."""
    store = small.store()
    folder = store.parent
    elsewhere = tmp_path / "elsewhere"
    for name in ("folder", "store", "litter"):
        shutil.copytree(folder, elsewhere / name)
    litter(elsewhere / "folder")
    (elsewhere / "litter" / "mine").write_text("mine")
    (small.cache / "linked-0123456789abcdef").symlink_to(elsewhere / "folder")
    (small.cache / "another-fedcba9876543210").mkdir()
    (small.cache / "another-fedcba9876543210" / "train.zarr").symlink_to(elsewhere / "store" / "train.zarr")
    for name in (".train.zarr.89abcdef.writing", ".train.zarr.importing", "train.zarr.7"):
        (folder / name).symlink_to(elsewhere / "litter")
    (store / "linked").symlink_to(elsewhere / "folder")
    (store / ".x.0123abcd.writing").symlink_to(elsewhere / "litter" / "mine")
    # What only looks like ours.
    for name in (".git.replaced", ".mine.0123abcd.writing", "notes.1"):
        (folder / name).mkdir()
    leftovers = litter(small.cache / "more-00112233445566aa")
    shutil.copytree(
        elsewhere / "store" / "train.zarr", leftovers[0].with_name("train.zarr"), dirs_exist_ok=True
    )
    long_ago(tmp_path)
    before, stored = files(elsewhere), content(store)
    listed = {item["path"] for item in collect_garbage(small.config()).stores}
    assert listed == set(leftovers)
    collect_garbage(small.config(), delete=True)
    assert files(elsewhere) == before
    assert content(store) == stored
    assert not any(path.exists() for path in leftovers)
    assert (folder / ".git.replaced").is_dir()


def test_a_linked_cache_is_the_cache(small: Small, tmp_path: Path) -> None:
    name = small.store().parent.name
    small.cache.rename(tmp_path / "big")
    small.cache.symlink_to(tmp_path / "big")
    leftovers = litter(small.cache / "more-00112233445566aa")
    shutil.copytree(
        small.cache / name / "train.zarr", leftovers[0].with_name("train.zarr"), dirs_exist_ok=True
    )
    long_ago(tmp_path / "big")
    assert {item["path"] for item in collect_garbage(small.config(), delete=True).stores} == set(leftovers)
    assert extract(small.config(), "train").computed == 0


def test_gc_leaves_what_a_writer_has_begun_with_since_it_was_listed(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geo_embed.cache import tidy

    store = small.store()
    leftovers = litter(small.cache / "more-00112233445566aa")
    shutil.copytree(store, leftovers[0].with_name("train.zarr"), dirs_exist_ok=True)
    long_ago(small.cache)
    delete = tidy._delete

    def late(path: Path, store: Path) -> bool:
        with only_writer(store, slice(0, 10)):
            return delete(path, store)

    monkeypatch.setattr(tidy, "_delete", late)
    assert collect_garbage(small.config(), delete=True).stores == []
    assert leftovers[-1].exists()


def pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)


def a_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no directory")


def locked_up(path: Path) -> None:
    path.mkdir(parents=True)
    path.chmod(0)


BROKEN: dict[str, Callable[[Path], None]] = {
    "pipe": pipe, "loop": loop, "file": a_file, "locked up": locked_up, "name\nof two lines": Path.mkdir,
    "nowhere": lambda path: path.symlink_to("gone"),
}  # fmt: skip


def test_one_broken_thing_in_a_cache_stops_no_command_for_the_rest(small: Small, nursery: Nursery) -> None:
    store = small.store()
    for k, (kind, make) in enumerate(BROKEN.items()):
        folder = small.cache / f"{kind}-{k:016}"
        folder.mkdir()
        make(folder / "train.zarr")
        # The same in the place of the folder.
        make(small.cache / f"as folder {kind}")
    ran = nursery.run(small, "--json", "cache", "ls", before=UNPRIVILEGED)
    assert ran.code == 0, ran.err
    assert [Path(listed["path"]) for listed in ran.json["stores"]] == [store]
    broken = {Path(problem["store"]).parent.name for problem in ran.json["problems"]}
    assert {f"{kind}-{k:016}" for k, kind in enumerate(BROKEN)} <= broken
    assert all(problem["message"] for problem in ran.json["problems"])
    named = {Path(problem["store"]).name for problem in ran.json["problems"]}
    assert {"as folder locked up", "as folder loop", "as folder nowhere"} <= named
    for words in (["cache", "gc"], ["cache", "gc", "--unused", "--yes"], ["cache", "info"], ["fit-heads"]):
        ran = nursery.run(small, *words, before=UNPRIVILEGED)
        assert ran.code == 0, (words, ran.err)
    for path in small.cache.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def test_one_broken_run_stops_no_command_for_the_rest(small: Small, nursery: Nursery) -> None:
    assert nursery.run(small, "fit-heads", "--name", "good").code == 0
    runs = small.root / "runs"
    for kind, make in BROKEN.items():
        make(runs / f"as run {kind}")
        (runs / f"in {kind}").mkdir()
        make(runs / f"in {kind}" / "provenance.json")
    # Newer, and broken in a file that only loading it reads.
    for file in ("config.toml", "labels.json"):
        shutil.copytree(runs / "good", runs / f"no {file}")
        (runs / f"no {file}" / file).unlink()
        os.mkfifo(runs / f"no {file}" / file)
        os.utime(runs / f"no {file}" / "provenance.json", None)
    ran = nursery.run(small, "--json", "evaluate", before=UNPRIVILEGED)
    assert ran.code == 0, ran.err
    assert ran.json["run"] == "good"
    for name in ("in pipe", "in loop", "as run loop", "as run locked up", "no config.toml", "no labels.json"):
        assert f"{runs / name}" in ran.err, name
    assert ran.err.count("a run is broken, and passed over") >= 6
    for words in (
        ["cache", "ls"],
        ["cache", "gc", "--unused", "--yes"],
        ["submit", "good", "--out", "x.csv"],
    ):
        extract(small.config(), "test")
        ran = nursery.run(small, *words, before=UNPRIVILEGED)
        assert ran.code == 0, (words, ran.err)
    assert small.store().exists()
    ran = nursery.run(small, "evaluate", "absent", before=UNPRIVILEGED)
    assert (ran.code, ran.err.count("error: ")) == (1, 1)
    for path in runs.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def test_runs_that_may_only_be_read_are_evaluated_and_submitted(small: Small, nursery: Nursery) -> None:
    extract(small.config(), "test")
    for name in ("first", "second"):
        assert nursery.run(small, "fit-heads", "--name", name).code == 0
    runs = small.root / "runs"
    # A writer of another time was killed.
    (runs / ".first.lock").write_text("{}")
    folders = [runs, *(path for path in runs.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    pictures = [small.picture(0, view) for view in ("north", "east", "south", "west")]
    try:
        for words in (
            ["evaluate"],
            ["evaluate", "first", "--split", "train"],
            ["predict", "--images", *pictures],
            ["submit", "--out", small.root / "x.csv"],
        ):
            ran = nursery.run(small, *words, before=UNPRIVILEGED)
            assert ran.code == 0, (words, ran.err)
        refused = nursery.run(small, "fit-heads", before=UNPRIVILEGED)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert (refused.code, refused.err.count("error: can't write: Permission denied")) == (1, 1)
    assert (small.root / "x.csv").is_file()


def test_verify_says_which_parts_are_missing_and_the_commands_make_them(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty rows in chunks of ten: of four parts two are there."""
    shutil.rmtree(small.cache)
    verify = ["cache", "verify", "--split", "train"]
    for part in ((1, 4), (3, 4)):
        extract(small.config(), "train", part=part)
    ran = command(capsys, *small.options(), "--json", *verify)
    assert ran.code == 0
    (left,) = ran.json["pending"]
    assert (left["samples"], left["missing_parts"]) == (20, ["2/4", "4/4"])
    text = command(capsys, *small.options(), *verify).out
    assert "20 samples are not extracted yet, parts 2/4, 4/4. Next:" in text
    for line in left["commands"]:
        assert f"    {small.geo} {line.removeprefix('geo ')}" in text
        words = line.split()
        assert words[0] == "geo"
        assert command(capsys, *small.options(), *words[1:]).code == 0
    assert command(capsys, *small.options(), "--json", *verify).json["pending"] == []
    assert extract(small.config(), "train").computed == 0
