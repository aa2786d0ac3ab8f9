"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing with `-q`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Show errors only."""
    global _quiet
    _quiet = quiet


def on_terminal() -> bool:
    """Whether news may redraw itself: stderr is a terminal, and nobody asked for quiet."""
    return not _quiet and sys.stderr.isatty()


def say(text: str) -> None:
    """One line of news on stderr."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """One warning on stderr; `-q` leaves it."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


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
    elif sys.stderr.isatty():
        with _bar(label, total, unit) as advance:
            yield advance
    else:
        yield _lines(label, total, unit, every_seconds)


@contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    start = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} " + unit + "/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total, rate=0.0)
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
