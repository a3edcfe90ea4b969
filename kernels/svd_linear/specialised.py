"""Computes: the backward's (dy u) * scale and the partial sums of dscale = Σ_t (dy u) * h, with warps of three kinds.
Grid: one program for each multiprocessor, which walks over the tiles of [rows, rank], column tiles first.
Each program owns: its tiles of the result, and their rows of the partial sums [row halves, 2, strips, rank].
Memory traffic: operands once a tile, by TMA into a ring of slots; h and the result once; one or two rows of scale.
Numerics: as gemm.py. The sums of a column are added in a fixed order, so every run gives the same bits.

For Hopper only. One warp loads. Two groups of four warps multiply the upper and the lower half of the same tile, the
lower one half of the slots behind: while one group finishes its half, the tensor cores have the steps of the other.
Groups with whole tiles of their own would hide more, but tiles of 128 x 128, the largest for which the registers of one
group last, read a third more from L2.

A slot is `ready` when its loads have arrived, and `free` when both groups have multiplied it.
"""

# Gluon functions: layouts are explicit, so Triton's own language cannot express them
from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from hystar_fast.kernels.prepared import launch
from hystar_fast.kernels.svd_linear.launch import Modulation, can_use_tma, sum_partials
from hystar_fast.kernels.tuning import SPECIALISED, Gpu, Tile

PIECE: gl.constexpr = gl.constexpr(64)  # columns that are finished at once
# Pairs of a piece of h, where a thread has those of its pairs of the product
PAIRS: gl.constexpr = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[8, 0], [0, 4], [0, 8], [0, 16]],
        lane_bases=[[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, 32],
    )
)


@gluon.jit
def _load_operands(a, b, shape, slots, TILE: gl.constexpr, STAGES: gl.constexpr):
    """Load the operands of every step of every tile, each into the next slot as soon as it is free."""
    a_slots, b_slots, ready, free, _ = slots
    column_tiles = gl.cdiv(shape[1], TILE[1])
    count = 0
    for number in range(gl.program_id(0), gl.cdiv(shape[0], TILE[0]) * column_tiles, gl.num_programs(0)):
        row0 = number // column_tiles * TILE[0]
        col0 = number % column_tiles * TILE[1]
        for k in range(0, shape[2], TILE[2]):
            slot = count % STAGES
            arrived = ready.index(slot)
            mbarrier.wait(free.index(slot), count // STAGES % 2 ^ 1)
            mbarrier.expect(arrived, a.block_type.nbytes + b.block_type.nbytes)
            tma.async_copy_global_to_shared(a, [row0, k], arrived, a_slots.index(slot))
            tma.async_copy_global_to_shared(b, [k, col0], arrived, b_slots.index(slot))
            count += 1


@gluon.jit
def _step(acc, count, slots, STAGES: gl.constexpr, HALF: gl.constexpr, FIRST: gl.constexpr):
    """Begin to multiply the slot of one step, wait for the step before, and free its slot."""
    a_slots, b_slots, ready, free, _ = slots
    slot = count % STAGES
    mbarrier.wait(ready.index(slot), count // STAGES % 2)
    M: gl.constexpr = a_slots.shape[1] // 2
    rows = a_slots.index(slot).slice(HALF * M, M)
    acc = warpgroup_mma(rows, b_slots.index(slot), acc, use_acc=not FIRST, is_async=True)
    if not FIRST:
        acc = warpgroup_mma_wait(1, deps=(acc,))
        mbarrier.arrive(free.index((count + STAGES - 1) % STAGES))
    return acc, count + 1


@gluon.jit
def _halves(x):
    """Return the left and the right half of the columns."""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1).split()


@gluon.jit
def _fold(x, BIT: gl.constexpr, LANES: gl.constexpr):
    """Add up pairs of rows of [strips, 8, n]: the even one keeps the left half of the columns, the odd one the right.

    The rows are in threads LANES apart.
    """
    left, right = x.reshape(x.shape[0], 8, 2, x.shape[2] // 2).permute(0, 1, 3, 2).split()
    rows = gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(2, left.type.layout)))[None, :, None]
    odd = (rows >> BIT & 1) == 1
    other = gl.inline_asm_elementwise(
        "shfl.sync.bfly.b32 $0, $1, " + LANES + ", 31, -1;",
        "=r,r",
        [gl.where(odd, left, right)],
        dtype=gl.float32,
        is_pure=False,
        pack=1,
    )
    return gl.where(odd, right, left) + other


