"""Prediction tables: written, and read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.data.samples import natural_ids, text_ids
from geo_embed.errors import GeoError
from geo_embed.files import replacing
from geo_embed.metrics import RANK_CREDIT, top_states

# Of the table's schema: the stores that the predictions were made from, as JSON.
_STORES = b"geo_embed.stores"


def write_predictions(
    path: Path,
    predictions: Predictions,
    truth: Truth | None,
    stores: Mapping[str, str] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """A prediction table, as the contract describes it, in one piece.

    Args:
        path: the file.
        predictions: its rows.
        truth: of the same samples, where it is known.
        stores: of each store that the predictions were made from its fingerprint and its `content_digest` then.
        check: called once the table is written aside; what it raises keeps the table from getting its name.

    Raises:
        GeoError: the disk is full or may not be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    ranked = top_states(predictions.probabilities)
    table: dict[str, Any] = {
        "sample_id": natural_ids(predictions.sample_id),
        "probabilities": list(predictions.probabilities),
    }
    for rank in range(1, len(RANK_CREDIT) + 1):
        states = (
            predictions.labels.decode(ranked[:, rank - 1])
            if rank <= ranked.shape[1]
            else np.full(len(ranked), -1)
        )
        table[f"state_idx_{rank}"] = states
    table |= {"latitude": predictions.latitude, "longitude": predictions.longitude}
    if truth is not None:
        table |= {
            "true_state_idx": truth.state_idx,
            "true_latitude": truth.latitude,
            "true_longitude": truth.longitude,
        }
    content = pa.Table.from_pandas(pd.DataFrame(table), preserve_index=False)
    if stores is not None:
        noted = {_STORES: json.dumps(dict(stores)).encode()}
        content = content.replace_schema_metadata({**content.schema.metadata, **noted})
    with replacing(path) as temporary:
        parquet.write_table(content, temporary)
        if check is not None:
            check()


def read_stores(path: Path) -> dict[str, str] | None:
    """What `write_predictions` was told of the stores; None where it was told nothing, or the table is absent or damaged."""
    from pyarrow import ArrowException, parquet

    try:
        noted = (parquet.read_schema(path).metadata or {}).get(_STORES)
        return None if noted is None else dict(json.loads(noted))
    except (OSError, ArrowException, ValueError, TypeError):
        return None


def read_predictions(path: Path, labels: LabelEncoder) -> tuple[Predictions, Truth | None]:
    """A prediction table of a run with these labels. Raises GeoError where it is absent or damaged."""
    try:
        table = pd.read_parquet(path)
        predictions = Predictions(
            text_ids(table["sample_id"]),
            np.stack(table["probabilities"].to_list())
            if len(table)
            else np.zeros((0, len(labels)), dtype=np.float32),
            table["latitude"].to_numpy(dtype=np.float64),
            table["longitude"].to_numpy(dtype=np.float64),
            labels,
        )
        if "true_state_idx" not in table:
            return predictions, None
        return predictions, Truth(
            table["true_state_idx"].to_numpy(dtype=np.int64),
            table["true_latitude"].to_numpy(dtype=np.float64),
            table["true_longitude"].to_numpy(dtype=np.float64),
        )
    except FileNotFoundError as error:
        raise GeoError(
            "there are no such predictions", where=path, hint="make them with: geo predict"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise GeoError(
            f"not a readable prediction table: {error}".splitlines()[0],
            where=path,
            hint="predict, or train the run, again",
        ) from error
