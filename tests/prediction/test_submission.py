"""A submission follows the template by id, speaks the data's own indices, and is checked like the competition would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from small import Small, saved_predictions

from geo_embed.answers import LabelEncoder, Predictions
from geo_embed.cache.store import content_digest, open_store
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.prediction.predict import predict_split
from geo_embed.prediction.submission import Verdict, fill_template, submit, validate
from geo_embed.runs.run import Run
from geo_embed.runs.table import read_stores
from geo_embed.settings import get_config

if TYPE_CHECKING:
    from conftest import Country

STATES = [f"predicted_state_idx_{rank}" for rank in range(1, 6)]
COLUMNS = ["sample_id", *STATES, "predicted_latitude", "predicted_longitude"]
IMAGES = [f"image_{view}" for view in ("north", "east", "south", "west")]
LABELS = LabelEncoder(np.array([3, 8, 20, 41, 42, 49]), ("A", "B", "C", "D", "E", "F"))


# ---------------------------------------------------------------- written


def some_predictions(ids: list[str]) -> Predictions:
    """Sample k of `ids` is most surely of class k, and lies at latitude 30 + k."""
    n = len(ids)
    probabilities = np.full((n, 6), 0.05, dtype=np.float32)
    for k in range(n):
        for rank, share in enumerate((0.5, 0.2, 0.12, 0.08, 0.06)):
            probabilities[k, (k + rank) % 6] = share
        probabilities[k, (k + 5) % 6] = 0.04
    return Predictions(
        np.array(ids, dtype=object), probabilities, 30.0 + np.arange(n), -100.0 - np.arange(n), LABELS
    )


def test_rows_follow_the_template_by_id_and_never_by_position() -> None:
    template = pd.DataFrame({"sample_id": ["z9", "a1", "m5"]} | {name: ["0"] * 3 for name in COLUMNS[1:]})
    table = fill_template(template, some_predictions(["a1", "m5", "extra", "z9"]))
    assert table["sample_id"].tolist() == ["z9", "a1", "m5"]
    assert table["predicted_latitude"].tolist() == [33, 30, 31]
    assert table["predicted_longitude"].tolist() == [-103, -100, -101]
    assert table[STATES].to_numpy().tolist() == [
        [41, 42, 49, 3, 8],
        [3, 8, 20, 41, 42],
        [8, 20, 41, 42, 49],
    ]


def test_other_columns_and_their_order_are_the_templates() -> None:
    template = pd.DataFrame(
        {
            "note": ["7,5", ""],
            "predicted_longitude": ["", ""],
            **{name: ["", ""] for name in STATES},
            "sample_id": ["b", "a"],
            "predicted_latitude": ["", ""],
            "image_north": ["007.jpg", "x"],
        }
    )
    table = fill_template(template, some_predictions(["a", "b"]))
    assert list(table) == list(template)
    assert table["note"].tolist() == ["7,5", ""]
    assert table["image_north"].tolist() == ["007.jpg", "x"]


def test_fewer_classes_than_ranks_leave_the_last_ranks_open() -> None:
    labels = LabelEncoder(np.array([3, 8, 20]), ("A", "B", "C"))
    predictions = Predictions(
        np.array(["a"], dtype=object),
        np.array([[0.2, 0.5, 0.3]], dtype=np.float32),
        np.ones(1),
        np.ones(1),
        labels,
    )
    template = pd.DataFrame({name: ["a" if name == "sample_id" else ""] for name in COLUMNS})
    assert fill_template(template, predictions)[STATES].to_numpy().tolist() == [[8, 20, 3, -1, -1]]


def test_a_sample_of_the_template_without_a_prediction_is_an_error() -> None:
    template = pd.DataFrame({name: ["a", "b"] for name in COLUMNS})
    with pytest.raises(GeoError, match=r"1 samples of the template have no prediction, 'b' first") as caught:
        fill_template(template, some_predictions(["a"]))
    assert "geo predict --split test" in caught.value.hint


def test_a_run_without_test_predictions_makes_them_and_the_file_holds_them(config: Config, run: Run) -> None:
    path, verdict = submit(config, run)
    assert path == config.paths.submissions_dir / "first.csv"
    assert verdict == Verdict(rows=32)
    predictions, _ = saved_predictions(run.path / "test_predictions.parquet")
    written = pd.read_csv(path)
    assert list(written) == list(pd.read_csv(config.paths.csv("test")))
    assert written["sample_id"].astype(str).tolist() == predictions.sample_id.tolist()
    # To the last digit: what is read back is what was predicted.
    assert (written["predicted_latitude"].to_numpy() == predictions.latitude).all()
    assert (written["predicted_longitude"].to_numpy() == predictions.longitude).all()
    ranked = np.argsort(-predictions.probabilities, axis=1, kind="stable")[:, :5]
    assert (written[STATES].to_numpy() == run.labels.state_idx[ranked]).all()
    assert set(written[STATES].to_numpy().ravel()) <= set(run.labels.state_idx.tolist())


def test_a_template_in_another_order_than_the_store_gets_each_samples_own_answer(
    own: Country, run: Run
) -> None:
    """The template was shuffled after its pictures were extracted, and predictions were made."""
    config = own.config()
    by_id = pd.read_csv(submit(config, run)[0], dtype=str, index_col="sample_id")
    template = pd.read_csv(own.template, dtype=str)
    shuffled = template.sample(frac=1, random_state=1)
    assert shuffled["sample_id"].tolist() != template["sample_id"].tolist()
    shuffled.to_csv(own.template, index=False)
    path, verdict = submit(config, run)
    assert verdict.valid
    written = pd.read_csv(path, dtype=str, index_col="sample_id")
    assert written.index.tolist() == shuffled["sample_id"].tolist()
    pd.testing.assert_frame_equal(written.loc[by_id.index], by_id)


def test_a_template_with_bom_crlf_blank_lines_and_a_column_of_its_own_is_filled_like_any_other(
    own: Country, run: Run
) -> None:
    usual = pd.read_csv(submit(own.config(), run)[0], dtype=str)
    lines = own.template.read_text().splitlines()
    wild = [lines[0] + ",my note", *(f'{line},"a, b"' for line in lines[1:]), "", ",,"]
    own.template.write_bytes("\ufeff".encode() + "\r\n".join(wild).encode())
    path, verdict = submit(own.config(), run)
    assert verdict == Verdict(rows=32)
    assert path.read_bytes().startswith(b"sample_id,")
    written = pd.read_csv(path, dtype=str)
    assert (written.pop("my note") == "a, b").all()
    pd.testing.assert_frame_equal(written, usual)


def test_string_ids_in_any_order_go_all_the_way(own: Country, run: Run) -> None:
    template = pd.read_csv(own.template, dtype=str)
    before = pd.read_csv(submit(own.config(), run)[0], dtype=str)
    template["sample_id"] = [f"{n:03d}x" for n in range(len(template))]
    template.iloc[::-1].to_csv(own.template, index=False)
    (run.path / "test_predictions.parquet").unlink()
    assert extract(own.config(), "test").computed == 0
    path, verdict = submit(own.config(), run)
    assert verdict == Verdict(rows=32)
    after = pd.read_csv(path, dtype=str)
    assert after["sample_id"].tolist() == template["sample_id"].tolist()[::-1]
    pd.testing.assert_frame_equal(
        after[COLUMNS[1:]], before[COLUMNS[1:]].iloc[::-1].reset_index(drop=True), check_exact=True
    )


def test_predictions_of_other_samples_are_made_again(own: Country, run: Run) -> None:
    predictions, _ = predict_split(own.config(), run, "test")
    path = run.path / "test_predictions.parquet"
    table = pd.read_parquet(path).iloc[:-1]
    table.to_parquet(path)
    submit(own.config(), run)
    assert len(pd.read_parquet(path)) == len(predictions.sample_id)


def test_out_names_the_file_and_its_folder_is_made(config: Config, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "mine.csv"
    assert submit(config, run, out)[0] == out
    assert [path.name for path in out.parent.iterdir()] == ["mine.csv"]
    assert not config.paths.submissions_dir.exists()


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("sample_id,predicted_latitude\n1,2\n", "missing column 'predicted_state_idx_1'"),
        (",".join(COLUMNS) + "\n1,0,0,0,0,0,0,0\n1,0,0,0,0,0,0,0\n", r"sample_id '1' is repeated \(row 3\)"),
        (",".join(COLUMNS) + "\n1,0,0,0,0,0,0,0\n", "lacks the columns 'image_north', 'image_east',"),
        (",".join([*COLUMNS, *IMAGES[:3]]) + "\n1,0,0,0,0,0,0,0,a,b,c\n", "lacks the column 'image_west'"),
        (",".join([*COLUMNS, *IMAGES]) + "\n", "a header but no rows"),
        (",".join([*COLUMNS, *IMAGES]) + "\n,0,0,0,0,0,0,0,a,b,c,d\n", "row 2 has no sample_id"),
        (
            ",".join([*COLUMNS, *IMAGES, "note", "note"]) + "\n",
            "columns 13 and 14 have the same name, 'note'",
        ),
        (";".join([*COLUMNS, *IMAGES]) + "\n1;0;0;0;0;0;0;0;a;b;c;d\n", "separated by semicolons"),
    ],
)
def test_a_template_that_is_none_is_refused(own: Country, run: Run, template: str, what: str) -> None:
    own.template.write_text(template)
    with pytest.raises(GeoError, match=what) as caught:
        submit(own.config(), run)
    assert caught.value.where == str(own.template)


# ---------------------------------------------------------------- validated

Check = Callable[..., Verdict]
GOOD = {
    "sample_id": ["b", "a", "007"],
    **{name: [f"{n}.jpg" for n in range(3)] for name in IMAGES},
    **{name: [str(n + rank) for n in (0, 8, 20)] for rank, name in enumerate(STATES)},
    "predicted_latitude": ["40.5", "18", "72"],
    "predicted_longitude": ["-100.25", "-180", "-65"],
}


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Validate GOOD with some cells changed: {(row, column): text}."""
    data = tmp_path / "data"
    data.mkdir()
    template = pd.DataFrame(
        {"sample_id": ["007", "a", "b"]} | {name: [""] * 3 for name in [*COLUMNS[1:], *IMAGES]}
    )
    template.to_csv(data / "sample_submission.csv", index=False)
    states = pd.DataFrame({"state_idx": range(30), "state": [f"State {n}" for n in range(30)]})
    states.to_csv(data / "state_mapping.csv", index=False)
    box = {"lat_min": 18, "lat_max": 72, "lon_min": -180, "lon_max": -65}

    def validated(
        cells: dict[tuple[int, str], str] | None = None,
        table: pd.DataFrame | None = None,
        region: dict[str, float] | None = None,
    ) -> Verdict:
        config = get_config(**{"paths.data_root": data}, model={"gps_box": box if region is None else region})
        table = pd.DataFrame(GOOD) if table is None else table
        for (row, column), text in (cells or {}).items():
            table.loc[row, column] = text
        table.to_csv(tmp_path / "mine.csv", index=False)
        return validate(config, tmp_path / "mine.csv")

    return validated


