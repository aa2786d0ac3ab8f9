"""A comparison of two submissions as one HTML file: no script, nothing fetched, every name escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from geo_embed.errors import disk_errors
from geo_embed.files import replacing
from geo_embed.metrics import WITHIN_KM
from geo_embed.reporting.markup import to_text
from geo_embed.reporting.submission_comparison import Comparison

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2733, #e6ebf1); --faint: light-dark(#5b6775, #9aa7b5);
  --line: light-dark(#dde3ea, #303a46); --bar: light-dark(#0072b2, #56b4e9); --ground: light-dark(#fff, #12181f); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, caption { color: var(--faint); } p { max-width: 45rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--faint); }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
thead th { white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.bar { width: 45%; } .bar span { display: block; height: .8rem; margin-top: .35rem; background: var(--bar); border-radius: 2px; }
@media print { body { margin: 0; max-width: none; } .bar span { print-color-adjust: exact; } tr { break-inside: avoid; } }
"""


def write_comparison_page(path: Path, comparison: Comparison, *, limit: int) -> None:
    """Write the page, in one piece.

    Args:
        path: the file; its folder is made.
        comparison: what it shows.
        limit: samples that it lists, the most different first.

    Raises:
        GeoError: the disk is full or may not be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(comparison_page(comparison, limit=limit), encoding="utf-8")


def comparison_page(comparison: Comparison, *, limit: int) -> str:
    """The page as text; see `write_comparison_page`."""
    found = comparison.statistics
    a, b = found["a"], found["b"]
    most, expected = found["effect"]["most"], found["effect"]["expected"]
    facts = [
        ("A", _file(a)),
        ("B", _file(b)),
        (
            "samples in both",
            f"{found['samples']:,}; in A alone {found['only_a']:,}, in B alone {found['only_b']:,}",
        ),
        ("same answer, to the last digit", f"{found['same_answers']:,} samples"),
        (
            "same set of states",
            f"{found['same_states']:.1%}; {found['shared_states']:.2f} states shared on average",
        ),
        (
            "scores differ by at most",
            f"{most['score']:.4f} (states {most['state_score']:.4f}, GPS {most['gps_score']:.4f})",
        ),
    ]
    if expected is not None:
        by = " and ".join(dict.fromkeys(expected["by"]))
        text = f"{expected['difference']:+.4f} for A, by the probabilities of {by}"
        facts.append(("expected difference of the state scores", text))
    km = found["km"]
    distance = (
        "No sample has a point in both files."
        if km["mean"] is None
        else f"Mean {km['mean']:,.1f} km, median {km['median']:,.1f} km, at most {km['max']:,.0f} km."
    )
    listed = comparison.samples.head(limit)
    body = [
        "<h1>Two submissions</h1>",
        _table((), [(_head(name), _text(value)) for name, value in facts]),
        "<h2>Agreement rank by rank</h2>",
        _bars("rank", [(str(rank["rank"]), rank["same"]) for rank in found["ranks"]]),
        "<h2>Distance between the points</h2>",
        f"<p>{escape(distance)}</p>",
        _bars("km", _histogram(comparison)),
        "<h2>The most different samples</h2>",
        "<p>By how much a sample's share of the score can differ at most, whatever its truth is: 0.70 × the state credit, and 0.30 × the "
        f"distance over 5,000 km. {len(listed):,} of {len(comparison.samples):,} samples.</p>",
        _table(
            ("sample", "difference", "km", "states of A", "states of B"),
            [
                (
                    _text(row["sample_id"]),
                    _number(f"{row['difference']:.3f}"),
                    _number("–" if np.isnan(row["km"]) else f"{row['km']:,.0f}"),
                    _text(row["states_a"]),
                    _text(row["states_b"]),
                )
                for row in listed.to_dict("records")
            ],
        ),
    ]
    title = to_text(f"{Path(a['submission']).name} and {Path(b['submission']).name}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _file(side: dict[str, Any]) -> str:
    known = [f"{side['submission']}, {side['rows']:,} rows"]
    if side["run"] is not None:
        score = "" if side["local"] is None else f", {side['local']:.4f} on held-out samples"
        known.append(f"run {side['run']}{score}")
    if side["public"] is not None:
        known.append(f"public {side['public']:.4f}")
    return "; ".join(known)


def _histogram(comparison: Comparison) -> list[tuple[str, float | None]]:
    km = comparison.samples["km"].dropna().to_numpy()
    edges = [0.0, *map(float, WITHIN_KM), np.inf]
    names = [
        *(f"{low:,.0f}–{high:,.0f}" for low, high in pairwise(edges[:-1])),
        f"above {edges[-2]:,.0f}",
    ]
    counts, _ = np.histogram(km, edges)
    return [
        (name, float(count / len(km)) if len(km) else None) for name, count in zip(names, counts, strict=True)
    ]


def _bars(name: str, shares: Iterable[tuple[str, float | None]]) -> str:
    rows = [
        (
            _text(label),
            _number("–" if share is None else f"{share:.1%}"),
            f'<td class="bar"><span style="width: {100 * (share or 0):.1f}%"></span></td>',
        )
        for label, share in shares
    ]
    return _table((name, "share of samples", ""), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    numbers = ("difference", "km", "share of samples")
    head = "".join(
        f'<th scope="col"{" class=number" if k and name in numbers else ""}>{escape(name)}</th>'
        for k, name in enumerate(header)
    )
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table>{f"<thead><tr>{head}</tr></thead>" if head else ""}<tbody>\n{body}\n</tbody></table></div>'


def _head(value: Any) -> str:
    return f'<th scope="row">{to_text(value)}</th>'


def _text(value: Any) -> str:
    return f"<td>{to_text(value)}</td>"


def _number(value: str) -> str:
    return f'<td class="number">{escape(value)}</td>'
