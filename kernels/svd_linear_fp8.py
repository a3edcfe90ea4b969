"""Computes: x in e4m3 with a scale a row; g = (x vhᵀ) * scale in e4m3 (and h); y = g uᵀ + bias: fp8 tensor cores.
Grid: one program a row of x, then one a tile of [rows, rank], then one a tile of [rows, out].
Each program owns: its row or tile of the result.
Memory traffic: x once in its own precision, everything after it in one byte a value; h only where it is kept.
Numerics: float32 accumulators, and every scale on the accumulator. The row scale of g is known before g is: |g_j| is
at most ||x|| max_j |scale_j| ||vh_j||, and e4m3, a floating format, loses nothing by a loose bound until it underflows.
Triton's interpreter rounds to fp8 wrongly (carries, subnormals, NaN), so EMULATE builds the byte there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hystar_fast.kernels.svd_linear_blocks import _modulated, _product, _write

# The largest e4m3 value, and what the bound on a row of g is mapped to: rounding x and vh may lengthen each by 1/16,
# and 448 / (1 + 1/16)² = 397.
LARGEST = tl.constexpr(448.0)
BOUND = tl.constexpr(384.0)
TINY = tl.constexpr(1e-30)


@triton.jit
def _e4m3(value, EMULATE: tl.constexpr):
    """Round float32 within ±448, or NaN, to e4m3, half to even."""
    if EMULATE:
        bits = value.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
        small = (
            magnitude.to(tl.float32, bitcast=True) + 16384.0
        )  # one unit in the last place of 2^14 is e4m3's least, 2^-9
        byte = tl.where(magnitude < (121 << 23), small.to(tl.int32, bitcast=True) & 0xFFFFF, normal)
        byte = tl.where(magnitude > 0x7F800000, 0x7F, byte) | ((bits >> 24) & 0x80)
        return byte.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    return value.to(tl.float8e4nv)


@triton.jit
def _svd_linear_reach_kernel(scale, vh_norm, reach, rank, scale_row, COLUMNS: tl.constexpr):
    """reach[k] = max_j |scale[k, j]| ||vh_j||, NaN if there is one."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, rank, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)
        ok = cols < rank
        one = tl.load(scale + row * scale_row + cols, mask=ok, other=0.0).to(tl.float32)
        one = tl.abs(one) * tl.load(vh_norm + cols, mask=ok, other=0.0)
        largest = tl.maximum(largest, one, propagate_nan=tl.PropagateNan.ALL)
    is_nan = tl.max((largest != largest).to(tl.int32), 0) > 0
    tl.store(reach + row, tl.where(is_nan, float("nan"), tl.max(largest, 0)))


