"""What libtiff complains of: it prints to the terminal, decodes on, and PIL hands the picture over as if nothing had been."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_heard = threading.local()


@contextmanager
def hearing_complaints() -> Iterator[list[str]]:
    """libtiff's errors within the block, in this thread, as they come; nothing where the library can't be found (not on Linux)."""
    _listen()
    complaints: list[str] = []
    _heard.complaints = complaints
    try:
        yield complaints
    finally:
        del _heard.complaints


@cache
def _listen() -> Callable[..., Any] | None:
    """Take the place of libtiff's own handler, which prints. The library is the one that PIL has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        (path, *_) = (line.split(maxsplit=5)[5] for line in maps.splitlines() if "/libtiff" in line)
        library = ctypes.CDLL(path)
        handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(_take)
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(handler)
    except (OSError, ValueError, AttributeError, IndexError):
        return None
    # Kept by the cache: libtiff calls it as long as the process lives.
    return handler


def _take(module: bytes | None, text: bytes | None, arguments: int | None) -> None:
    """Keep what comes before the first number: those are for a va_list."""
    complaints = getattr(_heard, "complaints", None)
    if complaints is not None and len(complaints) < 10:
        plain = (text or b"").split(b"%")[0].decode("ascii", "replace").strip(" :,(")
        complaints.append(plain or f"{(module or b'libtiff').decode('ascii', 'replace')} failed")
