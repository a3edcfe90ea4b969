"""Ceilings of the machine: copy bandwidth, and the rate of matrix products in each dtype.

They are measured first, on random data, in buffers several times larger than the last-level cache. The report shows
every other row as a share of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import DEVICE, forward

COPY_MIB = 2048 if DEVICE == "cuda" else 256
SIZE = 8192 if DEVICE == "cuda" else 1536
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}


def bench_copy(record: Callable[..., None], quick: bool) -> None:
    count = (1 if quick else COPY_MIB) * 2**20 // 4
    source, target = torch.rand(count, device=DEVICE), torch.empty(count, device=DEVICE)
    gib = 2 * 4 * count / 2**30  # read and written
    record("ceiling", "copy", "torch", "forward", torch.float32, forward(lambda: target.copy_(source)), None, gib=gib)


@pytest.mark.parametrize("name", ["fp32", "bf16"] if DEVICE == "cpu" else list(DTYPES))
def bench_matmul(record: Callable[..., None], quick: bool, name: str) -> None:
    size = 64 if quick else SIZE
    left, right = (torch.randn(size, size, device=DEVICE).to(DTYPES[name]) for _ in range(2))
    run: Callable[[], Any] = lambda: left @ right.mT  # noqa: E731
    if name == "fp8":
        scales = [torch.ones(shape, device=DEVICE) for shape in ((size, 1), (1, size))]
        run = lambda: torch._scaled_mm(left, right.mT, *scales, out_dtype=torch.bfloat16)  # noqa: E731
    record("ceiling", f"matmul {size}", "torch", "forward", DTYPES[name], forward(run), None, gflop=2 * size**3 / 1e9)
