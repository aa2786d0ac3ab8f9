"""The training loop repeats itself to the bit, keeps its best epoch, and disturbs views as it is told."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rows import region_of, rows_of, tiny

from geo_embed import geography
from geo_embed.config import Model, Training
from geo_embed.errors import GeoError
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.train import (
    TrainedHeads,
    Validated,
    find_refiner,
    gallery_of,
    make_source,
    new_heads,
    scale_and_shift,
    train,
)
from geo_embed.heads.heads import Heads
from geo_embed.heads.layers import keep_mask
from geo_embed.heads.losses import expected_score_loss
from geo_embed.optim import make_adamw, warmup_cosine
from geo_embed.registry import FUSIONS, HEADS

ROWS = rows_of()
DRAWN = {"dropout": 0.3, "fusion": "evidence", "head": "geocells"}


def settings(**changes: object) -> Training:
    return Training.model_validate({"epochs": 3, "batch_size": 32, "learning_rate": 1e-2} | changes)


def fit(
    model: Model, training: Training, *, rows: Rows = ROWS, seed: int = 0, validate: Any = None
) -> TrainedHeads:
    return train(rows, region_of(rows, model), model, training, seed=seed, validate=validate)


def weights(trained: TrainedHeads) -> dict[str, torch.Tensor]:
    return trained.heads.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------- the loop


def test_an_epochs_losses_are_means_over_its_samples_of_what_each_part_adds() -> None:
    """Batches of 40, 40 and 16, by weights that hardly move: a mean over batches would be another number."""
    training = settings(
        epochs=1,
        batch_size=40,
        learning_rate=1e-12,
        state_loss="cross_entropy",
        state_weight=0.6,
        gps_weight=3.0,
        score_weight=0.5,
    )
    trained = fit(tiny(dropout=0.0), training)
    (entry,) = trained.history
    with torch.no_grad():
        out = trained.heads(ROWS.views, ROWS.present)
    latitude, longitude = (torch.from_numpy(x) for x in geography.to_degrees(ROWS.points.numpy()))
    south, north, west, east = geography.region_box(latitude.numpy(), longitude.numpy())
    up, along = ((out["points"].double().T - torch.stack([latitude, longitude])) ** 2).mean(dim=1).tolist()
    gps = (up / (north - south) ** 2 + along / (east - west) ** 2) / 2
    state = float(torch.nn.functional.cross_entropy(out["logits"], ROWS.labels))
    score = float(expected_score_loss(out["logits"], ROWS.labels))
    assert entry["train_state_loss"] == pytest.approx(0.6 * state, rel=1e-4)
    assert entry["train_gps_loss"] == pytest.approx(3 * gps, rel=1e-3)
    assert entry["train_score_loss"] == pytest.approx(0.5 * score, rel=1e-4)
    assert entry["train_loss"] == pytest.approx(0.6 * state + 3 * gps + 0.5 * score, rel=1e-4)
    assert "train_cell_loss" not in entry


def test_heads_over_cells_have_a_loss_of_cells_in_the_place_of_the_points() -> None:
    for entry in fit(tiny(head="geocells"), settings()).history:
        assert {key for key in entry if key.startswith("train_")} == {
            *("train_loss", "train_state_loss", "train_cell_loss")
        }
        assert entry["train_loss"] == pytest.approx(entry["train_state_loss"] + entry["train_cell_loss"])


@pytest.mark.parametrize("fusion", tuple(FUSIONS.built_in))
@pytest.mark.parametrize("kind", tuple(HEADS.built_in))
def test_every_head_over_every_fusion_learns(kind: str, fusion: str) -> None:
    trained = fit(tiny(head=kind, fusion=fusion, dropout=0.1), settings(epochs=6, batch_size=16))
    with torch.no_grad():
        states, _ = trained.heads.predict(ROWS.views, ROWS.present)
    assert (states.argmax(1) == ROWS.labels).float().mean() > 0.7
    assert not trained.heads.training
    if HEADS[kind].make.by_steps:
        assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]


@pytest.mark.parametrize("kind", tuple(HEADS.built_in))
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(kind: str) -> None:
    model = tiny(**(DRAWN | {"head": kind}))
    training = settings(view_dropout=0.2, view_swap=0.3)
    first = fit(model, training, seed=1)
    second = fit(model, training, seed=1)
    assert same(weights(first), weights(second))
    assert first.history == second.history
    if HEADS[kind].make.by_steps:
        # The region is the same: what differs is what was drawn in training.
        other = train(ROWS, region_of(ROWS, model), model, training, seed=2)
        assert not torch.equal(weights(first)["fusion.gate.weight"], weights(other)["fusion.gate.weight"])


@pytest.mark.parametrize("kind", tuple(HEADS.built_in))
def test_training_leaves_everybodys_random_numbers_alone(kind: str) -> None:
    def draws() -> tuple[Any, ...]:
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    def begin() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    begin()
    wanted = draws()
    begin()
    fit(tiny(**(DRAWN | {"head": kind})), settings(view_dropout=0.2, view_swap=0.3))
    assert draws() == wanted


def test_the_rate_follows_the_schedule_step_by_step() -> None:
    history = fit(tiny(), settings(epochs=4, warmup=0.25)).history
    wanted = [1e-2 * warmup_cosine(3 * epoch - 1, 12, 0.25) for epoch in range(1, 5)]
    assert [entry["learning_rate"] for entry in history] == pytest.approx(wanted)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]


class Scores:
    """A validation that gives these scores, and remembers the weights that it saw."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen = list(scores), []  # type: ignore[var-annotated]

    def __call__(self, heads: Heads) -> Validated:
        assert not heads.training
        self.seen.append({key: value.clone() for key, value in heads.state_dict().items()})
        return Validated({"val_score": self.scores[len(self.seen) - 1]})


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ((0.1, 0.5, 0.4, 0.3, 0.9, 0.9), 2, 4, 2),
        ((0.1, 0.5, 0.4, 0.6, 0.3, 0.2), 2, 6, 4),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5), 3, 4, 1),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 1, 6, 6),
    ],
)
def test_it_stops_early_and_keeps_the_best_epoch_the_first_of_equals(
    scores: tuple[float, ...], patience: int, epochs: int, best: int
) -> None:
    validate = Scores(*scores)
    trained = fit(tiny(), settings(epochs=6, patience=patience), validate=validate)
    assert [entry["val_score"] for entry in trained.history] == list(scores[:epochs])
    assert same(weights(trained), validate.seen[best - 1])
    if best < epochs:
        assert not same(weights(trained), validate.seen[-1])


