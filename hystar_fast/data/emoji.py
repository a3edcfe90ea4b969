"""The embedded drawings: 1,561 emoji concepts drawn in up to six styles by four vendors, with captions and splits.

Images and captions come from the packages listed in ``hystar_fast/data/emoji/LICENSES.txt`` (MIT, Apache-2.0,
CC BY 4.0 and OFL-1.1). Each style is one montage of 64-pixel RGB tiles on white. ``photo3d``, ``flat`` and ``sketch``
are renderings of one drawing (Microsoft Fluent), so matching among those three is easy. Every other pair of styles
compares drawings made independently.

As a retrieval task (`load_emoji`), the gallery is the Noto drawing of every concept of the split. A query is another
drawing, or the name, of one of these concepts. A concept without a drawing in some style has no query in that style;
its gallery picture stays, so that every style is ranked against the same gallery.

| query | drawing | |
|---|---|---|
| outline | the monochrome Noto Emoji font | hard: lines only; the gallery's vendor, often in a similar pose |
| sketch | Microsoft's high-contrast drawing | hard: black and white, another vendor |
| lowres | Microsoft's 3D drawing at 12 pixels, enlarged again | hard: another vendor, no detail |
| twemoji | Twitter's drawing | colour, another vendor |
| text | the concept's name | another modality |

Methods train on the training concepts without the subgroups marked as unseen, so that test queries of the unseen
subgroups show a new kind of concept. Hyperparameters are chosen on the validation concepts.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.data.images import to_picture, to_uint8

STYLES = ("photo3d", "flat", "sketch", "noto", "twemoji", "outline")
SPLITS = ("train", "val", "test")
TILE = 64
GALLERY_STYLE = "noto"
QUERY_STYLES = ("outline", "sketch", "lowres", "twemoji")
HARD_STYLES = ("outline", "sketch", "lowres")
LOW_RESOLUTION_SOURCE, LOW_RESOLUTION_SIDE = "photo3d", 12
CATEGORIES = ("subgroup", "group")
CAPTIONS = ("name", "keywords")
_VALIDATION_FRACTION = 0.12


@dataclass(frozen=True)
class Concept:
    """One emoji: its id (code points in hex), name, keywords, group, subgroup and split."""

    id: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    split: str
    unseen_subgroup: bool


def _is_validation(concept_id: str) -> bool:
    """Return whether a training concept is in the fixed eighth for validation, by the hash of its id."""
    digest = hashlib.blake2b(concept_id.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32 < _VALIDATION_FRACTION


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, int], dict[str, frozenset[str]], int, dict[str, Concept]]:
    root = files("hystar_fast.data").joinpath("emoji")
    index: dict[str, Any] = json.loads(root.joinpath("index.json").read_text(encoding="utf-8"))
    captions: dict[str, Any] = json.loads(root.joinpath("captions.json").read_text(encoding="utf-8"))
    position = {concept_id: i for i, concept_id in enumerate(index["ids"])}
    missing = {style: frozenset(index["missing"][style]) for style in STYLES}
    concepts = {}
    for concept_id in index["ids"]:
        row = captions[concept_id]
        split = "val" if row["split"] == "train" and _is_validation(concept_id) else row["split"]
        concepts[concept_id] = Concept(
            id=concept_id,
            name=row["name"],
            keywords=tuple(row["keywords"]),
            group=row["group"],
            subgroup=row["subgroup"],
            split=split,
            unseen_subgroup=row["zero_shot"] == "unseen",
        )
    return position, missing, int(index["columns"]), concepts


@lru_cache(maxsize=len(STYLES))
def _montage(style: str) -> np.ndarray:
    data = files("hystar_fast.data").joinpath("emoji").joinpath(f"{style}.webp").read_bytes()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class EmojiStyles:
    """The embedded drawings. Nothing is downloaded and nothing is written.

    Args:
        seen_only: leave concepts of the subgroups marked as unseen out of the train and val splits, so that the
            unseen subgroups of the test split are new in kind and not only in drawing.

    Example:
        >>> data = EmojiStyles()
        >>> concepts = data.concepts("test", styles=("noto", "outline"))
        >>> data.images("outline", concepts).shape[1:]
        torch.Size([3, 64, 64])
    """

    styles = STYLES

    def __init__(self, *, seen_only: bool = False) -> None:
        self.seen_only = seen_only
        self._position, self._missing, self._columns, self._concepts = _index()

    def concepts(self, split: str, styles: Iterable[str] = ("noto",)) -> list[Concept]:
        """List the concepts of a split that are drawn in every one of `styles`, in a fixed order.

        Args:
            split: "train", "val" (a fixed eighth of the published train split), "test" or "all".
            styles: names from `EmojiStyles.styles`; "outline" lacks 197 concepts.

        Raises:
            ValueError: `split` or an entry of `styles` is unknown.
        """
        if split not in (*SPLITS, "all"):
            raise ValueError(f"split must be one of {(*SPLITS, 'all')}, got {split!r}")
        wanted = [self._check_style(style) for style in styles]
        return [
            concept
            for concept in self._concepts.values()
            if (split == "all" or concept.split == split)
            and not (self.seen_only and concept.unseen_subgroup and concept.split != "test")
            and not any(concept.id in self._missing[style] for style in wanted)
        ]

    def concept(self, concept_id: str) -> Concept:
        """Look a concept up by its id, for example ``"1f436"``.

        Raises:
            ValueError: there is no such concept.
        """
        if concept_id not in self._concepts:
            raise ValueError(f"concept_id must be one of the {len(self._concepts)} embedded ids, got {concept_id!r}")
        return self._concepts[concept_id]

    def image(self, style: str, concept_id: str) -> Image.Image:
        """Return one drawing as a 64 x 64 RGB image.

        Raises:
            ValueError: the style or concept is unknown, or the concept is not drawn in that style.
        """
        return Image.fromarray(self._tile(style, concept_id))

    def images(self, style: str, concepts: Sequence[Concept | str]) -> Tensor:
        """Return drawings as one uint8 tensor [n, 3, 64, 64].

        Raises:
            ValueError: as for `image`.
        """
        ids = [c.id if isinstance(c, Concept) else c for c in concepts]
        if not ids:
            return torch.empty(0, 3, TILE, TILE, dtype=torch.uint8)
        tiles = np.stack([self._tile(style, concept_id) for concept_id in ids])
        return torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()

    def caption(self, concept_id: str) -> str:
        """Return the name of a concept as its caption, for example ``"dog face"``."""
        return self.concept(concept_id).name

    def _tile(self, style: str, concept_id: str) -> np.ndarray:
        self._check_style(style)
        self.concept(concept_id)
        if concept_id in self._missing[style]:
            raise ValueError(f"concept_id must have a drawing in style {style!r}, got {concept_id!r}")
        row, column = divmod(self._position[concept_id], self._columns)
        return _montage(style)[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE].copy()

    @staticmethod
    def _check_style(style: str) -> str:
        if style not in STYLES:
            raise ValueError(f"style must be one of {STYLES}, got {style!r}")
        return style


def load_emoji(
    split: str,
    styles: Sequence[str] = QUERY_STYLES,
    *,
    seen_only: bool | None = None,
    category: str = "subgroup",
    captions: str = "name",
) -> ImageSet:
    """List the embedded drawings as a data set: the gallery is Noto, queries are the drawings in `styles`.

    Args:
        split: "train", "val" or "test".
        styles: query styles; "lowres" is made from photo3d.
        seen_only: leave out the unseen subgroups; by default in "train" only.
        category: "subgroup" (94 kinds) or "group" (8).
        captions: "name", or "keywords": the name, and then its keywords that are no word of it.

    Raises:
        ValueError: an unknown split, style, category or caption.

    Example:
        >>> images = load_emoji("test")
        >>> len(images.gallery), len(images.of_style("outline"))
        (310, 266)
    """
    if category not in CATEGORIES:
        raise ValueError(f"category must be one of {CATEGORIES}, got {category!r}")
    if captions not in CAPTIONS:
        raise ValueError(f"captions must be one of {CAPTIONS}, got {captions!r}")
    data = EmojiStyles(seen_only=split == "train" if seen_only is None else seen_only)
    records = []
    for style in (GALLERY_STYLE, *(style for style in styles if style != GALLERY_STYLE)):
        source = LOW_RESOLUTION_SOURCE if style == "lowres" else style
        for concept in data.concepts(split, styles=(source,)):
            shown = getattr(concept, category)
            records.append(Record(f"{style}/{concept.id}", style, shown, concept.id, (_caption(concept, captions),)))

    def read(record: Record) -> Image.Image:
        style, _, concept_id = record.path.partition("/")
        if style != "lowres":
            return data.image(style, concept_id)
        return low_resolution(data.image(LOW_RESOLUTION_SOURCE, concept_id))

    concepts = EmojiStyles().concepts("all")
    seen = {getattr(concept, category) for concept in concepts if not concept.unseen_subgroup}
    unseen = frozenset(getattr(concept, category) for concept in concepts) - seen
    return ImageSet(
        "emoji",
        GALLERY_STYLE,
        tuple(records),
        read,
        has_splits=True,
        is_registered=True,
        headline_styles=tuple(style for style in HARD_STYLES if style in styles),
        unseen_categories=unseen,
        templates=("{}",),  # the tiny backbone was trained on bare names
    )


def _caption(concept: Concept, kind: str) -> str:
    named = {*concept.name.lower().split()}
    more = [word for word in concept.keywords if word not in named] if kind == "keywords" else []
    return ", ".join([concept.name, *more])


def low_resolution(picture: Image.Image, side: int = LOW_RESOLUTION_SIDE) -> Image.Image:
    """Shrink a picture to `side` pixels by area and enlarge it again bilinearly.

    Raises:
        ValueError: `side` is not between 1 and the height of the picture.
    """
    if not 1 <= side <= picture.height:
        raise ValueError(f"side must be between 1 and {picture.height}, got {side}")
    pixels = to_uint8(picture)[None].float()
    small = F.interpolate(pixels, size=(side, side), mode="area").round()
    large = F.interpolate(small, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    return to_picture(large.round().clamp(0, 255).to(torch.uint8)[0])
