"""`geo sweep`: the head configuration that suits these embeddings best, by successive halving on inner validation.

Random configurations are trained for a few epochs; the best 1/η of them go on with η times the epochs, until a few have had
all `training.epochs` (Jamieson & Talwalkar, AISTATS 2016; the rungs are those of a bracket of Hyperband, Li et al., JMLR
2018). Each rung trains from scratch: with warm-up and cosine a longer budget is another schedule, not the same one
continued. A probe knows no epochs: it would beat every network on the first rung, and meets them on the last.

Rows held out of the training rows choose. The run's own validation samples don't take part: the winner alone meets them,
when the run is made.

The same seed gives the same winner, killed and gone on with or not: configurations are drawn before anything is trained, a
rung begins when the one before is whole, and one JSON file holds every result. Optuna promises neither (docs/heads.md).
"""

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from geo_embed import __version__
from geo_embed.config import Config, Model, Training
from geo_embed.console import counted, duration, on_terminal, say, standing
from geo_embed.data.holdout import inner_held_out
from geo_embed.devices import pick_device, with_torch_switches
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import file_sha256, first_fault, read_json, write_json
from geo_embed.fitting.examples import Examples, Rows, TrainingData, find_prior, open_training_data
from geo_embed.fitting.fit import Dataset, Split, fit_run, for_sources, make_job, plan
from geo_embed.fitting.space import SPACE, Space, draw, parse_space
from geo_embed.fitting.stacked import TrainingJob, stackable, train_all
from geo_embed.registry import HEADS
from geo_embed.runs.run import load_run, only_run_writer
from geo_embed.settings import as_text, is_set, known_keys, value_at, with_changes
from geo_embed.tracking import Log, require_tracker, tracked

# Of the state file: one of another number can't be gone on with.
_FORMAT = 1
# A sweep begun before there were these settings goes on.
_LATER_SETTINGS = {"model.plugins": (), "model.backbones": (), "model.head_features": "own"}
# Trainings that share a program, at most: bounded memory.
_TOGETHER = 16


@dataclass(frozen=True)
class Result:
    """One configuration on one rung: its best epoch's score on the inner validation, or why it has none."""

    trial: int
    rung: int
    epochs: int
    score: float | None
    state_score: float | None
    gps_score: float | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Sweep:
    """What `sweep` found.

    Attributes:
        best: the winner: trial, settings, its last `Result`, run; val, the metrics on samples that chose nothing, and
            twins, as of a `Fit`.
        trials: each configuration with its settings and last result, the best first.
        command: makes the winner's run again.
        computed, reused: trainings made now, and found in the state file.
        seconds: that this took.
    """

    best: dict[str, Any]
    trials: list[dict[str, Any]]
    command: str
    computed: int
    reused: int
    seconds: float


@dataclass
class _State:
    """What has been tried, on disk after each result. `replace`: whether a run of this name may be replaced."""

    path: Path
    header: dict[str, Any]
    replace: bool
    results: dict[tuple[int, int], Result] = field(default_factory=dict)

    def add(self, results: Sequence[Result]) -> None:
        """Note results, on disk before this returns."""
        self.results |= {(result.trial, result.rung): result for result in results}
        content = {
            "format": _FORMAT,
            "replace": self.replace,
            "header": self.header,
            "results": [asdict(result) for result in self.results.values()],
        }
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, content)


# Of a configuration.
Settings = tuple[Model, Training]
# Trials that are trained together, with the jobs that told so.
Group = dict[int, TrainingJob | None]


@dataclass(frozen=True)
class InnerTask:
    """What every configuration is tried on: the examples, their inner split, and its training rows."""

    dataset: Dataset
    split: Split
    rows: Rows

    def job(self, settings: Settings) -> TrainingJob:
        """The training of a configuration."""
        return make_job(self.dataset, self.split, *settings, self.rows, cross_fit=False)


# Trains the groups of a rung: of the task, the settings of each trial, the groups, the rung and its epochs; gives each group's results.
Train = Callable[[InnerTask, Mapping[int, Settings], Sequence[Group], int, int], Iterator[list[Result]]]