def test_without_validation_all_epochs_are_run_and_the_last_is_kept() -> None:
    validate = Scores(*np.linspace(0, 1, 3))
    assert same(
        weights(fit(tiny(), settings(patience=1))),
        weights(fit(tiny(), settings(patience=1), validate=validate)),
    )


def test_a_validation_without_a_score_ends_nothing() -> None:
    trained = fit(tiny(), settings(patience=1), validate=lambda heads: Validated({"val_nll": 1.0}))
    assert len(trained.history) == 3
    assert trained.history[0]["val_nll"] == 1.0


@pytest.mark.parametrize("kind", ["separate", "geocells"])
def test_a_rate_that_blows_up_is_an_error_not_heads_of_nan(kind: str) -> None:
    with pytest.raises(GeoError, match="the loss became") as caught:
        fit(tiny(head=kind), settings(learning_rate=1e30, clip_norm=1e30))
    assert "training.learning_rate" in caught.value.hint


def test_weights_that_the_last_step_blew_up_are_found_though_no_loss_was_taken_with_them() -> None:
    with pytest.raises(GeoError, match="the loss became"):
        fit(tiny(), settings(epochs=1, batch_size=96, learning_rate=1e38, clip_norm=1e38, warmup=0))


def test_only_matrices_are_decayed() -> None:
    heads = new_heads(ROWS, region_of(ROWS, tiny()), tiny(), 0)
    decayed, rest = make_adamw(list(heads.parameters()), settings(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0)
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(list(heads.parameters()))


def test_standardising_gives_mean_zero_and_variance_one_over_the_views_that_are_there() -> None:
    garbage = replace(ROWS, views=ROWS.views.clone() * 3 + 1)
    garbage.views[~ROWS.present] = float("nan")
    scale, shift = scale_and_shift(garbage)
    x = garbage.views[ROWS.present].float() * scale + shift
    torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(x.shape[1]), atol=1e-2, rtol=0)
    heads = new_heads(garbage, region_of(ROWS, tiny()), tiny(standardise=True), 0)
    assert torch.equal(heads.scale, scale)
    assert torch.equal(new_heads(garbage, region_of(ROWS, tiny()), tiny(), 0).scale, torch.ones(16))


