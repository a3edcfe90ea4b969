"""The counts of torch.utils.flop_counter.FlopCounterMode: the products over all pairs, two for a multiply-add.

Element-wise work counts nothing, as for torch's own ops, and so Sinkhorn does not. A product that the large loss
computes again, to save memory, is counted once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Size
from torch.utils.flop_counter import register_flop_formula

import hystar_fast.ops.style_nce.api  # noqa: F401  it defines the ops


@register_flop_formula([torch.ops.hystar_fast.style_nce_forward, torch.ops.hystar_fast.style_nce_stream_forward])
def _forward(query: Size, *_: Any, **__: Any) -> int:
    return 2 * query[0] ** 2 * query[1]


@register_flop_formula([torch.ops.hystar_fast.style_nce_backward, torch.ops.hystar_fast.style_nce_stream_backward])
def _backward(_dloss: Any, _: Any, units: Size, *more: Any, **__: Any) -> int:
    return (more[-2] + more[-1]) * 2 * units[1] ** 2 * units[2]
