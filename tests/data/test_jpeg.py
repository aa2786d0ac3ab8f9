"""What libjpeg complains of: pixels that are lost are damage, what loses none is not."""

from __future__ import annotations

import io
import random
import struct

import numpy as np
import pytest
import simplejpeg
from pictures import encoded, exif, scene, with_exif, with_segment
from PIL import Image

from geo_embed.data.images import DamagedImage, UnreadableImage, decode
from geo_embed.data.jpeg import find_loss, read_jpeg

KINDS = {
    "baseline": encoded(scene(96, 96), "JPEG", quality=88),
    "optimised": encoded(scene(96, 80), "JPEG", quality=95, optimize=True),
    "progressive": encoded(scene(96, 96), "JPEG", quality=88, progressive=True),
    "restarts": encoded(scene(96, 96), "JPEG", quality=88, restart_marker_blocks=4),
    "grey": encoded(scene(96, 96).convert("L"), "JPEG"),
    "CMYK": encoded(scene(96, 96).convert("CMYK"), "JPEG"),
}


def scan(jpeg: bytes) -> int:
    """Where the first scan's coded data begin."""
    start = jpeg.index(b"\xff\xda")
    return start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")


def before(jpeg: bytes, marker: bytes, junk: bytes) -> bytes:
    place = jpeg.rindex(marker)
    return jpeg[:place] + junk + jpeg[place:]


def junk(size: int) -> bytes:
    """Random bytes without a marker in them."""
    return random.Random(size).randbytes(size).replace(b"\xff", b"\xfe")


