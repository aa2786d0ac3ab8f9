"""TensorBoard, Weights & Biases and Trackio show what a run has; whatever becomes of them, the run is made."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rows import planted_arrays
from small import command, files

from geo_embed.bench.dataset import write_planted
from geo_embed.bench.planted import planted
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.finetuning.finetune import finetune
from geo_embed.fitting.fit import fit_heads
from geo_embed.fitting.sweep import sweep
from geo_embed.runs.remove import remove_runs
from geo_embed.runs.run import load_run
from geo_embed.settings import with_changes
from geo_embed.tracking import tracked

if TYPE_CHECKING:
    from conftest import Country, Geo

# Values by key and step, the last ones by key, and the settings by key.
Shown = tuple[dict[str, dict[int, float]], dict[str, float], dict[str, Any]]


def of_tensorboard(folder: Path) -> Shown:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    scalars = {key: events.Scalars(key) for key in events.Tags()["scalars"]}
    steps = {key: {event.step: event.value for event in all_} for key, all_ in scalars.items()}
    final = {key: steps.pop(key)[0] for key in list(steps) if key.startswith("final/")}
    (text,) = events.Tensors("settings/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    return steps, final, dict(line.strip().split(" = ", 1) for line in lines)


def of_wandb(file: Path) -> Shown:
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    steps: dict[str, dict[int, float]] = defaultdict(dict)
    final: dict[str, float] = {}
    settings: dict[str, Any] = {}
    for data in leveldb_records(file.read_bytes()[7:]):
        record = records.Record.FromString(data)
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            if not key.startswith("_"):
                steps[key][record.history.step.num] = json.loads(item.value_json)
        for item in record.summary.update:
            key = item.key or "/".join(item.nested_key)
            if key.startswith("final/"):
                final[key] = json.loads(item.value_json)
        settings |= {item.key: item.value_json for item in record.run.config.update}
    return steps, final, settings


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, in blocks of 32 KiB of which the first has lost the seven bytes of a header before it."""
    at, whole = 0, b""
    while at + 7 <= len(log):
        left = -(at + 7) % 32768
        if 0 < left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, at)
        whole += log[at + 7 : at + 7 + size]
        at += 7 + size
        # A whole one, or the last part of one.
        if kind in (1, 4):
            yield whole
            whole = b""


def of_trackio(name: str) -> Shown:
    api = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    steps: dict[str, dict[int, float]] = defaultdict(dict)
    final: dict[str, float] = {}
    for entry in api.get_logs("geo-embed", name):
        for key, value in entry.items():
            if key.startswith("final/"):
                final[key] = value
            elif isinstance(value, float):
                steps[key][entry["step"]] = value
    return steps, final, api.get_run_config("geo-embed", name)