@with_torch_switches
def sweep(
    config: Config,
    *,
    space: Space | None = None,
    trials: int = 27,
    eta: int = 3,
    name: str = "sweep",
    limit: int | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
    train: Train | None = None,
) -> Sweep:
    """Search a space of plain heads on the cached train split, and write the winner as a run.

    The first trial is the settings as they are. What was tried lies in `<runs_dir>/<name>.sweep.json`: the same
    call goes on from there, and ends as if it had never been interrupted.

    Args:
        config: all settings; `training.epochs` is what the last rung gets.
        space: what varies, as `read_space` gives it; default `SPACE`.
        trials: configurations to draw.
        eta: η; of each rung 1/η go on.
        name: of the run to write.
        limit: use the first samples only.
        fresh: forget what was tried, and replace a run of this name.
        command: the command line that asks for it, for the run's provenance.
        train: trains the groups of a rung, in any order; by default one after the other, here.

    Raises:
        GeoError: a run of this name exists; what was tried was tried with other settings; too few samples to choose by;
            `training.folds` above 1, which leaves no sample that chooses nothing; every trial failed; or another process sweeps
            or writes a run under this name.
    """
    require_tracker(config)
    with only_run_writer(config.paths.runs_dir, name, overwrite=True):
        return _search(config, space, trials, eta, name, limit, fresh, command, train or train_here)


def _search(
    config: Config,
    space: Space | None,
    trials: int,
    eta: int,
    name: str,
    limit: int | None,
    fresh: bool,
    command: Sequence[str],
    train: Train,
) -> Sweep:
    """As `sweep`, for whoever holds the name: of the state file and of the run."""
    started = time.monotonic()
    runs_dir = config.paths.runs_dir
    if trials < 1 or eta < 2:
        raise GeoError(
            f"a sweep of {trials} trials with η = {eta}", hint="give --trials 1 or more, --eta 2 or more"
        )
    if config.training.folds > 1:
        raise GeoError(
            "with folds every sample is held out once, and none is left that chooses nothing",
            where=f"training.folds = {config.training.folds}",
            hint="sweep with --set training.folds=1, then fit the winner with --folds",
        )
    data = open_training_data(config, limit=limit)
    base = for_sources(plain(config), len(data.sources))
    space = space or parse_space(SPACE, config)
    drawn = draw(space, base, trials)
    header = _header(base, space, trials, eta, limit, data)
    fingerprints = [source.store.fingerprint for source in data.sources]
    state = _open_state(state_path(runs_dir, name), header, fresh)
    if not state.results and not state.replace and (runs_dir / name).exists():
        raise GeoError(
            "a run of this name exists",
            where=runs_dir / name,
            hint="choose another --name, or replace it with --fresh",
        )
    reused = len(state.results)
    if reused:
        say(f"sweep: going on after {reused:,} trainings, from {state.path}")
    task = set_up(data.examples, base.training, pick_device(base.model.device, float64=True))
    with tracked(base, f"{name}.sweep", ("model", "training")) as log:
        _climb(task, base, drawn, eta, state, log, train)
        log(None, {"score": _ranking(state)[0].score})
    # The winner's fit reads the embeddings again: they are not to be in memory twice.
    del data, task
    ranking = _ranking(state)
    best = ranking[0]
    if best.error is not None:
        raise GeoError(
            f"all {len(drawn)} trials failed, trial {best.trial} first: {best.error}",
            where=state.path,
            hint="narrow the space (lower learning rates), then --fresh",
        )
    described = [{"settings": drawn[result.trial], **asdict(result)} for result in ranking]
    winner = with_changes(base, drawn[best.trial])
    val, twins = _finish(winner, name, limit, state, fingerprints, command)
    if state.replace:
        # Only the run that was there before.
        state.replace = False
        state.add([])
    return Sweep(
        {**described[0], "run": name, "val": val, "twins": twins},
        described,
        rerun_command(config, winner, drawn[best.trial], name, limit),
        len(state.results) - reused,
        reused,
        time.monotonic() - started,
    )


def state_path(runs_dir: Path, name: str) -> Path:
    """Where everything that a sweep has tried is written down."""
    return runs_dir / f"{name}.sweep.json"


def plain(config: Config) -> Config:
    """The settings with the plain recipe, which the swept ones belong to, and the fusion by name that is its default."""
    return with_changes(
        config, {"training.preset": "pigeon", "model.fusion": config.model.fusion or "average"}
    )


