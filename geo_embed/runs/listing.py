"""All runs at a glance: how good, made how, from what, when, and what people say of them. Also what lies beside them and is none."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from geo_embed.blocks import label_of
from geo_embed.config import RunOrder
from geo_embed.console import warn
from geo_embed.errors import GeoError
from geo_embed.files import entries
from geo_embed.runs.recipe import read_recipe
from geo_embed.runs.run import (
    Run,
    broken_runs,
    finished_runs,
    is_being_written,
    is_run,
    load_run,
    provenance_path,
    unfinished_runs,
)
from geo_embed.runs.tags import Tagged, read_tags


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance.

    Attributes:
        run, path: its name, and its directory.
        kind: heads, finetuned or ensemble.
        score, score_interval, state_score, gps_score, mean_km, samples: on the samples that it held out; the interval is unknown, like
            the rest where nothing was held out, in runs of earlier versions.
        recipe: preset, head and fusion; of `best`, what its race chose; of a fine-tuned run `init`, of an ensemble `method` and `members`.
        backbone, store: whose embeddings it was fitted on, with the feature where it isn't the store's own, and the store's fingerprint; of an ensemble its first member's.
        stores: fingerprints of all of them, more than one of an ensemble alone.
        data: `train_csv`, its `sha256`, and the `samples` and `views` of the store.
        validation: kind (random, spatial), `folds`, `val_split`, `split_seed`, and of a spatial one `group_km`.
        calibration: kind, or None.
        seed: of the weights.
        created: when, ISO 8601; None where a run doesn't say.
        age_seconds: since it was written; by this the newest is found where no run is named.
        tags, note: what people say of it.
    """

    run: str
    path: Path
    kind: Literal["heads", "finetuned", "ensemble"]
    score: float | None
    score_interval: tuple[float | None, float | None]
    state_score: float | None
    gps_score: float | None
    mean_km: float | None
    samples: int
    recipe: dict[str, Any]
    backbone: str
    store: str
    stores: list[str]
    data: dict[str, Any]
    validation: dict[str, Any]
    calibration: str | None
    seed: int
    created: str | None
    age_seconds: float
    tags: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class NoRun:
    """What lies among the runs and can't be used as one, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """Runs, and what lies beside them and is none."""

    runs: list[RunSummary]
    broken: list[NoRun]


def list_runs(
    runs_dir: Path, pattern: str | None = None, *, tags: Sequence[str] = (), sort: RunOrder = "age"
) -> Listing:
    """Every run of a folder, the newest, best, first by name or nearest first.

    Args:
        runs_dir: of the runs; may not be there yet.
        pattern: only those whose names match it, as a shell's `heads-*`; also of what can't be used.
        tags: only those that have each of them.
        sort: `age`, `score`, `name`, `km`; runs without the number come last.

    Raises:
        GeoError: an unknown order.
    """
    if sort not in get_args(RunOrder):
        raise GeoError(
            f"runs can't be sorted by {sort!r:.80}", hint=f"by one of: {', '.join(get_args(RunOrder))}"
        )

    def matches(path: Path) -> bool:
        return pattern is None or fnmatchcase(path.name, pattern)

    summaries: list[RunSummary] = []
    broken: dict[Path, str] = {path: reason for path, reason in _no_runs(runs_dir).items() if matches(path)}
    for path in filter(matches, finished_runs(runs_dir)):
        if path in broken:
            continue
        try:
            summaries.append(summarise(load_run(runs_dir, path.name)))
        except GeoError as error:
            broken[path] = str(error)
    chosen = [summary for summary in summaries if set(tags) <= set(summary.tags)]
    chosen.sort(key=lambda summary: _place(summary, sort))
    return Listing(chosen, [NoRun(path, reason) for path, reason in sorted(broken.items())])


def _place(summary: RunSummary, sort: RunOrder) -> tuple[bool, Any]:
    of = {
        "age": summary.age_seconds,
        "score": None if summary.score is None else -summary.score,
        "name": summary.run,
        "km": summary.mean_km,
    }[sort]
    return of is None, summary.run if of is None else of


def _no_runs(runs_dir: Path) -> dict[Path, str]:
    """What lies among the runs and is none, with the reason; files are nobody's concern."""
    reasons = dict(broken_runs(runs_dir))
    for path in unfinished_runs(runs_dir):
        at_work = is_being_written(path)
        again = f"go on with geo finetune --name {path.name}"
        reasons[path] = f"an unfinished training: {'at work now' if at_work else again}"
    for path in entries(runs_dir, hidden=False):
        if path.is_dir() and path not in reasons and not is_run(path):
            reasons[path] = "it holds none of a run's files"
    return reasons


