"""With nothing to be learnt, a score is at chance: states and places are shuffled, together, over samples that keep their embeddings.

What is measured of each training is how much its score exceeds the mean score of the very same predictions over all
permutations of the truth, so that neither the mixture of states nor where they lie adds to the noise.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rows import examples_of

from geo_embed.answers import Predictions, Truth
from geo_embed.config import Model, Training
from geo_embed.fitting.examples import find_prior
from geo_embed.fitting.fit import Dataset, FittedHeads, Split, fit_splits
from geo_embed.geography import haversine_km
from geo_embed.heads.predictor import Panel
from geo_embed.metrics import competition_score, error_km, state_credit, top_states
from geo_embed.prediction.combine import LEARNT
from geo_embed.prediction.ensemble import _cross_fit

SAMPLES, TRAININGS = 120, 40
# Standard errors beyond which an excess is none of chance.
SURE = 2.5
PLAIN = {
    "preset": "pigeon",
    "epochs": 16,
    "patience": 16,
    "batch_size": 16,
    "learning_rate": 0.01,
}
NETWORK = {"head_hidden": 12, "fusion": "average"}


def chance(predictions: Predictions, truth: Truth) -> float:
    """The mean score of predictions over all permutations of the truth."""
    ranked, labels = top_states(predictions.probabilities), predictions.labels.encode(truth.state_idx)
    credit = np.mean([state_credit(ranked, np.full(len(labels), label)).mean() for label in labels])
    km = np.mean(
        [
            haversine_km(
                predictions.latitude, predictions.longitude, *np.full((2, len(labels)), [[lat], [lon]])
            ).mean()
            for lat, lon in zip(truth.latitude, truth.longitude, strict=True)
        ]
    )
    return float(0.7 * credit + 0.3 * (1 - km / 5000))


def excess(predictions: Predictions, truth: Truth) -> float:
    ranked, labels = top_states(predictions.probabilities), predictions.labels.encode(truth.state_idx)
    return competition_score(ranked, labels, error_km(predictions, truth))[0] - chance(predictions, truth)


def shuffled(seed: int, count: int = 1, **settings: Any) -> tuple[list[FittedHeads], Truth]:
    """Trainings from several seeds on one set of shuffled samples, and the truth of those that were held out."""
    examples, random = examples_of(SAMPLES, seed), np.random.default_rng(1000 + seed)
    order = random.permutation(SAMPLES)
    examples = replace(examples, labels=examples.labels[order], truth=examples.truth.take(order))
    val = np.zeros(SAMPLES, dtype=bool)
    val[random.permutation(SAMPLES)[: SAMPLES // 4]] = True
    model = NETWORK | {key: value for key, value in settings.items() if key in Model.model_fields}
    training = PLAIN | {key: value for key, value in settings.items() if key in Training.model_fields}
    dataset = Dataset(examples, find_prior(examples, ~val), torch.device("cpu"))
    fitted = fit_splits(
        dataset,
        [Split(1 + seed * count + k, 0, ~val, val) for k in range(count)],
        Model.model_validate(model),
        Training.model_validate(training | {"seed": seed, "split_seed": seed}),
    )
    return fitted, examples.truth.take(val)


def errors_above(excesses: list[float]) -> float:
    """How many standard errors a mean lies above 0."""
    values: NDArray[np.float64] = np.array(excesses)
    return float(values.mean() / (values.std(ddof=1) / len(values) ** 0.5))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "geocells", "cell_samples": 8, "point": "median", "refine": True, "epochs": 8},
    ],
    ids=["plain", "refined geocells"],
)
def test_what_is_reported_is_at_chance_where_what_was_chosen_is_above(settings: dict[str, Any]) -> None:
    reported, as_chosen = [], []
    for seed in range(TRAININGS):
        (fitted,), truth = shuffled(seed, **settings)
        assert fitted.chosen is not None
        reported.append(excess(fitted.predictions, truth))
        as_chosen.append(excess(fitted.chosen, truth))
    assert errors_above(as_chosen) > SURE, "the detector is too weak to find a choice on the reported rows"
    assert errors_above(reported) < SURE


@pytest.mark.slow
def test_the_best_preset_is_at_chance() -> None:
    excesses = []
    for seed in range(10):
        (fitted,), truth = shuffled(seed, preset="best", budget_seconds=0.5)
        assert fitted.chosen is None
        excesses.append(excess(fitted.predictions, truth))
    assert errors_above(excesses) < SURE


def test_calibrated_answers_are_at_chance() -> None:
    excesses: dict[str, list[float]] = {"temperature": [], "vector": []}
    for seed in range(TRAININGS):
        (fitted,), truth = shuffled(seed, epochs=2)
        predictions = fitted.predictions
        labels = predictions.labels.encode(truth.state_idx)
        panel = Panel([fitted.heads])
        for kind, values in excesses.items():
            calibrated = panel.calibrate(predictions.probabilities, labels, kind, seed=seed)
            values.append(excess(replace(predictions, probabilities=calibrated), truth))
    for kind, values in excesses.items():
        assert errors_above(values) < SURE, kind


def test_ensembles_of_plain_runs_with_learnt_weights_are_at_chance() -> None:
    excesses: dict[Any, list[float]] = {method: [] for method in (*LEARNT, "average")}
    for seed in range(TRAININGS // 2):
        fitted, truth = shuffled(seed, 3, epochs=6)
        members = [part.predictions for part in fitted]
        for method, values in excesses.items():
            *_, predictions = _cross_fit(method, members, truth, "auto")
            values.append(excess(predictions, truth))
    for method, values in excesses.items():
        assert errors_above(values) < SURE, method
