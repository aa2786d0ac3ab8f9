"""Heads do what the recipe says, number by number, whichever they are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rows import CLASSES, region_of, rows_of, tiny
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from geo_embed.config import GpsBox, Model
from geo_embed.fitting.train import gallery_of
from geo_embed.geography import haversine_km, to_degrees, to_unit_vectors, wrap_longitude
from geo_embed.heads.decision import Answer, Decision, decide_cells
from geo_embed.heads.fusion import fuse_average
from geo_embed.heads.heads import CellHeads, Heads, build_heads, make_heads, size_of, step_flop
from geo_embed.heads.layers import ClassificationHead, GpsHead, dropping
from geo_embed.heads.losses import gps_mse, soft_cross_entropy
from geo_embed.heads.predictor import Panel
from geo_embed.heads.refine import Refiner
from geo_embed.registry import FUSIONS, HEADS
from geo_embed.sphere import geometric_median

KINDS, FUSION_NAMES = tuple(HEADS.built_in), tuple(FUSIONS.built_in)
SOLVED = [kind for kind in KINDS if not HEADS[kind].make.by_steps]
ROWS = rows_of()
DIM, VIEWS = ROWS.views.shape[2], ROWS.views.shape[1]
FULL = torch.ones(5, 4, dtype=torch.bool)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def heads_of(rows: Any = ROWS, **changes: object) -> Heads:
    model = tiny(**changes)
    return make_heads(rows.views.shape[2], rows.views.shape[1], model, region_of(rows, model)).eval()


def plain(**changes: object) -> Heads:
    """The plain recipe's heads over a wide embedding, for 33 states."""
    rows = rows_of(99, classes=33, middle=(0.0, 0.0))
    model = Model.model_validate(changes)
    return make_heads(768, 4, model, region_of(rows, model, 33)).eval()


# ---------------------------------------------------------------- the plain recipe


def test_both_heads_have_the_recipes_layers() -> None:
    heads = plain()
    shapes = {name: tuple(value.shape) for name, value in heads.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "states.hidden.weight": (512, 768),
        "states.out.weight": (33, 512),
        "gps.hidden.weight": (512, 768),
        "gps.second.weight": (256, 512),
        "gps.out.weight": (2, 256),
    }
    out = heads(torch.randn(5, 4, 768), FULL)
    assert out["logits"].shape == (5, 33)
    assert out["points"].shape == (5, 2)
    assert out["view_weights"].tolist() == [[0.25] * 4] * 5


def test_widths_and_box_come_from_the_settings() -> None:
    box = {"lat_min": -5, "lat_max": 5, "lon_min": 10, "lon_max": 20}
    heads = heads_of(head_hidden=7, gps_hidden=3, gps_box=box)
    assert heads.states.hidden.weight.shape == (7, DIM)
    assert heads.gps.second.weight.shape == (3, 7)
    points = heads(torch.randn(200, VIEWS, DIM) * 1e4, torch.ones(200, VIEWS, dtype=torch.bool))["points"]
    assert points[:, 0].abs().max() <= 5
    assert points[:, 1].min() >= 10
    assert points[:, 1].max() <= 20
    # And not merely in the middle of it: an edge is reached.
    assert points[:, 1].max() > 19.9


def test_the_classification_head_is_linear_gelu_linear() -> None:
    head = ClassificationHead(6, 5, 3)
    x = torch.randn(4, 6)
    inner = x @ head.hidden.weight.T + head.hidden.bias
    gelu = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(head(x), gelu @ head.out.weight.T + head.out.bias)


def test_dropout_works_where_it_is_handed_in_and_only_there() -> None:
    head = ClassificationHead(6, 64, 3)
    x = torch.randn(4, 6)
    drop = dropping(0.5, torch.Generator().manual_seed(0))
    assert not torch.equal(head(x, drop), head(x))
    assert torch.equal(head(x), head(x))
    assert torch.equal(head(x, dropping(0.0, torch.Generator())), head(x))


def test_a_gps_head_drops_after_either_hidden_layer_and_nowhere_else() -> None:
    head, x = GpsHead(6, 64, 32), torch.randn(4, 6)
    masks = [torch.randint(2, (4, width)).float() for width in (64, 32)]
    handed: list[torch.Tensor] = []

    def drop(hidden: torch.Tensor) -> torch.Tensor:
        handed.append(hidden)
        return hidden * masks[len(handed) - 1]

    points = head(x, drop)
    first = torch.nn.functional.gelu(x @ head.hidden.weight.T + head.hidden.bias) * masks[0]
    second = torch.nn.functional.gelu(first @ head.second.weight.T + head.second.bias) * masks[1]
    assert [hidden.shape[1] for hidden in handed] == [64, 32]
    torch.testing.assert_close(points, torch.tanh(second @ head.out.weight.T + head.out.bias))


