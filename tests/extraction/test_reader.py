"""Images come in the order asked for, with what is to be done about each; never many more than were asked for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small import Small

from geo_embed.cache.store import MISSING, OK, UNREADABLE, hash_content
from geo_embed.data import images
from geo_embed.data.samples import Samples, load_samples
from geo_embed.extraction.reader import ReadImage, find_bad_images, read_image, read_images
from geo_embed.extraction.reuse import Sources, gather_sources

pytestmark = pytest.mark.cut(train=10)


@pytest.fixture
def no_sources(tmp_path: Path) -> Sources:
    return gather_sources(tmp_path / "no store" / "train.zarr")


def having(content_hash: int) -> Sources:
    """One embedding at hand, in a chunk that is known to be whole."""

    class Chunks:
        chunk_rows, shape = 1, (1, 1, 1)

    hashes, places = np.array([content_hash], dtype=np.uint64), np.zeros(1, dtype=np.int64)
    return Sources((Chunks(),), hashes, places, whole={(0, 0, "embeddings"): True})  # type: ignore[arg-type]


def never(row: int, view: int) -> int | None:
    return None


@pytest.mark.parametrize("workers", [1, 4])
def test_images_come_in_order_decoded_and_resized(
    samples: Samples, spec: images.Preprocessing, no_sources: Sources, workers: int
) -> None:
    places = [(7, 2), (0, 0), (7, 3), (3, 1), (0, 0)]
    with read_images(samples, iter(places), spec, no_sources, never, ahead=2, workers=workers) as read:
        result = list(read)
    assert len(result) == len(places)
    for place, image in zip(places, result, strict=True):
        data = (samples.image_root / samples.images[place]).read_bytes()
        assert (image.content_hash, image.status, image.source) == (hash_content(data), OK, None)
        assert image.pixels is not None
        assert np.array_equal(image.pixels, images.resize(images.decode(data), spec))


def test_what_is_embedded_already_is_hashed_and_not_decoded(
    small: Small,
    samples: Samples,
    spec: images.Preprocessing,
    no_sources: Sources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def decoded(_: bytes) -> images.Pixels:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(images, "decode", decoded)
    content_hash = hash_content(small.picture(2).read_bytes())
    assert read_image(samples, 2, 0, spec, no_sources, content_hash) == ReadImage(content_hash)
    assert read_image(samples, 2, 0, spec, having(content_hash), None) == ReadImage(content_hash, source=0)
    with pytest.raises(AssertionError):
        read_image(samples, 2, 0, spec, no_sources, content_hash + 1)


def test_an_image_that_is_absent_broken_or_not_named_says_so(
    small: Small, spec: images.Preprocessing, no_sources: Sources
) -> None:
    small.picture(1).unlink()
    small.picture(2).write_bytes(b"no image")
    small.picture(3).unlink()
    small.picture(3).mkdir()
    table = small.table()
    table.loc[4, "image_north"] = None
    small.write(table)
    samples = load_samples(small.config(), "train")
    read = [read_image(samples, row, 0, spec, no_sources, None) for row in range(5)]
    assert [image.status for image in read] == [OK, MISSING, UNREADABLE, UNREADABLE, MISSING]
    assert [image.pixels is None for image in read] == [False, True, True, True, True]
    assert read[2].content_hash == hash_content(b"no image")
    assert read[4].reason == "the CSV names no image"
    assert all(image.reason for image in read[1:])


def test_only_so_many_images_are_read_ahead(
    samples: Samples, spec: images.Preprocessing, no_sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoded = images.decode, []

    def counted(data: bytes) -> images.Pixels:
        decoded.append(threading.get_ident())
        return decode(data)

    monkeypatch.setattr(images, "decode", counted)
    places = ((row, 0) for row in range(10))
    with read_images(samples, places, spec, no_sources, never, ahead=3, workers=2) as read:
        for _ in range(2):
            next(read)
        time.sleep(0.3)
    assert 2 <= len(decoded) <= 4
    assert threading.get_ident() not in decoded


def test_bad_images_are_found_before_anything_is_paid_for(small: Small, samples: Samples) -> None:
    small.picture(2, "east").unlink()
    small.picture(5, "west").write_bytes(small.picture(5, "west").read_bytes()[:-30])
    small.picture(8).write_bytes(b"no image")

    def named(rows: slice, pending: bool = True) -> list[tuple[str, str]]:
        shape = (rows.stop - rows.start, 4)
        fresh = load_samples(small.config(), "train")
        bad = find_bad_images(fresh, rows, np.full(shape, pending), workers=2, progress_seconds=10)
        return [(image.sample_id, image.view) for image in bad]

    ids = samples.sample_id
    assert named(slice(0, 10)) == [(ids[2], "east"), (ids[5], "west"), (ids[8], "north")]
    assert named(slice(0, 5)) == [(ids[2], "east")]
    assert named(slice(3, 8)) == [(ids[5], "west")]
    assert named(slice(0, 10), pending=False) == [(ids[2], "east")], (
        "absent is told, the rest isn't looked at"
    )
