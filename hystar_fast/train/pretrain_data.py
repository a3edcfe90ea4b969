"""The drawings for pretraining the tiny backbone: emoji, icons and clip art, without the held-out concepts.

Included: the train split of the emoji concepts in the styles photo3d, flat and noto; the same concepts in further emoji
families and in the font Symbola; icon families with names, as other concepts in line, filled and colour styles; and
Openclipart. Excluded: every drawing of a validation or test concept in any family, by code point, by name (`HeldOut`)
and by looks (`NEAR_DUPLICATE`); and the styles outline, sketch, twemoji and low resolution, which the demo evaluates.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hystar_fast.data.emoji import TILE, Concept, EmojiStyles
from hystar_fast.data.icons import render
from hystar_fast.data.whole_files import write_whole
from hystar_fast.train.near_duplicates import nearest, signatures
from hystar_fast.train.pretrain_sources import (
    EMOJI_FAMILIES,
    ICON_FAMILIES,
    fetch_debian,
    fetch_family,
    icons_of,
    read_clipart,
    read_font,
)

CLIPART = "openclipart"
ICON = "icon "
PRETRAINING_STYLES = ("photo3d", "flat", "noto")

# Words of an icon's name that describe the drawing, not the subject.
_DRAWING_WORDS = frozenset({
    "outline", "outlined", "outlinerounded", "rounded", "round", "sharp", "fill", "filled", "line", "bold", "thin",
    "light", "duotone", "regular", "twotone", "two", "tone", "alt", "variant",
    "8", "10", "12", "16", "20", "24", "28", "32", "48",
})  # fmt: skip
NEAR_DUPLICATE = 0.95
"""Correlation (`near_duplicates`) with a drawing of a held-out concept from which a drawing is left out."""
_WORD = re.compile(r"[a-z0-9]+")


def name_words(name: str) -> tuple[str, ...]:
    """Return the words of a name that describe the subject: ``"heart-outline-24"`` -> ``("heart",)``."""
    return tuple(word for word in _WORD.findall(name.lower()) if word not in _DRAWING_WORDS)


class HeldOut:
    """Test of an icon's name: could it show a held-out concept? Its words contain a held-out name's, or the reverse."""

    _EMPTY = frozenset({
        "with", "and", "of", "the", "in", "on", "a", "face", "person", "man", "woman", "button", "symbol", "sign",
    })  # fmt: skip

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [words for name in names if (words := self._content(name_words(name)))]
        self._by_word: dict[str, list[int]] = defaultdict(list)
        for i, words in enumerate(self._names):
            for word in words:
                self._by_word[word].append(i)

    def __call__(self, name: str, keywords: str = "") -> bool:
        """Return whether it could; `keywords` say more about the drawing, but not all of what it shows."""
        words = self._content(name_words(name))
        known = words | self._content(name_words(keywords))
        candidates = {i for word in known for i in self._by_word.get(word, ())}
        return any(self._names[i] <= known or frozenset() < words <= self._names[i] for i in candidates)

    def _content(self, words: Iterable[str]) -> frozenset[str]:
        return frozenset(_singular(word) for word in words if word not in self._EMPTY)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


@dataclass
class Drawings:
    """Drawings grouped by subject.

    Attributes:
        images: uint8 [n, 64, 64, 3].
        groups: for each concept, a list of families, each a list of rows of `images`.
        families: for each concept, the names of these families.
        captions: one caption a concept.
        keys: the emoji's id, or `ICON` and its sorted words.
        counts: drawings a family, for the card.
        near_duplicates: drawings a family that were left out because they look like held-out ones.
    """

    images: np.ndarray
    groups: list[list[list[int]]]
    families: list[list[str]]
    captions: list[str]
    keys: list[str]
    counts: dict[str, int]
    near_duplicates: dict[str, int]

    def save(self, path: Path) -> None:
        tree = json.dumps({name: value for name, value in vars(self).items() if name != "images"})
        tree_bytes = np.frombuffer(tree.encode(), dtype=np.uint8)
        write_whole(path, lambda file: np.savez(file, images=self.images, tree=tree_bytes))

    @classmethod
    def load(cls, path: Path) -> Drawings:
        with np.load(path) as data:
            return cls(images=data["images"], **json.loads(data["tree"].tobytes().decode()))


def build_drawings(cache: Path) -> Drawings:
    """Fetch, filter and render every drawing of the recipe; the result is cached as ``drawings2.npz`` in `cache`."""
    path = cache / "drawings2.npz"
    if path.exists():
        return Drawings.load(path)
    collected = _Collected()
    _add_emoji(collected, cache)
    _add_icons(collected, cache)
    _add_clipart(collected, cache)
    drawings = collected.without_near_duplicates()
    drawings.save(path)
    return drawings


class _Collected:
    """Drawings by concept and family, and the drawings of held-out concepts that none may resemble."""

    def __init__(self) -> None:
        self.data = EmojiStyles()
        self.train = {concept.id: concept for concept in self.data.concepts("train")}
        self.shows_held_out = HeldOut(c.name for split in ("val", "test") for c in self.data.concepts(split))
        self._emoji = {tuple(sorted(name_words(concept.name))): key for key, concept in self.train.items()}
        self.held_out_images: list[np.ndarray] = []
        self.captions: dict[str, str] = {}
        self._images: list[np.ndarray] = []
        self._places: list[tuple[str, str]] = []

    def add(self, key: str, family: str, caption: str, image: np.ndarray) -> None:
        self._places.append((key, family))
        self.captions.setdefault(key, caption)
        self._images.append(image)

    def key(self, words: Iterable[str]) -> str:
        """Return the concept that a name of these words stands for: a training emoji, or an icon's."""
        ordered = tuple(sorted(words))
        return self._emoji.get(ordered) or ICON + " ".join(ordered)

    def without_near_duplicates(self) -> Drawings:
        images = np.stack(self._images)
        similar, _ = nearest(signatures(images), signatures(np.stack(self.held_out_images)))
        kept = np.flatnonzero(similar < NEAR_DUPLICATE)
        rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row, place in enumerate(kept):
            key, family = self._places[place]
            rows[key][family].append(row)
        keys = list(rows)
        groups = [list(rows[key].values()) for key in keys]
        counts = Counter(self._places[place][1] for place in kept)
        dropped = Counter(self._places[place][1] for place in np.flatnonzero(similar >= NEAR_DUPLICATE))
        captions = [self.captions[key] for key in keys]
        families = [list(rows[key]) for key in keys]
        return Drawings(images[kept], groups, families, captions, keys, dict(counts), dict(dropped))


