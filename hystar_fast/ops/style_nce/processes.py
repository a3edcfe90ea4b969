"""Processes in a ring, each with its share of the rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ring:
    """The processes, in a ring: their number of rows, and the place of this one.

    Attributes:
        group: of torch.distributed.
        rank: of this process in the group.
        counts: rows of every process.
    """

    group: dist.ProcessGroup
    rank: int
    counts: list[int]

    @property
    def own(self) -> slice:
        """The rows of this process in the whole batch."""
        first = self.first(self.rank)
        return slice(first, first + self.counts[self.rank])

    def first(self, owner: int) -> int:
        """Return the first row of a process."""
        return sum(self.counts[:owner])

    def round(self, state: list[Tensor]) -> Iterator[int]:
        """Yield the owner of the keys whose tensors are in `state`, which changes; at last they are this process's own.

        The first dimension of every tensor is the rows of the owner.
        """
        size = len(self.counts)
        for step in range(size):
            yield (self.rank - step) % size
            if size > 1:
                state[:] = self._pass_on(state, self.counts[(self.rank - step - 1) % size])

    def _pass_on(self, state: list[Tensor], rows: int) -> list[Tensor]:
        size = len(self.counts)
        following, before = (dist.get_global_rank(self.group, (self.rank + n) % size) for n in (1, -1))
        received = [tensor.new_empty(rows, *tensor.shape[1:]) for tensor in state]
        operations = [
            dist.P2POp(way, tensor.contiguous(), peer, self.group, tag)
            for way, peer, tensors in ((dist.isend, following, state), (dist.irecv, before, received))
            for tag, tensor in enumerate(tensors)
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        return received

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over the processes."""
        summed = value.clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def collect(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of their ranks."""
        state, parts = [tensor], [tensor] * len(self.counts)
        for owner in self.round(state):
            parts[owner] = state[0]
        return torch.cat(parts)
