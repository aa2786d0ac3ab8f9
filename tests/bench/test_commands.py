"""Whole commands on a handful of planted samples: they run as they are typed, and their figures hang together. No timing is judged."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small import here

from geo_embed.bench import commands
from geo_embed.bench.commands import bench_commands, fit_command
from geo_embed.bench.dataset import write_planted
from geo_embed.bench.measure import Measurement, at_most
from geo_embed.bench.planted import planted
from geo_embed.runs.run import load_run

if TYPE_CHECKING:
    from conftest import Geo

SAMPLES, DIM = 120, 16


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = planted(SAMPLES, seed=2, classes=5, dim=DIM)
    root = tmp_path_factory.mktemp("commands")
    quick = {"model.device": "cpu", "training.budget_seconds": 0.01}
    return write_planted(data, root / "planted") | quick


def test_a_command_fits_a_run_under_the_settings_given(overrides: dict[str, Any]) -> None:
    assert fit_command(overrides, "pigeon", training__epochs=2, training__patience=9)() > 0
    run = load_run(Path(overrides["paths.runs_dir"]), "command-pigeon")
    training = run.config.training
    assert (training.preset, training.epochs, training.patience) == ("pigeon", 2, 9)
    assert run.config.model.view_names == tuple(overrides["model.view_names"])


def test_a_command_that_fails_says_why(overrides: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="geo failed: error: "):
        fit_command(overrides, "pigeon", model__backbone_name="absent")()


@pytest.mark.slow
def test_every_command_is_measured_against_what_is_asked_for(
    overrides: dict[str, Any], geo: Geo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command_seconds(*arguments: str) -> float:
        started = time.monotonic()
        ran = geo(*arguments)
        assert ran.code == 0, ran.err
        return time.monotonic() - started

    # Commands that import anew are the tests' above.
    monkeypatch.setattr(commands, "command_seconds", command_seconds)
    monkeypatch.setattr(commands, "apart", here)
    monkeypatch.setattr(commands, "_FEW", SAMPLES)
    monkeypatch.setattr(commands, "_ROUNDS", 1)
    few, many, plain = bench_commands(overrides, (SAMPLES * 9 // 10, 4, DIM), seed=3)
    for m in (few, many, plain):
        assert "whole command" in m.what
        assert f"× 4 × {DIM}" in m.what
        for figure in (m.ours, m.baseline, m.ratio, m.limit):
            assert math.isfinite(figure)
            assert figure > 0
        assert m.ratio == pytest.approx(m.baseline / m.ours)
    assert (few.baseline, many.baseline) == (1.5, 5)
    assert plain.limit == pytest.approx(plain.baseline / 2.5)
    assert "DataLoader" in plain.against


def test_a_measurement_above_what_is_asked_for_is_below_one() -> None:
    made: Measurement = at_most("what", 3.0, 1.5, 0.5, "×", "its imports")
    assert (made.ratio, made.ours, made.baseline) == (0.5, 3.0, 1.5)
