"""The cost model of svd_linear: two products with u and vh (factored), or one weight for each style (materialised).

Multiply-adds at N tokens and K styles, with r = rank, I = in_features, O = out_features:

=========  =====================  ======================================
pass       factored               materialised
=========  =====================  ======================================
forward    N r I + N r O          K O r I  (W = u diag(scale) vh) + N I O
dx         N r O + N r I          N I O
dscale     N r O  (dg; shared     N I O  (dW = dy^T x) + K O r I  (dW vh^T)
           with dx)
=========  =====================  ======================================

Factored training keeps h [N, r] for dscale; materialised training keeps x and W. Element-wise work is not counted: it
is a few per cent of both. The crossovers in docs/algorithms/svd_linear.md follow from the table.
"""

from __future__ import annotations

import torch
from torch import Tensor


def factored_cost(
    tokens: int, rank: int, in_features: int, out_features: int, *, needs_dx: bool, needs_dscale: bool
) -> int:
    """Return the multiply-adds of the factored path: the forward and the gradients that are needed."""
    cost = tokens * rank * (in_features + out_features)
    if needs_dx or needs_dscale:
        cost += tokens * rank * out_features
    if needs_dx:
        cost += tokens * rank * in_features
    return cost


def materialised_cost(
    tokens: int, styles: int, rank: int, in_features: int, out_features: int, *, needs_dx: bool, needs_dscale: bool
) -> int:
    """Return the multiply-adds of building one weight for each style and using it as a plain linear layer."""
    build = styles * out_features * rank * in_features
    product = tokens * in_features * out_features
    return build * (1 + needs_dscale) + product * (1 + needs_dx + needs_dscale)


def materialising_is_cheaper(
    tokens: int,
    styles: int,
    rank: int,
    in_features: int,
    out_features: int,
    *,
    needs_dx: bool = False,
    needs_dscale: bool = False,
) -> bool:
    """Return whether building W = u diag(scale) vh is cheaper, from shapes alone: nothing is read from the device."""
    factored = factored_cost(tokens, rank, in_features, out_features, needs_dx=needs_dx, needs_dscale=needs_dscale)
    materialised = materialised_cost(
        tokens, styles, rank, in_features, out_features, needs_dx=needs_dx, needs_dscale=needs_dscale
    )
    return materialised < factored


def may_materialise(x: Tensor, index: Tensor | None, needs_dscale: bool) -> bool:
    """Return whether building weights is possible.

    With an index it is possible on the CPU only, because sorting the samples by style reads the index. It is not
    possible if dW, which is a sum over all tokens, would be summed in float16, which may overflow.
    """
    return (index is None or x.device.type == "cpu") and not (needs_dscale and x.dtype == torch.float16)


# One kernel for both products, at ranks that fit into a tile. The rates are a model of an H200, and not measured. They
# decide from which size on two kernels are used.
FUSED_RANK = 128
_FUSED_ROWS, _FUSED_COLUMNS = 64, 128
_MULTIPLY_ADDS_A_SECOND, _BYTES_A_SECOND, _LAUNCH_SECONDS = 395e12, 4.3e12, 3e-6


def fused_shares(
    tokens: int, rank: int, inner: int, columns: int, *, itemsize: int, multiprocessors: int
) -> int | None:
    """Return the number of shares of the result's columns for the fused kernel, or None if two kernels are cheaper.

    Fusing saves one launch and two passes over [N, r]. A small batch has too few tiles of rows to fill the GPU, so each
    tile is divided into shares. Every share after the first repeats the first product, N r inner multiply-adds.

    Args:
        tokens: Rows N.
        rank: r.
        inner: Features that the first product sums over: in_features forward, out_features backward.
        columns: Features of the result.
        itemsize: Bytes of an element.
        multiprocessors: Multiprocessors of the GPU.
    """
    if rank > FUSED_RANK or not tokens * columns:
        return None
    row_tiles = -(-tokens // _FUSED_ROWS)
    shares = max(1, min(multiprocessors // row_tiles, -(-columns // _FUSED_COLUMNS)))
    repeated = (shares - 1) * tokens * rank * inner / _MULTIPLY_ADDS_A_SECOND
    saved = _LAUNCH_SECONDS + 2 * tokens * rank * itemsize / _BYTES_A_SECOND
    return shares if repeated < saved else None
