"""Outputs that are no views. FSDP2 registers a hook on every output, and an in-place operation on a view drops it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def own_tensor(y: Tensor) -> Tensor:
    """Return ``y``, or a copy of it where it is a view.

    torch.compile cannot tell views from other tensors, so a compiled call always copies.
    """
    return y.clone() if torch.compiler.is_compiling() or y._is_view() else y


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Return ``layer(x)`` as a tensor that is no view.

    nn.Linear with a bias computes a two-dimensional product and returns a view of it, unless x is two-dimensional too.
    Only this view uses the product, and autograd does not save it. So another tensor may use its memory, and nothing is
    copied. Other layers and hooks may save their result for the backward, so a view that they return is copied.
    """
    y = layer(x)
    if type(layer).forward is not nn.Linear.forward or "forward" in vars(layer) or layer._forward_hooks:
        return own_tensor(y)
    return y if y.dim() == 2 else torch.ops.aten._unsafe_view.default(y, y.shape)
