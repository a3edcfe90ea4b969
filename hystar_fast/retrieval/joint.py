"""Joint retrieval: a picture and a text are one query (Table 7 of the paper).

There are two public rules. The paper takes "the maximum similarity as the final retrieval score"; the public
evaluation code of FreestyleRet, whose protocol the paper follows, takes the maximum of two softmaxes over the gallery.
They differ: the softmax ignores that all similarities of one modality are lower (text with images), the similarity
does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.methods.similarity import COSINE, Similarity
from hystar_fast.retrieval.metrics import at_least_float32, check_targets, ranks_of_scores

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
    similarity: Similarity = COSINE,
) -> Tensor:
    """Return the rank of each target by the larger of its scores for two queries; 0 is the first.

    "similarity": score_ij = max(<q_i, g_j>, <t_i, g_j>).
    "softmax": score_ij = max(softmax_j(100 <q_i, g_j>), softmax_j(100 <t_i, g_j>)), the softmaxes over the gallery.

    The second is compared by log(score) / 100, which keeps the order, cannot underflow, and is on the scale of a
    similarity, so that ties are those of `target_ranks`.

    Args:
        style: [N, D] embeddings of the query pictures.
        text: [N, D] embeddings of the texts that belong to them.
        gallery: [M, D].
        targets: int64 [N], the position of each query's only relevant item.
        combine: "similarity" or "softmax".
        block: gallery rows scored at a time.
        similarity: takes the place of the products.

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
    style, text, gallery = (similarity.prepare(at_least_float32(entry)) for entry in (style, text, gallery))
    terms = [
        (queries, _offset(queries, gallery, block, similarity) if combine == "softmax" else 0.0)
        for queries in (style, text)
    ]

    def scores(items: slice) -> Tensor:
        first, second = (similarity.scores(queries, gallery[items]) - offset for queries, offset in terms)
        return torch.maximum(first, second)

    own = torch.maximum(*(similarity.paired(queries, gallery[targets])[:, None] - offset for queries, offset in terms))
    return ranks_of_scores(scores, own[:, 0], targets, len(gallery), block=block)


def _offset(queries: Tensor, gallery: Tensor, block: int, similarity: Similarity) -> Tensor:
    """Return log(sum_j exp(100 <q_i, g_j>)) / 100, [N, 1]."""
    total = queries.new_full((len(queries), 1), -torch.inf)
    for start in range(0, len(gallery), block):
        scaled = SOFTMAX_SCALE * similarity.scores(queries, gallery[start : start + block])
        total = torch.logaddexp(total, scaled.logsumexp(1, keepdim=True))
    return total / SOFTMAX_SCALE
