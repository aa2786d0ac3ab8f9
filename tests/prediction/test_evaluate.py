"""The metrics of a run, and the tables that say where its score comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Country
from small import command, files, saved_predictions

from geo_embed.cache.store import open_store, read_store
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.geography import haversine_km
from geo_embed.heads.predictor import apply_heads
from geo_embed.metrics import bootstrap_interval, competition_score, state_credit, top_states
from geo_embed.prediction.evaluate import evaluate
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, load_run

ALL = ("class", "view", "border", "distance", "calibration")


def answers(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranked classes, true classes and km of the held-out samples."""
    predictions, truth = saved_predictions(run.path / "val_predictions.parquet")
    assert truth is not None
    km = haversine_km(predictions.latitude, predictions.longitude, truth.latitude, truth.longitude)
    return top_states(predictions.probabilities), run.labels.encode(truth.state_idx), km


def set_training(run: Run, **changes: Any) -> Run:
    """The run, as if made with other settings."""
    path = run.path / "config.toml"
    lines = path.read_text().splitlines()
    for key, value in changes.items():
        (at,) = (k for k, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[at] = f"{key} = {json.dumps(value)}"
    path.write_text("\n".join(lines))
    return load_run(run.path.parent, run.name)


def hold_nothing_out(run: Run) -> None:
    path = run.path / "val_predictions.parquet"
    pd.read_parquet(path).head(0).to_parquet(path)


def test_the_score_comes_with_its_interval(config: Config, run: Run) -> None:
    scores = evaluate(config, run)
    ranked, labels, km = answers(run)
    assert scores["score_interval"] == list(bootstrap_interval(state_credit(ranked, labels), km))
    low, high = scores["score_interval"]
    assert low < scores["score"] < high


def test_a_spatial_run_is_resampled_by_its_groups(config: Config, run: Run) -> None:
    alone = evaluate(config, run)["score_interval"]
    far = set_training(run, validation="spatial", group_km=1e-6)
    assert evaluate(config, far)["score_interval"] == alone
    together = set_training(run, validation="spatial", group_km=700.0)
    assert evaluate(config, together)["score_interval"] != alone
    # One group tells nothing of a spread.
    single_group = set_training(run, validation="spatial", group_km=10_000.0)
    assert evaluate(config, single_group)["score_interval"] == [None, None]


def test_without_a_table_there_is_none_and_with_all_of_them_the_metrics_stay(
    config: Config, run: Run
) -> None:
    plain, full = evaluate(config, run), evaluate(config, run, by=ALL)
    assert not set(ALL) & plain.keys()
    assert {key: full[key] for key in plain} == plain
    assert list(full)[len(plain) :] == list(ALL)
    json.dumps(full, allow_nan=False)


def test_tables_agree_with_the_metrics(config: Config, run: Run) -> None:
    full = evaluate(config, run, by=ALL)
    n = full["samples"]
    for table in ("class", "border", "calibration"):
        assert sum(row["samples"] for row in full[table]) == n
    for table, column, metric in (
        ("class", "top1", "top1"),
        ("class", "credit", "state_score"),
        ("border", "top1", "top1"),
        ("border", "score", "score"),
        ("border", "geoscore", "geoscore"),
        ("calibration", "accuracy", "top1"),
    ):
        total = sum(row["samples"] * row[column] for row in full[table] if row["samples"])
        assert total / n == pytest.approx(full[metric]), (table, column)
    (median,) = (row["km"] for row in full["distance"] if row["percentile"] == 50)
    assert median == pytest.approx(full["median_km"])
    assert [row["state"] for row in full["class"]] == list(run.labels.names)
    assert [row["state_idx"] for row in full["class"]] == run.labels.state_idx.tolist()


def test_the_border_is_measured_to_every_sample_of_the_train_csv(
    config: Config, run: Run, country: Country
) -> None:
    table = pd.read_csv(country.train_csv)
    held_out = pd.read_parquet(run.path / "val_predictions.parquet")["sample_id"]
    counts = [0] * 6
    for _, sample in table[table["sample_id"].isin(held_out)].iterrows():
        others = table[table["state_idx"] != sample["state_idx"]]
        away = haversine_km(
            sample["latitude"], sample["longitude"], others["latitude"], others["longitude"]
        ).min()
        counts[int(np.searchsorted([10, 25, 50, 100, 250], away, side="right"))] += 1
    assert [row["samples"] for row in evaluate(config, run, by=["border"])["border"]] == counts


def test_each_view_alone_and_each_view_hidden_are_scored_by_the_runs_own_heads(
    config: Config, run: Run, country: Country
) -> None:
    rows = evaluate(config, run, by=["view"])["view"]
    _, labels, _ = answers(run)
    predictions, truth = saved_predictions(run.path / "val_predictions.parquet")
    assert truth is not None
    embeddings = read_store(open_store(country.store(), writable=False))
    at = [embeddings.sample_id.tolist().index(sample_id) for sample_id in predictions.sample_id]
    heads = load_heads(run)

    def score(seen: list[bool]) -> float:
        # Hidden views are zeroed, too: nothing of them may count.
        mask = np.tile(seen, (len(at), 1))
        values = embeddings.values[at] * mask[:, :, None]
        answer = apply_heads(
            heads, torch.device("cpu"), run.prior, run.labels, predictions.sample_id, values, mask
        )
        km = haversine_km(answer.latitude, answer.longitude, truth.latitude, truth.longitude)
        return competition_score(top_states(answer.probabilities), labels, km)[0]

    whole = score([True] * 4)
    assert [row["view"] for row in rows] == ["north", "east", "south", "west"]
    for v, row in enumerate(rows):
        assert row["samples"] == len(at)
        assert row["alone"] == pytest.approx(score([k == v for k in range(4)]))
        assert row["hidden"] == pytest.approx(score([k != v for k in range(4)]))
        assert row["cost"] == pytest.approx(whole - row["hidden"], abs=1e-6)
    assert len({row["alone"] for row in rows}) > 1


def test_views_come_with_a_warning_where_the_heads_have_seen_the_samples_or_were_chosen_by_them(
    config: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(config, run)
    assert "too good" not in capsys.readouterr().err
    evaluate(config, run, by=["view"])
    assert "chose an epoch of the run's heads" in capsys.readouterr().err
    written = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    del written["chosen"]
    (run.path / "metrics.json").write_text(json.dumps(written), encoding="utf-8")
    evaluate(config, run)
    assert "of a version that chose an epoch by these samples" in capsys.readouterr().err
    evaluate(config, set_training(run, folds=3), by=["view"])
    assert "a little too good" in capsys.readouterr().err


def test_views_need_the_samples_in_the_store(config: Config, run: Run) -> None:
    path = run.path / "val_predictions.parquet"
    table = pd.read_parquet(path)
    table.loc[0, "sample_id"] = 999_999
    table.to_parquet(path)
    with pytest.raises(GeoError, match="999999 first"):
        evaluate(config, run, by=["view"])
    with pytest.raises(GeoError):
        evaluate(
            config.model_copy(update={"paths": config.paths.model_copy(update={"cache_dir": Path("none")})}),
            run,
            by=["view"],
        )


def test_tables_of_nothing_held_out_are_there_and_know_nothing(config: Config, run: Run) -> None:
    hold_nothing_out(run)
    full = evaluate(config, run, by=ALL)
    assert full["samples"] == 0
    assert full["score_interval"] == [None, None]
    assert [len(full[name]) for name in ALL] == [len(run.labels), 4, 6, 7, 15]
    known = {"state", "state_idx", "class", "samples", "view", "from_km", "to_km", "percentile", "from", "to"}
    assert {
        value for name in ALL for row in full[name] for key, value in row.items() if key not in known
    } == {None}


def test_the_samples_learnt_from_have_tables_too_and_nothing_is_written(config: Config, run: Run) -> None:
    before = files(run.path)
    learnt = evaluate(config, run, "train", by=ALL)
    assert files(run.path) == before
    assert learnt["samples"] + evaluate(config, run)["samples"] == 128
    assert sum(row["samples"] for row in learnt["class"]) == learnt["samples"]
    assert learnt["view"][0]["samples"] == learnt["samples"]


def test_a_score_of_samples_that_were_trained_on_has_no_interval_and_is_called_what_it_is(
    config: Config, run: Run, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt, held_out = evaluate(config, run, "train"), evaluate(config, run)
    assert learnt["trained_on"] is True
    assert learnt["score_interval"] == [None, None]
    assert "trained_on" not in held_out
    assert None not in held_out["score_interval"]
    ran = command(capsys, *country.options(tmp_path), "evaluate", "first", "--split", "all")
    assert ran.code == 0, ran.err
    train, val = ran.out.split("[val]")
    word = "trained on these samples: not a score to believe"
    assert word in train
    assert word not in val
    assert f"score        {learnt['score']:.4f}, states" in train


# ---------------------------------------------------------------- the command


def test_json_holds_each_table_under_its_name(
    config: Config, run: Run, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [part for name in ALL for part in ("--by", name)]
    ran = command(capsys, *country.options(tmp_path), "--json", "evaluate", "first", *asked, "--by", "view")
    assert ran.code == 0, ran.err
    assert ran.json == {"run": "first", "split": "val", **evaluate(config, run, by=ALL)}


def test_people_get_the_interval_and_columns(
    config: Config, run: Run, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = evaluate(config, run)
    low, high = scores["score_interval"]
    options = country.options(tmp_path)
    ran = command(capsys, *options, "evaluate", "first", "--by", "class", "--by", "distance")
    assert f"{scores['score']:.4f} ({low:.3f}–{high:.3f})" in ran.out
    km = answers(run)[2]
    assert f"geoscore     {(5000 * np.exp(-km / 1492.7)).mean():,.0f} of 5,000" in ran.out
    assert (
        f"spread       {km.min():,.1f} to {km.max():,.1f} km, standard deviation {km.std():,.1f} km"
        in ran.out
    )
    first = (answers(run)[0][:, 0] == answers(run)[1]).mean()
    assert f"true rank    1 {first:.1%}, 2 " in ran.out
    assert "[val, by class]" in ran.out
    lines = ran.out.splitlines()
    start = lines.index("[val, by distance]")
    assert lines[start + 1].split() == ["percentile", "km"]
    assert lines[start + 4].split() == ["50", f"{scores['median_km']:,.1f}"]
    header = next(line for line in lines if line.startswith("state "))
    (alabama,) = (line for line in lines if line.startswith(run.labels.names[0]))
    assert len(header.split()) == 10
    assert alabama.split()[0] == run.labels.names[0]
    both = command(capsys, *options, "evaluate", "first", "--split", "all", "--by", "distance")
    assert "[train, by distance]" in both.out
    assert "[val, by distance]" in both.out


def test_a_table_that_there_is_not_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    ran = command(capsys, "evaluate", "first", "--by", "colour")
    assert ran.code == 2
    assert "calibration" in ran.err


def test_the_worst_samples_come_with_their_truth_and_the_file_has_them_all(
    country: Country, run: Run, config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = files(run.path)
    options = country.options(tmp_path)
    out = tmp_path / "results" / "worst.csv"
    ran = command(
        capsys, *options, "--json", "evaluate", "first", "--by", "worst", "--limit", "3", "--out", out
    )
    assert ran.code == 0, ran.err
    assert (ran.json["out"], len(ran.json["rows"])) == (str(out), 3)
    assert ran.json["score"] == evaluate(config, run)["score"]
    assert len(pd.read_csv(out)) == 3
    for_people = command(capsys, *options, "evaluate", "first", "--by", "worst", "--out", out)
    table = pd.read_csv(out)
    predictions, truth = saved_predictions(run.path / "val_predictions.parquet")
    assert truth is not None
    assert sorted(table["sample_id"].astype(str)) == sorted(predictions.sample_id)
    assert list(table["score"]) == sorted(table["score"])
    assert table["score"].mean() == pytest.approx(ran.json["score"])
    assert ran.json["rows"][0]["sample_id"] == table["sample_id"][0]
    assert f"table  {out}" in for_people.out
    assert files(run.path) == before


def test_states_taken_for_others_are_counted_with_their_samples(
    country: Country, run: Run, config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = command(
        capsys, *country.options(tmp_path), "--json", "evaluate", "first", "--by", "confusion", "--limit", 99
    )
    scores = evaluate(config, run)
    assert ran.json["rows"] == ran.json["confusion"]
    wrong = sum(row["samples"] for row in ran.json["rows"])
    assert wrong == round(scores["samples"] * (1 - scores["top1"]))
    assert all(row["true_state"] != row["state"] for row in ran.json["rows"])


def test_a_run_that_held_nothing_out_has_empty_tables(
    country: Country, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hold_nothing_out(run)
    for by in ("worst", "confusion"):
        ran = command(capsys, *country.options(tmp_path), "evaluate", "first", "--by", by)
        assert ran.code == 0, ran.err
        assert ran.out.endswith("none\n")


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("--out", "x.csv"), 2, "one table"),
        (("--by", "worst", "--by", "class", "--out", "x.csv"), 2, "one table"),
        (("--by", "worst", "--split", "all", "--out", "x.csv"), 2, "one split"),
        (("--by", "worst", "--out", "x.xlsx"), 1, "written as .csv, .parquet, .geojson"),
        (("--by", "class", "--out", "x.geojson"), 1, "no points"),
        (("--by", "worst", "--limit", "0"), 2, "--limit"),
    ],
)
def test_a_file_that_cannot_be_is_refused(
    country: Country,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    what: str,
) -> None:
    ran = command(capsys, *country.options(tmp_path), "evaluate", "first", *arguments)
    assert ran.code == code
    assert what in " ".join(ran.err.split())
    assert list(Path().glob("x.*")) == []


def test_every_table_can_be_written(config: Config, run: Run) -> None:
    for by in ("class", "border", "distance", "calibration", "confusion", "worst"):
        made = evaluate(config, run, by=[by], out=Path(f"{by}.parquet"))
        assert len(pd.read_parquet(f"{by}.parquet")) >= len(made["rows"]) > 0
