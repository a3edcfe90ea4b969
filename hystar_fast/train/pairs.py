"""Batches of training pairs: a drawing or text in one of the query styles, and the gallery drawing of its concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.retrieval.protocol import StyledConcepts


@dataclass(frozen=True)
class PairBatch:
    """One batch: the concept of each pair, and the index into `PairSampler.styles` of its query."""

    concepts: Tensor
    styles: Tensor


class PairSampler:
    """Draws batches of distinct concepts, each asked in one random style it is drawn in (Section 3.4 of the paper).

    The batch of a step depends on the seed and the step alone, so a run that is resumed sees what it would have seen.

    Args:
        concepts: the training concepts.
        styles: query styles; "text" asks with the concept's name.
        batch_size: pairs a batch; capped by the number of concepts.
        seed: seeds both the order of the concepts and their styles.

    Raises:
        ValueError: no style or no concept, an unknown style, `batch_size` below 2, or a concept without any query.
    """

    def __init__(self, concepts: StyledConcepts, styles: Sequence[str], batch_size: int, seed: int = 0) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (a batch needs negatives), got {batch_size}")
        if not styles or len(concepts) < 2:
            raise ValueError(f"needs 1 of styles and 2 concepts at least, got {len(styles)} and {len(concepts)}")
        self.styles = tuple(styles)
        self.batch_size = min(batch_size, len(concepts))
        self.seed = seed
        self._available = torch.zeros(len(concepts), len(styles))
        for column, style in enumerate(styles):
            self._available[concepts.rows(style), column] = 1.0
        if not bool(self._available.any(dim=1).all()):
            raise ValueError(f"every concept needs a query in one of styles {self.styles}, but some have none")

    @property
    def batches_per_epoch(self) -> int:
        return len(self._available) // self.batch_size

    def batch(self, step: int) -> PairBatch:
        """The batch of a step, counted from 0."""
        epoch, position = divmod(step, self.batches_per_epoch)
        order = torch.randperm(len(self._available), generator=self._generator(2 * epoch))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        styles = torch.multinomial(self._available[chosen], 1, generator=self._generator(2 * step + 1))
        return PairBatch(chosen, styles.flatten())

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)
