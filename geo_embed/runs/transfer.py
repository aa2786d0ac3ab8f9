"""Runs to a bucket and back, whole.

There a run is its files under its name, and `run.json`, which lists them with their sha256: it is deleted first and written last, so
that what lies there without it, or differs from it, is no run.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.console import progress
from geo_embed.errors import GeoError
from geo_embed.files import parse_json, read_bytes, validated
from geo_embed.runs.run import Run, check_not_replaced, is_run, only_run_writer, writing_run

_LIST = "run.json"
_AT_ONCE = 8
# Of a file; a request has no more (bytes).
_MOST = 5 << 30
_MOST_FILES = 10_000
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Files(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    files: Annotated[dict[str, _Digest], Field(min_length=1, max_length=_MOST_FILES)]


@dataclass(frozen=True)
class Transferred:
    """A run that was copied: its name, where it lies now, its files and their bytes in all."""

    run: str
    place: Path
    files: int
    bytes: int


def push_run(run: Run, into: Path, *, overwrite: bool = False) -> Transferred:
    """Copy a run into a bucket, without checkpoints.

    Args:
        run: on this machine.
        into: where runs lie in the bucket; it goes below it, under its name.
        overwrite: replace a run of this name.

    Raises:
        GeoError: `into` is no address of a bucket, one of this name is there, or it was replaced here meanwhile.
        UnreachableError: the bucket doesn't answer; the same command again does it.
    """
    target = _in_bucket(into) / run.path.name
    if buckets.head(target / _LIST) is not None and not overwrite:
        raise GeoError("a run of this name exists", where=target, hint="replace it with --overwrite")
    names = list(_files_of(run.path))
    buckets.delete([target / _LIST])
    digests: dict[str, str] = {}
    with progress(f"push {run.path.name}", len(names), "files") as advance:

        def put(name: str) -> int:
            data = read_bytes(run.path / name, limit=_MOST)
            digests[name] = hashlib.sha256(data).hexdigest()
            buckets.put(target / name, data)
            advance(1)
            return len(data)

        with ThreadPoolExecutor(_AT_ONCE, "push") as pool:
            size = sum(pool.map(put, names))
    check_not_replaced(run)
    # What a run of this name had beside them.
    buckets.delete([target / name for name in buckets.listing(target) if name not in digests])
    listed = _Files(files=dict(sorted(digests.items()))).model_dump_json(indent=1)
    if buckets.put_new(target / _LIST, listed.encode()) is None:
        raise GeoError(
            "another command pushed a run of this name just now",
            where=target,
            hint="replace it with --overwrite",
        )
    return Transferred(run.path.name, target, len(names), size)


def pull_run(
    address: Path, runs_dir: Path, *, name: str | None = None, overwrite: bool = False
) -> Transferred:
    """Copy a run from a bucket into the runs of this machine; it appears whole.

    Args:
        address: of the run.
        runs_dir: where it goes.
        name: default its own.
        overwrite: replace a run of this name.

    Raises:
        GeoError: no run lies there, or what does isn't what was pushed; the name is taken.
        UnreachableError: the bucket doesn't answer.
    """
    source = _in_bucket(address)
    found = buckets.get(source / _LIST)
    if found is None:
        raise GeoError(
            "no run lies there, or it was never pushed to the end",
            where=source,
            hint="geo runs push RUN, again",
        )
    files = validated(_Files, parse_json(found[0], source / _LIST), source / _LIST).files
    for file in files:
        _check_name(file, source)

    def get(file: str, directory: Path) -> int:
        got = buckets.get(source / file)
        if got is None or hashlib.sha256(got[0]).hexdigest() != files[file]:
            raise GeoError(
                "this isn't the file that was pushed",
                where=source / file,
                hint="push the run again: geo runs push RUN --overwrite",
            )
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(got[0])
        advance(1)
        return len(got[0])

    with (
        only_run_writer(runs_dir, name or source.name, overwrite=overwrite) as name,
        writing_run(runs_dir, name, overwrite=overwrite) as writer,
        progress(f"pull {name}", len(files), "files") as advance,
        ThreadPoolExecutor(_AT_ONCE, "pull") as pool,
    ):
        size = sum(pool.map(lambda file: get(file, writer.directory), files))
        if not is_run(writer.directory):
            raise GeoError("what lies there is no run", where=source)
    return Transferred(name, runs_dir / name, len(files), size)


def _in_bucket(place: Path) -> Address:
    if not isinstance(place, Address) or not place.key:
        raise GeoError(
            "this is no place in a bucket", where=str(place), hint="s3://BUCKET/runs, or gs:// or az://"
        )
    return place


def _files_of(directory: Path) -> Iterator[str]:
    """The files of a run, by name: neither checkpoints nor what is hidden, nor what links lead to."""
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        is_left_out = parts[0] == "checkpoints" or any(part.startswith(".") for part in parts)
        if not is_left_out and path.is_file() and not path.is_symlink():
            yield "/".join(parts)


def _check_name(name: str, source: Path) -> None:
    """Raise GeoError for a name that would lead out of a run's directory."""
    parts = PurePosixPath(name).parts
    is_hidden = any(part.startswith((".", "/")) for part in parts)
    if not parts or is_hidden or "\\" in name or "\0" in name:
        raise GeoError(f"{name!r:.80} can't be a file of a run", where=source / _LIST)
