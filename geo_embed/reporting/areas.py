"""The areas that outlines are bundled for: states of the US, countries of the world. atlas/README.md says where they come from."""

import json
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# (K, 2) float64, longitude and latitude in degrees, closed. Longitudes run on without a jump: a ring across the antimeridian goes
# beyond ±180. A ring inside another is a hole: what an odd number of rings holds is inside.
Ring = NDArray[np.float64]

# The states and territories by the number that the Census Bureau gives them (FIPS 5-2) and the code on an envelope.
_POSTAL: Final = (
    "01AL 02AK 04AZ 05AR 06CA 08CO 09CT 10DE 11DC 12FL 13GA 15HI 16ID 17IL 18IN 19IA 20KS 21KY 22LA 23ME 24MD 25MA 26MI 27MN 28MS "
    "29MO 30MT 31NE 32NV 33NH 34NJ 35NM 36NY 37NC 38ND 39OH 40OK 41OR 42PA 44RI 45SC 46SD 47TN 48TX 49UT 50VT 51VA 53WA 54WV 55WI "
    "56WY 60AS 66GU 69MP 72PR 78VI"
)
TERRITORIES: Final = frozenset({"AS", "GU", "MP", "PR", "VI"})


@dataclass(frozen=True)
class Area:
    """A state or country.

    Attributes:
        code: its short code: two letters, or "" for a country that has none.
        name: as the atlas writes it.
        keys: what else it is called, each through `key_of`.
        rings: its outline; islands are rings of their own.
    """

    code: str
    name: str
    keys: frozenset[str]
    rings: tuple[Ring, ...]


def key_of(name: str) -> str:
    """A name as names are compared: letters and digits alone, without case and accents. `São Tomé` is `saotome`."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in plain if letter.isalnum())


@lru_cache(maxsize=1)
def us_states() -> tuple[Area, ...]:
    """The 50 states, the District of Columbia and the territories, by name, postal code (`CA`, `US-CA`) or FIPS number."""
    codes = {entry[:2]: entry[2:] for entry in _POSTAL.split()}
    areas = []
    for number, name, rings in _shapes("us-states.json", "states"):
        code = codes[number]
        areas.append(Area(code, name, _keys(name, code, f"US-{code}", number), rings))
    return tuple(areas)


@lru_cache(maxsize=1)
def countries() -> tuple[Area, ...]:
    """The countries of the world, by English name or ISO 3166-1 code (`CH`, `CHE`, `756`)."""
    names = json.loads(_text("iso-names.json"))["countries"]
    codes = {entry[2]: (entry[0], entry[1]) for entry in json.loads(_text("iso-codes.json"))}
    areas, known = [], set()
    for number, name, rings in _shapes("countries.json", "countries"):
        # A second area under a country's number is a dependency of it: a name of its own, and no code.
        two, three = codes.get(number, ("", "")) if number not in known else ("", "")
        known.add(number)
        official = names.get(two, [])
        others = [official] if isinstance(official, str) else official
        areas.append(Area(two, name, _keys(name, two, three, number if two else "", *others), rings))
    return tuple(areas)


def continuous(ring: Ring) -> Ring:
    """A closed ring whose longitudes may jump at ±180 as one whose longitudes run on; around a pole it goes along the map's edge."""
    lon, lat = np.unwrap(ring[:, 0], period=360), ring[:, 1]
    if abs(lon[-1] - lon[0]) > 180:
        pole = np.copysign(90.0, lat.mean())
        lon, lat = np.append(lon, [lon[-1], lon[0], lon[0]]), np.append(lat, [pole, pole, lat[0]])
    return np.stack([lon, lat], axis=1)


def _keys(*names: str) -> frozenset[str]:
    return frozenset(key_of(name) for name in names if name)


def _text(file: str) -> str:
    return (resources.files("geo_embed.reporting") / "atlas" / file).read_text(encoding="utf-8")


def _shapes(file: str, layer: str) -> list[tuple[str, str, tuple[Ring, ...]]]:
    """Number, name and rings of every shape of a TopoJSON file.

    An arc is a row of points, the first absolute and the others as steps, in units of the file's grid; a shape's ring is a row of arcs,
    whose joints are the same point, and ~k means arc k backwards (TopoJSON Specification 1.0, 2.1.3 and 2.1.4).
    """
    file_of_arcs: dict[str, Any] = json.loads(_text(file))
    scale, translate = (np.array(file_of_arcs["transform"][key]) for key in ("scale", "translate"))
    arcs = [np.cumsum(arc, axis=0) * scale + translate for arc in file_of_arcs["arcs"]]

    def ring(indices: list[int]) -> Ring:
        parts = [arcs[index] if index >= 0 else arcs[~index][::-1] for index in indices]
        return continuous(np.concatenate([parts[0], *(part[1:] for part in parts[1:])]))

    shapes = []
    for shape in file_of_arcs["objects"][layer]["geometries"]:
        polygons = shape["arcs"] if shape["type"] == "MultiPolygon" else [shape["arcs"]]
        rings = tuple(ring(indices) for polygon in polygons for indices in polygon)
        rings = tuple(corners for corners in rings if len(corners) > 3)
        shapes.append((str(shape.get("id", "")), str(shape["properties"]["name"]), rings))
    return shapes