def test_the_last_layer_is_xavier_with_a_gain_of_a_hundredth() -> None:
    out = plain().states.out
    bound = math.sqrt(6 / (512 + 33)) * 0.01
    assert out.weight.abs().max() <= bound
    assert out.weight.abs().max() > 0.95 * bound
    # Uniform on ±bound has a standard deviation of bound/√3.
    assert float(out.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert (out.bias == 0).all()


def test_a_fresh_classifier_is_nearly_undecided() -> None:
    states, _ = plain().predict(torch.randn(50, 4, 768), torch.ones(50, 4, dtype=torch.bool))
    assert (states - 1 / 33).abs().max() < 0.005


@pytest.mark.parametrize("size", [1.0, 1e3, 1e12])
def test_points_stay_inside_the_box_however_extreme_the_input(size: float) -> None:
    head = GpsHead(8, 16, 8)
    points = head(torch.randn(500, 8) * size).double()
    assert torch.isfinite(points).all()
    assert points.abs().max() <= 1
    if size > 1:
        assert {-1.0, 1.0} <= set(points[:, 0].tolist())


def test_tanh_of_nought_is_the_middle_of_the_box() -> None:
    heads = heads_of(gps_box={"lat_min": 18, "lat_max": 72, "lon_min": -180, "lon_max": -65})
    torch.nn.init.zeros_(heads.gps.out.weight)
    heads.gps.out.bias.data = torch.tensor([0.0, math.atanh(0.5)])
    points = heads.predict(ROWS.views[:1], ROWS.present[:1])[1]
    assert points.tolist() == [[45.0, pytest.approx(-122.5 + 57.5 / 2, abs=1e-4)]]


def test_soft_cross_entropy_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)) * 5
    targets = rng.dirichlet(np.ones(4), size=6)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = -(targets * log_p).sum(axis=1).mean()
    cost = soft_cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets))
    assert float(cost) == pytest.approx(wanted, rel=1e-12)


def test_hard_targets_give_the_ordinary_cross_entropy() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(
        soft_cross_entropy(logits, torch.eye(4, dtype=torch.float64)[labels]),
        torch.nn.functional.cross_entropy(logits, labels),
    )


def test_the_gps_loss_is_the_mean_squared_error_in_degrees() -> None:
    # (9 + 16 + 0 + 1) / 4
    points, truth = (
        torch.tensor([[40.0, -100.0], [30.0, -80.0]]),
        torch.tensor([[43.0, -104.0], [30.0, -81.0]]),
    )
    assert float(gps_mse(points, truth)) == 6.5


# ---------------------------------------------------------------- every kind


