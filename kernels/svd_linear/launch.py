"""Parts of the launches of svd_linear's kernels: the scales as an argument, tensor descriptors, the sum of dscale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from hystar_fast.kernels.prepared import launch
from hystar_fast.kernels.svd_linear.blocks import MANY, PAIR, SHARED, _strips, _svd_linear_reduce_kernel
from hystar_fast.kernels.tuning import Tile, reduce_tile


@dataclass(frozen=True)
class Modulation:
    """The scales of a batch: one [r] for all rows, one for each sample [B, r], or a bank [K, r] with an index [B]."""

    scale: Tensor
    index: Tensor | None
    tokens: int
    """Rows of a sample; not used if one scale is shared."""

    def __post_init__(self) -> None:
        if self.index is not None:  # the kernels read it without a stride
            object.__setattr__(self, "index", self.index.contiguous())

    def rows_per_sample(self, rows: int) -> int:
        """Return the number of rows that share a scale."""
        return rows if self.scale.dim() == 1 else self.tokens

    def span_and_slots(self, rows: int, block_m: int) -> tuple[int, int]:
        """Return SPAN for tiles of `block_m` rows, and the most samples that such a tile holds."""
        if self.scale.dim() == 1:
            return SHARED.value, 1
        tokens = self.rows_per_sample(rows)
        return (PAIR.value, 2) if tokens >= block_m else (MANY.value, (block_m - 1) // tokens + 2)

    def arguments(self, rows: int, block_m: int) -> tuple[tuple[Any, ...], tuple[int, int, int]]:
        """Return the arguments `scale` and `samples` of a kernel."""
        scale = self.scale if self.scale.stride(-1) == 1 else self.scale.contiguous()
        tokens, slots = self.rows_per_sample(rows), self.span_and_slots(rows, block_m)[1]
        return (scale, self.index, scale.shape[0], scale.stride(0)), (tokens, rows // tokens, slots)


def _whole(size: int, axis: int) -> Any:
    """Return a heuristic: this size of a product is a multiple of its block, so loads need no mask for it."""
    return lambda args: args["shape"][size] % args["TILE"][axis] == 0


# Add the flags EVEN_K and EVEN (columns) to a kernel.
even = triton.heuristics({"EVEN_K": _whole(2, 2), "EVEN": _whole(1, 1)})
even_rank = triton.heuristics({"EVEN_K": _whole(2, 2), "EVEN": _whole(1, 3)})


def descriptor(tile: Tile, tensor: Tensor | None, *block: int) -> Any:
    """Return a tensor descriptor if the tile uses them, or the tensor itself."""
    if tensor is None or not tile.descriptors:
        return tensor
    return TensorDescriptor.from_tensor(tensor, list(block))


def can_use_tma(*tensors: Tensor | None) -> bool:
    """Return True if TMA can address the matrices: contiguous rows that begin at multiples of 16 bytes."""
    return all(
        tensor.stride(1) == 1
        and tensor.stride(0) >= tensor.shape[1]
        and tensor.stride(0) * tensor.itemsize % 16 == 0
        and tensor.data_ptr() % 16 == 0
        for tensor in tensors
        if tensor is not None
    )


def empty_partials(h: Tensor | None, tile: Tile, modulation: Modulation) -> Tensor | None:
    """Return memory for the partial sums of dscale, [row tiles, slots, strips, r], or None without h."""
    if h is None:
        return None
    rows, rank = h.shape
    span, slots = modulation.span_and_slots(rows, tile.block_m)
    size = triton.cdiv(rows, tile.block_m), slots, _strips(tile.block_m, span, tile.descriptors), rank
    return h.new_empty(size, dtype=torch.float32)


def sum_partials(partials: Tensor, modulation: Modulation, rows: int, block_m: int) -> Tensor:
    """Return dscale, in the shape and dtype of scale: the partial sums of every sample, added up."""
    _, slots, parts, rank = partials.shape
    scale = modulation.scale
    dscale = torch.empty_like(scale, memory_format=torch.contiguous_format)
    tokens = modulation.rows_per_sample(rows)
    tile = reduce_tile(triton.cdiv(tokens, block_m) * parts)
    launch(
        _svd_linear_reduce_kernel,
        (1 if scale.dim() == 1 else scale.shape[0], triton.cdiv(rank, tile.columns)),
        partials,
        dscale,
        modulation.index,
        rank,
        (tokens, rows // tokens, slots),
        BLOCK_M=block_m,
        STRIPS=parts,
        PARTS=tile.parts,
        COLUMNS=tile.columns,
        num_warps=tile.num_warps,
        enable_fp_fusion=True,
    )
    return dscale
