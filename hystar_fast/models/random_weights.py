"""Random weights that are the same every time: a model without pretrained weights can be saved and built again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SEED = 0
_EMPTY = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
}


class _ZeroedMemory(TorchDispatchMode):
    """Fill new tensors with zeros, as some libraries leave a weight uninitialised (CoCa of open_clip)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func in _EMPTY else made


@contextmanager
def repeatable_weights() -> Iterator[None]:
    """Seed the generators of the default device within the block, and restore them after it; memory begins as zeros."""
    on_cuda = torch.get_default_device().type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_cuda else []), _ZeroedMemory():
        torch.default_generator.manual_seed(_SEED)  # torch.manual_seed would also seed GPUs that are not restored
        if on_cuda:
            torch.cuda.manual_seed(_SEED)
        yield
