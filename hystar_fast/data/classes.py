"""Pictures in folders of classes, with a part to train on and a part to test on: few-shot classification."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from hystar_fast.data.records import ImageSet, Record, from_folder, refuse
from hystar_fast.retrieval.embed import IMAGE_SUFFIXES
from hystar_fast.retrieval.protocol import GALLERY_STYLE, IMAGE_STYLES, StyledConcepts, load_split

TRAIN, TEST = "train", "test"
EMOJI_CLASSES = ("group", "subgroup")
LAYOUT = (
    "<class>/<picture> for at least two classes, or train/<class>/<picture> and test/<class>/<picture> (or val/) with "
    "the same classes"
)
_TEST_PARTS = ("test", "val")


def open_classes(data: str) -> ImageSet:
    """Open a data set of classes: records of the styles "train" and "test" with a category each.

    Args:
        data: "emoji:group" or "emoji:subgroup" (drawings of the training and of the held-out concepts, in every style),
            or a folder, see `LAYOUT`. Where the folder has no split of its own, half of each class is the test part,
            chosen by a hash of the path, so that it is the same half everywhere.

    Raises:
        ValueError: an unknown name, or a folder of another layout; the message says what was expected and found.

    Example:
        >>> images = open_classes("emoji:group")
        >>> len({record.category for record in images.records})
        8
    """
    kind, _, what = data.partition(":")
    if kind == "emoji":
        if what not in EMOJI_CLASSES:
            raise ValueError(f"data must be one of {[f'emoji:{name}' for name in EMOJI_CLASSES]}, got {data!r}")
        return _emoji(what)
    root = Path(data)
    parts = [part for part in _TEST_PARTS if (root / part).is_dir()]
    if (root / TRAIN).is_dir() and parts:
        records = [*_listed(root, TRAIN, TRAIN), *_listed(root, parts[0], TEST)]
    else:
        records = [_halved(record) for record in _listed(root, "", TRAIN)]
    classes = [{r.category for r in records if r.style == part} for part in (TRAIN, TEST)]
    kept = classes[0] & classes[1]
    if len(kept) < 2:
        found = f"{len(classes[0])} classes to train on, {len(classes[1])} to test on, {len(kept)} in both"
        raise refuse("class folders", root, LAYOUT, found if records else None)
    return ImageSet(root.name, TRAIN, tuple(r for r in records if r.category in kept), from_folder(root))


def _listed(root: Path, part: str, style: str) -> list[Record]:
    folder = root / part
    if not folder.is_dir():
        return []
    found = (p.relative_to(root) for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    depth = 3 if part else 2
    return [Record(p.as_posix(), style, p.parts[depth - 2]) for p in sorted(found) if len(p.parts) >= depth]


def _halved(record: Record) -> Record:
    digest = hashlib.blake2b(record.path.encode(), digest_size=1).digest()
    return Record(record.path, TEST if digest[0] % 2 else TRAIN, record.category)


def _emoji(what: str) -> ImageSet:
    styles = (GALLERY_STYLE, *IMAGE_STYLES)
    place: dict[str, tuple[StyledConcepts, str, int]] = {}
    records = []
    for part in (TRAIN, TEST):
        concepts = load_split(part, seen_only=False)
        for row, concept in enumerate(concepts.concepts):
            category = (concept.group if what == "group" else concept.subgroup).replace("-", " ")
            for style in styles:
                if bool(concepts.present[style][row]):
                    record = Record(f"{part}/{style}/{concept.id}", part, category)
                    place[record.path] = (concepts, style, row)
                    records.append(record)
    kept = {r.category for r in records if r.style == TRAIN} & {r.category for r in records if r.style == TEST}

    def read(record: Record) -> Image.Image:
        concepts, style, row = place[record.path]
        return Image.fromarray(concepts.images[style][row].permute(1, 2, 0).numpy())

    return ImageSet(f"emoji, {what}s", TRAIN, tuple(r for r in records if r.category in kept), read)
