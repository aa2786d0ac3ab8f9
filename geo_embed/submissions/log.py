"""The log of submissions: which file was written by which run, what the competition said of it, and when it was sent.

One file, `log.json` in the folder of submissions: events in the order in which they came.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data.table import read_csv
from geo_embed.errors import AbsentError, GeoError
from geo_embed.files import file_sha256, lock, lock_beside, open_regular, read_json, write_json

_FILE = "log.json"
_VERSION = 1
# Others hold it while a file is written and checked.
_WAIT_SECONDS = 30.0

State = Literal["unchanged", "changed", "missing"]


class Event(BaseModel):
    """Something that happened to a submission. What a later version adds is kept.

    Attributes:
        event: `written` by a run, `noted` with a score, or `sent` to a competition.
        when: in UTC, ISO 8601.
        file: below the folder of submissions, else the whole path.
        sha256, rows: of the file's content then.
        run, score, interval, samples: who wrote it, and what that run scored on how many held-out samples, with the 95 % interval.
        public, private: scores on the competition's leaderboard.
        text: a note, or the message that went with it.
        competition: where it was sent.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    event: Literal["written", "noted", "sent"]
    when: str
    file: str
    sha256: str
    rows: int
    run: str | None = None
    score: float | None = None
    interval: tuple[float | None, float | None] = (None, None)
    samples: int | None = None
    public: float | None = None
    private: float | None = None
    text: str = ""
    competition: str | None = None


class _Log(BaseModel):
    format_version: int
    events: list[Event]


@dataclass(frozen=True)
class Entry:
    """A file with one content, and what is known of it.

    Attributes:
        file: its path.
        sha256, rows: of its content.
        run, score, interval, samples: the run that wrote it, and its score on held-out samples, with the 95 % interval.
        public, private: scores on the leaderboard, the last that were noted.
        difference: the public score minus the run's own.
        texts: what was noted, and sent along.
        sent: when, and to which competition.
        when: of the last event.
        state: whether the file still holds this content.
    """

    file: Path
    sha256: str
    rows: int
    run: str | None
    score: float | None
    interval: tuple[float | None, float | None]
    samples: int | None
    public: float | None
    private: float | None
    difference: float | None
    when: str
    state: State
    texts: list[str] = field(default_factory=list)
    sent: list[dict[str, str]] = field(default_factory=list)


def submission_log(config: Config) -> list[Entry]:
    """Every file that was written, noted or sent, the last one last.

    Raises:
        GeoError: the log is damaged.
    """
    folder = config.paths.submissions_dir
    events = read_events(folder)
    by_content: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        by_content.setdefault((event.file, event.sha256), []).append(event)
    entries = [_entry(folder, content_events, events) for content_events in by_content.values()]
    return sorted(entries, key=lambda entry: entry.when)


def note_submission(
    config: Config, path: Path, *, score: float, private: float | None = None, text: str = ""
) -> Entry:
    """Keep what the competition said of a file.

    Args:
        config: where the log is.
        path: the file, as it was sent.
        score, private: on the public and the private leaderboard, 0 to 1.
        text: whatever is worth remembering.

    Raises:
        GeoError: a score that can't be one, no such file, a file that is no table with ids, or a log that can't be written.
    """
    for name, value in (("score", score), ("private score", private)):
        if value is not None and not 0 <= value <= 1:
            raise GeoError(
                f"a {name} lies between 0 and 1, got {value:g}",
                hint="give it as the leaderboard shows it, as 0.8731",
            )
    sha256, rows = digest_and_rows(path)
    folder = config.paths.submissions_dir
    file = key_of(folder, path)
    event = Event(
        event="noted",
        when=now(),
        file=file,
        sha256=sha256,
        rows=rows,
        public=score,
        private=private,
        text=text,
    )
    with changing_events(folder) as (events, write):
        before = [other for other in events if other.file == file and other.event != "written"]
        if before and before[-1].sha256 != sha256:
            warn(
                f"{path} has changed since it was {before[-1].event} at {before[-1].when}: "
                "the score is kept for what the file holds now"
            )
        events = [*events, event]
        write(events)
    content_events = [other for other in events if (other.file, other.sha256) == (file, sha256)]
    return _entry(folder, content_events, events)


