"""Calls of svd_linear on CUDA that repeat an earlier one: same shapes, strides, dtypes and options, so same launches.

What depends on these alone is worked out at the first call and kept: tiles, grids, sizes, arguments of the kernels. A
repeated call allocates its results, fills in addresses and launches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.autograd import forward_ad

from hystar_fast.ops.contexts import is_current, without_autocast
from hystar_fast.ops.svd_linear.torch import second_product
from hystar_fast.ops.transforms import are_plain, is_watched

_MOST = 256  # calls that are kept
_HALF = (torch.float16, torch.bfloat16)


class Forward(NamedTuple):
    """The launch of a forward, and the shapes of its results."""

    kernel: Any  # a hystar_fast.kernels.prepared.Prepared
    y: Size
    h: Size  # of h and g: the leading shape of x, and r
    factor: float
    fused: bool


class Backward(NamedTuple):
    """The launches of a backward, and the shapes of its results."""

    kernel: Any
    reduce: Any  # None if dscale is not needed
    partials: Size | None
    dx: Size
    fused: bool


class Fp8Forward(NamedTuple):
    """The launches of a forward in fp8, and the shape of its result."""

    quantise: Any
    first: Any
    second: Any
    y: Size


_calls: dict[Any, Any] = {}


def keep(key: Any, call: Forward | Backward | Fp8Forward) -> None:
    """Keep a call to be repeated."""
    if len(_calls) >= _MOST:
        _calls.pop(next(iter(_calls)), None)  # the oldest
    _calls[key] = call


def call_key(
    first: Tensor, u: Tensor, scale: Tensor, vh: Tensor, other: Tensor | None, index: Tensor | None, options: int
) -> Any:
    """Return all that the launches of a call depend on, or None if it cannot be repeated.

    ``first`` is x in a forward and dy in a backward, ``other`` the bias in a forward and h in a backward; ``options``
    tells apart the calls, and what they are asked for.
    Only calls whose tensors begin at multiples of 16 bytes are repeated: a kernel is compiled for that, or against it.
    The key has all that `check_inputs` looks at, so that a call of a kept key has passed its checks.
    """
    if first.dtype not in _HALF or not is_current(first) or not first.is_contiguous() or scale.stride(-1) != 1:
        return None
    addresses = first.data_ptr() | u.data_ptr() | scale.data_ptr() | vh.data_ptr()
    for optional in (other, index):
        if optional is not None:
            addresses |= optional.data_ptr() | (0 if optional.is_contiguous() else 1)
    if addresses & 15:
        return None
    devices = (first.get_device(), u.get_device(), scale.get_device(), vh.get_device())
    dtypes = (first.dtype, u.dtype, scale.dtype, vh.dtype)
    shapes = (first.shape, u.shape, scale.shape, vh.shape)
    rest = (
        None if other is None else (other.get_device(), other.dtype, other.shape),
        None if index is None else (index.get_device(), index.dtype, index.shape),
    )
    return options, devices, dtypes, shapes, u.stride(), scale.stride(), vh.stride(), rest


def kept_key(x: Tensor, u: Tensor, scale: Tensor, vh: Tensor, bias: Tensor | None, index: Tensor | None) -> Any:
    """Return the key of a forward that is kept, or None if it must be checked first, or may not be repeated.

    Such a call is of plain tensors, with u and vh frozen, and nothing transforms, casts or records it.
    """
    if type(x) is not Tensor or not x.is_cuda or not are_plain((x, u, scale, vh, bias, index)) or is_watched():
        return None
    if forward_ad._current_level >= 0 or torch.is_autocast_enabled("cuda"):
        return None
    grads = torch.is_grad_enabled()
    if grads and (u.requires_grad or vh.requires_grad):
        return None
    key = call_key(x, u, scale, vh, bias, index, grads and scale.requires_grad)
    return key if key in _calls else None


def forward(
    key: Any, x: Tensor, u: Tensor, scale: Tensor, vh: Tensor, bias: Tensor | None, index: Tensor | None, save: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Repeat a forward; None if none of this key is kept, or this thread has no context."""
    call: Forward | None = _calls.get(key)
    if call is None:
        return None
    out = x.new_empty(call.y if call.fused else call.h)
    h = x.new_empty(call.h) if save else None
    pointers = [x.data_ptr(), vh.data_ptr()]
    if call.fused:
        pointers.append(u.data_ptr())
    pointers.append(out.data_ptr())
    if h is not None:
        pointers.append(h.data_ptr())
    if call.fused and bias is not None:
        pointers.append(bias.data_ptr())
    if not _launch(call.kernel, x.get_device(), pointers, scale, index):
        return None
    if h is not None:
        h = h.view(-1, call.h[-1])
    if call.fused:
        return out, h
    with without_autocast("cuda"):
        return second_product(out, u, bias, call.factor), h


