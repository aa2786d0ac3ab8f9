"""Pictures by their names, loose or in shards: the same bytes, and a line for all that can be wrong with a shard."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from shards import pack, write_parquet
from small import Small

from geo_embed.data import images, shards
from geo_embed.data.pictures import Pictures
from geo_embed.data.samples import load_samples, missing_images
from geo_embed.errors import GeoError

KINDS = ("tar", "parquet")
NAMES = [f"{k:02d}.jpg" for k in range(40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures whose bytes nobody decodes."""
    root = tmp_path / "train_images"
    root.mkdir()
    for k, name in enumerate(NAMES):
        (root / name).write_bytes(np.random.default_rng(k).bytes(100 + 37 * k))
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def refused(path: Path, name: str = "a.jpg") -> GeoError:
    """What is said of pictures in a shard; the same every time."""
    pictures = Pictures(path)
    with pytest.raises(GeoError) as caught:
        pictures.look_up([name])
    with pytest.raises(GeoError) as again:
        pictures.read(name)
    assert str(again.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_that_of_the_loose_file(folder: Path, kind: str) -> None:
    loose = {name: (folder / name).read_bytes() for name in NAMES}
    pack(folder, kind, shards=3)
    pictures = Pictures(folder)
    assert {name: pictures.read(name) for name in NAMES} == loose
    assert [pictures.size(name) for name in NAMES] == [len(loose[name]) for name in NAMES]
    assert all(pictures.part(name, 90, 20) == loose[name][90:110] for name in NAMES)
    assert pictures.part(NAMES[0], 5000, 10) == b""
    assert pictures.look_up([*NAMES, "absent.jpg"]) == [""] * len(NAMES) + [None]
    with pytest.raises(FileNotFoundError):
        pictures.read("absent.jpg")
    assert pictures.where(NAMES[4]) == folder / f"part-1.{kind}" / NAMES[4]
    assert pictures.where("absent.jpg") == folder / "absent.jpg"


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_read_at_once_in_any_order(folder: Path, kind: str) -> None:
    loose = {name: (folder / name).read_bytes() for name in NAMES}
    pack(folder, kind)
    pictures = Pictures(folder)
    order = [NAMES[k] for k in np.random.default_rng(0).integers(0, len(NAMES), 600)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pictures.read, order)) == [loose[name] for name in order]


@pytest.mark.parametrize("kind", KINDS)
def test_one_shard_stands_in_the_folders_place_or_beside_it(folder: Path, kind: str) -> None:
    data = (folder / NAMES[0]).read_bytes()
    pack(folder, kind, shards=1)
    shard = folder / f"part-0.{kind}"
    assert Pictures(shard).read(NAMES[0]) == data
    beside = shard.rename(folder.with_name(f"train_images.{kind}"))
    folder.rmdir()
    assert Pictures(folder).read(NAMES[0]) == data
    assert Pictures(folder).are_there()
    beside.unlink()
    assert not Pictures(folder).are_there()


def test_loose_files_tars_and_parquets_lie_side_by_side_and_loose_ones_come_first(folder: Path) -> None:
    loose = {name: (folder / name).read_bytes() for name in NAMES}
    write_tar(folder / "some.tar", {"./sub/../a.jpg": b"x", **{name: loose[name] for name in NAMES[:10]}})
    write_parquet(folder / "more.parquet", {name: loose[name] for name in NAMES[10:20]})
    for name in NAMES[1:20]:
        (folder / name).unlink()
    (folder / NAMES[0]).write_bytes(b"newer")
    pictures = Pictures(folder)
    assert {name: pictures.read(name) for name in NAMES} == loose | {NAMES[0]: b"newer"}
    assert pictures.where(NAMES[0]) == folder / NAMES[0]


@pytest.mark.parametrize("codec", ["snappy", "none", "zstd"])
@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        (("path", "bytes"), (pa.string(), pa.binary())),
        (("file_name", "image"), (pa.large_string(), pa.large_binary())),
    ],
)
def test_plain_columns_of_names_and_bytes_do_as_well(
    tmp_path: Path, columns: tuple[str, str], kinds: tuple[pa.DataType, pa.DataType], codec: str
) -> None:
    names, data = ["a.jpg", "b.jpg"], [b"1" * 1000, b"2"]
    table = pa.table([pa.array(names, kinds[0]), pa.array(data, kinds[1])], names=list(columns))
    parquet.write_table(table, tmp_path / "some.parquet", compression=codec)
    assert [Pictures(tmp_path).read(name) for name in names] == data


