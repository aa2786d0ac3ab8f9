"""What the page looks at: a run's samples of a split, one by one and as a table, as plain values and arrays."""

import io
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.cache.join import read_joined
from geo_embed.config import Config
from geo_embed.console import counted, warn
from geo_embed.data.samples import Samples, text_ids
from geo_embed.errors import GeoError
from geo_embed.explorer.memory import Answered, RunInMemory, Spread, spread_over_classes
from geo_embed.explorer.space import Space, plane_of, space_of
from geo_embed.explorer.uploads import MOST_BYTES
from geo_embed.geography import haversine_km
from geo_embed.metrics import (
    GEOSCORE_KM,
    GEOSCORE_MOST,
    GPS_RANGE_KM,
    GPS_WEIGHT,
    RANK_CREDIT,
    STATE_WEIGHT,
    error_km,
    state_credit,
    top_states,
)
from geo_embed.reporting.outlines import class_at
from geo_embed.reporting.subject import Subject, subject_of
from geo_embed.runs.run import Run, check_not_replaced, on_this_machine
from geo_embed.runs.table import has_rows, read_predictions

SPLITS = ("val", "test")
NEIGHBOURS = 8
# Cells and classes of a distribution that are still worth drawing.
_MOST_PLACES, _LEAST_SHARE = 400, 1e-5
Value = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A split's N samples, in the order of the run's prediction table.

    Attributes:
        subject: the run and the split.
        plane: (N, 2) float32, where each lies in the embedding view.
        space_name: what that is a projection of.
    """

    subject: Subject
    plane: NDArray[np.float32]
    space_name: str

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def predictions(self) -> Predictions:
        """Of the N samples."""
        return self.subject.predictions

    @property
    def truth(self) -> Truth | None:
        """Of the N samples, where it is known."""
        return self.subject.truth

    @cached_property
    def ranked(self) -> NDArray[np.int64]:
        """(N, 5 or C) classes, the most probable first."""
        return top_states(self.predictions.probabilities)

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) true classes."""
        return None if self.truth is None else self.predictions.labels.encode(self.truth.state_idx)

    @cached_property
    def km(self) -> NDArray[np.float64] | None:
        """(N,) from the predicted to the true point."""
        return None if self.truth is None else error_km(self.predictions, self.truth)

    @cached_property
    def score(self) -> NDArray[np.float64] | None:
        """(N,) each sample's part of the run's score."""
        if self.labels is None or self.km is None:
            return None
        return score_of(state_credit(self.ranked, self.labels), self.km)

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Where each sample is among the N."""
        return {sample_id: row for row, sample_id in enumerate(self.predictions.sample_id)}


def score_of(credit: NDArray[np.float64], km: NDArray[np.float64]) -> NDArray[np.float64]:
    """The competition's score of single samples, as in `per_sample`."""
    return np.asarray(STATE_WEIGHT * credit + GPS_WEIGHT * np.maximum(0.0, 1.0 - km / GPS_RANGE_KM))


def geoscore_of(km: float) -> float:
    """GeoGuessr's score of one guess."""
    return float(GEOSCORE_MOST * np.exp(-km / GEOSCORE_KM))


