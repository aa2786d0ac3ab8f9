"""Every format carries whose embeddings they are, and no file, whatever is in it, puts one on another sample."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from small import Small, command

from geo_embed.cache.exchange import cache_import
from geo_embed.cache.formats import FORMATS, check_holds, read_vectors, write_vectors
from geo_embed.cache.store import (
    MISSING,
    OK,
    UNREADABLE,
    Embeddings,
    chunks_of,
    commit_chunk,
    create_store,
    open_store,
    read_store,
)
from geo_embed.data.image_names import ImageNames
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    from conftest import Country

pytestmark = pytest.mark.cut(train=6, test=1)

NAMED = FORMATS[1:]
DIM = 3


def manifest(ids: list[str], views: list[str]) -> Samples:
    images = ImageNames([["p.jpg"] * len(ids)] * len(views))
    return Samples("train", Path("t.csv"), Path(), tuple(views), np.array(ids, dtype=object), images, None)


def stored(root: Path, samples: Samples, status: NDArray[np.uint8], dtype: str = "float16") -> Embeddings:
    """A real store, read: the number at (i, v, d) is its own name, so that none can be taken for another."""
    n, v = status.shape
    values = np.arange(n * v * DIM, dtype=dtype).reshape(n, v, DIM) + 1
    values[status != OK] = 0
    attrs = {
        "fingerprint": "0123456789abcdef",
        "backbone": "made/up",
        "feature": "image_embeds",
        "dtype": "float32",
    }
    store = create_store(root / "train.zarr", samples, dim=DIM, dtype=dtype, chunk_rows=2, attrs=attrs)
    for rows in chunks_of(store):
        commit_chunk(store, rows, values[rows], np.ones_like(status[rows], dtype=np.uint64), status[rows])
    return read_store(open_store(root / "train.zarr"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
NUMBERS = st.integers(-(10**17), 10**17).map(str)
ZEROS = st.integers(0, 99).map(lambda k: f"{k:03}")


@given(
    ids=st.one_of(
        *(
            st.lists(kind, min_size=1, max_size=7, unique=True)
            for kind in (TEXTS, NUMBERS, ZEROS, st.one_of(TEXTS, NUMBERS, ZEROS))
        )
    ),
    views=st.lists(
        st.sampled_from(["north", "é", "ü 2", "007", "a\nb"]), min_size=1, max_size=4, unique=True
    ),
    ending=st.sampled_from(NAMED),
    dtype=st.sampled_from(["float16", "float32"]),
    data=st.data(),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_any_ids_views_orders_and_gaps_come_back_where_they_belong(
    tmp_path_factory: pytest.TempPathFactory,
    ids: list[str],
    views: list[str],
    ending: str,
    dtype: str,
    data: st.DataObject,
) -> None:
    root = tmp_path_factory.mktemp("any")
    statuses = st.lists(
        st.sampled_from([OK, OK, OK, MISSING, UNREADABLE]),
        min_size=len(ids) * len(views),
        max_size=len(ids) * len(views),
    )
    status = np.array(data.draw(statuses), dtype=np.uint8).reshape(len(ids), len(views))
    embeddings = stored(root, manifest(ids, views), status, dtype)
    file = root / f"out{ending}"
    if ending == ".npz" and any(text.endswith("\0") for text in ids):
        with pytest.raises(GeoError, match="ends in NUL"):
            check_holds(file, embeddings)
        return
    check_holds(file, embeddings)
    write_vectors(file, embeddings)

    i, v = data.draw(st.permutations(range(len(ids)))), data.draw(st.permutations(range(len(views))))
    samples = manifest([ids[k] for k in i], [views[k] for k in v])
    if not (status == OK).any() and ending == ".parquet":
        with pytest.raises(GeoError, match="no row has an embedding"):
            read_vectors(file, samples)
        return
    vectors = read_vectors(file, samples)
    values, came = vectors.block(slice(0, len(ids)))
    assert (values == embeddings.values[i][:, v]).all()
    assert (came == status[i][:, v]).all()
    assert vectors.by_position == ()
    assert vectors.made_by == {
        "fingerprint": "0123456789abcdef",
        "backbone": "made/up",
        "feature": "image_embeds",
        "dtype": "float32",
    }


@pytest.mark.parametrize("ending", NAMED)
def test_other_ids_and_other_views_are_refused_by_name(tmp_path: Path, ending: str) -> None:
    ids, views = ["a", "b", "007"], ["north", "south"]
    file = tmp_path / f"out{ending}"
    write_vectors(file, stored(tmp_path, manifest(ids, views), np.full((3, 2), OK, np.uint8)))
    for others, names, why in (
        (["a", "b", "7"], views, "sample '7'|sample_id '007'"),
        (["a", "b"], views, "'007'|more|rows, where"),
        (["a", "b", "007", "c"], views, "lacks sample 'c'"),
        (["a", "b", "07"], views, "'07'|'007'"),
        (ids, ["north", "east"], "'east'"),
        (ids, ["north"], "'south'"),
        (ids, ["north", "south", "west"], "'west'"),
    ):
        with pytest.raises(GeoError, match=why) as refused:
            read_vectors(file, manifest(others, names))
        assert refused.value.where == str(file)


def test_what_other_tools_find_in_an_export(tmp_path: Path) -> None:
    """Read by NumPy, safetensors and pandas alone."""
    status = np.array([[OK, OK], [OK, UNREADABLE], [MISSING, MISSING]], dtype=np.uint8)
    for ids in (["1", "20", "3"], ["1", "020", "é"]):
        embeddings = stored(tmp_path / ids[1], manifest(ids, ["a", "b"]), status)
        for ending in NAMED:
            write_vectors(tmp_path / f"out{ending}", embeddings)
        natural = [int(text) for text in ids] if ids[1] == "20" else ids
        npz = np.load(tmp_path / "out.npz")
        assert npz["sample_id"].tolist() == natural
        assert npz["view_names"].tolist() == ["a", "b"]
        assert (npz["status"] == status).all()
        assert str(npz["fingerprint"]) == "0123456789abcdef"
        tensors = load_file(tmp_path / "out.safetensors")
        named = (
            tensors["sample_id"].tolist()
            if ids[1] == "20"
            else json.loads(tensors["sample_id_json"].tobytes())
        )
        assert named == natural
        assert (tensors["embeddings"] == npz["embeddings"]).all()
        table = pd.read_parquet(tmp_path / "out.parquet")
        assert list(table) == ["sample_id", "view", "embedding"]
        embedded = table[table["embedding"].notna()]
        assert list(zip(embedded["sample_id"], embedded["view"], strict=True)) == [
            (natural[0], "a"),
            (natural[0], "b"),
            (natural[1], "a"),
        ]
        assert (np.stack(embedded["embedding"].to_list()) == embeddings.values[status == OK]).all()
        # No id may get lost, though it has no embedding at all.
        assert set(table["sample_id"]) == set(natural)


@pytest.mark.parametrize("ending", NAMED)
def test_reordered_rows_and_views_go_by_their_names(
    small: Small, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    """The CSV turned round between export and import, as text ids and as numbers."""
    values = np.arange(6 * 4 * 2, dtype=np.float32).reshape(6, 4, 2)
    np.save(small.root / "in.npy", values)
    for ids in ([f"s{k}" for k in range(6)], [str(k) for k in range(6)]):
        small.write(small.table().assign(sample_id=ids))
        name = f"first-{ids[0]}"
        first = command(
            capsys,
            *small.options(),
            "cache",
            "import",
            small.root / "in.npy",
            "--split",
            "train",
            "--backbone",
            name,
        )
        assert first.code == 0, first.err
        assert (
            "taken by position: samples in the order of train_ground_truth.csv and views as north, east, south, west"
            in first.err
        )
        out = small.root / f"out{ending}"
        ran = command(
            capsys, *small.options(), "cache", "export", "--split", "train", "--backbone", name, "--out", out
        )
        assert ran.code == 0, ran.err

        small.write(small.table().iloc[::-1])
        views = ["--set", 'model.view_names=["west","north","east","south"]']
        again = command(
            capsys,
            *small.options(),
            *views,
            "--json",
            "cache",
            "import",
            out,
            "--split",
            "train",
            "--backbone",
            f"again-{ids[0]}",
        )
        assert again.code == 0, again.err
        assert "position" not in again.err
        assert again.json["by_position"] == []
        read = read_store(open_store(Path(again.json["store"])))
        assert read.sample_id.tolist() == ids[::-1]
        assert (read.values == values[::-1][:, [3, 0, 1, 2]]).all()
        assert read.store.attrs["source_made_by"]["backbone"] == name
        # The same import is no other one, though its rows stand in another order now.
        small.write(small.table().iloc[::-1])
        same = command(
            capsys, *small.options(), "cache", "import", out, "--split", "train", "--backbone", name
        )
        assert same.code == 0, same.err
        small.write(small.table().iloc[::-1])
        same = command(
            capsys, *small.options(), "cache", "import", out, "--split", "train", "--backbone", name
        )
        assert same.code == 0, same.err
        small.write(small.table().iloc[::-1])


def test_what_earlier_versions_exported_comes_in_by_position_and_is_said(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write(small.table().assign(sample_id=[f"s{k}" for k in range(6)]))
    values = np.arange(6 * 4 * 2, dtype=np.float16).reshape(6, 4, 2)
    save_file({"embeddings": values}, small.root / "texts.safetensors")
    np.savez(
        small.root / "texts.npz",
        embeddings=values[::-1],
        sample_id=np.array([f"s{k}" for k in range(6)])[::-1],
    )
    for file, what in (("texts.safetensors", "samples and views"), ("texts.npz", "views")):
        ran = command(
            capsys,
            *small.options(),
            "--json",
            "cache",
            "import",
            small.root / file,
            "--split",
            "train",
            "--backbone",
            file,
        )
        assert ran.code == 0, ran.err
        assert len(ran.err.splitlines()) == 1
        assert f"doesn't name its {what}; they are taken by position" in ran.err
        assert ran.json["by_position"] == what.split(" and ")
        assert (read_store(open_store(Path(ran.json["store"]))).values == values).all()


# ---------------------------------------------------------------- Parquet of others


def rows(ids: list[Any], views: list[str], dtype: Any = np.float32) -> pd.DataFrame:
    """A row for each of ids × views; the number at (i, v, d) is its own name."""
    count = len(ids) * len(views)
    values = np.arange(count * DIM, dtype=dtype).reshape(count, DIM)
    return pd.DataFrame(
        {"sample_id": np.repeat(ids, len(views)), "view": views * len(ids), "embedding": list(values)}
    )


def table(
    frame: pd.DataFrame,
    kind: pa.DataType,
    id_kind: pa.DataType | None = None,
    view_kind: pa.DataType | None = None,
) -> pa.Table:
    embedding = pa.array([None if e is None else e.tolist() for e in frame["embedding"]], kind)
    ids, views = (
        pa.array([None if x != x else x for x in frame[name]], kind)
        for name, kind in (("sample_id", id_kind), ("view", view_kind))
    )
    return pa.table(
        {
            "note": ["x"] * len(frame),
            "view": views,
            "embedding": embedding,
            "sample_id": ids,
        }
    )


KINDS = {
    "list of float32": (pa.list_(pa.float32()), None, None),
    "list of float64": (pa.list_(pa.float64()), None, None),
    "list of float16": (pa.list_(pa.float16()), None, None),
    "large list": (pa.large_list(pa.float32()), pa.large_string(), None),
    "fixed-size list": (pa.list_(pa.float32(), DIM), None, None),
    "dictionary": (
        pa.list_(pa.float32()),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.string()),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row_group", [1, 3, 1000])
def test_parquet_of_any_make_is_read(tmp_path: Path, kind: str, row_group: int) -> None:
    ids, views = ["x", "007", "7"], ["a", "b"]
    frame = rows(ids, views, np.float16)
    shuffled = frame.sample(frac=1, random_state=2)
    shuffled.loc[shuffled.index[2], "embedding"] = None
    gone = shuffled.index[2]
    pq.write_table(table(shuffled, *KINDS[kind]), tmp_path / "in.parquet", row_group_size=row_group)
    values, status = read_vectors(tmp_path / "in.parquet", manifest(["7", "x", "007"], ["b", "a"])).block(
        slice(0, 3)
    )
    wanted = np.stack(frame["embedding"].to_list()).reshape(3, 2, DIM)
    wanted.reshape(6, DIM)[gone] = 0
    assert (values == wanted[[2, 0, 1]][:, [1, 0]]).all()
    assert (status == MISSING).sum() == 1


def test_whole_numbers_and_texts_that_look_like_them_are_not_confused(tmp_path: Path) -> None:
    numbers, texts = rows([7, 8], ["a"]), rows(["007", "8"], ["a"])
    numbers.to_parquet(tmp_path / "numbers.parquet")
    texts.to_parquet(tmp_path / "texts.parquet")
    read_vectors(tmp_path / "numbers.parquet", manifest(["8", "7"], ["a"]))
    read_vectors(tmp_path / "texts.parquet", manifest(["8", "007"], ["a"]))
    with pytest.raises(GeoError, match="sample_id '7' is not the CSV's"):
        read_vectors(tmp_path / "numbers.parquet", manifest(["8", "007"], ["a"]))
    with pytest.raises(GeoError, match="sample_id '007' is not the CSV's"):
        read_vectors(tmp_path / "texts.parquet", manifest(["8", "7"], ["a"]))


# ---------------------------------------------------------------- files of no sense

IDS, VIEWS = ["s0", "s1"], ["a", "b"]
VALUES = np.arange(2 * 2 * DIM, dtype=np.float32).reshape(2, 2, DIM)


def npy_header(shape: str, descr: str = "<f4") -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


def npz(**arrays: Any) -> Callable[[Path], object]:
    return lambda path: np.savez(
        path, **({"embeddings": VALUES, "sample_id": np.array(IDS), "view_names": np.array(VIEWS)} | arrays)
    )


def zipped(name: str, data: bytes) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)

    return make


def tensors(metadata: dict[str, str] | None = None, **arrays: Any) -> Callable[[Path], object]:
    return lambda path: save_file({"embeddings": VALUES} | arrays, path, metadata)


def text_bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8).copy()


def parquet(
    change: Callable[[pd.DataFrame], pd.DataFrame], kind: pa.DataType | None = None, **kinds: pa.DataType
) -> Callable[[Path], object]:
    return lambda path: pq.write_table(
        table(change(rows(IDS, VIEWS)), kind or pa.list_(pa.float32()), **kinds), path
    )


def described(content: str) -> Callable[[Path], object]:
    whole = table(rows(IDS, VIEWS), pa.list_(pa.float32()))
    return lambda path: pq.write_table(whole.replace_schema_metadata({"geo_embed": content}), path)


def bomb(path: Path) -> None:
    """Eighteen million equal numbers in a few kilobytes."""
    lists = pa.ListArray.from_arrays(
        [0, 6_000_000, 12_000_000, 18_000_000, 18_000_001], pa.array(np.zeros(18_000_001, np.float32))
    )
    frame = rows(IDS, VIEWS)
    pq.write_table(
        pa.table({"sample_id": frame["sample_id"], "view": frame["view"], "embedding": lists}),
        path,
        compression="zstd",
    )


def ragged(frame: pd.DataFrame) -> pd.DataFrame:
    frame.at[1, "embedding"] = np.zeros(DIM + 1, np.float32)
    return frame


BAD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a pipe": (".npy", os.mkfifo), "a pipe npz": (".npz", os.mkfifo), "a pipe parquet": (".parquet", os.mkfifo), "a pipe tensors": (".safetensors", os.mkfifo),
    "a folder": (".npy", Path.mkdir), "a folder npz": (".npz", Path.mkdir), "a folder parquet": (".parquet", Path.mkdir),
    "a device": (".npy", lambda path: path.symlink_to("/dev/zero")), "a device parquet": (".parquet", lambda path: path.symlink_to("/dev/zero")),
    **{f"empty {ending}": (ending, Path.touch) for ending in FORMATS},
    **{f"noise {ending}": (ending, lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000))) for ending in FORMATS},
    "a trillion rows": (".npy", lambda path: path.write_bytes(npy_header("(1000000000000, 2, 3)") + bytes(48))),
    "negative": (".npy", lambda path: path.write_bytes(npy_header("(-2, 2, 3)") + bytes(48))),
    "beyond 64 bits": (".npy", lambda path: path.write_bytes(npy_header("(2, 2, 99999999999999999999999)") + bytes(48))),
    "nested": (".npy", lambda path: path.write_bytes(npy_header("(" * 4000) + bytes(48))),
    "objects": (".npy", lambda path: path.write_bytes(npy_header("(2, 2, 3)", "|O") + bytes(96))),
    "texts": (".npy", lambda path: np.save(path, np.full((2, 2, 3), "x"))),
    "records": (".npy", lambda path: np.save(path, np.zeros((2, 2, 3), dtype=[("a", "f4")]))),
    "dates": (".npy", lambda path: np.save(path, np.zeros((2, 2, 3), dtype="M8[s]"))),
    "complex": (".npy", lambda path: np.save(path, VALUES.astype(complex))),
    "cut": (".npy", lambda path: path.write_bytes(npy_header("(2, 2, 3)") + bytes(11))),
    "a scalar": (".npy", lambda path: np.save(path, np.float32(3))),
    "an npz named npy": (".npy", lambda path: np.savez(path.with_suffix(".npz"), VALUES) or path.with_suffix(".npz").rename(path)),
    "a bare array named npz": (".npz", lambda path: np.save(path.with_suffix(".npy"), VALUES) or path.with_suffix(".npy").rename(path)),
    "no embeddings": (".npz", lambda path: np.savez(path, a=VALUES, b=VALUES)),
    "nothing at all": (".npz", lambda path: np.savez(path)),
    "a claim in a zip": (".npz", zipped("embeddings.npy", npy_header("(2, 2, 999999999999)") + bytes(48))),
    "a zip of other things": (".npz", zipped("x.txt", b"hello")),
    "ids of floats": (".npz", npz(sample_id=np.array([1.0, 2.0]))),
    "ids of truths": (".npz", npz(sample_id=np.array([True, False]))),
    "ids of bytes": (".npz", npz(sample_id=np.array([b"s0", b"s1"]))),
    "ids in two dimensions": (".npz", npz(sample_id=np.array([["s0"], ["s1"]]))),
    "one id": (".npz", npz(sample_id=np.array("s0"))),
    "an id twice": (".npz", npz(sample_id=np.array(["s0", "s0"]))),
    "more ids than rows": (".npz", npz(embeddings=VALUES[:1])),
    "a view twice": (".npz", npz(view_names=np.array(["a", "a"]))),
    "one view name": (".npz", npz(view_names=np.array("a"))),
    "fewer views than names": (".npz", npz(embeddings=VALUES[:, :1])),
    "a status too small": (".npz", npz(status=np.zeros((2, 1), np.uint8))),
    "a status pending": (".npz", npz(status=np.zeros((2, 2), np.uint8))),
    "a status of 9": (".npz", npz(status=np.full((2, 2), 9))),
    "a status of floats": (".npz", npz(status=np.ones((2, 2)))),
    "NaN": (".npz", npz(embeddings=VALUES + np.nan)),
    "ids in JSON of no sense": (".safetensors", tensors(sample_id_json=text_bytes("{"))),
    "ids in JSON that are numbers": (".safetensors", tensors(sample_id_json=text_bytes("[1, 2]"))),
    "ids in JSON nested": (".safetensors", tensors(sample_id_json=text_bytes("[" * 100_000))),
    "ids in JSON too few": (".safetensors", tensors(sample_id_json=text_bytes('["s0"]'))),
    "view names of no sense": (".safetensors", tensors({"view_names": "a, b"})),
    "view names an object": (".safetensors", tensors({"view_names": '{"a": 1, "b": 2}'})),
    "view names numbers": (".safetensors", tensors({"view_names": "[1, 2]"})),
    "ids of float tensors": (".safetensors", tensors(sample_id=np.zeros(2, np.float32))),
    "a header of a terabyte": (".safetensors", lambda path: path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")),
    "a claim in a header": (".safetensors", lambda path: path.write_bytes((84).to_bytes(8, "little") + b'{"embeddings":{"dtype":"F32","shape":[2,2,99999999999],"data_offsets":[0,48]}}'.ljust(84) + bytes(48))),
    "whole numbers": (".safetensors", lambda path: save_file({"embeddings": VALUES.astype(np.int64)}, path)),
    "no column": (".parquet", lambda path: rows(IDS, VIEWS)[["sample_id", "embedding"]].to_parquet(path)),
    "a column twice": (".parquet", lambda path: pq.write_table(pa.table([pa.array(IDS)] * 2 + [pa.array(VIEWS), pa.array([[1.0], [2.0]])], names=["sample_id", "sample_id", "view", "embedding"]), path)),
    "ragged": (".parquet", parquet(ragged)),
    "no numbers": (".parquet", parquet(lambda frame: frame.assign(embedding=[np.zeros(0)] * 4))),
    "nulls only": (".parquet", parquet(lambda frame: frame.assign(embedding=[None] * 4))),
    "a null among numbers": (".parquet", lambda path: pq.write_table(pa.table({"sample_id": np.repeat(IDS, 2), "view": VIEWS * 2, "embedding": [[1.0, None]] * 4}), path)),
    "lists of whole numbers": (".parquet", parquet(lambda frame: frame.assign(embedding=[np.array([1, 2])] * 4), pa.list_(pa.int64()))),
    "lists of lists": (".parquet", lambda path: pq.write_table(pa.table({"sample_id": np.repeat(IDS, 2), "view": VIEWS * 2, "embedding": [[[1.0]]] * 4}), path)),
    "embeddings that are numbers": (".parquet", lambda path: rows(IDS, VIEWS).assign(embedding=1.0).to_parquet(path)),
    "ids null": (".parquet", parquet(lambda frame: frame.assign(sample_id=["s0", "s0", "s1", None]))),
    "views null": (".parquet", parquet(lambda frame: frame.assign(view=["a", "b", "a", None]))),
    "ids floats": (".parquet", parquet(lambda frame: frame.assign(sample_id=[0.0, 0.0, 1.0, 1.0]))),
    "ids binary": (".parquet", parquet(lambda frame: frame.assign(sample_id=[b"s0", b"s0", b"s1", b"s1"]))),
    "a row twice": (".parquet", parquet(lambda frame: frame.assign(view=["a", "b", "a", "a"]))),
    "rows too many": (".parquet", parquet(lambda frame: pd.concat([frame, frame.head(1)]))),
    "no rows": (".parquet", parquet(lambda frame: frame.head(0))),
    "a sample lacking": (".parquet", parquet(lambda frame: frame.head(2))),
    "a view lacking": (".parquet", parquet(lambda frame: frame[frame["view"] == "a"])),
    "a strange view": (".parquet", parquet(lambda frame: frame.assign(view=["a", "b", "a", "z"]))),
    "a bomb": (".parquet", bomb),
    "metadata of no sense": (".parquet", described("{")), "metadata a list": (".parquet", described("[]")),
    "metadata with views a number": (".parquet", described('{"view_names": 3}')), "metadata of numbers": (".parquet", described('{"view_names": [1, 2]}')),
    "metadata of other views": (".parquet", described('{"view_names": ["a", "z"]}')),
    "metadata unreadable a text": (".parquet", described('{"unreadable": [3]}')),
    "metadata nested": (".parquet", described("[" * 100_000)),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.cut(country, tmp_path_factory.mktemp("places") / "small", train=2, test=1)
    small.write(
        small.table()
        .assign(sample_id=IDS)
        .rename(columns={"image_north": "image_a", "image_east": "image_b"})
    )
    return small


@pytest.mark.parametrize("case", BAD)
def test_a_file_of_no_sense_is_one_line_and_leaves_nothing(places: Small, tmp_path: Path, case: str) -> None:
    ending, make = BAD[case]
    file = tmp_path / f"in{ending}"
    make(file)
    with pytest.raises(GeoError) as refused:
        cache_import(places.config(model__view_names=VIEWS), file, "train", "mine")
    assert refused.value.where == str(file)
    assert "\n" not in refused.value.what
    assert len(refused.value.what) < 500
    assert not any(places.cache.glob("*/*.zarr"))


def test_mutated_bytes_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """Seeded: flipped, overwritten, inserted and cut bytes of real exports, 100 of each format."""
    samples = manifest(["s0", "é1", "007"], VIEWS)
    embeddings = stored(tmp_path, samples, np.full((3, 2), OK, np.uint8))
    rng = np.random.default_rng(5)
    refused = 0
    for ending in FORMATS:
        write_vectors(tmp_path / f"whole{ending}", embeddings)
        whole = (tmp_path / f"whole{ending}").read_bytes()
        file = tmp_path / f"mutated{ending}"
        for _ in range(100):
            data = bytearray(whole)
            for _ in range(rng.choice([1, 1, 3, 20])):
                data = data or bytearray(1)
                at = int(rng.integers(len(data)))
                match rng.integers(5):
                    case 0 | 1:
                        data[at] ^= 1 << int(rng.integers(8))
                    case 2:
                        data[at] = int(rng.choice([0, 127, 128, 255]))
                    case 3:
                        data[at : at + int(rng.integers(8))] = rng.bytes(int(rng.integers(8)))
                    case _ if rng.random() < 0.2:
                        del data[max(at, 1) :]
            file.write_bytes(data)
            try:
                values, status = read_vectors(file, samples).block(slice(0, 3))
            except GeoError as error:
                refused += 1
                assert "\n" not in error.what  # noqa: PT017
                continue
            assert values.shape[:2] == status.shape == (3, 2)
    assert 150 < refused < 390


def peak(file: Path, samples: Samples) -> int:
    """Bytes that Python and NumPy held at once while a file was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(GeoError):
            read_vectors(file, samples)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("member", "shape", "descr"),
    [
        ("embeddings", "(20000000, 1, 1)", "<f4"),
        ("embeddings", "(2, 2, 20000000)", "<f4"),
        ("embeddings", "(2, 2, 12)", "<U400000"),
        ("status", "(2, 40000000)", "|u1"),
        ("status", "(2, 2, 20000000)", "|u1"),
        ("status", "(2, 2)", "<U5000000"),
        ("sample_id", "(40000000,)", "|u1"),
        ("sample_id", "(2,)", "<U10000000"),
        ("view_names", "(2,)", "<U10000000"),
        ("fingerprint", "()", "<U20000000"),
    ],
)
def test_a_member_of_a_zip_is_refused_by_its_header_before_it_is_unpacked(
    tmp_path: Path, member: str, shape: str, descr: str
) -> None:
    file = tmp_path / "in.npz"
    npz()(tmp_path / "whole.npz")
    with (
        zipfile.ZipFile(tmp_path / "whole.npz") as whole,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in {*whole.namelist()} - {f"{member}.npy"}:
            archive.writestr(name, whole.read(name))
        archive.writestr(f"{member}.npy", npy_header(shape, descr) + bytes(80_000_000))
    assert peak(file, manifest(IDS, VIEWS)) < 40_000_000


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_long_id_that_many_rows_have_is_there_once(tmp_path: Path, kind: pa.DataType) -> None:
    samples = manifest([f"s{i}" for i in range(100)], ["a"])
    frame = rows([*samples.sample_id], ["a"])
    for column, of in (("sample_id", "id_kind"), ("view", "view_kind")):
        long = frame.assign(**{column: "x" * 1_000_000})
        file = tmp_path / f"{column}.parquet"
        pq.write_table(table(long, pa.list_(pa.float32()), **{of: kind}), file, compression="zstd")
        assert peak(file, samples) < 40_000_000
