"""svd_linear with both products in e4m3: quantised factors, the op, its emulation on the CPU and its CUDA kernels.

On a GPU of compute capability 8.9 or more the products run on its fp8 tensor cores. The CPU emulates: the same values
are rounded to e4m3 in the same places, and then multiplied in float32. That shows what fp8 costs in accuracy, and is no
faster than float32.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from hystar_fast.ops import svd_linear_cuda
from hystar_fast.ops.svd_linear_cpu import check_index
from hystar_fast.ops.svd_linear_materialised import samples_tokens, without_autocast

E4M3 = torch.float8_e4m3fn
LARGEST, BOUND, TINY = 448.0, 384.0, 1e-30  # as in kernels/svd_linear_fp8.py
_OLDEST = (8, 9)

LIB = torch.library.Library("hystar_fast", "FRAGMENT")
LIB.define(
    "svd_linear_fp8_forward(Tensor x, Tensor scale, Tensor u, Tensor u_scale, Tensor vh, Tensor vh_scale, "
    "Tensor vh_norm, Tensor? bias, Tensor? index, bool save) -> (Tensor, Tensor)"
)


class Fp8Factors(NamedTuple):
    """u and vh in e4m3 with a float32 scale for each row, and the norms of vh's rows: ``u ≈ u8 * u_scale[:, None]``."""

    u: Tensor
    u_scale: Tensor
    vh: Tensor
    vh_scale: Tensor
    vh_norm: Tensor


@torch.no_grad()
def quantise_factors(u: Tensor, vh: Tensor) -> Fp8Factors:
    """Quantise the frozen factors once, for every later ``svd_linear(..., precision="fp8", factors=...)``.

    Args:
        u: ``[out, r]``, any floating dtype.
        vh: ``[r, in]``.

    Returns:
        The factors, on the device of u and vh: r (in + out) bytes, and four bytes a row.

    Example:
        >>> u, _, vh = torch.linalg.svd(torch.randn(6, 4), full_matrices=False)
        >>> quantised = quantise_factors(u, vh)
        >>> (quantised.u.float() * quantised.u_scale[:, None] - u).abs().max().item() < 0.07
        True
    """
    return Fp8Factors(*_by_row(u), *_by_row(vh), torch.linalg.vector_norm(vh.float(), dim=1))


def _by_row(a: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in e4m3 and the scale of each."""
    scaled, scale = _scaled(a)
    return scaled.to(E4M3), scale


def _scaled(a: Tensor) -> tuple[Tensor, Tensor]:
    """Rows within ±448 in float32 and the scale of each; a row with an infinite value or NaN has one of its own."""
    a = a.float()
    largest = a.abs().amax(1).clamp_min(TINY) if a.shape[1] else a.new_full(a.shape[:1], TINY)
    scale = largest / LARGEST
    return a * (1 / scale)[:, None], scale


def forward_cpu(
    x: Tensor,
    scale: Tensor,
    u: Tensor,
    u_scale: Tensor,
    vh: Tensor,
    vh_scale: Tensor,
    vh_norm: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Emulate: return y and, where it is to be saved, h [N, r]."""
    check_index(index, scale)
    samples, tokens = samples_tokens(x, scale)
    rank = vh.shape[0]
    row_scale = (scale if index is None else scale.index_select(0, index)).float().reshape(samples, 1, rank)
    with without_autocast("cpu"):
        scaled, x_scale = _scaled(x.reshape(samples * tokens, x.shape[-1]))
        norm = x_scale * torch.linalg.vector_norm(scaled, dim=1)
        h = torch.mm(scaled.to(E4M3).float(), vh.float().t()).mul_(x_scale[:, None]).mul_(vh_scale)
        bound = norm.view(samples, tokens) * torch.linalg.vector_norm(row_scale * vh_norm, float("inf"), dim=-1)
        g_scale = bound.view(-1, 1).clamp_min(TINY) / BOUND
        g = (h.view(samples, tokens, rank) * row_scale).view(h.shape).mul_(1 / g_scale).to(E4M3)
        y = torch.mm(g.float(), u.float().t()).mul_(g_scale).mul_(u_scale)
        y = y if bias is None else y.add_(bias)
    result = x.new_empty(*x.shape[:-1], len(u))
    result.view(y.shape).copy_(y)  # a view for a result could not be changed in place
    return result, h.to(x.dtype) if save else x.new_empty(0)


def forward_cuda(
    x: Tensor,
    scale: Tensor,
    u: Tensor,
    u_scale: Tensor,
    vh: Tensor,
    vh_scale: Tensor,
    vh_norm: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Return y and, where it is to be saved, h [N, r]. A GPU that cannot is an error: nothing else was asked for."""
    capability, multiprocessors = svd_linear_cuda.gpu(x.device)
    if reason := why_not(capability):
        raise ValueError(f"precision: 'fp8' cannot run here: {reason}")
    from hystar_fast.kernels import svd_linear_fp8_launch as launch

    samples, tokens = samples_tokens(x, scale)
    rows = x.reshape(samples * tokens, x.shape[-1])
    y = x.new_empty(*x.shape[:-1], len(u))
    if not y.numel():
        return y, x.new_empty(len(rows), len(vh)) if save else x.new_empty(0)
    scale = scale if scale.stride(-1) == 1 else scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device(x.device):
        x8, x_scale, g_scale = launch.quantise(rows, scale, vh_norm, index, tokens)
        g, h = launch.first(
            x8,
            x_scale,
            g_scale,
            vh,
            vh_scale,
            scale,
            index,
            tokens,
            x.dtype if save else None,
            capability=capability,
            multiprocessors=multiprocessors,
        )
        launch.second(
            g,
            g_scale,
            u,
            u_scale,
            bias,
            y.view(len(rows), len(u)),
            capability=capability,
            multiprocessors=multiprocessors,
        )
    return y, x.new_empty(0) if h is None else h


LIB.impl("svd_linear_fp8_forward", forward_cpu, "CPU")
LIB.impl("svd_linear_fp8_forward", forward_cuda, "CUDA")


@torch.library.register_fake("hystar_fast::svd_linear_fp8_forward", lib=LIB)
def _forward_fake(
    x: Tensor,
    scale: Tensor,
    u: Tensor,
    u_scale: Tensor,
    vh: Tensor,
    vh_scale: Tensor,
    vh_norm: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    saved = x.new_empty(prod(x.shape[:-1]), vh.shape[0]) if save else x.new_empty(0)
    return x.new_empty(*x.shape[:-1], u.shape[0]), saved


def why_not(capability: tuple[int, int]) -> str | None:
    """Return why fp8 does not run on a GPU of this compute capability, or None."""
    if capability < _OLDEST:
        return f"needs compute capability {_OLDEST}, this GPU has {capability}"
    return svd_linear_cuda.why_not()
