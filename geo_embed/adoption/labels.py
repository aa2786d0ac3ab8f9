"""Classes of samples: from a column, a folder, cells of their places, or outlines that hold them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.adoption.candidates import Ledger
from geo_embed.console import counted
from geo_embed.errors import GeoError
from geo_embed.files import read_json
from geo_embed.geography import EARTH_RADIUS_KM, to_degrees, to_unit_vectors

# A class is the rings of its polygons: what an odd number of a polygon's rings holds is inside.
Polygons = list[list[NDArray[np.float64]]]

_CELLS = re.compile(r"cells:(\d+)")
_OUTLINES = re.compile(r"(.+\.(?:geojson|json))(?::(.+))?", re.IGNORECASE)
_ATLASES = ("countries", "us-states")
# Of GeoJSON's properties, those that usually name a shape.
_NAMES = ("name", "name_en", "admin", "state", "country", "province", "region", "label", "class", "id")
# Outlines have fewer corners than a coast: what lies no farther outside belongs to the nearest.
_NEAR_KM = 25.0
_KM_PER_DEGREE = EARTH_RADIUS_KM * np.pi / 180
# Without any word of classes: cells of about so many samples, no more than so many of them.
_CELL_SAMPLES, _MOST_CELLS = 40, 100
_GEOJSON_BYTES = 512 << 20


def is_column(label: str | None) -> bool:
    """Whether a label that somebody asks for is the name of a column, or none is asked for."""
    return label is None or not (
        label in (*_ATLASES, "folder") or _CELLS.fullmatch(label) or _OUTLINES.fullmatch(label)
    )


def with_labels(frame: pd.DataFrame, label: str | None, seed: int, ledger: Ledger) -> pd.DataFrame:
    """Samples with a class each, in the column `label`; those of the test split may have none.

    Args:
        frame: `latitude`, `longitude`, `label` ("" where the source names none).
        label: `cells:N`, `countries`, `us-states`, `FILE.geojson[:PROPERTY]`; otherwise what the source names, and cells where it names none.
        seed: of the cells.

    Raises:
        GeoError: a GeoJSON that isn't one, or whose shapes have no such name.
    """
    known = np.isfinite(frame["latitude"].to_numpy())
    train = known & (frame["split"] == "train").to_numpy()
    cells = _CELLS.fullmatch(label or "")
    outlines = _OUTLINES.fullmatch(label or "")
    if label is None and train.any() and not (frame["label"] != "").any():
        count = int(np.clip(train.sum() // _CELL_SAMPLES, 2, _MOST_CELLS))
        ledger.notes.append(
            f"the source names no classes: these are {counted(count, 'cell of', 'cells of')} the places; --label cells:N makes others"
        )
        return frame.assign(label=_cells(frame, known, count, seed))
    if cells:
        if int(cells[1]) < 2:
            raise GeoError(
                "a single cell tells nothing", where="--label", hint="ask for two or more: --label cells:20"
            )
        return frame.assign(label=_cells(frame, known, int(cells[1]), seed))
    if label in _ATLASES or outlines:
        shapes = _atlas(label) if label in _ATLASES else read_outlines(Path(outlines[1]), outlines[2])  # type: ignore[index]
        frame = frame.assign(
            label=_inside(shapes, frame["latitude"].to_numpy(), frame["longitude"].to_numpy())
        )
        outside = (frame["label"] == "") & (frame["split"] == "train")
        return ledger.leave(
            frame, outside, "outside-outlines", f"more than {_NEAR_KM:g} km outside every outline of {label}"
        )
    missing = (frame["label"] == "") & (frame["split"] == "train")
    return ledger.leave(frame, missing, "no-label", "no class")


def read_outlines(path: Path, name: str | None) -> dict[str, Polygons]:
    """The shapes of a GeoJSON file (RFC 7946) by one of their properties, those of one name together.

    Args:
        path: a FeatureCollection of polygons, in degrees.
        name: the property that names a class; default: one that usually does, or the only text.

    Raises:
        GeoError: it isn't that, or the property isn't there.
    """
    content = read_json(path, limit=_GEOJSON_BYTES)
    features = content.get("features")
    if content.get("type") != "FeatureCollection" or not isinstance(features, list) or not features:
        raise GeoError(
            "this is no FeatureCollection of GeoJSON",
            where=path,
            hint="convert it: ogr2ogr -t_srs EPSG:4326 OUT.geojson IN",
        )
    named = name or _naming(path, features)
    shapes: dict[str, Polygons] = {}
    for number, feature in enumerate(features):
        try:
            properties, geometry = feature.get("properties") or {}, feature.get("geometry")
            called = _called(properties.get(named))
            if geometry is None or not called:
                continue
            parts = {"Polygon": lambda c: [c], "MultiPolygon": list}[geometry["type"]](
                geometry["coordinates"]
            )
            # An empty geometry is one, and holds nothing.
            polygons = [[_ring(ring) for ring in part] for part in parts if part]
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise GeoError(
                f"feature {number + 1} has no polygons of longitudes and latitudes in degrees",
                where=path,
                hint="convert it: ogr2ogr -t_srs EPSG:4326 OUT.geojson IN",
            ) from error
        shapes.setdefault(called, []).extend(polygons)
    if not any(shapes.values()):
        raise GeoError(
            f"none of its {len(features):,} shapes has {'an area' if shapes else f'a property {named!r}'}",
            where=path,
            hint=f"name another one: --label {path}:PROPERTY; there are {', '.join(_properties(features))}",
        )
    return shapes


def _called(value: Any) -> str:
    """A property as a class is called, "" where it names none."""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _ring(points: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    from geo_embed.reporting.areas import continuous

    ring = np.array([point[:2] for point in points], dtype=np.float64)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all() or (np.abs(ring) > [360.0, 90.0]).any():
        raise ValueError("no ring of degrees")
    closed = ring if (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]])
    return continuous(closed)


def _properties(features: Sequence[Any]) -> list[str]:
    """The properties that shapes have, some of them perhaps not each."""
    property_maps = [feature.get("properties") for feature in features if isinstance(feature, Mapping)]
    return list(
        dict.fromkeys(
            str(key) for properties in property_maps if isinstance(properties, Mapping) for key in properties
        )
    )[:20]


def _naming(path: Path, features: Sequence[Any]) -> str:
    keys = _properties(features)
    usual = [key for wanted in _NAMES for key in keys if key.lower() == wanted]
    if usual:
        return usual[0]
    first = next((f["properties"] for f in features if isinstance(f, Mapping) and f.get("properties")), None)
    texts = [key for key in keys if isinstance(first, Mapping) and isinstance(first.get(key), str)]
    if len(texts) != 1 and len(keys) != 1:
        raise GeoError(
            f"which property names a class? Its shapes have {', '.join(keys) or 'none'}",
            where=path,
            hint=f"--label {path}:PROPERTY",
        )
    return (texts or keys)[0]


def _atlas(name: str | None) -> dict[str, Polygons]:
    from geo_embed.reporting.areas import countries, us_states

    areas = countries() if name == "countries" else us_states()
    return {area.name: [list(area.rings)] for area in areas}


def _inside(
    shapes: Mapping[str, Polygons], latitude: NDArray[np.float64], longitude: NDArray[np.float64]
) -> NDArray[np.object_]:
    """(N,) the name of the shape that holds a point or lies nearest to it, "" where none lies near."""
    from geo_embed.reporting.outlines import contains, km_outside

    # 1. The shapes that hold points, one after the other: the first wins where they overlap.
    label = np.full(len(latitude), "", dtype=object)
    for name, polygons in shapes.items():
        rows = np.flatnonzero((label == "") & np.isfinite(latitude))
        for polygon in polygons:
            label[rows[contains(polygon, latitude[rows], longitude[rows])]] = name
    # 2. Points outside all of them: the nearest of the few polygons that have an edge near.
    outside = np.flatnonzero((label == "") & np.isfinite(latitude))
    named_polygons = [(name, polygon) for name, polygons in shapes.items() for polygon in polygons]
    for i, near in zip(
        outside, _polygons_near(named_polygons, latitude[outside], longitude[outside]), strict=True
    ):
        nearest = _NEAR_KM
        for name, polygon in (named_polygons[k] for k in near):
            km = float(km_outside(polygon, latitude[i : i + 1], longitude[i : i + 1])[0])
            if km <= nearest:
                nearest, label[i] = km, name
    return label


def _polygons_near(
    named_polygons: Sequence[tuple[str, Sequence[NDArray[np.float64]]]],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
) -> list[list[int]]:
    """For each of N points the polygons that have an edge within `_NEAR_KM`, and perhaps some a little farther."""
    from scipy.spatial import cKDTree

    corners, owner = [], []
    for k, (_, polygon) in enumerate(named_polygons):
        for ring in polygon:
            start, step = ring[:-1], np.diff(ring, axis=0)
            # Points along the edges, no farther apart than what counts as near.
            parts = np.ceil(np.hypot(*step.T) * _KM_PER_DEGREE / _NEAR_KM).astype(int) + 1
            edge = np.repeat(np.arange(len(start)), parts)
            share = (np.arange(len(edge)) - np.repeat(np.cumsum(parts) - parts, parts)) / parts[edge]
            corners.append(start[edge] + share[:, None] * step[edge])
            owner.append(np.full(len(edge), k))
    longitudes, latitudes = np.concatenate(corners).T
    tree, owners = cKDTree(to_unit_vectors(latitudes, longitudes)), np.concatenate(owner)
    reach = 1.5 * _NEAR_KM / EARTH_RADIUS_KM
    neighbours = tree.query_ball_point(to_unit_vectors(latitude, longitude), reach) if len(latitude) else []
    return [sorted(set(owners[rows].tolist())) for rows in neighbours]


def _cells(frame: pd.DataFrame, known: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.object_]:
    """(N,) names of the cells of all known places, by k-means on the sphere over those of the train split."""
    from geo_embed.heads.cells import nearest, sphere_kmeans

    train = known & (frame["split"] == "train").to_numpy()
    label = np.full(len(frame), "", dtype=object)
    if not train.any():
        return label
    points = to_unit_vectors(frame["latitude"].to_numpy()[known], frame["longitude"].to_numpy()[known])
    centres = sphere_kmeans(points[train[known]], count, seed=seed)
    names: list[str] = []
    for latitude, longitude in zip(*to_degrees(centres), strict=True):
        north_south, east_west = "S" if latitude < 0 else "N", "W" if longitude < 0 else "E"
        name = f"{abs(latitude):.2f}{north_south} {abs(longitude):.2f}{east_west}"
        names.append(name if name not in names else f"{name} ({len(names)})")
    label[known] = np.array(names, dtype=object)[nearest(points, centres)]
    return label
