"""The kinds of tensors that the ops take."""

from __future__ import annotations

import torch
from torch import Tensor


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
