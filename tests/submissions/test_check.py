"""A submission is checked as the competition would, and every place of a fault is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.settings import get_config
from geo_embed.submissions.check import Verdict, validate

STATES = [f"predicted_state_idx_{rank}" for rank in range(1, 6)]
COLUMNS = ["sample_id", *STATES, "predicted_latitude", "predicted_longitude"]
IMAGES = [f"image_{view}" for view in ("north", "east", "south", "west")]

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
        {"sample_id": ["b", "a", "007"]} | {name: [""] * 3 for name in [*COLUMNS[1:], *IMAGES]}
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
    assert check() == Verdict(rows=3)


def test_column_order_and_extra_columns_don_t_matter(check: Check) -> None:
    table = pd.DataFrame(GOOD)[[*COLUMNS[::-1], *IMAGES[::-1]]].assign(note="x")
    assert check(table=table) == Verdict(rows=3)


def test_rows_in_another_order_are_taken_and_said(check: Check) -> None:
    verdict = check(table=pd.DataFrame(GOOD).iloc[::-1])
    assert verdict.valid
    (finding,) = verdict.findings
    assert (finding.kind, finding.rows, finding.sample_ids) == ("order", [2, 4], ["007", "b"])
    assert "answers go by sample_id" in finding.message


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
        "1 sample_id of the template is missing: '007'",
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
        "1 sample_id of the template is missing: 'a'",
    ]


def test_an_id_without_its_leading_zeros_is_another_id(check: Check) -> None:
    assert check({(2, "sample_id"): "7"}).errors == [
        "1 row with a sample_id that isn't in the template: '7' (row 4)",
        "1 sample_id of the template is missing: '007'",
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
    assert check(at((-90, 0), (90, 180), (0, 1)), region={}) == Verdict(rows=3)
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


# ---------------------------------------------------------------- every place of a fault, whatever the file


def test_a_finding_names_every_row_sample_and_value_and_the_message_the_first(check: Check) -> None:
    cells = {(row, "predicted_latitude"): text for row, text in enumerate(("x", "91", "-95"))}
    first, second = check(cells).findings
    assert first.describe() == {
        "severity": "error",
        "kind": "not-a-coordinate",
        "message": "1 row where predicted_latitude is not a number: 'x' (row 2)",
        "column": "predicted_latitude",
        "count": 1,
        "rows": [2],
        "sample_ids": ["b"],
        "values": ["x"],
    }
    assert (second.kind, second.rows, second.sample_ids) == ("coordinate-range", [3, 4], ["a", "007"])


def test_missing_ids_are_all_named_and_have_no_row(check: Check) -> None:
    findings = check(table=pd.DataFrame(GOOD).iloc[1:2]).findings
    (missing,) = (finding for finding in findings if finding.kind == "missing-id")
    assert (missing.rows, missing.sample_ids) == ([], ["b", "007"])


@pytest.fixture
def check_text(check: Check, tmp_path: Path) -> Check:
    """Validate a text or bytes in the place of GOOD's, once `change` has made something else of them."""

    def checked(change: Callable[[str], str | bytes]) -> Verdict:
        check()
        text = (tmp_path / "mine.csv").read_text()
        changed = change(text)
        assert changed != text
        data = changed.encode() if isinstance(changed, str) else changed
        (tmp_path / "mine.csv").write_bytes(data)
        box = {"lat_min": 18, "lat_max": 72, "lon_min": -180, "lon_max": -65}
        return validate(
            get_config(**{"paths.data_root": tmp_path / "data"}, model={"gps_box": box}),
            tmp_path / "mine.csv",
        )

    return checked


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
@pytest.mark.parametrize("mark", ["", "\ufeff", "sep=;\r\n"])
def test_a_spreadsheets_separators_are_an_error_and_the_rows_are_checked_all_the_same(
    check_text: Check, separator: str, name: str, mark: str
) -> None:
    verdict = check_text(
        lambda text: mark + text.replace(",", separator).replace(".25", ",25").replace("\n", "\r\n")
    )
    later = mark.startswith("sep")
    kinds = [finding.kind for finding in verdict.findings]
    assert kinds == [*["csv"] * later, "separator", "how-to-write", "not-a-coordinate"]
    assert f"separated by {name}" in verdict.findings[later].message
    assert (verdict.findings[-1].rows, verdict.findings[-1].values) == ([2 + later], ["-100,25"])
    assert "write it with a decimal point: -100.25" in verdict.warnings[0]
    assert verdict.rows == 3


