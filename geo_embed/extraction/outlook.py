"""How long an extraction will take, said once, as soon as its first batches tell."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from geo_embed.backbones.pace import seconds_per_picture
from geo_embed.config import Model
from geo_embed.console import counted, duration, say
from geo_embed.devices import bfloat16_gain, dtype_name
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch

# The first batch of a process is slower than those after it; less than so many seconds of work tell little.
_BATCHES, _SECONDS = 2, 2.0
# What takes less needs no warning (seconds).
_LONG = 30.0
# From so many times the speed on, another precision is worth a store of its own.
_WORTH_IT = 1.5


@dataclass
class Outlook:
    """Watches the images of an extraction go by.

    Attributes:
        label: of the extraction.
        total: images.
        batch_size: images.
        device: where the backbone runs.
        dtype: its precision.
        model: the backbone, to be tried in another precision.
    """

    label: str
    total: int
    batch_size: int
    device: "torch.device"
    dtype: "torch.dtype"
    model: Model
    _began: tuple[float, int, int] | None = field(default=None, init=False)
    _is_said: bool = field(default=False, init=False)

    def look(self, done: int, computed: int) -> None:
        """Take note of images that are done, and of how many of them were computed, neither copied nor found."""
        if self._is_said or computed < self.batch_size:
            return
        # From the end of the first batch on: until then the backbone was loaded.
        now = time.monotonic()
        if self._began is None:
            self._began = now, done, computed
            return
        began, done_before, computed_before = self._began
        if computed - computed_before < _BATCHES * self.batch_size or now - began < _SECONDS:
            return
        self._is_said = True
        per_second = (done - done_before) / (now - began)
        left = (self.total - done) / per_second
        if left >= _LONG:
            precision = dtype_name(self.dtype)
            pace = f"{per_second:,.{0 if per_second >= 10 else 1}f} images/s"
            say(
                f"{self.label}: about {duration(left)} for the {counted(self.total - done, 'image that is', 'images that are')} left, "
                f"{pace} on {_name(self.device)} in {precision}"
            )
            if precision == "float32" and bfloat16_gain(self.device) >= _WORTH_IT:
                self._say_in_bfloat16(left)

    def _say_in_bfloat16(self, left: float) -> None:
        """What another precision would save, by a few layers: for seconds, where minutes or hours lie ahead."""
        import torch

        try:
            seconds = [seconds_per_picture(self.model, self.device, d) for d in (self.dtype, torch.bfloat16)]
        # One of timm's, whose layers aren't known.
        except GeoError:
            say("this processor is faster in bfloat16: --dtype bfloat16, with a store of its own")
            return
        if seconds[0] / seconds[1] >= _WORTH_IT:
            say(
                f"in bfloat16 the rest would take this processor about {duration(left * seconds[1] / seconds[0])}: "
                "--dtype bfloat16, with a store of its own"
            )


def _name(device: "torch.device") -> str:
    if device.type != "cuda":
        return device.type
    import torch

    return f"{device.type} ({torch.cuda.get_device_name(device)})"
