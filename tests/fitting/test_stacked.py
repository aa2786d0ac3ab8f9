"""Trainings that share a program end where each would have ended alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from rows import region_of, rows_of, tiny

from geo_embed.config import Training
from geo_embed.errors import GeoError
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.stacked import TrainingJob, stackable, train_all, train_stacked
from geo_embed.fitting.train import TrainedHeads, Validated, train
from geo_embed.heads.heads import Heads
from geo_embed.registry import FUSIONS, HEADS

ROWS = rows_of()
# What may differ between jobs, all of it at once.
APART = (
    {"learning_rate": 3e-3, "weight_decay": 0.0, "state_weight": 0.8, "score_weight": 0.1, "tau_km": 300.0},
    {"learning_rate": 1e-2, "weight_decay": 0.5, "state_weight": 2.0, "score_weight": 0.7, "tau_km": 75.0},
    {"learning_rate": 1e-3, "weight_decay": 0.1, "gps_weight": 0.01, "cell_weight": 3.0, "score_weight": 0.2},
)


def settings(**changes: object) -> Training:
    return Training.model_validate({"epochs": 3, "batch_size": 40, "gps_loss": "haversine"} | changes)


class Scores:
    """A validation that gives these scores, one after the other."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.asked = list(scores), 0

    def __call__(self, heads: Heads) -> Validated:
        assert not heads.training
        self.asked += 1
        return Validated({"val_score": self.scores[self.asked - 1]})


def job(
    seed: int, training: Training, rows: Rows = ROWS, validate: Any = None, **model: object
) -> TrainingJob:
    made = tiny(**model)
    return TrainingJob(rows, region_of(rows, made), made, training, seed, validate)


def alone(single: TrainingJob, validate: Any = None) -> TrainedHeads:
    return train(
        single.rows, single.region, single.model, single.training, seed=single.seed, validate=validate
    )


