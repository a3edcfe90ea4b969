"""StyleNCE of a batch that is shared out among processes: keys travel in a ring, and no N x N matrix is computed.

Each process keeps its own rows of the queries and their potentials u. The targets (keys) of every process pass by, with
what is summed over their columns: statistics of v, and the gradient. After one round everything is at home again. So
work and memory of a process fall with the number of processes. An iteration takes two rounds, one for u and one for v,
where the streamed loss of one process (stream.py) takes one pass: a row is complete only after all keys have passed.

If it is doubtful whether the mask leaves a plan, process 0 gets the whole mask, of bytes, and decides on the host. The
number of processes' rows, and that decision, wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hystar_fast.ops.style_nce import stream
from hystar_fast.ops.style_nce.processes import Ring
from hystar_fast.ops.style_nce.torch import softplus
from hystar_fast.ops.style_nce.units import Units, combine, cosines, units_of
from hystar_fast.ref.sinkhorn_feasibility import has_plan
from hystar_fast.ref.style_nce import AUTO_GAMMA


@dataclass(frozen=True)
class Options:
    """Options of the loss, as style_nce takes them."""

    temperature: float
    gamma: float | None
    lam: float
    epsilon: float
    n_iter: int
    weights: str


class Shared:
    """The rows of this process, and rounds of the ring over them."""

    def __init__(self, ring: Ring, query: Tensor, target: Tensor, mask: Tensor | None, options: Options) -> None:
        self.ring, self.mask, self.options = ring, mask, options
        self.q, self.t, self.lengths, self.finite = units_of(query, target)
        self.dtype = self.lengths.dtype
        self.highest = self.zeros()
        self.negatives = self.zeros()
        self.u, self.v = self.zeros(), self.zeros()

    def zeros(self, fill: float = 0.0) -> Tensor:
        """Return one number for each row of this process."""
        return torch.full_like(self.finite, fill, dtype=self.dtype)

    def blocks(self, *carried: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, int, Units, list[Tensor]]]:
        """Go round once. Yield (rows, sim, forbidden, diagonal, keys, carried) of each block of own rows and keys.

        `diagonal` is the row at which the diagonal begins in a block that has it, and else -1. `carried` are tensors of
        the keys, which may be changed in place; afterwards, the caller's are the changed ones.
        """
        inverse = [] if self.t.inverse is None else [self.t.inverse]
        state = [self.t.values, *inverse, self.finite.to(torch.uint8), *(tensor.clone() for tensor in carried)]
        extra = len(state) - len(carried)
        for owner in self.ring.round(state):
            keys, key_finite = Units(state[0], state[1] if inverse else None), state[extra - 1].bool()
            columns = slice(first := self.ring.first(owner), first + len(key_finite))
            own = len(self.finite)
            for start in range(0, own, step := max(1, stream._BLOCK_ELEMENTS // max(1, len(key_finite)))):
                rows = slice(start, min(start + step, own))
                forbidden = ~(self.finite[rows, None] & key_finite)
                if self.mask is not None:
                    forbidden |= self.mask[rows, columns]
                diagonal = start if owner == self.ring.rank else -1
                if diagonal >= 0:
                    forbidden.diagonal(diagonal).fill_(True)
                yield rows, cosines(self.q.part(rows), keys), forbidden, diagonal, keys, state[extra:]
        for mine, home in zip(carried, state[extra:], strict=True):
            mine.copy_(home)

    def raw(self, sim: Tensor, forbidden: Tensor) -> Tensor:
        """Return -cost / epsilon, -inf where a pair is forbidden."""
        return stream.log_kernel(sim, forbidden, self.options.weights, self.options.lam, self.options.epsilon)

    def kernel(self, rows: slice, sim: Tensor, forbidden: Tensor) -> Tensor:
        """Return the log kernel, shifted to a maximum of 0 in each row."""
        return stream.shift_(self.raw(sim, forbidden), self.highest[rows, None], forbidden)

    def survey(self) -> Tensor:
        """Find the maximum and the negatives of each row; return whether some row or column has no allowed entry."""
        highest, allowed = self.zeros(-math.inf), self.zeros()
        for rows, sim, forbidden, _, _, (columns,) in self.blocks(allowed):
            highest[rows] = torch.maximum(highest[rows], self.raw(sim, forbidden).amax(1))
            self.negatives[rows] += (~forbidden).sum(1)
            columns += (~forbidden).sum(0)
        self.highest = highest.nan_to_num_(neginf=0.0)
        return (self.negatives == 0).any() | (allowed == 0).any() | ~self.finite.all()

    def find_potentials(self) -> None:
        """Set u and v. If the mask leaves no plan, they give the softmax of each row."""
        has_no_plan = self.ring.total(self.survey().to(self.dtype)) > 0
        softmax = self.u
        for iteration in range(1 if self.options.weights == "uniform" else self.options.n_iter):
            self.u = self._rows_first()
            softmax = self.u if iteration == 0 else softmax
            self._columns_next()
        if self.options.weights == "uniform":
            has_no_plan = torch.ones_like(has_no_plan)
        elif self.mask is not None and not has_no_plan:
            has_no_plan = self._mask_leaves_no_plan()
        if has_no_plan:
            self.u, self.v = softmax, self.zeros()

    def _rows_first(self) -> Tensor:
        high, total = self.zeros(-math.inf), self.zeros()
        for rows, sim, forbidden, _, _, (v,) in self.blocks(self.v):
            stream.add_exp_(high, total, rows, self.kernel(rows, sim, forbidden).add_(v), 1)
        return stream.without_infinities_(-(high + total.log()))

    def _columns_next(self) -> None:
        high, total = self.zeros(-math.inf), self.zeros()
        for rows, sim, forbidden, _, _, (key_high, key_total) in self.blocks(high, total):
            kernel = self.kernel(rows, sim, forbidden).add_(self.u[rows, None])
            stream.add_exp_(key_high, key_total, slice(None), kernel, 0)
        self.v = stream.without_infinities_(-(high + total.log()))

    def _mask_leaves_no_plan(self) -> Tensor:
        sums = self.zeros()
        for rows, sim, forbidden, _, _, (v,) in self.blocks(self.v):
            sums[rows] += self.kernel(rows, sim, forbidden).add_(self.u[rows, None]).add_(v).exp_().sum(1)
        found = torch.zeros(1, dtype=torch.uint8, device=sums.device)
        if float(self.ring.total((sums - 1).abs().sum())) >= 1:  # else a plan exists, as in stream.py
            first = dist.get_global_rank(self.ring.group, 0)
            parts: list[Any] | None = [None] * len(self.ring.counts) if self.ring.rank == 0 else None
            dist.gather_object(None if self.mask is None else self.mask.cpu(), parts, first, self.ring.group)
            if parts is not None:
                forbidden = torch.cat(parts).fill_diagonal_(True)
                found += not has_plan(~forbidden)
            dist.broadcast(found, first, self.ring.group)
        return found > 0

    def positives(self) -> Tensor:
        """Return the cosines of the own pairs over the temperature."""
        return torch.linalg.vecdot(self.q.wide(), self.t.wide()) / self.options.temperature

    def logits(self, rows: slice, sim: Tensor, forbidden: Tensor, v: Tensor) -> Tensor:
        """Return the logits of the negatives."""
        logits = self.kernel(rows, sim, forbidden).add_(self.u[rows, None]).add_(v)
        logits.add_(sim, alpha=1 / self.options.temperature)
        if self.options.gamma is not None:
            return logits.add_(math.log(self.options.gamma))
        return logits.add_(self.negatives[rows, None].clamp_min(1).mul_(AUTO_GAMMA).log_())

    def excess(self) -> Tensor:
        """Return log(sum over the negatives) - positive of every own row."""
        high, total = self.zeros(-math.inf), self.zeros()
        for rows, sim, forbidden, _, _, (v,) in self.blocks(self.v):
            stream.add_exp_(high, total, rows, self.logits(rows, sim, forbidden, v), 1)
        return (high + total.log()).sub_(self.positives())

    def gradients(self, excess: Tensor, dloss: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the own queries and targets."""
        level = self.positives() + softplus(excess)
        relative = dloss / (largest := dloss.abs().nan_to_num().amax().clamp_min(torch.finfo(self.dtype).tiny))
        dq = torch.zeros_like(self.q.values, dtype=self.dtype)
        dt = torch.zeros_like(dq)
        scale = largest.clone()
        dist.all_reduce(scale, op=dist.ReduceOp.MAX, group=self.ring.group)
        relative = relative * (largest / scale)
        for rows, sim, forbidden, diagonal, keys, (v, key_dt) in self.blocks(self.v, dt):
            slope = self.logits(rows, sim, forbidden, v).sub_(level[rows, None]).exp_()
            if diagonal >= 0:
                slope.diagonal(diagonal).copy_(-excess[rows].sigmoid())
            dq[rows] += combine(slope, keys)
            key_dt += combine(slope.mT, self.q.part(rows).scaled(relative[rows]))
        dq.mul_(dloss[:, None] / self.options.temperature)
        dt.mul_(scale / self.options.temperature)
        return (
            stream.project(dq, self.q, self.lengths[0]),
            stream.project(dt, self.t, self.lengths[1]),
        )
