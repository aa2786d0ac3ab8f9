"""The door for what comes from outside, checksums, replacement in one piece, locks, tensors in a file with the usual mode."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from pydantic import BaseModel, Field
from safetensors.torch import load_file, save_file

from geo_embed.backbones.backbone import Backbone, load_backbone, save_backbone
from geo_embed.config import Config
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError
from geo_embed.files import (
    file_sha256,
    is_leftover,
    is_locked,
    lock,
    open_regular,
    open_tensors,
    read_array,
    read_bytes,
    read_columns,
    read_json,
    read_tensor_header,
    read_toml,
    replacing,
    replacing_directory,
    restore_replaced,
    save_tensors,
)
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, RunWriter


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


def test_the_checksum_is_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_tensors_are_written_with_the_umasks_mode_and_nothing_beside_them(
    tmp_path: Path, mask: int, mode: int
) -> None:
    with umask(mask):
        for _ in range(2):
            save_tensors({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    assert modes(tmp_path) == {"a.safetensors": mode}
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_what_the_disk_says_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save_tensors({"a": torch.arange(3)}, tmp_path / "nowhere" / "a.safetensors")


def test_a_labs_others_may_read_the_heads_and_the_backbone_of_a_run(
    run: Run, config: Config, tmp_path: Path
) -> None:
    backbone: Backbone = load_backbone(config.model, pick_device("cpu"), torch.float32)
    with umask(0o022):
        save_backbone(backbone, tmp_path / "backbone")
        (tmp_path / "run").mkdir()
        RunWriter(tmp_path / "run").write_heads(load_heads(run))
    for directory in (tmp_path / "backbone", tmp_path / "run"):
        assert set(modes(directory).values()) == {0o644}


# ---------------------------------------------------------------- the door


class Named(BaseModel):
    name: str
    size: int = Field(ge=0)


def in_a_second(path: Path, read: Callable[[Path], object]) -> str:
    """What is said of a file that is refused; a test that hangs, or takes memory for what a file claims, fails here."""
    refused: list[str] = []

    def try_it() -> None:
        with pytest.raises(GeoError) as caught:
            read(path)
        refused.append(str(caught.value))

    tracemalloc.start()
    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused
    assert peak < 50e6
    assert "\n" not in refused[0]
    return refused[0]


def read_all(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with open_tensors(path) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


DOORS: list[Callable[[Path], object]] = [
    read_all,
    partial(read_bytes, limit=1000),
    read_json,
    partial(read_json, schema=Named),
    read_tensor_header,
    read_tensors,
]


@pytest.mark.parametrize("door", DOORS)
def test_only_a_regular_file_comes_in_and_nothing_waits_for_a_pipes_other_end(
    tmp_path: Path, door: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "nowhere").symlink_to("gone")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name, why in {
            "pipe": "this is a named pipe, where a file is wanted",
            "to_pipe": "named pipe",
            "socket": "this is a socket",
            ".": "this is a directory",
            "/dev/zero": "this is a device",
            "/dev/null": "this is a device",
            "loop": "symbolic links",
            "nowhere": "there is no such file",
            "absent": "there is no such file",
            "a\0b": "no file can have this name",
            "a" * 300: "File name too long",
            "absent/under": "there is no such file",
        }.items():
            assert why in in_a_second(tmp_path / name, door)


def test_a_file_through_a_link_is_read_and_one_without_permission_or_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_all(tmp_path / "link") == read_bytes(tmp_path / "link", limit=7) == b"content"
    assert "7 bytes are more than" in in_a_second(tmp_path / "file", partial(read_bytes, limit=6))
    # 4 GB without a byte on the disk.
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 32)
    assert "4,294,967,296 bytes" in in_a_second(tmp_path / "huge", read_json)
    if os.geteuid():
        (tmp_path / "file").chmod(0)
        assert "Permission denied" in in_a_second(tmp_path / "file", read_all)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_bound_holds_where_the_system_says_that_a_file_has_no_bytes() -> None:
    assert Path("/proc/self/maps").stat().st_size == 0
    assert "are more than" in in_a_second(Path("/proc/self/maps"), partial(read_bytes, limit=10))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1, 2]", "not a JSON object, but a list"),
        (b"null", "not a JSON object, but a NoneType"),
        (b'{"a": NaN}', "NaN is no number of JSON's"),
        (b'{"a": [-Infinity]}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 is beyond any number"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "integer string conversion"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b"{\0}", "Expecting property name"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\uDC00": 1}', "surrogates not allowed"),
        (b'{"a":' + b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", "nested too deep"),
        ('{"a": 1}'.encode("utf-16"), "can't decode"),
    ],
)
def test_what_is_no_plain_json_is_refused_in_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    for door in (read_json, partial(read_json, schema=Named)):
        assert why in in_a_second(tmp_path / "a.json", door)


def test_json_is_read_as_python_reads_it_and_a_schema_gives_its_own_kind(tmp_path: Path) -> None:
    text = '{"name": "a\\ud83d\\ude00b", "size": 3, "more": [[1, 2.5], {"b": null}], "large": 123456789012345678901}'
    (tmp_path / "a.json").write_text("\ufeff" + text, encoding="utf-8")
    assert read_json(tmp_path / "a.json") == json.loads(text)
    assert read_json(tmp_path / "a.json", Named) == Named(name="a\U0001f600b", size=3)
    many = {"many": [[n] for n in range(1000)]}
    (tmp_path / "a.json").write_text(json.dumps(many))
    assert read_json(tmp_path / "a.json") == many


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "name: Field required"),
        ({"name": "a", "size": "many"}, "size: Input should be a valid integer"),
        ({"name": "a", "size": -1}, "size: Input should be greater than or equal to 0, got -1"),
        ({"name": ["x" * 1000], "size": 1}, "name: Input should be a valid string"),
    ],
)
def test_a_schema_names_the_key_that_is_wrong(tmp_path: Path, content: dict[str, object], why: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    refused = in_a_second(tmp_path / "a.json", partial(read_json, schema=Named))
    assert refused.startswith(why)
    assert refused.endswith(f"({tmp_path / 'a.json'})")
    assert len(refused) < 200 + len(str(tmp_path))


TENSORS = {
    "a": torch.arange(6).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "none": torch.zeros(0, 5),
    "scalar": torch.tensor(2.5),
}


def with_header(path: Path, header: object, data: bytes = bytes(8), *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_a_tensor_file_says_what_safetensors_wrote_into_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    entries = read_tensor_header(path)
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    whole = path.read_bytes()
    assert whole[entries["a"].start : entries["a"].stop] == TENSORS["a"].numpy().tobytes()
    read = read_tensors(path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": F32 | {"shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, "ends at byte 4,000,"),
        ({"a": F32 | {"shape": [10**12]}}, "in 8 bytes"),
        ({"a": F32 | {"shape": [2**40, 2**40]}}, "beyond any tensor's"),
        ({"a": F32 | {"shape": [0, 2**62], "data_offsets": [0, 0]}}, "beyond any tensor's"),
        ({"a": F32 | {"shape": [1] * 100_000}}, "100000 dimensions"),
        ({"a": F32 | {"shape": [-2]}}, "isn't described by"),
        ({"a": F32 | {"shape": [True, 2]}}, "isn't described by"),
        ({"a": F32 | {"shape": 2}}, "isn't described by"),
        ({"a": F32 | {"data_offsets": [8, 0]}}, "ends at byte"),
        ({"a": F32 | {"data_offsets": [-8, 0]}}, "isn't described by"),
        ({"a": F32 | {"data_offsets": [0, 8, 8]}}, "isn't described by"),
        ({"a": F32 | {"data_offsets": [0.0, 8.0]}}, "isn't described by"),
        ({"a": F32 | {"dtype": "F31"}}, "'F31', which isn't known"),
        ({"a": F32 | {"dtype": ["F32"]}}, "which isn't known"),
        ({"a": F32 | {"dtype": "F64"}}, "in 8 bytes"),
        ({"a": F32, "b": F32}, "'b' overlaps another"),
        ({"a": {"dtype": "F32"}}, "isn't described by"),
        ({"a": None}, "isn't described by"),
        ([F32], "not a JSON object"),
        (b"{", "not a readable JSON file"),
        (b'{"a":' + b"[" * 100_000, "nested too deep"),
        ({str(n): {} for n in range(100_001)}, "claims 100,001 tensors"),
    ],
)
def test_a_tensor_file_that_claims_what_it_has_not_is_refused_before_memory_is_taken(
    tmp_path: Path, header: object, why: str
) -> None:
    path = with_header(tmp_path / "a.safetensors", header)
    for door in (read_tensor_header, read_tensors):
        assert why in in_a_second(path, door)


def test_a_tensor_file_cut_anywhere_or_with_a_header_of_any_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "not a readable" in in_a_second(path, read_tensors)
    for length in (0, 1, 40, 10**3, 2**40, 2**64 - 1):
        with_header(path, {"a": F32}, length=length)
        assert "not a readable" in in_a_second(path, read_tensors)
    # A header of ten million entries, 100 MB, and one that is nothing but long: neither is parsed.
    with path.open("wb") as file:
        file.write((10**8).to_bytes(8, "little") + b'{"a":{},')
        file.truncate(10**8 + 16)
    assert "its header has 100,000,000 bytes" in in_a_second(path, read_tensors)


def test_what_only_safetensors_minds_is_refused_in_its_words(tmp_path: Path) -> None:
    path = with_header(tmp_path / "a.safetensors", {"a": F32 | {"data_offsets": [8, 16]}}, bytes(16))
    assert read_tensor_header(path)["a"].shape == (2,)
    assert "not a readable safetensors file: Error while deserializing header" in in_a_second(
        path, read_tensors
    )


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.zeros((0, 4)), np.float32(3)]
)
def test_an_array_comes_back_as_numpy_wrote_it(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    again = read_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (10**12,)}", "(?i)malformed|not a valid|parse"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}", "and 16 bytes follow"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", "and 16 bytes follow"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}", "and 16 bytes follow"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", "claims object"),
        ("{'descr': '<U2', 'fortran_order': False, 'shape': (2,)}", "claims <U2"),
        ("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,)}", "and 16 bytes follow"),
        ("{'descr': '<f99', 'fortran_order': False, 'shape': (2,)}", "dtype"),
        ("(" * 9000, "not a readable"),
        ("__import__('os')", "not a readable"),
        ("", "not a readable"),
    ],
)
def test_an_array_that_claims_what_it_has_not_is_refused(tmp_path: Path, header: str, why: str) -> None:
    path = tmp_path / "a.npy"
    text = header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(16))
    assert re.search(why, in_a_second(path, read_array))
    for content in (b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(100), bytes(100)):
        path.write_bytes(content)
        assert "not a readable .npy file" in in_a_second(path, read_array)


def test_a_table_is_read_by_its_columns_and_refused_for_what_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"id": ["a", "b", "a"], "list": [[1.0, 2.0], [3.0], []], "more": [1, 2, 3]}
    parquet.write_table(pa.table(columns), path)

    def read(path: Path, *names: str, rows: int = 10) -> pa.Table:
        return read_columns(path, names, optional=("none",), most_rows=rows)

    table = read(path, "list", "id")
    assert table.column_names == ["list", "id"]
    assert [table[name].to_pylist() for name in ("id", "list")] == [columns["id"], columns["list"]]
    assert "it claims 3 rows" in in_a_second(path, partial(read, rows=2))
    assert "no column 'other', or several" in in_a_second(path, lambda path: read(path, "other"))
    parquet.write_table(pa.table([[1], [2]], names=["id", "id"]), path)
    assert "no column 'id', or several" in in_a_second(path, lambda path: read(path, "id"))
    parquet.write_table(pa.table({"id": ["a", None]}), path)
    assert "column id has missing values" in in_a_second(path, lambda path: read(path, "id"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_small_table_that_stands_for_gigabytes_is_refused(tmp_path: Path) -> None:
    """Of one number, which takes a few kilobytes however often it is repeated."""
    row = pa.table({"list": pa.array([np.zeros(4_000_000, dtype=np.float32)])})
    with parquet.ParquetWriter(tmp_path / "a.parquet", row.schema) as writer:
        for _ in range(16):
            writer.write_table(row)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    # In a process of its own: Arrow keeps memory that earlier tables took, and this one would fit in there.
    reading = (
        "import sys; from pathlib import Path; from geo_embed import files\n"
        "files.TABLE_BYTES = 128 << 20\n"
        "files.read_columns(Path(sys.argv[1]), ['list'], most_rows=100)"
    )
    done = subprocess.run(
        [sys.executable, "-c", reading, tmp_path / "a.parquet"], capture_output=True, text=True, check=False
    )
    assert "GeoError: its columns take more memory than any table" in done.stderr
    assert read_columns(tmp_path / "a.parquet", ["list"], most_rows=100).num_rows == 16


def test_a_parquet_file_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": ["a", "b"] * 20, "list": [[1.0, 2.0]] * 40}), path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for at in random.integers(0, len(whole), 3):
            changed[at] = random.integers(0, 256)
        path.write_bytes(changed)
        try:
            read_columns(path, ("id", "list"), most_rows=1000)
        except GeoError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "text",
    [
        "a = [",
        "a" + ".a" * 100_000 + " = 1",
        "a = " + "[" * 100_000,
        "a = " + "9" * 5000,
        "a = '\x00'",
        "\x00",
    ],
)
def test_what_is_no_plain_toml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    assert "not a readable TOML file" in in_a_second(tmp_path / "a.toml", read_toml)


# ---------------------------------------------------------------- in one piece


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_once_it_is_whole_and_never_half(tmp_path: Path) -> None:
    path = tmp_path / "table.npy"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.suffix == ".npy"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["table.npy"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_text("old")
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    with (  # noqa: PT012
        pytest.raises(GeoError, match="can't write: No space left"),
        replacing_directory(folder) as writing,
    ):
        (writing / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "old"
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["file", "folder"]


def test_a_directory_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for content in ("first", "second"):
        with replacing_directory(path) as writing:
            (writing / content).touch()
            assert not path.exists() or names(path) == ["first"]
        assert names(path) == [content]
    assert names(tmp_path) == ["run"]


def test_a_directory_that_was_about_to_be_replaced_gets_its_name_back(tmp_path: Path) -> None:
    (tmp_path / ".run.replaced").mkdir()
    (tmp_path / ".other.replaced").mkdir()
    (tmp_path / "other").mkdir()
    restore_replaced(tmp_path)
    assert names(tmp_path) == [".other.replaced", "other", "run"]


def test_what_a_killed_writer_left_goes_once_it_is_old_and_never_what_may_be_at_work(tmp_path: Path) -> None:
    old, young = tmp_path / ".run.00000000.writing", tmp_path / ".run.11111111.writing"
    earlier_version, of_another_run = tmp_path / ".run.writing", tmp_path / ".runner.00000000.writing"
    for left in (old, young, earlier_version, of_another_run):
        (left / "half").mkdir(parents=True)
    for left in (old, earlier_version, of_another_run):
        os.utime(left, (0, 0))
    with replacing_directory(tmp_path / "run"):
        pass
    assert names(tmp_path) == [".run.11111111.writing", ".runner.00000000.writing", "run"]


def test_the_names_of_what_is_being_written_are_known_as_leftovers(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.csv") as file, replacing_directory(tmp_path / "b.zarr") as folder:
        file.touch()
        assert is_leftover(file)
        assert is_leftover(folder)
    assert is_leftover(tmp_path / ".b.zarr.replaced")
    assert not any(map(is_leftover, tmp_path.iterdir()))
    assert not is_leftover(tmp_path / ".hidden.csv")


# ---------------------------------------------------------------- locks


def held(path: Path) -> contextlib.AbstractContextManager[None]:
    return lock(path, busy="another command works here", where=path.parent, hint="wait")


HOLD = """
import sys, pathlib
from geo_embed.files import lock
with lock(pathlib.Path(sys.argv[1]), busy="", where=pathlib.Path("."), hint=""):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_held_elsewhere_is_refused_by_process_and_host_and_a_dead_holders_is_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "a.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(GeoError, match="another command works here") as caught, held(path):
            pass
        assert f"process {holder.pid} on {socket.gethostname()}, since 20" in str(caught.value)
        holder.kill()
    assert not is_locked(path)
    with held(path):
        assert is_locked(path)
    assert not is_locked(path)


def test_two_in_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with (
        held(tmp_path / "a.lock"),
        pytest.raises(GeoError, match="another command"),
        held(tmp_path / "a.lock"),
    ):
        pass


COUNT = """
import sys, pathlib
from geo_embed.errors import GeoError
from geo_embed.files import lock
path, number = map(pathlib.Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
counted = 0
while counted < 100:
    try:
        with lock(path, busy="", where=path, hint="", keep=False):
            number.write_text(str(int(number.read_text()) + 1))
        counted += 1
    except GeoError:
        pass
"""


def test_a_lock_that_is_not_kept_leaves_no_file_and_never_has_two_holders(tmp_path: Path) -> None:
    """Whoever opens the file just before it goes must not hold it beside the one who makes the next."""
    path, number = tmp_path / "a.lock", tmp_path / "number"
    number.write_text("0")
    begin = [sys.executable, "-c", COUNT, str(path), str(number)]
    processes = [
        subprocess.Popen(begin, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=60)
    assert number.read_text() == "300"
    assert [entry.name for entry in tmp_path.iterdir()] == ["number"]
