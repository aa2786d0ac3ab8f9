"""Where tensors live and in which precision: devices, dtypes, and how many parameters a module has."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from geo_embed.config import Config, Model
from geo_embed.console import say
from geo_embed.errors import GeoError
from geo_embed.threads import one_blas_thread

if TYPE_CHECKING:
    import torch
    from torch import nn

# Rows of the matrices that tell how fast a processor is in bfloat16.
_GEMM = 512
# glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD (malloc.h), in bytes: from which size on an allocation is of pages of its own, and how
# many freed ones are kept. Versions before 2.35 take no more than the second for the former.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_KEPT, _KEPT_EARLIER = (1 << 31) - 1, 1 << 25


def count_parameters(module: "nn.Module") -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def pick_device(name: str, *, float64: bool = False) -> "torch.device":
    """`auto`, `cpu`, `cuda` or `mps` to a device; `auto` takes CUDA before Apple's GPU before the CPU.

    Args:
        name: as the settings have it.
        float64: whether the work needs such numbers, as places do in the heads. Apple's GPUs have none: that work stays on the CPU.

    Raises:
        GeoError: a device is asked for that torch doesn't see.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, True):
        raise GeoError(
            f"no {name.upper()} device is visible to torch",
            where="model.device",
            hint="use --device cpu, or --device auto",
        )
    if name == "mps" and float64:
        say("places are computed in float64, which Apple's GPU (mps) doesn't have: this runs on the CPU")
    if name == "auto":
        name = next((device for device, is_there in available.items() if is_there), "cpu")
    return torch.device("cpu" if name == "mps" and float64 else name)


def is_torchrun() -> bool:
    """Whether torchrun started this process, one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def default_batch_size(device: "torch.device") -> int:
    """Images per pass through a backbone, where the settings name no number."""
    return 256 if device.type == "cuda" else 32


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def side_by_side(
    function: Callable[[T, threading.Event], R], items: Sequence[T], device: "torch.device"
) -> list[R]:
    """What a function gives for each item, in their order: on a CPU for several at once, which share torch's threads; else in turn.

    Trainings of heads are small products, which gain little from a second thread and wait for it where a core is taken: two
    trainings of one thread each are done before two in turn with two threads.

    Args:
        function: of an item, and of an event that is set when another item has failed or the user interrupts. What runs long
            looks at it now and then, and raises.
        items: any number.
        device: where the function computes.
    """
    import torch

    stopped = threading.Event()
    threads = torch.get_num_threads()
    workers = min(threads, len(items)) if device.type == "cpu" else 1
    if workers < 2:
        return [function(item, stopped) for item in items]
    share = partial(torch.set_num_threads, threads // workers)
    try:
        with one_blas_thread(), ThreadPoolExecutor(workers, initializer=share) as pool:
            futures = [pool.submit(function, item, stopped) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                # After an error, or Ctrl-C, the pool waits only for those that are at work, and these end at their next look.
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def torch_switches(model: Model) -> Iterator[None]:
    """Torch's switches as `model.deterministic` and `model.tf32` ask, and as they were afterwards; one that isn't asked for stays.

    They are the process's: whatever else computes in it meanwhile computes by them, too.
    """
    if model.deterministic is None and model.tf32 is None:
        yield
        return
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        if model.deterministic is not None:
            cudnn.deterministic = model.deterministic
            # Trying algorithms out takes the fastest, which differs from run to run.
            cudnn.benchmark = cudnn.benchmark and not model.deterministic
        if model.tf32 is not None:
            cudnn.allow_tf32 = matmul.allow_tf32 = model.tf32
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def with_torch_switches(
    verb: Callable[Concatenate[Config, P], R],
) -> Callable[Concatenate[Config, P], R]:
    """Decorator of a verb that computes by settings, its first argument: by their `torch_switches`."""

    @wraps(verb)
    def computed(config: Config, *arguments: P.args, **named: P.kwargs) -> R:
        with torch_switches(config.model):
            return verb(config, *arguments, **named)

    return cast("Callable[Concatenate[Config, P], R]", computed)


def keep_freed_memory() -> None:
    """Have glibc keep memory that is freed for what is allocated next, where it would give it back to the system.

    A tower on a CPU makes and drops the same activations layer by layer, up to hundreds of MB each. What was given back comes again
    page by page, zeroed: 3,600 pages for an image through a ViT-B/32, up to a tenth of the processor's time. A process stays as large as
    it was at most. What the environment says of malloc already stands; elsewhere than under glibc nothing happens.
    """
    malloc_settings = {
        "MALLOC_TRIM_THRESHOLD_",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TOP_PAD_",
    } & os.environ.keys()
    if malloc_settings or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    # No such function, or, under Windows, no such library.
    except (AttributeError, OSError, TypeError):
        return
    # Either one stops glibc from adapting both: where the first can't be had, the second would make things worse.
    if mallopt(_MMAP_THRESHOLD, _KEPT) or mallopt(_MMAP_THRESHOLD, _KEPT_EARLIER):
        mallopt(_TRIM_THRESHOLD, _KEPT)


def pick_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """Precision of the backbone; `auto` is bfloat16 on CUDA (float16 where the card lacks it, and on mps), float32 on CPU."""
    import torch

    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    # Which of Apple's chips compute in bfloat16 depends on the system; all do in float16.
    return torch.float16 if device.type == "mps" else _half_precision()


def dtype_name(dtype: "torch.dtype") -> str:
    """`float32` of `torch.float32`: as the settings, stores and people have it."""
    return str(dtype).removeprefix("torch.")


def bfloat16_gain(device: "torch.device") -> float:
    """How many times as fast as float32 this CPU multiplies bfloat16 matrices, measured in milliseconds; 1 for other devices.

    Processors with matrix units (Intel's AMX) do so several times as fast, those without any bfloat16 slower.
    """
    import torch

    if device.type != "cpu":
        return 1.0
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        factor = torch.ones(_GEMM, _GEMM, dtype=dtype)
        times = []
        # The first time finds memory and kernels.
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(factor, factor)
            times.append(time.perf_counter() - started)
        seconds.append(min(times))
    return seconds[0] / seconds[1]


def amp_dtype(device: "torch.device") -> "torch.dtype | None":
    """What training computes in: bfloat16 on a GPU, float16 where it lacks that; None, for float32, on a CPU."""

    if device.type == "cpu":
        return None
    return _half_precision()


def _half_precision() -> "torch.dtype":
    import torch

    # A card of before 2020 emulates bfloat16, several times slower than float16, and torch counts that as support.
    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if supported else torch.float16
