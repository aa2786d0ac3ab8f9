"""`geo data check` finds what is wrong with a split before anything is paid for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_embed.config import Config
from geo_embed.data.check import check_data

if TYPE_CHECKING:
    from conftest import Country


@pytest.mark.parametrize(("split", "samples"), [("train", 128), ("test", 32)])
@pytest.mark.parametrize("decode", [False, True])
def test_a_sound_split_has_no_problems(config: Config, split: str, samples: int, decode: bool) -> None:
    checked = check_data(config, split, decode=decode)
    assert (checked.split, checked.samples, checked.problems) == (split, samples, [])


def test_pictures_that_only_look_like_files_are_found_by_decoding(own: Country) -> None:
    images = own.data / "test_images"
    names = [f"img_00000{n}_north.jpg" for n in range(4)]
    (images / names[0]).write_bytes(b"")
    (images / names[1]).write_bytes((images / names[1]).read_bytes()[:200])
    (images / names[2]).write_text("<html>not found</html>")
    (images / names[3]).unlink()
    shallow = check_data(own.config(), "test").problems
    assert [problem.kind for problem in shallow] == ["missing-image"]
    deep = check_data(own.config(), "test", decode=True).problems
    assert [(p.kind, p.where.split(", ")[1]) for p in deep] == [
        ("missing-image", "sample 3"),
        ("unreadable-image", "sample 0"),
        ("unreadable-image", "sample 1"),
        ("unreadable-image", "sample 2"),
    ]
    for problem, name in zip(deep[1:], names, strict=False):
        assert name in problem.message
        assert problem.where == f"{own.template}, sample {name[9]}, column image_north"


def test_other_formats_and_modes_that_decode_are_no_problem(own: Country) -> None:
    picture = own.data / "test_images" / "img_000000_north.jpg"
    Image.new("L", (50, 70)).save(picture, format="PNG")
    assert check_data(own.config(), "test", decode=True).problems == []


def test_problems_of_the_table_and_of_the_pictures_are_told_together(own: Country) -> None:
    text = own.train_csv.read_text().splitlines()
    cells = text[3].split(",")
    cells[7] = "123"
    text[3] = ",".join(cells)
    own.train_csv.write_text("\n".join(text))
    (own.data / "train_images" / cells[2]).unlink()
    checked = check_data(own.config(), "train", decode=True)
    assert checked.samples == 128
    assert [problem.kind for problem in checked.problems] == ["range", "missing-image"]


def test_a_split_whose_table_cannot_be_read_has_that_one_problem(own: Country) -> None:
    own.train_csv.unlink()
    checked = check_data(own.config(), "train", decode=True)
    assert checked.samples == 0
    assert [problem.kind for problem in checked.problems] == ["missing-file"]
    # And the other split is not its business.
    assert check_data(own.config(), "test").problems == []


def test_a_check_changes_nothing(own: Country) -> None:
    def state() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in own.root.rglob("*"))

    before = state()
    check_data(own.config(), "train", decode=True)
    assert state() == before


# ---------------------------------------------------------------- the same picture in several samples


def put(own: Country, source: str, *targets: str, split: str = "train") -> None:
    """Give pictures the bytes of another one, of the training set."""
    data = (own.data / "train_images" / source).read_bytes()
    for target in targets:
        (own.data / f"{split}_images" / target).write_bytes(data)


def image(sample: int, view: str = "north") -> str:
    return f"img_{sample:06d}_{view}.jpg"


def test_a_picture_of_two_places_is_a_problem_that_says_how_far_apart_they_are(own: Country) -> None:
    table = pd.read_csv(own.train_csv)
    put(own, image(3), image(7, "west"))
    checked = check_data(own.config(), "train")
    (problem,) = checked.problems
    assert checked.warnings == []
    assert problem.kind == "duplicate-image"
    assert problem.where == f"{own.train_csv}, sample 3"
    # By the spherical law of cosines, instead of haversines.
    (a, b), (c, d) = np.radians(table.loc[[3, 7], ["latitude", "longitude"]].to_numpy())
    km = 6371 * np.arccos(np.sin(a) * np.sin(c) + np.cos(a) * np.cos(c) * np.cos(b - d))
    states = table.loc[[3, 7], "state_idx"].nunique()
    apart = f"{km:,.1f} km apart" + (", in 2 states" if states > 1 else "")
    assert problem.message == f"one picture is the same in samples 3, 7, {apart}"


def test_pictures_of_samples_at_one_place_are_a_warning_and_twice_in_a_sample_is_nothing(
    own: Country,
) -> None:
    table = pd.read_csv(own.train_csv, dtype=str)
    same = ["state", "state_idx", "latitude", "longitude"]
    table.loc[7, same] = table.loc[3, same]
    table.to_csv(own.train_csv, index=False)
    for view in ("north", "east", "south", "west"):
        put(own, image(3, view), image(7, view))
    put(own, image(5), image(5, "south"))
    checked = check_data(own.config(), "train")
    assert checked.problems == []
    (warning,) = checked.warnings
    assert warning.message == "4 pictures are the same in samples 3, 7, 0.0 km apart"
    # The same place, and another state: they contradict each other.
    other = (table["state_idx"] != table.loc[3, "state_idx"]).idxmax()
    table.loc[7, ["state", "state_idx"]] = table.loc[other, ["state", "state_idx"]]
    table.to_csv(own.train_csv, index=False)
    (problem,) = check_data(own.config(), "train").problems
    assert problem.message.endswith("0.0 km apart, in 2 states")


def test_a_picture_of_many_places_is_a_placeholder_and_no_problem(own: Country) -> None:
    put(own, image(0), *(image(n, "east") for n in range(20, 60)))
    checked = check_data(own.config(), "train")
    assert checked.problems == []
    (warning,) = checked.warnings
    assert warning.kind == "placeholder-image"
    assert "one picture is the same in samples 0, 20, 21 and 38 more" in warning.message


def test_many_duplicates_are_listed_shortly_and_counted(own: Country) -> None:
    for n in range(0, 60, 2):
        put(own, image(n), image(n + 1))
    problems = check_data(own.config(), "train").problems
    assert len(problems) == 21
    assert problems[-1].message == "and 10 more like these"


def test_a_test_picture_of_the_training_set_is_a_warning_of_the_test_split(own: Country) -> None:
    put(own, image(9), image(2), image(4, "west"), split="test")
    checked = check_data(own.config(), "test")
    assert checked.problems == []
    kinds = {warning.kind: warning for warning in checked.warnings}
    assert set(kinds) == {"duplicate-image", "train-test-overlap"}
    overlap = kinds["train-test-overlap"]
    assert overlap.message == (
        "2 of 32 samples have a picture that a training sample has, too: 2, 4 (the first one's is that of 9)"
    )
    assert overlap.where == str(own.template)
    # Files of one size and one middle that differ elsewhere are different pictures.
    data = (own.data / "train_images" / image(9)).read_bytes()
    (own.data / "test_images" / image(2)).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (own.data / "test_images" / image(4, "west")).write_bytes(data[:-1] + bytes([data[-1] ^ 2]))
    assert check_data(own.config(), "test").warnings == []


def test_a_pipe_in_a_pictures_place_is_not_waited_for(own: Country) -> None:
    for n in (1, 2):
        (own.data / "train_images" / image(n)).unlink()
        os.mkfifo(own.data / "train_images" / image(n))
    assert check_data(own.config(), "train").warnings == []


def test_two_files_too_large_for_pictures_are_not_read(own: Country) -> None:
    for n in (1, 2):
        with (own.data / "train_images" / image(n)).open("wb") as sparse:
            sparse.truncate(1 << 40)
    assert check_data(own.config(), "train").warnings == []
