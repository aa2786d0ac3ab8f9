"""The log says whose a submission is, what it scored here and there, and whether the file still is what it was."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from small import answer_otherwise

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run
from geo_embed.submissions.log import note_submission, read_events, submission_log


def other_answers(path: Path) -> bytes:
    """The file with its first point moved."""
    lines = path.read_text().splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:-1], "-100.5"])
    return ("\n".join(lines) + "\n").encode()


def test_what_a_run_writes_stands_in_the_log_beside_the_public_score(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    (entry,) = submission_log(config)
    metrics = run.read_metrics()
    assert (entry.file, entry.rows, entry.run, entry.state) == (path, 32, "first", "unchanged")
    assert (entry.score, list(entry.interval), entry.samples) == (
        metrics["score"],
        metrics["score_interval"],
        metrics["samples"],
    )
    assert (entry.public, entry.private, entry.difference) == (None, None, None)
    note_submission(config, path, score=0.75, text="first try")
    noted = note_submission(config, path, score=0.8, private=0.78)
    (entry,) = submission_log(config)
    assert entry == noted
    assert (entry.public, entry.private, entry.texts) == (0.8, 0.78, ["first try"])
    assert entry.difference == pytest.approx(0.8 - metrics["score"])


def test_a_file_that_changed_or_went_since_it_was_noted_is_said_to_have(
    config: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = submit(config, run)
    note_submission(config, path, score=0.8)
    path.write_bytes(other_answers(path))
    assert [entry.state for entry in submission_log(config)] == ["changed"]
    assert note_submission(config, path, score=0.7).state == "unchanged"
    assert f"{path} has changed since it was noted at " in capsys.readouterr().err
    before, after = submission_log(config)
    assert [(e.public, e.state) for e in (before, after)] == [(0.8, "changed"), (0.7, "unchanged")]
    # Edited by hand, it is no run's any more.
    assert (before.run, after.run) == ("first", None)
    path.unlink()
    assert {entry.state for entry in submission_log(config)} == {"missing"}


def test_a_copy_elsewhere_is_known_by_its_content(config: Config, run: Run, tmp_path: Path) -> None:
    path, _ = submit(config, run)
    copy = tmp_path / "elsewhere" / "best, really.csv"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    entry = note_submission(config, copy, score=0.6)
    assert (entry.file, entry.run, entry.score) == (copy, "first", run.read_metrics()["score"])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 87.31])
def test_a_score_that_can_t_be_one_is_refused(config: Config, run: Run, score: float) -> None:
    path, _ = submit(config, run)
    with pytest.raises(GeoError, match="lies between 0 and 1"):
        note_submission(config, path, score=score)
    with pytest.raises(GeoError, match="private score lies between 0 and 1"):
        note_submission(config, path, score=0.5, private=score)
    assert [e.event for e in read_events(config.paths.submissions_dir)] == ["written"]


@pytest.mark.parametrize("kind", ["absent", "directory", "no table", "empty"])
def test_what_is_no_submission_is_not_noted(config: Config, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.csv"
    if kind == "directory":
        path.mkdir()
    elif kind != "absent":
        path.write_text("" if kind == "empty" else "a,b\n1,2\n")
    with pytest.raises(GeoError) as caught:
        note_submission(config, path, score=0.5)
    assert str(path) in str(caught.value)
    assert not config.paths.submissions_dir.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format_version": 1}', '{"format_version": 1, "events": [{"event": "lost"}]}'],
)
def test_a_damaged_log_is_said_to_be_one_and_stays_as_it_is(config: Config, run: Run, content: str) -> None:
    path, _ = submit(config, run)
    log, before = config.paths.submissions_dir / "log.json", path.read_bytes()
    log.write_text(content)
    answer_otherwise(run)
    for look in (
        lambda: submission_log(config),
        lambda: note_submission(config, path, score=0.5),
        # Whether the file was sent, nobody knows.
        lambda: submit(config, run),
    ):
        with pytest.raises(GeoError, match="the log of submissions is damaged") as caught:
            look()
        assert caught.value.where == str(log)
    assert (log.read_text(), path.read_bytes()) == (content, before)


def test_a_log_of_a_later_version_is_left_alone_and_what_it_adds_is_kept(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    log = config.paths.submissions_dir / "log.json"
    content = json.loads(log.read_text())
    content["events"][0]["colour"] = "blue"
    log.write_text(json.dumps(content))
    note_submission(config, path, score=0.5)
    assert json.loads(log.read_text())["events"][0]["colour"] == "blue"
    log.write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(GeoError, match="of a later version"):
        submission_log(config)


def test_notes_from_many_at_once_are_all_kept(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    threads = [
        threading.Thread(target=note_submission, args=(config, path), kwargs={"score": k / 100})
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scores = [e.public for e in read_events(config.paths.submissions_dir) if e.event == "noted"]
    assert sorted(scores) == [k / 100 for k in range(8)]
    assert sorted(p.name for p in config.paths.submissions_dir.iterdir()) == ["first.csv", "log.json"]
