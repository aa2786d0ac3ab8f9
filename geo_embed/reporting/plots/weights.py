"""What each view weighs where the views of a sample become one vector: attention, gates, learnt shares."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geo_embed.reporting.plots.style import (
    BLUE,
    INK,
    SOFT,
    VERMILLION,
    diverging,
    in_house_style,
    label,
    new_figure,
    on_dark,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 80


@in_house_style
def view_weights_figure(
    weights: NDArray[np.floating],
    view_names: Sequence[str],
    labels: NDArray[np.int64],
    names: Sequence[str],
    order: NDArray[np.int64],
    *,
    rows: str,
    how: str,
) -> "Figure":
    """The shares of the views: how they spread over the samples, and their mean in each class.

    Args:
        weights: (N, V) non-negative, rows sum to 1 over the views that there are; 0 or NaN for one that is absent.
        view_names: V names.
        labels: (N,) classes.
        names: C names.
        order: (C,) classes from top to bottom; those without samples are left out.
        rows: which samples these are, for the title.
        how: what weighs them, for the line below.
    """
    shares = 100 * np.where(weights > 0, weights, np.nan)
    views = len(view_names)
    kept = [int(k) for k in order if (labels == k).any()][:_MOST]
    figure_height = max(3.2, 0.15 * len(kept) + 1.0)
    figure = new_figure(
        9.0,
        figure_height,
        f"What each view weighs for {rows}",
        f"{how} All alike would be {100 / views:.0f}\u00a0%, the dashed line: blue is more, orange is less.",
    )
    grid = figure.add_gridspec(1, 2, width_ratios=[1.1, 1])
    boxes = figure.add_subplot(grid[0])
    columns = [column[np.isfinite(column)] for column in shares.T]
    boxes.boxplot(
        [column if len(column) else [np.nan] for column in columns],
        whis=(5, 95),
        showfliers=False,
        widths=0.55,
        patch_artist=True,
        medianprops={"color": INK, "linewidth": 1.4},
        whiskerprops={"color": SOFT},
        capprops={"color": SOFT},
        boxprops={"facecolor": "#cfe3f0", "edgecolor": BLUE},
    )
    boxes.axhline(100 / views, color=VERMILLION, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    texts = [label(name, 12) for name in view_names]
    boxes.set_xticks(np.arange(1, views + 1), texts, rotation=0 if views <= 6 else 60)
    boxes.set_ylabel("share (%)")
    boxes.set_title("over the samples: median, middle half, middle 90 %")
    boxes.grid(axis="y")

    heat = figure.add_subplot(grid[1])
    with np.errstate(invalid="ignore"):
        means = np.array([[_mean(shares[labels == k, v]) for v in range(views)] for k in kept])
    colours, even = diverging(), 100 / views
    reach = max(float(np.nanmax(np.abs(means - even), initial=0.0)), 1.0)
    shades = colours((means - even) / (2 * reach) + 0.5)
    shades[~np.isfinite(means)] = 1.0
    heat.imshow(shades, aspect="auto", interpolation="nearest")
    heat.set_xticks(np.arange(views), texts, rotation=0 if views <= 6 else 60)
    heat.set_yticks(np.arange(len(kept)), [label(names[k]) for k in kept], fontsize=7)
    heat.tick_params(length=0)
    for spine in heat.spines.values():
        spine.set_visible(False)
    heat.set_title("mean in each class (%)")
    if views <= 8:
        for i, j in np.argwhere(np.isfinite(means)):
            heat.text(
                j,
                i,
                f"{means[i, j]:.0f}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if on_dark(shades[i, j]) else INK,
            )
    return figure


def _mean(values: NDArray[np.floating]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
