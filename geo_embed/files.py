"""Files of any kind: the door for what comes from outside, atomic replacement, locks, checksums, tensors.

`open_regular`, `read_bytes`, `read_json`, `read_toml`, `read_array`, `read_columns` and `open_tensors` are how a file is opened
that somebody else may have made: it must be a regular file, is read up to a bound, and what it claims about its content is
checked before memory is taken for it.

`replacing`, `replacing_directory` and `lock` are the only forms of atomic replacement and of locking in the package. Both end once
what took its place outlasts a power cut: first the bytes are forced to the disk, then the name is given, then the folder is forced.
"""

import ctypes
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import stat
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from geo_embed.console import warn
from geo_embed.errors import BusyError, GeoError, disk_errors, reading_errors

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from pydantic import BaseModel, ValidationError
    from safetensors import safe_open
    from torch import Tensor

Schema = TypeVar("Schema", bound="BaseModel")

# Hidden names beside what they are to become, or were.
_WRITING, _REPLACED = ".writing", ".replaced"
_MADE_UP = re.compile(r"\.(.+?)(?:\.[0-9a-f]{8}\.writing(?:\.[^.]+)?|\.writing|\.replaced)", re.DOTALL)
# What is younger may belong to a writer at work.
LEFTOVER_SECONDS = 3600
# Two renames, or a name to be written, take less.
_MOMENT_SECONDS = 1.0
_ANOTHER = "choose another name"
# What `flock` says where there is none: no such call, no lock manager of the network's.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
# What `fsync` says where there is none; of folders, that they can't be opened for it, too.
_NO_FORCE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_FOLDERS = (*_NO_FORCE, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF)
# At once: the disk answers all that wait with one flush of its cache.
_FORCED_AT_ONCE = 16
# Two threads that set a bound and take it back would leave one of them.
_bounded = threading.RLock()
# Folders that this process knows to be found after a power cut: path, device and number.
_anchored: set[tuple[str, int, int]] = set()
# "Below the working directory", of Linux's calls that take a directory.
_AT_FDCWD = -100

# Parsed, JSON takes up to some thirty times its bytes: half a gigabyte at worst.
JSON_BYTES = 16 << 20
_READ_AT_ONCE = 1 << 20
# What a table may take while it is read: ten million rows of a hundred numbers.
TABLE_BYTES = 4 << 30
TEXT_TYPES = ("string", "large_string")
# Far more than any file of ours has, far less than Python's own recursion stands.
_MOST_LEVELS = 100
# Of settings, and spaces of them: a hundred times the longest there is.
_TOML_BYTES, _TOML_DOTS = 1 << 20, 300
# Distances between a few thousand classes.
ARRAY_BYTES = 256 << 20
# The largest towers have a few thousand tensors, at some hundred bytes of header each.
_TENSORS = 100_000
# By the names that safetensors gives them; smaller ones than a byte are left out, since nothing here reads them.
_TENSOR_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """A regular file, opened for reading bytes while the block runs. A pipe or device in its place can't make it wait.

    Raises:
        GeoError: it isn't there or can't be read, also within the block; or it is a directory, pipe, socket or device.
    """
    # Opening can already do harm (a tape rewinds), and without O_NONBLOCK waits for a pipe's other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with reading_errors(path):
        try:
            _check_regular(path, path.stat().st_mode)
        except ValueError as error:
            raise GeoError(f"no file can have this name: {error}", where=repr(str(path))) from error
        with os.fdopen(os.open(path, flags), "rb") as file:
            _check_regular(path, os.fstat(file.fileno()).st_mode)
            yield file


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    raise GeoError(
        f"this is a {_kind(mode)}, where a file is wanted", where=path, hint="put the file there, or name it"
    )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def read_bytes(path: Path, *, limit: int) -> bytes:
    """A regular file's bytes. Raises GeoError as `open_regular` does, and where there are more than `limit` of them."""
    with open_regular(path) as file:
        size, parts = os.fstat(file.fileno()).st_size, []
        if size <= limit:
            # In parts, since `read` takes all the memory that it is asked for; and counted, since what the system says of the size can
            # be wrong (/proc), or change meanwhile.
            size = 0
            while size <= limit and (part := file.read(min(_READ_AT_ONCE, limit + 1 - size))):
                size += len(part)
                parts.append(part)
    if size > limit:
        raise GeoError(f"{size:,} bytes are more than a file of this kind may have ({limit:,})", where=path)
    return b"".join(parts)