def digest_and_rows(path: Path) -> tuple[str, int]:
    """The sha256 of a submission's bytes, and its rows. Raises GeoError for what is no table with ids."""
    table, problems = read_csv(path, ["sample_id"])
    if table is None:
        if problems[0].kind == "missing-file":
            raise GeoError("there is no such submission", where=path, hint="write one with: geo submit")
        raise GeoError(
            problems[0].message, where=path, hint=f"look at it with: geo submission validate {path}"
        )
    with open_regular(path):
        return file_sha256(path), len(table)


def read_events(folder: Path) -> list[Event]:
    """The log of a folder of submissions; empty where there is none. Raises GeoError where it is damaged."""
    path = folder / _FILE
    try:
        content = read_json(path)
        log = _Log.model_validate(content)
    except AbsentError:
        return []
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except GeoError as error:
        raise _damaged(path, error.what) from error
    if log.format_version > _VERSION:
        raise GeoError(
            f"the log of submissions is of a later version ({log.format_version})",
            where=path,
            hint="update geo_embed",
        )
    return log.events


@contextmanager
def changing_events(folder: Path) -> Iterator[tuple[list[Event], Callable[[list[Event]], None]]]:
    """The log's events, and what writes them anew, while nobody else can.

    Raises:
        GeoError: the log is damaged, can't be written, or somebody else holds it for long.
    """
    path = folder / _FILE

    def write(events: list[Event]) -> None:
        listed = [event.model_dump(mode="json", exclude_defaults=True) for event in events]
        write_json(path, {"format_version": _VERSION, "events": listed})

    with lock(
        lock_beside(path),
        busy="another command is writing the log of submissions",
        where=path,
        hint="wait for it, and type this again",
        keep=False,
        wait_seconds=_WAIT_SECONDS,
    ):
        yield read_events(folder), write


def key_of(folder: Path, path: Path) -> str:
    """A file's name in the log of a folder: below the folder, else the whole path."""
    whole = path.resolve()
    try:
        return whole.relative_to(folder.resolve()).as_posix()
    except ValueError:
        return whole.as_posix()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _damaged(path: Path, why: str) -> GeoError:
    return GeoError(
        f"the log of submissions is damaged: {why}",
        where=path,
        hint="mend it, or move it aside: a new one is begun, and knows nothing of the files that were noted or sent",
    )


def _entry(folder: Path, content_events: list[Event], events: list[Event]) -> Entry:
    """What the events (in order) about one content of one file say; who wrote it may be known from a copy of it."""
    last = content_events[-1]
    path = folder / last.file
    written = [e for e in content_events if e.run] or [e for e in events if e.sha256 == last.sha256 and e.run]
    author = written[-1] if written else last
    public, private = (
        next((value for e in reversed(content_events) if (value := getattr(e, name)) is not None), None)
        for name in ("public", "private")
    )
    known = public is not None and author.score is not None
    return Entry(
        file=path,
        sha256=last.sha256,
        rows=last.rows,
        run=author.run,
        score=author.score,
        interval=author.interval,
        samples=author.samples,
        public=public,
        private=private,
        difference=public - author.score if known else None,  # type: ignore[operator]
        when=last.when,
        state=_state(path, last.sha256),
        texts=[e.text for e in content_events if e.text],
        sent=[
            {"when": e.when, "competition": e.competition or ""} for e in content_events if e.event == "sent"
        ],
    )


def _state(path: Path, sha256: str) -> State:
    try:
        with open_regular(path):
            return "unchanged" if file_sha256(path) == sha256 else "changed"
    except (GeoError, OSError):
        return "missing"
