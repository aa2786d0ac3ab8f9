"""A Ray cluster, and work divided among its actors. What dies is begun again elsewhere.

Ray does the scheduling and watches over processes; what runs in them is this package, as in one process. A local cluster is begun
where no address is given, and ends with the command: its processes, its memory, its folder.
"""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from geo_embed.console import counted, say, set_quiet, warn
from geo_embed.errors import BusyError, GeoError
from geo_embed.files import is_locked, lock
from geo_embed.plugins import load_plugins

Task = TypeVar("Task")
Result = TypeVar("Result")

# Of a task, on one worker after the other.
_ATTEMPTS = 3
# An address that doesn't answer: Ray itself would wait for more than two minutes.
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 15.0
# A worker that is still waited for by then is worth a word.
_BEGIN_SECONDS = 30.0
# The lock of a process that just died may be held for a moment; one of a machine that was cut off, for longer.
_BUSY_SECONDS = 2.0
_LOOK_SECONDS = 0.5
# What a local cluster shares between its processes: what it is about, no embeddings. Ray takes no less.
_SHARED_BYTES = 80 * 2**20
# Paths of Unix sockets have 107 letters at most, and Ray's lie 65 below its folder.
_FOLDER_LETTERS = 40
# A local cluster's folder, and the lock in it.
_PREFIX, _HELD = "geo-ray-", "driver.lock"
_HEALTH = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
_INSTALL = "pip install 'geo-embed[ray]'"


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to.

    Attributes:
        ray: the package, which is imported where it is used.
    """

    ray: Any

    def nodes(self) -> list[dict[str, float]]:
        """What each machine of it has, such as CPU and GPU."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def has_gpus(self) -> bool:
        """Whether any machine has a GPU."""
        return any(node.get("GPU", 0) >= 1 for node in self.nodes())


@dataclass(frozen=True)
class Room:
    """How many workers a cluster has room for, and what each of them gets.

    Attributes:
        workers: at once.
        cpus, gpus: of each.
    """

    workers: int
    cpus: int
    gpus: int

    def __str__(self) -> str:
        gpu = ", a GPU each" if self.gpus else ""
        return f"{counted(self.workers, 'worker')} of {counted(self.cpus, 'CPU')}{gpu}"


