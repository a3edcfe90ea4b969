"""The perturbed top-K forward and backward, beside the dense form with one-hot rows of every sample of the noise.

Every provider draws its noise from the same seed, so that all have the same result and the same estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from harness import DEVICE, OURS, Outputs, forward_backward
from torch import Tensor

import hystar_fast as hf
from hystar_fast.ops.perturbed_topk import torch as perturbed_topk_torch
from hystar_fast.ref.perturbed_topk import normal_noise

SIGMA, SAMPLES = 0.05, 1000
GENERATOR = torch.Generator(DEVICE)


class DenseForm(torch.autograd.Function):
    """The usual code: one-hot rows [B, S, K, N] from topk and sort, their mean, and an einsum for the gradient.

    The gradient has the control variate and the projection of ours, so that the results can be compared.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor, k: int) -> Tensor:
        noise = normal_noise(scores, SAMPLES, GENERATOR.manual_seed(0))
        order = (scores.unsqueeze(1) + SIGMA * noise).topk(k, sorted=False).indices.sort(-1).values
        hard = torch.nn.functional.one_hot(order, scores.shape[1]).to(scores.dtype)
        ctx.save_for_backward(hard, noise)
        return hard.mean(1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, dsoft: Tensor) -> tuple[Tensor, None]:
        hard, noise = ctx.saved_tensors
        weight = torch.einsum("bskn,bkn->bs", hard, dsoft)
        weight = weight - weight.mean(1, keepdim=True)
        dscores = torch.einsum("bs,bsn->bn", weight, noise) / ((SAMPLES - 1) * SIGMA)
        return dscores - dscores.mean(1, keepdim=True), None


def dense(scores: Tensor, k: int) -> Tensor:
    soft: Tensor = DenseForm.apply(scores, k)
    return soft


def reference(scores: Tensor, k: int) -> Tensor:
    return hf.ref.perturbed_topk(scores, k, sigma=SIGMA, samples=SAMPLES, generator=GENERATOR.manual_seed(0))


def ours(scores: Tensor, k: int) -> Tensor:
    return hf.perturbed_topk(scores, k, sigma=SIGMA, samples=SAMPLES, generator=GENERATOR.manual_seed(0))


IN_TORCH, NOISE = f"{OURS}, all in torch", "floor: the noise alone"
PROVIDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    OURS: ours,
    "dense form": dense,
    "reference, eager": reference,
}
SIZES = [(16, 196, 19), (16, 49, 4)]  # the paper's patches and its 10 %, and the regions of its VGG
# autograd keeps a dozen tensors [B, S, K, N] of the reference: 3 GB at the larger size
CASES = [
    (*size, provider)
    for size in SIZES
    for provider in (*PROVIDERS, IN_TORCH, NOISE)
    if size[1] < 196 or provider != "reference, eager"
]


def all_in_torch(scores: Tensor, k: int, dsoft: Tensor) -> Outputs:
    """Run the path of devices without a kernel."""
    forbidden = torch.zeros_like(scores, dtype=torch.bool)
    noise = normal_noise(scores, SAMPLES, GENERATOR.manual_seed(0))
    soft, chosen = perturbed_topk_torch.forward(scores, noise, forbidden, k, SIGMA, True)
    return [soft, perturbed_topk_torch.backward(dsoft, chosen, noise, forbidden, SIGMA)]


@lru_cache(maxsize=1)
def problem(b: int, n: int, k: int) -> tuple[Tensor, Tensor, Outputs]:
    """Return scores, an upstream gradient, and the result and gradient on the same choices with sums in float64.

    The perturbed scores are those of float32, as rounding them otherwise may exchange two that are nearly equal.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(b, n, generator=generator).to(DEVICE)
    dsoft = torch.randn(b, k, n, generator=generator).to(DEVICE)
    noise = normal_noise(scores, SAMPLES, GENERATOR.manual_seed(0))
    forbidden = torch.zeros_like(scores, dtype=torch.bool)
    soft, chosen = perturbed_topk_torch.forward(scores, noise, forbidden, k, SIGMA, True)
    gradient = perturbed_topk_torch.backward(dsoft.double(), chosen, noise, forbidden, SIGMA)
    return scores, dsoft, [(soft.double() * SAMPLES).round() / SAMPLES, gradient]


@pytest.mark.parametrize(("b", "n", "k", "provider"), CASES)
def bench_perturbed_topk(record: Callable[..., None], quick: bool, b: int, n: int, k: int, provider: str) -> None:
    b, n, k = (2, n // 7, max(1, k // 4)) if quick else (b, n, k)
    scores, dsoft, truth = problem(b, n, k)
    leaf = scores.clone().requires_grad_()
    function = PROVIDERS.get(provider, ours)
    run = forward_backward(lambda: function(leaf, k), [leaf], dsoft)
    if provider == IN_TORCH:
        run = lambda: all_in_torch(scores, k, dsoft)  # noqa: E731
    if provider == NOISE:  # the lower bound for any code that takes it from torch
        run = lambda: [normal_noise(scores, SAMPLES, GENERATOR.manual_seed(0))]  # noqa: E731
    exact = None if provider == NOISE else truth
    record("perturbed_topk", f"B{b} S{SAMPLES} N{n} K{k}", provider, "forward+backward", torch.float32, run, exact)
