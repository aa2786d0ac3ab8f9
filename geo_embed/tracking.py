"""What a training scores, shown while it lasts by TensorBoard, Weights & Biases or Trackio, where somebody asks for one of them.

A tracker is a spectator: what goes wrong with it is said once, and the training goes on. The run has all of it anyway.
"""

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

from geo_embed.config import Config
from geo_embed.console import say, warn
from geo_embed.errors import GeoError
from geo_embed.settings import as_text, known_keys, value_at

Numbers = dict[str, float]
# Steps, the last time None, and their numbers; and the end, well or not.
_Write = Callable[[int | None, Numbers], None]
_Close = Callable[[bool], None]


class Log(Protocol):
    """Shows values: of a step, counted from 1, or with None of the whole, at its end. What is no finite number is left out."""

    def __call__(self, step: int | None, values: Mapping[str, Any]) -> None: ...


def require_tracker(config: Config) -> None:
    """Raise GeoError where `tracking.tracker` is a package that isn't installed: before any work is done."""
    name = config.tracking.tracker
    if name != "local" and importlib.util.find_spec(name) is None:
        raise GeoError(
            f"{name} is not installed",
            where=f"tracking.tracker = {name}",
            hint=f"pip install 'geo-embed[{name}]', or pip install {name}; without --track the run has its scores all the same",
        )


@contextmanager
def tracked(config: Config, name: str, groups: Sequence[str], *, first: bool = True) -> Iterator[Log]:
    """Show what is logged in the block by the tracker of the settings; by `local`, nowhere.

    Args:
        config: all settings.
        name: of what is tracked.
        groups: of settings, which are shown beside it.
        first: whether this is the first of the processes that train together; the others show nothing.

    Yields:
        A function of a step and its values.
    """
    tracker = config.tracking.tracker
    if tracker == "local" or not first:
        yield lambda step, values: None
        return
    works = True

    def attempt(action: Callable[[], Any]) -> Any:
        """What the action gives, or None once the tracker has failed. It may print, but results alone belong on stdout."""
        nonlocal works
        if not works:
            return None
        try:
            with redirect_stdout(StringIO()):
                return action()
        # Whatever it raises is its own: a network, a disk, a login.
        except Exception as error:
            works = False
            why = " ".join(str(error).split())[:200] or type(error).__name__
            warn(f"{tracker} fails, and the work goes on without it: {why}")
        return None

    settings = {
        key: value if isinstance(value := value_at(config, key), bool | int | float) else as_text(value)
        for key in known_keys()
        if key.split(".")[0] in groups
    }
    opened = attempt(lambda: _OPEN[tracker](config, name, settings))

    def log(step: int | None, values: Mapping[str, Any]) -> None:
        if opened is not None and (numbers := _numbers(values)):
            attempt(lambda: opened[0](step, numbers))

    ended_well = False
    try:
        yield log
        ended_well = True
    finally:
        if opened is not None:
            attempt(lambda: opened[1](ended_well))


def tensorboard_directory(runs_dir: Path, name: str) -> Path:
    """Where a run's event files lie, in a folder for each time that it was trained: `tensorboard --logdir RUNS` finds them all."""
    return runs_dir / f"{name}.tensorboard"


def _numbers(values: Mapping[str, Any]) -> Numbers:
    """The finite numbers, those of nested tables as `table/key`.

    >>> _numbers({"score": 0.5, "within_km": {25: 1}, "loss": float("nan"), "name": "first", "done": True})
    {'score': 0.5, 'within_km/25': 1.0}
    """
    numbers: Numbers = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers |= {f"{key}/{inner}": number for inner, number in _numbers(value).items()}
        # NumPy's numbers know how to be Python's.
        elif hasattr(value, "__float__") and not isinstance(value, bool) and math.isfinite(value):
            numbers[str(key)] = float(value)
    return numbers


def _final(numbers: Numbers) -> Numbers:
    return {f"final/{key}": number for key, number in numbers.items()}


def _open_tensorboard(config: Config, name: str, settings: dict[str, Any]) -> tuple[_Write, _Close]:
    from torch.utils.tensorboard import SummaryWriter

    directory = tensorboard_directory(config.paths.runs_dir, name) / time.strftime("%Y%m%d-%H%M%S")
    writer: Any = SummaryWriter(directory)
    # Four spaces: as it stands, in Markdown.
    writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in settings.items()))
    say(f"tracking: tensorboard --logdir {config.paths.runs_dir}")

    def write(step: int | None, numbers: Numbers) -> None:
        if step is None:
            # Beside the settings, where runs are compared; in the same folder.
            writer.add_hparams(settings, _final(numbers), run_name=".")
        else:
            for key, number in numbers.items():
                writer.add_scalar(key, number, step)
        writer.flush()

    return write, lambda ended_well: writer.close()


def _open_wandb(config: Config, name: str, settings: dict[str, Any]) -> tuple[_Write, _Close]:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or config.tracking.project,
        name=name,
        config=settings,
        # One of the caller's own, as in a notebook, stays what it is.
        reinit="create_new",
        # Nothing is taken from our lines, and none added to them.
        settings=wandb.Settings(console="off", silent=True),
    )
    say(f"tracking: wandb sync {run.settings.sync_dir}" if run.offline else f"tracking: {run.url}")

    def write(step: int | None, numbers: Numbers) -> None:
        if step is None:
            run.summary.update(_final(numbers))
        else:
            run.log(numbers, step=step)

    return write, lambda ended_well: run.finish(exit_code=0 if ended_well else 1)


def _open_trackio(config: Config, name: str, settings: dict[str, Any]) -> tuple[_Write, _Close]:
    import trackio

    project = config.tracking.project
    run = trackio.init(project, name=name, config=settings, embed=False)
    say(f"tracking: trackio show --project {project}")

    def write(step: int | None, numbers: Numbers) -> None:
        if step is None:
            run.log(_final(numbers))
        else:
            run.log(numbers, step=step)

    # Not the run's own way, after which Trackio ends it once more as Python goes, and tells stdout.
    return write, lambda ended_well: trackio.finish()


_OPEN: dict[str, Callable[[Config, str, dict[str, Any]], tuple[_Write, _Close]]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
}
