"""Stage 3, from pictures: it starts where stage 2 ended, is exact about what a step is, and ends as a run like any other."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import saved_predictions
from torch import Tensor

from geo_embed.cache.find import find_store
from geo_embed.cache.store import open_store, read_store
from geo_embed.config import Config
from geo_embed.data.augment import tta_views
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.extraction.for_run import extract_for_run
from geo_embed.files import lock
from geo_embed.finetuning.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from geo_embed.finetuning.finetune import Finetuned, finetune
from geo_embed.finetuning.model import GeoModel
from geo_embed.finetuning.prepare import merge_config
from geo_embed.fitting.epochs import deal_parts
from geo_embed.fitting.fit import fit_heads
from geo_embed.heads.refine import Refiner
from geo_embed.metrics import metrics
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.pictures import predict_images
from geo_embed.prediction.predict import predict_split
from geo_embed.prediction.submission import submit
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import Run, load_run
from geo_embed.seeding import set_seed

if TYPE_CHECKING:
    from conftest import Country

prepare, training_state, step, loop, validation = (
    import_module(f"geo_embed.finetuning.{name}") for name in ("prepare", "state", "step", "loop", "validate")
)

# Two steps of two passes an epoch, with `having`.
TRAINED = 16
# An embedding in float16, and heads over it, in place of the pixels' own: nobody's probability moves by more.
CACHED = 2e-3


def having(config: Config, *, training: dict[str, Any] | None = None, **changes: Any) -> Config:
    """The settings with changes to how the backbone is trained; small without any."""
    small: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 4,
        "accumulate": 2,
        "backbone_lr": 1e-4,
        "patience": 9,
    }
    tuned = config.finetune.model_validate(small | changes)
    fitted = config.training.model_copy(update=training or {})
    return config.model_copy(update={"finetune": tuned, "training": fitted})


def tune(
    config: Config, name: str = "tuned", *, limit: int | None = TRAINED, init: str = "first"
) -> Finetuned:
    return finetune(config, name=name, init=init, limit=limit)


def weights(config: Config, name: str = "tuned") -> dict[str, Tensor]:
    """All that was trained."""
    path = config.paths.runs_dir / name
    tower = load_file(path / "backbone" / "model.safetensors")
    return {f"tower.{key}": value for key, value in tower.items()} | load_file(path / "heads.safetensors")


def history(config: Config, name: str = "tuned") -> pd.DataFrame:
    return pd.read_parquet(config.paths.runs_dir / name / "history.parquet")


def scores(config: Config, name: str = "tuned") -> dict[str, Any]:
    content = json.loads((config.paths.runs_dir / name / "metrics.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def always_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch passes for the best, to every part of the validation samples, so that the run is what was trained, however little it was."""
    choose = loop._choose

    def chosen(task: Any, state: Any, epoch: int, validation: Any) -> bool:
        better = dataclasses.replace(validation, scores=validation.scores | {"val_score": 2.0 + epoch})
        return choose(task, state, epoch, better if epoch else validation)

    passed = itertools.count()
    monkeypatch.setattr(loop, "_choose", chosen)
    monkeypatch.setattr(loop, "scores_without", lambda *_: [float(next(passed))] * 5)


# How it begins


def test_the_pictures_score_what_the_cache_scored(config: Config, run: Run) -> None:
    done = tune(having(config))
    recorded = scores(config, "first")["chosen"]["score"]
    assert done.frozen_score == pytest.approx(recorded, abs=0.002)
    assert scores(config)["frozen_score"] == done.frozen_score
    # Which held-out samples have a near twin in training is the initial run's to say.
    near = load_run(config.paths.runs_dir, "first").read_split()["near_twin"]
    assert done.twins is not None
    assert done.twins == scores(config)["twins"]
    assert done.twins["samples"] == near.sum()


def refused(config: Config, **how: Any) -> GeoError:
    """The error of a training that must not take a step."""

    def never(*_: object) -> float:
        raise AssertionError("it began to train")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_train_epoch", never)
        with pytest.raises(GeoError) as caught:
            finetune(config, **{"name": "tuned", "init": "first", **how})
    assert not (config.paths.runs_dir / "tuned" / "provenance.json").exists()
    return caught.value


@pytest.fixture
def breakable(own: Country, fitted: Path, tmp_path: Path) -> Config:
    """Settings over a country that the test may break, with the run fitted on it."""
    config = own.config(tmp_path)
    shutil.copytree(fitted, config.paths.runs_dir / "first")
    return config


def held_out(config: Config) -> pd.DataFrame:
    """The held-out samples' rows of the training CSV."""
    table = pd.read_csv(config.paths.csv("train"))
    split = pd.read_parquet(config.paths.runs_dir / "first" / "split.parquet")
    return table[table["sample_id"].isin(split["sample_id"][split["part"] == "val"])]


