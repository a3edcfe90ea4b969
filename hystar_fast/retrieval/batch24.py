"""The published protocol: every query is ranked among the 24 pictures of its own batch only.

FreestyleRet's public evaluation, which Hystar follows, goes through the test set in order in batches of 24, drops
the last incomplete one, ranks each query among the batch's 24 pictures, and prints as "R@5" how often the relevant one
is among the first four. Its figures describe a gallery of 24 and cannot be compared with figures over a whole gallery:
wherever we print one, it has the label `LABEL`.

Ties count against the query, as everywhere in this package; in the published code their order depends on the sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.methods.similarity import COSINE, Similarity
from hystar_fast.retrieval.joint import joint_ranks
from hystar_fast.retrieval.metrics import check_targets, target_ranks

BATCH = 24
LABEL = "batch24: ranked within batches of 24, not over the gallery"
# The names R@1 and R@5 of the published code, with the number of places that each counts.
CUTOFFS = {"R@1 of 24": 1, "R@5 of 24 (4 places)": 4}


def batch24_ranks(
    queries: Tensor,
    gallery: Tensor,
    targets: Tensor,
    *,
    text: Tensor | None = None,
    combine: str = "similarity",
    similarity: Similarity = COSINE,
) -> Tensor:
    """Return the rank of each query's target among the 24 targets of its batch; 0 is the first.

    Args:
        queries: [N, D] in the order of the test set, which determines the batches.
        gallery: [M, D].
        targets: int64 [N], the position in `gallery` of each query's relevant item.
        text: [N, D], a text for each query, for joint retrieval; None for the queries alone.
        combine: the rule, see :func:`hystar_fast.retrieval.joint.joint_ranks`; its softmax is over the batch.
        similarity: gives the scores.

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
            ranks.append(target_ranks(queries[rows], pictures, own, similarity=similarity))
        else:
            found = joint_ranks(queries[rows], text[rows], pictures, own, combine=combine, similarity=similarity)
            ranks.append(found)
    return torch.cat(ranks)
