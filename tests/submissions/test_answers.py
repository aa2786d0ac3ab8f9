"""What a submission answers is read from any file, and a run is believed to be behind it only where its table says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import answer_otherwise

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run
from geo_embed.submissions.answers import entry_of, probabilities_behind, read_answers
from geo_embed.submissions.log import digest_and_rows

HEADER = (
    "sample_id,"
    + ",".join(f"predicted_state_idx_{k}" for k in range(1, 6))
    + ",predicted_latitude,predicted_longitude"
)


def test_answers_are_read_as_far_as_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    rows = ["a,12.0,3,,-1,x,40.5,-100", "b,1,2,3,4,5,91,0", "c,1,2,3", "d,1,1,-7,4,5,40,NaN"]
    path.write_text("\n".join([HEADER, *rows]).replace(",", ";"))
    answers = read_answers(path)
    assert answers.sample_id.tolist() == ["a", "b", "d"]
    assert answers.states.tolist() == [[12, 3, -1, -1, -1], [1, 2, 3, 4, 5], [1, 1, -1, 4, 5]]
    assert answers.placed.tolist() == [True, False, False]
    assert np.isnan(answers.longitude[1:]).all()
    # x, 91, -7 and NaN.
    assert (answers.unusable, answers.rows) == (4, 4)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "PK\x03\x04"])
def test_what_is_no_submission_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(GeoError) as caught:
        read_answers(tmp_path / "mine.csv")
    assert "geo submission validate" in caught.value.hint
    with pytest.raises(GeoError, match="there is no such submission"):
        read_answers(tmp_path / "absent.csv")


def test_the_run_behind_a_file_is_found_by_its_content_or_its_name_if_its_table_agrees(
    config: Config, run: Run, tmp_path: Path
) -> None:
    path, _ = submit(config, run)
    copy = tmp_path / "copy.csv"
    # In another order, and under another name.
    first, *rest = path.read_text().splitlines()
    copy.write_text("\n".join([first, *reversed(rest)]) + "\n")
    answers = read_answers(copy)
    assert probabilities_behind(config, answers, entry_of(config, digest_and_rows(copy)[0])) is None
    known = probabilities_behind(config, answers, entry_of(config, digest_and_rows(path)[0]))
    assert known is not None
    assert known[0] == "first"
    assert known[1].sample_id.tolist() == answers.sample_id.tolist()
    assert (known[1].latitude == answers.latitude).all()
    (config.paths.submissions_dir / "log.json").unlink()
    assert entry_of(config, digest_and_rows(path)[0]) is None
    assert probabilities_behind(config, read_answers(path), None) is not None
    answer_otherwise(run)
    assert probabilities_behind(config, read_answers(path), None) is None
