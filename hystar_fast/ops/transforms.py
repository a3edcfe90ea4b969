"""Transforms of torch.func and forward-mode differentiation, which the compiled ops do not take part in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


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
