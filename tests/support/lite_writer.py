"""A process that writes into Milvus Lite until it is killed."""

from __future__ import annotations

from pathlib import Path

from hystar_fast.index.milvus import MilvusEngine
from tests.support.index_engines import STAMPS, items, units


def write_until_killed(uri: str, log: Path) -> None:
    """Make an index and write batches of ten items; a line in a file acknowledges each."""
    engine = MilvusEngine.create(uri, STAMPS)
    vectors = units(10_000)
    with log.open("a") as file:
        for start in range(0, len(vectors), 10):
            engine.upsert(items(10, start), {"adapted": vectors[start : start + 10]})
            file.write("\n")
            file.flush()
