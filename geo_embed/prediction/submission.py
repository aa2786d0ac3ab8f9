"""The competition file: written from predictions, and checked, wherever it came from."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.answers import Predictions
from geo_embed.cache.find import find_store
from geo_embed.cache.store import content_digest
from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data.samples import (
    PREDICTED_POINT,
    PREDICTED_STATES,
    load_mapping,
    load_samples,
    truth_of,
)
from geo_embed.data.table import look_alike, numbers_of, read_csv, shown, why_no_number
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import replacing
from geo_embed.geography import in_box, on_earth, region_box
from geo_embed.metrics import top_states
from geo_embed.prediction.predict import predict_cached, warn_of_variants
from geo_embed.runs.run import Run, check_not_replaced, on_this_machine
from geo_embed.runs.table import read_predictions, read_stores, write_predictions

# Rows named one by one in a finding; more are counted.
_SHOWN = 3

# South, north, west, east in degrees; across the antimeridian, east is above 180.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Verdict:
    """What a check of a submission found. It is valid if there are no errors."""

    rows: int = 0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether the competition would take it."""
        return not self.errors


def submit(config: Config, run: Run, out: Path | None = None) -> tuple[Path, Verdict]:
    """Write a run's answers for the test split as a competition file, and check it.

    Test predictions are taken from the run, or made from the cached test split where the run has none that are still true.

    Args:
        config: paths.
        run: whose answers.
        out: the file; default `<submissions_dir>/<run>.csv`.

    Raises:
        GeoError: no template, no embeddings of the test split, or a sample of the template without an answer.
    """
    warn_of_variants(config)
    run = on_this_machine(run, config.paths, config.model.device)
    template = read_template(config.paths.csv("test"), run.config.model.view_names)
    predictions = _test_predictions(run, template)
    path = out or config.paths.submissions_dir / f"{run.name}.csv"
    table = fill_template(template, predictions)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
        # Under its own name it may be somebody else's in a moment.
        verdict = validate(config, temporary, view_names=run.config.model.view_names)
    return path, verdict


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
            f"{len(lacking):,} samples of the template have no prediction, {lacking[0]!r} first",
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


def validate(config: Config, path: Path, *, view_names: Sequence[str] | None = None) -> Verdict:
    """Check a submission against the template: columns, ids, nulls, ranges; with warnings for what is odd but legal.

    Args:
        config: the template, the state mapping, and `model.gps_box`, outside of which a point draws a warning; an edge
            that isn't given comes from the training CSV, where that can be read.
        path: the file.
        view_names: of the template's pictures; default: those of the settings.

    Raises:
        GeoError: there is no such file, or no template.
    """
    if not path.exists():
        raise GeoError("there is no such submission", where=path, hint="write one with: geo submit")
    template = read_template(config.paths.csv("test"), view_names or config.model.view_names)
    columns = ["sample_id", *PREDICTED_STATES, *PREDICTED_POINT]
    table, problems = read_csv(path, [*columns, *image_columns(template)])
    errors = [problem.message for problem in problems]
    if table is None and problems[0].kind == "missing-column":
        # Where it is pictures' names alone that are missing, the answers can be looked at all the same.
        table, _ = read_csv(path, columns)
    if table is None:
        if problems[0].kind in ("missing-file", "unreadable"):
            raise GeoError(problems[0].message, where=path)
        return Verdict(errors=errors)
    verdict = Verdict(len(table), errors)
    _check_rows(verdict, table["sample_id"], template["sample_id"])
    _check_states(verdict, table, load_mapping(config.paths.mapping()), config.inference.max_state_idx)
    _check_points(verdict, table, _region(config))
    return verdict


def _test_predictions(run: Run, template: pd.DataFrame) -> Predictions:
    """The run's table, made again if it lacks a sample of the template or the stores hold something else since it was made."""
    path = run.predictions_path("test")
    if path.is_file() and not _is_stale(run, path):
        predictions, _ = read_predictions(path, run.labels)
        if set(template["sample_id"]) <= set(predictions.sample_id):
            return predictions
    predictions, truth, stores = predict_cached(run, "test", run.config.paths, run.config.model.device)
    try:
        write_predictions(path, predictions, truth, stores, lambda: check_not_replaced(run))
    except GeoError as error:
        warn(f"the run can't keep its test predictions: {error}")
    return predictions


def _is_stale(run: Run, path: Path) -> bool:
    """Whether a table of test predictions was made from other content than the run's test stores have now.

    A store that isn't on this machine has no say, and with it the predictions can't be made again. A table that doesn't
    tell what it was made from is one of an earlier version: stale, if it can be made again.
    """
    now: dict[str, str | None] = {}
    for fingerprint in run.store_fingerprints:
        now[fingerprint] = None
        with contextlib.suppress(GeoError):
            now[fingerprint] = content_digest(find_store(run.config, "test", fingerprint=fingerprint))
    made_from = read_stores(path)
    # An earlier version's: what can't be made again is better than nothing.
    if made_from is None:
        return None not in now.values()
    return any(digest not in (None, made_from.get(fingerprint)) for fingerprint, digest in now.items())


