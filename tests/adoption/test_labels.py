"""Outlines: which one holds a place, which lies near, and what is no GeoJSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_embed.adoption.candidates import Ledger
from geo_embed.adoption.labels import read_outlines, with_labels
from geo_embed.errors import GeoError


def places(*points: tuple[float, float], split: str = "train") -> pd.DataFrame:
    latitude, longitude = np.array(points, dtype=float).T
    names = [str(k) for k in range(len(points))]
    return pd.DataFrame(
        {
            "where": names,
            "sample_id": names,
            "split": split,
            "label": "",
            "latitude": latitude,
            "longitude": longitude,
        }
    )


def square(west: float, south: float, side: float) -> list[list[float]]:
    return [
        [west, south],
        [west + side, south],
        [west + side, south + side],
        [west, south + side],
        [west, south],
    ]


def collection(path: Path, *shapes: tuple[dict[str, Any], list[Any]]) -> Path:
    features = [
        {"type": "Feature", "properties": named, "geometry": {"type": "Polygon", "coordinates": rings}}
        for named, rings in shapes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_holes_overlaps_and_shapes_of_one_name(tmp_path: Path) -> None:
    file = collection(
        tmp_path / "s.geojson",
        ({"name": "ring"}, [square(0, 0, 10), square(4, 4, 2)]),
        ({"name": "ring"}, [square(1, 1, 2)]),
        ({"name": "late"}, [square(0, 0, 10)]),
    )
    frame = with_labels(places((2, 2), (5, 5), (9, 1), (30, 30)), f"{file}", 0, Ledger())
    # Two polygons of one name that overlap don't cancel each other; where two names do, the first one has it.
    assert frame["label"].tolist() == ["ring", "late", "ring"]


def test_shapes_without_a_name_or_an_area_are_no_classes(tmp_path: Path) -> None:
    file = collection(
        tmp_path / "s.geojson",
        ({}, [square(0, 0, 10)]),
        ({"name": None}, [square(0, 0, 10)]),
        ({"name": ["a", "b"]}, [square(0, 0, 10)]),
        ({"name": "empty"}, []),
        ({"name": " here "}, [square(0, 0, 10)]),
    )
    assert with_labels(places((5, 5)), str(file), 0, Ledger())["label"].tolist() == ["here"]
    # The only property names the classes, be it a number.
    numbered = collection(tmp_path / "n.geojson", ({"code": 7}, [square(0, 0, 10)]))
    assert with_labels(places((5, 5)), str(numbered), 0, Ledger())["label"].tolist() == ["7"]


@pytest.mark.parametrize("point", [(5.0, 10.1), (10.2, 5.0), (-0.1, -0.1)])
def test_a_place_just_outside_belongs_to_the_nearest_and_one_farther_to_none(
    tmp_path: Path, point: tuple[float, float]
) -> None:
    file = collection(
        tmp_path / "s.geojson",
        ({"name": "here"}, [square(0, 0, 10)]),
        ({"name": "there"}, [square(20, 0, 10)]),
    )
    ledger = Ledger()
    frame = with_labels(places(point, (5.0, 10.4), (5.0, 24.0)), f"{file}:name", 0, ledger)
    assert frame["label"].tolist() == ["here", "there"]
    assert [(group["reason"], group["count"]) for group in ledger.counts()] == [("outside-outlines", 1)]


def test_an_outline_across_180_holds_places_of_both_signs(tmp_path: Path) -> None:
    file = collection(tmp_path / "s.geojson", ({"name": "fiji"}, [square(175, -20, 10)]))
    assert with_labels(places((-18, 178), (-18, -178)), str(file), 0, Ledger())["label"].tolist() == [
        "fiji",
        "fiji",
    ]


def test_a_coast_that_the_atlas_cuts_off_is_still_its_countrys() -> None:
    frame = with_labels(
        places((43.69, 7.27), (-34.36, 18.47), (64.15, -21.94), (21.3, -157.87)), "countries", 0, Ledger()
    )
    assert frame["label"].tolist() == ["France", "South Africa", "Iceland", "United States of America"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "JSON"),
        ('{"type": "Feature"}', "no FeatureCollection"),
        ('{"type": "FeatureCollection", "features": [{"properties": {"name": "a"}, "geometry": {"type": "Point", "coordinates": [1, 2]}}]}', "feature 1 has no polygons"),
        ('{"type": "FeatureCollection", "features": [{"properties": {"name": "a"}, "geometry": {"type": "Polygon", "coordinates": [[[500000, 4649776], [1, 2], [3, 4]]]}}]}', "feature 1 has no polygons"),
        ('{"type": "FeatureCollection", "features": [7]}', "which property|feature 1"),
        ('{"type": "FeatureCollection", "features": [{"properties": {"name": "a"}, "geometry": {"type": "Polygon", "coordinates": []}}]}', "none of its 1 shapes has an area"),
        ('{"type": "Topology", "objects": {}, "arcs": []}', "no FeatureCollection"),
        ('{"type": "FeatureCollection", "features": [{"properties": {"a": "x", "b": "y"}, "geometry": null}]}', "which property names a class"),
    ],
)  # fmt: skip
def test_what_is_no_geojson_of_polygons_in_degrees_is_refused(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "s.geojson").write_text(content)
    with pytest.raises(GeoError, match=why) as refused:
        read_outlines(tmp_path / "s.geojson", None)
    assert str(tmp_path) in refused.value.where


def test_cells_are_the_same_for_a_seed_and_hold_test_places_too() -> None:
    frame = pd.concat(
        [places(*((k % 5, 10.0 * (k // 5)) for k in range(20))), places((2, 31), split="test")],
        ignore_index=True,
    )
    first, again = (with_labels(frame, "cells:4", 0, Ledger())["label"] for _ in range(2))
    assert first.tolist() == again.tolist()
    assert first.nunique() <= 4
    assert first.iloc[-1] in set(first.iloc[15:20])
    with pytest.raises(GeoError, match="a single cell"):
        with_labels(frame, "cells:1", 0, Ledger())