def test_another_backbone_under_the_same_name_is_refused(breakable: Config) -> None:
    fit_heads(having(breakable, training={"epochs": 1}), name="first", overwrite=True)
    path = Path(breakable.model.backbone_name) / "model.safetensors"
    tensors = load_file(path)
    tensors["visual_projection.weight"] *= 1.01
    save_file(tensors, path, metadata={"format": "pt"})
    assert "has other weights than the one this run was fitted on" in refused(having(breakable)).what


def test_pictures_that_changed_since_they_were_cached_are_refused(breakable: Config) -> None:
    names = held_out(breakable).filter(regex="^image_").to_numpy().ravel()
    root = breakable.paths.images("train")
    contents = [(root / name).read_bytes() for name in names]
    for name, content in zip(names, contents[16:] + contents[:16], strict=True):
        (root / name).write_bytes(content)
    error = refused(having(breakable))
    assert "before any step the pictures score" in error.what
    assert "geo extract" in error.hint


def test_a_cache_that_changed_since_the_run_was_fitted_is_refused(own: Country, breakable: Config) -> None:
    store = open_store(own.store())
    store.embeddings[:] = np.roll(np.asarray(store.embeddings[:]), 7, axis=0)
    error = refused(having(breakable))
    assert "the cache scores" in error.what
    assert "geo cache verify" in error.hint


def test_a_csv_that_changed_since_the_run_was_fitted_is_refused(breakable: Config) -> None:
    path = breakable.paths.csv("train")
    table = pd.read_csv(path)
    table.loc[3, "latitude"] += 0.5
    table.to_csv(path, index=False)
    assert "the training CSV has changed" in refused(having(breakable)).what


def test_a_picture_that_is_gone_is_said_before_hours_are_spent(breakable: Config) -> None:
    split = pd.read_parquet(breakable.paths.runs_dir / "first" / "split.parquet")
    sample = split["sample_id"][split["part"] == "train"].iloc[0]
    table = pd.read_csv(breakable.paths.csv("train"))
    name = table.loc[table["sample_id"] == sample, "image_east"].iloc[0]
    (breakable.paths.images("train") / name).unlink()
    error = refused(having(breakable))
    assert f"first sample {sample}, view east: no such file" in error.what
    assert "geo extract" in error.hint


def test_a_run_that_does_not_exist_is_refused(config: Config) -> None:
    assert "there is no run 'first'" in refused(config).what


def test_a_split_that_is_not_cached_is_refused(own: Country, breakable: Config) -> None:
    shutil.rmtree(own.store())
    error = refused(breakable)
    assert "no train store has the fingerprint" in error.what
    assert "geo extract --split train" in error.hint


def test_a_run_of_folds_is_refused(config: Config) -> None:
    fit_heads(having(config, training={"folds": 2, "epochs": 1}), name="first")
    assert "made of folds" in refused(config).what


def test_an_ensemble_is_refused(config: Config, run: Run) -> None:
    fit_heads(having(config, training={"epochs": 1}), name="second")
    ensemble(config, ["first", "second"], method="average", name="both")
    assert "an ensemble" in refused(config, init="both").what


def test_imported_embeddings_are_refused(config: Config, country: Country, tmp_path: Path) -> None:
    from geo_embed.cache.exchange import cache_import

    cached = np.asarray(open_store(country.store(), writable=False).embeddings[:])
    np.save(tmp_path / "all.npy", cached)
    paths = config.paths.model_copy(update={"cache_dir": tmp_path / "cache"})
    config = config.model_copy(update={"paths": paths})
    cache_import(config, tmp_path / "all.npy", "train", "mine")
    imported = config.model_copy(update={"model": config.model.model_copy(update={"backbone_name": "mine"})})
    fit_heads(having(imported, training={"epochs": 1}), name="first")
    assert "fitted on imported embeddings" in refused(config).what


def test_a_run_is_not_trained_from_itself(config: Config, run: Run) -> None:
    assert "from itself" in refused_but_there(config)


def refused_but_there(config: Config) -> str:
    with pytest.raises(GeoError) as caught:
        finetune(config, name="first", init="first", overwrite=True)
    assert (config.paths.runs_dir / "first" / "provenance.json").is_file()
    return caught.value.what


def test_without_a_run_heads_are_fitted_first(config: Config) -> None:
    done = finetune(having(config, training={"epochs": 1}), name="tuned", limit=TRAINED)
    assert load_run(config.paths.runs_dir, "tuned").provenance["init"] == "tuned-heads"
    assert done.frozen_score == pytest.approx(scores(config, "tuned-heads")["val"]["score"], abs=0.002)
    shutil.rmtree(config.paths.runs_dir / "tuned")
    with pytest.raises(GeoError, match="heads of other training settings"):
        finetune(having(config, training={"epochs": 2}), name="tuned", limit=TRAINED)


