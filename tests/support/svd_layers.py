"""Pairs of an nn.Linear and the FastSVDLinear built from it, and the modulated weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hystar_fast.nn.fast_svd_linear import FastSVDLinear


def make(
    in_features: int = 13,
    out_features: int = 17,
    rank: int | None = None,
    keep_remainder: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[nn.Linear, FastSVDLinear]:
    linear = nn.Linear(in_features, out_features, bias, dtype=dtype)
    return linear, FastSVDLinear.from_linear(linear, rank, keep_remainder)


def modulated(linear: nn.Linear, layer: FastSVDLinear, offset: Tensor) -> Tensor:
    """Compute W + u diag(offset) vh, [out, in] or [B, out, in], in float64."""
    u, vh = layer.u.detach().double(), layer.vh.detach().double()
    weight = linear.weight.detach().double()
    if layer.rank < min(weight.shape) and layer.base_weight is None:
        weight = (u * layer.s.detach()) @ vh
    return weight + (u * offset.double().unsqueeze(-2)) @ vh
