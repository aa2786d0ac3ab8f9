"""How often each class occurs: in training, among the samples, and in the answers for them."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.console import counted
from geo_embed.metrics import top_states
from geo_embed.reporting.plots.style import BLUE, FAINT, INK, SOFT, in_house_style, label, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 80


@in_house_style
def distribution_figure(
    predictions: Predictions, truth: Truth | None, training: NDArray[np.integer[Any]], *, rows: str
) -> "Figure":
    """Each class's share of the first answers, of the true classes where these are known, and of the training samples.

    Args:
        predictions: of N samples.
        truth: of the same, or None.
        training: (C,) training samples of each class.
        rows: which samples these are, for the title.
    """
    classes = len(predictions.labels)
    answered = np.bincount(top_states(predictions.probabilities, 1)[:, 0], minlength=classes)
    true = (
        None if truth is None else np.bincount(predictions.labels.encode(truth.state_idx), minlength=classes)
    )
    order = np.argsort(-training, kind="stable")
    listed = order[:_MOST]

    def share(counts: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(100 * counts / max(counts.sum(), 1))

    subtitle = f"{counted(len(predictions), 'sample')}, {training.sum():,} in training; classes by their number there."
    if len(listed) < classes:
        subtitle += f" The {classes - len(listed)} rarest are left out."
    figure = new_figure(
        7.5,
        0.155 * len(listed) + 1.0,
        f"Classes of {rows}: answered{' and true' if true is not None else ''}",
        subtitle,
    )
    axes = figure.add_subplot()
    places = np.arange(len(listed))
    axes.barh(places, share(training)[listed], height=0.8, color="#e3e3e3", label="training")
    # A class that nobody answers and that isn't there has nothing to show.
    kept = answered[listed] > 0 if true is None else (answered + true)[listed] > 0
    if true is not None:
        axes.hlines(places, share(true)[listed], share(answered)[listed], color=BLUE, linewidth=1.2)
        ring: dict[str, Any] = {
            "color": "white",
            "markeredgecolor": INK,
            "markersize": 5.6,
            "markeredgewidth": 1,
            "clip_on": False,
        }
        axes.plot(share(true)[listed][kept], places[kept], "o", label="true", zorder=3, **ring)
    axes.plot(
        share(answered)[listed][kept],
        places[kept],
        "o",
        color=BLUE,
        markersize=3.6,
        label="first answer",
        zorder=4,
        clip_on=False,
    )
    axes.set_yticks(places, [label(predictions.labels.names[k]) for k in listed], fontsize=7)
    axes.set_ylim(len(listed) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0, pad=7)
    axes.spines["left"].set_color(FAINT)
    axes.grid(axis="x")
    axes.set_xlabel("share of the samples (%)", color=SOFT)
    axes.legend(loc="lower right")
    return figure
