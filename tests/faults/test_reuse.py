"""What is in a picture decides whether it is computed: not its name, its row, or its split."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from small import Small, content

from geo_embed.cache.store import open_store, read_store, rewrite_attributes
from geo_embed.extraction.extract import Extraction, extract

if TYPE_CHECKING:
    from conftest import Country

PICTURES = 32


@pytest.fixture
def small(country: Country, tmp_path: Path) -> Small:
    """Eight places, extracted."""
    made = Small.cut(country, tmp_path / "small", chunk_rows=3)
    extract(made.config(), "train")
    return made


def again(small: Small, split: str = "train") -> Extraction:
    """Extract, and check the outcome against a store made from nothing."""
    done = extract(small.config(), split)
    whole = extract(small.config(paths__cache_dir=str(small.root / "whole")), split)
    assert content(done.store) == content(whole.store)
    assert [path.name for path in done.store.parent.iterdir() if path.name.startswith("train.zarr.")] == []
    return done


def counts(done: Extraction) -> tuple[int, int]:
    return done.computed, done.reused


def test_added_rows_are_all_that_is_computed(small: Small, country: Country) -> None:
    more = Small.cut(country, small.root / "more", train=11)
    for picture in more.images().iterdir():
        (small.images() / picture.name).write_bytes(picture.read_bytes())
    small.write(more.table().sample(frac=1, random_state=0))
    assert counts(again(small)) == (12, PICTURES)


def test_removed_rows_cost_nothing(small: Small) -> None:
    small.write(small.table().drop(index=[0, 4]))
    assert counts(again(small)) == (0, PICTURES - 8)


def test_reordered_rows_cost_nothing(small: Small) -> None:
    small.write(small.table().iloc[::-1])
    assert counts(again(small)) == (0, PICTURES)


def test_other_ids_cost_nothing(small: Small) -> None:
    small.write(small.table().assign(sample_id=[f"place-{k}" for k in range(8)]))
    assert counts(again(small)) == (0, PICTURES)


def test_renamed_pictures_cost_nothing(small: Small) -> None:
    table = small.table()
    (small.images() / "deeper").mkdir()
    for column in ("image_north", "image_west"):
        for row, name in enumerate(table[column]):
            table.loc[row, column] = f"deeper/{column} ümlaut {row}.jpeg"
            (small.images() / name).rename(small.images() / table[column][row])
    small.write(table)
    assert counts(again(small)) == (0, PICTURES)


def test_a_csv_moved_elsewhere_costs_nothing(small: Small) -> None:
    small.csv().rename(small.data / "renamed.csv")
    done = extract(small.config(paths__train_csv=str(small.data / "renamed.csv")), "train")
    assert counts(done) == (0, PICTURES)


def test_a_picture_replaced_on_disk_is_noticed_and_alone_computed(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_store(open_store(small.store())).values
    small.picture(3, "east").write_bytes(small.other_picture(0))
    assert counts(again(small)) == (1, PICTURES - 1)
    assert "view east changed on disk; what is the same is copied" in capsys.readouterr().err
    after = read_store(open_store(small.store())).values
    assert np.argwhere((before != after).any(axis=2)).tolist() == [[3, 1]]


def test_a_picture_of_the_same_length_and_age_is_noticed_too(small: Small) -> None:
    import os

    file = small.picture(0)
    old, stat = bytearray(file.read_bytes()), file.stat()
    old[len(old) // 2] ^= 1
    file.write_bytes(old)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert counts(again(small)) == (1, PICTURES - 1)


def test_two_pictures_that_swap_their_files_swap_their_embeddings(small: Small) -> None:
    before = read_store(open_store(small.store())).values
    first, second = small.picture(0), small.picture(6, "south")
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert counts(again(small)) == (0, PICTURES)
    after = read_store(open_store(small.store())).values
    assert (after[0, 0] == before[6, 2]).all()
    assert (after[6, 2] == before[0, 0]).all()


def test_everything_at_once_computes_only_what_is_new(small: Small, country: Country) -> None:
    more = Small.cut(country, small.root / "more", train=9)
    for picture in more.images().iterdir():
        (small.images() / picture.name).write_bytes(picture.read_bytes())
    small.picture(5).write_bytes(small.other_picture(5))
    small.write(more.table().iloc[[8, 5, 2, 3, 7, 0]])
    assert counts(again(small)) == (5, 19)


def test_pictures_of_the_train_split_are_not_computed_again_for_the_test_split(small: Small) -> None:
    for view in ("north", "south"):
        small.picture(2, view, "test").write_bytes(small.picture(5, view).read_bytes())
    assert counts(again(small, "test")) == (14, 2)


@pytest.mark.parametrize(
    "views", [["north", "east", "south"], ["west", "south", "east", "north"], ["south"]], ids=len
)
def test_pictures_of_a_store_of_other_views_are_not_computed_again(small: Small, views: list[str]) -> None:
    all_views = small.store()
    fewer = extract(small.config(model__view_names=views), "train")
    assert counts(fewer) == (0, 8 * len(views))
    anew = small.config(model__view_names=views, paths__cache_dir=str(small.root / "anew"))
    assert content(fewer.store) == content(extract(anew, "train").store)
    # And back: the store of all views is made anew from the other's.
    assert fewer.store.parent != all_views.parent
    shutil.rmtree(all_views.parent)
    assert counts(again(small)) == (8 * (4 - len(views)), 8 * len(views))


def test_a_store_of_other_views_made_otherwise_is_no_source(small: Small) -> None:
    """Another resize, another precision, and a store that leaves open what made it: each is computed for itself."""
    three = ["north", "east", "south"]
    store = open_store(small.store())
    for change in ({"model__exact": True}, {"model__dtype": "float32"}):
        assert counts(extract(small.config(model__view_names=three, **change), "train")) == (24, 0)
    rewrite_attributes(store, store.attrs | {"function": None})
    assert counts(extract(small.config(model__view_names=three), "train")) == (24, 0)


def test_the_earlier_store_stays_a_source_until_the_new_one_is_whole(small: Small) -> None:
    """An extraction over changed data is stopped half way, and then a changed picture comes back as it was."""
    data = small.picture(7).read_bytes()
    small.picture(7).write_bytes(small.other_picture(7))
    small.write(small.table().iloc[::-1])
    half = extract(small.config(), "train", limit=3)
    assert counts(half) == (1, 11)
    small.picture(0).write_bytes(data)
    assert counts(again(small)) == (0, PICTURES)


def test_a_picture_that_is_gone_takes_its_embedding_with_it(small: Small) -> None:
    """A store says of each picture what is on disk now."""
    small.picture(1).unlink()
    done = extract(small.config(inference__on_bad_image="skip"), "train")
    assert counts(done) == (0, PICTURES - 1)
    assert not read_store(open_store(done.store)).present[1, 0]
