"""Whatever lies in a store's folder ends in one line or in the right rows: from every reader, quickly, and without much memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small import Small, command

from geo_embed.cache.exchange import cache_export
from geo_embed.cache.find import check_fits, choose_store
from geo_embed.cache.folder import FolderStorage
from geo_embed.cache.storage import superseded_paths
from geo_embed.cache.store import (
    MISSING,
    OK,
    PENDING,
    add_features,
    chunks_of,
    commit_chunk,
    commit_features,
    content_digest,
    create_store,
    list_stores,
    open_store,
    read_content_hash,
    read_ids,
    read_status,
    read_store,
    write_ids,
)
from geo_embed.cache.tidy import summarise
from geo_embed.cache.verify import missing_parts, unreadable_stores, verify
from geo_embed.data.samples import Samples, load_samples
from geo_embed.errors import GeoError
from geo_embed.extraction.reuse import gather_sources

if TYPE_CHECKING:
    from conftest import Country

ROWS, VIEWS, DIM = 5, 4, 6
IDS = [f"s{k}é" for k in range(ROWS)]
VALUES = np.random.default_rng(0).normal(size=(ROWS, VIEWS, DIM)).astype(np.float16)
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def small(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.cut(country, tmp_path_factory.mktemp("hostile") / "small", train=ROWS, test=1)
    small.write(small.table().assign(sample_id=IDS))
    return small


@pytest.fixture(scope="module")
def samples(small: Small) -> Samples:
    return load_samples(small.config(), "train")


@pytest.fixture(scope="module")
def whole(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in order: five samples in chunks of two."""
    path = tmp_path_factory.mktemp("whole") / "mine-ffffffffffffffff" / "train.zarr"
    attrs = {"fingerprint": "f" * 16, "backbone": "mine", "imported": True, "stored": "float16"}
    store = create_store(path, samples, dim=DIM, dtype="float16", chunk_rows=2, attrs=attrs)
    for rows in chunks_of(store):
        shape = (rows.stop - rows.start, VIEWS)
        commit_chunk(store, rows, VALUES[rows], np.full(shape, 7, np.uint64), np.full(shape, OK, np.uint8))
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole.parent, tmp_path / "cache" / whole.parent.name)
    return tmp_path / "cache" / whole.parent.name / whole.name


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise TimeoutError("a hostile store took more than 20 seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- what a stranger can do


def put(name: str, text: str | bytes) -> Change:
    """Other bytes in place of a file."""
    return lambda root: (root / name).write_bytes(text.encode() if isinstance(text, str) else text)


def edit(name: str, *keys: str | int, value: Any) -> Change:
    """Another value in a JSON file; checksums are made to fit, as a stranger can."""

    def change(root: Path) -> None:
        content = json.loads((root / name).read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (root / name).write_text(json.dumps(content))

    return change


def drop(name: str, *keys: str) -> Change:
    def change(root: Path) -> None:
        content = json.loads((root / name).read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        (root / name).write_text(json.dumps(content))

    return change


def chunk(name: str, block: NDArray[Any]) -> Change:
    """A chunk with a valid checksum."""
    return lambda root: FolderStorage(root).write_chunk(name, np.ascontiguousarray(block))


def ids(*texts: bytes, count: int = ROWS) -> Change:
    """Ids as Zarr's vlen-utf8 lays them out, with a valid checksum."""
    raw = count.to_bytes(4, "little") + b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return chunk("sample_id/c/0", np.frombuffer(raw, np.uint8))


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Something else under the name of a file or folder."""

    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return change


def in_turn(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


def shapes(rows: int, views: int = VIEWS, dim: int = DIM, chunk_rows: int | None = None) -> Change:
    """Metadata of another size that is in harmony with itself, over the bytes of five samples."""
    c = min(chunk_rows or 2, rows)
    lengths = {
        "embeddings": [rows, views, dim],
        "status": [rows, views],
        "content_hash": [rows, views],
        "sample_id": [rows],
    }
    grid = ("chunk_grid", "configuration", "chunk_shape")
    return in_turn(
        *(edit(f"{name}/zarr.json", "shape", value=shape) for name, shape in lengths.items()),
        *(
            edit(f"{name}/zarr.json", *grid, value=shape if name == "sample_id" else [c, *shape[1:]])
            for name, shape in lengths.items()
        ),
        edit("zarr.json", "attributes", "view_names", value=[f"v{k}" for k in range(min(views, 1000))]),
    )  # fmt: skip


def seal(root: Path) -> None:
    """Make the checksums of the metadata fit again, where it can still be parsed."""
    names = ["embeddings", "status", "content_hash", "sample_id"]
    names += [path.name for path in sorted(root.glob("token_mean*"))]
    heads = {name: root / name / "zarr.json" for name in names}
    if not all(
        path.is_file() and path.stat().st_size < 1 << 20 for path in (root / "zarr.json", *heads.values())
    ):
        return
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        head = json.loads((root / "zarr.json").read_text())
        attrs = head["attributes"]
        if not isinstance(attrs.pop("checksums"), dict):
            return
        sums = {
            f"{name}/zarr.json": hashlib.sha256(path.read_bytes()).hexdigest() for name, path in heads.items()
        }
        sums["attributes"] = hashlib.sha256(json.dumps(attrs, sort_keys=True).encode()).hexdigest()
        attrs["checksums"] = sums
        (root / "zarr.json").write_text(json.dumps(head))


EMBEDDINGS, STATUS, HASHES, IDENTITY = (
    f"{name}/zarr.json" for name in ("embeddings", "status", "content_hash", "sample_id")
)
LAST = VALUES[4:5].repeat(2, axis=0)
NOT_FINITE = VALUES[2:4].copy()
NOT_FINITE[1, 2, 3] = np.nan
INFINITE = VALUES[0:2].copy()
INFINITE[0, 0, 0] = -np.inf
CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}]
GRID = ("chunk_grid", "configuration", "chunk_shape")

# Each is refused by every reader that needs what is changed.
REFUSED: dict[str, Change] = {
    # The head.
    "head absent": instead("zarr.json", lambda path: None),
    "head empty": put("zarr.json", ""),
    "head no object": put("zarr.json", "[]"),
    "head nested": put("zarr.json", '{"attributes":' * 100_000),
    "head in lists": put("zarr.json", '{"attributes":' + "[" * 5000 + "]" * 5000 + "}"),
    "head of 20 MB": lambda root: (root / "zarr.json").write_bytes(b"[" + b"1," * 10_000_000 + b"1]"),
    "head sparse": lambda root: os.truncate(root / "zarr.json", 1 << 40),
    "head of NUL": put("zarr.json", b"\0" * 100),
    "head not UTF-8": put("zarr.json", b'{"attributes": "\xff"}'),
    "head a directory": instead("zarr.json", Path.mkdir),
    "head a pipe": instead("zarr.json", os.mkfifo),
    "head a loop": instead("zarr.json", lambda path: path.symlink_to(path)),
    "head a device": instead("zarr.json", lambda path: path.symlink_to("/dev/zero")),
    "head of Zarr 2": edit("zarr.json", "zarr_format", value=2),
    "head an array": edit("zarr.json", "node_type", value="array"),
    "attributes a list": edit("zarr.json", "attributes", value=[]),
    "attributes null": edit("zarr.json", "attributes", value=None),
    "no attributes": drop("zarr.json", "attributes"),
    **{f"{key} absent": drop("zarr.json", "attributes", key) for key in ("fingerprint", "backbone", "view_names", "manifest_sha256", "format_version")},
    **{f"{key} a list": edit("zarr.json", "attributes", key, value=[[1]]) for key in ("fingerprint", "backbone", "manifest_sha256", "dtype", "stored", "imported", "checksums", "preprocessing", "feature", "weights_sha256", "versions", "format_version")},
    "fingerprint a path": edit("zarr.json", "attributes", "fingerprint", value="../../elsewhere"),
    "fingerprint empty": edit("zarr.json", "attributes", "fingerprint", value=""),
    "fingerprint of a megabyte": edit("zarr.json", "attributes", "fingerprint", value="f" * 1_000_000),
    "fingerprint with a line": edit("zarr.json", "attributes", "fingerprint", value="ffff\n"),
    "format 2": edit("zarr.json", "attributes", "format_version", value=2),
    "format true": edit("zarr.json", "attributes", "format_version", value=True),
    "format 1.5": edit("zarr.json", "attributes", "format_version", value=1.5),
    "three view names": edit("zarr.json", "attributes", "view_names", value=["a", "b", "c"]),
    "a view name twice": edit("zarr.json", "attributes", "view_names", value=["a", "b", "c", "a"]),
    "view names numbers": edit("zarr.json", "attributes", "view_names", value=[1, 2, 3, 4]),
    "dtype of no meaning": edit("zarr.json", "attributes", "dtype", value="save"),
    # Shapes.
    "a trillion rows": shapes(10**12, chunk_rows=10**6),
    "a trillion rows in one chunk": shapes(10**12, chunk_rows=10**12),
    "beyond 64 bits": shapes(2**70),
    "ten million rows": shapes(10**7, chunk_rows=10**6),
    "a million chunks": shapes(10**6, chunk_rows=1),
    "six rows": shapes(6),
    "three rows": shapes(3),
    "three views": shapes(ROWS, views=3),
    "ten million numbers": shapes(ROWS, dim=10**7),
    "a million numbers": shapes(ROWS, dim=10**6),
    "another number of numbers": shapes(ROWS, dim=DIM + 1),
    "chunks of other rows": shapes(ROWS, chunk_rows=3),
    "one chunk": shapes(ROWS, chunk_rows=ROWS),
    "no rows": edit(EMBEDDINGS, "shape", value=[0, VIEWS, DIM]),
    "no numbers": shapes(ROWS, dim=0),
    "negative rows": edit(EMBEDDINGS, "shape", value=[-5, VIEWS, DIM]),
    "rows a float": edit(EMBEDDINGS, "shape", value=[5.0, VIEWS, DIM]),
    "rows a text": edit(EMBEDDINGS, "shape", value=["5", VIEWS, DIM]),
    "rows true": edit(STATUS, "shape", value=[True, VIEWS]),
    "shape null": edit(STATUS, "shape", value=None),
    "flat embeddings": edit(EMBEDDINGS, "shape", value=[ROWS, VIEWS * DIM]),
    "a thousand dimensions": edit(EMBEDDINGS, "shape", value=[1] * 1000),
    "fewer rows of status": in_turn(edit(STATUS, "shape", value=[4, VIEWS])),
    "more rows of hashes": in_turn(edit(HASHES, "shape", value=[ROWS + 1, VIEWS])),
    "fewer ids": in_turn(edit(IDENTITY, "shape", value=[3]), edit(IDENTITY, *GRID, value=[3])),
    # Chunks and codecs.
    "chunks that cut views": edit(EMBEDDINGS, *GRID, value=[2, 3, DIM]),
    "chunks of no dimensions": edit(EMBEDDINGS, *GRID, value=[]),
    "chunks of no rows": edit(EMBEDDINGS, *GRID, value=[0, VIEWS, DIM]),
    "chunks of more rows than there are": edit(EMBEDDINGS, *GRID, value=[10**9, VIEWS, DIM]),
    "chunks of fewer dimensions": edit(EMBEDDINGS, *GRID, value=[2]),
    "chunks of status of their own": edit(STATUS, *GRID, value=[5, VIEWS]),
    "a grid that isn't regular": edit(EMBEDDINGS, "chunk_grid", value={"name": "rectangular", "configuration": {}}),
    "a grid that is a text": edit(EMBEDDINGS, "chunk_grid", value="regular"),
    "keys with dots": edit(EMBEDDINGS, "chunk_key_encoding", value={"name": "v2", "configuration": {"separator": "."}}),
    "an unknown codec": edit(EMBEDDINGS, "codecs", value=[*CODECS, {"name": "explode"}]),
    "zstd": edit(EMBEDDINGS, "codecs", value=[*CODECS, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}]),
    "zstd of ids": edit(IDENTITY, "codecs", value=[{"name": "vlen-utf8"}, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}]),
    "gzip after all": edit(STATUS, "codecs", value=[{"name": "bytes"}, {"name": "crc32c"}, {"name": "gzip", "configuration": {"level": 5}}]),
    "sharding": edit(EMBEDDINGS, "codecs", value=[{"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 1, 1], "codecs": CODECS}}]),
    "no checksum": edit(EMBEDDINGS, "codecs", value=CODECS),
    "no codecs": edit(EMBEDDINGS, "codecs", value=[]),
    "codecs texts": edit(EMBEDDINGS, "codecs", value=["bytes"]),
    "big-endian": edit(EMBEDDINGS, "codecs", value=[{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]),
    "storage transformers": edit(EMBEDDINGS, "storage_transformers", value=[{"name": "x"}]),
    "embeddings of objects": edit(EMBEDDINGS, "data_type", value="object"),
    "embeddings of texts": edit(EMBEDDINGS, "data_type", value="string"),
    "embeddings of another width": edit(EMBEDDINGS, "data_type", value="float32"),
    "embeddings float64": edit(EMBEDDINGS, "data_type", value="float64"),
    "embeddings complex": edit(EMBEDDINGS, "data_type", value="complex64"),
    "embeddings raw": edit(EMBEDDINGS, "data_type", value={"name": "raw_bytes", "configuration": {"length_bytes": 10**9}}),
    "status signed": edit(STATUS, "data_type", value="int8"),
    "ids floats": edit(IDENTITY, "data_type", value="float64"),
    "ids texts of fixed length": edit(IDENTITY, "data_type", value={"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}}),
    "an array that is a group": edit(EMBEDDINGS, "node_type", value="group"),
    "fill value an object": edit(EMBEDDINGS, "fill_value", value={"a": 1}),
    "no array": instead("status", lambda path: None),
    "an array's head a pipe": instead(EMBEDDINGS, os.mkfifo),
    "an array's head nested": put(STATUS, '{"shape":' * 100_000),
    "an array a file": instead("embeddings", lambda path: path.write_text("x")),
    "an array a loop": instead("embeddings", lambda path: path.symlink_to(path)),
    # Bytes.
    "a chunk cut": lambda root: os.truncate(root / "embeddings/c/1/0/0", 11),
    "a chunk empty": put("embeddings/c/1/0/0", b""),
    "a chunk of a terabyte": lambda root: os.truncate(root / "embeddings/c/1/0/0", 1 << 40),
    "a chunk gone": instead("embeddings/c/2/0/0", lambda path: None),
    "a chunk a directory": instead("embeddings/c/0/0/0", Path.mkdir),
    "a chunk a pipe": instead("embeddings/c/0/0/0", os.mkfifo),
    "a chunk a loop": instead("embeddings/c/0/0/0", lambda path: path.symlink_to(path)),
    "a chunk a dangling link": instead("embeddings/c/0/0/0", lambda path: path.symlink_to("/nowhere/at/all")),
    "a chunk a device": instead("embeddings/c/0/0/0", lambda path: path.symlink_to("/dev/zero")),
    "a chunk another file": instead("embeddings/c/0/0/0", lambda path: path.symlink_to("/etc/passwd")),
    "a status chunk a pipe": instead("status/c/0/0", os.mkfifo),
    "a status chunk a directory": instead("status/c/0/0", Path.mkdir),
    "a status chunk gone": instead("status/c/0/0", lambda path: None),
    "a status out of range": chunk("status/c/1/0", np.full((2, VIEWS), 9, np.uint8)),
    "a status of 255": chunk("status/c/1/0", np.array([[1, 1, 1, 255]] * 2, np.uint8)),
    "rows pending": chunk("status/c/1/0", np.zeros((2, VIEWS), np.uint8)),
    "a NaN": chunk("embeddings/c/1/0/0", NOT_FINITE),
    "an infinity": chunk("embeddings/c/0/0/0", INFINITE),
    "ids gone": instead("sample_id/c/0", lambda path: None),
    "ids a pipe": instead("sample_id/c/0", os.mkfifo),
    "ids a directory": instead("sample_id/c/0", Path.mkdir),
    "ids cut": lambda root: os.truncate(root / "sample_id/c/0", 20),
    "ids of a terabyte": lambda root: os.truncate(root / "sample_id/c/0", 1 << 40),
    "an id twice": ids(b"s0", b"s1", b"s2", b"s3", b"s0"),
    "ids not UTF-8": ids(b"\xff\xfe", b"s1", b"s2", b"s3", b"s4"),
    "billions of ids": ids(b"s0", b"s1", b"s2", b"s3", b"s4", count=2**32 - 1),
    "fewer ids than rows": ids(b"s0", b"s1", b"s2", b"s3", b"a long one to fill it up", count=4),
    "an id beyond the end": chunk("sample_id/c/0", np.frombuffer((5).to_bytes(4, "little") + (2**31).to_bytes(4, "little") + b"x" * 40, np.uint8)),
    "texts for whole numbers": in_turn(edit(IDENTITY, "data_type", value="int64"), edit(IDENTITY, "fill_value", value=0), edit(IDENTITY, "codecs", value=[*CODECS, {"name": "crc32c"}])),
}  # fmt: skip


def with_feature(then: Change) -> Change:
    """A further feature of all pictures, and then something wrong with it."""

    def change(root: Path) -> None:
        store = add_features(open_store(root), {"token_mean": 3})
        for rows in chunks_of(store):
            shape = rows.stop - rows.start, VIEWS
            block = np.ones((*shape, 3), np.float16), np.full(shape, 7, np.uint64)
            commit_features(store, rows, {"token_mean": block})
        then(root)

    return change


MEAN = "token_mean/zarr.json"
# What is wrong with a further feature: those who read it get one line, and where metadata are wrong everybody does.
OF_A_FEATURE: dict[str, Change] = {
    "a feature that lies nowhere": edit("zarr.json", "attributes", "features", value=["token_mean"]),
    "a feature outside the store": edit("zarr.json", "attributes", "features", value=["../token_mean"]),
    "a feature called as another array": edit("zarr.json", "attributes", "features", value=["embeddings"]),
    "a feature whose hashes are another array": edit("zarr.json", "attributes", "features", value=["content"]),
    "a feature twice": with_feature(edit("zarr.json", "attributes", "features", value=["token_mean"] * 2)),
    "features without end": edit("zarr.json", "attributes", "features", value=[f"f{k}" for k in range(10_000)]),
    "features that are no list": edit("zarr.json", "attributes", "features", value="token_mean"),
    "a feature of other rows": with_feature(edit(MEAN, "shape", value=[ROWS + 1, VIEWS, 3])),
    "a feature in other chunks": with_feature(edit(MEAN, "chunk_grid", "configuration", "chunk_shape", value=[1, VIEWS, 3])),
    "a feature of another precision": with_feature(edit(MEAN, "data_type", value="float32")),
    "a feature of 10¹² numbers": with_feature(edit(MEAN, "shape", value=[ROWS, VIEWS, 10**12])),
    "hashes that are bytes": with_feature(edit("token_mean_hash/zarr.json", "data_type", value="uint8")),
    "numbers of a feature cut": with_feature(lambda root: os.truncate(root / "token_mean/c/1/0/0", 9)),
    "numbers of a feature gone": with_feature(lambda root: (root / "token_mean/c/1/0/0").unlink()),
    "numbers of a feature blown up": with_feature(lambda root: os.truncate(root / "token_mean/c/1/0/0", 1 << 40)),
    "numbers of a feature that are NaN": with_feature(chunk("token_mean/c/1/0/0", np.full((2, VIEWS, 3), np.nan, np.float16))),
    "hashes of a feature gone": with_feature(lambda root: (root / "token_mean_hash/c/1/0").unlink()),
    "hashes of a feature damaged": with_feature(lambda root: os.truncate(root / "token_mean_hash/c/1/0", 9)),
}  # fmt: skip


# What these change is nothing that anybody goes by: the rows are right.
READ: dict[str, Change] = {
    "nothing": lambda root: None,
    "a date of no sense": edit("zarr.json", "attributes", "created", value={"year": -1}),
    "attributes that nobody knows": edit("zarr.json", "attributes", "surprise", value=[{"a": [1] * 1000}]),
    "versions of no sense": edit("zarr.json", "attributes", "versions", value={"torch": None}),
    "metadata gathered elsewhere": edit("zarr.json", "consolidated_metadata", value={"kind": "inline", "must_understand": False, "metadata": {"embeddings": 3}}),
    "another fill value": edit(EMBEDDINGS, "fill_value", value=7.0),
    "a backbone of many lines": edit("zarr.json", "attributes", "backbone", value="mine\n\x1b[31m"),
    "other files beside it": lambda root: (os.mkfifo(root / "pipe"), (root / "loop").symlink_to(root)),
    "a successor of no number": lambda root: (root.parent / "train.zarr.²").mkdir(),
    "garbage behind the last row": chunk("embeddings/c/2/0/0", np.concatenate([VALUES[4:], np.full((1, VIEWS, DIM), np.nan, np.float16)])),
    "garbage where a view is missing": in_turn(chunk("status/c/1/0", np.array([[OK] * 4, [OK, OK, MISSING, OK]], np.uint8)), chunk("embeddings/c/1/0/0", NOT_FINITE)),
}  # fmt: skip


def outcomes(path: Path, samples: Samples, small: Small) -> dict[str, Any]:
    """What every reader of stores makes of it: a result or a GeoError; any other exception is a failure."""
    config = small.config(paths__cache_dir=str(path.parents[1]), model__backbone_name="mine")
    readers: dict[str, Callable[[], object]] = {
        "open": lambda: open_store(path, writable=False),
        "list": lambda: list_stores(path.parents[1]),
        "read": lambda: read_store(open_store(path, writable=False)),
        "read some": lambda: read_store(open_store(path, writable=False), slice(1, 4)),
        "status": lambda: read_status(open_store(path)),
        "hashes": lambda: read_content_hash(open_store(path)),
        "ids": lambda: read_ids(open_store(path)),
        "digest": lambda: content_digest(open_store(path)),
        "fits": lambda: check_fits(open_store(path), samples),
        "verify": lambda: verify(open_store(path, writable=False)),
        "parts": lambda: missing_parts(open_store(path), 2),
        "ls": lambda: summarise(list_stores(path.parents[1]), {}),
        "unreadable": lambda: unreadable_stores(path.parents[1]),
        "choose": lambda: choose_store(path.parents[1], config.model, "train"),
        "sources": lambda: gather_sources(path),
        "superseded": lambda: superseded_paths(path),
        "export": lambda: cache_export(config, "train", path.parents[1] / "out.parquet"),
    }
    results: dict[str, Any] = {}
    for name, read in readers.items():
        try:
            results[name] = read()
        except GeoError as error:
            results[name] = error
    return results


@pytest.mark.parametrize("case", OF_A_FEATURE)
def test_what_is_wrong_with_a_further_feature_is_one_line_too_and_the_embeddings_stay(
    store: Path, samples: Samples, small: Small, case: str
) -> None:
    OF_A_FEATURE[case](store)
    seal(store)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = outcomes(store, samples, small)
    with pytest.raises(GeoError) as caught:
        read_store(open_store(store, writable=False), feature="token_mean")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert "\n" not in caught.value.what
    # Where it opens, the embeddings are as they were, and what is damaged `verify` finds.
    if not isinstance(results["open"], GeoError):
        assert (results["read"].values == VALUES).all()
        assert results["verify"] or "hashes of a feature gone" in case


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_a_store_is_one_line_from_every_reader(
    store: Path, samples: Samples, small: Small, case: str
) -> None:
    REFUSED[case](store)
    seal(store)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = outcomes(store, samples, small)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    errors = {name: error for name, error in results.items() if isinstance(error, GeoError)}
    assert {"read", "export"} <= errors.keys()
    for error in errors.values():
        assert len(error.what) < 600
        assert "\n" not in error.what
        assert error.where
    # Somebody says so who looks for it; rows that are pending are no damage.
    messages = [
        *results["unreadable"],
        *(results["verify"] if "verify" not in errors else [errors["verify"]]),
    ]
    assert messages or case in ("rows pending", "a status chunk gone")


@pytest.mark.parametrize(
    "case", [name for name in REFUSED if name.startswith(("a chunk", "a status", "a NaN", "an infinity"))]
)
def test_what_is_no_chunk_gives_way_to_repair(store: Path, case: str) -> None:
    REFUSED[case](store)
    seal(store)
    problems = verify(open_store(store), repair=True)
    assert problems or case == "a status chunk gone"
    assert verify(open_store(store)) == []
    assert (read_status(open_store(store)) == PENDING).any(axis=1).sum() in (1, 2)


@pytest.mark.parametrize("case", REFUSED)
def test_ids_are_written_anew_or_refused_in_one_line(store: Path, samples: Samples, case: str) -> None:
    REFUSED[case](store)
    seal(store)
    with contextlib.suppress(GeoError):
        opened = open_store(store)
        write_ids(opened, samples)
        assert read_ids(open_store(store)).tolist() == IDS


@pytest.mark.parametrize("case", READ)
def test_what_nobody_goes_by_changes_no_row(store: Path, samples: Samples, small: Small, case: str) -> None:
    READ[case](store)
    seal(store)
    results = outcomes(store, samples, small)
    read = results["read"]
    assert not isinstance(read, GeoError), read
    assert read.sample_id.tolist() == IDS
    assert (read.values[read.present] == VALUES[read.present]).all()
    assert not read.values[~read.present].any()
    assert read.present.sum() == ROWS * VIEWS - (case == "garbage where a view is missing")


def test_broken_stores_stop_no_command_for_the_others(
    whole: Path, samples: Samples, small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = list(REFUSED.values())[::3]
    for k, change in enumerate(changes):
        path = tmp_path / "cache" / f"broken{k}-{k:016}" / "train.zarr"
        shutil.copytree(whole, path)
        edit("zarr.json", "attributes", "backbone", value=f"broken{k}")(path)
        change(path)
        seal(path)
    shutil.copytree(whole, tmp_path / "cache" / whole.parent.name / "train.zarr")
    options = [
        *small.options(),
        "--set",
        f"paths.cache_dir={tmp_path / 'cache'}",
        "--set",
        "model.backbone_name=mine",
        "--json",
    ]
    good = str(tmp_path / "cache" / whole.parent.name / "train.zarr")

    ls = command(capsys, *options, "cache", "ls")
    assert ls.code == 0, ls.err
    assert good in [entry["path"] for entry in ls.json["stores"]]
    assert len(ls.json["problems"]) > 0.6 * len(changes)
    info = command(capsys, *options, "cache", "info", "--split", "train")
    assert info.code == 0, info.err
    assert [entry["path"] for entry in info.json["stores"]] == [good]
    verified = command(capsys, *options, "cache", "verify", "--split", "train")
    assert verified.code == 3
    assert verified.json["stores"] == [good]
    assert good not in [problem["store"] for problem in verified.json["problems"]]
    out = command(capsys, *options, "cache", "export", "--split", "train", "--out", tmp_path / "out.npy")
    assert out.code == 0, out.err
    assert (np.load(tmp_path / "out.npy") == VALUES).all()
    for k in range(0, len(changes), 4):
        path = tmp_path / "cache" / f"broken{k}-{k:016}" / "train.zarr"
        assert command(capsys, *options, "cache", "info", "--store", path).code in (0, 1)
        assert command(capsys, *options, "cache", "verify", "--store", path).code in (0, 1, 3)
