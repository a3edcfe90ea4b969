"""DomainNet with its published split files (Peng et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hystar_fast.data.image_files import is_hidden
from hystar_fast.data.image_set import FolderReader, ImageSet, Record, check_some_exist, layout_error
from hystar_fast.data.text_files import read_lines

GALLERY_STYLE, ALL = "real", "all"
LAYOUT = (
    "<style>_<split>.txt for real and other styles (clipart, infograph, painting, quickdraw, sketch), with lines "
    '"<style>/<category>/<file> <label>", and the folders they name'
)


def load_domainnet(root: str | Path, split: str = "test", styles: Sequence[str] | None = None) -> ImageSet:
    """List DomainNet: the gallery is ``real``, the other styles are queries, relevant is the same category.

    Args:
        root: the folder, see `LAYOUT`.
        split: "train" or "test" as published; "val" where the folder has such files; "all" for training and test
            pictures together.
        styles: query styles; by default all that have a split file.

    Raises:
        ValueError: the folder has another layout, or a label stands for two categories; the message says what was
            expected and found.
    """
    root, layout = Path(root), LAYOUT.replace("<split>", "train" if split == ALL else split)
    parts = ("train", "test") if split == ALL else (split,)
    listed = [style for style in styles_with_split(root, parts[0]) if style in styles_with_split(root, parts[-1])]
    wanted = listed if styles is None else [GALLERY_STYLE, *(style for style in styles if style != GALLERY_STYLE)]
    missing = [style for style in (GALLERY_STYLE, *wanted) if style not in listed]
    if missing or len(wanted) < 2:
        found = f"split files of {', '.join(listed)}" + f", none of {missing[0]}" * bool(missing) if listed else None
        others = [name for name in ("train", "val", "test") if styles_with_split(root, name)]
        if not listed and others:
            found = f"no {GALLERY_STYLE}_{split}.txt, but split files of {', '.join(others)}"
        raise layout_error("DomainNet", root, layout, found)
    names: dict[str, str] = {}
    records = [
        record
        for style in dict.fromkeys((GALLERY_STYLE, *wanted))
        for part in parts
        for record in _records(root, style, root / f"{style}_{part}.txt", names)
    ]
    check_some_exist("DomainNet", root, records, layout)
    return ImageSet("DomainNet", GALLERY_STYLE, tuple(records), FolderReader(root), has_splits=True)


def styles_with_split(root: Path, split: str) -> list[str]:
    """List the styles that have a file of the split."""
    names = (path.name for path in root.glob(f"*_{split}.txt"))
    return sorted(name.removesuffix(f"_{split}.txt") for name in names if not is_hidden(name))


def _records(root: Path, style: str, path: Path, names: dict[str, str]) -> list[Record]:
    """Read one split file; `names` holds the category of each label read so far."""
    records = []
    for number, line in read_lines(path):
        picture, _, label = line.rpartition(" ")
        parts = picture.split("/")
        if not label.isdigit() or len(parts) < 3:
            raise layout_error("DomainNet", root, LAYOUT, f"line {number} of {path.name} is {line[:80]!r}")
        if names.setdefault(label, parts[-2]) != parts[-2]:
            found = f"label {label} for {names[label]} and, in line {number} of {path.name}, for {parts[-2]}"
            raise layout_error("DomainNet", root, LAYOUT, found)
        records.append(Record(picture, style, parts[-2]))
    if not records:
        raise layout_error("DomainNet", root, LAYOUT, f"no line in {path.name}")
    return records
