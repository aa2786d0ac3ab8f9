"""Calibration of a finished run, after the fact: fitted on the samples that it held out, reported on samples that it hasn't seen."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.cache.store import read_content_hash, read_ids
from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data.duplicates import shared_pictures, tied_samples
from geo_embed.data.spatial import resampling_groups
from geo_embed.devices import with_torch_switches
from geo_embed.errors import GeoError
from geo_embed.heads import calibration
from geo_embed.heads.calibration import Calibration
from geo_embed.metrics import final_metrics
from geo_embed.registry import CALIBRATIONS
from geo_embed.runs.recipe import read_recipe
from geo_embed.runs.run import (
    Run,
    check_not_replaced,
    load_run,
    only_run_writer,
    provenance_path,
    writing_run,
)
from geo_embed.runs.store import find_source_of
from geo_embed.runs.table import read_predictions
from geo_embed.runs.tags import changing_tags
from geo_embed.runs.twins import remembered_twins

# A run keeps what it said before, so that it can be calibrated anew: of earlier calibrations nothing is left.
_BEFORE = "val_uncalibrated"
_FOLDS = 5


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` did to a run.

    Attributes:
        run: its name.
        kind: of the calibration that it has now.
        nll, ece: on the samples that it held out, `before` any calibration and `after` it; each sample of the latter is calibrated by
            the others.
        samples: their number.
        applied: False where it would make new samples less likely, and the run has none.
        changed: False where the run was so already, and nothing was written.
    """

    run: str
    kind: str
    nll: dict[str, float]
    ece: dict[str, float]
    samples: int
    applied: bool
    changed: bool


@with_torch_switches
def calibrate(
    config: Config, name: str | Run | None = None, *, kind: str = "temperature", command: Sequence[str] = ()
) -> Calibrated:
    """Calibrate the states' probabilities of a finished run: of heads, fine-tuned, or an ensemble.

    The calibration is fitted on all samples that the run held out, and is what `predict` and `submit` use from then on. What is
    reported, and recorded as the run's metrics and validation predictions, is cross-fitted: each fifth of the samples is calibrated by
    the other four; samples that share pictures, or places of a spatial split, are in one fifth. Points stay as they are.

    It can be done any number of times, each time from what the run said before the first. The run is replaced in one piece; its
    predictions for other splits, which are no longer what it says, are left out and made anew when they are asked for.

    Args:
        config: paths.
        name: of the run, its directory, or the run itself; default the newest.
        kind: a name in `CALIBRATIONS`; `none` takes a calibration away again.
        command: the command line that asks for it, for the run's provenance.

    Raises:
        GeoError: no such run, a damaged one, or one that held nothing out; it was calibrated when it was fitted; another process is
            writing it.
    """
    try:
        CALIBRATIONS.check(kind)
    except ValueError as error:
        raise GeoError(f"{kind!r:.80} is no calibration: {error}", where="--kind") from error
    path = name.path if isinstance(name, Run) else load_run(config.paths.runs_dir, name).path
    with only_run_writer(path.parent, path.name, overwrite=True):
        run = load_run(path.parent, path.name)
        recipe, described = read_recipe(run)
        if recipe.calibration is not None and recipe.calibration.kind == kind and not _knows_before(run):
            return _as_fitted(run, kind)
        predictions, truth = _before(run, calibrated=recipe.calibration is not None)
        labels = predictions.labels.encode(truth.state_idx)
        tied = _together(run, predictions, truth)
        logs, true = torch.from_numpy(predictions.probabilities).log(), torch.from_numpy(labels)
        after = calibration.cross_fitted(
            logs, true, kind, folds=_FOLDS, seed=run.config.training.split_seed, tied=tied
        )
        measured = calibration.compare(logs, after, true)
        wanted: Calibration | None = None
        if kind != "none":
            if measured["after"]["nll"] < measured["before"]["nll"]:
                wanted = calibration.fit_calibration(logs, true, kind)
            else:
                values = " → ".join(f"{measured[when]['nll']:.3f}" for when in ("before", "after"))
                warn(f"calibration by {kind} is left out: on samples that it hasn't seen, nll {values}")
        current = described.get("calibration")
        changed = current != _plain(wanted)
        if changed:
            recorded = replace(predictions, probabilities=after.exp().numpy()) if wanted else predictions
            _write(
                run,
                {**described, "calibration": _plain(wanted)},
                predictions,
                recorded,
                truth,
                measured,
                command,
            )
    return Calibrated(
        run.name,
        kind if wanted else "none",
        _before_and_after(measured, "nll"),
        _before_and_after(measured, "ece"),
        len(truth),
        wanted is not None,
        changed,
    )


def is_calibrated(config: Config, name: str | None = None) -> bool:
    """Whether a run, by name or directory, the newest by default, has a calibration, wherever it got it."""
    return read_recipe(load_run(config.paths.runs_dir, name))[0].calibration is not None


