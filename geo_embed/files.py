"""Files of any kind: atomic replacement, locks, JSON, checksums, and tensors with the mode of any other file.

`replacing`, `replacing_directory` and `lock` are the only forms of atomic replacement and of locking in the package.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.errors import GeoError, disk_errors

if TYPE_CHECKING:
    from torch import Tensor

# Hidden names beside what they are to become, or were.
_WRITING, _REPLACED = ".writing", ".replaced"
# What is younger may belong to a writer at work.
LEFTOVER_SECONDS = 3600


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under, which takes its place once the block ends well; a reader never sees half of one.

    The temporary name has the ending of the final one, since some writers go by it.

    Raises:
        GeoError: for every OSError, also of the block; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_WRITING}{path.suffix}")
    try:
        with disk_errors(path):
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """An empty directory to write into, which takes its place once the block ends well; a reader never sees half of one.

    A directory can't replace another in one step: what was there waits under a hidden name between the two renames, where
    `restore_replaced` finds it if the process dies just then. What a killed writer left under way goes after an hour.

    Raises:
        GeoError: for every OSError, also of the block; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_WRITING}")
    replaced = path.with_name(f".{path.name}{_REPLACED}")
    with disk_errors(path):
        temporary.mkdir(parents=True)
        # Earlier versions gave the name without the random part.
        for leftover in path.parent.glob(f".{glob.escape(path.name)}*{_WRITING}"):
            middle = leftover.name.removeprefix(f".{path.name}").removesuffix(_WRITING)
            is_ours = not middle or re.fullmatch(r"\.[0-9a-f]{8}", middle)
            if is_ours and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
    try:
        with disk_errors(path):
            yield temporary
            if path.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                path.rename(replaced)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(directory: Path) -> None:
    """Give their names back to the entries that `replacing_directory` was about to replace when it was cut short."""
    for path in directory.glob(f".*{_REPLACED}"):
        name = path.name.removeprefix(".").removesuffix(_REPLACED)
        with disk_errors(path):
            if not (directory / name).exists():
                path.rename(directory / name)


def is_leftover(path: Path) -> bool:
    """Whether a name is one that `replacing` or `replacing_directory` gives: left over, if no writer is at work."""
    return path.name.startswith(".") and (_WRITING in path.suffixes[-2:] or path.suffix == _REPLACED)


def remove_directory(path: Path) -> None:
    """Delete a directory. It loses its name first: a reader, or the next command after a kill, never sees half of one."""
    doomed = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_WRITING}")
    with disk_errors(path):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def lock(
    path: Path, *, busy: str, where: Path, hint: str, keep: bool = True, wait_seconds: float = 0
) -> Iterator[None]:
    """Hold a lock file while the block runs. The kernel lets go of a dead holder's.

    Args:
        path: the lock file; its folder is made.
        busy: what to say of another holder, as in "another extraction is writing to this store".
        where: what is locked, for people.
        hint: what to do about the other holder.
        keep: whether the file stays afterwards, with no holder in it.
        wait_seconds: how long to wait for the other holder to let go.

    Raises:
        GeoError: somebody else holds it, by process, host and time; or the file can't be written.
    """
    from filelock import FileLock, Timeout

    handle = FileLock(path, timeout=wait_seconds, poll_interval=0.01)
    with disk_errors(where):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle.acquire()
        # A kind of OSError, too.
        except Timeout as error:
            raise GeoError(f"{busy}: {lock_holder(path)}", where=where, hint=hint) from error
    try:
        with disk_errors(where):
            since = datetime.now(UTC).isoformat(timespec="seconds")
            path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        yield
    finally:
        # Who has opened the file meanwhile finds, once it has its lock, that it has no name any more, and opens the next one.
        with suppress(OSError):
            if keep:
                path.write_text("")
            else:
                path.unlink()
        handle.release()


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock file now; not where it can't be told, as on a disk that may only be read."""
    from filelock import FileLock, Timeout

    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def lock_holder(path: Path) -> str:
    """Who holds a lock file, for people: process, host and time."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its name is not written yet"


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, in one piece. Raises GeoError where the disk is full or may not be written."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file holds something else. Raises GeoError where it can't be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GeoError(f"not a readable JSON file: {error}", where=path) from error
    return content if isinstance(content, dict) else {}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def save_tensors(tensors: Mapping[str, "Tensor"], path: Path) -> None:
    """Write contiguous tensors on the CPU as a safetensors file. Raises OSError for all that the disk says."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    set_usual_mode(path)


def set_usual_mode(path: Path) -> None:
    """Give a file the mode of one newly made beside it: safetensors lets nobody but the owner read what it writes."""
    beside = path.with_name(f".{path.name}.mode")
    beside.touch()
    path.chmod(beside.stat().st_mode & 0o777)
    beside.unlink()
