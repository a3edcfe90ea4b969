"""A CSV file of pairs: pictures in any folder, and a table of queries with their targets."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import replace
from pathlib import Path

from hystar_fast.data.image_set import (
    RESERVED_STYLES,
    FolderReader,
    ImageSet,
    Record,
    check_some_exist,
    layout_error,
)
from hystar_fast.data.text_files import read_text

GALLERY_STYLE = "gallery"
COLUMNS = ("query", "target", "style", "category", "caption")
LAYOUT = (
    "a CSV with a header that has query and target (pictures, relative to the file) and may have style (of the query), "
    "category and caption (of the target; each in a row of its own if there are several)"
)


def load_csv_pairs(path: str | Path) -> ImageSet:
    """List the pairs of a CSV file: each row has a query and the picture it should find; the gallery is all targets.

    Rows that differ in their caption alone are one query with several captions. A target has the captions of all its
    rows.

    Args:
        path: the file, see `LAYOUT`.

    Raises:
        ValueError: the file has another form, or two rows give one target different categories; the message says what
            was expected and found.
    """
    path = Path(path)
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise layout_error("a table of pairs", path, LAYOUT, str(error)) from error
    header = list(reader.fieldnames or ())
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or not {"query", "target"} <= set(header):
        raise layout_error("a table of pairs", path, LAYOUT, _columns(header) if header else "an empty file")
    if not rows:
        raise layout_error("a table of pairs", path, LAYOUT, "a header without rows")
    targets: dict[str, Record] = {}
    queries: list[Record] = []
    place: dict[tuple[str, str, str], int] = {}  # of the queries with a caption
    for number, row in rows:
        if None in row:
            found = f"more cells than columns in line {number}; a text with a comma needs double quotes around it"
            raise layout_error("a table of pairs", path, LAYOUT, found)
        if not row["query"] or not row["target"]:
            raise layout_error("a table of pairs", path, LAYOUT, f"no query or no target in line {number}")
        query, answer = (_one_spelling(path.parent, row[name]) for name in ("query", "target"))
        category, caption = ((row.get(name) or "").strip() or None for name in ("category", "caption"))
        captions = () if caption is None else (caption,)
        target = targets.setdefault(answer, Record(answer, GALLERY_STYLE, category, answer, captions))
        if target.category != category:
            found = f"line {number} and another give different categories to {answer}"
            raise layout_error("a table of pairs", path, LAYOUT, found)
        targets[answer] = _with(target, captions)
        style = (row.get("style") or "").strip() or "query"
        if style in (GALLERY_STYLE, *RESERVED_STYLES):
            found = f"queries of style {style!r} in line {number}, a name with another meaning"
            raise layout_error("a table of pairs", path, LAYOUT, found)
        if captions and (before := place.setdefault((query, answer, style), len(queries))) < len(queries):
            queries[before] = _with(queries[before], captions)
        else:
            queries.append(Record(query, style, category, answer, captions))
    check_some_exist("a table of pairs", path.parent, [*targets.values()], LAYOUT)
    return ImageSet(path.stem, GALLERY_STYLE, (*targets.values(), *queries), FolderReader(path.parent))


def _with(record: Record, captions: tuple[str, ...]) -> Record:
    """Add captions that the record does not have yet."""
    return replace(record, captions=tuple(dict.fromkeys((*record.captions, *captions))))


def _one_spelling(root: Path, name: str) -> str:
    """Return the path of a picture relative to `root`: one for ``p/a.png``, ``./p/a.png`` and the absolute path."""
    return Path(os.path.relpath(root / name.strip(), root)).as_posix()


def _columns(header: list[str]) -> str:
    """Describe the columns that were found, and how to make them right where that is plain."""
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        return f"one column {header[0]!r}; save the file with commas between its cells"
    lower = [name.strip().lower() for name in header]
    if lower != header and set(lower) <= set(COLUMNS):
        return f"columns {header}; write them in lower case and without spaces, {','.join(lower)}"
    if {"image", "caption"} <= set(lower):
        return f"columns {header}, of pictures with captions: open the file as captions:<file>"
    return f"columns {header}"
