"""Maps to draw on: outlines, a net of degrees or a scale in km, names where they fit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.geography import EARTH_RADIUS_KM, to_degrees, to_unit_vectors, wrap_longitude
from geo_embed.reporting.outlines import Outlines
from geo_embed.reporting.plots.style import AROUND, FAINT, INK, LAND, SOFT, label, on_dark
from geo_embed.reporting.projections import Projection, page_height, project, project_rings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path

Floats = NDArray[np.float64]

# Points of a great circle's line, and of a line of the net.
_STEPS, _NET_STEPS = 33, 181
_NET_DEGREES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 45)
_NAME_POINTS = 6.0


def map_size(projection: Projection, width: float, highest: float = 7.5) -> tuple[float, float]:
    """Width and height in inches of a map that is `width` wide, or less where it would be higher than `highest`."""
    height = page_height(projection, width)
    return (width, height) if height <= highest else (width * highest / height, highest)


def draw_land(
    axes: "Axes",
    drawn: Outlines,
    projection: Projection,
    fill: Sequence[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    scale: bool = True,
) -> None:
    """The map itself: areas around, the classes' outlines, and a scale.

    Args:
        axes: to draw on; they lose their ticks.
        drawn: C outlines.
        projection: of the map.
        fill: the colour of each class; default: that of land.
        names: what to write on each class where that fits, "" for nothing.
        scale: draw a bar of kilometres, and lines of degrees.
    """
    from matplotlib.collections import PathCollection

    left, right, lower, upper = projection.frame
    axes.set_xlim(left, right)
    axes.set_ylim(lower, upper)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(projection.name != "albers-usa")
        spine.set_color(FAINT)
    if scale and projection.name != "albers-usa":
        _draw_net(axes, projection)
    around = project_rings(projection, drawn.context)
    if around:
        axes.add_collection(
            PathCollection([_path(around)], facecolors=AROUND, edgecolors=FAINT, linewidths=0.5, zorder=1),
            autolim=False,
        )
    pieces = [project_rings(projection, rings) for rings in drawn.rings]
    # The largest first: a country in the middle of another one stays to be seen.
    order = sorted(
        (k for k, parts in enumerate(pieces) if parts), key=lambda k: -sum(abs(_area(p)) for p in pieces[k])
    )
    colours = [LAND] * len(pieces) if fill is None else list(fill)
    axes.add_collection(
        PathCollection(
            [_path(pieces[k]) for k in order],
            facecolors=[colours[k] for k in order],
            edgecolors="#b3bdc4" if fill is not None else "white" if drawn.region == "us" else "#c4c4c4",
            linewidths=0.6 if fill is None else 0.4,
            zorder=2,
        ),
        autolim=False,
    )
    if scale and projection.name != "equal-earth":
        _draw_scale(axes, projection)
    if names is not None:
        _write_names(axes, pieces, order, names, colours)


def owed(drawn: Outlines, projection: Projection) -> str:
    """What to say below a map: whom it is owed to, and how to read it."""
    inset = (
        "; Alaska is drawn at 0.35 of the scale of the lower 48 states"
        if projection.name == "albers-usa"
        else ""
    )
    return drawn.credit + inset


def on_map(projection: Projection, points: Floats) -> NDArray[np.bool_]:
    """Which points (N, 2) of the plane are to be seen."""
    left, right, lower, upper = projection.frame
    x, y = points.T
    return np.asarray((x >= left) & (x <= right) & (y >= lower) & (y <= upper))


def lines_between(
    projection: Projection,
    latitude: ArrayLike,
    longitude: ArrayLike,
    other_latitude: ArrayLike,
    other_longitude: ArrayLike,
) -> list[Floats]:
    """The great circle's arcs between N pairs of points in degrees, on the plane: each (L, 2), with NaN where the map is cut.

    On the three panels of the US they are straight: an arc between two of them would end at their edges.
    """
    first, second = (
        np.asarray(to_unit_vectors(lat, lon))
        for lat, lon in ((latitude, longitude), (other_latitude, other_longitude))
    )
    if projection.name == "albers-usa":
        ends = [project(projection, *to_degrees(points)) for points in (first, second)]
        return list(np.stack(ends, axis=1))
    share = np.linspace(0, 1, _STEPS)[None, :, None]
    angle = np.arccos(np.clip((first * second).sum(axis=1), -1, 1))[:, None, None]
    # Spherical linear interpolation (Shoemake, SIGGRAPH 1985); points in one place stay there.
    sine = np.where(angle > 1e-9, np.sin(angle), 1.0)
    arcs = np.where(
        angle > 1e-9,
        (np.sin((1 - share) * angle) * first[:, None] + np.sin(share * angle) * second[:, None]) / sine,
        first[:, None],
    )
    points = project(projection, *(part.ravel() for part in to_degrees(arcs))).reshape(len(first), _STEPS, 2)
    jumps = np.abs(np.diff(points[..., 0], axis=1)) > 1.5
    points[:, 1:][jumps] = np.nan
    return list(points)


def _draw_net(axes: "Axes", projection: Projection) -> None:
    """Lines of whole degrees, their numbers at the left and lower edge."""
    left, right, lower, upper = projection.frame
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(left, right, 25), np.linspace(lower, upper, 25)))
    lat, lon = _inverse(projection, x, y)
    if not np.isfinite(lat).any():
        return
    turned = wrap_longitude(lon - projection.longitude)
    south, north = float(np.nanmin(lat)), float(np.nanmax(lat))
    west, east = float(np.nanmin(turned)), float(np.nanmax(turned))
    step = next((s for s in _NET_DEGREES if max(north - south, (east - west) * 0.7) / s <= 6), 45)
    first = np.ceil(west + projection.longitude) - 1
    meridians = np.arange(np.floor(first / step), np.floor((east + projection.longitude) / step) + 1) * step
    parallels = np.arange(np.ceil(south / step), np.floor(north / step) + 1) * step
    along_lat = np.linspace(max(south - 2 * step, -90), min(north + 2 * step, 90), _NET_STEPS)
    along_lon = (
        np.linspace(max(west - step, -180), min(east + step, 180), _NET_STEPS) * (1 - 1e-9)
        + projection.longitude
    )
    for value in meridians:
        if abs(value - projection.longitude) <= 180:
            line = project(projection, along_lat, np.full(_NET_STEPS, value))
            axes.plot(*line.T, color=FAINT, linewidth=0.4, zorder=0.5, scalex=False, scaley=False)
            _number(
                axes,
                line[:, ::-1],
                lower,
                (left, right),
                _degrees(float(wrap_longitude(value)), "E", "W"),
                at_left=False,
            )
    for value in parallels:
        line = project(projection, np.full(_NET_STEPS, value), along_lon)
        axes.plot(*line.T, color=FAINT, linewidth=0.4, zorder=0.5, scalex=False, scaley=False)
        _number(axes, line, left, (lower, upper), _degrees(float(value), "N", "S"), at_left=True)


def _number(
    axes: "Axes", line: Floats, edge: float, within: tuple[float, float], text: str, *, at_left: bool
) -> None:
    """A line's number where it crosses an edge: the line's first column passes `edge`, its second is the place along it."""
    crossing = np.flatnonzero((line[:-1, 0] - edge) * (line[1:, 0] - edge) <= 0)
    for k in crossing[:1]:
        a, b = line[k], line[k + 1]
        share = 0.0 if a[0] == b[0] else (edge - a[0]) / (b[0] - a[0])
        place = a[1] + share * (b[1] - a[1])
        if within[0] <= place <= within[1]:
            at, offset = ((edge, place), (-3, 0)) if at_left else ((place, edge), (0, -3))
            axes.annotate(
                text,
                at,
                offset,
                textcoords="offset points",
                ha="right" if at_left else "center",
                va="center" if at_left else "top",
                fontsize=6.5,
                color=SOFT,
                annotation_clip=False,
            )


def _degrees(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):g}°{'' if value in (0, 180, -180) else positive if value > 0 else negative}"


def _inverse(projection: Projection, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Roughly where on Earth points (N,) of the plane are, NaN beside it: the nearest of a net of points."""
    from scipy.spatial import cKDTree

    lat, lon = np.meshgrid(np.linspace(-90, 90, 181), projection.longitude + np.linspace(-179.9, 179.9, 361))
    points = project(projection, lat.ravel(), lon.ravel())
    away, nearest = cKDTree(points).query(np.stack([x, y], axis=1))
    near = away < 0.03
    return np.where(near, lat.ravel()[nearest], np.nan), np.where(near, lon.ravel()[nearest], np.nan)


