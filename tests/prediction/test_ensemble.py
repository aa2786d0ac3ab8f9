"""An ensemble is a run like any other, made only of runs that can be compared, with a score that holds up."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from small import command, saved_predictions
from worlds import make_world

from geo_embed.answers import Predictions, Truth
from geo_embed.cache.exchange import cache_export, cache_import
from geo_embed.cache.find import find_store
from geo_embed.cache.store import MISSING, chunks_of, commit_chunk, open_store
from geo_embed.config import Config, EnsembleMethod, PointChoice
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.metrics import competition_score, top_states
from geo_embed.prediction.combine import combine
from geo_embed.prediction.ensemble import Ensembled, _cross_fit, ensemble
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.pictures import predict_images
from geo_embed.prediction.predict import predict_split
from geo_embed.prediction.submission import submit
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, load_run, run_stores
from geo_embed.runs.table import write_predictions
from geo_embed.settings import with_changes

if TYPE_CHECKING:
    from conftest import Country

VAL = "val_predictions.parquet"


@dataclass(frozen=True)
class Pair:
    """Two runs over the country, `first` and `second`, on the same held-out samples, in the test's own directory."""

    config: Config

    @property
    def runs(self) -> Path:
        return self.config.paths.runs_dir

    def load(self, name: str) -> Run:
        return load_run(self.runs, name)

    def make(
        self,
        method: EnsembleMethod = "average",
        name: str = "both",
        members: Any = ("first", "second"),
        point: PointChoice = "auto",
    ) -> Ensembled:
        return ensemble(self.config, members, method=method, name=name, point=point)

    def table(self, name: str = "second") -> pd.DataFrame:
        return pd.read_parquet(self.runs / name / VAL)

    def write(self, table: pd.DataFrame, name: str = "second") -> None:
        table.to_parquet(self.runs / name / VAL, index=False)

    def refused(self, match: str, *names: str) -> GeoError:
        """The refusal, after which nothing has been written."""
        before = sorted(self.runs.rglob("*"))
        with pytest.raises(GeoError, match=match) as caught:
            ensemble(self.config, names or ("first", "second"), method="average", name="both")
        assert "\n" not in str(caught.value)
        assert caught.value.hint
        assert sorted(self.runs.rglob("*")) == before
        return caught.value


