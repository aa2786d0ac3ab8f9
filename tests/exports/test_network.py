"""A run as one function of tensors answers as the run does, whatever its heads, and however runs are combined."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from networks import CLASSES, antimeridian, changed, places, refine
from worlds import made_run

from geo_embed.config import Config, EnsembleMethod
from geo_embed.exports.network import network_of
from geo_embed.heads.calibration import Calibration
from geo_embed.heads.mixture import Mixture
from geo_embed.heads.predictor import Panel
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.pictures import predict_arrays
from geo_embed.registry import FUSIONS, HEADS
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, RunWriter, load_run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return antimeridian(tmp_path_factory.mktemp("world") / "w")


def check_alike(run: Run) -> None:
    views, present = places()
    wanted = predict_arrays(run.config, run, views, present)
    with torch.inference_mode():
        states, points = network_of(run).eval()(torch.from_numpy(views), torch.from_numpy(present))
    assert len(np.unique(wanted.probabilities.argmax(axis=1))) > 1
    np.testing.assert_allclose(states.numpy(), wanted.probabilities, rtol=0, atol=1e-6)
    point = np.stack([wanted.latitude, wanted.longitude], axis=1)
    # A median's rounds end where rounding says so, some metres from where they would end by another.
    np.testing.assert_allclose(points.numpy(), point, rtol=0, atol=1e-4)


@pytest.mark.parametrize("head", HEADS.built_in)
def test_a_head_of_any_kind(world: Config, head: str) -> None:
    check_alike(made_run(changed(world, model__head=head), f"head-{head}"))


@pytest.mark.parametrize("fusion", FUSIONS.built_in)
def test_a_fusion_of_any_kind_with_a_median_of_classes(world: Config, fusion: str) -> None:
    config = changed(world, model__head="dual", model__fusion=fusion, model__point="median")
    check_alike(made_run(config, f"fusion-{fusion}"))


def test_points_refined_among_training_samples(world: Config) -> None:
    run = made_run(changed(world, model__head="geocells"), "refined")
    views, present = places()
    before = predict_arrays(run.config, run, views, present)
    refine(run)
    after = predict_arrays(run.config, run, views, present)
    moved = np.abs(after.latitude - before.latitude) > 1e-6
    assert 0 < moved.sum() < len(moved)
    check_alike(run)


def test_a_mixture_of_the_race_of_several_members_and_of_one(world: Config) -> None:
    run = made_run(changed(world, training__preset="best", training__budget_seconds=1.0), "best")
    check_alike(run)
    panel = load_heads(run)
    (part,) = panel.parts
    assert isinstance(part, Mixture)
    assert len(part.members) > 1
    decision = replace(part.decision, weights=(1.0,))
    panel.parts[0] = Mixture(part.members[:1], part.heads[:1], decision)
    RunWriter(run.path).write_heads(panel)
    check_alike(run)


@pytest.fixture(scope="module")
def members(world: Config) -> list[str]:
    kinds = {"one": "geocells", "two": "separate", "three": "hierarchical"}
    for name, head in kinds.items():
        made_run(changed(world, model__head=head), name)
    refine(load_run(world.paths.runs_dir, "one"))
    return list(kinds)


@pytest.mark.parametrize(
    ("method", "point"), zip(get_args(EnsembleMethod), ("median", "mean") * 3, strict=True)
)
def test_runs_combined_in_any_way(
    world: Config, members: list[str], method: EnsembleMethod, point: str
) -> None:
    name = f"{method}-{point}"
    ensemble(world, members, method=method, point=point, name=name)  # type: ignore[arg-type]
    check_alike(load_run(world.paths.runs_dir, name))


def test_heads_that_answer_together_and_a_calibration(world: Config, members: list[str]) -> None:
    """As of seeds or folds, and of either kind of point."""
    run = made_run(changed(world, model__head="geocells"), "together")
    parts = [load_heads(load_run(world.paths.runs_dir, name)).parts[0] for name in members]
    scale, offset = np.linspace(0.5, 2, len(CLASSES)), np.linspace(-1, 1, len(CLASSES))
    fitted = Calibration("vector", tuple(scale.tolist()), tuple(offset.tolist()))
    RunWriter(run.path).write_heads(Panel(parts, fitted))  # type: ignore[arg-type]
    check_alike(run)
