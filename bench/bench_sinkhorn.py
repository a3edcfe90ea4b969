"""Sinkhorn, 50 iterations in fp32: single problems and batches, beside the plain loop, torch.compile and the peers.

flash-sinkhorn takes points instead of costs and returns potentials instead of the plan: it has a benchmark of its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from itertools import product

import pytest
import torch
from harness import DEVICE, OURS, PLAN, Outputs, compiled, forward, forward_backward
from torch import Tensor

import hystar_fast as hf
from hystar_fast.ops.sinkhorn import torch as sinkhorn_torch

EPSILON, ITERATIONS = 0.05, 50
IN_TORCH = f"{OURS}, gradient in torch"
SIZES = {
    "cpu": [(1, 48), (64, 48), (1, 256), (16, 256), (1, 1024), (4, 1024)],
    "cuda": [(1, 48), (4096, 48), (64, 256), (1, 8192), (1, 1024), (64, 128), (16, 512)],
}
BACKWARD_SIZES = {"cpu": [(1, 48), (16, 256)], "cuda": [(1, 48), (16, 256), (64, 128), (1024, 48)]}
# The CUDA kernels that those sizes do not take, beside the plain loop alone
OTHER_KERNELS = [(4096, 32), (1024, 64), (512, 96), (128, 192), (8, 640), (1, 1023), (1, 8191), (1, 9000)]


def half_steps(kernel: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the potentials u and v after one iteration."""
    u = -torch.logsumexp(kernel + v[:, None, :], 2)
    return u, -torch.logsumexp(kernel + u[:, :, None], 1)


