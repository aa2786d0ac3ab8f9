"""The numbers behind a report's figures: training, confusion, reliability, errors, distribution, views. Evidence in, plain values out.

A figure that can't be drawn is `{"missing": why}`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.console import harmless
from geo_embed.errors import GeoError
from geo_embed.metrics import ECE_BINS, calibration_error, reliability_bins
from geo_embed.prediction.calibrate import uncalibrated
from geo_embed.prediction.results import confusion_pairs
from geo_embed.prediction.tables import class_table
from geo_embed.prediction.views import score_by_view
from geo_embed.reporting.evidence import Evidence, why
from geo_embed.reporting.order import by_geography
from geo_embed.reporting.weights import view_weights
from geo_embed.runs.recipe import read_recipe

# Marks that papers report (km).
MARKS_KM = (1, 25, 200, 750, 2500)
# Classes that a matrix and a list still show: more are no figure.
MOST_CLASSES = 80
_CURVE_POINTS, _PAIRS = 400, 20
# Probabilities below this one are taken for it, as in the metrics; fewer samples than that can't say what a temperature would bring.
_LEAST, _FEW = 1e-12, 10
_QUANTILES = (5, 25, 50, 75, 95)
_CURVES = {
    "loss": ("Training loss", ("train_loss",)),
    "score": ("Validation score", ("val_score", "val_state_score", "val_gps_score")),
    "rate": ("Learning rate", ("learning_rate",)),
}
_CURVE_NAMES = {
    "train_loss": "loss",
    "val_score": "score",
    "val_state_score": "state part",
    "val_gps_score": "GPS part",
    "learning_rate": "rate",
}


def training(evidence: Evidence) -> dict[str, Any]:
    """How the training went, by its kind.

    `epochs`: `curves`, each with key, name and `series` of a name, a part (seed and fold, "" where there is one) and points
    [epoch, value]. `race`: `trials` of member, score, state_score, gps_score. `members`: an ensemble's with weight and score.
    """
    if evidence.ensemble is not None:
        members = evidence.run.read_all_metrics().get("members") or []
        rows = [
            {"name": harmless(str(m.get("run"))), "weight": m.get("weight"), "score": m.get("score")}
            for m in members
        ]
        return {"kind": "members", "method": evidence.ensemble.method, "members": rows}
    try:
        table = evidence.run.read_history()
    except GeoError as error:
        return {"missing": why(error)}
    if "member" in table and "score" in table:
        best = table.sort_values("score", ascending=False).drop_duplicates("member").head(40)
        trials = [
            {
                "name": harmless(str(row["member"])),
                **{key: _number(row.get(key)) for key in ("score", "state_score", "gps_score")},
            }
            for row in best.to_dict("records")
        ]
        return {"kind": "race", "trials": trials}
    if "epoch" not in table or not len(table):
        return {"missing": "no epochs were noted: heads that are solved at once have none"}
    parts = {"": table}
    if {"seed", "fold"} <= set(table.columns):
        groups = list(table.groupby(["seed", "fold"], sort=True))
        if len(groups) > 1:
            parts = {f"seed {seed}, fold {fold}": rows for (seed, fold), rows in groups}
    curves = []
    for key, (name, columns) in _CURVES.items():
        series = [
            {"name": _CURVE_NAMES[column], "part": part, "points": points}
            for column in columns
            if column in table
            for part, rows in parts.items()
            if (points := _points(rows["epoch"].tolist(), rows[column].tolist()))
        ]
        if series:
            curves.append({"key": key, "name": name, "series": series})
    return {"kind": "epochs", "curves": curves}


def by_class(evidence: Evidence) -> list[dict[str, Any]]:
    """`class_table`, with the number of samples that are answered so, and their summed probability."""
    answers = np.bincount(evidence.ranked[:, 0], minlength=len(evidence.names))
    expected = evidence.predictions.probabilities.sum(axis=0, dtype=np.float64)
    return [
        row | {"state": name, "predicted": int(n), "expected": float(mass)}
        for row, name, n, mass in zip(
            class_table(evidence.predictions, evidence.truth), evidence.names, answers, expected, strict=True
        )
    ]


def confusion(evidence: Evidence) -> dict[str, Any]:
    """The confusion matrix and its most frequent pairs.

    Returns:
        `order`: classes that are shown, neighbours together; `cells`: [true, predicted, samples] of them, by class, without zeros;
        `hidden`: classes that occur and aren't shown; `pairs`: rows of `confusion_pairs`.
    """
    answers = evidence.ranked[:, 0]
    classes = len(evidence.names)
    count = np.bincount(evidence.labels, minlength=classes) + np.bincount(answers, minlength=classes)
    present = np.flatnonzero(count)
    shown = present[np.argsort(-count[present], kind="stable")][:MOST_CLASSES]
    shown = np.sort(shown)
    order = shown[by_geography(evidence.run.read_classes()[1][np.ix_(shown, shown)])]
    cells, samples = np.unique(evidence.labels * classes + answers, return_counts=True)
    pairs = confusion_pairs(evidence.predictions, evidence.truth).head(_PAIRS)
    return {
        "order": order.tolist(),
        "cells": [
            [int(cell // classes), int(cell % classes), int(n)]
            for cell, n in zip(cells, samples, strict=True)
            if cell // classes in shown and cell % classes in shown
        ],
        "hidden": len(present) - len(shown),
        "pairs": [
            {
                "true": harmless(str(row["true_state"])),
                "predicted": harmless(str(row["state"])),
                **{key: _number(row[key]) for key in ("samples", "share", "mean_km", "mean_confidence")},
            }
            for row in pairs.to_dict("records")
        ],
    }


def reliability(evidence: Evidence) -> dict[str, Any]:
    """How far confidence can be believed, before and after calibration.

    Of a calibrated run, before is what it remembers to have said; where it was calibrated as it was fitted, and remembers nothing, the
    calibration is undone. Of another run, after is what one temperature would make of it, each fifth of the samples by the temperature of
    the others.

    Returns:
        `calibrated`: the kind of the run's calibration, or None; `curves`: one or two of name, ece, nll, and bins of from, to, samples,
        confidence, accuracy.
    """
    import torch

    from geo_embed.heads.calibration import cross_fitted

    now = evidence.predictions.probabilities
    logs = torch.from_numpy(np.log(np.maximum(now, _LEAST)))
    fitted = read_recipe(evidence.run)[0].calibration
    if fitted is not None and fitted.kind != "none":
        curves = [(f"after: {fitted.kind}, as it is", now)]
        remembered = uncalibrated(evidence.run)
        if remembered is not None and (remembered.sample_id == evidence.predictions.sample_id).all():
            curves.insert(0, ("before calibration", remembered.probabilities))
        elif min(np.abs(fitted.scale)) > _LEAST:
            # The inverse of softmax(scale ∘ log p + offset), up to the rows' sums.
            undone = (logs.double() - torch.tensor(fitted.offset)) / torch.tensor(fitted.scale)
            curves.insert(0, ("before calibration", torch.softmax(undone, dim=1).float().numpy()))
        return {
            "calibrated": fitted.kind,
            "curves": [_reliability_curve(evidence, *curve) for curve in curves],
        }
    curves = [("as it is", now)]
    if len(evidence) >= _FEW:
        labels = torch.from_numpy(evidence.labels)
        tempered = cross_fitted(logs, labels, "temperature", tied=evidence.groups)
        curves.append(("with one temperature", tempered.exp().numpy()))
    return {"calibrated": None, "curves": [_reliability_curve(evidence, *curve) for curve in curves]}


def _reliability_curve(evidence: Evidence, name: str, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    top = probabilities.argmax(axis=1)
    confidence, correct = probabilities[np.arange(len(top)), top], top == evidence.labels
    p_true = np.maximum(probabilities[np.arange(len(top)), evidence.labels], _LEAST)
    bins = zip(*reliability_bins(confidence, correct), strict=True)
    return {
        "name": name,
        "ece": calibration_error(confidence, correct),
        "nll": float(-np.log(p_true).mean()),
        "bins": [
            {
                "from": k / ECE_BINS,
                "to": (k + 1) / ECE_BINS,
                "samples": int(n),
                "confidence": float(total / n),
                "accuracy": float(right / n),
            }
            for k, (n, total, right) in enumerate(bins)
            if n
        ],
    }


def errors(evidence: Evidence) -> dict[str, Any]:
    """The distribution of the points' errors: `curve` of [km, share of samples within, a sample's id], and `marks` of km and share."""
    order = np.argsort(evidence.km, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(len(order), _CURVE_POINTS)).astype(int))
    return {
        "curve": [
            [float(evidence.km[order[k]]), float((k + 1) / len(order)), evidence.ids[order[k]]]
            for k in places
        ],
        "marks": [{"km": km, "share": float((evidence.km <= km).mean())} for km in MARKS_KM],
        "median_km": float(np.median(evidence.km)),
    }


def views(evidence: Evidence) -> dict[str, Any]:
    """What each view is worth and weighs.

    Returns:
        `ablation`: `view_table`'s rows. `weights`: for each view its mean share and the 5, 25, 50, 75 and 95 % `quantiles` of the
        samples' shares, of those sets of heads that weigh views; or why there is none.
    """
    names = [harmless(name) for name in evidence.run.config.model.view_names]
    if len(names) < 2:
        return {"missing": f"There is one view, {names[0]}: nothing to leave out, and nothing to weigh."}
    try:
        ablation = score_by_view(evidence.run, evidence.predictions, evidence.truth)
    except GeoError as error:
        return {"missing": why(error)}
    worth: dict[str, Any] = {
        "ablation": [row | {"view": name} for row, name in zip(ablation, names, strict=True)]
    }
    try:
        weights = view_weights(evidence.run, "train", evidence.predictions.sample_id)
    except GeoError as error:
        return worth | {"weights": {"missing": why(error)}}
    seen = weights.shares[~np.isnan(weights.shares).any(axis=1)]
    return worth | {
        "weights": [
            {
                "view": name,
                "mean": float(column.mean()),
                "quantiles": np.percentile(column, _QUANTILES).tolist(),
            }
            for name, column in zip(names, seen.T, strict=True)
        ],
        "fusions": list(weights.fusions),
    }


def _points(x: list[Any], y: list[Any]) -> list[list[float]]:
    pairs = [(_number(a), _number(b)) for a, b in zip(x, y, strict=True)]
    return [[a, b] for a, b in pairs if a is not None and b is not None]


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    number = float(value) if isinstance(value, int | float | np.number) else float("nan")
    return number if np.isfinite(number) else None
