"""Pixels to embeddings: batches of one shape through the backbone, one filled while the device works on the other."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.backbone import Backbone
from geo_embed.data import images
from geo_embed.data.variants import AS_THEY_ARE, Variant
from geo_embed.devices import keep_freed_memory
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch

# Where embeddings of a batch belong, (row within the chunk, view) each, and by feature the embeddings (B, D) float32 on the device.
EmbeddedBatch = tuple[list[tuple[int, int]], dict[str, "torch.Tensor"]]


class Embedder:
    """Fills batches with pixels and passes them through the backbone, which is loaded when first needed.

    Two batches take turns, so that one can be filled while the device still reads the other. Nothing here waits for the
    device: embeddings stay on it until a chunk is written.

    Args:
        load: loads the backbone.
        spec: the shape of its pixels, and how they are normalised.
        device: where it runs.
        batch_size: images per pass.
        variant: what is done to every image first.
        compiled: by torch.compile, which passes one batch through the backbone while it is loaded.

    Attributes:
        load_seconds: how long loading took.
    """

    def __init__(
        self,
        load: Callable[[], Backbone],
        spec: images.Preprocessing,
        device: "torch.device",
        batch_size: int,
        variant: Variant = AS_THEY_ARE,
        *,
        compiled: bool = False,
    ) -> None:
        self.batch_size, self.load_seconds, self._variant = batch_size, 0.0, variant
        self._load, self._spec, self._device, self._compiled = load, spec, device, compiled
        self._backbone: Backbone | None = None
        self._forward: Callable[[Backbone, torch.Tensor], dict[str, torch.Tensor]] = backbones.embed_features
        # Two batches of pixels, and for each the event after which the device has read it.
        self._batches: list[torch.Tensor] = []
        self._read: list[Any] = [None, None]
        self._turn = 0
        # Floats to normalise into, on a CPU.
        self._normal: torch.Tensor | None = None
        self._places: list[tuple[int, int]] = []
        self._chunk: list[EmbeddedBatch] = []

    def add(self, pixels: images.Pixels, place: tuple[int, int]) -> None:
        """Take uint8 pixels (3, H, W) for a (row, view) of the present chunk; embed once a batch is full."""
        if self._backbone is None:
            self._backbone = self._prepare()
        if not self._places and self._read[self._turn] is not None:
            self._read[self._turn].synchronize()
        self._batches[self._turn].numpy()[len(self._places)] = pixels
        self._places.append(place)
        if len(self._places) == self.batch_size:
            self._embed(self._backbone)

    def finish_chunk(self) -> list[EmbeddedBatch]:
        """Embed what is left of the chunk, so that no batch straddles two; its embeddings, batch by batch."""
        if self._places and self._backbone is not None:
            self._embed(self._backbone)
        chunk, self._chunk = self._chunk, []
        return chunk

    def _prepare(self) -> Backbone:
        import torch

        started = time.monotonic()
        if self._device.type == "cpu":
            keep_freed_memory()
        backbone = self._load()
        shape = (self.batch_size, 3, self._spec.height, self._spec.width)
        pinned = self._device.type == "cuda"
        self._batches = [torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._normal = None if pinned else torch.zeros(shape)
        if self._compiled:
            self._forward = _compile(backbone, shape)
        self.load_seconds = time.monotonic() - started
        return backbone

    def _embed(self, backbone: Backbone) -> None:
        import torch

        from geo_embed.data.augment import change_pictures

        # Every batch has the same shape, whatever is left over from the one before it in the last rows: then an
        # embedding is the same to the last bit, whichever images share its batch.
        with torch.inference_mode():
            # Elsewhere nobody tells when a batch has been read, and it may be filled again: there is waited for the copy.
            is_cuda = self._device.type == "cuda"
            pixels = self._batches[self._turn].to(self._device, non_blocking=is_cuda)
            if is_cuda:
                self._read[self._turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._read[self._turn].record()
            # As `tta_views` changes them: the same bytes, on the same device.
            shown = torch.ones(len(pixels), 1, dtype=torch.bool, device=pixels.device)
            pixels = change_pictures(pixels[:, None], shown, self._variant)[:, 0]
            normal = images.normalise(pixels, self._spec, backbone.dtype, self._normal)
            count = len(self._places)
            embeddings = {
                name: values[:count].float() for name, values in self._forward(backbone, normal).items()
            }
        self._chunk.append((self._places, embeddings))
        self._places = []
        self._turn = 1 - self._turn


def _compile(
    backbone: Backbone, shape: tuple[int, ...]
) -> "Callable[[Backbone, torch.Tensor], dict[str, torch.Tensor]]":
    """`embed_features`, compiled for batches of this shape. Raises GeoError where it can't be: before anything is embedded."""
    import torch

    forward = torch.compile(backbones.embed_features, dynamic=False)
    try:
        with torch.inference_mode():
            forward(backbone, torch.zeros(shape, dtype=backbone.dtype, device=backbone.device))
    # A compiler that is missing or too old, and whatever of the backbone it can't take: each has exceptions of its own.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GeoError(
            f"torch.compile can't compile this backbone: {reason:.200}",
            where="inference.compile",
            hint="leave it out: --set inference.compile=false; on Linux it wants a C++ compiler, such as g++",
        ) from error
    return forward
