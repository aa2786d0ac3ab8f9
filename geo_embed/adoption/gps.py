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
    # A height or a time may stand there alone.
    if not {_LATITUDE, _LONGITUDE} & set(tags):
        return "no coordinates in its EXIF"
    try:
        latitude = _degrees(tags[_LATITUDE], tags.get(_LATITUDE_REF), "NS")
        longitude = _degrees(tags[_LONGITUDE], tags.get(_LONGITUDE_REF), "EW")
    except Exception:
        return "its EXIF has a place that is no pair of coordinates"
    if not (math.isfinite(latitude) and math.isfinite(longitude)):
        return "its EXIF has a place that is no pair of coordinates"
    return latitude, longitude


def _degrees(angle: Any, hemisphere: Any, letters: str) -> float:
    """Degrees of an angle as EXIF has it: degrees, minutes and seconds, of which the later may be left out; `letters` are those of its
    hemispheres, the positive one first.
    """
    parts = [float(part) for part in (angle if isinstance(angle, tuple | list) else (angle,))]
    # Sixty comes of rounding; more is a fraction without its denominator, and would be a place far off.
    if not 1 <= len(parts) <= 3 or not all(0 <= part <= 60 for part in parts[1:]):
        raise ValueError(angle)
    value = sum(abs(part) / 60**place for place, part in enumerate(parts))
    text = hemisphere.decode("latin-1") if isinstance(hemisphere, bytes) else str(hemisphere or "")
    letter = text.strip("\0 ").upper()[:1]
    # Some write none, and a sign or nothing; the other axis' is of the other angle.
    if letter not in ("", *letters):
        raise ValueError(hemisphere)
    return -float(value) if letter == letters[1] or parts[0] < 0 else float(value)
