"""A sweep finds good heads by rows that report nothing, survives a kill, and says how to make its winner again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from small import command

from geo_embed.cache.exchange import cache_import
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.fitting import fit
from geo_embed.fitting import stacked as stack
from geo_embed.fitting.examples import find_prior, open_training_data, to_rows
from geo_embed.fitting.space import parse_space
from geo_embed.fitting.sweep import Sweep, rungs, sweep
from geo_embed.runs.run import load_run
from geo_embed.settings import resolve, with_changes

if TYPE_CHECKING:
    from conftest import Country, Geo

# `geo_embed.sweep` is the verb.
room: Any = import_module("geo_embed.fitting.sweep")

SMALL = {
    "training.learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "model.dropout": [0.0, 0.3],
    "model.head": ["separate", "geocells"],
    "model.head_hidden": [16, 32],
}


def short(country: Country, work: Path, **changes: Any) -> Config:
    """A small budget, and a rate that most others are better than."""
    settings = {"training__epochs": 3, "training__batch_size": 32, "training__learning_rate": 1e-6}
    return country.config(work, **(settings | changes))


def searched(config: Config, space: dict[str, Any] | None = None, **options: Any) -> Sweep:
    arguments = {"trials": 4, "eta": 2} | options
    return sweep(config, space=parse_space(space or SMALL, config), **arguments)


def untimed(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


def trainings(monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> list[stack.TrainingJob]:
    """The trainings of a sweep as they are begun; after `most` of them somebody presses Ctrl-C."""
    seen: list[stack.TrainingJob] = []
    train_all = stack.train_all

    def watched(jobs: Sequence[stack.TrainingJob], advance: Any = None) -> Any:
        if most is not None and len(seen) >= most:
            raise KeyboardInterrupt
        seen.extend(jobs)
        return train_all(jobs, advance)

    for module in (room, fit):
        monkeypatch.setattr(module, "train_all", watched)
    return seen


# ---------------------------------------------------------------- halving


def test_the_rungs_are_those_of_successive_halving() -> None:
    assert rungs(27, 27, 3) == [(27, 1), (9, 3), (3, 9), (1, 27)]
    assert rungs(27, 20, 3) == [(27, 2), (9, 7), (3, 20)]
    assert rungs(16, 8, 2) == [(16, 1), (8, 2), (4, 4), (2, 8)]
    assert rungs(4, 1, 3) == [(4, 1)]
    assert rungs(1, 20, 3) == [(1, 20)]


def test_the_better_half_goes_on_with_more_epochs_from_scratch_and_the_best_wins(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trainings(monkeypatch)
    found = searched(short(country, tmp_path))
    saved = json.loads((tmp_path / "runs" / "sweep.sweep.json").read_text())["results"]
    first, second = ([result for result in saved if result["rung"] == rung] for rung in (0, 1))
    ranked = sorted(first, key=lambda result: -result["score"])
    assert [result["trial"] for result in first] == [0, 1, 2, 3]
    assert [result["trial"] for result in second] == [result["trial"] for result in ranked[:2]]
    assert [result["epochs"] for result in [*first, *second]] == [2] * 4 + [3] * 2
    # The last training is that of the run.
    assert [job.training.epochs for job in seen] == [2] * 4 + [3] * 3
    best = max(second, key=lambda result: result["score"])
    assert {key: found.best[key] for key in best} == best
    assert [result["trial"] for result in found.trials][:2] == sorted(
        (result["trial"] for result in second),
        key=lambda trial: -next(o["score"] for o in second if o["trial"] == trial),
    )
    assert len({result["trial"] for result in found.trials}) == 4
    assert found.trials[0] == {k: v for k, v in found.best.items() if k not in ("run", "val", "twins")}
    assert (found.computed, found.reused) == (6, 0)
    assert found.best["settings"]
    run = load_run(tmp_path / "runs", "sweep")
    assert run.config.training.learning_rate == found.best["settings"]["training.learning_rate"]
    assert run.config.training.epochs == 3


def test_a_probe_knows_no_epochs_and_meets_the_others_on_the_last_rung(
    country: Country, tmp_path: Path
) -> None:
    space = {"model.head": ["probe"], "training.l2": [0.1, 0.001], "training.learning_rate": [1e-3, 2e-3]}
    found = searched(short(country, tmp_path), space, trials=3)
    assert {(result["trial"], result["rung"], result["epochs"]) for result in found.trials} == {
        (0, 0, 3),
        (1, 0, 3),
        (2, 0, 3),
    }
    assert found.computed == 3
    # What has no effect in a probe isn't set.
    assert all(
        result["settings"].keys() == {"model.head", "training.l2"}
        for result in found.trials
        if result["trial"]
    )


# ---------------------------------------------------------------- who chooses


@pytest.mark.parametrize("validation", ["random", "spatial"])
def test_the_samples_that_the_score_is_reported_on_take_no_part_in_the_choice(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: str
) -> None:
    config = short(country, tmp_path, training__validation=validation, training__epochs=1)
    splits = []
    made = room.make_job

    def watched(dataset: fit.Dataset, split: fit.Split, *rest: Any, **options: Any) -> stack.TrainingJob:
        splits.append((dataset.examples, split))
        job: stack.TrainingJob = made(dataset, split, *rest, **options)
        return job

    monkeypatch.setattr(room, "make_job", watched)
    found = searched(config)
    table = pd.read_parquet(tmp_path / "runs" / "sweep" / "split.parquet")
    reported = set(table["sample_id"].astype(str)[table["part"] == "val"])
    assert len(reported) == found.best["val"]["samples"] > 0
    assert len(splits) == 4
    for examples, split in splits:
        train, val = (set(examples.sample_id[rows].astype(str)) for rows in (split.train, split.val))
        assert train
        assert len(val) > 10
        assert not train & val
        assert not (train | val) & reported
        assert train | val | reported == set(examples.sample_id.astype(str))


def test_without_samples_that_choose_nothing_there_is_no_sweep(country: Country, tmp_path: Path) -> None:
    with pytest.raises(GeoError, match="none is left that chooses nothing") as caught:
        searched(short(country, tmp_path, training__folds=3))
    assert caught.value.hint.startswith("sweep with --set training.folds=1")
    with pytest.raises(GeoError, match="4 samples are too few for a sweep"):
        searched(short(country, tmp_path), limit=4)
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("after", [1, 5, 6])
def test_a_sweep_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(
    country: Country, tmp_path: Path, after: int
) -> None:
    whole = searched(short(country, tmp_path / "whole"))
    config = short(country, tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        trainings(patch, most=after)
        with pytest.raises(KeyboardInterrupt):
            searched(config)
    assert not (tmp_path / "killed" / "runs" / "sweep").exists()
    with pytest.MonkeyPatch.context() as patch:
        seen = trainings(patch)
        resumed = searched(config)
    assert (resumed.computed, resumed.reused) == (6 - after, after)
    assert len(seen) == 6 - after + 1
    assert untimed(resumed.trials) == untimed(whole.trials)
    assert untimed([resumed.best]) == untimed([whole.best])
    heads = [tmp_path / work / "runs" / "sweep" / "heads.safetensors" for work in ("whole", "killed")]
    assert heads[0].read_bytes() == heads[1].read_bytes()


def test_a_sweep_that_is_done_is_not_done_again(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = searched(short(country, tmp_path))
    made = tmp_path / "runs" / "sweep" / "heads.safetensors"
    before = made.stat().st_mtime_ns
    seen = trainings(monkeypatch)
    again = searched(short(country, tmp_path))
    assert (seen, again.computed, again.reused) == ([], 0, 6)
    assert (again.best, again.trials, again.command) == (first.best, first.trials, first.command)
    assert made.stat().st_mtime_ns == before


def test_an_import_of_other_embeddings_is_another_sweeps(country: Country, tmp_path: Path) -> None:
    """One of an earlier version, which didn't record what the import held, goes on."""
    config = short(
        country,
        tmp_path,
        model__backbone_name="mine",
        paths__cache_dir=str(tmp_path / "cache"),
        training__epochs=2,
    )
    rng = np.random.default_rng(0)
    shape = (len(pd.read_csv(country.train_csv)), 4, 8)

    def bring_in() -> None:
        np.save(tmp_path / "in.npy", rng.normal(size=shape).astype(np.float32))
        cache_import(config, tmp_path / "in.npy", "train", "mine", overwrite=True)

    bring_in()
    searched(config, trials=2)
    bring_in()
    with pytest.raises(GeoError, match=r"begun with other settings: store\.content_sample was"):
        searched(config, trials=2)
    path = tmp_path / "runs" / "sweep.sweep.json"
    state = json.loads(path.read_text())
    del state["header"]["store"]["content_sample"]
    path.write_text(json.dumps(state))
    assert searched(config, trials=2).computed == 0


