"""Image bytes to pixels for the backbone: decode, resize, normalise.

uint8 all the way to the device; only `normalise` makes floats. Two resizes exist: torch's antialiased bicubic
(within two grey levels of PIL, and faster), and PIL's own, bit-equal to transformers' processor.
"""

import io
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]

# 100 megapixels are 300 MB once decoded: more than a street view has, less than a decoding thread can bear.
MAX_PIXELS = 100_000_000


# How a file becomes pixels. One more whenever any picture's pixels become others than they were: embeddings made before are then of
# other pixels. 1: up to version 0.1.0. 2: grey levels by the file's own depth and sample format.
PICTURE_SEMANTICS: int = 2


class UnreadableImage(Exception):
    """A picture that can't be decoded; the text is the reason, for people."""


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


def decode(data: bytes) -> Pixels:
    """Image bytes to RGB (H, W, 3), upright by EXIF, transparency laid over white, 16-bit scaled to 8.

    Raises:
        UnreadableImage: with the reason.
    """
    pixels = _decode_plain_jpeg(data) if data[:2] == b"\xff\xd8" else None
    return _decode_any(data) if pixels is None else pixels


def find_fault(path: Path) -> str:
    """Why a picture can't be read, looking as little as possible; empty where it seems fine.

    A JPEG with both its markers passes; anything else is decoded.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
            if start == b"\xff\xd8":
                file.seek(-2, os.SEEK_END)
                if file.read(2) == b"\xff\xd9":
                    return ""
            file.seek(0)
            decode(file.read())
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
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
    """(H, W, 3) to the backbone's (3, height, width): resize, then centre crop, zero-padded where too small."""
    size = resized_shape(pixels.shape[0], pixels.shape[1], spec)
    resized = _resize_pil(pixels, size, spec) if spec.resize == "pil" else _resize_torch(pixels, size, spec)
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


def _decode_plain_jpeg(data: bytes) -> Pixels | None:
    """Decode what simplejpeg decodes bit-equal to PIL; None for anything that needs a closer look."""
    import simplejpeg

    # EXIF or XMP may turn the picture, and CMYK needs PIL's inversion.
    if b"Exif\0\0" in data or b"tiff:Orientation" in data:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "GRAY") or height * width > MAX_PIXELS:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True), dtype=np.uint8)
    except ValueError:
        return None


def _decode_any(data: bytes) -> Pixels:
    if not data:
        raise UnreadableImage("zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImage(f"{width}×{height} pixels: more than {MAX_PIXELS:,}")
            image = ImageOps.exif_transpose(image)
            return np.asarray(_to_rgb(image), dtype=np.uint8)
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
        raise UnreadableImage(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # PIL clips 16-bit grey to white instead of scaling it.
        grey = np.asarray(image, dtype=np.uint32)
        return Image.fromarray((grey.clip(max=65535) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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
