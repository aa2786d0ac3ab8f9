"""A damaged zarr.json is made again from the chunks and the CSV, and only where both leave no doubt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from small import Small, command, content, files

from geo_embed.cache.rebuild import rebuild_metadata
from geo_embed.cache.store import PENDING, add_features, open_store, read_status
from geo_embed.cache.verify import verify
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract

if TYPE_CHECKING:
    from conftest import Country

HEAD = "zarr.json"
FILES = [HEAD, *(f"{name}/zarr.json" for name in ("embeddings", "status", "content_hash", "sample_id"))]
VERIFY = ("cache", "verify", "--split", "train")


@pytest.fixture(scope="module")
def extracted(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.cut(country, tmp_path_factory.mktemp("rebuild") / "small", train=5, test=2)
    for split in ("train", "test"):
        extract(small.config(), split)
    return small


@pytest.fixture
def small(extracted: Small, tmp_path: Path) -> Small:
    return extracted.copy(tmp_path / "small")


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
        return
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 8
    file.write_bytes(
        {"flipped": bytes(flipped), "cut": data[: len(data) // 3], "empty": b"", "zeros": bytes(4096)}[how]
    )


def assert_mended(small: Small, whole: dict[str, object], computed: int = 0) -> None:
    assert content(small.store()) == whole
    assert verify(open_store(small.store())) == []
    assert extract(small.config(), "train").computed == computed


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "zeros", "gone"])
@pytest.mark.parametrize("file", FILES)
def test_each_is_made_again_and_nothing_is_computed(
    small: Small, capsys: pytest.CaptureFixture[str], file: str, how: str
) -> None:
    whole = content(small.store())
    before = (small.store() / file).read_bytes()
    damage(small.store() / file, how)
    ran = command(capsys, *small.options(), "--json", *VERIFY, "--repair")
    assert ran.code == 3, ran.err
    assert len(ran.json["problems"]) == 1
    (made,) = ran.json["rebuilt"]
    assert (made["store"], made["files"]) == (str(small.store()), [file])
    if file != HEAD:
        assert (small.store() / file).read_bytes() == before
    assert command(capsys, *small.options(), *VERIFY).code == 0
    assert_mended(small, whole)


def test_all_at_once_are_made_again_from_the_backbone_alone(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a store of which the chunks alone came back."""
    whole = content(small.store())
    shutil.rmtree(small.store("test"))
    for file in FILES:
        damage(small.store() / file, "gone")
    ran = command(capsys, *small.options(), *VERIFY, "--repair")
    assert ran.code == 3
    assert f"{', '.join(sorted(FILES))} made again ({small.store()})" in ran.out
    assert_mended(small, whole)


def test_the_other_splits_store_says_what_made_it_where_the_backbone_is_not_at_hand(
    small: Small, tmp_path: Path
) -> None:
    whole = content(small.store())
    damage(small.store() / HEAD, "cut")
    config = small.config(model__backbone_name=str(tmp_path / "nowhere"))
    assert rebuild_metadata(config, small.store()).files == [HEAD]
    assert_mended(small, whole)


def test_another_backbones_name_or_settings_make_nothing(
    small: Small, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.rmtree(small.store("test"))
    damage(small.store() / HEAD, "gone")
    before = files(small.store())
    for setting in (
        f"model.backbone_name={tmp_path / 'nowhere'}",
        "model.exact=true",
        "model.feature=pooler_output",
    ):
        ran = command(
            capsys, *small.options(), "--set", setting, *VERIFY, "--repair", "--store", small.store()
        )
        assert ran.code == 3, ran.err
        assert "can't be made again" in ran.out
        assert "--backbone" in ran.out
        assert files(small.store()) == before


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_import_is_known_by_its_name(small: Small, tmp_path: Path, dtype: str) -> None:
    from geo_embed.cache.exchange import cache_import

    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32))
    config = small.config(model__dtype=dtype, model__backbone_name="mine")
    path = cache_import(config, tmp_path / "x.npy", "train", "mine").store
    whole = content(path)
    for file in FILES:
        damage(path / file, "cut")
    with pytest.raises(GeoError, match="didn't make this store"):
        rebuild_metadata(small.config(model__backbone_name="another"), path)
    assert rebuild_metadata(config, path).files == sorted(FILES)
    now = content(path)
    assert verify(open_store(path)) == []
    # From which file it was imported nothing else knows.
    for source in ("source", "source_sha256", "source_made_by"):
        del whole["attrs"][source]  # type: ignore[attr-defined]
    assert now == whole


