"""Tables of results as files: CSV, Parquet, and on a map GeoJSON (RFC 7946)."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.console import counted, warn
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import replacing

if TYPE_CHECKING:
    import pandas as pd

# What a spreadsheet takes for a formula, and may run.
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# About a tenth of a metre.
_DIGITS = 6
# Blue, orange and grey of Okabe and Ito, which the colour-blind can tell apart; keys of simplestyle-spec, which GitHub draws by.
_TRUE, _PREDICTED, _BETWEEN = {"marker-color": "#0072B2"}, {"marker-color": "#D55E00"}, {"stroke": "#666666"}
_POINTS = ("true_latitude", "true_longitude", "latitude", "longitude")


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table in the format that the file's name ends in: `.csv`, `.parquet`, or `.geojson` of results sample by sample.

    CSV: UTF-8. A text that a spreadsheet would take for a formula, since it begins with = + - @, a tab or a carriage return and is no
    number, gets a ' in front, and a warning says how many did. Parquet and GeoJSON have every text as it is.

    GeoJSON: three features a sample, the true point, the predicted one and the line between them, which has all columns as its
    properties; a line across the 180th meridian is cut there.

    Args:
        path: the file, replaced in one piece; its folder is made.
        table: plain columns.

    Raises:
        GeoError: another ending, a table without points for GeoJSON, or the disk is full or may not be written.
    """
    write = writer_for(path)
    if write is _write_geojson and not set(_POINTS) <= set(table):
        raise GeoError(
            "this table has no points to draw on a map",
            where=path,
            hint="write it as .csv or .parquet; --by worst has points",
        )
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(temporary, table)


def writer_for(path: Path) -> "Callable[[Path, pd.DataFrame], None]":
    """What writes a file of this name. Raises GeoError for an ending that isn't known: call it before any work is done."""
    try:
        return _WRITERS[path.suffix.lower()]
    except KeyError:
        raise GeoError(
            f"tables are written as {', '.join(_WRITERS)}, not as {path.suffix or 'a file without an ending'}",
            where=path,
            hint=f"name it {path.stem or 'table'}.csv",
        ) from None


def _write_csv(path: Path, table: "pd.DataFrame") -> None:
    import pandas as pd

    changed = 0
    columns = {}
    for name, column in table.items():
        if not pd.api.types.is_numeric_dtype(column):
            harmless = column.map(_no_formula)
            changed += int((harmless != column).sum())
            column = harmless
        columns[name] = column
    pd.DataFrame(columns).to_csv(path, index=False, lineterminator="\n", encoding="utf-8")
    if changed:
        warn(
            f"{counted(changed, 'cell begins as a formula does (= + - @) and has', 'cells begin as a formula does (= + - @) and have')} a ' in front, so that no spreadsheet runs them; "
            ".parquet has them as they are"
        )


def _no_formula(value: Any) -> Any:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _write_parquet(path: Path, table: "pd.DataFrame") -> None:
    table.to_parquet(path, index=False)


def _write_geojson(path: Path, table: "pd.DataFrame") -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        before = "\n"
        for row in table.to_dict("records"):
            for feature in _features({str(name): value for name, value in row.items()}):
                file.write(before + json.dumps(feature, ensure_ascii=False, allow_nan=False))
                before = ",\n"
        file.write("\n]}\n")


def _features(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A sample's true point, its predicted one, and the line from the one to the other."""
    true = _position(row["true_longitude"], row["true_latitude"])
    predicted = _position(row["longitude"], row["latitude"])
    sample, km = {"sample_id": row["sample_id"]}, {"km": round(row["km"], _DIGITS)}
    of_truth = {"kind": "truth", "state": row["true_state"], **km, **_TRUE}
    of_answer = {
        "kind": "prediction",
        "state": row["state_1"],
        "confidence": round(row["confidence"], _DIGITS),
        **km,
    }
    yield _feature("Point", true, sample | of_truth)
    yield _feature("Point", predicted, sample | of_answer | _PREDICTED)
    pieces = _line(true, predicted)
    kind = "LineString" if len(pieces) == 1 else "MultiLineString"
    short = {
        name: round(value, _DIGITS) if isinstance(value, float) else value for name, value in row.items()
    }
    yield _feature(kind, pieces[0] if len(pieces) == 1 else pieces, short | {"kind": "error"} | _BETWEEN)


def _feature(kind: str, coordinates: Any, properties: dict[str, Any]) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _position(longitude: float, latitude: float) -> list[float]:
    """Longitude first, as RFC 7946 has it."""
    return [round(longitude, _DIGITS), round(latitude, _DIGITS)]


def _line(start: list[float], end: list[float]) -> list[list[list[float]]]:
    """A straight line of the map, the short way round: one piece, or two that end at the 180th meridian (RFC 7946, section 3.1.9)."""
    (west, south), (east, north) = start, end
    if abs(east - west) <= 180:
        return [[start, end]]
    edge = 180.0 if west > 0 else -180.0
    # Where the end would lie if the map went on beyond its edge; a point on the edge itself needs no cut of its own.
    beyond = east + 2 * edge
    if beyond == west:
        # Both points lie on the edge.
        return [[start, [west, north]]]
    latitude = round(south + (north - south) * (edge - west) / (beyond - west), _DIGITS)
    return [[start, [edge, latitude]], [[-edge, latitude], end]]


_WRITERS: "dict[str, Callable[[Path, pd.DataFrame], None]]" = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".geojson": _write_geojson,
}