def naive(cost: Tensor, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = half_steps) -> Tensor:
    """Compute the plan by the usual loop: two logsumexps an iteration."""
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
    """Compute the plans by POT's log-domain solver, one problem at a time."""
    from ot.bregman import sinkhorn_log

    n = cost.shape[1]
    ones = torch.full((n,), 1.0 / n, device=cost.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT warns that 50 iterations did not converge
        plans = [sinkhorn_log(ones, ones, c, EPSILON, numItermax=ITERATIONS, stopThr=0) for c in cost]
    return torch.stack(plans) * n


def pot_batch(cost: Tensor) -> Tensor:
    """Compute the plans by POT's batched solver; other first and last half-steps make them differ until convergence."""
    from ot.backend import get_backend
    from ot.batch import bregman_log_projection_batch

    n = cost.shape[1]
    ones = cost.new_full(cost.shape[:2], 1.0 / n)
    result = bregman_log_projection_batch(
        -cost / EPSILON, ones, ones, nx=get_backend(cost), max_iter=ITERATIONS, tol=0.0, grad="detach"
    )
    return result["T"] * n


def geomloss(cost: Tensor) -> Tensor:
    """Compute the plans by geomloss's solver for costs; symmetric, annealed steps: they differ until convergence."""
    from geomloss import ot

    return ot.solve_batch(cost, reg=EPSILON, max_iter=ITERATIONS).plan * cost.shape[1]


def one_pass(cost: Tensor) -> Tensor:
    """Read the cost once an iteration and do nothing else: the lower bound if the cost does not fit on chip."""
    for _ in range(ITERATIONS):
        total = cost.sum()
    return total


PROVIDERS: dict[str, Callable[[Tensor], Tensor]] = {
    OURS: ours,
    "naive torch": naive,
    "reference, eager": reference,
    "naive, torch.compile": naive,
    "POT": pot,
    "POT batch": pot_batch,
}
if PLAN == "cuda":  # geomloss takes seconds a call on a CPU
    PROVIDERS |= {"geomloss": geomloss, "floor: one pass an iteration": one_pass}
WITHOUT_TRUTH = (pot_batch, geomloss, one_pass)  # their result is not the plan after 50 iterations of the plain loop


@lru_cache(maxsize=1)
def problem(batch: int, n: int) -> tuple[Tensor, Tensor, Outputs]:
    """Return costs, an upstream gradient, and the plan and the gradient of the cost in float64."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(batch, n, n, generator=generator).to(DEVICE)
    upstream = torch.randn(batch, n, n, generator=generator).to(DEVICE)
    if cost.numel() > 1 << 24:  # the autograd graph of 50 iterations would not fit
        return cost, upstream, [naive(cost.double())]
    exact = cost.double().requires_grad_()
    truth = forward_backward(lambda: naive(exact), [exact], upstream.double())()
    return cost, upstream, [a.detach() for a in truth]


def gib(cost: Tensor, passes: int = 2) -> float:
    """Return the GiB of the cost read and the plan written, or of more passes over arrays of that size."""
    return passes * cost.numel() * cost.element_size() / 2**30


def gflop(cost: Tensor) -> float:
    """Return GFLOP, counting two multiply-adds an entry and iteration (stabilised potentials avoid the log domain)."""
    return 4 * cost.numel() * ITERATIONS / 1e9


# Size -> instructions of a lane for an entry and iteration on chip: counting model in docs/algorithms/sinkhorn_cuda.md.
LANE_INSTRUCTIONS = {48: 245 * 32 / 48**2, 256: 420 * 8 * 32 / (128 * 256)}


def issued(cost: Tensor) -> dict[str, float]:
    """Return the instructions in GFLOP, each as a multiply-add: divided by the fp32 rate, the time to issue them."""
    count = LANE_INSTRUCTIONS.get(cost.shape[1])
    return {} if count is None else {"issued_gflop": 2 * count * cost.numel() * ITERATIONS / 1e9}


# These two take seconds a call at the largest sizes.
SLOW = ("POT", "naive, torch.compile")
MEASURED = [
    (batch, n, provider)
    for batch, n in SIZES[PLAN]
    for provider in PROVIDERS
    if batch * n**2 < 1 << 23 or provider not in SLOW
]
if PLAN == "cuda":
    MEASURED += [(*size, provider) for size in OTHER_KERNELS for provider in (OURS, "naive torch")]


@pytest.mark.parametrize(("batch", "n", "provider"), MEASURED)
def bench_sinkhorn(record: Callable[..., None], quick: bool, batch: int, n: int, provider: str) -> None:
    if provider == "geomloss":
        pytest.importorskip("geomloss")
    cost, _, truth = problem(*((min(batch, 2), math.isqrt(n)) if quick else (batch, n)))
    function = PROVIDERS[provider]
    if "compile" in provider:
        step = compiled(half_steps)
        function = lambda cost: naive(cost, step)  # noqa: E731
    exact = None if function in WITHOUT_TRUTH else truth[:1]
    name = f"{len(cost)} of {cost.shape[1]}x{cost.shape[2]}"
    run = forward(lambda: function(cost))
    demand = {"gib": gib(cost), "gflop": gflop(cost), **issued(cost)}
    record("sinkhorn", name, provider, "forward", torch.float32, run, exact, **demand)


def with_gradient_in_torch(cost: Tensor, upstream: Tensor, grad: str) -> Outputs:
    """Run our forward, and the gradient in torch that sizes without a gradient kernel use."""
    unrolls = grad == "unroll"
    plan, history, info = torch.ops.hystar_fast.sinkhorn_forward(cost, None, EPSILON, ITERATIONS, 0.0, unrolls)
    if unrolls:
        arguments = (upstream, plan, cost, None, history, info, EPSILON, ITERATIONS)
        return [plan, sinkhorn_torch.unrolled_backward(*arguments)]
    return [plan, sinkhorn_torch.implicit_backward(upstream, plan, info, EPSILON)]


# The plain loop has no implicit gradient. On a GPU, larger sizes use the gradient in torch.
GRADIENTS = [
    (batch, n, grad, provider)
    for batch, n in BACKWARD_SIZES[PLAN]
    for grad, provider in product(("unroll", "implicit"), (OURS, IN_TORCH, "naive torch"))
    if not (grad == "implicit" and provider == "naive torch")
    and not (PLAN == "cpu" and provider == IN_TORCH and n > 48)
]


@pytest.mark.parametrize(("batch", "n", "grad", "provider"), GRADIENTS)
def bench_sinkhorn_backward(
    record: Callable[..., None], quick: bool, batch: int, n: int, grad: str, provider: str
) -> None:
    cost, upstream, truth = problem(*((min(batch, 2), math.isqrt(n)) if quick else (batch, n)))
    cost = cost.detach().requires_grad_()
    function = naive if provider != OURS else lambda cost: hf.sinkhorn(cost, EPSILON, ITERATIONS, grad=grad)
    run = forward_backward(lambda: function(cost), [cost], upstream)
    if provider == IN_TORCH:
        run = lambda: with_gradient_in_torch(cost.detach(), upstream, grad)  # noqa: E731
    name = f"{len(cost)} of {cost.shape[1]}x{cost.shape[2]}" + ("" if grad == "unroll" else ", implicit")
    exact = truth if grad == "unroll" else None  # the implicit gradient is that of the converged plan
    record("sinkhorn", name, provider, "forward+backward", torch.float32, run, exact, gib=gib(cost, 5))


def points_ours(x: Tensor, y: Tensor) -> Tensor:
    """Return the plan between two sets of points, after building their cost."""
    sinkhorn = hf.sinkhorn if x.dtype == torch.float32 else lambda cost, *rest: naive(cost[None])[0]
    return sinkhorn(torch.cdist(x, y).square(), EPSILON, ITERATIONS)


def points_geomloss(x: Tensor, y: Tensor) -> Tensor:
    """Return geomloss's potentials of points; it halves the squared distance and takes symmetric, annealed steps."""
    from geomloss import SamplesLoss

    options = {"p": 2, "blur": (EPSILON / 2) ** 0.5, "debias": False, "backend": "tensorized", "potentials": True}
    return SamplesLoss("sinkhorn", **options)(x, y)[0]


def points_flash(x: Tensor, y: Tensor) -> Tensor:
    """Return flash-sinkhorn's potentials of points."""
    from flash_sinkhorn import SamplesLoss

    options = {"backend": "alternating", "use_epsilon_scaling": False, "allow_tf32": False, "potentials": True}
    return SamplesLoss(eps=EPSILON, n_iters=ITERATIONS, **options)(x, y)[0]


@pytest.mark.skipif(PLAN == "cpu", reason="flash-sinkhorn needs CUDA")
@pytest.mark.parametrize("provider", [OURS, "flash-sinkhorn (potentials)", "geomloss (potentials)"])
@pytest.mark.parametrize("n", [1024, 8192])
def bench_points(record: Callable[..., None], quick: bool, n: int, provider: str) -> None:
    """Measure squared distances of 64-dimensional points: ours builds the cost and returns the plan, a peer neither."""
    if provider != OURS:
        pytest.importorskip(provider.split()[0].replace("-", "_"))
        if DEVICE == "cpu":
            pytest.skip(f"{provider} takes seconds a call on a CPU, or needs CUDA")
    generator = torch.Generator().manual_seed(0)
    x, y = (0.1 * torch.randn(64 if quick else n, 64, generator=generator).to(DEVICE) for _ in range(2))
    calls = {OURS: points_ours, "flash-sinkhorn (potentials)": points_flash, "geomloss (potentials)": points_geomloss}
    run = forward(lambda: calls[provider](x, y))
    truth = [points_ours(x.double(), y.double())] if provider == OURS else None  # the peers return no plan
    record("sinkhorn", f"points {len(x)} D64", provider, "forward", torch.float32, run, truth)
