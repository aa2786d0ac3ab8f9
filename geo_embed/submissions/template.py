"""The template of a competition file: read, and filled with predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from geo_embed.answers import Predictions
from geo_embed.console import counted
from geo_embed.data.samples import PREDICTED_POINT, PREDICTED_STATES
from geo_embed.data.table import read_csv, shown
from geo_embed.errors import GeoError
from geo_embed.geography import on_earth
from geo_embed.metrics import top_states


def read_template(path: Path, view_names: Sequence[str]) -> pd.DataFrame:
    """The template's rows and columns as text, in its order.

    Args:
        path: the file.
        view_names: whose `image_` columns it has; one of quite other views keeps those.

    Raises:
        GeoError: the file is no template: unreadable, without rows, with an empty or repeated id, or without a column.
    """
    table, problems = read_csv(path, ["sample_id", *PREDICTED_STATES, *PREDICTED_POINT], every_column=True)
    if table is None:
        raise GeoError(
            problems[0].message, where=path, hint="name the template with --set paths.test_csv=FILE"
        )
    ids, hint = table["sample_id"], "correct the template, or take the dataset's own"
    if table.empty:
        raise GeoError("the template has a header but no rows", where=path, hint=hint)
    if (ids == "").any():
        raise GeoError(f"row {ids.index[ids == ''][0]} has no sample_id", where=path, hint=hint)
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise GeoError(
            f"sample_id {shown(repeated.iloc[0])} is repeated (row {repeated.index[0]})",
            where=path,
            hint=hint,
        )
    images = image_columns(table)
    wanted = [f"image_{view}" for view in view_names]
    # A dataset of other views than the settings name is left to the commands that look at its pictures.
    if not images or (set(images) & set(wanted) and not set(wanted) <= set(images)):
        lacking = ", ".join(repr(column) for column in wanted if column not in images)
        raise GeoError(
            f"the template lacks the column{'s' * (len(wanted) - len(images) != 1)} {lacking}",
            where=path,
            hint=hint,
        )
    return table


def image_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a template or submission that name pictures."""
    return [column for column in table.columns if column.startswith("image_")]


def fill_template(template: pd.DataFrame, predictions: Predictions) -> pd.DataFrame:
    """The template with its predicted columns filled in, matched by `sample_id`, every other column untouched.

    Raises:
        GeoError: a sample of the template has no prediction.
    """
    place = {sample_id: i for i, sample_id in enumerate(predictions.sample_id)}
    lacking = [sample_id for sample_id in template["sample_id"] if sample_id not in place]
    if lacking:
        raise GeoError(
            f"{counted(len(lacking), 'sample of the template has', 'samples of the template have')} no prediction, {lacking[0]!r} first",
            hint="geo extract --split test, then geo predict --split test",
        )
    rows = np.array([place[sample_id] for sample_id in template["sample_id"]])
    ranked = predictions.labels.decode(top_states(predictions.probabilities[rows]))
    table = template.copy()
    for rank, column in enumerate(PREDICTED_STATES):
        table[column] = ranked[:, rank] if rank < ranked.shape[1] else -1
    latitude, longitude = PREDICTED_POINT
    # Tables of earlier versions hold points beyond a pole.
    table[latitude], table[longitude] = on_earth(predictions.latitude[rows], predictions.longitude[rows])
    return table
