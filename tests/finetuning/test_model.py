"""One model from pictures to an answer: the heads' own answers, and every parameter trained as it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scenes import SAMPLES, VIEWS, model_of, scene

from geo_embed.backbones import backbone as backbones
from geo_embed.config import Finetune, Training
from geo_embed.finetuning.model import GeoModel
from geo_embed.fitting.fit import fit_heads
from geo_embed.heads.layers import dropping
from geo_embed.heads.losses import inverse_frequency
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, load_run


@pytest.fixture
def model(run: Run) -> GeoModel:
    return model_of(run).eval()


def test_views_are_embedded_as_extraction_embeds_them_and_absent_ones_are_zero(model: GeoModel) -> None:
    pixels, present = scene(model)
    with torch.no_grad():
        embeddings = model.encode_views(pixels, present)
        expected = backbones.embed(model.backbone, pixels.flatten(0, 1)).view(SAMPLES, VIEWS, -1)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings[present], expected[present])
    assert not embeddings[~present].any()


def test_what_an_absent_view_holds_changes_nothing(model: GeoModel) -> None:
    pixels, present = scene(model)
    with torch.no_grad():
        before = model.predict(pixels, present)
        pixels[~present] = torch.nan
        after = model.predict(pixels, present)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_the_answer_is_the_heads_own(model: GeoModel, run: Run) -> None:
    pixels, present = scene(model)
    with torch.no_grad():
        out = model(pixels, present)
        states, points = load_heads(run).predict(out["embeddings"], present)
        answer = model.predict(pixels, present)
    torch.testing.assert_close(answer[0], states)
    torch.testing.assert_close(answer[1], points)
    torch.testing.assert_close(out["heads"][0]["logits"].softmax(1), states)


def test_variants_are_averaged(model: GeoModel) -> None:
    pixels, present = scene(model)
    other, _ = scene(model, seed=1)
    with torch.no_grad():
        embedded = [(model.encode_views(variant, present), present) for variant in (pixels, other)]
        states, points = model.predict_variants(embedded)
        answers = [model.predict(variant, present) for variant in (pixels, other)]
    torch.testing.assert_close(states, (answers[0][0] + answers[1][0]) / 2)
    assert points.shape == (SAMPLES, 2)


def truth(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(SAMPLES) % len(run.labels)
    points = torch.nn.functional.normalize(
        torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(2))
    )
    return labels, points


def test_the_loss_is_stage_twos_and_reaches_backbone_fusion_and_heads(config: Any) -> None:
    changed = config.model.model_copy(update={"fusion": "attention"})
    short = config.training.model_copy(update={"epochs": 1})
    fit_heads(config.model_copy(update={"model": changed, "training": short}), name="attentive")
    run = load_run(config.paths.runs_dir, "attentive")
    model = model_of(run)
    model.unfreeze(None)
    pixels, present = scene(model)
    loss = model.loss(model(pixels, present), *truth(run))
    loss.backward()
    bare = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A key's bias moves all keys alike, which attention doesn't notice.
    assert [name for name in bare if not name.endswith("k_proj.bias")] == []


def test_dropout_is_drawn_from_what_is_handed_in(model: GeoModel) -> None:
    pixels, present = scene(model)

    def logits(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            out = model(pixels, present, lambda rate: dropping(0.5, generator))
        class_logits: torch.Tensor = out["heads"][0]["logits"]
        return class_logits

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def test_class_weights_reach_the_losses(run: Run) -> None:
    plain, weighted = model_of(run).eval(), model_of(run, class_weights=True).eval()
    pixels, present = scene(plain)
    labels, points = truth(run)
    weights = inverse_frequency(torch.arange(1, len(run.labels) + 1))
    with torch.no_grad():
        out = plain(pixels, present)
        losses = [
            [
                float(
                    trained.loss(
                        {"heads": [{k: v[i : i + 1] for k, v in out["heads"][0].items()}]},
                        labels[i : i + 1],
                        points[i : i + 1],
                    )
                )
                for i in range(SAMPLES)
            ]
            for trained in (plain, weighted)
        ]
        states_only = model_of(run, gps_weight=0.0).eval()
        bare = [
            float(
                states_only.loss(
                    {"heads": [{k: v[i : i + 1] for k, v in out["heads"][0].items()}]},
                    labels[i : i + 1],
                    points[i : i + 1],
                )
            )
            for i in range(SAMPLES)
        ]
    gained = np.array(losses[1]) - np.array(losses[0])
    expected = (weights[labels].numpy() - 1) * np.array(bare)
    np.testing.assert_allclose(gained, expected, rtol=1e-3, atol=1e-3)


def test_class_weights_reach_the_members_of_best_too(config: Any) -> None:
    best = config.training.model_copy(update={"preset": "best", "budget_seconds": 2.0})
    fit_heads(config.model_copy(update={"training": best}), name="raced", limit=40)
    run = load_run(config.paths.runs_dir, "raced")
    assert all(not loss.class_weights for _, _, loss in model_of(run)._leaves)
    assert all(loss.class_weights for _, _, loss in model_of(run, class_weights=True)._leaves)


def test_a_mixture_answers_as_it_did_until_the_first_step_and_without_its_discriminants_from_then_on(
    config: Any,
) -> None:
    best = config.training.model_copy(update={"preset": "best", "budget_seconds": 1.0})
    fit_heads(config.model_copy(update={"training": best}), name="raced")
    run = load_run(config.paths.runs_dir, "raced")
    whole, model = load_heads(run), model_of(run).eval()
    pixels, present = scene(model)
    left_out = model.left_out()
    assert left_out
    assert all("discriminant" in name for name in left_out)
    with torch.no_grad():
        embeddings = model.encode_views(pixels, present)
        first = model.predict(pixels, present)
        model.leave_frozen()
        then = model.predict(pixels, present)
    torch.testing.assert_close(first, whole.predict(embeddings, present))
    assert not torch.allclose(first[0], then[0])
    assert len(model._leaves) == len(whole.leaves(config.training)) - len(left_out)
    assert sum(weight for _, weight, _ in model._leaves) == pytest.approx(1)


def test_where_only_a_discriminant_answers_it_is_trained(config: Any) -> None:
    settings = config.model.model_copy(update={"head": "discriminant"})
    fit_heads(config.model_copy(update={"model": settings}), name="solved")
    model = model_of(load_run(config.paths.runs_dir, "solved"))
    assert not model.left_out()
    assert [heads.model.head for heads, _, _ in model._leaves] == ["discriminant"]


def test_every_parameter_is_in_one_group(model: GeoModel) -> None:
    groups = model.parameter_groups(Finetune(layer_decay=0.5))
    in_groups = [id(p) for group in groups for p in group["params"]]
    assert len(in_groups) == len(set(in_groups))
    assert set(in_groups) == {id(p) for p in model.parameters()}


def test_norms_biases_and_embeddings_do_not_decay(model: GeoModel) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    for group in model.parameter_groups(Finetune(weight_decay=0.1)):
        for p in group["params"]:
            name = names[id(p)]
            spared = p.ndim == 1 or "norm" in name or "bias" in name or "embedding" in name
            assert group["weight_decay"] == (0.0 if spared else 0.1), name


def test_rates_fall_from_the_output_to_the_input(model: GeoModel) -> None:
    how = Finetune(backbone_lr=1e-4, head_lr=1e-2, layer_decay=0.5)
    rate = {id(p): group["peak"] for group in model.parameter_groups(how) for p in group["params"]}
    assert all(rate[id(p)] == 1e-2 for p in model.panel.parameters())
    layers = backbones.layer_groups(model.tower)
    assert len(layers) == len(backbones.blocks(model.tower)) + 2
    for depth, members in enumerate(reversed(layers)):
        assert all(rate[id(p)] == pytest.approx(1e-4 * 0.5**depth) for p in members)


def test_the_summary_counts_what_is_there_and_what_is_trained(model: GeoModel) -> None:
    model.unfreeze(None)
    counts = model.summary()
    total = sum(p.numel() for p in model.parameters())
    assert counts.backbone + counts.fusion + counts.heads == counts.trainable == total
    model.unfreeze(0)
    fewer = model.summary()
    assert fewer.heads < fewer.trainable < total
    assert fewer.backbone == counts.backbone


def test_a_gallery_of_frozen_embeddings_is_forgotten(config: Any) -> None:
    """Points are then those of the heads alone."""
    model = config.model.model_copy(update={"head": "geocells"})
    training = config.training.model_copy(update={"epochs": 2, "refine": True})
    fit_heads(config.model_copy(update={"model": model, "training": training}), name="refined")
    made = model_of(load_run(config.paths.runs_dir, "refined"))
    made.leave_frozen()
    assert all(heads.refiner is None for heads, _, _ in made._leaves)
    assert not any("gallery" in name for name in made.state_dict())
    assert isinstance(made._leaves[0][2], Training)
