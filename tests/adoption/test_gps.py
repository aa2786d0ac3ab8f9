"""Places by EXIF: as cameras write them, and whatever is damaged, without an exception."""

from __future__ import annotations

import io
import math
import random
from typing import Any

import pytest
from pictures import encoded, scene
from PIL import Image

from geo_embed.adoption import gps


def read_gps(data: bytes) -> tuple[float, float] | str:
    return gps.read_gps(io.BytesIO(data))


NONE, NO_PAIR = "no coordinates in its EXIF", "its EXIF has a place that is no pair of coordinates"


def tagged(kind: str = "JPEG", **tags: Any) -> bytes:
    """A picture with GPS tags, called by their numbers: `t2=(…)`."""
    exif = Image.Exif()
    exif[0x8825] = {int(name[1:]): value for name, value in tags.items()}
    return encoded(scene(24, 20), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_degrees_minutes_and_seconds_of_all_four_quarters(kind: str) -> None:
    angles = {"t2": (48.0, 51.0, 30.0), "t4": (2.0, 20.0, 15.0)}
    for north, east in (("N", "E"), ("N", "W"), ("S", "E"), ("S", "W")):
        place = read_gps(tagged(kind, t1=north, t3=east, **angles))
        wanted = (48.858333, 2.3375)
        assert place == pytest.approx(
            (wanted[0] * (1 if north == "N" else -1), wanted[1] * (1 if east == "E" else -1)), abs=1e-5
        )


def test_a_picture_without_a_place_says_so() -> None:
    assert read_gps(encoded(scene(24, 20), "JPEG")) == NONE
    assert read_gps(tagged(t1="N", t2=(1.0, 2.0, 3.0))) == NO_PAIR
    # A height alone, as a phone without a fix writes it.
    assert read_gps(tagged(t5=b"\0", t6=100.0)) == NONE
    assert read_gps(b"no picture") == "its EXIF can't be read"
    assert read_gps(b"") == "its EXIF can't be read"


def test_half_degrees_alone_are_understood_and_fractions_over_nothing_are_not() -> None:
    assert read_gps(tagged(t1="N", t2=(47.5,), t3="E", t4=(8.0, 15.0))) == pytest.approx((47.5, 8.25))
    whole = tagged(t1="N", t2=(47.0, 0.0, 0.0), t3="E", t4=(8.0, 0.0, 0.0))
    # 47/1, as some phones without a fix have it: 0/0.
    damaged = whole.replace(b"\0\0\0\x2f\0\0\0\x01", b"\0\0\0\0\0\0\0\0").replace(
        b"\x2f\0\0\0\x01\0\0\0", bytes(8)
    )
    assert damaged != whole
    assert read_gps(damaged) == NO_PAIR


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"t2": (48.0, 51.0, 60.0)}, (48 + 52 / 60, 2.0)),
        ({"t2": (48.0, 75.0, 0.0)}, NO_PAIR),
        ({"t2": (48.0, 10.0, 4512.0)}, NO_PAIR),
        ({"t1": "South"}, (-48.0, 2.0)),
        ({"t1": "E", "t3": "N"}, NO_PAIR),
        ({"t1": "", "t3": ""}, (48.0, 2.0)),
    ],
)
def test_what_would_be_a_place_far_off_is_none(changed: Any, place: Any) -> None:
    tags = {"t1": "N", "t2": (48.0, 0.0, 0.0), "t3": "E", "t4": (2.0, 0.0, 0.0)}
    assert read_gps(tagged(**tags | changed)) == (place if place == NO_PAIR else pytest.approx(place))


def test_no_damage_to_the_exif_makes_an_exception_or_a_place_of_no_number() -> None:
    whole = tagged(t1="N", t2=(48.0, 51.0, 30.0), t3="E", t4=(2.0, 20.0, 15.0))
    chance = random.Random(0)
    answers = set()
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(2, 260)] = chance.randrange(256)
        if chance.random() < 0.1:
            del data[chance.randrange(len(data)) :]
        answer = read_gps(bytes(data))
        answers.add(type(answer))
        assert isinstance(answer, str) or all(map(math.isfinite, answer))
    assert answers == {str, tuple}
