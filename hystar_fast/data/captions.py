"""Pictures with several captions each: COCO's JSON, and files of a caption a line as Flickr8k and Flickr30k have."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path, PurePosixPath
from typing import Any

from hystar_fast.data.image_set import FolderReader, ImageSet, Record, layout_error
from hystar_fast.data.text_files import parse_json, read_text

GALLERY_STYLE = "photo"
LAYOUT = (
    "COCO's JSON (images with id and file_name, annotations with image_id and caption), lines of "
    "<picture>#<number><tab><caption>, or a CSV with the columns image,caption and a row for each caption; the "
    "pictures in a folder beside the file or beside its folder"
)
_NAME = "captions"
_LINE = re.compile(r"(.+)#\d+\t(.*)")
_COLUMNS = ["image", "caption"]
_LOOKED_FOR = 100  # of the listed pictures; public files list some that do not exist


def is_captions(path: Path) -> bool:
    """Return whether a file looks like one of captions by its first line."""
    if path.suffix.lower() == ".json":
        return True
    with path.open("rb") as file:
        first = file.readline(4096).decode("utf-8-sig", "replace").strip()
    return bool(_LINE.fullmatch(first)) or _is_header(first)


def load_captions(path: str | Path) -> ImageSet:
    """List pictures and their captions. The gallery is all pictures, and every caption is a query for its picture.

    Args:
        path: the file, see `LAYOUT`.

    Raises:
        ValueError: the file has another form, or its pictures are not found; the message names the line or the entry.
    """
    path = Path(path)
    try:
        text = read_text(path)
        captions = _of_coco(text) if text.lstrip()[:1] in ("{", "[") else _of_lines(text)
    except (OSError, ValueError, csv.Error) as error:
        raise layout_error(_NAME, path, LAYOUT, str(error)) from error
    if not any(captions.values()):
        raise layout_error(_NAME, path, LAYOUT, f"{len(captions)} pictures without captions")
    root = _folder_of(path, list(captions))
    records = tuple(Record(name, GALLERY_STYLE, None, name, tuple(texts)) for name, texts in captions.items())
    return ImageSet(path.stem, GALLERY_STYLE, records, FolderReader(root))


def _of_coco(text: str) -> dict[str, list[str]]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"JSON that cannot be read: {error}") from error
    images, annotations = (
        (content.get(part) for part in ("images", "annotations")) if isinstance(content, dict) else (None, None)
    )
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError("JSON without lists images and annotations")
    names: dict[Any, str] = {}
    for number, entry in enumerate(images):
        identity, name = _fields(entry, "images", number, "id", "file_name")
        if names.setdefault(identity, _one_spelling(name)) != _one_spelling(name):
            raise ValueError(f"images[{number}] with the id {identity} of {names[identity]}")
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for number, entry in enumerate(annotations):
        identity, caption = _fields(entry, "annotations", number, "image_id", "caption")
        if identity not in names:
            raise ValueError(f"annotations[{number}] of image {identity}, which is not among the images")
        if caption.strip():
            found[names[identity]].append(" ".join(caption.split()))
    return found


def _fields(entry: Any, part: str, number: int, identity: str, text: str) -> tuple[int | str, str]:
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get(identity), int | str)
        or not isinstance(entry.get(text), str)
    ):
        raise ValueError(f"{part}[{number}] without {identity} and {text}: {str(entry)[:60]}")
    return entry[identity], entry[text]


def _of_lines(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines = text.replace("\r\n", "\n").split("\n")
    if lines and _is_header(lines[0]):
        reader = csv.reader(io.StringIO(text, newline=""))
        next(reader)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(_COLUMNS) or not all(cell.strip() for cell in cells):
                more = "; a caption with a comma needs double quotes around it" if len(cells) > len(_COLUMNS) else ""
                raise ValueError(f"line {reader.line_num} is {','.join(cells)[:60]!r}{more}")
            found.setdefault(_one_spelling(cells[0]), []).append(cells[1].strip())
        return found
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = _LINE.fullmatch(line)
        if parts is None or not parts[2].strip():
            raise ValueError(f"line {number} is {line[:60]!r}")
        found.setdefault(_one_spelling(parts[1]), []).append(parts[2].strip())
    return found


def _is_header(line: str) -> bool:
    return [cell.strip() for cell in line.split(",")] == _COLUMNS


def _one_spelling(name: str) -> str:
    return PurePosixPath(name.strip()).as_posix()


def _folder_of(path: Path, names: list[str]) -> Path:
    """Return the folder of the pictures: that of the file, one in it or one beside it."""
    parent = path.resolve().parent
    places = [parent]
    for folder in (parent, parent.parent):
        places += sorted(place for place in folder.iterdir() if place.is_dir() and place not in places)
    for place in places:
        if any((place / name).is_file() for name in names[:_LOOKED_FOR]):
            return place
    found = f"no picture {names[0]} in {parent}, in a folder of it or in one beside it"
    raise layout_error(_NAME, path, LAYOUT, found)
