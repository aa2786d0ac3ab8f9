"""The commands: `main` runs one."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit as the contract says.

    Args:
        arguments: the command line without `geo`; default: the process's own.
    """
    # Before anything is imported: that takes seconds, in which somebody may change their mind.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        # Left alone where whoever began the process has it ignore Ctrl-C, as a shell its background jobs.
        if number == signal.SIGTERM or handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        from geo_embed.cli.app import run

        run(arguments)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            # Of a process that ends now, all that is left to do is to end.
            signal.signal(number, _leave if arguments is None and handler is not signal.SIG_IGN else handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does: what is in flight is written, then it exits with 130."""
    while frame is not None:
        # A module half imported turns an interrupt into errors of other kinds, and nothing of ours is in flight.
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    # It may be half imported, and is not to be imported now.
    if show_cursor := getattr(sys.modules.get("geo_embed.console"), "show_cursor", None):
        show_cursor()
    os._exit(INTERRUPTED)
