"""`geo bench real` on a small planted folder: what is compared, on which rows, and what no fit may see."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from geo_embed.bench import real
from geo_embed.bench.baselines import BASELINES
from geo_embed.bench.planted import planted
from geo_embed.bench.real import BEST, PIGEON, RealBench, bench_real
from geo_embed.config import Config
from geo_embed.data.samples import load_samples, truth_of
from geo_embed.data.spatial import spatial_groups
from geo_embed.fitting.fit import Fit, fit_heads
from geo_embed.settings import resolve

if TYPE_CHECKING:
    from conftest import Geo

WEBCAMS = Path(__file__).parents[3] / "shared" / "data" / "webcams-embeddings"
QUICK = {"training.budget_seconds": 0.01, "training.epochs": 2, "model.device": "cpu"}
TRAIN, TEST, FOLDS = 72, 8, 2
LONE = 49


def write_folder(folder: Path) -> None:
    """Eighty planted places of one view. Two training rows lie at one place, a test row repeats a training row's embedding, and one
    training row's state is no other row's."""
    data = planted(TRAIN + TEST, seed=1, classes=4, views=1, dim=24)
    rows = np.concatenate([data.train, data.test])
    embeddings = data.embeddings[rows]
    state = data.state_idx[rows]
    latitude, longitude = data.latitude[rows], data.longitude[rows]
    latitude[1], longitude[1], embeddings[TRAIN] = latitude[0], longitude[0], embeddings[5]
    assert LONE not in state
    state[2] = LONE
    table = pd.DataFrame({"sample_id": np.arange(len(rows)), "image_photo": "photo.jpg"})
    table["state"] = [f"State {index}" for index in state]
    table["state_idx"], table["latitude"], table["longitude"] = state, latitude, longitude
    folder.mkdir()
    table[["state_idx", "state"]].drop_duplicates().to_csv(folder / "state_mapping.csv", index=False)
    table[:TRAIN].to_csv(folder / "train_ground_truth.csv", index=False)
    table[TRAIN:][["sample_id", "image_photo"]].to_csv(folder / "sample_submission.csv", index=False)
    # Answers go by their ids.
    table[TRAIN:][::-1].drop(columns="image_photo").to_csv(folder / "truth.csv", index=False)
    np.save(folder / "train-made.npy", embeddings[:TRAIN])
    np.save(folder / "test-made.npy", embeddings[TRAIN:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "places"
    write_folder(folder)
    return folder


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "broken"))


class Seen:
    """What each fit was given."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.rows: list[tuple[list[str], list[str]]] = []
        self.columns: list[str] = []

    def fit(self, config: Config, *, name: str) -> Fit:
        train, test = (load_samples(config, split) for split in ("train", "test"))
        assert truth_of(train)
        self.configs.append(config)
        self.rows.append((train.sample_id.tolist(), test.sample_id.tolist()))
        self.columns += list(pd.read_csv(config.paths.csv("test"), nrows=0))
        return fit_heads(config, name=name)


@pytest.fixture(scope="module")
def compared(folder: Path) -> tuple[RealBench, Seen]:
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "fit_heads", seen.fit)
        bench = bench_real(resolve(overrides=QUICK)[0], folder, folds=FOLDS)
    # The first is not scored.
    del seen.rows[0], seen.configs[0]
    return bench, seen


def test_every_rival_is_scored_on_the_test_rows_and_on_every_training_row(
    compared: tuple[RealBench, Seen],
) -> None:
    bench, _ = compared
    test, folds = bench.comparisons
    assert (test.samples, folds.samples) == (TEST, TRAIN)
    assert (bench.samples, bench.views, bench.dim, bench.backbone) == (TRAIN, 1, 24, "made")
    for comparison in bench.comparisons:
        assert [rival.name for rival in comparison.rivals] == [*BASELINES, PIGEON, BEST]
        for rival in comparison.rivals:
            assert rival.score == pytest.approx(0.7 * rival.state_score + 0.3 * rival.gps_score)
            low, high = rival.score_interval
            assert low is not None
            assert low <= rival.score <= high
            assert rival.seconds > 0


def test_the_difference_is_that_to_the_best_baseline_and_lies_in_its_interval(
    compared: tuple[RealBench, Seen],
) -> None:
    bench, _ = compared
    for comparison, measured in zip(bench.comparisons, bench.measurements, strict=True):
        score = {rival.name: rival.score for rival in comparison.rivals}
        took = {rival.name: rival.seconds for rival in comparison.rivals}
        assert score[comparison.baseline] == max(score[name] for name in BASELINES)
        assert comparison.difference == score[BEST] - score[comparison.baseline]
        low, high = comparison.interval
        assert low is not None
        assert low <= comparison.difference <= high
        assert comparison.times_pigeon == took[BEST] / took[PIGEON]
        assert (measured.ours, measured.baseline) == (score[BEST], score[comparison.baseline])


def test_no_fit_sees_a_row_that_it_is_scored_on_nor_its_truth(
    compared: tuple[RealBench, Seen], folder: Path
) -> None:
    _, seen = compared
    place = pd.concat(
        pd.read_csv(folder / name).set_index("sample_id") for name in ("train_ground_truth.csv", "truth.csv")
    )
    group = spatial_groups(place["latitude"].to_numpy(), place["longitude"].to_numpy(), 10.0)
    group_of = dict(zip(map(str, place.index), group, strict=True))
    # Both recipes, on the test rows and on each fold.
    assert len(seen.rows) == 2 * (1 + FOLDS)
    for fitted, held_out in seen.rows[2:]:
        assert sorted(fitted + held_out, key=int) == [str(k) for k in range(TRAIN)]
        assert not {group_of[row] for row in fitted} & {group_of[row] for row in held_out}
    for fitted, held_out in seen.rows[:2]:
        assert (len(fitted), len(held_out)) == (TRAIN, TEST)
    assert {"latitude", "longitude", "state", "state_idx"}.isdisjoint(seen.columns)


