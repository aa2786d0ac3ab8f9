"""The command that is named as the next one is the first that is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from worlds import make_world

from geo_embed.cache.exchange import cache_import
from geo_embed.cache.find import find_store
from geo_embed.cache.store import PENDING, open_store
from geo_embed.config import Config
from geo_embed.health.next_step import next_step
from geo_embed.settings import with_changes

if TYPE_CHECKING:
    from conftest import Country

    from geo_embed.runs.run import Run

BOTH = ("train", "test")


def test_without_embeddings_of_all_samples_it_is_the_extraction(own: Country) -> None:
    config = own.config()
    samples = {split: find_store(config, split).shape[0] for split in BOTH}
    assert next_step(config, BOTH, samples=samples) == ["fit-heads"]
    assert next_step(config, BOTH, samples=samples | {"test": 1}) == ["extract", "--split", "test"]
    # It is known where it was moved to, as here, and by another name.
    assert find_store(config, "train").attrs["backbone"] != str(own.backbone)
    (own.root / "link").symlink_to(own.backbone)
    linked = with_changes(config, {"model.backbone_name": str(own.root / "link")})
    assert next_step(linked, BOTH) == ["fit-heads"]
    two = with_changes(config, {"model.backbones": [str(own.backbone), "another"]})
    named = ["--backbone", str(own.backbone), "--backbone", "another"]
    assert next_step(two, ["test"], named=named[1::2]) == ["extract", "--split", "test", *named]
    front = with_changes(config, {"model.view_names": ["north"]})
    assert next_step(front, BOTH) == ["extract", "--split", "all"]
    store = open_store(find_store(config, "train").path)
    store.status[3] = PENDING
    # Heads need it, whatever is looked at.
    assert next_step(config, ["test"]) == ["extract", "--split", "train"]


def test_a_run_on_these_embeddings_is_to_answer_and_an_answer_ends_it(config: Config, run: Run) -> None:
    assert next_step(config, BOTH) == ["submit"]
    assert next_step(config, BOTH, fresh=["train"]) == ["fit-heads"]
    answers = config.paths.submissions_dir / f"{run.name}.csv"
    answers.parent.mkdir(parents=True)
    answers.touch()
    assert next_step(config, BOTH) == []
    assert next_step(config, BOTH, fresh=["test"]) == ["submit"]


def test_a_run_on_other_embeddings_does_not_count_and_imports_are_imported(
    tmp_path: Path, config: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path / "world", ["a", "b"], samples=20)
    world = with_changes(world, {"paths.runs_dir": str(config.paths.runs_dir)})
    assert next_step(world, ["train"]) == ["fit-heads"]
    assert next_step(world, BOTH) == [
        *("cache", "import", "FILE", "--split", "test", "--backbone", "made-elsewhere")
    ]
    np.save(tmp_path / "other.npy", np.random.default_rng(0).normal(size=(20, 1, 5)).astype(np.float32))
    cache_import(world, tmp_path / "other.npy", "train", "other")
    mixed = with_changes(world, {"model.backbones": ["made-elsewhere", "other", "not-yet"]})
    assert next_step(mixed, ["train"]) == ["extract", "--split", "train", "--backbone", "not-yet"]