def test_other_settings_are_refused_by_name_and_fresh_begins_anew(country: Country, tmp_path: Path) -> None:
    searched(short(country, tmp_path))
    for changes, options, what in (
        ({}, {"trials": 5}, "trials was 4, is 5"),
        ({}, {"eta": 3}, "eta was 2, is 3"),
        ({"training__epochs": 2}, {}, "training.epochs was 3, is 2"),
        ({"training__seed": 1}, {}, "training.seed was 0, is 1"),
        ({"training__split_seed": 1}, {}, "training.split_seed was 0, is 1"),
        ({}, {"limit": 100}, "limit was null, is 100"),
        ({}, {"space": SMALL | {"model.dropout": [0.0, 0.4]}}, "space.model.dropout.values was"),
    ):
        with pytest.raises(GeoError, match="begun with other settings") as caught:
            searched(short(country, tmp_path, **changes), **options)
        assert what in str(caught.value)
        assert "--fresh" in caught.value.hint
    anew = searched(short(country, tmp_path, training__seed=1), fresh=True)
    assert (anew.computed, anew.reused) == (6, 0)
    assert load_run(tmp_path / "runs", "sweep").config.training.seed == 1


def test_a_sweep_begun_before_the_split_had_its_own_seed_was_split_by_the_seed_of_its_weights(
    country: Country, tmp_path: Path
) -> None:
    config = short(country, tmp_path, training__seed=1, training__split_seed=1)
    searched(config, trials=2)
    path = tmp_path / "runs" / "sweep.sweep.json"
    state = json.loads(path.read_text())
    del state["header"]["settings"]["training.split_seed"]
    path.write_text(json.dumps(state))
    assert searched(config, trials=2).computed == 0
    with pytest.raises(GeoError, match=r"training\.split_seed was 1, is 0"):
        searched(short(country, tmp_path, training__seed=1), trials=2)


