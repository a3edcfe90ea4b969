"""Prompts of TKI: class names in learned styles, through the text tower of a frozen CLIP (Section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.models.backbones.text_tower import TextTower

WORD, CLASS = "{word}", "{class}"
_STAND_INS = ("x", "a")  # for a learned word: of one token each, and different ones


class Prompts:
    """Encodes Λ_pi = "A [word]_p style of [class]_i.", Λ_p = "A [word]_p style of" and Λ_i = "[class]_i".

    The word's row of the embedded tokens is a learned vector, put in before the positions are added. Vectors are
    normalised. Gradients reach the words alone, if the tower is frozen.

    Args:
        tower: encodes embedded tokens.
        tokenizer: texts -> ids [B, L].
        template: of Λ_pi, with "{word}" and "{class}".
        domain_template: of Λ_p, with "{word}".
        class_template: of Λ_i, with "{class}".
        device: of the tower.

    Raises:
        ValueError: a template without its places, or whose word is not one token of this tokenizer.
    """

    def __init__(
        self,
        tower: TextTower,
        tokenizer: Callable[[list[str]], Tensor],
        template: str = "A {word} style of {class}.",
        domain_template: str = "A {word} style of",
        class_template: str = "{class}",
        *,
        device: torch.device | None = None,
    ) -> None:
        for name, text, needed in (
            ("template", template, (WORD, CLASS)),
            ("domain_template", domain_template, (WORD,)),
            ("class_template", class_template, (CLASS,)),
        ):
            if any(text.count(place) != 1 for place in needed) or (CLASS not in needed and CLASS in text):
                raise ValueError(f"{name} must have {' and '.join(needed)} once each, got {text!r}")
        if WORD in class_template:
            raise ValueError(f"class_template must have {CLASS} alone, got {class_template!r}")
        self.tower, self.tokenizer, self.device = tower, tokenizer, device
        self.template, self.domain_template, self.class_template = template, domain_template, class_template
        self._domain_ids, self._domain_places = self._with_word(domain_template)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [n, D] of whole texts."""
        return F.normalize(self.tower.encode_ids(self._ids(texts)), dim=-1)

    def classes(self, names: Sequence[str]) -> Tensor:
        """Return unit vectors [C, D] of the class prompts, which depend on no word."""
        return self.texts([self.class_template.replace(CLASS, name) for name in names])

    def in_style(self, style: str, names: Sequence[str]) -> Tensor:
        """Return unit vectors [C, D] of classes in a style that words name, such as "sketch"."""
        styled = self.template.replace(WORD, style)
        return self.texts([styled.replace(CLASS, name) for name in names])

    def domains(self, words: Tensor) -> Tensor:
        """Return unit vectors [P, D] of the domain prompts of learned words [P, width]."""
        embedded = self._embed(words, self._domain_ids, self._domain_places)[:, 0]
        ends = self.tower.ends(self._domain_ids).expand(len(words))
        return F.normalize(self.tower.encode(embedded[:, : int(ends[0]) + 1], ends), dim=-1)

    def styled(self, words: Tensor, names: Sequence[str], *, reuse: bool = True) -> Tensor:
        """Return unit vectors [P, C, D] of every class in every learned style.

        Args:
            words: [P, width].
            names: C class names.
            reuse: compute the beginning that the prompts of one word share once for each word; the result is the same.

        Raises:
            ValueError: the tokenizer cuts the word off or moves it.
        """
        ids, places = self._with_word(self.template, names)
        ends = self.tower.ends(ids)
        ids, P, C = ids[:, : int(ends.max()) + 1], len(words), len(names)
        embedded, ends = self._embed(words, ids, places), ends.repeat(P)
        shared = _shared_beginning(ids, int(ends.min())) if reuse else 0
        past = self.tower.begin(embedded[:, 0, :shared]) if shared else None
        found = self.tower.encode(embedded[:, :, shared:].flatten(0, 1), ends, past)
        return F.normalize(found, dim=-1).view(P, C, -1)

    def _embed(self, words: Tensor, ids: Tensor, places: Tensor) -> Tensor:
        """Return embedded tokens [P, C, L, width] of ids [C, L], with each word in its place [C]."""
        embedded = self.tower.embed_tokens(ids)
        is_word = torch.arange(ids.shape[1], device=ids.device) == places[:, None]
        return torch.where(is_word[None, :, :, None], words[:, None, None], embedded[None])

    def _with_word(self, template: str, names: Sequence[str] = ("",)) -> tuple[Tensor, Tensor]:
        """Return ids [C, L] of a template with "{word}" and each name, and the place [C] of the word's one token.

        The word is put in before the name, so that a name with "{word}" is a name as any other.
        """
        worded = (template.replace(WORD, word) for word in _STAND_INS)
        first, second = (self._ids([text.replace(CLASS, name) for name in names]) for text in worded)
        differs = first != second
        alone = self._ids([_STAND_INS[0]])[0, 1]  # behind the token that begins every text
        is_word = (differs.sum(1) == 1) & ((first == alone) & differs).any(1)
        if not bool(is_word.all()):
            bad = template.replace(CLASS, names[int((~is_word).int().argmax())])
            raise ValueError(f"template must give the learned word one token within the context, got {bad!r}")
        return first, differs.int().argmax(1)

    def _ids(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(list(texts))
        return ids if self.device is None else ids.to(self.device)


@torch.no_grad()
def mean_embedding(tower: TextTower, tokenizer: Callable[[list[str]], Tensor], texts: Sequence[str]) -> Tensor:
    """Return the mean [width] of the embedded tokens of texts, without those that begin and end a text."""
    ids = tokenizer(list(texts))
    places = torch.arange(ids.shape[1])
    inside = (places > 0) & (places < tower.ends(ids)[:, None])
    return tower.embed_tokens(ids[inside]).mean(0)


def _shared_beginning(ids: Tensor, first_end: int) -> int:
    """Return how many tokens all rows of ids [C, L] begin with, before the first end of a text."""
    same = (ids == ids[:1]).all(0).int()
    return min(int(same.cumprod(0).sum()), first_end)