def close(stacked: TrainedHeads, wanted: TrainedHeads, tolerance: float = 2e-4) -> None:
    assert len(stacked.history) == len(wanted.history)
    for got, entry in zip(stacked.history, wanted.history, strict=True):
        assert got.keys() == entry.keys()
        for key, value in entry.items():
            assert got[key] == pytest.approx(value, rel=2e-3, abs=1e-5), key
    weights, state = stacked.heads.state_dict(), wanted.heads.state_dict()
    assert weights.keys() == state.keys()
    for key, value in state.items():
        mine = weights[key]
        if "qkv" in key and key.endswith("bias"):
            # Softmax doesn't see an offset of all keys: its gradient is rounding, which AdamW makes steps of full size of.
            (mine, value) = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (mine, value))
        torch.testing.assert_close(mine, value, rtol=1e-2, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")
    with torch.no_grad():
        for a, b in zip(
            stacked.heads.predict(ROWS.views, ROWS.present),
            wanted.heads.predict(ROWS.views, ROWS.present),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=0.02)
    assert not stacked.heads.training


@pytest.mark.parametrize(
    ("fusion", "kind"),
    itertools.product(
        tuple(FUSIONS.built_in), [kind for kind in tuple(HEADS.built_in) if HEADS[kind].make.by_steps]
    ),
)
def test_seeds_rates_decays_and_weights_side_by_side_are_three_trainings(fusion: str, kind: str) -> None:
    jobs = [
        job(
            seed, settings(**apart), head=kind, fusion=fusion, dropout=0.2, directional=True, standardise=True
        )
        for seed, apart in enumerate(APART)
    ]
    assert stackable(jobs)
    stacked = train_stacked(jobs)
    for single, got in zip(jobs, stacked, strict=True):
        close(got, alone(single))
    # Three trainings, not three times one.
    first, second = (next(iter(got.heads.states.parameters())) for got in stacked[:2])
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("kind", ["separate", "geocells"])
def test_average_fusion_is_stacked_once_fused_and_view_by_view(kind: str) -> None:
    for disturbed in ({}, {"view_dropout": 0.3, "view_swap": 0.3}):
        jobs = [
            job(seed, settings(**apart, **disturbed), head=kind, dropout=0.2)
            for seed, apart in enumerate(APART)
        ]
        for single, got in zip(jobs, train_stacked(jobs), strict=True):
            close(got, alone(single))


@pytest.mark.parametrize(
    "losses",
    [
        {"state_loss": "cross_entropy", "label_smoothing": 0.1, "class_weights": True},
        {"state_loss": "pigeon", "gps_loss": "smooth_l1"},
        {"gps_loss": "mse", "clip_norm": 0.05},
        {"gps_loss": "mae", "gps_normalise": False},
        {"warmup": 0.5, "epochs": 2},
    ],
)
def test_every_loss_is_stacked(losses: dict[str, object]) -> None:
    jobs = [job(seed, settings(**(apart | losses)), dropout=0.0) for seed, apart in enumerate(APART)]
    for single, got in zip(jobs, train_stacked(jobs), strict=True):
        close(got, alone(single))


def test_dropout_of_different_strength_is_stacked() -> None:
    jobs = [job(seed, settings(), dropout=rate) for seed, rate in enumerate((0.1, 0.5))]
    assert stackable(jobs)
    for single, got in zip(jobs, train_stacked(jobs), strict=True):
        close(got, alone(single))


def test_each_stops_where_its_own_validation_says_and_keeps_its_own_best_epoch() -> None:
    scores = ((0.9, 0.1, 0.1, 0.1, 0.1), (0.1, 0.2, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4, 0.5))
    training = settings(epochs=5, patience=2, learning_rate=1e-2)
    validations = [Scores(*values) for values in scores]
    jobs = [job(seed, training, validate=validate) for seed, validate in enumerate(validations)]
    stacked = train_stacked(jobs)
    assert [len(single.history) for single in stacked] == [3, 5, 5]
    assert [validate.asked for validate in validations] == [3, 5, 5]
    for single, got, values in zip(jobs, stacked, scores, strict=True):
        close(got, alone(single, Scores(*values)))


def test_all_stop_when_the_last_has_stopped() -> None:
    training = settings(epochs=50, patience=1)
    jobs = [job(seed, training, validate=Scores(0.5, 0.4, 0.4)) for seed in range(2)]
    assert [len(single.history) for single in train_stacked(jobs)] == [2, 2]


@pytest.mark.parametrize("kind", ["separate", "hierarchical", "geocells"])
def test_folds_of_one_size_have_a_region_each(kind: str) -> None:
    train_masks = [torch.arange(len(ROWS)) % 3 != fold for fold in range(3)]
    # One sample per cell: as many cells in every fold.
    shape = {"head": kind, "cell_samples": 1, "fusion": "attention"}
    jobs = [job(seed, settings(), ROWS.take(mask), **shape) for seed, mask in enumerate(train_masks)]
    assert stackable(jobs)
    assert not torch.equal(jobs[0].region.middle, jobs[1].region.middle)
    for single, got in zip(jobs, train_stacked(jobs), strict=True):
        close(got, alone(single))


def test_only_trainings_of_one_shape_are_stackable() -> None:
    first = job(0, settings())
    assert stackable([first, job(1, settings(learning_rate=1e-2, weight_decay=0.3, gps_weight=0.1))])
    in_degrees, scaled = (job(0, settings(gps_loss="mse", gps_normalise=on)) for on in (False, True))
    assert stackable([in_degrees, scaled])
    for single, got in zip((in_degrees, scaled), train_stacked([in_degrees, scaled]), strict=True):
        close(got, alone(single))
    others = {
        "fewer samples": job(0, settings(), ROWS.take(torch.arange(95))),
        "other views": job(0, settings(), rows_of(views=4)),
        "another width": job(0, settings(), head_hidden=13),
        "another fusion": job(0, settings(), fusion="attention"),
        "another head": job(0, settings(), head="dual"),
        "other batches": job(0, settings(batch_size=41)),
        "other epochs": job(0, settings(epochs=4)),
        "another loss": job(0, settings(gps_loss="mse")),
        "a loss more": job(0, settings(score_weight=0.1)),
        "class weights": job(0, settings(class_weights=True)),
        "hidden views": job(0, settings(view_dropout=0.1)),
        "no dropout": job(0, settings(), dropout=0.0),
    }
    for what, other in others.items():
        assert not stackable([first, other]), what
    cells = job(0, settings(), head="geocells", cell_samples=3)
    assert not stackable([cells, job(0, settings(), head="geocells", cell_samples=6)])
    assert not stackable([job(seed, settings(), head="probe") for seed in range(2)])


def test_one_that_blows_up_is_an_error() -> None:
    jobs = [job(0, settings()), job(1, settings(learning_rate=1e30))]
    with pytest.raises(GeoError, match="the loss became"):
        train_stacked(jobs)


def test_on_a_cpu_jobs_take_turns_bit_by_bit_and_need_not_be_stackable() -> None:
    jobs = [job(0, settings()), job(1, settings(), head="dual"), job(2, settings(), head="probe")]
    for single, got in zip(jobs, train_all(jobs), strict=True):
        wanted = alone(single).heads.state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in got.heads.state_dict().items())


def test_a_single_job_is_stacked_too() -> None:
    single = job(3, settings(), fusion="transformer", head="geocells")
    close(train_stacked([single])[0], alone(single))


@pytest.mark.parametrize("fit_all", [train_stacked, train_all])
def test_every_epoch_of_every_job_is_told_with_the_best_score_so_far(fit_all: Any) -> None:
    told: list[tuple[int, str]] = []
    jobs = [job(0, settings(), validate=Scores(0.1, 0.3, 0.2)), job(1, settings())]
    fit_all(jobs, lambda n, note="": told.append((n, note)))
    assert [n for n, _ in told] == [1] * 6
    scores = [note for _, note in told if "score" in note]
    assert scores == ["best score 0.1000", "best score 0.3000", "best score 0.3000"]
    assert all(note.startswith("loss ") for _, note in told if "score" not in note)
