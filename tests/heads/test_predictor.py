"""A panel answers with the average of its parts, calibrated as it was fitted, and comes back from its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rows import CLASSES, region_of, rows_of, tiny

from geo_embed.config import Config, Training
from geo_embed.errors import GeoError
from geo_embed.fitting.train import gallery_of, train
from geo_embed.geography import haversine_km, to_unit_vectors
from geo_embed.heads import calibration
from geo_embed.heads.decision import Decision
from geo_embed.heads.heads import Heads
from geo_embed.heads.mixture import Member, Mixture
from geo_embed.heads.predictor import FORMAT, Panel, build_panel
from geo_embed.heads.refine import Refiner
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run
from geo_embed.sphere import geometric_median_of

ROWS = rows_of(noise=2.0)
VIEWS, DIM = ROWS.views.shape[1:]
TRAINING = Training(epochs=3, batch_size=32, learning_rate=1e-2)


def heads(seed: int = 0, **model: object) -> Heads:
    made = tiny(**model)
    return train(ROWS, region_of(ROWS, made), made, TRAINING, seed=seed).heads


def best_of(*kinds: str) -> Mixture:
    members = [Member(kind, tiny(head=kind), TRAINING) for kind in kinds]
    shares = tuple(1 / len(kinds) for _ in kinds)
    return Mixture(members, [heads(head=kind) for kind in kinds], Decision(shares, 0.25, 1.2, 0.8)).eval()


def answers(part: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        states, points = part.predict(ROWS.views, ROWS.present)
    return states, points


def again(panel: Panel) -> Panel:
    described = json.loads(json.dumps(panel.description()))
    other = build_panel(described, DIM, VIEWS, CLASSES)
    other.load_state_dict({key: value.clone() for key, value in panel.state_dict().items()})
    return other.eval()


def test_one_part_answers_for_itself() -> None:
    alone = heads()
    for a, b in zip(answers(Panel([alone])), answers(alone), strict=True):
        assert torch.equal(a, b)


def test_probabilities_are_averaged_and_the_point_is_the_median_of_the_parts_points() -> None:
    parts = [heads(0), heads(1, head="geocells"), best_of("probe")]
    states, points = answers(Panel(parts))
    part_answers = [answers(part) for part in parts]
    torch.testing.assert_close(states, (part_answers[0][0] + part_answers[1][0] + part_answers[2][0]) / 3)
    unit = np.stack([to_unit_vectors(p[:, 0].numpy(), p[:, 1].numpy()) for _, p in part_answers], axis=1)
    wanted = geometric_median_of(torch.from_numpy(unit), torch.full((len(ROWS), 3), 1 / 3)).numpy()
    np.testing.assert_allclose(to_unit_vectors(*points.numpy().T), wanted, atol=1e-9)

    def cost(latitude: Any, longitude: Any) -> Any:
        return sum(
            haversine_km(latitude, longitude, p[:, 0].numpy(), p[:, 1].numpy()) for _, p in part_answers
        )

    for _, other in part_answers:
        assert (cost(*points.numpy().T) <= cost(*other.double().numpy().T) + 1e-3).all()


def test_parts_on_either_side_of_the_antimeridian_meet_there_not_on_the_other_side_of_the_earth() -> None:
    rows = rows_of(middle=(60.0, 179.0))
    parts = []
    for seed in range(3):
        model = tiny()
        parts.append(train(rows, region_of(rows, model), model, TRAINING, seed=seed).heads)
    with torch.no_grad():
        _, points = Panel(parts).predict(rows.views, rows.present)
    assert (points[:, 1].abs() > 160).all()


def test_leaves_are_all_heads_with_their_share_of_the_answer_and_their_own_settings() -> None:
    alone, mixed = heads(), best_of("geocells", "probe")
    leaves = Panel([alone, mixed]).leaves(TRAINING)
    assert [leaf for leaf, _, _ in leaves] == [alone, *mixed.heads]
    assert [weight for _, weight, _ in leaves] == pytest.approx([0.5, 0.25, 0.25])
    assert leaves[0][2] is TRAINING
    assert leaves[1][2] is mixed.members[0].training


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_a_calibrated_panel_answers_with_calibrated_probabilities_and_the_same_point(kind: Any) -> None:
    panel = Panel([heads(0), heads(1)])
    states, points = answers(panel)
    returned = panel.calibrate(states.numpy(), ROWS.labels.numpy(), kind, seed=3)
    fitted = calibration.fit_calibration(states.log(), ROWS.labels, kind)
    assert panel.calibration == fitted
    after, same = answers(panel)
    torch.testing.assert_close(after, calibration.apply(fitted, states.log()).exp())
    assert torch.equal(points, same)
    torch.testing.assert_close(after.sum(1), torch.ones(len(ROWS)))
    crossed = calibration.cross_fitted(states.log(), ROWS.labels, kind, seed=3)
    np.testing.assert_array_equal(returned, crossed.exp().numpy())
    if kind == "vector":
        # What is reported isn't the fit to its own rows.
        assert not np.allclose(returned, after.numpy(), atol=1e-4)
    assert panel.reliability == calibration.reliability(states.log(), ROWS.labels, kind, seed=3)


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_a_calibration_survives_its_description(kind: Any) -> None:
    panel = Panel([heads(0), heads(1)]).eval()
    panel.calibrate(answers(panel)[0].numpy(), ROWS.labels.numpy(), kind, seed=0)
    copy = again(panel)
    assert copy.calibration == panel.calibration
    for a, b in zip(answers(panel), answers(copy), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- there and back


def refined() -> Heads:
    made = heads(head="geocells", fusion="evidence")
    made.look_up(gallery_of(made, ROWS, region_of(ROWS, made.model)), Refiner(3, 4, 0.1, 500.0))
    return made


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [heads()],
        lambda: [heads(0), heads(1, head="dual", point="median")],
        lambda: [refined(), heads(head="hierarchical", fusion="transformer")],
        lambda: [best_of("geocells", "probe"), best_of("geocells")],
    ],
)
def test_a_panel_comes_back_from_its_description_and_state_dict(parts: Callable[[], list[Any]]) -> None:
    panel = Panel(parts()).eval()
    for a, b in zip(answers(panel), answers(again(panel)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": FORMAT + 1},
        {"parts": []},
        {"parts": [{}]},
        {"parts": 5},
        {"calibration": {"kind": "vector", "scale": [1.0], "offset": []}},
    ],
)
def test_a_description_that_is_damaged_is_refused(damage: dict[str, Any]) -> None:
    described = Panel([heads()]).description() | damage
    with pytest.raises((ValueError, KeyError, TypeError)):
        build_panel(described, DIM, VIEWS, CLASSES)


def recipe(run: Run) -> dict[str, Any]:
    described = json.loads((run.recipe_path).read_text(encoding="utf-8"))
    assert isinstance(described, dict)
    return described


@pytest.mark.parametrize(
    "damage",
    ["gone", "cut", "no object", "another format", "no format", "no parts", "no calibration", "another head"],
)
def test_a_run_whose_recipe_is_damaged_or_of_another_version_is_one_clear_error(
    config: Config, run: Run, damage: str
) -> None:
    path = run.recipe_path
    described = recipe(run)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_text(path.read_text()[:-100])
    elif damage == "no object":
        path.write_text("[]")
    else:
        if damage == "another format":
            described["format"] = FORMAT + 1
        elif damage == "no format":
            del described["format"]
        elif damage == "no parts":
            described["parts"] = []
        elif damage == "no calibration":
            del described["calibration"]
        else:
            described["parts"][0]["heads"]["model"]["head"] = "oracle"
        path.write_text(json.dumps(described))
    with pytest.raises(GeoError, match="the run's heads can't be loaded") as caught:
        load_heads(run)
    assert caught.value.where == str(path)
    assert caught.value.hint == "train the run again"
    assert "\n" not in str(caught.value)
    if damage == "another format":
        assert f"format {FORMAT + 1}, where this version reads {FORMAT}" in str(caught.value)


@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "another width"])
def test_weights_that_don_t_fit_are_one_clear_error(config: Config, run: Run, damage: str) -> None:
    path = run.path / "heads.safetensors"
    if damage == "gone":
        path.unlink()
    elif damage == "another width":
        described = recipe(run)
        described["parts"][0]["heads"]["model"]["head_hidden"] = 100
        (run.recipe_path).write_text(json.dumps(described))
    else:
        path.write_bytes(path.read_bytes()[: 1000 if damage == "cut" else 0])
    with pytest.raises(GeoError, match="the run's heads can't be loaded") as caught:
        load_heads(run)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
