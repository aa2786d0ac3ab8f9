"""A model divided among cards learns what a whole one learns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch

from geo_embed.config import Config

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Country, Geo
    from small import Ran

TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "geo_embed",
)
HOW = {"epochs": 1, "batch_size": 8, "accumulate": 2, "backbone_lr": 1e-4}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("sharded", [False, True])
def test_two_cards_learn_what_one_learns(
    sharded: bool, geo: Geo, country: Country, on_card: Config, fitted: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(fitted)
    settings = {**country.settings(tmp_path), **{f"finetune.{key}": value for key, value in HOW.items()}}
    settings |= {"model.device": "cuda", "finetune.sharded": str(sharded).lower()}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    tuned = ("finetune", "--init", "first", "--limit", "32", "--name")
    run: Callable[..., Ran] = geo
    for name, command in (("one", (sys.executable, "-m", "geo_embed")), ("two", TORCHRUN)):
        done = run(*options, *tuned, name, command=command)
        assert done.code == 0, done.err
    losses = [
        pd.read_parquet(on_card.paths.runs_dir / name / "history.parquet")["train_loss"]
        for name in ("one", "two")
    ]
    assert losses[1].tolist() == pytest.approx(losses[0].tolist(), rel=0.03)
