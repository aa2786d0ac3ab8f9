"""What a stranger's columns mean, by their usual names or as somebody says; and coordinates as they are written."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from geo_embed.adoption.candidates import Ledger
from geo_embed.console import counted
from geo_embed.data.samples import AREAS
from geo_embed.data.table import numbers_of, shown, why_no_number
from geo_embed.errors import GeoError

# Usual names, letters and digits alone and in lower case, the surest first.
_USUAL: dict[str, tuple[str, ...]] = {
    "latitude": (
        "latitude",
        "lat",
        "gpslatitude",
        "gpslat",
        "decimallatitude",
        "imagelat",
        "centerlat",
        "ycoord",
        "y",
    ),
    "longitude": (
        "longitude",
        "lon",
        "lng",
        "long",
        "gpslongitude",
        "gpslon",
        "gpslng",
        "decimallongitude",
        "imagelon",
        "xcoord",
        "x",
    ),
    "sample_id": ("sampleid", "id", "key", "uid", "uuid", "placeid", "panoid", "locationid"),
    "image": (
        *(
            "image",
            "imagepath",
            "imagefile",
            "imagefilename",
            "imagename",
            "img",
            "imgpath",
            "imgfile",
            "imgname",
        ),
        *("filename", "filepath", "file", "path", "picture", "photo", "imgid", "imageid"),
    ),
    "state": ("state", "label", "class", "uniquecountry", "country", "countrycode", "region", "category"),
    "state_idx": ("stateidx",),
    "split": ("split", "subset", "partition"),
    # OSV-5M's own unique names first: of `Paris` there are several.
    **{area: (f"unique{area.replace('-', '')}", area.replace("-", "")) for area in AREAS},
}
# `latitude_deg`, `Lat (WGS84)`: what the degrees are of.
_DEGREES = re.compile(
    r"((?:gps|decimal)?(?:latitude|lat|longitude|long|lon|lng))(?:deg|degree|degrees|decimal|dd|wgs84)"
)
_VIEW = re.compile(r"image_(.+)", re.IGNORECASE)
_NO_VIEWS = {
    "path",
    "file",
    "filename",
    "name",
    "id",
    "url",
    "lat",
    "lon",
    "latitude",
    "longitude",
    "width",
    "height",
    "size",
    "idx",
}
# More of the latitudes than this beyond the poles, and no longitude beyond 90, can't be slips of the pen.
_SWAPPED = 0.05
_DECIMAL_COMMA = r"[+-]?\d{1,3},\d+"
_NO_VALUES = ["", "nan", "none", "null", "na", "n/a", "-"]
_NOWHERE = 1e-6


def find_columns(header: Sequence[str], overrides: Mapping[str, str], label: str | None) -> dict[str, str]:
    """Which column of a table is which of ours: `latitude`, `longitude`, `sample_id`, `image` or `image_VIEW`, `state`, `split`, areas.

    Args:
        header: the table's names.
        overrides: ours to theirs, as somebody says it.
        label: theirs of the classes, where somebody says it; else a usual one, if there is one.

    Raises:
        GeoError: a column that is said isn't there, or ours isn't one of these.
    """
    known = {_key(name): name for name in reversed(header)}
    columns = {field: known[key] for field, keys in _USUAL.items() for key in reversed(keys) if key in known}
    if not {"latitude", "longitude"} <= columns.keys():
        columns = {field: name for field, name in columns.items() if field not in ("latitude", "longitude")}
    views = [name for name in header if (view := _VIEW.fullmatch(name)) and view[1].lower() not in _NO_VIEWS]
    if label is not None:
        overrides = {**overrides, "state": label}
    for field, column in overrides.items():
        if field not in _USUAL and not _VIEW.fullmatch(field):
            raise GeoError(
                f"{field!r} is no column of ours",
                where="--column",
                hint=f"ours are {', '.join(_USUAL)}, and image_VIEW for each view",
            )
        if column not in header:
            raise GeoError(
                f"there is no column {column!r}; the table has {', '.join(header[:20])}",
                where="--label" if field == "state" else f"--column {field}={column}",
                hint="name one of these",
            )
        columns[field] = column
    if not any(_VIEW.fullmatch(field) for field in overrides):
        columns |= {
            f"image_{_VIEW.fullmatch(name)[1]}": name  # type: ignore[index]
            for name in views
            if name not in overrides.values()
        }
    if "image" in overrides:
        columns = {
            field: name for field, name in columns.items() if field in overrides or not _VIEW.fullmatch(field)
        }
    elif any(_VIEW.fullmatch(field) for field in columns):
        columns.pop("image", None)
    return columns


def views_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The views that have columns of their own; none where a table has one column of pictures, or none."""
    return tuple(view[1] for field in columns if (view := _VIEW.fullmatch(field)))


