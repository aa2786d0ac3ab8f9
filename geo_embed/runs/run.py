"""A run directory: what was trained, on what, how well, and how to get it again."""

import difflib
import itertools
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import LabelEncoder, Predictions, Prior, Truth
from geo_embed.blocks import Block, blocks_of, label_of
from geo_embed.config import Config, Paths
from geo_embed.console import warn
from geo_embed.errors import AbsentError, BusyError, GeoError, disk_errors
from geo_embed.files import (
    JSON_BYTES,
    entries,
    is_locked,
    lock,
    lock_beside,
    open_regular,
    read_array,
    read_bytes,
    read_columns,
    read_json,
    read_tensor_header,
    read_toml,
    replacing_directory,
    restore_replaced,
    save_tensors,
    validated,
    write_json,
)
from geo_embed.geography import distance_matrix_km
from geo_embed.plugins import PluginError, check_names
from geo_embed.runs.schema import Labels, Metrics, Provenance
from geo_embed.settings import to_toml

if TYPE_CHECKING:
    import pandas as pd

    from geo_embed.backbones.backbone import Backbone
    from geo_embed.heads.predictor import Panel

Result = TypeVar("Result")

# The names of a run's files: known here alone.
_CONFIG, _LABELS, _PROVENANCE = "config.toml", "labels.json", "provenance.json"
_RECIPE, _HEADS, _MEMBERS = "recipe.json", "heads.safetensors", "members"
_CENTROIDS, _DISTANCES, _SPLIT = "state_centroids.json", "haversine_matrix.npy", "split.parquet"
_METRICS, _HISTORY, _PREDICTIONS = "metrics.json", "history.parquet", "_predictions.parquet"
_DATA_PATHS = {"data_root", "train_csv", "test_csv", "state_mapping_csv", "train_images", "test_images"}
_BACKBONE, _CHECKPOINTS, _TAGS = "backbone", "checkpoints", "tags.json"
# Of a run that becomes a member of an ensemble.
_NOT_COPIED = shutil.ignore_patterns(f"*{_PREDICTIONS}", _CHECKPOINTS, _TAGS, ".*")
# Of the table of a split, which names every sample once or, with folds, once a fold.
_MOST_ROWS = 50_000_000
# Bytes of a file that isn't tensors.
_MOST_COPIED = 1 << 30

# Columns of history.parquet: of a training by epochs, of a race's trials, and of both.
HISTORY = (
    *("epoch", "learning_rate", "train_loss", "val_score", "val_state_score", "val_gps_score"),
    *("val_mean_km", "val_nll", "member", "score", "state_score", "gps_score", "seed", "fold"),
)

# How often what reads a run begins again because it was replaced.
_USES = 5
# Somebody may be looking at a lock file just now, for a moment.
_LOOKED_AT_SECONDS = 0.2

