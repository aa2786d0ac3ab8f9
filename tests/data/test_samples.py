"""CSVs in whatever shape they come; every fault named by file, row and column; splits that can be relied on."""

from __future__ import annotations

import csv
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_embed.answers import label_encoder
from geo_embed.config import Config
from geo_embed.data import samples as data_samples
from geo_embed.data.check import check_data
from geo_embed.data.holdout import stratified_split
from geo_embed.data.samples import (
    Samples,
    check_samples,
    load_mapping,
    load_samples,
    load_truth,
    missing_images,
    natural_ids,
)
from geo_embed.data.table import Problem
from geo_embed.errors import GeoError
from geo_embed.settings import get_config

MAPPING = "state_idx,state\n4,California\n7,Delaware\n30,New Mexico\n"
HEADER = "sample_id,image_a,image_b,state,state_idx,latitude,longitude"
ROWS = (
    "0,0a.jpg,0b.jpg,California,4,36.5,-120.25",
    "1,1a.jpg,1b.jpg,New Mexico,30,34,-106",
    "2,2a.jpg,2b.jpg,Delaware,7,39,-75.5",
)

Write = Callable[..., Config]
Form = Literal["NFC", "NFD"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a tiny two-view dataset, by text, and give the settings that read it."""

    def made(
        rows: Sequence[str] | bytes = ROWS, header: str = HEADER, mapping: str = MAPPING, images: bool = True
    ) -> Config:
        data = tmp_path / "data"
        (data / "train_images").mkdir(parents=True, exist_ok=True)
        text = rows if isinstance(rows, bytes) else "\n".join([header, *rows, ""]).encode()
        (data / "train_ground_truth.csv").write_bytes(text)
        (data / "state_mapping.csv").write_text(mapping, encoding="utf-8")
        if images:
            for n in range(3):
                for view in "ab":
                    (data / "train_images" / f"{n}{view}.jpg").touch()
        return get_config(paths={"data_root": data}, model={"view_names": ["a", "b"]})

    return made


def problems(config: Config, split: str = "train") -> list[Problem]:
    return check_samples(config.paths, config.model.view_names, split)[1]


def only_problem(config: Config, split: str = "train") -> Problem:
    (problem,) = problems(config, split)
    return problem


def assert_usual(samples: Samples) -> None:
    assert samples.truth is not None
    assert samples.sample_id.tolist() == ["0", "1", "2"]
    assert samples.images.tolist() == [["0a.jpg", "0b.jpg"], ["1a.jpg", "1b.jpg"], ["2a.jpg", "2b.jpg"]]
    assert samples.truth.state_idx.tolist() == [4, 30, 7]
    assert samples.truth.latitude.tolist() == [36.5, 34, 39]
    assert samples.truth.longitude.tolist() == [-120.25, -106, -75.5]


# ---------------------------------------------------------------- forms that are all fine


def test_a_plain_csv_is_read_in_its_own_order(write: Write) -> None:
    assert_usual(load_samples(write(), "train"))


def plain() -> str:
    return "\n".join([HEADER, *ROWS, ""])


def shuffled_columns() -> str:
    rows = [line.split(",") for line in [HEADER, *ROWS]]
    return "\n".join(",".join(row[i] for i in (6, 2, 0, 4, 3, 1, 5)) for row in rows) + "\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + plain().encode(),
        plain().replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + plain().replace("\n", "\r\n").encode(),
        plain().rstrip("\n").encode(),
        shuffled_columns().encode(),
        "\n".join(["extra," + HEADER + ",note", *(f'x,{row},"a, b"' for row in ROWS)]).encode(),
        plain().replace("\n", "\n\n").encode(),
        (plain() + ",,,,,,\n\n \n").encode(),
        "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in [HEADER, *ROWS]).encode(),
        "\n".join(", ".join(line.split(",")) for line in [HEADER, *ROWS]).encode(),
        plain().replace(",4,", ",4.0,").encode(),
    ],
    ids=[
        "BOM",
        "CRLF",
        "BOM-and-CRLF",
        "no-last-newline",
        "shuffled-columns",
        "extra-columns",
        "blank-lines-between",
        "blank-lines-after",
        "quoted",
        "spaces-after-commas",
        "whole-number-with-a-point",
    ],
)
def test_the_same_samples_come_out_of_every_form_of_csv(write: Write, data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_usual(load_samples(write(data), "train"))


def test_a_mapping_with_bom_crlf_and_any_order_is_the_same_mapping(write: Write) -> None:
    config = write(
        mapping="\ufeffstate,extra,state_idx\r\nNew Mexico,x,30\r\n\r\nCalifornia,y,4\r\nDelaware,,7\r\n"
    )
    assert load_mapping(config.paths.mapping()) == {4: "California", 7: "Delaware", 30: "New Mexico"}
    assert_usual(load_samples(config, "train"))


@pytest.mark.parametrize(
    "ids", [["b", "a", "c-1"], ["007", "7", "07"], ["30", "1", "200"], ["é 1", "1.0", "NA"]]
)
def test_ids_are_kept_as_they_are_written_and_in_their_order(write: Write, ids: list[str]) -> None:
    config = write([f"{i},{row.split(',', 1)[1]}" for i, row in zip(ids, ROWS, strict=True)])
    assert load_samples(config, "train").sample_id.tolist() == ids


def test_ids_in_many_blocks_are_numbers_where_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_samples, "_BLOCK", 2)
    assert natural_ids(["3", "2", "1", "0", "-1"]).tolist() == [3, 2, 1, 0, -1]
    assert natural_ids(["3", "2", "1", "0", "x"]).tolist() == ["3", "2", "1", "0", "x"]


def test_ids_are_stored_as_numbers_only_where_nothing_is_lost_by_it() -> None:
    assert natural_ids(["30", "1", "-5", "0"]).dtype == np.int64
    for ids in (["007", "1"], ["1.0"], ["a"], ["+1"], ["99999999999999999999"], ["-0"]):
        assert natural_ids(ids).tolist() == ids


def test_the_template_needs_no_truth(write: Write, tmp_path: Path) -> None:
    config = write()
    columns = "sample_id,image_a,image_b,predicted_state_idx_1"
    (tmp_path / "data" / "sample_submission.csv").write_text(f"{columns}\nx,p.jpg,q.jpg,0\n")
    samples = load_samples(config, "test")
    assert samples.sample_id.tolist() == ["x"]
    assert samples.truth is None
    assert samples.image_root == tmp_path / "data" / "test_images"


ANSWERS = "longitude,sample_id,state,state_idx,latitude\n5,b,New Mexico,30,1\n6,a,California,4,2\n"


def test_answers_in_a_file_of_their_own_go_by_id(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(ANSWERS)
    truth = load_truth(path, {4: "California", 30: "New Mexico"}, np.array(["a", "b"], dtype=object))
    assert (truth.state_idx.tolist(), truth.latitude.tolist(), truth.longitude.tolist()) == (
        [4, 30],
        [2, 1],
        [6, 5],
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("b", "c", "no row for 1 of 2 samples, b first"),
        ("b", "a", "earlier row has the same sample_id"),
        ("30", "31", "not in the state mapping: '31'"),
        ("5,b", "500,b", "outside"),
        ("latitude", "lat", "latitude"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(ANSWERS.replace(old, new, 1))
    with pytest.raises(GeoError, match=message):
        load_truth(path, {4: "California", 30: "New Mexico"}, np.array(["a", "b"], dtype=object))


def test_a_sample_may_lack_a_picture_without_its_table_being_wrong(write: Write) -> None:
    config = write(["0,,0b.jpg,California,4,36.5,-120.25", *ROWS[1:]])
    samples = load_samples(config, "train")
    assert samples.images[0].tolist() == ["", "0b.jpg"]
    assert missing_images(samples) == [(0, 0, "the CSV names no image")]


# ---------------------------------------------------------------- faults, each with its place


@pytest.mark.parametrize("column", HEADER.split(","))
def test_a_missing_column_is_named_with_the_file_and_the_columns_there_are(write: Write, column: str) -> None:
    rows = [dict(zip(HEADER.split(","), row.split(","), strict=True)) for row in ROWS]
    kept = [name for name in HEADER.split(",") if name != column]
    config = write([",".join(row[name] for name in kept) for row in rows], header=",".join(kept))
    problem = only_problem(config)
    assert problem.kind == "missing-column"
    assert problem.where == str(config.paths.csv("train"))
    assert f"'{column}'" in problem.message
    assert all(name in problem.message for name in kept)


@pytest.mark.parametrize("views", [("left", "right"), ("a", "up")])
def test_views_that_the_file_lacks_are_told_the_setting_and_the_views_that_it_has(
    write: Write, views: tuple[str, ...]
) -> None:
    config = write()
    config = config.model_copy(update={"model": config.model.model_copy(update={"view_names": views})})
    assert only_problem(config).message.endswith(
        f"; model.view_names asks for {', '.join(views)}, the file seems to have a, b: "
        """--set 'model.view_names=["a", "b"]'"""
    )
    with pytest.raises(GeoError) as refused:
        load_samples(config, "train")
    assert "model.view_names" in refused.value.hint


def test_a_file_without_any_view_is_told_how_their_columns_are_called(write: Write) -> None:
    config = write(header=HEADER.replace("image_", "picture_"))
    assert only_problem(config).message.endswith(
        "; model.view_names asks for a, b, each in a column image_VIEW, and the file has no such column"
    )


def changed(row: int, old: str, new: str) -> list[str]:
    rows = list(ROWS)
    assert old in rows[row]
    rows[row] = rows[row].replace(old, new)
    return rows


@pytest.mark.parametrize(
    ("rows", "kind", "row", "column", "value"),
    [
        (changed(2, "2,2a", "0,2a"), "duplicate-id", 4, "sample_id", "'0'"),
        (changed(1, "1,1a", ",1a"), "null", 3, "sample_id", ""),
        (changed(1, "New Mexico", ""), "null", 3, "state", ""),
        (changed(1, ",30,", ",,"), "null", 3, "state_idx", ""),
        (changed(2, ",39,", ",,"), "null", 4, "latitude", ""),
        (changed(2, "-75.5", ""), "null", 4, "longitude", ""),
        (changed(0, "36.5", "90.001"), "range", 2, "latitude", "'90.001'"),
        (changed(0, "36.5", "-91"), "range", 2, "latitude", "'-91'"),
        (changed(0, "-120.25", "-180.5"), "range", 2, "longitude", "'-180.5'"),
        (changed(0, "-120.25", "239.75"), "range", 2, "longitude", "'239.75'"),
        (changed(0, "36.5", "north"), "not-a-number", 2, "latitude", "'north'"),
        (changed(0, "36.5", "nan"), "not-a-number", 2, "latitude", "'nan'"),
        (changed(0, "36.5", "inf"), "not-a-number", 2, "latitude", "'inf'"),
        (changed(1, ",30,", ",30.5,"), "not-a-number", 3, "state_idx", "'30.5'"),
        (changed(1, ",30,", ",1e300,"), "not-a-number", 3, "state_idx", "'1e300'"),
        (changed(1, ",30,", ",NM,"), "not-a-number", 3, "state_idx", "'NM'"),
        (changed(1, ",30,", ",31,"), "unknown-state", 3, "state_idx", "'31'"),
        (changed(1, ",30,", ",-1,"), "unknown-state", 3, "state_idx", "'-1'"),
        (changed(2, "Delaware", "California"), "state-mismatch", 4, "state", "'California / 7'"),
        (changed(2, "Delaware", "Atlantis"), "state-mismatch", 4, "state", "'Atlantis / 7'"),
        (changed(1, "1b.jpg", "../1b.jpg"), "image-path", 3, "image_b", "'../1b.jpg'"),
        (changed(1, "1b.jpg", "x/../../1b.jpg"), "image-path", 3, "image_b", "'x/../../1b.jpg'"),
        (changed(1, "1b.jpg", "..\\1b.jpg"), "image-path", 3, "image_b", "1b.jpg"),
        (changed(1, "1b.jpg", ".."), "image-path", 3, "image_b", "'..'"),
        (changed(0, "0a.jpg", "/etc/passwd"), "image-path", 2, "image_a", "'/etc/passwd'"),
        (changed(0, "0a.jpg", "C:\\x.jpg"), "image-path", 2, "image_a", "x.jpg"),
    ],
)
def test_a_fault_is_named_with_file_row_and_column(
    write: Write, rows: list[str], kind: str, row: int, column: str, value: str
) -> None:
    config = write(rows)
    problem = only_problem(config)
    assert problem.kind == kind
    assert problem.where == f"{config.paths.csv('train')}, row {row}, column {column}"
    assert value in problem.message
    with pytest.raises(GeoError) as caught:
        load_samples(config, "train")
    assert caught.value.where == problem.where
    assert caught.value.what == problem.message


def test_a_state_that_contradicts_the_mapping_is_named_with_row_and_column(write: Write) -> None:
    config = write(changed(2, "Delaware", "California"))
    with pytest.raises(GeoError, match=r"contradicts the state mapping: 'California / 7'") as caught:
        load_samples(config, "train")
    assert caught.value.where.endswith("train_ground_truth.csv, row 4, column state")


def test_rows_are_counted_as_a_spreadsheet_does_blank_lines_included(write: Write) -> None:
    text = "\n".join([HEADER, "", ROWS[0], "", "", ROWS[1].replace("34", "99"), ""])
    assert only_problem(write(text.encode())).where.endswith(", row 6, column latitude")


def test_all_faults_are_found_at_once_and_the_error_counts_them(write: Write) -> None:
    rows = changed(0, "36.5", "95")
    rows[1] = rows[1].replace("-106", "-206")
    rows[2] = rows[2].replace("2a.jpg", "/2a.jpg")
    config = write(rows)
    assert {problem.kind for problem in problems(config)} == {"range", "image-path"}
    assert len(problems(config)) == 3
    with pytest.raises(GeoError, match="and 2 more problems") as caught:
        load_samples(config, "train")
    assert caught.value.hint == "list all of them with: geo data check --split train"


def test_a_fault_of_thousands_of_rows_is_listed_shortly_and_counted(write: Write) -> None:
    rows = [f"{n},0a.jpg,0b.jpg,California,4,95,-120" for n in range(500)]
    listed = problems(write(rows))
    assert len(listed) == 21
    assert listed[-1].message == "and 480 more rows like these"


@pytest.mark.parametrize(
    ("mapping", "kind", "place"),
    [
        ("state_idx,state\n4,California\n4,Delaware\n", "duplicate-state", ", row 3, column state_idx"),
        ("state_idx,state\n4,California\n7,California\n", "duplicate-state", ", row 3, column state"),
        ("state_idx,state\n4,California\nx,Delaware\n", "not-a-number", ", row 3, column state_idx"),
        ("state_idx,state\n4,California\n7,\n", "null", ", row 3, column state"),
        ("state_idx,name\n4,California\n", "missing-column", "state_mapping.csv"),
        ("state_idx,state\n", "empty", "state_mapping.csv"),
        ("", "empty", "state_mapping.csv"),
    ],
)
def test_a_fault_of_the_mapping_is_told_as_the_mappings_and_only_once(
    write: Write, mapping: str, kind: str, place: str
) -> None:
    config = write(mapping=mapping)
    problem = only_problem(config)
    assert problem.kind == kind
    assert "state_mapping.csv" in problem.where
    assert problem.where.endswith(place)
    with pytest.raises(GeoError):
        load_mapping(config.paths.mapping())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"", "empty"),
        (HEADER.encode() + b"\n", "empty"),
        (HEADER.encode() + b"\n\n\n", "empty"),
        (plain().replace("Delaware", "Dela\xfeware").encode("latin-1"), "encoding"),
        ((plain() + "3,a,b,c,d,e,f,g\n").encode(), "csv"),
        ("\n".join([HEADER, *(row + ",surplus" for row in ROWS)]).encode(), "csv"),
        ("\n".join([HEADER, ROWS[0].replace("California", "Calif, ornia"), *ROWS[1:]]).encode(), "csv"),
        ((plain() + '"3,a,b').encode(), "csv"),
    ],
    ids=[
        "nothing",
        "header-only",
        "header-and-blank-lines",
        "latin-1",
        "a-last-row-too-long",
        "all-rows-too-long",
        "a-first-row-too-long",
        "open-quote",
    ],
)
def test_a_file_that_is_no_table_is_told_in_one_line(write: Write, text: bytes, kind: str) -> None:
    config = write(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = only_problem(config)
    assert problem.kind == kind
    assert problem.where == str(config.paths.csv("train"))
    assert problem.message.strip() == problem.message
    assert "\n" not in problem.message


def test_a_file_that_is_not_there_is_told_with_its_path(write: Write) -> None:
    config = write()
    config.paths.csv("train").unlink()
    assert only_problem(config) == Problem("missing-file", str(config.paths.csv("train")), "no such file")


def test_a_directory_where_a_csv_should_be_is_told(write: Write) -> None:
    config = write()
    config.paths.csv("train").unlink()
    config.paths.csv("train").mkdir()
    assert only_problem(config).kind == "unreadable"


# ---------------------------------------------------------------- pictures on disk


def test_every_picture_that_is_no_file_is_listed_with_sample_view_and_reason(write: Write) -> None:
    config = write(["0,0a.jpg,,California,4,36.5,-120.25", *ROWS[1:]])
    images = config.paths.images("train")
    (images / "1b.jpg").unlink()
    (images / "2a.jpg").unlink()
    (images / "2a.jpg").mkdir()
    assert missing_images(load_samples(config, "train")) == [
        (0, 1, "the CSV names no image"),
        (1, 1, "no such file: 1b.jpg"),
        (2, 0, "is a directory: 2a.jpg"),
    ]
    assert [(p.kind, p.where.rsplit(", ", 2)[1:]) for p in check_data(config, "train").problems] == [
        ("missing-image", ["sample 0", "column image_b"]),
        ("missing-image", ["sample 1", "column image_b"]),
        ("missing-image", ["sample 2", "column image_a"]),
    ]


def test_only_the_rows_that_are_asked_for_are_looked_at(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_samples, "_BLOCK", 2)
    config = write([row.replace("1b", "gone") for row in ROWS])
    (config.paths.images("train") / "2b.jpg").unlink()
    samples = load_samples(config, "train")
    assert [place[:2] for place in missing_images(samples)] == [(1, 1), (2, 1)]
    assert [place[:2] for place in missing_images(samples, slice(2, 3))] == [(2, 1)]
    assert missing_images(samples, slice(0, 1)) == []


def test_a_whole_folder_that_is_missing_is_not_an_exception(write: Write) -> None:
    config = write(images=False)
    assert len(missing_images(load_samples(config, "train"))) == 6


@pytest.mark.parametrize(
    "name", ["with space.jpg", "Straße é 東京.jpg", "sub folder/deep/x.jpg", "..x.jpg", "a..b"]
)
def test_names_with_spaces_accents_and_folders_are_found(write: Write, name: str) -> None:
    config = write(changed(0, "0a.jpg", name))
    path = config.paths.images("train") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    samples = load_samples(config, "train")
    assert samples.images[0, 0] == name
    assert missing_images(samples) == []


def test_a_link_to_a_picture_is_a_picture_and_a_dangling_one_is_not(write: Write) -> None:
    config = write()
    images = config.paths.images("train")
    (images / "elsewhere.jpg").touch()
    for name, target in (("0a.jpg", "elsewhere.jpg"), ("0b.jpg", "nowhere.jpg")):
        (images / name).unlink()
        (images / name).symlink_to(images / target)
    assert missing_images(load_samples(config, "train")) == [(0, 1, "no such file: 0b.jpg")]


@pytest.mark.parametrize(("in_csv", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_whose_accents_are_written_otherwise_on_disk_is_said_to_be_that(
    write: Write, in_csv: Form, on_disk: Form
) -> None:
    config = write(changed(0, "0a.jpg", unicodedata.normalize(in_csv, "Québec.jpg")))
    images = config.paths.images("train")
    (images / unicodedata.normalize(on_disk, "Québec.jpg")).touch()
    ((i, v, reason),) = missing_images(load_samples(config, "train"))
    assert (i, v) == (0, 0)
    assert "the same name with its accents written otherwise" in reason
    assert f"convmv -r -f utf8 -t utf8 --{in_csv.lower()} --notest {images}" in reason


def test_a_name_in_other_case_on_disk_is_said_to_be_that(write: Write) -> None:
    config = write()
    images = config.paths.images("train")
    (images / "0a.jpg").rename(images / "0A.JPG")
    assert missing_images(load_samples(config, "train")) == [
        (0, 0, "no such file: 0a.jpg; the folder has '0A.JPG': the names must be the same")
    ]


@pytest.mark.parametrize(("in_csv", "in_mapping"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_states_match_whichever_way_their_accents_are_written(
    write: Write, in_csv: Form, in_mapping: Form
) -> None:
    rows = [row.replace("Delaware", unicodedata.normalize(in_csv, "Québec")) for row in ROWS]
    mapping = MAPPING.replace("Delaware", unicodedata.normalize(in_mapping, "Québec"))
    assert_usual(load_samples(write(rows, mapping=mapping), "train"))
    other = [row.replace("Delaware", "Quebec") for row in ROWS]
    assert only_problem(write(other, mapping=mapping)).kind == "state-mismatch"


def test_a_mapping_with_one_state_written_in_two_ways_is_refused(write: Write) -> None:
    two = f"{MAPPING}8,Québec\n9,{unicodedata.normalize('NFD', 'Québec')}\n"
    assert only_problem(write(mapping=two)).kind == "duplicate-state"


def test_ids_that_only_differ_in_how_accents_are_written_are_refused(write: Write) -> None:
    ids = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    rows = [f"{i},{row.split(',', 1)[1]}" for i, row in zip([*ids, "z"], ROWS, strict=True)]
    problem = only_problem(write(rows))
    assert problem.kind == "duplicate-id"
    assert "but for composed or decomposed accents" in problem.message
    assert problem.where.endswith("row 3, column sample_id")


# ---------------------------------------------------------------- labels


def test_states_become_contiguous_classes_and_go_back() -> None:
    mapping = {4: "California", 7: "Delaware", 30: "New Mexico", 49: "Wyoming"}
    encoder = label_encoder(np.array([30, 4, 30, 49]), mapping)
    assert len(encoder) == 3
    assert encoder.names == ("California", "New Mexico", "Wyoming")
    assert encoder.encode(np.array([49, 4, 30, 4])).tolist() == [2, 0, 1, 0]
    assert encoder.decode(np.array([[2, 0], [1, 1]])).tolist() == [[49, 4], [30, 30]]
    states = np.array([4, 30, 49])
    assert encoder.decode(encoder.encode(states)).tolist() == states.tolist()


@pytest.mark.parametrize("strange", [7, -1, 50, 0])
def test_a_state_that_the_encoder_never_saw_is_refused(strange: int) -> None:
    encoder = label_encoder(np.array([4, 30]), {4: "California", 30: "New Mexico"})
    with pytest.raises(GeoError, match=f"state_idx {strange} "):
        encoder.encode(np.array([4, strange]))


# ---------------------------------------------------------------- splits


def population(counts: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.concatenate([np.full(count, label) for label, count in enumerate(counts)])
    return np.array([f"s{n}" for n in range(len(labels))], dtype=object), labels


def test_every_class_keeps_its_share_to_within_one_sample() -> None:
    counts = [200, 100, 55, 40, 10, 7, 3]
    ids, labels = population(counts)
    held = stratified_split(ids, labels, 0.1, seed=0)
    per_class = np.bincount(labels[held], minlength=len(counts))
    assert (np.abs(per_class - np.array(counts) * 0.1) < 1).all()
    assert held.sum() == round(sum(counts) * 0.1)


def test_a_class_of_one_sample_stays_in_training() -> None:
    ids, labels = population([1, 1, 1, 50, 1])
    for seed in range(20):
        held = stratified_split(ids, labels, 0.1, seed)
        assert set(labels[~held]) == set(labels)
        assert held.sum() == 5


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_every_class_keeps_a_training_sample_whatever_the_share(share: float) -> None:
    ids, labels = population([1, 2, 3, 30])
    assert set(labels[~stratified_split(ids, labels, share, 0)]) == {0, 1, 2, 3}


def test_the_choice_depends_on_ids_and_seed_not_on_the_order_of_rows() -> None:
    ids, labels = population([30, 20, 10, 1])
    chosen = set(ids[stratified_split(ids, labels, 0.2, seed=5)])
    order = np.random.default_rng(1).permutation(len(ids))
    assert set(ids[order][stratified_split(ids[order], labels[order], 0.2, seed=5)]) == chosen
    assert set(ids[stratified_split(ids, labels, 0.2, seed=5)]) == chosen
    assert set(ids[stratified_split(ids, labels, 0.2, seed=6)]) != chosen


def test_where_every_class_has_one_sample_nothing_is_held_out() -> None:
    ids, labels = population([1] * 6)
    assert not stratified_split(ids, labels, 0.1, 0).any()


# ---------------------------------------------------------------- another country


def test_another_country_with_three_states_and_two_views_goes_all_the_way(tmp_path: Path) -> None:
    """Neither 33 states, nor four views, nor their names, nor square pictures, nor the US are built in."""
    from geo_embed.extraction.extract import extract
    from geo_embed.fitting.fit import fit_heads
    from geo_embed.prediction.evaluate import evaluate
    from geo_embed.prediction.submission import submit
    from geo_embed.runs.run import load_run
    from geo_embed.synthetic.backbone import write_backbone

    states = {2: ("Hokkaidō", 43.0, 142.5), 5: ("Kyūshū", 32.5, 131.0), 90: ("Okinawa", 26.5, 128.0)}
    data = tmp_path / "japan"
    rng = np.random.default_rng(0)

    def photograph(split: str, name: str, state: int) -> str:
        folder = data / f"{split}_images"
        folder.mkdir(parents=True, exist_ok=True)
        colour = np.array([60 + 60 * list(states).index(state), 120, 200 - 60 * list(states).index(state)])
        pixels = (colour + rng.normal(0, 12, (40, 56, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=90)
        return name

    def rows(split: str, count: int) -> list[dict[str, object]]:
        made = []
        for n in range(count):
            state = list(states)[n % 3]
            made.append(
                {
                    "sample_id": f"{split}-{n:03d}",
                    "image_front": photograph(split, f"{n} front.jpg", state),
                    "image_rear": photograph(split, f"{n} rear.jpg", state),
                    "state": states[state][0],
                    "state_idx": state,
                    "latitude": states[state][1] + rng.normal(0, 0.3),
                    "longitude": states[state][2] + rng.normal(0, 0.3),
                }
            )
        return made

    train, test = pd.DataFrame(rows("train", 45)), pd.DataFrame(rows("test", 9))
    train.to_csv(data / "train_ground_truth.csv", index=False)
    guesses = {f"predicted_state_idx_{rank}": "" for rank in range(1, 6)}
    template = test[["sample_id", "image_front", "image_rear"]].assign(
        **guesses, predicted_latitude="", predicted_longitude=""
    )
    template.to_csv(data / "sample_submission.csv", index=False)
    with (data / "state_mapping.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("state_idx", "state"), *((k, v[0]) for k, v in states.items())])
    write_backbone(tmp_path / "backbone")
    config = get_config(
        paths={
            "data_root": data,
            "cache_dir": tmp_path / "cache",
            "runs_dir": tmp_path / "runs",
            "submissions_dir": tmp_path / "submissions",
        },
        model={
            "backbone_name": str(tmp_path / "backbone"),
            "view_names": ["front", "rear"],
            "gps_box": {"lat_min": 20, "lat_max": 50, "lon_min": 120, "lon_max": 150},
            "device": "cpu",
        },
    )
    for split, size in (("train", 45), ("test", 9)):
        assert check_data(config, split).problems == []
        done = extract(config, split)
        assert (done.samples, done.views, done.computed) == (size, 2, 2 * size)
    fit = fit_heads(config, name="japan")
    run = load_run(config.paths.runs_dir, "japan")
    assert run.labels.state_idx.tolist() == [2, 5, 90]
    assert run.labels.names == ("Hokkaidō", "Kyūshū", "Okinawa")
    assert fit.val["top1"] == 1.0
    assert evaluate(config, run) == fit.val
    path, verdict = submit(config, run)
    assert (verdict.errors, verdict.warnings) == ([], [])
    written = pd.read_csv(path)
    assert written["sample_id"].tolist() == test["sample_id"].tolist()
    assert written["predicted_state_idx_1"].tolist() == test["state_idx"].tolist()
    assert set(written["predicted_state_idx_3"]) <= {2, 5, 90}
    assert (written[["predicted_state_idx_4", "predicted_state_idx_5"]] == -1).all(axis=None)
    assert written["predicted_latitude"].between(20, 50).all()
    assert written["predicted_longitude"].between(120, 150).all()
