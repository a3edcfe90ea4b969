"""The counts of torch.utils.flop_counter.FlopCounterMode: two for every multiply-add of the path that runs."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Size
from torch.utils.flop_counter import register_flop_formula

import hystar_fast.ops.svd_linear.api  # noqa: F401  it defines the ops
from hystar_fast.ops.svd_linear.cost import factored_cost, materialised_cost


@register_flop_formula(torch.ops.hystar_fast.svd_linear_forward)
def _forward(
    x: Size, u: Size, scale: Size, vh: Size, _bias: Any, _index: Any, materialise: bool, *_: Any, **__: Any
) -> int:
    return _count(x, u, scale, vh, materialise)


@register_flop_formula(torch.ops.hystar_fast.svd_linear_fp8_forward)
def _fp8_forward(x: Size, scale: Size, u: Size, _u_scale: Size, vh: Size, *_: Any, **__: Any) -> int:
    return _count(x, u, scale, vh, False)


@register_flop_formula(torch.ops.hystar_fast.svd_linear_backward)
def _backward(
    dy: Size,
    _x: Any,
    u: Size,
    scale: Size,
    vh: Size,
    _index: Any,
    _saved: Any,
    materialise: bool,
    needs_dx: bool,
    needs_dscale: bool,
    *_: Any,
    **__: Any,
) -> int:
    shapes = (dy, u, scale, vh, materialise)
    return _count(*shapes, needs_dx=needs_dx, needs_dscale=needs_dscale) - _count(*shapes)


def _count(
    rows: Size, u: Size, scale: Size, vh: Size, materialise: bool, *, needs_dx: bool = False, needs_dscale: bool = False
) -> int:
    tokens, shape = prod(rows[:-1]), (vh[0], vh[1], u[0])
    if not materialise:
        return 2 * factored_cost(tokens, *shape, needs_dx=needs_dx, needs_dscale=needs_dscale)
    styles = scale[0] if len(scale) == 2 else 1
    return 2 * materialised_cost(tokens, styles, *shape, needs_dx=needs_dx, needs_dscale=needs_dscale)