def test_a_good_file_is_valid_without_a_warning(check: Check) -> None:
    assert check() == Verdict(rows=3, errors=[], warnings=[])


def test_row_order_column_order_and_extra_columns_don_t_matter(check: Check) -> None:
    table = pd.DataFrame(GOOD).iloc[::-1][[*COLUMNS[::-1], *IMAGES[::-1]]].assign(note="x")
    assert check(table=table) == Verdict(rows=3)


def test_bom_crlf_and_blank_lines_don_t_matter(check: Check, tmp_path: Path) -> None:
    check()
    text = (tmp_path / "mine.csv").read_text()
    (tmp_path / "mine.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    assert validate(get_config(**{"paths.data_root": tmp_path / "data"}), tmp_path / "mine.csv") == Verdict(
        rows=3
    )


def test_too_few_rows_and_the_missing_id_are_told(check: Check) -> None:
    verdict = check(table=pd.DataFrame(GOOD).iloc[:2])
    assert verdict.errors == [
        "2 rows, where the template has 3",
        "1 sample_ids of the template are missing: '007'",
    ]
    assert verdict.rows == 2
    assert not verdict.valid


def test_an_id_too_many_is_told_with_its_row(check: Check) -> None:
    table = pd.concat([pd.DataFrame(GOOD), pd.DataFrame(GOOD).iloc[:1].assign(sample_id="zzz")])
    assert check(table=table).errors == [
        "4 rows, where the template has 3",
        "1 row with a sample_id that isn't in the template: 'zzz' (row 5)",
    ]


