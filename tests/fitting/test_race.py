"""`--preset best`: it learns what the plain recipe can't, repeats itself to the bit, and ignores what isn't there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from rows import region_of, rows_of

from geo_embed import geography
from geo_embed.bench.planted import planted
from geo_embed.config import Model, Training
from geo_embed.data.holdout import Places, inner_groups
from geo_embed.fitting import race as room
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.train import TrainedHeads, train
from geo_embed.heads import mixture
from geo_embed.heads.cells import Cells, cell_tables
from geo_embed.heads.decision import Answer, Decision, mix_logs
from geo_embed.heads.discriminant import Discriminant
from geo_embed.heads.region import Region
from geo_embed.registry import HEADS

SMALL = mixture.Member(
    "small",
    Model(head="geocells", fusion="evidence", head_hidden=32, standardise=True, dropout=0.3),
    Training(
        state_loss="cross_entropy",
        state_weight=0.5,
        tau_km=40.0,
        epochs=3,
        batch_size=64,
        learning_rate=2e-3,
        view_swap=0.5,
        view_dropout=0.2,
    ),
)
SOLVED = ["discriminant-0.8", "discriminant-0.3", "view-discriminant-0.5", "view-discriminant-0.1", "probe"]


def planted_rows(n: int = 300, seed: int = 0, dim: int = 48) -> tuple[Rows, int]:
    data = planted(n, seed=seed, classes=6, dim=dim)
    labels = np.unique(data.state_idx, return_inverse=True)[1]
    points = torch.from_numpy(geography.to_unit_vectors(data.latitude, data.longitude))
    present = torch.ones(data.embeddings.shape[:2], dtype=torch.bool)
    rows = Rows(torch.from_numpy(data.embeddings), present, torch.from_numpy(labels), points)
    return rows, int(labels.max()) + 1


def settings(budget: float = 1e-6, **model: object) -> tuple[Model, Training]:
    return Model.model_validate(model), Training(budget_seconds=budget)


def cells_of(region: Region) -> Cells:
    assert region.cells is not None
    return region.cells


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that a test has the time for."""
    made = room._small_members

    def small(*arguments: Any) -> list[mixture.Member]:
        return [
            member.variant("", {"head_hidden": 16}, epochs=min(3, member.training.epochs))
            for member in made(*arguments)
        ]

    monkeypatch.setattr(room, "_small_members", small)


class Fit(NamedTuple):
    """What a training was given."""

    rows: Rows
    region: Region
    training: Training


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """The trainings of a test, in their order."""
    seen: list[Fit] = []

    def spied(rows: Rows, region: Region, model: Model, training: Training, **named: Any) -> TrainedHeads:
        seen.append(Fit(rows, region, training))
        return train(rows, region, model, training, **named)

    monkeypatch.setattr(room, "train", spied)
    return seen


@pytest.mark.parametrize("fusion", [None, "attention"])
def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone(
    fusion: str | None, narrow: None
) -> None:
    rows = rows_of(60)

    def fit(seed: int) -> tuple[dict[str, torch.Tensor], room.Race]:
        made, race = room.fit_best(rows, 4, *settings(1000.0, fusion=fusion), seed=seed)
        return made.state_dict(), race

    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, race = fit(1)
    assert torch.equal(torch.rand(3), wanted)
    second, again = fit(1)
    assert race == again
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_members_bits_do_not_depend_on_the_number_of_threads_which_is_left_as_it_was(narrow: None) -> None:
    rows, classes = planted_rows(200)
    before = torch.get_num_threads()

    def fit(threads: int) -> dict[str, torch.Tensor]:
        torch.set_num_threads(threads)
        try:
            made, _ = room.fit_best(rows, classes, *settings(1000.0), seed=1)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        return made.state_dict()

    alone, together = fit(1), fit(3)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[key], together[key]) for key in alone)


