"""The numbers behind a report's map, on the plane of the map: outlines, and from where to where each point is off."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Truth
from geo_embed.console import harmless
from geo_embed.geography import to_degrees, to_unit_vectors
from geo_embed.reporting.evidence import Evidence
from geo_embed.reporting.outlines import outlines
from geo_embed.reporting.projections import (
    Projection,
    fit_projection,
    page_height,
    project,
    project_rings,
    to_page,
)

# Samples on a map: more hide one another, and take long to draw.
MOST_ON_MAP = 1500
# Of the plane's frame: the unit of the page's map, and what an outline's corners may stray by for brevity.
_WIDTH, _SLACK = 1000.0, 0.35
_STEP_KM, _STEPS = 250.0, 24


def atlas(evidence: Evidence) -> tuple[dict[str, Any], Projection]:
    """Where the classes lie, and on which map.

    Returns:
        `width`, `height` of the map, y downwards; `classes`: for each its rings, [[x, y], …]; `context`: rings around; `credit`: whom the
        outlines are owed to; `from`: what they are made from. And the projection.
    """
    places, source = _places(evidence)
    drawn = outlines(
        evidence.predictions.labels.encode(places.state_idx),
        places.latitude,
        places.longitude,
        evidence.predictions.labels.names,
    )
    projection = fit_projection(drawn, places.latitude, places.longitude)
    return {
        "width": _WIDTH,
        "height": page_height(projection, _WIDTH),
        "classes": [_on_map(projection, rings) for rings in drawn.rings],
        "context": _on_map(projection, drawn.context),
        "credit": drawn.credit,
        "source": source,
    }, projection


def _places(evidence: Evidence) -> tuple[Truth, str]:
    """The places that outlines are looked for by: those of the train CSV of the run's classes, or of the held-out samples where it isn't
    at hand.
    """
    samples = evidence.samples
    if samples is None or samples.truth is None:
        return evidence.truth, "the held-out samples"
    known = np.isin(samples.truth.state_idx, evidence.predictions.labels.state_idx)
    return samples.truth.take(known), "the training data"


def _on_map(projection: Projection, rings: Any) -> list[list[list[float]]]:
    """Rings on the page's map, corners that can't be told apart left out."""
    pieces = []
    for ring in project_rings(projection, rings):
        corners = to_page(projection, ring, _WIDTH)
        kept = _thinned(corners)
        if len(kept) > 3:
            pieces.append(np.round(kept, 1).tolist())
    return pieces


def _thinned(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed ring without corners that lie within `_SLACK` of the one before."""
    kept = [0]
    for k in range(1, len(corners) - 1):
        if np.abs(corners[k] - corners[kept[-1]]).max() > _SLACK:
            kept.append(k)
    return corners[[*kept, 0]]


def journeys(evidence: Evidence, projection: Projection) -> dict[str, Any]:
    """From the true to the predicted points.

    Returns:
        `of`: samples; `outside`: those of the shown whose true or predicted point the map doesn't show; `points`: of each sample that is
        shown id, true class, predicted class, km, confidence, whether the first state is right, and the path [[x, y], …] along the great
        circle, of several pieces where the map is cut.
    """
    count = len(evidence)
    # Evenly spread over the errors, so that the few large ones are there.
    order = np.argsort(evidence.km, kind="stable")
    rows = order[np.unique(np.linspace(0, count - 1, min(count, MOST_ON_MAP)).astype(int))]
    truth, answers = evidence.truth.take(rows), evidence.predictions.take(rows)
    starts = to_page(projection, project(projection, truth.latitude, truth.longitude), _WIDTH)
    ends = to_page(projection, project(projection, answers.latitude, answers.longitude), _WIDTH)
    shown = np.isfinite(starts).all(axis=1) & np.isfinite(ends).all(axis=1)
    points = []
    for k in np.flatnonzero(shown)[::-1]:
        row = int(rows[k])
        points.append(
            [
                evidence.ids[row],
                int(evidence.labels[row]),
                int(evidence.ranked[row, 0]),
                round(float(evidence.km[row]), 1),
                round(float(evidence.confidence[row]), 4),
                _path(
                    projection,
                    truth.take(slice(k, k + 1)),
                    answers.latitude[k],
                    answers.longitude[k],
                    starts[k],
                    ends[k],
                    evidence.km[row],
                ),
            ]
        )
    return {"of": count, "shown": len(rows), "outside": int((~shown).sum()), "points": points}


def _path(
    projection: Projection,
    start: Truth,
    latitude: float,
    longitude: float,
    first: NDArray[np.float64],
    last: NDArray[np.float64],
    km: float,
) -> list[list[list[float]]]:
    """The great circle between two points on the map, in pieces."""
    steps = 1 if projection.name == "albers-usa" else int(min(1 + km // _STEP_KM, _STEPS))
    if steps == 1:
        return [np.round([first, last], 1).tolist()]
    a, b = to_unit_vectors(start.latitude, start.longitude)[0], to_unit_vectors(latitude, longitude)
    angle = np.arccos(np.clip(a @ b, -1, 1))
    shares = np.linspace(0, 1, steps + 1)[:, None]
    # Spherical interpolation; of antipodes any way is a great circle, and the straight one is taken.
    sine = np.sin(angle)
    between = (
        (np.sin((1 - shares) * angle) * a + np.sin(shares * angle) * b) / sine
        if sine > 1e-9
        else (1 - shares) * a + shares * b
    )
    line = to_page(projection, project(projection, *to_degrees(between)), _WIDTH)
    jumps = np.flatnonzero(np.abs(np.diff(line[:, 0])) > _WIDTH / 2) + 1
    return [np.round(piece, 1).tolist() for piece in np.split(line, jumps) if len(piece) > 1]


def class_names(evidence: Evidence) -> list[str]:
    """C names, as they can be shown."""
    return [harmless(name) for name in evidence.names]
