"""The look of all figures: one typeface, few colours that colour-blind people can tell apart, a title that says what is shown."""

import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

from geo_embed.console import harmless, warn
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")

# Okabe & Ito, Color Universal Design, 2008.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, SOFT, FAINT, LAND, AROUND = "#222222", "#6b6b6b", "#d9d9d9", "#ececec", "#f7f7f7"
COLOURS: Final = (BLUE, VERMILLION, GREEN, ORANGE, "#56B4E9", "#CC79A7", INK)

FORMATS: Final = (".png", ".svg", ".pdf")
_LONGEST_NAME = 22
_NO_GLYPH: Final = "Glyph .* missing from"
# Letters that the house's typeface lacks are taken from these, where they are installed.
_TYPEFACES = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)
_RULES: Final[dict[str, Any]] = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    # Letters as shapes: the same in every browser.
    "svg.fonttype": "path",
    "svg.hashsalt": "geo_embed",
}


@lru_cache(maxsize=1)
def _typefaces() -> list[str]:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [name for name in _TYPEFACES if name in installed]


@contextmanager
def house_style() -> Iterator[None]:
    """Figures that are made or saved within look as ours; Matplotlib's own settings are as before at the end."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context():
        # `save_figure` says once what Matplotlib would say of every letter.
        warnings.filterwarnings("ignore", message=_NO_GLYPH)
        # Whatever the user's matplotlibrc says: a figure is the same everywhere.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RULES | {"font.family": _typefaces()})  # type: ignore[arg-type]
        yield


def in_house_style(draw: "Callable[Arguments, Figure]") -> "Callable[Arguments, Figure]":
    """Draw a figure in the house's style."""

    @wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> "Figure":
        with house_style():
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float, title: str, subtitle: str = "", foot: str = "") -> "Figure":
    """An empty figure with its words in place: what it shows, of which rows, and below in small letters what it owes to whom.

    Args:
        width, height: of what is drawn, in inches; room for the words is added.
    """
    from geo_embed.reporting.plots.shown import ShownFigure

    titles = textwrap.wrap(title, max(int(width * 11), 20)) or [""]
    subtitles = textwrap.wrap(subtitle, max(int(width * 15.5), 20))
    feet = textwrap.wrap(foot, max(int(width * 19), 20))
    head = 0.12 + 0.22 * len(titles) + 0.17 * len(subtitles) + 0.08
    base = 0.06 + 0.14 * len(feet)
    whole = height + head + base
    figure = ShownFigure(figsize=(width, whole), layout="constrained", facecolor="white")
    left = 0.12 / width
    y = whole - 0.12
    for line in titles:
        figure.text(left, y / whole, line, fontsize=11, fontweight="bold", va="top", ha="left")
        y -= 0.22
    for line in subtitles:
        figure.text(left, y / whole, line, fontsize=8.5, color=SOFT, va="top", ha="left")
        y -= 0.17
    for k, line in enumerate(reversed(feet)):
        figure.text(left, (0.06 + 0.14 * k) / whole, line, fontsize=7, color=SOFT, va="bottom", ha="left")
    figure.get_layout_engine().set(  # type: ignore[union-attr, call-arg]
        rect=(0.08 / width, base / whole, 1 - 0.2 / width, (whole - head - base) / whole),
        w_pad=0.06,
        h_pad=0.05,
    )
    return figure


def label(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name from the data as a figure shows it: one line, not longer than that, and no formula."""
    plain = harmless(str(name))
    short = plain if len(plain) <= longest else plain[: longest - 1].rstrip() + "…"
    return short.replace("$", r"\$")


def sequential() -> "Colormap":
    """White through blue to nearly black: more is darker, also in grey."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(
        "geo", ["#f4f8fb", "#c5dcec", "#6faed4", BLUE, "#0b3c5d", "#08202f"]
    )


def diverging() -> "Colormap":
    """Orange through white to blue, for less and more than something."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(
        "geo-diverging", ["#8f4a00", ORANGE, "#ffffff", "#56B4E9", "#06466f"]
    )


def along_viridis() -> "Colormap":
    """Viridis, from green for little to dark violet for much: its yellow can't be told from land."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.78, 0.0, 256)), name="geo-viridis")


def bare(axes: "Axes") -> None:
    """No ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def on_dark(colour: Any) -> bool:
    """Whether letters on a colour have to be light (relative luminance, WCAG 2.2, below 0.4)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.3


def check_format(path: Path) -> str:
    """The format that a figure's file name asks for. Raises GeoError for another ending than those of `FORMATS`."""
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise GeoError(
            f"a figure can't be written as {ending or 'a file without an ending'}",
            where=path,
            hint=f"name a file that ends in {', '.join(FORMATS)}",
        )
    return ending[1:]


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure as PNG, SVG or PDF, by the ending of the name; in one piece, the same bytes for the same figure.

    Raises:
        GeoError: another ending, or the disk says no.
    """
    kind = check_format(path)
    # Without the time, two files of one figure are the same.
    notes: dict[str, dict[str, Any]] = {
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
        "png": {"Software": "geo_embed"},
    }
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with house_style(), replacing(path) as temporary, warnings.catch_warnings(record=True) as lost:
        warnings.filterwarnings("always", message=_NO_GLYPH)
        figure.savefig(temporary, format=kind, metadata=notes[kind])
    if lost:
        warn(
            "no typeface on this machine has some letters of the names, which are drawn as boxes: Noto Sans CJK has most"
        )
    return path