def _before_and_after(measured: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    return {when: measured[when][name] for when in ("before", "after")}


def _knows_before(run: Run) -> bool:
    """Whether a run remembers what it said before it was calibrated."""
    return run.predictions_path(_BEFORE).exists()


def uncalibrated(run: Run) -> Predictions | None:
    """What a run said of the samples that it held out before it was calibrated, in the order of its other table; None where it doesn't
    remember, or isn't calibrated.

    Raises:
        GeoError: the table is damaged.
    """
    return read_predictions(run.predictions_path(_BEFORE), run.labels)[0] if _knows_before(run) else None


def _as_fitted(run: Run, kind: str) -> Calibrated:
    """What was measured of a run that was calibrated so when it was fitted."""
    recorded = run.read_all_metrics()
    try:
        nll, ece = (_before_and_after(recorded["calibration"], name) for name in ("nll", "ece"))
        return Calibrated(run.name, kind, nll, ece, int(recorded["val"]["samples"]), True, False)
    except (KeyError, TypeError, ValueError) as error:
        raise GeoError(
            "the run was calibrated when it was fitted, and doesn't say how well",
            where=run.path,
            hint="fit it again: geo fit-heads --set training.calibration=KIND",
        ) from error


def _plain(fitted: Calibration | None) -> dict[str, Any] | None:
    """As JSON gives it back."""
    if fitted is None:
        return None
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(fitted).items()}


def _before(run: Run, *, calibrated: bool) -> tuple[Predictions, Truth]:
    """What the run said of the samples that it held out before any calibration, and the truth.

    Raises:
        GeoError: it can't be read; nothing was held out; or it isn't known, since the run was calibrated when it was fitted.
    """
    kept = run.predictions_path("val" if not _knows_before(run) else _BEFORE)
    if calibrated and not _knows_before(run):
        raise GeoError(
            "the run was calibrated when it was fitted, and doesn't remember what it said before",
            where=run.path,
            hint="its metrics.json has nll and ece before and after; to calibrate otherwise, fit it again with --set training.calibration=KIND",
        )
    predictions, truth = read_predictions(kept, run.labels)
    if truth is None:
        raise GeoError("these predictions carry no truth", where=run.path, hint="train the run again")
    if not len(truth):
        raise GeoError(
            "the run held no samples out: there is nothing to calibrate it by",
            where=run.path,
            hint="fit it on more samples, or with --folds",
        )
    return predictions, truth


def _together(run: Run, predictions: Predictions, truth: Truth) -> NDArray[np.int64] | None:
    """Groups (N,) of samples that must be in one part, or None: places of a spatial split, else samples that share pictures, as far as
    the store can tell.
    """
    groups = resampling_groups(truth.latitude, truth.longitude, run.config.training)
    if groups is not None:
        return groups
    with suppress(GeoError):
        # All are of the same pictures, and an import doesn't know them.
        sources = sorted(run.sources, key=lambda source: source["weights_sha256"] is None)
        store = find_source_of(run, sources[0], "train").store
        ids = read_ids(store)
        order = np.argsort(ids)
        place = order[np.searchsorted(ids, predictions.sample_id, sorter=order).clip(max=len(ids) - 1)]
        content = read_content_hash(store)[place]
        known = (content != 0) & (ids[place] == predictions.sample_id)[:, None]
        shared = shared_pictures(content, known, truth.latitude, truth.longitude)
        return tied_samples(shared, len(truth))
    return None


def _write(
    run: Run,
    recipe: dict[str, Any],
    before: Predictions,
    predictions: Predictions,
    truth: Truth,
    measured: dict[str, dict[str, float]],
    command: Sequence[str],
) -> None:
    """The run anew, with another calibration; it keeps its age."""
    calibrated = recipe["calibration"] is not None
    groups = resampling_groups(truth.latitude, truth.longitude, run.config.training)
    scores = run.read_all_metrics() | {"val": final_metrics(predictions, truth, groups=groups)}
    if (twins := remembered_twins([run], predictions, truth)) is not None:
        scores["twins"] = twins
    scores.pop("calibration", None)
    if calibrated:
        scores["calibration"] = measured
    when = provenance_path(run.path).stat()
    note = {"kind": recipe["calibration"]["kind"]} if calibrated else {"kind": "none"}
    note |= {"at": datetime.now(UTC).isoformat(timespec="microseconds"), "command": list(command)}
    with changing_tags(run.path), writing_run(run.path.parent, run.path.name) as writer:
        writer.take_over(run)
        writer.write_recipe(recipe)
        writer.write_metrics(scores)
        writer.write_predictions("val", predictions, truth)
        if calibrated:
            writer.write_predictions(_BEFORE, before, truth)
        else:
            Path(writer.directory / run.predictions_path(_BEFORE).name).unlink(missing_ok=True)
        writer.write_provenance({**run.read_provenance(), "calibrated": note})
        os.utime(provenance_path(writer.directory), ns=(time.time_ns(), when.st_mtime_ns))
        check_not_replaced(run)
