"""A run directory: what was trained, on what, how well, and how to get it again."""

import json
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from geo_embed.answers import LabelEncoder, Predictions, Prior, Truth
from geo_embed.config import Config, Paths
from geo_embed.errors import GeoError
from geo_embed.files import replacing_directory, save_tensors, write_json
from geo_embed.geography import distance_matrix_km
from geo_embed.plugins import check_names
from geo_embed.settings import to_toml

if TYPE_CHECKING:
    import pandas as pd

    from geo_embed.backbones.backbone import Backbone
    from geo_embed.heads.predictor import Panel

# The names of a run's files: known here alone.
_CONFIG, _LABELS, _PROVENANCE = "config.toml", "labels.json", "provenance.json"
_RECIPE, _HEADS, _MEMBERS = "recipe.json", "heads.safetensors", "members"
_CENTROIDS, _DISTANCES, _SPLIT = "state_centroids.json", "haversine_matrix.npy", "split.parquet"
_METRICS, _HISTORY, _PREDICTIONS = "metrics.json", "history.parquet", "_predictions.parquet"
_BACKBONE, _CHECKPOINTS = "backbone", "checkpoints"
# Of a run that becomes a member of an ensemble.
_NOT_COPIED = shutil.ignore_patterns(f"*{_PREDICTIONS}", _CHECKPOINTS, ".*")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: its directory; the name is the directory's.
        config: the settings it was made with.
        labels: its classes, in the order of its probabilities.
        prior: its answer without pictures.
        provenance: where it came from.
    """

    path: Path
    config: Config
    labels: LabelEncoder
    prior: Prior
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def dim(self) -> int:
        """D, the width of the embeddings it was fitted on."""
        return int(self.provenance["store"]["dim"])

    @property
    def store_fingerprints(self) -> list[str]:
        """The stores that it was fitted on: one, or for an ensemble every member's."""
        return _store_fingerprints(self.provenance)

    @property
    def recipe_path(self) -> Path:
        """How its heads are built, or its members combined; `load_heads` and `load_ensemble` read it."""
        return self.path / _RECIPE

    @property
    def heads_path(self) -> Path:
        """The tensors of its heads."""
        return self.path / _HEADS

    @property
    def members_dir(self) -> Path:
        """Where an ensemble keeps copies of its members, which are runs."""
        return self.path / _MEMBERS

    def predictions_path(self, split: str) -> Path:
        """Its prediction table of `val`, `train` or `test`; may not be there."""
        return self.path / f"{split}{_PREDICTIONS}"

    def read_metrics(self) -> dict[str, Any]:
        """Its scores on the samples that it held out. Raises GeoError where they can't be read."""
        path = self.path / _METRICS
        try:
            scores = json.loads(path.read_text(encoding="utf-8"))["val"]
            float(scores["score"] or 0)
            return dict(scores)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GeoError("the run's score can't be read", where=path, hint="train the run again") from error

    def read_split(self) -> "pd.DataFrame":
        """Which samples it learnt from and which it held out: `sample_id`, `part` (train, val), and `fold` if there were some.

        Raises:
            GeoError: the table can't be read.
        """
        import pandas as pd

        path = self.path / _SPLIT
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise GeoError("the run's split can't be read", where=path) from error

    def read_classes(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Its training samples by class (C,), and great-circle distances (C, C) in km between the classes' centroids.

        Raises:
            GeoError: a file is absent or damaged.
        """
        path = self.path / _LABELS
        try:
            classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
            counts = np.array([entry["samples"] for entry in classes], dtype=np.int64)
            path = self.path / _DISTANCES
            distances = np.load(path)
            if distances.shape != (len(counts), len(counts)):
                raise ValueError(f"{distances.shape} distances, {len(counts)} classes")
            return counts, distances
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise GeoError(
                "this file of the run is absent or damaged", where=path, hint="train the run again"
            ) from error


def on_this_machine(run: Run, paths: Paths, device: str) -> Run:
    """A run, wherever it was made, with the paths and the device of this machine in its settings."""
    model = run.config.model.model_copy(update={"device": device})
    return replace(run, config=run.config.model_copy(update={"paths": paths, "model": model}))


def is_run(directory: Path) -> bool:
    """Whether a whole run lies there, not an unfinished training or nothing."""
    return (directory / _PROVENANCE).is_file()


def checkpoints_dir(directory: Path) -> Path:
    """Where fine-tuning keeps its checkpoints until the run that is to lie in `directory` takes their place."""
    return directory / _CHECKPOINTS


def backbone_dir(directory: Path) -> Path:
    """Where a fine-tuned run keeps a backbone of its own."""
    return directory / _BACKBONE


def unfinished_runs(runs_dir: Path) -> list[Path]:
    """Directories of trainings that were interrupted, or are at work, the newest first."""
    unfinished = [path.parent for path in runs_dir.glob(f"[!.]*/{_CHECKPOINTS}") if not is_run(path.parent)]
    return sorted(unfinished, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def new_run_name(runs_dir: Path, prefix: str) -> str:
    """`prefix-YYYYMMDD-HHMMSS`, counted up where that is taken."""
    stem = f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    taken = (
        name
        for n in range(1, 10_000)
        if not (runs_dir / (name := stem if n == 1 else f"{stem}-{n}")).exists()
    )
    return next(taken)


def check_new_name(runs_dir: Path, name: str, *, overwrite: bool) -> None:
    """Raise GeoError for a name that is none, or is taken. Cheap: call it before any work is done."""
    if not _NAME.fullmatch(name):
        raise GeoError(f"{name!r} can't name a run", where="--name", hint="use letters, digits, dots, dashes")
    if (runs_dir / name).exists() and not overwrite:
        raise GeoError(
            "a run of this name exists",
            where=runs_dir / name,
            hint="choose another --name, or replace it with --overwrite",
        )


@contextmanager
def writing_run(runs_dir: Path, name: str) -> Iterator["RunWriter"]:
    """Write a run's files; the run appears under its name once the block ends well, and never half.

    Raises:
        GeoError: for every OSError, also of the block; a run that was there before stays.
    """
    with replacing_directory(runs_dir / name) as directory:
        yield RunWriter(directory)


class RunWriter:
    """Writes each file of a run under its name. `writing_run` makes one.

    Args:
        directory: of the run, while it is being written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write_description(
        self,
        config: Config,
        labels: LabelEncoder,
        counts: NDArray[np.int64],
        prior: Prior,
        provenance: Mapping[str, Any],
    ) -> None:
        """What `load_run` reads: settings, classes with their numbers of training samples (C,), prior, provenance."""
        (self.directory / _CONFIG).write_text(to_toml(config), encoding="utf-8")
        classes = [
            {"class": k, "state_idx": int(index), "state": name, "samples": int(count)}
            for k, (index, name, count) in enumerate(zip(labels.state_idx, labels.names, counts, strict=True))
        ]
        write_json(
            self.directory / _LABELS,
            {
                "classes": classes,
                "prior": {
                    "probabilities": [float(p) for p in prior.probabilities],
                    "latitude": prior.latitude,
                    "longitude": prior.longitude,
                },
            },
        )
        write_json(self.directory / _PROVENANCE, provenance)

    def write_heads(self, panel: "Panel") -> None:
        """What `load_heads` reads: the heads' tensors, and how they are built."""
        tensors = {key: value.cpu().contiguous() for key, value in panel.state_dict().items()}
        save_tensors(tensors, self.directory / _HEADS)
        write_json(self.directory / _RECIPE, panel.description())

    def write_ensemble(self, description: Mapping[str, Any], members: Mapping[str, Run]) -> None:
        """What an ensemble has in place of heads: its description, and copies of its members by the names given there.

        A copy is what a member needs to answer, without its own answers, its checkpoints and what a writer left behind.
        """
        write_json(self.directory / _RECIPE, {"ensemble": description})
        for name, run in members.items():
            try:
                shutil.copytree(run.path, self.directory / _MEMBERS / name, ignore=_NOT_COPIED)
            except shutil.Error as error:
                file, _, reason = error.args[0][0]
                raise GeoError(f"can't copy this file of the run: {reason}", where=file) from error

    def write_backbone(self, backbone: "Backbone") -> Path:
        """A backbone of the run's own, as a directory that `load_backbone` takes; returns it."""
        from geo_embed.backbones.backbone import save_backbone

        save_backbone(backbone, self.directory / _BACKBONE)
        return self.directory / _BACKBONE

    def write_centroids(self, labels: LabelEncoder, centroids: NDArray[np.float64]) -> None:
        """The middle of each class, (C, 2) latitude and longitude in degrees, and the distances (C, C) between them."""
        states = {
            str(int(index)): {"state": state, "latitude": float(latitude), "longitude": float(longitude)}
            for index, state, (latitude, longitude) in zip(
                labels.state_idx, labels.names, centroids, strict=True
            )
        }
        write_json(self.directory / _CENTROIDS, states)
        self.write_distances(distance_matrix_km(centroids))

    def write_distances(self, km: NDArray[np.float64]) -> None:
        """Great-circle distances (C, C) in km between the classes' centroids."""
        np.save(self.directory / _DISTANCES, km)

    def write_split(self, table: "pd.DataFrame") -> None:
        """Which samples were learnt from and which held out: sample_id, part (train, val), and fold where there are some."""
        table.to_parquet(self.directory / _SPLIT, index=False)

    def copy_places(self, run: Run) -> None:
        """Centroids, distances and split of another run, for one with the same samples and classes."""
        for name in (_CENTROIDS, _DISTANCES, _SPLIT):
            try:
                shutil.copyfile(run.path / name, self.directory / name)
            except FileNotFoundError as error:
                raise GeoError(
                    "the run lacks this file", where=run.path / name, hint="train it again: it is incomplete"
                ) from error

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Scores on the held-out samples under `val`, and what else is to be known of the training."""
        write_json(self.directory / _METRICS, metrics)

    def write_history(self, table: "pd.DataFrame") -> None:
        """One row per epoch or trial."""
        table.to_parquet(self.directory / _HISTORY, index=False)

    def write_predictions(self, split: str, predictions: Predictions, truth: Truth | None) -> None:
        """A prediction table of `val`, `train` or `test`."""
        from geo_embed.runs.table import write_predictions

        write_predictions(self.directory / f"{split}{_PREDICTIONS}", predictions, truth)


def load_run(runs_dir: Path, name: str | None) -> Run:
    """A run by name or path; the newest where no name is given.

    Nothing of a run is executed: plugins that it was made with must have been loaded by settings in force (`plugins.py`).

    Raises:
        GeoError: no such run, or a damaged one, with the file; one that needs a plugin that isn't loaded.
    """
    path = _newest(runs_dir) if name is None else _named(runs_dir, name)
    where = path
    try:
        where = path / _CONFIG
        settings = tomllib.loads(where.read_text(encoding="utf-8"))
        check_names(settings, where)
        config = Config.model_validate(settings)
        where = path / _LABELS
        described = json.loads(where.read_text(encoding="utf-8"))
        classes, prior = described["classes"], described["prior"]
        if not classes or len(classes) != len(prior["probabilities"]):
            raise ValueError(f"{len(classes)} classes, {len(prior['probabilities'])} prior probabilities")
        labels = LabelEncoder(
            np.array([entry["state_idx"] for entry in classes], dtype=np.int64),
            tuple(entry["state"] for entry in classes),
        )
        where = path / _PROVENANCE
        provenance = json.loads(where.read_text(encoding="utf-8"))
        int(provenance["store"]["dim"]), str(provenance["store"]["fingerprint"])
        return Run(
            path,
            config,
            labels,
            Prior(np.array(prior["probabilities"]), prior["latitude"], prior["longitude"]),
            provenance,
        )
    except FileNotFoundError as error:
        raise GeoError(
            "the run lacks this file", where=where, hint="train it again: it is incomplete"
        ) from error
    except (OSError, ValidationError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise GeoError(
            f"this file of the run is damaged, or from another version: {reason}",
            where=where,
            hint="train the run again",
        ) from error


def run_stores(runs_dir: Path) -> dict[str, list[str]]:
    """For each store's fingerprint, the names of the runs that were fitted on it."""
    users: dict[str, list[str]] = {}
    for path in _runs(runs_dir):
        try:
            provenance = json.loads((path / _PROVENANCE).read_text(encoding="utf-8"))
            for fingerprint in _store_fingerprints(provenance):
                users.setdefault(fingerprint, []).append(path.name)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return users


def _store_fingerprints(provenance: dict[str, Any]) -> list[str]:
    made_from = [provenance["store"], *provenance.get("stores", [])]
    return list(dict.fromkeys(store["fingerprint"] for store in made_from))


def _named(runs_dir: Path, name: str) -> Path:
    for path in (runs_dir / name, Path(name)):
        if is_run(path):
            return path
    near = ", ".join(run.name for run in _runs(runs_dir)[:5])
    raise GeoError(
        f"there is no run {name!r}",
        where=runs_dir,
        hint=f"the newest are: {near}" if near else "train one with: geo fit-heads",
    )


def _newest(runs_dir: Path) -> Path:
    runs = _runs(runs_dir)
    if not runs:
        raise GeoError("there is no run yet", where=runs_dir, hint="train one with: geo fit-heads")
    return runs[0]


def _runs(runs_dir: Path) -> list[Path]:
    """Finished runs, newest first."""
    finished = [path.parent for path in runs_dir.glob(f"[!.]*/{_PROVENANCE}")]
    return sorted(finished, key=lambda path: (path / _PROVENANCE).stat().st_mtime_ns, reverse=True)
