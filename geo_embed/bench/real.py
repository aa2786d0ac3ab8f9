"""`geo bench real`: both recipes against scikit-learn's baselines on a folder of real embeddings, each fitted on training rows alone."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Truth
from geo_embed.bench.baselines import BASELINES, LOGISTIC, Answers, Known, answer_all, unit_vectors
from geo_embed.bench.dataset import write_dataset
from geo_embed.bench.measure import Bench, Measurement, this_machine
from geo_embed.cache.exchange import cache_import
from geo_embed.cache.find import find_store
from geo_embed.cache.store import hash_content, read_store
from geo_embed.config import Config, Paths, Preset, Training
from geo_embed.console import say
from geo_embed.data.holdout import class_folds, inner_groups
from geo_embed.data.samples import load_mapping, load_samples, load_truth
from geo_embed.data.spatial import spatial_groups
from geo_embed.data.table import read_csv
from geo_embed.errors import GeoError
from geo_embed.fitting.examples import open_training_data
from geo_embed.fitting.fit import fit_heads
from geo_embed.fitting.leaks import CachedViews, leaks
from geo_embed.geography import haversine_km
from geo_embed.metrics import (
    bootstrap_interval,
    competition_score,
    difference_interval,
    geoscore,
    state_credit,
    top_states,
)
from geo_embed.prediction.predict import predict_split
from geo_embed.runs.run import load_run

PIGEON: Preset = "pigeon"
BEST: Preset = "best"
# Some 0.1 degrees; halved where that would put most of the places into one group.
_GROUP_KM = 10.0
_TRAIN, _TEST = "train-", "test-"
_VIEW = "image_"
_LAYOUT = "it holds train_ground_truth.csv, state_mapping.csv and train-NAME.npy: docs/heads.md"


@dataclass(frozen=True)
class Rival:
    """What one of them scores on rows that it was not fitted on.

    Attributes:
        name: a recipe, or a baseline.
        score, state_score, gps_score, geoscore, mean_km, median_km: as in metrics.py, of all rows together.
        score_interval: [low, high], 95 %; None below two groups.
        seconds: of all its fits and answers, on the clock.
    """

    name: str
    score: float
    state_score: float
    gps_score: float
    geoscore: float
    mean_km: float
    median_km: float
    score_interval: tuple[float, float] | tuple[None, None]
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """All rivals on the same held-out rows.

    Attributes:
        held_out: which rows.
        samples: how many; `twins` of them have a near twin among the rows that were fitted on, `unseen` a state that none of those has.
        rivals: baselines first.
        baseline: the best of scikit-learn's.
        difference: the score of `best` minus that one's, and `interval` its [low, high], 95 %, over groups of places, paired.
        times_pigeon, times_logistic: the seconds of `best` over those of the plain recipe, and of logistic regression.
    """

    held_out: str
    samples: int
    twins: int
    unseen: int
    rivals: list[Rival]
    baseline: str
    difference: float
    interval: tuple[float, float] | tuple[None, None]
    times_pigeon: float
    times_logistic: float


@dataclass(frozen=True)
class RealBench(Bench):
    """A benchmark on a folder of embeddings; its measurements are the scores of `best` against the best baselines'.

    Attributes:
        folder, backbone: whose embeddings.
        samples, views, dim, states: of the train split.
        group_km: places closer than this, and the same pictures, are on one side of every split.
        comparisons: the test rows first, where their truth is known.
    """

    folder: Path
    backbone: str
    samples: int
    views: int
    dim: int
    states: int
    group_km: float
    comparisons: list[Comparison]


@dataclass(frozen=True)
class _Table:
    """Rows of both splits, the train split's first.

    Attributes:
        sample_id: (N,) text.
        values: (N, V, D) as stored.
        truth: of the N rows.
        groups: (N,) rows that stay together; the test split's are groups of their own.
        train: how many are the train split's.
        names: of the states, by `state_idx`.
    """

    sample_id: NDArray[np.object_]
    values: NDArray[Any]
    truth: Truth
    groups: NDArray[np.int64]
    train: int
    names: Mapping[int, str]


@dataclass(frozen=True)
class _Split:
    """Row numbers that every rival is fitted on, and scored on."""

    fitted: NDArray[np.int64]
    held_out: NDArray[np.int64]


def bench_real(config: Config, folder: Path, *, folds: int = 5) -> RealBench:
    """Compare recipes and baselines on the folder's test rows, and on folds of its training rows.

    Args:
        config: device, `training` and `model` settings of both recipes; `training.split_seed` deals the folds, `training.group_km` is
            chosen from the places where it isn't set.
        folder: train_ground_truth.csv, state_mapping.csv, train-NAME.npy (N, V, D); optionally test-NAME.npy and truth.csv beside
            sample_submission.csv. Of several NAMEs that of `model.backbone_name`.
        folds: that training rows are dealt to, 2 or more.

    Raises:
        GeoError: a file is missing, or doesn't fit the others; fewer groups of places than folds, or fewer than two states.
    """
    with tempfile.TemporaryDirectory(prefix="geo-bench-") as cache:
        config = _settings_for(config, folder, Path(cache))
        table, km = _open(config, folder, folds)
    splits = _deal(table, folds, config.training.split_seed, km)
    config = _with_training(config, validation="spatial", group_km=km)
    # The first fit of a process pays for imports.
    with _dataset(config, table, next(iter(splits.values()))[0]) as prepared:
        _fit_and_answer(_with_training(prepared, epochs=1), PIGEON)
    comparisons = [_compare(config, table, held_out, parts) for held_out, parts in splits.items()]
    _, views, dim = table.values.shape
    states = len(np.unique(table.truth.state_idx[: table.train]))
    name = config.model.backbone_name
    measurements = [_measurement(comparison) for comparison in comparisons]
    return RealBench(
        "real", this_machine(), measurements, folder, name, table.train, views, dim, states, km, comparisons
    )


def _with_training(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _measurement(comparison: Comparison) -> Measurement:
    scores = {rival.name: rival.score for rival in comparison.rivals}
    ours, baseline = scores[BEST], scores[comparison.baseline]
    return Measurement(
        f"score of --preset best, {comparison.samples:,} {comparison.held_out}",
        ours,
        baseline,
        ours / baseline,
        1.0,
        "score",
        comparison.baseline,
        "the best there is",
    )


# ---------------------------------------------------------------- the folder


def _settings_for(config: Config, folder: Path, cache: Path) -> Config:
    """The same settings over the folder's files and an empty cache."""
    if not folder.is_dir():
        raise GeoError("there is no such folder", where=folder, hint=_LAYOUT)
    paths = Paths(data_root=folder, cache_dir=cache)
    for path in (paths.csv("train"), paths.mapping()):
        if not path.is_file():
            raise GeoError("there is no such file", where=path, hint=_LAYOUT)
    model = config.model.model_copy(
        update={
            "backbone_name": _backbone_of(config, folder),
            "view_names": _views_of(config, paths.csv("train")),
            "fingerprint": None,
        }
    )
    return config.model_copy(update={"paths": paths, "model": model})


