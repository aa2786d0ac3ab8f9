"""Every fusion is its formula, leaves absent views out, and says what each view weighed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from geo_embed.heads.fusion import build_fusion, fuse_average
from geo_embed.registry import FUSIONS, Size

NAMES = tuple(FUSIONS.built_in)
DIM, WIDTH, DEPTH = 6, 8, 3
Floats = NDArray[np.float64]
Slow = Callable[[dict[str, Floats], Floats, list[int]], tuple[Floats, Floats]]

# The slow formulas: one sample, its views (V, D) and the indices of those that are there.


def linear(p: dict[str, Floats], name: str, x: Floats) -> Floats:
    return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", 0.0)


def gelu(x: Floats) -> Floats:
    return x * np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def norm(p: dict[str, Floats], name: str, x: Floats) -> Floats:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def shares(scores: list[float]) -> Floats:
    raised = np.exp(np.array(scores) - max(scores))
    return raised / raised.sum()


def spread(weights: Floats, present_views: list[int], views: int) -> Floats:
    out = np.zeros(views)
    out[present_views] = weights
    return out


def average(p: dict[str, Floats], x: Floats, present_views: list[int]) -> tuple[Floats, Floats]:
    return x[present_views].mean(axis=0), spread(
        np.full(len(present_views), 1 / len(present_views)), present_views, len(x)
    )


def concat(p: dict[str, Floats], x: Floats, present_views: list[int]) -> tuple[Floats, Floats]:
    side_by_side = np.concatenate([x[v] if v in present_views else np.zeros(DIM) for v in range(len(x))])
    return linear(p, "map", side_by_side), average(p, x, present_views)[1]


def attention(p: dict[str, Floats], x: Floats, present_views: list[int]) -> tuple[Floats, Floats]:
    a = shares([float(linear(p, "score", np.tanh(linear(p, "key", x[v])))[0]) for v in present_views])
    return sum(w * x[v] for w, v in zip(a, present_views, strict=True)), spread(a, present_views, len(x))


def weighted(p: dict[str, Floats], x: Floats, present_views: list[int]) -> tuple[Floats, Floats]:
    a = shares([float(p["score"][v]) for v in present_views])
    return sum(w * x[v] for w, v in zip(a, present_views, strict=True)), spread(a, present_views, len(x))


def evidence(p: dict[str, Floats], x: Floats, present_views: list[int]) -> tuple[Floats, Floats]:
    total, gates = np.zeros(WIDTH), np.zeros(len(x))
    for v in present_views:
        h = gelu(linear(p, "trunk.first", x[v]))
        for layer in range(DEPTH - 1):
            h = h + gelu(linear(p, f"trunk.layers.{layer}", norm(p, f"trunk.norms.{layer}", h)))
        gates[v] = 1 / (1 + math.exp(-linear(p, "gate", h)[0]))
        total += gates[v] * h
    return total, gates


def transformer(p: dict[str, Floats], x: Floats, present_views: list[int]) -> tuple[Floats, Floats]:
    tokens = [linear(p, "first", x[v]) for v in present_views]
    for layer in range(2):
        qkv = [linear(p, f"qkv.{layer}", norm(p, f"norms.{2 * layer}", h)) for h in tokens]
        q, k, value = ([part[i * WIDTH : (i + 1) * WIDTH] for part in qkv] for i in range(3))
        attended = []
        for i in range(len(present_views)):
            heads = []
            for head in range(4):
                part = slice(2 * head, 2 * head + 2)
                a = shares([float(q[i][part] @ other[part]) / math.sqrt(2) for other in k])
                heads.append(sum(w * vector[part] for w, vector in zip(a, value, strict=True)))
            attended.append(linear(p, f"out.{layer}", np.concatenate(heads)))
        tokens = [h + a for h, a in zip(tokens, attended, strict=True)]
        tokens = [
            h
            + linear(p, f"down.{layer}", gelu(linear(p, f"up.{layer}", norm(p, f"norms.{2 * layer + 1}", h))))
            for h in tokens
        ]
    return np.mean([norm(p, "last", h) for h in tokens], axis=0), average(p, x, present_views)[1]


SLOW: dict[str, Slow] = {
    "average": average,
    "concat": concat,
    "attention": attention,
    "weighted": weighted,
    "evidence": evidence,
    "transformer": transformer,
}


def made(name: str, views: int, seed: int = 0) -> Any:
    """A fusion in float64 with weights that are all of them random, so that none hides behind its start."""
    fusion = build_fusion(name, Size(DIM, views, WIDTH, DEPTH)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in fusion.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.7
    return fusion


def batch(views: int, rows: int = 9, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, views, DIM, generator=generator, dtype=torch.float64)
    present = torch.rand(rows, views, generator=generator) < 0.6
    present[torch.arange(rows), torch.randint(views, (rows,), generator=generator)] = True
    present[0] = True
    present[1] = torch.arange(views) == views - 1
    return x, present


def test_every_name_has_a_formula_here() -> None:
    assert set(SLOW) == set(NAMES)


@pytest.mark.parametrize("views", [1, 4, 7])
@pytest.mark.parametrize("name", NAMES)
def test_a_fusion_is_its_formula_whatever_views_are_there(name: str, views: int) -> None:
    fusion, (x, present) = made(name, views), batch(views)
    parameters = {key: value.detach().numpy() for key, value in fusion.named_parameters()}
    vectors, weights = fusion(x, present)
    assert vectors.shape == (len(x), fusion.out_dim)
    for row in range(len(x)):
        present_views = present[row].nonzero()[:, 0].tolist()
        wanted, shared = SLOW[name](parameters, x[row].numpy(), present_views)
        np.testing.assert_allclose(vectors[row].detach(), wanted, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(weights[row].detach(), shared, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_shares_of_the_views_that_are_there_and_the_gate_lies_between_0_and_1(name: str) -> None:
    x, present = batch(5)
    _, weights = made(name, 5)(x, present)
    assert (weights[~present] == 0).all()
    assert (weights[present] > 0).all()
    if name == "evidence":
        assert (weights < 1).all()
    else:
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(x), dtype=torch.float64))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", NAMES)
def test_whatever_stands_in_an_absent_view_changes_neither_answer_nor_gradient(
    name: str, garbage: float
) -> None:
    x, present = batch(4)

    def look(views: torch.Tensor) -> list[torch.Tensor]:
        fusion = made(name, 4)
        views = views.clone().requires_grad_()
        vectors, weights = fusion(views, present)
        (vectors.square().sum() + weights.square().sum()).backward()
        gradients = [p.grad for p in fusion.parameters()]
        assert views.grad is not None
        return [vectors.detach(), weights.detach(), views.grad, *(g for g in gradients if g is not None)]

    dirty = x.clone()
    dirty[~present] = garbage
    for clean, same in zip(look(x), look(dirty), strict=True):
        assert torch.isfinite(same).all()
        assert torch.equal(clean, same)


@pytest.mark.parametrize("name", ["average", "attention", "evidence", "transformer"])
def test_views_in_another_order_weigh_what_they_weighed_and_give_the_same_vector(name: str) -> None:
    x, present = batch(4)
    fusion, order = made(name, 4), torch.tensor([2, 0, 3, 1])
    vectors, weights = fusion(x, present)
    moved, weighed = fusion(x[:, order], present[:, order])
    torch.testing.assert_close(moved, vectors)
    torch.testing.assert_close(weighed, weights[:, order])


@pytest.mark.parametrize("name", ["concat", "weighted"])
def test_a_fusion_that_knows_its_views_minds_their_order(name: str) -> None:
    x, _ = batch(4)
    fusion, everyone = made(name, 4), torch.ones(len(x), 4, dtype=torch.bool)
    assert not torch.allclose(fusion(x, everyone)[0], fusion(x.flip(1), everyone)[0])


def test_learnt_scalars_start_as_the_average() -> None:
    x, present = batch(4)
    fresh = build_fusion("weighted", Size(DIM, 4, WIDTH, DEPTH)).double()
    torch.testing.assert_close(fresh(x, present)[0], fuse_average(x, present))


def test_the_gate_starts_half_open() -> None:
    x, present = batch(4)
    fresh = build_fusion("evidence", Size(DIM, 4, WIDTH, DEPTH)).double()
    nn.init.zeros_(fresh.gate.bias)  # type: ignore[arg-type, union-attr]
    assert (fresh(x, present)[1][present] == 0.5).all()


@pytest.mark.parametrize("name", ["evidence", "transformer"])
def test_dropout_is_the_one_that_is_handed_in(name: str) -> None:
    x, present = batch(4)
    fusion, seen = made(name, 4), []

    def note(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return hidden

    fusion(x, present, note)
    assert seen == [(9, 4, WIDTH)] * (DEPTH if name == "evidence" else 4)


def test_a_width_that_four_heads_don_t_divide_is_attended_by_one() -> None:
    x, present = batch(3)
    fusion = build_fusion("transformer", Size(DIM, 3, 7, 1)).double()
    assert fusion.heads == 1
    assert fusion(x, present)[0].shape == (9, 7)


def test_fusion_is_the_mean_of_the_views_that_are_there() -> None:
    views = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True] * 4, [True, False, True, False], [False, False, False, True]])
    fused = fuse_average(views, present)
    torch.testing.assert_close(fused[0], views[0].mean(dim=0))
    torch.testing.assert_close(fused[1], (views[1, 0] + views[1, 2]) / 2)
    torch.testing.assert_close(fused[2], views[2, 3])
