"""Add a picture that came in a request to the index: its file, its vectors for every view, and its item."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.engine import Engine, Item
from hystar_fast.serve.answering import Answerer
from hystar_fast.serve.live_index import Live
from hystar_fast.serve.schemas import ItemFields

SOURCE, FOLDER = ".added", "added"
"""The source of the files, and the folder beside the index that holds them."""


async def add_picture(answerer: Answerer, fields: ItemFields, deadline: float) -> Item:
    """Encode a picture and write it; when it returns, the item is found.

    Raises:
        Problem, or an error of which `problem_of` makes one.
    """

    async def add(live: Live) -> Item:
        views = [*live.stamps]
        vectors = await answerer.vectors(live, views, fields.image, deadline)
        return await answerer.run(_write, answerer.index.engine, live, fields, vectors)

    return await answerer.with_live(add, deadline)


def _write(engine: Engine, live: Live, fields: ItemFields, vectors: dict[str, Any]) -> Item:
    """Write the file, then the item with its vectors; an item of the same id is replaced."""
    digest, path, source, changed = hashlib.sha256(fields.image).hexdigest(), "", "", 0
    with Image.open(io.BytesIO(fields.image)) as image:
        name = f"{digest}.{(image.format or '').lower()}"
    if engine.folder is not None:
        folder = Path(engine.folder).resolve() / FOLDER
        write_whole(folder / name, fields.image)
        settings = engine.settings()
        if SOURCE not in settings["sources"]:
            added = {SOURCE: {"folder": str(folder), "whole": False, "prefix": ""}}
            engine.update_settings(lambda now: {**now, "sources": {**now["sources"], **added}})
        path, source, changed = name, SOURCE, (folder / name).stat().st_mtime_ns
    item = Item(
        fields.id or name,
        source,
        path,
        fields.caption or fields.id or name,
        dict(fields.attributes),
        len(fields.image),
        changed,
        digest,
    )
    engine.upsert([item], {view: vector[None] for view, vector in vectors.items()}, live.generation)
    return item
