"""Image bytes to pixels for the backbone: decode, resize, normalise.

uint8 all the way to the device; only `normalise` makes floats. Two resizes exist: torch's antialiased bicubic
(within two grey levels of PIL, and faster), and PIL's own, bit-equal to transformers' processor.

Whatever a file holds, `decode` gives the picture that PIL makes of it, or raises `UnreadableImage`: nothing else gets out of the
decoders. Files are handed to them without what makes no pixels, since text, profiles and EXIF can be as broken as they like.
"""

import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from geo_embed.data import jpeg, kinds, png, tiff
from geo_embed.data.depth import Depth, UnknownDepth, to_rgb
from geo_embed.data.libtiff import hearing_complaints
from geo_embed.data.orientation import read_orientation, turn_upright
from geo_embed.data.resampling import resize_part
from geo_embed.errors import GeoError
from geo_embed.files import open_regular, read_bytes

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]

_JPEG = b"\xff\xd8"
# EXIF's orientations from this one on turn a picture by a quarter.
_ON_ITS_SIDE = 5

# 100 megapixels are 300 MB once decoded: more than a street view has, less than a decoding thread can bear.
MAX_PIXELS = 100_000_000
# What a decoding thread can bear: those pixels twice, while they are converted. Bytes that a pixel takes at worst, decoder, picture and
# result together (measured: `ru_maxrss` of pictures of 4 to 42 megapixels), where it is more than those of 100 megapixels may.
_MAX_MEMORY = 800_000_000
_BYTES_OF_PIXEL = {"JPEG2000": 24, "WEBP": 20, "AVIF": 16}
# A codestream's width and height: what contains it may claim others.
_CODESTREAM = re.compile(rb"\xff\x4f\xff\x51.{4}(.{8})", re.DOTALL)
# Of a file: 100 megapixels of three 16-bit samples are 600 MB before any compression.
MAX_BYTES = 1 << 30


# A picture that is enlarged beyond this, of which less than a quarter is kept, is made in that part alone.
_MOST_RESIZED = 4_000_000

# How a file becomes pixels. One more whenever any picture's pixels become others than they were: embeddings made before are then of
# other pixels. 1: up to version 0.1.0. 2: grey levels by the file's own depth and sample format, orientation by every type of number as PIL.
PICTURE_SEMANTICS: int = 2


# PIL warns of metadata, and of pictures that are larger than MAX_PIXELS; the former make no pixels, the latter are refused.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """A picture that can't be decoded; the text is the reason, for people."""


