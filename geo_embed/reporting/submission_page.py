"""A comparison of two submissions as one HTML file: no script, nothing fetched, every name escaped."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from geo_embed import __version__
from geo_embed.answers import label_encoder
from geo_embed.console import counted
from geo_embed.errors import disk_errors
from geo_embed.files import replacing
from geo_embed.metrics import WITHIN_KM
from geo_embed.reporting.html import to_plain_html
from geo_embed.reporting.markup import missing, table, tiles_of, to_km, to_text
from geo_embed.reporting.outlines import Outlines, outlines
from geo_embed.reporting.projections import fit_projection
from geo_embed.reporting.submission_comparison import Comparison
from geo_embed.reporting.svg_map import svg_pairs

# Pairs of points on the map, at most: more lines would hide one another.
_PAIRS = 100


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
    statistics = comparison.statistics
    km, most = statistics["km"], statistics["effect"]["most"]
    credit, drawn = _map(comparison)
    distance = (
        "No sample has a point in both files."
        if km["mean"] is None
        else f"Mean {km['mean']:,.1f} km, median {km['median']:,.1f} km, at most {km['max']:,.0f} km."
    )
    ranks = [(f"rank {rank['rank']}", rank["same"]) for rank in statistics["ranks"]]
    agreement = f"{statistics['same_states']:.1%} have the same set of states; {statistics['shared_states']:.2f} states are shared on average."
    figures = (
        '<div class="figures">'
        + _bars("The same state at each rank", agreement, ranks)
        + _bars("Distance between the points", distance, _histogram(comparison))
        + "</div>"
    )
    names = [Path(statistics[side]["submission"]).name for side in "ab"]
    tiles = [
        ("samples in both", f"{statistics['samples']:,}"),
        ("in A alone, in B alone", f"{statistics['only_a']:,}, {statistics['only_b']:,}"),
        ("same answer to the last digit", f"{statistics['same_answers']:,}"),
        ("points apart, median", "–" if km["median"] is None else to_km(km["median"])),
        ("scores differ by at most", f"{most['score']:.4f}"),
    ]
    sections = [
        ("Agreement", "Where they agree", figures),
        ("Map", "Where they differ most", drawn),
        ("Samples", "The most different samples", _samples(comparison, limit)),
    ]
    return to_plain_html(
        f"{names[0]} and {names[1]}",
        f'<p class="eyebrow">Two submissions</p><h1>{to_text(names[0])} and {to_text(names[1])}</h1>'
        f"{tiles_of(tiles)}{_about(statistics)}",
        sections,
        f"Made by geo_embed {to_text(__version__)}{credit}.",
        "data",
        "comparison",
    )


def _about(statistics: dict[str, Any]) -> str:
    """The files, and what their difference can be worth."""
    most, expected = statistics["effect"]["most"], statistics["effect"]["expected"]
    facts = [
        ("A", _file(statistics["a"])),
        ("B", _file(statistics["b"])),
        (
            "the largest difference of the parts",
            f"states {most['state_score']:.4f}, GPS {most['gps_score']:.4f}",
        ),
    ]
    if expected is not None:
        by = " and ".join(dict.fromkeys(expected["by"]))
        facts.append(
            (
                "expected difference of the state scores",
                f"{expected['difference']:+.4f} for A, by the probabilities of {by}",
            )
        )
    rows = "".join(f"<div><dt>{to_text(name)}</dt><dd>{to_text(value)}</dd></div>" for name, value in facts)
    return f'<div class="about"><dl>{rows}</dl></div>'


def _map(comparison: Comparison) -> tuple[str, str]:
    """Who drew the outlines, for the last line; and the most different points of the samples that have two, as a figure."""
    placed = comparison.samples["km"].notna().to_numpy()
    samples = comparison.samples[placed]
    apart = samples[samples["km"] > 0].nlargest(_PAIRS, "km")
    if apart.empty:
        return "", missing("No map", "No sample has two points that differ.")
    drawn = _outlines(comparison)
    projection = fit_projection(
        drawn,
        np.concatenate([samples["latitude_a"], apart["latitude_b"]]),
        np.concatenate([samples["longitude_a"], apart["longitude_b"]]),
    )
    names = [
        f"{row['sample_id']}: {to_km(row['km'])}; A {row['states_a']}; B {row['states_b']}"
        for row in apart.to_dict("records")
    ]
    a, b = ((apart[f"latitude_{side}"], apart[f"longitude_{side}"]) for side in "ab")
    svg, shown = svg_pairs(drawn, projection, names, a, b)
    of_all = f"The {counted(shown, 'pair')} of points that lie farthest apart, of {int((samples['km'] > 0).sum()):,} that differ."
    off = "" if shown == len(apart) else f" {len(apart) - shown:,} more lie off the map."
    legend = (
        '<ul class="legend"><li><span class="swatch dot first"></span>A</li><li><span class="swatch ring second"></span>B</li>'
        "<li>the name of a line: point at it</li></ul>"
    )
    credit = f"; {to_text(drawn.credit)}" if drawn.credit else ""
    return credit, (
        f"<figure><figcaption><h3>The most different points</h3><p>{to_text(of_all + off)}</p>{legend}</figcaption>{svg}</figure>"
    )


def _outlines(comparison: Comparison) -> Outlines:
    """Of the classes, as their training places say; of countries alone where these aren't known."""
    truth = comparison.train
    known = None if truth is None else np.isin(truth.state_idx, list(comparison.mapping))
    if truth is None or known is None or not known.any():
        return outlines([], [], [], ())
    truth = truth.take(known)
    encoder = label_encoder(truth.state_idx, comparison.mapping)
    return outlines(encoder.encode(truth.state_idx), truth.latitude, truth.longitude, encoder.names)


def _samples(comparison: Comparison, limit: int) -> str:
    listed = comparison.samples.head(limit)
    summary = (
        "By how much a sample's share of the score can differ at most, whatever its truth is: 0.70 × the state credit, and 0.30 × the "
        f"distance over 5,000 km. {len(listed):,} of {counted(len(comparison.samples), 'sample')}."
    )
    rows = [
        (
            str(row["sample_id"]),
            row["states_a"],
            row["states_b"],
            "–" if np.isnan(row["km"]) else f"{row['km']:,.0f}",
            f"{row['difference']:.3f}",
        )
        for row in listed.to_dict("records")
    ]
    shown = table(("sample", "states of A", "states of B", "km", "difference"), rows, numbers=3)
    return f'<p class="lead">{to_text(summary)}</p><div class="panel">{shown}</div>'


def _file(side: dict[str, Any]) -> str:
    known = [f"{side['submission']}, {counted(side['rows'], 'row')}"]
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
        *(f"{low:,.0f}–{high:,.0f} km" for low, high in pairwise(edges[:-1])),
        f"above {edges[-2]:,.0f} km",
    ]
    counts, _ = np.histogram(km, edges)
    return [
        (name, float(count / len(km)) if len(km) else None) for name, count in zip(names, counts, strict=True)
    ]


def _bars(title: str, caption: str, shares: Iterable[tuple[str, float | None]]) -> str:
    """A figure with a bar for each share of the samples."""
    bars = "".join(
        f'<li><span class="name">{to_text(name)}</span><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * (share or 0):.1f}" height="10"/></svg>'
        f'<span class="count">{"–" if share is None else f"{share:.1%}"}</span></li>'
        for name, share in shares
    )
    return (
        f"<figure><figcaption><h3>{to_text(title)}</h3><p>{to_text(caption)}</p></figcaption>"
        f'<ol class="bars shares">{bars}</ol></figure>'
    )
