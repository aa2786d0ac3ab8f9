"""A run that stays in memory: its backbone and its heads, loaded once, when they are first needed."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions
from geo_embed.backbones.weights import find_backbone
from geo_embed.config import Config
from geo_embed.devices import pick_device, torch_switches
from geo_embed.errors import GeoError
from geo_embed.explorer.space import Embedder, embedder_of
from geo_embed.prediction.pictures import embed_places, predict_embedded
from geo_embed.reporting.weights import weights_of
from geo_embed.runs.backbone import Inputs, inputs_of, load_backbones_of
from geo_embed.runs.recipe import load_ensemble, load_heads
from geo_embed.runs.run import Run, check_not_replaced

if TYPE_CHECKING:
    from geo_embed.backbones.backbone import Backbone
    from geo_embed.heads.predictor import Panel

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Spread:
    """Where a sample may be: P (K,) of places (K,) in degrees, which are cells or classes."""

    kind: str
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    probability: NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """A run's answer for one place.

    Attributes:
        predictions: of that place alone.
        spread: where it may be.
        vector: (W,) the place in the learnt space.
        weights: (V,) what each view weighs, as shares, NaN of a place without views; None where the run doesn't weigh them.
    """

    predictions: Predictions
    spread: Spread
    vector: NDArray[np.float32]
    weights: NDArray[np.float64] | None


class RunInMemory:
    """For any number of threads; pictures are answered one place at a time.

    Args:
        config: the settings of this machine.
        run: with its paths and device.
    """

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self._loading, self._answering = threading.Lock(), threading.Lock()
        self._heads: dict[str, Panel] = {}
        self._towers: list[Backbone] = []
        self._embedder: Embedder | None = None

    @cached_property
    def inputs(self) -> Inputs:
        """What the run answers from. Raises GeoError as `inputs_of`."""
        return inputs_of(self.run)

    def why_not(self) -> str | None:
        """Why pictures can't be answered, as far as can be told without loading anything; None where nothing speaks against it."""
        try:
            for source in (sources[0] for sources in self.inputs.by_backbone):
                if source["weights_sha256"] is None:
                    return f"the run was fitted on imported embeddings ({source['backbone']}): what made them isn't known here"
                find_backbone(source["name"], download=False)
        except GeoError as error:
            return f"{error}{f'; {error.hint}' if error.hint else ''}"
        return None

    def heads_of(self, run: Run) -> "Panel":
        """The heads of the run, or of a member."""
        with self._loading:
            key, device = str(run.path), pick_device(self.run.config.model.device, float64=True)
            if key not in self._heads:
                heads = load_heads(run).to(device).eval()
                check_not_replaced(self.run)
                self._heads[key] = heads
            return self._heads[key]

    def towers(self) -> "list[Backbone]":
        """The backbones. Raises GeoError where one isn't to be had, or is another one than the run was fitted on."""
        with self._loading:
            if not self._towers:
                towers = load_backbones_of(self.run, pick_device(self.config.model.device))
                check_not_replaced(self.run)
                self._towers = towers
            return self._towers

    def embedder(self) -> Embedder:
        """What takes embeddings to the learnt space."""
        if self._embedder is None:
            self._embedder = embedder_of(self.run, self.heads_of)
        return self._embedder

    def answer_pictures(self, pictures: Mapping[str, Pixels]) -> Answered:
        """The answer for one place, by pixels (H, W, 3) of some of its views.

        Raises:
            GeoError: the backbone can't be loaded, or an embedding isn't finite.
        """
        views = self.run.config.model.view_names
        place = [pictures.get(view) for view in views]
        towers = self.towers()
        with self._answering, torch_switches(self.config.model):
            variants = embed_places(self.config, self.run, [place], towers, self.inputs.by_backbone)
            predictions = predict_embedded(self.config, self.run, variants, self.heads_of, inputs=self.inputs)
            values, present = variants[0]
            # Of an ensemble's members one has the learnt space, and may look through fewer backbones than all together.
            values = self.inputs.take(self.embedder().run, values)
            return self._answered(predictions, values, present)

    def answer_embeddings(
        self, predictions: Predictions, values: NDArray[Any], present: NDArray[np.bool_]
    ) -> Answered:
        """What else there is to say of a sample whose prediction is known, by its embeddings (1, V, D), of which some are there (1, V)."""
        with torch_switches(self.config.model):
            return self._answered(predictions, values, present)

    def _answered(
        self, predictions: Predictions, values: NDArray[Any], present: NDArray[np.bool_]
    ) -> Answered:
        embedder = self.embedder()
        vector = embedder.vectors(values, present)[0]
        spread = self._spread(predictions, values, present)
        return Answered(predictions, spread, vector, self._weights(values, present))

    def _weights(self, values: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[np.float64] | None:
        # An ensemble weighs runs, not views.
        if load_ensemble(self.run) is not None or present.shape[1] == 1:
            return None
        leaves = self.heads_of(self.run).leaves(self.run.config.training)
        weights = weights_of([(heads, weight) for heads, weight, _ in leaves], values, present)
        return None if weights is None else weights.shares[0]

    def _spread(self, predictions: Predictions, values: NDArray[Any], present: NDArray[np.bool_]) -> Spread:
        import torch

        # An ensemble's members may each have cells of their own, and are combined by more than their cells.
        if load_ensemble(self.run) is None and present.any():
            device = pick_device(self.run.config.model.device, float64=True)
            with torch.inference_mode():
                spread = self.heads_of(self.run).spread(
                    torch.from_numpy(values).to(device), torch.from_numpy(present).to(device)
                )
            if spread is not None:
                from geo_embed.geography import to_degrees

                centres, shares = (part.double().cpu().numpy() for part in spread)
                return Spread("cells", *to_degrees(centres), shares[0])
        return spread_over_classes(self.run, predictions)


def spread_over_classes(run: Run, predictions: Predictions) -> Spread:
    """Where the first sample may be, by its classes alone."""
    latitude, longitude = run.read_centroids().T
    return Spread("classes", latitude, longitude, predictions.probabilities[0].astype(np.float64))