class DamagedImage(UnreadableImage):
    """A picture that decodes, but whose decoder had to make pixels up."""


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone wants done to a picture, as its own preprocessor file says. Sizes in pixels.

    Attributes:
        shortest_edge: length of the shorter side after resizing, aspect ratio kept; None where `height` and `width` are fixed.
        height, width: of the centre crop, and of the pixels handed to the backbone.
        resample: PIL's code of the filter (2 bilinear, 3 bicubic).
        scale: factor from grey levels to the unit range, before mean and standard deviation are applied.
        mean, std: per channel.
        resize: whose resize is used.
        longest_edge: what the longer side may not exceed after resizing, where `shortest_edge` is set; None for no such bound.
    """

    shortest_edge: int | None
    height: int
    width: int
    resample: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["torch", "pil"]
    longest_edge: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the fingerprint and the store; a bound that isn't set is left out, as in the stores of earlier versions."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if (key, value) != ("longest_edge", None)
        }


def decode(data: bytes, *, accept_damage: bool = False) -> Pixels:
    """Image bytes to RGB (H, W, 3), upright by EXIF or XMP, transparency laid over white, any depth scaled to 8 bits.

    Args:
        data: the file.
        accept_damage: take what PIL makes of a picture whose decoder complains of pixels that are lost.

    Raises:
        DamagedImage: with what is lost, unless it is accepted.
        UnreadableImage: with the reason; every exception of a decoder becomes this one.
    """
    with _one_exception():
        pixels = _decode_plain_jpeg(data) if data[:2] == _JPEG else None
        return _decode_any(data, accept_damage) if pixels is None else pixels


def decode_grey(data: bytes, *, accept_damage: bool = False) -> Pixels:
    """As `decode`, but grey levels (H, W); of an ordinary JPEG in half the time, since no colours are made."""
    with _one_exception():
        pixels = _decode_plain_jpeg(data, "GRAY") if data[:2] == _JPEG else None
        if pixels is not None:
            return pixels[:, :, 0]
        return np.asarray(Image.fromarray(_decode_any(data, accept_damage)).convert("L"))


def read_shape(data: bytes) -> tuple[int, int]:
    """(height, width) of an image file, upright, by its header: whether it can be decoded, only decoding tells. Raises UnreadableImage."""
    with _one_exception():
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise UnreadableImage(kinds.describe(data)) from error
        width, height = image.size
        orientation = read_orientation(_bytes_of(image, "exif"), _bytes_of(image, "xmp"))
        return (width, height) if orientation >= _ON_ITS_SIDE else (height, width)


def of_pil(image: Image.Image) -> Pixels:
    """A picture that PIL holds to RGB (H, W, 3), as `decode` does it: upright, transparency laid over white, 8 bits.

    Raises:
        UnreadableImage: with the reason: its file is cut off or closed, it has no pixels or too many, or samples without a known white.
    """
    with _one_exception():
        _refuse_size(image.width, image.height)
        image.load()
        depth = Depth() if image.mode.startswith("I;16") else None
        orientation = read_orientation(_bytes_of(image, "exif"), _bytes_of(image, "xmp"))
        return turn_upright(to_rgb(image, depth), orientation)


@contextmanager
def _one_exception() -> Iterator[None]:
    """Every exception of a decoder becomes UnreadableImage, with a reason for people."""
    try:
        yield
    except UnreadableImage:
        raise
    except UnknownDepth as error:
        raise UnreadableImage(str(error)) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:
        raise UnreadableImage(_in_one_line(error)) from error


def read_picture(path: Path) -> bytes:
    """A picture's file. A pipe or device in its place can't make a reader wait.

    Raises:
        FileNotFoundError: it isn't there.
        UnreadableImage: it can't be read, isn't a regular file, or is too large; with the reason.
    """
    try:
        return read_bytes(path, limit=MAX_BYTES)
    except GeoError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise UnreadableImage(_of_file(error)) from error


def find_fault(path: Path, *, accept_damage: bool = False) -> str:
    """Why a picture can't be read, looking as little as possible; empty where it seems fine.

    A JPEG with both its markers passes; anything else is decoded, as `decode` does.
    """
    try:
        with open_regular(path) as file:
            start = file.read(2)
            if start == _JPEG:
                file.seek(-2, os.SEEK_END)
                if file.read(2) == b"\xff\xd9":
                    return ""
        return why_undecodable(read_picture(path), accept_damage)
    except GeoError as error:
        return _of_file(error)
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def why_undecodable(data: bytes, accept_damage: bool) -> str:
    """Why `decode` refuses a picture; empty where it doesn't."""
    try:
        decode(data, accept_damage=accept_damage)
    except UnreadableImage as error:
        return str(error)
    return ""


def one_thread() -> None:
    """For a decoding thread to begin with: it resizes on its own core, instead of on every core at once."""
    import torch

    torch.set_num_threads(1)


def resized_shape(height: int, width: int, spec: Preprocessing) -> tuple[int, int]:
    """(height, width) after resizing and before the crop, as transformers computes it.

    Raises:
        UnreadableImage: `longest_edge` leaves nothing of the shorter side.
    """
    if spec.shortest_edge is None:
        return spec.height, spec.width
    short, long = min(height, width), max(height, width)
    edge, unrounded = spec.shortest_edge, float(spec.shortest_edge)
    if spec.longest_edge is not None and long / short * edge > spec.longest_edge:
        unrounded = spec.longest_edge * short / long
        edge = round(unrounded)
        if not edge:
            raise UnreadableImage(
                f"{width}×{height} pixels: too long for a longest_edge of {spec.longest_edge}"
            )
        # transformers leaves a picture alone whose shorter side is right by chance, though its longer one is not.
        if edge == short:
            return height, width
    scaled = int(unrounded * long / short)
    return (scaled, edge) if width <= height else (edge, scaled)


