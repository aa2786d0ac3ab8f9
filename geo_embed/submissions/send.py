"""A submission on its way to a Kaggle competition, by the `kaggle` command. Its key is that command's business alone."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from geo_embed.config import Config
from geo_embed.console import complain, say, warn
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import lock, open_regular
from geo_embed.submissions.check import validate
from geo_embed.submissions.log import Event, changing_events, digest_and_rows, key_of, now, read_events

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_LOCK = ".send.lock"
# What the command prints, and exits with 0 all the same: no such competition, an upload that broke off.
_FAILED = re.compile(r"^(could not|40[0-9]\b|error)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Sent:
    """What went out: the file, its content's sha256 and rows, where it went, the message, and what `kaggle` said."""

    file: Path
    sha256: str
    rows: int
    competition: str
    message: str
    answer: str


def send_submission(
    config: Config, path: Path, message: str, *, competition: str | None = None, again: bool = False
) -> Sent:
    """Check a file, send it, and log that it was sent. What is sent is a copy of what was checked.

    Args:
        config: the log's place, what `validate` reads, and `inference.competition`.
        path: the file.
        message: what to say of it on the competition's page.
        competition: its name, as in kaggle.com/competitions/NAME; default: the setting.
        again: send what was sent there already.

    Raises:
        GeoError: the file is invalid or was sent already, no competition is named, there is no `kaggle` command, or it failed, with its exit
            code; nothing is logged then.
    """
    competition = _checked_name(competition or config.inference.competition)
    if not message.strip():
        raise GeoError("the message is empty", hint="say what is sent: -m MESSAGE")
    kaggle = shutil.which("kaggle")
    if kaggle is None:
        raise GeoError(
            "there is no `kaggle` command on the PATH",
            hint="pip install kaggle, and give it its key as kaggle.com/docs/api says; or upload the file on the competition's page",
        )
    folder = config.paths.submissions_dir
    with (
        lock(
            folder / _LOCK,
            busy="another command is sending a submission",
            where=folder,
            hint="wait for it",
            keep=False,
        ),
        tempfile.TemporaryDirectory(prefix="geo-submission-") as aside,
    ):
        copy = Path(aside) / path.name
        with open_regular(path) as source, disk_errors(copy), copy.open("xb") as target:
            shutil.copyfileobj(source, target)
        _check(config, copy, path)
        sha256, rows = digest_and_rows(copy)
        _refuse_repeats(read_events(folder), sha256, path, competition, again)
        answer = _run(kaggle, copy, message, competition)
    event = Event(
        event="sent",
        when=now(),
        file=key_of(folder, path),
        sha256=sha256,
        rows=rows,
        text=message,
        competition=competition,
    )
    try:
        with changing_events(folder) as (events, write):
            write([*events, event])
    except GeoError as error:
        # It can't be called back.
        warn(f"{path} is sent, but the log doesn't have it: {error}")
    return Sent(path, sha256, rows, competition, message, answer)


def _checked_name(competition: str) -> str:
    if not competition:
        raise GeoError(
            "no competition is named",
            where="inference.competition",
            hint="--competition NAME, as in kaggle.com/competitions/NAME, or --set inference.competition=NAME",
        )
    if not _NAME.fullmatch(competition):
        raise GeoError(
            f"no competition is called {competition!r:.80}",
            hint="it is the last part of its address: kaggle.com/competitions/NAME",
        )
    return competition


def _check(config: Config, copy: Path, path: Path) -> None:
    errors = validate(config, copy).errors
    if errors:
        others = len(errors) - 1
        more = f", and {others} more error{'s' * (others > 1)}" if others else ""
        raise GeoError(
            f"the submission is not valid, and isn't sent: {errors[0]}{more}",
            where=path,
            hint=f"list them all with: geo submission validate {path}",
        )


def _refuse_repeats(events: list[Event], sha256: str, path: Path, competition: str, again: bool) -> None:
    before = [e for e in events if e.event == "sent" and (e.sha256, e.competition) == (sha256, competition)]
    if before and not again:
        raise GeoError(
            f"the same content was sent to {competition} at {before[-1].when}, as {before[-1].file}",
            where=path,
            hint="--again sends it once more, and uses up one of the day's submissions",
        )


def _run(kaggle: str, file: Path, message: str, competition: str) -> str:
    """What the command says on stdout. Raises GeoError where it fails, once its stderr was shown."""
    # With "=", so that a message may begin with a hyphen.
    words = [f"--competition={competition}", f"--file={file}", f"--message={message}"]
    say(f"kaggle competitions submit {competition}: {file.name}")
    try:
        ran = subprocess.run(
            [kaggle, "competitions", "submit", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise GeoError(f"can't run it: {error.strerror}", where=kaggle, hint="install it again") from error
    except KeyboardInterrupt:
        warn(f"interrupted: whether it was sent, `kaggle competitions submissions {competition}` says")
        raise
    lines = _lines(ran.stderr)
    failed = ran.returncode != 0 or _FAILED.search(ran.stdout)
    for line in lines:
        (complain if failed else say)(f"kaggle: {line}")
    answer = _lines(ran.stdout)
    if failed:
        last = (answer or lines or ["it says nothing"])[-1]
        raise GeoError(
            f"kaggle failed with exit code {ran.returncode}, and nothing is noted: {last:.300}",
            hint=f"see what there is with: kaggle competitions submissions {competition}",
        )
    return "\n".join(answer)


def _lines(text: str) -> list[str]:
    """Lines as they stand in the end: a progress bar writes over itself."""
    return [line for part in text.split("\n") if (line := part.rstrip("\r").split("\r")[-1].strip())]
