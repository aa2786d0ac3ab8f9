"""One training in several processes, as `torchrun` starts them; one process alone is a team of one.

Every process holds the whole model and makes the gradients of its part of a step; they are added up once a step. That is
all that torch's DistributedDataParallel does here, too, but nothing is exchanged within a pass: a process that runs out of
memory in one leaves the others waiting for nothing, and a parameter that no loss reaches needs no special case.
"""

import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from geo_embed.errors import GeoError
from geo_embed.heads.layers import Drop, keep, keep_mask

# A process that hangs is noticed within this time; one that has died, at once.
_TIMEOUT = datetime.timedelta(minutes=30)
# Numbers that are added up at once: few messages, and little memory beside the gradients.
_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class Share:
    """One process's part of a pass.

    Attributes:
        rows: of its samples, at least one.
        before: samples of the step that come before these, in other passes or processes.
        total: samples of the whole step.
        weight: 0 where the process had nothing to do and repeats another's sample, else 1.
    """

    rows: NDArray[np.int64]
    before: int
    total: int
    weight: float

    def drops(self, generator: torch.Generator) -> Callable[[float], Drop]:
        """Dropout that is drawn for the whole step: a sample's doesn't depend on how the step is divided.

        Args:
            generator: the same for all passes of the step, from its start.
        """

        def of(rate: float) -> Drop:
            if not rate:
                return keep

            def drop(hidden: Tensor) -> Tensor:
                whole = keep_mask(torch.Size((self.total, *hidden.shape[1:])), rate, generator)
                return hidden * whole[self.before : self.before + len(hidden)]

            return drop

        return of


@dataclass(frozen=True)
class Team:
    """The processes that train together.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def passes(self, rows: NDArray[np.int64], size: int) -> list[Share]:
        """This process's parts of a step's passes.

        Args:
            rows: of the step's samples.
            size: samples per pass, of all processes together; each takes consecutive ones, as evenly as they go.
        """
        shares = []
        for start in range(0, len(rows), size):
            of_pass = np.arange(start, min(start + size, len(rows)))
            part = np.array_split(of_pass, self.size)[self.rank]
            weight = 1.0 if len(part) else 0.0
            part = part if len(part) else of_pass[:1]
            shares.append(Share(rows[part], int(part[0]), len(rows), weight))
        return shares

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def sum(self, value: Tensor) -> float:
        """The sum of a number over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return float(value)

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process."""
        return flag if self.size == 1 else self.sum(torch.tensor(float(flag))) > 0

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let every process have the sum of all processes' gradients; the same ones must be None in each."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for gradient in (p.grad for p in parameters if p.grad is not None):
            bucket.append(gradient)
            if sum(waiting.numel() for waiting in bucket) >= _AT_ONCE:
                _add_up(bucket)
                bucket = []
        _add_up(bucket)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


def speaks() -> bool:
    """Whether this process is the one of its team that prints results."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join_team(device: str) -> Iterator[Team]:
    """The team that torchrun made this process part of, or a team of one.

    Raises:
        GeoError: another process of the team has ended before its time.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(0, 1)
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    try:
        yield Team(dist.get_rank(), size)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise GeoError(
            "another process of this training has ended",
            where=f"process {os.environ['RANK']} of {size}",
            hint="see what it said itself; the same command goes on from the last checkpoint",
        ) from error
    finally:
        dist.destroy_process_group()


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an exchange failed, rather than a computation; gloo says so by a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection closed", "connection reset")
    )


def _add_up(gradients: list[Tensor]) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, total in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(total.view_as(gradient))
