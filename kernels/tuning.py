"""Tiles, warps and pipeline depth of every Triton kernel, by architecture. Chosen here, never tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

# Shared memory one block may use, in bytes (CUDA programming guide, table of compute capabilities).
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}


class Gpu(NamedTuple):
    """The facts of a GPU on which the choice of a launch depends."""

    capability: tuple[int, int]
    multiprocessors: int


@dataclass(frozen=True)
class Tile:
    """One configuration of a GEMM kernel: the tile of the output, the step along the inner dimension, the launch."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    descriptors: bool = False  # operands and results are accessed through tensor descriptors (TMA)
    persistent: bool = False  # one program a multiprocessor, which takes one tile after the other
    specialised: bool = False  # warps of three kinds (specialised.py): a backward on Hopper alone


# A tile of 128 x 256 keeps Hopper's tensor cores busy. Its epilogue works on half of the columns at a time, or it
# spills.
_WIDE = Tile(128, 256, 64, num_warps=8, num_stages=3, descriptors=True)
_WIDE_FP8 = Tile(128, 256, 128, num_warps=8, num_stages=3, descriptors=True)
_WIDE_FP32 = Tile(128, 128, 32, num_warps=8, num_stages=3, descriptors=True)
# The backward of large batches on Hopper with warps of three kinds. No GPU has measured it: bench/tune.py times it with
# the others, and SPECIALISE becomes True if it is the fastest there. Otherwise the kernel goes.
SPECIALISED = Tile(128, 256, 64, num_warps=4, num_stages=4, descriptors=True, persistent=True, specialised=True)
SPECIALISE = False
# For batches whose wide tiles are fewer than multiprocessors
_SMALLER = (
    Tile(128, 128, 64, num_warps=8, num_stages=4, descriptors=True),
    Tile(64, 128, 64, num_warps=4, num_stages=4, descriptors=True),
    Tile(64, 64, 64, num_warps=4, num_stages=4, descriptors=True),
)
# For Ampere, and for Ada and consumer Blackwell, which have 99 KiB of shared memory: pointers and asynchronous copies.
_PLAIN = Tile(128, 128, 32, num_warps=8, num_stages=3)
_PLAIN_MANY = Tile(64, 128, 32, num_warps=8, num_stages=3)  # a tile of fewer rows has fewer samples
_PLAIN_FP8 = Tile(128, 128, 64, num_warps=8, num_stages=3)
_PLAIN_FP32 = Tile(128, 64, 32, num_warps=4, num_stages=3)
# For any stride and any size. An address for each element needs registers, so a larger tile spills.
_ODD = Tile(64, 64, 32, num_warps=8, num_stages=3)
# For samples shorter than a tile: the epilogue loops over the samples of the tile, so few rows are best.
_SHORT = Tile(32, 128, 64, num_warps=4, num_stages=3)
_SHORT_SMALL = Tile(32, 64, 32, num_warps=4, num_stages=3)
_SHORT_FP8 = Tile(64, 128, 64, num_warps=8, num_stages=3)  # fp8 has no tensor-core instruction of fewer rows
_SHORT_BELOW = 32  # tokens a sample

# The same choice for each size of an element: tiles of operands have equally many bytes.
_BY_ITEMSIZE = {1: (_WIDE_FP8, _PLAIN_FP8), 2: (_WIDE, _PLAIN), 4: (_WIDE_FP32, _PLAIN_FP32)}


