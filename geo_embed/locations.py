"""Where a file or folder lies, as people write it: a path of this machine, or an address with a scheme before it."""

import re
from pathlib import Path
from urllib.parse import unquote

from geo_embed import buckets
from geo_embed.errors import GeoError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What pathlib makes of such an address: two slashes are one to it.
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_ONE_SLASH = rf"({'|'.join(buckets.SCHEMES)}):/[^/]"
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
    scheme, rest = _divide(location)
    if not scheme:
        return Path(rest)
    if scheme in buckets.SCHEMES:
        raise GeoError(
            f"{scheme}:// can't be read or written here: only a cache and pictures may lie in a bucket",
            where=where,
            hint=_HINT,
        )
    return _of_file(scheme, rest, where)


def located(location: str | Path, *, where: str = "") -> Path:
    """As `local_path`, but that an address in a bucket stands for that place.

    Raises:
        GeoError: as `local_path`; or an address that names no bucket, or holds what is no part of one.
    """
    scheme, rest = _divide(location)
    if scheme in buckets.SCHEMES:
        return buckets.parse(scheme, rest, where=where)
    return local_path(location, where=where)


def _divide(location: str | Path) -> tuple[str, str]:
    """The scheme of an address in lower case, and what follows its slashes; of what is none, no scheme and itself."""
    if isinstance(location, buckets.Address):
        return location.scheme, "/".join(location.parts[1:])
    if isinstance(location, Path):
        # A folder that has such a name, as any may here, is one.
        first = location.parts[0] if location.parts else ""
        collapsed = _COLLAPSED.fullmatch(first)
        if collapsed is None or Path(first).exists():
            return "", str(location)
        rest = "/".join(location.parts[1:])
        # How many slashes there were is forgotten: three, or two and this machine's name, are what people write.
        is_whole = collapsed[1].lower() in buckets.SCHEMES or rest.startswith("localhost/")
        return collapsed[1].lower(), rest if is_whole else f"/{rest}"
    if re.match(_ONE_SLASH, location, re.IGNORECASE):
        # As other tools print an address that went through a path of theirs.
        return _divide(Path(location))
    written = _SCHEME.match(location)
    return (written[1].lower(), location[written.end() :]) if written else ("", location)


def _of_file(scheme: str, rest: str, where: str) -> Path:
    if scheme != "file":
        raise GeoError(
            f"{scheme}:// can't be read or written: only paths of this machine, file://, and for a cache or pictures s3://, gs:// and az:// can",
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
