"""Joint retrieval: a picture and words ask together (Table 7 of the paper).

Two rules are public. The paper takes "the maximum similarity as the final retrieval score"; the public evaluation code
of FreestyleRet, whose protocol the paper follows, takes the maximum of two softmaxes over the gallery. They differ: a
softmax forgives the modality whose similarities are all low (text against images), a similarity does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.retrieval.metrics import check_targets, ranks_of_scores

SOFTMAX_SCALE = 100.0
COMBINATIONS = ("similarity", "softmax")


def joint_ranks(
    style: Tensor,
    text: Tensor,
    gallery: Tensor,
    targets: Tensor,
    *,
    combine: str = "similarity",
    block: int = 4096,
) -> Tensor:
    """The rank of each target when the better of two queries decides, 0 being the first.

    "similarity": score_ij = max(<q_i, g_j>, <t_i, g_j>).
    "softmax": score_ij = max(softmax_j(100 <q_i, g_j>), softmax_j(100 <t_i, g_j>)), the softmaxes over the gallery.

    The second is compared by log(score) / 100, which keeps the order, cannot underflow, and is on the scale of a
    similarity, so that ties are those of `target_ranks`.

    Args:
        style: [N, D] embeddings of the pictures that ask.
        text: [N, D] embeddings of the words that ask with them.
        gallery: [M, D].
        targets: int64 [N], the position of each query's only match.
        combine: "similarity" or "softmax".
        block: gallery rows scored at a time.

    Returns:
        int64 [N], between 0 and M - 1.

    Raises:
        TypeError, ValueError: as `target_ranks`, for either query; ValueError for another `combine`.

    Source: FreestyleRet (Li et al., ECCV 2024), its public evaluation; Hystar, Appendix C.

    Example:
        >>> style, text = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.3, 0.7]])
        >>> joint_ranks(style, text, torch.eye(2), torch.tensor([1])).tolist()
        [1]
    """
    for queries in (style, text):
        check_targets(queries, gallery, targets, block)
    if combine not in COMBINATIONS:
        raise ValueError(f"combine must be one of {COMBINATIONS}, got {combine!r}")
    asked = [(queries, _offset(queries, gallery, block) if combine == "softmax" else 0.0) for queries in (style, text)]

    def scores(items: slice) -> Tensor:
        first, second = (queries @ gallery[items].mT - offset for queries, offset in asked)
        return torch.maximum(first, second)

    own = torch.maximum(*((queries * gallery[targets]).sum(-1, keepdim=True) - offset for queries, offset in asked))
    return ranks_of_scores(scores, own[:, 0], targets, len(gallery), block=block)


def _offset(queries: Tensor, gallery: Tensor, block: int) -> Tensor:
    """log(sum_j exp(100 <q_i, g_j>)) / 100, [N, 1]."""
    total = queries.new_full((len(queries), 1), -torch.inf)
    for start in range(0, len(gallery), block):
        scaled = SOFTMAX_SCALE * (queries @ gallery[start : start + block].mT)
        total = torch.logaddexp(total, scaled.logsumexp(1, keepdim=True))
    return total / SOFTMAX_SCALE
