"""Inputs of svd_linear, and a function that runs a forward and a backward on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS = ["shared", "sample", "bank"]

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]


def make_inputs(
    batch: int, tokens: int, in_features: int, out_features: int, rank: int, kind: str, dtype: torch.dtype
) -> Inputs:
    """Return x, u, scale, vh, bias and index. Like the layers, keep scale in float32 unless x is float64."""
    x = torch.randn(batch, tokens, in_features).to(dtype)
    u, vh = (torch.randn(out_features, rank) / rank**0.5).to(dtype), torch.randn(rank, in_features).to(dtype)
    rows = {"shared": (), "sample": (batch,), "bank": (3,)}[kind]
    scale = torch.randn(*rows, rank, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    index = torch.randint(0, 3, (batch,)) if kind == "bank" else None
    return x, u, scale, vh, torch.randn(out_features).to(dtype), index


def make_large(tokens: int) -> Inputs:
    """Return float16 inputs whose y is finite, though one entry of g = scale * (vh @ x) is 150,000."""
    x, u, scale, vh, bias, _ = make_inputs(2, tokens, 48, 56, 24, "sample", torch.float16)
    x[..., 0], vh[0] = 1000, torch.eye(48)[0]
    u[:, 0], scale[:, 0] = 56**-0.5, 150
    return x, u, scale, vh, bias, None


def run(function: Callable[..., Tensor], inputs: Inputs, dy: Tensor) -> tuple[Tensor, ...]:
    """Return y and the gradients of x, scale and bias."""
    x, u, scale, vh, bias, index = inputs
    x, scale, bias = (tensor.detach().requires_grad_() for tensor in (x, scale, bias))
    y = function(x, u, scale, vh, bias, index=index)
    return y, *torch.autograd.grad(y, (x, scale, bias), dy.to(y.dtype))
