"""The figures of the paper's tables from one file, each with the number of its table and its protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

TABLES = tuple(range(1, 15))
BATCH24 = "batch24"


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: of the table.
        what: its subject.
        data: the data set.
        protocol: `BATCH24`, or what the paper says in words.
        columns: headings; accuracies are in per cent.
        rows: name -> a figure a column, None where the paper has none.
        note: what the paper leaves open or says elsewhere.
    """

    number: int
    what: str
    data: str
    protocol: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]
    note: str = ""

    @property
    def source(self) -> str:
        """What is printed with every figure: the table, the data and the protocol."""
        protocol = _content()["protocols"].get(self.protocol, self.protocol)
        return f"Hystar (ICLR 2026), Table {self.number}: {self.data}; {protocol}"


def paper_table(number: int) -> PaperTable:
    """A table by its number.

    Raises:
        ValueError: there is no such table.

    Example:
        >>> table = paper_table(5)
        >>> table.rows["Hystar"][table.columns.index("Additional (%)")]
        3.5
    """
    found = _content()["tables"].get(str(number))
    if found is None:
        raise ValueError(f"number must be one of the paper's tables {TABLES[0]} to {TABLES[-1]}, got {number!r}")
    rows = {name: tuple(values) for name, values in found["rows"].items()}
    return PaperTable(
        number, found["what"], found["data"], found["protocol"], tuple(found["columns"]), rows, found.get("note", "")
    )


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        files("hystar_fast.data").joinpath("paper", "tables.json").read_text(encoding="utf-8")
    )
    return content