def with_degrees(frame: pd.DataFrame, ledger: Ledger) -> pd.DataFrame:
    """Rows whose texts `latitude` and `longitude` are numbers, as float64, NaN where there is none.

    Decimal commas, longitudes from 0 to 360, and columns under each other's name are understood, and said.
    """
    for name in ("latitude", "longitude"):
        text = frame[name].astype("str").str.strip()
        commas = text.str.fullmatch(_DECIMAL_COMMA)
        if commas.any():
            have = counted(int(commas.sum()), f"value of {name} has", f"values of {name} have")
            ledger.notes.append(f"{have} a decimal comma: read as a point")
            text = text.where(~commas, text.str.replace(",", "."))
        values = numbers_of(text)
        frame = frame.assign(**{name: values})
        wrong = np.isnan(values) & ~text.str.lower().isin(_NO_VALUES).to_numpy()
        detail = text[wrong].map(
            lambda value, name=name: f"{name} {shown(value)} is no number{_advice(value)}"
        )
        frame = ledger.leave(frame, wrong, "not-a-number", detail)

    latitude, longitude = frame["latitude"].to_numpy(), frame["longitude"].to_numpy()
    known = np.isfinite(latitude) & np.isfinite(longitude)
    if known.any():
        beyond = float((np.abs(latitude[known]) > 90).mean())
        if beyond > _SWAPPED and (np.abs(longitude[known]) <= 90).all():
            latitude, longitude = longitude, latitude
            ledger.notes.append(
                f"{beyond:.0%} of the latitudes lie beyond the poles, and no longitude beyond 90: the columns are taken for each other"
            )
        if longitude[known].min() >= 0 and 180 < longitude[known].max() <= 360:
            ledger.notes.append("longitudes run from 0 to 360: those above 180 are taken for western ones")
            longitude = np.where(longitude > 180, longitude - 360, longitude)
    return frame.assign(latitude=latitude, longitude=longitude)


def with_places(frame: pd.DataFrame, ledger: Ledger) -> pd.DataFrame:
    """Rows whose coordinates are a place on Earth; those of the test split may have none, and then have NaN.

    Not 0, 0: programs write it for want of coordinates. `why` says why there are none, where the source knows.
    """
    latitude, longitude = frame["latitude"].to_numpy(), frame["longitude"].to_numpy()
    unknown = ~(np.isfinite(latitude) & np.isfinite(longitude))
    outside = ~unknown & ((np.abs(latitude) > 90) | (np.abs(longitude) > 180))
    nowhere = (np.abs(latitude) < _NOWHERE) & (np.abs(longitude) < _NOWHERE)
    reason = np.select([unknown, outside, nowhere], ["no-coordinates", "out-of-range", "null-island"], "")
    frame = frame.assign(
        reason=reason,
        latitude=np.where(reason == "", latitude, np.nan),
        longitude=np.where(reason == "", longitude, np.nan),
    )
    details = {
        "no-coordinates": frame.get("why", "no coordinates"),
        "out-of-range": pd.Series(
            [
                f"{a:g}, {b:g} is no place on Earth"
                for a, b in zip(latitude[outside], longitude[outside], strict=True)
            ],
            index=frame.index[outside],
            dtype=object,
        ),
        "null-island": "0, 0 lies in the Gulf of Guinea: programs write it for want of coordinates",
    }
    for kind, detail in details.items():
        wrong = (frame["reason"] == kind) & (frame["split"] == "train")
        frame = ledger.leave(frame, wrong, kind, detail)
    return frame.drop(columns="reason")


def _advice(value: str) -> str:
    advice = why_no_number(value)
    return f" ({advice})" if advice else ""


def _key(name: str) -> str:
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    degrees = _DEGREES.fullmatch(key)
    return degrees[1] if degrees else key
