"""Sinkhorn, 50 iterations in fp32: single problems and batches, beside the plain loop, torch.compile and the peers.

flash-sinkhorn takes points, not costs, and returns potentials, not the plan: it is measured on its own ground.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from itertools import product

import pytest
import torch
from harness import DEVICE, OURS, PLAN, Outputs, compiled, forward, forward_backward, graphed
from torch import Tensor

import hystar_fast as hf
from hystar_fast.ops.sinkhorn import torch as sinkhorn_torch

EPSILON, ITERATIONS = 0.05, 50
IN_TORCH = f"{OURS}, gradient in torch"
CASES = [(1, 48), (64, 48), (1, 256), (16, 256), (1, 1024), (4, 1024)]
if PLAN == "cuda":
    CASES = [(1, 48), (4096, 48), (64, 256), (1, 8192), (1, 1024), (64, 128), (16, 512)]
BACKWARD_CASES = [(1, 48), (16, 256)] if PLAN == "cpu" else [(1, 48), (16, 256), (64, 128), (1024, 48)]


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


def geomloss(cost: Tensor) -> Tensor:
    """geomloss's solver for cost matrices: symmetric steps with annealing, so its plan differs until convergence."""
    from geomloss import ot

    return ot.solve_batch(cost, reg=EPSILON, max_iter=ITERATIONS).plan * cost.shape[1]


def one_pass(cost: Tensor) -> Tensor:
    """What streaming the cost once an iteration takes, and nothing else: the floor of a problem too large to keep."""
    for _ in range(ITERATIONS):
        total = cost.sum()
    return total


PROVIDERS: dict[str, Callable[[Tensor], Tensor]] = {
    OURS: ours,
    **({"hystar_fast, CUDA graph": ours} if PLAN == "cuda" else {}),
    "naive torch": naive,
    "reference, eager": reference,
    "naive, torch.compile": naive,
    "POT": pot,
    "POT batch": pot_batch,
}
if PLAN == "cuda":  # geomloss takes seconds a call on a CPU
    PROVIDERS |= {"geomloss": geomloss, "floor: one pass an iteration": one_pass}
OTHER = (pot_batch, geomloss, one_pass)  # not the plan of these 50 iterations