def _backbone_of(config: Config, folder: Path) -> str:
    names = sorted(path.stem.removeprefix(_TRAIN) for path in folder.glob(f"{_TRAIN}*.npy"))
    wanted = config.model.backbone_name
    if wanted in names:
        return wanted
    if "backbone_name" in config.model.model_fields_set:
        hint = f"--set model.backbone_name={names[0]}" if names else _LAYOUT
        raise GeoError("there is no such file", where=folder / f"{_TRAIN}{wanted}.npy", hint=hint)
    if not names:
        raise GeoError(f"there is no {_TRAIN}NAME.npy", where=folder, hint=_LAYOUT)
    if len(names) > 1:
        raise GeoError(
            f"embeddings by {len(names)} backbones: {', '.join(names)}",
            where=folder,
            hint=f"name one: --set model.backbone_name={names[0]}",
        )
    return names[0]


def _views_of(config: Config, csv: Path) -> tuple[str, ...]:
    """The settings' views where they are set, or where the CSV has a column for each; else the CSV's own, in its order."""
    views = config.model.view_names
    table, _ = read_csv(csv, ["sample_id"], every_column=True)
    # What is wrong with a file that is no table is said where its samples are loaded.
    columns = () if table is None else tuple(table.columns)
    if "view_names" in config.model.model_fields_set or {f"{_VIEW}{view}" for view in views} <= set(columns):
        return views
    return tuple(column.removeprefix(_VIEW) for column in columns if column.startswith(_VIEW)) or views


