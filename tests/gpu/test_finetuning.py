"""Stage 3 on a card: half precision learns what float32 learns, no option of speed or memory changes a result, and a training
that was interrupted ends where it would have ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from geo_embed.config import Config
from geo_embed.extraction.extract import extract
from geo_embed.finetuning.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from geo_embed.finetuning.finetune import finetune
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.pictures import predict_images
from geo_embed.prediction.predict import predict_split
from geo_embed.runs.run import load_run

if TYPE_CHECKING:
    from conftest import Country

SAMPLES = 32
# Of an epoch's mean loss, between half precision, or another order of sums, and float32 on the CPU.
LOSS = 0.03
# Of a weight after six steps of at most 1e-4 (backbone) and 1e-3 (heads): where a gradient is next to nothing, AdamW makes a step of
# full size out of rounding.
WEIGHT = 0.01


def having(config: Config, **changes: Any) -> Config:
    small = {"epochs": 1, "batch_size": 8, "accumulate": 2, "backbone_lr": 1e-4, "patience": 9}
    return config.model_copy(update={"finetune": config.finetune.model_validate(small | changes)})


@pytest.fixture
def start(on_card: Config, country: Country, tmp_path: Path) -> Config:
    """A run `first` without dropout, which a card draws otherwise than a CPU; settings to go on from it on the card."""
    cpu_config = country.config(tmp_path, training__epochs=3, model__dropout=0.0)
    fit_heads(cpu_config, name="first")
    return on_card


def tune(config: Config, name: str, **changes: Any) -> float:
    """Fine-tune; the mean loss of the last epoch."""
    finetune(having(config, **changes), name=name, init="first", limit=SAMPLES)
    history = pd.read_parquet(config.paths.runs_dir / name / "history.parquet")
    return float(history["train_loss"].iloc[-1])


def on_cpu(config: Config) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"device": "cpu"})})


@pytest.fixture
def whole(start: Config) -> float:
    """The loss in float32 on the CPU."""
    return tune(on_cpu(start), "whole")


def test_bfloat16_learns_what_float32_learns(
    start: Config, whole: float, record_property: Callable[[str, object], None]
) -> None:
    half = tune(start, "half")
    record_property("loss over float32's", f"{half / whole:.4f}")
    assert half == pytest.approx(whole, rel=LOSS)
    saved = load_file(start.paths.runs_dir / "half" / "backbone" / "model.safetensors")
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in saved.values())


class Scalers:
    """Makes the loops' gradient scalers, and keeps them."""

    def __init__(self, **options: Any) -> None:
        self.options, self.made = options, list[torch.amp.GradScaler]()
        self.make = torch.amp.GradScaler

    def __call__(self, device: str, *, enabled: bool) -> torch.amp.GradScaler:
        self.made.append(self.make(device, enabled=enabled, **self.options))
        return self.made[-1]


