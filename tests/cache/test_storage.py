"""The bytes of a store: chunks as Zarr's own codecs write them, in one step, and roots that come and go whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from geo_embed.cache.folder import FolderStorage
from geo_embed.cache.storage import (
    all_superseded,
    creating,
    leftovers,
    sibling_paths,
    store_path,
    store_paths,
    supersede,
    superseded_paths,
)
from geo_embed.errors import GeoError


@pytest.mark.parametrize("dtype", ["uint8", "<u8", "<f2", "<f4"])
def test_a_chunk_is_the_bytes_that_zarr_writes(tmp_path: Path, dtype: str) -> None:
    block = np.random.default_rng(0).integers(0, 200, (3, 4)).astype(dtype)
    array = zarr.create_array(
        tmp_path / "theirs", shape=(3, 4), chunks=(3, 4), dtype=dtype, compressors=[Crc32cCodec()]
    )
    array[:] = block
    FolderStorage(tmp_path / "ours").write_chunk("c/0/0", block)
    assert (tmp_path / "ours/c/0/0").read_bytes() == (tmp_path / "theirs/c/0/0").read_bytes()
    again = np.empty_like(block)
    FolderStorage(tmp_path / "theirs").read_chunk("c/0/0", again)
    assert (again == block).all()


@pytest.mark.parametrize("damage", ["flipped", "cut", "grown"])
def test_a_damaged_chunk_is_not_read(tmp_path: Path, damage: str) -> None:
    storage, block = FolderStorage(tmp_path), np.arange(12, dtype="<f4")
    storage.write_chunk("c/0", block)
    data = bytearray((tmp_path / "c/0").read_bytes())
    data[5] ^= damage == "flipped"
    data = data[:-1] if damage == "cut" else data + b"0" * (damage == "grown")
    (tmp_path / "c/0").write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        storage.read_chunk("c/0", block)


def test_a_chunk_takes_with_it_what_a_killed_writer_left_of_it(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name in (".0.0123abcd.writing", "0.partial"):
        (tmp_path / "c" / name).write_text("half")
    FolderStorage(tmp_path).write_chunk("c/0", np.zeros(3, dtype=np.uint8))
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["0"]


def test_a_chunk_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    (tmp_path / "c").write_text("a file where a folder has to be")
    with pytest.raises(GeoError, match="can't write"):
        storage.write_chunk("c/0", np.zeros(3, dtype=np.uint8))
    assert not storage.exists("c/0")


def test_a_root_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "train.zarr"

    def fail() -> None:
        with creating(path) as storage:
            storage.write_chunk("c/0", np.zeros(3, dtype=np.uint8))
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(path.parent.iterdir()) == []
    with creating(path) as storage:
        storage.write_chunk("c/0", np.zeros(3, dtype=np.uint8))
    assert FolderStorage(path).exists("c/0")


def test_superseded_roots_are_sources_in_the_order_of_their_age(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "a" / f"{split}.zarr").mkdir(parents=True)
    path = tmp_path / "a" / "train.zarr"
    for _ in range(2):
        supersede(path)
        path.mkdir()
    assert [earlier.name for earlier in superseded_paths(path)] == ["train.zarr.1", "train.zarr.2"]
    assert [beside.name for beside in sibling_paths(path)] == [
        "test.zarr", "train.zarr", "train.zarr.1", "train.zarr.2",
    ]  # fmt: skip
    assert [successor for _, successor in all_superseded(tmp_path)] == [path, path]
    assert [root.name for root in store_paths(tmp_path)] == ["test.zarr", "train.zarr"]


def test_leftovers_of_every_version_are_recognised_and_nothing_else(tmp_path: Path) -> None:
    store = tmp_path / "a" / "train.zarr"
    for name in ("train.zarr/c/0", "train.lock", "train.rows-0-4.lock", ".hidden"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).touch()
    names = [
        ".train.zarr.creating", ".train.zarr.importing", ".train.zarr.replaced", ".train.zarr.1.replaced",
        ".train.zarr.0123abcd.writing", "train.zarr/c/0.x.partial", "train.zarr/c/.0.0123abcd.writing",
    ]  # fmt: skip
    for name in names:
        (tmp_path / "a" / name).touch()
    listed = list(leftovers(tmp_path))
    assert {path for path, _ in listed} == {tmp_path / "a" / name for name in names}
    assert {belongs for _, belongs in listed} == {store}


def test_a_store_is_known_by_its_fingerprint_whatever_the_backbone_is_called(tmp_path: Path) -> None:
    path = store_path(tmp_path, "geolocal/StreetCLIP", "f" * 16, "train")
    assert path == tmp_path / f"geolocal--StreetCLIP-{'f' * 16}" / "train.zarr"
    path.mkdir(parents=True)
    assert store_path(tmp_path, "/elsewhere/copy", "f" * 16, "test") == path.with_name("test.zarr")


@pytest.mark.parametrize("name", ["b" * 5000, "é" * 300, "a/" * 3000, "..", "/", "\0", ""])
def test_a_name_that_no_folder_can_have_still_names_one(tmp_path: Path, name: str) -> None:
    path = store_path(tmp_path, name, "f" * 16, "train")
    assert path.parent.parent == tmp_path
    path.mkdir(parents=True)
