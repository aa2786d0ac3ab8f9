"""A figure that a notebook shows by itself, without `%matplotlib inline` or pyplot."""

import io

from matplotlib.figure import Figure

_CSS_PIXELS = 96


class ShownFigure(Figure):
    """Matplotlib's figure; IPython asks what it shows for its picture."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture as PNG, and how wide it is to be shown, whatever its resolution."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi="figure", metadata={"Software": "geo_embed"})
        return buffer.getvalue(), {"width": round(self.get_figwidth() * _CSS_PIXELS)}
