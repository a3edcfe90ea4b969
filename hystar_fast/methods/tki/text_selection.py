"""Selection of TKI's head without pictures: retrieval between styles that words name and that never trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor

from hystar_fast.methods.similarity import Similarity
from hystar_fast.methods.tki.tki_prompts import Prompts

HELD_OUT = ("photo", "sketch", "cartoon", "painting", "clipart", "quickdraw drawing", "infographic")


class TextCriterion:
    """Scores a head by retrieval between prompts of held-out style words.

    For every ordered pair of styles, "A sketch style of dog." asks among "A photo style of" every class; one item is
    relevant, so the average precision is the reciprocal of its rank. The score is the mean of that of the names that
    train and that of other names.

    Args:
        prompts: encodes prompts.
        names: the class names that train.
        others: names that do not; without any the first half is the score.
        styles: at least two.
    """

    def __init__(
        self, prompts: Prompts, names: Sequence[str], others: Sequence[str], styles: Sequence[str] = HELD_OUT
    ) -> None:
        sets = {"names that train": names, "other names": others}
        with torch.no_grad():
            self._sets = {
                name: torch.stack([prompts.in_style(style, members) for style in styles])
                for name, members in sets.items()
                if members
            }

    @torch.no_grad()
    def score(self, head: Callable[[Tensor], Tensor], similarity: Similarity) -> tuple[float, dict[str, float]]:
        """Return the score, larger is better, and its parts: each set's, and the mean cosine of h(t) and t."""
        values: dict[str, float] = {}
        moved = []
        for name, vectors in self._sets.items():
            z = head(vectors)
            moved.append(torch.cosine_similarity(z, vectors, dim=-1).flatten())
            prepared = similarity.prepare(z)
            pairs = [_mean_reciprocal_rank(similarity.scores(a, b)) for a, b in permutations(prepared, 2)]
            values[name] = sum(pairs) / len(pairs)
        score = sum(values.values()) / len(values)
        return score, values | {"mean cosine to CLIP": torch.cat(moved).mean().item()}


def _mean_reciprocal_rank(scores: Tensor) -> float:
    """Return the mean of 1 / rank of the diagonal of scores [C, C]; ties count against it."""
    own = scores.diagonal()[:, None]
    return (1.0 / (scores >= own).sum(1)).mean().item()
