"""The cost model of a layer with experts: one plain product and a correction, or one weight for each expert.

A product with a matrix of m values over N rows takes ``m max(N, BALANCE)``: it multiplies N m times and reads m values,
and a value is read in the time of BALANCE multiplications. With r = rank, I = in_features, O = out_features, N rows
and K different experts in the batch, a layer whose remainder is kept takes:

==========  ===================================================================
correction  (I O + r (I + O)) max(N, BALANCE)
weights     K (O r I + I O max(N / K, BALANCE))  (W_k = W + u diag(delta_k) vh)
==========  ===================================================================

At a decoding step N is below BALANCE and every value of the plain weight is read once in both: the correction adds
r (I + O) / (I O). The weights pay for few experts and many tokens, N / K > O r I / (r (I + O)). They are built for one
call, so that memory has room for those of one layer. A layer without a remainder has no plain product to correct:
its two factors, or its weights, are chosen by the cost model of svd_linear.
"""

from __future__ import annotations

# multiplications of a core in the time in which it reads one value of a matrix; that of a GPU is not measured
BALANCE = {"cpu": 16, "cuda": 256}


def correction_cost(rows: int, rank: int, in_features: int, out_features: int, *, balance: int) -> int:
    """Return the cost of the plain product and of the correction u diag(delta) vh."""
    return (in_features * out_features + rank * (in_features + out_features)) * max(rows, balance)


def weights_cost(rows: int, experts: int, rank: int, in_features: int, out_features: int, *, balance: int) -> int:
    """Return the cost of building one weight for each expert and multiplying the rows of each by it."""
    build = out_features * rank * in_features
    return experts * build + in_features * out_features * max(rows, experts * balance)


def weights_are_cheaper(
    rows: int, experts: int, rank: int, in_features: int, out_features: int, device: str = "cpu"
) -> bool:
    """Return whether a layer with a remainder should build one weight for each expert of the batch."""
    balance = BALANCE.get(device, BALANCE["cuda"])
    correction = correction_cost(rows, rank, in_features, out_features, balance=balance)
    return weights_cost(rows, experts, rank, in_features, out_features, balance=balance) < correction
