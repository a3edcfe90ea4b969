"""style_nce of a batch that the processes of a group share: gathered while it is small, in a ring when it is large."""

from __future__ import annotations

import math
from functools import partial
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.style_nce import stream
from hystar_fast.ops.style_nce.processes import Ring
from hystar_fast.ops.style_nce.ring import Options, Shared
from hystar_fast.ops.style_nce.torch import in_dtypes, loss_dtype, softplus
from hystar_fast.ops.transforms import first_order
from hystar_fast.ref.dense import FLOATING


class _Ring(torch.autograd.Function):
    """The losses of the own rows, or the mean over all processes, with detached weights."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, target: Tensor, mask: Tensor | None, ring: Ring, options: Options, mean: bool
    ) -> Tensor:
        with without_autocast(query.device.type):
            shared = Shared(ring, query, target, mask, options)
            shared.find_potentials()
            excess = shared.excess()
            loss = softplus(excess).masked_fill_(~shared.finite, math.nan)
            if mean:
                loss = ring.total(loss.sum()) / sum(ring.counts)
        ctx.save_for_backward(mask)  # so that autograd finds that it was changed; the rest is nobody else's
        ctx.shared, ctx.excess, ctx.dtypes = shared, excess, (query.dtype, target.dtype)
        return loss

    @staticmethod
    @first_order("style_nce")
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        shared, _ = ctx.shared, ctx.saved_tensors
        if dloss.dim() == 0:
            dloss = (dloss / sum(shared.ring.counts)).expand(len(shared.finite))
        with without_autocast(dloss.device.type):
            grads = shared.gradients(ctx.excess, dloss)
        return *in_dtypes(grads, ctx.dtypes, ctx.needs_input_grad[:2]), None, None, None, None


class _Gathered(torch.autograd.Function):
    """The same, of embeddings that every process gathers: every process computes the whole loss."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, target: Tensor, mask: Tensor | None, ring: Ring, call: Any, mean: bool
    ) -> Tensor:
        with torch.enable_grad():
            pairs = [ring.collect(tensor.detach()).requires_grad_() for tensor in (query, target)]
            losses: Tensor = call(*pairs, mask=_whole(ring, mask), reduction="none")
        ctx.save_for_backward(losses.detach())  # a second backward without retain_graph raises
        ctx.pairs, ctx.losses, ctx.ring = pairs, losses, ring
        return _own(ring, losses.detach(), mean)

    @staticmethod
    @first_order("style_nce")
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        (losses,) = ctx.saved_tensors
        count, rows = len(losses), ctx.ring.own
        upstream = (dloss / count).expand(count) if dloss.dim() == 0 else ctx.ring.collect(dloss.contiguous())
        with torch.enable_grad():
            dquery, dtarget = torch.autograd.grad(ctx.losses, ctx.pairs, upstream, retain_graph=True)
        return dquery[rows], dtarget[rows], None, None, None, None


def _whole(ring: Ring, mask: Tensor | None) -> Tensor | None:
    return None if mask is None else ring.collect(mask.to(torch.uint8)).bool()


def _own(ring: Ring, losses: Tensor, mean: bool) -> Tensor:
    return losses.mean() if mean else losses[ring.own].clone()


@torch.compiler.disable
def group_loss(
    query: Tensor,
    target: Tensor,
    mask: Tensor | None,
    group: dist.ProcessGroup,
    options: Options,
    call: partial[Tensor],
    *,
    mean: bool,
    detached: bool,
) -> Tensor:
    """Return the losses of the own rows [N_p], or the mean over all processes.

    Args:
        query, target: The own rows [N_p, D].
        mask: The own rows [N_p, N].
        group: The processes.
        options: For the ring.
        call: style_nce with the same options, for the gathered batch: a partial of it.
        mean: Whether to return the mean.
        detached: The weights are constants, so the ring may be used.
    """
    needs_gradient = torch.is_grad_enabled() and (query.requires_grad or target.requires_grad)
    ring = _ring_of(query, target, mask, group, (call.keywords, mean), needs_gradient)
    if detached and stream.should_stream(sum(ring.counts), loss_dtype(query, target)):
        return _Ring.apply(query, target, mask, ring, options, mean)
    if needs_gradient:
        return _Gathered.apply(query, target, mask, ring, call, mean)
    with torch.no_grad():
        pairs = (ring.collect(tensor) for tensor in (query, target))
        return _own(ring, call(*pairs, mask=_whole(ring, mask), reduction="none"), mean)


_SAME = (
    "features of query and target",
    "mask, given or not,",
    "dtype of query",
    "dtype of target",
    "options",
    "requires_grad of query or target",
)


def announce_failure(group: dist.ProcessGroup) -> None:
    """Tell the other processes, which wait for this one, that its arguments are wrong."""
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    _exchange(group, [-1] * (len(_SAME) + 2), device)


def _ring_of(
    query: Tensor,
    target: Tensor,
    mask: Tensor | None,
    group: dist.ProcessGroup,
    options: object,
    needs_gradient: bool,
) -> Ring:
    """Tell the others the number of own rows; raise ValueError on every process if their arguments do not fit.

    This waits for the device.
    """
    kinds = [FLOATING.index(query.dtype), FLOATING.index(target.dtype), crc32(repr(options).encode()), needs_gradient]
    mine = [len(query), 0 if mask is None else mask.shape[1], query.shape[1], mask is not None, *kinds]
    every = _exchange(group, mine, query.device)
    wrong = [rank for rank, row in enumerate(every) if row[0] < 0]
    if wrong:
        raise ValueError(f"group must have valid arguments on every process, got an error on process {wrong[0]}")
    for name, *values in zip(_SAME, *(row[2:] for row in every), strict=True):
        if len(set(values)) > 1:
            raise ValueError(f"{name} must be the same on every process of the group, got {values}")
    counts, columns = [row[0] for row in every], [row[1] for row in every]
    if mask is not None and set(columns) != {sum(counts)}:
        raise ValueError(f"mask must have shape [N_p, N] with N = {sum(counts)} on every process, got N = {columns}")
    return Ring(group, dist.get_rank(group), counts)


def _exchange(group: dist.ProcessGroup, mine: list[int], device: torch.device) -> list[list[int]]:
    sent = torch.tensor(mine, dtype=torch.int64, device=device)
    found = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, sent, group=group)
    every: list[list[int]] = torch.stack(found).tolist()
    return every
