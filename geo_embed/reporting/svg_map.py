"""A map as SVG, for pages that run no script."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.reporting.dataset import Ground
from geo_embed.reporting.markup import to_text
from geo_embed.reporting.outlines import Outlines
from geo_embed.reporting.projections import Projection, page_height, project, project_rings, to_page

# The map's width in units of its drawing, and corners nearer than this to the last one, which are left out.
_WIDTH, _SLACK = 1000.0, 0.6
# Of a point that has a partner.
_RADIUS = 6


def svg_map(ground: Ground, shown: NDArray[np.int64]) -> str:
    """The map of the training samples of these rows (n,): outlines with their names, and a dot for each sample."""
    truth = ground.truth.take(shown)
    points = _on_page(ground.projection, truth.latitude, truth.longitude)
    points = points[np.isfinite(points).all(axis=1)]
    # A dot is a line of no length with round ends: the shortest that SVG has for it.
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    size = float(np.clip(120 / np.sqrt(max(len(points), 1)), 2.2, 6))
    marks = f'<path class="places" stroke-width="{size:.1f}" d="{dots}"/>'
    return _svg(ground.drawn, ground.projection, "Map of the training samples", marks)


def svg_pairs(
    drawn: Outlines,
    projection: Projection,
    names: Sequence[str],
    a: tuple[ArrayLike, ArrayLike],
    b: tuple[ArrayLike, ArrayLike],
) -> tuple[str, int]:
    """The map of pairs of points, each with a line between them, a dot for the first and a ring for the second; and how many are drawn.

    Args:
        drawn, projection: outlines, and the map that shows them.
        names: of n pairs, to be read by pointing at one.
        a, b: latitudes and longitudes (n,) in degrees; a pair without one of them, or off the map, is left out.
    """
    start, end = (_on_page(projection, *points) for points in (a, b))
    complete = np.flatnonzero(np.isfinite(start).all(axis=1) & np.isfinite(end).all(axis=1)).tolist()
    marks = "".join(
        f"<g><title>{to_text(names[k])}</title>"
        f'<path class="link" d="M{start[k, 0]:.1f} {start[k, 1]:.1f}L{end[k, 0]:.1f} {end[k, 1]:.1f}"/>'
        f'<circle class="first" cx="{start[k, 0]:.1f}" cy="{start[k, 1]:.1f}" r="{_RADIUS}"/>'
        f'<circle class="second" cx="{end[k, 0]:.1f}" cy="{end[k, 1]:.1f}" r="{_RADIUS}"/></g>'
        for k in complete
    )
    return _svg(drawn, projection, "Map of the pairs of points", marks), len(complete)


def _on_page(projection: Projection, latitude: ArrayLike, longitude: ArrayLike) -> NDArray[np.float64]:
    return to_page(projection, project(projection, latitude, longitude), _WIDTH)


def _svg(drawn: Outlines, projection: Projection, label: str, marks: str) -> str:
    """Outlines with their names, and marks on them."""

    def path_of(rings: Any) -> str:
        return "".join(
            _path(to_page(projection, piece, _WIDTH)) for piece in project_rings(projection, rings)
        )

    outlines = "".join(
        f'<path class="class" d="{path}"><title>{to_text(name)}</title></path>'
        for name, rings in zip(drawn.classes, drawn.rings, strict=True)
        if (path := path_of(rings))
    )
    return (
        f'<svg class="map" viewBox="0 0 {_WIDTH:g} {page_height(projection, _WIDTH):.0f}" role="img" aria-label="{to_text(label)}">'
        f'<path class="around" d="{path_of(drawn.context)}"/>{outlines}{marks}</svg>'
    )


def _path(piece: NDArray[np.float64]) -> str:
    """A closed piece as SVG's path, without corners that can't be told from the last one."""
    kept = [piece[0]]
    for corner in piece[1:-1]:
        if max(abs(corner - kept[-1])) >= _SLACK:
            kept.append(corner)
    if len(kept) < 3:
        kept = list(piece[: max(3, len(kept))])
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in kept) + "Z"
