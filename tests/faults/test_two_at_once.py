"""Two commands write the same at once, or one reads what another replaces: one of them, or both in turn, never a mixture."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small import Nursery, Ran, Running, Small, command, files, holding, without

from geo_embed.extraction.extract import extract
from geo_embed.files import lock, lock_beside

if TYPE_CHECKING:
    from conftest import Country

ROUNDS = 5
REFUSED = re.compile(r"error: another process is writing this run now: process (\d+) on (\S+), since \S+ \(")

# Everybody is ready before anybody begins.
TOGETHER = """
import pathlib, time
while not pathlib.Path("go").exists():
    time.sleep(0.001)
"""


@pytest.fixture(scope="module")
def whole(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Forty places, extracted, and for some seeds the run that each makes alone."""
    small = Small.cut(country, tmp_path_factory.mktemp("two") / "small", train=40, test=8, chunk_rows=40)
    for split in ("train", "test"):
        extract(small.config(), split)
    return small


@pytest.fixture
def small(whole: Small, tmp_path: Path) -> Small:
    return whole.copy(tmp_path / "small")


@pytest.fixture(scope="module")
def alone(whole: Small, nursery: Nursery) -> dict[int, dict[str, object]]:
    made = {}
    for seed in (1, 2):
        assert nursery.run(whole, "fit-heads", "--name", f"alone-{seed}", "--seed", seed).code == 0
        made[seed] = content(whole.root / "runs" / f"alone-{seed}")
    shutil.rmtree(whole.root / "runs")
    assert made[1] != made[2]
    return made


def content(run: Path) -> dict[str, object]:
    """What a seed decides of a run: its heads, predictions, history and scores, and what it says of itself."""
    hashes = {
        name: digest for name, digest in files(run).items() if name.endswith((".safetensors", ".parquet"))
    }
    val = json.loads((run / "metrics.json").read_text())["val"]
    seed = json.loads((run / "provenance.json").read_text())["seed"]
    return {
        "files": hashes,
        "val": val,
        "seed": seed,
        "config": f"seed = {seed}\n" in (run / "config.toml").read_text(),
    }


def start(small: Small, nursery: Nursery, *arguments: object, before: str = "") -> Running:
    return nursery.start(small, *arguments, before=before + TOGETHER)


def end(small: Small, *processes: Running) -> list[Ran]:
    (small.root / "go").touch()
    ended = [process.end() for process in processes]
    (small.root / "go").unlink()
    return ended


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_commands_with_one_name_one_makes_the_run_and_the_other_is_told_who(
    small: Small, alone: dict[int, dict[str, object]], nursery: Nursery, overwrite: bool
) -> None:
    run = small.root / "runs" / "both"
    for _ in range(ROUNDS):
        if not overwrite:
            shutil.rmtree(run, ignore_errors=True)
        both = [
            start(small, nursery, "fit-heads", "--name", "both", "--seed", seed, *["--overwrite"] * overwrite)
            for seed in (1, 2)
        ]
        ended = end(small, *both)
        winners = [seed for seed, ran in zip((1, 2), ended, strict=True) if ran.code == 0]
        assert winners, [ran.err for ran in ended]
        # With --overwrite the second may begin when the first is done.
        assert len(winners) == 1 or overwrite
        assert content(run) in [alone[seed] for seed in winners]
        for ran, other in zip(ended, both[::-1], strict=True):
            if ran.code:
                assert ran.code == 1
                errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
                assert len(errors) == 1
                refused = REFUSED.match(errors[0])
                if refused:
                    assert (int(refused[1]), refused[2]) == (other.pid, socket.gethostname())
                else:
                    assert errors[0].startswith("error: a run of this name exists (")
        assert {path.name for path in run.parent.iterdir()} == {"both"}


def test_names_made_up_in_the_same_second_are_two(
    small: Small, alone: dict[int, dict[str, object]], nursery: Nursery
) -> None:
    for ran in end(small, *(start(small, nursery, "fit-heads", "--seed", seed) for seed in (1, 2))):
        assert ran.code == 0, ran.err
    made = [content(path) for path in (small.root / "runs").iterdir()]
    assert len(made) == 2
    assert all(alone[seed] in made for seed in (1, 2))


def test_without_locks_that_is_said_once_and_the_name_is_decided_at_the_rename(
    small: Small, alone: dict[int, dict[str, object]], nursery: Nursery
) -> None:
    """The kernel refuses flock: no lock holds the second back, and still there is one run of one seed."""
    both = [
        start(small, nursery, "fit-heads", "--name", "both", "--seed", seed, before=without("flock"))
        for seed in (1, 2)
    ]
    ended = end(small, *both)
    assert sorted(ran.code for ran in ended) == [0, 1]
    for seed, ran in zip((1, 2), ended, strict=True):
        assert ran.err.count("knows no locks (flock)") == 1
        if ran.code == 0:
            assert content(small.root / "runs" / "both") == alone[seed]
        else:
            assert re.search(
                "error: (this name is taken, and nothing was replaced|a run of this name exists) ", ran.err
            )
    assert {path.name for path in (small.root / "runs").iterdir()} == {"both"}


