"""Launches the kernels of svd_linear.py over rows [B * T, features]: shapes, strides, tiles, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from hystar_fast.kernels.svd_linear import _svd_linear_gemm_kernel, _svd_linear_reduce_kernel
from hystar_fast.kernels.svd_linear_blocks import MANY, PAIR, SHARED
from hystar_fast.kernels.tuning import REDUCE, Tile, svd_linear_tile


def forward(
    x: Tensor, scale: Tensor, vh: Tensor, index: Tensor | None, tokens: int, save: bool, **launch: Any
) -> tuple[Tensor, Tensor | None]:
    """Return g = (x vhᵀ) * scale, [N, r], and h = x vhᵀ where it is to be kept.

    ``tokens`` is the number of rows of a sample. ``launch`` gives ``capability``, and may give ``multiprocessors``
    (for persistent tiles) and ``tf32``.
    """
    g, h, _ = _gemm(x, vh.t(), None, scale, index, tokens, by_column=True, write_h=save, write_g=True, **launch)
    assert g is not None
    return g, h


def backward(
    dy: Tensor,
    u: Tensor,
    h: Tensor | None,
    scale: Tensor,
    index: Tensor | None,
    tokens: int,
    needs_dg: bool,
    **launch: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """Return (dy u) * scale, [N, r], if needed, and dscale in the shape and dtype of scale if h is given."""
    g, _, dscale = _gemm(dy, u, h, scale, index, tokens, by_column=False, write_h=False, write_g=needs_dg, **launch)
    return g, dscale


def _gemm(
    a: Tensor,
    b: Tensor,
    h: Tensor | None,
    scale: Tensor,
    index: Tensor | None,
    tokens: int,
    *,
    by_column: bool,
    write_h: bool,
    write_g: bool,
    capability: tuple[int, int],
    multiprocessors: int = 1,
    tf32: bool = False,
    tile: Tile | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run the GEMM kernel on a [N, K] and b [K, r], then the reduction of dscale where h is given."""
    rows, inner = a.shape
    rank = b.shape[1]
    sums = h is not None
    shared = scale.dim() == 1
    if scale.stride(-1) != 1:
        scale = scale.contiguous()
    g = a.new_empty(rows, rank) if write_g else None
    if write_h:
        h = a.new_empty(rows, rank)
    operands = [tensor for tensor in (a, b.t() if by_column else b, g, h) if tensor is not None]
    aligned = all(suits_descriptor(tensor) for tensor in operands)
    tile = tile or svd_linear_tile(capability, a.itemsize, rows if shared else tokens, aligned=aligned)
    tokens = rows if shared else tokens
    span, slots = span_and_slots(scale, tokens, tile.block_m)
    row_tiles, column_tiles = triton.cdiv(rows, tile.block_m), triton.cdiv(rank, tile.block_n)
    partials = torch.empty(row_tiles, slots, rank, dtype=torch.float32, device=a.device) if sums else None
    samples = rows // tokens
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    tiles = row_tiles * column_tiles
    persistent = tile.persistent and tiles > multiprocessors
    _svd_linear_gemm_kernel[(multiprocessors if persistent else tiles,)](
        descriptor(tile, a, m, k),
        descriptor(tile, b.t() if by_column else b, *((n, k) if by_column else (k, n))),
        descriptor(tile, g, m, n // 2),
        descriptor(tile, h, m, n // 2),
        partials,
        scale,
        index,
        rows,
        rank,
        inner,
        a.stride(0),
        a.stride(1),
        b.stride(0),
        b.stride(1),
        tokens,
        samples,
        scale.shape[0],
        scale.stride(0),
        slots,
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_K=k,
        DESCRIPTORS=tile.descriptors,
        B_BY_COLUMN=by_column,
        EVEN_K=inner % k == 0,
        TF32=tf32,
        UPCAST=triton.knobs.runtime.interpret and a.dtype == torch.bfloat16,
        SPAN=span,
        HAS_INDEX=index is not None,
        WRITE_H=write_h,
        SUM=sums,
        WRITE_G=write_g,
        PERSISTENT=persistent,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
    if partials is None:
        return g, h, None
    return g, h, reduce(partials, scale, index, tokens, samples, m)


def reduce(partials: Tensor, scale: Tensor, index: Tensor | None, tokens: int, samples: int, block_m: int) -> Tensor:
    """Add the partial sums [row tiles, slots, r] of every sample: dscale, in the shape and dtype of scale."""
    rank = partials.shape[2]
    dscale = torch.empty_like(scale, memory_format=torch.contiguous_format)
    grid = (1 if scale.dim() == 1 else scale.shape[0], triton.cdiv(rank, REDUCE.columns))
    _svd_linear_reduce_kernel[grid](
        partials,
        dscale,
        index,
        rank,
        tokens,
        samples,
        partials.shape[1],
        BLOCK_M=block_m,
        TILES=REDUCE.tiles,
        COLUMNS=REDUCE.columns,
        HAS_INDEX=index is not None,
        num_warps=REDUCE.num_warps,
        enable_fp_fusion=True,
    )
    return dscale


def span_and_slots(scale: Tensor, tokens: int, block_m: int) -> tuple[int, int]:
    """How a tile meets the samples, and how many of them it may hold."""
    if scale.dim() == 1:
        return SHARED, 1
    return (PAIR, 2) if tokens >= block_m else (MANY, (block_m - 1) // tokens + 2)


def descriptor(tile: Tile, tensor: Tensor | None, *block: int) -> Any:
    """A tensor descriptor where the tile wants one, or the tensor itself."""
    if tensor is None or not tile.descriptors:
        return tensor
    return TensorDescriptor.from_tensor(tensor, list(block))


def suits_descriptor(tensor: Tensor) -> bool:
    """Whether TMA can address the matrix: rows contiguous, and they and the base on 16-byte boundaries."""
    return (
        tensor.stride(1) == 1
        and tensor.stride(0) >= tensor.shape[1]
        and tensor.stride(0) * tensor.itemsize % 16 == 0
        and tensor.data_ptr() % 16 == 0
    )
