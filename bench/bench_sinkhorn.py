"""Sinkhorn, 50 iterations in fp32: single problems and batches, beside the plain loop, torch.compile and POT."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from harness import DEVICE, Outputs, compiled, forward, forward_backward
from torch import Tensor

import hystar_fast as hf

EPSILON, ITERATIONS = 0.05, 50
CASES = [(1, 48), (64, 48), (1, 256), (16, 256), (1, 1024), (4, 1024)]


def half_steps(kernel: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    u = -torch.logsumexp(kernel + v[:, None, :], 2)
    return u, -torch.logsumexp(kernel + u[:, :, None], 1)


def naive(cost: Tensor, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = half_steps) -> Tensor:
    """The loop everybody writes: two logsumexps an iteration."""
    kernel = -cost / EPSILON
    v = torch.zeros_like(cost[:, 0])
    for _ in range(ITERATIONS):
        u, v = step(kernel, v)
    return (u[:, :, None] + kernel + v[:, None, :]).exp()


def reference(cost: Tensor) -> Tensor:
    return hf.ref.sinkhorn(cost, EPSILON, ITERATIONS)


def ours(cost: Tensor) -> Tensor:
    return hf.sinkhorn(cost, EPSILON, ITERATIONS)


def pot(cost: Tensor) -> Tensor:
    """POT's log-domain solver, a problem at a time."""
    from ot.bregman import sinkhorn_log

    n = cost.shape[1]
    ones = torch.full((n,), 1.0 / n, device=cost.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that 50 iterations did not converge
        plans = [sinkhorn_log(ones, ones, c, EPSILON, numItermax=ITERATIONS, stopThr=0) for c in cost]
    return torch.stack(plans) * n


def pot_batch(cost: Tensor) -> Tensor:
    """POT's batched solver; it starts and ends on other half-steps, so its plan differs until convergence."""
    from ot.backend import get_backend
    from ot.batch import bregman_log_projection_batch

    n = cost.shape[1]
    ones = cost.new_full(cost.shape[:2], 1.0 / n)
    result = bregman_log_projection_batch(
        -cost / EPSILON, ones, ones, nx=get_backend(cost), max_iter=ITERATIONS, tol=0.0, grad="detach"
    )
    return result["T"] * n


PROVIDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "hystar_fast": ours,
    "naive torch": naive,
    "reference, eager": reference,
    "naive, torch.compile": naive,
    "POT": pot,
    "POT batch": pot_batch,
}


@lru_cache(maxsize=1)
def case(batch: int, n: int) -> tuple[Tensor, Tensor, Outputs]:
    """Costs, upstream gradient, and the float64 plan and gradient of the cost."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(batch, n, n, generator=generator).to(DEVICE)
    upstream = torch.randn(batch, n, n, generator=generator).to(DEVICE)
    exact = cost.double().requires_grad_()
    truth = forward_backward(lambda: naive(exact), [exact], upstream.double())()
    return cost, upstream, [a.detach() for a in truth]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("batch", "n"), CASES, ids=lambda value: str(value))
def bench_sinkhorn(record: Callable[..., None], quick: bool, batch: int, n: int, provider: str) -> None:
    cost, _, truth = case(*((min(batch, 2), math.isqrt(n)) if quick else (batch, n)))
    function = PROVIDERS[provider]
    if "compile" in provider:
        step = compiled(half_steps)
        function = lambda cost: naive(cost, step)  # noqa: E731
    exact = None if function is pot_batch else truth[:1]
    name = f"{len(cost)} of {cost.shape[1]}x{cost.shape[2]}"
    record("sinkhorn", name, provider, "forward", torch.float32, forward(lambda: function(cost)), exact)


@pytest.mark.parametrize("provider", ["hystar_fast", "naive torch"])
@pytest.mark.parametrize(("batch", "n"), [(1, 48), (16, 256)], ids=lambda value: str(value))
def bench_sinkhorn_backward(record: Callable[..., None], quick: bool, batch: int, n: int, provider: str) -> None:
    cost, upstream, truth = case(*((min(batch, 2), math.isqrt(n)) if quick else (batch, n)))
    cost = cost.detach().requires_grad_()
    run = forward_backward(lambda: PROVIDERS[provider](cost), [cost], upstream)
    name = f"{len(cost)} of {cost.shape[1]}x{cost.shape[2]}"
    record("sinkhorn", name, provider, "forward+backward", torch.float32, run, truth)
