"""Computes: x in e4m3 with a scale for each row; g = (x vhᵀ) * scale in e4m3 (and h); y = g uᵀ + bias. All products run
on fp8 tensor cores.
Grid: one program for each row of x; then one for each tile of [rows, rank]; then one for each tile of [rows, out].
Each program owns: its row or its tile of the result.
Memory traffic: x once in its own precision; everything after it in one byte a value; h only if it is kept.
Numerics: float32 accumulators; every scale is applied to the accumulator. The scale of a row of g is known before g,
because |g_j| is at most ||x|| max_j |scale_j| ||vh_j||. e4m3 is a floating format, so a loose bound costs no digits
until values underflow. Triton's interpreter rounds to e4m3 wrongly (carries, subnormals, NaN), so _e4m3 builds the byte
there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hystar_fast.kernels.prepared import launch
from hystar_fast.kernels.svd_linear.blocks import INTERPRETED, MANY, SHARED, _modulated, _product, _write
from hystar_fast.kernels.svd_linear.launch import Modulation, can_use_tma, descriptor, even
from hystar_fast.kernels.tuning import QUANTISE_COLUMNS_A_WARP, Gpu, Tile, svd_linear_tile

E4M3 = torch.float8_e4m3fn
# The largest e4m3 number, and the number to which the bound on a row of g is scaled. Rounding x and vh may lengthen
# each by 1/16, and 448 / (1 + 1/16)² = 397.
LARGEST = tl.constexpr(448.0)
BOUND = tl.constexpr(384.0)
TINY = tl.constexpr(1e-30)


@triton.jit
def _e4m3(value):
    """Round float32 within ±448, or NaN, to e4m3, half to even."""
    if INTERPRETED:
        bits = value.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
        # one unit in the last place of 2^14 is the smallest e4m3 number, 2^-9
        small = magnitude.to(tl.float32, bitcast=True) + 16384.0
        byte = tl.where(magnitude < (121 << 23), small.to(tl.int32, bitcast=True) & 0xFFFFF, normal)
        byte = tl.where(magnitude > 0x7F800000, 0x7F, byte) | ((bits >> 24) & 0x80)
        return byte.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    return value.to(tl.float8e4nv)


@triton.jit
def _svd_linear_reach_kernel(scale, vh_norm, bounds, rank, scale_row, COLUMNS: tl.constexpr):
    """bounds[k] = max_j |scale[k, j]| ||vh_j||, or NaN if a scale is NaN."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, rank, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)
        ok = cols < rank
        column_scale = tl.load(scale + row * scale_row + cols, mask=ok, other=0.0).to(tl.float32)
        column_bound = tl.abs(column_scale) * tl.load(vh_norm + cols, mask=ok, other=0.0)
        largest = tl.maximum(largest, column_bound, propagate_nan=tl.PropagateNan.ALL)
    is_nan = tl.max((largest != largest).to(tl.int32), 0) > 0
    tl.store(bounds + row, tl.where(is_nan, float("nan"), tl.max(largest, 0)))


@triton.jit
def _svd_linear_quantise_kernel(
    x, quantised, x_scale, g_scale, bounds, index, features, x_strides, tokens, bank_rows, COLUMNS: tl.constexpr
):
    """Write one row of x in e4m3, its scale, and the scale that its row of g will have; `bounds` are of the bank."""
    row = tl.program_id(0)
    row64 = row.to(tl.int64)
    cols = tl.arange(0, COLUMNS)
    ok = cols < features
    value = tl.load(x + row64 * x_strides[0] + cols * x_strides[1], mask=ok, other=0.0).to(tl.float32)
    is_nan = tl.max((value != value).to(tl.int32), 0) > 0
    largest = tl.where(is_nan, float("nan"), tl.max(tl.abs(value), 0))
    largest = tl.where(largest < TINY, TINY, largest)
    row_scale = largest / LARGEST
    value *= 1.0 / row_scale
    tl.store(quantised + row64 * features + cols, _e4m3(value), mask=ok)
    tl.store(x_scale + row, row_scale)
    sample = row // tokens
    if index is not None:
        sample = tl.load(index + sample)
    inside = (sample >= 0) & (sample < bank_rows)
    bound = tl.load(bounds + sample, mask=inside, other=float("nan")) * (row_scale * tl.sqrt(tl.sum(value * value, 0)))
    tl.store(g_scale + row, tl.where(bound < TINY, TINY, bound) / BOUND)


