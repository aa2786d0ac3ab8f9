"""The benchmarks' tables: what they count, of which samples, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from pictures import scene
from small import command, files, saved_predictions

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.geography import haversine_km
from geo_embed.metrics import mean_intervals
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.predict import predict_cached
from geo_embed.prediction.protocol import evaluate_protocol
from geo_embed.runs.run import Run, load_run

if TYPE_CHECKING:
    from conftest import Country

NORTH_KM = 6371 * np.pi / 180


def test_held_out_samples_in_im2gps3ks_table_are_those_that_evaluate_counts(config: Config, run: Run) -> None:
    before = files(run.path)
    protocol, scores = evaluate_protocol(config, run, "im2gps3k"), evaluate(config, run)
    assert list(protocol["within_km"]) == ["1", "25", "200", "750", "2500"]
    for key in protocol["within_km"]:
        assert protocol["within_km"][key] == pytest.approx(scores["within_km"][key])
    for key in ("geoscore", "mean_km", "median_km", "samples"):
        assert protocol[key] == pytest.approx(scores[key])
    assert (protocol["split"], "areas" in protocol) == ("val", False)
    assert "held out by the run, at random" in protocol["rows"]
    assert "they chose nothing" in protocol["rows"]
    predictions, truth = saved_predictions(run.path / "val_predictions.parquet")
    assert truth is not None
    km = haversine_km(predictions.latitude, predictions.longitude, truth.latitude, truth.longitude)
    (interval,) = mean_intervals((km <= 750)[:, None])
    assert protocol["intervals"]["within_km"]["750"] == list(interval)
    low, high = protocol["intervals"]["geoscore"]
    assert low < protocol["geoscore"] < high
    assert files(run.path) == before


@pytest.fixture
def truth_at(run: Run, config: Config, tmp_path: Path) -> Callable[..., Path]:
    """A file that places test samples so many km away from where the run puts them."""

    def write(kilometres: list[float], **columns: list[str]) -> Path:
        predictions, _, _ = predict_cached(run, "test", config.paths, "cpu")
        latitude = predictions.latitude - np.resize(kilometres, len(predictions)) / NORTH_KM
        table = pd.DataFrame(
            {
                "sample_id": predictions.sample_id,
                "latitude": latitude,
                "longitude": predictions.longitude,
                **columns,
            }
        )
        # In another order, and not all of them.
        path = tmp_path / "truth.csv"
        table.iloc[::-1].iloc[: len(kilometres)].to_csv(path, index=False)
        return path

    return write


def test_a_test_split_is_scored_by_the_places_that_a_file_tells(
    run: Run, config: Config, truth_at: Callable[..., Path]
) -> None:
    path = truth_at([0.5, 20.0, 150.0, 700.0, 2000.0, 2600.0, 0.9, 24.0])
    before = files(run.path)
    protocol = evaluate_protocol(config, run, "im2gps3k", truth=path)
    assert (protocol["samples"], protocol["split"]) == (8, "test")
    assert list(protocol["within_km"].values()) == [2 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8]
    assert protocol["mean_km"] == pytest.approx(np.mean([0.5, 20, 150, 700, 2000, 2600, 0.9, 24]))
    assert (
        protocol["rows"]
        == "of the test split, places from truth.csv; they chose nothing; 24 more have no place there"
    )
    assert files(run.path) == before


def nearest(latitude: np.ndarray, longitude: np.ndarray, table: pd.DataFrame) -> list[int]:
    """Rows of a table that lie nearest to points, by looking at every one."""
    return [
        int(haversine_km(a, b, table["latitude"], table["longitude"]).argmin())
        for a, b in zip(latitude, longitude, strict=True)
    ]


def test_areas_are_those_of_the_nearest_place_that_the_run_learnt_from(own: Country, run: Run) -> None:
    train = pd.read_csv(own.train_csv, dtype={"sample_id": str})
    train["country"] = train["state"]
    train["region"] = np.where(train["latitude"] > train["latitude"].median(), "north", "south")
    train.loc[::3, "region"] = ""
    split = run.read_split()
    held_out = train["sample_id"].isin(split["sample_id"][split["part"] == "val"].astype(str))
    train["city"] = np.where(held_out, "Oslo", "Lima")
    train.to_csv(own.train_csv, index=False)
    # As if it were right to some kilometres: the nearest of all places would be the held-out one itself.
    answers = pd.read_parquet(run.path / "val_predictions.parquet")
    answers["latitude"], answers["longitude"] = answers["true_latitude"] + 0.02, answers["true_longitude"]
    answers.to_parquet(run.path / "val_predictions.parquet")
    protocol = evaluate_protocol(own.config(), load_run(run.path.parent, "first"), "osv5m")

    predictions, _ = saved_predictions(run.path / "val_predictions.parquet")
    learnt = train[~held_out].reset_index(drop=True)
    nearest_learnt = learnt.iloc[nearest(predictions.latitude, predictions.longitude, learnt)]
    true_rows = train.set_index("sample_id").loc[list(predictions.sample_id)]
    known = (true_rows["region"] != "").to_numpy()
    areas = protocol["areas"]
    assert list(areas) == ["country", "region", "city", "country_by_class"]
    right = nearest_learnt["region"].to_numpy()[known] == true_rows["region"].to_numpy()[known]
    assert 0 < known.sum() < len(known)
    assert (areas["region"]["accuracy"], areas["region"]["samples"]) == (
        pytest.approx(right.mean()),
        known.sum(),
    )
    assert areas["country"]["accuracy"] == pytest.approx(
        (nearest_learnt["country"].to_numpy() == true_rows["country"].to_numpy()).mean()
    )
    # Held-out places are not among those that areas are taken from.
    assert areas["city"]["accuracy"] == 0
    assert areas["country_by_class"]["accuracy"] == pytest.approx(evaluate(own.config(), run)["top1"])
    low, high = areas["region"]["interval"]
    assert low <= areas["region"]["accuracy"] <= high


def test_without_columns_of_areas_there_are_none(config: Config, run: Run) -> None:
    protocol = evaluate_protocol(config, run, "osv5m")
    assert protocol["areas"] == {}
    assert protocol["geoscore"] == pytest.approx(evaluate(config, run)["geoscore"])


def test_a_run_that_held_nothing_out_has_no_table(
    config: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.path / "val_predictions.parquet"
    pd.read_parquet(path).head(0).to_parquet(path)
    protocol = evaluate_protocol(config, load_run(run.path.parent, run.name), "osv5m")
    assert (protocol["samples"], protocol["geoscore"], protocol["within_km"]["1"]) == (0, None, None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.drop(columns="latitude"), "missing column 'latitude'"),
        (lambda t: t.assign(latitude=[91.0, *t["latitude"][1:]]), "no coordinates in degrees .*row 2"),
        (lambda t: t.assign(longitude=["", *t["longitude"][1:]]), "no coordinates in degrees .*row 2"),
        (lambda t: t.assign(sample_id="7"), "the sample_id of an earlier row .*row 3"),
        (lambda t: t.assign(sample_id=["elsewhere", *t["sample_id"][1:]]), "1 of its 8 samples are none of the test split's, elsewhere"),
    ],
)  # fmt: skip
def test_a_truth_that_is_none_is_refused(
    run: Run, config: Config, truth_at: Callable[..., Path], change: Any, why: str
) -> None:
    path = truth_at([1.0] * 8)
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(GeoError, match=why):
        evaluate_protocol(config, run, "im2gps3k", truth=path)


def test_the_command_says_which_samples_these_are(
    country: Country, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = country.options(tmp_path)
    ran = command(capsys, *options, "evaluate", "first", "--protocol", "im2gps3k")
    assert ran.code == 0, ran.err
    assert "they chose nothing; not the benchmark's own; im2gps3k itself has 2,997" in ran.out
    assert [line.split()[:3] for line in ran.out.splitlines() if line.startswith("within")][1:3] == [
        ["within", "25", "km"],
        ["within", "200", "km"],
    ]
    osv = command(capsys, *options, "evaluate", "first", "--protocol", "osv5m")
    assert "geoscore" in osv.out
    assert "none of the columns country" in osv.out
    assert command(capsys, "--json", *options, "evaluate", "first", "--protocol", "osv5m").json["areas"] == {}
    for wrong in (
        ("--truth", "t.csv"),
        ("--protocol", "osv5m", "--by", "class"),
        ("--protocol", "osv5m", "--split", "train"),
    ):
        assert command(capsys, *options, "evaluate", "first", *wrong).code == 2


def test_a_run_over_osv5m_is_scored_on_im2gps3k(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the benchmarks' own files to their tables, as docs/data.md says it."""
    towns = {"PE": (-12.05, -77.04, "Lima"), "NO": (59.91, 10.75, "Oslo")}
    for split, count in (("train", 15), ("test", 3)):
        rows = []
        for c, (code, (latitude, longitude, town)) in enumerate(towns.items()):
            for k in range(count):
                number = 1000 * (split == "test") + 100 * c + k
                picture = tmp_path / "osv5m" / "images" / split / "00" / f"{number}.jpg"
                picture.parent.mkdir(parents=True, exist_ok=True)
                scene(64, 64, number).save(picture)
                place = {"id": number, "latitude": latitude + k / 10, "longitude": longitude, "country": code}
                rows.append({**place, "region": f"{town}_{code}", "sub-region": "", "city": f"{town}_{code}"})
        pd.DataFrame(rows).to_csv(tmp_path / "osv5m" / f"{split}.csv", index=False)
    pictures = tmp_path / "im2gps3k" / "images"
    pictures.mkdir(parents=True)
    for k in range(4):
        scene(64, 64, 500 + k).save(pictures / f"{k}@N00.jpg")
    table = pd.DataFrame(
        {
            "IMG_ID": [f"{k}@N00.jpg" for k in range(4)],
            "AUTHOR": "N00",
            "LAT": [-12.0, 59.9, 1.0, 2.0],
            "LON": 10.0,
        }
    )
    table.to_csv(tmp_path / "im2gps3k" / "im2gps3k_places365.csv", index=False)

    for source in ("osv5m", "im2gps3k"):
        made = command(capsys, "data", "adopt", tmp_path / source, "--out", tmp_path / f"{source}-data")
        assert made.code == 0, made.err
    monkeypatch.chdir(tmp_path / "osv5m-data")
    backbone = ("--backbone", country.backbone)
    for words in (("extract", "--split", "train"), ("fit-heads", "--name", "first")):
        ran = command(
            capsys, "--set", "training.preset=pigeon", "--set", "training.epochs=2", *words, *backbone
        )
        assert ran.code == 0, ran.err
    truth = ("--truth", "test_ground_truth.csv")
    osv = command(capsys, "--json", "evaluate", "first", "--protocol", "osv5m", *truth)
    assert osv.code == 0, osv.err
    assert (osv.json["samples"], list(osv.json["areas"])) == (
        6,
        ["country", "region", "sub-region", "city", "country_by_class"],
    )
    assert osv.json["areas"]["sub-region"] == {"accuracy": None, "interval": [None, None], "samples": 0}
    assert osv.json["areas"]["city"]["samples"] == 6
    monkeypatch.chdir(tmp_path / "im2gps3k-data")
    run = tmp_path / "osv5m-data" / "runs" / "first"
    im2gps = command(capsys, "--json", "evaluate", run, "--protocol", "im2gps3k", *truth)
    assert im2gps.code == 0, im2gps.err
    assert (im2gps.json["samples"], im2gps.json["split"]) == (4, "test")