def test_several_columns_of_pictures_are_all_looked_into(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = {
        f"image_{view}": pa.array([{"bytes": view.encode(), "path": f"{view}.jpg"}, None], kind)
        for view in ("north", "east")
    }
    parquet.write_table(pa.table(rows), tmp_path / "some.parquet")
    assert [Pictures(tmp_path).read(f"{view}.jpg") for view in ("north", "east")] == [b"north", b"east"]


def test_a_row_with_a_name_and_no_bytes_is_unreadable(tmp_path: Path) -> None:
    table = pa.table({"path": ["a.jpg"], "bytes": pa.array([None], pa.binary())})
    parquet.write_table(table, tmp_path / "some.parquet")
    assert "some.parquet has no bytes" in Pictures(tmp_path).find_fault("a.jpg")
    with pytest.raises(images.UnreadableImage, match="no bytes"):
        Pictures(tmp_path).read("a.jpg")


def test_one_name_of_two_pictures_is_an_error_that_names_both_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "one.tar", {"a.jpg": b"1234", "same.jpg": b"same", "size.jpg": b"1"})
    write_tar(tmp_path / "two.tar", {"a.jpg": b"1235", "same.jpg": b"same"})
    write_parquet(tmp_path / "three.parquet", {"size.jpg": b"22"})
    pictures = Pictures(tmp_path)
    assert pictures.read("same.jpg") == b"same"
    for name, other in (("a.jpg", "two.tar"), ("size.jpg", "three.parquet")):
        with pytest.raises(images.UnreadableImage) as caught:
            pictures.read(name)
        assert "one.tar" in str(caught.value)
        assert other in str(caught.value)
        assert pictures.look_up([name]) == [str(caught.value)] == [pictures.find_fault(name)]


def test_of_one_archive_the_last_of_a_name_stands_as_for_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "some.tar", {"a.jpg": b"first", "b.jpg": b"b"})
    write_tar(tmp_path / "some.tar", {"./a.jpg": b"second"}, "a")
    assert Pictures(tmp_path).read("a.jpg") == b"second"


def test_names_are_keys_that_open_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    folder = tmp_path / "images"
    folder.mkdir()
    evil = {"../secret.jpg": b"1", str(secret): b"2", "a/../../secret.jpg": b"3", "./in/./a.jpg": b"4"}
    write_tar(folder / "evil.tar", evil)
    pictures = Pictures(folder)
    assert pictures.read("in/a.jpg") == b"4"
    assert pictures.look_up(["secret.jpg", "a.jpg", "images/secret.jpg"]) == [None] * 3


