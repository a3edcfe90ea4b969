"""Costs and instruction sets for the tests of Sinkhorn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hystar_fast.ops.native import extension, extension_problem

INF, NAN = math.inf, math.nan


def isas() -> list[str]:
    """Return the instruction sets of this CPU for which the extension has code."""
    native = extension()
    assert native is not None, f"these tests need the extension, {extension_problem()}"
    return native.cpu_instruction_sets()


def random_cost(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return costs in [0, 1)."""
    return torch.rand(shape, dtype=torch.float64).to(dtype)
