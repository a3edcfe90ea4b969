"""svd_linear at the shapes of a ViT-L/14: packed qkv (1024 -> 3072) and output projection (1024 -> 1024)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from harness import DEVICE, Outputs, compiled, forward, forward_backward
from torch import Tensor
from torch.nn import functional as F

import hystar_fast as hf

B, T, IN = (48 if DEVICE == "cuda" else 16), 257, 1024


def plain(x: Tensor, u: Tensor, s: Tensor, delta: Tensor, vh: Tensor, w: Tensor) -> Tensor:
    """The frozen nn.Linear that the layer replaces."""
    return F.linear(x, w)


def authors(x: Tensor, u: Tensor, s: Tensor, delta: Tensor, vh: Tensor, w: Tensor) -> Tensor:
    """The published path: every sample's weight is built and multiplied with bmm."""
    delta_w = u @ torch.diag_embed(delta.to(x.dtype)) @ vh
    return torch.bmm(x, (w.repeat(len(x), 1, 1) + delta_w).transpose(1, 2))


def materialised(x: Tensor, u: Tensor, s: Tensor, delta: Tensor, vh: Tensor, w: Tensor) -> Tensor:
    """The cheaper way to build every sample's weight: scale U, one product, bmm."""
    return torch.bmm(x, ((u * (s + delta).to(x.dtype)[:, None]) @ vh).transpose(1, 2))


def factored(x: Tensor, u: Tensor, s: Tensor, delta: Tensor, vh: Tensor, w: Tensor) -> Tensor:
    return hf.ref.svd_linear(x, u, s + delta, vh)


def ours(x: Tensor, u: Tensor, s: Tensor, delta: Tensor, vh: Tensor, w: Tensor) -> Tensor:
    return hf.svd_linear(x, u, s + delta, vh)


PROVIDERS: dict[str, Callable[..., Tensor]] = {
    "plain linear": plain,
    "hystar_fast": ours,
    "reference, eager": factored,
    "reference, torch.compile": factored,
    "materialised": materialised,
    "authors' path": authors,
}


@lru_cache(maxsize=1)
def case(out: int, dtype: torch.dtype, quick: bool) -> tuple[list[Tensor], Tensor, Outputs]:
    """Inputs, upstream gradient, and the float64 output and gradients of x and delta."""
    batch, tokens, features, out = (2, 5, 32, out // 32) if quick else (B, T, IN, out)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(out, features, generator=generator) / features**0.5
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    x = torch.randn(batch, tokens, features, generator=generator)
    delta = 0.1 * torch.randn(batch, len(s), generator=generator)
    dy = torch.randn(batch, tokens, out, generator=generator).to(DEVICE, dtype)
    x, u, vh, w = (a.to(DEVICE, dtype) for a in (x, u, vh, w))
    s, delta = s.to(DEVICE), delta.to(DEVICE)
    exact = [a.double() for a in (x, u, s, delta, vh, w)]
    exact[0].requires_grad_()
    exact[3].requires_grad_()
    truth = forward_backward(lambda: factored(*exact), [exact[0], exact[3]], dy.double())()
    return [x, u, s, delta, vh, w], dy, [a.detach() for a in truth]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("out", [3072, 1024])
def bench_svd_linear(
    record: Callable[..., None], quick: bool, out: int, dtype: torch.dtype, mode: str, provider: str
) -> None:
    inputs, dy, truth = case(out, dtype, quick)
    x, _, s, delta, _, _ = inputs
    x, delta = x.detach().requires_grad_(), delta.detach().requires_grad_()
    arguments = [x, *inputs[1:3], delta, *inputs[4:]]
    function = PROVIDERS[provider]
    if "compile" in provider:
        function = compiled(function)
    wanted = [x] if function is plain else [x, delta]

    def run() -> Tensor:
        return function(*arguments)

    measured = forward(run) if mode == "forward" else forward_backward(run, wanted, dy)
    exact = None if function is plain else truth[: 1 if mode == "forward" else 3]
    name = f"B{len(x)} T{x.shape[1]} {x.shape[2]}->{dy.shape[2]} r{len(s)}"
    gflop = 2 * x.shape[0] * x.shape[1] * len(s) * (x.shape[2] + dy.shape[2]) * (1 if mode == "forward" else 2) / 1e9
    record("svd_linear", name, provider, mode, dtype, measured, exact, factored_gflop=gflop)