def svd_linear_tile(gpu: Gpu, itemsize: int, tokens: int, rows: int, columns: int, *, aligned: bool) -> Tile:
    """Return the tile of the kernels in gemm.py and fp8.py.

    Args:
        gpu: The GPU.
        itemsize: Bytes of an element: 1, 2 or 4.
        tokens: Rows that share one row of scale.
        rows, columns: Of the result.
        aligned: TMA can address every operand: its rows are contiguous and begin at multiples of 16 bytes.
    """
    capability = gpu.capability
    if not aligned:  # in a tile of at most two samples, or the epilogue in fp32 spills
        return _ODD if itemsize == 1 or tokens >= _ODD.block_m else _SHORT_SMALL
    if tokens < _SHORT_BELOW:
        return {1: _SHORT_FP8, 2: _SHORT, 4: _SHORT_SMALL}[itemsize]
    wide, plain = _BY_ITEMSIZE[itemsize]
    if capability[0] not in (9, 10):
        return _PLAIN_MANY if itemsize == 2 and tokens < plain.block_m else plain
    # While the epilogue loops over many samples, no registers are left for the operands of the next tile. The same
    # holds for the epilogue of fp8 on sm_100.
    fits = itemsize == 2 or (itemsize == 1 and capability[0] == 9)
    if itemsize == 2 and _tiles(wide, rows, columns) < gpu.multiprocessors:
        smaller = [tile for tile in _SMALLER if tokens >= tile.block_m]
        best = min([*smaller, wide], key=lambda tile: _seconds(tile, rows, columns, gpu.multiprocessors))
        gain = _seconds(wide, rows, columns, gpu.multiprocessors) / _seconds(best, rows, columns, gpu.multiprocessors)
        return best if gain > _CLEAR_GAIN else wide
    return replace(wide, persistent=fits and tokens >= wide.block_m)


# A model of an H200, not measured: what one multiprocessor multiplies in half types, what it reads from L2, and what
# all of them read together.
_FLOPS, _BYTES_ONE, _BYTES_ALL = 4.7e12, 110e9, 7.3e12
_CLEAR_GAIN = 1.1


def _tiles(tile: Tile, rows: int, columns: int) -> int:
    return -(-rows // tile.block_m) * -(-columns // tile.block_n)


def _seconds(tile: Tile, rows: int, columns: int, multiprocessors: int) -> float:
    """Return the time of a GEMM in a half type, for each element of the inner dimension."""
    tiles, m, n = _tiles(tile, rows, columns), tile.block_m, tile.block_n
    bandwidth = min(_BYTES_ONE, _BYTES_ALL / min(tiles, multiprocessors))
    return -(-tiles // multiprocessors) * max(2 * m * n / _FLOPS, 2 * (m + n) / bandwidth)


_FUSED_TALL_FROM = 8192  # rows from which tiles of 128 fill a large GPU


def svd_linear_fused_tile(capability: tuple[int, int], itemsize: int, rows: int, width: int, *, aligned: bool) -> Tile:
    """Return the tile of the kernel in fused.py, for a rank of at most ``width``, which is 16 to 128."""
    if itemsize == 4 or not aligned:
        return Tile(32, 64, 32, num_warps=8 if width > 64 else 4, num_stages=2)
    if capability[0] not in (9, 10):
        return Tile(64, 128, 32, num_warps=8, num_stages=3)
    if rows >= _FUSED_TALL_FROM:
        return Tile(128, 128, 64, num_warps=8, num_stages=3, descriptors=True)
    return Tile(64, 128, 64, num_warps=4, num_stages=3, descriptors=True)


@dataclass(frozen=True)
class ReduceTile:
    """The block of partial sums that the reduction kernel reads in one step."""

    parts: int
    columns: int
    num_warps: int = 4


def reduce_tile(parts: int) -> ReduceTile:
    """Return the block for samples of so many partial sums: narrow and long for many, or few programs walk far."""
    return ReduceTile(32, 64) if parts <= 64 else ReduceTile(256, 16)


# One program quantises whole rows; a thread reads 16 bytes of a half type.
QUANTISE_COLUMNS_A_WARP = 256


def quantise_rows(gpu: Gpu, rows: int) -> int:
    """Return the rows of a program, which reads a row of scale once for them: 1 to 8, or too few programs run."""
    return min(8, max(1, rows // (8 * gpu.multiprocessors)))
