"""A run directory: what was trained, on what, how well, and how to get it again."""

import json
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from geo_embed import __version__
from geo_embed.answers import LabelEncoder, Prior
from geo_embed.cache.store import Store
from geo_embed.config import Config
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import write_json
from geo_embed.settings import to_toml

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
def writing_run(runs_dir: Path, name: str) -> Iterator[Path]:
    """A directory to write a run into; it appears under its name once the block ends well, and never half."""
    final = runs_dir / name
    temporary = runs_dir / f".{name}.writing"
    with disk_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        with disk_errors(final):
            yield temporary
            if final.exists():
                # A directory can't replace another in one step; the old run waits under a hidden name meanwhile.
                replaced = runs_dir / f".{name}.replaced"
                shutil.rmtree(replaced, ignore_errors=True)
                final.rename(replaced)
                temporary.rename(final)
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_description(
    directory: Path,
    config: Config,
    labels: LabelEncoder,
    counts: NDArray[np.int64],
    prior: Prior,
    provenance: dict[str, Any],
) -> None:
    """The files that `load_run` reads: config.toml, labels.json, provenance.json."""
    (directory / "config.toml").write_text(to_toml(config), encoding="utf-8")
    classes = [
        {"class": k, "state_idx": int(index), "state": name, "samples": int(count)}
        for k, (index, name, count) in enumerate(zip(labels.state_idx, labels.names, counts, strict=True))
    ]
    write_json(
        directory / "labels.json",
        {
            "classes": classes,
            "prior": {
                "probabilities": [float(p) for p in prior.probabilities],
                "latitude": prior.latitude,
                "longitude": prior.longitude,
            },
        },
    )
    write_json(directory / "provenance.json", provenance)


def load_run(runs_dir: Path, name: str | None) -> Run:
    """A run by name or path; the newest where no name is given.

    Raises:
        GeoError: no such run, or a damaged one, with the file.
    """
    path = _newest(runs_dir) if name is None else _named(runs_dir, name)
    where = path
    try:
        where = path / "config.toml"
        config = Config.model_validate(tomllib.loads(where.read_text(encoding="utf-8")))
        where = path / "labels.json"
        described = json.loads(where.read_text(encoding="utf-8"))
        classes, prior = described["classes"], described["prior"]
        if not classes or len(classes) != len(prior["probabilities"]):
            raise ValueError(f"{len(classes)} classes, {len(prior['probabilities'])} prior probabilities")
        labels = LabelEncoder(
            np.array([entry["state_idx"] for entry in classes], dtype=np.int64),
            tuple(entry["state"] for entry in classes),
        )
        where = path / "provenance.json"
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
            provenance = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
            for fingerprint in store_fingerprints(provenance):
                users.setdefault(fingerprint, []).append(path.name)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return users


def store_fingerprints(provenance: dict[str, Any]) -> list[str]:
    """The stores that a run was fitted on: one, or for an ensemble every member's."""
    made_from = [provenance["store"], *provenance.get("stores", [])]
    return list(dict.fromkeys(store["fingerprint"] for store in made_from))


def describe_origin(config: Config) -> dict[str, Any]:
    """Where and how a run is made: command, versions, machine."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "command": ["geo", *sys.argv[1:]],
        "note": config.tracking.note,
        "seed": config.training.seed,
        "versions": {
            "python": platform.python_version(),
            "geo-embed": __version__,
            **{name: version(name) for name in ("torch", "numpy", "scikit-learn")},
        },
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }


def describe_provenance(config: Config, store: Store, csv_sha256: str) -> dict[str, Any]:
    """Where a run came from: command, versions, machine, data and store."""
    n, v, d = store.shape
    return {
        **describe_origin(config),
        "data": {"train_csv": str(config.paths.csv("train")), "sha256": csv_sha256},
        "store": {
            "path": str(store.path),
            "fingerprint": store.fingerprint,
            "backbone": store.attrs["backbone"],
            "weights_sha256": store.attrs.get("weights_sha256"),
            "preprocessing": store.attrs.get("preprocessing"),
            "manifest_sha256": store.attrs["manifest_sha256"],
            "samples": n,
            "views": v,
            "dim": d,
        },
    }


def _named(runs_dir: Path, name: str) -> Path:
    for path in (runs_dir / name, Path(name)):
        if (path / "provenance.json").is_file():
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
    found = [path.parent for path in runs_dir.glob("[!.]*/provenance.json")]
    return sorted(found, key=lambda path: (path / "provenance.json").stat().st_mtime_ns, reverse=True)
