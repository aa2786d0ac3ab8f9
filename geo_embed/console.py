"""What is shown: results on stdout, news, warnings and progress on stderr; made harmless, whatever names hold.

Progress is a bar on a terminal, plain lines elsewhere, nothing with `-q`.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_quiet = False
_news_lost = False

# What moves a cursor, colours, ends a line, turns the direction of letters or shows nothing at all: C0 and C1 controls, soft
# hyphens, joiners and marks without width, bidirectional overrides, tags, halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff\ud800-\udfff]"
)


def harmless(text: str) -> str:
    """A text as one line that a terminal shows as it is: what it would obey, or hide, is written out.

    >>> harmless("Iowa\\x1b[31m\\n")
    'Iowa\\\\x1b[31m\\\\n'
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def harmless_json(text: str) -> str:
    """The same of JSON, which means what it meant; in plain letters where stdout has no others."""

    def escaped(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[k]:02x}{units[k + 1]:02x}" for k in range(0, len(units), 2))

    safe = _UNSEEN.sub(escaped, text)
    try:
        safe.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return re.sub("[^\x00-\x7f]", escaped, safe)
    return safe


def show(text: str = "") -> None:
    """One line of a result on stdout."""
    print(harmless(text))


def complain(text: str) -> None:
    """One line on stderr that is never left out."""
    global _news_lost
    if sys.stderr is None:
        return
    try:
        print(harmless(text), file=sys.stderr, flush=True)
    except OSError as error:
        # Work goes on though nobody hears of it; the exit code tells of it.
        _news_lost |= not isinstance(error, BrokenPipeError)
        forget_stream(sys.stderr)


def news_lost() -> bool:
    """Whether stderr took no more, as on a full disk."""
    return _news_lost


def forget_stream(stream: TextIO) -> None:
    """Let what is still to be written there go nowhere: at its end Python would try again, and complain."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def never_fail_at_letters() -> None:
    """Have stdout and stderr write out what their encoding lacks, as in the locale C."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def set_quiet(quiet: bool) -> None:
    """Show errors only."""
    global _quiet
    _quiet = quiet


def on_terminal() -> bool:
    """Whether news may redraw itself: stderr is a terminal, and nobody asked for quiet."""
    return not _quiet and sys.stderr is not None and sys.stderr.isatty()


def say(text: str) -> None:
    """One line of news on stderr."""
    if not _quiet:
        complain(text)


def warn(text: str) -> None:
    """One warning on stderr; `-q` leaves it."""
    complain(f"warning: {text}")


@contextmanager
def progress(label: str, total: int, unit: str, every_seconds: float) -> Iterator[Callable[[int], None]]:
    """Report work on `total` things; the yielded function takes how many more are done.

    Args:
        label: what is being done.
        total: how many there are.
        unit: what they are, in the plural.
        every_seconds: between two lines, off a terminal.
    """
    if _quiet or not total:
        yield lambda n: None
    elif on_terminal():
        with _bar(label, total, unit) as advance:
            yield advance
    else:
        yield _lines(label, total, unit, every_seconds)


@contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    start = time.monotonic()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} " + unit + "/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(harmless(label), total=total, rate=0.0)
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            bars.update(task, completed=done, rate=done / max(time.monotonic() - start, 1e-9))

        yield advance


def _lines(label: str, total: int, unit: str, every_seconds: float) -> Callable[[int], None]:
    start = last_line = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last_line
        done += n
        now = time.monotonic()
        if now - last_line >= every_seconds:
            last_line = now
            rate = done / (now - start)
            left = (total - done) / rate if rate else float("inf")
            say(f"{label}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, ETA {left:,.0f} s")

    return advance