def test_a_state_file_that_is_damaged_is_an_error_not_a_fresh_start(country: Country, tmp_path: Path) -> None:
    config = short(country, tmp_path)
    searched(config)
    state = tmp_path / "runs" / "sweep.sweep.json"
    whole = json.loads(state.read_text())

    def forged(key: str, value: object) -> str:
        results = [whole["results"][0] | {key: value}, *whole["results"][1:]]
        return json.dumps(whole | {"results": results})

    for damage in (
        *("{", '{"format": 0}', "[]", "[" * 100_000, json.dumps(whole | {"results": [None]})),
        *(forged("trial", 10**6), forged("trial", -1), forged("trial", "x"), forged("score", "high")),
        *(forged("score", float("nan")), forged("epochs", None), json.dumps(whole | {"results": 3})),
    ):
        state.write_text(damage)
        with pytest.raises(GeoError, match="can't be read") as caught:
            searched(config)
        assert caught.value.where == str(state)


def test_a_run_that_is_not_the_sweeps_is_never_replaced_unasked(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(country, tmp_path)
    fit.fit_heads(short(country, tmp_path, training__seed=5), name="mine")
    mine = (tmp_path / "runs" / "mine" / "heads.safetensors").read_bytes()
    seen = trainings(monkeypatch)
    with pytest.raises(GeoError, match="a run of this name exists"):
        searched(config, name="mine")
    assert not seen
    # Made while the sweep was away.
    searched(config, name="swept")
    fit.fit_heads(short(country, tmp_path, training__seed=5), name="swept", overwrite=True)
    with pytest.raises(GeoError, match="isn't the sweep's winner"):
        searched(config, name="swept")
    assert (tmp_path / "runs" / "mine" / "heads.safetensors").read_bytes() == mine
    searched(config, name="mine", fresh=True)
    assert (tmp_path / "runs" / "mine" / "heads.safetensors").read_bytes() != mine
    # The leave to replace it was for that time.
    fit.fit_heads(short(country, tmp_path, training__seed=5), name="mine", overwrite=True)
    with pytest.raises(GeoError, match="isn't the sweep's winner"):
        searched(config, name="mine")


def test_the_state_file_is_not_taken_for_a_run(country: Country, tmp_path: Path) -> None:
    searched(short(country, tmp_path), name="swept")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["swept", "swept.sweep.json"]
    assert load_run(tmp_path / "runs", None).name == "swept"


# ---------------------------------------------------------------- failures


def test_a_trial_that_blows_up_is_noted_and_the_others_go_on(country: Country, tmp_path: Path) -> None:
    config = short(country, tmp_path, training__clip_norm=1e30)
    found = searched(config, {"training.learning_rate": [1e30, 2e-3]}, trials=3)
    failed = [result for result in found.trials if result["error"]]
    assert [result["settings"] for result in failed] == [{"training.learning_rate": 1e30}]
    assert failed[0]["score"] is None
    assert found.trials[-1] == failed[0]
    assert found.best["error"] is None
    assert found.best["val"]["score"] > 0


def test_where_every_trial_fails_it_is_an_error_and_no_run(country: Country, tmp_path: Path) -> None:
    config = short(country, tmp_path, training__clip_norm=1e30, training__learning_rate=1e30)
    with pytest.raises(GeoError, match="all 2 trials failed, trial 0 first: ") as caught:
        searched(config, {"training.learning_rate": [1e29]}, trials=2)
    assert "--fresh" in caught.value.hint
    assert not (tmp_path / "runs" / "sweep").exists()


def test_trials_of_one_shape_share_a_program_on_a_gpu_and_end_where_they_would_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here on a CPU: the stacking is the same."""
    import torch

    data = open_training_data(config).examples
    split = room.inner_split(data, fit.plan(data.places, config.training)[0].train, config.training)
    tensors = to_rows(data, split.train, torch.device("cpu"))
    prior = find_prior(data, split.train)
    task = room.InnerTask(fit.Dataset(data, prior, torch.device("cpu")), split, tensors)
    changes: list[dict[str, Any]] = [
        {"training.learning_rate": 1e-3},
        {"model.head": "dual"},
        {"training.learning_rate": 3e-3, "training.tau_km": 100.0},
        {"training.learning_rate": 1e30},
    ]
    base: dict[str, Any] = {"training.epochs": 2, "training.clip_norm": 1e30, "model.head_hidden": 16}
    changed = [with_changes(config, base | change) for change in changes]
    settings = {trial: (result.model, result.training) for trial, result in enumerate(changed)}
    alone = room._groups(task, settings, stack=False)
    assert [list(group) for group in alone] == [[0], [1], [2], [3]]
    together = room._groups(task, settings, stack=True)
    assert [list(group) for group in together] == [[0, 2, 3], [1]]
    expected = {
        result.trial: result for group in alone for result in room.train_group(task, settings, group, 0, 2)
    }

    stacked = []

    def train_all(jobs: Sequence[stack.TrainingJob]) -> Any:
        stacked.append(len(jobs))
        return stack.train_stacked(jobs)

    monkeypatch.setattr(room, "train_all", train_all)
    del together[0][3]
    got = {
        result.trial: result for group in together for result in room.train_group(task, settings, group, 0, 2)
    }
    assert stacked == [2, 1]
    for trial, result in got.items():
        assert result.score == pytest.approx(expected[trial].score, abs=0.02)
    with_a_wild_one = room._groups(task, settings, stack=True)[0]
    results = room.train_group(task, settings, with_a_wild_one, 0, 2)
    assert [result.error is None for result in results] == [True, True, False]
    assert expected[3].error is not None


# ---------------------------------------------------------------- the command


def test_the_printed_command_makes_the_winner_again_bit_for_bit(
    country: Country, tmp_path: Path, geo: Geo
) -> None:
    """Also where geo.toml is gone by then: what it said is in the command."""
    (tmp_path / "geo.toml").write_text(
        "[training]\nepochs = 2\ntau_km = 120.0\nlearning_rate = 0.5\npreset = 'best'\n"
    )
    (tmp_path / "space.toml").write_text(
        '"training.learning_rate" = {low = 1e-3, high = 1e-2, log = true}\n'
        '"model.head" = ["geocells", "dual"]\n"model.head_hidden" = [16, 24]\n'
    )
    options = [*country.options(tmp_path / "out of the way"), "--json"]
    ran = geo(
        *options, "sweep", "--space", "space.toml", "--trials", 4, "--eta", 2, "--name", "swept", "--seed", 3
    )
    assert ran.code == 0, ran.err
    assert {"best", "trials"} <= ran.json.keys()
    best = ran.json["best"]
    assert {"trial", "settings", "score", "run", "val"} <= best.keys()
    assert best["run"] == "swept"
    assert best["settings"]
    assert ran.err.count("rung 1 of 2, 1 epoch, trial") == 4
    assert "sweep: 6 of 6, rung 2 of 2" in ran.err
    assert f"best so far {ran.json['best']['score']:.4f}" in ran.err.splitlines()[-2]
    (tmp_path / "geo.toml").unlink()
    words = shlex.split(ran.json["command"])
    assert words[0] == "geo"
    assert "training.tau_km=120.0" in words
    again = geo("--json", *words[1:])
    assert again.code == 0, again.err
    assert again.json["run"] == "swept-again"
    assert again.json["val"] == best["val"]
    heads = [
        tmp_path / "out of the way" / "runs" / run / "heads.safetensors" for run in ("swept", "swept-again")
    ]
    assert heads[0].read_bytes() == heads[1].read_bytes()


def test_the_command_says_every_setting_that_was_given_so_that_a_shell_and_the_parser_read_it_back(
    tmp_path: Path,
) -> None:
    (tmp_path / "geo.toml").write_text('[training]\ntau_km = 75.0\n[paths]\nruns_dir = "it\'s here"\n')
    arguments = [
        "training.tau_km=300",
        'model.view_names=["left","r 2"]',
        'model.backbone_name="7"',
        "model.gps_box.lat_min=-10.5",
    ]
    config = resolve(None, arguments)[0]
    changes = {"training.learning_rate": 0.00123, "model.fusion": "evidence"}
    winner = with_changes(room.plain(config), changes)
    words = shlex.split(room.rerun_command(config, winner, changes, "swept", 50))
    assert words[-5:] == ["fit-heads", "--name", "swept-again", "--limit", "50"]
    assert "training.tau_km=300.0" in words
    assert "training.preset=pigeon" in words
    settings = [word for word, option in zip(words[2:], words[1:], strict=False) if option == "--set"]
    assert resolve(None, settings)[0] == winner


def test_quiet_says_nothing_and_errors_come_before_any_training(
    country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.toml").write_text('"model.fusio" = ["average"]\n')
    options = [*country.options(tmp_path), "--set", "training.epochs=1"]
    bad = command(capsys, *options, "sweep", "--space", "space.toml")
    assert bad.code == 1
    assert "unknown setting 'model.fusio' (space.toml)" in bad.err
    assert "model.fusion" in bad.err
    assert not (tmp_path / "runs").exists()
    (tmp_path / "space.toml").write_text('"model.head_hidden" = [8, 16]\n')
    quiet = command(capsys, *options, "-q", "sweep", "--space", "space.toml", "--trials", "2")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_a_terminal_sees_a_table(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    found = searched(short(country, tmp_path))
    shown = capsys.readouterr().err
    assert shown.split()[:5] == ["trial", "rung", "epochs", "score", "settings"]
    assert f"{found.best['score']:.4f}" in shown
    assert "2/2" in shown