@gluon.jit
def _store_strip_sums(product, sums, rank):
    """Store the sums over strips of 16 rows, each in one warp: with 14 shuffles for 64 columns, and not 48."""
    M: gl.constexpr = product.shape[0]
    N: gl.constexpr = product.shape[1]
    x = gl.sum(product.reshape(M // 16, 2, 8, N), 1)
    x = _fold(_fold(_fold(x, 0, "4"), 1, "8"), 2, "16")
    layout: gl.constexpr = x.type.layout
    strips = gl.arange(0, M // 16, gl.SliceLayout(1, gl.SliceLayout(2, layout)))[:, None, None]
    rows = gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(2, layout)))[None, :, None]
    cols = gl.arange(0, N // 8, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    cols += (rows & 1) * (N // 2) + (rows >> 1 & 1) * (N // 4) + (rows >> 2) * (N // 8)
    gl.store(sums + strips * rank + cols, x)


@gluon.jit
def _scale_row(scale, sample):
    """Return where the scale of a sample begins, and a factor: NaN if the index is outside the bank."""
    values, index, bank_rows, row_stride = scale
    row = sample.to(gl.int64)
    factor = 1.0
    if index is not None:
        row = gl.load(index + row).to(gl.int64)
        ok = (row >= 0) & (row < bank_rows)
        row = gl.where(ok, row, 0)
        factor = gl.where(ok, 1.0, float("nan"))
    return values + row * row_stride, factor


@gluon.jit
def _scale(row, col0, layout: gl.constexpr):
    values, factor = row
    return gl.load(values + col0 + gl.arange(0, PIECE, gl.SliceLayout(0, layout))).to(gl.float32) * factor


@gluon.jit
def _load_h(h, row0, col0, shape, M: gl.constexpr):
    """Load a piece of h as pairs of columns; zero below the last row."""
    rows = gl.arange(0, M, gl.SliceLayout(1, PAIRS))[:, None]
    pairs = gl.arange(0, PIECE // 2, gl.SliceLayout(0, PAIRS))[None, :]
    first = h.to(gl.pointer_type(gl.int32), bitcast=True) + (row0.to(gl.int64) * shape[1] + col0) // 2
    return gl.load(first + rows * (shape[1] // 2) + pairs, mask=row0 + rows < shape[0], other=0)


@gluon.jit
def _unpacked(pairs, dtype: gl.constexpr, layout: gl.constexpr):
    """Return pairs of a half type in float32. Not pure, or it is done where 64 registers more do not fit."""
    if dtype == gl.bfloat16:
        code: gl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
    else:
        code: gl.constexpr = "{.reg .f16 a, b; mov.b32 {a, b}, $2; cvt.f32.f16 $0, a; cvt.f32.f16 $1, b;}"
    low, high = gl.inline_asm_elementwise(
        code, "=&r,=&r,r", [pairs], dtype=(gl.float32, gl.float32), is_pure=False, pack=1
    )
    return gl.convert_layout(gl.join(low, high).reshape(pairs.shape[0], 2 * pairs.shape[1]), layout)


@gluon.jit
def _finish(acc, pairs, g, h, outs, sums, scale, sample, row0, col0, split, shape, ONE: gl.constexpr):
    """Finish half a tile piece by piece: its rows are of one sample, or of two, the second from row `split` on."""
    M: gl.constexpr = acc.shape[0]
    left, right = _halves(acc)
    pieces = _halves(left) + _halves(right)
    layout: gl.constexpr = pieces[0].type.layout
    is_first = (row0 + gl.arange(0, M, gl.SliceLayout(1, layout)) < split)[:, None]
    first_row = _scale_row(scale, sample)
    second_row = first_row
    if not ONE:
        second_row = _scale_row(scale, sample + 1)
    for i in gl.static_range(4):
        if i < 2:
            pairs += (_load_h(h, row0, col0 + (i + 2) * PIECE, shape, M),)
        piece = pieces[i]
        product = piece * _unpacked(pairs[i], g.dtype, layout)
        first = _scale(first_row, col0 + i * PIECE, layout)[None, :]
        if ONE:
            _store_strip_sums(product, sums + i * PIECE, shape[1])
            piece *= first
        else:
            _store_strip_sums(gl.where(is_first, product, 0.0), sums + i * PIECE, shape[1])
            _store_strip_sums(gl.where(is_first, 0.0, product), sums + M // 16 * shape[1] + i * PIECE, shape[1])
            second = _scale(second_row, col0 + i * PIECE, layout)[None, :]
            piece *= gl.where(is_first, first, second)
        out = outs.index(i % 2)
        tma.store_wait(1)  # the store before the last has read its buffer
        out.store(piece.to(g.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(g, [row0, col0 + i * PIECE], out)


@gluon.jit
def _multiply(
    g, h, partials, shape, samples, scale, slots, outs, TILE: gl.constexpr, STAGES: gl.constexpr, HALF: gl.constexpr
):
    """Multiply and finish the upper or the lower half of every tile."""
    M: gl.constexpr = TILE[0] // 2
    N: gl.constexpr = TILE[1]
    LEAD: gl.constexpr = STAGES // 2
    free, ahead = slots[3], slots[4]
    tokens, sample_count = samples[0], samples[1]
    column_tiles = gl.cdiv(shape[1], N)
    steps = gl.cdiv(shape[2], TILE[2])
    count = 0
    turn = 0
    for number in range(gl.program_id(0), gl.cdiv(shape[0], TILE[0]) * column_tiles, gl.num_programs(0)):
        row0 = number // column_tiles * TILE[0] + HALF * M
        col0 = number % column_tiles * N
        acc = gl.zeros((M, N), gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16]))
        if HALF == 1:
            mbarrier.wait(ahead, turn)
            turn ^= 1
        acc, count = _step(acc, count, slots, STAGES, HALF, True)
        for _i in gl.static_range(LEAD - 1):
            acc, count = _step(acc, count, slots, STAGES, HALF, False)
        if HALF == 0:
            mbarrier.arrive(ahead)
        for _i in range(LEAD, steps - LEAD):
            acc, count = _step(acc, count, slots, STAGES, HALF, False)
        pairs = (_load_h(h, row0, col0, shape, M), _load_h(h, row0, col0 + PIECE, shape, M))
        for _i in gl.static_range(LEAD):  # meanwhile, h arrives
            acc, count = _step(acc, count, slots, STAGES, HALF, False)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(free.index((count + STAGES - 1) % STAGES))
        sample = gl.minimum(row0 // tokens, sample_count - 1)  # the lower half may begin below the last row
        split = (sample + 1) * tokens
        sums = partials + (row0 // M).to(gl.int64) * (2 * M // 16) * shape[1] + col0
        if (row0 + M <= split) | (split >= shape[0]):
            _finish(acc, pairs, g, h, outs, sums, scale, sample, row0, col0, split, shape, True)
        else:
            _finish(acc, pairs, g, h, outs, sums, scale, sample, row0, col0, split, shape, False)
    tma.store_wait(0)


@gluon.jit
def _svd_linear_specialised_kernel(
    a, b, g, h, partials, shape, samples, scale, TILE: gl.constexpr, STAGES: gl.constexpr
):
    """Compute g = (a b) * scale, and the sums of (a b) * h over the rows of each sample in each strip of 16 rows."""
    a_slots = gl.allocate_shared_memory(a.dtype, [STAGES, TILE[0], TILE[2]], a.layout)
    b_slots = gl.allocate_shared_memory(b.dtype, [STAGES, TILE[2], TILE[1]], b.layout)
    upper_outs = gl.allocate_shared_memory(g.dtype, [2, TILE[0] // 2, PIECE], g.layout)
    lower_outs = gl.allocate_shared_memory(g.dtype, [2, TILE[0] // 2, PIECE], g.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    ahead = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(free.index(i), count=2)
    mbarrier.init(ahead, count=1)
    slots = (a_slots, b_slots, ready, free, ahead)
    gl.warp_specialize(
        [
            (_multiply, (g, h, partials, shape, samples, scale, slots, upper_outs, TILE, STAGES, 0)),
            (_multiply, (g, h, partials, shape, samples, scale, slots, lower_outs, TILE, STAGES, 1)),
            (_load_operands, (a, b, shape, slots, TILE, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )


def suits(dy: Tensor, u: Tensor, h: Tensor, modulation: Modulation, gpu: Gpu, tile: Tile = SPECIALISED) -> bool:
    """Return whether the kernel can run: on Hopper, in half types, with a scale a sample, more tiles than programs."""
    (rows, inner), rank = dy.shape, u.shape[1]
    return (
        gpu.capability == (9, 0)
        and dy.itemsize == 2
        and modulation.scale.dim() == 2
        and modulation.tokens >= tile.block_m // 2
        and rank % tile.block_n == 0
        and triton.cdiv(rows, tile.block_m) * rank // tile.block_n > gpu.multiprocessors
        and inner > tile.num_stages * tile.block_k
        and h.is_contiguous()
        and can_use_tma(dy, u, h)
    )


def _descriptor(tensor: Tensor, *block: int) -> TensorDescriptor:
    dtype = gl.bfloat16 if tensor.dtype == torch.bfloat16 else gl.float16
    return TensorDescriptor.from_tensor(tensor, list(block), gl.NVMMASharedLayout.get_default_for(list(block), dtype))


def backward(
    dy: Tensor, u: Tensor, h: Tensor, modulation: Modulation, *, gpu: Gpu, tile: Tile = SPECIALISED
) -> tuple[Tensor, Tensor]:
    """Return (dy u) * scale, [N, r], and dscale, for arguments that `suits` accepts."""
    (rows, inner), rank = dy.shape, u.shape[1]
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    scale, samples = modulation.arguments(rows, m // 2)
    dg = torch.empty_like(h)
    row_tiles = triton.cdiv(rows, m)
    partials = h.new_empty((2 * row_tiles, 2, m // 32, rank), dtype=torch.float32)
    launch(
        _svd_linear_specialised_kernel,
        min(gpu.multiprocessors, row_tiles * rank // n),
        _descriptor(dy, m, k),
        _descriptor(u, k, n),
        _descriptor(dg, m // 2, PIECE.value),
        h,
        partials,
        (rows, rank, inner),
        samples,
        scale,
        TILE=(m, n, k),
        STAGES=tile.num_stages,
        num_warps=tile.num_warps,
    )
    return dg, sum_partials(partials, modulation, rows, m // 2)
