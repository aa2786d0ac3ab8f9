"""The answers that a submission holds, whoever wrote it, as arrays; and the probabilities behind them, where a run has them."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions
from geo_embed.config import Config
from geo_embed.data.samples import PREDICTED_POINT, PREDICTED_STATES
from geo_embed.data.table import numbers_of, read_loose_csv
from geo_embed.errors import GeoError
from geo_embed.metrics import top_states
from geo_embed.runs.run import load_run
from geo_embed.runs.table import read_predictions
from geo_embed.submissions.log import Entry, submission_log

# A millionth of a degree is a tenth of a metre.
_SAME_DEGREES = 1e-6


@dataclass(frozen=True)
class Answers:
    """The rows of a submission, in its order.

    Attributes:
        path: the file.
        sample_id: (N,) text.
        states: (N, 5) the data's own indices, best first; −1 where none is given, or what is given is no whole number.
        latitude, longitude: (N,) degrees; both NaN where they are no point on the globe.
        unusable: cells that hold something else than an answer.
        rows: of the file, those that are no row of the table among them.
    """

    path: Path
    sample_id: NDArray[np.object_]
    states: NDArray[np.int64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    unusable: int
    rows: int

    def __len__(self) -> int:
        return len(self.sample_id)

    @property
    def placed(self) -> NDArray[np.bool_]:
        """(N,) which rows have a point."""
        return np.isfinite(self.latitude)

    def take(self, rows: NDArray[np.int64]) -> "Answers":
        """Some of them, by index."""
        return Answers(
            self.path,
            self.sample_id[rows],
            self.states[rows],
            self.latitude[rows],
            self.longitude[rows],
            self.unusable,
            self.rows,
        )


def read_answers(path: Path) -> Answers:
    """A submission's answers, as far as they can be read. Raises GeoError where nothing can."""
    columns = ["sample_id", *PREDICTED_STATES, *PREDICTED_POINT]
    loose, problems = read_loose_csv(path, columns, "sample_id")
    if loose is None:
        if problems[-1].kind == "missing-file":
            raise GeoError("there is no such submission", where=path, hint="write one with: geo submit")
        raise GeoError(
            problems[-1].message, where=path, hint=f"look at it with: geo submission validate {path}"
        )
    table, unusable = loose.table, 0
    states = np.full((len(table), len(PREDICTED_STATES)), -1, dtype=np.int64)
    for rank, column in enumerate(PREDICTED_STATES):
        numbers = numbers_of(table[column])
        whole = np.isfinite(numbers) & (numbers == np.round(numbers)) & (numbers >= 0) & (numbers < 2**53)
        states[whole, rank] = numbers[whole].astype(np.int64)
        empty = (table[column] == "").to_numpy() | (numbers == -1)
        unusable += int((~whole & ~empty).sum())
    latitude, longitude = (numbers_of(table[column]) for column in PREDICTED_POINT)
    with np.errstate(invalid="ignore"):
        on_globe = (np.abs(latitude) <= 90) & (np.abs(longitude) <= 180)
    unusable += int((~on_globe).sum())
    return Answers(
        path,
        table["sample_id"].to_numpy(dtype=object),
        states,
        np.where(on_globe, latitude, np.nan),
        np.where(on_globe, longitude, np.nan),
        unusable,
        len(table) + len(loose.ragged),
    )


def entry_of(config: Config, sha256: str) -> Entry | None:
    """What the log knows of a file by its content; None where it knows nothing, or is damaged."""
    with suppress(GeoError):
        known = [entry for entry in submission_log(config) if entry.sha256 == sha256]
        return max(known, key=lambda entry: (entry.run is not None, entry.when), default=None)
    return None


def probabilities_behind(
    config: Config, answers: Answers, entry: Entry | None
) -> tuple[str, Predictions] | None:
    """The run whose test predictions a submission holds, and these, row by row; None where there is no such run any more.

    It is looked for by the log, then by the file's name, and is believed only where its table gives these very answers.

    Args:
        config: where runs are.
        answers: of the submission.
        entry: what the log knows of it.
    """
    for name in dict.fromkeys([entry.run if entry else None, answers.path.stem]):
        if name is None:
            continue
        with suppress(GeoError):
            run = load_run(config.paths.runs_dir, name)
            predictions, _ = read_predictions(run.predictions_path("test"), run.labels)
            place = {sample_id: row for row, sample_id in enumerate(predictions.sample_id)}
            rows = np.array([place.get(sample_id, -1) for sample_id in answers.sample_id], dtype=np.int64)
            if len(rows) and (rows >= 0).all() and _gives(predictions.take(rows), answers):
                return run.name, predictions.take(rows)
    return None


def _gives(predictions: Predictions, answers: Answers) -> bool:
    ranked = predictions.labels.decode(top_states(predictions.probabilities))
    near = [
        np.abs(predicted - answered) <= _SAME_DEGREES
        for predicted, answered in (
            (predictions.latitude, answers.latitude),
            (predictions.longitude, answers.longitude),
        )
    ]
    return bool((ranked == answers.states[:, : ranked.shape[1]]).all() and near[0].all() and near[1].all())
