"""`geo evaluate`: the metrics of a run."""

from typing import Any

import numpy as np
import pandas as pd

from geo_embed.config import Config
from geo_embed.dataset import text_ids
from geo_embed.errors import GeoError
from geo_embed.metrics import metrics
from geo_embed.predict import Predictions, Truth, predict_split, read_predictions
from geo_embed.run import Run


def evaluate(config: Config, run: Run, split: str = "val") -> dict[str, Any]:
    """Metrics of a run, as in the contract.

    Args:
        config: paths.
        run: any run.
        split: `val`, the samples the run held out, or `train`, those it learnt from (needs the cached train split).

    Raises:
        GeoError: the predictions are absent or damaged, or name states the run doesn't know.
    """
    if split == "val":
        predictions, truth = read_predictions(run.path / "val_predictions.parquet")
    else:
        predict_split(config, run, "train")
        predictions, truth = _learnt_from(run)
    if truth is None:
        raise GeoError("these predictions carry no truth", where=run.path, hint="train the run again")
    return metrics(
        predictions.probabilities,
        predictions.latitude,
        predictions.longitude,
        run.labels.encode(truth.state_idx),
        truth.latitude,
        truth.longitude,
    )


def _learnt_from(run: Run) -> tuple[Predictions, Truth | None]:
    predictions, truth = read_predictions(run.path / "train_predictions.parquet")
    try:
        parts = pd.read_parquet(run.path / "split.parquet")
    except (OSError, ValueError) as error:
        raise GeoError("the run's split can't be read", where=run.path / "split.parquet") from error
    learnt = set(text_ids(parts["sample_id"][parts["part"] == "train"]))
    rows = np.array([sample_id in learnt for sample_id in predictions.sample_id])
    assert truth is not None
    return (
        Predictions(
            predictions.sample_id[rows],
            predictions.probabilities[rows],
            predictions.latitude[rows],
            predictions.longitude[rows],
        ),
        Truth(truth.state_idx[rows], truth.latitude[rows], truth.longitude[rows]),
    )