def test_other_settings_do_not_go_on_with_an_unfinished_training(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tune(having(config))
    with pytest.raises(GeoError, match=r"other settings: finetune\.ema"):
        tune(having(config, ema=0.5))
    with pytest.raises(GeoError, match=r"other settings: training\.seed, training\.split_seed"):
        tune(having(config, training={"seed": 5}))
    assert tune(having(config)).epochs == 1


def test_a_run_that_another_process_trains_now_is_left_alone(config: Config, run: Run) -> None:
    runs = config.paths.runs_dir
    (runs / "tuned" / "checkpoints").mkdir(parents=True)
    with lock(runs / ".tuned.lock", busy="busy", where=runs, hint=""):
        for overwrite in (False, True):
            error = refused(having(config), overwrite=overwrite)
            assert error.what.startswith("another process is training this run now: process ")
            assert error.hint == "wait until it is done, or choose another --name"
    assert tune(having(config), limit=8).epochs == 1
    assert sorted(path.name for path in runs.iterdir()) == ["first", "tuned"], (
        "the lock went with the training"
    )


def test_a_refused_beginning_leaves_nothing(config: Config, run: Run) -> None:
    (run.path / "metrics.json").write_text("{}", encoding="utf-8")
    assert "val: Field required" in refused(having(config)).what
    assert [path.name for path in config.paths.runs_dir.iterdir()] == ["first"]


def test_overwriting_begins_afresh_and_a_name_is_taken_without_it(config: Config, run: Run) -> None:
    tune(having(config, epochs=2), limit=8)
    with pytest.raises(GeoError, match="a run of this name exists"):
        tune(having(config), limit=8)
    done = finetune(having(config), name="tuned", init="first", limit=8, overwrite=True)
    assert done.epochs == len(history(config)) == 1
    with pytest.raises(GeoError, match="there is no run 'second'"):
        finetune(having(config), name="tuned", init="second", overwrite=True)
    assert load_run(config.paths.runs_dir, "tuned").name == "tuned", (
        "a refusal must not cost the run that is there"
    )


# What a step is


def test_passes_add_up_to_the_step_that_they_divide(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmentation and dropout on: what a sample is changed to doesn't depend on its pass, only on its step."""
    always_better(monkeypatch)
    losses = {}
    for name, size, passes in (("one-pass", 16, 1), ("four", 4, 4), ("other-steps", 5, 2)):
        how = having(config, epochs=2, batch_size=size, accumulate=passes)
        tune(how, name)
        losses[name] = history(config, name)["train_loss"]
    np.testing.assert_allclose(losses["four"], losses["one-pass"], rtol=1e-5)
    assert not np.allclose(losses["other-steps"], losses["one-pass"], rtol=1e-4)
    for key, value in weights(config, "one-pass").items():
        torch.testing.assert_close(value, weights(config, "four")[key], rtol=1e-3, atol=1e-4)


def test_an_epochs_losses_are_means_of_what_each_part_adds(config: Config) -> None:
    """By weights that don't move, over pictures as they are, they are those of the cached embeddings."""
    dry = config.model_copy(
        update={
            "model": config.model.model_copy(update={"dropout": 0.0}),
            "training": config.training.model_copy(
                update={"epochs": 2, "state_loss": "cross_entropy", "state_weight": 0.6, "gps_weight": 3.0}
            ),
        }
    )
    fit_heads(dry, name="first")
    as_they_are = {
        **{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
        **{"crop": 1.0, "blur": 0.0, "view_dropout": 0.0, "flip": 0.0},
    }
    tune(having(config, backbone_lr=0.0, head_lr=0.0, augment=as_they_are))
    run = load_run(config.paths.runs_dir, "first")
    split, truth = run.read_split(), pd.read_csv(config.paths.csv("train")).set_index("sample_id")
    ids = split["sample_id"][split["part"] == "train"].to_numpy()[:TRAINED]
    (part,) = load_heads(run).parts
    store = read_store(find_store(config, "train"))
    rows = [store.sample_id.tolist().index(str(sample)) for sample in ids]
    with torch.no_grad():
        out = part(torch.from_numpy(store.values[rows]), torch.from_numpy(store.present[rows]))
    labels = torch.from_numpy(run.labels.encode(truth.loc[ids, "state_idx"].to_numpy()))
    places = truth.loc[ids, ["latitude", "longitude"]].to_numpy()
    # A twentieth of the places' extent is added at either end.
    spans = 1.1 * np.ptp(places, axis=0)
    state = 0.6 * float(torch.nn.functional.cross_entropy(out["logits"], labels))
    gps = 3 * float((((out["points"].numpy() - places) / spans) ** 2).mean())
    (entry,) = history(config).to_dict("records")
    assert entry["train_state_loss"] == pytest.approx(state, rel=5e-3)
    assert entry["train_gps_loss"] == pytest.approx(gps, rel=5e-3)
    assert entry["train_loss"] == pytest.approx(state + gps, rel=5e-3)


def test_out_of_memory_halves_the_passes_and_changes_nothing_else(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    always_better(monkeypatch)
    tune(having(config, epochs=2, batch_size=16, accumulate=1), "roomy")
    forward, sizes = GeoModel.forward, []

    def tight(self: GeoModel, pixels: Tensor, *arguments: Any) -> dict[str, Any]:
        # From the second step on, there is room for five.
        if len(pixels) > 5 and len(sizes) >= 1:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(pixels))
        return forward(self, pixels, *arguments)

    monkeypatch.setattr(GeoModel, "forward", tight)
    capsys.readouterr()
    tune(having(config, epochs=2, batch_size=16, accumulate=1), "tight")
    assert sizes[:5] == [16, 4, 4, 4, 4]
    err = capsys.readouterr().err
    assert err.count("out of memory: 4 samples per pass from now on, 4 passes per step") == 1
    np.testing.assert_allclose(
        history(config, "tight")["train_loss"], history(config, "roomy")["train_loss"], rtol=1e-5
    )
    for key, value in weights(config, "roomy").items():
        torch.testing.assert_close(value, weights(config, "tight")[key], rtol=1e-3, atol=1e-4)


def test_out_of_memory_for_a_single_sample_ends_with_advice(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(GeoModel, "forward", full)
    with pytest.raises(GeoError, match="out of memory even with one sample per pass") as caught:
        tune(having(config))
    assert "finetune.checkpointing" in caught.value.hint


def test_interrupted_it_goes_on_to_the_same_bits_whatever_was_drawn_meanwhile(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tower's own dropout draws from the global generator, whose state no checkpoint holds."""
    always_better(monkeypatch)
    new_model, take_step = training_state.new_model, loop._optimizer_step

    def with_dropout(task: Any) -> GeoModel:
        model: GeoModel = new_model(task)
        for module in model.tower.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.3  # type: ignore[assignment]
        return model

    monkeypatch.setattr(training_state, "new_model", with_dropout)
    how = having(config, epochs=2, checkpoint_minutes=1e-9, ema=0.5)
    set_seed(1)
    tune(how, "whole")

    done: list[None] = []

    def halt(*arguments: Any) -> None:
        if len(done) == 3:
            raise GeoError("pulled the plug")
        done.append(take_step(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_optimizer_step", halt)
        with pytest.raises(GeoError, match="pulled the plug"):
            tune(how, "halted")
    # A checkpoint of the version before held more than is needed.
    runs = config.paths.runs_dir
    shutil.copytree(runs / "halted", runs / "older")
    latest = latest_checkpoint(runs / "older" / "checkpoints")
    assert latest is not None
    saved = load_checkpoint(latest)
    older = {**saved.state, "rng": {"torch": "AAAA"}, "optimizer": {"groups": [], "values": {}}}
    save_checkpoint(latest.parent, dataclasses.replace(saved, step=3, state=older), keep_last=2, best=False)
    for name in ("halted", "older"):
        set_seed(2)
        tune(how, name)
        assert history(config, name).equals(history(config, "whole"))
        for key, value in weights(config, "whole").items():
            assert torch.equal(weights(config, name)[key], value), key


def test_every_sample_is_learnt_from_once_an_epoch(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    accumulated = loop.accumulate_gradients

    def watched(*arguments: Any) -> dict[str, float]:
        for share in arguments[-1]:
            seen.extend(share.rows.tolist())
        losses: dict[str, float] = accumulated(*arguments)
        return losses

    monkeypatch.setattr(loop, "accumulate_gradients", watched)
    tune(having(config, epochs=2), limit=21)
    first, second = seen[:21], seen[21:]
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 21
    assert first != second


def test_a_nan_is_skipped_counted_and_named(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accumulated, calls = loop.accumulate_gradients, iter(range(100))

    def odd(*arguments: Any) -> dict[str, float]:
        losses: dict[str, float] = accumulated(*arguments)
        return losses | {"gps": float("nan")} if next(calls) == 1 else losses

    monkeypatch.setattr(loop, "accumulate_gradients", odd)
    tune(having(config, epochs=2))
    assert scores(config)["skipped_steps"] == 1
    assert history(config)["skipped_steps"].tolist() == [1.0, 0.0]
    err = capsys.readouterr().err
    assert "step 2 is skipped: its loss is NaN or infinite (samples " in err
    assert all(bool(value.isfinite().all()) for value in weights(config).values())


def test_gradients_that_are_not_finite_skip_the_step_too(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulated, calls = loop.accumulate_gradients, iter(range(100))

    def odd(task: Any, model: GeoModel, *arguments: Any) -> dict[str, float]:
        losses: dict[str, float] = accumulated(task, model, *arguments)
        if next(calls) == 0:
            next(p.grad for p in model.parameters() if p.grad is not None).fill_(torch.inf)
        return losses

    monkeypatch.setattr(loop, "accumulate_gradients", odd)
    tune(having(config))
    assert scores(config)["skipped_steps"] == 1


def test_three_nans_in_a_row_end_it_with_a_good_checkpoint(config: Config, run: Run) -> None:
    with pytest.raises(GeoError, match="3 steps in a row, last for samples") as caught:
        tune(having(config, head_lr=1e30, batch_size=2))
    assert "lower finetune.backbone_lr and head_lr" in caught.value.hint
    latest = latest_checkpoint(config.paths.runs_dir / "tuned" / "checkpoints")
    assert latest is not None
    kept = load_checkpoint(latest)
    assert all(
        bool(value.isfinite().all()) for key, value in kept.tensors.items() if key.startswith("model/")
    )


# What comes of it


def test_interpolated_all_the_way_back_it_is_the_frozen_run(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_better(monkeypatch)
    tune(having(config, wise_ft=0, ema=0.5))
    assert scores(config)["best_epoch"] == 1
    frozen = load_file(run.path / "heads.safetensors")
    frozen |= {
        f"tower.{key}": value
        for key, value in load_file(Path(config.model.backbone_name) / "model.safetensors").items()
    }
    for key, value in weights(config).items():
        assert torch.equal(value, frozen[key]), key


def test_interpolated_half_way_it_lies_in_the_middle(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_better(monkeypatch)
    for name, share in (("start", 0), ("half", 0.5), ("end", 1)):
        tune(having(config, wise_ft=share), name)
    start, half, end = (weights(config, name) for name in ("start", "half", "end"))
    assert any(not torch.equal(start[key], end[key]) for key in start)
    for key in start:
        torch.testing.assert_close(half[key], (start[key] + end[key]) / 2)


@pytest.mark.parametrize("decay", [0.25, 0.9999])
def test_the_average_of_the_weights_is_what_its_decay_says_and_forgets_the_start_in_a_short_training(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    always_better(monkeypatch)
    path: list[dict[str, Tensor]] = []
    take_step = loop._optimizer_step

    def watched(task: Any, state: Any, *arguments: Any) -> None:
        if not path:
            path.append({key: p.detach().clone() for key, p in state.parameters.items()})
        take_step(task, state, *arguments)
        path.append({key: p.detach().clone() for key, p in state.parameters.items()})

    monkeypatch.setattr(loop, "_optimizer_step", watched)
    tune(having(config, ema=decay))
    key = next(key for key in path[0] if key.endswith("hidden.weight"))
    # Shares of the start and of what each step left, multiplied out.
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(len(path) - 1)]
    shares = [(1 - ([0.0, *decays])[k]) * math.prod(decays[k:]) for k in range(len(path))]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] < 0.02
    mean = sum(share * after[key] for share, after in zip(shares, path, strict=True))
    torch.testing.assert_close(weights(config)[key.removeprefix("panel.")], mean)


def test_no_epoch_that_is_worse_than_the_frozen_run_is_taken(config: Config, run: Run) -> None:
    done = tune(having(config, epochs=9, patience=2, head_lr=0.1))
    assert done.frozen_score is not None
    assert (history(config)["val_score"] < done.frozen_score).all()
    assert done.val["score"] == pytest.approx(done.frozen_score, abs=1e-9)
    assert done.epochs == 2, "two epochs without a better score are enough"
    assert scores(config)["best_epoch"] == 0


def test_the_best_epoch_is_taken_not_the_last(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate, scripted = loop.validate, iter([0.0, 0.1, 0.3, 0.2, 0.25, *[0.9] * 9])
    kept: list[dict[str, Tensor]] = []

    def validated(task: Any, model: GeoModel, stop: Any) -> Any:
        kept.append({key: value.clone() for key, value in model.panel.state_dict().items()})
        measured = validate(task, model, stop)
        return measured and dataclasses.replace(
            measured, scores=measured.scores | {"val_score": next(scripted)}
        )

    for module in (prepare, loop):
        monkeypatch.setattr(module, "validate", validated)
    monkeypatch.setattr(prepare, "_SAME_SCORE", 1.0)
    done = tune(having(config, epochs=9, patience=2), limit=16)
    assert done.epochs >= 4, "parts of the validation samples may look on"
    assert scores(config)["best_epoch"] == 2
    heads = load_file(config.paths.runs_dir / "tuned" / "heads.safetensors")
    assert all(torch.equal(heads[key], kept[2][key]) for key in heads)


def test_each_part_of_the_validation_samples_is_answered_by_the_epoch_that_the_others_choose(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = loop.validate
    epochs: list[Any] = []

    def watched(task: Any, model: GeoModel, stop: Any) -> Any:
        epochs.append(validate(task, model, stop))
        return epochs[-1]

    for module in (prepare, loop):
        monkeypatch.setattr(module, "validate", watched)
    done = tune(having(config, epochs=4, head_lr=0.01))
    predictions, truth = saved_predictions(config.paths.runs_dir / "tuned" / "val_predictions.parquet")
    assert truth is not None
    part = deal_parts(len(truth), config.training.split_seed)
    for p in range(5):
        others = [metrics(e.predictions.take(part != p), truth.take(part != p))["score"] for e in epochs]
        answers = epochs[int(np.argmax(others))].predictions
        np.testing.assert_allclose(
            predictions.probabilities[part == p], answers.probabilities[part == p], atol=1e-6
        )
        np.testing.assert_allclose(predictions.latitude[part == p], answers.latitude[part == p], atol=1e-4)
    assert done.val["score"] == pytest.approx(metrics(predictions, truth)["score"])
    best = max(e.scores["val_score"] for e in epochs)
    assert scores(config)["chosen"]["score"] == pytest.approx(best, abs=1e-6)


def test_a_gallery_is_kept_where_no_epoch_is_better(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the frozen backbone: the frozen run counts with it, the trained ones can't have it."""
    cells = config.model.model_copy(update={"head": "geocells"})
    geocells = config.model_copy(update={"model": cells})
    monkeypatch.setattr("geo_embed.fitting.fit.find_refiner", lambda *_: Refiner(2, 3, 0.1, 500.0))
    fit_heads(having(geocells, training={"refine": True, "epochs": 2}), name="first")
    recipe = json.loads((config.paths.runs_dir / "first" / "recipe.json").read_text())
    assert recipe["parts"][0]["heads"]["refiner"] is not None
    done = tune(having(config, head_lr=0.05))
    assert scores(config)["best_epoch"] == 0
    assert done.val["score"] == pytest.approx(scores(config, "first")["chosen"]["score"], abs=0.002)
    assert json.loads((config.paths.runs_dir / "tuned" / "recipe.json").read_text()) == recipe


def in_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (step, training_state):
        monkeypatch.setattr(module, "amp_dtype", lambda _: dtype)


def test_bfloat16_learns_about_the_same(config: Config, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: passes in half precision, weights and heads in float32."""
    tune(having(config), "whole")
    in_dtype(torch.bfloat16, monkeypatch)
    tune(having(config), "half")
    single, half = (history(config, name)["train_loss"] for name in ("whole", "half"))
    np.testing.assert_allclose(half, single, rtol=0.02)
    assert not np.array_equal(single, half)
    assert all(value.dtype == torch.float32 for value in weights(config, "half").values())


def test_float16_skips_what_overflows_until_its_scale_fits(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_better(monkeypatch)
    in_dtype(torch.float16, monkeypatch)
    tune(having(config, batch_size=2, accumulate=1), limit=12)
    assert history(config)["skipped_steps"].sum() == 0
    trained, before = weights(config), load_file(run.path / "heads.safetensors")
    assert all(bool(value.isfinite().all()) for value in trained.values())
    assert any(not torch.equal(trained[key], before[key]) for key in before)


@pytest.mark.parametrize("option", ["checkpointing", "channels_last"])
def test_an_option_of_speed_or_memory_changes_no_result(config: Config, run: Run, option: str) -> None:
    tune(having(config), "plain")
    tune(having(config, **{option: True}), "other")
    np.testing.assert_allclose(
        history(config, "other")["train_loss"], history(config, "plain")["train_loss"], rtol=1e-5
    )


def test_one_sample_is_enough_to_be_held_out(config: Config) -> None:
    """It has no others to choose its epoch, and keeps the start's."""
    fit_heads(having(config, training={"val_split": 0.005, "epochs": 1}), name="first")
    done = tune(having(config), limit=8)
    assert (done.val["samples"], done.epochs) == (1, 1)
    assert done.val["score"] == pytest.approx(done.frozen_score)


def test_with_nothing_held_out_the_last_epoch_is_taken(config: Config) -> None:
    fit_heads(having(config, training={"val_split": 0.001, "epochs": 1}), name="first")
    done = tune(having(config, epochs=2, patience=1))
    assert (done.frozen_score, done.epochs) == (None, 2)
    assert scores(config)["best_epoch"] == 2
    assert evaluate(config, load_run(config.paths.runs_dir, "tuned"))["samples"] == 0


def test_last_layers_are_trained_alone(config: Config, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    always_better(monkeypatch)
    tune(having(config, last_layers=1))
    before = load_file(Path(config.model.backbone_name) / "model.safetensors")
    changed = {
        key
        for key, value in weights(config).items()
        if key.startswith("tower.") and not torch.equal(value, before[key.removeprefix("tower.")])
    }
    layers = sorted({int(key.split("layers.")[1].split(".")[0]) for key in before if "layers." in key})
    assert any(f"layers.{layers[-1]}." in key for key in changed)
    assert "tower.visual_projection.weight" in changed
    assert not any(f"layers.{k}." in key or "embeddings" in key for key in changed for k in layers[:-1])


def test_gradual_unfreezing_begins_with_the_last_layers(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    train_epoch = loop._train_epoch

    def watched(task: Any, state: Any, *arguments: Any) -> None:
        trained.append(sum(p.requires_grad for p in state.model.tower.parameters()))
        train_epoch(task, state, *arguments)

    monkeypatch.setattr(loop, "_train_epoch", watched)
    tune(having(config, gradual=True, epochs=2), limit=8)
    assert (
        trained[0]
        < trained[1]
        == len(list(load_file(Path(config.model.backbone_name) / "model.safetensors")))
    )


def test_the_rate_rises_then_falls_to_nothing(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    take_step = loop._optimizer_step

    def watched(task: Any, state: Any, *arguments: Any) -> None:
        take_step(task, state, *arguments)
        rates.append(max(group["lr"] for group in state.optimizer.param_groups))

    monkeypatch.setattr(loop, "_optimizer_step", watched)
    tune(having(config, batch_size=2, accumulate=1, epochs=2, warmup=0.3, head_lr=0.5), limit=10)
    assert len(rates) == 10
    assert rates[0] < rates[1] < rates[2] < rates[3] == pytest.approx(0.5)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.05


@pytest.fixture(scope="module")
def tuned(country: Country, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of a trained backbone, with both splits embedded by it."""
    config = country.config(tmp_path_factory.mktemp("tuned"))
    shutil.copytree(fitted, config.paths.runs_dir / "first")
    paths = config.paths.model_copy(update={"cache_dir": config.paths.runs_dir.parent / "cache"})
    shutil.copytree(country.cache, paths.cache_dir)
    config = config.model_copy(update={"paths": paths})
    with pytest.MonkeyPatch.context() as patch:
        always_better(patch)
        tune(having(config, epochs=2))
    backbone = str(config.paths.runs_dir / "tuned" / "backbone")
    for split in ("train", "test"):
        extract(
            config.model_copy(update={"model": config.model.model_copy(update={"backbone_name": backbone})}),
            split,
        )
    return config


def test_predicting_from_the_new_cache_gives_the_predictions_of_training(tuned: Config) -> None:
    run = load_run(tuned.paths.runs_dir, "tuned")
    predictions, _ = saved_predictions(run.path / "val_predictions.parquet")
    cached, _ = predict_split(tuned, run, "train")
    rows = [list(cached.sample_id).index(sample) for sample in predictions.sample_id]
    np.testing.assert_allclose(cached.probabilities[rows], predictions.probabilities, atol=CACHED)
    np.testing.assert_allclose(cached.latitude[rows], predictions.latitude, atol=0.05)
    np.testing.assert_allclose(cached.longitude[rows], predictions.longitude, atol=0.05)
    first, _ = saved_predictions(tuned.paths.runs_dir / "first" / "val_predictions.parquet")
    assert np.abs(first.probabilities - predictions.probabilities).max() > 5 * CACHED, "it learnt something"


def test_it_is_a_run_like_any_other(tuned: Config) -> None:
    run = load_run(tuned.paths.runs_dir, "tuned")
    assert not (run.path / "checkpoints").exists()
    assert evaluate(tuned, run, by=["class", "view"])["score"] == scores(tuned)["val"]["score"]
    predictions, path = predict_split(tuned, run, "test")
    assert path.is_file()
    table = pd.read_csv(tuned.paths.csv("test"))
    pictures = [tuned.paths.images("test") / name for name in table.filter(regex="^image_").iloc[0]]
    alone = predict_images(tuned, run, pictures)
    np.testing.assert_allclose(alone.probabilities[0], predictions.probabilities[0], atol=CACHED)
    assert submit(tuned, run)[1].valid


def test_it_answers_for_pictures_that_its_backbone_has_never_seen_by_embedding_them_first(
    tuned: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(tuned.paths.runs_dir, "tuned")
    expected = predict_split(tuned, run, "test")[0]
    paths = tuned.paths.model_copy(update={"cache_dir": tmp_path / "cache"})
    again = predict_split(tuned.model_copy(update={"paths": paths}), run, "test", embed=extract_for_run)[0]
    np.testing.assert_array_equal(again.probabilities, expected.probabilities)
    assert f"tuned needs the test pictures embedded by {run.path / 'backbone'}" in capsys.readouterr().err


def test_one_places_pictures_are_looked_at_in_the_variants_of_the_training(tuned: Config) -> None:
    run = load_run(tuned.paths.runs_dir, "tuned")
    table = pd.read_csv(tuned.paths.csv("test"))
    pictures = [tuned.paths.images("test") / name for name in table.filter(regex="^image_").iloc[0]]
    plain = predict_images(tuned, run, pictures)
    looking = tuned.model_copy(update={"inference": tuned.inference.model_copy(update={"tta": True})})
    several = predict_images(looking, run, pictures)
    assert several.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert not np.allclose(several.probabilities, plain.probabilities, atol=1e-6)
    uncropped = tuned.finetune.model_copy(
        update={"augment": tuned.finetune.augment.model_copy(update={"crop": 1.0})}
    )
    same = dataclasses.replace(run, config=run.config.model_copy(update={"finetune": uncropped}))
    np.testing.assert_array_equal(predict_images(looking, same, pictures).probabilities, plain.probabilities)


def test_it_joins_an_ensemble_with_the_run_that_it_started_from(tuned: Config) -> None:
    made = ensemble(tuned, ["first", "tuned"], method="average", name="both", overwrite=True)
    assert made.val["samples"] == scores(tuned)["val"]["samples"]
    assert submit(tuned, load_run(tuned.paths.runs_dir, "both"))[1].valid


def test_it_goes_on_from_a_run_that_was_trained_before(tuned: Config) -> None:
    done = finetune(having(tuned), name="again", init="tuned", limit=8, overwrite=True)
    assert done.frozen_score == pytest.approx(scores(tuned)["chosen"]["score"], abs=0.002)


def test_a_panel_of_seeds_is_trained_together(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_heads(having(config, training={"seeds": 2, "epochs": 2}), name="first")
    always_better(monkeypatch)
    tune(having(config))
    before = load_file(config.paths.runs_dir / "first" / "heads.safetensors")
    after = load_file(config.paths.runs_dir / "tuned" / "heads.safetensors")
    for part in ("parts.0.", "parts.1."):
        assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith(part))


@pytest.mark.slow
def test_a_run_of_the_best_preset_is_trained(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    best = having(config, training={"preset": "best", "budget_seconds": 2.0})
    fit_heads(best, name="first")
    recorded = scores(config, "first")["val"]["score"]
    always_better(monkeypatch)
    done = tune(best)
    assert done.frozen_score == pytest.approx(recorded, abs=0.002)
    assert history(config)["train_loss"].notna().all()

    def members(name: str) -> list[str]:
        described = json.loads((config.paths.runs_dir / name / "recipe.json").read_text())
        return [member["model"]["head"] for member in described["parts"][0]["best"]["members"]]

    trained = [k for k, head in enumerate(members("first")) if "discriminant" not in head]
    assert 0 < len(trained) < len(members("first"))
    assert members("tuned") == [members("first")[k] for k in trained]
    before = load_file(config.paths.runs_dir / "first" / "heads.safetensors")
    after = load_file(config.paths.runs_dir / "tuned" / "heads.safetensors")
    for now, k in enumerate(trained):
        old, new = f"parts.0.parts.{k}.", f"parts.0.parts.{now}."
        keys = [key for key in before if key.startswith(old)]
        assert any(not torch.equal(before[key], after[new + key.removeprefix(old)]) for key in keys), k


@pytest.mark.slow
def test_a_run_of_the_best_preset_that_no_epoch_beats_stays_whole(config: Config) -> None:
    best = having(config, training={"preset": "best", "budget_seconds": 1.0}, head_lr=0.1)
    fit_heads(best, name="first")
    tune(best)
    first, tuned = (config.paths.runs_dir / name for name in ("first", "tuned"))
    assert scores(config)["best_epoch"] == 0
    before, after = (load_file(path / "heads.safetensors") for path in (first, tuned))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_variants_at_the_end_are_those_of_the_training(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops: list[float] = []

    def watched(pixels: Tensor, present: Tensor, how: Any, names: Any) -> list[tuple[Tensor, Tensor]]:
        crops.append(how.crop)
        variants = tta_views(pixels, present, how, names)
        assert len(variants) == 3
        return variants

    monkeypatch.setattr(validation, "tta_views", watched)
    looking = config.model_copy(update={"inference": config.inference.model_copy(update={"tta": True})})
    done = tune(having(looking, augment={"crop": 0.5, "flip": 0.5}), limit=8)
    assert set(crops) == {0.5}
    assert done.val["nll"] != history(config)["val_nll"].iloc[0]


def test_class_weights_and_seed_are_those_asked_for_now(config: Config, run: Run) -> None:
    plain = merge_config(config, run).training
    asked = merge_config(having(config, training={"class_weights": True, "seed": 5}), run).training
    assert (plain.class_weights, asked.class_weights, asked.seed) == (False, True, 5)
    elsewhere = merge_config(having(config, training={"split_seed": 6}), run).training
    assert elsewhere.split_seed == run.config.training.split_seed == 0, "the split is the run's"
