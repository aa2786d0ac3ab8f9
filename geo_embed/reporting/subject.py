"""What figures of a run are drawn from: its answers for a split, the truth, the training places, the map, the pictures."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.config import Config
from geo_embed.console import counted, warn
from geo_embed.data import images
from geo_embed.data.samples import Samples, text_ids
from geo_embed.errors import GeoError
from geo_embed.prediction.evaluate import split_predictions
from geo_embed.reporting.order import by_geography, distances_between, middles
from geo_embed.reporting.outlines import Outlines, outlines
from geo_embed.reporting.plots.style import label
from geo_embed.reporting.projections import Projection, fit_projection
from geo_embed.runs.run import Run, on_this_machine
from geo_embed.runs.samples import load_samples_of
from geo_embed.runs.table import read_predictions

_KINDS = {"val": "held-out sample", "train": "training sample", "test": "test sample"}
# Pixels of a picture's longer side in a figure.
_LONGEST = 640


@dataclass(frozen=True)
class Subject:
    """A run and its answers for the N samples of a split; everything is read when it is first looked at.

    Attributes:
        run: with the paths and the device of this machine.
        split: `val`, `train` or `test`.
    """

    run: Run
    split: str

    @cached_property
    def _answers(self) -> tuple[Predictions, Truth | None]:
        if self.split != "test":
            config = self.run.config
            return split_predictions(self.run, self.split, config.paths, config.model.device)
        path = self.run.predictions_path("test")
        if not path.exists():
            raise GeoError(
                "the run has no predictions for the test samples yet",
                where=path,
                hint=f"geo predict {self.run.name} --split test",
            )
        return read_predictions(path, self.run.labels)

    @property
    def predictions(self) -> Predictions:
        """Of the N samples. Raises GeoError where they can't be read, or there are none."""
        if not len(self._answers[0]):
            raise GeoError(
                f"the run has no {_KINDS[self.split]}s: there is nothing to draw", where=self.run.path
            )
        return self._answers[0]

    @property
    def truth(self) -> Truth | None:
        """Of the same samples, where it is known."""
        return self._answers[1]

    @property
    def rows(self) -> str:
        """Which samples these are, for a title."""
        count, run = len(self.predictions), label(self.run.name, 60)
        if self.split == "train":
            return f"{counted(count, 'sample')} that run {run} was trained on"
        return f"{counted(count, _KINDS[self.split])} of run {run}"

    def known_truth(self) -> Truth:
        """The truth of the samples. Raises GeoError where it isn't known."""
        if self.truth is None:
            raise GeoError(
                f"the truth of the {_KINDS[self.split]}s isn't known",
                where=self.run.path,
                hint="draw those held out: --split val",
            )
        return self.truth

    @cached_property
    def samples(self) -> Samples:
        """The split's CSV: the held-out samples are in that of training. Raises GeoError where it can't be read."""
        return load_samples_of(self.run, "test" if self.split == "test" else "train")

    @cached_property
    def training(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Class (M,), latitude and longitude of the samples that the run learnt from; without their CSV those held out stand for them."""
        encoder = self.run.labels
        try:
            samples = load_samples_of(self.run, "train")
        except GeoError as error:
            warn(f"the training places aren't at hand, so the map is made of the samples drawn: {error}")
            truth = self.truth
        else:
            table = self.run.read_split()
            learnt = set(text_ids(table["sample_id"][table["part"] == "train"]))
            assert samples.truth is not None
            is_known = np.isin(samples.truth.state_idx, encoder.state_idx)
            rows = np.array([text in learnt for text in samples.sample_id], dtype=bool) & is_known
            truth = samples.truth.take(rows if rows.any() else is_known)
        if truth is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
        return encoder.encode(truth.state_idx), truth.latitude, truth.longitude

    @cached_property
    def drawn(self) -> Outlines:
        """Outlines of the classes."""
        return outlines(*self.training, self.run.labels.names)

    @cached_property
    def projection(self) -> Projection:
        """The map that shows them and the samples."""
        _, latitude, longitude = self.training
        if self.truth is not None:
            latitude, longitude = (
                np.append(latitude, self.truth.latitude),
                np.append(longitude, self.truth.longitude),
            )
        return fit_projection(self.drawn, latitude, longitude)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(C,) classes by geography."""
        return by_geography(distances_between(middles(*self.training, len(self.run.labels))))

    def row_of(self, sample_id: str) -> int:
        """Where a sample is among the N. Raises GeoError where it isn't."""
        rows = np.flatnonzero(self.predictions.sample_id == sample_id)
        if not len(rows):
            raise GeoError(
                f"{sample_id!r} is none of the {self.rows}",
                where="--sample",
                hint=f"one of them is {self.predictions.sample_id[0]}",
            )
        return int(rows[0])

    def views_of(self, row: int) -> tuple[NDArray[np.uint8] | str, ...]:
        """The pictures of a sample, view by view: (H, W, 3), small, or why there is none."""
        place = np.flatnonzero(self.samples.sample_id == self.predictions.sample_id[row])
        if not len(place):
            return tuple("the CSV no longer has this sample" for _ in self.samples.view_names)
        return tuple(_read(self.samples, str(name)) for name in self.samples.images[place[0]])


def subject_of(config: Config, run: Run, split: str) -> Subject:
    """What figures of a run are drawn from.

    Args:
        config: paths and device.
        run: any run.
        split: `val`, `train` or `test`.
    """
    return Subject(on_this_machine(run, config.paths, config.model.device), split)


def _read(samples: Samples, name: str) -> NDArray[np.uint8] | str:
    if not name:
        return "the CSV names no image"
    try:
        pixels = images.decode(samples.pictures.read(name), accept_damage=True)
    except FileNotFoundError:
        return f"no such file: {name}"
    except (OSError, GeoError, images.UnreadableImage) as error:
        return f"can't be read: {error}"
    return shrink(pixels, _LONGEST)


def shrink(pixels: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) with their longer side at most that, averaged."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(image)