def without_bfloat16(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Scalers:
    """A card of before 2020."""
    scalers = Scalers(**options)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    monkeypatch.setattr(torch.amp, "GradScaler", scalers)
    return scalers


def test_float16_scales_its_gradients_and_learns_the_same(
    start: Config, whole: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers = without_bfloat16(monkeypatch, init_scale=1024.0)
    half = tune(start, "half")
    assert scalers.made[0].is_enabled() == (device.type == "cuda")
    assert half == pytest.approx(whole, rel=LOSS)


def test_float16_skips_steps_that_overflow_and_lowers_its_scale(
    start: Config, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers = without_bfloat16(monkeypatch, init_scale=2.0**100)
    tune(start, "half", batch_size=8, accumulate=1)
    if device.type == "cuda":
        assert scalers.made[0].get_scale() == 2.0**96, "four steps, each too large, each halves it"
    heads = [load_file(start.paths.runs_dir / name / "heads.safetensors") for name in ("first", "half")]
    for key, value in heads[0].items():
        assert bool(heads[1][key].isfinite().all()), key
        if device.type == "cuda":
            assert torch.equal(heads[1][key], value), f"{key}: no step counted"


@pytest.mark.parametrize("option", ["checkpointing", "channels_last", "compile"])
def test_an_option_of_speed_or_memory_changes_no_result(
    start: Config, option: str, record_property: Callable[[str, object], None]
) -> None:
    plain = tune(start, "plain")
    loss = tune(start, "changed", **{option: True})
    record_property("loss over the plain one's", f"{loss / plain:.4f}")
    assert loss == pytest.approx(plain, rel=LOSS)


def test_averages_lora_and_layers_by_and_by_are_trained_too(start: Config) -> None:
    pytest.importorskip("peft")
    for name, changes in (
        ("ema", {"ema": 0.9, "wise_ft": 0.5}),
        ("lora", {"lora_rank": 2}),
        ("gradual", {"gradual": True, "epochs": 2, "layer_decay": 0.5}),
        ("flipped", {"augment": {"flip": 0.5, "blur": 1.0}}),
    ):
        assert np.isfinite(tune(start, name, **changes)), name


def test_every_stage_on_a_card_fits_the_one_before(
    country: Country, tmp_path: Path, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    """Extracted in bfloat16, fitted, fine-tuned under autocast: before any step the pictures score what the cache scores."""
    config = country.config(
        tmp_path, model__device=device.type, paths__cache_dir=str(tmp_path / "cache"), training__epochs=3
    )
    for split in ("train", "test"):
        extract(config, split)
    cached = fit_heads(config, name="first").val["score"]
    done = finetune(having(config), name="tuned", init="first", limit=SAMPLES)
    assert done.frozen_score is not None
    record_property("scores from cache and pictures", f"{cached:.4f}, {done.frozen_score:.4f}")
    tuned = config.model_copy(
        update={"model": config.model.model_copy(update={"backbone_name": str(done.backbone)})}
    )
    extract(tuned, "test")
    run = load_run(config.paths.runs_dir, "tuned")
    predictions, _ = predict_split(tuned, run, "test")
    pictures = [country.images("test") / f"img_000000_{view}.jpg" for view in run.config.model.view_names]
    (probabilities,) = predict_images(tuned, run, pictures).probabilities
    np.testing.assert_allclose(probabilities, predictions.probabilities[0], atol=0.02)


# Going on


def weights(config: Config, name: str) -> dict[str, Tensor]:
    path = config.paths.runs_dir / name
    tower = load_file(path / "backbone" / "model.safetensors")
    return {f"tower.{key}": value for key, value in tower.items()} | load_file(path / "heads.safetensors")


def test_an_interrupted_training_ends_where_it_would_have_ended(
    start: Config,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """On a CPU to the last bit. A card adds up some gradients in no fixed order: there, to `LOSS` and `WEIGHT`."""
    how = {"epochs": 3, "ema": 0.5, "batch_size": 8, "accumulate": 2}
    plain = tune(start, "plain", **how)
    step, steps = torch.optim.AdamW.step, [0]

    def interrupted(self: torch.optim.AdamW, *arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(start, "again", **how)
    latest = latest_checkpoint(start.paths.runs_dir / "again" / "checkpoints")
    assert latest is not None
    assert load_checkpoint(latest, device).step == 3
    again = tune(start, "again", **how)
    expected, repeated = weights(start, "plain"), weights(start, "again")
    same = all(torch.equal(value, repeated[key]) for key, value in expected.items())
    record_property("bit-identical", same)
    if device.type == "cpu":
        assert same
    assert again == pytest.approx(plain, rel=LOSS)
    for key, value in expected.items():
        torch.testing.assert_close(repeated[key], value, rtol=0.05, atol=WEIGHT, msg=key)


def test_weights_and_moments_come_back_to_the_last_bit(tmp_path: Path, device: torch.device) -> None:
    def fresh() -> tuple[torch.nn.Module, torch.optim.AdamW]:
        torch.manual_seed(0)
        made = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 4))
        made = made.to(device, memory_format=torch.channels_last)
        return made, torch.optim.AdamW(made.parameters(), lr=0.01, fused=True)

    def go(model: torch.nn.Module, optimizer: torch.optim.AdamW, steps: int, scaler: Any) -> None:
        for _ in range(steps):
            x = torch.randn(16, 3, 8, 8, device=device)
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    def state(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
        weights = {f"model/{key}": value for key, value in model.state_dict().items()}
        return weights | optimizer_tensors(optimizer, dict(model.named_parameters()))

    scaler = torch.amp.GradScaler(device.type, init_scale=8.0)
    model, optimizer = fresh()
    torch.manual_seed(1)
    go(model, optimizer, 2, scaler)
    content = {"scaler": scaler.state_dict()}
    path = save_checkpoint(
        tmp_path / "c", Checkpoint(2, state(model, optimizer), content), keep_last=1, best=True
    )
    before = {key: value.clone() for key, value in state(model, optimizer).items()}

    model, optimizer = fresh()
    loaded = load_checkpoint(path, device)
    assert {value.device.type for value in loaded.tensors.values()} == {device.type}
    model.load_state_dict(
        {key.removeprefix("model/"): v for key, v in loaded.tensors.items() if key.startswith("model/")}
    )
    names = dict(model.named_parameters())
    load_optimizer_tensors(optimizer, names, loaded.tensors)
    other = torch.amp.GradScaler(device.type)
    other.load_state_dict(loaded.state["scaler"])
    for key, value in state(model, optimizer).items():
        assert torch.equal(value, before[key]), key
    go(model, optimizer, 1, other)
    assert all(bool(value.isfinite().all()) for value in state(model, optimizer).values())
    for parameter in names.values():
        kept = optimizer.state[parameter]
        assert kept["step"].item() == 3
        assert kept["exp_avg"].device == parameter.device
        assert kept["exp_avg"].stride() == parameter.stride()