@lru_cache(maxsize=1)
def case(batch: int, n: int) -> tuple[Tensor, Tensor, Outputs]:
    """Costs, upstream gradient, and the float64 plan and gradient of the cost."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(batch, n, n, generator=generator).to(DEVICE)
    upstream = torch.randn(batch, n, n, generator=generator).to(DEVICE)
    if cost.numel() > 1 << 24:  # the graph of 50 iterations would not fit
        return cost, upstream, [naive(cost.double())]
    exact = cost.double().requires_grad_()
    truth = forward_backward(lambda: naive(exact), [exact], upstream.double())()
    return cost, upstream, [a.detach() for a in truth]


def gib(cost: Tensor, passes: int = 2) -> float:
    """The cost read and the plan written, and whatever else of that size."""
    return passes * cost.numel() * cost.element_size() / 2**30


def gflop(cost: Tensor) -> float:
    """Two multiply-adds an entry and iteration: what is left of the log domain once the potentials are stabilised."""
    return 4 * cost.numel() * ITERATIONS / 1e9


# Lane instructions an entry and iteration on chip, by size: the counting model of docs/algorithms/sinkhorn_cuda.md.
ISSUED = {48: 245 * 32 / 48**2, 256: 420 * 8 * 32 / (128 * 256)}


def issue(cost: Tensor) -> dict[str, float]:
    """The instructions as if each were a multiply-add, in GFLOP: at the fp32 rate this is the time to issue them."""
    count = ISSUED.get(cost.shape[1])
    return {} if count is None else {"issued_gflop": 2 * count * cost.numel() * ITERATIONS / 1e9}


# those two take seconds a call at the largest sizes
SLOW = ("POT", "naive, torch.compile")
MEASURED = [(*c, who) for c in CASES for who in PROVIDERS if c[0] * c[1] ** 2 < 1 << 23 or who not in SLOW]


@pytest.mark.parametrize(("batch", "n", "provider"), MEASURED)
def bench_sinkhorn(record: Callable[..., None], quick: bool, batch: int, n: int, provider: str) -> None:
    if provider == "geomloss":
        pytest.importorskip("geomloss")
    if "graph" in provider and DEVICE == "cpu":
        pytest.skip("graphs are CUDA's")
    cost, _, truth = case(*((min(batch, 2), math.isqrt(n)) if quick else (batch, n)))
    function = PROVIDERS[provider]
    if "compile" in provider:
        step = compiled(half_steps)
        function = lambda cost: naive(cost, step)  # noqa: E731
    exact = None if function in OTHER else truth[:1]
    name = f"{len(cost)} of {cost.shape[1]}x{cost.shape[2]}"
    run = forward(lambda: function(cost))
    if "graph" in provider:
        run = graphed(run)
    need = {"gib": gib(cost), "gflop": gflop(cost), **issue(cost)}
    record("sinkhorn", name, provider, "forward", torch.float32, run, exact, **need)


def with_gradient_in_torch(cost: Tensor, upstream: Tensor, grad: str) -> Outputs:
    """Our forward, and the gradient that sizes without a kernel for it take."""
    unrolls = grad == "unroll"
    plan, history, info = torch.ops.hystar_fast.sinkhorn_forward(cost, None, EPSILON, ITERATIONS, 0.0, unrolls)
    if unrolls:
        arguments = (upstream, plan, cost, None, history, info, EPSILON, ITERATIONS)
        return [plan, sinkhorn_torch.unrolled_backward(*arguments)]
    return [plan, sinkhorn_torch.implicit_backward(upstream, plan, info, EPSILON)]


# the plain loop has no implicit gradient; the gradient in torch is what larger sizes take on a GPU
GRADIENTS = [
    (batch, n, grad, provider)
    for batch, n in BACKWARD_CASES
    for grad, provider in product(("unroll", "implicit"), (OURS, IN_TORCH, "naive torch"))
    if not (grad == "implicit" and provider == "naive torch")
    and not (PLAN == "cpu" and provider == IN_TORCH and n > 48)
]


@pytest.mark.parametrize(("batch", "n", "grad", "provider"), GRADIENTS)
def bench_sinkhorn_backward(
    record: Callable[..., None], quick: bool, batch: int, n: int, grad: str, provider: str
) -> None:
    cost, upstream, truth = case(*((min(batch, 2), math.isqrt(n)) if quick else (batch, n)))
    cost = cost.detach().requires_grad_()
    function = naive if provider != OURS else lambda cost: hf.sinkhorn(cost, EPSILON, ITERATIONS, grad=grad)
    run = forward_backward(lambda: function(cost), [cost], upstream)
    if provider == IN_TORCH:
        run = lambda: with_gradient_in_torch(cost.detach(), upstream, grad)  # noqa: E731
    name = f"{len(cost)} of {cost.shape[1]}x{cost.shape[2]}" + ("" if grad == "unroll" else ", implicit")
    exact = truth if grad == "unroll" else None  # the implicit gradient is that of the converged plan
    record("sinkhorn", name, provider, "forward+backward", torch.float32, run, exact, gib=gib(cost, 5))


def points_ours(x: Tensor, y: Tensor) -> Tensor:
    sinkhorn = hf.sinkhorn if x.dtype == torch.float32 else lambda cost, *rest: naive(cost[None])[0]
    return sinkhorn(torch.cdist(x, y).square(), EPSILON, ITERATIONS)


def points_geomloss(x: Tensor, y: Tensor) -> Tensor:
    """geomloss's solver for points: it halves the squared distance, anneals, and takes symmetric steps."""
    from geomloss import SamplesLoss

    options = {"p": 2, "blur": (EPSILON / 2) ** 0.5, "debias": False, "backend": "tensorized", "potentials": True}
    return SamplesLoss("sinkhorn", **options)(x, y)[0]


def points_flash(x: Tensor, y: Tensor) -> Tensor:
    from flash_sinkhorn import SamplesLoss

    options = {"backend": "alternating", "use_epsilon_scaling": False, "allow_tf32": False, "potentials": True}
    return SamplesLoss(eps=EPSILON, n_iters=ITERATIONS, **options)(x, y)[0]


@pytest.mark.skipif(PLAN == "cpu", reason="flash-sinkhorn runs on CUDA alone")
@pytest.mark.parametrize("provider", [OURS, "flash-sinkhorn (potentials)", "geomloss (potentials)"])
@pytest.mark.parametrize("n", [1024, 8192])
def bench_points(record: Callable[..., None], quick: bool, n: int, provider: str) -> None:
    """Squared distances of 64-dimensional points: ours builds the cost and returns the plan, the peer does neither."""
    if provider != OURS:
        pytest.importorskip(provider.split()[0].replace("-", "_"))
        if DEVICE == "cpu":
            pytest.skip(f"{provider} takes seconds a call on a CPU, or has none for it")
    generator = torch.Generator().manual_seed(0)
    x, y = (0.1 * torch.randn(64 if quick else n, 64, generator=generator).to(DEVICE) for _ in range(2))
    calls = {OURS: points_ours, "flash-sinkhorn (potentials)": points_flash, "geomloss (potentials)": points_geomloss}
    run = forward(lambda: calls[provider](x, y))
    truth = [points_ours(x.double(), y.double())] if provider == OURS else None  # the peers return no plan
    record("sinkhorn", f"points {len(x)} D64", provider, "forward", torch.float32, run, truth)
