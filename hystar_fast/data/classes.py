"""Pictures in folders of classes, with a training and a test part, for few-shot classification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from hystar_fast.data.emoji import CATEGORIES, load_emoji
from hystar_fast.data.hold_out import hash_fraction
from hystar_fast.data.image_files import list_images, unsupported_reason
from hystar_fast.data.image_set import FolderReader, ImageSet, Record, Skipped, layout_error
from hystar_fast.data.text_files import parse_json, read_lines, read_text

TRAIN, TEST = "train", "test"
LAYOUT = (
    "<class>/<picture> for at least two classes (also <letter>/<class>/<kind>/<picture>, as SUN397 has it), or "
    "train/<class>/<picture> and test/<class>/<picture> (or val/) with the same classes, or CoOp's "
    "split_zhou_<name>.json beside the pictures"
)
CLASS_NAMES = "classnames.txt"
_TEST_PARTS = ("test", "val")


def open_classes(data: str) -> ImageSet:
    """Open a data set of classes: its records have a category each, and the styles "train" and "test".

    Args:
        data: "emoji:group" or "emoji:subgroup" (every drawing of the training and the test concepts), or a folder, see
            `LAYOUT`. A class is a folder that holds pictures. Nested folders are read as CoOp reads them, last word
            first (``b/barn/indoor`` is "indoor barn"). A ``classnames.txt`` (ImageNet's: each line a folder and its
            name) names the classes. If the folder has no split of its own, half of each class is the test part,
            chosen by a hash of the path. Pictures in unsupported formats are counted in `ImageSet.skipped`.

    Raises:
        ValueError: an unknown name, or a folder of another layout; the message says what was expected and found.
        OSError: a folder cannot be listed.

    Example:
        >>> images = open_classes("emoji:group")
        >>> len({record.category for record in images.records})
        8
    """
    kind, _, what = data.partition(":")
    if kind == "emoji":
        if what not in CATEGORIES:
            raise ValueError(f"data must be one of {[f'emoji:{name}' for name in CATEGORIES]}, got {data!r}")
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
        records = [_in_half(record) for record in _listed(root, root, TRAIN, names, skipped)]
    return _checked(root, records, skipped)


def _checked(root: Path, records: Sequence[Record], skipped: Sequence[Skipped] = ()) -> ImageSet:
    classes = [{r.category for r in records if r.style == part} for part in (TRAIN, TEST)]
    kept = classes[0] & classes[1]
    if len(kept) < 2:
        found = f"{len(classes[0])} classes to train on, {len(classes[1])} to test on, {len(kept)} in both"
        raise layout_error("class folders", root, LAYOUT, found if records else None)
    records = tuple(r for r in records if r.category in kept)
    order = tuple(dict.fromkeys(str(record.category) for record in records))
    return ImageSet(root.name, TRAIN, records, FolderReader(root), tuple(skipped), classes=order)


def _listed(root: Path, folder: Path, style: str, names: dict[str, str], skipped: list[Skipped]) -> list[Record]:
    """List the pictures of class folders; ValueError if it is not clear which folder is a class."""
    if not folder.is_dir():
        return []
    found, unsupported = list_images(folder)
    place = folder.relative_to(root)
    skipped += [Skipped((place / p).as_posix(), unsupported_reason(p)) for p in unsupported if len(p.parts) > 1]
    held: dict[Path, list[Path]] = {}
    for path in found:
        if len(path.parts) > 1:
            held.setdefault(path.parent, []).append(path)
    for place in held:
        above = next((parent for parent in place.parents if parent in held), None)
        if above is not None:
            raise layout_error(
                "class folders", root, LAYOUT, f"pictures in {above}/ and in {place}/ below it: which is the class?"
            )
    lettered = all(len(place.parts) > 1 and len(place.parts[0]) == 1 for place in held)
    shared = Counter(names.values())
    category: dict[Path, str] = {}
    for place in held:
        words = place.parts[1:] if lettered else place.parts
        name = names.get(place.name, " ".join(reversed(words)))
        # some classes of ImageNet share a name and are still different classes
        category[place] = f"{name} ({place.name})" if shared[name] > 1 else name
    counted = Counter(category.values())
    twice = [place for place, name in category.items() if counted[name] > 1]
    if twice:
        found_twice = f"{' and '.join(f'{place}/' for place in twice[:2])}, which are both “{category[twice[0]]}”"
        raise layout_error("class folders", root, LAYOUT, found_twice)
    return [
        Record((folder / path).relative_to(root).as_posix(), style, category[place])
        for place, paths in held.items()
        for path in paths
    ]


def _class_names(root: Path) -> dict[str, str]:
    """Read the names of folders from ``classnames.txt``."""
    place = root / CLASS_NAMES
    if not place.is_file():
        return {}
    lines = [(number, line.split(maxsplit=1)) for number, line in read_lines(place)]
    bad = next((number for number, words in lines or [(1, [])] if len(words) != 2), None)
    if bad is not None:
        raise layout_error(
            "class folders", root, f"{CLASS_NAMES} with lines of a folder and its name", f"another line {bad}"
        )
    return {folder: name.strip() for _, (folder, name) in lines}


def _coop(root: Path, splits: Sequence[Path]) -> ImageSet:
    """Read CoOp's split file: lists of [path, label, name] for train, val and test; val is ignored."""
    expected = "one split_zhou_<name>.json with lists train and test of [path, label, name], and the pictures below it"
    if len(splits) > 1:
        raise layout_error("CoOp's splits", root, expected, " and ".join(path.name for path in splits))
    try:
        lists = parse_json(read_text(splits[0]))
        entries = [(part, str(p), int(label), str(name)) for part in (TRAIN, TEST) for p, label, name in lists[part]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise layout_error("CoOp's splits", root, expected, f"{splits[0].name} of another form: {error!r}") from error
    places = [root, *(p for pattern in ("*", "*/*") for p in sorted(root.glob(pattern)) if p.is_dir())]
    place = next((p for p in places if entries and (p / entries[0][1]).is_file()), None)
    if place is None:
        shown = entries[0][1] if entries else "no picture"
        raise layout_error(
            "CoOp's splits", root, expected, f"{splits[0].name} with {shown}, which no folder here holds"
        )
    names = {label: name.replace("_", " ") for _, _, label, name in entries}
    if len(set(names.values())) < len(names):
        raise layout_error("CoOp's splits", root, expected, f"{splits[0].name} with two labels of one name")
    ordered = sorted(entries, key=lambda entry: entry[2])
    return _checked(
        root,
        [Record((place / path).relative_to(root).as_posix(), part, names[label]) for part, path, label, _ in ordered],
    )


def _in_half(record: Record) -> Record:
    return replace(record, style=TEST if hash_fraction(record.path, "classes") < 0.5 else TRAIN)


def _emoji(category: str) -> ImageSet:
    parts = {part: load_emoji(part, seen_only=False, category=category) for part in (TRAIN, TEST)}
    records = []
    for part, images in parts.items():
        # the drawings of one concept stand together
        order = {record.instance: i for i, record in enumerate(images.gallery)}
        for record in sorted(images.records, key=lambda r: order[r.instance]):
            named = str(record.category).replace("-", " ")
            records.append(Record(f"{part}/{record.path}", part, named))
    shared = {r.category for r in records if r.style == TRAIN} & {r.category for r in records if r.style == TEST}

    def read(record: Record) -> Image.Image:
        part, _, path = record.path.partition("/")
        return parts[part].read(replace(record, path=path))

    kept = tuple(record for record in records if record.category in shared)
    return ImageSet(f"emoji, {category}s", TRAIN, kept, read, templates=parts[TEST].templates)
