"""Random draws of batches: they follow from the seed and the step alone, so a resumed run makes the same batches."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_rows(
    count: int, batch_size: int, batches_per_epoch: int, seed: int, step: int
) -> tuple[Tensor, torch.Generator]:
    """Return the rows of the batch of a step, each row once an epoch in a random order.

    Args:
        count: of the rows.
        batch_size: of every batch but a last one, which may have fewer.
        batches_per_epoch: of them.
        seed: of the run.
        step: from 0.

    Returns:
        int64 rows, and the generator of whatever else this step draws.
    """
    epoch, position = divmod(step, batches_per_epoch)
    order = torch.randperm(count, generator=_stream(seed, 2 * epoch))
    return order[position * batch_size : (position + 1) * batch_size], _stream(seed, 2 * step + 1)


def _stream(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)
