"""A sweep on Ray tries what a local one tries, and comes to the same numbers; each goes on where the other ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small import Nursery

from geo_embed.config import Config
from geo_embed.fitting.space import parse_space
from geo_embed.fitting.sweep import Result, sweep, train_here
from geo_embed.scale.cluster import Cluster
from geo_embed.scale.sweep_on_ray import sweep_on_ray

if TYPE_CHECKING:
    from conftest import Country

SPACE = {
    "training.learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "model.head": ["separate", "geocells"],
    "model.head_hidden": [16, 32],
}
# Workers import this file as a plugin: the first of them dies in its first training.
DYING = """
import os, pathlib, signal
from geo_embed.fitting import sweep

def train_all(*arguments, train_all=sweep.train_all):
    died = pathlib.Path({folder!r}, "died")
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train_all(*arguments)

sweep.train_all = train_all
"""


def options(config: Config) -> dict[str, Any]:
    return {"space": parse_space(SPACE, config), "trials": 4, "eta": 2}


def tried(config: Config, name: str = "sweep") -> dict[tuple[int, int], dict[str, Any]]:
    """What the state file says of each training, but for its time."""
    saved = json.loads((config.paths.runs_dir / f"{name}.sweep.json").read_text())["results"]
    return {(r["trial"], r["rung"]): {k: v for k, v in r.items() if k != "seconds"} for r in saved}


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_on_ray_to_the_numbers_of_a_local_one_though_a_worker_dies(
    country: Country, tmp_path: Path, cluster: Cluster
) -> None:
    short = {"training__epochs": 2, "training__batch_size": 32, "training__learning_rate": 1e-6}
    whole = country.config(tmp_path / "whole", **short)
    alone = sweep(whole, **options(whole))
    (tmp_path / "plugin.py").write_text(DYING.format(folder=str(tmp_path)))
    # Here nothing loads it: workers do.
    config = country.config(tmp_path / "begun", model__plugins=[str(tmp_path / "plugin.py")], **short)

    def interrupted(*arguments: Any) -> Iterator[list[Result]]:
        results = train_here(*arguments)
        yield next(results)
        yield next(results)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(config, train=interrupted, **options(config))
    before = tried(config)
    assert len(before) == 2
    done = sweep_on_ray(config, cluster, **options(config))
    assert (tmp_path / "died").exists()
    assert (done.reused, done.computed + done.reused) == (2, alone.computed)
    after = tried(config)
    assert {key: after[key] for key in before} == before
    assert after == tried(whole)
    assert [trial["trial"] for trial in done.trials] == [trial["trial"] for trial in alone.trials]
    assert done.best["val"] == alone.best["val"]


@pytest.mark.slow
def test_the_command_prints_the_json_of_a_local_one(
    country: Country, tmp_path: Path, nursery: Nursery, ray_address: str
) -> None:
    short = ["--set", "training.epochs=1", "--set", "training.batch_size=64"]
    arguments = [*country.options(tmp_path), *short, "--json", "sweep", "--trials", 1]
    ran = nursery.start_in(tmp_path, *arguments, "--engine", "ray", "--ray-address", ray_address).end()
    assert ran.code == 0, ran.err
    assert (ran.json["computed"], ran.json["reused"]) == (1, 0)
    again = nursery.start_in(tmp_path, *arguments).end()
    assert (again.json["computed"], again.json["reused"]) == (0, 1)
    assert again.json.keys() == ran.json.keys()
    assert again.json["best"] == ran.json["best"]
    refused = nursery.start_in(tmp_path, *arguments, "--ray-address", ray_address).end()
    assert (refused.code, "goes together with --engine ray" in refused.err) == (2, True)