class Scene:
    """A run, what it is compared with, and its splits; for any number of threads. What isn't looked at isn't read.

    Args:
        config: paths and device.
        run: any run.
        compared: another run whose answers stand beside its own, or None.
    """

    def __init__(self, config: Config, run: Run, compared: Run | None = None) -> None:
        self.config = config
        self.run = on_this_machine(run, config.paths, config.model.device)
        self.compared = (
            None if compared is None else on_this_machine(compared, config.paths, config.model.device)
        )
        self.memory = RunInMemory(config, self.run)
        self._lock = threading.RLock()
        self._shown: dict[str, Shown] = {}
        self._rows: dict[str, dict[str, int]] = {}
        self._samples: dict[str, Samples | GeoError] = {}
        self._spaces: dict[str, tuple[Space, Any] | GeoError] = {}
        self._allowed: NDArray[np.bool_] | None = None

    # ---------------------------------------------------------------- what there is

    @cached_property
    def splits(self) -> list[str]:
        """Those that the run has predictions of."""
        return [split for split in SPLITS if has_rows(self.run.predictions_path(split))]

    def shown(self, split: str) -> Shown:
        """A split's samples. Raises GeoError where the run has no predictions of it, or they are damaged."""
        with self._lock:
            if split not in self._shown:
                subject = subject_of(self.config, self.run, split)
                # Read once, here: whoever asks later finds it.
                predictions = subject.predictions
                check_not_replaced(self.run)
                self._shown[split] = Shown(subject, *self._plane(split, predictions))
            return self._shown[split]

    def samples(self, csv: str) -> Samples:
        """The CSV `train` or `test`. Raises GeoError where it can't be read."""
        with self._lock:
            if csv not in self._samples:
                subject = subject_of(self.config, self.run, "test" if csv == "test" else "val")
                try:
                    self._samples[csv] = subject.samples
                except GeoError as error:
                    self._samples[csv] = error
            samples = self._samples[csv]
            if isinstance(samples, GeoError):
                raise samples
            return samples

    def place_in_csv(self, csv: str, sample_id: str) -> int | None:
        """Where a sample is in a CSV; None where it isn't in it, or the CSV can't be read."""
        with self._lock:
            if csv not in self._rows:
                try:
                    ids = self.samples(csv).sample_id
                except GeoError:
                    return None
                self._rows[csv] = {str(text): row for row, text in enumerate(ids)}
            return self._rows[csv].get(sample_id)

    def why_no_pictures(self, csv: str) -> str | None:
        """Why there are no pictures of a CSV's samples; None where there are some."""
        try:
            samples = self.samples(csv)
            if not samples.pictures.are_there():
                return f"there are no pictures at {samples.image_root}"
        except GeoError as error:
            return f"the dataset isn't at hand: {error}"
        return None

    @property
    def why_no_game(self) -> str | None:
        """Why there is nothing to guess; None where there is."""
        if "val" not in self.splits:
            return "the run held out no samples, so there is nothing to guess"
        if (why := self.why_no_pictures("train")) is not None:
            return f"there is nothing to guess by: {why}"
        return None

    # ---------------------------------------------------------------- the learnt space

    def _space(self, csv: str) -> tuple[Space, Any]:
        """A CSV's samples in the learnt space, and the stores that they are from. Raises GeoError where that can't be had."""
        with self._lock:
            if csv not in self._spaces:
                try:
                    self._spaces[csv] = space_of(self.memory.embedder(), csv)
                except GeoError as error:
                    self._spaces[csv] = error
            space = self._spaces[csv]
            if isinstance(space, GeoError):
                raise space
            return space

    def _plane(self, split: str, predictions: Predictions) -> tuple[NDArray[np.float32], str]:
        """Where a split's samples lie in the embedding view, and what that is: the learnt space, or without it the distributions."""
        try:
            space, _ = self._space(csv_of(split))
            rows = _rows_among(space.sample_id, predictions.sample_id)
            if (rows < 0).any():
                absent = counted(int((rows < 0).sum()), "sample isn't", "samples aren't")
                raise GeoError(f"{absent} in the store")
            plane = plane_of(space.vectors[rows])
            plane[~space.seen[rows]] = np.nan
            return plane, self.memory.embedder().name
        except GeoError as error:
            warn(f"the embedding view shows the predicted distributions, not the learnt space: {error}")
            # Hellinger's distance between distributions is that of their roots.
            return plane_of(np.sqrt(predictions.probabilities)), "predicted distributions"

    def neighbours(self, answered: Answered | None, place: tuple[float, float], but: str = "") -> list[Value]:
        """Samples that the run learnt from, the most alike first.

        Args:
            answered: the sample whose neighbours they are.
            place: its own, in degrees: what `km` is counted from.
            but: an id that isn't to be among them: its own.
        """
        if answered is None or not np.isfinite(answered.vector).all():
            return []
        try:
            space, _ = self._space("train")
            truth = self.samples("train").truth
        except GeoError:
            return []
        direction = space.directions(answered.vector[None])[0]
        # Heads of one class tell nothing apart.
        if not direction.any():
            return []
        allowed = self._learnt_from(space)
        if but and (excluded := np.flatnonzero(space.sample_id == but)).size:
            allowed = allowed.copy()
            allowed[excluded] = False
        neighbours = []
        for row, cosine in zip(*space.nearest(direction, NEIGHBOURS, allowed), strict=True):
            sample_id = str(space.sample_id[row])
            at = self.place_in_csv("train", sample_id)
            if at is None or truth is None:
                continue
            latitude, longitude = float(truth.latitude[at]), float(truth.longitude[at])
            name = self._name_of(int(truth.state_idx[at]))
            neighbours.append(
                {
                    "sample_id": sample_id,
                    "split": "train",
                    "name": name,
                    "latitude": latitude,
                    "longitude": longitude,
                    "km": number(float(haversine_km(*place, latitude, longitude))),
                    "similarity": min(float(cosine), 1.0),
                    "picture": next(
                        (v["picture"] for v in self.views("train", sample_id) if v["picture"]), None
                    ),
                }
            )
        return neighbours

    @cached_property
    def _learnt(self) -> frozenset[str] | None:
        """The samples that the heads were fitted on; None where the run doesn't tell."""
        try:
            table = self.run.read_split()
        except GeoError as error:
            warn(f"neighbours are sought among all training samples: {error}")
            return None
        learnt = table["part"] == "train"
        # Of folds each was learnt from by the heads of the others.
        if "fold" in table and table["fold"][~learnt].nunique() > 1:
            learnt |= True
        return frozenset(text_ids(table["sample_id"][learnt]))

    def _is_learnt(self, sample_id: str) -> bool:
        return self._learnt is not None and sample_id in self._learnt

    def _learnt_from(self, space: Space) -> NDArray[np.bool_]:
        """(N,) which samples of the train store the heads were fitted on; all where the run doesn't tell."""
        with self._lock:
            if self._allowed is None:
                learnt = self._learnt
                self._allowed = np.array(
                    [learnt is None or text in learnt for text in space.sample_id], dtype=bool
                )
            return self._allowed

    def _name_of(self, state_idx: int) -> str | None:
        rows = np.flatnonzero(self.run.labels.state_idx == state_idx)
        return self.run.labels.names[int(rows[0])] if len(rows) else None

    # ---------------------------------------------------------------- one sample

    def views(self, split: str, sample_id: str) -> list[Value]:
        """Of each view its name and where its picture is to be had, or None."""
        names = self.run.config.model.view_names
        csv = csv_of(split)
        row = self.place_in_csv(csv, sample_id)
        has_pictures = row is not None and self.why_no_pictures(csv) is None
        images = self.samples(csv).images[row] if has_pictures else [""] * len(names)
        where = f"/pictures/{split}/{quote(sample_id, safe='')}"
        return [
            {"name": view, "picture": f"{where}/{quote(view, safe='')}" if image else None}
            for view, image in zip(names, images, strict=True)
        ]

    def sample(self, split: str, sample_id: str) -> Value | None:
        """All that there is to say of a sample; None where the split has none of this id."""
        shown = self.shown(split)
        row = shown.row_of.get(sample_id)
        if row is None:
            return None
        truth = self.truth_of(shown, row)
        predictions = shown.predictions.take(slice(row, row + 1))
        answered = self._answered(split, sample_id, predictions)
        weights = answered.weights if answered else None
        views = self.views(split, sample_id)
        for k, view in enumerate(views):
            view["weight"] = None if weights is None else number(float(weights[k]))
        location = (
            (truth["latitude"], truth["longitude"])
            if truth
            else (float(predictions.latitude[0]), float(predictions.longitude[0]))
        )
        prediction = self.prediction(predictions)
        prediction["km"] = None if shown.km is None else number(float(shown.km[row]))
        prediction["score"] = None if shown.score is None else number(float(shown.score[row]))
        spread = answered.spread if answered else None
        # Where each sample had its turn to be held out, the heads as they are know this one's place.
        if spread is None or (split == "val" and self._is_learnt(sample_id)):
            spread = spread_over_classes(self.run, predictions)
        return {
            "sample_id": sample_id,
            "split": split,
            "views": views,
            "truth": truth,
            "prediction": prediction,
            "distribution": distribution(spread),
            "neighbours": self.neighbours(answered, location, sample_id if split == "val" else ""),
        }

    def truth_of(self, shown: Shown, row: int) -> Value | None:
        """Where a sample is."""
        if shown.truth is None or shown.labels is None:
            return None
        label = int(shown.labels[row])
        return {
            "state": label,
            "name": self.run.labels.names[label],
            "latitude": float(shown.truth.latitude[row]),
            "longitude": float(shown.truth.longitude[row]),
        }

    def prediction(self, predictions: Predictions) -> Value:
        """The first answer: its point and its five likeliest states."""
        shares = predictions.probabilities[0]
        return {
            "latitude": float(predictions.latitude[0]),
            "longitude": float(predictions.longitude[0]),
            "km": None,
            "score": None,
            "top": [
                {"state": int(k), "name": predictions.labels.names[k], "probability": float(shares[k])}
                for k in top_states(predictions.probabilities)[0]
            ],
        }

    def _answered(self, split: str, sample_id: str, predictions: Predictions) -> Answered | None:
        """What the heads say of a sample beside its recorded prediction; None where its embeddings aren't at hand."""
        try:
            space, sources = self._space(csv_of(split))
            if not (space.sample_id == sample_id).any():
                return None
            part = read_joined(sources, np.array([sample_id], dtype=object))
        except GeoError:
            return None
        return self.memory.answer_embeddings(predictions, part.values, part.present)

    # ---------------------------------------------------------------- the table

    def table(self, split: str, compare: bool) -> bytes:
        """A split's samples as an Arrow stream, uncompressed; docs/explore.md has the columns."""
        import pyarrow as pa

        shown = self.shown(split)
        answers = shown.predictions
        rows = np.arange(len(answers))
        columns: dict[str, Any] = {
            "sample_id": pa.array([str(text) for text in answers.sample_id], pa.utf8())
        }
        if shown.truth is not None:
            columns |= {
                "latitude": _floats(shown.truth.latitude),
                "longitude": _floats(shown.truth.longitude),
            }
        columns |= {
            "predicted_latitude": _floats(answers.latitude),
            "predicted_longitude": _floats(answers.longitude),
        }
        if shown.km is not None and shown.score is not None:
            columns |= {"km": _floats(shown.km), "score": _floats(shown.score)}
        columns |= {
            "confidence": _floats(answers.probabilities[rows, shown.ranked[:, 0]]),
            "x": _floats(shown.plane[:, 0]),
            "y": _floats(shown.plane[:, 1]),
        }
        if shown.labels is not None:
            hits = shown.ranked == shown.labels[:, None]
            columns |= {"state": pa.array(shown.labels, pa.int16())}
            rank = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
        columns |= {"predicted_state": pa.array(shown.ranked[:, 0], pa.int16())}
        if shown.labels is not None:
            columns |= {"rank": pa.array(rank, pa.int16())}
        if compare:
            columns |= self._beside(split, shown)
        table = pa.table(columns)
        buffer = io.BytesIO()
        with pa.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table)
        return buffer.getvalue()

    def compared_on(self, split: str) -> Run | None:
        """The run that stands beside; None without one, and where it has no answers for the split."""
        other = self.compared
        return other if other is not None and has_rows(other.predictions_path(split)) else None

    def _beside(self, split: str, shown: Shown) -> dict[str, Any]:
        """Whether the other run's first state is the same, and how far off its point is; null where it has no answer, or nothing is known."""
        import pyarrow as pa

        assert self.compared is not None
        other_answers, _ = read_predictions(self.compared.predictions_path(split), self.compared.labels)
        rows = _rows_among(other_answers.sample_id, shown.predictions.sample_id)
        lacking = rows < 0
        answers = other_answers.take(np.maximum(rows, 0)) if len(other_answers) else None
        count = len(shown)
        agrees, km = np.zeros(count, dtype=bool), np.full(count, np.nan)
        if answers is not None:
            first = answers.labels.decode(top_states(answers.probabilities, 1)[:, 0])
            agrees = first == shown.predictions.labels.decode(shown.ranked[:, 0])
            if shown.truth is not None:
                km = error_km(answers, shown.truth)
        else:
            lacking = np.ones(count, dtype=bool)
        return {
            "agrees": pa.array(agrees, pa.bool_(), mask=lacking),
            "compare_km": pa.array(km.astype(np.float32), pa.float32(), mask=lacking | ~np.isfinite(km)),
        }

    # ---------------------------------------------------------------- the whole

    def about(self, split: str) -> Value:
        """The run at a glance."""
        shown = self.shown(split)
        labels, run = self.run.labels, self.run
        counts, centroids = run.read_classes()[0], run.read_centroids()
        metrics = run.read_metrics() if split == "val" else None
        interval = (metrics or {}).get("score_interval")
        why_no_pictures = self.why_no_pictures(csv_of(split))
        why_not = self.memory.why_not()
        beside = self.compared_on(split)
        return {
            "run": run.name,
            "split": split,
            "splits": self.splits,
            "samples": len(shown),
            "classes": [
                {
                    "index": k,
                    "state_idx": int(labels.state_idx[k]),
                    "name": labels.names[k],
                    "latitude": float(centroids[k, 0]),
                    "longitude": float(centroids[k, 1]),
                    "samples": int(counts[k]),
                }
                for k in range(len(labels))
            ],
            "view_names": list(run.config.model.view_names),
            "metrics": metrics and {key: _plain(value) for key, value in metrics.items()},
            "interval": list(interval) if interval and interval[0] is not None else None,
            "competition": {
                "state_weight": STATE_WEIGHT,
                "gps_weight": GPS_WEIGHT,
                "gps_range_km": GPS_RANGE_KM,
                "rank_credit": list(RANK_CREDIT),
                "geoscore_most": GEOSCORE_MOST,
                "geoscore_km": GEOSCORE_KM,
            },
            "has_truth": shown.truth is not None,
            "has_pictures": why_no_pictures is None,
            "why_no_pictures": why_no_pictures,
            "can_predict": why_not is None,
            "why_not": why_not,
            "compare": beside and beside.name,
            "why_no_game": self.why_no_game,
            "most_bytes": MOST_BYTES,
            "embedding_view": shown.space_name,
            "provenance": self._provenance(),
        }

    def _provenance(self) -> list[str]:
        made = self.run.provenance
        store = made["store"]
        backbones = ", ".join(source["backbone"] for source in self.run.sources)
        lines = [f"made {made.get('created') or 'who knows when'}", f"backbone {backbones}"]
        if (data := made.get("data") or {}).get("train_csv"):
            lines.append(f"trained on {data['train_csv']}, {counted(store['samples'], 'sample')}")
        if made.get("command"):
            lines.append(" ".join(made["command"]))
        return lines

    @cached_property
    def outlines(self) -> bytes:
        """Outlines of the classes, and on which map they are best shown, as JSON: made once, since every page asks for it."""
        with self._lock:
            subject = self.shown(self.splits[0]).subject
            drawn, projection = subject.drawn, subject.projection
        made = {
            "projection": projection.name,
            "parallels": list(projection.parallels),
            "longitude": projection.longitude,
            "latitude": projection.latitude,
            "credit": drawn.credit,
            "features": [
                {"name": name, "rings": [np.round(ring, 4).tolist() for ring in rings]}
                for name, rings in zip(drawn.classes, drawn.rings, strict=True)
            ],
            "context": [np.round(ring, 3).tolist() for ring in drawn.context],
        }
        return json.dumps(made, separators=(",", ":")).encode()

    def state_at(self, latitude: float, longitude: float) -> int | None:
        """The class whose outline holds a point."""
        with self._lock:
            drawn = self.shown(self.splits[0]).subject.drawn
        label = int(class_at(drawn, [latitude], [longitude])[0])
        return label if label >= 0 else None


