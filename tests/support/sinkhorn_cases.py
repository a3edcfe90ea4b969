"""Costs and instruction sets that the tests of Sinkhorn share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hystar_fast.ops.native import extension

INF, NAN = math.inf, math.nan


def isas() -> list[str]:
    native = extension()
    return [] if native is None else native.cpu_instruction_sets()


def random_cost(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, dtype=torch.float64).to(dtype)
