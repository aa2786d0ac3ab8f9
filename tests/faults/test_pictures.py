"""Bad pictures: what can be read is read right; the rest is named, one line each, or left out and said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small import UNPRIVILEGED, Nursery, Ran, Small, command, content, encode

from geo_embed.backbones import backbone as backbones
from geo_embed.cache.store import MISSING, OK, PENDING, UNREADABLE, open_store, read_store
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.runs.run import load_run

pytestmark = pytest.mark.cut(train=12, test=4)


def scene() -> Image.Image:
    y, x = np.mgrid[0:80, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 3, (x + y) * 2], axis=2).astype(np.uint8))


def jpeg(**options: object) -> bytes:
    return encode(scene(), "JPEG", quality=95, **options)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 8
    return encode(scene().transpose(Image.Transpose.ROTATE_270), "JPEG", quality=95, exif=exif)


def transparent_palette() -> bytes:
    """Every pixel of one colour is see-through, and that colour is white's nearest."""
    image = scene().quantize(64)
    whitest = int(np.argmax(np.array(image.getpalette()[:192]).reshape(-1, 3).sum(axis=1)))
    return encode(image, "PNG", transparency=whitest)


def sixteen_bits() -> bytes:
    grey = np.asarray(scene().convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(grey), "PNG")


# The file, and an ordinary one that shows the same: the embeddings must be those of the same scene.
READABLE: dict[str, tuple[Callable[[], bytes], Callable[[], Image.Image]]] = {
    "progressive": (lambda: jpeg(progressive=True), scene),
    "a PNG named .jpg": (lambda: encode(scene(), "PNG"), scene),
    "greyscale": (lambda: encode(scene().convert("L"), "JPEG", quality=95), lambda: scene().convert("L")),
    "CMYK": (lambda: encode(scene().convert("CMYK"), "JPEG", quality=95), scene),
    "16 bits": (sixteen_bits, lambda: scene().convert("L")),
    "palette with transparency": (transparent_palette, scene),
    "turned by EXIF": (turned, scene),
    "RGBA": (lambda: encode(scene().convert("RGBA"), "PNG"), scene),
    "1 × 1": (
        lambda: encode(Image.new("RGB", (1, 1), (200, 90, 30)), "PNG"),
        lambda: Image.new("RGB", (80, 80), (200, 90, 30)),
    ),
}


@pytest.mark.parametrize("kind", READABLE)
def test_what_can_be_read_is_read_right(small: Small, kind: str) -> None:
    made, same = READABLE[kind]
    small.picture(0, "north").write_bytes(made())
    small.picture(0, "south").write_bytes(encode(same().convert("RGB"), "PNG"))
    values = read_store(open_store(extract(small.config(), "train", limit=1).store), slice(0, 1)).values
    odd, plain, other = (values[0, v].astype(np.float64) for v in (0, 2, 1))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(odd, plain) > 0.995
    assert cosine(odd, plain) > cosine(odd, other) + 0.001


def test_names_with_spaces_and_accents_are_names_like_any_other(small: Small) -> None:
    table = small.table()
    for row, name in enumerate(
        ("Straße nach São Paulo.jpg", "道路 1.jpg", "a  b'c\"d,e.jpg", "-x.jpg", "#%20?.jpg")
    ):
        small.picture(row).rename(small.images() / name)
        table.loc[row, "image_north"] = name
    small.write(table)
    assert extract(small.config(), "train").computed == 48


def break_pictures(small: Small) -> dict[str, str]:
    """One bad picture of each kind; sample and view of each, and what is to be said of it."""
    half = jpeg()[:700]
    huge = bytearray(jpeg())
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    contents: list[tuple[str, bytes | None, str]] = [
        ("north", half, "truncated"),
        ("east", b"", "zero bytes"),
        ("south", b"Not a picture.\n" * 40, "not an image"),
        ("west", None, "no such file"),
        ("north", bytes(huge)[:-2], "100,000,000"),
        ("east", b"\xff\xd8", "not an image|truncated|cannot|broken"),
    ]
    expected = {}
    for row, (view, data, reason) in enumerate(contents):
        file = small.picture(row, view)
        file.unlink()
        if data is not None:
            file.write_bytes(data)
        expected[f"sample {small.table()['sample_id'][row]}, view {view}: "] = reason
    folder = small.picture(6, "south")
    folder.unlink()
    folder.mkdir()
    expected[f"sample {small.table()['sample_id'][6]}, view south: "] = "is a directory"
    return expected


