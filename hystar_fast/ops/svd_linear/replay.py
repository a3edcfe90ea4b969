"""Calls of svd_linear on CUDA that repeat an earlier one: same shapes, strides, dtypes and options, so same launches.

What depends on these alone is worked out at the first call, and the extension keeps it (csrc/svd_linear/host): grids,
sizes of results, arguments of the kernels. A repeated call is one call of the extension. It allocates, fills in
addresses, launches, and multiplies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hystar_fast.kernels.prepared import Launch
from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.native import extension
from hystar_fast.ops.transforms import WATCHERS

NEEDS_DX, NEEDS_DSCALE = 1, 2  # options of a call: the gradients that it computes, or prepares
BACKWARD, FP8 = 4, 8  # tell apart calls on tensors of the same shapes
_HALF = (torch.float16, torch.bfloat16)
_TENSORS = frozenset({Tensor, torch.nn.Parameter})
_NO_BIAS = 32  # the place of none


class Product(NamedTuple):
    """The GEMM of torch behind the kernels: out = alpha a b + bias, or with b transposed."""

    out: Tensor
    a: Tensor
    b: Tensor
    bias: Tensor | None = None
    alpha: float = 1.0
    transposed: bool = False


@cache
def calls() -> Any:
    """Return the calls that are kept (a ``KeptCalls`` of the extension); None if it or torch does not have them."""
    module = extension()
    if module is None:
        return None
    try:
        return module.KeptCalls(
            Tensor, torch.nn.Parameter, WATCHERS, torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr
        )
    except (AttributeError, RuntimeError):  # a torch without these functions
        return None


def keep(
    options: Iterable[int],
    tensors: tuple[Tensor | None, ...],
    results: Sequence[Tensor],
    launches: Sequence[Launch | None],
    product: Product | None = None,
) -> None:
    """Keep a call, if it can be repeated.

    Args:
        options: Those of the calls that it stands for.
        tensors: Its inputs: x or dy, u, scale, vh, and the others.
        results: What it returns. Other tensors that its kernels write are found.
        launches: Those of its kernels, in their order.
        product: What follows them.
    """
    first, _, scale, _, *others = tensors
    dense = [tensor for tensor in (first, *others) if tensor is not None]
    steps = [launch for launch in launches if launch is not None]
    if calls() is None or len(steps) < len(launches) or not all(tensor.is_contiguous() for tensor in dense):
        return
    if dense[0].dtype not in _HALF or scale is None or scale.stride(-1) != 1:
        return
    given = [*tensors, *results]
    places = {tensor.data_ptr(): place for place, tensor in enumerate(given) if tensor is not None}
    if len(places) + sum(tensor is None for tensor in given) < len(given):
        return  # two tensors begin at one address, which would not tell them apart
    read = set()
    rows = []
    for one in steps:
        for tensor in one.tensors:
            read.add(tensor.data_ptr())
            if places.setdefault(tensor.data_ptr(), len(given)) == len(given):
                given.append(tensor)
        own = [places[tensor.data_ptr()] for tensor in one.tensors]
        rows.append((one.compiled, one.function, *one.grid, one.threads, one.shared, one.parameters, own))
    multiplied = None
    if product is not None:
        out, a, b, bias, alpha, transposed = product
        used = [tensor.data_ptr() for tensor in (out, a, b)]
        read.update(used if bias is None else [*used, bias.data_ptr()])
        bias_place = _NO_BIAS if bias is None else places[bias.data_ptr()]
        multiplied = (*(places[address] for address in used), bias_place, alpha, transposed)
    if all(tensor is None or tensor.data_ptr() in read for tensor in tensors):  # no kernel reads a copy of an input
        calls().keep([*options], tensors, tuple(given[len(tensors) :]), len(results), rows, multiplied)


def run(option: int, *tensors: Tensor | None) -> tuple[Tensor, ...] | None:
    """Repeat a call and return its results, below autograd; None if no such call may be repeated.

    Such a call is of plain tensors on the current GPU, and nothing watches or transforms it.
    """
    first = tensors[0]
    if type(first) is not Tensor or not first.is_cuda:
        return None
    kept = calls()
    return None if kept is None else kept.run(option, tensors)


def checked_forward(
    x: Tensor, u: Tensor, scale: Tensor, vh: Tensor, bias: Tensor | None, index: Tensor | None, grads: bool
) -> tuple[Tensor, ...] | None:
    """Repeat a forward of the public function, whose arguments have not been checked; None if it must run as the first.

    A kept call has passed the checks: it has all that they look at in its key. u and vh are frozen, and nothing casts.
    """
    if type(x) is not Tensor or not x.is_cuda:
        return None
    if forward_ad._current_level >= 0 or torch.is_autocast_enabled("cuda"):
        return None
    option = 0
    if grads:
        if not _TENSORS.issuperset((type(u), type(scale), type(vh))) or u.requires_grad or vh.requires_grad:
            return None
        option = NEEDS_DX * x.requires_grad + NEEDS_DSCALE * scale.requires_grad
    kept = calls()
    return None if kept is None else kept.run(option, (x, u, scale, vh, bias, index))


def backward(
    dy: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    index: Tensor | None,
    h: Tensor | None,
    needs_dx: bool,
    needs_dscale: bool,
    needs_dbias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """Repeat a backward, and return the gradients that are needed."""
    option = BACKWARD + NEEDS_DX * needs_dx + NEEDS_DSCALE * needs_dscale
    found = run(option, dy, u, scale, vh if needs_dx else None, h if needs_dscale else None, index)
    if found is None:
        return None
    dx = found[0] if needs_dx else None
    dscale = found[-1] if needs_dscale else None
    if not needs_dbias:
        return dx, dscale, None
    with without_autocast("cuda"):
        return dx, dscale, dy.view(-1, dy.shape[-1]).sum(0)
