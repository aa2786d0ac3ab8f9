"""Figures of arrays: what they show, by numbers; nothing cut off and nothing over one another, whatever the data are called."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawn import cut_off, overlapping, texts

from geo_embed.answers import LabelEncoder, Predictions, Truth
from geo_embed.errors import GeoError
from geo_embed.geography import distance_matrix_km, haversine_km, wrap_longitude
from geo_embed.reporting.order import by_geography, distances_between, middles
from geo_embed.reporting.outlines import Outlines, outlines
from geo_embed.reporting.plots.confusion import confusion_figure, confusion_matrix
from geo_embed.reporting.plots.curves import training_curves
from geo_embed.reporting.plots.distribution import distribution_figure
from geo_embed.reporting.plots.land import lines_between
from geo_embed.reporting.plots.maps import accuracy_map, places_map, predictions_map, soft_labels_map
from geo_embed.reporting.plots.samples import Shown, sample_figure, samples_figure
from geo_embed.reporting.plots.style import save_figure
from geo_embed.reporting.plots.weights import view_weights_figure
from geo_embed.reporting.projections import Projection, fit_projection, project

NASTY = (
    "<script>alert(1)</script>",
    "a $x^2$ b",
    "Ōsaka 大阪",
    "line\nbreak",
    "",
    "A very long name of a very small country",
)


class Made:
    """A country of C classes, places and answers."""

    def __init__(
        self, names: list[str], samples: int, *, seed: int = 0, middle: tuple[float, float] = (40.0, -100.0)
    ) -> None:
        rng = np.random.default_rng(seed)
        classes = len(names)
        self.encoder = LabelEncoder(np.arange(classes) * 3 + 5, tuple(names))
        self.labels = np.concatenate([np.arange(classes), rng.integers(classes, size=samples - classes)])
        centres = np.array(middle) + rng.uniform(-15, 15, (classes, 2)) * [1, 2]
        self.lat = centres[self.labels, 0] + rng.normal(0, 1, samples)
        self.lon = np.asarray(wrap_longitude(centres[self.labels, 1] + rng.normal(0, 1, samples)))
        probabilities = rng.dirichlet(np.full(classes, 0.3), samples).astype(np.float32)
        self.truth = Truth(self.encoder.decode(self.labels), self.lat, self.lon)
        self.predictions = Predictions(
            np.array([f"s{k}" for k in range(samples)], dtype=object),
            probabilities / probabilities.sum(axis=1, keepdims=True),
            np.clip(self.lat + rng.normal(0, 4, samples), -90, 90),
            np.asarray(wrap_longitude(self.lon + rng.normal(0, 6, samples))),
            self.encoder,
        )
        self.drawn: Outlines = outlines(self.labels, self.lat, self.lon, names)
        self.projection: Projection = fit_projection(self.drawn, self.lat, self.lon)
        self.points = middles(self.labels, self.lat, self.lon, classes)
        self.order = by_geography(distances_between(self.points))

    def figures(self) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        names, rows = self.encoder.names, "7 samples"
        classes = len(names)
        picture = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        shown = Shown(
            "id <b>&",
            (picture, "no such file: a.jpg"),
            self.predictions.probabilities[0],
            40.0,
            -100.0,
            0,
            45.0,
            -90.0,
            912.0,
        )
        return {
            "map": predictions_map(self.predictions, self.truth, self.drawn, self.projection, rows=rows),
            "accuracy": accuracy_map(
                [None, *np.linspace(0, 1, classes - 1)],
                [0, *range(1, classes)],
                names,
                self.drawn,
                self.projection,
                rows=rows,
            ),
            "places": places_map(
                self.labels, self.lat, self.lon, names, self.drawn, self.projection, rows=rows
            ),
            "soft labels": soft_labels_map(
                distance_matrix_km(self.points),
                0,
                names,
                self.drawn,
                self.projection,
                [100, 200, 400, 800],
                own_tau_km=400,
            ),
            "confusion": confusion_figure(self.predictions, self.truth, self.order, rows=rows),
            "states": distribution_figure(
                self.predictions, self.truth, np.bincount(self.labels, minlength=classes), rows=rows
            ),
            "weights": view_weights_figure(
                rng.dirichlet([2, 1, 3], len(self.labels)),
                ["north", "<b>", "a long view name"],
                self.labels,
                names,
                self.order,
                rows=rows,
                how="By the gate.",
            ),
            "sample": sample_figure(shown, ["front", "back"], names, self.drawn, self.projection, run="r"),
            "samples": samples_figure([shown] * 5, names, title="Five", subtitle="of many"),
        }


@pytest.mark.parametrize("classes", [2, 6, 56])
def test_nothing_is_cut_off_and_no_words_lie_over_one_another(classes: int) -> None:
    made = Made([f"Province {k} of it" for k in range(classes)], 3 * classes)
    for name, figure in made.figures().items():
        assert cut_off(figure) == [], name
        assert overlapping(figure) == [], name


@pytest.mark.parametrize(
    ("names", "middle"),
    [(["only"], (40.0, -100.0)), (["a", "b", "c"], (-17.0, 179.0)), (["x", "y"], (70.0, 20.0))],
    ids=["one class", "antimeridian", "far north"],
)
def test_any_country_can_be_drawn(names: list[str], middle: tuple[float, float]) -> None:
    made = Made(names, 12, middle=middle)
    for name, figure in made.figures().items():
        assert cut_off(figure) == [], name
    on_plane = project(made.projection, made.lat, made.lon)
    left, right, lower, upper = made.projection.frame
    assert ((on_plane > [left, lower]) & (on_plane < [right, upper])).all()


def test_words_that_are_cut_off_or_lie_over_others_are_seen() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    for x, y, text in ((0.5, 0.5, "over"), (0.52, 0.51, "under"), (0.95, 0.1, "out of the page")):
        figure.text(x, y, text)
    assert cut_off(figure) == ["out of the page"]
    assert overlapping(figure) == [("over", "under")]


def test_names_are_shown_as_they_are_and_never_obeyed(tmp_path: Path) -> None:
    for name, figure in Made(list(NASTY), 30).figures().items():
        read = texts(figure)
        if name not in ("map", "soft labels", "accuracy"):
            assert "<script>alert(1)" in read or name.startswith("sample"), name
        path = save_figure(figure, tmp_path / f"{name}.svg")
        tags = {
            element.tag.rpartition("}")[2] for element in ElementTree.fromstring(path.read_bytes()).iter()
        }
        assert not tags & {"script", "a", "foreignObject"}, name
        assert b"alert(1)</script>" not in path.read_bytes(), name
        # Unescaped, Matplotlib would take it for a formula.
        assert r"\$x^2\$" in read or name not in ("confusion", "states", "places"), name


def test_letters_that_no_typeface_has_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A private letter, which no typeface is to have.
    figure = training_curves(pd.DataFrame({"member": ["a\ue123", "b\ue124"], "score": [0.4, 0.6]}), run="r")
    save_figure(figure, tmp_path / "figure.png")
    assert capsys.readouterr().err.count("drawn as boxes") == 1
    save_figure(
        training_curves(pd.DataFrame({"member": ["a"], "score": [0.4]}), run="r"), tmp_path / "figure.png"
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_figure_is_the_same_file_and_matplotlib_keeps_its_settings(
    tmp_path: Path, ending: str
) -> None:
    before = dict(matplotlib.rcParams)
    for k in range(2):
        made = Made(["a", "b", "c"], 12)
        figure = predictions_map(made.predictions, made.truth, made.drawn, made.projection, rows="12 samples")
        save_figure(figure, tmp_path / f"{k}.{ending}")
    assert (tmp_path / f"0.{ending}").read_bytes() == (tmp_path / f"1.{ending}").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_a_file_of_another_kind_is_refused_and_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "figure.gif"
    path.write_text("mine")
    with pytest.raises(GeoError, match=r"can't be written as \.gif"):
        save_figure(training_curves(pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0]}), run="r"), path)
    assert path.read_text() == "mine"


def test_the_confusion_matrix_counts_true_by_answered() -> None:
    made = Made(["a", "b", "c"], 9)
    probabilities = np.eye(3, dtype=np.float32)[(made.labels + 1) % 3]
    answered = Predictions(made.predictions.sample_id, probabilities, made.lat, made.lon, made.encoder)
    counts = confusion_matrix(answered, made.truth)
    assert counts.sum() == 9
    assert counts[0, 1] == (made.labels == 0).sum()
    assert np.trace(counts) == 0
    figure = confusion_figure(answered, made.truth, made.order, rows="9 samples")
    assert "0 of 9 lie on the diagonal" in texts(figure).replace("\n", " ")


def test_classes_on_a_line_are_ordered_along_it() -> None:
    longitude = np.array([40.0, 0.0, 30.0, 10.0, 20.0])
    order = by_geography(distance_matrix_km(np.stack([np.zeros(5), longitude], axis=1)))
    assert longitude[order].tolist() in ([0, 10, 20, 30, 40], [40, 30, 20, 10, 0])


def test_a_class_without_places_has_no_middle_and_is_far_from_all() -> None:
    points = middles(np.array([0, 0, 2]), np.array([0.0, 0.0, 5.0]), np.array([179.0, -179.0, 5.0]), 3)
    assert abs(points[0, 1]) == pytest.approx(180)
    assert np.isnan(points[1]).all()
    km = distances_between(points)
    assert (km[1, [0, 2]] > km[0, 2]).all()
    assert sorted(by_geography(km)) == [0, 1, 2]


def test_lines_follow_great_circles_and_end_at_their_points() -> None:
    world = Projection("equal-earth", (-3, 3, -1.5, 1.5))
    (line,) = lines_between(world, [50.0], [0.0], [50.0], [90.0])
    assert line[[0, -1]] == pytest.approx(project(world, [50.0, 50.0], [0.0, 90.0]))
    # Half way the great circle passes 59.3° north (Napier: tan φ = tan 50° / cos 45°), not 50°.
    assert line[16] == pytest.approx(project(world, [59.3168], [45.0])[0], abs=1e-4)


def test_a_line_across_the_maps_edge_is_cut_there() -> None:
    world = Projection("equal-earth", (-3, 3, -1.5, 1.5))
    (line,) = lines_between(world, [0.0], [170.0], [0.0], [-170.0])
    assert np.isnan(line).any()
    steps = np.abs(np.diff(line[:, 0]))
    assert np.nanmax(steps) < 0.1
    (point,) = lines_between(world, [10.0], [20.0], [10.0], [20.0])
    assert point == pytest.approx(np.tile(project(world, [10.0], [20.0]), (len(point), 1)))


def test_of_many_samples_the_map_shows_some_and_says_so() -> None:
    made = Made(["a", "b", "c"], 50)
    figure = predictions_map(
        made.predictions, made.truth, made.drawn, made.projection, rows="50 samples", most=20
    )
    read = texts(figure).replace("\n", " ")
    assert "20 lines of 50" in read
    median = np.median(
        haversine_km(made.lat, made.lon, made.predictions.latitude, made.predictions.longitude)
    )
    assert f"within {median:,.0f} km" in read


def test_curves_show_every_fit_and_their_mean() -> None:
    epochs = pd.DataFrame(
        {
            "epoch": [1, 2, 1, 2],
            "fold": [0, 0, 1, 1],
            "train_loss": [3.0, 2.0, 5.0, 4.0],
            "val_score": [0.1, 0.3, 0.3, 0.5],
        }
    )
    figure = training_curves(epochs, run="r")
    loss, score = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[3.0, 2.0], [5.0, 4.0], [4.0, 3.0]]
    assert score.lines[-1].get_ydata() == pytest.approx([0.2, 0.4])
    assert "2 fits" in texts(figure)
    assert cut_off(figure) == []


def test_a_race_is_shown_best_first_and_says_that_its_scores_chose() -> None:
    trials = pd.DataFrame({"member": ["slow", "quick"], "score": [0.4, 0.6]})
    figure = training_curves(trials, run="r")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["quick", "slow"]
    assert "too good" in texts(figure)


@pytest.mark.parametrize(
    "history", [pd.DataFrame(), pd.DataFrame({"epoch": [None]}), pd.DataFrame({"epoch": [1]})]
)
def test_without_a_history_there_is_nothing_to_draw(history: pd.DataFrame) -> None:
    with pytest.raises(GeoError, match=r"noted|nothing about"):
        training_curves(history, run="r")
