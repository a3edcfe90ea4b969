"""A complete check of an index in Milvus, and the removal of what is damaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hystar_fast.index.engine import IndexDamaged, key_of
from hystar_fast.index.milvus_files import Files
from hystar_fast.index.milvus_generations import Generations
from hystar_fast.index.milvus_meta import Meta
from hystar_fast.index.milvus_rows import checksum, decode, unpack, vectors_of
from hystar_fast.index.milvus_table import Row, Table, differences


def verify_index(
    generations: Generations, meta: Meta, table: Table, files: Files, *, repair: bool = False
) -> list[str]:
    """Read every row and compare it with its checksum; return a line for each damage.

    Args:
        generations, meta, table, files: of the index.
        repair: remove damaged rows, so that a sync embeds their pictures again, vectors that belong to no item and
            collections that belong to no generation, and copy items anew. Settings, stamps and the files of adapters
            cannot be made good.
    """
    found = []
    if repair:
        files.tidy()
    small: list[Callable[[], object]] = [meta.settings, meta.styles, meta.version]
    for read in small + [partial(files.get, name) for name in files.names()]:
        try:
            read()
        except IndexDamaged as error:
            found.append(str(error))
    live, there, collections = generations.live(), meta.generations(), generations.collections()
    for number in there.keys() - collections.keys():
        found.append(f"generation {number} has no collection")
    for number, name in collections.items():
        if number not in there:
            found.append(f"the collection {name} belongs to no generation")
            if repair:
                table.drop(name)
    numbers = [number for number in sorted(there) if number in collections]
    for number in sorted(numbers, key=lambda number: number != live):  # the live one first: it says what there is
        name = collections[number]
        for part in table.parts(name, vectors=True):
            bad = {str(row["key"]): _name(row) for row in part if not _is_whole(row)}
            found += [f"{item} is damaged in generation {number}" for item in bad.values()]
            if repair:
                table.delete(name, [*bad])
        if number != live:
            found += _compare(generations.name(live), name, number, table, repair=repair)
    return found


def _compare(live: str, name: str, number: int, table: Table, *, repair: bool) -> list[str]:
    """Compare a generation with the live one."""
    found = []
    for items, held in table.compared(live, name):
        other = differences(items, held)
        found += [f"{_name(held[key])} in generation {number} belongs to no item" for key in other.stray]
        found += [f"{_name(held[key])} in generation {number} has an old caption or path" for key in other.old]
        if repair:
            table.delete(name, other.stray)
            table.copy(items, name, other.old)
    return found


def _is_whole(row: Row) -> bool:
    try:
        return key_of(unpack(row).id) == row["key"] and checksum(row, vectors_of(row)) == row["checksum"]
    except (ValueError, TypeError, AttributeError):
        return False


def _name(row: Row) -> str:
    return repr(decode(str(row["item_id"])))