def quick(config: Config, **changes: Any) -> Config:
    """Two epochs, and what else is asked for by group__key."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return with_changes(config, {"training.preset": "pigeon", "training.epochs": 2} | dotted)


def events(runs: Path, name: str) -> Path:
    """The one folder of a run's event files."""
    (folder,) = (runs / f"{name}.tensorboard").iterdir()
    return folder


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_what_is_shown_is_the_runs_history_its_metrics_and_its_settings(
    tracker: str, geo: Geo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline; and stdout has its one JSON object and nothing else. No pictures: Trackio's test has a session of its own, for which they would be painted."""
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    environment = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    settings = write_planted(planted(60, seed=0, classes=4, dim=12), tmp_path / "planted")
    settings |= {"paths.runs_dir": tmp_path / "runs", "training.preset": "pigeon", "training.epochs": 3}
    assignments = [f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()]
    arguments = (*(word for setting in assignments for word in ("--set", setting)), "fit-heads", "--seeds", 2)
    ran = geo(
        *(*arguments, "--name", "first", "--track", tracker, "--json"),
        env=environment,
        # What Trackio prints at Python's end, it prints here.
        command=(sys.executable, "-m", "geo_embed") if tracker == "trackio" else None,
    )
    assert ran.code == 0, ran.err
    assert ran.json["run"] == "first"
    assert "warning" not in ran.err
    if tracker == "tensorboard":
        steps, final, settings = of_tensorboard(events(tmp_path / "runs", "first"))
    elif tracker == "wandb":
        (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
        steps, final, settings = of_wandb(file)
    else:
        steps, final, settings = of_trackio("first")
    history = load_run(tmp_path / "runs", "first").read_history()
    assert len(history) == 6
    for row in history.to_dict("records"):
        for key in ("train_loss", "val_score", "learning_rate"):
            shown = steps[f"{key}/fold-0-seed-{row['seed']}"][int(row["epoch"])]
            assert shown == pytest.approx(row[key], rel=1e-6), key
    assert final["final/score"] == pytest.approx(ran.json["val"]["score"], rel=1e-6)
    assert final["final/within_km/750"] == pytest.approx(ran.json["val"]["within_km"]["750"], rel=1e-6)
    assert str(settings["training.epochs"]) == "3"
    assert not [key for key in settings if key.startswith("paths.")]
    (line,) = [line for line in ran.err.splitlines() if line.startswith("tracking: ")]
    assert tracker in line


def test_by_default_nothing_is_shown_and_none_is_imported(config: Config) -> None:
    before = set(sys.modules)
    fit_heads(quick(config), **planted_arrays(views=4), name="first")
    assert {path.name for path in config.paths.runs_dir.iterdir()} == {"first"}
    assert not {"wandb", "tensorboard", "trackio"} & (set(sys.modules) - before)


def test_a_sweep_shows_its_trials_and_those_tried_before_and_then_its_winner(config: Config) -> None:
    pytest.importorskip("tensorboard")
    tracking = quick(config, tracking__tracker="tensorboard")
    runs = config.paths.runs_dir
    done = sweep(tracking, trials=2, eta=2)
    steps, final, _ = of_tensorboard(events(runs, "sweep.sweep"))
    scores = {trial["trial"]: trial["score"] for trial in done.trials}
    # The last of each trial; of two one goes on.
    shown = dict(zip(steps["trial"].values(), steps["score"].values(), strict=True))
    assert shown == pytest.approx(scores)
    assert len(steps["score"]) == 3
    assert final["final/score"] == pytest.approx(done.best["score"])
    assert "val_score" in of_tensorboard(events(runs, "sweep"))[0]
    (first,) = (runs / "sweep.sweep.tensorboard").iterdir()
    first.rename(runs / "before")
    remove_runs(runs, ["sweep"])
    assert not (runs / "sweep.tensorboard").exists()
    assert sweep(tracking, trials=2, eta=2).computed == 0
    assert of_tensorboard(events(runs, "sweep.sweep"))[0]["score"] == steps["score"]


def test_a_finetuning_shows_each_epoch_as_it_ends_and_gone_on_with_those_before(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    changes = {"finetune__epochs": 2, "finetune__batch_size": 8, "finetune__patience": 9}
    tracking = quick(config, tracking__tracker="tensorboard", **changes)
    runs = config.paths.runs_dir
    loop: Any = importlib.import_module("geo_embed.finetuning.loop")
    train = loop._train_epoch

    def interrupted(task: Any, state: Any, *rest: Any) -> None:
        if state.progress.epoch:
            raise KeyboardInterrupt
        train(task, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(tracking, name="tuned", limit=16)
    assert list(of_tensorboard(events(runs, "tuned"))[0]["val_score"]) == [1]
    assert list(of_tensorboard(events(runs, "tuned-heads"))[0]["val_score"]) == [1, 2]
    events(runs, "tuned").rename(runs / "before")
    done = finetune(tracking, name="tuned", limit=16)
    steps, final, settings = of_tensorboard(events(runs, "tuned"))
    history = load_run(runs, "tuned").read_history()
    assert list(steps["val_score"]) == [1, 2]
    assert list(steps["val_score"].values()) == pytest.approx(history["val_score"].tolist())
    assert final["final/score"] == pytest.approx(done.val["score"])
    assert settings["finetune.batch_size"] == "8"


def test_of_processes_that_train_together_the_first_alone_shows_anything(config: Config) -> None:
    pytest.importorskip("tensorboard")
    for first in (False, True):
        with tracked(quick(config, tracking__tracker="tensorboard"), "x", ("model",), first=first) as log:
            log(1, {"score": 0.5})
        assert (config.paths.runs_dir / "x.tensorboard").exists() is first


def at_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.mkdir()
    (runs / "first.tensorboard").write_text("no folder")


def half_way(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter

    def full(*_: object) -> None:
        raise OSError(28, "No space left\non device")

    monkeypatch.setattr(writer, "add_scalar", full)


@pytest.mark.parametrize("fails", [at_once, half_way])
def test_a_tracker_that_fails_is_said_once_and_the_run_is_the_same(
    fails: Callable[[Path, pytest.MonkeyPatch], None],
    country: Country,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorboard")
    fails(tmp_path / "runs", monkeypatch)
    asked = ("-q", *country.options(tmp_path), "--set", "training.epochs=2", "fit-heads", "--json")
    ran = command(capsys, *asked, "--name", "first", "--track", "tensorboard")
    assert ran.code == 0
    (warning,) = ran.err.splitlines()
    assert warning.startswith("warning: tensorboard fails, and the work goes on without it: ")
    assert command(capsys, *asked, "--name", "plain").json["val"] == ran.json["val"]
    heads = (files(tmp_path / "runs" / name)["heads.safetensors"] for name in ("first", "plain"))
    assert len(set(heads)) == 1


def test_what_was_shown_of_a_fit_that_fails_stays_and_numbers_alone_are_shown(config: Config) -> None:
    pytest.importorskip("tensorboard")

    def fit() -> None:
        with tracked(quick(config, tracking__tracker="tensorboard"), "x", ("model",)) as log:
            log(1, {"score": 0.5, "loss": float("nan"), "state": "Iowa", "nothing": None})
            raise GeoError("mine")

    with pytest.raises(GeoError, match="mine"):
        fit()
    assert of_tensorboard(events(config.paths.runs_dir, "x"))[0] == {"score": {1: 0.5}}


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
@pytest.mark.parametrize("words", [["fit-heads"], ["sweep"], ["finetune"]], ids=" ".join)
def test_one_that_is_not_installed_is_an_error_before_any_work(
    tracker: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There is no data either, which nobody comes to notice."""
    monkeypatch.setitem(sys.modules, tracker, None)
    for asked in (["--track", tracker], ["--set", f"tracking.tracker={tracker}"]):
        ran = command(capsys, *words, *asked)
        assert ran.code == 1
        error, hint = ran.err.splitlines()
        assert error == f"error: {tracker} is not installed (tracking.tracker = {tracker})"
        assert f"pip install {tracker}" in hint
    assert list(tmp_path.iterdir()) == []
