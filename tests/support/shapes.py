"""Shapes for tests: empty, of size one, prime, one less or more than a tile, and realistic."""

from __future__ import annotations

# (batch, tokens, in_features, out_features, rank)
SVD_LINEAR = [
    (1, 1, 1, 1, 1),
    (0, 5, 8, 8, 8),
    (3, 0, 8, 8, 8),
    (2, 7, 13, 17, 11),
    (5, 1, 33, 31, 29),
    (1, 129, 64, 192, 64),
    (4, 65, 48, 96, 48),
    (7, 3, 65, 63, 16),
]

# (batch, rows, columns)
SINKHORN = [(1, 1, 1), (0, 4, 4), (1, 2, 2), (3, 5, 7), (2, 31, 31), (1, 48, 48), (4, 17, 16), (2, 65, 33)]
SINKHORN += [(1, 131, 127)]
