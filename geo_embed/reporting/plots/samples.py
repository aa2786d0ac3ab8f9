"""Samples as they are looked at: their views, what was answered, and what is true."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.reporting.outlines import Outlines
from geo_embed.reporting.plots.land import draw_land, lines_between, map_size, owed
from geo_embed.reporting.plots.style import (
    BLUE,
    FAINT,
    INK,
    SOFT,
    VERMILLION,
    bare,
    in_house_style,
    label,
    new_figure,
)
from geo_embed.reporting.projections import Projection, project

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TOP = 5
_COLUMNS = 4


@dataclass(frozen=True)
class Shown:
    """A sample as it is shown.

    Attributes:
        sample_id: its id.
        views: (H, W, 3) uint8 of each view, or why there is none.
        probabilities: (C,) of the classes.
        latitude, longitude: the predicted point in degrees.
        true_class: None where the truth isn't known, and so for the next three.
        true_latitude, true_longitude: degrees.
        km: between the two.
    """

    sample_id: str
    views: tuple[NDArray[np.uint8] | str, ...]
    probabilities: NDArray[np.floating[Any]]
    latitude: float
    longitude: float
    true_class: int | None = None
    true_latitude: float | None = None
    true_longitude: float | None = None
    km: float | None = None


@in_house_style
def sample_figure(
    sample: Shown,
    view_names: Sequence[str],
    names: Sequence[str],
    drawn: Outlines,
    projection: Projection,
    *,
    run: str,
) -> "Figure":
    """One sample: its views, its five most probable classes, and the true and the predicted point.

    Args:
        sample: what to show.
        view_names: V names.
        names: C class names.
        drawn, projection: the map.
        run: whose answer it is, for the line below the title.
    """
    order = np.argsort(-sample.probabilities, kind="stable")
    first = int(order[0])
    if sample.true_class is None:
        title, subtitle = (
            f"Sample {label(sample.sample_id, 40)}: {label(names[first])}",
            f"answered by run {label(run, 60)}; its truth isn't known",
        )
    else:
        rank = int(np.flatnonzero(order == sample.true_class)[0]) + 1
        verdict = "rightly" if rank == 1 else f"{label(names[first])}"
        title = f"Sample {label(sample.sample_id, 40)}: {label(names[sample.true_class])}, answered {verdict}"
        subtitle = f"by run {label(run, 60)}; {sample.km:,.0f} km off; the true class is at rank {rank} of {len(names)}"
    seen = any(not isinstance(view, str) for view in sample.views)
    if not seen:
        subtitle += f"; no picture is at hand: {label(next((str(v) for v in sample.views), 'the run has no view'), 80)}"
    columns = min(_COLUMNS, len(view_names))
    lines = -(-len(view_names) // columns) if seen else 0
    width = 9.0
    side = min(width / columns, 3.4) + 0.1
    _, map_height = map_size(projection, width * 0.58, 4.0)
    below = max(map_height, 1.9)
    figure = new_figure(width, lines * side + below + 0.35, title, subtitle, owed(drawn, projection))
    halves = (
        figure.add_gridspec(2, 1, height_ratios=[lines * side, below]) if seen else figure.add_gridspec(1, 1)
    )
    if seen:
        pictures = halves[0].subgridspec(lines, columns)
        for v, (view, name) in enumerate(zip(sample.views, view_names, strict=True)):
            axes = figure.add_subplot(pictures[v // columns, v % columns])
            _picture(axes, view)
            axes.set_title(label(name), fontsize=8, color=SOFT)

    bottom = halves[-1].subgridspec(1, 2, width_ratios=[0.42, 0.58])
    bars = figure.add_subplot(bottom[0])
    shown = [int(k) for k in order[:_TOP]]
    if sample.true_class is not None and sample.true_class not in shown:
        shown.append(sample.true_class)
    places = np.arange(len(shown))
    colours = [VERMILLION if k == sample.true_class else BLUE for k in shown]
    bars.barh(places, 100 * sample.probabilities[shown], height=0.62, color=colours)
    bars.set_yticks(places, [label(names[k]) for k in shown])
    bars.set_ylim(max(len(shown), _TOP) - 0.4, -0.6)
    bars.tick_params(axis="y", length=0)
    bars.set_xlim(0, 118)
    bars.set_xticks([])
    bars.spines["bottom"].set_visible(False)
    bars.spines["left"].set_color(FAINT)
    for place, k in enumerate(shown):
        share = 100 * float(sample.probabilities[k])
        true = ", the true class" if k == sample.true_class else ""
        text = f"{share:.0f}\u00a0%{true}" if share >= 1 else f"< 1\u00a0%{true}"
        inside = share > 55 and true
        bars.annotate(
            text,
            (share, place),
            (-4 if inside else 4, 0),
            textcoords="offset points",
            va="center",
            ha="right" if inside else "left",
            fontsize=7.5,
            color="white" if inside else INK,
        )
    bars.set_title("most probable classes")
    _two_points(figure.add_subplot(bottom[1]), sample, drawn, projection)
    return figure


@in_house_style
def samples_figure(samples: Sequence[Shown], names: Sequence[str], *, title: str, subtitle: str) -> "Figure":
    """A grid of samples, each by its first view that there is, with what is true and what was answered.

    Args:
        samples: what to show, in order.
        names: C class names.
        title, subtitle: which samples these are.
    """
    columns = min(_COLUMNS, max(len(samples), 1))
    lines = max(-(-len(samples) // columns), 1)
    width = 2.25 * columns
    figure = new_figure(max(width, 4.5), lines * 2.78, title, subtitle)
    grid = figure.add_gridspec(lines, columns)
    for k, sample in enumerate(samples):
        axes = figure.add_subplot(grid[k // columns, k % columns])
        pictures = [view for view in sample.views if not isinstance(view, str)]
        _picture(axes, pictures[0] if pictures else next(iter(sample.views), "no view"))
        first = int(np.argmax(sample.probabilities))
        share = f"{100 * float(sample.probabilities[first]):.0f}\u00a0%"
        lines_of_text = [f"{label(sample.sample_id, 30)}"]
        if sample.true_class is None:
            lines_of_text.append(f"{label(names[first], 20)}, {share}")
            colour = INK
        elif sample.true_class == first:
            lines_of_text += [f"{label(names[first], 20)}, rightly, {share}", f"{sample.km:,.0f} km off"]
            colour = BLUE
        else:
            lines_of_text += [
                f"{label(names[sample.true_class], 26)}",
                f"answered {label(names[first], 18)}, {share}; {sample.km:,.0f} km",
            ]
            colour = VERMILLION
        axes.set_xlabel("\n".join(lines_of_text[1:]), fontsize=7, color=colour, loc="left")
        axes.set_title(lines_of_text[0], fontsize=7, color=SOFT)
    return figure


def _picture(axes: "Axes", view: NDArray[np.uint8] | str) -> None:
    """A picture, or in its place the reason why there is none."""
    bare(axes)
    if isinstance(view, str):
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.set_facecolor("#f3f3f3")
        axes.text(0.5, 0.5, _broken(view), ha="center", va="center", fontsize=7.5, color=SOFT)
        return
    axes.imshow(view, interpolation="antialiased", interpolation_stage="rgba")


def _broken(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(label(text, 90), 24))


def _two_points(axes: "Axes", sample: Shown, drawn: Outlines, projection: Projection) -> None:
    """The true and the predicted point on the map, and what lies between them."""
    draw_land(axes, drawn, projection, scale=projection.name == "conic-equal-area")
    answered = project(projection, [sample.latitude], [sample.longitude])[0]
    if sample.true_latitude is not None and sample.true_longitude is not None:
        (line,) = lines_between(
            projection, [sample.true_latitude], [sample.true_longitude], [sample.latitude], [sample.longitude]
        )
        axes.plot(*line.T, color=INK, linewidth=1, zorder=5, scalex=False, scaley=False)
        true_point = project(projection, [sample.true_latitude], [sample.true_longitude])[0]
        axes.plot(
            *true_point, "o", color=VERMILLION, markersize=7, markeredgecolor="white", zorder=6, label="true"
        )
    axes.plot(*answered, "X", color=BLUE, markersize=7, markeredgecolor="white", zorder=6, label="predicted")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=2, handletextpad=0.2)
