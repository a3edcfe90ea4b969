"""Pairs, masks and the comparison with the reference, for the tests of style_nce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hystar_fast import ref
from hystar_fast.ops.style_nce import style_nce
from tests.support.tolerance import assert_as_accurate


def make_pair(n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return queries, and targets that are the queries plus noise."""
    query = torch.randn(n, d, dtype=torch.float64)
    return query.to(dtype), (query + torch.randn(n, d)).to(dtype)


def same_class(n: int, classes: int) -> Tensor:
    """Return a mask that forbids pairs of the same class; classes alternate."""
    labels = torch.arange(n) % classes
    return labels[:, None] == labels


def run(function: Callable[..., Tensor], query: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Return the loss of every row, and the gradients of a weighted sum of the losses."""
    query, target = query.clone().requires_grad_(), target.clone().requires_grad_()
    loss = function(query, target, reduction="none", **options)
    weight = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype)
    return loss, *torch.autograd.grad((loss * weight).sum(), (query, target))


def assert_parity(query: Tensor, target: Tensor, **options: Any) -> None:
    """Assert that loss and gradients are as accurate as those of the reference in the same dtype."""
    truth = run(ref.style_nce, query.double(), target.double(), **options)
    same_dtype = run(ref.style_nce, query, target, **options)
    for actual, same, true in zip(run(style_nce, query, target, **options), same_dtype, truth, strict=True):
        assert actual.dtype == same.dtype
        assert_as_accurate(actual, same, true)
