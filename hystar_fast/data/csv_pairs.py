"""A CSV file of pairs: pictures in any folder, and a table of queries with their targets."""

from __future__ import annotations

import csv
from pathlib import Path

from hystar_fast.data.image_set import ImageSet, Record, check_some_exist, folder_reader, layout_error

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
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise layout_error("a table of pairs", path, LAYOUT, str(error)) from error
    header = list(rows[0]) if rows else []
    unknown = [name for name in header if name not in COLUMNS]
    if not rows or unknown or not {"query", "target"} <= set(header):
        raise layout_error("a table of pairs", path, LAYOUT, f"columns {header}" if rows else "no rows")
    targets: dict[str, Record] = {}
    queries = []
    for number, row in enumerate(rows, start=2):
        if not row["query"] or not row["target"]:
            raise layout_error("a table of pairs", path, LAYOUT, f"no query or no target in line {number}")
        category, caption = row.get("category") or None, row.get("caption") or None
        target = Record(row["target"], GALLERY_STYLE, category, row["target"], caption)
        if targets.setdefault(target.path, target) != target:
            raise layout_error("a table of pairs", path, LAYOUT, f"line {number} and another differ on {target.path}")
        queries.append(Record(row["query"], row.get("style") or "query", category, row["target"], caption))
    if any(query.style == GALLERY_STYLE for query in queries):
        found = f"queries of style {GALLERY_STYLE!r}, which is the style of the targets"
        raise layout_error("a table of pairs", path, LAYOUT, found)
    check_some_exist("a table of pairs", path.parent, [*targets.values()], LAYOUT)
    return ImageSet(path.stem, GALLERY_STYLE, (*targets.values(), *queries), folder_reader(path.parent))
