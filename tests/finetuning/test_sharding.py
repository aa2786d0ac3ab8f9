"""A model divided among processes computes what the whole one does, and is whole again when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from scenes import model_of, scene
from torch.distributed.tensor import DTensor

from geo_embed.errors import GeoError
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.sharding import divide, reshard, shard, whole

if TYPE_CHECKING:
    from geo_embed.runs.run import Run


@pytest.fixture
def team() -> Iterator[None]:
    """Of one process; test_team.py has two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def divided(run: Run, team: None) -> GeoModel:
    model = model_of(run).eval()
    shard(model, torch.device("cpu"), 1)
    return model


def test_it_answers_and_learns_as_the_whole_model_does(divided: GeoModel, run: Run) -> None:
    plain = model_of(run).eval()
    pixels, present = scene(plain)
    labels, points = torch.arange(len(pixels)), torch.eye(3)[torch.arange(len(pixels)) % 3]
    for model in (plain, divided):
        model.unfreeze(1)
        model.loss(model(pixels, present), labels, points).backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, p in divided.named_parameters():
        assert isinstance(p, DTensor), name
        expected = gradients[name]
        assert (p.grad is None) == (expected is None), name
        if p.grad is not None and expected is not None:
            torch.testing.assert_close(whole(p.grad), expected)
    with torch.no_grad():
        undivided, sharded = (
            model.predict_variants([(model.encode_views(pixels, present), present)])
            for model in (plain, divided)
        )
    for expected, actual in zip(undivided, sharded, strict=True):
        torch.testing.assert_close(actual, expected)


def test_weights_that_change_after_an_answer_count_in_the_next(divided: GeoModel) -> None:
    pixels, present = scene(divided)
    names = dict(divided.named_parameters())

    def answer() -> torch.Tensor:
        with torch.no_grad():
            states, _ = divided.predict_variants([(divided.encode_views(pixels, present), present)])
        reshard(divided)
        return states

    before = answer()
    with torch.no_grad():
        for name, parameter in names.items():
            if name.startswith("panel."):
                parameter.zero_()
    after = answer()
    assert (before - after).abs().max() > 0.01
    torch.testing.assert_close(after, after[:1].expand_as(after))


def test_a_divided_tensor_is_whole_again_bit_for_bit(divided: GeoModel) -> None:
    like = divided.get_parameter("tower.visual_projection.weight")
    drawn = torch.randn(like.shape)
    assert isinstance(divide(drawn, like), DTensor)
    assert torch.equal(whole(divide(drawn, like)), drawn)
    scalar = torch.tensor(3.0)
    assert divide(scalar, like) is divide(scalar, None) is whole(scalar) is scalar


def test_a_model_in_channels_last_order_is_not_divided(run: Run, team: None) -> None:
    model = model_of(run)
    model.tower.to(memory_format=torch.channels_last)
    with pytest.raises(GeoError, match="channels-last") as caught:
        shard(model, torch.device("cpu"), 1)
    assert "finetune.channels_last" in caught.value.hint
