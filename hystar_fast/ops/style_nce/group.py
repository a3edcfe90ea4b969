"""style_nce of a batch that the processes of a group share: gathered while it is small, in a ring when it is large."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.style_nce import stream
from hystar_fast.ops.style_nce.processes import Ring
from hystar_fast.ops.style_nce.ring import Options, Shared, softplus
from hystar_fast.ops.style_nce.torch import in_dtypes, loss_dtype
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
        ctx.shared, ctx.excess, ctx.dtypes = shared, excess, (query.dtype, target.dtype)
        return loss

    @staticmethod
    @first_order("style_nce")
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        shared = ctx.shared
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
        whole = None if mask is None else ring.collect(mask.to(torch.uint8)).bool()
        rows = slice(ring.first(ring.rank), ring.first(ring.rank) + len(query))
        with torch.enable_grad():
            pairs = [ring.collect(tensor.detach()).requires_grad_() for tensor in (query, target)]
            losses: Tensor = call(*pairs, mask=whole, reduction="none")
        ctx.pairs, ctx.losses, ctx.rows, ctx.ring = pairs, losses, rows, ring
        return losses.detach().mean() if mean else losses.detach()[rows].clone()

    @staticmethod
    @first_order("style_nce")
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.losses)
        upstream = (dloss / count).expand(count) if dloss.dim() == 0 else ctx.ring.collect(dloss.contiguous())
        with torch.enable_grad():
            dquery, dtarget = torch.autograd.grad(ctx.losses, ctx.pairs, upstream, retain_graph=True)
        return dquery[ctx.rows], dtarget[ctx.rows], None, None, None, None


@torch.compiler.disable
def group_loss(
    query: Tensor,
    target: Tensor,
    mask: Tensor | None,
    group: dist.ProcessGroup,
    options: Options,
    call: Callable[..., Tensor],
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
        call: style_nce with the same options, for the gathered batch.
        mean: Whether to return the mean.
        detached: The weights are constants, so the ring may be used.
    """
    ring = _ring_of(query, target, mask, group)
    count = sum(ring.counts)
    if mask is not None and mask.shape != (len(query), count):
        raise ValueError(f"mask must have shape [N_p, N] = {[len(query), count]} with a group, got {list(mask.shape)}")
    if detached and stream.should_stream(count, loss_dtype(query, target)):
        return _Ring.apply(query, target, mask, ring, options, mean)
    return _Gathered.apply(query, target, mask, ring, call, mean)


def _ring_of(query: Tensor, target: Tensor, mask: Tensor | None, group: dist.ProcessGroup) -> Ring:
    """Tell the others the number of own rows; raise ValueError on every process if their arguments do not fit."""
    kinds = [FLOATING.index(query.dtype), FLOATING.index(target.dtype)]
    mine = torch.tensor([len(query), query.shape[1], mask is not None, *kinds], device=query.device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    every = torch.stack(found).tolist()
    names = ("features of query and target", "mask (given by all or by none)", "dtype of query", "dtype of target")
    for name, *values in zip(names, *(row[1:] for row in every), strict=True):
        if len(set(values)) > 1:
            raise ValueError(f"{name} must be the same on every process of the group, got {values}")
    return Ring(group, dist.get_rank(group), [row[0] for row in every])
