"""`geo bench heads` on a handful of samples: it runs, and its figures are finite and hang together. No timing is judged."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from geo_embed.bench import fitting
from geo_embed.bench.fitting import flop_per_sample, peak_bytes
from geo_embed.bench.heads import bench_heads
from geo_embed.bench.measure import Bench, gemm_rate, in_turn
from geo_embed.config import resolve
from geo_embed.heads import ClassificationHead, GpsHead

if TYPE_CHECKING:
    from conftest import Geo

SAMPLES, DIM = 700, 48


@pytest.fixture(scope="module")
def bench() -> Bench:
    config = resolve(overrides={"training.budget_seconds": 1.0})[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "gemm_rate", lambda device: gemm_rate(device, size=128))
        return bench_heads(config, samples=SAMPLES, dim=DIM)


def test_every_figure_is_finite_and_positive(bench: Bench) -> None:
    for m in bench.measurements:
        for figure in (m.ours, m.baseline, m.ratio, m.limit):
            assert math.isfinite(figure), m
            assert figure > 0, m


def test_every_ratio_is_that_of_the_figures_beside_it(bench: Bench) -> None:
    for m in bench.measurements:
        more_is_better = m.unit == "score"
        expected = m.ours / m.baseline if more_is_better else m.baseline / m.ours
        assert m.ratio == pytest.approx(expected), m


def test_it_measures_each_baseline_that_is_asked_for(bench: Bench) -> None:
    said = " ".join(f"{m.what} {m.against}" for m in bench.measurements)
    for part in ("DataLoader", "batch 128", "batch 512", "LogisticRegression", "8 seeds", "peak memory"):
        assert part in said


def test_scores_lie_between_nothing_and_all(bench: Bench) -> None:
    scores = [m for m in bench.measurements if m.unit == "score"]
    assert scores
    assert all(0 < figure <= 1 for m in scores for figure in (m.ours, m.baseline))


def test_a_fit_holds_more_than_torch_alone(bench: Bench) -> None:
    memory = [m for m in bench.measurements if "peak memory" in m.what]
    assert len(memory) == 2
    assert all(m.ours > m.limit for m in memory)


def test_arithmetic_counts_no_gradient_towards_the_input() -> None:
    heads = torch.nn.ModuleDict({"states": ClassificationHead(8, 4, 3), "gps": GpsHead(8, 4, 2)})
    # Multiply-adds: twice through each first layer, three times through what follows.
    assert flop_per_sample(heads) == 2 * (2 * 8 * 4 * 2 + 3 * (4 * 3 + 4 * 2 + 2 * 2))


def test_a_childs_peak_is_its_own() -> None:
    held = torch.ones(150_000_000, dtype=torch.uint8)  # 150 MB here must not count there
    code = "from geo_embed.bench.fitting import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert int(child) < peak_bytes() - len(held) // 2


def test_figures_taken_in_turn_are_medians() -> None:
    figures = iter([1.0, 10.0, 5.0, 30.0, 3.0, 20.0])
    assert in_turn(3, lambda: next(figures), lambda: next(figures)) == [3.0, 20.0]


def test_the_command_takes_a_size(geo: Geo) -> None:
    done = geo("--json", "bench", "--samples", "64", "store")
    assert done.code == 0, done.err
    assert "64 × 4 × 768" in done.json["measurements"][0]["what"]
