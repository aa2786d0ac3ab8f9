"""What a submission says as a whole, counted on files whose every number is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from geo_embed.config import Config
from geo_embed.metrics import RANK_CREDIT
from geo_embed.prediction.submission import submit
from geo_embed.reporting.submission_analysis import analyze_submission
from geo_embed.runs.run import Run
from geo_embed.settings import get_config

if TYPE_CHECKING:
    from conftest import Country, Geo

STATES = [f"predicted_state_idx_{k}" for k in range(1, 6)]


@pytest.fixture
def analyze(tmp_path: Path) -> Any:
    """Analyze rows of (id, five states, latitude, longitude), with three classes, two of them states of the US."""
    names = {1: "Ohio", 5: "Utah", 9: "<b>Nowhere</b>"}
    places = {1: (40.2, -82.7), 5: (39.3, -111.6), 9: (45.0, -30.0)}
    rng = np.random.default_rng(0)
    rows = [
        (f"t{n}", "x.jpg", names[k], k, *(np.array(places[k]) + rng.uniform(-0.5, 0.5, 2)))
        for n, k in enumerate([1] * 10 + [5] * 6 + [9] * 4)
    ]
    columns = ["sample_id", "image_dashcam", "state", "state_idx", "latitude", "longitude"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train_ground_truth.csv", index=False)
    pd.DataFrame({"state_idx": list(names), "state": list(names.values())}).to_csv(
        tmp_path / "state_mapping.csv", index=False
    )
    config = get_config(
        paths={"data_root": tmp_path, "runs_dir": tmp_path / "runs", "submissions_dir": tmp_path / "s"},
        model={"view_names": ["dashcam"]},
    )

    def analyzed(rows: list[tuple[Any, ...]], **options: Any) -> dict[str, Any]:
        columns = ["sample_id", *STATES, "predicted_latitude", "predicted_longitude"]
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "mine.csv", index=False)
        analysis = analyze_submission(config, tmp_path / "mine.csv", **options)
        json.dumps(analysis, allow_nan=False)
        return analysis

    return analyzed


OHIO, UTAH, SEA = (40.2, -82.7), (39.3, -111.6), (45.0, -30.0)


def test_first_states_are_set_against_training_with_the_largest_difference_first(analyze: Any) -> None:
    rows = [(f"{n}", 5, 1, 9, -1, -1, *UTAH) for n in range(3)] + [("z", 1, 5, 9, -1, -1, *OHIO)]
    states = analyze(rows)["states"]
    assert [(row["state"], row["first"], row["train"]) for row in states["table"]] == [
        ("Utah", 3, 6),
        ("Ohio", 1, 10),
        ("<b>Nowhere</b>", 0, 4),
    ]
    assert [row["difference"] for row in states["table"]] == pytest.approx([0.45, -0.25, -0.2])
    assert states["total_variation"] == pytest.approx(0.45)
    assert states["never_first"] == ["<b>Nowhere</b>"]
    assert states["not_in_training"] == 0


def test_what_is_to_be_expected_by_chance_is_what_drawing_gives(analyze: Any) -> None:
    chance = analyze([(f"{n}", 1, 5, 9, -1, -1, *OHIO) for n in range(200)])["states"]["by_chance"]
    shares = np.array([0.5, 0.3, 0.2])
    drawn = np.random.default_rng(0).multinomial(200, shares, size=4000) / 200
    assert chance == pytest.approx(np.abs(drawn - shares).sum(axis=1).mean() / 2, rel=0.03)


def test_ranks_repeats_and_points_are_counted(analyze: Any) -> None:
    analysis = analyze(
        [
            ("a", 1, 5, 9, -1, "", *OHIO),
            ("b", 1, 5, 9, -1, "", *OHIO),
            ("c", 5, 5, 77, -1, "", *UTAH),
            ("c", 9, 1, 5, -1, "", 0, 0),
            ("d", 9, 1, 5, -1, "", 95, 0),
            ("e", 77, 1, 5, -1, "", *SEA),
        ]
    )
    assert [(rank["empty"], rank["states"]) for rank in analysis["ranks"]["ranks"]] == [
        *((0, 4), (0, 2), (0, 3), (6, 0), (6, 0))
    ]
    assert analysis["ranks"]["repeated_states"] == 1
    assert analysis["repeated_rows"] == {"same_answer": 2, "distinct_answers": 5, "same_id": 2}
    points = analysis["coordinates"]
    assert (points["points"], points["without"], points["at_zero"], points["outside_region"]) == (5, 1, 1, 1)
    assert (points["distinct"], points["shared"]) == (4, 2)
    assert points["most_repeated"] == [{"latitude": 40.2, "longitude": -82.7, "samples": 2}]
    assert points["latitude"] == {"min": 0.0, "median": 40.2, "max": 45.0}
    assert (analysis["states"]["not_in_training"], analysis["unusable"]) == (1, 1)
    assert {row["state"]: row["first"] for row in analysis["states"]["table"]}["77 (no class)"] == 1
    assert analysis["confidence"] is None


def test_points_outside_their_first_state_are_those_beyond_its_border_or_hull(analyze: Any) -> None:
    outside = analyze(
        [
            # All over Ohio, though no training place lies there.
            ("inside", 1, 5, 9, -1, -1, 41.3, -83.9),
            # Cincinnati's other bank is Kentucky.
            ("near", 1, 5, 9, -1, -1, 39.0, -84.5),
            ("far", 1, 5, 9, -1, -1, *UTAH),
            ("in the hull", 9, 1, 5, -1, -1, *SEA),
            ("beside the hull", 9, 1, 5, -1, -1, 45.0, -25.0),
            ("no class", 77, 1, 5, -1, -1, *SEA),
        ]
    )["outside"]
    assert (outside["samples"], outside["outside"], outside["beyond_100_km"]) == (5, 3, 2)
    assert outside["share"] == pytest.approx(0.6)
    assert outside["train_share"] == 0
    assert [row["sample_id"] for row in outside["farthest"]] == ["far", "beside the hull", "near"]
    far, beside, near = (row["km"] for row in outside["farthest"])
    # From the middle of Utah to Ohio's western border, from 30° to 25° West, and across a river.
    assert 2200 < far < 2400
    assert 300 < beside < 400
    assert 0 < near < 15
    assert {row["state"]: (row["outside"], row["outline"]) for row in outside["by_state"]} == {
        "Ohio": (2, "us-atlas"),
        "<b>Nowhere</b>": (1, "hull"),
    }


def test_a_file_without_a_single_answer_is_analyzed_as_well(analyze: Any) -> None:
    analysis = analyze([("a", "", "", "", "", "", "", "")])
    assert analysis["outside"]["samples"] == 0
    assert analysis["outside"]["share"] is None
    assert analysis["coordinates"]["latitude"] == {"min": None, "median": None, "max": None}
    assert analysis["states"]["total_variation"] == pytest.approx(0.5)
    assert analyze([])["rows"] == 0


def test_confidence_is_that_of_the_run_whose_answers_they_are(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    sure = analyze_submission(config, path, limit=3)["confidence"]
    shares = np.stack(pd.read_parquet(run.predictions_path("test"))["probabilities"].to_list())
    top = -np.sort(-shares, axis=1)
    assert sure["run"] == "first"
    assert sure["mean"] == sure["expected_top1"] == pytest.approx(top[:, 0].mean())
    assert sure["expected_state_score"] == pytest.approx((top[:, :5] * RANK_CREDIT).sum(axis=1).mean())
    assert [row["confidence"] for row in sure["least_confident"]] == pytest.approx(sorted(top[:, 0])[:3])


def test_the_command_prints_it_and_its_json_is_whole(
    country: Country, run: Run, config: Config, geo: Geo, tmp_path: Path
) -> None:
    path, _ = submit(config, run)
    options = country.options(tmp_path)
    ran = geo(*options, "--json", "submission", "analyze", path)
    assert (ran.code, ran.json["rows"]) == (0, 32)
    assert len(ran.json["states"]["table"]) >= len(run.labels)
    ran_for_people = geo(*options, "submission", "analyze", path, "--limit", "2")
    assert (ran_for_people.code, ran_for_people.err) == (0, "")
    assert "first itself expects a state score of" in ran_for_people.out
    assert f"… and {len(ran.json['states']['table']) - 2} more" in ran_for_people.out