@overload
def read_json(path: Path, schema: None = None, *, limit: int = JSON_BYTES) -> dict[str, Any]: ...
@overload
def read_json(path: Path, schema: "type[Schema]", *, limit: int = JSON_BYTES) -> "Schema": ...
def read_json(path: Path, schema: "type[BaseModel] | None" = None, *, limit: int = JSON_BYTES) -> Any:
    """A JSON object from a file.

    Args:
        path: UTF-8, with or without a byte order mark.
        schema: a pydantic model to validate it with; default: any object.
        limit: most bytes.

    Returns:
        The object as plain values, or an instance of the schema.

    Raises:
        GeoError: as `read_bytes`; or it isn't JSON (NaN and Infinity are not), not an object, nested too deep, holds half a
            character, or isn't as the schema has it, by the first key that isn't.
    """
    data = read_bytes(path, limit=limit)
    content = parse_json(data, path)
    return content if schema is None else validated(schema, content, path)


def parse_json(data: bytes, where: Path | str) -> dict[str, Any]:
    """A JSON object from bytes; see `read_json`."""
    try:
        content = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite)
        # A surrogate alone passes the parser, and nothing can print or write it.
        if b"\\ud" in data.lower():
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        # Later code walks what it is given by recursion, too.
        if data.count(b"[") + data.count(b"{") > _MOST_LEVELS and is_deep(content):
            raise RecursionError
    except RecursionError as error:
        raise GeoError("not a readable JSON file: it is nested too deep", where=where) from error
    except ValueError as error:
        raise GeoError(f"not a readable JSON file: {error}", where=where) from error
    if not isinstance(content, dict):
        raise GeoError(f"not a JSON object, but a {type(content).__name__}", where=where)
    return content


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON's")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is beyond any number here")
    return number


def is_deep(content: Any) -> bool:
    """Whether lists and tables lie in each other beyond what later code may walk by recursion; found out without any."""
    level = [content]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises GeoError as `read_bytes` does, and where it isn't TOML or is nested too deep."""
    try:
        text = read_bytes(path, limit=_TOML_BYTES).decode("utf-8")
        # The parser's time and memory grow with the square of a dotted key's parts.
        if any(line.count(".") > _TOML_DOTS for line in text.splitlines()):
            raise RecursionError
        content = tomllib.loads(text)
        if is_deep(content):
            raise RecursionError
    except RecursionError as error:
        raise GeoError("not a readable TOML file: it is nested too deep", where=path) from error
    except ValueError as error:
        raise GeoError(f"not a readable TOML file: {error}".splitlines()[0], where=path) from error
    return content


def validated(schema: "type[Schema]", content: Any, where: Path | str) -> "Schema":
    """An instance of a pydantic model. Raises GeoError that names the first key that isn't as it should be."""
    from pydantic import ValidationError

    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise GeoError(first_fault(error), where=where) from error


