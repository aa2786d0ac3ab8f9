"""`geo runs`, as a user types it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Country
from small import Ran, command

import geo_embed
from geo_embed.runs.run import Run

Geo = Callable[..., Ran]


@pytest.fixture
def geo(country: Country, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Geo:
    return lambda *words: command(capsys, *country.options(tmp_path), *words)


def test_runs_alone_is_runs_ls_with_or_without_options(geo: Geo, run: Run) -> None:
    listed = geo("--json", "runs", "ls").json
    assert [summary["run"] for summary in listed["runs"]] == ["first"]
    assert listed["broken"] == []
    for words in (["runs"], ["runs", "--sort", "score"]):
        again = geo("--json", *words).json
        assert [summary["run"] for summary in again["runs"]] == ["first"]
    assert geo("runs", "--tag", "absent").out == "none\n"
    assert "geo runs ls" not in geo("runs", "-h").err
    assert geo("runs", "-h").code == 0


def test_people_get_a_table_and_what_is_no_run_below_it(geo: Geo, run: Run) -> None:
    (run.path.parent / "holiday\x1b[31m").mkdir()
    shown = geo("runs").out
    header, line, *rest = shown.splitlines()
    assert header.split()[:2] == ["run", "score"]
    assert line.split()[0] == "first"
    assert f"{run.read_metrics()['score']:.4f}" in line
    assert "pigeon: separate, average" in line
    assert rest[1] == "[no runs]"
    assert "holiday\\x1b[31m  it holds none of a run's files" in shown
    assert "\x1b" not in shown


def test_one_run_is_shown(geo: Geo, run: Run) -> None:
    shown = geo("runs", "show")
    assert shown.code == 0, shown.err
    assert "training.preset" in shown.out
    json = geo("--json", "runs", "show", "first").json
    assert (json["run"], json["val"]["score"]) == ("first", run.read_metrics()["score"])


def test_two_runs_are_compared(geo: Geo, run: Run) -> None:
    shutil.copytree(run.path, run.path.with_name("second"))
    shown = geo("runs", "compare", "first", "second")
    assert shown.code == 0, shown.err
    assert "no difference that these samples can tell" in shown.out
    assert "careful" not in shown.out
    settings = run.path.with_name("second") / "config.toml"
    settings.write_text(settings.read_text().replace('validation = "random"', 'validation = "spatial"'))
    assert "first was split at random, the other by place" in geo("runs", "compare", "first", "second").out
    settings.write_text(settings.read_text().replace('validation = "spatial"', 'validation = "random"'))
    compared = geo("--json", "runs", "compare", "first", "second").json
    assert (compared["difference"], compared["interval"]) == (0, [0, 0])
    assert [scored["run"] for scored in compared["runs"]] == ["first", "second"]


def test_tags_and_notes_are_written_and_found(geo: Geo, run: Run) -> None:
    assert geo("--json", "runs", "tag", "first", "good", "old").json == {
        "run": "first",
        "tags": ["good", "old"],
    }
    assert geo("--json", "runs", "tag", "first", "old", "--remove").json["tags"] == ["good"]
    assert geo("--json", "runs", "note", "first", "=1+1").json == {"run": "first", "note": "=1+1"}
    (summary,) = geo("--json", "runs", "--tag", "good").json["runs"]
    assert (summary["tags"], summary["note"]) == (["good"], "=1+1")
    refused = geo("runs", "tag", "first", "two words")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("error: ")


def test_nothing_is_deleted_where_nobody_can_be_asked(geo: Geo, run: Run) -> None:
    refused = geo("runs", "rm", "first")
    assert refused.code == 1
    assert "--yes" in refused.err
    assert run.path.is_dir()
    gone = geo("--json", "runs", "rm", "first", "--yes").json
    assert gone["removed"] == ["first"]
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("answer", "code"), [("n\n", 1), ("\n", 1), ("", 1), ("y\n", 0), (KeyboardInterrupt(), 130)]
)
def test_on_a_terminal_it_is_asked_first(
    geo: Geo, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str | KeyboardInterrupt, code: int
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            if isinstance(answer, KeyboardInterrupt):
                raise answer
            return answer

    monkeypatch.setattr("sys.stdin", Terminal())
    ran = geo("runs", "rm", "first")
    assert "Delete first for good?" in ran.err
    assert ran.code == code
    assert run.path.exists() == bool(code)


def test_the_same_verbs_are_there_in_python(run: Run) -> None:
    runs = run.path.parent
    geo_embed.tag_run(runs, "first", ["good"])
    assert [summary.tags for summary in geo_embed.list_runs(runs).runs] == [("good",)]
    assert geo_embed.describe_run(runs, "first")["tags"] == ("good",)
    assert geo_embed.remove_runs(runs, ["first"]).removed == ["first"]


@pytest.mark.parametrize("words", [("fit-heads", "--name", "new"), ("evaluate", "first")])
def test_a_score_names_the_table_behind_it_and_the_command_that_shows_the_worst(
    country: Country, geo: Geo, run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    ran = geo(*words)
    assert ran.code == 0, ran.err
    (line,) = (line for line in ran.out.splitlines() if line.startswith("one by one"))
    table, _, worst = line.removeprefix("one by one").strip().partition("; the worst first: ")
    assert Path(table).is_file()
    assert Path(table).parent.name == words[-1]
    # As it can be pasted.
    assert shlex.split(worst) == ["geo", *country.options(tmp_path), "evaluate", words[-1], "--by", "worst"]
    assert "one by one" not in geo("--json", "evaluate", "first").out
