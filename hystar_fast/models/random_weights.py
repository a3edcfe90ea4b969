"""Random weights that are the same every time, so that a model without pretrained weights can be saved and rebuilt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SEED = 0


@contextmanager
def repeatable_weights() -> Iterator[None]:
    """Within the block, weights drawn on the default device are always the same; the generators are put back after."""
    on_cuda = torch.get_default_device().type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_cuda else []):
        torch.default_generator.manual_seed(_SEED)  # torch.manual_seed would seed every GPU, forked or not
        if on_cuda:
            torch.cuda.manual_seed(_SEED)
        yield
