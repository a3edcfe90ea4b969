"""Computes: x in e4m3 with a scale for each row; g = (x vhᵀ) * scale in e4m3 (and h); y = g uᵀ + bias. All products run
on fp8 tensor cores.
Grid: one program for 1 to 8 rows of x; then one for each tile of [rows, rank]; then one for each tile of [rows, out].
Each program owns: its rows or its tile of the result.
Memory traffic: x once in its own precision, with a row of scale for each program; after it one byte a value; h only if
it is kept.
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
from hystar_fast.kernels.svd_linear.blocks import (
    INTERPRETED,
    MANY,
    SHARED,
    _columns,
    _dot,
    _modulated,
    _product,
    _write,
)
from hystar_fast.kernels.svd_linear.launch import Modulation, can_use_tma, descriptor, even
from hystar_fast.kernels.tuning import QUANTISE_COLUMNS_A_WARP, Gpu, Tile, quantise_rows, svd_linear_tile

E4M3 = torch.float8_e4m3fn
# The largest e4m3 number, and the number to which the bound on a row of g is scaled. Rounding x and vh may lengthen
# each by 1/16, and 448 / (1 + 1/16)² = 397.
LARGEST = tl.constexpr(448.0)
BOUND = tl.constexpr(384.0)
TINY = tl.constexpr(1e-30)
_E4M3_WORD = tl.constexpr(
    "{.reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; "
    "cvt.rn.satfinite.e4m3x2.f32 high, $4, $3; mov.b32 $0, {low, high};}"
)


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
    # four at a time, or the compiler takes words apart into bytes and builds them again
    return tl.inline_asm_elementwise(_E4M3_WORD, "=r,r,r,r,r", [value], tl.int8, is_pure=True, pack=4).to(
        tl.float8e4nv, bitcast=True
    )


@triton.jit
def _svd_linear_quantise_kernel(
    x,
    quantised,
    x_scale,
    g_scale,
    scale,
    vh_norm,
    rank,
    features,
    x_strides,
    tokens,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """Write some rows of a sample of x in e4m3, their scales, and the scales that their rows of g will have.

    The latter need max_j |scale_j| ||vh_j|| of the sample: NaN if a scale is, or if the index is outside the bank.
    """
    values, index, bank_rows, row_stride = scale
    programs = tl.cdiv(tokens, ROWS)  # of a sample
    sample = tl.program_id(0) // programs
    first = tl.program_id(0) % programs * ROWS
    row = sample
    if index is not None:
        row = tl.load(index + sample)
    row = row.to(tl.int64)
    inside = (row >= 0) & (row < bank_rows)
    largest = tl.where(inside, tl.zeros((RANKS,), dtype=tl.float32), float("nan"))
    for start in range(0, rank, RANKS):
        ranks = start + tl.arange(0, RANKS)
        ok = ranks < rank
        column_scale = tl.load(values + row * row_stride + ranks, mask=ok & inside, other=0.0).to(tl.float32)
        column_bound = tl.abs(column_scale) * tl.load(vh_norm + ranks, mask=ok, other=0.0)
        largest = tl.maximum(largest, column_bound, propagate_nan=tl.PropagateNan.ALL)
    is_nan = tl.max((largest != largest).to(tl.int32), 0) > 0
    reach = tl.where(is_nan, float("nan"), tl.max(largest, 0))
    cols = tl.arange(0, COLUMNS)
    ok = cols < features
    for token in range(first, tl.minimum(first + ROWS, tokens)):
        at = sample * tokens + token
        at64 = at.to(tl.int64)
        value = tl.load(x + at64 * x_strides[0] + cols * x_strides[1], mask=ok, other=0.0).to(tl.float32)
        is_nan = tl.max((value != value).to(tl.int32), 0) > 0
        largest_value = tl.where(is_nan, float("nan"), tl.max(tl.abs(value), 0))
        largest_value = tl.where(largest_value < TINY, TINY, largest_value)
        row_scale = largest_value / LARGEST
        value *= 1.0 / row_scale
        tl.store(quantised + at64 * features + cols, _e4m3(value), mask=ok)
        tl.store(x_scale + at, row_scale)
        bound = reach * (row_scale * tl.sqrt(tl.sum(value * value, 0)))
        tl.store(g_scale + at, tl.where(bound < TINY, TINY, bound) / BOUND)


@triton.jit
def _interleaved_product(a, b, row0, col0, inner, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """Return a tile of a bᵀ. The descriptor b is of [2, columns / 4, 2, inner]: every other pair of rows, and the rest.

    The tensor cores give a thread two neighbours of a row. The left half of their tile are every other pair of columns,
    the right half the pairs between them: so a thread has four neighbours, which are one word in e4m3.
    """
    acc = tl.zeros((M, N), dtype=tl.float32)
    for k in range(0, inner, K):
        acc = _dot(a.load([row0, k]), b.load([0, col0 // 4, 0, k]).reshape(N, K).T, acc)
    return acc.reshape(M, 2, N // 4, 2).permute(0, 2, 1, 3).reshape(M, N)


@triton.jit
def _finish(
    tile,
    out,
    h,
    factors,
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

    `samples` is None in the second product, and only there. `factors` are those of the tile's rows in a, the inverse of
    theirs in the result, and the scales of all rows of b.
    """
    rows_total, cols_total, _ = shape
    a_factor, out_factor, b_scale = factors
    cols = col0 + tl.arange(0, N)
    b_factor = _columns(b_scale, cols, cols_total, EVEN)
    if samples is None:
        tile = tile * a_factor[:, None] * b_factor[None, :]
        if bias is not None:
            tile += _columns(bias, cols, cols_total, EVEN)[None, :]
        _write(out, tile, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)
    else:
        column_factor, row_factor = b_factor, a_factor * out_factor
        if h is not None:
            tile = tile * a_factor[:, None] * b_factor[None, :]
            _write(h, tile, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)
            column_factor, row_factor = 1.0, out_factor
        tile *= row_factor[:, None]
        tile = _modulated(tile, scale, column_factor, samples, row0, cols, rows_total, cols_total, M, SPAN, EVEN)
        _write(out, _e4m3(tile), row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)


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
    INTERLEAVED: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Compute a bᵀ of two e4m3 matrices.

    First product: a = x, b = vh; the result is multiplied by ``scale``. Second: a = g, b = u; the bias is added.

    ``factors`` are the scales of the rows of a, of the rows of b, and of the rows of the result, which the second
    product does not have. h and the bias may be None. TILE is (rows, columns, step along the inner dimension).
    INTERLEAVED is for the first product with descriptors: see `_interleaved_product`.
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
    # with h, a flattened loop leaves the epilogue too few registers
    for number in tl.range(start, stop, step, flatten=SPAN != MANY and h is None):
        program = number if PERSISTENT else tl.program_id(0)
        row0 = program // column_tiles * M
        col0 = program % column_tiles * N
        if INTERLEAVED:
            acc = _interleaved_product(a, b, row0, col0, shape[2], M, N, TILE[2])
        else:
            acc = _product(a, b, row0, col0, shape, strides, M, N, TILE[2], True, EVEN_K)
        rows = row0 + tl.arange(0, M)
        row_ok = rows < shape[0]
        a_factor = tl.load(a_scale + rows, mask=row_ok, other=0.0)
        out_factor = a_factor  # not used in the second product
        if out_scale is not None:
            out_factor = 1.0 / tl.load(out_scale + rows, mask=row_ok, other=1.0)
        left, right = acc.reshape(M, 2, HALF).permute(0, 2, 1).split()
        for half in tl.static_range(2):
            _finish(
                left if half == 0 else right,
                out,
                h,
                (a_factor, out_factor, b_scale),
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


def quantise(x: Tensor, vh_norm: Tensor, modulation: Modulation, *, gpu: Gpu) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [N, in] in e4m3, the scale of each row, and the scale that each row of g will have."""
    rows, features = x.shape
    rank, tokens = len(vh_norm), modulation.rows_per_sample(rows)
    block = quantise_rows(gpu, rows)
    quantised = torch.empty(rows, features, dtype=E4M3, device=x.device)
    x_scale, g_scale = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    columns = max(16, triton.next_power_of_2(features))
    launch(
        _svd_linear_quantise_kernel,
        rows // tokens * triton.cdiv(tokens, block),
        x,
        quantised,
        x_scale,
        g_scale,
        modulation.arguments(rows, 1)[0],
        vh_norm,
        rank,
        features,
        x.stride(),
        tokens,
        ROWS=block,
        COLUMNS=columns,
        RANKS=min(max(16, triton.next_power_of_2(rank)), 1024),
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
    interleaved = tile.descriptors and modulation is not None and inner % k == 0 and columns % 4 == 0
    tiles = triton.cdiv(rows, m) * triton.cdiv(columns, n)
    persistent = tile.persistent and tiles > gpu.multiprocessors
    launch(
        _svd_linear_fp8_kernel,
        gpu.multiprocessors if persistent else tiles,
        descriptor(tile, a, m, k),
        descriptor(tile, b.view(columns // 4, 2, 2, inner).transpose(0, 1), 2, n // 4, 2, k)
        if interleaved
        else descriptor(tile, b, n, k),
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
        INTERLEAVED=interleaved,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
