"""The processes of a run: a single one, or those of torchrun, each with its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """The group of processes that train together, and the rank of this one.

    Attributes:
        rank: of this process; only rank 0 writes and evaluates.
        size: of the group.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group of torch.distributed; None for a single process."""
        return dist.group.WORLD if self.size > 1 else None

    def share(self, count: int) -> slice:
        """Return this process's part of `count` pairs.

        Raises:
            ValueError: `count` does not divide evenly.
        """
        if count % self.size:
            raise ValueError(f"the batch must divide evenly over {self.size} processes, got {count} pairs")
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def gather(self, part: Tensor) -> Tensor:
        """Return the rows of every process, in the order of their ranks; gradients reach this process's own rows.

        A loss of gathered rows is the same on every process. Therefore the gradient of the own rows is complete, and
        the sum of the parameters' gradients over the processes (`reduce`) is that of one process with the whole batch.
        """
        if self.size == 1:
            return part
        sent = part.detach().contiguous()
        # gloo does not support booleans
        carried = sent.to(torch.uint8) if sent.dtype == torch.bool else sent
        parts = [torch.empty_like(carried) for _ in range(self.size)]
        dist.all_gather(parts, carried)
        found = [other.to(part.dtype) for other in parts]
        found[self.rank] = part
        return torch.cat(found)

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients over the processes, in place; a parameter without one counts as zero."""
        if self.size == 1:
            return
        by_kind: dict[Any, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_kind.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter.grad)
        for grads in by_kind.values():
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(summed.view_as(grad))

    def broadcast_object(self, value: Any) -> Any:
        """Return the value of process 0 on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all processes on every process."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    @torch.no_grad()
    def broadcast_parameters(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of process 0 to every process, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)


def join_world(device: torch.device) -> World:
    """Join the process group of torchrun's environment; an existing group is used as it is."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    # the other processes wait while process 0 validates
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    return World(dist.get_rank(), dist.get_world_size())


def leave_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
