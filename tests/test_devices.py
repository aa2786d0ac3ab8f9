"""A device and a precision for each work; torch's switches are as the settings ask while a verb works, and as they were after it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

from geo_embed.config import Model
from geo_embed.devices import bfloat16_gain, pick_device, pick_dtype, side_by_side, torch_switches
from geo_embed.errors import GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.heads.losses import state_cross_entropy
from geo_embed.registry import STATE_LOSSES
from geo_embed.runs.run import load_run

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@pytest.mark.parametrize(
    ("visible", "name", "backbone", "heads"),
    [
        ((), "auto", "cpu", "cpu"),
        (("mps",), "auto", "mps", "cpu"),
        (("mps",), "mps", "mps", "cpu"),
        (("mps",), "cpu", "cpu", "cpu"),
        (("cuda", "mps"), "auto", "cuda", "cuda"),
        (("cuda",), "cuda", "cuda", "cuda"),
    ],
)
def test_auto_takes_the_best_device_and_apples_gets_nothing_in_float64(
    monkeypatch: pytest.MonkeyPatch, visible: tuple[str, ...], name: str, backbone: str, heads: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in visible)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in visible)
    assert pick_device(name).type == backbone
    assert pick_device(name, float64=True).type == heads


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(GeoError, match=f"no {name.upper()} device") as refused:
        pick_device(name)
    assert "--device cpu" in refused.value.hint


def test_precision_follows_the_device() -> None:
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("mps")) == torch.float16
    assert pick_dtype("bfloat16", torch.device("mps")) == torch.bfloat16


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_what_runs_side_by_side_shares_the_threads_and_answers_in_order() -> None:
    together = threading.Barrier(2, timeout=60)

    def work(item: int, stopped: threading.Event) -> tuple[int, int]:
        together.wait()
        return item, torch.get_num_threads()

    assert side_by_side(work, [7, 5], torch.device("cpu")) == [(7, 2), (5, 2)]
    assert torch.get_num_threads() == 4
    assert side_by_side(lambda item, _: item + 1, [1], torch.device("cpu")) == [2]
    assert side_by_side(lambda item, _: torch.get_num_threads(), [1, 2], torch.device("meta")) == [4, 4]


@pytest.mark.usefixtures("four_threads")
def test_an_error_stops_what_runs_beside_it_and_what_has_not_begun() -> None:
    begun = []

    def work(item: int, stopped: threading.Event) -> None:
        begun.append(item)
        if item == 0:
            raise KeyError("first")
        assert stopped.wait(60)

    with pytest.raises(KeyError, match="first"):
        side_by_side(work, range(50), torch.device("cpu"))
    assert torch.get_num_threads() == 4
    assert len(begun) < 50


def test_how_fast_bfloat16_is_is_asked_of_cpus_alone() -> None:
    assert bfloat16_gain(torch.device("cpu")) > 0
    assert bfloat16_gain(torch.device("cuda")) == 1
