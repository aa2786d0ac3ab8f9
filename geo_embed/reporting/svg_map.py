"""A map as SVG, for pages that run no script."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.reporting.dataset import Ground
from geo_embed.reporting.markup import to_text
from geo_embed.reporting.projections import page_height, project, project_rings, to_page

# The map's width in units of its drawing, and corners nearer than this to the last one, which are left out.
_WIDTH, _SLACK = 1000.0, 0.6


def svg_map(ground: Ground, shown: NDArray[np.int64]) -> str:
    """The map of the training samples of these rows (n,): outlines with their names, and a dot for each sample."""
    projection = ground.projection

    def drawn(rings: Any) -> str:
        return "".join(
            _path(to_page(projection, piece, _WIDTH)) for piece in project_rings(projection, rings)
        )

    truth = ground.truth.take(shown)
    points = to_page(projection, project(projection, truth.latitude, truth.longitude), _WIDTH)
    points = points[np.isfinite(points).all(axis=1)]
    # A dot is a line of no length with round ends: the shortest that SVG has for it.
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    size = float(np.clip(120 / np.sqrt(max(len(points), 1)), 2.2, 6))
    outlines = "".join(
        f'<path class="class" d="{path}"><title>{to_text(name)}</title></path>'
        for name, rings in zip(ground.drawn.classes, ground.drawn.rings, strict=True)
        if (path := drawn(rings))
    )
    return (
        f'<svg class="map" viewBox="0 0 {_WIDTH:g} {page_height(projection, _WIDTH):.0f}" role="img" aria-label="Map of the training samples">'
        f'<path class="around" d="{drawn(ground.drawn.context)}"/>{outlines}'
        f'<path class="places" stroke-width="{size:.1f}" d="{dots}"/></svg>'
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