def _add_emoji(collected: _Collected, cache: Path) -> None:
    """Add the training concepts of the emoji families; note the drawings of the held-out ones."""
    data, train = collected.data, collected.train
    for style in PRETRAINING_STYLES:
        for concept in train.values():
            collected.add(concept.id, style, concept.name, np.asarray(data.image(style, concept.id)))
    for style in data.styles:
        drawn = {concept.id for split in ("val", "test") for concept in data.concepts(split, (style,))}
        collected.held_out_images += [np.asarray(data.image(style, concept_id)) for concept_id in drawn]
    everyone = {concept.id: concept for concept in data.concepts("all")}
    names = Counter(_joined(concept.name) for concept in everyone.values())
    by_name = {name: c for c in everyone.values() if names[name := _joined(c.name)] == 1}

    def add(family: str, concept: Concept, image: np.ndarray) -> None:
        if concept.id in train:
            collected.add(concept.id, family, concept.name, image)
        else:
            collected.held_out_images.append(image)

    for name, (version, _) in tqdm(EMOJI_FAMILIES.items(), desc="emoji families"):
        for icon, body, width, height in icons_of(fetch_family(name, version, cache)):
            shown = by_name.get(_joined(icon))
            if shown is not None and (image := render(body, width, height, TILE)) is not None:
                add(name, shown, image)
    characters = {chr(int(key, 16)): concept for key, concept in everyone.items() if "-" not in key}
    fonts = [content for path, content in fetch_debian("fonts-symbola", cache) if path.endswith(".ttf")]
    for character, image in read_font(fonts[0], characters):
        add("symbola", characters[character], image)


def _add_icons(collected: _Collected, cache: Path) -> None:
    for name, (version, _) in tqdm(ICON_FAMILIES.items(), desc="icon families"):
        for icon, body, width, height in icons_of(fetch_family(name, version, cache)):
            words = name_words(icon)
            if not words or _wrong_size(name, icon) or collected.shows_held_out(icon):
                continue
            if (image := render(body, width, height, TILE)) is not None:
                collected.add(collected.key(words), name.removesuffix("-outline"), " ".join(words), image)


def _add_clipart(collected: _Collected, cache: Path) -> None:
    """Add Openclipart; a drawing whose title says nothing is a concept of its own with its file's name and keywords."""
    for drawing in read_clipart(fetch_debian("openclipart-svg", cache)):
        file_name = re.sub(r"[\d_]+", " ", drawing.path.rpartition("/")[2].removesuffix(".svg"))
        words = name_words(re.sub(r"([a-z])([A-Z])", r"\1 \2", drawing.title or file_name))
        keywords = " ".join(drawing.keywords).replace("_", " ")
        if not words or collected.shows_held_out(" ".join(words), f"{keywords} {file_name}"):
            continue
        caption = " ".join(dict.fromkeys((*words, *name_words(keywords)))) if not drawing.title else " ".join(words)
        key = collected.key(words) if drawing.title else f"{ICON}openclipart {drawing.path}"
        collected.add(key, CLIPART, caption, drawing.image)


def _joined(name: str) -> str:
    """Return the letters and digits of a name: the names of fxemoji have no spaces."""
    return "".join(_WORD.findall(name.lower()))


def _wrong_size(family: str, icon: str) -> bool:
    """Return whether an icon of a family with several sizes has another size than the one that is used."""
    size = re.search(r"-(8|10|12|16|20|24|28|32|48)(-|$)", icon)
    return family in ("fluent", "fluent-color") and (size is None or size.group(1) != "24")
