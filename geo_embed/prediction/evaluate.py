"""`geo evaluate`: the metrics of a run, and tables that say where its score comes from."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.cache.find import find_store
from geo_embed.cache.store import read_store
from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data.samples import load_samples, text_ids, truth_of
from geo_embed.data.spatial import resampling_groups
from geo_embed.errors import GeoError
from geo_embed.heads.predictor import apply_heads
from geo_embed.metrics import (
    border_km,
    border_table,
    class_table,
    competition_score,
    distance_table,
    error_km,
    final_metrics,
    reliability_table,
    top_states,
)
from geo_embed.prediction.predict import here, predict_split
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run
from geo_embed.runs.table import read_predictions

By = Literal["class", "view", "border", "distance", "calibration"]


def evaluate(config: Config, run: Run, split: str = "val", by: Sequence[By] = ()) -> dict[str, Any]:
    """Metrics of a run, as in the contract, with `score_interval`; and under its name each table that is asked for.

    Args:
        config: paths.
        run: any run.
        split: `val`, the samples the run held out, or `train`, those it learnt from (needs the cached train split).
        by: `class`, `view` (needs the cached train split), `border` (needs the train CSV), `distance`, `calibration`;
            each a list of rows.

    Raises:
        GeoError: the predictions are absent or damaged, or name states the run doesn't know.
    """
    predictions, truth = _answers(config, run, split)
    scores = final_metrics(
        predictions,
        truth,
        groups=resampling_groups(truth.latitude, truth.longitude, run.config.training),
    )
    tables = {
        "class": _by_class,
        "view": _by_view,
        "border": _by_border,
        "distance": _by_distance,
        "calibration": _by_calibration,
    }
    return scores | {name: tables[name](config, run, predictions, truth) for name in by}


def ablate_views(config: Config, run: Run, split: str = "val") -> list[dict[str, Any]]:
    """What each view is worth, as rows: view, samples that have it, and the score with it alone, with it hidden, and
    what hiding it costs.

    The run's heads answer again, over the cached train split with views masked. A sample with no view left gets the
    run's prior, and counts.

    Args:
        config: paths.
        run: a run with heads of its own.
        split: `val` or `train`, as in `evaluate`. The heads of a run made with folds have seen its held-out samples
            through the other folds: their scores are then a little too good, and a warning says so.

    Raises:
        GeoError: the train split isn't cached with the run's backbone, or lacks samples of the run.
    """
    return _by_view(config, run, *_answers(config, run, split))


def _answers(config: Config, run: Run, split: str) -> tuple[Predictions, Truth]:
    if split == "val":
        predictions, truth = read_predictions(run.predictions_path("val"), run.labels)
    else:
        predict_split(config, run, "train")
        predictions, truth = _learnt_from(run)
    if truth is None:
        raise GeoError("these predictions carry no truth", where=run.path, hint="train the run again")
    return predictions, truth


def _by_class(config: Config, run: Run, predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    probabilities = predictions.probabilities.reshape(len(truth.state_idx), len(run.labels))
    rows = class_table(probabilities, run.labels.encode(truth.state_idx), error_km(predictions, truth))
    return [
        {"state": run.labels.names[row["class"]], "state_idx": int(run.labels.state_idx[row["class"]]), **row}
        for row in rows
    ]


def _by_view(config: Config, run: Run, predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    if run.config.training.folds > 1:
        warn(
            "the run was made with folds: its heads have seen these samples through the other folds, and the scores "
            "by view are a little too good"
        )
    run = here(config, run)
    store = find_store(run.config, "train", fingerprint=run.provenance["store"]["fingerprint"])
    ids = store.sample_id
    order = np.argsort(ids)
    place = order[np.searchsorted(ids, predictions.sample_id, sorter=order).clip(max=len(ids) - 1)]
    lost = ids[place] != predictions.sample_id
    if lost.any():
        raise GeoError(
            f"{lost.sum():,} samples of the run are not in the store, {predictions.sample_id[lost][0]} first",
            where=store.path,
            hint="train the run again: geo fit-heads",
        )
    embeddings = read_store(store)
    values, present = embeddings.values[place], embeddings.present[place]
    heads, labels = load_heads(run), run.labels.encode(truth.state_idx)

    def score(seen: NDArray[np.bool_]) -> float | None:
        if not len(values):
            return None
        answer = apply_heads(heads, run.config, run.prior, run.labels, predictions.sample_id, values, seen)
        return competition_score(top_states(answer.probabilities), labels, error_km(answer, truth))[0]

    whole = score(present)
    rows = []
    for v, view in enumerate(run.config.model.view_names):
        only = np.arange(present.shape[1]) == v
        hidden = score(present & ~only)
        rows.append(
            {
                "view": view,
                "samples": int(present[:, v].sum()),
                "alone": score(present & only),
                "hidden": hidden,
                "cost": None if whole is None or hidden is None else whole - hidden,
            }
        )
    return rows


def _by_border(config: Config, run: Run, predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    train = truth_of(load_samples(here(config, run).config, "train"))
    away = border_km(
        truth.latitude,
        truth.longitude,
        truth.state_idx,
        train.latitude,
        train.longitude,
        train.state_idx,
    )
    labels = run.labels.encode(truth.state_idx)
    return border_table(away, top_states(predictions.probabilities), labels, error_km(predictions, truth))


def _by_distance(config: Config, run: Run, predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    return distance_table(error_km(predictions, truth))


def _by_calibration(config: Config, run: Run, predictions: Predictions, truth: Truth) -> list[dict[str, Any]]:
    if not len(predictions.sample_id):
        return reliability_table(np.zeros(0), np.zeros(0, dtype=bool))
    top = predictions.probabilities.argmax(axis=1)
    right = top == run.labels.encode(truth.state_idx)
    return reliability_table(predictions.probabilities.max(axis=1), right)


def _learnt_from(run: Run) -> tuple[Predictions, Truth | None]:
    predictions, truth = read_predictions(run.predictions_path("train"), run.labels)
    parts = run.read_split()
    learnt = set(text_ids(parts["sample_id"][parts["part"] == "train"]))
    rows = np.array([sample_id in learnt for sample_id in predictions.sample_id])
    assert truth is not None
    return predictions.take(rows), truth.take(rows)
