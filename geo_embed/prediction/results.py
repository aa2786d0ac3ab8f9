"""Results sample by sample, and which states are taken for which. Predictions in, a DataFrame out."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.data.samples import natural_ids
from geo_embed.metrics import (
    GPS_RANGE_KM,
    GPS_WEIGHT,
    STATE_WEIGHT,
    error_km,
    state_credit,
    top_states,
)

if TYPE_CHECKING:
    import pandas as pd


def answers(predictions: Predictions) -> "pd.DataFrame":
    """One row per sample, in the predictions' order: the columns of `per_sample` that need no truth.

    Columns: `sample_id` (int64 where all are whole numbers, else text); of each rank k up to 5, or as many classes as there are,
    `state_k`, `state_idx_k`, `probability_k`; and the predicted `latitude`, `longitude` in degrees.
    """
    import pandas as pd

    ids = {"sample_id": natural_ids(predictions.sample_id)}
    return pd.DataFrame(ids | _answer_columns(predictions))


def _answer_columns(predictions: Predictions) -> dict[str, NDArray[Any]]:
    shares, names = predictions.probabilities, np.array(predictions.labels.names, dtype=object)
    rows = np.arange(len(predictions))
    columns: dict[str, NDArray[Any]] = {}
    for rank, classes in enumerate(top_states(shares).T, start=1):
        columns |= {
            f"state_{rank}": names[classes],
            f"state_idx_{rank}": predictions.labels.decode(classes),
            f"probability_{rank}": shares[rows, classes],
        }
    return columns | {"latitude": predictions.latitude, "longitude": predictions.longitude}


def per_sample(predictions: Predictions, truth: Truth) -> "pd.DataFrame":
    """One row per sample, in the predictions' order.

    Columns: `sample_id` (int64 where all are whole numbers, else text); `score`, 0.70 × `credit` + 0.30 × max(0, 1 − `km` / 5000), whose
    mean is the run's score where no point is more than 5000 km off; `credit` of the true state's rank; `km` from the predicted to the
    true point; `confidence`, the top probability; `true_state`, `true_state_idx`, `true_rank` from 1, `true_probability`,
    `true_latitude`, `true_longitude`; of each rank k up to 5, or as many classes as there are, `state_k`, `state_idx_k`, `probability_k`;
    and the predicted `latitude`, `longitude` in degrees.

    Args:
        predictions, truth: of the same N samples.

    Raises:
        GeoError: a true state is none of the predictions' classes.
    """
    import pandas as pd

    labels, km = predictions.labels.encode(truth.state_idx), error_km(predictions, truth)
    shares, names = predictions.probabilities, np.array(predictions.labels.names, dtype=object)
    rows = np.arange(len(labels))
    order = top_states(shares, shares.shape[1])
    ranked = top_states(shares)
    credit = state_credit(ranked, labels)
    columns = {
        "sample_id": natural_ids(predictions.sample_id),
        "score": STATE_WEIGHT * credit + GPS_WEIGHT * np.maximum(0.0, 1.0 - km / GPS_RANGE_KM),
        "credit": credit,
        "km": km,
        "confidence": shares[rows, ranked[:, 0]],
        "true_state": names[labels],
        "true_state_idx": truth.state_idx,
        "true_rank": (order == labels[:, None]).argmax(axis=1) + 1,
        "true_probability": shares[rows, labels],
        "true_latitude": truth.latitude,
        "true_longitude": truth.longitude,
    }
    return pd.DataFrame(columns | _answer_columns(predictions))


def worst_first(samples: "pd.DataFrame") -> "pd.DataFrame":
    """Rows of `per_sample`, the lowest score first; of equal ones the farthest off, then the most confident."""
    return samples.sort_values(
        ["score", "km", "confidence"], ascending=[True, False, False], kind="stable", ignore_index=True
    )


def confusion_pairs(predictions: Predictions, truth: Truth) -> "pd.DataFrame":
    """One row per pair of a true state and another one that was ranked first instead, the most frequent pair first.

    Columns: `true_state`, `true_state_idx`, `state`, `state_idx`, `samples`, `share` of the true state's samples, `mean_km` and
    `mean_confidence` of the pair's samples. Of equal counts the larger share comes first, then the lower classes.

    Args:
        predictions, truth: of the same N samples.

    Raises:
        GeoError: a true state is none of the predictions' classes.
    """
    import pandas as pd

    encoder = predictions.labels
    labels, answers = encoder.encode(truth.state_idx), top_states(predictions.probabilities, 1)[:, 0]
    classes = len(encoder)
    of_class = np.bincount(labels, minlength=classes)
    wrong = labels != answers
    pairs, index, count = np.unique(
        labels[wrong] * classes + answers[wrong], return_inverse=True, return_counts=True
    )
    true, answered = pairs // classes, pairs % classes
    confidence = predictions.probabilities[np.arange(len(labels)), answers]
    names = np.array(encoder.names, dtype=object)
    table = pd.DataFrame(
        {
            "true_state": names[true],
            "true_state_idx": encoder.decode(true),
            "state": names[answered],
            "state_idx": encoder.decode(answered),
            "samples": count,
            "share": count / of_class[true],
            "mean_km": np.bincount(index, error_km(predictions, truth)[wrong], len(pairs)) / count,
            "mean_confidence": np.bincount(index, confidence[wrong], len(pairs)) / count,
        }
    )
    return table.sort_values(["samples", "share"], ascending=False, kind="stable", ignore_index=True)
