"""What two backbones together are worth: heads on each of two planted sources and on both, scored on rows that nothing has seen.

    python tools/planted_sources.py [ROWS] [SEED]

prints a line for each, as docs/heads.md shows them for 700 and 2,000 rows, seed 1.
"""

import sys
import tempfile

import numpy as np

from geo_embed.bench.planted import another_source, planted
from geo_embed.fitting.fit import fit_heads
from geo_embed.geography import haversine_km
from geo_embed.metrics import competition_score
from geo_embed.prediction.notebook import load_run
from geo_embed.settings import get_config

_UNSEEN = 3_000


def main() -> None:
    rows, seed = (int(text) for text in (*sys.argv[1:3], *("700", "1")[len(sys.argv) - 1 :]))
    data = planted(rows + _UNSEEN, seed=seed, dim=768)
    sources = {"a": data.embeddings, "b": another_source(data, seed=seed + 1000, dim=512)}
    fitted, unseen = slice(0, rows), slice(rows, None)
    with tempfile.TemporaryDirectory(prefix="geo-sources-") as folder:
        config = get_config(paths={"runs_dir": folder})
        for name, taken in {"a alone": ["a"], "b alone": ["b"], "both": ["a", "b"]}.items():
            fit = fit_heads(
                config,
                embeddings={source: sources[source][fitted] for source in taken},
                states=data.state_idx[fitted],
                latitude=data.latitude[fitted],
                longitude=data.longitude[fitted],
                name=name.replace(" ", "-"),
            )
            answers = load_run(fit.run, config=config).predict(
                embeddings={source: sources[source][unseen] for source in taken}
            )
            km = haversine_km(
                answers["latitude"].to_numpy(),
                answers["longitude"].to_numpy(),
                data.latitude[unseen],
                data.longitude[unseen],
            )
            ranked = answers[[f"state_{rank}" for rank in range(1, 6)]].to_numpy(dtype=np.int64)
            score = competition_score(ranked, data.state_idx[unseen], km)[0]
            print(f"{rows:,} rows, {name}: score {score:.3f}, {km.mean():.0f} km, {fit.seconds:.0f} s")


if __name__ == "__main__":
    main()
