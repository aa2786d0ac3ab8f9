"""Patterns of pictures' names, and the files of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from geo_embed.adoption.candidates import Ledger
from geo_embed.adoption.pictures import list_files, order_views, read_pattern
from geo_embed.errors import GeoError


@pytest.mark.parametrize(
    ("pattern", "name", "fields"),
    [
        ("{id}_{view}.jpg", "a/b/img_000000_north.JPG", {"id": "img_000000", "view": "north"}),
        ("{view}_{id}.jpg", "north_img_0.jpg", {"id": "img_0", "view": "north"}),
        ("{class}/*/{id}.png", "x/y/z.png", {"class": "x", "id": "z"}),
        ("{view}/{id}.*", "90/7.jpeg", {"view": "90", "id": "7"}),
        ("{id}.jpg", "a.b(1)+.jpg", {"id": "a.b(1)+"}),
        ("{class}/{id}.jpg", "z.jpg", None),
        ("{id}.jpg", "zxjpg", None),
    ],
)
def test_a_pattern_takes_names_apart(pattern: str, name: str, fields: dict[str, str] | None) -> None:
    assert read_pattern(pattern, ()).match(name) == fields


def test_views_that_are_named_are_the_only_ones() -> None:
    pattern = read_pattern("{id}_{view}.jpg", ("far_left", "left"))
    assert pattern.match("7_far_left.jpg") == {"id": "7", "view": "far_left"}
    assert pattern.match("7_right.jpg") is None


@pytest.mark.parametrize("wrong", ["{view}.jpg", "{id}_{id}.jpg", "{id}_{heading}.jpg", "plain"])
def test_a_pattern_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(GeoError, match=r"a pattern has \{id\} once"):
        read_pattern(wrong, ())


def test_views_are_ordered_by_the_compass_or_by_number() -> None:
    assert order_views(["w", "N", "e", "w"]) == ("N", "e", "w")
    assert order_views(["270", "0", "90"]) == ("0", "90", "270")
    assert order_views(["up", "down"]) == ("up", "down")


def test_files_are_found_through_links_but_never_in_circles(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.jpg").write_bytes(b"a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / ".hidden.jpg").write_bytes(b"b")
    (tmp_path / "data" / "gone.jpg").symlink_to(tmp_path / "nothing")
    assert list_files(tmp_path / "data", Ledger()) == ["linked/a.jpg"]
