"""Bytes become the pixels that PIL and transformers would make of them, or a reason why not."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pictures import scene
from PIL import Image, ImageOps, features
from small import encode
from transformers import CLIPImageProcessorPil

from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.data.images import (
    MAX_PIXELS,
    Pixels,
    Preprocessing,
    UnreadableImage,
    decode,
    find_fault,
    normalise,
    resize,
)

SIDES = (96, 96)


def by_pil(data: bytes) -> Pixels:
    import io

    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def asked(shortest: int, crop: tuple[int, int], **options: object) -> CLIPImageProcessorPil:
    size = {"height": crop[0], "width": crop[1]}
    return CLIPImageProcessorPil(size={"shortest_edge": shortest}, crop_size=size, **options)


def read_spec(tmp_path: Path, processor: CLIPImageProcessorPil, *, exact: bool) -> Preprocessing:
    processor.save_pretrained(tmp_path)
    return read_preprocessing(tmp_path, exact=exact)


def prepared(pixels: Pixels, spec: Preprocessing) -> NDArray[np.float32]:
    batch = torch.from_numpy(resize(pixels, spec))[None]
    return normalise(batch, spec, torch.float32).numpy()[0]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(256, 256), (61, 47), (1, 1), (17, 300)])
def test_a_jpeg_is_decoded_bit_equal_to_pil(
    size: tuple[int, int], progressive: bool, subsampling: str
) -> None:
    data = encode(scene(*size), "JPEG", quality=88, progressive=progressive, subsampling=subsampling)
    assert (decode(data) == by_pil(data)).all()


def test_a_grey_jpeg_becomes_three_equal_channels() -> None:
    data = encode(scene().convert("L"), "JPEG")
    assert decode(data).shape == (47, 61, 3)
    assert (decode(data) == by_pil(data)).all()


def test_a_cmyk_jpeg_is_inverted_as_pil_does() -> None:
    data = encode(scene().convert("CMYK"), "JPEG", quality=95)
    assert (decode(data) == by_pil(data)).all()
    assert np.abs(decode(data).astype(int) - np.asarray(scene())).mean() < 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_by_its_exif(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(scene(), "JPEG", exif=exif)
    assert (decode(data) == by_pil(data)).all()
    assert decode(data).shape == ((47, 61, 3) if orientation < 5 else (61, 47, 3))


def test_exif_counts_wherever_it_stands_in_the_file() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(scene(), "JPEG", exif=exif)
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + b"x" * 60_000
    late = data[:2] + comment + data[2:]
    assert (decode(late) == by_pil(late)).all()
    assert decode(late).shape == (61, 47, 3)


def test_a_picture_is_turned_upright_by_its_xmp() -> None:
    body = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = encode(scene(), "JPEG")
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    assert (decode(data) == by_pil(data)).all()
    assert decode(data).shape == (61, 47, 3)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    ramp = np.arange(0, 65536, 32, dtype=np.uint16).reshape(32, 64)
    decoded = decode(encode(Image.fromarray(ramp), "PNG"))
    assert np.abs(decoded[..., 0] - ramp / 257).max() <= 1
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert decoded[-1, -1].tolist() == [255, 255, 255]


def test_transparency_lies_over_white() -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    assert decode(encode(Image.fromarray(pixels), "PNG"))[0].tolist() == [[255] * 3, [127] * 3, [0] * 3]


def test_a_palette_with_a_transparent_colour_lies_over_white() -> None:
    image = scene().quantize(16)
    data = encode(image, "PNG", transparency=3)
    expected = np.asarray(image.convert("RGB")).copy()
    expected[np.asarray(image) == 3] = 255
    assert (np.asarray(image) == 3).any()
    assert (decode(data) == expected).all()


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "1"), ("BMP", "RGB"), ("GIF", "P")]
)
def test_other_formats_are_what_pil_makes_of_them(kind: str, mode: str) -> None:
    data = encode(scene().convert(mode), kind)
    assert (decode(data) == by_pil(data)).all()


def bomb(side: int) -> bytes:
    """A valid PNG of one bit per pixel, side × side: 50 KB on disk, 1.2 GB decoded where side is 20,000."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packed = zlib.compressobj(9)
    row = b"\0" * (1 + (side + 7) // 8)
    body = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def huge_jpeg() -> bytes:
    data = bytearray(encode(scene(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    return bytes(data)


BROKEN = {
    "zero bytes": b"",
    "a text file": b"the quick brown fox\n" * 50,
    "half a JPEG": encode(scene(), "JPEG", quality=95)[:1500],
    "a JPEG without its end": encode(scene(), "JPEG", quality=95)[:-40],
    "half a PNG": encode(scene(), "PNG")[:4000],
    "the head of a JPEG": b"\xff\xd8",
    "a JPEG of markers only": b"\xff\xd8\xff\xd9",
    "a PNG of 20,000 × 20,000": bomb(20_000),
    "a PNG of 10,001 × 10,001": bomb(10_001),
    "a JPEG of 20,000 × 20,000": huge_jpeg(),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_read_gives_a_reason_in_one_line(data: bytes) -> None:
    with pytest.raises(UnreadableImage) as refused:
        decode(data)
    assert str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [bomb(20_000), huge_jpeg()])
def test_a_decompression_bomb_is_refused_by_its_size(data: bytes) -> None:
    with pytest.raises(UnreadableImage, match=f"{MAX_PIXELS:,}"):
        decode(data)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small picture whose header says another size; the file stays as small as it is."""
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"no_jp2": True}}.get(kind, {})
    data = bytearray(encode(Image.new("RGB", (64, 64)), kind, **options))
    if kind == "WEBP":
        size = data.index(b"VP8L") + 9
        data[size : size + 4] = struct.pack(
            "<I", (width - 1) | (height - 1) << 14 | data[size + 3] >> 4 << 28
        )
    elif kind == "AVIF":
        size = data.index(b"ispe") + 8
        data[size : size + 8] = struct.pack(">II", width, height)
    else:
        size = data.index(b"\xff\x4f\xff\x51") + 8
        for place in (size, size + 16):
            data[place : place + 8] = struct.pack(">II", width, height)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG2000", "WEBP", "AVIF"])
def test_a_picture_whose_decoder_takes_many_bytes_a_pixel_is_refused_by_its_size(kind: str) -> None:
    if not features.check({"JPEG2000": "jpg_2000"}.get(kind, kind.lower())):
        pytest.skip(f"this Pillow reads no {kind}")
    with pytest.raises(UnreadableImage, match=f"9000×9000 pixels: more than [0-9,]* of a {kind}"):
        decode(claiming(kind, 9000, 9000))
    assert decode(claiming(kind, 64, 64)).shape == (64, 64, 3)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_a_codestream_larger_than_what_contains_it_is_refused_by_its_own_size() -> None:
    large, small = (
        claiming("JPEG2000", 9000, 9000),
        encode(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=False),
    )
    start = small.index(b"\xff\x4f\xff\x51")
    icon = b"icns" + struct.pack(">I", 16 + len(large)) + b"ic10" + struct.pack(">I", 8 + len(large)) + large
    for data in (small[:start] + large, icon):
        with pytest.raises(UnreadableImage, match="9000×9000 pixels"):
            decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_whatever_is_done_to_a_file_it_decodes_or_gives_a_reason(kind: str) -> None:
    whole = encode(scene(), kind)
    rng = random.Random(kind)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            decoded = decode(bytes(data))
        except UnreadableImage:
            continue
        assert decoded.dtype == np.uint8
        assert decoded.shape[2] == 3


def test_a_quick_look_finds_the_faults_and_passes_the_good(tmp_path: Path) -> None:
    for number, data in enumerate(BROKEN.values()):
        if data != b"\xff\xd8\xff\xd9" and data != huge_jpeg():
            file = tmp_path / f"{number}.jpg"
            file.write_bytes(data)
            assert find_fault(file), list(BROKEN)[number]
    for kind in ("JPEG", "PNG", "GIF"):
        file = tmp_path / f"good.{kind}"
        file.write_bytes(encode(scene(), kind))
        assert find_fault(file) == ""
    assert find_fault(tmp_path / "absent.jpg") == "No such file or directory"
    assert "is a directory" in find_fault(tmp_path)


SHAPES = [(256, 256), (320, 200), (200, 320), (5, 7), (1, 1), (97, 96), (333, 251), (96, 96), (640, 31)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("shortest", "crop"), [(96, SIDES), (224, (224, 224)), (64, SIDES), (65, (96, 97)), (40, (64, 20))]
)
def test_exact_pixels_are_bit_equal_to_transformers(
    tmp_path: Path, shortest: int, crop: tuple[int, int], shape: tuple[int, int]
) -> None:
    processor = asked(shortest, crop)
    image = scene(*shape)
    reference = processor(image, return_tensors="np")["pixel_values"][0]
    assert (prepared(np.asarray(image), read_spec(tmp_path, processor, exact=True)) == reference).all()


def test_exact_pixels_follow_the_models_own_filter_scale_mean_and_deviation(tmp_path: Path) -> None:
    processor = asked(
        96, SIDES, resample=2, rescale_factor=1 / 127.5, image_mean=[1, 0.5, 0], image_std=[1, 2, 0.3]
    )
    reference = processor(scene(), return_tensors="np")["pixel_values"][0]
    assert (prepared(np.asarray(scene()), read_spec(tmp_path, processor, exact=True)) == reference).all()


def test_a_fixed_size_without_a_crop_is_bit_equal_too(tmp_path: Path) -> None:
    processor = CLIPImageProcessorPil(size={"height": 50, "width": 70}, do_center_crop=False)
    reference = processor(scene(), return_tensors="np")["pixel_values"][0]
    assert reference.shape == (3, 50, 70)
    assert (prepared(np.asarray(scene()), read_spec(tmp_path, processor, exact=True)) == reference).all()


@pytest.mark.parametrize("shape", [(256, 256), (320, 200), (200, 320), (333, 251)])
@pytest.mark.parametrize("shortest", [336, 224, 96])
def test_default_pixels_are_transformers_within_two_grey_levels(
    tmp_path: Path, shortest: int, shape: tuple[int, int]
) -> None:
    processor = asked(shortest, (shortest, shortest))
    image = scene(*shape)
    reference = processor(image, return_tensors="np")["pixel_values"][0]
    apart = np.abs(prepared(np.asarray(image), read_spec(tmp_path, processor, exact=False)) - reference)
    assert apart.max() < 0.05
    assert apart.mean() < 2e-4


@pytest.mark.parametrize("exact", [False, True])
def test_normalising_into_reused_memory_gives_the_same(tmp_path: Path, exact: bool) -> None:
    spec = read_spec(tmp_path, asked(96, SIDES), exact=exact)
    batch = torch.from_numpy(np.stack([resize(np.asarray(scene(seed=k)), spec) for k in range(3)]))
    memory = torch.full(batch.shape, torch.nan)
    assert torch.equal(normalise(batch, spec, torch.float32, memory), normalise(batch, spec, torch.float32))


def test_a_resized_picture_never_changes_the_one_it_came_from(tmp_path: Path) -> None:
    spec = read_spec(tmp_path, asked(96, SIDES), exact=False)
    pixels = np.asarray(scene(96, 96)).copy()
    before = pixels.copy()
    resize(pixels, spec)[:] = 0
    assert (pixels == before).all()


def test_a_packed_fits_is_refused_before_it_is_unpacked() -> None:
    def block(*cards: str) -> bytes:
        return b"".join(card.ljust(80).encode() for card in (*cards, "END")).ljust(2880)

    def card(key: str, value: object) -> str:
        return f"{key:<8}= {value:>20}"

    sizes = [card("BITPIX", 8), card("NAXIS", 2), card("NAXIS1", 8), card("NAXIS2", 1), card("PCOUNT", 0)]
    packed = [card("ZIMAGE", "T"), "ZCMPTYPE= 'GZIP_1  '", card("ZBITPIX", 8), card("ZNAXIS", 2)]
    table = block("XTENSION= 'BINTABLE'", *sizes, *packed, card("ZNAXIS1", 16), card("ZNAXIS2", 16))
    head = block(card("SIMPLE", "T"), card("BITPIX", 8), card("NAXIS", 0))
    data = head + table + bytes(8) + gzip.compress(bytes(40_000_000))
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match="FITS"):
        decode(data)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