@pytest.mark.parametrize("fusion", ["evidence", "average"])
@pytest.mark.parametrize("head", ["geocells", "probe"])
def test_what_stands_in_a_missing_view_does_not_matter(fusion: str, head: str) -> None:
    rows, classes = planted_rows()
    member = SMALL.variant("", {"fusion": fusion, "head": head})
    region = region_of(rows, member.model, classes)
    heads = train(rows, region, member.model, member.training, seed=0).heads
    made = mixture.Mixture([member], [heads], Decision())
    present = rows.present[:50].clone()
    present[:, 2] = False
    garbage = rows.views[:50].clone()
    garbage[:, 2] = float("nan")
    with torch.no_grad():
        hidden = made.predict(rows.views[:50], present)
        strange = made.predict(garbage, present)
        whole = made.predict(rows.views[:50], rows.present[:50])
    for a, b in zip(hidden, strange, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(whole[0], hidden[0])


def out_of(members: list[mixture.Member], rows: Rows, region: Region) -> list[Answer]:
    return [
        train(rows, region, member.model, member.training, seed=seed).heads.answer(rows.views, rows.present)
        for seed, member in enumerate(members)
    ]


def test_a_mixture_is_likelier_than_its_best_member_and_leaves_out_what_knows_nothing() -> None:
    rows, classes = planted_rows()
    region = region_of(rows, SMALL.model, classes)
    cells = cells_of(region)
    inner = room._InnerValidation(rows, cells.centres, [torch.arange(len(rows))], [cells.to_state])
    answers = out_of([SMALL.variant("", epochs=1 + n) for n in range(2)], rows, region)
    # A member that is far too sure, and wrong at random.
    states = torch.randn(len(rows), classes, generator=torch.Generator().manual_seed(3)) * 30
    answers.append(Answer(torch.zeros_like(answers[0].cells), states.log_softmax(1)))
    decision = room._mix(answers, inner)
    assert sum(decision.weights) == pytest.approx(1.0)
    assert decision.weights[2] == 0

    def nll(pooled: torch.Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(pooled, rows.labels))

    mixed = nll(mix_logs([a.states for a in answers], decision.weights) / decision.state_temperature)
    assert mixed <= min(nll(a.states) for a in answers) + 1e-3


def test_a_recipe_comes_back_from_its_description_and_state_dict() -> None:
    rows, classes = planted_rows()
    region = region_of(rows, SMALL.model, classes)
    members = [SMALL, SMALL.variant("-probe", {"head": "probe", "fusion": "average"}, l2=0.1)]
    parts = [train(rows, region, member.model, member.training, seed=0).heads for member in members]
    made = mixture.Mixture(members, parts, Decision((0.25, 0.75), 0.25, 1.2, 0.8)).eval()
    described = json.loads(json.dumps(made.description()))
    again = mixture.build_mixture(described, rows.views.shape[2], rows.views.shape[1], classes)
    again.load_state_dict(made.state_dict())
    assert again.members == made.members
    assert again.decision == made.decision
    with torch.no_grad():
        for a, b in zip(
            made.predict(rows.views, rows.present),
            again.eval().predict(rows.views, rows.present),
            strict=True,
        ):
            assert torch.equal(a, b)


# ---------------------------------------------------------------- the race over few samples


@pytest.mark.parametrize("n", [4, 39])
@pytest.mark.parametrize("fusion", [None, "transformer"])
def test_below_forty_samples_there_is_no_race_but_a_network_for_all_of_them(
    n: int, fusion: str | None, narrow: None
) -> None:
    rows = rows_of(n)
    made, race = room.fit_best(rows, 4, *settings(1000.0, fusion=fusion), seed=0)
    assert race.trials == []
    assert race.chosen == [f"{fusion or 'average'}-tau200 × 1.00"]
    assert [member.model.head for member in made.members] == ["geocells"]
    with torch.no_grad():
        states, points = made.predict(rows.views, rows.present)
    torch.testing.assert_close(states.sum(1), torch.ones(n))
    assert torch.isfinite(points).all()


def test_a_small_budget_drops_candidates_from_the_end_and_epochs(narrow: None) -> None:
    rows = rows_of(60)
    stingy, race = room.fit_best(rows, 4, *settings(1e-6), seed=0)
    assert [trial.member for trial in race.trials] == SOLVED
    _, generous = room.fit_best(rows, 4, *settings(1000.0), seed=0)
    raced = [trial.member for trial in generous.trials]
    without_probe = [name for name in SOLVED if name != "probe"]
    assert raced == [*without_probe, "evidence-tau200", "average-tau200", "evidence-tau75"]
    region = region_of(rows, SMALL.model)
    members = room._small_members(mixture.Member("", SMALL.model, SMALL.training), None, *rows.present.shape)
    cost = room.epoch_seconds(members[5], rows, region) * 10 * members[5].training.epochs
    assert cost > 0
    kept = room._affordable(members, rows, region, 1.01 * cost)
    assert [member.name for member in kept] == [*without_probe, "evidence-tau200"]
    assert room._affordable(members, rows, region, None) == kept
    assert not any(HEADS[member.model.head].make.by_steps for member in stingy.members)


def test_of_one_view_soft_and_hard_state_labels_race_and_what_each_won_is_told(narrow: None) -> None:
    rows = rows_of(60)
    single = Rows(rows.views[:, :1], rows.present[:, :1], rows.labels, rows.points)
    single = single.take(single.present[:, 0])
    made, race = room.fit_best(single, 4, *settings(), seed=0)
    assert "cell-probe-tau200" in [trial.member for trial in race.trials]
    by_name = dict(zip([member.name for member in made.members], made.decision.weights, strict=True))
    soft = by_name.get("cell-probe-tau200", 0.0)
    assert race.state_labels == pytest.approx({"hard": 1 - soft, "soft": soft})
    _, several = room.fit_best(rows, 4, *settings(), seed=0)
    assert several.state_labels == pytest.approx({"hard": 1.0})


@pytest.mark.parametrize(
    ("views", "budget", "takes_part"), [(4, None, False), (4, 1e-6, True), (1, None, True)]
)
def test_the_views_mean_is_left_to_a_probe_where_no_network_tells_several_views_apart(
    views: int, budget: float | None, takes_part: bool
) -> None:
    rows, classes = planted_rows(60, dim=8)
    rows = replace(rows, views=rows.views[:, :views], present=rows.present[:, :views])
    base = room.Member(
        "", Model().model_copy(update=room._MODEL), Training().model_copy(update=room._TRAINING)
    )
    members = room._small_members(base, None, *rows.present.shape)
    kept = room._affordable(members, rows, room._region(rows, base, classes, 0), budget)
    assert ("probe" in [member.name for member in kept]) is takes_part


def test_a_fusion_that_is_named_races_alone(narrow: None) -> None:
    made, race = room.fit_best(rows_of(60), 4, *settings(1000.0, fusion="attention"), seed=0)
    assert [trial.member for trial in race.trials] == ["attention-tau200", "attention-tau75"]
    assert {member.model.fusion for member in made.members} == {"attention"}


def test_a_row_is_scored_by_heads_and_tables_that_its_own_label_was_not_counted_in(
    narrow: None, monkeypatch: pytest.MonkeyPatch, fits: list[Fit]
) -> None:
    rows = rows_of(60)
    inners: list[Any] = []
    inner_of = room._InnerValidation

    def noted(*arguments: Any) -> Any:
        inners.append(inner_of(*arguments))
        return inners[-1]

    monkeypatch.setattr(room, "_InnerValidation", noted)
    _, race = room.fit_best(rows, 4, *settings(1e-6), seed=0)
    (inner,) = inners
    assert torch.cat(inner.parts).sort().values.tolist() == list(range(len(inner.rows)))
    numbers = {tuple(point.tolist()): row for row, point in enumerate(rows.points)}
    parts = [
        torch.tensor([numbers[tuple(point.tolist())] for point in inner.rows.points[part]])
        for part in inner.parts
    ]
    assert len(parts) == room._small_plan(*rows.present.shape).held_out
    whole = fits[-1].region
    assert len(fits[-1].rows) == 60
    told_apart = 0
    for fold, (part, table) in enumerate(zip(parts, inner.to_state, strict=True)):
        rest = torch.tensor([row for row in range(60) if row not in set(part.tolist())])
        own = cells_of(whole)
        wanted = cell_tables(own.centres, own.owner[rest], rows.labels[rest], 4)
        assert torch.equal(table, wanted.to_state)
        told_apart += not torch.equal(table, own.to_state)
        for trial in range(len(race.trials)):
            fit = fits[trial * len(inner.parts) + fold]
            assert torch.equal(fit.rows.points, rows.points[rest])
            assert torch.equal(cells_of(fit.region).to_state, wanted.to_state)
    assert told_apart >= len(parts) // 2


def test_the_inner_score_is_that_of_the_decision_part_by_part() -> None:
    rows = rows_of(40)
    region = region_of(rows, SMALL.model)
    cells = cells_of(region)
    (answer,) = out_of([SMALL], rows, region)
    parts = [torch.arange(0, 40, 2), torch.arange(1, 40, 2)]
    inner = room._InnerValidation(rows, cells.centres, parts, [cells.to_state] * 2)
    whole = room._InnerValidation(rows, cells.centres, [torch.arange(40)], [cells.to_state])
    assert inner.score([answer], Decision()) == pytest.approx(whole.score([answer], Decision()))
    total, state, gps = whole.score([answer], Decision())
    assert total == pytest.approx(0.7 * state + 0.3 * gps)


def test_a_discriminant_is_no_surer_of_new_rows_than_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else fine-tuning, whose gradients go through it, would tear the backbone apart."""
    rows, classes = planted_rows(600, dim=300)
    fitted_on, new = rows.take(torch.arange(300)), rows.take(torch.arange(300, 600))
    monkeypatch.setattr(room, "_mix", lambda answers, inner: Decision((1 / len(answers),) * len(answers)))
    made, _ = room.fit_best(fitted_on, classes, *settings(), seed=0)
    gaussians = [heads for heads in made.heads if isinstance(heads, Discriminant)]
    assert len(gaussians) == 4
    for heads in gaussians:
        surest, guess = heads.answer(new.views, new.present).states.exp().max(dim=1)
        right = (guess == new.labels).float().mean()
        assert float(surest.mean()) < float(right)


# ---------------------------------------------------------------- the race over many samples


def test_the_large_race_holds_its_validation_rows_out_and_keeps_to_its_budget(
    monkeypatch: pytest.MonkeyPatch, fits: list[Fit]
) -> None:
    rows, classes = planted_rows(400)
    monkeypatch.setattr(room, "SMALL", 100)
    monkeypatch.setattr(room, "_MODEL", room._MODEL | {"head_hidden": 32})
    generous, race = room.fit_best(rows, classes, *settings(1000.0), seed=0)
    raced = [trial.member for trial in race.trials]
    assert raced == ["probe", "average", "evidence"]
    assert len(race.chosen) == 1
    # A tenth is held out in the race, and all of it is trained on in the end.
    assert [len(fit.rows) for fit in fits] == [len(fits[0].rows)] * len(raced) + [400]
    # A place is held out whole, so that some more or fewer are.
    assert abs(len(fits[0].rows) - 360) <= 5
    winner = max(race.trials, key=lambda trial: trial.score).member
    assert race.chosen == [f"{winner} × 1.00"]
    stingy, short = room.fit_best(rows, classes, *settings(1e-6), seed=0)
    assert short.chosen == race.chosen
    if generous.members[0].model.head != "probe":
        assert short.epochs == 3 < race.epochs
    for made in (generous, stingy):
        with torch.no_grad():
            states, points = made.predict(rows.views, rows.present)
        assert torch.isfinite(states).all()
        assert torch.isfinite(points).all()


def test_a_larger_budget_means_more_epochs_of_what_mixes_views_and_more_dropout_with_twice_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, classes = planted_rows(200)
    monkeypatch.setattr(room, "SMALL", 100)
    monkeypatch.setattr(room, "_MIXED_WIDTH", 16)

    def fitted(budget: float | None) -> tuple[int, float]:
        model, training = Model(fusion="evidence"), Training(budget_seconds=budget)
        made, race = room.fit_best(rows, classes, model, training, seed=0)
        (member,) = made.members
        assert [trial.member for trial in race.trials] == ["evidence"]
        assert member.training.epochs == race.epochs
        return race.epochs, member.model.dropout

    usual, longest = room._MIXED_VIEWS["epochs"], room._LONG_EPOCHS
    monkeypatch.setattr(room, "_MANY", 100)
    (epochs, dropout), (most, more), (few, _) = fitted(None), fitted(1000.0), fitted(1e-6)
    assert (few, epochs, most) == (3, usual, longest)
    assert dropout < more
    # Of fewer an epoch costs so little that the default budget has room for as many.
    monkeypatch.setattr(room, "_MANY", 16_000)
    assert fitted(None) == (longest, more)


def test_below_sixteen_thousand_samples_steps_are_smaller_and_a_network_races_for_half_its_epochs(
    monkeypatch: pytest.MonkeyPatch, fits: list[Fit]
) -> None:
    """Else a probe, which is there after fifty steps, wins of 4,000 samples what a network does far better in the end."""
    rows, classes = planted_rows(400)
    monkeypatch.setattr(room, "SMALL", 100)
    monkeypatch.setattr(room, "_MIXED_WIDTH", 16)
    for many, batch in ((1_000, room._BATCH), (100, room._MANY_BATCH)):
        fits.clear()
        monkeypatch.setattr(room, "_MANY", many)
        made, _ = room.fit_best(rows, classes, *settings(1e-6, fusion="evidence"), seed=0)
        raced, final = (fit.training for fit in fits)
        assert raced.batch_size == final.batch_size == made.members[0].training.batch_size == batch
        assert raced.epochs == room._LONG_EPOCHS // 2


def test_a_fusion_that_is_named_is_the_only_one_in_the_large_race_too() -> None:
    base = mixture.Member("", SMALL.model, SMALL.training)
    assert [member.name for member in room._large_members(base, "attention")] == ["attention"]
    assert [member.name for member in room._large_members(base, "average")] == ["probe", "average"]


def test_few_rows_are_all_held_out_in_turn_and_of_more_so_many_that_they_can_choose() -> None:
    held_out = [
        room._small_plan(n, 4).held_out / room._small_plan(n, 4).folds * n for n in (60, 300, 960, 4_000)
    ]
    assert held_out == pytest.approx([60, 210, 192, 800])
    plan = room._small_plan(300, 1)
    assert plan.held_out == plan.folds


def test_folds_cover_everything_once_and_share_every_class() -> None:
    labels = np.repeat([0, 1, 2], [40, 20, 8])
    # Places a degree apart.
    points = torch.from_numpy(geography.to_unit_vectors(np.zeros(68), np.arange(68.0)))
    rows = Rows(torch.zeros(68, 1, 3), torch.ones(68, 1, dtype=torch.bool), torch.from_numpy(labels), points)
    parts = room._folds(rows, Training(split_seed=1), 4, room.Race())
    assert torch.cat(parts).sort().values.tolist() == list(range(68))
    assert [np.bincount(labels[part.numpy()]).tolist() for part in parts] == [[10, 5, 2]] * 4


@pytest.mark.slow
def test_best_beats_the_plain_recipe_on_planted_embeddings(tmp_path: Path) -> None:
    """The margin of docs/heads.md, with room for so small a set; through the same commands that a person types."""
    from geo_embed.bench.dataset import write_planted
    from geo_embed.fitting.fit import fit_heads
    from geo_embed.settings import resolve

    overrides = write_planted(planted(1000, seed=3, classes=12, dim=64), tmp_path)
    plain = fit_heads(resolve(overrides=overrides | {"training.preset": "pigeon"})[0], name="plain")
    chosen = fit_heads(
        resolve(overrides=overrides | {"training.preset": "best", "training.budget_seconds": 6})[0],
        name="chosen",
    )
    assert chosen.val["score"] > plain.val["score"] + 0.05
    assert chosen.val["samples"] == plain.val["samples"]


def test_places_and_pictures_are_in_one_inner_fold_alone_whatever_the_run_itself_does() -> None:
    """Bursts of five samples a few hundred metres apart: dealt by class alone they would be in every fold."""
    rng = np.random.default_rng(2)
    n = 40
    latitude = np.repeat(rng.uniform(30, 45, n), 5) + rng.normal(size=5 * n) * 1e-3
    longitude = np.repeat(rng.uniform(-110, -80, n), 5) + rng.normal(size=5 * n) * 1e-3
    tied = np.arange(5 * n)
    tied[7] = tied[193]  # the same picture at two ends of the country
    points = torch.from_numpy(geography.to_unit_vectors(latitude, longitude))
    labels = torch.from_numpy(np.repeat(np.arange(n) % 4, 5))
    rows = Rows(
        torch.zeros(5 * n, 1, 3),
        torch.ones(5 * n, 1, dtype=torch.bool),
        labels,
        points,
        torch.from_numpy(tied),
    )
    for validation in ("random", "spatial"):
        folds = room._folds(rows, Training.model_validate({"validation": validation}), 4, room.Race())

        fold_of = torch.empty(5 * n, dtype=torch.int64)
        for k, members in enumerate(folds):
            fold_of[members] = k
        assert all(len(burst.unique()) == 1 for burst in fold_of.view(n, 5))
        assert fold_of[7] == fold_of[193]
        assert max(map(len, folds)) - min(map(len, folds)) <= 10


def test_where_towns_run_into_one_another_inner_folds_keep_shorter_distances_together() -> None:
    """A chain of places 2 km apart is one group of 5 km steps; no fold could be held out."""
    n = 200
    places = Places(
        np.arange(n).astype(object),
        np.zeros(n, dtype=np.int64),
        np.full(n, 40.0),
        -100 + np.arange(n) * 2 / 85.2,
    )
    groups, km = inner_groups(places, Training(group_km=5.0), 4)
    assert km == 1.25
    assert len(np.unique(groups)) == n

    # A run that is validated by place says itself what is one place.
    groups, km = inner_groups(places, Training(group_km=5.0, validation="spatial"), 4)
    assert (km, len(np.unique(groups))) == (5.0, 1)


def test_the_networks_of_the_folds_answer_together_and_know_what_all_rows_tell_of_the_cells(
    narrow: None,
) -> None:
    rows = rows_of(60)
    made, race = room.fit_best(rows, 4, *settings(1000.0, fusion="evidence"), seed=0)
    networks = [heads for heads in made.heads if heads.by_steps]
    assert len(networks) == len(made.parts) > 0
    assert len(networks) % room._small_plan(*rows.present.shape).held_out == 0
    assert sum(made.decision.weights) == pytest.approx(1.0)
    assert len(race.chosen) * room._small_plan(*rows.present.shape).held_out == len(networks)
    assert all(torch.equal(heads.to_state, networks[0].to_state) for heads in networks)
    cells = cells_of(region_of(rows, networks[0].model))
    assert torch.equal(networks[0].to_state, cells.to_state)


def test_progress_says_what_is_tried_how_long_it_takes_and_who_leads(
    narrow: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room.fit_best(rows_of(60), 4, *settings(7.0), seed=0)
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0]
        == "best: candidates race on 60 samples, out of fold, and their mixture; about 7 s on two cores"
    )
    raced = [line for line in lines if line.startswith("race ")]
    scores = []
    for number, line in enumerate(raced, start=1):
        scores.append(float(line.split(",")[0].split()[-1]))
        assert line.startswith(f"race {number} of {len(raced)}: ")
        assert line.endswith(f"best so far {max(scores):.4f}")
    rows, classes = planted_rows(400)
    monkeypatch.setattr(room, "SMALL", 100)
    monkeypatch.setattr(room, "_MODEL", room._MODEL | {"head_hidden": 32})
    monkeypatch.setattr(
        room, "_large_members", lambda base, fusion: [base.variant("net", {"fusion": "average"})]
    )
    _, race = room.fit_best(rows, classes, *settings(1000.0), seed=0, every=0)
    lines = capsys.readouterr().err.splitlines()
    assert any(f"{race.epochs} epochs, about" in line for line in lines)
    assert any(f"training: {race.epochs} of {race.epochs} epochs" in line for line in lines)
