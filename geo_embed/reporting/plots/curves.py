"""Training curves: loss, score and learning rate by epoch; or what the trials of a race scored."""

from typing import TYPE_CHECKING

import numpy as np

from geo_embed.console import counted
from geo_embed.errors import GeoError
from geo_embed.reporting.plots.style import (
    BLUE,
    COLOURS,
    FAINT,
    GREEN,
    SOFT,
    VERMILLION,
    in_house_style,
    label,
    new_figure,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SCORES = (
    ("val_score", "score", BLUE),
    ("val_state_score", "states", GREEN),
    ("val_gps_score", "GPS", VERMILLION),
)


@in_house_style
def training_curves(history: "pd.DataFrame", *, run: str) -> "Figure":
    """How a training went.

    Args:
        history: of a run: a row per epoch (`epoch`, `train_loss`, `val_score`, …), of every seed and fold; or a row per trial of a race
            (`member`, `score`, …).
        run: its name, for the title.

    Raises:
        GeoError: there is no row, or none of these columns.
    """
    if len(history) and "epoch" in history and history["epoch"].notna().any():
        return _epochs(history, run)
    if len(history) and {"member", "score"} <= set(history.columns):
        return _trials(history, run)
    raise GeoError(
        "nothing was noted of how this run was trained",
        where=run,
        hint="of an ensemble, plot a member: geo plot curves MEMBER; --preset best notes nothing where samples are too few to choose by",
    )


def _epochs(history: "pd.DataFrame", run: str) -> "Figure":
    keys = [key for key in ("seed", "fold") if key in history and history[key].nunique() > 1]
    fits = [part for _, part in history.groupby(keys)] if keys else [history]
    losses = [
        c
        for c in map(str, history)
        if c.startswith("train_") and c.endswith("loss") and history[c].notna().any()
    ]
    losses = sorted(losses, key=lambda name: (name != "train_loss", name))
    panels: list[tuple[str, list[tuple[str, str, str]]]] = []
    if losses:
        shown = [
            (
                c,
                c.removeprefix("train_").removesuffix("_loss").replace("_", " ")
                if c != "train_loss"
                else "whole loss",
                COLOURS[k % len(COLOURS)],
            )
            for k, c in enumerate(losses)
        ]
        panels.append(("training loss", shown))
    scores = [(c, text, colour) for c, text, colour in _SCORES if c in history and history[c].notna().any()]
    if scores:
        panels.append(("score of samples not trained on", scores))
    if "val_nll" in history and history["val_nll"].notna().any():
        panels.append(("their negative log-likelihood", [("val_nll", "nll", BLUE)]))
    if "learning_rate" in history and history["learning_rate"].notna().any():
        panels.append(("learning rate", [("learning_rate", "rate", SOFT)]))
    if not panels:
        raise GeoError(
            "the run's history has epochs, and nothing about them", where=run, hint="train it again"
        )
    columns = len(panels) if len(panels) <= 3 else 2
    lines = -(-len(panels) // columns)
    subtitle = counted(len(history), "epoch")
    if len(fits) > 1:
        subtitle = f"{counted(len(fits), 'fit')} ({' and '.join(f'{history[key].nunique()} {key}s' for key in keys)}), thin, and their mean. Epochs of one fit may end early"
    if any("val" in c for c, *_ in scores):
        subtitle += (
            ". The samples of these scores may have chosen the epoch: geo evaluate says what the run is worth"
        )
    figure = new_figure(9.0, 2.6 * lines, f"Training of run {label(run, 60)}", subtitle + ".")
    grid = figure.add_gridspec(lines, columns)
    for k, (title, curves) in enumerate(panels):
        axes = figure.add_subplot(grid[k // columns, k % columns])
        axes.set_title(title)
        axes.grid(axis="y")
        ends = []
        for column, text, colour in curves:
            for part in fits:
                axes.plot(
                    part["epoch"],
                    part[column],
                    color=colour,
                    linewidth=1.6 if len(fits) == 1 else 0.5,
                    alpha=1.0 if len(fits) == 1 else 0.5,
                    marker="o" if len(part) < 3 else None,
                    markersize=3,
                )
            mean = history.groupby("epoch")[column].mean()
            if len(fits) > 1:
                axes.plot(mean.index, mean, color=colour)
            if len(curves) > 1 and mean.notna().any():
                last = mean.dropna()
                ends.append((float(last.index[-1]), float(last.iloc[-1]), text, colour))
        _name_ends(axes, ends)
        axes.set_xlabel("epoch")
        _whole_epochs(axes, int(history["epoch"].max()))
    return figure


def _name_ends(axes: "Axes", ends: list[tuple[float, float, str, str]]) -> None:
    """Names to the right of the curves, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    place = -np.inf
    for x, y, text, colour in sorted(ends, key=lambda end: end[1]):
        place = max(y, place + (high - low) * 0.075)
        axes.annotate(
            text,
            (x, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=colour,
            annotation_clip=False,
        )


def _whole_epochs(axes: "Axes", last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(min(8, max(last, 1)), integer=True))


def _trials(history: "pd.DataFrame", run: str) -> "Figure":
    table = history.groupby("member", sort=False).agg(
        score=("score", "mean"), low=("score", "min"), high=("score", "max"), n=("score", "size")
    )
    table = table.sort_values("score", ascending=False)
    places = np.arange(len(table))
    figure = new_figure(
        7.5,
        0.26 * len(table) + 0.7,
        f"What raced for run {label(run, 60)}",
        "Scores of training samples that were held out to choose among these: too good for what was chosen. geo evaluate says what the run is worth.",
    )
    axes = figure.add_subplot()
    low = float(table["low"].min())
    axes.hlines(places, low - 1, table["score"], color=FAINT, linewidth=1)
    if (table["n"] > 1).any():
        axes.hlines(places, table["low"], table["high"], color=BLUE, linewidth=1.4)
    axes.plot(table["score"], places, "o", color=BLUE, markersize=5)
    for place, value in enumerate(table["score"]):
        axes.annotate(
            f"{value:.3f}",
            (value, place),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=SOFT,
        )
    axes.set_yticks(places, [label(str(name), 40) for name in table.index])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    spread = max(float(table["high"].max()) - low, 0.01)
    axes.set_xlim(low - 0.1 * spread, low + 1.12 * spread)
    axes.set_xlabel("score, mean of all folds and seeds" if (table["n"] > 1).any() else "score")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure
