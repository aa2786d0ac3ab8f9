"""Low-rank updates: nothing changes before the first step, only they and the heads are trained, and they end in plain weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from towers import ALL_TOWERS, MAKERS, embedded, load, pixels

from geo_embed.backbones.backbone import Backbone, blocks, embed, save_backbone, unfreeze
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.finetuning.finetune import finetune
from geo_embed.finetuning.lora import add_lora, is_lora_a, merge_lora, train_lora_only
from geo_embed.finetuning.state import Progress
from geo_embed.finetuning.task import Task
from geo_embed.runs.run import Run

# The package's own attribute of this name is the verb.
loop = importlib.import_module("geo_embed.finetuning.loop")

NO_PEFT = importlib.util.find_spec("peft") is None
needs_peft = pytest.mark.skipif(NO_PEFT, reason="peft is not installed")
each_family = pytest.mark.parametrize("family", ALL_TOWERS)
RANK = 3
# Training samples: two steps an epoch.
FEW = 32


@pytest.fixture
def directory(tmp_path: Path, family: str) -> Path:
    MAKERS[family](tmp_path / family)
    return tmp_path / family


def adapted(directory: Path, seed: int = 0) -> Backbone:
    backbone = load(directory)
    add_lora(backbone.module, RANK, torch.Generator().manual_seed(seed))
    return backbone


def train_somewhat(backbone: Backbone) -> None:
    """A few steps that move every update far from where it started."""
    unfreeze(backbone.module)
    train_lora_only(backbone.module)
    trained = [p for p in backbone.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(3):
        embed(backbone, pixels()).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def linear_layers(tower: nn.Module) -> int:
    return sum(isinstance(m, nn.Linear) for block in blocks(tower) for m in block.modules())


@needs_peft
@each_family
def test_before_any_step_the_tower_gives_what_it_gave_bit_for_bit(directory: Path) -> None:
    assert torch.equal(embedded(adapted(directory)), embedded(load(directory)))


@needs_peft
@each_family
def test_every_linear_layer_of_the_blocks_gets_an_update_and_nothing_else_is_trained(directory: Path) -> None:
    plain, backbone = load(directory).module, adapted(directory).module
    train_lora_only(unfreeze(backbone))
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert sum(is_lora_a(name) for name in trained) == linear_layers(plain) > 0
    assert len(trained) == 2 * linear_layers(plain)
    assert all(RANK in p.shape for p in trained.values())
    inside = {id(p) for block in blocks(backbone) for p in block.parameters()}
    assert all(id(p) in inside for p in trained.values())


@needs_peft
@each_family
def test_merged_it_gives_the_same_embeddings_and_is_plain_again(
    directory: Path, tmp_path: Path, family: str
) -> None:
    backbone = adapted(directory)
    before = embedded(backbone)
    train_somewhat(backbone)
    trained = embedded(backbone)
    assert not torch.allclose(trained, before, rtol=1e-2)
    merge_lora(backbone.module)
    torch.testing.assert_close(embedded(backbone), trained, rtol=1e-4, atol=1e-5)
    plain = load(directory).module
    assert [*backbone.module.state_dict()] == [*plain.state_dict()]
    assert type(backbone.module) is type(plain)
    save_backbone(backbone, tmp_path / "saved")
    assert torch.equal(embedded(load(tmp_path / "saved")), embedded(backbone))


@needs_peft
def test_with_last_layers_only_their_updates_are_trained(tmp_path: Path) -> None:
    MAKERS["clip"](tmp_path / "clip")
    tower = adapted(tmp_path / "clip").module
    train_lora_only(unfreeze(tower, 1))
    assert not any(p.requires_grad for p in blocks(tower)[0].parameters())
    assert any(p.requires_grad for p in blocks(tower)[1].parameters())


@needs_peft
def test_where_it_starts_follows_from_the_seed_alone_and_disturbs_no_other_draw(tmp_path: Path) -> None:
    MAKERS["clip"](tmp_path / "clip")
    torch.manual_seed(7)
    undisturbed = torch.rand(3)
    torch.manual_seed(7)
    a = adapted(tmp_path / "clip").module.state_dict()
    assert torch.equal(torch.rand(3), undisturbed)
    torch.rand(5)
    b = adapted(tmp_path / "clip").module.state_dict()
    c = adapted(tmp_path / "clip", seed=1).module.state_dict()
    drawn = [key for key in a if is_lora_a(key)]
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in drawn)


def test_without_peft_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MAKERS["clip"](tmp_path / "clip")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(GeoError) as caught:
        adapted(tmp_path / "clip")
    assert "pip install peft" in str(caught.value.hint)
    assert caught.value.where == "finetune.lora_rank"


# ---------------------------------------------------------------- in a training


def having(config: Config, **changes: object) -> Config:
    small: dict[str, object] = {
        "epochs": 2,
        "batch_size": 16,
        "accumulate": 1,
        "backbone_lr": 3e-3,
        "patience": 9,
        "lora_rank": RANK,
    }
    return config.model_copy(update={"finetune": config.finetune.model_validate(small | changes)})


def tower_of(config: Config, name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(config.paths.runs_dir / name / "backbone" / "model.safetensors")
    return tensors


@pytest.fixture
def taken_as_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last epoch is the result, however it scores: that is about training, not about so few places."""
    end = loop._end_epoch

    def better(task: Task, progress: Progress, scores: dict[str, float]) -> bool:
        progress.best_score = -1.0
        return end(task, progress, scores)

    monkeypatch.setattr(loop, "_end_epoch", better)


