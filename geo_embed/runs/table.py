"""Prediction tables: written, and read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.console import counted
from geo_embed.data.samples import natural_ids, text_ids
from geo_embed.errors import AbsentError, GeoError
from geo_embed.files import open_regular, parse_json, read_columns, replacing
from geo_embed.metrics import RANK_CREDIT, top_states
from geo_embed.runs.schema import SUM_TOLERANCE

if TYPE_CHECKING:
    import pyarrow as pa

# Of the table's schema: the stores that the predictions were made from, as JSON.
_STORES = b"geo_embed.stores"
# That they are averages over variants of the pictures; absent where they aren't.
_TTA, _YES = b"geo_embed.tta", b"true"
_COLUMNS = ("sample_id", "probabilities", "latitude", "longitude")
_TRUTH = ("true_state_idx", "true_latitude", "true_longitude")
# Two hundred times the largest split so far.
_MOST_ROWS = 10_000_000


def write_predictions(
    path: Path,
    predictions: Predictions,
    truth: Truth | None,
    stores: Mapping[str, str] | None = None,
    check: Callable[[], None] | None = None,
    *,
    tta: bool = False,
) -> None:
    """A prediction table, as the contract describes it, in one piece.

    Args:
        path: the file.
        predictions: its rows.
        truth: of the same samples, where it is known.
        stores: of each store that the predictions were made from its fingerprint and its `content_digest` then.
        check: called once the table is written aside; what it raises keeps the table from getting its name.
        tta: whether the predictions are averages over variants of the pictures.

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
    noted = {} if stores is None else {_STORES: json.dumps(dict(stores)).encode()}
    noted |= {_TTA: _YES} if tta else {}
    if noted:
        content = content.replace_schema_metadata({**content.schema.metadata, **noted})
    with replacing(path) as temporary:
        parquet.write_table(content, temporary)
        if check is not None:
            check()


def read_stores(path: Path) -> dict[str, str] | None:
    """What `write_predictions` was told of the stores; None where it was told nothing, or the table is absent or damaged."""
    try:
        noted = _read_notes(path).get(_STORES)
        if noted is None:
            return None
        return {str(fingerprint): str(digest) for fingerprint, digest in parse_json(noted, path).items()}
    except (GeoError, ValueError):
        return None


def is_tta(path: Path) -> bool:
    """Whether a table's predictions are averages over variants of the pictures, as far as it tells."""
    return _read_notes(path).get(_TTA) == _YES


def has_rows(path: Path) -> bool:
    """Whether there is a table that has any; what is damaged counts as one, so that it is said where it is read."""
    from pyarrow import ArrowException, parquet

    try:
        with open_regular(path) as file:
            return bool(parquet.read_metadata(file).num_rows)
    except AbsentError:
        return False
    except (GeoError, ArrowException, ValueError):
        return True


def _read_notes(path: Path) -> dict[bytes, bytes]:
    """What a table's schema says beside its columns; nothing where it can't be read."""
    from pyarrow import ArrowException, parquet

    try:
        with open_regular(path) as file:
            return dict(parquet.read_schema(file).metadata or {})
    except (GeoError, ArrowException, ValueError):
        return {}


def read_predictions(path: Path, labels: LabelEncoder) -> tuple[Predictions, Truth | None]:
    """A prediction table of a run with these labels.

    Raises:
        GeoError: it is absent, is no table of predictions over these classes, or holds what none can be: a probability below 0 or
            NaN, probabilities that don't sum to 1, a sample twice, a place that isn't on the globe.
    """
    try:
        table = read_columns(path, _COLUMNS, optional=_TRUTH, most_rows=_MOST_ROWS)
        predictions = Predictions(
            _ids(table["sample_id"]),
            _probabilities(table["probabilities"], len(labels)),
            _numbers(table["latitude"], 90),
            _numbers(table["longitude"], 180),
            labels,
        )
        truth_columns = [name for name in _TRUTH if name in table.column_names]
        if truth_columns and len(truth_columns) < len(_TRUTH):
            raise ValueError(f"it has {truth_columns[0]}, and not the rest of the truth")
        truth = None
        if truth_columns:
            states = _numbers(table["true_state_idx"], 2**53)
            if (states != np.rint(states)).any():
                raise ValueError("a true_state_idx is no whole number")
            truth = Truth(
                states.astype(np.int64),
                _numbers(table["true_latitude"], 90),
                _numbers(table["true_longitude"], 180),
            )
    except AbsentError as error:
        raise GeoError(
            "there are no such predictions", where=path, hint="make them with: geo predict"
        ) from error
    except (GeoError, ValueError, TypeError) as error:
        raise GeoError(
            f"not a readable prediction table: {error.what if isinstance(error, GeoError) else error}",
            where=path,
            hint="predict, or train the run, again",
        ) from error
    return predictions, truth


def _ids(column: "pa.ChunkedArray") -> NDArray[np.object_]:
    """A column of ids to (N,) text. Raises ValueError where they are neither whole numbers nor text, or one is repeated."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if len(column) and not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise ValueError(f"its ids are {kind}, where text or whole numbers are wanted")
    ids = text_ids(column.to_pylist())
    if len(set(ids)) < len(ids):
        raise ValueError("a sample_id is repeated")
    return ids


def _probabilities(column: "pa.ChunkedArray", classes: int) -> NDArray[np.float32]:
    """A column of lists to (N, C). Raises ValueError where a row is no distribution over C classes."""
    import pyarrow as pa
    from pyarrow import compute

    # Without rows a column has no kind to speak of.
    if not len(column):
        return np.zeros((0, classes), dtype=np.float32)
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise ValueError(f"its probabilities are {kind}, where lists of numbers are wanted")
    lengths = compute.list_value_length(column).unique().to_pylist()
    if lengths not in ([], [classes]):
        raise ValueError(f"{lengths[0]} probabilities a sample, where the run knows {classes} states")
    shares = compute.list_flatten(column).to_numpy().astype(np.float32).reshape(len(column), classes)
    faults = {
        "a probability is negative, NaN or infinite": ~(np.isfinite(shares) & (shares >= 0)).all(axis=1),
        "a sample's probabilities don't sum to 1": ~(np.abs(shares.sum(axis=1) - 1) <= SUM_TOLERANCE),
    }
    for fault, rows in faults.items():
        if rows.any():
            raise ValueError(f"{fault} (row {int(np.argmax(rows))}; {counted(rows.sum(), 'row')})")
    return np.asarray(shares)


def _numbers(column: "pa.ChunkedArray", most: float) -> NDArray[np.float64]:
    """A column of numbers to (N,) floats. Raises ValueError where one is no number between −most and most."""
    import pyarrow as pa

    if not len(column):
        return np.zeros(0)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise ValueError(f"a column is {column.type}, where numbers are wanted")
    numbers = column.to_numpy().astype(np.float64)
    wrong = ~(np.abs(numbers) <= most)
    if wrong.any():
        raise ValueError(
            f"{numbers[wrong][0]:g} lies outside [-{most:g}, {most:g}] (row {int(np.argmax(wrong))})"
        )
    return np.asarray(numbers)