@pytest.fixture(scope="module")
def second(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("second")
    fit_heads(country.config(work, training__tau_km=75.0, training__epochs=4), name="second")
    return work / "runs" / "second"


@pytest.fixture
def pair(run: Run, second: Path, config: Config) -> Pair:
    shutil.copytree(second, config.paths.runs_dir / "second")
    return Pair(config)


def fake(
    pair: Pair, name: str, probabilities: NDArray[Any], points: NDArray[np.float64], truth: Truth
) -> str:
    """A run whose validation predictions are given."""
    shutil.copytree(pair.runs / "first", pair.runs / name)
    ids = np.array([str(i) for i in range(len(points))], dtype=object)
    predictions = Predictions(
        ids, probabilities.astype(np.float32), points[:, 0], points[:, 1], pair.load("first").labels
    )
    write_predictions(pair.runs / name / VAL, predictions, truth)
    return name


# ---------------------------------------------------------------- what it answers


@pytest.mark.parametrize("method", get_args(EnsembleMethod))
def test_it_predicts_what_its_members_predict_combined(pair: Pair, method: EnsembleMethod) -> None:
    made = pair.make(method)
    answers = [predict_split(pair.config, pair.load(name), "test")[0] for name in ("first", "second")]
    expected = combine(method, np.array(made.weights), answers, made.point)
    both, path = predict_split(pair.config, pair.load("both"), "test")
    assert path == pair.runs / "both" / "test_predictions.parquet"
    assert both.sample_id.tolist() == load_samples(pair.config, "test").sample_id.tolist()
    np.testing.assert_allclose(both.probabilities, expected.probabilities, rtol=1e-6)
    np.testing.assert_allclose(both.latitude, expected.latitude)
    np.testing.assert_allclose(both.longitude, expected.longitude)
    assert sum(made.weights) == pytest.approx(1)


@pytest.mark.parametrize("method", get_args(EnsembleMethod))
def test_evaluate_prints_the_metrics_that_it_was_made_with(pair: Pair, method: EnsembleMethod) -> None:
    made = pair.make(method)
    assert evaluate(pair.config, pair.load("both")) == made.val
    assert json.loads((pair.runs / "both" / "metrics.json").read_text())["val"] == made.val
    assert made.val["samples"] == len(pair.table())


def test_samples_are_matched_by_id_whatever_the_order_of_rows(pair: Pair) -> None:
    pair.write(pair.table().sample(frac=1, random_state=3))
    assert pair.table()["sample_id"].tolist() != pair.table("first")["sample_id"].tolist()
    pair.make()
    a, b, both = (pair.table(name).set_index("sample_id") for name in ("first", "second", "both"))
    for sample_id in a.index:
        mean = (a.loc[sample_id, "probabilities"] + b.loc[sample_id, "probabilities"]) / 2
        np.testing.assert_allclose(both.loc[sample_id, "probabilities"], mean, rtol=1e-5)
        assert both.loc[sample_id, "true_state_idx"] == a.loc[sample_id, "true_state_idx"]


def test_classes_are_matched_by_state_whatever_their_order_in_labels_json(pair: Pair) -> None:
    usual = pair.make().val
    order = np.random.default_rng(0).permutation(len(pair.load("second").labels))
    path = pair.runs / "second" / "labels.json"
    described = json.loads(path.read_text())
    described["classes"] = [described["classes"][k] for k in order]
    described["prior"]["probabilities"] = [described["prior"]["probabilities"][k] for k in order]
    path.write_text(json.dumps(described))
    table = pair.table()
    table["probabilities"] = [shares[order] for shares in table["probabilities"]]
    pair.write(table)
    np.save(
        pair.runs / "second" / "haversine_matrix.npy",
        np.load(pair.runs / "second" / "haversine_matrix.npy")[np.ix_(order, order)],
    )
    for name, members in (("again", ("first", "second")), ("turned", ("second", "first"))):
        assert pair.make(name=name, members=members).val["score"] == pytest.approx(usual["score"], abs=1e-9)
        assert (np.diff(pair.load(name).labels.state_idx) > 0).all()
        distances = [np.load(pair.runs / run / "haversine_matrix.npy") for run in (name, "first")]
        np.testing.assert_array_equal(*distances)
    by_state = []
    for name in ("first", "second", "again"):
        shares = predict_split(pair.config, pair.load(name), "test")[0].probabilities
        by_state.append(pd.DataFrame(shares, columns=pair.load(name).labels.state_idx).sort_index(axis=1))
    np.testing.assert_allclose(by_state[2], (by_state[0] + by_state[1]) / 2, rtol=1e-5)


@pytest.mark.parametrize("method", ["average", "stacking"])
def test_it_outlives_its_members(pair: Pair, method: EnsembleMethod) -> None:
    pair.make(method)
    before, _ = predict_split(pair.config, pair.load("both"), "test")
    for name in ("first", "second"):
        shutil.rmtree(pair.runs / name)
    after, _ = predict_split(pair.config, pair.load("both"), "test")
    assert (after.probabilities == before.probabilities).all()
    assert evaluate(pair.config, pair.load("both"), "train")["samples"] > 0
    assert submit(pair.config, pair.load("both"))[1].valid


def test_ensembles_can_be_combined_again(pair: Pair) -> None:
    pair.make("average", "a")
    pair.make("voting", "b")
    pair.make("average", "nested", ("a", "b"))
    averaged, voted = (predict_split(pair.config, pair.load(name), "test")[0] for name in ("a", "b"))
    for name in ("first", "second", "a", "b"):
        shutil.rmtree(pair.runs / name)
    nested, _ = predict_split(pair.config, pair.load("nested"), "test")
    np.testing.assert_allclose(
        nested.probabilities, (averaged.probabilities + voted.probabilities) / 2, rtol=1e-5
    )


def test_pictures_are_answered_as_their_cached_embeddings_are(pair: Pair) -> None:
    pair.make()
    cached, _ = predict_split(pair.config, pair.load("both"), "test")
    samples = load_samples(pair.config, "test")
    fresh = predict_images(
        pair.config, pair.load("both"), [samples.image_root / name for name in samples.images[3]]
    )
    np.testing.assert_allclose(fresh.probabilities[0], cached.probabilities[3], atol=2e-3)
    assert fresh.latitude[0] == pytest.approx(cached.latitude[3], abs=0.1)


# ---------------------------------------------------------------- what it is on disk


def test_its_directory_holds_what_a_run_holds_and_its_members_without_their_answers(pair: Pair) -> None:
    predict_split(pair.config, pair.load("first"), "test")
    (pair.runs / "first" / "checkpoints").mkdir()
    made = pair.make("weighted")
    both = pair.runs / "both"
    assert {path.name for path in both.iterdir()} == {
        *("config.toml", "labels.json", "provenance.json", "metrics.json", "recipe.json", "split.parquet"),
        *("state_centroids.json", "haversine_matrix.npy", VAL, "members"),
    }
    recipe = json.loads((both / "recipe.json").read_text())
    names = ["1-first", "2-second"]
    described = {"method": "weighted", "weights": made.weights, "point": made.point, "members": names}
    assert recipe == {"ensemble": described}
    for name in names:
        files_of_run = {path.name for path in (pair.runs / name[2:]).iterdir()}
        kept = {path.name for path in (both / "members" / name).iterdir()}
        assert kept == files_of_run - {VAL, "test_predictions.parquet", "checkpoints"}
    provenance = json.loads((both / "provenance.json").read_text())
    assert provenance["ensemble"]["runs"] == [str(pair.runs / name) for name in ("first", "second")]
    assert [store["fingerprint"] for store in provenance["stores"]] == [provenance["store"]["fingerprint"]]
    assert "learnt without its part" in provenance["ensemble"]["weights_learnt"]
    assert [(member.run, member.weight) for member in made.members] == list(
        zip(("first", "second"), made.weights, strict=True)
    )
    assert [member.score for member in made.members] == [
        pytest.approx(evaluate(pair.config, pair.load(name))["score"]) for name in ("first", "second")
    ]


def test_it_may_take_the_name_of_one_of_its_members(pair: Pair) -> None:
    with pytest.raises(GeoError, match="a run of this name exists"):
        pair.make(name="first")
    made = ensemble(pair.config, ["first", "second"], method="average", name="first", overwrite=True)
    assert evaluate(pair.config, pair.load("first")) == made.val


def test_without_a_name_it_is_given_one(pair: Pair) -> None:
    made = ensemble(pair.config, ["first", "second"], method="average")
    assert made.run.startswith("ensemble-")
    assert pair.load(made.run)


def test_runs_of_one_name_in_different_folders_are_told_apart(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair.runs / "second", tmp_path / "elsewhere" / "first")
    pair.make(members=("first", str(tmp_path / "elsewhere" / "first")))
    members = {path.name for path in (pair.runs / "both" / "members").iterdir()}
    assert members == {"1-first", "2-first"}


# ---------------------------------------------------------------- members from different stores


@pytest.fixture
def mixed(own: Country, run: Run, tmp_path: Path) -> Pair:
    """A run over the country's store, and one over embeddings that were imported."""
    config = own.config(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        values = cache_export(config, split, tmp_path / f"{split}.npy").values[:, :, :700]
        np.save(tmp_path / f"{split}.npy", values + rng.normal(0, 1e-3, values.shape).astype(values.dtype))
        cache_import(config, tmp_path / f"{split}.npy", split, "other")
    fit_heads(own.config(tmp_path, model__backbone_name="other", training__epochs=2), name="second")
    return Pair(config)


def test_members_are_asked_over_their_own_stores(mixed: Pair) -> None:
    mixed.make()
    answers = [predict_split(mixed.config, mixed.load(name), "test")[0] for name in ("first", "second")]
    both, _ = predict_split(mixed.config, mixed.load("both"), "test")
    mean = (answers[0].probabilities + answers[1].probabilities) / 2
    np.testing.assert_allclose(both.probabilities, mean, rtol=1e-5)


def test_every_members_store_is_in_use_by_the_ensemble(mixed: Pair) -> None:
    mixed.make()
    stores = [mixed.load(name).provenance["store"]["fingerprint"] for name in ("first", "second")]
    assert len(set(stores)) == 2
    for name in ("first", "second"):
        shutil.rmtree(mixed.runs / name)
    assert run_stores(mixed.runs) == {fingerprint: ["both"] for fingerprint in stores}
    mixed.make(name="nested", members=("both", _copy(mixed, "both", "too")))
    assert all("nested" in users for users in run_stores(mixed.runs).values())


def _copy(pair: Pair, name: str, to: str) -> str:
    shutil.copytree(pair.runs / name, pair.runs / to)
    return to


def test_test_predictions_are_made_again_once_any_members_store_was_written_to(mixed: Pair) -> None:
    mixed.make()
    table = mixed.runs / "both" / "test_predictions.parquet"

    def made_again() -> bool:
        before = table.stat().st_ino if table.exists() else 0
        submit(mixed.config, mixed.load("both"))
        return table.stat().st_ino != before

    assert made_again()
    assert not made_again()
    for name in ("first", "second"):
        folder = Path(mixed.load(name).provenance["store"]["path"]).parent.name
        change_first_chunk(mixed.config.paths.cache_dir / folder / "test.zarr")
        assert made_again()
        assert not made_again()


def change_first_chunk(path: Path) -> None:
    """Give a store other content in its first rows, with no file's time changed by it."""
    times = {file: file.stat() for file in path.rglob("*")}
    store = open_store(path)
    rows = next(chunks_of(store))
    embeddings, hashes = np.asarray(store.embeddings[rows])[::-1], np.asarray(store.content_hash[rows])[::-1]
    commit_chunk(store, rows, embeddings, hashes, np.asarray(store.status[rows]))
    for file, stat in times.items():
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_table_of_an_earlier_version_is_used_where_a_members_store_is_not_on_this_machine(
    mixed: Pair,
) -> None:
    mixed.make()
    submit(mixed.config, mixed.load("both"))
    table = mixed.runs / "both" / "test_predictions.parquet"
    pd.read_parquet(table).to_parquet(table)
    folder = Path(mixed.load("second").provenance["store"]["path"]).parent.name
    shutil.rmtree(mixed.config.paths.cache_dir / folder / "test.zarr")
    before = table.stat().st_ino
    assert submit(mixed.config, mixed.load("both"))[1].valid
    assert table.stat().st_ino == before


def test_pictures_are_refused_where_what_made_a_members_embeddings_isnt_known(mixed: Pair) -> None:
    mixed.make()
    samples = load_samples(mixed.config, "test")
    paths = [samples.image_root / name for name in samples.images[0]]
    with pytest.raises(GeoError, match=r"fitted on imported embeddings \(other\)") as caught:
        predict_images(mixed.config, mixed.load("both"), paths)
    assert caught.value.hint


# ---------------------------------------------------------------- an honest score


def test_what_noise_scores_is_not_made_to_look_better_by_stacking(pair: Pair) -> None:
    """Weights learnt on the very rows pick the luckiest of the noise; what is reported must not profit from that."""
    labels, count, lucky, reported = pair.load("first").labels, 60, [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, len(labels), count)
        points = np.tile([40.0, -100.0], (count, 1))
        truth = Truth(labels.decode(classes), points[:, 0], points[:, 1])
        shares = [rng.dirichlet(np.ones(len(labels)), count).astype(np.float32) for _ in range(5)]
        names = [
            fake(pair, f"noise-{seed}-{i}", probabilities, points, truth)
            for i, probabilities in enumerate(shares)
        ]
        made = pair.make("stacking", f"stacked-{seed}", names)
        mean = np.mean([member.score for member in made.members])
        noise = [saved_predictions(pair.runs / name / VAL)[0] for name in names]
        # In the order of the ids as text.
        rows = np.argsort(noise[0].sample_id)
        stacked = combine(
            "stacking", np.array(made.weights), [predictions.take(rows) for predictions in noise]
        )
        ranked = top_states(stacked.probabilities)
        lucky.append(competition_score(ranked, classes[rows], np.zeros(count))[0] - mean)
        reported.append(made.val["score"] - mean)
    assert np.mean(lucky) > 0.035
    assert abs(np.mean(reported)) < 0.02


def on_the_equator(pair: Pair, longitude: list[list[float]]) -> list[str]:
    """Runs whose points lie there on the equator; every truth is at 0, 0, and of the first class."""
    labels, count = pair.load("first").labels, len(longitude[0])
    shares = np.tile(np.eye(len(labels))[0], (count, 1))
    zeros = np.zeros(count)
    truth = Truth(labels.decode(np.zeros(count, dtype=np.int64)), zeros, zeros)
    at = [np.stack([zeros, np.array(east)], axis=1) for east in longitude]
    return [fake(pair, f"run-{i}", shares, points, truth) for i, points in enumerate(at)]


def test_no_sample_is_answered_by_a_point_that_it_chose(pair: Pair) -> None:
    # Nine samples are a little better off with the mean of −1, 0.3, 1 degrees (0.1) than with their median (0.3). One is far
    # better off with the median of 0, 0, 30 (0), and decides: but not for itself, nor for the one that is dealt with it.
    places = [[-1.0] * 10, [0.3] * 10, [1.0] * 10]
    for east, place in zip(places, (0.0, 0.0, 30.0), strict=True):
        east[4] = place
    made = pair.make(members=on_the_equator(pair, places))
    assert made.point == "median"
    east = pair.table("both").set_index("sample_id")["longitude"]
    assert east[4] == pytest.approx(10, abs=0.5)
    others = east.drop(index=4).sort_values().to_numpy()
    np.testing.assert_allclose(others, [0.1, *[0.3] * 8], atol=1e-3)
    recorded = json.loads((pair.runs / "both" / "metrics.json").read_text())
    assert recorded["point"] == "median"
    assert "by what those without its part" in recorded["point_chosen"]
    assert evaluate(pair.config, pair.load("both")) == made.val
    asked = pair.make(name="asked", members=["run-0", "run-1", "run-2"], point="median")
    assert asked.val["max_km"] < 40 < made.val["max_km"]


def test_samples_that_are_held_out_together_choose_together(pair: Pair) -> None:
    places = [[-1.0] * 10, [0.3] * 10, [1.0] * 10]
    for row in (4, 5):
        for east, place in zip(places, (0.0, 0.0, 30.0), strict=True):
            east[row] = place
    names = on_the_equator(pair, places)
    members = [saved_predictions(pair.runs / name / VAL) for name in names]
    truth = members[0][1]
    assert truth is not None
    answers = [predictions for predictions, _ in members]
    apart = np.arange(10)
    together = np.where(apart == 5, 4, apart)
    # Alone, each of the two is answered as the other chooses; together, as the eight others do.
    for groups, expected in ((apart, 0.0), (together, 10.0)):
        *_, combined = _cross_fit("average", answers, truth, "auto", groups)
        np.testing.assert_allclose(combined.longitude[[4, 5]], expected, atol=0.5)


def test_an_ensemble_of_an_earlier_version_says_nothing_of_its_point_and_keeps_to_the_median(
    pair: Pair,
) -> None:
    pair.make("weighted", point="mean")
    path = pair.runs / "both" / "recipe.json"
    recipe = json.loads(path.read_text())
    assert recipe["ensemble"]["point"] == "mean"
    recipe["ensemble"]["weights"] = [0.7, 0.3]
    path.write_text(json.dumps(recipe))
    mean = predict_split(pair.config, pair.load("both"), "test")[0]
    del recipe["ensemble"]["point"]
    path.write_text(json.dumps(recipe))
    median = predict_split(pair.config, pair.load("both"), "test")[0]
    first = predict_split(pair.config, pair.load("first"), "test")[0]
    np.testing.assert_allclose(median.latitude, first.latitude)
    assert np.abs(mean.latitude - first.latitude).max() > 0.01
    np.testing.assert_array_equal(mean.probabilities, median.probabilities)


def test_runs_that_differ_in_their_seed_alone_are_combined(config: Config) -> None:
    for name, seed in (("first", 0), ("second", 7)):
        training = config.training.model_copy(update={"seed": seed, "epochs": 1})
        fit_heads(config.model_copy(update={"training": training}), name=name)
    made = ensemble(config, ["first", "second"], method="average", name="both")
    first, second = (saved_predictions(config.paths.runs_dir / name / VAL)[0] for name in ("first", "second"))
    assert made.val["samples"] == len(first)
    assert list(first.sample_id) == list(second.sample_id)
    assert not np.array_equal(first.probabilities, second.probabilities)


def test_the_same_runs_give_the_same_ensemble(pair: Pair) -> None:
    first, again = (pair.make("stacking", name) for name in ("a", "b"))
    assert first.weights == again.weights
    assert first.val == again.val


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_held_out_samples_are_enough(pair: Pair, count: int) -> None:
    for name in ("first", "second"):
        pair.write(pair.table(name).head(count), name)
    for method in get_args(EnsembleMethod):
        assert pair.make(method, method).val["samples"] == count


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("names", [[], ["first"]])
def test_fewer_than_two_runs_are_refused(pair: Pair, names: list[str]) -> None:
    with pytest.raises(GeoError, match=f"two runs or more, not of {len(names)}"):
        ensemble(pair.config, names, method="average")


def test_a_run_given_twice_is_refused_also_by_its_path(pair: Pair) -> None:
    pair.refused("given twice", "first", "second", "first")
    pair.refused("given twice", "first", str(pair.runs / "first"))
    pair.refused("given twice", "first", os.path.relpath(pair.runs / "first"))


def test_an_unknown_run_is_named(pair: Pair) -> None:
    pair.refused("there is no run 'third'", "first", "third")


def test_other_held_out_samples_are_counted_and_what_makes_them_the_same_is_said(pair: Pair) -> None:
    table = pair.table()
    table.loc[:2, "sample_id"] += 100_000
    pair.write(table.drop(index=5))
    refusal = pair.refused("held out other samples than first: 4 lacking, .*; 3 more, sample 10")
    assert refusal.where == str(pair.runs / "second")
    for word in (
        "training.split_seed",
        "training.seed",
        "training.val_split",
        "training.validation",
        "--folds",
    ):
        assert word in refusal.hint


def test_samples_that_one_run_had_no_view_of_are_left_out_of_the_ensemble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_world(tmp_path / "world", ["a", "b", "c"], samples=30, training__epochs=1)
    in_folds = with_changes(config, {"training.folds": 2})
    fit_heads(in_folds, name="whole")
    fit_heads(config, name="held")
    store = open_store(find_store(config, "train").path)
    status = np.asarray(store.status[:])
    status[[4, 7]] = MISSING
    store.status[:] = status
    fit_heads(in_folds, name="fewer")
    fit_heads(config, name="held-of-fewer")
    capsys.readouterr()
    made = ensemble(config, ["whole", "fewer"], method="average", name="both")
    assert (
        "2 held-out samples are left out of the ensemble: not every run has a view of them"
        in capsys.readouterr().err
    )
    recorded, _ = saved_predictions(load_run(config.paths.runs_dir, "both").predictions_path("val"))
    assert made.val["samples"] == len(recorded) == 28
    assert not {"s4", "s7"} & set(recorded.sample_id)
    # A split of fewer samples is another one.
    with pytest.raises(GeoError, match="held out other samples than held") as caught:
        ensemble(config, ["held", "held-of-fewer"], method="average", name="none")
    assert "--folds" in caught.value.hint


@pytest.mark.parametrize("column", ["true_state_idx", "true_latitude", "true_longitude"])
def test_a_truth_that_disagrees_names_the_sample(pair: Pair, column: str) -> None:
    table = pair.table()
    sample = table["sample_id"][4]
    states = pair.load("first").labels.state_idx.tolist()
    if column == "true_state_idx":
        table.at[4, column] = next(state for state in states if state != table.at[4, column])
    else:
        table.at[4, column] += 0.01
    pair.write(table)
    pair.refused(f"another truth than first: 1 sample differs .*, sample {sample} first")


def test_other_states_are_named(pair: Pair) -> None:
    path = pair.runs / "second" / "labels.json"
    described = json.loads(path.read_text())
    described["classes"][-1]["state_idx"] = 777
    path.write_text(json.dumps(described))
    pair.refused("knows other states than first: 1 lacking, state_idx .*; 1 more, state_idx 777")


Damage = Callable[[pd.DataFrame], pd.DataFrame]


def _set(column: str, value: Any) -> Damage:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.at[1, column] = value(table.at[1, column]) if callable(value) else value
        return table

    return change


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda t: t.head(0), "held no samples out"),
        (lambda t: t.drop(columns="true_state_idx"), "not the rest of the truth"),
        (lambda t: t.drop(columns="latitude"), "not a readable prediction table"),
        (lambda t: t.assign(probabilities=[p[:-1] for p in t["probabilities"]]), "where the run knows"),
        (_set("probabilities", lambda p: p[:-1]), "not a readable prediction table"),
        (_set("probabilities", lambda p: p * np.nan), "negative, NaN or infinite"),
        (_set("probabilities", lambda p: -p), "negative, NaN or infinite"),
        (_set("probabilities", lambda p: p * 0), "don't sum to 1"),
        (_set("longitude", np.inf), r"inf lies outside \[-180, 180\]"),
        (lambda t: pd.concat([t, t.head(1)]), "sample_id is repeated"),
    ],
)
def test_a_damaged_or_empty_table_is_refused(pair: Pair, damage: Damage, match: str) -> None:
    pair.write(damage(pair.table()))
    assert str(pair.runs / "second") in pair.refused(match).where