def summarise(run: Run) -> RunSummary:
    """A run at a glance. Raises GeoError where its scores or its recipe can't be read."""
    scores = run.read_metrics()
    low, high = scores.get("score_interval") or (None, None)
    training, provenance = run.config.training, run.provenance
    store, data = provenance["store"], provenance.get("data") or {}
    spatial = {"group_km": training.group_km} if training.validation == "spatial" else {}
    kind, recipe, calibration = _recipe(run)
    created = _created(provenance.get("created"))
    tagged = _tagged(run)
    return RunSummary(
        run=run.name,
        path=run.path,
        kind=kind,
        score=scores["score"],
        score_interval=(low, high),
        state_score=scores.get("state_score"),
        gps_score=scores.get("gps_score"),
        mean_km=scores.get("mean_km"),
        samples=int(scores.get("samples") or 0),
        recipe=recipe,
        backbone=", ".join(label_of(source["backbone"], source.get("feature")) for source in run.sources),
        store=store["fingerprint"],
        stores=run.store_fingerprints,
        data={
            "train_csv": data.get("train_csv"),
            "sha256": data.get("sha256"),
            "samples": store.get("samples"),
            "views": store.get("views"),
        },
        validation={
            "kind": training.validation,
            "folds": training.folds,
            "val_split": training.val_split,
            "split_seed": training.split_seed,
            **spatial,
        },
        calibration=calibration,
        seed=training.seed,
        created=None if created is None else created.isoformat(),
        age_seconds=max(0.0, time.time() - provenance_path(run.path).stat().st_mtime),
        tags=tagged.tags,
        note=tagged.note or str(provenance.get("note") or ""),
    )


def _recipe(run: Run) -> tuple[Literal["heads", "finetuned", "ensemble"], dict[str, Any], str | None]:
    described, _ = read_recipe(run)
    calibration = None if described.calibration is None else described.calibration.kind
    if described.ensemble is not None:
        members = list(described.ensemble.members)
        return "ensemble", {"method": described.ensemble.method, "members": members}, calibration
    model, training = run.config.model, run.config.training
    # The plain recipe's fusion, where none is named.
    recipe: dict[str, Any] = {
        "preset": training.preset,
        "head": model.head,
        "fusion": model.fusion or "average",
    }
    best = [member.name for part in described.parts if part.best for member in part.best.members]
    if best:
        # The race's own choice; of several seeds or folds, and of a network's folds, each is named once.
        recipe |= {"head": "geocells", "fusion": None, "chosen": list(dict.fromkeys(best))}
    if (init := run.provenance.get("init")) is not None:
        return "finetuned", recipe | {"init": init}, calibration
    return "heads", recipe, calibration


def _created(created: object) -> datetime | None:
    try:
        when = datetime.fromisoformat(str(created))
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _tagged(run: Run) -> Tagged:
    try:
        return read_tags(run)
    except GeoError as error:
        warn(str(error))
        return Tagged()


def describe_run(runs_dir: Path, name: str | None = None) -> dict[str, Any]:
    """All that a run says of itself, as plain values: its summary; `val`, its scores; how it was made (`command`, `versions`, `machine`,
    `seconds`); the `settings` that aren't the defaults; and its `files` with their bytes.

    Raises:
        GeoError: no such run, or a damaged one.
    """
    from dataclasses import asdict

    from geo_embed.config import Config
    from geo_embed.settings import known_keys, value_at

    run = load_run(runs_dir, name)
    default = Config()
    changed = {
        key: value_at(run.config, key)
        for key in known_keys()
        if key.split(".")[0] != "paths" and value_at(run.config, key) != value_at(default, key)
    }
    return asdict(summarise(run)) | {
        "val": run.read_metrics(),
        **{key: run.provenance.get(key) for key in ("command", "versions", "machine", "seconds")},
        "settings": changed,
        "files": {
            str(file.relative_to(run.path)): file.stat().st_size
            for file in sorted(run.path.rglob("*"))
            if file.is_file()
        },
    }