def _open(config: Config, folder: Path, folds: int) -> tuple[_Table, float]:
    """The folder's rows, and the distance in km within which they stay together."""
    name, training = config.model.backbone_name, config.training
    cache_import(config, folder / f"{_TRAIN}{name}.npy", "train", name)
    examples = open_training_data(config).examples
    if folds > len(examples):
        raise GeoError(
            f"{folds} folds of {len(examples):,} samples", where=config.paths.csv("train"), hint="--folds"
        )
    # As the race deals its own folds, from a distance of ours.
    if "group_km" in training.model_fields_set:
        dealt_by = Training(validation="spatial", group_km=training.group_km)
    else:
        dealt_by = Training(group_km=_GROUP_KM)
    groups, km = inner_groups(examples.places, dealt_by, folds)
    names = load_mapping(config.paths.mapping())
    count = len(examples)
    table = _Table(examples.sample_id, examples.values, examples.truth, groups, count, names)

    answers, file = folder / "truth.csv", folder / f"{_TEST}{name}.npy"
    if not answers.is_file() or not file.is_file():
        say(f"no test rows: there is no {(file if answers.is_file() else answers).name}")
        return table, km
    cache_import(config, file, "test", name)
    samples = load_samples(config, "test")
    truth = load_truth(answers, names, samples.sample_id)
    values = read_store(find_store(config, "test")).values
    if values.shape[2] != table.values.shape[2]:
        raise GeoError(
            f"embeddings of {values.shape[2]} numbers, where the train split's have {table.values.shape[2]}",
            where=file,
        )
    own = spatial_groups(truth.latitude, truth.longitude, km)
    return (
        _Table(
            np.concatenate([table.sample_id, samples.sample_id]),
            np.concatenate([table.values, values]),
            Truth(
                np.concatenate([table.truth.state_idx, truth.state_idx]),
                np.concatenate([table.truth.latitude, truth.latitude]),
                np.concatenate([table.truth.longitude, truth.longitude]),
            ),
            np.concatenate([groups, own + groups.max() + 1]),
            count,
            names,
        ),
        km,
    )


def _deal(table: _Table, folds: int, seed: int, km: float) -> dict[str, list[_Split]]:
    """What is held out from what, by what it is called."""
    rows, train = np.arange(len(table.truth)), table.train
    labels = np.unique(table.truth.state_idx[:train], return_inverse=True)[1]
    groups = table.groups[:train]
    fold = class_folds(labels, folds, seed, groups)
    parts = len(np.unique(fold))
    if parts < folds or len(np.unique(np.stack([groups, fold]), axis=1).T) > len(np.unique(groups)):
        raise GeoError(
            f"{folds} folds of {len(np.unique(groups)):,} groups of places within {km:.3g} km",
            where="--folds, training.group_km",
            hint="lower one of them",
        )
    splits = {}
    if len(rows) > train:
        splits["test rows"] = [_Split(rows[:train], rows[train:])]
    splits[f"training rows in {folds} folds"] = [
        _Split(rows[:train][fold != k], rows[:train][fold == k]) for k in range(folds)
    ]
    for split in (split for parts in splits.values() for split in parts):
        if len(np.unique(table.truth.state_idx[split.fitted])) < 2:
            raise GeoError(f"{len(split.fitted):,} rows of one state alone are left to be fitted on")
    say(f"places closer than {km:.3g} km, and the same pictures, are held out together")
    return splits


# ---------------------------------------------------------------- rivals


def _compare(config: Config, table: _Table, held_out: str, splits: Sequence[_Split]) -> Comparison:
    rows = np.concatenate([split.held_out for split in splits])
    answers: dict[str, list[Answers]] = {}
    seconds: dict[str, float] = {}
    vectors = unit_vectors(table.values)
    for k, split in enumerate(splits):
        for name, answer, took in _answers(config, table, vectors, split):
            say(f"{held_out}, {k + 1} of {len(splits)}: {name}, {took:.1f} s")
            answers.setdefault(name, []).append(answer)
            seconds[name] = seconds.get(name, 0.0) + took

    truth, groups = table.truth.take(rows), table.groups[rows]
    judged = {name: _judge(parts, truth) for name, parts in answers.items()}
    rivals = [
        Rival(
            name=name, score_interval=bootstrap_interval(credit, km, groups), seconds=seconds[name], **scores
        )
        for name, (scores, credit, km) in judged.items()
    ]
    score = {rival.name: rival.score for rival in rivals}
    baseline = max(BASELINES, key=score.__getitem__)
    return Comparison(
        held_out,
        len(rows),
        sum(_twins(table, split) for split in splits),
        sum(_unseen(table, split) for split in splits),
        rivals,
        baseline,
        score[BEST] - score[baseline],
        difference_interval(judged[BEST][1:], judged[baseline][1:], groups),
        seconds[BEST] / seconds[PIGEON],
        seconds[BEST] / seconds[LOGISTIC],
    )


