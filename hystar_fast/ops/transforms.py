"""How the ops meet autograd: transforms of torch.func and forward mode run the reference; eager calls skip a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


def is_transformed(*tensors: Tensor | None) -> bool:
    """Return whether torch.func (grad, jvp, vmap, …) transforms the call, or a tensor has a forward-mode tangent.

    The public functions then run the reference, whose operations have all these rules: an op would ignore the
    transform and return derivatives that are zero.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def check_not_batched(name: str, tensor: Tensor | None, instead: str) -> None:
    """Raise NotImplementedError for a tensor that torch.func.vmap has batched."""
    if tensor is not None and torch._C._functorch.is_batchedtensor(tensor):
        raise NotImplementedError(f"{name} must not be batched by torch.func.vmap: {instead}")


def call_op(op: Callable[..., Any], *arguments: Any) -> Any:
    """Call an op without its registered derivative, which takes 5 µs a call; compiled and exported programs keep it."""
    if torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def first_order(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the backward of an autograd.Function raise if a graph of it is asked for.

    torch's once_differentiable raises only where the incoming gradient requires grad; the gradient of a loss that is
    linear in the result does not, and its second derivative would be zero.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        checked = once_differentiable(backward)

        @wraps(backward)
        def run(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                raise RuntimeError(
                    f"create_graph must be False, because {op} has first derivatives only, got True; "
                    f"hystar_fast.ref.{op} and torch.func have higher ones"
                )
            return checked(ctx, *gradients)

        return run

    return decorate
