"""Confusion matrix, its classes in an order in which neighbours on the ground are neighbours."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.console import counted
from geo_embed.metrics import top_states
from geo_embed.reporting.plots.style import INK, in_house_style, label, new_figure, on_dark, sequential

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COUNTED = 16
# Inches a class, and the most that all of them may take.
_CELL, _MOST_INCHES = 0.17, 14.0


def confusion_matrix(predictions: Predictions, truth: Truth) -> NDArray[np.int64]:
    """(C, C) numbers of samples: true class by row, first answer by column. Raises GeoError for a true state that is no class."""
    classes = len(predictions.labels)
    labels = predictions.labels.encode(truth.state_idx)
    answers = top_states(predictions.probabilities, 1)[:, 0]
    return np.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)


@in_house_style
def confusion_figure(
    predictions: Predictions, truth: Truth, order: NDArray[np.int64], *, rows: str
) -> "Figure":
    """Which class was answered for which, as shares of the true class's samples.

    Args:
        predictions, truth: of the same N samples.
        order: (C,) classes from top to bottom and left to right; those that are neither true nor answered are left out.
        rows: which samples these are, for the title.
    """
    counts = confusion_matrix(predictions, truth)
    kept = order[(counts.sum(axis=0) + counts.sum(axis=1) > 0)[order]]
    counts = counts[np.ix_(kept, kept)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [label(predictions.labels.names[k]) for k in kept]
    n = len(kept)
    side = float(np.clip(_CELL * n, 3.2, _MOST_INCHES))
    right = int(np.trace(counts))
    subtitle = (
        f"Rows are true classes, columns first answers, neighbours on the ground side by side; a row sums to 100\u00a0%. "
        f"{right:,} of {counts.sum():,} lie on the diagonal."
    )
    if n < len(order):
        subtitle += f" {counted(len(order) - n, 'class occurs', 'classes occur')} in neither."
    # Room for the names, by their longest, and for the scale.
    written = 0.3 + 0.062 * max((len(name) for name in names), default=0)
    figure = new_figure(side + written + 1.0, side + written + 0.1, f"Confusion of {rows}", subtitle)
    axes = figure.add_subplot()
    axes.set_anchor("NW")
    image = axes.imshow(
        np.where(counts > 0, shares, np.nan), cmap=sequential(), vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_facecolor("white")
    # Names that stand: as many as there is room for.
    step = max(1, int(np.ceil(n * 0.115 / side)))
    places = np.arange(0, n, step)
    size = 7.0 if side / max(n, 1) > 0.13 else 5.5
    axes.set_xticks(places, [names[k] for k in places], rotation=90, fontsize=size)
    axes.set_yticks(places, [names[k] for k in places], fontsize=size)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(-0.5, n), minor=True)
    axes.set_yticks(np.arange(-0.5, n), minor=True)
    axes.grid(which="minor", color="#efefef", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("first answer")
    axes.set_ylabel("true class")
    if n <= _COUNTED:
        colours = sequential()
        for i, j in np.argwhere(counts):
            axes.text(
                j,
                i,
                f"{counts[i, j]:,}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if on_dark(colours(shares[i, j])) else INK,
            )
    bar = figure.colorbar(
        image, ax=axes, shrink=0.5, aspect=30, pad=0.02, anchor=(0.0, 1.0), label="share of the true class"
    )
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=[f"{share}\u00a0%" for share in (0, 25, 50, 75, 100)])
    bar.outline.set_visible(False)
    return figure