@triton.jit
def _finish(
    tile,
    out,
    h,
    out_factor,
    bias,
    scale,
    samples,
    row0,
    col0,
    shape,
    M: tl.constexpr,
    N: tl.constexpr,
    SPAN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Write a tile. First product: keep h, and write tile * scale in e4m3. Second product: write tile + bias.

    `samples` is None in the second product, and only there.
    """
    rows_total, cols_total, _ = shape
    cols = col0 + tl.arange(0, N)
    if samples is not None:
        if h is not None:
            _write(h, tile, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)
        tile = _modulated(tile, scale, 1.0, samples, row0, cols, rows_total, cols_total, M, SPAN, EVEN)
        _write(out, _e4m3(tile * out_factor), row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)
    else:
        if bias is not None:
            tile += tl.load(bias + cols, mask=cols < cols_total, other=0.0).to(tl.float32)[None, :]
        _write(out, tile, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)


@even
@triton.jit
def _svd_linear_fp8_kernel(
    a,
    b,
    out,
    h,
    factors,
    bias,
    shape,
    samples,
    scale,
    TILE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SPAN: tl.constexpr,
    PERSISTENT: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Compute a bᵀ of two e4m3 matrices.

    First product: a = x, b = vh; the result is multiplied by ``scale``. Second: a = g, b = u; the bias is added.

    ``factors`` are the scales of the rows of a, of the rows of b, and of the rows of the result, which the second
    product does not have. h and the bias may be None. TILE is (rows, columns, step along the inner dimension).
    """
    M: tl.constexpr = TILE[0]
    N: tl.constexpr = TILE[1]
    HALF: tl.constexpr = N // 2
    strides = None if DESCRIPTORS else (shape[2], 1, 1, shape[2])
    tl.assume(shape[2] > 0)
    a_scale, b_scale, out_scale = factors
    column_tiles = tl.cdiv(shape[1], N)
    start, stop, step = 0, 1, 1  # one tile a program: the compiler removes the loop
    if PERSISTENT:
        start, stop, step = tl.program_id(0), tl.cdiv(shape[0], M) * column_tiles, tl.num_programs(0)
    for number in tl.range(start, stop, step, flatten=SPAN != MANY):
        program = number if PERSISTENT else tl.program_id(0)
        row0 = program // column_tiles * M
        col0 = program % column_tiles * N
        acc = _product(a, b, row0, col0, shape, strides, M, N, TILE[2], True, EVEN_K)
        rows = row0 + tl.arange(0, M)
        row_ok = rows < shape[0]
        a_factor = tl.load(a_scale + rows, mask=row_ok, other=0.0)[:, None]
        out_factor = None
        if out_scale is not None:
            out_factor = (1.0 / tl.load(out_scale + rows, mask=row_ok, other=1.0))[:, None]
        left, right = acc.reshape(M, 2, HALF).permute(0, 2, 1).split()
        for half in tl.static_range(2):
            cols = col0 + half * HALF + tl.arange(0, HALF)
            tile = left if half == 0 else right
            tile = tile * a_factor * tl.load(b_scale + cols, mask=cols < shape[1], other=0.0)[None, :]
            _finish(
                tile,
                out,
                h,
                out_factor,
                bias,
                scale,
                samples,
                row0,
                col0 + half * HALF,
                shape,
                M,
                HALF,
                SPAN,
                DESCRIPTORS,
                EVEN,
            )


def quantise(x: Tensor, vh_norm: Tensor, modulation: Modulation) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [N, in] in e4m3, the scale of each row, and the scale that each row of g will have."""
    rows, features = x.shape
    rank, scale = len(vh_norm), modulation.scale
    bank = scale.shape[0] if scale.dim() == 2 else 1
    bounds = torch.empty(bank, dtype=torch.float32, device=x.device)
    columns = min(max(16, triton.next_power_of_2(rank)), 1024)
    launch(
        _svd_linear_reach_kernel,
        bank,
        scale,
        vh_norm,
        bounds,
        rank,
        scale.stride(0),
        COLUMNS=columns,
        num_warps=4,
    )
    quantised = torch.empty(rows, features, dtype=E4M3, device=x.device)
    x_scale, g_scale = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    columns = max(16, triton.next_power_of_2(features))
    launch(
        _svd_linear_quantise_kernel,
        rows,
        x,
        quantised,
        x_scale,
        g_scale,
        bounds,
        modulation.index,
        features,
        x.stride(),
        modulation.rows_per_sample(rows),
        bank,
        COLUMNS=columns,
        num_warps=min(16, max(1, columns // QUANTISE_COLUMNS_A_WARP)),
    )
    return quantised, x_scale, g_scale


def first_product(
    x: Tensor,
    x_scale: Tensor,
    g_scale: Tensor,
    vh: Tensor,
    vh_scale: Tensor,
    modulation: Modulation,
    *,
    gpu: Gpu,
    h_dtype: torch.dtype | None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return g = (x vhᵀ) * scale in e4m3, and h = x vhᵀ in `h_dtype`, or None if that is None."""
    g = torch.empty(len(x), len(vh), dtype=E4M3, device=x.device)
    h = None if h_dtype is None else torch.empty(g.shape, dtype=h_dtype, device=x.device)
    _launch(x, vh, g, h, (x_scale, vh_scale, g_scale), None, modulation, gpu, tile)
    return g, h


def second_product(
    g: Tensor,
    g_scale: Tensor,
    u: Tensor,
    u_scale: Tensor,
    bias: Tensor | None,
    y: Tensor,
    *,
    gpu: Gpu,
    tile: Tile | None = None,
) -> None:
    """Write g uᵀ + bias into y."""
    _launch(g, u, y, None, (g_scale, u_scale, None), bias, None, gpu, tile)


def _launch(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    h: Tensor | None,
    factors: tuple[Tensor, Tensor, Tensor | None],
    bias: Tensor | None,
    modulation: Modulation | None,
    gpu: Gpu,
    tile: Tile | None,
) -> None:
    """Run the kernel on contiguous e4m3 matrices a [N, K] and b [columns, K]; the first product has a modulation."""
    rows, inner = a.shape
    columns = len(b)
    if tile is None:
        tokens = rows if modulation is None else modulation.rows_per_sample(rows)
        tile = svd_linear_tile(gpu, 1, tokens, rows, columns, aligned=can_use_tma(a, b, out, h))
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    span, scale, samples = SHARED.value, None, None
    if modulation is not None:
        span, _ = modulation.span_and_slots(rows, m)
        scale, samples = modulation.arguments(rows, m)
    tiles = triton.cdiv(rows, m) * triton.cdiv(columns, n)
    persistent = tile.persistent and tiles > gpu.multiprocessors
    launch(
        _svd_linear_fp8_kernel,
        gpu.multiprocessors if persistent else tiles,
        descriptor(tile, a, m, k),
        descriptor(tile, b, n, k),
        descriptor(tile, out, m, n // 2),
        descriptor(tile, h, m, n // 2),
        factors,
        bias,
        (rows, columns, inner),
        samples,
        scale,
        TILE=(m, n, k),
        DESCRIPTORS=tile.descriptors,
        SPAN=span,
        PERSISTENT=persistent,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
