"""A figure is a picture in a notebook, as wide as it is meant to be whatever its resolution."""

from __future__ import annotations

import io
import pickle

from PIL import Image

from geo_embed.reporting.plots.style import in_house_style, new_figure


def test_a_figure_shows_itself_as_png() -> None:
    figure = in_house_style(lambda: new_figure(4, 2, "Title"))()
    for shown in (figure, pickle.loads(pickle.dumps(figure))):
        picture, how = shown._repr_png_()
        assert Image.open(io.BytesIO(picture)).size[0] == 4 * 150
        assert how == {"width": 4 * 96}
