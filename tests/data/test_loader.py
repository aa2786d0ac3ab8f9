"""Pixels in the order that training asks for, and never many more than it asked for."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from small import Small

from geo_embed.data import images
from geo_embed.data.loader import read_batches
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError

pytestmark = pytest.mark.cut(train=12)

VIEWS = 4


def all_there(samples: Samples) -> np.ndarray:
    return np.ones((len(samples), VIEWS), dtype=bool)


def test_batches_come_in_the_order_asked_for_each_picture_in_its_place(
    samples: Samples, spec: images.Preprocessing
) -> None:
    asked = [np.array([5, 0, 11]), np.array([7]), np.array([0, 5])]
    with read_batches(samples, all_there(samples), asked, spec, 3) as read:
        batches = list(read)
    assert [batch.rows.tolist() for batch in batches] == [rows.tolist() for rows in asked]
    for batch in batches:
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape == (len(batch.rows), VIEWS, 3, spec.height, spec.width)
        for i, row in enumerate(batch.rows):
            for v in range(VIEWS):
                data = (samples.image_root / samples.images[row, v]).read_bytes()
                expected = images.resize(images.decode(data), spec)
                assert np.array_equal(batch.pixels[i, v].numpy(), expected)


def test_a_view_that_is_absent_is_black_and_not_looked_for(
    small: Small, samples: Samples, spec: images.Preprocessing
) -> None:
    small.picture(3, "east").unlink()
    mask = all_there(samples)
    mask[3, 1] = False
    with read_batches(samples, mask, [np.array([2, 3])], spec, 2) as read:
        (batch,) = read
    assert batch.present.tolist() == [[True] * 4, [True, False, True, True]]
    assert not batch.pixels[1, 1].any()
    assert batch.pixels[1, 0].any()


def test_a_picture_that_cannot_be_read_is_named(
    small: Small, samples: Samples, spec: images.Preprocessing
) -> None:
    for damage in (lambda path: path.write_bytes(b"no picture"), lambda path: path.unlink()):
        damage(small.picture(4, "south"))
        with (
            read_batches(samples, all_there(samples), [np.array([4])], spec, 2) as read,
            pytest.raises(
                GeoError, match=f"picture of sample {samples.sample_id[4]}, view south: "
            ) as caught,
        ):
            next(read)
        assert caught.value.where == str(small.picture(4, "south"))


def test_only_a_few_batches_are_read_ahead(
    samples: Samples, spec: images.Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is not wanted any more isn't read."""
    decode, decoded = images.decode, []

    def counted(data: bytes) -> images.Pixels:
        decoded.append(threading.get_ident())
        return decode(data)

    monkeypatch.setattr(images, "decode", counted)
    asked = [np.array([row]) for row in range(12)]
    with read_batches(samples, all_there(samples), asked, spec, 2) as read:
        next(read)
        time.sleep(0.5)
    assert VIEWS <= len(decoded) <= 4 * VIEWS
    assert threading.get_ident() not in decoded


def test_a_damaged_picture_fails_is_absent_or_is_taken(
    small: Small, samples: Samples, spec: images.Preprocessing
) -> None:
    file = small.picture(4, "south")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    rows = [np.array([3, 4])]
    with (
        read_batches(samples, all_there(samples), rows, spec, 2) as read,
        pytest.raises(GeoError, match=f"sample {samples.sample_id[4]}, view south is damaged: ") as caught,
    ):
        next(read)
    assert caught.value.where == str(file)
    with read_batches(samples, all_there(samples), rows, spec, 2, with_damaged="skip") as read:
        (batch,) = read
    assert batch.present.tolist() == [[True] * 4, [True, True, False, True]]
    assert not batch.pixels[1, 2].any()
    with read_batches(samples, all_there(samples), rows, spec, 2, with_damaged="accept") as read:
        (batch,) = read
    assert batch.present.all()
    expected = images.resize(images.decode(file.read_bytes(), accept_damage=True), spec)
    assert np.array_equal(batch.pixels[1, 2].numpy(), expected)


def test_a_sample_of_damaged_pictures_alone_is_refused_where_such_are_skipped(
    small: Small, samples: Samples, spec: images.Preprocessing
) -> None:
    for view in samples.view_names:
        file = small.picture(2, view)
        file.write_bytes(file.read_bytes()[:1200] + b"\xff\xd9")
    with (
        read_batches(samples, all_there(samples), [np.array([2])], spec, 2, with_damaged="skip") as read,
        pytest.raises(GeoError, match=f"every picture of sample {samples.sample_id[2]} is damaged"),
    ):
        next(read)
