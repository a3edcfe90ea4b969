"""DSR, the Diverse-Style Retrieval data set of FreestyleRet (CC BY-NC 4.0: it is read, never shipped)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hystar_fast.data.image_set import FolderReader, ImageSet, Record, Skipped, check_some_exist, layout_error
from hystar_fast.data.text_files import parse_json, read_text

QUERY_STYLES = ("art", "sketch", "mosaic")
LAYOUT = (
    "images/, text/ and some of art/, sketch/, mosaic/ with the same <folder>/<file> in each, and <split>.json: a list "
    'of {"image": "<folder>/<file>", "caption": "<folder>/<file>.txt"}'
)


def load_dsr(root: str | Path, split: str = "test") -> ImageSet:
    """List DSR: every picture of ``images/`` with its painting, sketch, low-resolution version and caption.

    ``mosaic`` is the papers' Low-Res. A caption is the first line of its text file, as
    in the published evaluation. If the text file cannot be read,
    its pictures have no caption, and the file is counted as skipped. A picture that is listed several times, with
    different text files, is one picture with several captions.

    Args:
        root: the folder, see `LAYOUT`.
        split: the name of the json file, ``<split>`` in the layout.

    Raises:
        ValueError: the folder has another layout; the message says what was expected and found.
    """
    root = Path(root)
    annotations = root / f"{split}.json"
    layout = LAYOUT.replace("<split>", split)
    styles = [style for style in QUERY_STYLES if (root / style).is_dir()]
    if not (root / "images").is_dir() or not styles:
        raise layout_error("DSR", root, layout)
    if not annotations.is_file():
        others = " and ".join(sorted(path.name for path in root.glob("*.json")))
        raise layout_error("DSR", root, layout, f"no {annotations.name}" + (others and f", but {others}"))
    skipped: list[Skipped] = []
    captions: dict[str, tuple[str, ...]] = {}
    for entry in _entries(root, annotations, layout):
        found = _captions(root, entry["caption"], skipped) if "caption" in entry else ()
        image = entry["image"]
        captions[image] = tuple(dict.fromkeys((*captions.get(image, ()), *found)))
    records = tuple(
        Record(f"{style}/{image}", style, image.split("/")[0], image, texts)
        for style in ("images", *styles)
        for image, texts in captions.items()
    )
    check_some_exist("DSR", root, records[: len(captions)], layout)
    return ImageSet("DSR", "images", records, FolderReader(root), tuple(skipped), has_splits=True)


def _entries(root: Path, annotations: Path, layout: str) -> list[dict[str, Any]]:
    try:
        entries = parse_json(read_text(annotations))
    except (OSError, ValueError) as error:
        raise layout_error("DSR", root, layout, f"{annotations.name}, which is not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise layout_error("DSR", root, layout, f"{annotations.name}, which is not a list of records")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or "/" not in entry["image"]:
            raise layout_error("DSR", root, layout, f"record {number} of {annotations.name} is {str(entry)[:80]}")
    return entries


def _captions(root: Path, name: str, skipped: list[Skipped]) -> tuple[str, ...]:
    try:
        first = read_text(root / "text" / name).partition("\n")[0].strip()
    except (OSError, ValueError) as error:
        skipped.append(Skipped(f"text/{name}", f"no caption: {error}"))
        return ()
    return (first,) if first else ()
