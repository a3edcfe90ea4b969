"""Outputs that are no views: FSDP2 sets a hook on every output, and an in-place operation on a view drops it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def own_tensor(y: Tensor) -> Tensor:
    """Return ``y``, or a copy of it where it is a view. torch.compile cannot see which it is, so there it copies."""
    return y.clone() if torch.compiler.is_compiling() or y._is_view() else y


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Return ``layer(x)``, never as a view.

    With a bias, nn.Linear multiplies in two dimensions and returns a view of the product for any other number of
    dimensions. Nothing else refers to the product and autograd does not save it. So the result may be a tensor of its
    own on the same memory, and nothing is copied. Any other layer, or a hook, may have saved its result for the
    backward: that is copied where it is a view.
    """
    y = layer(x)
    if type(layer).forward is not nn.Linear.forward or "forward" in vars(layer) or layer._forward_hooks:
        return own_tensor(y)
    return y if y.dim() == 2 else torch.ops.aten._unsafe_view.default(y, y.shape)