def test_a_repeated_id_is_told_beside_the_one_it_displaced(check: Check) -> None:
    assert check({(1, "sample_id"): "b"}).errors == [
        "1 row with a sample_id that an earlier row has: 'b' (row 3)",
        "1 sample_ids of the template are missing: 'a'",
    ]


def test_an_id_without_its_leading_zeros_is_another_id(check: Check) -> None:
    assert check({(2, "sample_id"): "7"}).errors == [
        "1 row with a sample_id that isn't in the template: '7' (row 4)",
        "1 sample_ids of the template are missing: '007'",
    ]


@pytest.mark.parametrize("text", ["7", "7.0", "07", "\ufeff007", "'007'"])
def test_an_id_that_a_program_has_changed_is_said_to_be_one(check: Check, text: str) -> None:
    verdict = check({(2, "sample_id"): text})
    assert not verdict.valid
    (warning,) = verdict.warnings
    assert "keep ids as text" in warning
    assert "(row 4)" in warning


def test_ids_that_differ_in_how_accents_are_written_are_other_ids_and_are_said_to_be(
    check: Check, tmp_path: Path
) -> None:
    check()
    for path in (tmp_path / "data" / "sample_submission.csv", tmp_path / "mine.csv"):
        path.write_text(
            path.read_text().replace("007", "Qu\u00e9bec" if "mine" in path.name else "Que\u0301bec")
        )
    verdict = validate(get_config(**{"paths.data_root": tmp_path / "data"}), tmp_path / "mine.csv")
    assert len(verdict.errors) == 2
    assert any("keep ids as text" in warning for warning in verdict.warnings)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("12,5", "write it with a decimal point: 12.5"),
        ("\u221212.5", "its minus sign is another character than the keyboard's hyphen '-'"),
        ("\u221212,5", "and it has a decimal comma: write a point"),
        ("1,234.5", "without separators between the thousands"),
        ("40°26'46\"N", "write decimal degrees"),
        ("0x10", "write it as a decimal number"),
        ("nan", "every row needs a finite number"),
    ],
)
def test_a_number_that_is_written_in_another_way_is_refused_with_advice(
    check: Check, text: str, advice: str
) -> None:
    verdict = check({(1, "predicted_latitude"): text})
    assert "is not a number" in verdict.errors[0]
    assert advice in verdict.warnings[0]