def first_fault(error: "ValidationError") -> str:
    """In one line, the first key that isn't as a schema has it."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    # A missing key's input is all that is there, and a whole list helps nobody.
    value = first["input"]
    shown = "" if isinstance(value, dict | list) else f", got {value!r:.60}"
    return f"{key:.200}: {what:.400}{shown}" if key else f"{what:.400}{shown}"


@dataclass(frozen=True)
class TensorEntry:
    """What a safetensors header says of a tensor: dtype by safetensors' name, and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_tensor_header(path: Path) -> dict[str, TensorEntry]:
    """What a safetensors file says that it holds, by name, checked against the bytes that it has.

    Format: https://github.com/safetensors/safetensors#format: 8 bytes of length, little-endian, a JSON header of that
    length, the tensors' bytes.

    Raises:
        GeoError: as `open_regular`; or the header is cut short, too long, not JSON, or claims what the file doesn't hold.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            _refuse_tensors(path, f"its header is cut short, or it isn't one ({size:,} bytes)")
        if length > JSON_BYTES:
            _refuse_tensors(path, f"its header has {length:,} bytes")
        header = parse_json(file.read(length), path)
    header.pop("__metadata__", None)
    if len(header) > _TENSORS:
        _refuse_tensors(path, f"it claims {len(header):,} tensors")
    entries = {name: _tensor_entry(path, name, entry, 8 + length, size) for name, entry in header.items()}
    stop = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start < stop:
            _refuse_tensors(path, f"{name!r:.80} overlaps another tensor")
        stop = entry.stop
    return entries


def _tensor_entry(path: Path, name: str, entry: Any, begin: int, size: int) -> TensorEntry:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        _refuse_tensors(path, f"{name!r:.80} isn't described by dtype, shape and data_offsets")
    if not isinstance(dtype, str) or dtype not in _TENSOR_BYTES:
        _refuse_tensors(path, f"{name!r:.80} is of dtype {dtype!r:.40}, which isn't known here")
    # Beside a zero, the other lengths take no bytes and can still be beyond what a tensor may have.
    if len(shape) > 32 or math.prod(n or 1 for n in shape) > 1 << 48:
        _refuse_tensors(path, f"{name!r:.80} claims a shape of {len(shape)} dimensions beyond any tensor's")
    if start > stop or begin + stop > size:
        _refuse_tensors(path, f"{name!r:.80} ends at byte {begin + stop:,} of {size:,}")
    if math.prod(shape) * _TENSOR_BYTES[dtype] != stop - start:
        _refuse_tensors(path, f"{name!r:.80} claims {dtype} {shape!r:.80} in {stop - start:,} bytes")
    return TensorEntry(dtype, tuple(shape), begin + start, begin + stop)


def _refuse_tensors(path: Path, why: str) -> NoReturn:
    raise GeoError(
        f"not a readable safetensors file: {why}",
        where=path,
        hint="copy or download it again: part of it is missing or damaged",
    )


@contextmanager
def open_tensors(path: Path, *, device: str = "cpu") -> "Iterator[safe_open]":
    """A safetensors file, opened while the block runs: `.keys()`, `.get_slice(name).get_shape()`, `.get_tensor(name)`.

    Tensors are PyTorch's. Compare shapes before tensors are read, or anything is built to hold them.

    Raises:
        GeoError: as `read_tensor_header`; or what safetensors says of the file, also within the block.
    """
    from safetensors import SafetensorError, safe_open

    read_tensor_header(path)
    with reading_errors(path):
        try:
            with safe_open(path, framework="pt", device=device) as opened:
                yield opened
        except SafetensorError as error:
            _refuse_tensors(path, str(error))


def read_array(path: Path, *, limit: int = ARRAY_BYTES) -> "NDArray[Any]":
    """An array of numbers from a `.npy` file. Raises GeoError as `read_bytes` does, and where the file isn't one or holds less than
    its header claims.
    """
    import numpy as np

    data = io.BytesIO(read_bytes(path, limit=limit))
    try:
        version = np.lib.format.read_magic(data)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_column, dtype = read_header(data)
        size = math.prod(shape) * dtype.itemsize
        rest = data.read()
        if dtype.kind not in "biufc" or size != len(rest):
            raise ValueError(f"its header claims {dtype} {shape}, and {len(rest):,} bytes follow")
        return np.frombuffer(rest, dtype).reshape(shape, order="F" if by_column else "C")
    # The header is parsed as Python by NumPy, which fails in many ways.
    except Exception as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise GeoError(f"not a readable .npy file: {why:.200}", where=path) from error


def read_columns(
    path: Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    most_rows: int,
    complete: bool = True,
) -> "pa.Table":
    """Some columns of a Parquet file, whatever else it holds.

    Args:
        path: the file.
        columns: that it must have, each once.
        optional: that it may have.
        most_rows: that it may claim.
        complete: whether every value must be there.

    Raises:
        GeoError: as `open_regular`; or it isn't Parquet, lacks a column, has a value that is missing, or claims too much.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with open_regular(path) as file, little_memory(TABLE_BYTES):
        try:
            # Read ahead, or in threads, damaged pages have ended the process: a thread goes on when another has given up.
            source = pa.PythonFile(file, mode="r")
            opened = parquet.ParquetFile(source, pre_buffer=False)
            meta, names = opened.metadata, opened.schema_arrow.names
            wanted = [*columns, *(name for name in optional if name in names)]
            lacking = [name for name in wanted if names.count(name) != 1]
            if lacking:
                raise ValueError(f"it has no column {lacking[0]!r}, or several")
            if meta.num_rows > most_rows:
                raise ValueError(f"it claims {meta.num_rows:,} rows")
            # As a dictionary a text that is repeated is there once: some bytes can't stand for gigabytes of it.
            texts = [name for name in wanted if str(opened.schema_arrow.field(name).type) in TEXT_TYPES]
            reader = parquet.ParquetFile(source, metadata=meta, read_dictionary=texts, pre_buffer=False)
            table = reader.read(columns=wanted, use_threads=False)
            for name in wanted:
                if complete and table[name].null_count:
                    raise ValueError(f"its column {name} has missing values")
        except MemoryError as error:
            raise GeoError("its columns take more memory than any table here may", where=path) from error
        # Arrow's decoders fail in many ways.
        except Exception as error:
            why = str(error).partition("\n")[0] or type(error).__name__
            raise GeoError(f"not a readable Parquet file: {why:.200}", where=path) from error
    return table


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Let the process take no more than `most` bytes while the block runs, where the system can: beyond, memory is at its end.

    For libraries that can't be told. What a page of a Parquet file unpacks to is known once it is unpacked, and a few bytes
    can stand for gigabytes of one number. One thread at a time: the bound is the process's.
    """
    with _bounded, _bound_memory(most):
        yield


@contextmanager
def _bound_memory(most: int) -> Iterator[None]:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        bound = pages * os.sysconf("SC_PAGESIZE") + most
        resource.setrlimit(
            resource.RLIMIT_AS, (bound if soft == resource.RLIM_INFINITY else min(bound, soft), hard)
        )
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def replacing(path: Path, *, overwrite: bool = True, forced: bool = True) -> Iterator[Path]:
    """A temporary name to write a file under, which takes its place once the block ends well; a reader never sees half of one.

    A power cut undoes none of it afterwards. In a directory that `replacing_directory` has yet to give its name, nothing is forced
    to the disk: all of it will be.

    The temporary name has the ending of the final one, since some writers go by it. A link is replaced, and what it leads to
    stays. What killed writers left in the folder an hour ago goes.

    Args:
        path: the file.
        overwrite: replace one that is there when the block ends.
        forced: False for one of many that the caller forces together, or that is made again where it is damaged.

    Raises:
        GeoError: for every OSError, also of the block; what was there before stays. Or a directory, pipe or device has this
            name, or without `overwrite` anything.
    """
    with replacing_all([path], overwrite=overwrite, forced=forced) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(
    paths: Sequence[Path], *, overwrite: bool = True, forced: bool = True
) -> Iterator[list[Path]]:
    """The same for several files, at little more than the cost of one. Each is whole at any time; they don't change together."""
    for path in paths:
        with disk_errors(path):
            _check_replaceable(path)
        _sweep_files(path.parent)
    temporary = [
        path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_WRITING}{path.suffix}") for path in paths
    ]
    forced = forced and not all(is_unnamed(path) for path in paths)
    try:
        with disk_errors(paths[0]):
            yield temporary
            if forced:
                force_to_disk(*temporary)
            for written, path in zip(temporary, paths, strict=True):
                with disk_errors(path):
                    if overwrite:
                        written.replace(path)
                    else:
                        _rename_new(written, path)
            if forced:
                force_names(*(path.parent for path in paths))
    finally:
        for written in temporary:
            with suppress(OSError):
                written.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    """Raise GeoError for what a file can't replace, or mustn't: root could replace /dev/null."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except ValueError as error:
        raise GeoError(f"no file can have this name: {error}", where=repr(str(path))) from error
    if not stat.S_ISREG(mode):
        raise GeoError(f"this is a {_kind(mode)}, where a file is to be written", where=path, hint=_ANOTHER)


# Of one folder there may be thousands of files to write.
@lru_cache(maxsize=64)
def _sweep_files(folder: Path) -> None:
    for left in leftovers(folder):
        if not left.is_dir():
            with suppress(OSError):
                left.unlink()


@contextmanager
def replacing_directory(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """An empty directory to write into, which takes its place once the block ends well; a reader never sees half of one.

    Where the system can swap two names in one step (Linux, macOS; not every file system), the place is never empty. Elsewhere what
    was there waits under a hidden name between two renames, where `restore_replaced` finds it if the process dies just then.
    What a killed writer left under way goes after an hour. A power cut undoes none of it afterwards; meanwhile it leaves the old or the new.

    Args:
        path: the directory. A link is replaced, and what it leads to stays.
        overwrite: replace what is there when the block ends.

    Raises:
        GeoError: for every OSError, also of the block; what was there before stays. Or without `overwrite`, something has this
            name by then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_WRITING}")
    with disk_errors(path):
        temporary.mkdir(parents=True)
    for left in leftovers(path.parent):
        if name_behind(left) == path.name:
            _discard(left)
    forced = not is_unnamed(path)
    _forget_anchors(path)
    try:
        with disk_errors(path):
            yield temporary
            if forced:
                force_tree(temporary)
            _give_name(temporary, path, overwrite)
    except BaseException:
        _discard(temporary)
        raise
    # What was there before goes once a power cut can't bring back its name.
    if forced:
        with disk_errors(path):
            force_names(path.parent)
    # Swapped, it is what was there before.
    _discard(temporary)
    if overwrite:
        _discard(path.with_name(f".{path.name}{_REPLACED}"))