@pytest.mark.parametrize(("name", "reason"), [("hard.jpg", "hard link"), ("soft.jpg", "symbolic link")])
def test_a_link_in_an_archive_is_not_followed_and_says_why(tmp_path: Path, name: str, reason: str) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for entry, kind in (("hard.jpg", tarfile.LNKTYPE), ("soft.jpg", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(entry)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    pictures = Pictures(tmp_path)
    (fault,) = pictures.look_up([name])
    assert fault is not None
    assert reason in fault
    assert "some.tar" in fault
    assert pictures.find_fault(name) == fault
    with pytest.raises(images.UnreadableImage, match=reason):
        pictures.read(name)


def test_a_picture_that_is_too_large_is_refused_without_being_read(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("huge.jpg")
    entry.size = images.MAX_BYTES + 1
    with (tmp_path / "some.tar").open("wb") as file:
        file.write(entry.tobuf(tarfile.GNU_FORMAT))
        file.truncate(entry.size + 4096)
    with pytest.raises(images.UnreadableImage, match="1,073,741,825 bytes are more than"):
        Pictures(tmp_path).read("huge.jpg")


def test_a_shard_that_is_no_whole_archive_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "some.tar"
    write_tar(path, {"a.jpg": b"1" * 3000, "b.jpg": b"2" * 3000})
    path.write_bytes(path.read_bytes()[:4500])
    error = refused(tmp_path)
    assert "cut short in or after 'b.jpg'" in error.what
    assert error.where == str(path)
    path.write_bytes(b"<html>")
    assert "cut short" in refused(tmp_path).what
    write_tar(path, {"a.jpg": b"1"}, "w:gz")
    error = refused(tmp_path)
    assert "compressed by gzip" in error.what
    assert "gunzip" in error.hint


@pytest.mark.parametrize("place", ["images/some.tar.gz", "images.tgz"])
def test_a_compressed_archive_alone_is_refused_and_beside_pictures_ignored(
    tmp_path: Path, place: str
) -> None:
    root = tmp_path / "images"
    (tmp_path / place).parent.mkdir(exist_ok=True)
    write_tar(tmp_path / place, {"a.jpg": b"1"}, "w:gz")
    assert "gunzip" in refused(root).hint
    unpacked = tmp_path / place.replace(".gz", "").replace(".tgz", ".tar")
    write_tar(unpacked, {"a.jpg": b"1"})
    assert Pictures(root).read("a.jpg") == b"1"
    unpacked.unlink()
    root.mkdir(exist_ok=True)
    (root / "b.jpg").write_bytes(b"2")
    assert Pictures(root).look_up(["a.jpg"]) == [None]


def test_a_damaged_parquet_is_one_line_wherever_the_damage_is(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    pictures = {f"{k}.jpg": np.random.default_rng(k).bytes(400) for k in range(30)}
    write_parquet(path, pictures, compression="snappy", write_page_checksum=True)
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), 3):
            damaged[place] ^= int(draw.integers(1, 256))
        path.write_bytes(bytes(damaged))
        for name in ("0.jpg", "29.jpg"):
            with suppress(GeoError, FileNotFoundError, images.UnreadableImage):
                assert Pictures(tmp_path).read(name) == pictures[name]
    path.write_bytes(whole[:-100])
    assert "not a readable Parquet file" in refused(tmp_path).what


def test_parquets_without_pictures_or_in_too_large_groups_say_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.parquet"
    parquet.write_table(pa.table({"file": ["a.jpg"], "bytes": [b"1"]}), path)
    error = refused(tmp_path)
    assert "it has file, bytes" in error.what
    assert "path" in error.hint
    monkeypatch.setattr(shards, "MOST_OF_GROUP", 5000)
    pictures = {f"{k}.jpg": np.random.default_rng(k).bytes(400) for k in range(30)}
    write_parquet(path, pictures, row_group_size=30)
    assert "row_group_size" in refused(tmp_path).hint
    write_parquet(path, pictures, row_group_size=5)
    assert Pictures(tmp_path).read("7.jpg") == pictures["7.jpg"]


def test_a_shard_that_is_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    for kind in KINDS:
        path = tmp_path / kind / f"some.{kind}"
        path.parent.mkdir()
        write = write_tar if kind == "tar" else write_parquet
        write(path, {"a.jpg": b"1" * 600, "b.jpg": b"2" * 600})
        pictures = Pictures(path.parent)
        assert pictures.look_up(["a.jpg"]) == [""]
        write(path, {"0.jpg": b"0" * 900, "a.jpg": b"1" * 600, "b.jpg": b"2" * 600})
        with pytest.raises(GeoError, match="replaced while it was read"):
            pictures.read("a.jpg")
        assert Pictures(path.parent).read("a.jpg") == b"1" * 600


@pytest.mark.parametrize("plain", [True, False])
def test_pictures_that_are_not_compressed_are_read_in_their_place_once_a_group_was_unpacked(
    tmp_path: Path, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    pictures = {f"{k}.jpg": draw.bytes(int(draw.integers(1, 90_000))) for k in range(60)}
    # One that is there twice, an empty one, and those that hold others.
    pictures |= {"twice.jpg": pictures["3.jpg"], "empty.jpg": b"", "in.jpg": pictures["0.jpg"] + b"x"}
    pictures |= {"last.jpg": pictures["in.jpg"][1:], "again.jpg": pictures["3.jpg"]}
    write_parquet(
        tmp_path / "some.parquet", pictures, row_group_size=20, compression="none" if plain else "snappy"
    )
    unpacked = []
    unpack = shards.Parquet._unpack
    monkeypatch.setattr(shards, "_KEPT_BYTES", 0)
    monkeypatch.setattr(shards, "_KEPT", 0)
    monkeypatch.setattr(
        shards.Parquet, "_unpack", lambda shard, *place: unpacked.append(place) or unpack(shard, *place)
    )
    reader = Pictures(tmp_path)
    names = [list(pictures)[k] for k in draw.permutation(len(pictures))]
    for name in names * 2:
        assert reader.read(name) == pictures[name]
        assert reader.size(name) == len(pictures[name])
        assert reader.part(name, 1, 5) == pictures[name][1:6]
    assert (len(unpacked) == 4) == plain
    assert len(unpacked) == 4 or len(unpacked) > 40


# The index


def test_headers_are_read_once_and_again_when_the_archive_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(folder, "tar")
    walks = []
    walk = shards.tar.members
    monkeypatch.setattr(shards.tar, "members", lambda *how: walks.append(how[2].name) or walk(*how))
    index = tmp_path / "cache" / ".pictures"
    first = {name: Pictures(folder, index).read(name) for name in NAMES}
    assert set(walks) == {"part-0.tar", "part-1.tar"}
    assert len(list(index.iterdir())) == 2
    walks.clear()
    assert {name: Pictures(folder, index).read(name) for name in NAMES} == first
    assert walks == []
    write_tar(folder / "part-0.tar", {NAMES[0]: b"another"})
    pictures = Pictures(folder, index)
    assert pictures.read(NAMES[0]) == b"another"
    assert pictures.look_up([NAMES[2]]) == [None]
    assert walks == ["part-0.tar"]


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_an_index_that_is_damaged_or_cannot_be_kept_changes_nothing(
    folder: Path, tmp_path: Path, damage: bytes | None
) -> None:
    pack(folder, "tar", shards=1)
    index = tmp_path / "index"
    first = Pictures(folder, index).read(NAMES[3])
    (kept,) = index.iterdir()
    if damage is None:
        kept.unlink()
        index.rmdir()
        index.write_text("a file in the folder's place")
    else:
        kept.write_bytes(damage)
    assert Pictures(folder, index).read(NAMES[3]) == first
    if damage is not None:
        assert kept.read_bytes() != damage


def test_pictures_go_to_another_process_without_what_was_opened(folder: Path) -> None:
    pack(folder, "tar")
    pictures = Pictures(folder)
    assert pickle.loads(pickle.dumps(pictures)).read(NAMES[0]) == pictures.read(NAMES[0])


def test_a_group_of_rows_is_unpacked_once_for_all_threads_that_wait_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(folder, "parquet", shards=1)
    unpacked = []
    read = shards._read_leaf

    def counted(opened: object, group: int, leaf: str, path: Path) -> object:
        if leaf.endswith("bytes"):
            unpacked.append((group, threading.get_ident()))
        return read(opened, group, leaf, path)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_read_leaf", counted)
    pictures = Pictures(folder)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(pictures.read, NAMES))
    assert sorted(group for group, _ in unpacked) == list(range(6))


# What the CSV names and no shard has


def test_a_name_that_no_shard_has_is_missing_as_a_file_is(small: Small) -> None:
    table = small.table()
    pack(small.images(), "tar")
    table.loc[1, "image_north"] = "absent.jpg"
    table.loc[2, "image_east"] = table.loc[2, "image_east"].upper()
    small.write(table)
    missing = missing_images(load_samples(small.config(), "train"))
    assert [(i, v) for i, v, _ in missing] == [(1, 0), (2, 1)]
    assert missing[0][2] == "no such file: absent.jpg"
    assert missing[1][2].endswith("the names must be the same")
    assert ".tar has 'img_" in missing[1][2]


def test_a_cell_that_names_no_picture_has_no_shard_opened(small: Small) -> None:
    (small.images() / "backup.tar").write_bytes(b"cut short")
    table = small.table()
    table.loc[2, "image_east"] = None
    small.write(table)
    missing = missing_images(load_samples(small.config(), "train"))
    assert missing == [(2, 1, "the CSV names no image")]
    small.picture(0).unlink()
    with pytest.raises(GeoError, match="cut short"):
        missing_images(load_samples(small.config(), "train"))


def test_an_archive_of_the_folder_itself_says_how_to_pack_it(small: Small) -> None:
    folder = small.images()
    with tarfile.open(small.data / "train_images.tar", "w") as archive:
        archive.add(folder, "train_images")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    _, _, reason = missing_images(load_samples(small.config(), "train"))[0]
    assert "has 'train_images/img_" in reason
    assert "tar -C FOLDER -cf train_images.tar ." in reason


def test_names_that_are_no_text_are_found(tmp_path: Path) -> None:
    name = os.fsdecode(b"gr\xfc\xdfe.jpg")
    write_tar(tmp_path / "some.tar", {name: b"latin"})
    assert Pictures(tmp_path).read(name) == b"latin"
