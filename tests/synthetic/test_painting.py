"""What the demo's camera sees is what it always saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo_embed.synthetic.country import write_country
from geo_embed.synthetic.painting import paint_place, watermark


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("country")
    write_country(root, locations=20, seed=3, workers=1)
    return sorted(root.glob("*_images/*"))


# Two places: means of red, green and blue over sixteen squares of each of the four views. Other processors and libraries round
# otherwise, but paint no other picture.
LOOKS = {
    (4, 36.5, -119.5, 7): [
        [140, 150, 161, 155, 166, 170, 169, 172, 129, 127, 126, 154, 120, 118, 119, 130],
        [157, 163, 175, 164, 165, 174, 175, 174, 148, 153, 159, 157, 123, 135, 145, 144],
        [159, 164, 165, 153, 164, 172, 169, 155, 132, 127, 124, 146, 123, 117, 115, 121],
        [151, 147, 147, 143, 162, 173, 172, 119, 147, 145, 140, 53, 123, 126, 126, 101],
    ],
    (39, 33.9, -80.9, 8): [
        [155, 157, 152, 144, 163, 151, 159, 164, 134, 142, 113, 103, 102, 100, 106, 101],
        [137, 147, 150, 150, 151, 167, 145, 158, 100, 103, 101, 98, 92, 89, 103, 102],
        [162, 171, 177, 178, 185, 195, 182, 200, 107, 114, 112, 113, 100, 104, 114, 112],
        [187, 188, 182, 158, 162, 204, 159, 117, 114, 116, 114, 109, 110, 101, 113, 110],
    ],
}


@pytest.mark.parametrize("place", LOOKS)
def test_the_same_place_looks_as_ever(place: tuple[int, float, float, int]) -> None:
    *where, sample = place
    views = np.stack([*paint_place(*where, visit=(0, 0, sample), size=64)])
    squares = views.reshape(4, 4, 16, 4, 16, 3).mean(axis=(2, 4, 5)).reshape(4, 16)
    np.testing.assert_allclose(squares, LOOKS[place], atol=1.5)


def test_every_picture_carries_the_mark_at_the_same_spot(pictures: list[Path]) -> None:
    seen = np.stack([np.asarray(Image.open(path).convert("L"), float) for path in pictures])
    mark = watermark(256) > 0.5
    beside = np.roll(mark, -14, axis=0) & ~mark
    contrast = seen[:, mark].mean(axis=1) - seen[:, beside].mean(axis=1)
    assert (contrast > 15).mean() > 0.9
