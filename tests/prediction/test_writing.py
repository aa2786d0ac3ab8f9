"""Tables as files: what is read back is what was written, a spreadsheet runs nothing, a map shows every point where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.errors import GeoError
from geo_embed.prediction.results import per_sample
from geo_embed.prediction.writing import write_table


def results(
    ids: Any = ("a", "b"),
    true: Any = ((40.0, -100.0), (50.0, 7.5)),
    predicted: Any = ((41.0, -101.0), (48.0, 2.25)),
    names: tuple[str, ...] = ("Iowa", "Ohio"),
) -> pd.DataFrame:
    (true_latitude, true_longitude), (latitude, longitude) = (
        np.asarray(points, dtype=float).T for points in (true, predicted)
    )
    count = len(true_latitude)
    encoder = LabelEncoder(np.arange(len(names)), names)
    shares = np.full((count, len(names)), 1 / len(names), dtype=np.float32)
    predictions = Predictions(np.array(ids, dtype=object), shares, latitude, longitude, encoder)
    return per_sample(predictions, Truth(np.zeros(count, dtype=np.int64), true_latitude, true_longitude))


def features(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.keys() == {"type", "features"}
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        assert feature.keys() == {"type", "geometry", "properties"}
        assert feature["type"] == "Feature"
    return list(content["features"])


def coordinates(path: Path, kind: str) -> list[Any]:
    return [
        feature["geometry"]["coordinates"]
        for feature in features(path)
        if feature["properties"]["kind"] == kind
    ]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "T.CSV", "new/folder/t.csv"])
def test_what_is_read_back_is_what_was_written(name: str) -> None:
    table, path = results(ids=("é", "<b>")), Path(name)
    write_table(path, table)
    read = pd.read_csv if path.suffix.lower() == ".csv" else pd.read_parquet
    pd.testing.assert_frame_equal(read(path), table, check_dtype=False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_text_that_a_spreadsheet_would_run_is_quoted_in_csv_and_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids = ("=1+1", "+x", "-1.5e3", "@SUM(A1)", "\tx", "a=b")
    table = results(ids, [(0, -1)] * 6, [(0, -2)] * 6, ('=HYPERLINK("x")', "Ohio"))
    write_table(Path("t.csv"), table)
    read = pd.read_csv("t.csv", dtype={"sample_id": str})
    assert list(read["sample_id"]) == ["'=1+1", "'+x", "-1.5e3", "'@SUM(A1)", "'\tx", "a=b"]
    assert set(read["true_state"]) == {'\'=HYPERLINK("x")'}
    assert set(read["true_longitude"]) == {-1.0}, "a number stays one"
    # Four ids; the state is the truth's and the first of six samples.
    assert "16 cells begin as a formula does" in capsys.readouterr().err
    write_table(Path("t.parquet"), table)
    assert list(pd.read_parquet("t.parquet")["sample_id"]) == list(ids)
    assert capsys.readouterr().err == ""


def test_on_a_map_each_sample_has_its_true_point_its_predicted_one_and_the_line_between() -> None:
    write_table(Path("t.geojson"), results())
    assert coordinates(Path("t.geojson"), "truth") == [[-100.0, 40.0], [7.5, 50.0]]
    assert coordinates(Path("t.geojson"), "prediction") == [[-101.0, 41.0], [2.25, 48.0]]
    assert coordinates(Path("t.geojson"), "error") == [
        [[-100.0, 40.0], [-101.0, 41.0]],
        [[7.5, 50.0], [2.25, 48.0]],
    ]
    line = features(Path("t.geojson"))[2]["properties"]
    assert line["sample_id"] == "a"
    assert (line["true_state"], line["state_1"], line["probability_2"]) == ("Iowa", "Iowa", 0.5)
    assert line["score"] == pytest.approx(0.7 + 0.3 * (1 - line["km"] / 5000), abs=1e-5)


@pytest.mark.parametrize(
    ("start", "end", "pieces"),
    [
        (170.0, -170.0, [[[170.0, 10.0], [180.0, 15.0]], [[-180.0, 15.0], [-170.0, 20.0]]]),
        (-175.0, 170.0, [[[-175.0, 10.0], [-180.0, 13.333333]], [[180.0, 13.333333], [170.0, 20.0]]]),
        (180.0, -170.0, [[[180.0, 10.0], [180.0, 10.0]], [[-180.0, 10.0], [-170.0, 20.0]]]),
    ],
)
def test_a_line_across_the_180th_meridian_is_cut_there(start: float, end: float, pieces: Any) -> None:
    write_table(Path("t.geojson"), results(["a"], [(10.0, start)], [(20.0, end)]))
    line = features(Path("t.geojson"))[2]["geometry"]
    assert line == {"type": "MultiLineString", "coordinates": pieces}


@pytest.mark.parametrize("edge", [180.0, -180.0])
def test_a_line_along_the_180th_meridian_stays_on_its_side_of_the_map(edge: float) -> None:
    write_table(Path("t.geojson"), results(["a"], [(10.0, edge)], [(20.0, -edge)]))
    line = features(Path("t.geojson"))[2]["geometry"]
    assert line == {"type": "LineString", "coordinates": [[edge, 10.0], [edge, 20.0]]}


def test_names_of_any_letters_are_only_text_on_a_map() -> None:
    ids = ['</script><script>alert("1")\n', "\\u0041 é 日本"]
    write_table(Path("t.geojson"), results(ids, names=("<img src=x>", "Ohio")))
    assert [row["properties"]["sample_id"] for row in features(Path("t.geojson"))[::3]] == ids
    assert features(Path("t.geojson"))[0]["properties"]["state"] == "<img src=x>"


def test_no_samples_make_whole_files() -> None:
    for name in ("t.csv", "t.parquet", "t.geojson"):
        write_table(Path(name), results().head(0))
    assert features(Path("t.geojson")) == []
    assert list(pd.read_csv("t.csv")) == list(results())


@pytest.mark.parametrize(
    ("name", "table", "what"),
    [
        ("t.xlsx", results(), r"written as \.csv, \.parquet, \.geojson, not as \.xlsx"),
        ("table", results(), "not as a file without an ending"),
        ("t.geojson", results()[["sample_id", "km"]], "no points to draw"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_nothing(name: str, table: pd.DataFrame, what: str) -> None:
    with pytest.raises(GeoError, match=what) as caught:
        write_table(Path(name), table)
    assert caught.value.hint
    assert list(Path().iterdir()) == []


def test_a_file_that_was_there_stays_where_the_new_one_fails() -> None:
    Path("t.geojson").write_text("mine")
    broken = results().assign(km=np.nan)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_table(Path("t.geojson"), broken)
    assert Path("t.geojson").read_text() == "mine"
