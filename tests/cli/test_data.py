"""`geo data check` for people: a finding that holds of thousands of pictures is not thousands of lines, and what mends it is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from small import Small, command

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Country


@pytest.fixture
def many(country: Country, tmp_path: Path) -> Small:
    return Small.cut(country, tmp_path / "many", train=60, test=4)


def test_of_one_kind_of_problem_the_first_are_told_and_the_others_are_counted(
    many: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in range(60):
        many.picture(row, "south").unlink()
    many.picture(3, "east").unlink()
    ran = command(capsys, *many.options(), "data", "check", "--split", "train")
    assert ran.code == 3
    lines = [line for line in ran.out.splitlines() if "column image_south" in line]
    assert len(lines) == 6
    assert lines[-1] == "… and 55 more missing-image in column image_south: --json names them all"
    assert [line for line in ran.out.splitlines() if "column image_east" in line]
    all_problems = command(capsys, "--json", *many.options(), "data", "check", "--split", "train")
    assert len(all_problems.json["problems"]) == 61


def test_a_view_without_any_picture_is_named_with_the_setting_that_leaves_it_out(
    many: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    many.write(many.table().assign(image_west=""))
    setting = """--set 'model.view_names=["north", "east", "south"]'"""
    ran = command(capsys, *many.options(), "data", "check", "--split", "train")
    assert ran.err.splitlines()[-1] == f"hint: no row has a picture of view west; {setting} leaves it out"
    refused = command(capsys, *many.options(), "extract", "--split", "train")
    assert refused.code == 1
    assert f"view west; {setting} leaves it out; or " in refused.err
    # So many would hide what is said of them all.
    assert sum("view west: the CSV names no image" in line for line in refused.err.splitlines()) == 50
    assert "error: 60 pictures can't be read, the first 50 listed above" in refused.err
    followed = command(
        capsys, *many.options(), *("--set", 'model.view_names=["north", "east", "south"]'), "data", "check"
    )
    assert (followed.code, "leaves it out" in followed.err) == (0, False)


def test_a_page_about_a_dataset_with_problems_tells_how_to_list_them_as_it_was_asked(
    many: Small, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    many.picture(0).unlink()
    ran = command(capsys, *many.options(), "data", "explore", "--out", tmp_path / "page.html")
    assert f"problems         1; {many.geo} data check lists them" in ran.out