def test_a_dataset_of_other_views_than_the_settings_name_is_validated_by_its_own(
    check: Check, tmp_path: Path
) -> None:
    check()
    for path in (tmp_path / "data" / "sample_submission.csv", tmp_path / "mine.csv"):
        table = pd.read_csv(path, dtype=str).drop(columns=IMAGES[1:])
        table.rename(columns={"image_north": "image_dashcam"}).to_csv(path, index=False)
    config = get_config(**{"paths.data_root": tmp_path / "data"})
    assert validate(config, tmp_path / "mine.csv").errors == []
    table.to_csv(tmp_path / "mine.csv", index=False)
    (error,) = validate(config, tmp_path / "mine.csv").errors
    assert "missing column 'image_dashcam'" in error


def test_a_row_without_an_id_is_told(check: Check) -> None:
    assert "1 row without a sample_id (row 2)" in check({(0, "sample_id"): ""}).errors


@pytest.mark.parametrize("column", [*COLUMNS, *IMAGES])
def test_a_missing_column_is_told(check: Check, column: str) -> None:
    (error,) = check(table=pd.DataFrame(GOOD).drop(columns=column)).errors
    assert f"missing column '{column}'" in error


@pytest.mark.parametrize("text", ["", "-1"])
def test_rank_one_must_be_given(check: Check, text: str) -> None:
    verdict = check({(1, "predicted_state_idx_1"): text})
    assert verdict.errors == ["1 row without predicted_state_idx_1 (row 3)"]


@pytest.mark.parametrize("column", STATES[1:])
@pytest.mark.parametrize("text", ["", "-1"])
def test_ranks_two_to_five_may_stay_open(check: Check, column: str, text: str) -> None:
    assert check({(1, column): text, (2, column): text}) == Verdict(rows=3)


@pytest.mark.parametrize("column", STATES)
@pytest.mark.parametrize("text", ["50", "-2", "1000000"])
def test_a_state_outside_0_to_49_is_refused_at_every_rank(check: Check, column: str, text: str) -> None:
    verdict = check({(2, column): text})
    assert verdict.errors == [f"1 row where {column} lies outside [0, 49]: '{text}' (row 4)"]