def test_a_feature_that_is_constant_in_training_says_nothing() -> None:
    views = ROWS.views.clone()
    views[..., 3] = 0.25
    scale, shift = scale_and_shift(replace(ROWS, views=views))
    assert scale[3] == shift[3] == 0
    assert (scale[torch.arange(len(scale)) != 3] > 0).all()


def test_a_dropout_mask_keeps_its_rate_and_its_expectation() -> None:
    mask = keep_mask(torch.Size((1000, 1000)), 0.3, torch.Generator().manual_seed(0))
    assert abs(float((mask == 0).float().mean()) - 0.3) < 0.005
    assert abs(float(mask.mean()) - 1.0) < 0.005


def test_a_dropout_masks_entries_don_t_depend_on_each_other() -> None:
    mask = keep_mask(torch.Size((20_000, 8)), 0.5, torch.Generator().manual_seed(0)) > 0
    together = torch.corrcoef(mask.float().T)
    assert (together - torch.eye(8)).abs().max() < 0.04


# ---------------------------------------------------------------- batches


def source_of(training: Training, model: Model | None = None, rows: Rows = ROWS, seed: int = 0) -> Any:
    model = model or tiny()
    region = region_of(rows, model)
    return make_source(new_heads(rows, region, model, seed), rows, region, model, training, seed)


def test_an_epoch_shows_every_sample_once_in_another_order_each_time() -> None:
    for training in (settings(), settings(view_dropout=1e-9)):
        source = source_of(training)
        epochs = [list(source.epoch()) for _ in range(2)]
        assert [len(batch.labels) for batch in epochs[0]] == [32, 32, 32]
        orders = [torch.cat([batch.points for batch in batches]) for batches in epochs]
        assert not torch.equal(*orders)
        for points in orders:
            wanted = ROWS.points.float()
            assert torch.equal(points.sort(dim=0).values, wanted.sort(dim=0).values)


def test_fusing_once_gives_what_fusing_every_batch_gives() -> None:
    model = tiny(dropout=0.2, standardise=True)
    once, always = settings(), settings(view_dropout=1e-12)
    assert source_of(once, model).fused
    assert not source_of(always, model).fused
    a, b = fit(model, once), fit(model, always)
    for key, value in weights(a).items():
        torch.testing.assert_close(value, weights(b)[key], rtol=1e-4, atol=1e-5)
    assert a.history[-1]["train_loss"] == pytest.approx(b.history[-1]["train_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"fusion": "attention"}, {}),
        ({"directional": True}, {}),
        ({}, {"view_dropout": 0.1}),
        ({}, {"view_swap": 0.1}),
    ],
)
def test_views_that_must_differ_between_epochs_are_not_fused_once(
    model: dict[str, object], training: dict[str, object]
) -> None:
    assert not source_of(settings(**training), tiny(**model)).fused