@needs_peft
def test_a_run_has_plain_weights_changed_by_no_more_than_the_rank_and_only_where_there_are_updates(
    config: Config, run: Run, taken_as_best: None
) -> None:
    finetune(having(config), name="low", init="first", limit=FEW)
    before = load_file(Path(config.model.backbone_name) / "model.safetensors")
    after = tower_of(config, "low")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    for key in changed:
        assert "layers." in key
        assert ".self_attn." in key or ".mlp." in key
        values = torch.linalg.svdvals(after[key].double() - before[key].double())
        assert (values > 1e-4 * values[0]).sum() <= RANK
    heads = load_file(config.paths.runs_dir / "low" / "heads.safetensors")
    old = load_file(run.path / "heads.safetensors")
    assert any(not torch.equal(heads[key], old[key]) for key in old)


@needs_peft
def test_interrupted_it_goes_on_to_the_same_bits(
    config: Config, run: Run, taken_as_best: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = having(config, checkpoint_minutes=1e-9)
    finetune(how, name="whole", init="first", limit=FEW)
    take_step = loop._optimizer_step
    steps: list[None] = []

    def fail(*arguments: object) -> None:
        if len(steps) == 3:
            raise GeoError("pulled the plug")
        steps.append(take_step(*arguments))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_optimizer_step", fail)
        with pytest.raises(GeoError, match="pulled the plug"):
            finetune(how, name="halted", init="first", limit=FEW)
    finetune(how, name="halted", init="first", limit=FEW)
    whole, halted = tower_of(how, "whole"), tower_of(how, "halted")
    assert all(torch.equal(whole[key], halted[key]) for key in whole)


@needs_peft
def test_half_way_to_the_frozen_weights_is_half_of_the_update(
    config: Config, run: Run, taken_as_best: None
) -> None:
    finetune(having(config), name="full", init="first", limit=FEW)
    finetune(having(config, wise_ft=0.5), name="half", init="first", limit=FEW)
    start = load_file(Path(config.model.backbone_name) / "model.safetensors")
    full, half = tower_of(config, "full"), tower_of(config, "half")
    for key in start:
        torch.testing.assert_close(half[key], torch.lerp(start[key], full[key], 0.5), rtol=1e-4, atol=1e-6)