def complaints(ran: Ran) -> list[str]:
    return [line for line in ran.err.splitlines() if line.startswith("warning: sample ")]


def test_bad_pictures_are_all_listed_before_the_model_is_loaded(
    small: Small, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    def loaded(*_: object) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(backbones, "load_backbone", loaded)
    expected = break_pictures(small)
    ran = command(capsys, *small.options(), "extract", "--split", "train")
    assert ran.code == 1
    assert ran.out == ""
    lines = complaints(ran)
    assert len(lines) == len(expected)
    for sample, reason in expected.items():
        (line,) = [line for line in lines if sample in line]
        assert re.search(reason, line), line
        assert ".jpg" in line
    assert "error: 7 pictures can't be read, listed above" in ran.err
    assert "--on-bad-image skip" in ran.err


def test_a_bad_picture_keeps_the_good_store_as_it_is(small: Small) -> None:
    done = extract(small.config(), "train")
    before = content(done.store)
    more = small.table()
    more.loc[12] = more.loc[0].to_dict() | {"sample_id": 999_999, "image_north": "not there.jpg"}
    small.write(more)
    with pytest.raises(GeoError, match="1 picture can't be read"):
        extract(small.config(), "train")
    assert content(done.store) == before


def test_a_fault_that_only_decoding_finds_fails_too_but_the_rest_is_done(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """A JPEG with its first and its last bytes and no picture between them."""
    small.picture(5).write_bytes(b"\xff\xd8" + b"\0" * 100 + b"\xff\xd9")
    ran = command(capsys, *small.options(), "extract", "--split", "train")
    assert ran.code == 1
    assert len(complaints(ran)) == 1
    status = np.asarray(open_store(small.store()).status[:])
    assert status[5, 0] == PENDING
    assert (status == OK).sum() == 47
    small.picture(5).write_bytes(small.other_picture(0))
    assert extract(small.config(), "train").computed == 1


def test_skipped_pictures_are_recorded_reported_and_left_out_downstream(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = break_pictures(small)
    for view in ("north", "east", "south", "west"):
        small.picture(8, view).unlink()
        small.picture(1, view, "test").write_bytes(b"")
    small.picture(2, "west", "test").unlink()
    ran = command(capsys, *small.options(), "--json", "extract", "--split", "all", "--on-bad-image", "skip")
    assert ran.code == 0, ran.err
    train, test = ran.json["splits"]
    assert len(train["skipped"]) == len(expected) + 4
    assert set(train["skipped"][0]) == {"sample_id", "view", "path", "reason"}
    assert all(picture["reason"] for picture in train["skipped"] + test["skipped"])
    assert train["computed"] == 48 - 11
    status = np.asarray(open_store(small.store()).status[:])
    assert status[3, 3] == MISSING
    assert (status[8] == MISSING).all()
    assert status[0, 0] == status[1, 1] == status[2, 2] == status[4, 0] == status[6, 2] == UNREADABLE
    assert (status == OK).sum() == 37
    assert command(capsys, *small.options(), "cache", "verify").code == 0

    fitted = command(capsys, *small.options(), "--json", "fit-heads", "--name", "first")
    assert fitted.code == 0, fitted.err
    assert "1 sample has no picture and is left out of training" in fitted.err
    assert "7 samples lack some of their views; those views are left out of the fusion" in fitted.err
    split = pd.read_parquet(small.root / "runs" / "first" / "split.parquet")
    assert len(split) == 11
    assert small.table()["sample_id"][8] not in set(split["sample_id"])

    submitted = command(capsys, *small.options(), "--json", "submit", "first")
    assert submitted.code == 0, submitted.err
    assert submitted.json["valid"]
    assert "1 sample of test has no picture; it gets the training set's prior" in submitted.err
    prior = load_run(small.root / "runs", "first").prior
    rows = pd.read_csv(submitted.json["submission"])
    assert rows["predicted_latitude"][1] == pytest.approx(prior.latitude)
    assert rows["predicted_longitude"][1] == pytest.approx(prior.longitude)
    predicted = pd.read_parquet(small.root / "runs" / "first" / "test_predictions.parquet")
    assert predicted["probabilities"][1] == pytest.approx(prior.probabilities.astype(np.float32))
    assert not np.allclose(predicted["probabilities"][2], prior.probabilities)


def test_a_missing_view_weighs_nothing(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """A place of one picture is answered as a place that shows this picture four times."""
    extract(small.config(), "train")
    table = small.table("test")
    for view in ("east", "south", "west"):
        table.loc[1, f"image_{view}"] = table.loc[0, f"image_{view}"] = table.loc[0, "image_north"]
        table.loc[1, "image_north"] = table.loc[0, "image_north"]
        table.loc[1, f"image_{view}"] = f"absent {view}.jpg"
    small.write(table, "test")
    extract(small.config(inference__on_bad_image="skip"), "test")
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0
    assert command(capsys, *small.options(), "predict", "first", "--split", "test").code == 0
    predicted = pd.read_parquet(small.root / "runs" / "first" / "test_predictions.parquet")
    assert predicted["probabilities"][0] == pytest.approx(predicted["probabilities"][1], abs=1e-6)


def test_a_picture_put_right_is_picked_up_by_the_next_run(small: Small) -> None:
    good = {
        (row, view): small.picture(row, view).read_bytes()
        for row in range(7)
        for view in ("north", "east", "south", "west")
    }
    whole = content(extract(small.config(paths__cache_dir=str(small.root / "whole")), "train").store)
    break_pictures(small)
    extract(small.config(inference__on_bad_image="skip"), "train")
    for (row, view), data in good.items():
        file = small.picture(row, view)
        if file.is_dir():
            file.rmdir()
        file.write_bytes(data)
    done = extract(small.config(), "train")
    assert (done.computed, done.reused) == (7, 41)
    assert content(done.store) == whole


def test_skipped_pictures_are_refused_again_where_they_are_to_fail(small: Small) -> None:
    small.picture(0).unlink()
    extract(small.config(inference__on_bad_image="skip"), "train")
    before = content(small.store())
    with pytest.raises(GeoError, match="1 picture can't be read"):
        extract(small.config(), "train")
    assert content(small.store()) == before


def test_a_view_that_the_csv_leaves_empty_is_missing(small: Small) -> None:
    table = small.table()
    table.loc[2, "image_east"] = None
    small.write(table)
    with pytest.raises(GeoError, match="1 picture can't be read"):
        extract(small.config(), "train")
    done = extract(small.config(inference__on_bad_image="skip"), "train")
    assert [picture.reason for picture in done.skipped] == ["the CSV names no image"]
    assert np.asarray(open_store(done.store).status[:])[2, 1] == MISSING


def test_a_picture_without_permission_is_reported_and_skipped(small: Small, nursery: Nursery) -> None:
    small.picture(4, "west").chmod(0)
    ran = nursery.run(small, "extract", "--split", "train", before=UNPRIVILEGED)
    assert ran.code == 1
    (line,) = complaints(ran)
    assert f"sample {small.table()['sample_id'][4]}, view west: Permission denied" in line
    ran = nursery.run(small, "extract", "--split", "train", "--on-bad-image", "skip", before=UNPRIVILEGED)
    assert ran.code == 0, ran.err
    assert np.asarray(open_store(small.store()).status[:])[4, 3] == UNREADABLE
    assert "skipped: sample" in ran.out
    assert "Permission denied" in ran.out


def test_an_image_folder_without_permission_is_said(small: Small, nursery: Nursery) -> None:
    small.images().chmod(0)
    try:
        ran = nursery.run(small, "extract", "--split", "train", before=UNPRIVILEGED)
    finally:
        small.images().chmod(0o755)
    assert ran.code == 1
    assert len(complaints(ran)) == 48
    assert "error: 48 pictures can't be read" in ran.err


def test_where_there_are_no_pictures_at_all_one_line_says_so(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(small.images())
    ran = command(capsys, *small.options(), "extract", "--split", "train")
    assert ran.code == 1
    (line, hint) = ran.err.splitlines()[-2:]
    assert line.startswith("error: there are no pictures of the train split")
    assert str(small.images()) in line
    assert "paths.train_images=" in hint
    assert len(complaints(ran)) == 0
    assert not any(small.config().paths.cache_dir.rglob("zarr.json"))


def damaged() -> bytes:
    """The upper half of a JPEG, and an end marker: the lower half is grey in every decoder."""
    whole = jpeg()
    return whole[: len(whole) // 2] + b"\xff\xd9"


def test_a_damaged_picture_is_named_left_out_or_taken_as_asked(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small.picture(5, "south")
    file.write_bytes(damaged())
    name = f"sample {small.table()['sample_id'][5]}, view south: damaged: "

    # By default it fails as bad pictures do; the rest is done and stays.
    ran = command(capsys, *small.options(), "extract", "--split", "train")
    assert ran.code == 1
    (line,) = complaints(ran)
    assert name in line
    assert str(file) in line
    assert "--on-damaged-image accept" in ran.err
    status = np.asarray(open_store(small.store()).status[:])
    assert status[5, 2] == PENDING
    assert (status == OK).sum() == 47

    # Left out, also where bad ones are to fail, and the other way round.
    ran = command(
        capsys, *small.options(), "--json", "extract", "--split", "train", "--on-damaged-image", "skip"
    )
    assert ran.code == 0, ran.err
    assert [bad["path"] for bad in ran.json["skipped"]] == [str(file)]
    assert np.asarray(open_store(small.store()).status[:])[5, 2] == UNREADABLE
    policies = ("--on-bad-image", "skip", "--on-damaged-image", "fail")
    assert command(capsys, *small.options(), "extract", "--split", "train", *policies).code == 1

    # Taken: an embedding like any other, said each time that it is computed, and not again.
    ran = command(
        capsys, *small.options(), "--json", "extract", "--split", "train", "--on-damaged-image", "accept"
    )
    assert ran.code == 0, ran.err
    assert [bad["path"] for bad in ran.json["damaged"]] == [str(file)]
    assert (np.asarray(open_store(small.store()).status[:]) == OK).all()
    ran = command(capsys, *small.options(), "--json", "extract", "--split", "train")
    assert (ran.code, ran.json["computed"], ran.json["damaged"]) == (0, 0, [])
    assert command(capsys, *small.options(), "cache", "verify", "--deep").code == 0


def test_data_check_names_a_damaged_picture_unless_such_are_accepted(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small.picture(3, "west").write_bytes(damaged())
    ran = command(capsys, *small.options(), "--json", "data", "check", "--split", "train", "--decode")
    assert ran.code == 3
    (problem,) = ran.json["problems"]
    assert problem["kind"] == "damaged-image"
    assert f"sample {small.table()['sample_id'][3]}, column image_west" in problem["where"]
    assert small.picture(3, "west").name in problem["message"]
    accepted = ("data", "check", "--split", "train", "--decode", "--on-damaged-image", "accept")
    assert command(capsys, *small.options(), *accepted).code == 0


def test_a_prediction_from_a_damaged_picture_is_refused_or_does_without_it(
    small: Small, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    extract(small.config(), "train")
    assert command(capsys, *small.options(), "fit-heads", "--name", "first").code == 0
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(damaged())
    whole = [str(small.picture(0, view)) for view in ("north", "east", "south")]
    options = (*small.options(), "--json", "predict", "first", "--images", *whole, str(broken))
    ran = command(capsys, *options)
    assert ran.code == 1
    assert str(broken) in ran.err
    answers = {}
    for way in ("accept", "skip"):
        ran = command(capsys, *options, "--on-damaged-image", way)
        assert ran.code == 0, ran.err
        assert str(broken) in ran.err
        answers[way] = ran.json["latitude"], ran.json["longitude"]
    # Without the view: as a place whose west the CSV leaves empty.
    assert answers["skip"] != answers["accept"]
    four_broken = (*small.options(), "predict", "first", "--images", *[str(broken)] * 4)
    ran = command(capsys, *four_broken, "--on-damaged-image", "skip")
    assert ran.code == 1
    assert "every picture is damaged" in ran.err


def test_a_picture_that_no_decoder_takes_is_said_for_what_it_is(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a decoder raises: EXIF of a wrong type ended in a TypeError that named no picture."""
    odd = (
        b"II*\0\x08\0\0\0\2\0"
        + bytes.fromhex("12010300010000000600 0000")
        + bytes.fromhex("1a010200030000003732 0000")
        + bytes(4)
    )
    small.picture(0).write_bytes(
        jpeg()[:2] + b"\xff\xe1" + (len(odd) + 8).to_bytes(2, "big") + b"Exif\0\0" + odd + jpeg()[2:]
    )
    small.picture(1).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    small.picture(2).write_bytes(b"<!DOCTYPE html><html><title>404</title></html>")
    ran = command(capsys, *small.options(), "extract", "--split", "train", "--on-bad-image", "skip")
    assert ran.code == 0, ran.err
    assert "HEIC" in ran.out
    assert "web page" in ran.out
    assert ran.out.count("skipped: sample") == 2
    assert np.asarray(open_store(small.store()).status[:])[0, 0] == OK
