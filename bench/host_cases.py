"""Calls whose host time is measured: layers and losses so small that the device is faster than Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from bench_style_nce import info_nce
from harness import DEVICE, OURS, Run, forward, forward_backward
from svd_linear_providers import Inputs, ours, ours_fp8, two_gemms

import hystar_fast as hf
from hystar_fast.ops.svd_linear.fp8 import quantise_factors

SIZES = (8, 64, 256, 256, 256)  # batch, tokens, in, out, rank: few tokens, or weights would be built
LAYER = "host time, B{} T{} {}->{} r{}".format(*SIZES)


def layer() -> tuple[Inputs, torch.Tensor]:
    batch, tokens, inner, outer, rank = SIZES
    x, dy = (torch.randn(batch, tokens, n, device=DEVICE, dtype=torch.bfloat16) for n in (inner, outer))
    u, vh = (torch.randn(*n, device=DEVICE, dtype=torch.bfloat16) for n in ((outer, rank), (rank, inner)))
    s, delta = torch.randn(rank, device=DEVICE), torch.randn(batch, rank, device=DEVICE)
    return Inputs(x, u, s, delta, vh, u @ vh, None, quantise_factors(u, vh)), dy


def layer_call(provider: Callable[[Inputs], torch.Tensor], mode: str) -> Run:
    inputs, dy = layer()
    if mode == "forward":
        return forward(lambda: provider(inputs))
    leaves = [inputs.x.requires_grad_(), inputs.delta.requires_grad_()]
    return forward_backward(lambda: provider(inputs), leaves[: 1 if provider is two_gemms else 2], dy)


def loss_call(loss: Callable[..., torch.Tensor]) -> Run:
    inputs = [torch.randn(48, 768, device=DEVICE, requires_grad=True) for _ in range(2)]
    return forward_backward(lambda: loss(*inputs), inputs, torch.ones((), device=DEVICE))


def sinkhorn_call() -> Run:
    cost = torch.rand(1, 48, 48, device=DEVICE)
    return forward(lambda: hf.sinkhorn(cost, 0.05, 50))


def cases() -> Iterator[tuple[str, str, str, str, Callable[[], Run]]]:
    """Yield op, case, mode, provider, and a function that makes the call."""
    for mode in ("forward", "forward+backward"):
        for name, provider in (("two GEMMs", two_gemms), (OURS, ours), (f"{OURS}, fp8", ours_fp8)):
            yield "svd_linear", LAYER, mode, name, lambda p=provider, m=mode: layer_call(p, m)
    for name, loss in (("InfoNCE", info_nce), (OURS, hf.style_nce)):
        yield "style_nce", "host time, N48 D768", "forward+backward", name, lambda f=loss: loss_call(f)
    yield "sinkhorn", "host time, 1 of 48x48", "forward", OURS, sinkhorn_call