@pytest.mark.parametrize("absent", [0.0, 0.6])
def test_hidden_views_are_as_many_as_asked_and_never_the_last_ones(absent: float) -> None:
    rows = rows_of(400, views=4, absent=absent)
    source = source_of(settings(view_dropout=0.5, batch_size=50), rows=rows)
    place = {tuple(point.tolist()): row for row, point in enumerate(rows.points.float())}
    hidden = total = 0
    for batch in source.epoch():
        assert batch.present.any(dim=1).all()
        own = torch.tensor([place[tuple(point.tolist())] for point in batch.points])
        # A view that wasn't there isn't invented.
        assert (rows.present[own] | ~batch.present).all()
        assert torch.equal(batch.views, rows.views[own])
        hidden += int((rows.present[own] & ~batch.present).sum())
        total += int(rows.present[own].sum())
    if not absent:
        # A sample that lost all four, one in sixteen, got them back.
        assert hidden / total == pytest.approx(0.5 - 1 / 16, abs=0.05)
    # What the samples themselves hold is untouched.
    assert torch.equal(rows.views, rows_of(400, views=4, absent=absent).views)


@pytest.mark.parametrize("step_views", [0, 2])
def test_a_swapped_view_comes_from_a_sample_of_the_same_cell_and_from_the_same_view(step_views: int) -> None:
    rows, model = rows_of(200, absent=0.3), tiny(head="geocells", fusion="evidence")
    region = region_of(rows, model)
    assert region.cells is not None
    cells = region.cells.owner
    # Each view carries the number of its sample and its own.
    views = torch.arange(200.0)[:, None, None].expand(200, 3, 16).clone()
    views[:, :, 1] = torch.arange(3.0)
    rows = replace(rows, views=views)
    heads = new_heads(rows, region, model, 0)
    source = make_source(heads, rows, region, model, settings(view_swap=0.5, step_views=step_views), 0)
    place = {tuple(point.tolist()): row for row, point in enumerate(rows.points.float())}
    swapped = total = 0
    for batch in source.epoch():
        own = torch.tensor([place[tuple(point.tolist())] for point in batch.points])
        donor = batch.views[:, :, 0].long()
        assert (cells[donor] == cells[own][:, None]).all()
        v = batch.views[:, :, 1].long()
        assert step_views or (v == torch.arange(3)).all()
        assert all(len(set(row)) == (step_views or 3) for row in v.tolist())
        assert torch.equal(batch.labels, rows.labels[own])
        assert batch.present.any(dim=1).all()
        assert torch.equal(batch.present, rows.present[donor, v])
        swapped += int((donor != own[:, None]).sum())
        total += donor.numel()
    shares = torch.bincount(cells).double()
    # A sample may draw itself.
    expected = 0.5 * float((1 - 1 / shares[cells]).mean())
    assert swapped / total == pytest.approx(expected, abs=0.08)


# ---------------------------------------------------------------- looking among the samples


def test_a_gallery_holds_every_sample_by_its_cell() -> None:
    model = tiny(head="geocells")
    region = region_of(ROWS, model)
    heads = fit(model, settings()).heads
    gallery = gallery_of(heads, ROWS, region)
    assert region.cells is not None
    assert torch.equal(gallery.cells, region.cells.owner.sort().values)
    assert gallery.vectors.shape == (len(ROWS), 12)
    assert torch.equal(gallery.points.sort(dim=0).values, ROWS.points.sort(dim=0).values)


