"""What two backbones together are worth: heads on each of two planted sources and on both, scored on rows that nothing has seen.

    python tools/planted_sources.py [ROWS] [SEED]

prints a line for each, as docs/heads.md shows them, seed 1.
"""

import sys

from geo_embed.bench.sources import scores_of_sources


def main() -> None:
    rows, seed = (int(text) for text in (*sys.argv[1:3], *("700", "1")[len(sys.argv) - 1 :]))
    for name, of in scores_of_sources(rows, seed).items():
        print(f"{rows:,} rows, {name}: score {of.score:.3f}, {of.km:.0f} km, {of.seconds:.0f} s")


if __name__ == "__main__":
    main()
