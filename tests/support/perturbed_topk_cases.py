"""Scores, and the comparison with the reference on the same noise, for the tests of perturbed_topk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hystar_fast import perturbed_topk, ref
from tests.support.tolerance import assert_as_accurate

# (batch, samples, positions, chosen): one, primes, vectors and their parts, all positions, more than there are
SHAPES = [
    (1, 2, 1, 1),
    (2, 3, 2, 1),
    (3, 101, 7, 3),
    (2, 64, 16, 16),
    (2, 53, 31, 30),
    (1, 40, 33, 5),
    (2, 31, 5, 9),
    (2, 47, 131, 1),
    (2, 100, 196, 19),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_scores(b: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return scores in (0, 1), as those of a sigmoid."""
    return torch.rand(b, n, dtype=torch.float64).to(dtype)


def make_mask(b: int, n: int) -> Tensor:
    """Return a mask that forbids a different third of the positions of each item."""
    return (torch.arange(n) + torch.arange(b)[:, None]) % 3 == 0


def run(function: Callable[..., Tensor], scores: Tensor, k: int, *, seed: int = 0, **options: Any) -> list[Tensor]:
    """Return the result on the noise of a seed, and the gradient of a weighted sum of its finite entries."""
    leaf = scores.clone().requires_grad_()
    soft = function(leaf, k, generator=generator(seed), **options)
    weight = torch.randn(soft.shape, generator=generator(7), dtype=torch.float64).to(soft.dtype)
    return [soft.detach(), *torch.autograd.grad(soft, leaf, weight)]


def assert_parity(scores: Tensor, k: int, **options: Any) -> None:
    """Assert that the result is the reference's bit for bit, and that the gradient is as accurate as its."""
    truth = run(ref.perturbed_topk, scores.double(), k, **options)
    same_dtype = run(ref.perturbed_topk, scores, k, **options)
    found = run(perturbed_topk, scores, k, **options)
    assert torch.equal(found[0], same_dtype[0])
    for actual, same, true in zip(found, same_dtype, truth, strict=True):
        assert actual.dtype == same.dtype
        assert_as_accurate(actual, same, true)
