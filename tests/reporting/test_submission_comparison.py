"""Two submissions: agreement, distance and what they can be worth, on files whose every number is known."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from small import answer_otherwise

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.geography import haversine_km
from geo_embed.metrics import competition_score, state_credit
from geo_embed.prediction.submission import submit
from geo_embed.reporting.submission_comparison import (
    Comparison,
    compare_submissions,
    most_credit_difference,
)
from geo_embed.reporting.submission_page import comparison_page
from geo_embed.runs.run import Run
from geo_embed.settings import get_config

if TYPE_CHECKING:
    from conftest import Country, Geo

COLUMNS = [
    "sample_id",
    *(f"predicted_state_idx_{k}" for k in range(1, 6)),
    "predicted_latitude",
    "predicted_longitude",
]
NAMES = {0: "A", 1: "<script>alert(1)</script>", 2: "C", 3: "D", 4: "E", 5: "F", 6: "G"}


@pytest.fixture
def compare(tmp_path: Path) -> Any:
    (tmp_path / "state_mapping.csv").write_text(
        "state_idx,state\n" + "".join(f"{k},{name}\n" for k, name in NAMES.items())
    )
    config = get_config(
        paths={"data_root": tmp_path, "runs_dir": tmp_path / "runs", "submissions_dir": tmp_path / "s"}
    )

    def compared(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]]) -> Comparison:
        for name, rows in (("a", a), ("b", b)):
            pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / f"{name}.csv", index=False)
        comparison = compare_submissions(config, tmp_path / "a.csv", tmp_path / "b.csv")
        json.dumps(comparison.statistics, allow_nan=False)
        return comparison

    return compared


A = [
    ("x", 0, 1, 2, 3, 4, 40, -100),
    ("y", 0, 1, 2, 3, 4, 40, -100),
    ("z", 0, 1, 2, 3, 4, 40, -100),
    ("only a", 0, 1, 2, 3, 4, 40, -100),
]
B = [
    ("z", 5, 6, 2, -1, -1, 41, -100),
    ("y", 1, 0, 2, 3, 4, 40, -100),
    ("x", 0, 1, 2, 3, 4, 40, -100),
    ("only b", 0, 1, 2, 3, 4, 40, -100),
    ("only b too", 0, 1, 2, 3, 4, 40, -100),
]


def test_agreement_and_distance_are_counted_by_id(compare: Any) -> None:
    statistics = compare(A, B).statistics
    assert (statistics["samples"], statistics["only_a"], statistics["only_b"]) == (3, 1, 2)
    assert [rank["same"] for rank in statistics["ranks"]] == pytest.approx([1 / 3, 1 / 3, 1, 2 / 3, 2 / 3])
    assert statistics["same_states"] == pytest.approx(2 / 3)
    assert statistics["shared_states"] == pytest.approx((5 + 5 + 1) / 3)
    assert statistics["same_answers"] == 1
    degree = haversine_km(40, -100, 41, -100)
    assert statistics["km"]["mean"] == pytest.approx(degree / 3)
    assert statistics["km"]["median"] == 0
    assert statistics["km"]["quantiles"]["0.5"] == 0
    assert statistics["km"]["max"] == pytest.approx(degree)
    assert statistics["effect"]["expected"] is None


def test_a_state_that_is_repeated_is_shared_once(compare: Any) -> None:
    statistics = compare([("x", 0, 0, 0, 1, -1, 40, -100)], [("x", 0, 0, 2, -1, -1, 40, -100)]).statistics
    assert statistics["shared_states"] == 1


def test_the_most_different_come_first_with_their_names(compare: Any) -> None:
    samples = compare(A, B).samples
    assert samples["sample_id"].tolist() == ["z", "y", "x"]
    # z: right at A's first rank, nothing in B. y: one of the first two states, 1.00 or 0.60.
    assert samples["credit"].tolist() == pytest.approx([1, 0.4, 0])
    degree = float(haversine_km(40, -100, 41, -100))
    assert samples["difference"].tolist() == pytest.approx([0.7 + 0.3 * degree / 5000, 0.28, 0])
    assert samples["states_b"][0] == "F, G, C"


def test_no_truth_makes_scores_differ_by_more_than_is_said() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-1, 4, (40, 5)), rng.integers(-1, 4, (40, 5))
    bound = most_credit_difference(a, b)
    apart = np.max(
        [np.abs(state_credit(a, np.full(40, k)) - state_credit(b, np.full(40, k))) for k in range(5)], axis=0
    )
    assert bound.tolist() == apart.tolist()


def test_the_effect_bounds_the_difference_of_real_scores(compare: Any) -> None:
    rng = np.random.default_rng(1)

    def answers() -> list[tuple[Any, ...]]:
        return [
            (f"s{n}", *rng.permutation(7)[:5].tolist(), rng.uniform(20, 60), rng.uniform(-120, -60))
            for n in range(30)
        ]

    a, b = answers(), answers()
    most = compare(a, b).statistics["effect"]["most"]["score"]
    tables = [np.array([row[1:] for row in rows], dtype=np.float64) for rows in (a, b)]
    for _ in range(200):
        truth = rng.integers(0, 7, 30)
        lat, lon = rng.uniform(20, 60, 30), rng.uniform(-120, -60, 30)
        first, second = (
            competition_score(t[:, :5].astype(int), truth, haversine_km(t[:, 5], t[:, 6], lat, lon))[0]
            for t in tables
        )
        assert abs(first - second) <= most
    assert most < 1


def test_files_without_points_or_of_fewer_ranks_are_compared_all_the_same(compare: Any) -> None:
    rows = [("x", 0, 1, -1, -1, -1, "", ""), ("y", 0, 1, -1, -1, -1, 40, -100)]
    comparison = compare(rows, [(*row[:6], 40, 200 if row[0] == "y" else 0) for row in rows])
    statistics = comparison.statistics
    assert [rank["same"] for rank in statistics["ranks"]] == [1, 1, None, None, None]
    assert statistics["km"]["mean"] is None
    assert "No sample has a point in both files" in comparison_page(comparison, limit=5)


def test_what_can_t_be_compared_is_refused(compare: Any) -> None:
    with pytest.raises(GeoError, match="no sample in common: 'x' is in"):
        compare(A, B[3:])
    with pytest.raises(GeoError, match="'x' is repeated"):
        compare([A[0], A[0]], B)
    for rows, name in (([], B), "a"), ((A, []), "b"):
        with pytest.raises(GeoError, match="has no rows") as caught:
            compare(*rows)
        assert Path(str(caught.value.where)).stem == name


def test_expected_scores_come_from_the_probabilities_of_the_runs(config: Config, run: Run) -> None:
    path, _ = submit(config, run)
    worse = path.with_name("worse.csv")
    table = pd.read_csv(path, dtype=str)
    table[COLUMNS[1:6]] = table[COLUMNS[5:0:-1]].to_numpy()
    table.to_csv(worse, index=False)
    statistics = compare_submissions(config, path, worse).statistics
    expected = statistics["effect"]["expected"]
    assert expected["by"] == ["first"]
    shares = np.stack(pd.read_parquet(run.predictions_path("test"))["probabilities"].to_list())
    top = -np.sort(-shares, axis=1)[:, :5]
    credit = np.array([1.0, 0.6, 0.4, 0.25, 0.15])
    assert expected["state_score_a"] == pytest.approx((top * credit).sum(axis=1).mean(), rel=1e-6)
    assert expected["state_score_b"] == pytest.approx((top * credit[::-1]).sum(axis=1).mean(), rel=1e-6)
    assert statistics["a"]["local"] == run.read_metrics()["score"]
    assert statistics["b"]["run"] is None


# ---------------------------------------------------------------- the page


class Seen(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_fetches_nothing_and_runs_no_name(compare: Any) -> None:
    wicked = '"><img src=x onerror=alert(1)>'
    rows = [(wicked, 1, 0, 2, 3, 4, 40, -100), *A]
    page = comparison_page(compare(rows, rows[::-1][1:]), limit=10)
    seen = Seen(page)
    assert wicked in seen.text
    assert NAMES[1] in seen.text
    assert not {"script", "img", "link", "iframe"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith(("on", "src")) or name == "style"]
    assert all((value or "").startswith("#") for name, value in seen.attributes if name == "href")
    assert not re.search(r"https?:|url\(", page)
    assert "default-src &#x27;none&#x27;; style-src &#x27;sha256-" in page
    assert "unsafe" not in page


def test_the_pages_bars_are_the_numbers(compare: Any) -> None:
    page = comparison_page(compare(A, B), limit=1)
    widths = re.findall(r'<rect width="([\d.]+)"', page)
    assert widths[:5] == ["33.3", "33.3", "100.0", "66.7", "66.7"]
    assert sum(map(float, widths[5:])) == pytest.approx(100, abs=0.1)
    assert "1 of 3 samples" in page


def test_the_command_writes_the_table_and_the_page(
    country: Country, run: Run, config: Config, geo: Geo, tmp_path: Path
) -> None:
    first, _ = submit(config, run)
    kept = first.with_name("kept.csv")
    kept.write_bytes(first.read_bytes())
    answer_otherwise(run)
    submit(config, run)
    options = country.options(tmp_path)
    ran = geo(
        *options,
        "--json",
        "submission",
        "compare",
        kept,
        first,
        "--limit",
        3,
        "--out",
        "t/all.csv",
        "--html",
        "p/c.html",
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["km"]["mean"] == pytest.approx(55.6, abs=0.1)
    assert [rank["same"] for rank in ran.json["ranks"]] == [1] * 5
    assert ran.json["effect"]["most"]["state_score"] == 0
    assert ran.json["effect"]["most"]["score"] == pytest.approx(0.3 * ran.json["km"]["mean"] / 5000)
    table = pd.read_csv(tmp_path / "t" / "all.csv", dtype={"sample_id": str})
    assert len(table) == 32
    listed = [row["sample_id"] for row in ran.json["most_different"]]
    assert table["sample_id"].head(3).tolist() == listed
    page = (tmp_path / "p" / "c.html").read_text()
    assert all(sample in page for sample in listed)
    compared = geo(*options, "submission", "compare", kept, first)
    assert "scores differ by" in compared.out
    refused = geo(*options, "submission", "compare", kept, first, "--out", "all.docx")
    assert refused.code == 1
    assert not any(itertools.chain(tmp_path.glob("*.docx")))
