"""Pictures in folders of classes, with a part to train on and a part to test on: few-shot classification."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from hystar_fast.data.records import ImageSet, Record, Skipped, from_folder, place_by_hash, refuse
from hystar_fast.retrieval.picture_files import not_read, picture_files
from hystar_fast.retrieval.protocol import GALLERY_STYLE, IMAGE_STYLES, StyledConcepts, load_split

TRAIN, TEST = "train", "test"
EMOJI_CLASSES = ("group", "subgroup")
LAYOUT = (
    "<class>/<picture> for at least two classes (also <letter>/<class>/<kind>/<picture>, as SUN397 has it), or "
    "train/<class>/<picture> and test/<class>/<picture> (or val/) with the same classes, or CoOp's "
    "split_zhou_<name>.json beside the pictures"
)
CLASS_NAMES = "classnames.txt"
_TEST_PARTS = ("test", "val")


def open_classes(data: str) -> ImageSet:
    """Open a data set of classes: records of the styles "train" and "test" with a category each.

    Args:
        data: "emoji:group" or "emoji:subgroup" (drawings of the training and of the held-out concepts, in every style),
            or a folder, see `LAYOUT`. Where the folder has no split of its own, half of each class is the test part,
            chosen by a hash of the path, so that it is the same half everywhere. A class is a folder that holds
            pictures; of folders in folders the words are read as CoOp reads them, the last first (``b/barn/indoor`` is
            "indoor barn"). Where there is a ``classnames.txt`` (ImageNet's: a folder and its name a line), it names
            them. Pictures of a class in a format that is not read are counted in `ImageSet.skipped`.

    Raises:
        ValueError: an unknown name, or a folder of another layout; the message says what was expected and found.
        OSError: a folder that cannot be listed.

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
    splits = sorted(root.glob("split_zhou_*.json"))
    if splits:
        return _coop(root, splits)
    inner = root / "images" if (root / "images" / TRAIN).is_dir() else root  # CoOp's place for ImageNet
    parts = [part for part in _TEST_PARTS if (inner / part).is_dir()]
    names = _class_names(root)
    skipped: list[Skipped] = []
    if (inner / TRAIN).is_dir() and parts:
        listed = ((inner / TRAIN, TRAIN), (inner / parts[0], TEST))
        records = [record for folder, part in listed for record in _listed(root, folder, part, names, skipped)]
    else:
        records = [_halved(record) for record in _listed(root, root, TRAIN, names, skipped)]
    return _checked(root, records, skipped)


def _checked(root: Path, records: Sequence[Record], skipped: Sequence[Skipped] = ()) -> ImageSet:
    classes = [{r.category for r in records if r.style == part} for part in (TRAIN, TEST)]
    kept = classes[0] & classes[1]
    if len(kept) < 2:
        found = f"{len(classes[0])} classes to train on, {len(classes[1])} to test on, {len(kept)} in both"
        raise refuse("class folders", root, LAYOUT, found if records else None)
    records = tuple(r for r in records if r.category in kept)
    order = tuple(dict.fromkeys(str(record.category) for record in records))
    return ImageSet(root.name, TRAIN, records, from_folder(root), tuple(skipped), classes=order)


def _listed(root: Path, folder: Path, style: str, names: dict[str, str], skipped: list[Skipped]) -> list[Record]:
    """The pictures of class folders; ValueError where it is not clear which folder is a class."""
    if not folder.is_dir():
        return []
    found, unread = picture_files(folder)
    skipped += [
        Skipped((folder / path).relative_to(root).as_posix(), not_read(path)) for path in unread if len(path.parts) > 1
    ]
    held: dict[Path, list[Path]] = {}
    for path in found:
        if len(path.parts) > 1:
            held.setdefault(path.parent, []).append(path)
    for place in held:
        above = next((parent for parent in place.parents if parent in held), None)
        if above is not None:
            raise refuse(
                "class folders", root, LAYOUT, f"pictures in {above}/ and in {place}/ below it: which is the class?"
            )
    lettered = all(len(place.parts) > 1 and len(place.parts[0]) == 1 for place in held)
    shared = Counter(names.values())
    category: dict[Path, str] = {}
    for place in held:
        words = place.parts[1:] if lettered else place.parts
        name = names.get(place.name, " ".join(reversed(words)))
        # two of ImageNet's classes may be named alike, and are two classes all the same
        category[place] = f"{name} ({place.name})" if shared[name] > 1 else name
    counted = Counter(category.values())
    twice = [place for place, name in category.items() if counted[name] > 1]
    if twice:
        found_twice = f"{' and '.join(f'{place}/' for place in twice[:2])}, which are both “{category[twice[0]]}”"
        raise refuse("class folders", root, LAYOUT, found_twice)
    return [
        Record((folder / path).relative_to(root).as_posix(), style, category[place])
        for place, paths in held.items()
        for path in paths
    ]


def _class_names(root: Path) -> dict[str, str]:
    """Folder -> name of the lines of ``classnames.txt``."""
    place = root / CLASS_NAMES
    if not place.is_file():
        return {}
    lines = [line.split(maxsplit=1) for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
    bad = next((number for number, words in enumerate(lines, 1) if len(words) != 2), None)
    if bad is not None:
        raise refuse("class folders", root, f"{CLASS_NAMES} with lines of a folder and its name", f"another line {bad}")
    return {folder: name.strip() for folder, name in lines}


def _coop(root: Path, splits: Sequence[Path]) -> ImageSet:
    """CoOp's split files: lists of [path, label, name] for train, val and test; val takes no part."""
    expected = "one split_zhou_<name>.json with lists train and test of [path, label, name], and the pictures below it"
    if len(splits) > 1:
        raise refuse("CoOp's splits", root, expected, " and ".join(path.name for path in splits))
    try:
        lists = json.loads(splits[0].read_text(encoding="utf-8"))
        entries = [(part, str(p), int(label), str(name)) for part in (TRAIN, TEST) for p, label, name in lists[part]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refuse("CoOp's splits", root, expected, f"{splits[0].name} of another form: {error!r}") from error
    places = [root, *(p for pattern in ("*", "*/*") for p in sorted(root.glob(pattern)) if p.is_dir())]
    place = next((p for p in places if entries and (p / entries[0][1]).is_file()), None)
    if place is None:
        shown = entries[0][1] if entries else "no picture"
        raise refuse("CoOp's splits", root, expected, f"{splits[0].name} with {shown}, which no folder here holds")
    names = {label: name.replace("_", " ") for _, _, label, name in entries}
    if len(set(names.values())) < len(names):
        raise refuse("CoOp's splits", root, expected, f"{splits[0].name} with two labels of one name")
    ordered = sorted(entries, key=lambda entry: entry[2])
    return _checked(
        root,
        [Record((place / path).relative_to(root).as_posix(), part, names[label]) for part, path, label, _ in ordered],
    )


def _halved(record: Record) -> Record:
    return replace(record, style=TEST if place_by_hash(record.path, "classes") < 0.5 else TRAIN)


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
