"""What a report is made from: a run, its answers for the samples it held out, and the training places around them."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.config import Config
from geo_embed.console import harmless
from geo_embed.data.samples import Samples
from geo_embed.data.spatial import resampling_groups
from geo_embed.errors import GeoError
from geo_embed.metrics import error_km, state_credit, top_states
from geo_embed.prediction.evaluate import split_predictions
from geo_embed.prediction.results import per_sample
from geo_embed.runs.recipe import Ensemble, load_ensemble
from geo_embed.runs.run import Run, on_this_machine
from geo_embed.runs.samples import load_samples_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Evidence:
    """A run and its N held-out samples.

    Attributes:
        run: with the paths of this machine.
        predictions, truth: of the held-out samples.
        samples: the train split; None where its CSV can't be read, and then `why_no_samples` says why.
        ensemble: the run's members, if it has some.
    """

    run: Run
    predictions: Predictions
    truth: Truth
    ensemble: Ensemble | None
    samples: Samples | None
    why_no_samples: str = ""

    def __len__(self) -> int:
        return len(self.truth)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """C class names, as they can be shown."""
        return tuple(harmless(name) for name in self.predictions.labels.names)

    @cached_property
    def ids(self) -> list[str]:
        """N sample ids, as they can be shown."""
        return [harmless(sample_id) for sample_id in self.predictions.sample_id]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) true classes."""
        return self.predictions.labels.encode(self.truth.state_idx)

    @cached_property
    def ranked(self) -> NDArray[np.int64]:
        """(N, 5 or C) classes, the most probable first."""
        return top_states(self.predictions.probabilities)

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """(N,) top probability."""
        top: NDArray[np.float32] = self.predictions.probabilities[np.arange(len(self)), self.ranked[:, 0]]
        return top

    @cached_property
    def km(self) -> NDArray[np.float64]:
        """(N,) distance of each predicted point from the true one."""
        return error_km(self.predictions, self.truth)

    @cached_property
    def credit(self) -> NDArray[np.float64]:
        """(N,) state credit."""
        return state_credit(self.ranked, self.labels)

    @cached_property
    def groups(self) -> NDArray[np.int64] | None:
        """What a bootstrap draws: groups (N,) where these were held out whole, else None."""
        return resampling_groups(self.truth.latitude, self.truth.longitude, self.run.config.training)

    @cached_property
    def table(self) -> "pd.DataFrame":
        """`per_sample` of the N samples."""
        return per_sample(self.predictions, self.truth)

    @property
    def kind(self) -> str:
        """What the run is."""
        if self.ensemble is not None:
            return "ensemble"
        return "fine-tuned" if "init" in self.run.provenance else "heads"


def why(error: GeoError) -> str:
    """What is wrong and what to do, as a sentence on a page."""
    return harmless(" ".join(part for part in (f"{error}.", error.hint and f"{error.hint}.") if part))


def gather(config: Config, run: Run) -> Evidence:
    """Everything about a run that its report looks at.

    Args:
        config: paths and device.
        run: any run.

    Raises:
        GeoError: its held-out predictions are absent or damaged.
    """
    run = on_this_machine(run, config.paths, config.model.device)
    predictions, truth = split_predictions(run, "val", config.paths, config.model.device)
    samples, reason = None, ""
    try:
        samples = load_samples_of(run, "train")
    except GeoError as error:
        reason = why(error)
    return Evidence(run, predictions, truth, load_ensemble(run), samples, reason)
