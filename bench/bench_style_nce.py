"""StyleNCE forward and backward with a detached plan, at the paper's batch of 48 and at larger ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from harness import DEVICE, OURS, PLAN, Outputs, compiled, forward_backward
from torch import Tensor
from torch.nn import functional as F

import hystar_fast as hf
from hystar_fast.ops.style_nce import torch as style_nce_torch

DIMENSION = 768
EPSILON, LAM, ITERATIONS, TEMPERATURE, GAMMA = 0.1, 1.0, 50, 0.07, 80.0


def info_nce(query: Tensor, target: Tensor) -> Tensor:
    """Compute the loss that StyleNCE replaces (Eq. 3); the difference in time is the cost of the weights."""
    logits = F.normalize(query, dim=1) @ F.normalize(target, dim=1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def naive(query: Tensor, target: Tensor) -> Tensor:
    """Compute Eq. 4-7 as one would write them in torch, with the plan detached."""
    sim = F.normalize(query, dim=1) @ F.normalize(target, dim=1).T
    with torch.no_grad():
        kernel = (-(1 - sim).exp() / EPSILON).fill_diagonal_(-torch.inf)
        v = torch.zeros_like(kernel[0])
        for _ in range(ITERATIONS):
            u = -torch.logsumexp(kernel + v, 1)
            v = -torch.logsumexp(kernel + u[:, None], 0)
        weight = (u[:, None] + kernel + v).exp()
    positive = (sim.diagonal() / TEMPERATURE).exp()
    return -(positive / (positive + GAMMA * (weight * (sim / TEMPERATURE).exp()).sum(1))).log().mean()


def inf_cl(query: Tensor, target: Tensor) -> Tensor:
    """Compute InfoNCE by Inf-CL's kernel, which never holds N x N; it converts to float32."""
    from inf_cl import cal_inf_loss

    return cal_inf_loss(F.normalize(query, dim=1) / TEMPERATURE, F.normalize(target, dim=1))


def memeff(query: Tensor, target: Tensor) -> Tensor:
    """Compute InfoNCE by memeff's kernels, which never hold N x N; a margin of 2 masks no false negatives."""
    from memeff import MemoryEfficientQwen3Loss

    return MemoryEfficientQwen3Loss(TEMPERATURE, margin=2.0, stable=False)(query, target)


def siglip_kernel(query: Tensor, target: Tensor) -> Tensor:
    """Compute the sigmoid loss by siglip-kernel, one pass without a plan; temperature and bias are SigLIP's first."""
    from siglip_kernel import fused_siglip_loss

    log_temperature, bias = (torch.tensor(value, device=query.device) for value in (math.log(10), -10.0))
    return fused_siglip_loss(F.normalize(query, dim=1), F.normalize(target, dim=1), log_temperature, bias)


def reference(query: Tensor, target: Tensor) -> Tensor:
    return hf.ref.style_nce(query, target)


def ours(query: Tensor, target: Tensor) -> Tensor:
    return hf.style_nce(query, target)


def loss_in_torch(query: Tensor, target: Tensor) -> Outputs:
    """Run the path without our loss kernels: our Sinkhorn and its backward, and torch for the rest."""
    loss, *saved = style_nce_torch.forward(
        query.detach(),
        target.detach(),
        mask=None,
        temperature=TEMPERATURE,
        gamma=GAMMA,
        lam=LAM,
        epsilon=EPSILON,
        n_iter=ITERATIONS,
        weights="paper",
        mean=True,
        keep=True,
    )
    gradients = style_nce_torch.backward(
        torch.ones_like(loss), *saved, temperature=TEMPERATURE, needs_dquery=True, needs_dtarget=True
    )
    return [loss, *gradients]


PROVIDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "InfoNCE": info_nce,
    OURS: ours,
    "naive torch": naive,
    "reference, eager": reference,
    "naive, torch.compile": naive,
    "Inf-CL (InfoNCE)": inf_cl,
    "memeff (InfoNCE)": memeff,
    "siglip-kernel (sigmoid)": siglip_kernel,
}
PEERS = {  # losses without a plan, by the package of each
    "Inf-CL (InfoNCE)": "inf_cl",
    "memeff (InfoNCE)": "memeff",
    "siglip-kernel (sigmoid)": "siglip_kernel",
}
WITHOUT_PLAN = (info_nce, *(PROVIDERS[name] for name in PEERS))


@lru_cache(maxsize=1)
def inputs_and_truth(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Outputs]:
    """Return query, target, and the loss and gradients in float64, which are empty if they do not fit into memory."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(n, DIMENSION, generator=generator)
    target = query + torch.randn(n, DIMENSION, generator=generator)
    query, target = query.to(DEVICE, dtype), target.to(DEVICE, dtype)
    if n > LARGEST_EXACT:
        return query, target, []
    inputs = [a.double().requires_grad_() for a in (query, target)]
    dloss = torch.ones((), dtype=torch.float64, device=DEVICE)
    truth = forward_backward(lambda: reference(*inputs), inputs, dloss)()
    return query, target, [a.detach() for a in truth]


# Compiling 50 unrolled iterations is slow, so torch.compile is measured at the paper's batch only.
IN_TORCH = f"{OURS}, loss in torch"
CUDA_SIZES = (48, 256, 1024, 8192, 32768)
SIZES = (48, 256, 1024) if PLAN == "cpu" else CUDA_SIZES
LARGEST_EXACT = 8192  # a dozen N x N matrices in float64
CASES = [
    (n, torch.float32, provider)
    for n in SIZES
    for provider in (*PROVIDERS, IN_TORCH)
    if provider not in PEERS
    and (n == 48 or "compile" not in provider)
    and (provider != IN_TORCH or n <= (48 if PLAN == "cpu" else 1024))
    # at the largest size the N x N matrices of 50 iterations do not fit into memory
    and (n < 32768 or provider in (OURS, "InfoNCE"))
]
if PLAN != "cpu":
    CASES += [(65536, torch.bfloat16, provider) for provider in (OURS, "InfoNCE", *PEERS)]


@pytest.mark.parametrize(("n", "dtype", "provider"), CASES)
def bench_style_nce(record: Callable[..., None], quick: bool, n: int, dtype: torch.dtype, provider: str) -> None:
    if provider in PEERS:
        pytest.importorskip(PEERS[provider])
    n = max(3, n // 16 if n < 8192 else n // 256) if quick else n
    query, target, truth = inputs_and_truth(n, dtype)
    inputs = [a.detach().requires_grad_() for a in (query, target)]
    function = PROVIDERS.get(provider, ours)
    if "compile" in provider:
        function = compiled(function)
    run = forward_backward(lambda: function(*inputs), inputs, torch.ones((), device=DEVICE))
    if provider == IN_TORCH:
        run = lambda: loss_in_torch(*inputs)  # noqa: E731
    exact = None if function in WITHOUT_PLAN or not truth else truth
    read = 4 * n * DIMENSION * dtype.itemsize  # two inputs, two gradients
    demand = {"gflop": 6 * n * n * DIMENSION / 1e9, "gib": read / 2**30}
    record("style_nce", f"N{n} D{DIMENSION}", provider, "forward+backward", dtype, run, exact, **demand)
