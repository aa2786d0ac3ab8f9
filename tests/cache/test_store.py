"""A chunk counts once all of it is on disk, what is read is what was written, and the store says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from small import Small

from geo_embed.cache.find import check_fits
from geo_embed.cache.locks import only_writer
from geo_embed.cache.store import (
    MISSING,
    OK,
    PENDING,
    Store,
    chunks_of,
    commit_chunk,
    create_store,
    forget_chunk,
    has_chunk,
    metadata_faults,
    open_store,
    read_ids,
    read_store,
    rounded_away,
)
from geo_embed.data.samples import Samples, load_samples
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    from conftest import Country

pytestmark = pytest.mark.cut(train=5, test=2)

DIM = 6


def new(path: Path, samples: Samples, dtype: str = "float16") -> Store:
    attrs = {"fingerprint": "f" * 16, "backbone": "made-up", "stored": dtype, "dtype": "float32"}
    return create_store(path, samples, dim=DIM, dtype=dtype, chunk_rows=2, attrs=attrs)


def values(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, 4, DIM)).astype(np.float32)


def commit(store: Store, *, seed: int = 0, status: int = OK) -> NDArray[np.float32]:
    whole = values(store.shape[0], seed).astype(store.embeddings.dtype)
    for rows in chunks_of(store):
        shape = (rows.stop - rows.start, 4)
        commit_chunk(
            store,
            rows,
            whole[rows],
            np.full(shape, 7, dtype=np.uint64),
            np.full(shape, status, dtype=np.uint8),
        )
    return whole


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_committed_is_read_back_to_the_last_bit(tmp_path: Path, samples: Samples, dtype: str) -> None:
    whole = commit(new(tmp_path / "train.zarr", samples, dtype))
    read = read_store(open_store(tmp_path / "train.zarr"))
    assert read.values.dtype == dtype
    assert read.values.tobytes() == whole.tobytes()
    assert read.present.all()
    assert read.sample_id.tolist() == samples.sample_id.tolist()


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 3), slice(1, 4), slice(4, 5), slice(0, 5)])
def test_any_range_of_rows_is_the_same_rows_of_the_whole(
    tmp_path: Path, samples: Samples, rows: slice
) -> None:
    store = new(tmp_path / "train.zarr", samples)
    whole = commit(store)
    read = read_store(store, rows)
    assert (read.values == whole[rows]).all()
    assert read.sample_id.tolist() == samples.sample_id[rows].tolist()


def test_a_new_store_is_pending_throughout_and_refuses_to_be_read(tmp_path: Path, samples: Samples) -> None:
    store = new(tmp_path / "train.zarr", samples)
    assert (np.asarray(store.status[:]) == PENDING).all()
    with pytest.raises(GeoError, match="5 of 5 samples are not extracted yet") as refused:
        read_store(store)
    assert refused.value.hint == "geo extract --split train --backbone made-up"


@pytest.mark.parametrize("fails_at", ["embeddings", "content_hash", "status"])
def test_a_chunk_whose_commit_was_cut_short_stays_pending(
    tmp_path: Path, samples: Samples, fails_at: str
) -> None:
    store = new(tmp_path / "train.zarr", samples)
    folder = tmp_path / "train.zarr" / fails_at / "c"
    folder.write_text(
        "a file where Zarr needs a folder: writing this array fails, and those after it never begin"
    )
    with pytest.raises(GeoError):
        commit(store)
    assert not any(has_chunk(store, "status", rows) for rows in chunks_of(store))
    folder.unlink()
    assert (np.asarray(open_store(tmp_path / "train.zarr").status[:]) == PENDING).all()


def test_a_forgotten_chunk_is_pending_and_the_others_stay(tmp_path: Path, samples: Samples) -> None:
    store = new(tmp_path / "train.zarr", samples)
    whole = commit(store)
    forget_chunk(store, slice(2, 4))
    assert np.asarray(store.status[:]).any(axis=1).tolist() == [True, True, False, False, True]
    assert (read_store(store, slice(0, 2)).values == whole[:2]).all()


def test_missing_views_are_told_apart_from_embedded_ones(tmp_path: Path, samples: Samples) -> None:
    store = new(tmp_path / "train.zarr", samples)
    commit(store, status=MISSING)
    assert not read_store(store).present.any()


def test_a_store_says_what_made_it_and_of_what(tmp_path: Path, samples: Samples) -> None:
    new(tmp_path / "train.zarr", samples)
    attrs = json.loads((tmp_path / "train.zarr" / "zarr.json").read_text())["attributes"]
    assert attrs["format_version"] == 1
    assert attrs["fingerprint"] == "f" * 16
    assert attrs["view_names"] == ["north", "east", "south", "west"]
    assert {"torch", "transformers", "zarr", "geo-embed"} <= attrs["versions"].keys()


def test_any_zarr_reader_can_read_a_store(tmp_path: Path, samples: Samples) -> None:
    whole = commit(new(tmp_path / "train.zarr", samples))
    group = zarr.open_group(tmp_path / "train.zarr", mode="r")
    assert (np.asarray(group["embeddings"]) == whole).all()
    assert [str(name) for name in np.asarray(group["sample_id"])] == samples.sample_id.tolist()


def test_a_store_appears_whole_or_not_at_all(tmp_path: Path, samples: Samples) -> None:
    for name in (".train.zarr.creating", ".train.zarr.0123abcd.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("left by a kill")
    with only_writer(tmp_path / "train.zarr"):
        new(tmp_path / "train.zarr", samples)
    assert sorted(path.name for path in tmp_path.glob("*.zarr*")) == ["train.zarr"]
    assert not (tmp_path / "train.zarr" / "half").exists()


def test_text_ids_are_kept_as_they_are(tmp_path: Path, country: Country) -> None:
    small = Small.cut(country, tmp_path / "texts", train=3, test=1)
    small.write(small.table().assign(sample_id=["café", "007", "x y"]))
    samples = load_samples(small.config(), "train")
    new(tmp_path / "train.zarr", samples)
    assert read_ids(open_store(tmp_path / "train.zarr")).tolist() == ["café", "007", "x y"]


@pytest.mark.parametrize("name", ["embeddings", "status", "content_hash", "sample_id"])
def test_changed_metadata_is_noticed_and_not_read(tmp_path: Path, samples: Samples, name: str) -> None:
    store = new(tmp_path / "train.zarr", samples)
    commit(store)
    assert metadata_faults(store) == []
    file = tmp_path / "train.zarr" / name / "zarr.json"
    file.write_text(file.read_text().replace('"fill_value": 0', '"fill_value": 1') + " ")
    assert [where for where, _ in metadata_faults(open_store(store.path))] == [f"{name}/zarr.json"]
    with pytest.raises(GeoError, match=f"{name}/zarr.json"):
        read_store(open_store(store.path))


def test_a_store_of_a_later_format_is_refused(tmp_path: Path, samples: Samples) -> None:
    new(tmp_path / "train.zarr", samples)
    zarr.open_group(tmp_path / "train.zarr", mode="r+").attrs["format_version"] = 2
    with pytest.raises(GeoError, match="store format 2, where this version reads 1"):
        open_store(tmp_path / "train.zarr")


def test_a_store_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(GeoError, match="there is no such store"):
        open_store(tmp_path / "train.zarr")
    assert not (tmp_path / "train.zarr").exists()


def test_a_store_without_an_array_is_not_readable(tmp_path: Path, samples: Samples) -> None:
    new(tmp_path / "train.zarr", samples)
    shutil.rmtree(tmp_path / "train.zarr" / "status")
    with pytest.raises(GeoError, match="not a readable store"):
        open_store(tmp_path / "train.zarr")


def test_a_store_fits_its_own_csv_and_no_other(tmp_path: Path, country: Country) -> None:
    small = Small.cut(country, tmp_path / "small", train=4, test=1)
    table = small.table()
    store = new(tmp_path / "train.zarr", load_samples(small.config(), "train"))

    def refusal() -> str:
        with pytest.raises(GeoError) as refused:
            check_fits(store, load_samples(small.config(), "train"))
        assert refused.value.hint == "geo extract --split train --backbone made-up"
        return refused.value.what

    check_fits(store, load_samples(small.config(), "train"))
    small.write(table.assign(state=table["state"], note="an extra column changes nothing"))
    check_fits(store, load_samples(small.config(), "train"))
    small.write(table.head(3))
    assert "the store holds 4 samples, the CSV 3" in refusal()
    small.write(table.assign(sample_id=table["sample_id"] + 900))
    assert "is not in the store" in refusal()
    small.write(table.iloc[[0, 2, 1, 3]])
    assert "the order of samples differs from row 3 on" in refusal()
    small.write(table.assign(image_north=table["image_south"]))
    assert "name other images" in refusal()


def test_rounding_is_measured_by_an_embeddings_length_and_zeros_are_zeros() -> None:
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(6, 2, 9))
    for factor, lost in ((1e3, False), (1, False), (1e-5, False), (1e-6, True), (1e-9, True), (1e-300, True)):
        assert (rounded_away(direction * factor, "float16") == lost).all(), factor
        assert (rounded_away(direction * factor, "float32") == (factor < 1e-42)).all(), factor
    # A small number beside a large one takes nothing from the whole.
    mixed = np.full((1, 1, 9), 1e-9)
    mixed[0, 0, 3] = 0.1
    assert not rounded_away(mixed, "float16").any()
    assert not rounded_away(np.zeros((3, 2, 9), dtype=np.float32), "float16").any()
    assert not rounded_away(np.float16(direction * 1e-6), "float16").any()
    assert not rounded_away(np.full((1, 1, 1 << 14), 5e-6), "float16").any()
    # A thousandth of a step off each of many numbers: of the largest width, too.
    assert rounded_away(np.full((1, 1, 1 << 14), 3.3e-7), "float16").all()
