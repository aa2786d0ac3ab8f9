"""A sweep whose trials are trained by actors on Ray: the same trials, and the same numbers, as in one process.

    this process   draws the trials, ranks each rung, keeps the state file, fits the winner
    an actor       reads the embeddings once, and trains the configurations that it is given

Which trials share a training, and the threads that one computes with, are those of one process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_embed.config import Config
from geo_embed.console import say
from geo_embed.devices import pick_device, torch_switches
from geo_embed.errors import GeoError
from geo_embed.fitting.examples import open_training_data
from geo_embed.fitting.space import Space
from geo_embed.fitting.sweep import (
    Group,
    InnerTask,
    Result,
    Settings,
    Sweep,
    plain,
    set_up,
    sweep,
    train_group,
)
from geo_embed.scale.cluster import Cluster, Workers, begin_worker, room_of
from geo_embed.threads import spin_briefly


@dataclass(frozen=True)
class Trials:
    """Trials that are trained together: their settings, by number, and the rung with its epochs."""

    settings: Mapping[int, Settings]
    rung: int
    epochs: int

    def __str__(self) -> str:
        return f"of trial {', '.join(map(str, self.settings))}"


class Trainer:
    """What an actor is: everything that the trials are trained on.

    Args:
        config: the settings that all trials begin with, and the device that they name.
        limit: of the samples.
        folder: that relative paths start from.
        threads: of torch; None for as many as it takes by itself.
    """

    def __init__(self, config: Config, limit: int | None, folder: Path, threads: int | None) -> None:
        spin_briefly()
        self._config, self._limit, self._folder, self._threads = config, limit, folder, threads
        self._task: InnerTask | None = None

    def work(self, trials: Trials) -> "list[Result] | GeoError":
        """Train some trials."""
        try:
            with torch_switches(self._config.model):
                return train_group(
                    self._open(),
                    trials.settings,
                    dict.fromkeys(trials.settings),
                    trials.rung,
                    trials.epochs,
                )
        except GeoError as error:
            return error

    def _open(self) -> InnerTask:
        if self._task is None:
            begin_worker(self._folder, self._config.model.plugins, self._threads)
            data = open_training_data(self._config, limit=self._limit)
            self._task = set_up(
                data.examples, self._config.training, pick_device(self._config.model.device, float64=True)
            )
        return self._task


def sweep_on_ray(
    config: Config,
    cluster: Cluster,
    *,
    space: Space | None = None,
    trials: int = 27,
    eta: int = 3,
    name: str = "sweep",
    limit: int | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
) -> Sweep:
    """Search as `sweep` does, with the trials of a rung trained at once; it goes on from what was tried, on Ray or not.

    Args:
        config: all settings; workers compute on the device that they would give in this process.
        cluster: every machine of it sees the same files under the same names.
        space, trials, eta, name, limit, fresh, command: as in `sweep`.

    Raises:
        GeoError: what `sweep` raises; no room in the cluster, or a training whose workers died three times.
    """
    import torch

    device = pick_device(config.model.device, float64=True)
    room = room_of(cluster, gpus=device.type == "cuda", threads=torch.get_num_threads())
    base = plain(config)
    worker_config = base.model_copy(update={"model": base.model.model_copy(update={"device": device.type})})
    threads = None if room.gpus else room.cpus
    kind: Any = cluster.ray.remote(Trainer).options(num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=0)
    say(f"sweep: on Ray, {room}")
    with Workers[Trials, list[Result]](
        cluster, lambda: kind.remote(worker_config, limit, Path.cwd(), threads), room.workers, "the training"
    ) as workers:

        def train(
            task: InnerTask, settings: Mapping[int, Settings], groups: Sequence[Group], rung: int, epochs: int
        ) -> Iterator[list[Result]]:
            tasks = [Trials({trial: settings[trial] for trial in group}, rung, epochs) for group in groups]
            for _, results in workers.run(tasks):
                yield results

        return sweep(
            config,
            space=space,
            trials=trials,
            eta=eta,
            name=name,
            limit=limit,
            fresh=fresh,
            command=command,
            train=train,
        )
