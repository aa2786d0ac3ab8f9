"""Where results may be written: over earlier results, and over nothing that commands read."""

from collections.abc import Collection
from pathlib import Path

from geo_embed.config import Paths
from geo_embed.errors import GeoError

PAGES = (".html", ".htm")
# What no run, store or image folder holds of itself: what lies there of these kinds was put there as a result.
_RESULTS = {*PAGES, ".csv", ".geojson", ".svg", ".pdf"}


def check_output(paths: Paths, out: Path, endings: Collection[str] = ()) -> None:
    """Raise GeoError where a result would replace what it is made of, or has another ending than the kind of file has.

    Call it before any work is done. What can't be a file at all, as a directory, is left to who writes it.

    Args:
        paths: where the dataset, the stores and the runs lie.
        out: the file to be written.
        endings: those that it may have, in lower case; empty for any.

    Raises:
        GeoError: another ending; a CSV of the dataset; a file that is there, of a run, a store or an image folder.
    """
    try:
        if out.is_dir():
            return
        is_there = out.exists()
        # A link is replaced, and what it leads to stays: the name itself is what matters, not what has it.
        place = out.parent.resolve() / out.name
        tables = [
            table.parent.resolve() / table.name
            for table in (paths.csv("train"), paths.csv("test"), paths.mapping())
        ]
        folders = {
            "a run": paths.runs_dir.resolve(),
            "a store": paths.cache_dir.resolve(),
            "the dataset": paths.images("train").resolve(),
            "the test split": paths.images("test").resolve(),
        }
    except (OSError, RuntimeError, ValueError):
        return
    if endings and out.suffix.lower() not in endings:
        raise GeoError(
            f"this is written as {next(iter(endings))}, not as {out.suffix or 'a file without an ending'}",
            where=out,
            hint=f"name it {out.with_suffix(next(iter(endings)))}",
        )
    if place in tables:
        raise _refused("this is a CSV of the dataset", out)
    if out.suffix.lower() in _RESULTS or not is_there:
        return
    for owner, folder in folders.items():
        if folder in (place, *place.parents):
            raise _refused(f"this is a file of {owner}", out)


def _refused(what: str, out: Path) -> GeoError:
    return GeoError(f"{what}: no result is written over it", where=out, hint="choose another name")
