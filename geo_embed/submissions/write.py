"""A run's competition file on disk: never over one that was noted or sent, and in the log of submissions."""

import hashlib
import itertools
import os
from contextlib import ExitStack, suppress
from pathlib import Path

import pandas as pd

from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.errors import BusyError, GeoError, disk_errors
from geo_embed.files import file_sha256, replacing
from geo_embed.runs.run import Run
from geo_embed.submissions.check import Verdict, validate
from geo_embed.submissions.log import Event, changing_events, key_of, now, read_events


def write_submission(config: Config, run: Run, table: pd.DataFrame, out: Path | None) -> tuple[Path, Verdict]:
    """Write a filled template, check it, and log whose it is.

    A file that was noted or sent is what a score belongs to, and stays: a default name becomes the next free one (`first-2.csv`),
    and a name that was asked for is refused. Where the content is the same, there is nothing to be lost.

    Args:
        config: paths; what `validate` reads; and `inference.tta`, for the log.
        run: whose answers they are.
        table: columns as text or numbers, in the template's order.
        out: the file; default `<submissions_dir>/<run>.csv`.

    Returns:
        The file that was written, and what the check says of it.

    Raises:
        GeoError: `out` was noted or sent with another content; the log is damaged, and the file is there; the disk is full or may not
            be written.
    """
    folder = config.paths.submissions_dir
    wanted = out or folder / f"{run.name}.csv"
    content = table.to_csv(index=False, lineterminator="\n").encode("utf-8")
    sha256 = hashlib.sha256(content).hexdigest()

    with ExitStack() as stack:
        write_events = None
        try:
            events, write_events = stack.enter_context(changing_events(folder))
        except BusyError:
            raise
        except GeoError as error:
            events = _readable_events(folder, wanted)
            warn(f"the log of submissions can't take this file: {error}")
        path = _free_name(wanted, run.name, sha256, events, folder, refuse=out is not None)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
            # Under its own name it may be somebody else's in a moment.
            verdict = validate(config, temporary, view_names=run.config.model.view_names)
        if write_events is not None:
            # The run's own score is of pictures as they are, or the run says otherwise itself.
            text = "averaged over variants of the pictures (--tta)" if config.inference.tta else ""
            event = _written(run, key_of(folder, path), sha256, len(table), text)
            try:
                write_events([*(e for e in events if not _is_replaced(e, event, events)), event])
            except GeoError as error:
                warn(f"the log of submissions can't take this file: {error}")
    return path, verdict


def check_not_submitted(folder: Path, out: Path) -> None:
    """Raise GeoError where a file that was noted or sent would be replaced by something else than a submission.

    Args:
        folder: of the submissions, and of their log.
        out: the file to be written.
    """
    _free_name(out, "", "", _readable_events(folder, out), folder, refuse=True)


def _readable_events(folder: Path, wanted: Path) -> list[Event]:
    """What the log says where it can't be written; a damaged one matters where a file could be lost."""
    try:
        return read_events(folder)
    except GeoError:
        if os.path.lexists(wanted):
            raise
        return []


def _free_name(
    wanted: Path, run: str, sha256: str, events: list[Event], folder: Path, *, refuse: bool
) -> Path:
    """The file to write: `wanted`, or the next name where a file would be lost that was noted or sent.

    Args:
        wanted: the file.
        run: whose answers are written. A name made up may be that of an earlier file of the same run.
        sha256: of what is written.
        events: of the log.
        folder: of the log.
        refuse: whether to raise GeoError in place of another name.
    """
    reason = _what_would_be_lost(wanted, sha256, events, folder)
    if not reason:
        return wanted
    others = (wanted.with_name(f"{wanted.stem}-{k}{wanted.suffix}") for k in itertools.count(2))
    free = next(path for path in others if _is_free(path, run, sha256, events, folder))
    if refuse:
        raise GeoError(
            f"this file was {reason}: it stays, since its score belongs to what it holds",
            where=wanted,
            hint=f"choose another name: --out {free}",
        )
    warn(f"{wanted} was {reason}, and stays: the submission is {free}")
    return free


def _is_free(path: Path, run: str, sha256: str, events: list[Event], folder: Path) -> bool:
    if not os.path.lexists(path):
        return True
    by = [e.run for e in events if e.file == key_of(folder, path) and e.event == "written"]
    return by[-1:] == [run] and not _what_would_be_lost(path, sha256, events, folder)


def _what_would_be_lost(path: Path, sha256: str, events: list[Event], folder: Path) -> str:
    """What happened to a file that must stay for it, as in "sent at …"; empty where it may be replaced."""
    if not os.path.lexists(path):
        return ""
    with suppress(OSError):
        if path.is_file() and file_sha256(path) == sha256:
            return ""
    file = key_of(folder, path)
    happened = [e for e in events if e.file == file and e.event != "written"]
    if not happened:
        return ""
    score = next((e.public for e in reversed(happened) if e.public is not None), None)
    return f"{happened[-1].event} at {happened[-1].when}" + (f" (score {score:g})" if score else "")


def _is_replaced(event: Event, new: Event, events: list[Event]) -> bool:
    """Whether a file that was written tells nothing any more: the new one is in its place, and it was neither noted nor sent."""
    if event.event != "written" or event.file != new.file:
        return False
    kept = any(e.event != "written" and (e.file, e.sha256) == (event.file, event.sha256) for e in events)
    return event.sha256 == new.sha256 or not kept


def _written(run: Run, file: str, sha256: str, rows: int, text: str) -> Event:
    scores = {}
    # A run of an earlier version may lack them, and a submission needs none.
    with suppress(GeoError):
        scores = run.read_metrics()
    return Event(
        event="written",
        when=now(),
        file=file,
        sha256=sha256,
        rows=rows,
        run=run.name,
        score=scores.get("score"),
        interval=scores.get("score_interval") or (None, None),
        samples=scores.get("samples"),
        text=text,
    )