def resize(pixels: Pixels, spec: Preprocessing) -> Pixels:
    """(H, W, 3) to the backbone's (3, height, width): resize, then centre crop, zero-padded where too small.

    Of a picture that is many times as long as it is wide, and would be enlarged, only the crop is made, by PIL's arithmetic: bit-equal
    to PIL's resize, and within two grey levels of torch's, like every other.
    """
    size = resized_shape(pixels.shape[0], pixels.shape[1], spec)
    # One that shrinks costs no more than its decoding did.
    least = max(_MOST_RESIZED, 4 * spec.height * spec.width, pixels.shape[0] * pixels.shape[1])
    if size[0] * size[1] > least:
        rows, columns = _kept(size[0], spec.height), _kept(size[1], spec.width)
        resized = resize_part(pixels, size, rows, columns, spec.resample)
    else:
        resized = (
            _resize_pil(pixels, size, spec) if spec.resize == "pil" else _resize_torch(pixels, size, spec)
        )
    return np.ascontiguousarray(_centre_crop(resized, spec.height, spec.width).transpose(2, 0, 1))


def normalise(
    batch: "torch.Tensor", spec: Preprocessing, dtype: "torch.dtype", out: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """uint8 (B, 3, H, W) to floats of `dtype` on the batch's device: (x · scale − mean) / std.

    With PIL's resize the values are bit-equal to transformers' processor in float32: they are looked up in a table
    made by its arithmetic.

    Args:
        batch: grey levels.
        spec: scale, mean, std, and whose resize made the batch.
        dtype: of the result.
        out: float32 (B, 3, H, W) on the CPU to work in; a reused one is ten times as fast as fresh memory.
    """
    import torch

    if batch.device.type != "cpu":
        return _normalise_at_once(batch, spec).to(dtype)
    if out is None:
        out = torch.empty(batch.shape)
    # Image by image in NumPy, so that each stays in the cache from the first operation to the last, on one core:
    # torch would wait in vain for cores that decode.
    pairs = zip(batch.numpy(), out.numpy(), strict=True)
    if spec.resize == "pil":
        table = _table(spec)
        for image, result in pairs:
            for channel in range(3):
                np.take(table[channel], image[channel], out=result[channel], mode="clip")
    else:
        gain, offset = (factor.numpy() for factor in _gain_and_offset(spec))
        for image, result in pairs:
            np.copyto(result, image)
            result *= gain
            result += offset
    return out.to(dtype)


def _normalise_at_once(batch: "torch.Tensor", spec: Preprocessing) -> "torch.Tensor":
    import torch

    if spec.resize == "pil":
        table = torch.from_numpy(_table(spec)).to(batch.device)
        return torch.stack([table[channel][batch[:, channel].int()] for channel in range(3)], dim=1)
    gain, offset = _gain_and_offset(spec)
    return torch.addcmul(offset.to(batch.device), batch.float(), gain.to(batch.device))


def _gain_and_offset(spec: Preprocessing) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    return spec.scale / std, -mean / std


def _decode_plain_jpeg(data: bytes, colours: str = "RGB") -> Pixels | None:
    """Decode what needs no turning, as `_decode_upright_jpeg` does; None for anything that needs a closer look."""
    # EXIF or XMP may turn the picture, and CMYK needs PIL's inversion.
    if jpeg.may_be_turned(data) or jpeg.may_have_many_scans(data):
        return None
    return _decode_upright_jpeg(data, colours)


def _decode_upright_jpeg(data: bytes, colours: str = "RGB") -> Pixels | None:
    """Decode what simplejpeg decodes bit-equal to PIL and without a complaint, as it is stored; None for the rest."""
    import simplejpeg

    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "GRAY") or height * width > MAX_PIXELS:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace=colours, strict=True), dtype=np.uint8)
    except Exception:
        # Also of what simplejpeg doesn't know, such as rare subsamplings (KeyError): PIL has a look.
        return None


