"""Held-out samples with a near twin in training: what the others score, and which they are, as a run remembers it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.data.samples import text_ids
from geo_embed.metrics import metrics
from geo_embed.runs.run import Run


def score_without(predictions: Predictions, truth: Truth, twins: NDArray[np.bool_]) -> dict[str, Any]:
    """What n held-out samples score without those (n,) that have a near twin in training.

    Returns:
        `samples`, how many of them have one; `score_without`, the score of the others, None where there are none.
    """
    others = ~twins
    score = metrics(predictions.take(others), truth.take(others))["score"] if others.any() else None
    return {"samples": int(twins.sum()), "score_without": score}


def remembered_twins(runs: Sequence[Run], predictions: Predictions, truth: Truth) -> dict[str, Any] | None:
    """`score_without` of held-out samples that have a near twin in the training of any of these runs, as their splits say.

    None where none of the runs says, as those of earlier versions.

    Raises:
        GeoError: a run's table of its split is absent or damaged.
    """
    tables = [table for run in runs if "near_twin" in (table := run.read_split())]
    if not tables:
        return None
    named = {sample for table in tables for sample in text_ids(table["sample_id"][table["near_twin"]])}
    twins = np.array([sample in named for sample in predictions.sample_id], dtype=bool)
    return score_without(predictions, truth, twins)
