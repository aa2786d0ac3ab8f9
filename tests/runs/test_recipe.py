"""What a run answers with comes back from disk as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.runs.recipe import load_ensemble, load_heads
from geo_embed.runs.run import Run, load_run, writing_run


def test_heads_come_back_bit_for_bit(run: Run, tmp_path: Path) -> None:
    heads = load_heads(run)
    with writing_run(tmp_path / "runs", "again") as writer:
        writer.write_heads(heads)
    for name in ("recipe.json", "heads.safetensors"):
        assert (tmp_path / "runs" / "again" / name).read_bytes() == (run.path / name).read_bytes()
    views, present = torch.randn(3, 4, run.dim), torch.ones(3, 4, dtype=torch.bool)
    for first, second in zip(
        heads.predict(views, present), load_heads(run).predict(views, present), strict=True
    ):
        assert torch.equal(first, second)
    assert load_ensemble(run) is None


@pytest.mark.parametrize("damage", ["gone", "cut", "another shape"])
def test_heads_that_cannot_be_loaded_are_one_clear_error(config: Config, run: Run, damage: str) -> None:
    path = run.path / "heads.safetensors"
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        text = (run.path / "recipe.json").read_text().replace('"head_hidden": 512', '"head_hidden": 100')
        (run.path / "recipe.json").write_text(text)
    with pytest.raises(GeoError, match="the run's heads can't be loaded") as caught:
        load_heads(load_run(config.paths.runs_dir, "first"))
    assert caught.value.where == str(path)