HARMLESS = {
    "data after the end": lambda j: j + b"junk" * 100,
    "another JPEG after the end": lambda j: j + KINDS["progressive"],
    "one byte before the end": lambda j: before(j, b"\xff\xd9", b"\x55"),
    "zeros before the end": lambda j: before(j, b"\xff\xd9", bytes(16)),
    "many zeros before the end": lambda j: before(j, b"\xff\xd9", bytes(3000)),
    "junk before the end": lambda j: before(j, b"\xff\xd9", junk(60)),
    "text before the end": lambda j: before(j, b"\xff\xd9", b"-- a camera's own remark --"),
    "filling before the end": lambda j: before(j, b"\xff\xd9", b"\xff" * 9),
    "junk before the tables": lambda j: before(j, b"\xff\xdb", junk(20)),
    "junk before the frame": lambda j: j[:2] + junk(7) + j[2:],
    "a JFIF of version 9": lambda j: j.replace(b"JFIF\0\x01", b"JFIF\0\x09"),
    "EXIF that is none": lambda j: with_exif(j, b"II*\0garbage"),
    "EXIF without a byte": lambda j: with_exif(j, b""),
    "half a profile": lambda j: with_segment(j, 0xE2, b"ICC_PROFILE\0\7\3abc"),
    "an index of other pictures that is none": lambda j: with_segment(j, 0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "Photoshop's block cut short": lambda j: with_segment(
        j, 0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\xff\xff"
    ),
    "an empty comment": lambda j: with_segment(j, 0xFE, b""),
}


@pytest.mark.parametrize("complaint", HARMLESS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_loses_no_pixel_is_no_damage(kind: str, complaint: str) -> None:
    whole = KINDS[kind]
    assert (decode(HARMLESS[complaint](whole)) == decode(whole)).all()


LOSSES = {
    "half, with an end": lambda j: j[: len(j) // 2] + b"\xff\xd9",
    "half, behind harmless junk": lambda j: j[:2] + junk(9) + j[2 : len(j) // 2] + b"\xff\xd9",
    "half, with EXIF": lambda j: with_exif(j, exif(6))[: len(j) // 2] + b"\xff\xd9",
    "a quarter, junk and an end": lambda j: j[: scan(j) + (len(j) - scan(j)) // 4] + junk(40) + b"\xff\xd9",
    "no data at all": lambda j: j[: scan(j)] + b"\xff\xd9",
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_are_made_up_are_damage_unless_they_are_accepted(kind: str, loss: str) -> None:
    data = LOSSES[loss](KINDS[kind])
    with pytest.raises(DamagedImage, match=r"premature end|bad Huffman"):
        decode(data)
    accepted, whole = decode(data, accept_damage=True), decode(KINDS[kind])
    assert sorted(accepted.shape) == sorted(whole.shape)


def test_what_progressive_and_restarted_pictures_lose_is_damage() -> None:
    progressive, restarts = KINDS["progressive"], KINDS["restarts"]
    scans = [i for i in range(len(progressive)) if progressive[i : i + 2] == b"\xff\xda"]
    restart = restarts.index(b"\xff\xd1", scan(restarts))
    for data, complaint in (
        (progressive[: scans[2]] + progressive[scans[3] :], "progression"),
        (restarts[:restart] + restarts[restart + 2 :], "instead of RST"),
        (restarts[:restart] + b"\xff\xd4" + restarts[restart + 2 :], "instead of RST"),
        # The first complaint is a harmless one.
        (before(restarts[: restart + 40], b"\xff\xd1", b"\x12\x34") + b"\xff\xd9", "premature end"),
    ):
        with pytest.raises(DamagedImage, match=complaint):
            decode(data)
    junk_at_restart = restarts[:restart] + b"\x12\x34" + restarts[restart:]
    assert (decode(junk_at_restart) == decode(restarts)).all()


def test_of_hit_pictures_that_leave_bytes_over_most_are_told_from_padded_ones() -> None:
    """The one complaint of libjpeg that is both: a byte changed in the middle, or bytes put in behind the picture."""
    left_over, detected = 0, 0
    for seed in range(60):
        draw = random.Random(seed)
        whole = encoded(scene(draw.randrange(64, 160), draw.randrange(64, 160), seed), "JPEG", quality=85)
        start = scan(whole)
        assert find_loss(read_jpeg(before(whole, b"\xff\xd9", junk(draw.randrange(1, 60))))) == ""
        for _ in range(4):
            data = bytearray(whole)
            data[draw.randrange(start, len(data) - 2)] = draw.randrange(255)
            try:
                simplejpeg.decode_jpeg(bytes(data), strict=True)
            except ValueError as complaint:
                if "extraneous" in str(complaint):
                    left_over += 1
                    detected += bool(find_loss(read_jpeg(bytes(data))))
    assert left_over > 40
    assert detected > left_over / 2


def test_a_picture_of_hundreds_of_scans_is_refused() -> None:
    progressive = encoded(scene(1500, 1500), "JPEG", progressive=True, quality=40)
    scans = [i for i in range(len(progressive)) if progressive[i : i + 2] == b"\xff\xda"]
    last = progressive[scans[-1] : -2]
    many = progressive[:-2] + last * (600 - len(scans)) + b"\xff\xd9"
    with pytest.raises(UnreadableImage, match="600 scans"):
        decode(many)
    assert decode(progressive).shape == (1500, 1500, 3)


def test_thumbnails_are_not_taken_for_scans() -> None:
    thumbnails = with_segment(KINDS["baseline"], 0xE2, b"preview" + b"\xff\xda\0\2" * 200)
    assert (decode(thumbnails) == decode(KINDS["baseline"])).all()


@pytest.mark.parametrize(
    ("marker", "bits", "message"),
    [
        (0xC1, 12, "12 bits per sample"),
        (0xC3, 16, "16 bits per sample"),
        (0xC5, 8, "hierarchical"),
        (0xCB, 8, "lossless"),
    ],
)
def test_a_rare_kind_of_jpeg_is_named(marker: int, bits: int, message: str) -> None:
    data = bytearray(KINDS["baseline"])
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = marker, bits
    with pytest.raises(UnreadableImage, match=message):
        decode(bytes(data))


def test_a_jpeg_with_an_orientation_is_simplejpegs_picture_turned() -> None:
    whole = KINDS["baseline"]
    turned = decode(with_exif(whole, exif(6)))
    assert (turned == np.rot90(decode(whole), -1)).all()


def test_nothing_is_read_beyond_a_segment_that_claims_more_than_there_is() -> None:
    head = KINDS["baseline"][: scan(KINDS["baseline"])]
    assert read_jpeg(head + struct.pack(">H", 0xFFE1) + b"\xff\xff").essence
    assert read_jpeg(b"\xff\xd8\xff\xe1\xff\xff").essence == b""
    assert read_jpeg(b"\xff\xd8" + b"\xff" * 5000).essence == b""


@pytest.mark.timeout(20)
def test_a_million_fill_bytes_are_passed_over_once() -> None:
    whole = KINDS["baseline"]
    assert (
        read_jpeg(b"\xff\xd8" + b"\xff" * 1_000_000 + b"\0" + whole[2:]).essence == read_jpeg(whole).essence
    )
    assert read_jpeg(b"\xff\xd8" + b"\xff" * 1_000_000 + b"\0").essence == b""


@pytest.mark.parametrize("sampling", [0x12, 0x14, 0x24, 0x31, 0x41])
def test_a_subsampling_that_simplejpeg_does_not_know_is_left_to_pil(sampling: int) -> None:
    """It ended in a KeyError. No encoder at hand makes these; a forged header serves, whose picture is damaged."""
    data = bytearray(encoded(scene(64, 64), "JPEG", subsampling="4:4:4"))
    data[data.index(b"\xff\xc0") + 11] = sampling
    by_pil = Image.open(io.BytesIO(bytes(data))).convert("RGB")
    assert (decode(bytes(data), accept_damage=True) == np.asarray(by_pil)).all()


def test_exif_of_many_segments_is_joined_up_to_a_bound() -> None:
    whole, segment = KINDS["baseline"], b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)
    assert len(read_jpeg(whole[:2] + segment * 2 + whole[2:]).exif) == 6 + 2 * 65_527
    many = read_jpeg(whole[:2] + segment * 1000 + whole[2:])
    assert len(many.exif) < 17 << 20
    assert many.essence == read_jpeg(whole).essence
