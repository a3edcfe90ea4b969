"""The naive path of Hystar, for benchmarks: it builds every sample's weight and multiplies with bmm.

It computes the same as the model and follows the published implementation: it adds ``U diag(delta_s_b) Vᵀ`` to a copy
of the packed qkv weight for each sample b, rebuilds the shared MLP weights at every call, and computes attention as two
products around a softmax.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.ref.style_nce import style_nce

_PARITY = 1e-3


class _NaiveLinear(FastSVDLinear):
    """A FastSVDLinear that builds the weight of every sample."""

    plain_weight: Tensor

    def forward(self, x: Tensor, delta_s: Tensor | None = None, *, index: Tensor | None = None) -> Tensor:
        offset = self.delta_s_static if delta_s is None else self.delta_s_static + delta_s
        if index is not None:
            offset = offset[index]
        offset = offset.to(self.u.dtype)
        delta_weight = self.u @ torch.diag_embed(offset) @ self.vh
        if offset.ndim == 1:
            return F.linear(x, self.plain_weight + delta_weight, self.bias)
        weight = self.plain_weight.repeat(len(offset), 1, 1) + delta_weight
        y = torch.bmm(x, weight.transpose(1, 2))
        return y if self.bias is None else y + self.bias


class _NaiveAttention(SVDAttention):
    """An SVDAttention without fused attention."""

    def forward(
        self,
        x: Tensor,
        delta_s: Tensor | None = None,
        *,
        index: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        B, T, d = x.shape
        packed = self.in_proj(x, delta_s, index=index)
        q, k, v = packed.view(B, T, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (d // self.num_heads) ** 0.5
        if attn_mask is not None:
            scores = scores + attn_mask
        mixed = scores.softmax(dim=-1) @ v
        return self.out_proj(mixed.transpose(1, 2).reshape(B, T, d))


class NaiveLoss(HystarMethod):
    """Hystar whose StyleNCE is the plain reference: dozens of small operations for each Sinkhorn iteration."""

    name = "hystar, naive path"

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        return style_nce(query, target, **self.criterion.options)


@contextmanager
def naive_path(model: nn.Module) -> Iterator[None]:
    """Run the naive path in every FastSVDLinear and SVDAttention of `model` within the `with` block.

    Raises:
        ValueError: the model has no such layer, or one with a truncated rank and a remainder.
    """
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module in model.modules():
            if isinstance(module, FastSVDLinear):
                if module.base_weight is not None:
                    raise ValueError("model must have full-rank FastSVDLinear layers to run the naive path")
                module.plain_weight = (module.u * module.s.to(module.u.dtype)) @ module.vh
                changed.append((module, FastSVDLinear))
                module.__class__ = _NaiveLinear
            elif isinstance(module, SVDAttention):
                changed.append((module, SVDAttention))
                module.__class__ = _NaiveAttention
        if not changed:
            raise ValueError("model must hold a FastSVDLinear or SVDAttention to have a naive path")
        yield
    finally:
        for module, original in changed:
            module.__class__ = original
            if original is FastSVDLinear:
                del module.plain_weight


@dataclass(frozen=True)
class StepRatio:
    """Seconds of one training step on both paths, medians over alternating repeats, and their ratio."""

    ours: float
    naive: float
    repeats: int
    loss_difference: float

    @property
    def ratio(self) -> float:
        return self.naive / self.ours


def measure_step(
    model: nn.Module, ours: Callable[[], Tensor], naive: Callable[[], Tensor], repeats: int = 5
) -> StepRatio:
    """Time forward and backward of one step on both paths, alternating, after one warm-up of each.

    Args:
        model: its gradients are cleared before every step.
        ours: computes the training loss.
        naive: computes the same loss; it is called within `naive_path(model)`.
        repeats: timed steps of each.

    Raises:
        ArithmeticError: the two losses differ, so that the ratio would be meaningless.
    """
    seconds: dict[str, list[float]] = {"ours": [], "naive": []}
    losses: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name, step in (("ours", ours), ("naive", naive)):
            elapsed, losses[name] = _timed(model, step, naive=name == "naive")
            if repeat:
                seconds[name].append(elapsed)
    difference = abs(losses["ours"] - losses["naive"])
    if not difference <= _PARITY * max(1.0, abs(losses["ours"])):
        raise ArithmeticError(f"the naive path gives the loss {losses['naive']}, ours gives {losses['ours']}")
    return StepRatio(statistics.median(seconds["ours"]), statistics.median(seconds["naive"]), repeats, difference)


def _timed(model: nn.Module, step: Callable[[], Tensor], *, naive: bool) -> tuple[float, float]:
    model.zero_grad(set_to_none=True)
    if naive:
        with naive_path(model):
            return _timed(model, step, naive=False)
    start = time.perf_counter()
    loss = step()
    loss.backward()
    return time.perf_counter() - start, float(loss.detach())
