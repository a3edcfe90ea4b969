"""The published protocol: every query is ranked against the 24 pictures of its own batch and against no others.

FreestyleRet's public evaluation, which Hystar follows, goes through the test set in order in batches of 24, drops
the last incomplete one, ranks each query against the batch's 24 pictures, and prints as "R@5" how often the right one
is among the first four. Its figures say how a model does in a gallery of 24, and no figure over a whole gallery can be
set beside them: wherever we print one, it carries `LABEL`.

As everywhere in this package ties count against the query; the published code leaves them to the sorting.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.retrieval.joint import joint_ranks
from hystar_fast.retrieval.metrics import check_targets, target_ranks

BATCH = 24
LABEL = "batch24: ranked within batches of 24, not over the gallery"
# What the published code calls R@1 and R@5, with the number of places it looks at.
CUTOFFS = {"R@1 of 24": 1, "R@5 of 24 (4 places)": 4}


def batch24_ranks(
    queries: Tensor,
    gallery: Tensor,
    targets: Tensor,
    *,
    text: Tensor | None = None,
    combine: str = "similarity",
) -> Tensor:
    """The rank of each query's target among the 24 targets of its batch, 0 being the first.

    Args:
        queries: [N, D] in the order of the test set, which decides who is in whose batch.
        gallery: [M, D].
        targets: int64 [N], the position in `gallery` of each query's match.
        text: [N, D], words that ask together with the queries; None for queries alone.
        combine: how, see :func:`hystar_fast.retrieval.joint.joint_ranks`; its softmax is over the batch.

    Returns:
        int64 [24 * (N // 24)], between 0 and 23; the queries of the incomplete last batch are dropped.

    Raises:
        TypeError, ValueError: as `target_ranks`, and ValueError for fewer than 24 queries.

    Source: FreestyleRet (Li et al., ECCV 2024), its public evaluation.

    Example:
        >>> points = torch.eye(50)
        >>> batch24_ranks(points, points, torch.arange(50)).shape
        torch.Size([48])
    """
    check_targets(queries, gallery, targets)
    if len(queries) < BATCH:
        raise ValueError(f"queries must be at least {BATCH} for the batch24 protocol, got {len(queries)}")
    own = torch.arange(BATCH, device=queries.device)
    ranks = []
    for start in range(0, len(queries) - BATCH + 1, BATCH):
        rows = slice(start, start + BATCH)
        pictures = gallery[targets[rows]]
        if text is None:
            ranks.append(target_ranks(queries[rows], pictures, own))
        else:
            ranks.append(joint_ranks(queries[rows], text[rows], pictures, own, combine=combine))
    return torch.cat(ranks)