# Short enough for what is added to it while it is written, within the 255 bytes of a file's name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: its directory; the name is the directory's.
        config: the settings it was made with.
        labels: its classes, in the order of its probabilities.
        prior: its answer without pictures.
        provenance: where it came from.
        identity: tells it from another run that takes its place.
    """

    path: Path
    config: Config
    labels: LabelEncoder
    prior: Prior
    provenance: dict[str, Any]
    identity: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def dim(self) -> int:
        """D, the width of the embeddings it was fitted on: of all sources together."""
        return sum(int(source["dim"]) for source in self.sources)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """What it was fitted on, source by source in the order of its embeddings' columns: what provenance.json says of a store,
        `name`, which the settings have for its backbone, and `function`. Of an ensemble its first member's.
        """
        if self.provenance.get("sources"):
            return list(self.provenance["sources"])
        more = {"name": self.config.model.backbone_name, "function": self.provenance.get("function")}
        return [self.provenance["store"] | more]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Which columns of its embeddings are which source's."""
        labels = [label_of(source["name"], source.get("feature")) for source in self.sources]
        return blocks_of(labels, (int(source["dim"]) for source in self.sources))

    @property
    def store_fingerprints(self) -> list[str]:
        """The stores that it was fitted on: one, of several sources each one's, or for an ensemble every member's."""
        return _store_fingerprints(self.provenance)

    @property
    def settings_path(self) -> Path:
        """The settings that it was made with, which `--config` takes."""
        return self.path / _CONFIG

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

    @property
    def tags_path(self) -> Path:
        """What people say of it; may not be there. No training writes this file."""
        return self.path / _TAGS

    def predictions_path(self, split: str) -> Path:
        """Its prediction table of `val`, `train` or `test`; may not be there."""
        return predictions_path(self.path, split)

    def read_metrics(self) -> dict[str, Any]:
        """Its scores on the samples that it held out. Raises GeoError where they can't be read."""
        with of_run():
            scores: dict[str, Any] = read_json(self.path / _METRICS, Metrics).model_dump()["val"]
            return scores

    def read_all_metrics(self) -> dict[str, Any]:
        """All of metrics.json as plain values: `val`, and what else is known of the training. Raises GeoError where it can't be read."""
        self.read_metrics()
        with of_run():
            return read_json(self.path / _METRICS)

    def read_provenance(self) -> dict[str, Any]:
        """provenance.json as it stands. Raises GeoError where it can't be read."""
        with of_run():
            return read_json(self.path / _PROVENANCE)

    def read_history(self) -> "pd.DataFrame":
        """How its training went, a row per epoch or trial: those of `HISTORY` that were noted. An ensemble has none, without a row.

        Raises:
            GeoError: the table can't be read.
        """
        import pandas as pd

        path = self.path / _HISTORY
        if not path.exists():
            return pd.DataFrame()
        with of_run():
            table = read_columns(path, (), optional=HISTORY, most_rows=_MOST_ROWS, complete=False)
            return pd.DataFrame({name: table[name].to_pylist() for name in table.column_names})

    def read_chosen_score(self) -> float | None:
        """What the run's heads as they are score on the samples that chose their epoch, which is too good; None where these chose
        nothing, or in a run of an earlier version.

        Raises GeoError where it can't be read.
        """
        with of_run():
            chosen = read_json(self.path / _METRICS, Metrics).chosen
        return None if chosen is None else chosen.score

    def read_split(self) -> "pd.DataFrame":
        """Which samples it learnt from and which it held out: `sample_id`, `part` (train, val), `fold` if there were some, and, but in
        runs of earlier versions, `near_twin`: whether one that it held out has a near twin among those that it learnt from.

        Raises:
            GeoError: the table can't be read.
        """
        import pandas as pd

        with of_run():
            columns = ("sample_id", "part")
            path = split_path(self.path)
            table = read_columns(path, columns, optional=("fold", "near_twin"), most_rows=_MOST_ROWS)
            return pd.DataFrame({name: table[name].to_pylist() for name in table.column_names})

    def read_classes(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Its training samples by class (C,), and great-circle distances (C, C) in km between the classes' centroids.

        Raises:
            GeoError: a file is absent or damaged.
        """
        with of_run():
            classes = read_json(self.path / _LABELS, Labels).classes
            counts = np.array([entry.samples for entry in classes], dtype=np.int64)
            path = self.path / _DISTANCES
            distances = read_array(path)
            if distances.shape != (len(counts), len(counts)) or not np.isfinite(distances).all():
                raise GeoError(
                    f"{distances.shape} distances, {len(counts)} classes, or one is NaN", where=path
                )
            return counts, distances.astype(np.float64)

    def read_centroids(self) -> NDArray[np.float64]:
        """The middle of each class (C, 2), latitude and longitude in degrees. Raises GeoError where they can't be read."""
        with of_run():
            path = self.path / _CENTROIDS
            states = read_json(path)
            points = np.full((len(self.labels), 2), np.nan)
            for k, index in enumerate(self.labels.state_idx):
                entry = states.get(str(int(index)))
                if isinstance(entry, dict):
                    points[k] = [_degrees(entry.get(name)) for name in ("latitude", "longitude")]
            if not (np.abs(points) <= (90, 180)).all():
                raise GeoError("a class has no centroid, or one that is no point on the globe", where=path)
            return points


def _degrees(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


@contextmanager
def of_run() -> Iterator[None]:
    """Say of what is wrong with a file of a run that it is the run's, and what to do."""
    try:
        yield
    except AbsentError as error:
        raise GeoError(
            "the run lacks this file", where=error.where, hint="train it again: it is incomplete"
        ) from error
    except GeoError as error:
        raise GeoError(
            f"this file of the run is damaged, or from another version: {error.what}",
            where=error.where,
            hint="train the run again",
        ) from error


def on_this_machine(run: Run, paths: Paths, device: str) -> Run:
    """A run, wherever it was made, with the paths and the device of this machine in its settings.

    Data and cache that nobody named and that don't lie where they do by default are where the run had them, if they are still there.
    """
    run_paths, update = run.config.paths, dict[str, Any]()
    if _lacks_data(paths) and not paths.model_fields_set & _DATA_PATHS and not _lacks_data(run_paths):
        update |= {name: getattr(run_paths, name) for name in _DATA_PATHS}
    if "cache_dir" not in paths.model_fields_set and not paths.cache_dir.exists():
        update |= {"cache_dir": run_paths.cache_dir}
    model = run.config.model.model_copy(update={"device": device})
    paths = paths.model_copy(update=update)
    return replace(run, config=run.config.model_copy(update={"paths": paths, "model": model}))


def _lacks_data(paths: Paths) -> bool:
    return not any(paths.csv(split).is_file() for split in ("train", "test"))


def is_run(directory: Path) -> bool:
    """Whether a whole run lies there, not an unfinished training or nothing."""
    # What has a name longer than any file's is none.
    with suppress(OSError, ValueError):
        return (directory / _PROVENANCE).is_file()
    return False


def split_path(directory: Path) -> Path:
    """The table in a run's directory of which samples it learnt from and which it held out."""
    return directory / _SPLIT


def predictions_path(directory: Path, split: str) -> Path:
    """The prediction table of a split in a run's directory."""
    return directory / f"{split}{_PREDICTIONS}"


def provenance_path(directory: Path) -> Path:
    """Where a run says what it was made from; without this file a directory is no run."""
    return directory / _PROVENANCE


def checkpoints_dir(directory: Path) -> Path:
    """Where fine-tuning keeps its checkpoints until the run that is to lie in `directory` takes their place."""
    return directory / _CHECKPOINTS


def backbone_dir(directory: Path) -> Path:
    """Where a fine-tuned run keeps a backbone of its own."""
    return directory / _BACKBONE


def unfinished_runs(runs_dir: Path) -> list[Path]:
    """Directories of trainings that were interrupted, or are at work, the newest first."""
    ages = {}
    for path in entries(runs_dir, hidden=False):
        with suppress(OSError):
            if checkpoints_dir(path).is_dir() and not is_run(path):
                ages[path] = path.stat().st_mtime_ns
    return sorted(ages, key=lambda path: -ages[path])


def new_run_name(runs_dir: Path, prefix: str) -> str:
    """`prefix-YYYYMMDD-HHMMSS`, counted up where that is taken, or being written."""
    stem = f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    names = (stem if n == 1 else f"{stem}-{n}" for n in itertools.count(1))
    return next(name for name in names if not _is_taken(runs_dir / name))


def _is_taken(directory: Path) -> bool:
    return os.path.lexists(directory) or is_being_written(directory)


def check_new_name(runs_dir: Path, name: str, *, overwrite: bool) -> None:
    """Raise GeoError for a name that is none, or is taken. Cheap: call it before any work is done."""
    if not _NAME.fullmatch(name):
        raise GeoError(
            f"{name!r:.80} can't name a run",
            where="--name",
            hint="use up to 200 letters, digits, dots, dashes",
        )
    if os.path.lexists(runs_dir / name) and not overwrite:
        raise GeoError(
            "a run of this name exists",
            where=runs_dir / name,
            hint="choose another --name, or replace it with --overwrite",
        )


@contextmanager
def only_run_writer(
    runs_dir: Path,
    name: str | None,
    *,
    prefix: str = "run",
    overwrite: bool = False,
    resume: bool = False,
    busy: str = "another process is writing this run now",
) -> Iterator[str]:
    """Hold the name of a run from before any work is done until `writing_run` has published it; the kernel lets go of a dead holder's.

    Args:
        runs_dir: made if it isn't there, and gone again if nothing comes of it.
        name: default one that nobody has: `prefix`, and the time.
        prefix: what such a name begins with.
        overwrite: let a run have this name already.
        resume: let an unfinished training have it.
        busy: what to say of another holder.

    Yields:
        The name.

    Raises:
        BusyError: another process holds the name, by process, host and time.
        GeoError: the name is none, or is taken.
    """

    def check(name: str) -> None:
        unfinished = resume and not is_run(runs_dir / name) and checkpoints_dir(runs_dir / name).is_dir()
        check_new_name(runs_dir, name, overwrite=overwrite or unfinished)

    def held(name: str) -> AbstractContextManager[None]:
        return lock(
            lock_beside(runs_dir / name),
            busy=busy,
            where=runs_dir / name,
            hint="wait until it is done, or choose another --name",
            keep=False,
            wait_seconds=_LOOKED_AT_SECONDS,
        )

    with ExitStack() as holding:
        if not runs_dir.exists():
            holding.callback(_remove_empty, runs_dir)
        if name is not None:
            check(name)
            holding.enter_context(held(name))
            restore_replaced(runs_dir, only=[name])
            # Whoever held it before may have published just now.
            check(name)
        while name is None:
            new = new_run_name(runs_dir, prefix)
            with suppress(BusyError), ExitStack() as trying:
                trying.enter_context(held(new))
                if not os.path.lexists(runs_dir / new):
                    holding.push(trying.pop_all())
                    name = new
        yield name


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def is_being_written(directory: Path) -> bool:
    """Whether a process holds the name of this run now, by `only_run_writer`."""
    return is_locked(lock_beside(directory))


@contextmanager
def writing_run(runs_dir: Path, name: str, *, overwrite: bool = True) -> Iterator["RunWriter"]:
    """Write a run's files; the run appears under its name once the block ends well, and never half.

    Whoever calls it holds the name by `only_run_writer`.

    Raises:
        GeoError: for every OSError, also of the block; a run that was there before stays. Or, without `overwrite`, the name is
            taken by then.
    """
    with replacing_directory(runs_dir / name, overwrite=overwrite) as directory:
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
        self.write_provenance(provenance)

    def write_heads(self, panel: "Panel") -> None:
        """What `load_heads` reads: the heads' tensors, and how they are built."""
        tensors = {key: value.cpu().contiguous() for key, value in panel.state_dict().items()}
        save_tensors(tensors, self.directory / _HEADS)
        self.write_recipe(panel.description())

    def write_ensemble(self, description: Mapping[str, Any], members: Mapping[str, Run]) -> None:
        """What an ensemble has in place of heads: its description, and copies of its members by the names given there.

        A copy is what a member needs to answer, without its own answers, its checkpoints and what a writer left behind.
        """
        self.write_recipe({"ensemble": description})
        for name, run in members.items():
            try:
                shutil.copytree(
                    run.path,
                    self.directory / _MEMBERS / name,
                    ignore=_not_copied,
                    copy_function=lambda source, target: _copy_file(Path(source), Path(target)),
                )
            except shutil.Error as error:
                file, _, reason = error.args[0][0]
                raise GeoError(f"can't copy this file of the run: {reason}", where=file) from error

    def take_over(self, run: Run) -> None:
        """All files of a run, but for its checkpoints and its predictions of the splits `train` and `test`.

        Files are linked, not copied, where the disk can: every file is replaced whole, so neither run changes under the other.
        """
        dropped = {_CHECKPOINTS, *(run.predictions_path(split).name for split in ("train", "test"))}
        for folder, folders, names in os.walk(run.path):
            copied_folder = self.directory / Path(folder).relative_to(run.path)
            copied_folder.mkdir(exist_ok=True)
            top = Path(folder) == run.path
            folders[:] = [
                name for name in folders if not name.startswith(".") and not (top and name in dropped)
            ]
            for name in names:
                if name.startswith(".") or (top and name in dropped):
                    continue
                source, target = Path(folder, name), copied_folder / name
                try:
                    if source.is_symlink():
                        raise OSError
                    target.hardlink_to(source)
                except OSError:
                    _copy_file(source, target)

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """How the run's heads are built or its members combined, as `load_heads` and `load_ensemble` read it."""
        write_json(self.directory / _RECIPE, recipe)

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Where the run came from."""
        write_json(self.directory / _PROVENANCE, provenance)

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
            with of_run():
                _copy_file(run.path / name, self.directory / name)

    def copy_results(self, run: Run) -> None:
        """What another run's heads are, where its classes lie, and its scores; not which samples it learnt from."""
        for name in (_HEADS, _CENTROIDS, _DISTANCES, _METRICS):
            # An ensemble has no heads of its own.
            if name != _HEADS or (run.path / name).exists():
                with of_run():
                    _copy_file(run.path / name, self.directory / name)

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


def _not_copied(directory: str, names: list[str]) -> set[str]:
    """What a copy of a run leaves out: also what a link to a directory would bring along from elsewhere."""
    linked = {
        name for name in names if (Path(directory) / name).is_symlink() and (Path(directory) / name).is_dir()
    }
    return _NOT_COPIED(directory, names) | linked


def _copy_file(source: Path, target: Path) -> None:
    """Copy a regular file. Raises GeoError where it is none, since copying a device would never end, or is larger than any of a run's."""
    if source.suffix == ".safetensors":
        read_tensor_header(source)
    elif source.is_file() and source.stat().st_size > _MOST_COPIED:
        raise GeoError("no file of a run is as large as this one", where=source)
    with open_regular(source) as reading, disk_errors(target), target.open("wb") as writing:
        shutil.copyfileobj(reading, writing)


def load_run(runs_dir: Path, name: str | None) -> Run:
    """A run by name or path; the newest where no name is given.

    Nothing of a run is executed: plugins that it was made with must have been loaded by settings in force (`plugins.py`).

    Raises:
        GeoError: no such run, or a damaged one, with the file; one that needs a plugin that isn't loaded.
    """
    if name is None:
        return _load_newest(runs_dir)
    path = _named(runs_dir, name)
    while True:
        identity = _identity(path)
        try:
            run = replace(_load(path), identity=identity)
        except GeoError:
            put_right(path.parent)
            if _identity(path) == identity:
                raise
            continue
        if _identity(path) == identity:
            return run


def use_run(runs_dir: Path, name: str | None, use: Callable[[Run], Result]) -> Result:
    """What `use` makes of a run; made again of the new one where the run was replaced meanwhile, so that it is never of both.

    Raises:
        GeoError: as `load_run` and `use`; or the run was replaced again each time.
    """
    for _ in range(_USES):
        run = load_run(runs_dir, name)
        try:
            result = use(run)
            check_not_replaced(run)
        except GeoError:
            if _identity(run.path) == run.identity:
                raise
        else:
            return result
    raise _replaced(run)


def check_not_replaced(run: Run) -> None:
    """Raise GeoError where another run has taken the place of this one since it was loaded."""
    if run.identity and _identity(run.path) != run.identity:
        raise _replaced(run)


def _replaced(run: Run) -> GeoError:
    return GeoError(
        "the run was replaced while it was being read",
        where=run.path,
        hint="run the same command again; in Python load the run again",
    )


def _identity(path: Path) -> tuple[int, ...]:
    try:
        directory, provenance = path.stat(), read_bytes(path / _PROVENANCE, limit=JSON_BYTES)
    except (OSError, ValueError, GeoError):
        return ()
    # Numbers of directories are given again.
    return directory.st_dev, directory.st_ino, zlib.crc32(provenance)


def _load(path: Path) -> Run:
    with of_run():
        settings = read_toml(path / _CONFIG)
    check_names(settings, path / _CONFIG)
    # A run of a version without these settings was fitted by errors in degrees, and split by the seed of its weights.
    if isinstance(training := settings.get("training"), dict):
        training.setdefault("gps_normalise", False)
        training.setdefault("split_seed", training.get("seed", 0))
    with of_run():
        config = validated(Config, settings, path / _CONFIG)
        described = read_json(path / _LABELS, Labels)
        provenance = read_json(path / _PROVENANCE, Provenance)
    labels = LabelEncoder(
        np.array([entry.state_idx for entry in described.classes], dtype=np.int64),
        tuple(entry.state for entry in described.classes),
    )
    prior = described.prior
    return Run(
        path,
        config,
        labels,
        Prior(np.array(prior.probabilities), prior.latitude, prior.longitude),
        provenance.model_dump(),
    )


def run_stores(runs_dir: Path) -> dict[str, list[str]]:
    """For each store's fingerprint, the names of the runs that were fitted on it; of those in `broken_runs` it isn't known."""
    users: dict[str, list[str]] = {}
    for path in finished_runs(runs_dir):
        try:
            provenance = read_json(path / _PROVENANCE, Provenance).model_dump()
        except GeoError:
            continue
        for fingerprint in _store_fingerprints(provenance):
            users.setdefault(fingerprint, []).append(path.name)
    return users


def _store_fingerprints(provenance: dict[str, Any]) -> list[str]:
    made_from = [
        provenance["store"],
        *(provenance.get("sources") or ()),
        *(provenance.get("stores") or ()),
    ]
    return list(dict.fromkeys(store["fingerprint"] for store in made_from))


def _named(runs_dir: Path, name: str) -> Path:
    for path in (runs_dir / name, Path(name)):
        if not is_run(path):
            put_right(path.parent)
        if is_run(path):
            return path
    names = [run.name for run in finished_runs(runs_dir)]
    near = difflib.get_close_matches(name, names, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise GeoError(
        f"there is no run {name!r:.200}",
        where=runs_dir,
        hint=f"{meant}the newest are: {', '.join(names[:5])}" if names else "train one with: geo fit-heads",
    )


def _load_newest(runs_dir: Path) -> Run:
    """The newest run that can be read; newer ones that can't be are named."""
    broken = {path: GeoError(why, where=path) for path, why in broken_runs(runs_dir)}
    newest: Run | None = None
    for path in finished_runs(runs_dir):
        try:
            newest = load_run(runs_dir, path.name)
            break
        except PluginError:
            raise
        except GeoError as error:
            broken[path] = error
    if newest is None:
        no_run = GeoError("there is no run yet", where=runs_dir, hint="train one with: geo fit-heads")
        raise next(iter(broken.values()), no_run)
    for why in broken.values():
        warn(f"a run is broken, and passed over: {why}")
    return newest


def broken_runs(runs_dir: Path) -> list[tuple[Path, str]]:
    """What lies among the runs and doesn't say what it was fitted on, and why: a directory without permission, a loop of links, a
    provenance that is damaged, gone, or a pipe. An unfinished training is none of them, nor is what was never a run.
    """
    try:
        next(runs_dir.iterdir(), None)
    except OSError as error:
        # No directory yet is no fault, a link that leads to none is.
        return [(runs_dir, f"can't read: {error.strerror}")] if os.path.lexists(runs_dir) else []
    broken = []
    for path in entries(runs_dir, hidden=False):
        try:
            files = {file.name for file in path.iterdir()}
            if _PROVENANCE in files:
                read_json(path / _PROVENANCE, Provenance)
            elif files & {_CONFIG, _LABELS, _RECIPE, _HEADS}:
                broken.append((path, f"{_PROVENANCE} is gone"))
        except NotADirectoryError:
            continue
        except OSError as error:
            broken.append((path, f"can't read: {error.strerror}"))
        except GeoError as error:
            broken.append((path, error.what))
    return broken


def put_right(runs_dir: Path) -> None:
    """Give their names back to runs that were about to be replaced when the writer was killed."""
    restore_replaced(runs_dir, is_being_written)


def finished_runs(runs_dir: Path) -> list[Path]:
    """Finished runs, newest first."""
    put_right(runs_dir)
    ages = {}
    for path in entries(runs_dir, hidden=False):
        # It may go meanwhile, or be none of ours.
        with suppress(OSError):
            if is_run(path):
                ages[path] = (path / _PROVENANCE).stat().st_mtime_ns
    return sorted(ages, key=lambda path: -ages[path])