def backward(
    key: Any,
    dy: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    index: Tensor | None,
    h: Tensor,
    needs_dx: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Repeat a backward; None if none of this key is kept, or this thread has no context."""
    call: Backward | None = _calls.get(key)
    if call is None:
        return None
    device, rows, rank = dy.get_device(), dy.view(-1, dy.shape[-1]), len(vh)
    dx = dy.new_empty(call.dx if needs_dx else 0)
    dx_rows = dx.view(len(rows), -1) if needs_dx else dx
    pointers = [dy.data_ptr(), u.data_ptr()]
    g = dx_rows
    if call.fused:
        pointers += [vh.data_ptr(), dx.data_ptr()]
    elif needs_dx:
        g = dy.new_empty(len(rows), rank)
        pointers.append(g.data_ptr())
    partials = None
    if call.partials is not None:
        partials = torch.empty(call.partials, dtype=torch.float32, device=dy.device)
        pointers += [h.data_ptr(), partials.data_ptr()]
    if not _launch(call.kernel, device, pointers, scale, index):
        return None
    dscale = scale.new_empty(0)
    if partials is not None:
        dscale = torch.empty(scale.shape, dtype=scale.dtype, device=scale.device)
        _launch(call.reduce, device, [partials.data_ptr(), dscale.data_ptr()], None, index)
    if needs_dx and not call.fused:
        torch.mm(g, vh, out=dx_rows)
    if not needs_dbias:
        return dx, dscale, dy.new_empty(0)
    with without_autocast("cuda"):
        return dx, dscale, rows.sum(0)


def fp8_forward(
    key: Any,
    x: Tensor,
    scale: Tensor,
    factors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    bias: Tensor | None,
    index: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor] | None:
    """Repeat a forward in fp8; None if none of this key is kept, or this thread has no context."""
    call: Fp8Forward | None = _calls.get(key)
    if call is None:
        return None
    u, u_scale, vh, vh_scale, vh_norm = factors
    device, rank = x.get_device(), len(vh)
    rows = x.numel() // x.shape[-1]
    x_scale, g_scale = vh_norm.new_empty(2, rows)
    x8, g = u.new_empty(rows, x.shape[-1]), u.new_empty(rows, rank)
    y, h = x.new_empty(call.y), x.new_empty(rows if save else 0, rank)
    quantising = [x.data_ptr(), x8.data_ptr(), x_scale.data_ptr(), g_scale.data_ptr(), scale.data_ptr()]
    quantising += [vh_norm.data_ptr()] if index is None else [index.data_ptr(), vh_norm.data_ptr()]
    first = [x8.data_ptr(), vh.data_ptr(), g.data_ptr(), *([h.data_ptr()] if save else [])]
    first += [x_scale.data_ptr(), vh_scale.data_ptr(), g_scale.data_ptr()]
    second = [g.data_ptr(), u.data_ptr(), y.data_ptr(), g_scale.data_ptr(), u_scale.data_ptr()]
    second += [] if bias is None else [bias.data_ptr()]
    done = (
        _launch(call.quantise, device, quantising, None, None)
        and _launch(call.first, device, first, scale, index)
        and _launch(call.second, device, second, None, None)
    )
    return (y, h if save else x.new_empty(0)) if done else None


def _launch(kernel: Any, device: int, pointers: list[int], scale: Tensor | None, index: Tensor | None) -> bool:
    """Launch on the current stream; False if this thread has no context yet."""
    if scale is not None:
        pointers.append(scale.data_ptr())
    if index is not None:
        pointers.append(index.data_ptr())
    launched: bool = kernel(torch._C._cuda_getCurrentRawStream(device), *pointers)
    return launched
