"""How torch's threads wait for each other. OpenMP reads it when torch is first imported: a command, or a worker elsewhere, says it before that.

Waiting threads that spin take the cores from threads that decode: 0.89 of the bare model's speed, 0.96 without. Where little
or nothing decodes, a few microseconds of it save up to a fifth of training's time; more would lose it on shared cores.
What the environment says already stands.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_WAIT, _SPIN = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"


def wait_passively() -> None:
    """For work whose images are decoded while a model runs, and for what trains nothing."""
    _choose(_WAIT, "PASSIVE")


def spin_briefly() -> None:
    """For training."""
    _choose(_SPIN, "1000")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy's and SciPy's own BLAS on one thread meanwhile, in all threads; to be entered in the main one, OpenBLAS ignores others.

    Its threads wait by spinning: where other work had one of two cores, an L-BFGS took twenty times as long.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def _choose(name: str, value: str) -> None:
    if not {_WAIT, _SPIN} & os.environ.keys():
        os.environ[name] = value
