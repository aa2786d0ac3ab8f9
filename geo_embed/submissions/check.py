"""Whether the competition would take a file, and all that speaks against it, row by row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.config import Config
from geo_embed.console import counted
from geo_embed.data.samples import (
    PREDICTED_POINT,
    PREDICTED_STATES,
    load_mapping,
    load_samples,
    truth_of,
)
from geo_embed.data.table import LooseTable, look_alike, numbers_of, read_loose_csv, shown, why_no_number
from geo_embed.errors import GeoError
from geo_embed.geography import in_box, region_box
from geo_embed.submissions.template import image_columns, read_template

Severity = Literal["error", "warning"]
# South, north, west, east in degrees; across the antimeridian, east is above 180.
Box = tuple[float, float, float, float]

# Rows and values that a message names.
_SHOWN = 3
_BOUNDS = (90, 180)


@dataclass(frozen=True)
class Finding:
    """Something about a submission, with every place where it is so.

    Attributes:
        severity: an error, which the competition refuses or scores as nothing, or a warning.
        kind: a short slug.
        what: what is wrong: a sentence about the file, or what follows "12 rows" or "12 sample_ids".
        column: the column that it is about, if it is one.
        rows: the rows, as a spreadsheet shows them: the header is row 1. Empty where it is about the whole file, or about samples
            that have no row.
        sample_ids: of these rows, or the samples without one.
        values: what the column holds in these rows; empty where that says nothing.
    """

    severity: Severity
    kind: str
    what: str
    column: str | None = None
    rows: list[int] = field(default_factory=list)
    sample_ids: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many rows, or samples without one; 0 of a file as a whole."""
        return max(len(self.rows), len(self.sample_ids))

    @property
    def title(self) -> str:
        """What is wrong and how often, without the places."""
        if not self.count:
            return self.what
        return f"{counted(self.count, 'row' if self.rows else 'sample_id')} {self.what}"

    @property
    def message(self) -> str:
        """What is wrong and how often, with the first places, in one line."""
        examples = self.values or ([] if self.rows else self.sample_ids)
        text = self.title + (f": {_first(map(shown, examples[:_SHOWN]), len(examples))}" if examples else "")
        return text + (f" (row {_first(map(str, self.rows[:_SHOWN]), self.count)})" if self.rows else "")

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "message": self.message,
            "column": self.column,
            "count": self.count,
            "rows": self.rows,
            "sample_ids": self.sample_ids,
            "values": self.values,
        }