def csv_of(split: str) -> str:
    """The CSV that has a split's samples: those held out are among those of training."""
    return "test" if split == "test" else "train"


def distribution(spread: Spread) -> Value:
    """The likeliest places of a distribution, as plain values."""
    finite = (
        np.isfinite(spread.latitude) & np.isfinite(spread.longitude) & (spread.probability >= _LEAST_SHARE)
    )
    rows = np.flatnonzero(finite)
    rows = rows[np.argsort(-spread.probability[rows], kind="stable")][:_MOST_PLACES]
    return {
        "kind": spread.kind,
        "state": rows.tolist() if spread.kind == "classes" else None,
        "latitude": np.round(spread.latitude[rows], 5).tolist(),
        "longitude": np.round(spread.longitude[rows], 5).tolist(),
        "probability": np.round(spread.probability[rows], 7).tolist(),
    }


def number(value: float) -> float | None:
    """A finite number, or None: JSON has no other."""
    return value if np.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return number(value) if isinstance(value, float) else value


def _floats(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    return pa.array(np.asarray(values, dtype=np.float32), pa.float32())


def _rows_among(ids: NDArray[np.object_], wanted: NDArray[np.object_]) -> NDArray[np.int64]:
    """(n,) where each id wanted is among others, −1 where it isn't."""
    place = {str(text): row for row, text in enumerate(ids)}
    return np.array([place.get(str(text), -1) for text in wanted], dtype=np.int64)
