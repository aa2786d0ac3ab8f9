"""Pictures in whatever form they are at hand, through a backbone to embeddings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.backbone import Backbone
from geo_embed.config import Config, OnDamagedImage
from geo_embed.console import progress, warn
from geo_embed.data import images
from geo_embed.devices import default_batch_size, dtype_name, keep_freed_memory, pick_device, pick_dtype
from geo_embed.errors import GeoError
from geo_embed.settings import get_config

if TYPE_CHECKING:
    import torch

# A PIL image, a file's path, a file's bytes, or pixels (H, W, 3) uint8.
Picture: TypeAlias = Image.Image | str | Path | bytes | NDArray[np.uint8]

FORMS = "a PIL image, a path, a file's bytes, or a uint8 array (height, width, 3)"


@dataclass(frozen=True, repr=False)
class NotebookBackbone(Backbone):
    """A backbone, as every function takes it, that embeds pictures by itself. `load_backbone` gives one.

    Attributes:
        here: the settings of this machine: `inference`.
    """

    here: Config

    def embed(self, pictures: Iterable[Picture]) -> NDArray[np.float32]:
        """Raw embeddings (N, D) float32 of N pictures, not scaled to unit length: what `geo extract` caches, to the precision that it keeps.

        Args:
            pictures: a PIL image, a path, a file's bytes or a uint8 array (height, width, 3) each, `inference.batch_size` in a pass; or
                one alone, for one row. The row of a damaged picture that the settings skip is NaN.

        Raises:
            GeoError: none at all, what is no picture, can't be read, or is damaged and may not be; or an embedding isn't finite.
        """
        items = as_items(pictures, "")
        if not items:
            raise GeoError("0 pictures", hint=f"a picture is {FORMS}")
        import torch

        # As an extraction does: 8 % less of the processor's time with a ViT-B/32, for 50 MB that stay with the process.
        if self.device.type == "cpu":
            keep_freed_memory()
        embedded = np.full((len(items), self.dim), np.nan, dtype=np.float32)
        size = self.here.inference.batch_size or default_batch_size(self.device)
        with (
            progress("embed", len(items), "pictures", self.here.tracking.progress_seconds) as advance,
            torch.inference_mode(),
        ):
            for start in range(0, len(items), size):
                rows, pixels = [], []
                for row, item in enumerate(items[start : start + size], start):
                    read = read_pixels(
                        item, f"picture {row}", [self.preprocessing], self.here.inference.with_damaged
                    )
                    if read is not None:
                        rows.append(row)
                        pixels += read
                if rows:
                    embedded[rows] = embed_pixels(self, torch.from_numpy(np.stack(pixels)).to(self.device))
                advance(min(size, len(items) - start))
        return embedded

    def __repr__(self) -> str:
        precision = dtype_name(self.dtype)
        return f"<backbone {self.name}: {self.feature} of {self.dim} numbers, {precision} on {self.device}>"


def load_backbone(name: str | Path | None = None, *, config: Config | None = None) -> NotebookBackbone:
    """A backbone by name, which embeds pictures: `load_backbone("geolocal/StreetCLIP").embed([picture, …])`.

    Args:
        name: a hub id or a model directory; default: that of the settings.
        config: `model` (device, dtype, feature, exact) and `inference`; default `get_config()`.

    Raises:
        GeoError: it isn't to be had, or no backbone.
    """
    here = config or get_config()
    model = here.model if name is None else here.model.model_copy(update={"backbone_name": str(name)})
    device = pick_device(model.device)
    loaded = backbones.load_backbone(model, device, pick_dtype(model.dtype, device))
    return NotebookBackbone(
        **{attribute.name: getattr(loaded, attribute.name) for attribute in fields(Backbone)}, here=here
    )


def is_picture(item: object) -> bool:
    """Whether this is one picture, or means to be, and no list of them."""
    if isinstance(item, np.ndarray):
        return item.dtype.kind not in "OSU" and item.ndim < 4
    return isinstance(item, Image.Image | str | Path | bytes | bytearray | memoryview)


def as_items(pictures: Any, where: str) -> list[Any]:
    """What there is to be looked through, pictures or places of them. Raises GeoError for what can't be."""
    if is_picture(pictures):
        return [pictures]
    # A table's names would pass for paths.
    rows = pictures.to_numpy() if hasattr(pictures, "to_numpy") else pictures
    if not isinstance(rows, Iterable):
        raise GeoError(
            f"a {type(pictures).__name__} is no picture", where=where, hint=f"a picture is {FORMS}"
        )
    return list(rows)


