"""`geo plot`: figures of a run, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from geo_embed.config import Config
from geo_embed.console import harmless
from geo_embed.data.outputs import check_output
from geo_embed.errors import GeoError
from geo_embed.geography import soft_labels
from geo_embed.metrics import error_km
from geo_embed.prediction.results import per_sample, worst_first
from geo_embed.prediction.tables import class_table
from geo_embed.reporting.order import middles
from geo_embed.reporting.plots.confusion import confusion_figure
from geo_embed.reporting.plots.curves import training_curves
from geo_embed.reporting.plots.distribution import distribution_figure
from geo_embed.reporting.plots.maps import accuracy_map, places_map, predictions_map, soft_labels_map
from geo_embed.reporting.plots.samples import Shown, sample_figure, samples_figure
from geo_embed.reporting.plots.style import check_format, label, save_figure
from geo_embed.reporting.plots.weights import view_weights_figure
from geo_embed.reporting.projections import Projection, fit_places
from geo_embed.reporting.subject import Subject, subject_of
from geo_embed.reporting.weights import view_weights
from geo_embed.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Order = Literal["worst", "best", "least-certain"]

# Temperatures that soft labels are shown at, as multiples of the run's own.
_TAUS: Final = (0.25, 0.5, 1.0, 2.0)
# The share of a label from which a class is to be on the map.
_SEEN: Final = 0.002
# Two points nearer than this have a map of their own, with so much land around them, in Earth radii.
_NEAR_KM, _LEAST_AROUND = 3000.0, 0.05


@dataclass(frozen=True)
class Choice:
    """What a figure shows, where it shows a part: a sample by its id, how many by which order, a class by its name."""

    sample: str | None = None
    order: Order = "worst"
    limit: int = 12
    state: str | None = None


def plot(
    config: Config,
    run: Run,
    name: str,
    out: Path | None = None,
    *,
    split: str = "val",
    choice: Choice | None = None,
) -> Path:
    """Draw a figure of a run and write it.

    Args:
        config: paths and device.
        run: any run.
        name: of the figure, one of `FIGURES`.
        out: the file, .png, .svg or .pdf; default `RUN-NAME.png` in the working directory.
        split: the samples: `val`, those held out, `train` or `test`.
        choice: which part of them.

    Returns:
        The file.

    Raises:
        GeoError: the figure can't be drawn of this run, or the file can't be written.
    """
    out = Path(f"{run.name}-{name}.png") if out is None else out
    check_format(out)
    check_output(config.paths, out)
    return save_figure(draw(config, run, name, split=split, choice=choice), out)


def draw(
    config: Config, run: Run, name: str, *, split: str = "val", choice: Choice | None = None
) -> "Figure":
    """The figure of this name, as `plot` writes it."""
    if name not in FIGURES:
        raise GeoError(f"there is no figure {name!r}", hint=f"one of {', '.join(FIGURES)}")
    return FIGURES[name](subject_of(config, run, split), choice or Choice())


def _map(subject: Subject, choice: Choice) -> "Figure":
    return predictions_map(
        subject.predictions, subject.known_truth(), subject.drawn, subject.projection, rows=subject.rows
    )


def _accuracy(subject: Subject, choice: Choice) -> "Figure":
    table = class_table(subject.predictions, subject.known_truth())
    return accuracy_map(
        [row["top1"] for row in table],
        [row["samples"] for row in table],
        _short_names(subject),
        subject.drawn,
        subject.projection,
        rows=subject.rows,
    )


def _places(subject: Subject, choice: Choice) -> "Figure":
    labels, latitude, longitude = subject.training
    rows = f"the {len(labels):,} training samples of run {label(subject.run.name, 60)}"
    return places_map(
        labels, latitude, longitude, subject.run.labels.names, subject.drawn, subject.projection, rows=rows
    )


def _confusion(subject: Subject, choice: Choice) -> "Figure":
    return confusion_figure(subject.predictions, subject.known_truth(), subject.order, rows=subject.rows)


def _curves(subject: Subject, choice: Choice) -> "Figure":
    return training_curves(subject.run.read_history(), run=subject.run.name)


def _states(subject: Subject, choice: Choice) -> "Figure":
    return distribution_figure(
        subject.predictions, subject.truth, subject.run.read_classes()[0], rows=subject.rows
    )


def _attention(subject: Subject, choice: Choice) -> "Figure":
    truth, run = subject.known_truth(), subject.run
    weights = view_weights(run, "test" if subject.split == "test" else "train", subject.predictions.sample_id)
    how = f"Shares by the fusion {' and '.join(weights.fusions)}"
    if weights.weighing < weights.sets:
        how += f" of {weights.weighing} of {weights.sets} sets of heads; the others weigh views alike and aren't counted"
    return view_weights_figure(
        weights.shares,
        run.config.model.view_names,
        run.labels.encode(truth.state_idx),
        run.labels.names,
        subject.order,
        rows=subject.rows,
        how=how + ".",
    )


def _soft_labels(subject: Subject, choice: Choice) -> "Figure":
    run = subject.run
    counts, distances = run.read_classes()
    names = [harmless(name) for name in run.labels.names]
    # The most central one, whose neighbours lie all around it.
    chosen = int(np.where(counts > 0, distances.sum(axis=1), np.inf).argmin())
    if choice.state is not None:
        fitting = [k for k, name in enumerate(names) if name.casefold() == choice.state.casefold()]
        if not fitting:
            raise GeoError(
                f"{choice.state!r} is none of the run's classes",
                where="--state",
                hint=f"one of {', '.join(names[:60])}",
            )
        chosen = fitting[0]
    tau = run.config.training.tau_km
    taus = [tau * times for times in _TAUS]
    return soft_labels_map(
        distances,
        chosen,
        run.labels.names,
        subject.drawn,
        _around(subject, soft_labels(distances, taus[-1])[chosen] > _SEEN),
        taus,
        own_tau_km=tau,
    )


def _around(subject: Subject, classes: NDArray[np.bool_]) -> Projection:
    """The map of some classes; of the United States always the whole."""
    middle = middles(*subject.training, len(classes))
    middle = middle[classes & np.isfinite(middle).all(axis=1)]
    if subject.projection.name == "albers-usa" or not len(middle):
        return subject.projection
    return fit_places(middle[:, 0], middle[:, 1], margin=0.2)


def _between(subject: Subject, sample: Shown) -> Projection:
    """The map of a sample's two points, where they are near; else that of all."""
    near = sample.km is not None and sample.km < _NEAR_KM
    if subject.projection.name == "albers-usa" or not near:
        return subject.projection
    assert sample.true_latitude is not None
    assert sample.true_longitude is not None
    latitude, longitude = ([sample.true_latitude, sample.latitude], [sample.true_longitude, sample.longitude])
    return fit_places(latitude, longitude, margin=0.6, least=_LEAST_AROUND)