def _draw_scale(axes: "Axes", projection: Projection) -> None:
    """A bar of round kilometres at the lower right, true on the standard parallels."""
    left, right, lower, upper = projection.frame
    most = 0.2 * (right - left) * EARTH_RADIUS_KM
    unit = 10 ** np.floor(np.log10(most))
    km = float(max(k for k in (unit, 2 * unit, 5 * unit) if k <= most))
    length = km / EARTH_RADIUS_KM
    x, y = right - 0.02 * (right - left) - length, lower + 0.03 * (upper - lower)
    axes.plot(
        [x, x + length],
        [y, y],
        color=INK,
        linewidth=1.2,
        solid_capstyle="butt",
        zorder=6,
        scalex=False,
        scaley=False,
    )
    axes.annotate(
        f"{km:,g} km",
        (x + length, y),
        (0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7,
        color=INK,
        zorder=6,
    )


def _write_names(
    axes: "Axes", pieces: list[list[Floats]], order: list[int], names: Sequence[str], colours: list[Any]
) -> None:
    """Names on the largest piece of each class, the largest class first, where the piece is wide enough and no other name stands."""
    left, right, lower, upper = axes.get_xlim()[0], axes.get_xlim()[1], axes.get_ylim()[0], axes.get_ylim()[1]
    # Before the layout is made, the room that the grid gives is the best guess of how wide the map will be.
    spec, figure = axes.get_subplotspec(), axes.get_figure(root=True)
    share = 1.0 if spec is None or figure is None else spec.get_position(figure).width
    inches = 5.0 if figure is None else figure.get_size_inches()[0] * share
    unit = (right - left) / (inches * 72)
    taken: list[tuple[float, float, float, float]] = []
    for k in order:
        text = label(names[k], 14)
        if not text:
            continue
        piece = max(pieces[k], key=lambda p: abs(_area(p)))
        x, y = _middle(piece)
        half_width, half_height = 0.36 * len(text) * _NAME_POINTS * unit, 0.62 * _NAME_POINTS * unit
        box = (x - half_width, x + half_width, y - half_height, y + half_height)
        fits = np.ptp(piece[:, 0]) > 1.6 * half_width and np.ptp(piece[:, 1]) > 2 * half_height
        inside = box[0] > left and box[1] < right and box[2] > lower and box[3] < upper
        free = all(box[0] > b[1] or box[1] < b[0] or box[2] > b[3] or box[3] < b[2] for b in taken)
        if fits and inside and free:
            taken.append(box)
            axes.text(
                x,
                y,
                text,
                fontsize=_NAME_POINTS,
                ha="center",
                va="center",
                color="white" if on_dark(colours[k]) else INK,
                zorder=5,
            )


def _path(pieces: list[Floats]) -> "Path":
    from matplotlib.path import Path

    return Path.make_compound_path(*(Path(piece, closed=True) for piece in pieces))


def _area(piece: Floats) -> float:
    return float((piece[:-1, 0] * piece[1:, 1] - piece[1:, 0] * piece[:-1, 1]).sum() / 2)


def _middle(piece: Floats) -> Floats:
    """The centroid of a closed piece (Bourke, 1988)."""
    cross = piece[:-1, 0] * piece[1:, 1] - piece[1:, 0] * piece[:-1, 1]
    total = cross.sum()
    if abs(total) < 1e-15:
        return np.asarray(piece.mean(axis=0))
    return np.asarray(((piece[:-1] + piece[1:]) * cross[:, None]).sum(axis=0) / (3 * total))
