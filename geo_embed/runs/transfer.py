"""Runs to a bucket, or to a repository of the Hugging Face hub, and back, whole.

There a run is its files under its name, and `run.json`, which lists them with their sha256. In a bucket it is deleted first and written
last, so that what lies there without it, or differs from it, is no run; on the hub all of it is one commit.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from geo_embed import buckets, hub
from geo_embed.buckets import Address
from geo_embed.console import progress
from geo_embed.errors import GeoError
from geo_embed.files import file_sha256, parse_json, read_bytes, validated
from geo_embed.hub import HubAddress
from geo_embed.locations import located
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
    place: Path | str
    files: int
    bytes: int


def push_run(run: Run, into: Path | str, *, overwrite: bool = False) -> Transferred:
    """Copy a run into a bucket or a repository of the hub, without checkpoints.

    Args:
        run: on this machine.
        into: where runs lie in the bucket, or `hf://USER/REPO`; it goes below it, under its name. A new repository is private.
        overwrite: replace a run of this name.

    Raises:
        GeoError: `into` is no address of a bucket or repository, one of this name is there, or it was replaced here meanwhile; or the
            hub refuses.
        UnreachableError: the bucket or the hub doesn't answer; the same command again does it.
    """
    repository = hub.parse_address(str(into))
    if repository is not None:
        return _push_to_hub(run, repository, overwrite)
    return _push_to_bucket(run, located(into, where="ADDRESS"), overwrite)


def _push_to_hub(run: Run, into: HubAddress, overwrite: bool) -> Transferred:
    if into.name:
        raise GeoError(
            "a run goes into a repository under its own name", where=str(into), hint=f"hf://{into.repository}"
        )
    name = run.path.name
    try:
        hub.parse_address(f"{into}/{name}")
    except GeoError as error:
        raise GeoError(
            "a run of this name couldn't be pulled again",
            where=run.path,
            hint="give its folder a name of letters, digits, dots, dashes",
        ) from error
    hub.check_can_push(into.repository)
    paths = {file: run.path / file for file in _files_of(run.path)}
    size = sum(path.stat().st_size for path in paths.values())
    listed = _Files(files={file: file_sha256(path) for file, path in paths.items()})
    check_not_replaced(run)
    hub.push_files(
        into.repository,
        {f"{name}/{file}": path for file, path in paths.items()}
        | {f"{name}/{_LIST}": listed.model_dump_json(indent=1).encode()},
        f"Run {name} of geo_embed",
        replaces=lambda file: file.startswith(f"{name}/"),
        refuse="" if overwrite else f"{name}/{_LIST}",
    )
    return Transferred(name, f"{into}/{name}", len(paths), size)


def _push_to_bucket(run: Run, into: Path, overwrite: bool) -> Transferred:
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
    address: Path | str, runs_dir: Path, *, name: str | None = None, overwrite: bool = False
) -> Transferred:
    """Copy a run from a bucket or the hub into the runs of this machine; it appears whole.

    Args:
        address: of the run; on the hub `hf://USER/REPO/RUN`.
        runs_dir: where it goes.
        name: default its own.
        overwrite: replace a run of this name.

    Raises:
        GeoError: no run lies there, or what does isn't what was pushed; the name is taken; or the hub refuses.
        UnreachableError: the bucket or the hub doesn't answer.
    """
    repository = hub.parse_address(str(address))
    if repository is not None:
        return _pull_from_hub(repository, runs_dir, name, overwrite)
    source = _in_bucket(located(address, where="ADDRESS"))

    def get(file: str) -> bytes | None:
        stored = buckets.get(source / file)
        return None if stored is None else stored[0]

    return _pull(str(source), get, runs_dir, name or source.name, overwrite)


def _pull_from_hub(source: HubAddress, runs_dir: Path, name: str | None, overwrite: bool) -> Transferred:
    if not source.name:
        files = hub.files_there(source.repository)
        runs = sorted(
            file.removesuffix(f"/{_LIST}")
            for file in files
            if file.count("/") == 1 and file.endswith(f"/{_LIST}")
        )
        hint = ", ".join(f"{source}/{run}" for run in runs[:5])
        raise GeoError(
            "which run of this repository?",
            where=str(source),
            hint=hint or "none lies there: geo runs push RUN",
        )
    folder = hub.download(source.repository, allow_patterns=[f"{source.name}/*"]) / source.name

    def get(file: str) -> bytes | None:
        path = folder / file
        return read_bytes(path, limit=_MOST) if path.is_file() else None

    return _pull(str(source), get, runs_dir, name or source.name, overwrite)


def _pull(
    source: str, get: Callable[[str], bytes | None], runs_dir: Path, name: str, overwrite: bool
) -> Transferred:
    """A run from where `get` gives the bytes of its files by name, None for one that isn't there."""
    listed = get(_LIST)
    if listed is None:
        raise GeoError(
            "no run lies there, or it was never pushed to the end",
            where=source,
            hint="geo runs push RUN, again",
        )
    where = f"{source}/{_LIST}"
    files = validated(_Files, parse_json(listed, where), where).files
    for file in files:
        _check_name(file, where)

    def copy(file: str, directory: Path) -> int:
        data = get(file)
        if data is None or hashlib.sha256(data).hexdigest() != files[file]:
            raise GeoError(
                "this isn't the file that was pushed",
                where=f"{source}/{file}",
                hint="push the run again: geo runs push RUN --overwrite",
            )
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        advance(1)
        return len(data)

    with (
        only_run_writer(runs_dir, name, overwrite=overwrite) as name,
        writing_run(runs_dir, name, overwrite=overwrite) as writer,
        progress(f"pull {name}", len(files), "files") as advance,
        ThreadPoolExecutor(_AT_ONCE, "pull") as pool,
    ):
        size = sum(pool.map(lambda file: copy(file, writer.directory), files))
        if not is_run(writer.directory):
            raise GeoError("what lies there is no run", where=source)
    return Transferred(name, runs_dir / name, len(files), size)


def _in_bucket(place: Path) -> Address:
    if not isinstance(place, Address) or not place.key:
        raise GeoError(
            "this is no place in a bucket or on the hub",
            where=str(place),
            hint="s3://BUCKET/runs, or gs:// or az://, or hf://USER/REPO",
        )
    return place


def _files_of(directory: Path) -> Iterator[str]:
    """The files of a run, by name: neither checkpoints nor what is hidden, nor what links lead to."""
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        is_left_out = parts[0] == "checkpoints" or any(part.startswith(".") for part in parts)
        if not is_left_out and path.is_file() and not path.is_symlink():
            yield "/".join(parts)


def _check_name(name: str, where: str) -> None:
    """Raise GeoError for a name that would lead out of a run's directory."""
    parts = PurePosixPath(name).parts
    is_hidden = any(part.startswith((".", "/")) for part in parts)
    if not parts or is_hidden or "\\" in name or "\0" in name:
        raise GeoError(f"{name!r:.80} can't be a file of a run", where=where)
