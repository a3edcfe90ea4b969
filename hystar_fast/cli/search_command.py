"""``hystar-fast search``: answer a picture or words from an index."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from hystar_fast.cli.checks import check_picture
from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.search import Hit, Searcher
from hystar_fast.terminal.console import Console, create_table


def run_search(
    index: Path, query: Path | None, text: str | None, top: int, picture: Path | None, console: Console
) -> list[Hit]:
    """Print the answers to a picture or to words, draw them if `picture` is given, and return them.

    Raises:
        ValueError: the picture cannot be written, or the index or the query cannot be read.
    """
    if picture is not None:
        check_picture(picture, "--picture")
        if query is not None and picture.exists() and picture.samefile(query):
            raise ValueError(f"--picture must be another file than --query, got {picture} for both")
    searcher = Searcher.open(index)
    hits = searcher.search_image(query, top) if query is not None else searcher.search_text(text or "", top)
    shown = str(query) if query is not None else f'"{text}"'
    title = f"{shown}: first {len(hits)} of {len(searcher.index)}"
    table = create_table("", "cosine", "id", "caption", title=title, right=("", "cosine"))
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.id, hit.caption)
    console.print(table)
    if picture is not None:
        drawn, form = searcher.draw(hits, query=query, text=text or ""), Image.registered_extensions()
        write_whole(picture, lambda file: drawn.save(file, form[picture.suffix.lower()]))
        console.print(f"wrote {picture}")
    return hits