def _give_name(temporary: Path, path: Path, overwrite: bool) -> None:
    # 1. Nothing has the name: a rename that fails where somebody was faster.
    # 2. Something has it: the two swap their names.
    # 3. The system can't: what is there steps aside, dated, so that nobody takes it for litter before its hour.
    if not overwrite or not os.path.lexists(path):
        _rename_new(temporary, path)
        return
    if _rename_at_once(temporary, path, swap=True):
        return
    replaced = path.with_name(f".{path.name}{_REPLACED}")
    _discard(replaced)
    with suppress(OSError):
        os.utime(path, follow_symlinks=False)
    path.rename(replaced)
    _rename_new(temporary, path)


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename to a name that nothing has. Raises GeoError where something has it."""
    try:
        if _rename_at_once(temporary, path, swap=False):
            return
        if os.path.lexists(path):
            raise FileExistsError
        temporary.rename(path)
    except FileExistsError as error:
        raise GeoError("this name is taken, and nothing was replaced", where=path, hint=_ANOTHER) from error


def _rename_at_once(source: Path, target: Path, *, swap: bool) -> bool:
    """What `rename` can't do in one step: swap two names, or take one only if nothing has it. False where the system can't either.

    Raises:
        OSError: FileExistsError where the name is taken; and as `rename`.
    """
    # Linux: renameat2(2). macOS: renamex_np(2), with flags of its own.
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], 2 if swap else 1)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, 2 if swap else 4)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def restore_replaced(
    directory: Path, is_busy: Callable[[Path], bool] | None = None, only: Collection[str] = ()
) -> None:
    """Give their names back to the entries that `replacing_directory` was about to replace when it was cut short.

    A folder that may only be read stays as it is.

    Args:
        directory: where they lie.
        is_busy: whether somebody is writing what is to have this path: its name comes within a moment, which is waited for.
        only: the names that may be given back; all if left out.
    """
    for path in entries(directory, hidden=True):
        name = directory / path.name.removeprefix(".").removesuffix(_REPLACED)
        if path.suffix != _REPLACED or os.path.lexists(name) or (only and name.name not in only):
            continue
        if is_busy is not None and is_busy(name):
            deadline = time.monotonic() + _MOMENT_SECONDS
            while not os.path.lexists(name) and time.monotonic() < deadline:
                time.sleep(0.01)
            continue
        with suppress(OSError, GeoError):
            _rename_new(path, name)


def leftovers(directory: Path) -> list[Path]:
    """What killed writers left in a directory, under the names that `replacing` and `replacing_directory` give, an hour ago or more.

    Links are never among them, nor what `restore_replaced` would give its name back.
    """
    old = []
    for path in entries(directory, hidden=True):
        with suppress(OSError):
            status = path.lstat()
            waits = path.suffix == _REPLACED and not os.path.lexists(directory / name_behind(path))
            is_ours = name_behind(path) and (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode))
            if is_ours and not waits and time.time() - status.st_mtime > LEFTOVER_SECONDS:
                old.append(path)
    return old


def entries(directory: Path, *, hidden: bool | None = None) -> list[Path]:
    """What lies in a directory, by name, or of it what is hidden, or isn't; nothing of one that isn't there or can't be read."""
    with suppress(OSError, ValueError), os.scandir(directory) as listed:
        names = [entry.name for entry in listed]
        return sorted(directory / name for name in names if hidden in (None, name.startswith(".")))
    return []