def test_a_name_that_is_held_is_refused_to_every_command_that_writes_a_run(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        assert command(capsys, *small.options(), "fit-heads", "--name", name).code == 0
    runs = small.root / "runs"
    before = files(runs)
    writers = [
        ("fit-heads", "--name", "first", "--overwrite"),
        ("fit-heads", "--name", "new"),
        ("sweep", "--name", "new", "--trials", "2"),
        ("sweep", "--name", "first", "--trials", "2", "--fresh"),
        ("ensemble", "first", "second", "--name", "new"),
        ("ensemble", "first", "second", "--name", "second", "--overwrite"),
        ("finetune", "--name", "new", "--init", "first"),
        ("finetune", "--name", "first", "--init", "second", "--overwrite"),
    ]
    for words in writers:
        name = words[words.index("--name") + 1]
        with lock(lock_beside(runs / name), busy="", where=runs, hint="", keep=False):
            ran = command(capsys, *small.options(), *words)
        assert ran.code == 1, words
        assert re.search(
            r"error: another process is (writing|training) this run now: process \d+ on ", ran.err
        ), words
        assert files(runs) == before, words
    assert command(capsys, *small.options(), "evaluate", "first").code == 0


def test_a_second_sweep_of_the_same_name_is_refused_and_the_first_goes_on(
    small: Small, nursery: Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    before = holding("fitting.sweep.train_all")
    first = nursery.start(small, "sweep", "--trials", "2", before=before)
    assert first.wait_for((small.root / "held").exists)
    second = command(capsys, *small.options(), "sweep", "--trials", "2")
    assert second.code == 1
    assert f"process {first.pid} on {socket.gethostname()}" in second.err
    (small.root / "go").touch()
    assert first.end().code == 0
    assert sorted(path.name for path in (small.root / "runs").iterdir()) == ["sweep", "sweep.sweep.json"]


def replaced_meanwhile(
    small: Small,
    nursery: Nursery,
    capsys: pytest.CaptureFixture[str],
    function: str,
    *words: object,
    by: tuple[str, ...] = ("--seed", "2"),
) -> Ran:
    """A command that has loaded run `first` of seed 1, and goes on once it is another one."""
    assert command(capsys, *small.options(), "fit-heads", "--name", "first", "--seed", "1").code == 0
    reader = nursery.start(small, "--json", *words, before=holding(function))
    assert reader.wait_for((small.root / "held").exists)
    again = ["fit-heads", "--name", "first", *by, "--overwrite"]
    assert command(capsys, *small.options(), *again).code == 0
    (small.root / "go").touch()
    return reader.end()


def test_who_evaluates_a_run_while_it_is_replaced_sees_the_old_or_the_new(
    small: Small, alone: dict[int, dict[str, object]], nursery: Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = replaced_meanwhile(
        small, nursery, capsys, "prediction.evaluate.read_predictions", "evaluate", "first"
    )
    assert ran.code == 0, ran.err
    val = {key: value for key, value in ran.json.items() if key not in ("run", "split")}
    assert val in [alone[seed]["val"] for seed in (1, 2)]


@pytest.mark.parametrize("name", ["load_heads", "write_predictions"])
def test_predictions_of_the_old_run_never_enter_the_new(
    small: Small, nursery: Nursery, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = ["predict", "first", "--split", "test"]
    ran = replaced_meanwhile(small, nursery, capsys, f"prediction.predict.{name}", *words)
    assert ran.code == 0, ran.err
    table = small.root / "runs" / "first" / "test_predictions.parquet"
    assert (
        ran.json["predictions"] == str(table.relative_to(small.root))
        or Path(ran.json["predictions"]) == table
    )
    written = table.read_bytes()
    table.unlink()
    assert command(capsys, *small.options(), *words).code == 0
    assert table.read_bytes() == written


def test_a_member_replaced_while_it_is_copied_makes_no_ensemble(
    small: Small, nursery: Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, *small.options(), "fit-heads", "--name", "second", "--seed", "1").code == 0
    words = ["ensemble", "first", "second", "--name", "both"]
    by = ("--seed", "1", "--fusion", "concat")
    ran = replaced_meanwhile(small, nursery, capsys, "prediction.ensemble.describe_origin", *words, by=by)
    assert ran.code == 1
    assert "error: the run was replaced while it was being read" in ran.err
    assert sorted(path.name for path in (small.root / "runs").iterdir()) == ["first", "second"]
    assert command(capsys, *small.options(), *words).code == 0
