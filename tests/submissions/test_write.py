"""A submission that was noted or sent is never lost to a later one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small import answer_otherwise

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run
from geo_embed.submissions.log import note_submission, read_events, submission_log


def test_a_second_submission_takes_the_next_name_once_the_first_was_noted(
    config: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = submit(config, run)
    noted = path.read_bytes()
    note_submission(config, path, score=0.8)
    # Of the same content nothing is lost.
    assert submit(config, run)[0] == path
    answer_otherwise(run)
    second, verdict = submit(config, run)
    assert second == path.with_name("first-2.csv")
    assert verdict.valid
    assert path.read_bytes() == noted != second.read_bytes()
    err = capsys.readouterr().err
    assert f"{path} was noted at " in err
    assert f"(score 0.8), and stays: the submission is {second}" in err
    # That one was not noted: it is the run's to replace.
    answer_otherwise(run)
    assert submit(config, run)[0] == second
    note_submission(config, second, score=0.7)
    answer_otherwise(run)
    assert submit(config, run)[0] == path.with_name("first-3.csv")
    assert [e.file.name for e in submission_log(config)] == ["first.csv", "first-2.csv", "first-3.csv"]


def test_a_made_up_name_is_never_that_of_another_runs_file(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    note_submission(config, path, score=0.8)
    second_file = path.with_name("first-2.csv")
    second_file.write_text("of somebody else")
    answer_otherwise(run)
    assert submit(config, run)[0] == path.with_name("first-3.csv")
    assert second_file.read_text() == "of somebody else"


def test_a_name_that_is_asked_for_is_refused_where_its_file_was_noted(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    note_submission(config, path, score=0.8)
    noted = path.read_bytes()
    answer_otherwise(run)
    with pytest.raises(GeoError, match=r"this file was noted at .* \(score 0.8\): it stays") as caught:
        submit(config, run, path)
    assert caught.value.hint == f"choose another name: --out {path.with_name('first-2.csv')}"
    assert path.read_bytes() == noted
    # By whatever way it is named.
    with pytest.raises(GeoError, match="it stays"):
        submit(config, run, path.parent / ".." / path.parent.name / path.name)


def test_no_other_table_takes_the_place_of_a_file_that_was_noted(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    evaluate(config, run, by=["worst"], out=path)
    path, _ = submit(config, run)
    note_submission(config, path, score=0.8)
    noted = path.read_bytes()
    with pytest.raises(GeoError, match=r"this file was noted at .*: it stays"):
        evaluate(config, run, by=["worst"], out=path)
    assert path.read_bytes() == noted


def test_what_was_changed_by_hand_after_it_was_noted_is_not_overwritten_either(
    config: Config, run: Run
) -> None:
    path, _ = submit(config, run)
    note_submission(config, path, score=0.8)
    path.write_text(path.read_text() + "\n")
    assert submit(config, run)[0] == path.with_name("first-2.csv")


def test_files_that_were_neither_noted_nor_sent_are_replaced_and_the_log_doesn_t_grow(
    config: Config, run: Run
) -> None:
    for _ in range(3):
        path, _ = submit(config, run)
        answer_otherwise(run)
    assert [p.name for p in path.parent.glob("*.csv")] == ["first.csv"]
    assert len(read_events(path.parent)) == 1


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    mode = folder.stat().st_mode
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_log_that_can_t_be_written_keeps_no_file_elsewhere_from_being_written(
    config: Config, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.paths.submissions_dir.mkdir(parents=True)
    with read_only(config.paths.submissions_dir):
        assert submit(config, run, tmp_path / "mine.csv")[1].valid
    assert "the log of submissions can't take this file" in capsys.readouterr().err


def test_a_folder_that_can_t_be_made_keeps_no_file_elsewhere_from_being_written(
    config: Config, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.paths.submissions_dir.parent.mkdir(parents=True, exist_ok=True)
    config.paths.submissions_dir.write_text("a file")
    assert submit(config, run, tmp_path / "mine.csv")[1].valid
    assert "the log of submissions can't take this file" in capsys.readouterr().err


def test_whose_a_score_is_stays_known_once_its_file_is_gone_and_its_name_taken_again(
    config: Config, run: Run
) -> None:
    path, _ = submit(config, run)
    note_submission(config, path, score=0.8)
    path.unlink()
    answer_otherwise(run)
    assert submit(config, run)[0] == path
    noted, new = submission_log(config)
    assert (noted.run, noted.public, noted.state) == ("first", 0.8, "changed")
    assert (new.run, new.public, new.state) == ("first", None, "unchanged")