@pytest.mark.parametrize("column", STATES)
@pytest.mark.parametrize("text", ["Texas", "1.5", "nan", "inf", "1,2"])
def test_a_state_that_is_no_whole_number_is_refused_at_every_rank(
    check: Check, column: str, text: str
) -> None:
    assert check({(0, column): text}).errors == [
        f"1 row where {column} is not a whole number: '{text}' (row 2)"
    ]


@pytest.mark.parametrize("text", ["0", "49", "7.0"])
def test_states_at_the_edges_are_fine(check: Check, text: str) -> None:
    assert check({(2, "predicted_state_idx_1"): text}).errors == []


def test_a_state_in_range_that_the_mapping_lacks_is_a_warning(check: Check) -> None:
    verdict = check({(0, "predicted_state_idx_3"): "35"})
    assert verdict.valid
    (warning,) = verdict.warnings
    assert "predicted_state_idx_3 is no state of the mapping" in warning
    assert "'35' (row 2)" in warning


@pytest.mark.parametrize(("column", "bound"), [("predicted_latitude", 90), ("predicted_longitude", 180)])
def test_a_coordinate_that_is_none_is_refused(check: Check, column: str, bound: int) -> None:
    assert check({(0, column): ""}).errors == [f"1 row without {column} (row 2)"]
    for text in ("NaN", "inf", "-inf", "north", "1,5"):
        assert check({(0, column): text}).errors == [
            f"1 row where {column} is not a number: '{text}' (row 2)"
        ]
    for text in (f"{bound}.001", f"-{bound + 1}", "1e9"):
        assert check({(0, column): text}).errors == [
            f"1 row where {column} lies outside [-{bound}, {bound}]: '{text}' (row 2)"
        ]


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [("17.9", "-100"), ("72.1", "-100"), ("40", "-64.9"), ("40", "2.35"), ("-90", "180")],
)
def test_a_point_outside_the_us_is_a_warning(check: Check, latitude: str, longitude: str) -> None:
    verdict = check({(1, "predicted_latitude"): latitude, (1, "predicted_longitude"): longitude})
    assert verdict.valid
    assert verdict.warnings == [
        "1 row with a point outside the region (latitude 18…72, longitude -180…-65) (row 3)"
    ]


def learn(data: Path, *places: tuple[float, float]) -> None:
    """A train CSV with samples at these places."""
    rows = [
        f"{n},n.jpg,e.jpg,s.jpg,w.jpg,State 0,0,{latitude},{longitude}"
        for n, (latitude, longitude) in enumerate(places)
    ]
    header = "sample_id,image_north,image_east,image_south,image_west,state,state_idx,latitude,longitude"
    (data / "train_ground_truth.csv").write_text("\n".join([header, *rows]) + "\n")


def at(*points: tuple[float, float]) -> dict[tuple[int, str], str]:
    """Cells of GOOD with these points."""
    names = ("predicted_latitude", "predicted_longitude")
    return {
        (row, name): str(x) for row, point in enumerate(points) for name, x in zip(names, point, strict=True)
    }


OUTSIDE = "with a point outside the region"


def test_the_region_is_that_of_the_training_places_and_a_twentieth_more(check: Check, tmp_path: Path) -> None:
    learn(tmp_path / "data", (10, 20), (20, 40))
    assert check(at((9.5, 19), (20.5, 41), (15, 30)), region={}) == Verdict(rows=3)
    for point in ((9.4, 30), (20.6, 30), (15, 18.9), (15, 41.1), (15, -150)):
        (warning,) = check(at((15, 30), point, (15, 30)), region={}).warnings
        assert warning == f"1 row {OUTSIDE} (latitude 9.5…20.5, longitude 19…41) (row 3)"


def test_a_region_across_the_antimeridian_has_both_of_its_sides_and_not_the_rest(
    check: Check, tmp_path: Path
) -> None:
    learn(tmp_path / "data", (50, 170), (60, -170))
    assert check(at((55, 179), (55, -179), (50, -170)), region={}) == Verdict(rows=3)
    assert check(at((55, 180), (55, -180), (50, 169.5)), region={}).warnings == []
    (warning,) = check(at((55, 0), (55, 168), (55, -168)), region={}).warnings
    assert warning == f"3 rows {OUTSIDE} (latitude 49.5…60.5, longitude 169…191) (row 2, 3, 4)"