def test_decimal_commas_between_commas_are_told_by_row_and_id_and_no_id_counts_as_missing(
    check_text: Check,
) -> None:
    verdict = check_text(lambda text: text.replace("40.5,-100.25", "40,5,-100,25"))
    (finding,) = verdict.findings
    assert (finding.kind, finding.rows, finding.sample_ids) == ("fields", [2], ["b"])
    assert "a number have a point for a comma" in finding.message
    assert verdict.rows == 3


def test_rows_cut_short_are_all_named(check_text: Check) -> None:
    def cut(text: str) -> str:
        return "\n".join(line[:3] if line.startswith(("a", "0")) else line for line in text.splitlines())

    (finding,) = check_text(cut).findings
    assert (finding.rows, finding.sample_ids) == ([3, 4], ["a", "007"])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"\n\n\n", "nothing in its first line"),
        (b"PK\x03\x04" + bytes(100), "an Excel workbook"),
        (bytes(64), "NUL"),
        ("sample_id,a".encode("utf-16"), "UTF-16 text"),
        (b"\x1f\x8b\x08\x00", "gzip"),
    ],
)
def test_what_is_no_text_or_has_nothing_in_it_is_said_to_be_so(
    check_text: Check, data: bytes, what: str
) -> None:
    (error,) = check_text(lambda _: data).errors
    assert what in error


@pytest.mark.parametrize("text", ["13.0", "2e1", "+4", "4."])
def test_a_whole_number_that_is_written_as_another_is_a_warning(check: Check, text: str) -> None:
    verdict = check({(1, "predicted_state_idx_2"): text})
    assert verdict.valid
    (finding,) = verdict.findings
    assert (finding.kind, finding.rows, finding.values) == ("decimal-state", [3], [text])


def test_swapped_coordinates_are_said_to_be_swapped(check: Check) -> None:
    # A latitude beyond ±90 is an error as well; another one just lies elsewhere.
    first, second = check(at((-100.25, 40.5), (-70, 42))).findings
    assert (first.kind, first.severity, first.rows) == ("coordinate-range", "error", [2])
    assert (second.kind, second.severity, second.rows) == ("swapped", "warning", [2, 3])


def test_a_longitude_without_its_minus_is_said_to_have_lost_it(check: Check) -> None:
    (finding,) = check(at((40.5, 100.25))).findings
    assert (finding.kind, finding.rows) == ("lost-sign", [2])
    # Across the meridian of Greenwich both signs are fine, and nothing can be told.
    region = {"lat_min": 35, "lat_max": 45, "lon_min": -9, "lon_max": 4}
    kinds = [f.kind for f in check(at((40, 8), (40, 1), (40, 1)), region=region).findings]
    assert kinds == ["outside-region"]


def test_points_at_zero_are_taken_for_placeholders(check: Check) -> None:
    (finding,) = check(at((40, -100), (0, 0), (40, -100))).findings
    assert (finding.kind, finding.rows, finding.sample_ids) == ("zero-point", [3], ["a"])


def test_answers_beside_another_samples_picture_are_a_warning(check: Check, tmp_path: Path) -> None:
    check()
    template = pd.read_csv(tmp_path / "data" / "sample_submission.csv", dtype=str)
    template.assign(**{name: GOOD[name] for name in IMAGES}).to_csv(
        tmp_path / "data" / "sample_submission.csv", index=False
    )
    assert check() == Verdict(rows=3)
    # Ids that were pasted in another order than the answers.
    verdict = check({(0, "sample_id"): "a", (1, "sample_id"): "b"})
    assert {finding.kind for finding in verdict.findings} == {"order", "other-image"}
    (finding,) = (finding for finding in verdict.findings if finding.column == IMAGES[0])
    assert (finding.rows, finding.sample_ids, finding.values) == ([2, 3], ["a", "b"], ["0.jpg", "1.jpg"])


def test_a_template_of_one_view_one_class_and_string_ids_is_checked_alike(tmp_path: Path) -> None:
    row = dict.fromkeys(COLUMNS[1:], "") | {"sample_id": "Zürich/1 ", "image_dashcam": "ä.jpg"}
    pd.DataFrame([row]).to_csv(tmp_path / "sample_submission.csv", index=False)
    (tmp_path / "state_mapping.csv").write_text("state_idx,state\n7,Zürich\n")
    answer = row | {STATES[0]: "7", "predicted_latitude": "47.4", "predicted_longitude": "8.5"}
    pd.DataFrame([answer]).to_csv(tmp_path / "mine.csv", index=False)
    config = get_config(**{"paths.data_root": tmp_path})
    assert validate(config, tmp_path / "mine.csv") == Verdict(rows=1)