def _check_rows(verdict: Verdict, ids: "pd.Series[str]", wanted: "pd.Series[str]") -> None:
    if len(ids) != len(wanted):
        verdict.errors.append(f"{len(ids):,} rows, where the template has {len(wanted):,}")
    _find(verdict.errors, ids, ids == "", "without a sample_id")
    _find(
        verdict.errors, ids, ids.duplicated() & (ids != ""), "with a sample_id that an earlier row has", ids
    )
    _find(
        verdict.errors,
        ids,
        ~ids.isin(wanted) & (ids != ""),
        "with a sample_id that isn't in the template",
        ids,
    )
    foreign = ids[~ids.isin(wanted) & (ids != "")]
    known = {_bare_id(sample_id) for sample_id in wanted}
    changed = foreign[[_bare_id(sample_id) in known for sample_id in foreign]]
    _find(
        verdict.warnings,
        changed,
        np.ones(len(changed), dtype=bool),
        "with a sample_id that a program has changed (leading zeros, a decimal point, accents): keep ids as text",
        changed,
    )
    lacking = wanted[~wanted.isin(ids)]
    if len(lacking):
        verdict.errors.append(
            f"{len(lacking):,} sample_ids of the template are missing: {_examples(lacking)}"
        )


def _bare_id(sample_id: str) -> str:
    """What is left of an id once programs that take it for a number, or rewrite its accents, have been at it."""
    return look_alike(sample_id).removesuffix(".0").lstrip("0")


def _check_states(verdict: Verdict, table: pd.DataFrame, mapping: dict[int, str], largest: int) -> None:
    """Add what is wrong with the ranked states: any outside 0…`largest`, or above what the mapping has, is an error."""
    largest = max(largest, *mapping)
    ranked = np.full((len(table), len(PREDICTED_STATES)), -1, dtype=np.int64)
    for rank, column in enumerate(PREDICTED_STATES):
        text = table[column]
        numbers = numbers_of(text)
        filled = (text != "").to_numpy()
        none = ~filled | (numbers == -1)
        whole = np.isfinite(numbers) & (numbers == np.round(numbers))
        _advise(verdict, text, filled & np.isnan(numbers))
        if rank == 0:
            _find(verdict.errors, table, none, f"without {column}")
        _find(verdict.errors, table, filled & ~whole, f"where {column} is not a whole number", text)
        outside = whole & ~none & ((numbers < 0) | (numbers > largest))
        _find(verdict.errors, table, outside, f"where {column} lies outside [0, {largest}]", text)
        fine = whole & ~none & ~outside
        unknown = fine & ~np.isin(numbers, list(mapping))
        _find(
            verdict.warnings,
            table,
            unknown,
            f"where {column} is no state of the mapping, so it can't be right",
            text,
        )
        ranked[fine, rank] = numbers[fine].astype(np.int64)
    _find(
        verdict.warnings, table, _repeats(ranked), "with a repeated state; it counts only at its first place"
    )


def _check_points(verdict: Verdict, table: pd.DataFrame, region: Box | None) -> None:
    """Add what is wrong with the points; one outside the region is a warning."""
    fine = np.ones(len(table), dtype=bool)
    points = []
    for column, bound in zip(PREDICTED_POINT, (90, 180), strict=True):
        text = table[column]
        numbers = numbers_of(text)
        empty = (text == "").to_numpy()
        finite = np.isfinite(numbers)
        _advise(verdict, text, ~empty & ~finite)
        _find(verdict.errors, table, empty, f"without {column}")
        _find(verdict.errors, table, ~empty & ~finite, f"where {column} is not a number", text)
        outside = finite & (np.abs(numbers) > bound)
        _find(verdict.errors, table, outside, f"where {column} lies outside [-{bound}, {bound}]", text)
        fine &= finite & ~outside
        points.append(numbers)
    if region is None:
        return
    south, north, west, east = region
    latitude, longitude = (np.where(fine, numbers, np.nan) for numbers in points)
    inside = in_box(region, latitude, longitude)
    where = f"latitude {south:g}…{north:g}, longitude {west:g}…{east:g}"
    _find(verdict.warnings, table, fine & ~inside, f"with a point outside the region ({where})")


def _advise(verdict: Verdict, column: "pd.Series[str]", wrong: NDArray[np.bool_]) -> None:
    """Say of the first value that isn't a number how it should be written, where that can be told."""
    if wrong.any():
        value = column[wrong].iloc[0]
        advice = why_no_number(value)
        if advice:
            verdict.warnings.append(f"{column.name} {shown(value)}: {advice}")


def _region(config: Config) -> Box | None:
    """South, north, west, east of `model.gps_box`; an edge that isn't given comes from the training places, and where these
    can't be read either, there is no region.
    """
    edges = config.model.gps_box.edges
    south, north, west, east = edges
    if south is not None and north is not None and west is not None and east is not None:
        return region_box([south, north], [west, east], edges)
    try:
        samples = load_samples(config, "train")
    except GeoError:
        return None
    truth = truth_of(samples)
    return region_box(truth.latitude, truth.longitude, edges)


def _repeats(ranked: NDArray[np.int64]) -> NDArray[np.bool_]:
    ordered = np.sort(ranked, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return np.asarray(twice.any(axis=1))


def _find(
    findings: list[str],
    table: "pd.DataFrame | pd.Series[str]",
    wrong: "NDArray[np.bool_] | pd.Series[bool]",
    what: str,
    values: "pd.Series[str] | None" = None,
) -> None:
    rows = table.index[np.asarray(wrong)]
    if len(rows):
        shown = "" if values is None else f": {_examples(values[rows])}"
        more = ", …" if len(rows) > _SHOWN else ""
        at = ", ".join(str(row) for row in rows[:_SHOWN]) + more
        findings.append(f"{len(rows):,} row{'s' * (len(rows) > 1)} {what}{shown} (row {at})")


def _examples(values: "pd.Series[str]") -> str:
    return ", ".join(shown(value) for value in values.iloc[:_SHOWN]) + (", …" if len(values) > _SHOWN else "")
