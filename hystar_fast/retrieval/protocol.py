"""The retrieval task on the emoji styles: which drawings ask, which answer, and which concepts are held out.

Gallery: the Noto drawings of all held-out concepts (the test split), one an item, always all of them.
Queries: the same concepts in another style. A query without a drawing (outline lacks some) is not asked; the gallery
stays whole, so every style is ranked against the same items.

| query | drawing | why |
|---|---|---|
| outline | the monochrome Noto Emoji font | hard: lines only; drawn by the gallery's vendor, often in a similar pose |
| sketch | Microsoft's high-contrast drawing | hard: black and white, another vendor |
| lowres | Microsoft's 3D drawing at 12 pixels, enlarged again | hard: another vendor, detail gone |
| twemoji | Twitter's drawing | colour, another vendor |
| text | the concept's name | another modality |

Emoji are drawn centred and in much the same pose by everyone, so a descriptor that compares place by place (pixels,
HOG) does well on them. How much of a result is placement shows when the hard queries are asked once more, each moved
and scaled at random by up to 15 % (the same way for every method): the column "displaced".

The adapters train on pairs (one of the four drawn query styles, Noto) of the training concepts, without the subgroups
marked as unseen, so that the unseen-subgroup queries of the test split are new in kind for the adapter.
Hyperparameters are chosen on the validation concepts alone, where the gallery is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.emoji import Concept, EmojiStyles

GALLERY_STYLE = "noto"
QUERY_STYLES = ("outline", "sketch", "lowres", "twemoji", "text")
IMAGE_STYLES = tuple(style for style in QUERY_STYLES if style != "text")
HARD_STYLES = ("outline", "sketch", "lowres")
LOW_RESOLUTION_SOURCE, LOW_RESOLUTION_SIDE = "photo3d", 12
DISPLACEMENT = 0.15


def low_resolution(images: Tensor, side: int = LOW_RESOLUTION_SIDE) -> Tensor:
    """Shrink uint8 images [n, 3, H, W] to `side` pixels by area and enlarge them again bilinearly.

    Raises:
        ValueError: `side` is not between 1 and the height of the images.
    """
    if not 1 <= side <= images.shape[-2]:
        raise ValueError(f"side must lie in 1..{images.shape[-2]}, got {side}")
    if not len(images):
        return images
    small = F.interpolate(images.float(), size=(side, side), mode="area").round()
    large = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class StyledConcepts:
    """Concepts with their drawings by style, ready to be indexed.

    Attributes:
        concepts: the n concepts, in the order of every tensor below.
        images: style -> uint8 [n, 3, H, W]; white where the drawing is missing.
        present: style -> bool [n], False where there is no drawing.
    """

    concepts: tuple[Concept, ...]
    images: dict[str, Tensor]
    present: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.concepts)

    @property
    def texts(self) -> list[str]:
        return [concept.name for concept in self.concepts]

    @property
    def unseen(self) -> Tensor:
        """bool [n]: the concept's subgroup is one the adapters never train on."""
        return torch.tensor([concept.unseen_subgroup for concept in self.concepts])

    def rows(self, style: str) -> Tensor:
        """int64: the rows that can ask in `style`; all of them for "text"."""
        if style == "text":
            return torch.arange(len(self))
        if style not in self.present:
            raise ValueError(f"style must be one of {(*self.present, 'text')}, got {style!r}")
        return self.present[style].nonzero().flatten()


def load_split(
    split: str, styles: Sequence[str] = QUERY_STYLES, *, limit: int | None = None, seen_only: bool | None = None
) -> StyledConcepts:
    """Load one split of the emoji styles: the gallery style and every image style of `styles`.

    Args:
        split: "train", "val" or "test".
        styles: query styles; "lowres" is derived and "text" has no image.
        limit: keep only so many concepts, spread evenly over the split.
        seen_only: leave the unseen subgroups out; by default for "train" alone.

    Raises:
        ValueError: an unknown split or style, or `limit` below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    data = EmojiStyles(seen_only=split == "train" if seen_only is None else seen_only)
    concepts = data.concepts(split)
    if limit is not None and limit < len(concepts):
        concepts = [concepts[i * len(concepts) // limit] for i in range(limit)]
    images: dict[str, Tensor] = {}
    present: dict[str, Tensor] = {}
    for style in (GALLERY_STYLE, *(s for s in styles if s not in (GALLERY_STYLE, "text"))):
        source = LOW_RESOLUTION_SOURCE if style == "lowres" else style
        drawn = {concept.id for concept in data.concepts(split, styles=(source,))}
        present[style] = torch.tensor([concept.id in drawn for concept in concepts], dtype=torch.bool)
        found = data.images(source, [concept for concept in concepts if concept.id in drawn])
        if style == "lowres":
            found = low_resolution(found)
        images[style] = torch.full((len(concepts), *found.shape[1:]), 255, dtype=torch.uint8)
        images[style][present[style]] = found
    return StyledConcepts(tuple(concepts), images, present)
