"""A submission is checked, sent by the `kaggle` command, and logged where that worked; the key is never looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small import answer_otherwise

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run
from geo_embed.submissions.log import read_events, submission_log
from geo_embed.submissions.send import send_submission

if TYPE_CHECKING:
    from conftest import Country, Geo


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the command: writes its words and the file's content beside itself; exits and prints as `answer` says."""
    folder = tmp_path / "bin with spaces"
    folder.mkdir()
    command = folder / "kaggle"
    command.write_text(
        "#!/bin/sh\n"
        f"cd '{folder}'\n"
        'for word in "$@"; do printf "%s\\n" "$word"; case $word in --file=*) cp "${word#--file=}" content;; esac; done > words\n'
        "env > environment\n"
        ". ./answer\n"
    )
    command.chmod(0o755)
    (folder / "answer").write_text("echo 'Successfully submitted to here'\n")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.mark.parametrize("message", ["first try", "-m --again", "ä; rm -rf $HOME `x` \"'"])
def test_what_is_sent_is_the_file_with_its_message_and_the_log_has_it(
    config: Config, run: Run, kaggle: Path, message: str
) -> None:
    path, _ = submit(config, run)
    sent = send_submission(config, path, message, competition="where-am-i")
    assert sent.answer == "Successfully submitted to here"
    words = (kaggle / "words").read_text().splitlines()
    assert words[:3] == ["competitions", "submit", "--competition=where-am-i"]
    assert words[3].endswith("/first.csv")
    assert words[4:] == [f"--message={message}"]
    assert (kaggle / "content").read_bytes() == path.read_bytes()
    # The copy that was sent is gone.
    assert not Path(words[3].removeprefix("--file=")).exists()
    (entry,) = submission_log(config)
    assert (entry.run, entry.texts) == ("first", [message])
    assert [submission["competition"] for submission in entry.sent] == ["where-am-i"]
    # A file that was sent stays.
    answer_otherwise(run)
    assert submit(config, run)[0].name == "first-2.csv"


@pytest.mark.parametrize(
    "answer",
    [
        "echo '403 - Forbidden' >&2; exit 1",
        "echo 'Could not find competition - please verify'; exit 0",
        "echo 'Could not submit to competition'",
        "kill -9 $$",
    ],
)
def test_nothing_is_logged_where_kaggle_fails_and_what_it_says_is_shown(
    config: Config, run: Run, kaggle: Path, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = submit(config, run)
    before = read_events(path.parent)
    (kaggle / "answer").write_text(answer + "\n")
    with pytest.raises(GeoError, match=r"kaggle failed with exit code -?\d+, and nothing is noted") as caught:
        send_submission(config, path, "x", competition="where-am-i")
    if "Forbidden" in answer:
        assert "exit code 1" in caught.value.what
        assert "kaggle: 403 - Forbidden" in capsys.readouterr().err
    assert read_events(path.parent) == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["first.csv", "log.json"]


def test_an_invalid_file_never_reaches_kaggle(config: Config, run: Run, kaggle: Path) -> None:
    path, _ = submit(config, run)
    path.write_text(path.read_text().replace("\n0,", "\nx,"))
    with pytest.raises(GeoError, match=r"is not valid, and isn't sent: .*'x'.* more error "):
        send_submission(config, path, "x", competition="where-am-i")
    assert not (kaggle / "words").exists()


def test_the_same_content_is_sent_twice_only_on_request(config: Config, run: Run, kaggle: Path) -> None:
    path, _ = submit(config, run)
    send_submission(config, path, "x", competition="where-am-i")
    copy = path.with_name("copy.csv")
    copy.write_bytes(path.read_bytes())
    (kaggle / "words").unlink()
    with pytest.raises(GeoError, match="the same content was sent to where-am-i") as caught:
        send_submission(config, copy, "x", competition="where-am-i")
    assert "--again" in caught.value.hint
    assert not (kaggle / "words").exists()
    send_submission(config, copy, "x", competition="elsewhere")
    send_submission(config, copy, "x", competition="where-am-i", again=True)


def test_without_the_command_or_a_competition_one_is_told_what_to_do(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, _ = submit(config, run)
    with pytest.raises(GeoError, match="no competition is named") as caught:
        send_submission(config, path, "x")
    assert "--set inference.competition=NAME" in caught.value.hint
    with pytest.raises(GeoError, match="no competition is called"):
        send_submission(config, path, "x", competition="--help")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GeoError, match="there is no `kaggle` command on the PATH") as caught:
        send_submission(config, path, "x", competition="where-am-i")
    assert "pip install kaggle" in caught.value.hint
    with pytest.raises(GeoError, match="the message is empty"):
        send_submission(config, path, " ", competition="where-am-i")


def test_the_commands_note_send_and_log_go_together(
    country: Country, run: Run, geo: Geo, kaggle: Path, tmp_path: Path
) -> None:
    options = [*country.options(tmp_path), "--set", "inference.competition=where-am-i"]
    env = {"PATH": f"{kaggle}{os.pathsep}{os.environ['PATH']}", "KAGGLE_KEY": "secret-of-mine"}
    written = geo(*options, "--json", "submit", "first").json["submission"]
    sent = geo(*options, "--json", "submission", "send", written, "-m", "first", env=env)
    assert (sent.code, sent.json["competition"], sent.json["rows"]) == (0, "where-am-i", 32)
    # The command's own key reaches it, and nobody else.
    assert "KAGGLE_KEY=secret-of-mine" in (kaggle / "environment").read_text()
    noted = geo(*options, "--json", "submission", "note", written, "--score", "0.75", "--text", "<b>\x1b[1m")
    assert noted.json["noted"]["public"] == 0.75
    (entry,) = geo(*options, "--json", "submission", "log").json["log"]
    assert (entry["run"], entry["state"], entry["texts"]) == ("first", "unchanged", ["first", "<b>\x1b[1m"])
    logged = geo(*options, "submission", "log")
    assert (logged.code, logged.err) == (0, "")
    assert "\x1b" not in logged.out
    for word in ("first.csv", "0.7500", "where-am-i", f"{entry['difference']:+.4f}", entry["sha256"][:8]):
        assert word in logged.out
    log = (tmp_path / "submissions" / "log.json").read_text()
    assert "secret-of-mine" not in sent.out + sent.err + noted.out + logged.out + log
    refused = geo(*options, "submission", "send", written, "-m", "again", env=env)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.splitlines()[-1].startswith("hint: --again")
