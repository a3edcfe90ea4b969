"""The cost model of svd_linear: keep u and vh apart (factored) or build the weight of each style (materialised).

Multiply-adds at N tokens and K styles, with r = rank, I = in_features, O = out_features:

=========  =====================  ======================================
pass       factored               materialised
=========  =====================  ======================================
forward    N r I + N r O          K O r I  (W = u diag(scale) vh) + N I O
dx         N r O + N r I          N I O
dscale     N r O  (dg; shared     N I O  (dW = dy^T x) + K O r I  (dW vh^T)
           with dx)
=========  =====================  ======================================

Factored training keeps h [N, r] for dscale; materialised training keeps x and W. Everything element-wise is
left out: it is a few per cent of either side. Both crossovers of docs/algorithms/svd_linear.md follow from the table.
"""

from __future__ import annotations


def factored_cost(
    tokens: int, rank: int, in_features: int, out_features: int, *, needs_dx: bool, needs_dscale: bool
) -> int:
    """Multiply-adds of the factored path, forward plus whichever gradients are asked for."""
    cost = tokens * rank * (in_features + out_features)
    if needs_dx or needs_dscale:
        cost += tokens * rank * out_features
    if needs_dx:
        cost += tokens * rank * in_features
    return cost


def materialised_cost(
    tokens: int, styles: int, rank: int, in_features: int, out_features: int, *, needs_dx: bool, needs_dscale: bool
) -> int:
    """Multiply-adds of building one weight a style and using it as a plain linear layer."""
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
    """Whether W = u diag(scale) vh pays, from shapes alone: nothing is read from the device."""
    factored = factored_cost(tokens, rank, in_features, out_features, needs_dx=needs_dx, needs_dscale=needs_dscale)
    materialised = materialised_cost(
        tokens, styles, rank, in_features, out_features, needs_dx=needs_dx, needs_dscale=needs_dscale
    )
    return materialised < factored