def _decode_any(data: bytes, accept_damage: bool) -> Pixels:
    """By kind of file: its essence to the decoder; then what is lost; then depth, transparency and orientation."""
    depth: Depth | None = Depth()
    key: tuple[int, ...] = ()
    loss = ""
    if data[:2] == _JPEG:
        return _decode_jpeg(data, accept_damage)
    if data.startswith(png.SIGNATURE):
        read = png.read_png(data)
        _refuse_size(read.width, read.height)
        image = _load(read.essence)
        loss = png.find_loss(read)
        depth, key = _png_depth(read, image)
        orientation = read_orientation(read.exif, read.xmp)
    elif (directory := tiff.read_directory(data)) is not None:
        refusal = tiff.find_refusal(data, directory)
        if refusal:
            raise UnreadableImage(refusal)
        _refuse_size(directory.first(256, 0), directory.first(257, 0))
        excess = tiff.find_excess(directory)
        if excess:
            raise UnreadableImage(excess)
        with hearing_complaints() as complaints:
            image = _load(tiff.only_pixels(data, directory), unknown=tiff.describe(directory))
        loss = tiff.find_loss(data, directory) or "; ".join(complaints[:1])
        depth = Depth(
            bits=directory.first(tiff.BITS_PER_SAMPLE, 1),
            floating=directory.first(tiff.SAMPLE_FORMAT, tiff.UNSIGNED) == tiff.FLOAT,
            inverted=directory.first(tiff.PHOTOMETRIC, 0) == tiff.MIN_IS_WHITE,
        )
        orientation = read_orientation(data, tiff.read_xmp(data, directory))
    else:
        image = _load(data)
        if image.format not in ("PPM", "JPEG2000"):
            depth = None
        elif image.mode == "F":
            depth = Depth(floating=True)
        orientation = read_orientation(_bytes_of(image, "exif"), _bytes_of(image, "xmp"))
    if loss and not accept_damage:
        raise DamagedImage(f"damaged: {loss}")
    return turn_upright(to_rgb(image, depth, key), orientation)


def _decode_jpeg(data: bytes, accept_damage: bool) -> Pixels:
    read = jpeg.read_jpeg(data)
    refusal = jpeg.find_refusal(data, read)
    if refusal:
        raise UnreadableImage(refusal)
    pixels = _decode_upright_jpeg(read.essence) if read.essence else None
    if pixels is None:
        rare = jpeg.describe_process(read)
        try:
            image = _load(read.essence or data)
        except (UnreadableImage, OSError) as error:
            if rare and f"{MAX_PIXELS:,}" not in str(error):
                raise UnreadableImage(f"not an image that can be read here: {rare}") from error
            raise
        loss = jpeg.find_loss(read)
        if loss and not accept_damage:
            raise DamagedImage(f"damaged: {loss}")
        pixels = to_rgb(image, None)
    return turn_upright(pixels, read_orientation(read.exif, read.xmp))


def _load(data: bytes, *, unknown: str = "") -> Image.Image:
    """PIL's picture, decoded; of a file that PIL doesn't know `unknown` is said, or what it looks like."""
    if kinds.is_postscript(data) or not data:
        raise UnreadableImage(kinds.describe(data))
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, MemoryError):
        raise
    except Exception as error:
        # What PIL doesn't know, and headers that it stumbles over.
        raise UnreadableImage(unknown or kinds.describe(data)) from error
    # PIL unpacks all that there is, whatever the size of the picture.
    if any(tile[0] == "fits_gzip" for tile in getattr(image, "tile", [])):
        raise UnreadableImage(kinds.describe(data))
    _refuse_size(*image.size, image.format)
    for codestream in _codestreams(data, image.format):
        width, height = struct.unpack(">II", codestream)
        _refuse_size(width, height, "JPEG2000")
    try:
        image.load()
    except OSError as error:
        # Formats that PIL knows by name alone.
        if "cannot find loader" in str(error):
            raise UnreadableImage(f"not an image that can be read here: {image.format}") from error
        raise
    _refuse_size(*image.size)
    return image


