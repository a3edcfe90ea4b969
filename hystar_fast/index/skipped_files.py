"""The list of files that cannot be read, beside an index: they are not tried again until they change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hystar_fast.data.text_files import parse_json, read_lines
from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.compare_files import PassedOver
from hystar_fast.index.engine import Engine
from hystar_fast.index.picture_files import state_of

SKIPPED_FILE = "skipped.jsonl"
FIELDS = ("path", "reason", "size", "mtime_ns")
"""The fields of an entry besides its place."""


def read_skipped(engine: Engine) -> PassedOver:
    """Return the files that could not be read, as `compare` takes them."""
    entries = _entries(engine).items()
    return {place: ((entry["size"], entry["mtime_ns"]), entry["reason"]) for place, entry in entries}


def _entries(engine: Engine) -> dict[str, Any]:
    if engine.folder is None or not (engine.folder / SKIPPED_FILE).is_file():
        return {}
    try:
        lines = [parse_json(line) for _, line in read_lines(engine.folder / SKIPPED_FILE)]
        return {entry.pop("place"): {name: entry[name] for name in FIELDS} for entry in lines}
    except (ValueError, KeyError, AttributeError):  # it is only a list of what need not be tried again
        return {}


def write_skipped(engine: Engine, passed_over: Mapping[str, Any]) -> None:
    """Keep the list of files that cannot be read; those that have gone or changed leave it."""
    if engine.folder is None:
        return
    entries = {**_entries(engine), **passed_over}
    kept = []
    for place, entry in sorted(entries.items()):
        with suppress(OSError):  # it is tried again
            if state_of(place) == (entry["size"], entry["mtime_ns"]):
                kept.append(json.dumps({"place": place, **entry}))
    if kept:
        write_whole(engine.folder / SKIPPED_FILE, ("\n".join(kept) + "\n").encode())
    else:
        (engine.folder / SKIPPED_FILE).unlink(missing_ok=True)