@pytest.mark.parametrize(
    ("name", "west", "east", "inside", "outside"),
    [
        ("Fiji", 176, -178, (177, 180, -179), (175, -177, 0)),
        ("Alaska", 172, -130, (173, -180, -131), (171, -129, 90)),
        ("Chukotka", 158, -169, (158, 179.9, -169), (157, -168, -90)),
    ],
)
def test_a_region_that_is_given_across_180_warns_of_what_lies_outside_alone(
    check: Check,
    name: str,
    west: float,
    east: float,
    inside: tuple[float, float, float],
    outside: tuple[float, float, float],
) -> None:
    region = {"lat_min": 0, "lat_max": 80, "lon_min": west, "lon_max": east}
    assert check(at(*((60, x) for x in inside)), region=region) == Verdict(rows=3), name
    (warning,) = check(at(*((60, x) for x in outside)), region=region).warnings
    assert warning.startswith(f"3 rows {OUTSIDE}"), name


def test_predictions_beyond_a_pole_of_an_earlier_version_are_written_as_points_that_there_are() -> None:
    predictions = some_predictions(["a", "b"])
    predictions.latitude[:], predictions.longitude[:] = [94.5, 40.25], [-100.1, 190.5]
    template = pd.DataFrame({name: ["a", "b"] for name in COLUMNS})
    table = fill_template(template, predictions)
    assert table["predicted_latitude"].tolist() == [90, 40.25]
    assert table["predicted_longitude"].tolist() == [-100.1, -169.5]


def test_an_edge_that_is_given_stands_and_the_others_come_from_the_training_places(
    check: Check, tmp_path: Path
) -> None:
    learn(tmp_path / "data", (10, 20), (20, 40))
    points = at((-30, 30), (15, 30), (15, 30))
    assert OUTSIDE in check(points, region={}).warnings[0]
    assert check(points, region={"lat_min": -31}).warnings == []
    (warning,) = check(at((-32, 30), (15, 42), (15, 30)), region={"lat_min": -31}).warnings
    assert warning == f"2 rows {OUTSIDE} (latitude -31…20.5, longitude 19…41) (row 2, 3)"


@pytest.mark.parametrize("damage", ["absent", "no csv", "a wrong row"])
def test_where_the_training_places_can_t_be_read_no_region_is_claimed(
    check: Check, tmp_path: Path, damage: str
) -> None:
    learn(tmp_path / "data", (10, 20), (20, 40))
    csv = tmp_path / "data" / "train_ground_truth.csv"
    if damage == "absent":
        csv.unlink()
    elif damage == "no csv":
        csv.write_text("")
    else:
        csv.write_text(csv.read_text().replace("40\n", "north\n"))
    assert check(at((-90, 0), (90, 180), (0, 0)), region={}) == Verdict(rows=3)
    # Only the region is given up, not the check.
    assert not check(at((-91, 0), (90, 180), (0, 0)), region={}).valid
    # And settings that name all four edges need no training places.
    assert check(at((-90, 0), (60, -100), (60, -100))).warnings == [
        f"1 row {OUTSIDE} (latitude 18…72, longitude -180…-65) (row 2)"
    ]


def test_the_training_pictures_need_not_be_there(check: Check, tmp_path: Path) -> None:
    learn(tmp_path / "data", (10, 20), (20, 40))
    assert not (tmp_path / "data" / "train_images").exists()
    assert len(check(at((0, 0), (15, 30), (15, 30)), region={}).warnings) == 1


def test_a_repeated_state_is_a_warning(check: Check) -> None:
    verdict = check({(0, "predicted_state_idx_4"): "0", (2, "predicted_state_idx_5"): "22"})
    assert verdict.valid
    assert verdict.warnings == ["2 rows with a repeated state; it counts only at its first place (row 2, 4)"]


def test_open_ranks_are_no_repeated_states(check: Check) -> None:
    assert check({(0, STATES[2]): "-1", (0, STATES[3]): "-1", (0, STATES[4]): ""}).warnings == []


def test_every_kind_of_error_is_told_at_once_and_long_lists_are_cut_short(
    tmp_path: Path, check: Check
) -> None:
    many = pd.DataFrame({name: [GOOD[name][0]] * 40 for name in GOOD}).assign(
        sample_id=[f"x{n}" for n in range(40)], predicted_state_idx_2="99", predicted_latitude="x"
    )
    verdict = check(table=many)
    assert len(verdict.errors) == 5
    assert any(
        "40 rows where predicted_state_idx_2 lies outside [0, 49]: '99', '99', '99', …" in e
        for e in verdict.errors
    )
    assert max(map(len, verdict.errors)) < 160


