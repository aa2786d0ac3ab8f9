"""Maps: predicted points, accuracy by class, soft labels, and where samples lie."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.console import counted
from geo_embed.geography import soft_labels
from geo_embed.metrics import WITHIN_KM, error_km
from geo_embed.reporting.outlines import Outlines
from geo_embed.reporting.plots.land import draw_land, lines_between, map_size, on_map, owed
from geo_embed.reporting.plots.style import (
    BLUE,
    FAINT,
    INK,
    SOFT,
    along_viridis,
    in_house_style,
    label,
    new_figure,
    sequential,
)
from geo_embed.reporting.projections import Projection, project

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_WIDTH: Final = 9.0
# Lines on one map; of more samples every so manieth is shown.
_LINES: Final = 3000
_BARS: Final = 120
_BESIDE: Final = 36
_COLUMNS: Final = 5
# Error marks that a map's scale shows.
_MARKS_KM = tuple(km for km in WITHIN_KM if km in (25, 200, 750, 2500))


@in_house_style
def predictions_map(
    predictions: Predictions,
    truth: Truth,
    drawn: Outlines,
    projection: Projection,
    *,
    rows: str,
    most: int = _LINES,
) -> "Figure":
    """A line from where each sample is to where it was predicted, coloured by its length.

    Args:
        predictions, truth: of the same N samples.
        drawn, projection: the map.
        rows: which samples these are, for the title.
        most: lines at most; of more samples evenly spread ones are shown, by error, so that near and far keep their shares.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm

    km = error_km(predictions, truth)
    order = np.argsort(km, kind="stable")
    shown = order if len(order) <= most else order[np.linspace(0, len(order) - 1, most).astype(int)]
    true_points = project(projection, truth.latitude, truth.longitude)
    answered = project(projection, predictions.latitude, predictions.longitude)
    beside = int((~on_map(projection, true_points) | ~on_map(projection, answered)).sum())
    parts = [
        f"A dot is where a sample is, its line ends where it was predicted. Half of them are within {np.median(km):,.0f} km."
        if len(km)
        else ""
    ]
    if len(shown) < len(order):
        parts.append(f"{counted(len(shown), 'line')} of {len(order):,}, evenly by error.")
    if beside:
        parts.append(f"{counted(beside, 'line ends', 'lines end')} beside this map.")

    _, height = map_size(projection, _WIDTH)
    figure = new_figure(
        _WIDTH, height + 0.55, f"Predicted points of {rows}", " ".join(parts), owed(drawn, projection)
    )
    axes = figure.add_subplot()
    draw_land(axes, drawn, projection)
    norm, colours = LogNorm(_MARKS_KM[0] / 5, _MARKS_KM[-1] * 2, clip=True), along_viridis()
    shades = colours(norm(np.maximum(km, 1e-3))) if len(km) else np.zeros((0, 4))
    # The longest below, or they would hide all others.
    shown = shown[::-1]
    arcs = lines_between(
        projection,
        truth.latitude[shown],
        truth.longitude[shown],
        predictions.latitude[shown],
        predictions.longitude[shown],
    )
    many = len(shown) > 400
    axes.add_collection(
        LineCollection(arcs, colors=shades[shown], linewidths=0.5 if many else 0.9, alpha=0.75, zorder=3),
        autolim=False,
    )
    axes.scatter(
        true_points[shown, 0],
        true_points[shown, 1],
        s=5 if many else 11,
        c=shades[shown],
        linewidths=0.4,
        edgecolors="white",
        zorder=4,
        rasterized=many,
    )
    _colour_scale(figure, axes, norm, colours, "error (km)", _MARKS_KM)
    return figure


@in_house_style
def accuracy_map(
    accuracy: Sequence[float | None],
    samples: Sequence[int],
    names: Sequence[str],
    drawn: Outlines,
    projection: Projection,
    *,
    rows: str,
) -> "Figure":
    """Each class in the shade of its top-1 accuracy.

    Args:
        accuracy: (C,) in [0, 1], None where there is no sample.
        samples: (C,) how many there are.
        names: (C,) what to write on the map where it fits.
        drawn, projection: the map.
        rows: which samples these are, for the title.
    """
    from matplotlib.colors import Normalize

    norm, colours = Normalize(0, 1), sequential()
    fill = ["white" if value is None else colours(norm(value)) for value in accuracy]
    sparse = sum(1 for n in samples if 0 < n < 5)
    empty = sum(1 for n in samples if not n)
    subtitle = "The share of a class's samples whose first answer is right."
    subtitle += {0: "", 1: " The class without a sample is white."}.get(
        empty, f" {empty} classes without a sample are white."
    )
    subtitle += {0: "", 1: " One has fewer than five: its shade says little."}.get(
        sparse, f" {sparse} have fewer than five: their shades say little."
    )
    _, height = map_size(projection, _WIDTH)
    figure = new_figure(
        _WIDTH, height + 0.55, f"Accuracy by class of {rows}", subtitle, owed(drawn, projection)
    )
    axes = figure.add_subplot()
    draw_land(axes, drawn, projection, fill, names=names)
    _colour_scale(figure, axes, norm, colours, "top-1 accuracy", (0, 0.25, 0.5, 0.75, 1), percent=True)
    return figure


