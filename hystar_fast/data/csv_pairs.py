"""A CSV file of pairs: pictures in any folder, and a table of queries with their targets."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from hystar_fast.data.image_set import (
    RESERVED_STYLES,
    ImageSet,
    Record,
    check_some_exist,
    folder_reader,
    layout_error,
)
from hystar_fast.data.text_files import read_text

GALLERY_STYLE = "gallery"
COLUMNS = ("query", "target", "style", "category", "caption")
LAYOUT = (
    "a CSV with a header that has query and target (pictures, relative to the file) and may have style (of the query), "
    "category and caption (of the target)"
)


def load_csv_pairs(path: str | Path) -> ImageSet:
    """List the pairs of a CSV file: each row has a query and the picture it should find; the gallery is all targets.

    Args:
        path: the file, see `LAYOUT`.

    Raises:
        ValueError: the file has another form, or two rows differ on one target; the message says what was expected
            and found.
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
    queries = []
    for number, row in rows:
        if None in row:
            found = f"more cells than columns in line {number}; a text with a comma needs double quotes around it"
            raise layout_error("a table of pairs", path, LAYOUT, found)
        if not row["query"] or not row["target"]:
            raise layout_error("a table of pairs", path, LAYOUT, f"no query or no target in line {number}")
        query, answer = (_one_spelling(path.parent, row[name]) for name in ("query", "target"))
        category, caption = ((row.get(name) or "").strip() or None for name in ("category", "caption"))
        target = Record(answer, GALLERY_STYLE, category, answer, caption)
        if targets.setdefault(answer, target) != target:
            raise layout_error("a table of pairs", path, LAYOUT, f"line {number} and another differ on {answer}")
        style = (row.get("style") or "").strip() or "query"
        if style in (GALLERY_STYLE, *RESERVED_STYLES):
            found = f"queries of style {style!r} in line {number}, a name with another meaning"
            raise layout_error("a table of pairs", path, LAYOUT, found)
        queries.append(Record(query, style, category, answer, caption))
    check_some_exist("a table of pairs", path.parent, [*targets.values()], LAYOUT)
    return ImageSet(path.stem, GALLERY_STYLE, (*targets.values(), *queries), folder_reader(path.parent))


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
    return f"columns {header}"
