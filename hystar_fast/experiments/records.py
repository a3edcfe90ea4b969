"""Files of results that grow run by run, so that a stopped experiment continues where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hystar_fast.retrieval.ranks import QueryIds
from hystar_fast.retrieval.results_json import read_json


def read_earlier(path: Path, identity: Mapping[str, Any], entries: str) -> dict[str, Any]:
    """Return the entries that an earlier call wrote to a results file, or an empty list if there is no file.

    Args:
        path: a JSON file.
        identity: name -> value that the file must hold too, so that its entries belong with new ones.
        entries: the name of the list.

    Raises:
        ValueError: the file is damaged or holds entries of other settings.
    """
    if not path.exists():
        return {entries: []}
    try:
        found = read_json(path)
        different = [name for name, value in identity.items() if found[name] != value]
        kept = {name: found[name] for name in (entries, "query_ids", "chosen") if name in found}
        kept[entries] = list(kept[entries])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"run.output must be a folder without other files, but {path} is not a file of {entries}: {error!r}"
        ) from error
    if different:
        raise ValueError(
            f"run.output must be a folder without {entries} of other settings, got {path} with different "
            f"{', '.join(different)}: give another folder or remove the file"
        )
    return kept


def is_done(key: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether one of the entries has every item of `key`."""
    return any(key.items() <= entry.items() for entry in entries)


def query_ids(record: Mapping[str, Any]) -> QueryIds:
    """Return the query ids of a record's ranks."""
    return QueryIds.from_dict(record["query_ids"])


def merge_query_ids(record: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the query ids of a record after another run.

    Raises:
        ValueError: the run has other queries than the earlier ones.
    """
    ids = QueryIds.from_dict(new)
    return (ids.merge(query_ids(record)) if "query_ids" in record else ids).to_dict()