def read_pixels(
    picture: Picture, where: str, specs: Sequence[images.Preprocessing], with_damaged: OnDamagedImage
) -> list[images.Pixels] | None:
    """Pixels (3, H, W) uint8 of a picture, decoded once and resized as each of some backbones wants them.

    Args:
        picture: in any of its forms.
        where: its place among others; a file's is its path.
        specs: what the backbones want.
        with_damaged: what to do with one that decodes with a loss.

    Returns:
        None for a damaged picture that is to be left out.

    Raises:
        GeoError: it can't be read, is no picture, or is damaged and may not be.
    """
    where = str(picture) if isinstance(picture, str | Path) else where
    try:
        read = _decode(picture, where, with_damaged)
        return None if read is None else [images.resize(read, spec) for spec in specs]
    except OSError as error:
        raise GeoError(f"can't read the picture: {error.strerror or error}", where=where) from error
    except images.UnreadableImage as error:
        raise GeoError(f"can't read the picture: {error}", where=where) from error


def embed_pixels(
    tower: Backbone, pixels: "torch.Tensor", features: Sequence[str | None] = (None,)
) -> NDArray[np.float32]:
    """Embeddings (B, D) of pixels (B, 3, H, W) uint8 on the tower's device: of one pass these features of it, side by side; None is its
    own. Raises GeoError where one isn't finite.
    """
    normal = images.normalise(pixels, tower.preprocessing, tower.dtype)
    if list(features) == [None]:
        embedded: NDArray[np.float32] = backbones.embed(tower, normal).float().cpu().numpy()
    else:
        by_feature = backbones.embed_features(tower, normal)
        embedded = np.concatenate(
            [by_feature[feature or tower.feature].float().cpu().numpy() for feature in features], axis=1
        )
    if not np.isfinite(embedded).all():
        raise GeoError(
            "the backbone gave NaN or infinity",
            where=tower.name,
            hint="try --set model.dtype=float32; if that gives the same, the weights are damaged",
        )
    return embedded


def _decode(picture: Picture, where: str, with_damaged: OnDamagedImage) -> images.Pixels | None:
    """RGB (H, W, 3); None for a damaged picture that is to be left out."""
    if isinstance(picture, Image.Image):
        return images.of_pil(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise GeoError(
                f"an array of {picture.dtype} and shape {picture.shape} is no picture",
                where=where,
                hint="give uint8 (height, width, 3), red first; or let PIL make a picture of it",
            )
        return np.ascontiguousarray(picture)
    if isinstance(picture, str | Path):
        data = images.read_picture(Path(picture))
    elif isinstance(picture, bytes | bytearray | memoryview):
        data = bytes(picture)
    else:
        raise GeoError(
            f"a {type(picture).__name__} is no picture",
            where=where,
            hint=f"a picture is {FORMS}; None where a view is missing",
        )
    try:
        return images.decode(data)
    except images.DamagedImage as error:
        if with_damaged == "fail":
            hint = "--on-damaged-image accept takes it as it is, skip does without it"
            raise GeoError(f"the picture is {error}", where=where, hint=hint) from error
        warn(f"{where} is {error}; it is {'left out' if with_damaged == 'skip' else 'taken as it is'}")
        return None if with_damaged == "skip" else images.decode(data, accept_damage=True)
