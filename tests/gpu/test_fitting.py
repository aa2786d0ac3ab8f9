"""Stage 2 on a card: trainings that share a program end where each would have ended alone, and heads answer as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from rows import region_of, rows_of, tiny

from geo_embed.config import Config, Training
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.fit import fit_heads
from geo_embed.fitting.stacked import TrainingJob, stackable, train_all, train_stacked
from geo_embed.fitting.train import TrainedHeads, train
from geo_embed.prediction.predict import predict_split
from geo_embed.registry import FUSIONS, HEADS
from geo_embed.runs.run import load_run

if TYPE_CHECKING:
    from conftest import Country

# What may differ between trainings that share a program, all of it at once.
APART = (
    {"learning_rate": 3e-3, "weight_decay": 0.0, "state_weight": 0.8, "tau_km": 300.0},
    {"learning_rate": 1e-2, "weight_decay": 0.5, "state_weight": 2.0, "tau_km": 75.0},
    {"learning_rate": 1e-3, "weight_decay": 0.1, "gps_weight": 0.01, "cell_weight": 3.0},
)
# Each fusion and each kind of heads that is trained by steps, once.
PAIRS = (
    ("average", "separate"),
    ("concat", "hierarchical"),
    ("attention", "dual"),
    ("weighted", "separate"),
    ("transformer", "dual"),
    ("evidence", "geocells"),
)


def test_every_fusion_and_kind_of_heads_is_among_the_pairs() -> None:
    assert {fusion for fusion, _ in PAIRS} == set(FUSIONS.built_in)
    assert {kind for _, kind in PAIRS} == {kind for kind in HEADS.built_in if HEADS[kind].make.by_steps}


@pytest.fixture(scope="module")
def rows(device: torch.device) -> Rows:
    return _to(rows_of(), device)


def _to(rows: Rows, device: torch.device | str) -> Rows:
    return Rows(*(part.to(device) for part in (rows.views, rows.present, rows.labels, rows.points)))


def jobs_of(rows: Rows, kind: str, fusion: str, **changes: object) -> list[TrainingJob]:
    made = tiny(head=kind, fusion=fusion, dropout=0.2, directional=True, standardise=True)
    on_cpu = _to(rows, "cpu")
    base = {"epochs": 3, "batch_size": 40, "gps_loss": "haversine"} | changes
    return [
        TrainingJob(rows, region_of(on_cpu, made), made, Training.model_validate(base | apart), seed)
        for seed, apart in enumerate(APART)
    ]


def alone(job: TrainingJob) -> TrainedHeads:
    return train(job.rows, job.region, job.model, job.training, seed=job.seed)


@pytest.mark.parametrize(("fusion", "kind"), PAIRS)
def test_one_program_ends_where_single_trainings_end(rows: Rows, fusion: str, kind: str) -> None:
    jobs = jobs_of(rows, kind, fusion, view_dropout=0.2, view_swap=0.2)
    assert stackable(jobs)
    for job, stacked in zip(jobs, train_stacked(jobs), strict=True):
        single = alone(job)
        for actual, entry in zip(stacked.history, single.history, strict=True):
            assert actual == pytest.approx(entry, rel=1e-2)
        with torch.no_grad():
            answers, expected = (
                heads.predict(rows.views, rows.present) for heads in (stacked.heads, single.heads)
            )
        torch.testing.assert_close(answers[0], expected[0], rtol=0, atol=0.02)
        torch.testing.assert_close(answers[1], expected[1], rtol=0, atol=0.2)


def test_a_single_training_gives_the_same_bits_twice(rows: Rows) -> None:
    """On one machine, as on the CPU: everything random follows from the seed."""
    for kind, fusion in (("separate", "average"), ("geocells", "evidence")):
        job = jobs_of(rows, kind, fusion)[0]
        first, second = (alone(job).heads.state_dict() for _ in range(2))
        assert all(torch.equal(value, second[key]) for key, value in first.items()), kind


def test_a_card_shares_a_program_where_it_can(rows: Rows, device: torch.device) -> None:
    jobs = jobs_of(rows, "separate", "average")
    expected = train_stacked(jobs) if device.type == "cuda" else [alone(job) for job in jobs]
    for actual, wanted in zip(train_all(jobs), expected, strict=True):
        assert actual.history == wanted.history


@pytest.mark.parametrize("kind", tuple(HEADS.built_in))
def test_heads_fitted_on_a_card_answer_alike_on_the_cpu(
    country: Country,
    on_card: Config,
    tmp_path: Path,
    kind: str,
    record_property: Callable[[str, object], None],
) -> None:
    tuned = on_card.model_copy(
        update={
            "model": on_card.model.model_copy(update={"head": kind}),
            "training": on_card.training.model_copy(update={"epochs": 3, "refine": kind == "geocells"}),
        }
    )
    done = fit_heads(tuned, name="card")
    record_property("held-out score", f"{done.val['score']:.3f}")
    run = load_run(tuned.paths.runs_dir, "card")
    on_device, _ = predict_split(tuned, run, "test")
    on_cpu, _ = predict_split(country.config(tmp_path), run, "test")
    np.testing.assert_allclose(on_device.probabilities, on_cpu.probabilities, atol=1e-3)
    # Where two points are as good, rounding may take the other: a few may differ.
    apart = np.hypot(on_device.latitude - on_cpu.latitude, on_device.longitude - on_cpu.longitude)
    assert np.quantile(apart, 0.9) < 0.01


def test_seeds_folds_and_the_race_are_fitted_on_a_card(on_card: Config) -> None:
    training = on_card.training
    for name, changes in (
        ("many", {"folds": 2, "seeds": 2, "epochs": 2, "calibration": "vector"}),
        ("best", {"preset": "best", "budget_seconds": 1.0}),
    ):
        tuned = on_card.model_copy(update={"training": training.model_copy(update=changes)})
        done = fit_heads(tuned, name=name)
        assert 0 < done.val["score"] <= 1
        predictions, _ = predict_split(tuned, load_run(tuned.paths.runs_dir, name), "test")
        np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-4)
