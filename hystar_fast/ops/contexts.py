"""The device, the stream and autocast around a kernel, without the microseconds of torch's context managers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which autocast casts nothing."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which the GPU of `tensor` is the current one."""
    return nullcontext() if is_current(tensor) else torch.cuda.device(tensor.device)


def is_current(tensor: Tensor) -> bool:
    """Return whether `tensor` is on the current GPU."""
    return tensor.is_cuda and bool(tensor.get_device() == torch._C._cuda_getDevice())


def current_stream(tensor: Tensor) -> int:
    """Return the handle of the current stream of the GPU of `tensor`."""
    return int(torch._C._cuda_getCurrentRawStream(tensor.get_device()))