@triton.jit
def _svd_linear_quantise_kernel(
    x,
    quantised,
    x_scale,
    g_scale,
    reach,
    index,
    features,
    x_row,
    x_column,
    tokens,
    bank_rows,
    COLUMNS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """One row of x in e4m3, its scale, and the scale its row of g will have."""
    row = tl.program_id(0)
    wide = row.to(tl.int64)
    cols = tl.arange(0, COLUMNS)
    ok = cols < features
    value = tl.load(x + wide * x_row + cols * x_column, mask=ok, other=0.0).to(tl.float32)
    is_nan = tl.max((value != value).to(tl.int32), 0) > 0
    largest = tl.where(is_nan, float("nan"), tl.max(tl.abs(value), 0))
    largest = tl.where(largest < TINY, TINY, largest)
    one = largest / LARGEST
    value *= 1.0 / one
    tl.store(quantised + wide * features + cols, _e4m3(value, EMULATE), mask=ok)
    tl.store(x_scale + row, one)
    sample = row // tokens
    if HAS_INDEX:
        sample = tl.load(index + sample)
    inside = (sample >= 0) & (sample < bank_rows)
    bound = tl.load(reach + sample, mask=inside, other=float("nan")) * (one * tl.sqrt(tl.sum(value * value, 0)))
    tl.store(g_scale + row, tl.where(bound < TINY, TINY, bound) / BOUND)


@triton.jit
def _fp8_tile(
    program,
    a,
    b,
    out,
    h,
    a_scale,
    b_scale,
    out_scale,
    bias,
    scale,
    index,
    rows_total,
    cols_total,
    inner,
    tokens,
    samples,
    bank_rows,
    scale_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN_K: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    MODULATE: tl.constexpr,
    WRITE_H: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """One tile of the product and its epilogue."""
    column_tiles = tl.cdiv(cols_total, BLOCK_N)
    row0 = program // column_tiles * BLOCK_M
    col0 = program % column_tiles * BLOCK_N
    acc = _product(
        a,
        b,
        row0,
        col0,
        rows_total,
        cols_total,
        inner,
        inner,
        1,
        1,
        inner,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        DESCRIPTORS,
        True,
        EVEN_K,
        False,
        False,
    )
    rows = row0 + tl.arange(0, BLOCK_M)
    row_ok = rows < rows_total
    a_factor = tl.load(a_scale + rows, mask=row_ok, other=0.0)[:, None]
    if MODULATE:
        out_factor = (1.0 / tl.load(out_scale + rows, mask=row_ok, other=1.0))[:, None]
    HALF: tl.constexpr = BLOCK_N // 2
    left, right = acc.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1).split()
    for half in tl.static_range(2):
        first = col0 + half * HALF
        cols = first + tl.arange(0, HALF)
        col_ok = cols < cols_total
        tile = left if half == 0 else right
        tile = tile * a_factor * tl.load(b_scale + cols, mask=col_ok, other=0.0)[None, :]
        if MODULATE:
            if WRITE_H:
                _write(h, tile, row0, first, rows_total, cols_total, BLOCK_M, HALF, DESCRIPTORS)
            tile = _modulated(
                tile,
                scale,
                index,
                row0,
                cols,
                rows_total,
                cols_total,
                tokens,
                samples,
                bank_rows,
                scale_row,
                BLOCK_M,
                SPAN,
                HAS_INDEX,
            )
            quantised = _e4m3(tile * out_factor, EMULATE)
            _write(out, quantised, row0, first, rows_total, cols_total, BLOCK_M, HALF, DESCRIPTORS)
        else:
            if HAS_BIAS:
                tile += tl.load(bias + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
            _write(out, tile, row0, first, rows_total, cols_total, BLOCK_M, HALF, DESCRIPTORS)


@triton.jit
def _svd_linear_fp8_kernel(
    a,
    b,
    out,
    h,
    a_scale,
    b_scale,
    out_scale,
    bias,
    scale,
    index,
    rows_total,
    cols_total,
    inner,
    tokens,
    samples,
    bank_rows,
    scale_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN_K: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    MODULATE: tl.constexpr,
    WRITE_H: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EMULATE: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """a bᵀ of two e4m3 matrices. MODULATE: times scale, to e4m3 (a = x, b = vh); else plus bias (a = g, b = u)."""
    if PERSISTENT:
        tiles = tl.cdiv(rows_total, BLOCK_M) * tl.cdiv(cols_total, BLOCK_N)
        for program in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=SPAN != 2):
            _fp8_tile(
                program,
                a,
                b,
                out,
                h,
                a_scale,
                b_scale,
                out_scale,
                bias,
                scale,
                index,
                rows_total,
                cols_total,
                inner,
                tokens,
                samples,
                bank_rows,
                scale_row,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
                DESCRIPTORS,
                EVEN_K,
                SPAN,
                HAS_INDEX,
                MODULATE,
                WRITE_H,
                HAS_BIAS,
                EMULATE,
            )
    else:
        _fp8_tile(
            tl.program_id(0),
            a,
            b,
            out,
            h,
            a_scale,
            b_scale,
            out_scale,
            bias,
            scale,
            index,
            rows_total,
            cols_total,
            inner,
            tokens,
            samples,
            bank_rows,
            scale_row,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            DESCRIPTORS,
            EVEN_K,
            SPAN,
            HAS_INDEX,
            MODULATE,
            WRITE_H,
            HAS_BIAS,
            EMULATE,
        )
