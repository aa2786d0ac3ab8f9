"""What two sources together are worth: heads on each of two planted ones and on both, scored on samples that nothing has seen."""

import tempfile
from typing import Any, NamedTuple

import numpy as np

from geo_embed.bench.measure import Measurement
from geo_embed.bench.planted import another_source, planted, score_of
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.notebook import load_run
from geo_embed.settings import resolve

_UNSEEN = 3_000
BOTH = "both"


class SourceScore(NamedTuple):
    """What heads on some sources reach on unseen samples: score, mean distance; and what fitting them took."""

    score: float
    km: float
    seconds: float


def scores_of_sources(
    rows: int, seed: int, *, dims: tuple[int, int] = (768, 512), overrides: dict[str, Any] | None = None
) -> dict[str, SourceScore]:
    """Fit `best` on `rows` samples of source `a`, of `b`, and of `both`.

    Args:
        rows: of the fits.
        seed: of the data.
        dims: numbers of each source.
        overrides: dotted settings of the fits.
    """
    data = planted(rows + _UNSEEN, seed=seed, dim=dims[0])
    sources = {"a": data.embeddings, "b": another_source(data, seed=seed + 1000, dim=dims[1])}
    fitted, unseen = slice(0, rows), slice(rows, None)
    scores = {}
    with tempfile.TemporaryDirectory(prefix="geo-sources-") as folder:
        config = resolve(overrides={**(overrides or {}), "paths.runs_dir": folder})[0]
        for name, taken in {"a": ["a"], "b": ["b"], BOTH: ["a", "b"]}.items():
            fit = fit_heads(
                config,
                embeddings={source: sources[source][fitted] for source in taken},
                states=data.state_idx[fitted],
                latitude=data.latitude[fitted],
                longitude=data.longitude[fitted],
                name=name,
            )
            answers = load_run(fit.run, config=config).predict(
                embeddings={source: sources[source][unseen] for source in taken}
            )
            ranked = answers[[f"state_{rank}" for rank in range(1, 6)]].to_numpy(dtype=np.int64)
            latitude, longitude = answers["latitude"].to_numpy(), answers["longitude"].to_numpy()
            score, km = score_of(data, unseen, ranked, latitude, longitude)
            scores[name] = SourceScore(score, float(km.mean()), fit.seconds)
    return scores


def bench_sources(rows: int, seed: int, dim: int, overrides: dict[str, Any]) -> Measurement:
    """The score of both sources against that of the better one alone."""
    dims = dim, 2 * dim // 3
    scores = scores_of_sources(rows, seed, dims=dims, overrides=overrides)
    both = scores.pop(BOTH).score
    name, alone = max(scores.items(), key=lambda item: item[1].score)
    return Measurement(
        f"test score of --preset best on two sources, {rows:,} planted samples × 4 × {dims[0]} and {dims[1]}",
        both,
        alone.score,
        both / alone.score,
        1.0,
        "score",
        f"{name}, the better of them alone",
        "the best there is",
    )
