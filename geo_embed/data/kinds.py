"""What a file is that isn't a picture that can be read, by its first bytes, and what would make one of it."""

import re

from PIL import features

_RAW = "develop it to JPEG or TIFF: dcraw, darktable, rawpy"
# The brands of files that begin with a box "ftyp": HEIF, AVIF and every kind of MP4.
_BRANDS = [
    (("avif", "avis"), "an AVIF picture", "convert it to JPEG or PNG: avifdec, ImageMagick"),
    (("heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1"), "a HEIC picture", "convert it to JPEG: heif-convert, ImageMagick, or Python's pillow-heif"),
    (("crx ",), "a camera's RAW file (CR3)", _RAW),
    (("jp2 ", "jpx ", "jpm "), "a JPEG 2000 picture", "convert it to JPEG or PNG: opj_decompress, ImageMagick"),
]  # fmt: skip
_FLOATS = "convert it to 8 or 16 bits: ImageMagick, oiiotool"
_VIDEO = "take a frame out of it: ffmpeg -i VIDEO -frames:v 1 FRAME.png"
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
_FAILED_DOWNLOAD = "download the picture again"

# At which byte, what stands there, what the file is then, and what to do about it.
_MAGIC: list[tuple[int, bytes | tuple[bytes, ...], str, str]] = [
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"), "a JPEG XL picture", "convert it: djxl IN.jxl OUT.png, ImageMagick"),
    (0, b"\xff\xf7", "a JPEG-LS picture", "convert it to PNG: ImageMagick, GDAL"),
    (0, b"%PDF", "a PDF document", "take the picture out of it: pdfimages, or pdftoppm -png"),
    (0, _POSTSCRIPT[0], "PostScript, no pixels", "draw it: gs, ImageMagick"),
    (0, _POSTSCRIPT[1], "PostScript (EPS), no pixels", "draw it: gs, ImageMagick"),
    (0, (b"version https://git-lfs.github.com/", b"version https://hawser.github.com/"), "a Git LFS pointer, not the file itself", "git lfs pull"),
    (0, b"/annex/objects/", "a git-annex pointer, not the file itself", "git annex get"),
    (8, b"CR\x02", "a camera's RAW file (CR2)", _RAW),
    (0, (b"IIRO", b"IIRS", b"MMOR"), "a camera's RAW file (ORF)", _RAW),
    (0, b"IIU\0", "a camera's RAW file (RW2)", _RAW),
    (0, b"FUJIFILMCCD-RAW", "a camera's RAW file (RAF)", _RAW),
    (0, b"FOVb", "a camera's RAW file (X3F)", _RAW),
    (0, b"\0MRM", "a camera's RAW file (MRW)", _RAW),
    (0, b"v/1\x01", "an OpenEXR picture of floats", _FLOATS),
    (0, (b"#?RADIANCE", b"#?RGBE"), "a Radiance HDR picture of floats", _FLOATS),
    (0, b"PF\n", "a picture of floats (PFM in colour)", _FLOATS),
    (0, b"II\xbc", "a JPEG XR picture", "convert it to JPEG or PNG: JxrDecApp, ImageMagick"),
    (0, b"BPG\xfb", "a BPG picture", "convert it to PNG: bpgdec"),
    (0, b"gimp xcf", "a GIMP document", "export it to PNG"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile, no pixels", "draw it: ImageMagick, LibreOffice"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video", _VIDEO),
    (8, b"AVI ", "an AVI video", _VIDEO),
    (0, b"FLV\x01", "a Flash video", _VIDEO),
    (0, b"OggS", "an Ogg video or sound", _VIDEO),
    (0, (b"\0\0\x01\xba", b"\0\0\x01\xb3"), "an MPEG video", _VIDEO),
    (4, (b"moov", b"mdat"), "a QuickTime video", _VIDEO),
    (8, b"WAVE", "a sound file", "it has no picture"),
    (0, (b"PK\x03\x04", b"PK\x05\x06"), "a ZIP archive (or an Office document)", "unpack it"),
    (0, b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip"),
    (0, b"BZh", "compressed by bzip2", "unpack it: bunzip2"),
    (0, b"\xfd7zXZ\0", "compressed by xz", "unpack it: unxz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by Zstandard", "unpack it: unzstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    (257, b"ustar", "a tar archive", "unpack it"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "take the picture out of it, as PNG or JPEG"),
    (0, b"SIMPLE  =", "a FITS file of measured values", "scale it to 8 or 16 bits, and save it as PNG"),
    (0, b"\x93NUMPY", "a NumPy array", "save it as PNG: PIL.Image.fromarray(…).save(…)"),
    (0, b"GRIB", "weather data (GRIB)", "it has no pixels"),
    (0, b"DICM", "a DICOM picture", "convert it to PNG: dcmj2pnm, ImageMagick"),
    (128, b"DICM", "a DICOM picture", "convert it to PNG: dcmj2pnm, ImageMagick"),
    (0, b"\x7fELF", "a program", "it has no picture"),
    (0, b"MZ", "a Windows program", "it has no picture"),
    (0, b"SQLite format 3", "a database", "it has no picture"),
]  # fmt: skip
# What is read here where it is whole, by what stands at which byte.
_READ: list[tuple[int, bytes | tuple[bytes, ...], str]] = [
    (0, b"\xff\xd8", "a JPEG"),
    (0, b"\x89PNG", "a PNG"),
    (0, b"GIF8", "a GIF"),
    (8, b"WEBP", "a WebP picture"),
    (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "a TIFF"),
    (0, (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (0, b"BM", "a BMP"),
]
# A text's first characters, lower case and without comments, and what it is then.
_TEXTS = [
    (r"(<\?xml.{0,2000}?)?(<!doctype svg.{0,2000}?)?<(\w+:)?svg\b", "an SVG drawing, no pixels", "draw it: rsvg-convert, inkscape, ImageMagick"),
    (r"<(!doctype html|html|head|body)\b", "a web page, such as a server's error message", _FAILED_DOWNLOAD),
    (r"<\?xml.{0,2000}?<html\b", "a web page, such as a server's error message", _FAILED_DOWNLOAD),
    (r"<\?xml", "an XML document, such as a server's error message", _FAILED_DOWNLOAD),
    (r"<error\b", "an XML document, such as a server's error message", _FAILED_DOWNLOAD),
    (r"[\[{]", "a JSON document, such as a server's error message", _FAILED_DOWNLOAD),
]  # fmt: skip


def describe(data: bytes) -> str:
    """What a file that no decoder takes is, and what would make a readable picture of it; in one line, "not an image" where unknown."""
    what, cure = _recognise(data)
    return f"{what}; {cure}" if cure else what


def is_postscript(data: bytes) -> bool:
    """Whether PIL would start another program, Ghostscript, for this file."""
    return data.startswith(_POSTSCRIPT)


def _recognise(data: bytes) -> tuple[str, str]:
    if not data:
        return "zero bytes", _FAILED_DOWNLOAD
    if not data.strip(b"\0"):
        return "not an image: nothing but zeros", "its disk or its download failed; get it again"
    if data[4:8] == b"ftyp":
        brands = {data[i : i + 4].decode("latin-1") for i in (8, *range(16, min(len(data), 64), 4))}
        for names, what, cure in _BRANDS:
            if brands & set(names):
                if "avif" in names and "avif" in features.get_supported():
                    return _damaged(what)
                return f"not an image that can be read here: {what}", cure
        return "not an image: an MP4 or QuickTime video", _VIDEO
    for offset, magic, what, cure in _MAGIC:
        if data.startswith(magic, offset):
            return f"not an image that can be read here: {what}", cure
    start = data[:8192].removeprefix(b"\xef\xbb\xbf")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        start = start.replace(b"\0", b"")[2:]
    text = start.decode("latin-1").strip().lower()
    uncommented = _without_comments(text).lstrip()
    for pattern, what, cure in _TEXTS:
        if re.match(pattern, uncommented, re.DOTALL):
            return f"not an image: {what}", cure
    if text and all(character.isprintable() or character.isspace() for character in text):
        return "not an image: a text", _FAILED_DOWNLOAD
    for offset, magic, what in _READ:
        if data.startswith(magic, offset):
            return _damaged(what)
    return "not an image", ""


def _without_comments(text: str) -> str:
    """XML or HTML without comments: in one pass, since a pattern for any number of them would try every way to divide the text."""
    first, *rest = text.split("<!--")
    return first + "".join(part.partition("-->")[2] for part in rest)


def _damaged(what: str) -> tuple[str, str]:
    return f"not an image that can be read: {what} that is damaged or cut short", _FAILED_DOWNLOAD
