"""A store in a bucket: the bytes of one in a folder; made, moved and deleted so that a kill at any point loses nothing; read from this machine where it didn't change."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from s3 import CUT, Request, Server, objects
from small import Small, content, files

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.cache import objects as objects_module
from geo_embed.cache.locks import changing_layout, only_writer
from geo_embed.cache.objects import kept_dir
from geo_embed.cache.storage import (
    all_superseded,
    creating,
    delete,
    has_store,
    leftovers,
    sibling_paths,
    storage_at,
    store_paths,
    supersede,
    superseded_paths,
    usage,
)
from geo_embed.cache.store import (
    OK,
    Store,
    chunks_of,
    commit_chunk,
    create_store,
    forget_chunk,
    lay_out,
    list_stores,
    open_store,
    read_ids,
    read_store,
    write_ids,
)
from geo_embed.cache.verify import verify
from geo_embed.data.samples import Samples
from geo_embed.errors import BusyError, GeoError, UnreachableError

ATTRS = {"fingerprint": "0", "backbone": "b", "dtype": "float32", "stored": "float16"}


@pytest.fixture
def path(bucket: Address) -> Address:
    return bucket / "backbone-0" / "train.zarr"


def create(path: Path, samples: Samples, chunk_rows: int = 3) -> Store:
    return create_store(path, samples, dim=6, dtype="float16", chunk_rows=chunk_rows, attrs=ATTRS)


def fill(store: Store, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for rows in chunks_of(store):
        shape = (rows.stop - rows.start, *store.shape[1:])
        hashes = rng.integers(1, 2**63, shape[:2]).astype(np.uint64)
        commit_chunk(
            store, rows, rng.normal(size=shape).astype(np.float16), hashes, np.full(shape[:2], OK, np.uint8)
        )


def test_it_has_the_bytes_of_one_in_a_folder_and_zarr_reads_it(
    path: Address, samples: Samples, tmp_path: Path
) -> None:
    for where in (path, tmp_path / "backbone-0" / "train.zarr"):
        fill(create(where, samples))
    in_folder = tmp_path / "backbone-0" / "train.zarr"
    in_bucket = objects(path)
    assert {name for name in in_bucket if name != "zarr.json"} == {
        name for name in files(in_folder) if name != "zarr.json"
    }
    assert all(
        (in_folder / name).read_bytes() == data for name, data in in_bucket.items() if name != "zarr.json"
    )
    assert content(path) == content(in_folder)
    # As anybody's Zarr finds it.
    for name, data in in_bucket.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    copied: Any = zarr.open_group(tmp_path / "copy", mode="r")
    assert (copied["embeddings"][:] == read_store(open_store(path)).values).all()
    assert [str(store) for store in store_paths(path.parents[1])] == [str(path)]
    size, when = usage(path)
    assert size == sum(map(len, in_bucket.values()))
    assert when > 1.7e9


def test_ids_that_were_damaged_are_written_again(path: Address, samples: Samples) -> None:
    store = create(path, samples)
    whole = buckets.get(path / "sample_id/c/0")
    buckets.put(path / "sample_id/c/0", b"damage")
    with pytest.raises(GeoError):
        read_ids(open_store(path))
    write_ids(open_store(path), samples)
    assert (read_ids(open_store(path)) == samples.sample_id).all()
    again = buckets.get(path / "sample_id/c/0")
    assert whole is not None
    assert again is not None
    assert again[0] == whole[0]
    assert store.fingerprint == "0"


def test_a_chunk_that_is_gone_cut_or_flipped_is_damage_and_a_bucket_that_fails_is_none(
    path: Address, samples: Samples, s3: Server
) -> None:
    store = create(path, samples)
    fill(store)
    name = "embeddings/c/1/0/0"
    stored = buckets.get(path / name)
    assert stored is not None
    data = stored[0]
    for damaged in (data[:-1], data[:7] + b"\x55" + data[8:], data[:2], b""):
        buckets.put(path / name, damaged)
        with pytest.raises(GeoError, match="damaged"):
            read_store(store)
    buckets.delete([path / name])
    with pytest.raises(GeoError, match="gone"):
        read_store(store)
    s3.faults = lambda _: "403"
    for use in (lambda: read_store(store), lambda: list_stores(path.parents[1]), lambda: open_store(path)):
        with pytest.raises(UnreachableError, match="access is denied"):
            use()


def test_what_cannot_be_read_just_now_is_neither_passed_over_nor_repaired(
    path: Address, samples: Samples, s3: Server
) -> None:
    fill(create(path, samples))
    before = objects(path)
    s3.faults = lambda request: (
        "403" if request.key.endswith("zarr.json") and request.method == "GET" else None
    )
    with pytest.raises(UnreachableError):
        list_stores(path.parents[1])
    s3.reset()
    store = open_store(path)
    for name in ("embeddings", "status", "sample_id"):
        s3.faults = lambda request, name=name: "403" if f"{name}/c/" in request.key else None  # type: ignore[misc]
        with pytest.raises(UnreachableError):
            verify(store, repair=True)
    s3.reset()
    assert objects(path) == before


def test_of_two_that_make_one_the_second_stops_and_the_first_ones_stands(
    path: Address, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = objects_module._put_all
    seen: dict[str, bytes] = {}

    def late(root: Path, place: Address) -> None:
        monkeypatch.setattr(objects_module, "_put_all", whole)
        create(path, samples)
        seen.update(objects(path))
        whole(root, place)

    monkeypatch.setattr(objects_module, "_put_all", late)
    with pytest.raises(BusyError, match="another command has laid out this store"):
        create_store(path, samples, dim=6, dtype="float16", chunk_rows=2, attrs=ATTRS)
    assert objects(path) == seen
    assert open_store(path).chunk_rows == 3


def killed_at(call: int) -> Callable[[Request], str | None]:
    """From so many writes on, every request fails, as for a process that is no more."""
    writes = 0

    def fault(request: Request) -> str | None:
        nonlocal writes
        writes += request.method in ("PUT", "POST", "DELETE")
        return "403" if writes > call else None

    return fault


def replace(path: Address, samples: Samples) -> None:
    with creating(path) as storage:
        fill(lay_out(storage, samples, dim=6, dtype="float16", chunk_rows=8, attrs=ATTRS), seed=1)


WORK: dict[str, Callable[[Address, Samples], object]] = {
    "create": create,
    "supersede": lambda path, _: supersede(path),
    "delete": lambda path, _: delete(path),
    "replace": replace,
}


@pytest.mark.parametrize("what", WORK)
def test_killed_at_any_write_nothing_is_lost_and_the_next_command_goes_on(
    bucket: Address, samples: Samples, s3: Server, what: str
) -> None:
    for moment in count():
        cache_dir = bucket / str(moment)
        path = cache_dir / "backbone-0" / "train.zarr"
        before = None
        if what != "create":
            fill(create(path, samples, chunk_rows=8))
            before = content(path)
        s3.reset()
        s3.faults = killed_at(moment)
        try:
            WORK[what](path, samples)
        except UnreachableError:
            was_killed = True
        else:
            was_killed = False
        s3.reset()
        # 1. What stands is whole, wherever it stands; what stood before still does, unless it was to be deleted.
        standing = [place for place in (path, *superseded_paths(path)) if has_store(place)]
        contents = [content(place) for place in standing]
        if what == "supersede" and was_killed:
            assert before in contents
        assert contents or what in ("create", "delete")
        # 2. No half of one is taken for a store, and what is left can be told, and deleted.
        assert [store.path for store in list_stores(cache_dir)] == [
            place for place in standing if place == path
        ]
        left = [place for place, _ in leftovers(cache_dir)]
        assert not set(left) & set(standing)
        assert set(path.parent.iterdir()) == {*standing, *left}
        for place in left:
            delete(place)
        assert set(path.parent.iterdir()) == set(standing)
        # 3. A store is made where none stands, as an extraction does.
        if not has_store(path):
            fill(create(path, samples, chunk_rows=8), seed=2)
            assert read_store(open_store(path)).present.all()
        if not was_killed:
            break
    assert moment >= 2
    if what == "supersede":
        assert content(path.with_name("train.zarr.1")) == before
        assert [str(place) for place, _ in all_superseded(cache_dir)] == [f"{path}.1"]
        assert sibling_paths(path) == [path, path.with_name("train.zarr.1")]
    elif what == "replace":
        assert standing == [path]
        assert contents != [before]


def test_the_next_store_is_made_over_what_a_killed_command_left(
    path: Address, samples: Samples, s3: Server
) -> None:
    fill(create(path, samples))
    s3.faults = killed_at(1)
    with pytest.raises(UnreachableError):
        delete(path)
    s3.reset()
    assert list(buckets.listing(path))
    again = create(path, samples)
    assert not [name for name in buckets.listing(path) if "/c/" in name and "sample_id" not in name]
    assert (read_ids(again) == samples.sample_id).all()


def test_a_store_is_read_from_this_machine_unless_it_changed_there_or_was_damaged_here(
    path: Address, samples: Samples, s3: Server
) -> None:
    store = create(path, samples)
    fill(store)

    def fetched() -> list[str]:
        s3.reset()
        values.append(read_store(open_store(path)).values)
        return [
            r.key.partition("zarr/")[2]
            for r in s3.requests
            if r.method == "GET" and "/c/" in r.key and "_id" not in r.key
        ]

    values: list[Any] = []
    names = [f"embeddings/c/{k}/0/0" for k in range(3)]
    assert sorted(fetched()) == [*names, *(f"status/c/{k}/0" for k in range(3))]
    assert fetched() == []
    assert (values[0] == values[1]).all()
    # Another's commit: that chunk alone is fetched.
    rows = list(chunks_of(store))[1]
    with only_writer(path), changing_layout(path):
        forget_chunk(store, rows)
        fresh = np.full((3, *store.shape[1:]), 7, np.float16)
        ones = np.ones(fresh.shape[:2], np.uint64)
        commit_chunk(store, rows, fresh, ones, np.full(fresh.shape[:2], OK, np.uint8))
    assert fetched() == [names[1]]
    assert (values[-1][rows] == 7).all()
    assert (values[-1][:3] == values[0][:3]).all()
    # Damage of what is kept here, and what can't be kept: fetched again.
    (kept,) = {file.parent for file in kept_dir().rglob("embeddings*")}
    assert len(list(kept.glob("embeddings*"))) == 3, "an earlier state isn't kept"
    first = next(kept.glob("embeddings-c-0-*"))
    first.write_bytes(first.read_bytes()[:-3] + b"xyz")
    assert fetched() == [names[0]]
    assert fetched() == []
    # Another store of that name, made anew.
    delete(path)
    fill(create(path, samples), seed=5)
    assert sorted(fetched()) == names
    assert not (values[-1] == values[-2]).all()


def test_a_connection_that_is_cut_in_mid_chunk_leaves_nothing_torn_here_or_there(
    path: Address, samples: Samples, s3: Server
) -> None:
    store = create(path, samples)
    fill(store)
    whole = read_store(store).values
    for file in kept_dir().rglob("embeddings*"):
        file.unlink()
    s3.reset()
    s3.faults = lambda request: CUT if "embeddings/c/" in request.key and request.earlier < 2 else None
    assert (read_store(open_store(path)).values == whole).all()
    assert s3.met[CUT] == 6
    s3.reset()
    assert (read_store(open_store(path)).values == whole).all()
    assert not [r for r in s3.requests if "embeddings/c/" in r.key]


def test_the_storage_of_a_bucket_says_what_a_folders_says(
    path: Address, small: Small, tmp_path: Path
) -> None:
    for root in (path, tmp_path / "root"):
        storage, block = storage_at(root), np.arange(12, dtype="<f4")
        storage.write_chunks({"a/c/0/0": block, "a/c/1/0": block + 1})
        assert storage.exists("a/c/0/0")
        assert not storage.exists("a/c/2/0")
        assert storage.size("a/c/0/0") == 52
        assert storage.chunks("a") == ["a/c/0/0", "a/c/1/0"]
        assert storage.head("a/c/0/0", 5) == block.tobytes()[:5]
        assert storage.read("a/c/0/0", limit=52)[:48] == block.tobytes()
        again = np.zeros_like(block)
        storage.read_chunk("a/c/1/0", again)
        assert (again == block + 1).all()
        parts = np.zeros((2, 3), "<f4")
        storage.read_parts("a/c/1/0", [0, 24], parts)
        assert (parts == block.reshape(-1, 3)[[0, 2]] + 1).all()
        with pytest.raises(ValueError, match="ends before"):
            storage.read_parts("a/c/1/0", [44], parts[:1])
        with storage.listed("a"):
            assert storage.exists("a/c/1/0")
            assert not storage.exists("a/c/2/0")
        with pytest.raises(GeoError):
            storage.size("no")
        with pytest.raises(GeoError):
            storage.read("a/c/0/0", limit=51)
        with pytest.raises(GeoError):
            storage.head("no", 1)
        storage.write_durably("zarr.json", b"{}")
        assert storage.read("zarr.json", limit=2) == b"{}"
        storage.force(["zarr.json"])
    assert storage_at(path).checksum("a/c/0/0") == storage_at(tmp_path / "root").checksum("a/c/0/0")
