"""`geo bench heads`: the recipes against each other on planted embeddings, through import, fit and predict as people type them,
and what fitting costs (`fitting.py`, and whole commands, `commands.py`)."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from geo_embed.bench.ceiling import informed_answers
from geo_embed.bench.dataset import write_planted
from geo_embed.bench.measure import Bench, Measurement, this_machine
from geo_embed.bench.planted import Planted, planted, score_of
from geo_embed.config import Config
from geo_embed.fitting.fit import Fit, fit_heads
from geo_embed.fitting.outlook import budget_for
from geo_embed.metrics import top_states
from geo_embed.prediction.predict import predict_split
from geo_embed.runs.run import load_run
from geo_embed.settings import resolve

# The scores settle with fewer samples than the speed is asked for.
_SCORED = 20_000
# What another source adds shows with few.
_JOINED, _JOINED_SEED = 700, 1


def bench_heads(config: Config, *, samples: int = 65_980, dim: int = 768, seed: int = 11) -> Bench:
    """Score, speed and memory of `pigeon` and `best` on planted samples.

    Args:
        config: device and budget.
        samples: of the speed and memory rows; the scores take a part of them, 20,000 at most, and those of two sources 700.
        dim, seed: of the data.
    """
    from geo_embed.bench.commands import bench_commands
    from geo_embed.bench.fitting import bench_fitting, bench_memory
    from geo_embed.bench.sources import bench_sources

    passed_on: dict[str, Any] = {"model.device": config.model.device}
    if config.training.budget_seconds is not None:
        passed_on["training.budget_seconds"] = config.training.budget_seconds
    scored = _recipes(passed_on, planted(min(samples, _SCORED), seed=seed, dim=dim))
    scored.append(bench_sources(min(samples // 4, _JOINED), _JOINED_SEED, dim, passed_on))
    data = planted(samples, seed=seed, dim=dim)
    timed = bench_fitting(config, data)
    with tempfile.TemporaryDirectory(prefix="geo-bench-") as folder:
        overrides = write_planted(data, Path(folder)) | passed_on
        shape = (len(data.train), data.embeddings.shape[1], dim)
        del data
        typed = bench_commands(overrides, shape, seed)
        return Bench(
            "heads", this_machine(), [*scored, *timed, *typed, *bench_memory(overrides, shape[0], dim)]
        )


def _recipes(passed_on: dict[str, Any], data: Planted) -> list[Measurement]:
    """Fit `pigeon` and `best` on nine tenths of planted samples and score them on the last tenth, which nothing has seen."""
    with tempfile.TemporaryDirectory(prefix="geo-bench-") as folder:
        overrides = write_planted(data, Path(folder)) | passed_on
        scores: dict[str, float] = {}
        fits: dict[str, Fit] = {}
        for preset in ("pigeon", "best"):
            preset_config = resolve(overrides=overrides | {"training.preset": preset})[0]
            fits[preset] = fit_heads(preset_config, name=preset)
            scores[preset] = _test_score(preset_config, preset, data)
    rows = "{:,} planted samples × {} × {}".format(*data.embeddings.shape)
    ours, plain = scores["best"], scores["pigeon"]
    spent, plain_spent = fits["best"].seconds, fits["pigeon"].seconds
    believed = fits["best"].val["score"]
    return [
        Measurement(
            f"test score of --preset best, {rows}",
            ours,
            plain,
            ours / plain,
            _informed_score(data),
            "score",
            "pigeon",
            "who knows how the rows were made answers by Bayes' rule",
        ),
        Measurement(
            "the same run's own validation score",
            believed,
            ours,
            believed / ours,
            1.0,
            "score",
            "its test score",
            "agreement",
        ),
        Measurement(
            "fitting --preset best",
            spent,
            plain_spent,
            plain_spent / spent,
            budget_for(len(data.train), passed_on.get("training.budget_seconds")),
            "s",
            "pigeon",
            "its budget: training.budget_seconds, or by the number of samples",
        ),
    ]


def _test_score(config: Config, name: str, data: Planted) -> float:
    run = load_run(config.paths.runs_dir, name)
    predictions, _ = predict_split(config, run, "test")
    ranked = run.labels.decode(top_states(predictions.probabilities))
    return score_of(data, data.test, ranked, predictions.latitude, predictions.longitude)[0]


def _informed_score(data: Planted) -> float:
    probabilities, points = informed_answers(data)
    ranked = np.unique(data.state_idx)[top_states(probabilities.numpy())]
    return score_of(data, data.test, ranked, *points.numpy().T)[0]
