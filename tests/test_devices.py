"""Torch's switches are as the settings ask while a verb works, and as they were after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from geo_embed.config import Model
from geo_embed.devices import torch_switches
from geo_embed.fitting.fit import fit_heads
from geo_embed.heads.losses import state_cross_entropy
from geo_embed.registry import STATE_LOSSES
from geo_embed.runs.run import load_run

if TYPE_CHECKING:
    from geo_embed.config import Config


def flags() -> dict[str, bool]:
    cudnn = torch.backends.cudnn
    return {
        "deterministic": cudnn.deterministic,
        "benchmark": cudnn.benchmark,
        "cudnn_tf32": cudnn.allow_tf32,
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


@pytest.mark.parametrize("asked", [True, False])
def test_each_switch_is_as_asked_the_others_stay_and_all_are_given_back(asked: bool) -> None:
    before = flags()
    with torch_switches(Model()):
        assert flags() == before
    with torch_switches(Model(deterministic=asked)):
        assert flags() == before | {"deterministic": asked}
    with torch_switches(Model(tf32=asked)):
        assert flags() == before | {"cudnn_tf32": asked, "matmul_tf32": asked}
    with pytest.raises(KeyError), torch_switches(Model(deterministic=True, tf32=True)):
        raise KeyError
    assert flags() == before


def test_cudnn_tries_nothing_out_where_it_is_to_be_deterministic() -> None:
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        with torch_switches(Model(deterministic=True)):
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark


def test_heads_are_fitted_by_the_switches_that_the_run_names(config: Config) -> None:
    seen = []

    @STATE_LOSSES.register("watching")
    def watching(*arguments: torch.Tensor) -> torch.Tensor:
        seen.append(flags())
        return state_cross_entropy(*arguments)  # type: ignore[arg-type]

    before = flags()
    try:
        model = config.model.model_copy(update={"deterministic": True, "tf32": True})
        training = config.training.model_copy(update={"state_loss": "watching", "epochs": 1})
        fit_heads(config.model_copy(update={"model": model, "training": training}), name="x")
        recorded = load_run(config.paths.runs_dir, "x").config.model
    finally:
        STATE_LOSSES.forget(__name__)
    assert seen
    assert (recorded.deterministic, recorded.tf32) == (True, True)
    assert all(
        at == before | dict.fromkeys(("deterministic", "cudnn_tf32", "matmul_tf32"), True) for at in seen
    )
    assert flags() == before
