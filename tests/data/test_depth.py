"""Grey levels of every depth: what a ramp from black to white is at its quarters, whatever the file calls black and white."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pictures import encoded, packed_rows, png, scene, tiff
from PIL import Image

from geo_embed.data.images import UnreadableImage, decode

WIDTH = 256
# Of a ramp whose first sample is black and whose last is white, by arithmetic.
QUARTERS = [0, WIDTH // 4, WIDTH // 2, 3 * WIDTH // 4, WIDTH - 1]


def ramp(bits: int, channels: int = 1) -> np.ndarray:
    """(4, 256·channels) from 0 to all ones."""
    top = (1 << bits) - 1
    row = [i * top // (WIDTH - 1) for i in range(WIDTH) for _ in range(channels)]
    return np.array([row] * 4, dtype=np.int64)


def check_ramp(data: bytes, bits: int, *, inverted: bool = False) -> None:
    pixels = decode(data).astype(int)
    assert pixels.shape == (4, WIDTH, 3)
    assert (pixels == pixels[..., :1]).all()
    # To the nearest level or the one below it: PIL, too, cuts off what doesn't fit into 8 bits.
    expected = ramp(bits) * 255 / ((1 << bits) - 1)
    expected = 255 - expected if inverted else expected
    assert np.abs(pixels[..., 0] - expected).max() <= 1
    assert {*pixels[0, [0, -1], 0].tolist()} == {0, 255}


READABLE_TIFFS = [
    *[("<", bits, photometric) for bits in (1, 2, 4, 8, 16) for photometric in (0, 1)],
    *[(">", bits, photometric) for bits in (1, 2, 4, 8) for photometric in (0, 1)],
    ("<", 12, 1),
    (">", 16, 1),
    ("<", 32, 1),
]


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(("order", "bits", "photometric"), READABLE_TIFFS)
def test_a_grey_tiff_goes_from_black_to_white(
    order: str, bits: int, photometric: int, compression: int
) -> None:
    data = tiff(
        packed_rows(ramp(bits), bits, order),
        WIDTH,
        (bits,),
        order=order,
        photometric=photometric,
        compression=compression,
    )
    check_ramp(data, bits, inverted=photometric == 0)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_in_colour_does_too(bits: int, order: str, channels: int, compression: int) -> None:
    samples = ramp(bits, channels)
    more: tuple[tuple[int, int, int, bytes], ...] = ()
    if channels == 4:
        samples[:, 3::4] = (1 << bits) - 1
        more = ((338, 3, 1, struct.pack(order + "H", 2)),)
    data = tiff(
        packed_rows(samples, bits, order),
        WIDTH,
        (bits,) * channels,
        order=order,
        photometric=2,
        compression=compression,
        more=more,
    )
    check_ramp(data, bits)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(("order", "compression"), [("<", 1), ("<", 8), (">", 1)])
def test_floats_from_0_to_1_do_too(order: str, compression: int, photometric: int) -> None:
    floats = np.linspace(0, 1, WIDTH).astype(order + "f4")
    data = tiff(
        [floats.tobytes()] * 4,
        WIDTH,
        (32,),
        order=order,
        photometric=photometric,
        sample_format=3,
        compression=compression,
    )
    check_ramp(data, 8, inverted=photometric == 0)


@pytest.mark.parametrize("mode", ["P5", "P2", "P6"])
@pytest.mark.parametrize("largest", [1, 100, 255, 1023, 4095, 65535])
def test_a_pgm_of_any_largest_value_does_too(largest: int, mode: str) -> None:
    samples = np.array([[i * largest // (WIDTH - 1) for i in range(WIDTH)]] * 4)
    expected = samples[0] * 255 / largest
    samples = samples.repeat(3, axis=1) if mode == "P6" else samples
    plain = " ".join(map(str, samples.ravel())).encode()
    body = plain if mode == "P2" else samples.astype(">u2" if largest > 255 else "u1").tobytes()
    pixels = decode(f"{mode} {WIDTH} 4 {largest}\n".encode() + body).astype(int)
    assert np.abs(pixels[0, :, 0] - expected).max() <= 1
    assert pixels[0, -1].tolist() == [255, 255, 255]


def test_a_pfm_from_0_to_1_and_jpeg_2000_of_12_and_16_bits_do_too() -> None:
    floats = np.linspace(0, 1, WIDTH).astype("<f4").tobytes() * 4
    check_ramp(f"Pf\n{WIDTH} 4\n-1.0\n".encode() + floats, 8)
    sixteen = np.linspace(0, 65535, WIDTH).round().astype(np.uint16)[None].repeat(4, axis=0)
    check_ramp(encoded(Image.fromarray(sixteen), "JPEG2000"), 16)
    # PIL writes 16 bits alone. Coded are differences to the middle, 2^15 or 2^11: of these the header's precision decides.
    twelve = (ramp(12) - 2048 + 32768).astype(np.uint16)
    data = bytearray(encoded(Image.fromarray(twelve), "JPEG2000"))
    size_marker, header = data.index(b"\xff\x51"), data.index(b"ihdr")
    data[size_marker + 40] = data[header + 14] = 11
    check_ramp(bytes(data), 12)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_png_goes_from_black_to_white_and_follows_its_transparent_level(bits: int) -> None:
    samples = ramp(bits)
    rows = packed_rows(samples, bits)
    check_ramp(png(rows, WIDTH, bits, 0), bits)
    key = int(samples[0, WIDTH // 2])
    pixels = decode(png(rows, WIDTH, bits, 0, (b"tRNS", struct.pack(">H", key)))).astype(int)
    transparent = samples == key
    assert (pixels[transparent] == 255).all()
    expected = samples[~transparent] * 255 / ((1 << bits) - 1)
    assert np.abs(pixels[~transparent][:, 0] - expected).max() <= 1
    opaque = decode(png(rows, WIDTH, bits, 0))
    assert (pixels[~transparent] == opaque[~transparent]).all()


@pytest.mark.parametrize("colour", [2, 4, 6])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_in_colour_or_with_transparency_does_too(bits: int, colour: int) -> None:
    channels = {2: 3, 4: 2, 6: 4}[colour]
    samples = ramp(bits, channels)
    if colour != 2:
        samples[:, channels - 1 :: channels] = (1 << bits) - 1
    check_ramp(png(packed_rows(samples, bits), WIDTH, bits, colour), bits)


def test_the_transparent_colour_of_a_png_is_white_and_of_16_bits_is_refused_where_it_may_be_there() -> None:
    samples = ramp(8, 3)
    key = struct.pack(">HHH", *samples[0, 3 * 100 : 3 * 100 + 3].tolist())
    pixels = decode(png(packed_rows(samples, 8), WIDTH, 8, 2, (b"tRNS", key)))
    assert pixels[0, 99:102, 0].tolist() == [99, 255, 101]
    rows = packed_rows(ramp(16, 3), 16)
    absent = png(rows, WIDTH, 16, 2, (b"tRNS", struct.pack(">HHH", 1, 60000, 2)))
    check_ramp(absent, 16)
    with pytest.raises(UnreadableImage, match="transparent colour"):
        decode(png(rows, WIDTH, 16, 2, (b"tRNS", struct.pack(">HHH", 257 * 9, 257 * 9, 257 * 9))))


def floats(low: float, high: float, code: str) -> list[bytes]:
    return [np.linspace(low, high, WIDTH).astype(code).tobytes()] * 4


UNKNOWN = {
    "floats to 255": (tiff(floats(0, 255, "<f4"), WIDTH, (32,), sample_format=3), "floats, from 0 to 255"),
    "floats below 0": (tiff(floats(-1, 1, "<f4"), WIDTH, (32,), sample_format=3), "floats, from -1 to 1"),
    "no numbers": (tiff(floats(0, np.nan, "<f4"), WIDTH, (32,), sample_format=3), "not all of them numbers"),
    "infinite": (tiff(floats(0, np.inf, "<f4"), WIDTH, (32,), sample_format=3), "not all of them numbers"),
    "a PFM to 255": (
        f"Pf\n{WIDTH} 4\n-1.0\n".encode() + b"".join(floats(0, 255, "<f4")),
        "floats, from 0 to 255",
    ),
    "a PFM in colour": (b"PF\n2 2\n-1.0\n" + bytes(48), "PFM"),
    "big-endian floats that libtiff unpacks": (
        tiff(floats(0, 1, ">f4"), WIDTH, (32,), order=">", sample_format=3, compression=8),
        "32 bits per sample .float",
    ),
    "double floats": (tiff(floats(0, 1, "<f8"), WIDTH, (64,), sample_format=3), "64 bits per sample .float"),
    "half floats": (tiff(floats(0, 1, "<f2"), WIDTH, (16,), sample_format=3), "16 bits per sample .float"),
    **{
        f"signed {bits}": (
            tiff(
                floats(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1, f"<i{bits // 8}"),
                WIDTH,
                (bits,),
                sample_format=2,
            ),
            f"{bits} bits per sample .signed",
        )
        for bits in (8, 16, 32)
    },
    **{
        f"unsigned {bits}": (tiff(packed_rows(ramp(bits), bits), WIDTH, (bits,)), f"{bits} bits per sample")
        for bits in (6, 10, 14)
    },
    "big-endian 12 bits": (tiff(packed_rows(ramp(12), 12), WIDTH, (12,), order=">"), "12 bits per sample"),
    "32 bits in colour": (
        tiff(packed_rows(ramp(32, 3), 32, "<"), WIDTH, (32, 32, 32), photometric=2),
        "32, 32, 32 bits per sample",
    ),
    "a picture of a microscope's floats": (
        encoded(Image.fromarray(np.linspace(0, 9, WIDTH, dtype=np.float32)[None].repeat(4, 0)), "SPIDER"),
        "without a known white",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_samples_without_a_known_white_are_refused_by_name(kind: str) -> None:
    data, message = UNKNOWN[kind]
    with pytest.raises(UnreadableImage, match=message) as refused:
        decode(data)
    assert "8 or 16 bits" in str(refused.value)


def test_a_picture_converted_a_few_rows_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those are that have more than four megapixels: of every mode, with transparency and without."""
    alpha = Image.fromarray(np.arange(61 * 47, dtype=np.uint8).reshape(47, 61))
    with_alpha = scene().convert("RGBA")
    with_alpha.putalpha(alpha)
    sixteen = (np.arange(61 * 47, dtype=np.uint16) * 22).reshape(47, 61)
    files = [encoded(scene().convert(mode), "PNG") for mode in ("1", "L", "P", "RGB")]
    files += [encoded(with_alpha, "PNG"), encoded(scene().quantize(16), "PNG", transparency=3)]
    files += [encoded(scene().convert("CMYK"), "TIFF"), encoded(Image.fromarray(sixteen), "PNG")]
    files += [tiff(packed_rows(sixteen, 16, ">"), 61, (16,), order=">", photometric=1)]
    at_once = [decode(data) for data in files]
    monkeypatch.setattr("geo_embed.data.depth._BAND", 200)
    for data, expected in zip(files, at_once, strict=True):
        assert (decode(data) == expected).all()
