"""`geo bench heads` and `finetune` on a handful of samples: they run, and their figures are finite and hang together. No timing
is judged."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from small import here

from geo_embed.backbones.pace import STREETCLIP
from geo_embed.bench import commands, finetune, fitting
from geo_embed.bench.fitting import peak_bytes
from geo_embed.bench.heads import bench_heads
from geo_embed.bench.measure import Bench, gemm_rate, in_turn
from geo_embed.bench.towers import VIT_B_32, flop_per_image
from geo_embed.settings import resolve

if TYPE_CHECKING:
    from conftest import Geo

SAMPLES, DIM = 700, 48


@pytest.fixture(scope="module")
def bench() -> Bench:
    config = resolve(overrides={"training.budget_seconds": 0.1})[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_ROUNDS", 1)
        patch.setattr(fitting, "gemm_rate", lambda device: gemm_rate(device, size=128))
        # Many processes: tests/bench/test_commands.py.
        patch.setattr(commands, "bench_commands", lambda *arguments: [])
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
    measured = " ".join(f"{m.what} {m.against}" for m in bench.measurements)
    for part in ("DataLoader", "batch 128", "batch 512", "LogisticRegression", "8 seeds", "peak memory"):
        assert part in measured


def test_scores_lie_between_nothing_and_all(bench: Bench) -> None:
    scores = [m for m in bench.measurements if m.unit == "score"]
    assert scores
    assert all(0 < figure <= 1 for m in scores for figure in (m.ours, m.baseline))


def test_a_fit_holds_more_than_torch_alone(bench: Bench) -> None:
    memory = [m for m in bench.measurements if "peak memory" in m.what]
    assert len(memory) == 2
    assert all(m.ours > m.limit for m in memory)


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


@pytest.mark.slow
def test_finetuning_is_measured_against_arithmetic_and_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(finetune, "VIT_B_32", VIT_B_32 | small)
    monkeypatch.setattr(finetune, "gemm_rate", lambda device: gemm_rate(device, size=128))
    monkeypatch.setattr(finetune, "_ROUNDS", 1)
    monkeypatch.setattr(finetune, "apart", here)
    overrides = {"model.device": "cpu", "finetune.batch_size": 2, "finetune.accumulate": 1}
    model, share, loop = finetune.bench_finetune(resolve(overrides=overrides)[0], samples=8).measurements
    for m in (model, share, loop):
        assert m.ratio == pytest.approx(m.ours / m.baseline)
        assert 0 < m.ours < math.inf
        assert 0 < m.baseline < math.inf
    assert (model.unit, share.unit, loop.unit) == ("samples/s", "TFLOP/s", "samples/s")
    assert share.ours / model.ours == pytest.approx(share.limit / model.limit)
    assert "DataLoader" in loop.against


def test_a_vits_arithmetic_is_that_of_its_layers() -> None:
    from transformers import CLIPVisionConfig

    # timm lists 4.4 and 191 G multiply-adds for CLIP's; an addition counts here, too.
    assert flop_per_image(CLIPVisionConfig(**VIT_B_32)) / 2e9 == pytest.approx(4.4, rel=0.02)
    assert flop_per_image(CLIPVisionConfig(**STREETCLIP)) / 2e9 == pytest.approx(191, rel=0.02)
