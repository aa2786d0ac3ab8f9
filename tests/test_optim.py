"""The optimizers that stand in for `torch.optim`'s classes do what those do, without torch's compiler."""

import subprocess
import sys

import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor, nn

from geo_embed.config import Training
from geo_embed.devices import side_by_side
from geo_embed.optim import BETAS, make_adamw, minimise

SETTINGS = Training(learning_rate=0.01, weight_decay=0.3)


def test_adamw_moves_as_torchs_own_to_the_bit() -> None:
    def parameters() -> list[nn.Parameter]:
        generator = torch.Generator().manual_seed(1)
        return [nn.Parameter(torch.randn(size, generator=generator)) for size in ((5, 3), (3,), (2, 2))]

    trained, expected = parameters(), parameters()
    optimizer = make_adamw(trained, SETTINGS)
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in expected if p.ndim > 1], "weight_decay": 0.3},
            {"params": [p for p in expected if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=BETAS,
        fused=True,
    )
    for step in range(4):
        for parameter, other in zip(trained, expected, strict=True):
            # The third has a gradient in the first steps only.
            gradient = (
                None if parameter.shape == (2, 2) and step > 1 else torch.sin(parameter.detach() + step)
            )
            parameter.grad, other.grad = gradient, gradient
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = 0.01 / (step + 1)
        optimizer.step()
        reference.step()
    for parameter, other in zip(trained, expected, strict=True):
        assert torch.equal(parameter, other)


def test_lbfgs_finds_the_least_of_a_narrow_valley() -> None:
    def rosenbrock(x: Tensor) -> Tensor:
        return (1 - x[0]).square() + 100 * (x[1] - x[0].square()).square()

    least = minimise(rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64), rounds=200)
    torch.testing.assert_close(least, torch.ones(2, dtype=torch.float64), atol=1e-4, rtol=0)


def test_neither_imports_torchs_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from geo_embed.config import Training\n"
        "from geo_embed.optim import make_adamw, minimise\n"
        "p = torch.nn.Parameter(torch.zeros(2, 2))\n"
        "optimizer = make_adamw([p], Training())\n"
        "p.sum().backward()\n"
        "optimizer.step()\n"
        "minimise(lambda x: x.square().sum(), torch.ones(2), rounds=2)\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blas_has_one_thread_in_a_minimisation_and_beside_others_and_its_own_number_again_afterwards() -> (
    None
):
    seen: list[set[int]] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(blas_threads())
        return x.square().sum()

    def work(start: Tensor, _: int) -> Tensor:
        return minimise(watched, start, rounds=1)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2, user_api="blas"):
            minimise(watched, torch.ones(2), rounds=1)
            side_by_side(work, [torch.ones(2), torch.ones(2)], torch.device("cpu"))
            assert blas_threads() == {2}
    finally:
        torch.set_num_threads(before)
    assert len(seen) >= 3
    assert all(threads == {1} for threads in seen)
