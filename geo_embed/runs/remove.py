"""Removing runs, but not under somebody who needs them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from geo_embed.errors import GeoError
from geo_embed.files import lock, lock_beside, read_json, remove_directory
from geo_embed.runs.run import broken_runs, finished_runs, is_run, provenance_path, unfinished_runs
from geo_embed.runs.schema import Provenance
from geo_embed.tracking import tensorboard_directory


@dataclass(frozen=True)
class Removed:
    """Names of runs that are gone, and the bytes that they took."""

    removed: list[str]
    bytes: int


def remove_runs(runs_dir: Path, names: Sequence[str], *, force: bool = False) -> Removed:
    """Delete runs, or broken ones, whole, and what TensorBoard shows of them. Each loses its name first: nobody sees half of one.

    Args:
        runs_dir: where they lie.
        names: of runs there, or their paths.
        force: also those that an ensemble was made of, or that an unfinished training started from. An ensemble has copies, and works
            without them, but can't be made anew.

    Raises:
        GeoError: before anything is deleted, where one of them is no run of `runs_dir`, or is needed; or one is being written now.
    """
    paths = list(dict.fromkeys(find_removable(runs_dir, name) for name in names))
    if not force:
        _check_not_needed(runs_dir, paths)
    size = 0
    for path in paths:
        with lock(
            lock_beside(path),
            busy="another process is writing this run now",
            where=path,
            hint="wait until it is done",
            keep=False,
        ):
            size += bytes_below(path)
            remove_directory(path)
            if (events := tensorboard_directory(runs_dir, path.name)).is_dir():
                size += bytes_below(events)
                remove_directory(events)
    return Removed([path.name for path in paths], size)


def find_removable(runs_dir: Path, name: str) -> Path:
    """The directory of a run, or of what is left of one. Raises GeoError where there is none of this name in `runs_dir`."""
    path = runs_dir / Path(name).name
    with suppress(OSError, ValueError):
        # A name or a path of it; a member of an ensemble, or a run elsewhere, is not for this command to delete.
        if Path(name).name == name or (Path(name).parent.resolve() == runs_dir.resolve()):
            broken = {broken for broken, _ in broken_runs(runs_dir)}
            if path != runs_dir and (is_run(path) or (path in broken and path.is_dir())):
                return path
            if path in unfinished_runs(runs_dir):
                return path
    known = ", ".join(run.name for run in finished_runs(runs_dir)[:5])
    raise GeoError(
        f"there is no run {name!r:.200} to be removed",
        where=runs_dir,
        hint=f"the newest are: {known}" if known else "there is no run at all",
    )


def bytes_below(path: Path) -> int:
    """The bytes of the files below a directory; nothing where it is a link."""
    if path.is_symlink():
        return 0
    size = 0
    for file in path.rglob("*"):
        with suppress(OSError):
            size += file.lstat().st_size if file.is_file() else 0
    return size


def _check_not_needed(runs_dir: Path, paths: Sequence[Path]) -> None:
    """Raise GeoError where an ensemble that stays was made of one of the runs, or an unfinished training starts from it."""
    staying = [path for path in finished_runs(runs_dir) if path not in paths]
    for ensemble in staying:
        try:
            made_of = read_json(provenance_path(ensemble), Provenance).model_dump().get("ensemble") or {}
            members = {str(Path(run)) for run in made_of.get("runs", ())}
        # What can't be read needs nothing.
        except (GeoError, TypeError, AttributeError):
            continue
        for path in paths:
            if str(path.resolve()) in members:
                raise GeoError(
                    f"the ensemble {ensemble.name} was made of this run, and can't be made anew without it",
                    where=path,
                    hint="remove both, or this one with --force: the ensemble has copies and goes on working",
                )
    for training in unfinished_runs(runs_dir):
        for path in paths:
            if path.name == f"{training.name}-heads" and training not in paths:
                raise GeoError(
                    f"the unfinished training {training.name} starts from this run",
                    where=path,
                    hint="let it end first, or remove both, or this one with --force",
                )
