"""svd_linear with both products in e4m3: the quantised factors, and the op on the CPU (emulated) and on CUDA.

On a GPU of compute capability 8.9 or more, the products run on its fp8 tensor cores. The CPU rounds the same values to
e4m3 in the same places, and multiplies them in float32. This shows the accuracy of fp8, and is no faster than float32.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from hystar_fast.ops.contexts import on_device, without_autocast
from hystar_fast.ops.svd_linear import cuda, replay
from hystar_fast.ops.svd_linear.checks import check_index_range
from hystar_fast.ops.svd_linear.torch import samples_tokens

E4M3 = torch.float8_e4m3fn
LARGEST, BOUND, TINY = 448.0, 384.0, 1e-30  # as in kernels/svd_linear/fp8.py
_OLDEST = (8, 9)

LIB = torch.library.Library("hystar_fast", "FRAGMENT")
LIB.define(
    "svd_linear_fp8_forward(Tensor x, Tensor scale, Tensor u, Tensor u_scale, Tensor vh, Tensor vh_scale, "
    "Tensor vh_norm, Tensor? bias, Tensor? index, bool save) -> (Tensor, Tensor)"
)


class Fp8Factors(NamedTuple):
    """u and vh in e4m3 with a float32 scale for each row, ``u ≈ u8 * u_scale[:, None]``, and the norms of vh's rows."""

    u: Tensor
    u_scale: Tensor
    vh: Tensor
    vh_scale: Tensor
    vh_norm: Tensor


@torch.no_grad()
def quantise_factors(u: Tensor, vh: Tensor) -> Fp8Factors:
    """Quantise the frozen factors once, for all later calls of ``svd_linear(..., precision="fp8", factors=...)``.

    Args:
        u: ``[out, r]``, any floating dtype.
        vh: ``[r, in]``.

    Returns:
        The factors, on the device of u and vh: r (in + out) bytes, and four bytes for each row.

    Example:
        >>> u, _, vh = torch.linalg.svd(torch.randn(6, 4), full_matrices=False)
        >>> quantised = quantise_factors(u, vh)
        >>> (quantised.u.float() * quantised.u_scale[:, None] - u).abs().max().item() < 0.07
        True
    """
    return Fp8Factors(*_by_row(u), *_by_row(vh), torch.linalg.vector_norm(vh.float(), dim=1))


def _by_row(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows in e4m3 and the scale of each."""
    scaled, scale = _scaled(a)
    return scaled.to(E4M3), scale


def _scaled(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows within ±448 in float32, and their scales. The scale of a row with inf or NaN is inf or NaN."""
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
    """Return y and, if it is to be saved, h [N, r], by emulation."""
    check_index_range(index, scale)
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
    """Return y and, if it is to be saved, h [N, r]. Raise ValueError if the GPU has no fp8: there is no fallback."""
    gpu = cuda.gpu(x.device)
    if problem := fp8_problem(gpu.capability):
        raise ValueError(f"precision must be None on this GPU, got 'fp8': {problem}")
    from hystar_fast.kernels.prepared import recorded
    from hystar_fast.kernels.svd_linear import fp8
    from hystar_fast.kernels.svd_linear.launch import Modulation

    given, option = (x, u, scale, vh, bias, index, u_scale, vh_scale, vh_norm), replay.FP8 + replay.NEEDS_DSCALE * save
    if (repeated := replay.run(option, *given)) is not None:
        return repeated[0], repeated[1] if save else x.new_empty(0)
    samples, tokens = samples_tokens(x, scale)
    rows = x.reshape(samples * tokens, x.shape[-1])
    y = x.new_empty(*x.shape[:-1], len(u))
    if not y.numel():
        return y, x.new_empty(len(rows), len(vh)) if save else x.new_empty(0)
    scale = scale if scale.stride(-1) == 1 else scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    modulation, kept = Modulation(scale, index, tokens), x.dtype if save else None
    with on_device(x), recorded() as launches:
        x8, x_scale, g_scale = fp8.quantise(rows, vh_norm, modulation, gpu=gpu)
        g, h = fp8.first_product(x8, x_scale, g_scale, vh, vh_scale, modulation, gpu=gpu, h_dtype=kept)
        fp8.second_product(g, g_scale, u, u_scale, bias, y.view(len(rows), len(u)), gpu=gpu)
    if u.is_contiguous() and vh.is_contiguous():
        replay.keep([option], given, [y] if h is None else [y, h], launches)
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


def fp8_problem(capability: tuple[int, int]) -> str | None:
    """Return why fp8 does not run on a GPU of this compute capability, or None."""
    if capability < _OLDEST:
        return f"it needs compute capability {_OLDEST}, this GPU has {capability}"
    return cuda.triton_problem()
