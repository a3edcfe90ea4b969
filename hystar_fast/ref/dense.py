"""The kinds of tensors that the ops take."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The floating dtypes of the ops."""
_SET, _STRIDED = frozenset(FLOATING), torch.strided


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise a TypeError unless `tensor` is a dense tensor of a usual floating dtype."""
    if type(tensor) is Tensor and tensor.dtype in _SET and tensor.layout is _STRIDED and not tensor.is_nested:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    check_dense(name, tensor)


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise a TypeError, with the way out, unless `tensor` is strided, of one shape and on one device."""
    if tensor.is_nested:
        got = f"a nested tensor; give {name}.to_padded_tensor(0.0)"
    elif tensor.layout != torch.strided:
        got = f"one of layout {tensor.layout}; give {name}.to_dense()"
    elif type(tensor).__name__ == "DTensor":  # by its name, as importing it takes half a second
        got = f"a DTensor; give {name}.to_local()"
    else:
        return
    raise TypeError(f"{name} must be a dense tensor, got {got}")