@pytest.mark.parametrize("file", [VAL, "labels.json", "config.toml"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_run_is_named_by_its_file(pair: Pair, file: str, how: str) -> None:
    path = pair.runs / "second" / file
    path.unlink() if how == "gone" else path.write_bytes(b"{")
    with pytest.raises(GeoError) as caught:
        pair.make()
    assert caught.value.where == str(path)


@pytest.mark.parametrize("file", ["state_centroids.json", "split.parquet", "haversine_matrix.npy"])
def test_a_first_run_that_lacks_a_file_is_refused_and_leaves_nothing(pair: Pair, file: str) -> None:
    (pair.runs / "first" / file).unlink()
    with pytest.raises(GeoError) as caught:
        pair.make()
    assert caught.value.where == str(pair.runs / "first" / file)
    assert {path.name for path in pair.runs.iterdir()} == {"first", "second"}


# ---------------------------------------------------------------- a damaged ensemble


@pytest.mark.parametrize(
    "recipe",
    [
        "{",
        '{"ensemble": null}',
        '{"ensemble": {"method": "average", "weights": [0.5, 0.5]}}',
        '{"ensemble": {"method": "magic", "weights": [0.5, 0.5], "members": ["1-first", "2-second"]}}',
        '{"ensemble": {"method": "rrf", "point": "top", "weights": [0.5, 0.5], "members": ["1-first", "2-second"]}}',
        '{"ensemble": {"method": "average", "weights": [1.0], "members": ["1-first", "2-second"]}}',
        '{"ensemble": {"method": "average", "weights": [2.0, -1.0], "members": ["1-first", "2-second"]}}',
        '{"ensemble": {"method": "average", "weights": [0.5, "x"], "members": ["1-first", "2-second"]}}',
    ],
)
def test_a_damaged_recipe_is_one_clear_error(pair: Pair, recipe: str) -> None:
    pair.make()
    (pair.runs / "both" / "recipe.json").write_text(recipe)
    with pytest.raises(GeoError, match="can't be loaded") as caught:
        predict_split(pair.config, pair.load("both"), "test")
    assert caught.value.where == str(pair.runs / "both" / "recipe.json")
    assert "\n" not in str(caught.value)


def test_a_member_that_is_gone_is_named(pair: Pair) -> None:
    pair.make()
    shutil.rmtree(pair.runs / "both" / "members" / "2-second")
    with pytest.raises(GeoError, match="lacks this member") as caught:
        predict_split(pair.config, pair.load("both"), "test")
    assert caught.value.where.endswith("2-second")


def test_asked_for_heads_it_says_that_it_has_none(pair: Pair) -> None:
    pair.make()
    with pytest.raises(GeoError, match="an ensemble has no heads of its own"):
        load_heads(pair.load("both"))


def test_a_member_made_on_another_device_answers_on_this_one(pair: Pair) -> None:
    path = pair.runs / "second" / "config.toml"
    usual, _ = predict_split(pair.config, pair.load("second"), "test")
    path.write_text(path.read_text().replace('device = "cpu"', 'device = "cuda"'))
    assert pair.load("second").config.model.device == "cuda"
    predictions, _ = predict_split(pair.config, pair.load("second"), "test")
    np.testing.assert_array_equal(predictions.probabilities, usual.probabilities)


# ---------------------------------------------------------------- the command


def test_the_command_prints_the_contracts_keys(
    country: Country, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = country.options(tmp_path)
    ran = command(
        capsys, *options, "--json", "ensemble", "first", "second", "--name", "both", "--method", "voting"
    )
    assert ran.code == 0
    assert {"run", "weights", "val"} <= set(ran.json)
    assert ran.json["run"] == "both"
    assert ran.json["weights"] == [0.5, 0.5]
    assert ran.json["val"]["samples"] == len(pair.table())


def test_the_command_shows_each_runs_weight_and_score_to_people(
    country: Country, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = country.options(tmp_path)
    ran = command(capsys, *options, "ensemble", "first", "second", "--name", "both")
    assert ran.code == 0
    alone = evaluate(pair.config, pair.load("first"))["score"]
    assert f"weight 0.500, score {alone:.4f} alone" in ran.out
    assert "point        median of the runs' points, chosen on the held-out samples" in ran.out
    again = command(capsys, *options, "ensemble", "first", "second", "--name", "both")
    assert (again.code, "--overwrite" in again.err) == (1, True)
    assert command(capsys, *options, "ensemble", "first", "second", "--name", "both", "--overwrite").code == 0
    assert command(capsys, *options, "ensemble", "first").code == 1
    assert command(capsys, *options, "ensemble").code == 2
