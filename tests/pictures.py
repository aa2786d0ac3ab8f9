"""Files of pictures made byte by byte, of depths and with faults that no library writes; and a corpus of those that PIL does."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene(width: int = 61, height: int = 47, seed: int = 0) -> Image.Image:
    """A smooth scene with grain: what a codec is made for, no two pixels alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(3, 20) + y / rng.uniform(3, 20) + phase) for phase in (0, 1, 2)]
    pixels = 128 + 70 * np.stack(waves, axis=2) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def packed_rows(samples: NDArray[np.integer[Any]], bits: int, order: str = ">") -> list[bytes]:
    """Rows (H, W·C) of unsigned samples as bytes: of fewer than 16 bits one after the other, most significant first."""
    if bits in (16, 32, 64):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in samples]
    places = np.arange(bits - 1, -1, -1)
    ones = (samples[..., None].astype(np.int64) >> places & 1).reshape(len(samples), -1)
    return [np.packbits(row.astype(np.uint8)).tobytes() for row in ones]


def tiff(
    rows: list[bytes],
    width: int,
    bits: tuple[int, ...],
    *,
    order: str = "<",
    photometric: int = 1,
    sample_format: int | None = None,
    compression: int = 1,
    more: tuple[tuple[int, int, int, bytes], ...] = (),
) -> bytes:
    """An uncompressed TIFF of one strip, or one deflated. `more`: tags as (tag, type, count, bytes)."""
    data = b"".join(rows)
    data = zlib.compress(data) if compression == 8 else data

    def short(*values: int) -> bytes:
        return struct.pack(f"{order}{len(values)}H", *values)

    def long(value: int) -> bytes:
        return struct.pack(f"{order}I", value)

    tags = [
        (256, 4, 1, long(width)),
        (257, 4, 1, long(len(rows))),
        (258, 3, len(bits), short(*bits)),
        (259, 3, 1, short(compression)),
        (262, 3, 1, short(photometric)),
        (273, 4, 1, long(8)),
        (277, 3, 1, short(len(bits))),
        (278, 4, 1, long(len(rows))),
        (279, 4, 1, long(len(data))),
        *more,
    ]
    if sample_format is not None:
        tags.append((339, 3, len(bits), short(*[sample_format] * len(bits))))
    tags.sort(key=lambda tag: tag[0])
    start = 8 + len(data) + len(data) % 2
    outside = start + 2 + 12 * len(tags) + 4
    directory, values = struct.pack(order + "H", len(tags)), b""
    for tag, kind, count, value in tags:
        directory += struct.pack(order + "HHI", tag, kind, count)
        if len(value) <= 4:
            directory += value.ljust(4, b"\0")
        else:
            directory += long(outside + len(values))
            values += value + b"\0" * (len(value) % 2)
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return header + data + b"\0" * (len(data) % 2) + directory + bytes(4) + values


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: list[bytes], width: int, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of unfiltered rows, with more chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def exif(orientation: int, *, order: str = "<", before: bytes = b"", entries: int = 0) -> bytes:
    """EXIF with an orientation, and `entries` further ones of 12 bytes each in front."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1 + entries)
    return head + before + struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)


def with_exif(jpeg: bytes, body: bytes) -> bytes:
    """A JPEG with this EXIF behind its first marker."""
    return with_segment(jpeg, 0xE1, b"Exif\0\0" + body)


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def corpus() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Every kind of picture that PIL writes, small: its name, and what makes its bytes."""

    def of(mode: str, kind: str, size: tuple[int, int] = (61, 47), **options: Any) -> Callable[[], bytes]:
        def make() -> bytes:
            image = scene(*size)
            converted = image.quantize(64) if mode == "P" else image.convert(mode)
            if mode in ("RGBA", "LA"):
                alpha = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1]))
                converted.putalpha(alpha)
            return encoded(converted, kind, **options)

        return make

    for size in ((1, 1), (7, 300), (61, 47), (128, 96)):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for progressive in (False, True):
                name = f"JPEG RGB {size} {subsampling} {'progressive' if progressive else 'baseline'}"
                yield (
                    name,
                    of("RGB", "JPEG", size, subsampling=subsampling, progressive=progressive, quality=88),
                )
        for mode in ("L", "CMYK"):
            yield f"JPEG {mode} {size}", of(mode, "JPEG", size)
        yield f"JPEG with restarts {size}", of("RGB", "JPEG", size, restart_marker_blocks=2)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            yield f"PNG {mode} {size}", of(mode, "PNG", size)
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK"):
                yield f"TIFF {mode} {compression} {size}", of(mode, "TIFF", size, compression=compression)
        yield f"TIFF JPEG {size}", of("RGB", "TIFF", size, compression="jpeg")
        yield f"TIFF fax {size}", of("1", "TIFF", size, compression="group4")
        for mode in ("RGB", "RGBA"):
            yield f"WEBP {mode} {size}", of(mode, "WEBP", size, quality=80)
            yield f"WEBP lossless {mode} {size}", of(mode, "WEBP", size, lossless=True)
        for mode in ("L", "P", "RGB"):
            yield f"GIF {mode} {size}", of(mode, "GIF", size)
            yield f"BMP {mode} {size}", of(mode, "BMP", size)
            yield f"PCX {mode} {size}", of(mode, "PCX", size)
        for mode in ("L", "RGB", "RGBA"):
            yield f"TGA {mode} {size}", of(mode, "TGA", size)
            yield f"TGA run-length {mode} {size}", of(mode, "TGA", size, compression="tga_rle")
            yield f"JPEG2000 {mode} {size}", of(mode, "JPEG2000", size)
            yield f"SGI {mode} {size}", of(mode, "SGI", size)
        for mode in ("1", "L", "RGB"):
            yield f"PPM {mode} {size}", of(mode, "PPM", size)
        for mode in ("RGB", "RGBA"):
            yield f"DDS {mode} {size}", of(mode, "DDS", size)
            yield f"AVIF {mode} {size}", of(mode, "AVIF", size, speed=10)
            yield f"ICO {mode} {size}", of(mode, "ICO", size)
            yield f"QOI {mode} {size}", of(mode, "QOI", size)
        for mode in ("P", "RGBA"):
            yield f"ICNS {mode} {size}", of(mode, "ICNS", size)
        yield f"MPO {size}", of("RGB", "MPO", size)
        yield f"IM {size}", of("RGB", "IM", size)