def test_an_empty_file_and_one_without_rows_are_refused(check: Check, tmp_path: Path) -> None:
    assert not check(table=pd.DataFrame(GOOD).iloc[:0]).valid
    (tmp_path / "mine.csv").write_text("")
    assert validate(get_config(**{"paths.data_root": tmp_path / "data"}), tmp_path / "mine.csv").errors == [
        "the file is empty"
    ]


def test_a_file_that_is_not_there_is_an_error_not_a_verdict(config: Config, tmp_path: Path) -> None:
    with pytest.raises(GeoError, match="there is no such submission") as caught:
        validate(config, tmp_path / "absent.csv")
    assert caught.value.where == str(tmp_path / "absent.csv")


def test_a_country_with_larger_indices_may_use_them(check: Check, tmp_path: Path) -> None:
    (tmp_path / "data" / "state_mapping.csv").write_text("state_idx,state\n0,A\n77,B\n")
    verdict = check({(0, STATES[0]): "77", (1, STATES[0]): "78"})
    assert verdict.errors == ["1 row where predicted_state_idx_1 lies outside [0, 77]: '78' (row 3)"]


def test_the_check_after_writing_uses_the_box_of_the_settings(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    model = config.model.model_copy(update={"gps_box": replace_box(config, lat_min=-10, lat_max=-5)})
    assert len(validate(config.model_copy(update={"model": model}), path).warnings) == 1


def replace_box(config: Config, **edges: float) -> object:
    return type(config.model.gps_box)(**(config.model.gps_box.model_dump() | edges))


# ---------------------------------------------------------------- stale predictions


@pytest.fixture
def cut(country: Country, run: Run, tmp_path: Path) -> Small:
    """A few of the country's places, with the test split extracted."""
    small = Small.cut(country, tmp_path / "small", train=0, test=4)
    extract(small.config(), "test")
    return small


def set_every_time(*folders: Path) -> None:
    """One second, long past, for every file and folder."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (10**9, 10**9))


def test_predictions_are_kept_or_made_anew_by_the_caches_content_and_not_by_the_clock(
    cut: Small, run: Run
) -> None:
    config, table = cut.config(), run.path / "test_predictions.parquet"
    path, _ = submit(config, run)
    before, made = pd.read_csv(path, dtype=str), table.stat().st_ino
    set_every_time(cut.cache, run.path)

    submit(config, run)
    assert table.stat().st_ino == made
    # A store that is newer, with the same in it.
    for file in cut.cache.rglob("*"):
        os.utime(file)
    submit(config, run)
    assert table.stat().st_ino == made

    cut.picture(2, "east", "test").write_bytes(cut.other_picture(0))
    assert extract(config, "test").computed == 1
    set_every_time(cut.cache, run.path)
    submit(config, run)
    assert table.stat().st_ino != made
    after = pd.read_csv(path, dtype=str)
    changed = (before[COLUMNS] != after[COLUMNS]).any(axis=1)
    assert changed.tolist() == [False, False, True, False]
    expected = predict_split(config, run, "test")[0]
    assert after["predicted_latitude"].astype(float).tolist() == expected.latitude.tolist()


def test_a_table_that_does_not_tell_what_it_was_made_from_is_made_again_if_it_can_be(
    cut: Small, run: Run
) -> None:
    config, table = cut.config(), run.path / "test_predictions.parquet"
    submit(config, run)
    # As an earlier version wrote it, with answers that give away their use.
    pd.read_parquet(table).assign(latitude=12.5).to_parquet(table)
    kept = table.read_bytes()
    assert read_stores(table) is None
    path, _ = submit(config, run)
    assert (pd.read_csv(path)["predicted_latitude"] != 12.5).all()
    assert read_stores(table) == {
        run.provenance["store"]["fingerprint"]: content_digest(open_store(cut.store("test")))
    }

    table.write_bytes(kept)
    shutil.rmtree(cut.store("test"))
    path, _ = submit(config, run)
    assert (pd.read_csv(path)["predicted_latitude"] == 12.5).all()


def test_a_table_is_used_where_its_store_is_not_on_this_machine(cut: Small, run: Run) -> None:
    path, _ = submit(cut.config(), run)
    before = path.read_bytes()
    shutil.rmtree(cut.cache)
    path.unlink()
    submit(cut.config(), run)
    assert path.read_bytes() == before