def test_a_csv_of_other_samples_makes_nothing(small: Small) -> None:
    table = small.table()
    for file in FILES:
        copy = small.copy(small.root.with_name(f"other-{file.replace('/', '-')}"))
        copy.write(table.iloc[[1, 0, 2, 3, 4]])
        damage(copy.store() / file, "gone")
        before = files(copy.store())
        with pytest.raises(GeoError, match="the CSV's samples are not those of this store"):
            rebuild_metadata(copy.config(), copy.store())
        assert files(copy.store()) == before
        # The CSV back, it is made.
        copy.write(table)
        assert rebuild_metadata(copy.config(), copy.store()).files == [file]


def test_samples_whose_picture_is_another_by_now_are_pending_again(small: Small) -> None:
    """The ids don't say which pictures a CSV named: they are looked at."""
    table = small.table()
    table.loc[[0, 1], "image_east"] = table.loc[[1, 0], "image_east"].to_numpy()
    small.write(table)
    damage(small.store() / HEAD, "gone")
    rebuilt = rebuild_metadata(small.config(), small.store())
    assert (rebuilt.files, rebuilt.forgotten) == ([HEAD], 2)
    assert (read_status(open_store(small.store())) == PENDING).all(axis=1).tolist() == [True] * 2 + [
        False
    ] * 3
    assert extract(small.config(), "train").computed == 8
    fresh = small.copy(small.root.with_name("fresh"))
    shutil.rmtree(fresh.cache)
    extract(fresh.config(), "train")
    assert content(small.store()) == content(fresh.store())


def test_three_views_text_ids_and_a_store_half_done(country: Country, tmp_path: Path) -> None:
    small = Small.cut(country, tmp_path / "three", train=5, test=1)
    small.write(small.table().assign(sample_id=[f"Ort-{k}é" for k in range(5)]))
    changes = {"model__view_names": ["north", "south", "west"], "model__dtype": "float32"}
    path = extract(small.config(**changes), "train", limit=3).store
    whole = content(path)
    for file in FILES:
        damage(path / file, "flipped")
    rebuild_metadata(small.config(**changes), path)
    assert content(path) == whole
    assert extract(small.config(**changes), "train").computed == 6


def test_where_nothing_was_committed_there_is_nothing_to_save(small: Small) -> None:
    for name in ("status", "content_hash", "embeddings"):
        shutil.rmtree(small.store() / name / "c")
    damage(small.store() / HEAD, "gone")
    with pytest.raises(GeoError, match="nothing was committed yet") as refused:
        rebuild_metadata(small.config(), small.store())
    assert "delete it" in refused.value.hint


def test_a_later_versions_store_is_left_alone(small: Small) -> None:
    head = small.store() / HEAD
    content = json.loads(head.read_text())
    content["attributes"]["format_version"] = 2
    head.write_text(json.dumps(content))
    before = files(small.store())
    with pytest.raises(GeoError, match="of a later version"):
        rebuild_metadata(small.config(), small.store())
    assert files(small.store()) == before


def test_what_is_in_order_is_left_as_it_is(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(small.store())
    assert rebuild_metadata(small.config(), small.store()).files == []
    assert files(small.store()) == before
    ran = command(capsys, *small.options(), "--json", *VERIFY, "--repair")
    assert (ran.code, ran.json["rebuilt"]) == (0, [])


@pytest.mark.parametrize(
    "lost", [[HEAD], ["token_mean/zarr.json"], [HEAD, "token_mean/zarr.json", "token_mean_hash/zarr.json"]]
)
def test_further_features_are_found_again_by_their_chunks(small: Small, lost: list[str]) -> None:
    config = small.config(model__features=("pooler_output", "token_mean"))
    extract(config, "train")
    whole = content(small.store())
    for file in lost:
        damage(small.store() / file, "gone")
    assert rebuild_metadata(config, small.store()).files == sorted(lost)
    assert_mended(small, whole)
    assert extract(config, "train").computed == 0


def test_a_feature_that_nothing_was_written_of_yet_is_left_out(small: Small) -> None:
    """The power went before its first chunk, and a file of its metadata is damaged."""
    whole = content(small.store())
    add_features(open_store(small.store()), {"token_mean": 64})
    damage(small.store() / "token_mean/zarr.json", "zeros")
    assert rebuild_metadata(small.config(), small.store()).files == [HEAD]
    assert_mended(small, whole)
