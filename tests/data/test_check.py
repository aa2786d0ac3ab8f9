"""`geo data check` finds what is wrong with a split before anything is paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
