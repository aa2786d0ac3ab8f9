"""Near duplicates: copies at another size and quality are found, strangers aren't, and a thousand alike pictures take no million pairs."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from geo_embed.data import images
from geo_embed.data.samples import Samples
from geo_embed.reporting.looks import NEAR_BITS, likeness_of, near_duplicates


def difference(a: NDArray[np.uint16], b: NDArray[np.uint16]) -> int:
    return sum(int(x ^ y).bit_count() for x, y in zip(a.tolist(), b.tolist(), strict=True))


def picture(samples: Samples, row: int) -> NDArray[np.uint8]:
    return images.decode(images.read_picture(samples.image_root / str(samples.images[row, 0])))


@pytest.mark.parametrize(("size", "quality"), [((64, 64), 30), ((200, 200), 95), ((48, 48), 80)])
def test_a_copy_at_another_size_and_quality_is_near(
    samples: Samples, size: tuple[int, int], quality: int
) -> None:
    for row in range(4):
        original = picture(samples, row)
        buffer = io.BytesIO()
        Image.fromarray(original).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
        copy = images.decode(buffer.getvalue())
        assert difference(likeness_of(original)[0], likeness_of(copy)[0]) <= NEAR_BITS


def test_pictures_of_different_places_are_not_near(samples: Samples) -> None:
    hashes = [likeness_of(picture(samples, row))[0] for row in range(len(samples))]
    assert min(difference(a, b) for a, b in combinations(hashes, 2)) > NEAR_BITS


def test_a_grey_picture_is_blank_and_a_painted_one_is_not(samples: Samples) -> None:
    assert likeness_of(np.full((30, 50, 3), 127, dtype=np.uint8))[1]
    assert likeness_of(np.random.default_rng(0).integers(125, 130, (90, 90, 3), dtype=np.uint8))[1]
    assert not likeness_of(picture(samples, 0))[1]


def test_exactly_the_pairs_within_the_limit_are_found() -> None:
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 1 << 16, (60, 8), dtype=np.uint16)
    for k, flips in enumerate((0, 1, 5, NEAR_BITS, NEAR_BITS + 1, 12)):
        bits = np.unpackbits(hashes[k].view(np.uint8))
        bits[rng.choice(128, flips, replace=False)] ^= 1
        hashes[k + 30] = np.packbits(bits).view(np.uint16)
    owner = np.arange(60)
    owner[31] = 1
    expected = [
        [a, b]
        for a, b in combinations(range(60), 2)
        if difference(hashes[a], hashes[b]) <= NEAR_BITS and owner[a] != owner[b]
    ]
    assert expected == [[0, 30], [2, 32], [3, 33]]
    assert near_duplicates(hashes, owner).tolist() == expected


def test_many_alike_pictures_are_found_each_without_all_of_their_pairs() -> None:
    hashes = np.tile(np.arange(8, dtype=np.uint16), (1000, 1))
    pairs = near_duplicates(hashes, np.arange(1000))
    assert set(pairs.ravel().tolist()) == set(range(1000))
    assert len(pairs) <= 8 * 16 * 1000
    assert near_duplicates(np.zeros((0, 8), dtype=np.uint16), np.zeros(0, dtype=np.int64)).shape == (0, 2)
