"""What people say of a run: tags and a note, in a file of their own beside what training wrote."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from geo_embed.errors import AbsentError, GeoError
from geo_embed.files import lock, read_json, replacing, validated
from geo_embed.runs.run import Run, check_not_replaced, load_run
from geo_embed.runs.schema import Tags

# Others hold it for a moment only.
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Tagged:
    """Tags, each one word, in the order in which they were given; and a note, which may be empty."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read_tags(run: Run) -> Tagged:
    """A run's tags and note. Raises GeoError where the file is damaged."""
    try:
        written = read_json(run.tags_path, Tags)
    except AbsentError:
        return Tagged()
    except GeoError as error:
        raise GeoError(
            f"the run's tags and note can't be read: {error.what}",
            where=run.tags_path,
            hint="delete this file: the run itself is whole",
        ) from error
    return Tagged(tuple(written.tags), written.note)


def tag_run(runs_dir: Path, name: str, tags: Sequence[str], *, remove: bool = False) -> Tagged:
    """Give a run tags, or take them away; what it has, or lacks, already is no fault.

    Args:
        runs_dir: of the runs.
        name: of the run, or its directory.
        tags: words without blanks and commas.
        remove: take these away.

    Returns:
        What is said of the run now.

    Raises:
        GeoError: no such run, it is replaced just now, a tag that is none, or the disk is full or may not be written.
    """
    if not tags:
        raise GeoError("no tag was given", hint=f"geo runs tag {name} good")
    for tag in tags:
        try:
            validated(Tags, {"tags": [tag]}, "tag")
        except GeoError as error:
            raise GeoError(
                f"{tag[:80]!r} is no tag",
                hint="a tag is one word of up to 64 letters, without blanks and commas",
            ) from error
    validated(Tags, {"tags": list(tags)}, "tag")

    # Their order is kept, and none is there twice.
    def change(before: Tagged) -> Tagged:
        if remove:
            return replace(before, tags=tuple(tag for tag in before.tags if tag not in tags))
        return replace(before, tags=tuple(dict.fromkeys([*before.tags, *tags])))

    return _change(runs_dir, name, change)


def note_run(runs_dir: Path, name: str, note: str) -> Tagged:
    """Give a run a note in the place of the one that it has; an empty one takes it away. Returns and raises as `tag_run`."""
    validated(Tags, {"note": note}, "note")
    return _change(runs_dir, name, lambda before: replace(before, note=note))


@contextmanager
def changing_tags(path: Path) -> Iterator[None]:
    """Be the only one who changes the tags of the run in a directory. Raises BusyError where somebody else takes too long."""
    with lock(
        # Beside the run, which may be replaced; by a name that is no other run's lock.
        path.with_name(f".{path.name}.tags-lock"),
        busy="another process is writing the run's tags",
        where=path,
        hint="run the same command again",
        keep=False,
        wait_seconds=_PATIENCE_SECONDS,
    ):
        yield


def _change(runs_dir: Path, name: str, change: Callable[[Tagged], Tagged]) -> Tagged:
    run = load_run(runs_dir, name)
    with changing_tags(run.path):
        after = change(read_tags(run))
        # Aside, into the directory that has the run's name now; so the check decides whose tags these are.
        with replacing(run.tags_path) as temporary:
            text = json.dumps(asdict(after), indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
            check_not_replaced(run)
    return after
