"""What isn't a picture that can be read is said for what it is, with what would help."""

from __future__ import annotations

import gzip
import io
import zipfile

import pytest
from pictures import encoded, scene, tiff
from PIL import Image, features

from geo_embed.data.images import UnreadableImage, decode


def box(brand: bytes, *others: bytes) -> bytes:
    body = brand + bytes(4) + b"".join(others)
    return (len(body) + 8).to_bytes(4, "big") + b"ftyp" + body + bytes(200)


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.jpg", encoded(scene(), "JPEG"))
    return buffer.getvalue()


def raw_file() -> bytes:
    """A thumbnail, and further directories with what the sensor saw: NEF and DNG are TIFFs like this."""
    rows = [bytes(30)] * 10
    more = ((254, 4, 1, b"\1\0\0\0"), (330, 4, 1, b"\x08\0\0\0"))
    return tiff(rows, 10, (8, 8, 8), photometric=2, more=more)


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)
FILES = {
    "nothing": (b"", "zero bytes"),
    "zeros": (bytes(5000), "nothing but zeros"),
    "HEIC": (box(b"heic", b"mif1", b"heic"), "HEIC.*pillow-heif"),
    "HEIF by a compatible brand": (box(b"mif1", b"heix"), "HEIC"),
    "JPEG XL": (b"\xff\x0a" + bytes(50), "JPEG XL.*djxl"),
    "JPEG XL in a container": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
    "MP4": (box(b"isom", b"mp42"), "video.*ffmpeg"),
    "QuickTime": (box(b"qt  "), "video.*ffmpeg"),
    "Matroska": (b"\x1aE\xdf\xa3" + bytes(50), "video.*ffmpeg"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST" + bytes(50), "video.*ffmpeg"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "RAW.*darktable"),
    "CR3": (box(b"crx "), "RAW.*darktable"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(50), "RAW"),
    "ORF": (b"IIRO\x08\0\0\0" + bytes(50), "RAW"),
    "a thumbnail with a sensor's data": (raw_file(), "RAW.*darktable"),
    "PDF": (b"%PDF-1.7\n", "PDF.*pdftoppm"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n", "PostScript"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG.*rsvg"),
    "SVG behind its declaration": (b'<?xml version="1.0"?>\n<!-- a map -->\n<svg width="1"/>', "SVG"),
    "a web page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page.*download"),
    "a web page of capitals": (b"\xef\xbb\xbf\n<HTML><HEAD></HEAD></HTML>", "web page"),
    "a bucket's refusal": (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
        "XML.*download",
    ),
    "an interface's refusal": (b'{"error": {"code": 403}}', "JSON.*download"),
    "a text": (b"the quick brown fox\n" * 50, "a text"),
    "Git LFS": (POINTER, "Git LFS.*git lfs pull"),
    "git-annex": (b"/annex/objects/SHA256E-s1--0.jpg\n", "git-annex"),
    "gzip": (gzip.compress(b"x"), "gzip"),
    "ZIP": (archive(), "ZIP"),
    "EXR": (b"v/1\x01" + bytes(50), "OpenEXR"),
    "Radiance": (b"#?RADIANCE\n", "Radiance"),
    "DICOM": (bytes(128) + b"DICM" + bytes(50), "DICOM"),
    "NumPy": (b"\x93NUMPY\1\0" + bytes(50), "NumPy"),
    "half a TIFF": (encoded(scene(), "TIFF", compression="tiff_lzw")[:900], "TIFF that is damaged"),
    "half a WebP's header": (encoded(scene(), "WEBP")[:20], "WebP picture that is damaged|could not create"),
    "the start of a PNG": (encoded(scene(), "PNG")[:20], "PNG that is damaged"),
    "the start of a JPEG": (encoded(scene(), "JPEG")[:200], "JPEG that is damaged"),
    "noise": (bytes(range(200, 256)) * 20, "not an image"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_said_for_what_it_is(kind: str) -> None:
    data, message = FILES[kind]
    with pytest.raises(UnreadableImage, match=message) as refused:
        decode(data)
    assert str(refused.value).isprintable()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_damaged_avif_is_not_said_to_be_unsupported() -> None:
    whole = encoded(scene(), "AVIF")
    assert decode(whole).shape == (47, 61, 3)
    with pytest.raises(UnreadableImage, match="AVIF picture that is damaged"):
        decode(whole[: len(whole) // 2])


def test_a_thumbnail_without_further_directories_is_a_picture() -> None:
    rows = [bytes(30)] * 10
    data = tiff(rows, 10, (8, 8, 8), photometric=2, more=((254, 4, 1, b"\1\0\0\0"),))
    assert decode(data).shape == (10, 10, 3)


def test_no_other_program_is_started_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL hands PostScript to Ghostscript."""
    import subprocess

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "EPS")
    with pytest.raises(UnreadableImage, match="PostScript"):
        decode(buffer.getvalue())


@pytest.mark.timeout(20)
def test_a_text_that_could_be_divided_in_ever_more_ways_is_read_once() -> None:
    for text in (b"<!---->" * 1000, b"<!--" * 2000, b"<?xml" + b"<!doctype svg" * 150 + b"<" + b"a" * 6000):
        with pytest.raises(UnreadableImage, match="not an image"):
            decode(text)
    with pytest.raises(UnreadableImage, match="SVG"):
        decode(b"<?xml version='1.0'?>" + b"<!-- drawn -->\n" * 400 + b"<svg/>")
    with pytest.raises(UnreadableImage, match="web page"):
        decode(b"<!-- one -->\n<!-- two --><html>")
