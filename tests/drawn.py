"""What a figure looks like, by numbers: what is cut off, and which words lie over one another."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from geo_embed.reporting.plots.style import house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox


def words_of(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Every text that is to be seen, and where, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    with house_style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        shown = [
            text
            for text in figure.findobj(Text)
            if text.get_visible()
            and text.get_text().strip()
            and (text.axes is None or text.axes.get_visible())
        ]
        boxes = [(text, text.get_window_extent(renderer)) for text in shown]
    beyond = _beyond_axes(figure)
    return [(text, box) for text, box in boxes if text not in beyond]


def _beyond_axes(figure: Figure) -> list[Text]:
    """Texts of ticks outside of what their axis shows: they are there, and not drawn."""
    beyond = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-6 * (high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - slack <= tick.get_loc() <= high + slack:
                    beyond += [tick.label1, tick.label2]
    return beyond


def cut_off(figure: Figure) -> list[str]:
    """Texts that reach beyond the figure's edge by more than a pixel."""
    width, height = figure.canvas.get_width_height()
    return [
        text.get_text()
        for text, box in words_of(figure)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that lie over one another by more than two pixels each way."""
    return [
        (first.get_text(), second.get_text())
        for (first, a), (second, b) in combinations(words_of(figure), 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 2 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
    ]


def texts(figure: Figure) -> str:
    """All that is to be read."""
    return "\n".join(text.get_text() for text, _ in words_of(figure))