@dataclass(frozen=True)
class Verdict:
    """What a check of a submission found. It is valid if there are no errors."""

    rows: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """The errors, a line each."""
        return [finding.message for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[str]:
        """The warnings, a line each."""
        return [finding.message for finding in self.findings if finding.severity == "warning"]

    @property
    def valid(self) -> bool:
        """Whether the competition would take it."""
        return not self.errors


def validate(config: Config, path: Path, *, view_names: Sequence[str] | None = None) -> Verdict:
    """Check a submission against the template: columns, ids, nulls, ranges; with warnings for what is odd but legal.

    Whatever the file is, it is read as far as it can be: semicolons for commas are an error, and the rows are checked all the same.

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
    loose, problems = read_loose_csv(path, [*columns, *image_columns(template)], "sample_id")
    findings = [Finding("error", problem.kind, problem.message) for problem in problems]
    if loose is None and problems[-1].kind == "missing-column":
        # Where it is pictures' names alone that are missing, the answers can be looked at all the same.
        loose, _ = read_loose_csv(path, columns, "sample_id")
    if loose is None:
        if problems[-1].kind in ("missing-file", "unreadable"):
            raise GeoError(problems[-1].message, where=path)
        return Verdict(findings=findings)
    table = loose.table
    findings += _check_ragged(loose)
    findings += _check_ids(loose, template["sample_id"])
    findings += _check_images(table, template)
    findings += _check_states(table, load_mapping(config.paths.mapping()), config.inference.max_state_idx)
    findings += _check_points(table, _region(config))
    return Verdict(len(table) + len(loose.ragged), findings)


def _check_ragged(loose: LooseTable) -> list[Finding]:
    if not loose.ragged:
        return []
    first = loose.ragged[0]
    what = f"with another number of fields than the {loose.width} of the header (row {first.row} has {first.fields}): {loose.cure}"
    return [
        Finding(
            "error",
            "fields",
            what,
            rows=[row.row for row in loose.ragged],
            sample_ids=[row.key for row in loose.ragged],
        )
    ]


def _check_ids(loose: LooseTable, wanted: "pd.Series[str]") -> list[Finding]:
    # Rows of another length mostly have their id all the same: it isn't missing.
    ids = loose.table["sample_id"]
    if loose.ragged:
        rows = [row.row for row in loose.ragged]
        others = pd.Series([row.key for row in loose.ragged], dtype="str", index=pd.Index(rows))
        ids = pd.concat([ids, others]).sort_index()
    findings = []
    if len(ids) != len(wanted):
        what = f"{counted(len(ids), 'row')}, where the template has {len(wanted):,}"
        findings.append(Finding("error", "row-count", what))
    empty, repeated, foreign = ids == "", ids.duplicated() & (ids != ""), ~ids.isin(wanted) & (ids != "")
    findings += _of_rows("error", "no-id", "without a sample_id", ids, empty)
    findings += _of_rows(
        "error", "repeated-id", "with a sample_id that an earlier row has", ids, repeated, ids
    )
    findings += _of_rows(
        "error", "foreign-id", "with a sample_id that isn't in the template", ids, foreign, ids
    )
    if foreign.any():
        known, strange = {_bare_id(sample_id) for sample_id in wanted}, ids[foreign]
        changed = np.array([_bare_id(sample_id) in known for sample_id in strange], dtype=bool)
        what = "with a sample_id that a program has changed (leading zeros, a decimal point, accents): keep ids as text"
        findings += _of_rows("warning", "changed-id", what, strange, changed, strange)
    lacking = wanted[~wanted.isin(ids)]
    if len(lacking):
        what = f"of the template {'is' if len(lacking) == 1 else 'are'} missing"
        findings.append(Finding("error", "missing-id", what, sample_ids=lacking.to_list()))
    if not findings:
        moved = ids.to_numpy() != wanted.to_numpy()
        what = "at another place than in the template: answers go by sample_id, and only tools that go by the order of rows mind"
        findings += _of_rows("warning", "order", what, ids, moved)
    return findings


def _bare_id(sample_id: str) -> str:
    """What is left of an id once programs that take it for a number, or rewrite its accents, have been at it."""
    return look_alike(sample_id).removesuffix(".0").lstrip("0")


def _check_images(table: pd.DataFrame, template: pd.DataFrame) -> list[Finding]:
    """Rows whose pictures are another sample's: ids that were sorted, or pasted, without their answers."""
    findings: list[Finding] = []
    place = pd.Series(np.arange(len(template)), index=pd.Index(template["sample_id"]))
    known = table["sample_id"].isin(template["sample_id"]).to_numpy()
    where = place.reindex(table["sample_id"][known]).to_numpy(dtype=np.int64)
    for column in image_columns(template):
        if column not in table:
            continue
        wrong = np.zeros(len(table), dtype=bool)
        name, wanted = table[column][known].to_numpy(), template[column].to_numpy()[where]
        wrong[known] = (name != wanted) & (name != "") & (wanted != "")
        what = f"where {column} is not the template's for this sample_id: the answers may be of other samples"
        findings += _of_rows("warning", "other-image", what, table["sample_id"], wrong, table[column])
    return findings


def _check_states(table: pd.DataFrame, mapping: dict[int, str], largest: int) -> list[Finding]:
    """What is wrong with the ranked states: any outside 0…`largest`, or above what the mapping has, is an error."""
    largest = max(largest, *mapping)
    ids = table["sample_id"]
    ranked = np.full((len(table), len(PREDICTED_STATES)), -1, dtype=np.int64)
    findings: list[Finding] = []
    for rank, column in enumerate(PREDICTED_STATES):
        text = table[column]
        numbers = numbers_of(text)
        filled = (text != "").to_numpy()
        unanswered = ~filled | (numbers == -1)
        whole = np.isfinite(numbers) & (numbers == np.round(numbers))
        findings += _advise(text, filled & np.isnan(numbers))
        if rank == 0:
            findings += _of_rows("error", "no-state", f"without {column}", ids, unanswered)
        what = f"where {column} is not a whole number"
        findings += _of_rows("error", "not-a-state", what, ids, filled & ~whole, text)
        outside = whole & ~unanswered & ((numbers < 0) | (numbers > largest))
        what = f"where {column} lies outside [0, {largest}]"
        findings += _of_rows("error", "state-range", what, ids, outside, text)
        fine = whole & ~unanswered & ~outside
        unknown = fine & ~np.isin(numbers, list(mapping))
        what = f"where {column} is no state of the mapping, so it can't be right"
        findings += _of_rows("warning", "unknown-state", what, ids, unknown, text)
        pointed = whole & ~text.str.fullmatch(r"-?\d+").to_numpy(dtype=bool)
        what = f"where {column} is a whole number that isn't written as one: some readers take no 12.0 or 1e1"
        findings += _of_rows("warning", "decimal-state", what, ids, pointed, text)
        ranked[fine, rank] = numbers[fine].astype(np.int64)
    what = "with a repeated state; it counts only at its first place"
    return findings + _of_rows("warning", "repeated-state", what, ids, repeated_states(ranked))


def _check_points(table: pd.DataFrame, region: Box | None) -> list[Finding]:
    """What is wrong with the points; one outside the region is a warning."""
    ids = table["sample_id"]
    fine = np.ones(len(table), dtype=bool)
    points = []
    findings: list[Finding] = []
    for column, bound in zip(PREDICTED_POINT, _BOUNDS, strict=True):
        text = table[column]
        numbers = numbers_of(text)
        empty = (text == "").to_numpy()
        finite = np.isfinite(numbers)
        findings += _advise(text, ~empty & ~finite)
        findings += _of_rows("error", "no-coordinate", f"without {column}", ids, empty)
        what = f"where {column} is not a number"
        findings += _of_rows("error", "not-a-coordinate", what, ids, ~empty & ~finite, text)
        outside = finite & (np.abs(numbers) > bound)
        what = f"where {column} lies outside [-{bound}, {bound}]"
        findings += _of_rows("error", "coordinate-range", what, ids, outside, text)
        fine &= finite & ~outside
        points.append(numbers)
    return findings + _check_region(ids, points[0], points[1], fine, region)


def _check_region(
    ids: "pd.Series[str]",
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    fine: NDArray[np.bool_],
    region: Box | None,
) -> list[Finding]:
    """Points (N,) that can't be what was meant; `fine` (N,) are those on the globe."""
    with np.errstate(invalid="ignore"):
        zero = fine & (latitude == 0) & (longitude == 0)
        swappable = (np.abs(longitude) <= _BOUNDS[0]) & (np.abs(latitude) <= _BOUNDS[1])
        swapped = swappable & (np.abs(latitude) > _BOUNDS[0])
    turned = np.zeros(len(ids), dtype=bool)
    outside, where = turned, ""
    if region is not None:
        south, north, west, east = region
        where = f"latitude {south:g}…{north:g}, longitude {west:g}…{east:g}"
        inside = in_box(region, np.where(fine, latitude, np.nan), np.where(fine, longitude, np.nan))
        swapped = swappable & ~inside & in_box(region, longitude, latitude)
        # Where the region has both signs, across 0 or 180, a point of the other sign is as good as one that lost its own.
        if 0 < west <= east <= 180 or -180 <= west <= east < 0:
            turned = fine & ~inside & ~zero & ~swapped & in_box(region, latitude, -longitude)
        outside = fine & ~inside & ~zero & ~swapped & ~turned
    return [
        *_of_rows(
            "warning", "zero-point", "at latitude 0, longitude 0: the template's placeholder?", ids, zero
        ),
        *_of_rows("warning", "swapped", "where latitude and longitude seem to be swapped", ids, swapped),
        *_of_rows(
            "warning", "lost-sign", f"where the longitude seems to have lost its sign ({where})", ids, turned
        ),
        *_of_rows("warning", "outside-region", f"with a point outside the region ({where})", ids, outside),
    ]


def repeated_states(ranked: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows of ranked states (N, R), −1 where none is given, name one twice."""
    ordered = np.sort(ranked, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return np.asarray(twice.any(axis=1))


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


def _advise(column: "pd.Series[str]", wrong: NDArray[np.bool_]) -> list[Finding]:
    """How the first value that isn't a number should be written, where that can be told."""
    if not wrong.any():
        return []
    value = column[wrong].iloc[0]
    advice = why_no_number(value)
    text = f"{column.name} {shown(value)}: {advice}"
    return [Finding("warning", "how-to-write", text, str(column.name))] if advice else []


def _of_rows(
    severity: Severity,
    kind: str,
    what: str,
    ids: "pd.Series[str]",
    wrong: "NDArray[np.bool_] | pd.Series[bool]",
    values: "pd.Series[str] | None" = None,
) -> list[Finding]:
    """The finding about the rows that are `wrong` (N,), by their ids (N,); none where none is."""
    at = np.asarray(wrong, dtype=bool)
    if not at.any():
        return []
    column = None if values is None else str(values.name)
    shown_values = [] if values is None else values[at].to_list()
    return [Finding(severity, kind, what, column, ids.index[at].to_list(), ids[at].to_list(), shown_values)]


def _first(shown_values: Iterable[str], count: int) -> str:
    return ", ".join(shown_values) + (", …" if count > _SHOWN else "")