def _sample(subject: Subject, choice: Choice) -> "Figure":
    row = (
        subject.row_of(choice.sample) if choice.sample is not None else _rows_by(subject, choice.order, 1)[0]
    )
    sample = _shown(subject, row)
    return sample_figure(
        sample,
        subject.samples.view_names,
        subject.run.labels.names,
        subject.drawn,
        _between(subject, sample),
        run=subject.run.name,
    )


def _samples(subject: Subject, choice: Choice) -> "Figure":
    shown = [_shown(subject, row) for row in _rows_by(subject, choice.order, choice.limit)]
    if all(isinstance(view, str) for sample in shown for view in sample.views):
        raise GeoError(
            f"none of these samples has a picture at hand; of the first: {shown[0].views[0] if shown[0].views else 'no view'}",
            where=subject.samples.image_root,
            hint="name the folder of the pictures with --set paths.train_images=DIR or paths.test_images; geo plot sample shows one without",
        )
    orders = {
        "worst": "The lowest scores first",
        "best": "The highest scores first",
        "least-certain": "The least certain answers first",
    }
    colours = "" if subject.truth is None else "; blue: the first answer is right, orange: it isn't"
    title = f"{len(shown)} of {subject.rows}"
    return samples_figure(
        shown, subject.run.labels.names, title=title, subtitle=f"{orders[choice.order]}{colours}."
    )


def _rows_by(subject: Subject, order: Order, limit: int) -> list[int]:
    """The first rows by an order; where the truth isn't known, the least certain ones are asked for."""
    predictions = subject.predictions
    if order == "least-certain":
        return [int(row) for row in np.argsort(predictions.probabilities.max(axis=1), kind="stable")[:limit]]
    table = per_sample(predictions, subject.known_truth())
    ordered = worst_first(table.reset_index(names="row"))["row"].to_numpy()
    return [int(row) for row in (ordered if order == "worst" else ordered[::-1])[:limit]]


def _shown(subject: Subject, row: int) -> Shown:
    predictions, truth = subject.predictions, subject.truth
    answer = Shown(
        str(predictions.sample_id[row]),
        subject.views_of(row),
        predictions.probabilities[row],
        float(predictions.latitude[row]),
        float(predictions.longitude[row]),
    )
    if truth is None:
        return answer
    row_truth = truth.take(np.array([row]))
    true = {
        "true_class": int(predictions.labels.encode(row_truth.state_idx)[0]),
        "true_latitude": float(row_truth.latitude[0]),
        "true_longitude": float(row_truth.longitude[0]),
        "km": float(error_km(predictions.take(np.array([row])), row_truth)[0]),
    }
    return Shown(**(vars(answer) | true))


def _short_names(subject: Subject) -> list[str]:
    return [code or name for code, name in zip(subject.drawn.codes, subject.run.labels.names, strict=True)]


# Each figure by the name that `geo plot` takes.
FIGURES: Final[dict[str, Callable[[Subject, Choice], "Figure"]]] = {
    "map": _map,
    "accuracy": _accuracy,
    "confusion": _confusion,
    "states": _states,
    "places": _places,
    "curves": _curves,
    "attention": _attention,
    "soft-labels": _soft_labels,
    "sample": _sample,
    "samples": _samples,
}