def rungs(trials: int, epochs: int, eta: int) -> list[tuple[int, int]]:
    """(configurations, epochs) of each rung: the last has all epochs, the one before 1/η of them for η times as many.

    As many rungs as leave a configuration and an epoch to each.
    """
    steps = 0
    while eta ** (steps + 1) <= min(trials, epochs):
        steps += 1
    return [(trials // eta**k, max(1, round(epochs / eta ** (steps - k)))) for k in range(steps + 1)]


def inner_split(examples: Examples, train: NDArray[np.bool_], training: Training) -> Split:
    """Of the examples (N,) that a run may be trained on, those that a configuration is scored on, held out as the run's own are.

    Raises:
        GeoError: none can be held out.
    """
    val = inner_held_out(examples.places, train, training)
    if not val.any():
        raise GeoError(
            f"{counted(len(examples), 'sample is', 'samples are')} too few for a sweep: some must choose, and others tell how good the choice is",
            hint="geo fit-heads",
        )
    return Split(training.seed, 0, train & ~val, val)


def rerun_command(
    config: Config, winner: Config, changes: Mapping[str, Any], name: str, limit: int | None = None
) -> str:
    """A command line that makes the winner's run again, with all that came from geo.toml, the environment or an option.

    Args:
        config: the settings that the sweep was called with: those that were given are given again.
        winner: those of the run.
        changes: what the sweep changed in them.
        limit: as the sweep's.
        name: of the run; the one made again is called NAME-again.
    """
    default = Config()
    words = ["geo"]
    for key in known_keys():
        group, *_ = key.split(".")
        value = value_at(winner, key)
        differs = key in changes or key == "training.preset" or value != value_at(default, key)
        if group in ("paths", "model", "training") and (differs or is_set(config, key)):
            words += ["--set", f"{key}={as_text(value)}"]
    words += ["fit-heads", "--name", f"{name}-again"]
    return shlex.join(words if limit is None else [*words, "--limit", str(limit)])


def set_up(examples: Examples, training: Training, device: torch.device) -> InnerTask:
    split = inner_split(examples, plan(examples.places, training)[0].train, training)
    dataset = Dataset(examples, find_prior(examples, split.train), device)
    return InnerTask(dataset, split, dataset.rows(split.train))


def _climb(
    task: InnerTask,
    base: Config,
    drawn: Sequence[dict[str, Any]],
    eta: int,
    state: _State,
    log: Log,
    train: Train,
) -> None:
    """Train what the state doesn't have, rung by rung; what was tried before is logged first."""
    # Rung 0:    all of them,            1/η^k of the epochs
    # Rung 1:    the best 1/η of them,   1/η^(k−1)
    # …
    # Rung k:    the best 1/η^k,         all epochs; and what isn't trained by steps, as probes
    # A rung is whole before the next begins, and equal scores rank by the number of the trial: who goes on depends on the
    # scores alone, whatever was killed in between and in whatever order it ran.
    by_steps = [HEADS[changes.get("model.head", base.model.head)].make.by_steps for changes in drawn]
    remaining = [trial for trial, stepping in enumerate(by_steps) if stepping]
    steps = rungs(len(remaining), base.training.epochs, eta)
    total = sum(count for count, _ in steps) + by_steps.count(False)
    tracked_results = 0

    def track() -> None:
        nonlocal tracked_results
        for result in list(state.results.values())[tracked_results:]:
            tracked_results += 1
            log(tracked_results, {**asdict(result), **drawn[result.trial]})

    track()
    with _board(drawn, len(steps), total, state) as show:
        for rung, (count, epochs) in enumerate(steps):
            remaining = remaining[:count]
            if rung == len(steps) - 1:
                remaining += [trial for trial, stepping in enumerate(by_steps) if not stepping]
            settings: dict[int, Settings] = {}
            for trial in remaining:
                config = with_changes(base, {**drawn[trial], "training.epochs": epochs})
                settings[trial] = config.model, config.training
            groups = _groups(task, settings, stack=task.dataset.device.type == "cuda")
            # A group is done or not: shared, a training's last bits depend on its company.
            groups = [group for group in groups if not all((trial, rung) in state.results for trial in group)]
            results = train(task, settings, groups, rung, epochs)
            for group in groups:
                # Of those that are trained elsewhere, any may be next.
                show(list(group), rung)
                state.add(next(results))
                show([], rung)
                track()
            ranked = sorted((state.results[trial, rung] for trial in remaining), key=_rank)
            remaining = [result.trial for result in ranked if result.error is None]


def _groups(task: InnerTask, settings: Mapping[int, Settings], *, stack: bool) -> list[Group]:
    """Trials to train together: stacked those of one shape, with the jobs that told their shape; else each alone."""
    if not stack:
        return [{trial: None} for trial in settings]
    groups: list[dict[int, TrainingJob]] = []
    for trial in settings:
        job = task.job(settings[trial])
        for group in groups:
            if len(group) < _TOGETHER and stackable([*group.values(), job]):
                group[trial] = job
                break
        else:
            groups.append({trial: job})
    return [dict(group) for group in groups]


def train_here(
    task: InnerTask, settings: Mapping[int, Settings], groups: Sequence[Group], rung: int, epochs: int
) -> Iterator[list[Result]]:
    """Each group's results, one after the other, in this process."""
    for group in groups:
        yield train_group(task, settings, group, rung, epochs)


def train_group(
    task: InnerTask,
    settings: Mapping[int, Settings],
    group: Mapping[int, TrainingJob | None],
    rung: int,
    epochs: int,
) -> list[Result]:
    """Train the configurations of a group together; where one fails, each alone, so that the others don't fail with it."""
    started = time.monotonic()
    try:
        trained = train_all([job or task.job(settings[trial]) for trial, job in group.items()])
    except (GeoError, torch.OutOfMemoryError) as error:
        if len(group) > 1:
            alone = [train_group(task, settings, {trial: job}, rung, epochs) for trial, job in group.items()]
            return [result for results in alone for result in results]
        why = str(error).splitlines()[0]
        seconds = time.monotonic() - started
        return [Result(trial, rung, epochs, None, None, None, seconds, why) for trial in group]
    seconds = (time.monotonic() - started) / len(group)
    results = []
    for trial, heads in zip(group, trained, strict=True):
        best = max(heads.history, key=lambda entry: entry["val_score"])
        scores = (best["val_score"], best["val_state_score"], best["val_gps_score"])
        results.append(Result(trial, rung, epochs, *scores, seconds))
    return results


def _rank(result: Result) -> tuple[Any, ...]:
    """The best first: those that didn't fail, the highest rung, the best score, the first drawn."""
    return (
        result.error is not None,
        -result.rung,
        0.0 if result.score is None else -result.score,
        result.trial,
    )


def _ranking(state: _State) -> list[Result]:
    """Each trial's last result, the best first."""
    last: dict[int, Result] = {}
    for result in sorted(state.results.values(), key=lambda result: result.rung):
        last[result.trial] = result
    return sorted(last.values(), key=_rank)


def _finish(
    winner: Config,
    name: str,
    limit: int | None,
    state: _State,
    fingerprints: list[str],
    command: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The winner's metrics on the run's validation samples, and its near twins among them as of a `Fit`; makes the run where it isn't there yet."""
    runs_dir = winner.paths.runs_dir
    if (runs_dir / name).exists():
        try:
            run = load_run(runs_dir, name)
            same = (
                run.config.model == winner.model
                and run.config.training == winner.training
                and [source["fingerprint"] for source in run.sources] == fingerprints
            )
            if same:
                return run.read_metrics(), run.read_all_metrics().get("twins")
        except GeoError as error:
            say(f"sweep: the run of this name is damaged: {error}")
        if not state.replace:
            raise GeoError(
                "a run of this name exists, and isn't the sweep's winner",
                where=runs_dir / name,
                hint="move it away and run the same command again: nothing that was tried is lost",
            )
    say(f"sweep: fitting the winner as {name}")
    fit = fit_run(winner, name, limit=limit, overwrite=state.replace, command=command)
    return fit.val, fit.twins


def _header(
    base: Config, space: Space, trials: int, eta: int, limit: int | None, data: TrainingData
) -> dict[str, Any]:
    """All that a result depends on, as plain JSON."""
    settings = {
        key: value_at(base, key)
        for key in known_keys()
        if key.split(".")[0] in ("model", "training")
        and key != "model.device"
        and value_at(base, key) != _LATER_SETTINGS.get(key, ...)
    }
    stores = []
    for source, content_sample in zip(data.sources, data.content_samples, strict=True):
        described = {key: source.store.attrs.get(key) for key in ("fingerprint", "manifest_sha256")}
        if source.feature is not None:
            described["feature"] = source.feature
        # What an import holds isn't in its fingerprint.
        stores.append(described | ({"content_sample": list(content_sample)} if content_sample else {}))
    header = {
        "trials": trials,
        "eta": eta,
        "limit": limit,
        "space": {key: asdict(options) for key, options in space.items()},
        "settings": settings,
        "store": stores[0],
        **({"stores": stores} if len(stores) > 1 else {}),
        "train_csv": file_sha256(data.samples.csv),
        "device": pick_device(base.model.device, float64=True).type,
        "versions": {"geo-embed": __version__, "torch": version("torch")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(header))
    return plain


def _open_state(path: Path, header: dict[str, Any], fresh: bool) -> _State:
    """What was tried before, if the settings are the same."""
    if fresh or not path.exists():
        return _State(path, header, fresh)
    try:
        content = read_json(path)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r:.20}, where this version reads {_FORMAT}")
        results = TypeAdapter(list[Result]).validate_python(content["results"])
        recorded, replace = dict(content["header"]), bool(content["replace"])
        beyond = [result.trial for result in results if not 0 <= result.trial < header["trials"]]
        if beyond and recorded == header:
            raise ValueError(f"there is no trial {beyond[0]}")
    except (GeoError, ValueError, KeyError, TypeError) as error:
        why = first_fault(error) if isinstance(error, ValidationError) else getattr(error, "what", error)
        raise GeoError(
            f"what the sweep has tried can't be read: {why}", where=path, hint="start anew with --fresh"
        ) from error
    # Earlier versions didn't record it.
    if "content_sample" not in (recorded.get("store") or {}):
        header["store"].pop("content_sample", None)
    # Theirs split by the seed of the weights.
    if isinstance(before := recorded.get("settings"), dict) and "training.seed" in before:
        recorded["settings"] = {"training.split_seed": before["training.seed"], **before}
    differing = _differences(recorded, header)
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise GeoError(
            f"this sweep was begun with other settings: {'; '.join(differing[:3])}{more}",
            where=path,
            hint="give another --name, or start anew with --fresh",
        )
    return _State(path, header, replace, {(result.trial, result.rung): result for result in results})


def _differences(then: Any, now: Any, key: str = "") -> list[str]:
    """`key was X, is Y` for each leaf of two JSON values that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        inner = key.removeprefix(".settings")
        return [
            difference
            for name in dict.fromkeys([*then, *now])
            for difference in _differences(then.get(name), now.get(name), f"{inner}.{name}")
        ]
    if then == now:
        return []

    def text(value: Any) -> str:
        shown = json.dumps(value, ensure_ascii=False)
        return shown if len(shown) <= 60 else shown[:59] + "…"

    return [f"{key.removeprefix('.')} was {text(then)}, is {text(now)}"]


def _short(changes: Mapping[str, Any]) -> str:
    settings = [f"{key.rsplit('.', 1)[-1]}={as_text(value)}" for key, value in changes.items()]
    return " ".join(settings) or "as configured"


def _best_so_far(state: _State) -> str:
    scored = [result for result in state.results.values() if result.score is not None]
    if not scored:
        return ""
    best = min(scored, key=_rank)
    return f", best so far {best.score:.4f} (trial {best.trial})"


@contextmanager
def _board(
    drawn: Sequence[dict[str, Any]], steps: int, total: int, state: _State
) -> Iterator[Callable[[Sequence[int], int], None]]:
    """Shows where the sweep of `total` trainings stands: a table on a terminal, a line per result elsewhere.

    The yielded function takes the trials that are being trained now, and their rung.
    """
    if not on_terminal():
        printed = set(state.results)

        def lines(running: Sequence[int], rung: int) -> None:
            for key, result in state.results.items():
                if key not in printed:
                    printed.add(key)
                    outcome = f"{result.score:.4f}" if result.score is not None else f"failed: {result.error}"
                    say(
                        f"sweep: {len(printed):,} of {total:,}, rung {rung + 1} of {steps}, {counted(result.epochs, 'epoch')}, "
                        f"trial {result.trial}: {outcome}{_best_so_far(state)}  ({_short(drawn[result.trial])})"
                    )

        yield lines
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def table(running: Sequence[int], rung: int) -> Table:
        shown = Table("trial", "rung", "epochs", "score", "settings", box=None, pad_edge=False)
        for trial in running:
            shown.add_row(str(trial), f"{rung + 1}/{steps}", "", "…", _short(drawn[trial]), style="bold")
        for result in _ranking(state):
            if result.trial not in running:
                outcome = f"{result.score:.4f}" if result.score is not None else "failed"
                place = (str(result.trial), f"{result.rung + 1}/{steps}", str(result.epochs))
                shown.add_row(*place, outcome, _short(drawn[result.trial]))
        done, seconds = len(state.results), time.monotonic() - started
        left = (total - done) * seconds / (done - before) if before < done < total else None
        outlook = "" if left is None else f", ETA {duration(left)}"
        shown.caption = f"{done:,} of {total:,} trainings{_best_so_far(state)}{outlook}"
        shown.caption_justify = "left"
        return shown

    before, started = len(state.results), time.monotonic()
    with standing(), Live(table([], 0), console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda running, rung: live.update(table(running, rung), refresh=True)