def test_fits_hold_places_out_as_the_folds_do(compared: tuple[RealBench, Seen]) -> None:
    bench, seen = compared
    for config in seen.configs:
        assert (config.training.validation, config.training.group_km) == ("spatial", bench.group_km)
        assert config.training.epochs == QUICK["training.epochs"]
    assert {config.training.preset for config in seen.configs} == {PIGEON, BEST}


def test_near_twins_and_states_that_training_lacks_are_counted(compared: tuple[RealBench, Seen]) -> None:
    test, folds = compared[0].comparisons
    # The test row with a training row's embedding. The two rows of one place are in one fold.
    assert (test.twins, folds.twins) == (1, 0)
    assert (test.unseen, folds.unseen) == (0, 1)


def test_without_answers_the_folds_alone_are_compared(broken: Path, geo: Geo) -> None:
    (broken / "truth.csv").unlink()
    options = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    done = geo("--json", *options, "bench", "real", broken, "--folds", FOLDS)
    assert done.code == 0, done.err
    assert "no test rows: there is no truth.csv" in done.err
    (comparison,) = done.json["comparisons"]
    assert comparison["samples"] == TRAIN
    assert {"name", "ours", "baseline", "ratio", "limit", "group_km", "measurements"} <= set(done.json)
    assert {"score", "state_score", "gps_score", "geoscore", "median_km", "seconds"} <= set(
        comparison["rivals"][0]
    )


def test_a_table_for_people(folder: Path, geo: Geo) -> None:
    options = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    done = geo(*options, "bench", "real", folder, "--folds", FOLDS, "--seed", 3)
    assert done.code == 0, done.err
    assert "places closer than 10 km" in done.out
    assert "8 test rows: 1 have a near twin" in done.out
    assert f"72 training rows in {FOLDS} folds" in done.out
    for name in (*BASELINES, PIGEON, BEST):
        assert done.out.count(f"\n{name}  ") == 2


def shorten(folder: Path) -> None:
    np.save(folder / "train-made.npy", np.load(folder / "train-made.npy")[1:])


def widen(folder: Path) -> None:
    np.save(folder / "train-made.npy", np.repeat(np.load(folder / "train-made.npy"), 2, axis=1))


def narrow(folder: Path) -> None:
    np.save(folder / "test-made.npy", np.load(folder / "test-made.npy")[:, :, :5])


def rename(folder: Path, csv: str, old: str, new: str) -> None:
    path = folder / csv
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("harm", "options", "message"),
    [
        (shutil.rmtree, (), "there is no such folder"),
        (lambda folder: (folder / "train_ground_truth.csv").unlink(), (), "there is no such file"),
        (lambda folder: (folder / "state_mapping.csv").unlink(), (), "there is no such file"),
        (lambda folder: (folder / "train-made.npy").unlink(), (), "there is no train-NAME.npy"),
        (lambda folder: shutil.copy(folder / "train-made.npy", folder / "train-b.npy"), (), "b, made"),
        (shorten, (), "shape (71, 1, 24), where the CSV asks for (72, 1, D)"),
        (widen, (), "shape (72, 2, 24), where the CSV asks for (72, 1, D)"),
        (narrow, (), "embeddings of 5 numbers, where the train split's have 24"),
        (
            lambda folder: rename(folder, "train_ground_truth.csv", "image_photo", "picture"),
            (),
            "image_north",
        ),
        (lambda folder: rename(folder, "truth.csv", "latitude", "lat"), (), "latitude"),
        (lambda folder: rename(folder, "truth.csv", "\n79,", "\n99,"), (), "no row for 1 of 8 samples, 79 first"),
        (None, ("--set", 'model.view_names=["left"]'), "image_left"),
        (None, ("--set", "model.backbone_name=other"), "train-other.npy"),
        (None, ("--folds", 73), "73 folds of 72 samples"),
        (None, ("--set", "training.group_km=20000"), "5 folds of 1 groups of places within 2e+04 km"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_line(
    broken: Path, geo: Geo, harm: Callable[[Path], Any] | None, options: tuple[object, ...], message: str
) -> None:
    if harm is not None:
        harm(broken)
    done = geo("bench", "real", broken, *options)
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments", [("real",), ("store", "."), ("store", "--folds", 3), ("real", ".", "--samples", 9)]
)
def test_options_of_another_benchmark_are_wrong_usage(geo: Geo, arguments: tuple[object, ...]) -> None:
    assert geo("bench", *arguments).code == 2


@pytest.mark.slow
@pytest.mark.skipif(not WEBCAMS.is_dir(), reason=f"the webcams' embeddings are not at {WEBCAMS}")
def test_on_real_webcams_every_baseline_scores_about_what_their_readme_says() -> None:
    overrides = QUICK | {"training.epochs": 20}
    test, folds = bench_real(resolve(overrides=overrides)[0], WEBCAMS, folds=2).comparisons
    score = {rival.name: rival.score for rival in test.rivals}
    assert (test.samples, folds.samples) == (147, 511)
    expected = dict(zip(BASELINES, (0.127, 0.373, 0.400, 0.406), strict=True))
    assert {name: score[name] for name in BASELINES} == pytest.approx(expected, abs=0.02)
    # Night scenes and placeholders look alike wherever they are.
    assert test.twins < 147 / 10
    assert folds.twins < 511 / 20
