"""The exceptions that a person is meant to read, and what the disk says as one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geo_embed.console import harmless


class PlainError(Exception):
    """What a person is meant to read.

    The command line prints it as `error: WHAT (WHERE)` and `hint: HINT`, and exits with 1.

    Args:
        what: what is wrong, in one line.
        where: the file, row, column or setting it is about.
        hint: what to do; the exact command where there is one.
    """

    def __init__(self, what: str, *, where: str | Path = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = str(where)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: what the command line prints."""
        return [harmless(line) for line in (f"error: {self}", *([f"hint: {self.hint}"] if self.hint else []))]


class GeoError(PlainError):
    """Input, data or environment at fault."""


class UnreachableError(PlainError):
    """A bucket that doesn't answer, or refuses: whether something is there, or whole, isn't known.

    No `GeoError`: whoever goes on without what is absent or damaged must take this for neither.
    """


class BusyError(GeoError):
    """Somebody else is writing there now."""


class AbsentError(GeoError):
    """A file that isn't there: whoever asked for it may know what makes it."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says into one line."""
    try:
        yield
    except OSError as error:
        raise GeoError(
            # Some writers know no reason, only that less was written than there was.
            f"can't write: {error.strerror or f'the disk may be full: {error}'}",
            where=path,
            hint="free or unlock the disk; what is committed stays, and the same command goes on from there",
        ) from error


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that is read, its name included, into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise AbsentError("there is no such file", where=path) from error
    except OSError as error:
        # Libraries raise it with texts of their own, of many lines.
        raise GeoError(f"can't read: {error.strerror or error}".splitlines()[0], where=path) from error
