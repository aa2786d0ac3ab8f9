"""A submission follows the template by id, speaks the data's own indices, and is of what the cache holds now."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from small import Small, saved_predictions

from geo_embed.cache.store import content_digest, open_store
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.prediction.predict import predict_split
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run
from geo_embed.runs.table import read_stores
from geo_embed.submissions.check import Verdict, validate

if TYPE_CHECKING:
    from conftest import Country

STATES = [f"predicted_state_idx_{rank}" for rank in range(1, 6)]
COLUMNS = ["sample_id", *STATES, "predicted_latitude", "predicted_longitude"]
IMAGES = [f"image_{view}" for view in ("north", "east", "south", "west")]


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
    assert [path.name for path in config.paths.submissions_dir.iterdir()] == ["log.json"]


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


def test_the_check_after_writing_uses_the_box_of_the_settings(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    model = config.model.model_copy(update={"gps_box": replace_box(config, lat_min=-10, lat_max=-5)})
    assert len(validate(config.model_copy(update={"model": model}), path).warnings) == 1


def replace_box(config: Config, **edges: float) -> object:
    return type(config.model.gps_box)(**(config.model.gps_box.model_dump() | edges))


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
