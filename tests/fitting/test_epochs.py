"""Held-out samples that choose an epoch have no say in the one that they are answered by."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rows import examples_of

from geo_embed.answers import Truth
from geo_embed.config import Model, Training
from geo_embed.fitting.epochs import EpochChoice, deal_parts, scores_without
from geo_embed.fitting.examples import Examples, find_prior
from geo_embed.fitting.fit import Dataset, FittedHeads, Split, fit_splits
from geo_embed.metrics import metrics


def relabelled(examples: Examples, rows: NDArray[Any], seed: int) -> Examples:
    """The same, where some have another state and lie elsewhere."""
    random = np.random.default_rng(seed)
    labels, lat, lon = examples.labels.copy(), examples.truth.latitude.copy(), examples.truth.longitude.copy()
    labels[rows] = random.integers(5, size=len(labels[rows]))
    lat[rows], lon[rows] = random.uniform(20, 60, len(lat[rows])), random.uniform(-120, -70, len(lat[rows]))
    return replace(examples, labels=labels, truth=Truth(labels, lat, lon))


def fitted(examples: Examples, split: Split, model: Model, training: Training) -> FittedHeads:
    dataset = Dataset(examples, find_prior(examples, split.train), torch.device("cpu"))
    return fit_splits(dataset, [split], model, training)[0]


@pytest.mark.parametrize(
    "settings",
    [{}, {"head": "geocells", "cell_samples": 8, "point": "median", "refine": True}],
    ids=["epoch", "refinement"],
)
def test_a_held_out_samples_own_truth_has_no_part_in_its_answer(settings: dict[str, Any]) -> None:
    examples = examples_of(160, 0)
    val = np.arange(160) % 4 == 0
    split = Split(0, 0, ~val, val)
    shape = {key: value for key, value in settings.items() if key != "refine"}
    model = Model.model_validate({"head_hidden": 8, "fusion": "average", **shape})
    training = Training.model_validate(
        {
            "preset": "pigeon",
            "epochs": 12,
            "patience": 4,
            "batch_size": 16,
            "learning_rate": 0.03,
            "refine": settings.get("refine", False),
        }
    )
    before = fitted(examples, split, model, training)
    part = deal_parts(int(val.sum()), training.split_seed)
    others_moved = 0
    for p in range(5):
        rows = np.flatnonzero(val)[part == p]
        after = fitted(relabelled(examples, rows, p), split, model, training)
        for name in ("probabilities", "latitude", "longitude"):
            answers, again = (getattr(fit.predictions, name) for fit in (before, after))
            assert np.array_equal(answers[part == p], again[part == p]), (p, name)
            others_moved += int(not np.array_equal(answers, again))
    assert others_moved, "nothing was chosen by anybody: this test tells nothing"


def test_the_scores_of_the_others_are_those_of_the_metrics() -> None:
    examples = examples_of(40, 1)
    val = np.arange(160)[:40] >= 0
    split = Split(0, 0, val, val)
    predictions = fitted(
        examples, split, Model(head_hidden=8), Training(preset="pigeon", epochs=1)
    ).predictions
    part = deal_parts(40, 3)
    assert sorted(np.bincount(part)) == [8] * 5
    wanted = [metrics(predictions.take(part != p), examples.truth.take(part != p))["score"] for p in range(5)]
    assert scores_without(predictions, examples.truth, part) == pytest.approx(wanted, abs=1e-12)
    assert scores_without(
        predictions.take(np.array([0])), examples.truth.take(np.array([0])), np.array([0])
    ) == [-math.inf]


def test_samples_that_are_alike_choose_together() -> None:
    alike = np.arange(60) // 3
    part = deal_parts(60, 0, alike)
    assert all(len(set(part[alike == group])) == 1 for group in range(20))
    assert set(part) == set(range(5))


def stopping(scores: Sequence[float], patience: int) -> tuple[int, int]:
    """One rule alone: the epoch that it keeps, and the one after which it ends, or the last."""
    best = 0
    for epoch, score in enumerate(scores, start=1):
        if best == 0 or score > scores[best - 1]:
            best = epoch
        if epoch - best >= patience:
            return best, epoch
    return best, len(scores)


def test_each_rule_keeps_what_it_would_have_kept_alone_and_all_are_waited_for() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        patience, rules = int(random.integers(1, 5)), int(random.integers(1, 7))
        scores = random.integers(0, 6, size=(20, rules)) / 5
        choice, epochs = EpochChoice(patience), 0
        while not choice.ended and epochs < 20:
            choice.note(epochs + 1, scores[epochs].tolist())
            epochs += 1
        alone = [stopping(scores[:, rule].tolist(), patience) for rule in range(rules)]
        assert choice.best == [best for best, _ in alone]
        assert epochs == max(end for _, end in alone)