def _judge(
    parts: Sequence[Answers], truth: Truth
) -> tuple[dict[str, float], NDArray[np.float64], NDArray[np.float64]]:
    """The scores of a `Rival`, and the credit and km (N,) that they come from."""
    latitude, longitude = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("latitude", "longitude")
    )
    km = haversine_km(latitude, longitude, truth.latitude, truth.longitude)
    # A part with few states has fewer ranks.
    widest = max(part.ranked.shape[1] for part in parts)
    ranked = np.concatenate(
        [
            np.pad(part.ranked, ((0, 0), (0, widest - part.ranked.shape[1])), constant_values=-1)
            for part in parts
        ]
    )
    score, state_score, gps_score = competition_score(ranked, truth.state_idx, km)
    scores = {
        "score": score,
        "state_score": state_score,
        "gps_score": gps_score,
        "geoscore": geoscore(km),
        "mean_km": float(km.mean()),
        "median_km": float(np.median(km)),
    }
    return scores, state_credit(ranked, truth.state_idx), km


def _answers(
    config: Config, table: _Table, vectors: NDArray[np.float32], split: _Split
) -> Iterator[tuple[str, Answers, float]]:
    """Each rival's answers for the held-out rows of a split, and its seconds."""
    known = Known(vectors[split.fitted], table.truth.take(split.fitted), table.groups[split.fitted])
    for name, (answers, took) in answer_all(known, vectors[split.held_out], config.training.seed).items():
        yield name, answers, took
    with _dataset(config, table, split) as prepared:
        for preset in (PIGEON, BEST):
            started = time.perf_counter()
            answers = _fit_and_answer(prepared, preset)
            yield preset, answers, time.perf_counter() - started


@contextmanager
def _dataset(config: Config, table: _Table, split: _Split) -> Iterator[Config]:
    """Settings over a dataset whose train split is the rows to be fitted on: nothing else is there to be seen."""
    splits = {
        part: (table.sample_id[rows], table.values[rows], table.truth.take(rows))
        for part, rows in (("train", split.fitted), ("test", split.held_out))
    }
    with tempfile.TemporaryDirectory(prefix="geo-bench-") as root:
        paths, files = write_dataset(Path(root), config.model.view_names, table.names, splits)
        config = config.model_copy(update={"paths": paths})
        for part, file in files.items():
            cache_import(config, file, part, config.model.backbone_name)
        yield config


def _fit_and_answer(config: Config, preset: Preset) -> Answers:
    config = _with_training(config, preset=preset)
    fit_heads(config, name=preset)
    run = load_run(config.paths.runs_dir, preset)
    predictions, _ = predict_split(config, run, "test")
    ranked = predictions.labels.decode(top_states(predictions.probabilities))
    return Answers(ranked, predictions.latitude, predictions.longitude)


def _twins(table: _Table, split: _Split) -> int:
    """How many held-out rows have a near twin among those that are fitted on: the same place, or the same picture."""
    rows = np.concatenate([split.fitted, split.held_out])
    val = np.arange(len(rows)) >= len(split.fitted)
    truth, values = table.truth.take(rows), table.values[rows]
    content = [[hash_content(view.tobytes()) for view in sample] for sample in values]
    views = CachedViews(values, np.ones(values.shape[:2], dtype=bool), np.array(content, dtype=np.uint64))
    return len({leak.held_out for leak in leaks(val, truth.latitude, truth.longitude, views)})


def _unseen(table: _Table, split: _Split) -> int:
    state_idx = table.truth.state_idx
    return int((~np.isin(state_idx[split.held_out], state_idx[split.fitted])).sum())
