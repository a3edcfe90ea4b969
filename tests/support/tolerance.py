"""The tolerance of every numerics test: err(kernel, ref64) <= 2 * err(ref in the same dtype, ref64) + floor[dtype]."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Return ||actual - truth|| / ||truth|| in float64: infinity for NaN. A wrong shape raises."""
    if actual.shape != truth.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} but the reference has {tuple(truth.shape)}")
    actual, truth = actual.detach().double().cpu(), truth.detach().double().cpu()
    if truth.numel() == 0:
        return 0.0
    scale = truth.norm().clamp_min(torch.finfo(torch.float64).tiny)
    error = ((actual - truth).norm() / scale).item()
    return error if error == error else float("inf")


def assert_as_accurate(actual: Tensor, same_dtype: Tensor, truth: Tensor, *, dtype: torch.dtype | None = None) -> None:
    """Assert that the error of `actual` is at most twice that of the reference in the same dtype, plus a floor."""
    floor = FLOOR[dtype or actual.dtype]
    error, reference_error = relative_error(actual, truth), relative_error(same_dtype, truth)
    limit = 2 * reference_error + floor
    assert error <= limit, f"error {error:.3e}, reference {reference_error:.3e}, floor {floor:.1e}"