@pytest.mark.parametrize("views", [1, 3, 7])
@pytest.mark.parametrize("fusion", FUSION_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_head_over_every_fusion_gives_states_and_a_place(kind: str, fusion: str, views: int) -> None:
    rows = rows_of(views=views, absent=0.3)
    heads = heads_of(rows, head=kind, fusion=fusion)
    out = heads(rows.views, rows.present)
    n, deep = len(rows), fusion in ("evidence", "transformer")
    assert out["logits"].shape == (n, CLASSES)
    assert out["view_weights"].shape == (n, views)
    hidden = kind in ("dual", "geocells") or (deep and kind != "view-discriminant")
    assert out["vector"].shape == (n, 12 if hidden else DIM)
    assert ("cells" in out) == (kind in ("geocells", *SOLVED))
    assert ("points" in out) != ("cells" in out)
    if "cells" in out:
        assert out["cells"].shape == (n, len(heads.centres))
    with torch.no_grad():
        states, points = heads.predict(rows.views, rows.present)
    torch.testing.assert_close(states.sum(1), torch.ones(n))
    assert (states >= 0).all()
    assert points.shape == (n, 2)
    latitude, longitude = to_degrees(rows.points.numpy())
    assert haversine_km(points[:, 0], points[:, 1], latitude.mean(), longitude.mean()).max() < 2500


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_a_missing_view_does_not_matter(kind: str) -> None:
    heads = heads_of(head=kind, fusion="attention", directional=True)
    garbage = ROWS.views.clone()
    garbage[~ROWS.present] = float("nan")
    with torch.no_grad():
        for a, b in zip(
            heads.predict(ROWS.views, ROWS.present), heads.predict(garbage, ROWS.present), strict=True
        ):
            assert torch.equal(a, b)


def test_a_view_that_is_missing_makes_a_difference() -> None:
    heads = heads_of(head="geocells", fusion="evidence")
    fewer = ROWS.present.clone()
    whole = ROWS.present.all(1)
    fewer[whole, 1] = False
    with torch.no_grad():
        assert not torch.allclose(
            heads(ROWS.views, ROWS.present)["logits"][whole], heads(ROWS.views, fewer)["logits"][whole]
        )


@pytest.mark.parametrize("kind", ["separate", "dual"])
def test_dual_shares_its_trunk_and_separate_shares_nothing(kind: str) -> None:
    heads = heads_of(head=kind)
    out = heads(ROWS.views, ROWS.present)
    touched = []
    for name in ("logits", "points"):
        heads.zero_grad()
        out[name].square().sum().backward(retain_graph=True)
        touched.append({key for key, p in heads.named_parameters() if p.grad is not None})
    shared = touched[0] & touched[1]
    assert touched[0] | touched[1] == {key for key, _ in heads.named_parameters()}
    if kind == "separate":
        assert shared == set()
    else:
        assert {"trunk.first.weight", "trunk.layers.0.weight"} <= shared
        assert not any(key.startswith(("states", "gps")) for key in shared)


@pytest.mark.parametrize("middle", [(40.0, -100.0), (60.0, 179.0)])
def test_hierarchical_moves_from_the_likeliest_states_centre_no_farther_than_a_state_reaches(
    middle: tuple[float, float],
) -> None:
    rows = rows_of(middle=middle)
    heads = heads_of(rows, head="hierarchical")
    region = region_of(rows, tiny())
    with torch.no_grad():
        out = heads(rows.views, rows.present)
        vector = fuse_average(rows.views.float(), rows.present)
        offset = torch.from_numpy(region.centroids).float()[out["logits"].argmax(1)]
        wanted = offset + region.state_reach * heads.gps(vector)
        torch.testing.assert_close(out["points"], wanted)
        far = heads(rows.views.float() * 1e6, rows.present)
    away = (far["points"] - torch.from_numpy(region.centroids).float()[far["logits"].argmax(1)]).abs()
    assert (away <= region.state_reach + 1e-3).all()
    assert (away.max(0).values > 0.9 * region.state_reach).all()


@pytest.mark.parametrize("kind", ["separate", "dual", "hierarchical"])
def test_points_of_a_country_across_the_antimeridian_lie_in_it_on_either_side(kind: str) -> None:
    rows = rows_of(middle=(60.0, 179.0))
    heads = heads_of(rows, head=kind)
    with torch.no_grad():
        heads.states.bias.data.zero_() if kind == "dual" else heads.states.out.bias.data.zero_()
        _, points = heads.predict(torch.randn(400, VIEWS, DIM) * 30, torch.ones(400, VIEWS, dtype=torch.bool))
    assert points[:, 1].min() >= -180
    assert points[:, 1].max() < 180
    east = points[:, 1] < 0
    assert east.any()
    assert (~east).any()
    region = region_of(rows, tiny())
    west_edge = float(region.middle[1] - region.reach[1])
    span = 2 * float(region.reach[1] + (region.state_reach[1] if kind == "hierarchical" else 0))
    slack = float(region.state_reach[1]) if kind == "hierarchical" else 0.0
    assert ((points[:, 1] - (west_edge - slack)) % 360 <= span + 1e-3).all()


def test_the_median_point_is_that_of_the_states_centres() -> None:
    heads = heads_of(point="median")
    with torch.no_grad():
        heads.states.out.weight.mul_(300)
        states, points = heads.predict(ROWS.views, ROWS.present)
    centres = torch.from_numpy(to_unit_vectors(*heads.centroids.double().numpy().T))
    latitude, longitude = to_degrees(geometric_median(states, centres).numpy())
    np.testing.assert_allclose(points[:, 0], latitude, atol=1e-9)
    np.testing.assert_allclose(points[:, 1], longitude, atol=1e-9)
    assert points[:, 1].std() > 0.5


@pytest.mark.parametrize("kind", ["geocells", *SOLVED])
def test_a_head_with_cells_answers_by_the_decision_and_their_median(kind: str) -> None:
    heads = heads_of(head=kind)
    answer = heads.answer(ROWS.views, ROWS.present)
    torch.testing.assert_close(answer.cells.exp().sum(1), torch.ones(len(ROWS)))
    torch.testing.assert_close(answer.states.exp().sum(1), torch.ones(len(ROWS)))
    decision = Decision(head_share=0.25, cell_temperature=1.5)
    states, cells = decide_cells([answer], decision, heads.to_state)
    latitude, longitude = to_degrees(geometric_median(cells, heads.centres).numpy())
    with torch.no_grad():
        probabilities, points = heads.conclude(heads(ROWS.views, ROWS.present), decision)
    torch.testing.assert_close(probabilities, states)
    np.testing.assert_allclose(points, np.stack([latitude, longitude], axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in SOLVED if kind != "cell-probe"])
def test_the_cells_of_a_head_of_states_are_those_of_its_states(kind: str) -> None:
    heads = heads_of(head=kind)
    answer = heads.answer(ROWS.views, ROWS.present)
    region = region_of(ROWS, tiny(head=kind))
    assert region.cells is not None
    torch.testing.assert_close(
        answer.cells.exp(), answer.states.exp() @ region.cells.in_state, atol=1e-6, rtol=0
    )


def test_a_vector_per_view_makes_attention_mind_the_order_of_views() -> None:
    order, everyone = torch.tensor([2, 0, 1]), torch.ones_like(ROWS.present)
    for directional in (False, True):
        heads = heads_of(fusion="attention", directional=directional)
        if directional:
            assert heads.direction is not None
            heads.direction.data *= 50
        with torch.no_grad():
            same = torch.allclose(
                heads(ROWS.views, everyone)["logits"],
                heads(ROWS.views[:, order], everyone[:, order])["logits"],
                atol=1e-6,
            )
        assert same != directional


def test_standardising_happens_before_the_views_are_fused() -> None:
    heads = heads_of(standardise=True)
    heads.scale, heads.shift = torch.rand(DIM) + 0.5, torch.randn(DIM)
    vector, _ = heads.fuse(ROWS.views, ROWS.present)
    wanted = fuse_average(ROWS.views.float(), ROWS.present) * heads.scale + heads.shift
    torch.testing.assert_close(vector, wanted)


def test_many_samples_are_answered_in_parts_as_in_one() -> None:
    heads = heads_of(head="geocells")
    many = Answer(*(torch.cat([part] * 100) for part in (ROWS.views, ROWS.present)))
    in_parts, whole = heads.answer(many.cells, many.states), heads.answer(ROWS.views, ROWS.present)
    torch.testing.assert_close(in_parts.cells, whole.cells.repeat(100, 1))


# ---------------------------------------------------------------- there and back


def again(heads: Heads, rows: Any = ROWS) -> Heads:
    described = json.loads(json.dumps(heads.description()))
    other = build_heads(described, rows.views.shape[2], rows.views.shape[1], CLASSES)
    other.load_state_dict({key: value.clone() for key, value in heads.state_dict().items()})
    return other.eval()


def same_answers(a: Heads, b: Heads, views: Tensor, present: Tensor) -> None:
    with torch.no_grad():
        for first, second in zip(a.predict(views, present), b.predict(views, present), strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("fusion", FUSION_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_heads_come_back_from_their_description_and_state_dict(kind: str, fusion: str) -> None:
    heads = heads_of(head=kind, fusion=fusion, directional=True, point="median" if kind == "dual" else "head")
    heads.scale, heads.shift = torch.rand(DIM) + 0.5, torch.randn(DIM)
    same_answers(heads, again(heads), ROWS.views, ROWS.present)


@pytest.mark.parametrize("fusion", ["average", "evidence"])
def test_a_refiner_comes_back_too(fusion: str) -> None:
    heads = heads_of(head="geocells", fusion=fusion)
    before = heads.predict(ROWS.views, ROWS.present)[1]
    heads.look_up(gallery_of(heads, ROWS, region_of(ROWS, heads.model)), Refiner(5, 4, 0.03, 1000.0))
    after = heads.predict(ROWS.views, ROWS.present)[1]
    assert not torch.equal(before, after)
    copy = again(heads)
    assert copy.refiner == heads.refiner
    same_answers(heads, copy, ROWS.views, ROWS.present)


@pytest.mark.parametrize("damage", ["model", "cells", "refiner"])
def test_a_description_that_lacks_something_is_refused(damage: str) -> None:
    described = heads_of(head="geocells").description()
    del described[damage]
    with pytest.raises(KeyError):
        build_heads(described, DIM, VIEWS, CLASSES)


def test_a_description_of_an_unknown_head_is_refused() -> None:
    described = heads_of().description()
    described["model"]["head"] = "oracle"
    with pytest.raises(ValueError, match="oracle"):
        build_heads(described, DIM, VIEWS, CLASSES)


def test_a_box_in_the_settings_is_kept_in_the_state_dict_not_taken_from_the_settings_again() -> None:
    heads = heads_of(gps_box=GpsBox(lat_min=10, lat_max=20, lon_min=10, lon_max=20))
    assert again(heads).reach.tolist() == [5, 5]


# ---------------------------------------------------------------- what a step costs


@pytest.mark.parametrize("fusion", FUSION_NAMES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SOLVED])
def test_what_head_and_fusion_declare_is_what_torch_counts(kind: str, fusion: str) -> None:
    model = tiny(head=kind, fusion=fusion, head_hidden=64, gps_hidden=32)
    cells = 100 if HEADS[kind].make.celled else 0
    heads = HEADS[kind].make(size_of(model, 96, 4, 20, cells), model)
    with FlopCounterMode(display=False) as counter:
        out = heads(torch.randn(8, 4, 96), torch.ones(8, 4, dtype=torch.bool))
        torch.stack(
            [out[name].sum() for name in ("logits", "points", "cells") if name in out]
        ).sum().backward()
    declared = 8 * step_flop(model, 96, 4, 20, cells)
    # What a learnt fusion needs of the gradient towards the head's input isn't declared, concat's own is: within 30 %.
    tolerance = 0.0 if fusion == "average" else 0.3
    assert declared == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_a_steps_arithmetic_counts_no_gradient_towards_the_input() -> None:
    # Multiply-adds: twice through each first layer, three times through what follows.
    model = tiny(head_hidden=4, gps_hidden=2)
    assert step_flop(model, 8, 4, 3, 0) == 2 * (2 * 8 * 4 * 2 + 3 * (4 * 3 + 4 * 2 + 2 * 2))


@pytest.mark.parametrize("kind", SOLVED)
def test_what_is_solved_at_once_costs_no_steps(kind: str) -> None:
    assert step_flop(tiny(head=kind), 96, 4, 20, 100) == 0


@pytest.mark.parametrize("fusion", FUSION_NAMES)
def test_best_plans_with_the_prices_that_it_always_had(fusion: str) -> None:
    # They bound its epochs, and so every bit of what a seed gives.
    d, v, w, c, k = 768, 4, 256, 33, 900
    trunk = 4 * d * w + 6 * w**2
    per_view = {
        "evidence": trunk,
        "transformer": 4 * d * w + 96 * w**2,
        "attention": 4 * d * w,
        "concat": 6 * d**2,
    }
    heads = 6 * w * (k + c) + (0 if fusion in ("evidence", "transformer") else trunk)
    model = Model(head="geocells", fusion=fusion, head_hidden=w, head_depth=2)
    assert step_flop(model, d, v, c, k) == v * per_view.get(fusion, 0) + heads


# ---------------------------------------------------------------- on Earth, wherever the places lie


@pytest.mark.parametrize("middle", [(89.0, 0.0), (-89.0, 179.0), (60.0, 180.0), (-16.0, -179.5), (0.0, 0.0)])
@pytest.mark.parametrize("point", ["head", "median"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_heads_answer_lies_beyond_a_pole_or_180(
    kind: str, point: str, middle: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    latitude = np.clip(middle[0] + rng.normal(0, 4, 96), -90, 90)
    longitude = wrap_longitude(middle[1] + rng.normal(0, 40, 96))
    rows = replace(ROWS, points=torch.from_numpy(to_unit_vectors(latitude, longitude)))
    heads = heads_of(rows, head=kind, point=point)
    with torch.no_grad():
        # As far towards the edges of what it can say as a network goes.
        for parameter in heads.parameters():
            parameter.mul_(2 if isinstance(heads, CellHeads) else 100)
    if isinstance(heads, CellHeads):
        heads.look_up(
            gallery_of(heads, rows, region_of(rows, heads.model)),
            Refiner(cells=5, neighbours=4, temperature=0.1, max_km=20_000.0),
        )
    views = torch.randn(400, VIEWS, DIM) * 5
    present = torch.ones(400, VIEWS, dtype=torch.bool)
    panel = Panel([heads, heads_of(rows, head=kind, point=point)])
    with torch.no_grad():
        answers = heads.predict(views, present), panel.predict(views, present)
    for _, points in answers:
        assert points[:, 0].abs().max() <= 90
        assert points[:, 1].abs().max() <= 180
        # They answer at all: not everything in one place.
        assert points.std(dim=0).max() > 1e-3


def test_a_box_of_an_earlier_version_that_passes_a_pole_answers_with_the_pole() -> None:
    heads = heads_of()
    heads.middle.copy_(torch.tensor([88.0, 0.0]))
    heads.reach.copy_(torch.tensor([6.5, 10.0]))
    heads.gps.out.bias.data = torch.tensor([100.0, 0.0])
    assert heads.predict(ROWS.views, ROWS.present)[1][:, 0].max() == 90
