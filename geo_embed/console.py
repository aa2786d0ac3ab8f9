"""What is shown: results on stdout, news, warnings and progress on stderr; made harmless, whatever names hold.

Progress is a bar on a terminal, plain lines elsewhere, nothing with `-q`.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO, TypeVar

Thing = TypeVar("Thing")

_quiet = False
_news_lost = False
PROGRESS_SECONDS = 10.0
_progress_seconds = PROGRESS_SECONDS
# What ends sooner needs no bar.
_BAR_AFTER_SECONDS = 0.5
_bars: "_Bars | None" = None
_bars_lock = threading.Lock()
_standing = 0
# Shows a terminal's cursor.
_CURSOR = b"\x1b[?25h"

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
    """Show errors and warnings only."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether nothing but errors, warnings and answers is to be shown."""
    return _quiet


def on_terminal() -> bool:
    """Whether news may redraw itself: stderr is a terminal that can, and nobody asked for quiet."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return not _quiet and not dumb and sys.stderr is not None and sys.stderr.isatty()


def say(text: str) -> None:
    """One line of news on stderr."""
    if not _quiet:
        complain(text)


def warn(text: str) -> None:
    """One warning on stderr; `-q` leaves it."""
    complain(f"warning: {text}")


def set_progress_seconds(seconds: float) -> None:
    """Between two lines of progress, off a terminal, where whoever reports it says nothing else."""
    global _progress_seconds
    _progress_seconds = seconds


class Advance(Protocol):
    """Tells how many more are done, and what to show beside: a score so far."""

    def __call__(self, n: int, note: str = "") -> None: ...


@contextmanager
def progress(label: str, total: int, unit: str, every_seconds: float | None = None) -> Iterator[Advance]:
    """Report work on `total` things; the yielded function takes how many more are done, and a note that stays till the next.

    On a terminal a bar, once the work has lasted for half a second, with others below it while they last; it ends as it stands.

    Args:
        label: what is being done.
        total: how many there are.
        unit: what they are, in the plural.
        every_seconds: between two lines, off a terminal; default `tracking.progress_seconds`.
    """
    if _quiet or total <= 0:
        yield lambda n, note="": None
    elif on_terminal():
        with _bar(label, total, unit) as advance:
            yield advance
    else:
        yield _lines(label, total, unit, _progress_seconds if every_seconds is None else every_seconds)


def track(label: str, things: Sequence[Thing], unit: str) -> Iterator[Thing]:
    """Each of the things, with `progress` reported as they are taken."""
    with progress(label, len(things), unit) as advance:
        for thing in things:
            yield thing
            advance(1)


def counted(count: int, singular: str, plural: str = "") -> str:
    """A number and what it counts; `plural` is given where an s doesn't make it.

    >>> counted(1, "sample"), counted(2000, "sample"), counted(1, "sample has", "samples have")
    ('1 sample', '2,000 samples', '1 sample has')
    """
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter.

    >>> duration(7), duration(100), duration(4000), duration(200_000)
    ('7 s', '100 s', '1 h 7 min', '2 d 7 h')
    """
    if seconds < 120:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _pace(per_second: float | None, unit: str) -> str:
    """How fast: things per second, or seconds for each.

    >>> _pace(1234.5, "images"), _pace(2.5, "steps"), _pace(0.2, "epochs"), _pace(0.5, "passes")
    ('1,234 images/s', '2.5 steps/s', '5.0 s/epoch', '2.0 s/pass')
    """
    if not per_second:
        return ""
    if per_second < 1:
        return f"{1 / per_second:,.1f} s/{unit.removesuffix('ses') + 's' if unit.endswith('sses') else unit.removesuffix('s')}"
    return f"{per_second:,.{0 if per_second >= 10 else 1}f} {unit}/s"


class _Bars:
    """All bars of this moment, one below the other: a terminal has place for one such block."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.table import Column
        from rich.text import Text

        class Outlook(ProgressColumn):
            def render(self, task: Task) -> Text:
                pace = _pace(task.finished_speed or task.speed, task.fields["unit"])
                if task.finished:
                    end = f"in {duration(task.finished_time or 0)}"
                else:
                    end = "" if task.time_remaining is None else f"ETA {duration(task.time_remaining)}"
                return Text(", ".join(filter(None, (pace, end, task.fields["note"]))), no_wrap=True)

        # Results are nobody's affair here: stdout is left alone, which may be a file.
        self.block = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            MofNCompleteColumn(),
            Outlook(),
            console=Console(stderr=True),
            redirect_stdout=False,
            expand=True,
        )
        self.shown, self.count = False, 0
        self.timer = threading.Timer(_BAR_AFTER_SECONDS, self.show)
        self.timer.daemon = True
        self.timer.start()

    def show(self) -> None:
        with _bars_lock:
            if self.count:
                self.shown = True
                self.block.start()

    def end(self, task: Any) -> None:
        """Take a bar away that has others beside it; the last stays as it stands."""
        self.count -= 1
        if self.count:
            self.block.remove_task(task)
            return
        self.timer.cancel()
        if self.shown:
            self.block.stop()


@contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    global _bars
    with _bars_lock:
        if _bars is None:
            _bars = _Bars()
        bars = _bars
        bars.count += 1
    task, last_note = bars.block.add_task(harmless(label), total=total, unit=unit, note=""), ""

    def advance(n: int, note: str = "") -> None:
        nonlocal last_note
        last_note = harmless(note) or last_note
        bars.block.update(task, advance=n, note=last_note)

    try:
        yield advance
    finally:
        with _bars_lock:
            bars.end(task)
            _bars = bars if bars.count else None


@contextmanager
def standing() -> Iterator[None]:
    """For what stands on the terminal without its cursor as bars do: whoever ends meanwhile gives it back."""
    global _standing
    _standing += 1
    try:
        yield
    except BaseException:
        # An interrupt may come between the cursor's going and the block's beginning, where nothing else undoes it.
        with suppress(OSError):
            os.write(2, _CURSOR)
        raise
    finally:
        _standing -= 1


def show_cursor() -> None:
    """Give a terminal its cursor back, for who ends without a word while a bar or a table stands there."""
    if _standing or (_bars is not None and _bars.shown):
        with suppress(OSError):
            os.write(2, _CURSOR + b"\n")


def _lines(label: str, total: int, unit: str, every_seconds: float) -> Advance:
    start = last_line = time.monotonic()
    done, last_note = 0, ""

    def advance(n: int, note: str = "") -> None:
        nonlocal done, last_line, last_note
        done, last_note = done + n, note or last_note
        now = time.monotonic()
        if n and now - last_line >= every_seconds:
            last_line = now
            rate = done / max(now - start, 1e-9)
            left = f"ETA {duration((total - done) / rate)}"
            outlook = ", ".join(filter(None, (_pace(rate, unit), left, last_note)))
            say(f"{label}: {done:,} of {total:,} {unit}, {outlook}")

    return advance