def test_a_refiner_is_found_where_neighbours_tell_the_place_and_never_for_a_probe() -> None:
    # Few cells, so that their median is vague; held-out samples are the learnt ones, so that neighbours are perfect.
    model = tiny(head="geocells", most_cells=4, head_hidden=32)
    region = region_of(ROWS, model)
    heads = fit(model, settings(epochs=30)).heads
    refiner = find_refiner(heads, region, ROWS, ROWS)
    assert refiner is not None
    before = heads.predict(ROWS.views, ROWS.present)[1]
    heads.look_up(gallery_of(heads, ROWS, region), refiner)
    after = heads.predict(ROWS.views, ROWS.present)[1]
    from geo_embed.geography import haversine_km, to_degrees

    latitude, longitude = to_degrees(ROWS.points.numpy())

    def km(points: torch.Tensor) -> float:
        return float(haversine_km(points[:, 0], points[:, 1], latitude, longitude).mean())

    assert km(after) < 0.8 * km(before)
    probe = tiny(head="probe")
    assert find_refiner(fit(probe, settings()).heads, region_of(ROWS, probe), ROWS, ROWS) is None


def test_one_class_and_one_sample_are_no_faults() -> None:
    for kind in tuple(HEADS.built_in):
        rows = rows_of(1, classes=1)
        model = tiny(head=kind, standardise=True)
        trained = train(rows, region_of(rows, model, 1), model, settings(), seed=0)
        with torch.no_grad():
            states, points = trained.heads.predict(rows.views, rows.present)
        assert states.tolist() == [[1.0]]
        assert torch.isfinite(points).all()


def test_a_step_looks_at_some_views_that_are_there_and_in_the_last_fifth_of_the_epochs_at_all() -> None:
    rows = rows_of(200, views=5, absent=0.4)
    model, training = tiny(**DRAWN), settings(step_views=2, epochs=10, batch_size=200)
    region = region_of(rows, model)
    source = make_source(new_heads(rows, region, model, 0), rows, region, model, training, 0)
    seen = torch.zeros(200, 5, dtype=torch.bool)
    for epoch in range(1, 11):
        (batch,) = source.epoch()
        width = 2 if epoch <= 8 else 5
        assert batch.views.shape[:2] == batch.present.shape == (200, width)
        # Each sample, found again by its place, shows views of its own that are there, as many as can be.
        for i in range(200):
            row = int((rows.points.float() == batch.points[i]).all(dim=1).nonzero()[0])
            shown = batch.views[i][batch.present[i]]
            which = (shown[:, None] == rows.views[row]).all(dim=2) & rows.present[row]
            assert which.sum(dim=1).tolist() == [1] * len(shown)
            assert len(shown) == min(width, int(rows.present[row].sum()))
            assert len(which.nonzero()[:, 1].unique()) == len(shown)
            seen[row] |= which.any(dim=0)
    assert torch.equal(seen, rows.present)


@pytest.mark.parametrize(
    ("model", "some"),
    [
        ({"fusion": "evidence"}, True),
        ({"fusion": "average"}, True),
        ({"fusion": "concat"}, False),
        ({"fusion": "weighted"}, False),
        ({"fusion": "evidence", "directional": True}, False),
    ],
)
def test_where_it_matters_which_view_is_which_all_are_looked_at(model: dict[str, Any], some: bool) -> None:
    network = tiny(**model)
    source = make_source(
        new_heads(ROWS, region_of(ROWS, network), network, 0),
        ROWS,
        region_of(ROWS, network),
        network,
        settings(step_views=2),
        0,
    )
    assert next(iter(source.epoch())).views.shape[1] == (2 if some else 3)


@pytest.mark.parametrize("fusion", [name for name in FUSIONS.built_in if FUSIONS[name].make.alike])
def test_a_fusion_that_treats_views_alike_gives_the_same_in_any_order(fusion: str) -> None:
    heads = new_heads(ROWS, region_of(ROWS, tiny()), tiny(fusion=fusion), 0).eval()
    order = [2, 0, 1]
    with torch.no_grad():
        vector = heads.fuse(ROWS.views, ROWS.present)[0]
        shuffled = heads.fuse(ROWS.views[:, order], ROWS.present[:, order])[0]
    torch.testing.assert_close(shuffled, vector, rtol=1e-4, atol=1e-5)
