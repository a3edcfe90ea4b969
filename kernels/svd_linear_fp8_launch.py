"""Launches the kernels of svd_linear_fp8.py over rows [B * T, features]: shapes, strides, tiles, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from hystar_fast.kernels.svd_linear_blocks import SHARED
from hystar_fast.kernels.svd_linear_fp8 import (
    _svd_linear_fp8_kernel,
    _svd_linear_quantise_kernel,
    _svd_linear_reach_kernel,
)
from hystar_fast.kernels.svd_linear_launch import descriptor, span_and_slots, suits_descriptor
from hystar_fast.kernels.tuning import QUANTISE_COLUMNS_A_WARP, REDUCE, Tile, svd_linear_tile

E4M3 = torch.float8_e4m3fn


def quantise(
    x: Tensor, scale: Tensor, vh_norm: Tensor, index: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [N, in] in e4m3, the scale of each row, and the scale that each row of g will have."""
    rows, features = x.shape
    bank = scale.shape[0] if scale.dim() == 2 else 1
    reach = torch.empty(bank, dtype=torch.float32, device=x.device)
    columns = max(16, triton.next_power_of_2(vh_norm.shape[0]))
    _svd_linear_reach_kernel[(bank,)](
        scale, vh_norm, reach, vh_norm.shape[0], scale.stride(0), COLUMNS=min(columns, 1024), num_warps=REDUCE.num_warps
    )
    quantised = torch.empty(rows, features, dtype=E4M3, device=x.device)
    x_scale, g_scale = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    columns = max(16, triton.next_power_of_2(features))
    _svd_linear_quantise_kernel[(rows,)](
        x,
        quantised,
        x_scale,
        g_scale,
        reach,
        index,
        features,
        x.stride(0),
        x.stride(1),
        rows if scale.dim() == 1 else tokens,
        bank,
        COLUMNS=columns,
        HAS_INDEX=index is not None,
        EMULATE=triton.knobs.runtime.interpret,
        num_warps=min(16, max(1, columns // QUANTISE_COLUMNS_A_WARP)),
    )
    return quantised, x_scale, g_scale


def first(
    x: Tensor,
    x_scale: Tensor,
    g_scale: Tensor,
    vh: Tensor,
    vh_scale: Tensor,
    scale: Tensor,
    index: Tensor | None,
    tokens: int,
    save: torch.dtype | None,
    **launch: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return g = (x vhᵀ) * scale in e4m3 and, where a dtype to save it in is given, h = x vhᵀ."""
    g = torch.empty(x.shape[0], vh.shape[0], dtype=E4M3, device=x.device)
    h = None if save is None else torch.empty(g.shape, dtype=save, device=x.device)
    _gemm(x, vh, g, h, x_scale, vh_scale, g_scale, None, scale, index, tokens, **launch)
    return g, h


def second(
    g: Tensor, g_scale: Tensor, u: Tensor, u_scale: Tensor, bias: Tensor | None, y: Tensor, **launch: Any
) -> None:
    """y = g uᵀ + bias."""
    _gemm(g, u, y, None, g_scale, u_scale, None, bias, None, None, g.shape[0], **launch)


def _gemm(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    h: Tensor | None,
    a_scale: Tensor,
    b_scale: Tensor,
    out_scale: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    tokens: int,
    *,
    capability: tuple[int, int],
    multiprocessors: int = 1,
    tile: Tile | None = None,
) -> None:
    """Run the GEMM kernel on contiguous e4m3 matrices a [N, K] and b [columns, K]; scale: the first product."""
    rows, inner = a.shape
    columns = b.shape[0]
    tokens = rows if scale is None or scale.dim() == 1 else tokens
    aligned = all(suits_descriptor(tensor) for tensor in (a, b, out, h) if tensor is not None)
    tile = tile or svd_linear_tile(capability, 1, tokens, aligned=aligned)
    m, n, k = tile.block_m, tile.block_n, tile.block_k

    tiles = triton.cdiv(rows, m) * triton.cdiv(columns, n)
    persistent = tile.persistent and tiles > multiprocessors
    _svd_linear_fp8_kernel[(multiprocessors if persistent else tiles,)](
        descriptor(tile, a, m, k),
        descriptor(tile, b, n, k),
        descriptor(tile, out, m, n // 2),
        descriptor(tile, h, m, n // 2),
        a_scale,
        b_scale,
        out_scale,
        bias,
        scale,
        index,
        rows,
        columns,
        inner,
        tokens,
        rows // tokens,
        1 if scale is None else scale.shape[0],
        0 if scale is None else scale.stride(0),
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_K=k,
        DESCRIPTORS=tile.descriptors,
        EVEN_K=inner % k == 0,
        SPAN=SHARED if scale is None else span_and_slots(scale, tokens, m)[0],
        HAS_INDEX=index is not None,
        MODULATE=scale is not None,
        WRITE_H=h is not None,
        HAS_BIAS=bias is not None,
        EMULATE=triton.knobs.runtime.interpret,
        PERSISTENT=persistent,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
