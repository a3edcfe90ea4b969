"""The tensors that can be factored: plain ones of a usual floating type."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hystar_fast.ref.dense import FLOATING


def check_weight(weight: Tensor) -> None:
    """Raise a TypeError, with the way out, unless `weight` is a plain strided tensor of a usual floating type."""
    kind = type(weight).__name__
    if kind == "DTensor":  # by its name, as importing it takes half a second
        got = "a DTensor; inject before the model is sharded (fully_shard, parallelize_module)"
    elif weight.is_nested:
        got = "a nested one; give the layer one matrix"
    elif type(weight) not in (Tensor, nn.Parameter):
        got = f"a {kind}; inject before the model is quantised or traced, or give the layer a plain weight first"
    elif weight.layout != torch.strided:
        got = f"one of layout {weight.layout}; give the layer weight.to_dense() first"
    elif weight.dtype not in FLOATING:
        got = f"one of {weight.dtype}; convert the layer first, for example to torch.bfloat16"
    else:
        return
    raise TypeError(f"weight must be a plain tensor in float16, bfloat16, float32 or float64, got {got}")
