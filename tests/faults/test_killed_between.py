"""Killed while a directory takes the place of another: the old or the new is there for every command that follows."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from small import DYING_BETWEEN_RENAMES, Nursery, Small, command, content, files

from geo_embed.extraction.extract import extract
from geo_embed.files import leftovers, replacing, replacing_directory

if TYPE_CHECKING:
    from conftest import Country

# The kernel ends the process right after two names were swapped, before what had the name is deleted.
AFTER_SWAP = """
import os
from geo_embed import files
at_once = files._rename_at_once

def dying(source, target, *, swap):
    done = at_once(source, target, swap=swap)
    if swap and done:
        os.kill(os.getpid(), 9)
    return done

files._rename_at_once = dying
"""
KILLS = pytest.mark.parametrize(
    "kill", [AFTER_SWAP, DYING_BETWEEN_RENAMES], ids=["swapped", "between two renames"]
)


@pytest.fixture(scope="module")
def whole(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.cut(country, tmp_path_factory.mktemp("killed") / "small", train=40, chunk_rows=40)
    for seed, name in enumerate(("old", "new")):
        table = np.random.default_rng(seed).normal(size=(40, 4, 8)).astype(np.float32)
        np.save(small.root / f"{name}.npy", table)
    extract(small.config(), "train")
    return small


@pytest.fixture
def small(whole: Small, tmp_path: Path) -> Small:
    return whole.copy(tmp_path / "small")


IMPORT = ["--split", "train", "--backbone", "mine"]


@KILLS
@pytest.mark.parametrize(
    "then",
    [
        ["cache", "gc", "--yes"],
        ["cache", "gc", "--unused", "--yes"],
        ["cache", "ls"],
        ["cache", "verify", "--split", "train", "--backbone", "mine"],
        ["cache", "info", "--split", "train", "--backbone", "mine"],
        ["--set", "model.backbone_name=mine", "fit-heads", "--name", "mine"],
    ],
    ids=" ".join,
)
def test_an_import_killed_there_loses_no_store_whatever_comes_next(
    small: Small, nursery: Nursery, capsys: pytest.CaptureFixture[str], kill: str, then: list[str]
) -> None:
    assert command(capsys, *small.options(), "cache", "import", small.root / "old.npy", *IMPORT).code == 0
    (store,) = small.cache.glob("mine-*/train.zarr")
    states = [content(store)]
    # A store of long ago: its age must not count as that of what is left.
    for path in [store, *store.rglob("*")]:
        os.utime(path, (0, 0))
    words = ["cache", "import", small.root / "new.npy", *IMPORT, "--overwrite"]
    assert nursery.run(small, *words, before=kill).code == -signal.SIGKILL
    assert store.exists() == (kill is AFTER_SWAP)
    named = ["--set", "model.backbone_name=mine"]
    ran = command(capsys, *small.options(), *named, *then)
    assert ran.code == 0, ran.err
    assert (
        command(capsys, *small.options(), "cache", "export", *IMPORT, "--out", small.root / "x.npy").code == 0
    )
    found_content = content(store)
    # The command itself may go on where it was: the new one is made by the same import.
    assert command(capsys, *small.options(), *words).code == 0
    states.append(content(store))
    assert found_content == states[kill is AFTER_SWAP]
    assert not [path for path in store.parent.iterdir() if path.name.startswith(".")]


@KILLS
@pytest.mark.parametrize(
    "then",
    [
        ["evaluate", "first"],
        ["evaluate"],
        ["ensemble", "first", "second", "--name", "both"],
        ["fit-heads", "--name", "third"],
        ["fit-heads", "--name", "first", "--overwrite"],
        ["cache", "gc", "--yes"],
        ["cache", "ls"],
    ],
    ids=" ".join,
)
def test_fit_heads_killed_there_hides_no_run_whatever_comes_next(
    small: Small, nursery: Nursery, capsys: pytest.CaptureFixture[str], kill: str, then: list[str]
) -> None:
    for name in ("second", "first"):
        assert command(capsys, *small.options(), "fit-heads", "--name", name).code == 0
    run = small.root / "runs" / "first"
    before = files(run)
    words = ["--set", "training.epochs=3", "fit-heads", "--name", "first", "--overwrite"]
    assert nursery.run(small, *words, before=kill).code == -signal.SIGKILL
    assert run.exists() == (kill is AFTER_SWAP)
    ran = command(capsys, *small.options(), "--json", *then)
    assert ran.code == 0, ran.err
    if then == ["evaluate"]:
        assert ran.json["run"] == "first"
    assert command(capsys, *small.options(), "evaluate", "first").code == 0
    if kill is DYING_BETWEEN_RENAMES and "--overwrite" not in then:
        assert files(run) == before
    for path in run.parent.glob(".*.writing"):
        os.utime(path, (0, 0))
    assert command(capsys, *small.options(), "cache", "gc", "--yes").code == 0
    assert not [
        path.name for path in run.parent.iterdir() if path.name.startswith(".") and path.suffix != ".lock"
    ]


@KILLS
def test_calibrate_killed_there_leaves_the_run_as_it_was_or_as_it_is_to_be(
    small: Small, nursery: Nursery, capsys: pytest.CaptureFixture[str], kill: str
) -> None:
    sure = [
        "--set",
        "training.epochs=12",
        "--set",
        "training.learning_rate=0.01",
        "fit-heads",
        "--folds",
        "2",
    ]
    for name in ("first", "whole"):
        assert command(capsys, *small.options(), *sure, "--name", name).code == 0
    assert command(capsys, *small.options(), "runs", "tag", "first", "good").code == 0
    run = small.root / "runs" / "first"
    before = files(run)
    assert command(capsys, *small.options(), "--json", "calibrate", "whole").json["changed"]
    assert nursery.run(small, "calibrate", "first", before=kill).code == -signal.SIGKILL
    (listed,) = command(capsys, *small.options(), "--json", "runs", "ls", "first").json["runs"]
    assert listed["tags"] == ["good"]
    assert listed["calibration"] == ("temperature" if kill is AFTER_SWAP else None)
    if kill is DYING_BETWEEN_RENAMES:
        assert files(run) == before
    assert command(capsys, *small.options(), "calibrate", "first").code == 0
    calibrated = small.root / "runs" / "whole"
    for name in ("recipe.json", "val_predictions.parquet", "val_uncalibrated_predictions.parquet"):
        assert (run / name).read_bytes() == (calibrated / name).read_bytes(), name


def test_without_overwriting_nothing_that_came_meanwhile_is_replaced(tmp_path: Path) -> None:
    from geo_embed.errors import GeoError

    with pytest.raises(GeoError, match="this name is taken, and nothing was replaced"):  # noqa: PT012, SIM117
        with replacing_directory(tmp_path / "run", overwrite=False) as writing:
            (writing / "new").touch()
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "old").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["old"]
    with pytest.raises(GeoError, match="this name is taken"):  # noqa: PT012, SIM117
        with replacing(tmp_path / "file", overwrite=False) as temporary:
            temporary.write_text("new")
            (tmp_path / "file").write_text("old")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    (elsewhere / "file").write_text("old")
    (tmp_path / "run").symlink_to(elsewhere)
    (tmp_path / "file").symlink_to(elsewhere / "file")
    with replacing_directory(tmp_path / "run") as writing:
        (writing / "new").touch()
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["file", "mine"]
    assert (elsewhere / "file").read_text() == "old"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["new"]
    assert (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "file", "run"]


def test_what_killed_writers_of_single_files_left_goes_after_an_hour(small: Small) -> None:
    submissions, run = small.root / "submissions", small.root / "runs" / "first"
    hour = time.time() - 3700
    for folder in (submissions, run):
        folder.mkdir(parents=True)
        for name in (".first.csv.0123abcd.writing.csv", ".other.csv.89abcdef.writing.csv", ".mine.csv"):
            (folder / name).touch()
            os.utime(folder / name, (hour, hour))
        (folder / ".young.csv.0123abcd.writing.csv").touch()
        (folder / ".link.csv.0123abcd.writing.csv").symlink_to(small.train_csv)
    assert len(leftovers(submissions)) == 2
    with replacing(submissions / "new.csv") as temporary:
        temporary.touch()
    kept = [".link.csv.0123abcd.writing.csv", ".mine.csv", ".young.csv.0123abcd.writing.csv"]
    assert sorted(path.name for path in submissions.iterdir()) == [*kept, "new.csv"]
    from geo_embed.cache.tidy import collect_garbage

    assert len(collect_garbage(small.config(), delete=True).stores) == 2
    assert sorted(path.name for path in run.iterdir()) == kept
    assert small.train_csv.stat().st_size
