"""svd_linear on CUDA: the Triton kernels of hystar_fast.kernels, or torch's GEMMs where there is no Triton."""

from __future__ import annotations

from functools import cache

from hystar_fast.ops.svd_linear_cpu import backward, forward

__all__ = ["backward", "forward", "why_not"]


@cache
def why_not() -> str | None:
    """Return why the Triton kernels do not run, or None."""
    return "Triton kernels are not wired yet"