def room_of(cluster: Cluster, *, gpus: bool, threads: int) -> Room:
    """A worker for each GPU, with its share of the machine's CPUs; without GPUs, one for each `threads` CPUs.

    Args:
        cluster: as it is now.
        gpus: whether a worker wants a GPU.
        threads: of this process's torch: a worker without a GPU computes with as many, and so the same numbers.

    Raises:
        GeoError: there is no room for any.
    """
    nodes = [node for node in cluster.nodes() if node.get("CPU", 0) >= 1]
    if gpus:
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
        cpus = max(1, min((int(node["CPU"] // node["GPU"]) for node in nodes), default=1))
        workers = sum(min(int(node["GPU"]), int(node["CPU"]) // cpus) for node in nodes)
    else:
        cpus = max(1, min(threads, max((int(node["CPU"]) for node in nodes), default=1)))
        workers = sum(int(node["CPU"]) // cpus for node in nodes)
    if not workers:
        raise GeoError("the Ray cluster has no CPUs to compute on", where="--ray-address", hint="ray status")
    return Room(workers, cpus, int(gpus))


def begin_worker(folder: Path, plugins: Sequence[str], threads: int | None) -> None:
    """Make an actor's process, which Ray began with nothing of the command, like the command's own.

    Args:
        folder: that relative paths start from.
        plugins: as `model.plugins` has them.
        threads: of torch; None for as many as it takes by itself.

    Raises:
        GeoError: this machine doesn't see the folder, or a plugin can't be loaded.
    """
    import torch

    set_quiet(True)
    try:
        os.chdir(folder)
    except OSError as error:
        raise unseen(folder) from error
    load_plugins(plugins)
    if threads is not None:
        torch.set_num_threads(threads)


def unseen(path: Path) -> GeoError:
    """What to say of a path that should be on every machine of a cluster, and isn't on this one."""
    return GeoError(
        f"a worker on {socket.gethostname()} doesn't see this path",
        where=path,
        hint="every machine of the cluster has to see the same files under the same names",
    )


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[Cluster]:
    """Be connected to a Ray cluster while the block runs.

    Args:
        address: HOST:PORT of a cluster that this machine belongs to, or `auto` for the one that `ray start` began here; a local
            cluster if left out, which ends with the block.

    Raises:
        GeoError: Ray isn't installed, nothing answers at the address, or Ray doesn't begin.
    """
    # It asks for nothing, and tells nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise GeoError("Ray isn't installed", where="--engine ray", hint=_INSTALL) from error
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if address is not None:
        address = _answering(address)
    # It tells of workers that died on stdout, which carries results alone; and it takes SIGTERM for itself.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        options = {"address": address} if address is not None else _local_options(stack)
        # Only once Ray has ended goes the folder that it writes to.
        stack.callback(ray.shutdown)
        try:
            ray.init(**options, log_to_driver=False, configure_logging=False)
        except Exception as error:
            raise _refusal(address, error) from error
        finally:
            for number, handler in before.items():
                with suppress(ValueError):
                    signal.signal(number, handler)
        yield Cluster(ray)


def _local_options(stack: ExitStack) -> dict[str, Any]:
    for parent in {Path(tempfile.gettempdir()), Path("/tmp")}:
        remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if len(str(folder)) > _FOLDER_LETTERS:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    # By this the next cluster on this machine tells whether its driver was killed.
    stack.enter_context(lock(folder / _HELD, busy="another driver has this folder", where=folder, hint=""))
    # Whoever may reach its ports may run code in it: its processes know each other by a secret, and by one that no file keeps.
    if not any(name.startswith("RAY_AUTH") for name in os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": _SHARED_BYTES,
        "_temp_dir": str(folder),
    }


def remove_abandoned(parent: Path) -> None:
    """Remove the folders that killed drivers of this user left here: those whose lock nobody holds and whose driver is gone.

    A folder without a lock is another version's, or just being made, and stays.
    """
    # Elsewhere os.kill ends what it asks for.
    for folder in parent.glob(f"{_PREFIX}*") if os.name == "posix" else ():
        # It may go meanwhile, or be somebody else's.
        with suppress(OSError, ValueError, KeyError, TypeError):
            if folder.stat().st_uid != os.geteuid():
                continue
            driver = json.loads((folder / _HELD).read_bytes())
            if driver["host"] == socket.gethostname() and not is_locked(folder / _HELD):
                try:
                    os.kill(int(driver["pid"]), 0)
                except ProcessLookupError:
                    shutil.rmtree(folder, ignore_errors=True)


def _refusal(address: str | None, error: Exception) -> GeoError:
    why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if address is None:
        return GeoError(f"Ray doesn't begin: {why}", where="--engine ray", hint="--engine local needs no Ray")
    return GeoError(
        f"no connection to the Ray cluster: {why}", where=address, hint="ray status --address " + address
    )


def _answering(address: str) -> str:
    """The address, once a Ray cluster has answered there; of `auto`, the one that was meant."""
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address_or_die

        try:
            address = canonicalize_bootstrap_address_or_die("auto")
        except (Exception, SystemExit) as error:
            raise GeoError(
                "no Ray cluster runs on this machine",
                where="--ray-address auto",
                hint="ray start --head, or leave --ray-address out",
            ) from error
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        raise GeoError(
            "not the address of a Ray cluster",
            where=f"--ray-address {address}",
            hint="HOST:PORT, as `ray start` prints it, on a machine of the cluster; from elsewhere: "
            "ray job submit -- geo extract --engine ray --ray-address auto",
        )
    silent = GeoError(
        "no Ray cluster answers at this address",
        where=f"--ray-address {address}",
        hint="ray status --address " + address + " asks it; ray start --head begins one",
    )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS):
            pass
        # Something listens there. Whether it is Ray, a process finds out that can be ended if it waits.
        asked = [sys.executable, "-c", _HEALTH, address]
        subprocess.run(asked, timeout=_ANSWER_SECONDS, capture_output=True, check=True)
    except subprocess.CalledProcessError as error:
        if b"AuthToken" in error.stderr:
            raise GeoError(
                "the Ray cluster doesn't know this user's token",
                where=f"--ray-address {address}",
                hint="it is in ~/.ray/auth_token of whoever began the cluster, or in RAY_AUTH_TOKEN",
            ) from error
        raise silent from error
    except (OSError, OverflowError, subprocess.SubprocessError) as error:
        raise silent from error
    return address


class Workers(Generic[Task, Result]):
    """Actors of one kind that do tasks, begun when first needed; as a context, they end with the block.

    Args:
        cluster: where they run.
        make: begins one. It has a method `work` that takes a task, and gives a result or the GeoError that it met.
        count: at most so many.
        task_name: what a task is called when one is told of.
        again: where or when a dead worker's task is begun again, for people.
    """

    def __init__(
        self,
        cluster: Cluster,
        make: Callable[[], Any],
        count: int,
        task_name: str,
        again: str = "elsewhere",
    ) -> None:
        self._ray, self._make, self._count, self._task_name = cluster.ray, make, count, task_name
        self._again = again
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task, int]] = {}

    def __enter__(self) -> "Workers[Task, Result]":
        return self

    def __exit__(self, *error: object) -> None:
        for actor in [*self._idle, *(actor for actor, *_ in self._busy.values())]:
            self._end(actor)
        self._idle, self._busy = [], {}

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, as they are done.

        A task whose worker died, or found that another is still at it, is given to a worker again; three times in all.

        Raises:
            GeoError: that a worker met, or every worker of a task died.
        """
        waiting = deque((task, 1) for task in tasks)
        started, has_begun = time.monotonic(), False
        while waiting or self._busy:
            while waiting and len(self._busy) < self._count:
                task, attempt = waiting.popleft()
                actor = self._idle.pop() if self._idle else self._make()
                self._busy[actor.work.remote(task)] = actor, task, attempt
            done, _ = self._ray.wait(list(self._busy), timeout=_LOOK_SECONDS)
            if not done and not has_begun and time.monotonic() - started > _BEGIN_SECONDS:
                has_begun = True
                say("waiting for the first workers: they load the model, or wait for room in the cluster")
            for reference in done:
                has_begun = True
                actor, task, attempt = self._busy.pop(reference)
                result, why = self._result(reference)
                if isinstance(why, BusyError):
                    time.sleep(_BUSY_SECONDS)
                elif why is not None:
                    self._end(actor)
                if why is None or isinstance(why, BusyError):
                    self._idle.append(actor)
                if why is None:
                    yield task, result
                elif attempt == _ATTEMPTS:
                    raise GeoError(
                        f"{self._task_name} {task} was begun {_ATTEMPTS} times in vain: {why}",
                        where="--engine ray",
                        hint="what is done stays, and the same command goes on; without --engine ray its own words are shown",
                    )
                else:
                    warn(f"{why}; {self._task_name} {task} is begun again {self._again}")
                    waiting.append((task, attempt + 1))

    def _result(self, reference: Any) -> tuple[Any, Exception | None]:
        """A task's result, or why it has none and is to be begun again. Raises what it is not to be begun again for."""
        exceptions = self._ray.exceptions
        try:
            result = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # Of an actor that never came about the last line tells, of one that died the first.
            last = (
                lines[-1:] if isinstance(error, exceptions.ActorDiedError) and "creation" in lines[0] else []
            )
            return None, GeoError(f"a worker died ({(last or lines or [type(error).__name__])[0]:.200})")
        if isinstance(result, BusyError):
            return None, result
        if isinstance(result, GeoError):
            raise result
        return result, None

    def _end(self, actor: Any) -> None:
        with suppress(Exception):
            self._ray.kill(actor)
