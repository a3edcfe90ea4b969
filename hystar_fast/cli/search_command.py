"""``hystar-fast search`` and ``index search``: answer pictures, words, or both from an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from hystar_fast.cli.checks import check_picture
from hystar_fast.cli.hits_table import print_hits
from hystar_fast.cli.search_settings import SearchSettings
from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.searcher import Query, Searcher
from hystar_fast.index.where import Where
from hystar_fast.terminal.console import Console


def run_search(index: str | Path, settings: SearchSettings, console: Console) -> list[dict[str, Any]]:
    """Print the answers to every query, draw them if a picture is asked for, and return them.

    Returns:
        The answers to the only query; for several, an entry with "query" and "answers" for each.

    Raises:
        ValueError: an option is wrong, the picture cannot be written, or the index or a query cannot be read.
    """
    paths: list[Path | None] = [*settings.query] or [None]
    queries = [Query(path, settings.text or "", settings.style, settings.modality or "") for path in paths]
    where = None if settings.where is None else Where.parse(settings.where)
    if settings.picture is not None:
        check_picture(settings.picture, "--picture")
        _check_other(settings.picture, queries)
    searcher = Searcher.open(index, view=settings.view, device=settings.device)
    warning = searcher.generation.notes.get("warning")
    if warning:
        console.print(str(warning))
    found = searcher.search(queries, settings.top, combine=settings.combine, where=where)
    for query, hits in zip(queries, found, strict=True):
        end = f"first {len(hits)} of {searcher.engine.count(where)}"
        print_hits([vars(hit) for hit in hits], query.picture, query.text, end, console)
    if settings.picture is not None:
        drawn, form = searcher.draw(found[0], queries[0]), Image.registered_extensions()
        suffix = settings.picture.suffix.lower()
        write_whole(settings.picture, lambda file: drawn.save(file, form[suffix]))
        console.print(f"wrote {settings.picture}")
    answers = [[vars(hit) for hit in hits] for hits in found]
    if len(queries) == 1:
        return answers[0]
    pairs = zip(queries, answers, strict=True)
    return [{"query": str(query.picture), "answers": hits} for query, hits in pairs]


def _check_other(picture: Path, queries: list[Query]) -> None:
    for place in (queries[0].picture, queries[0].style):
        if place is not None and picture.exists() and picture.samefile(place):
            raise ValueError(f"--picture must be another file than --query and --style, got {picture} for both")
