"""A flipped bit, a lost file: found by `geo cache verify`, never read in silence, mended by `--repair` and `geo extract`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from small import Small, command, content

from geo_embed.cache.store import PENDING, open_store, read_store
from geo_embed.cache.verify import verify
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract

if TYPE_CHECKING:
    from conftest import Country

CHUNKS = 4


@pytest.fixture(scope="module")
def extracted(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.cut(country, tmp_path_factory.mktemp("damage") / "small")
    extract(small.config(), "train")
    return small


@pytest.fixture
def small(extracted: Small, tmp_path: Path) -> Small:
    return extracted.copy(tmp_path / "small")


def flip(file: Path, at: float) -> None:
    """One bit, at a share of the file's length."""
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1 << 3
    file.write_bytes(data)


def test_stores_that_were_not_looked_at_are_named(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    other = extract(small.config(model__view_names=["south"]), "train").store
    (looked_at,) = set(small.cache.glob("*/train.zarr")) - {other}
    whole = command(capsys, *small.options(), "--json", "cache", "verify")
    assert whole.code == 0, whole.err
    assert (whole.json["stores"], whole.json["not_looked_at"]) == ([str(looked_at)], [str(other)])
    lines = command(capsys, *small.options(), "cache", "verify").out.splitlines()
    assert lines[-3:-1] == ["0 problems", "1 other store not looked at:"]
    assert shlex.split(lines[-1])[-2:] == ["--store", str(other)]
    # Damage that was looked at is told of as before, and so is a store that was asked for by its path.
    flip(looked_at / DATA[0], 0.5)
    damaged = command(capsys, *small.options(), "--json", "cache", "verify")
    assert (damaged.code, damaged.json["not_looked_at"]) == (3, [str(other)])
    named = command(capsys, *small.options(), "--json", "cache", "verify", "--store", other)
    assert (named.code, named.json["not_looked_at"]) == (0, [])


DATA = [
    *(f"{name}/c/{chunk}/0" for name in ("status", "content_hash") for chunk in range(CHUNKS)),
    *(f"embeddings/c/{chunk}/0/0" for chunk in range(CHUNKS)),
    "sample_id/c/0",
]
METADATA = [f"{name}/zarr.json" for name in ("embeddings", "status", "content_hash", "sample_id")]


def test_every_file_of_a_store_is_one_of_those_below(small: Small) -> None:
    store = small.store()
    names = {str(file.relative_to(store)) for file in store.rglob("*") if file.is_file()}
    assert names == {*DATA, *METADATA, "zarr.json"}


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("file", DATA)
def test_a_flipped_bit_in_a_chunk_is_found(
    small: Small, capsys: pytest.CaptureFixture[str], file: str, at: float
) -> None:
    flip(small.store() / file, at)
    ran = command(capsys, *small.options(), "--json", "cache", "verify", "--split", "train")
    assert ran.code == 3, ran.err
    (problem,) = ran.json["problems"]
    assert file.split("/")[0] in problem["where"]
    assert problem["store"] == str(small.store())
    if file.startswith(("status", "content_hash", "embeddings")):
        first = 2 * int(file.split("/")[2])
        assert f"rows {first}–{first + 1}" in problem["where"]


@pytest.mark.parametrize("at", [0.03, 0.2, 0.4, 0.6, 0.8, 0.97])
@pytest.mark.parametrize("file", METADATA)
def test_a_flipped_bit_in_the_metadata_of_an_array_is_found_and_not_read(
    small: Small, capsys: pytest.CaptureFixture[str], file: str, at: float
) -> None:
    flip(small.store() / file, at)
    verified = command(capsys, *small.options(), "cache", "verify", "--store", small.store())
    assert verified.code == 3
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 1


@pytest.mark.parametrize("at", [k / 12 for k in range(13)])
def test_a_flipped_bit_in_the_head_of_a_store_is_never_read_in_silence(
    small: Small, capsys: pytest.CaptureFixture[str], at: float
) -> None:
    flip(small.store() / "zarr.json", at)
    verified = command(capsys, *small.options(), "cache", "verify", "--store", small.store())
    assert verified.code == 3
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 1


def test_a_whole_store_has_no_problems(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    ran = command(capsys, *small.options(), "--json", "cache", "verify", "--split", "train", "--deep")
    assert ran.code == 0
    assert ran.json["problems"] == []
    assert ran.json["stores"] == [str(small.store())]


@pytest.mark.parametrize("change", ["flipped", "cut", "grown", "gone"])
@pytest.mark.parametrize("file", [name for name in DATA if "/1/" in name or "sample_id" in name])
def test_what_is_damaged_is_not_read_and_repair_and_extract_mend_it(
    small: Small, capsys: pytest.CaptureFixture[str], file: str, change: str
) -> None:
    whole = content(small.store())
    path = small.store() / file
    data = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {
                "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
                "cut": data[:-5],
                "grown": data + b"\0",
            }[change]
        )

    fitted = command(capsys, *small.options(), "fit-heads", "--name", "first")
    # Stage 2 reads neither hashes nor, where no view is missing, anything that depends on them.
    assert fitted.code == (0 if file.startswith("content_hash") else 1)
    ran = command(capsys, *small.options(), "--json", "cache", "verify", "--split", "train", "--repair")
    if (file, change) == ("status/c/1/0", "gone"):
        # Rows without a status were never committed, as far as the disk can tell: pending, not damaged.
        assert (np.asarray(open_store(small.store()).status[2:4]) == PENDING).all()
    else:
        assert ran.code == 3
        assert len(ran.json["problems"]) == 1

    again = command(capsys, *small.options(), "--json", "extract", "--split", "train")
    assert again.code == 0, again.err
    assert again.json["computed"] == (0 if file.startswith("sample_id") else 8)
    assert content(small.store()) == whole
    assert command(capsys, *small.options(), "cache", "verify", "--split", "train").code == 0


def test_a_lost_chunk_is_not_taken_for_zeros_when_its_rows_are_completed(small: Small) -> None:
    """A view of the lost chunk is still to be computed: the chunk must not be written back with zeros in it."""
    whole = content(small.store())
    picture = small.picture(2, "west")
    data = picture.read_bytes()
    picture.unlink()
    extract(small.config(inference__on_bad_image="skip"), "train")
    picture.write_bytes(data)
    (small.store() / "embeddings" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(GeoError, match="rows 2–3 is gone from the disk") as refused:
        extract(small.config(), "train")
    assert "geo cache verify --split train" in refused.value.hint
    verify(open_store(small.store()), repair=True)
    extract(small.config(), "train")
    assert content(small.store()) == whole


def test_a_store_without_a_readable_head_does_not_pass_for_absent(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    head = small.store() / "zarr.json"
    head.write_text(head.read_text()[:-30])
    ran = command(capsys, *small.options(), "fit-heads")
    assert ran.code == 1
    assert f"{small.store().parent.name} can't be read" in ran.err
    ran = command(capsys, *small.options(), "--json", "cache", "verify", "--split", "train")
    assert ran.code == 3
    (problem,) = ran.json["problems"]
    assert problem["store"] == str(small.store())
    ran = command(capsys, *small.options(), "--json", "cache", "ls")
    assert [unreadable["store"] for unreadable in ran.json["problems"]] == [str(small.store())]


def test_deep_notices_a_picture_that_changed_on_disk(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small.picture(3, "east").write_bytes(small.other_picture(0))
    small.picture(5, "west").unlink()
    assert command(capsys, *small.options(), "cache", "verify", "--split", "train").code == 0
    ran = command(capsys, *small.options(), "--json", "cache", "verify", "--split", "train", "--deep")
    assert ran.code == 3
    changed, gone = ran.json["problems"]
    ids = small.table()["sample_id"]
    assert changed["where"] == f"sample {ids[3]}, view east"
    assert "the picture changed on disk" in changed["message"]
    assert gone["where"] == f"sample {ids[5]}, view west"
    assert "can't be read any more" in gone["message"]


def test_deep_notices_an_embedding_that_was_tampered_with(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written through Zarr, with a valid checksum: only the picture can tell."""
    store = open_store(small.store())
    rows = np.asarray(store.embeddings[2:4])
    rows[1, 2] = rows[0, 2]
    store.embeddings[2:4] = rows
    assert command(capsys, *small.options(), "cache", "verify", "--split", "train").code == 0
    ran = command(capsys, *small.options(), "--json", "cache", "verify", "--split", "train", "--deep")
    assert ran.code == 3
    (problem,) = ran.json["problems"]
    assert problem["where"] == f"sample {small.table()['sample_id'][3]}, view south"
    assert "embedded again it differs: cosine 0." in problem["message"]


def test_deep_refuses_a_store_that_no_longer_fits_the_csv(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write(small.table().iloc[::-1])
    ran = command(capsys, *small.options(), "cache", "verify", "--split", "train", "--deep")
    assert ran.code == 1
    assert "no longer fits" in ran.err


def test_reading_the_first_rows_does_not_stumble_over_damage_behind_them(small: Small) -> None:
    flip(small.store() / "embeddings" / "c" / "3" / "0" / "0", 0.5)
    store = open_store(small.store())
    assert read_store(store, slice(0, 6)).present.all()
    with pytest.raises(GeoError, match="rows 6–7") as refused:
        read_store(store)
    assert refused.value.hint.startswith("geo cache verify --split train")


def test_changed_attributes_are_found(small: Small) -> None:
    head = small.store() / "zarr.json"
    attributes = json.loads(head.read_text())
    attributes["attributes"]["feature"] = "pooler_output"
    head.write_text(json.dumps(attributes))
    assert [problem.where for problem in verify(open_store(small.store()))] == ["attributes"]
