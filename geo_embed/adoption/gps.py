"""Where a picture was taken, by its EXIF; never an exception, whatever the file holds."""

import math
import warnings
from typing import Any, BinaryIO

from PIL import Image

# EXIF 2.32, section 4.6.6: the directory of GPS tags, and in it the hemispheres and the angles.
_GPS = 0x8825
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4


def read_gps(file: BinaryIO) -> tuple[float, float] | str:
    """Latitude and longitude in degrees of a picture, or why there are none. Of its file, opened, what is needed is read."""
    # PIL reads tags on demand and fails at damaged ones in many ways: IndexError, KeyError, struct.error, TypeError, ZeroDivisionError.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                tags = image.getexif().get_ifd(_GPS)
    except Exception:
        return "its EXIF can't be read"
    if not tags:
        return "no coordinates in its EXIF"
    try:
        latitude = _degrees(tags[_LATITUDE], tags.get(_LATITUDE_REF), "S")
        longitude = _degrees(tags[_LONGITUDE], tags.get(_LONGITUDE_REF), "W")
    except Exception:
        return "its EXIF has a place that is no pair of coordinates"
    if not (math.isfinite(latitude) and math.isfinite(longitude)):
        return "its EXIF has a place that is no pair of coordinates"
    return latitude, longitude


def _degrees(angle: Any, hemisphere: Any, negative: str) -> float:
    """Degrees of an angle as EXIF has it: degrees, minutes and seconds, of which the later may be left out."""
    parts = [float(part) for part in (angle if isinstance(angle, tuple | list) else (angle,))]
    if not 1 <= len(parts) <= 3 or any(part < 0 for part in parts[1:]):
        raise ValueError(angle)
    value = sum(abs(part) / 60**place for place, part in enumerate(parts))
    letter = hemisphere.decode("latin-1") if isinstance(hemisphere, bytes) else str(hemisphere or "")
    south_or_west = letter.strip("\0 ").upper().startswith(negative) or parts[0] < 0
    return -float(value) if south_or_west else float(value)
