"""What a benchmark says, and how things are timed."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from geo_embed.console import say


@dataclass(frozen=True)
class Measurement:
    """Ours against a baseline, in `unit`; `ratio` above 1 is better, whatever the unit.

    Attributes:
        what: what was done.
        ours, baseline: medians.
        ratio: of the medians, ours over baseline where more is better, the other way round for seconds.
        limit: what arithmetic or memory alone would allow, in the same unit.
        unit: `images/s`, `samples/s`, `TFLOP/s`, `score` or `s`.
        against: what the baseline is.
        bound: what the limit is.
    """

    what: str
    ours: float
    baseline: float
    ratio: float
    limit: float
    unit: str
    against: str
    bound: str


@dataclass(frozen=True)
class Bench:
    """A benchmark's measurements, and the machine they hold for."""

    name: str
    machine: str
    measurements: list[Measurement]


def at_most(what: str, ours: float, asked: float, limit: float, unit: str, bound: str) -> Measurement:
    """A measurement against what is asked for, where less is better; arguments as in `Measurement`."""
    return Measurement(what, ours, asked, asked / ours, limit, unit, "at most so much is asked for", bound)


def in_turn(rounds: int, *actions: Callable[[], float]) -> list[float]:
    """Medians of figures that are measured in turn, A B A B …, so that a drifting machine hits all alike."""
    figures: list[list[float]] = [[] for _ in actions]
    for k in range(rounds):
        say(f"bench: measuring, round {k + 1} of {rounds}")
        for values, action in zip(figures, actions, strict=True):
            values.append(action())
    return [statistics.median(values) for values in figures]


def seconds(action: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def apart(module: str, function: str, *arguments: str) -> float:
    """The number that a function of strings returns in a process of its own, without the settings that `geo` makes for itself."""
    code = f"from {module} import {function}; print({function}({', '.join(map(repr, arguments))}))"
    return float(_run(function, "-c", code).splitlines()[-1])


def figures_apart(module: str, function: str, *arguments: str) -> dict[str, float]:
    """The same of a function that returns several figures, by name."""
    call = f"{function}({', '.join(map(repr, arguments))})"
    code = f"import json; from {module} import {function}; print(json.dumps({call}))"
    figures: dict[str, float] = json.loads(_run(function, "-c", code).splitlines()[-1])
    return figures


def command_seconds(*arguments: str) -> float:
    """How long `geo` with these arguments takes as somebody types it: a process of its own, imports and all."""
    return seconds(lambda: _run("geo", "-m", "geo_embed", *arguments))


def import_seconds(module: str) -> float:
    """How long a process takes that imports a module and ends."""
    return seconds(lambda: _run(f"import {module}", "-c", f"import {module}"))


def _run(name: str, *arguments: str) -> str:
    """What Python prints, under an environment without the settings that `geo` makes for itself."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        # Ours end in a hint, Python's own in what was wrong.
        why = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        raise RuntimeError(f"{name} failed: {(why or [f'exit code {result.returncode}'])[0]}")
    return result.stdout


def this_machine() -> str:
    """Processor, cores and accelerator, in words."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            name = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name
            )
    except OSError:
        pass
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {os.cpu_count()} cores, {device}, torch {torch.__version__}"


def gemm_rate(device: str, size: int = 2048) -> float:
    """Multiply-adds as floating-point operations per second of one dense product: float32 on CPU, bfloat16 on CUDA."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = size * 4 if device == "cuda" else size
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    multiply()
    return float(2 * size**3 / min(seconds(multiply) for _ in range(5)))
