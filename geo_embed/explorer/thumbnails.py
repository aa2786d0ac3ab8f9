"""Pictures of the manifest, made small; nothing is read whose name no row of the CSV has."""

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from geo_embed.cache.store import hash_content
from geo_embed.data.images import UnreadableImage, decode
from geo_embed.errors import GeoError
from geo_embed.explorer.scene import Scene, csv_of
from geo_embed.reporting.subject import shrink

LEAST_SIDE, MOST_SIDE = 16, 2048
_QUALITY = 85
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG, and what changes when it does."""

    jpeg: bytes
    tag: str


class Thumbnails:
    """Made when they are asked for, the latest kept in memory; for any number of threads.

    Args:
        scene: whose samples they show.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def of(self, split: str, sample_id: str, view: str, side: int, tag: str = "") -> Thumbnail | None:
        """A view of a sample.

        Args:
            split: `val`, `train` or `test`.
            sample_id, view: of the manifest.
            side: the longer side's most pixels.
            tag: of the one that whoever asks has already: then its bytes are left out.

        Returns:
            None where the manifest has no such sample, view or picture, or the picture isn't at hand.

        Raises:
            GeoError: it can't be read.
        """
        csv = csv_of(split)
        row = self._scene.place_in_csv(csv, sample_id)
        if row is None:
            return None
        samples = self._scene.samples(csv)
        if view not in samples.view_names:
            return None
        name = str(samples.images[row, samples.view_names.index(view)])
        if not name:
            return None
        try:
            data = samples.pictures.read(name)
            etag = f'"{hash_content(data):016x}-{side}"'
            if tag == etag:
                return Thumbnail(b"", etag)
            return Thumbnail(self._kept_or_made(etag, data, side), etag)
        except FileNotFoundError:
            return None
        except UnreadableImage as error:
            raise GeoError(f"this picture can't be read: {error}", where=f"{sample_id}, {view}") from error
        except OSError as error:
            raise GeoError(
                f"this picture can't be read: {error.strerror}", where=f"{sample_id}, {view}"
            ) from error

    def _kept_or_made(self, tag: str, data: bytes, side: int) -> bytes:
        with self._lock:
            if tag in self._kept:
                self._kept.move_to_end(tag)
                return self._kept[tag]
        made = _to_jpeg(data, side)
        with self._lock:
            if tag not in self._kept:
                self._kept[tag] = made
                self._bytes += len(made)
            while self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def _to_jpeg(data: bytes, side: int) -> bytes:
    """A picture written anew, small: no EXIF, which may hold places and names, gets in."""
    from PIL import Image

    pixels = shrink(np.ascontiguousarray(decode(data, accept_damage=True)), side)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
