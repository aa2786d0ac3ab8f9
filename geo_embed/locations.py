"""Where a file or folder lies, as people write it: a path of this machine, or an address with a scheme before it."""

import re
from pathlib import Path
from urllib.parse import unquote

from geo_embed.errors import GeoError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What pathlib makes of such an address: two slashes are one to it.
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_HERE = ("", "localhost")
_HINT = "copy it to a folder of this machine, or mount it there, and name that folder"


def local_path(location: str | Path, *, where: str = "") -> Path:
    """The path of this machine that a location stands for: of a `file://` address its path, of anything without a scheme itself.

    Args:
        location: as somebody wrote it; a `Path` has lost one of an address's slashes.
        where: the setting or option that it was written for.

    Raises:
        GeoError: another scheme, by name, or another machine's files: they would silently become a folder called `s3:`. What follows
            the scheme is not repeated, since it may hold a password.
    """
    if isinstance(location, Path):
        # A folder that has such a name, as any may here, is one.
        first = location.parts[0] if location.parts else ""
        collapsed = _COLLAPSED.fullmatch(first)
        if collapsed is None or Path(first).exists():
            return location
        scheme, rest = collapsed[1].lower(), "/".join(location.parts[1:])
        # How many slashes there were is forgotten: three, or two and this machine's name, are what people write.
        rest = rest if rest.startswith("localhost/") else f"/{rest}"
    else:
        written = _SCHEME.match(location)
        if written is None:
            return Path(location)
        scheme, rest = written[1].lower(), location[written.end() :]
    if scheme != "file":
        raise GeoError(
            f"{scheme}:// can't be read or written: only paths of this machine and file:// can",
            where=where,
            hint=_HINT,
        )
    host, slash, path = rest.partition("/")
    if host.lower() not in _HERE or not slash:
        raise GeoError(
            "a file:// address wants three slashes before the path, as file:///data/cache has",
            where=where,
            hint=_HINT,
        )
    path = unquote(path)
    if "\0" in path:
        raise GeoError("a file:// address holds a NUL character", where=where, hint="correct it")
    return Path("/") / path
