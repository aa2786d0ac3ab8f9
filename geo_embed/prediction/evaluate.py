"""`geo evaluate`: the metrics of a run, and tables that say where its score comes from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from geo_embed.answers import Predictions, Truth
from geo_embed.config import Config, Paths
from geo_embed.console import warn
from geo_embed.data.outputs import check_output
from geo_embed.data.samples import text_ids, truth_of
from geo_embed.data.spatial import resampling_groups
from geo_embed.devices import with_torch_switches
from geo_embed.errors import GeoError
from geo_embed.metrics import final_metrics
from geo_embed.prediction.predict import predict_cached
from geo_embed.prediction.results import confusion_pairs, per_sample, worst_first
from geo_embed.prediction.tables import (
    border_km,
    border_table,
    class_table,
    distance_table,
    reliability_table,
)
from geo_embed.prediction.views import score_by_view
from geo_embed.prediction.writing import write_table, writer_for
from geo_embed.registry import HEADS
from geo_embed.runs.recipe import load_ensemble
from geo_embed.runs.run import Run, on_this_machine
from geo_embed.runs.samples import load_samples_of
from geo_embed.runs.table import read_predictions
from geo_embed.submissions.write import check_not_submitted

if TYPE_CHECKING:
    import pandas as pd

By = Literal["class", "view", "border", "distance", "calibration", "worst", "confusion"]
# Of tables that have no natural end.
_FIRST_ROWS = 20


@with_torch_switches
def evaluate(
    config: Config,
    run: Run,
    split: str = "val",
    by: Sequence[By] = (),
    *,
    limit: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Metrics of a run, as in the contract, with `score_interval`, and `trained_on` of the train split; and under its name each table that is asked for.

    A table that is asked for alone is also there as `rows`. Nothing is written but `out`. `trained_on` says that the heads were trained on these very samples: an interval would lend such a score a
    trust that it doesn't deserve, and is [None, None].

    Args:
        config: paths and device.
        run: any run.
        split: `val`, the samples the run held out, or `train`, those it learnt from (needs the cached train split).
        by: `class`, `view` (needs the cached train split), `border` (needs the train CSV), `distance`, `calibration`,
            `worst` (every sample, the lowest score first) or `confusion` (which states are taken for which); each a list of rows.
        limit: only the first rows of each table; default 20 of `worst` and `confusion`, else all.
        out: a file for the one table of `by`, all of its rows if there is no `limit`: see `write_table`.

    Raises:
        GeoError: the predictions are absent or damaged, or name states the run doesn't know; or `out` is for no table, for several,
            was noted or sent as a submission, or can't be written.
    """
    if out is not None:
        if len(by) != 1:
            raise GeoError("a file takes one table", where=out, hint="name it: geo evaluate --by worst --out")
        writer_for(out)
        check_output(config.paths, out)
        check_not_submitted(config.paths.submissions_dir, out)
    run = on_this_machine(run, config.paths, config.model.device)
    predictions, truth = split_predictions(run, split, config.paths, config.model.device)
    if split == "val" and len(truth) and chose_unseen(run):
        warn(
            "the run is of a version that chose an epoch by these samples and scored them all the same: a little too good; "
            "train it again for a score of samples that chose nothing"
        )
    scores = final_metrics(
        predictions,
        truth,
        groups=resampling_groups(truth.latitude, truth.longitude, run.config.training),
    )
    trained_on = split == "train"
    if trained_on:
        scores["score_interval"] = [None, None]
    tables: dict[By, Callable[[], list[dict[str, Any]] | pd.DataFrame]] = {
        "class": lambda: class_table(predictions, truth),
        "view": lambda: score_by_view(run, predictions, truth),
        "border": lambda: border_table(predictions, truth, border_km(truth, _train_truth(run))),
        "distance": lambda: distance_table(predictions, truth),
        "calibration": lambda: reliability_table(predictions, truth),
        "worst": lambda: worst_first(per_sample(predictions, truth)),
        "confusion": lambda: confusion_pairs(predictions, truth),
    }
    made = {name: tables[name]() for name in by}
    if out is not None:
        _write(out, made[by[0]], limit)
    shown = {name: _first_rows(table, limit) for name, table in made.items()}
    alone = {"rows": shown[by[0]]} if len(shown) == 1 else {}
    written = {} if out is None else {"out": out}
    return scores | ({"trained_on": True} if trained_on else {}) | shown | alone | written


def _first_rows(table: "list[dict[str, Any]] | pd.DataFrame", limit: int | None) -> list[dict[str, Any]]:
    if isinstance(table, list):
        return table[:limit]
    return [
        {str(name): value for name, value in row.items()}
        for row in table.head(limit or _FIRST_ROWS).to_dict("records")
    ]


def _write(path: Path, table: "list[dict[str, Any]] | pd.DataFrame", limit: int | None) -> None:
    import pandas as pd

    frame = pd.DataFrame(table) if isinstance(table, list) else table
    write_table(path, frame if limit is None else frame.head(limit))


def split_predictions(run: Run, split: str, paths: Paths, device: str) -> tuple[Predictions, Truth]:
    """A run's predictions and the truth: recorded for the samples it held out, made now for those it learnt from.

    Args:
        run: any run.
        split: `val` or `train`.
        paths: of the stores and the CSVs.
        device: where heads run.

    Raises:
        GeoError: the predictions are absent or damaged, or the train split isn't cached with the run's backbone.
    """
    if split == "val":
        predictions, truth = read_predictions(run.predictions_path("val"), run.labels)
    else:
        predictions, truth, _ = predict_cached(run, "train", paths, device)
    if truth is None:
        raise GeoError("these predictions carry no truth", where=run.path, hint="train the run again")
    if split == "val":
        return predictions, truth
    table = run.read_split()
    train = set(text_ids(table["sample_id"][table["part"] == "train"]))
    rows = np.array([sample_id in train for sample_id in predictions.sample_id], dtype=bool)
    return predictions.take(rows), truth.take(rows)


def chose_unseen(run: Run) -> bool:
    """Whether the held-out samples chose an epoch that answers them, as in plain and fine-tuned runs of earlier versions."""
    trained_by_epochs = "init" in run.provenance or (
        run.config.training.preset != "best" and HEADS[run.config.model.head].make.by_steps
    )
    return trained_by_epochs and load_ensemble(run) is None and run.read_chosen_score() is None


def _train_truth(run: Run) -> Truth:
    return truth_of(load_samples_of(run, "train"))
