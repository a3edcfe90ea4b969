"""The drawings for pretraining the tiny backbone: training concepts of the emoji styles, and open icon families.

Included: the train split of the emoji concepts in the styles photo3d, flat and noto; the same concepts in four further
emoji families; and icon families with names, as other concepts in line, filled and colour styles. Excluded: every
drawing of a validation or test concept in any family (by code points, and by name for the icon families, see
`HeldOut`), and the styles outline, sketch, twemoji and low resolution, which the demo evaluates.

The families are npm packages fetched with the ordinary client (``npm pack``) and rendered with resvg.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hystar_fast.data.emoji import TILE, EmojiStyles
from hystar_fast.data.icons import render
from hystar_fast.data.whole_files import write_whole

# name on npm (under @iconify-json) -> (version, licence). All are redistributable with attribution; none is bundled.
ICON_FAMILIES = {
    "tabler": ("1.2.41", "MIT"),
    "lucide": ("1.2.137", "ISC"),
    "material-symbols": ("1.2.98", "Apache-2.0"),
    "ph": ("1.2.2", "MIT"),
    "carbon": ("1.2.29", "Apache-2.0"),
    "mdi": ("1.2.3", "Apache-2.0"),
    "fluent": ("1.2.60", "MIT"),
    "iconoir": ("1.2.11", "MIT"),
    "bi": ("1.2.7", "MIT"),
    "ri": ("1.2.10", "Apache-2.0"),
    "mingcute": ("1.2.8", "Apache-2.0"),
    "hugeicons": ("1.2.35", "MIT"),
    "icon-park": ("1.2.4", "Apache-2.0"),
    "icon-park-outline": ("1.2.4", "Apache-2.0"),
    "flat-color-icons": ("1.2.3", "MIT"),
    "fluent-color": ("1.2.21", "MIT"),
    "healthicons": ("1.2.13", "MIT"),
}
EMOJI_FAMILIES = {
    "noto-v1": ("1.2.5", "Apache-2.0"),
    "fxemoji": ("1.2.2", "Apache-2.0"),
    "emojione": ("1.2.3", "CC-BY-4.0"),
    "emojione-monotone": ("1.2.1", "CC-BY-4.0"),
}
PRETRAINING_STYLES = ("photo3d", "flat", "noto")

# Words of an icon's name that describe the drawing, not the subject.
_DRAWING_WORDS = frozenset({
    "outline", "outlined", "outlinerounded", "rounded", "round", "sharp", "fill", "filled", "line", "bold", "thin",
    "light", "duotone", "regular", "twotone", "two", "tone", "alt", "variant",
    "8", "10", "12", "16", "20", "24", "28", "32", "48",
})  # fmt: skip
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

    def __call__(self, name: str) -> bool:
        words = self._content(name_words(name))
        candidates = {i for word in words for i in self._by_word.get(word, ())}
        return any(self._names[i] <= words or words <= self._names[i] for i in candidates)

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
        captions: one caption a concept.
        keys: the emoji's id, or "icon" and its sorted words.
        counts: drawings a family, for the card.
    """

    images: np.ndarray
    groups: list[list[list[int]]]
    captions: list[str]
    keys: list[str]
    counts: dict[str, int]

    def emoji_count(self) -> int:
        """Count the groups that are emoji concepts; they come first."""
        return sum(not key.startswith("icon ") for key in self.keys)

    def save(self, path: Path) -> None:
        tree = json.dumps({"groups": self.groups, "captions": self.captions, "keys": self.keys, "counts": self.counts})
        tree_bytes = np.frombuffer(tree.encode(), dtype=np.uint8)
        write_whole(path, lambda file: np.savez(file, images=self.images, tree=tree_bytes))

    @classmethod
    def load(cls, path: Path) -> Drawings:
        with np.load(path) as data:
            return cls(images=data["images"], **json.loads(data["tree"].tobytes().decode()))


def fetch_family(family: str, version: str, directory: Path) -> dict[str, Any]:
    """Download one icon family with ``npm pack`` (once) and return its icons.json."""
    directory.mkdir(parents=True, exist_ok=True)
    archive = directory / f"iconify-json-{family}-{version}.tgz"
    if not archive.exists():
        if shutil.which("npm") is None:
            raise RuntimeError("pretraining needs npm on the PATH to fetch the icon families")
        command = ["npm", "pack", "--silent", f"@iconify-json/{family}@{version}"]
        subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(archive) as tar:
        handle = tar.extractfile("package/icons.json")
        if handle is None:
            raise RuntimeError(f"{archive} holds no package/icons.json")
        icons: dict[str, Any] = json.loads(handle.read())
    return icons


def _icons(family: dict[str, Any]) -> Iterator[tuple[str, str, float, float]]:
    width, height = family.get("width", 16), family.get("height", family.get("width", 16))
    for name, icon in family["icons"].items():
        if not icon.get("hidden"):
            yield name, icon["body"], icon.get("width", width), icon.get("height", height)


def build_drawings(cache: Path) -> Drawings:
    """Fetch, filter and render every drawing of the recipe; the result is cached as ``drawings.npz`` in `cache`."""
    path = cache / "drawings.npz"
    if path.exists():
        return Drawings.load(path)
    data = EmojiStyles()
    train = {concept.id: concept for concept in data.concepts("train")}
    held_out = HeldOut(c.name for split in ("val", "test") for c in data.concepts(split))
    images: list[np.ndarray] = []
    rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    captions: dict[str, str] = {}

    def add(key: str, family: str, caption: str, image: np.ndarray) -> None:
        rows[key][family].append(len(images))
        captions.setdefault(key, caption)
        images.append(image)

    for style in PRETRAINING_STYLES:
        for concept in train.values():
            add(concept.id, style, concept.name, np.asarray(data.image(style, concept.id)))
    by_name = {name_words(concept.name): concept for concept in train.values()}
    for name, (version, _) in tqdm(EMOJI_FAMILIES.items(), desc="emoji families"):
        for icon, body, width, height in _icons(fetch_family(name, version, cache)):
            shown = by_name.get(name_words(icon))
            if shown is not None and (image := render(body, width, height, TILE)) is not None:
                add(shown.id, name, shown.name, image)
    for name, (version, _) in tqdm(ICON_FAMILIES.items(), desc="icon families"):
        for icon, body, width, height in _icons(fetch_family(name, version, cache)):
            words = name_words(icon)
            if not words or _wrong_size(name, icon) or held_out(icon):
                continue
            if (image := render(body, width, height, TILE)) is not None:
                add("icon " + " ".join(sorted(words)), name.removesuffix("-outline"), " ".join(words), image)
    counts: dict[str, int] = defaultdict(int)
    for families in rows.values():
        for family_name, members in families.items():
            counts[family_name] += len(members)
    keys = list(rows)
    groups = [list(rows[key].values()) for key in keys]
    drawings = Drawings(np.stack(images), groups, [captions[key] for key in keys], keys, dict(counts))
    drawings.save(path)
    return drawings


def _wrong_size(family: str, icon: str) -> bool:
    """Return whether an icon of a family with several sizes has another size than the one that is used."""
    size = re.search(r"-(8|10|12|16|20|24|28|32|48)(-|$)", icon)
    return family in ("fluent", "fluent-color") and (size is None or size.group(1) != "24")