@in_house_style
def places_map(
    labels: NDArray[np.int64],
    latitude: Floats,
    longitude: Floats,
    names: Sequence[str],
    drawn: Outlines,
    projection: Projection,
    *,
    rows: str,
) -> "Figure":
    """Where samples lie, and how many of each class there are.

    Args:
        labels: (N,) classes.
        latitude, longitude: (N,) degrees.
        names: C class names.
        drawn, projection: the map.
        rows: which samples these are, for the title.
    """
    counts = np.bincount(labels, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    listed, rest = order[:_BARS], order[_BARS:]
    values = [*counts[listed], *([counts[rest].sum()] if len(rest) else [])]
    texts = [label(names[k]) for k in listed] + ([counted(len(rest), "other")] if len(rest) else [])
    subtitle = (
        f"{len(names):,} classes of {counts.min():,} to {counts.max():,} samples, {np.median(counts):,.0f} in the middle."
        if len(counts)
        else ""
    )
    # A few bars stand beside the map, many below it in columns.
    columns = 1 if len(values) <= _BESIDE else _COLUMNS
    lines = -(-len(values) // columns)
    width, bars_height = 10.0, 0.135 * lines + 0.6
    _, map_height = map_size(projection, 7.0 if columns == 1 else width, 6.5)
    height = max(map_height, bars_height) if columns == 1 else map_height + bars_height
    figure = new_figure(width, height, f"Where {rows} lie", subtitle, owed(drawn, projection))
    if columns == 1:
        grid = figure.add_gridspec(1, 2, width_ratios=[7.0, 3.0])
        cells = [grid[1]]
    else:
        grid = figure.add_gridspec(2, 1, height_ratios=[map_height, bars_height])
        below = grid[1].subgridspec(1, columns)
        cells = [below[k] for k in range(columns)]
    axes = figure.add_subplot(grid[0])
    draw_land(axes, drawn, projection)
    axes.set_anchor("N")
    points = project(projection, latitude, longitude)
    size = float(np.clip(6000 / max(len(points), 1), 0.6, 9))
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=size,
        c=BLUE,
        alpha=0.6,
        linewidths=0,
        zorder=4,
        rasterized=len(points) > 2000,
    )
    for k, cell in enumerate(cells):
        part = slice(k * lines, (k + 1) * lines)
        _bars(
            figure.add_subplot(cell),
            values[part],
            texts[part],
            "samples" if k == 0 else "",
            max(values, default=1),
            lines,
        )
    return figure


@in_house_style
def soft_labels_map(
    distances_km: Floats,
    true_class: int,
    names: Sequence[str],
    drawn: Outlines,
    projection: Projection,
    taus_km: Sequence[float],
    *,
    own_tau_km: float | None = None,
) -> "Figure":
    """What haversine label smoothing makes of one class's label at several temperatures: a map for each.

    Args:
        distances_km: (C, C) between the classes' centroids.
        true_class: which one is true.
        names: C names.
        drawn, projection: the map.
        taus_km: temperatures in km.
        own_tau_km: the one that a run was trained with, to be marked.
    """
    from matplotlib.colors import LogNorm

    norm, colours = LogNorm(1e-3, 1.0, clip=True), sequential()
    columns = 1 if len(taus_km) == 1 else 2
    lines = -(-len(taus_km) // columns)
    panel = 9.6 / columns
    _, height = map_size(projection, panel, 4.2)
    title = f"Soft labels of a sample in {label(names[true_class])}"
    subtitle = "The share of the label that each class gets, exp(−d/τ) over the distance d of the classes' centroids. The outlined class is the true one."
    figure = new_figure(9.6, lines * (height + 0.3) + 0.55, title, subtitle, owed(drawn, projection))
    grid = figure.add_gridspec(lines, columns)
    axes = []
    for k, tau in enumerate(taus_km):
        shares = soft_labels(distances_km, tau)[true_class]
        axes.append(figure.add_subplot(grid[k // columns, k % columns]))
        draw_land(
            axes[-1], drawn, projection, [colours(norm(max(share, 1e-9))) for share in shares], scale=False
        )
        _outline(axes[-1], drawn, projection, true_class)
        suffix = ", as this run was trained" if own_tau_km is not None and np.isclose(tau, own_tau_km) else ""
        axes[-1].set_title(
            f"τ = {tau:,g} km{suffix}: {100 * shares[true_class]:.0f}\u00a0% on the true class"
        )
    _colour_scale(figure, axes, norm, colours, "share of the label", (1e-3, 1e-2, 0.1, 1.0), percent=True)
    return figure


def _outline(axes: "Axes", drawn: Outlines, projection: Projection, k: int) -> None:
    from geo_embed.reporting.projections import project_rings

    for piece in project_rings(projection, drawn.rings[k]):
        axes.plot(*piece.T, color=INK, linewidth=0.8, zorder=5, scalex=False, scaley=False)


def _bars(
    axes: "Axes", values: Sequence[Any], texts: Sequence[str], title: str, most: int, lines: int
) -> None:
    """Horizontal bars with their numbers, the first one on top, in room for so many and so long ones."""
    places = np.arange(len(values))
    axes.barh(places, values, height=0.72, color=BLUE)
    axes.set_ylim(lines - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max(most, 1))
    axes.set_yticks(places, texts, fontsize=6.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:,}",
            (value, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color=SOFT,
        )
    axes.set_title(title)


def _colour_scale(
    figure: "Figure",
    axes: Any,
    norm: Any,
    colours: Any,
    text: str,
    marks: Sequence[float],
    *,
    percent: bool = False,
) -> "ScalarMappable":
    from matplotlib.cm import ScalarMappable

    shades = ScalarMappable(norm, colours)
    bar = figure.colorbar(
        shades,
        ax=axes,
        orientation="horizontal",
        shrink=0.4,
        aspect=38,
        pad=0.02,
        anchor=(0.0, 1.0),
        label=text,
    )
    bar.ax.minorticks_off()
    bar.set_ticks(
        list(marks), labels=[f"{100 * mark:g}\u00a0%" if percent else f"{mark:,g}" for mark in marks]
    )
    bar.outline.set_visible(False)
    return shades