def name_behind(path: Path) -> str:
    """What a leftover's name was made from; empty for a name that is none. Earlier versions gave some without the random part."""
    made = _MADE_UP.fullmatch(path.name)
    return made[1] if made else ""


def is_leftover(path: Path) -> bool:
    """Whether a name is one that `replacing` or `replacing_directory` gives: left over, if no writer is at work."""
    return path.name.startswith(".") and (_WRITING in path.suffixes[-2:] or path.suffix == _REPLACED)


def remove_directory(path: Path) -> None:
    """Delete a directory. It loses its name first: a reader, or the next command after a kill, never sees half of one.

    Of a link the link alone goes.
    """
    doomed = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_WRITING}")
    _forget_anchors(path)
    with disk_errors(path):
        path.rename(doomed)
        # A power cut doesn't bring the name back once parts are gone.
        force_names(path.parent)
    _discard(doomed)


def _discard(path: Path) -> None:
    """Delete a file, a link, or a directory and what is in it, as far as can be."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def lock(
    path: Path, *, busy: str, where: Path, hint: str, keep: bool = True, wait_seconds: float = 0
) -> Iterator[None]:
    """Hold a lock file while the block runs. The kernel lets go of a dead holder's.

    Where the file system knows no locks, that is said once, and the block runs without.

    Args:
        path: the lock file; its folder is made.
        busy: what to say of another holder, as in "another extraction is writing to this store".
        where: what is locked, for people.
        hint: what to do about the other holder.
        keep: whether the file stays afterwards, with no holder in it.
        wait_seconds: how long to wait for the other holder to let go.

    Raises:
        BusyError: somebody else holds it, by process, host and time.
        GeoError: the file can't be written.
    """
    from filelock import FileLock, Timeout

    handle = FileLock(path, timeout=wait_seconds, poll_interval=0.01, fallback_to_soft=False)
    with disk_errors(where):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle.acquire()
        # A kind of OSError, too.
        except Timeout as error:
            raise BusyError(f"{busy}: {lock_holder(path)}", where=where, hint=hint) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _warn_of_no_locks(path.parent)
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


@lru_cache(maxsize=64)
def _warn_of_no_locks(folder: Path) -> None:
    warn(
        f"the file system of {folder} knows no locks (flock): see to it that no two commands write the same store or run at once"
    )


def lock_beside(path: Path) -> Path:
    """The lock file of a directory that is replaced whole, such as a run: `.NAME.lock` beside it."""
    return path.with_name(f".{path.name}.lock")


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock file now; not where it can't be told, as on a disk that may only be read."""
    from filelock import FileLock, Timeout

    try:
        if not path.is_file():
            return False
        with FileLock(path, timeout=0, fallback_to_soft=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def lock_holder(path: Path) -> str:
    """Who holds a lock file, for people: process, host and time."""
    deadline = time.monotonic() + _MOMENT_SECONDS
    while True:
        # Between taking a lock and writing one's name into it lies a moment.
        with suppress(GeoError, KeyError):
            holder = read_json(path)
            return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        if not path.exists():
            return "it has just ended"
        if time.monotonic() > deadline:
            return "its name is not written yet"
        time.sleep(0.01)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, in one piece. Raises GeoError where the disk is full or may not be written."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def force_to_disk(*paths: Path) -> None:
    """Wait until the bytes of files, and the names in folders, outlast a power cut. In which order they get there is open.

    Where the file system knows no such thing, that is said once.

    Raises:
        OSError: what the disk says, also of what was written long before.
    """
    if len(paths) < 2:
        for path in paths:
            _force(path)
        return
    with ThreadPoolExecutor(min(len(paths), _FORCED_AT_ONCE), "fsync") as pool:
        list(pool.map(_force, paths))


def _force(path: Path) -> None:
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (_NO_FOLDERS if is_folder else _NO_FORCE):
            raise
        if not is_folder:
            _warn_of_no_force(path.parent)


def fsync(handle: int) -> None:
    """`os.fsync`, and on macOS what it leaves undone: the disk's own cache is written, too."""
    full: int | None = None
    with suppress(ImportError):
        import fcntl

        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is not None:
            fcntl.fcntl(handle, full)
    if full is None:
        os.fsync(handle)


@lru_cache(maxsize=64)
def _warn_of_no_force(folder: Path) -> None:
    warn(
        f"the file system of {folder} can't force files to the disk (fsync): a power cut may lose the last of them"
    )


def force_tree(directory: Path) -> None:
    """`force_to_disk` for all that lies in a directory, and the directory itself."""
    paths = []
    for folder, _, names in os.walk(directory):
        paths.append(Path(folder))
        for name in names:
            path = Path(folder, name)
            # A link is but a name.
            if stat.S_ISREG(path.lstat().st_mode):
                paths.append(path)
    force_to_disk(*paths)


def force_names(*folders: Path) -> None:
    """Wait until what has a name in these folders is found there after a power cut: their own names are forced where they are new.

    What lies above is forced once by a process, as far up as it may write and the file system reaches.

    Raises:
        OSError: what the disk says.
    """
    above: dict[tuple[str, int, int], str] = {}
    for folder in folders:
        current = os.path.realpath(folder)
        status = os.stat(current)  # noqa: PTH116
        while (key := (current, status.st_dev, status.st_ino)) not in _anchored | above.keys():
            parent = os.path.dirname(current)  # noqa: PTH120
            beyond = os.stat(parent)  # noqa: PTH116
            above[key] = parent
            if parent == current or beyond.st_dev != status.st_dev or not os.access(parent, os.W_OK):
                # Others gave this one its name, long ago.
                above[key] = current
                break
            current, status = parent, beyond
    names = dict.fromkeys([*(os.path.realpath(folder) for folder in folders), *above.values()])
    force_to_disk(*map(Path, names))
    _anchored.update(above)


def _forget_anchors(directory: Path) -> None:
    """Numbers of what is deleted are given again, maybe under the same name."""
    gone = os.path.realpath(directory)
    _anchored.difference_update(
        {key for key in _anchored if key[0] == gone or key[0].startswith(gone + os.sep)}
    )


def is_unnamed(path: Path) -> bool:
    """Whether a path lies in a directory that `replacing_directory` has yet to give its name: it forces all in it to the disk."""
    return any(is_leftover(folder) for folder in path.parents)


def save_tensors(
    tensors: Mapping[str, "Tensor"], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous tensors on the CPU as a safetensors file. Raises OSError for all that the disk says."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    set_usual_mode(path)


def set_usual_mode(path: Path) -> None:
    """Give a file the mode of one newly made beside it: safetensors lets nobody but the owner read what it writes."""
    beside = path.with_name(f".{path.name}.mode")
    beside.touch()
    path.chmod(beside.stat().st_mode & 0o777)
    beside.unlink()