def _codestreams(data: bytes, kind: str | None) -> list[bytes]:
    """Width and height of each of JPEG 2000 that PIL may decode. Coded data may look like another's start: of a JPEG 2000 the first counts."""
    if kind == "JPEG2000":
        first = _CODESTREAM.search(data)
        return [first[1]] if first else []
    return _CODESTREAM.findall(data) if kind == "ICNS" else []


def _refuse_size(width: int, height: int, kind: str | None = None) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width}×{height} pixels: more than {MAX_PIXELS:,}")
    # Its decoder takes many bytes for each.
    most = _MAX_MEMORY // _BYTES_OF_PIXEL[kind] if kind in _BYTES_OF_PIXEL else MAX_PIXELS
    if width * height > most:
        raise UnreadableImage(
            f"{width}×{height} pixels: more than {most:,} of a {kind}; convert it to JPEG or PNG"
        )


def _png_depth(read: png.Png, image: Image.Image) -> tuple[Depth, tuple[int, ...]]:
    """How grey samples of 16 bits are read, and the transparent colour in 8 bits a channel."""
    if not read.key:
        return Depth(), ()
    if read.bits == 16 and read.colour == png.GREY:
        return Depth(key=read.key[0]), ()
    if read.bits == 16:
        # PIL keeps the upper 8 bits: whether a colour that has those of the transparent one is transparent can't be told.
        key = tuple(sample >> 8 for sample in read.key)
        if (np.asarray(image.convert("RGB")) == key).all(axis=2).any():
            raise UnreadableImage(
                "a PNG of 16 bits with a transparent colour, which isn't followed; save it with an alpha channel, or with 8 bits"
            )
        image.info.pop("transparency", None)
        return Depth(), ()
    largest = (1 << read.bits) - 1
    return Depth(), tuple((sample & largest) * 255 // largest for sample in read.key)


def _bytes_of(image: Image.Image, name: str) -> bytes:
    value = image.info.get(name, b"")
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def _of_file(error: GeoError) -> str:
    """What the door says of a file, without its path."""
    cause = error.__cause__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else error.what


def _in_one_line(error: Exception) -> str:
    """What a decoder's exception says, for people: printable, and not longer than a line."""
    text = "".join(c if c.isprintable() else " " for c in " ".join(str(error).split()))[:200]
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _resize_pil(pixels: Pixels, size: tuple[int, int], spec: Preprocessing) -> Pixels:
    height, width = size
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling(spec.resample))
    return np.asarray(image, dtype=np.uint8)


def _resize_torch(pixels: Pixels, size: tuple[int, int], spec: Preprocessing) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels
    import torch

    mode = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}.get(
        Image.Resampling(spec.resample)
    )
    if mode is None:
        return _resize_pil(pixels, size, spec)
    if not pixels.flags.writeable:
        pixels = pixels.copy()
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        batch, size=size, mode=mode, antialias=True, align_corners=False
    )
    return np.asarray(resized[0].permute(1, 2, 0).numpy(), dtype=np.uint8)


def _kept(resized: int, wanted: int) -> tuple[int, int]:
    """First and end of what the centre crop keeps of a side."""
    start = max(resized - wanted, 0) // 2
    return start, min(start + wanted, resized)


def _centre_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """Crop as transformers does, which rounds the padding of a too small side up and a crop down."""
    have_h, have_w = pixels.shape[:2]
    if have_h < height or have_w < width:
        top, left = -(-max(height - have_h, 0) // 2), -(-max(width - have_w, 0) // 2)
        padded = np.zeros((max(height, have_h), max(width, have_w), 3), dtype=np.uint8)
        padded[top : top + have_h, left : left + have_w] = pixels
        pixels = padded
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _table(spec: Preprocessing) -> NDArray[np.float32]:
    """(3, 256): the value of each grey level of each channel, rounded where transformers rounds."""
    levels = (np.arange(256, dtype=np.float64) * spec.scale).astype(np.float32)
    mean, std = np.array(spec.mean, dtype=np.float32), np.array(spec.std, dtype=np.float32)
    return np.asarray((levels[None, :] - mean[:, None]) / std[:, None], dtype=np.float32)
