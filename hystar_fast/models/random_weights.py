"""Random weights that are the same every time: a model without pretrained weights can be saved and built again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SEED = 0


@contextmanager
def repeatable_weights() -> Iterator[None]:
    """Seed the generators of the default device within the block, and restore them after it."""
    on_cuda = torch.get_default_device().type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_cuda else []):
        torch.default_generator.manual_seed(_SEED)  # torch.manual_seed would also seed GPUs that are not restored
        if on_cuda:
            torch.cuda.manual_seed(_SEED)
        yield
