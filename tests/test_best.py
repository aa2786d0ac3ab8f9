"""`--preset best`: it learns what the plain recipe can't, repeats itself to the bit, and ignores what isn't there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geo_embed import best, geocells, geography, members
from geo_embed.bench.planted import planted
from geo_embed.members import Answer, Member, Rows

SMALL = Member("small", width=32, epochs=3, batch=64, swap=0.5, view_dropout=0.2)


def rows_of(n: int = 300, seed: int = 0, dim: int = 48) -> tuple[Rows, int]:
    data = planted(n, seed=seed, classes=6, dim=dim)
    labels = np.unique(data.state_idx, return_inverse=True)[1]
    points = torch.from_numpy(geography.to_unit_vectors(data.latitude, data.longitude))
    present = torch.ones(data.embeddings.shape[:2], dtype=torch.bool)
    return Rows(torch.from_numpy(data.embeddings), present, torch.from_numpy(labels), points), int(
        labels.max()
    ) + 1


def cells_of(rows: Rows, classes: int) -> geocells.Cells:
    return geocells.make_cells(rows.points.numpy(), rows.labels.numpy(), 20, classes, seed=0)


@pytest.mark.parametrize("fusion", ["gate", "average", "probe"])
def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone(fusion: str) -> None:
    rows, classes = rows_of()
    member, cells = replace(SMALL, fusion=fusion), cells_of(rows, classes)
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    first = members.fit_member(member, rows, cells, classes, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected_next)
    second = members.fit_member(member, rows, cells, classes, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    if fusion != "probe":
        other = members.fit_member(member, rows, cells, classes, seed=2).state_dict()
        assert not torch.equal(first["inp.weight"], other["inp.weight"])


@pytest.mark.parametrize("fusion", ["gate", "average", "probe"])
def test_what_stands_in_a_missing_view_does_not_matter(fusion: str) -> None:
    rows, classes = rows_of()
    model = members.fit_member(replace(SMALL, fusion=fusion), rows, cells_of(rows, classes), classes, seed=0)
    present = rows.present[:50].clone()
    present[:, 2] = False
    garbage = rows.views[:50].clone()
    garbage[:, 2] = float("nan")
    plain = members.answer(model, rows.views[:50], present)
    strange = members.answer(model, garbage, present)
    torch.testing.assert_close(plain.cells, strange.cells)
    torch.testing.assert_close(plain.states, strange.states)
    whole = members.answer(model, rows.views[:50], rows.present[:50])
    assert not torch.allclose(whole.states, plain.states)


def test_standardising_gives_mean_zero_and_variance_one_over_the_views_that_are_there() -> None:
    rows, _ = rows_of()
    present = rows.present.clone()
    present[:100, 1] = False
    scale, shift = members.scale_and_shift(replace(rows, present=present))
    x = rows.views[present].float() * scale + shift
    torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(x.shape[1]), atol=1e-2, rtol=0)


def test_a_dropout_mask_keeps_its_rate_and_its_expectation() -> None:
    mask = members.keep_mask(torch.Size((1000, 1000)), 0.3, torch.Generator().manual_seed(0))
    assert abs(float((mask == 0).float().mean()) - 0.3) < 0.005
    assert abs(float(mask.mean()) - 1.0) < 0.005


def test_the_probe_agrees_with_scikit_learns_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    rows, classes = rows_of()
    l2 = 0.01
    probe = members.fit_probe(rows, cells_of(rows, classes), classes, l2, rounds=500)
    x = rows.views.float().mean(1).numpy()
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    theirs = LogisticRegression(C=1 / (l2 * len(x)), max_iter=2000, tol=1e-8).fit(x, rows.labels.numpy())
    ours = members.answer(probe, rows.views, rows.present).states.exp().numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(x), atol=0.01)


def test_a_temperature_that_was_put_in_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator) * 2
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
    assert best.fit_temperature(torch.log_softmax(logits * 2.5, 1), labels) == pytest.approx(2.5, rel=0.05)


def test_states_and_cells_tell_one_story() -> None:
    # Two cells of state 0, one of state 1; the state head is sure of state 1, so the point moves there.
    centres = torch.from_numpy(geography.to_unit_vectors([40.0, 41.0, 30.0], [-100.0, -101.0, -90.0])).float()
    to_state = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    cells = torch.log(torch.tensor([[0.4, 0.3, 0.3]]))
    unsure = Answer(cells, torch.log(torch.tensor([[0.7, 0.3]])))
    sure = Answer(cells, torch.log(torch.tensor([[0.001, 0.999]])))
    for answer, state in ((unsure, 0), (sure, 1)):
        states, point = best.decide([answer], best.Decision((1.0,)), centres, to_state)
        assert int(states.argmax()) == state
        nearest = int((point.float() @ centres.T).argmax())
        assert int(to_state[nearest].argmax()) == state
        assert float(states.sum()) == pytest.approx(1.0)


def test_a_mixture_is_no_worse_than_its_best_member() -> None:
    rows, classes = rows_of()
    cells = cells_of(rows, classes)
    answers = []
    for seed in range(3):
        model = members.fit_member(replace(SMALL, epochs=1 + seed), rows, cells, classes, seed=seed)
        answers.append(members.answer(model, rows.views, rows.present))
    weights = best._mix(answers, cells, rows)
    assert sum(weights) == pytest.approx(1.0)
    used = [i for i, weight in enumerate(weights) if weight]
    mixture = best.Decision(tuple(weights[i] for i in used))
    mixed = best._score([answers[i] for i in used], mixture, cells, rows)[0]
    singles = [best._score([answer], best.Decision((1.0,)), cells, rows)[0] for answer in answers]
    assert mixed >= max(singles)


def test_a_recipe_comes_back_from_its_description_and_state_dict() -> None:
    rows, classes = rows_of()
    cells = cells_of(rows, classes)
    parts = [SMALL, Member("probe", "probe", l2=0.1)]
    modules = [members.fit_member(member, rows, cells, classes, seed=0) for member in parts]
    made = best.Best(parts, modules, best.Decision((0.25, 0.75), 0.25, 1.2, 0.8), cells).eval()
    described = json.loads(json.dumps(made.description()))
    again = best.build_best(described, rows.views.shape[2], rows.views.shape[1], classes)
    again.load_state_dict(made.state_dict())
    for a, b in zip(
        made.predict(rows.views, rows.present), again.eval().predict(rows.views, rows.present), strict=True
    ):
        assert torch.equal(a, b)


def test_the_large_race_holds_its_judges_out_and_keeps_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, classes = rows_of(400)
    monkeypatch.setattr(best, "_SMALL", 100)
    monkeypatch.setattr(best, "_NETWORKS", (SMALL,))
    generous, race = best.fit_best(rows, classes, seed=0, budget_seconds=1000.0)
    assert [trial.member for trial in race.trials][:2] == ["probe-0.01", "small"]
    assert len(race.chosen) == 1
    assert [member.epochs for member in generous.members if member.fusion != "probe"] in ([], [SMALL.epochs])
    states, points = generous.predict(rows.views, rows.present)
    assert torch.isfinite(states).all()
    assert torch.isfinite(points).all()


@pytest.mark.slow
def test_best_beats_the_plain_recipe_on_planted_embeddings(tmp_path: Path) -> None:
    """The margin of docs/heads.md, with room for so small a set; through the same commands that a person types."""
    from geo_embed.bench.heads import write_planted
    from geo_embed.config import resolve
    from geo_embed.fit import fit_heads

    given = write_planted(planted(1500, seed=3, classes=12, dim=128), tmp_path)
    plain = fit_heads(resolve(overrides=given)[0], name="plain")
    chosen = fit_heads(resolve(overrides=given | {"training.preset": "best"})[0], name="chosen")
    assert chosen.val["score"] > plain.val["score"] + 0.05
    assert chosen.val["samples"] == plain.val["samples"]
