"""The figures that the paper prints in its tables, each with its table, data and protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

TABLES = tuple(range(1, 15))
BATCH24 = "batch24"
_PICTURE_STYLES = ("Art", "Sketch", "Low-Res")


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: of the table.
        subject: of the table.
        data: the data set.
        protocol: `BATCH24`, or a description.
        columns: headings; accuracies are in per cent.
        rows: name -> a figure for each column; None where the paper has none.
        note: open questions about the table.
    """

    number: int
    subject: str
    data: str
    protocol: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]
    note: str = ""

    @property
    def source(self) -> str:
        """The table, the data and the protocol, printed with every figure."""
        protocol = _content()["protocols"].get(self.protocol, self.protocol)
        return f"Hystar (ICLR 2026), Table {self.number}: {self.data}; {protocol}"

    @property
    def headline_columns(self) -> list[str]:
        """The columns whose mean compares the rows: R@1 of the picture styles; empty for a table without accuracies."""
        if self.number == 2:
            return [column for column in self.columns if column.endswith("R@1")]
        if self.number == 3:
            return list(self.columns)
        if self.number == 7:
            return [column for column in self.columns if column.endswith("+Text")]
        for names in (_PICTURE_STYLES, tuple(f"{style} R@1" for style in _PICTURE_STYLES)):
            if set(names) <= set(self.columns):
                return list(names)
        return []

    def headline(self, row: str) -> float | None:
        """Return the mean of a row over `headline_columns`; None if the table or the row lacks one of them."""
        values = [self.rows[row][self.columns.index(column)] for column in self.headline_columns]
        found = [value for value in values if value is not None]
        return sum(found) / len(found) if found and len(found) == len(values) else None


def paper_table(number: int) -> PaperTable:
    """Return a table by its number.

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
    columns = tuple(found["columns"])
    return PaperTable(number, found["what"], found["data"], found["protocol"], columns, rows, found.get("note", ""))


def table_numbers(names: Sequence[str]) -> list[int]:
    """Return the numbers of ``table1``, ``1`` or ``all``.

    Raises:
        ValueError: another word.

    Example:
        >>> table_numbers(["table4", "14"])
        [4, 14]
    """
    if list(names) == ["all"]:
        return list(TABLES)
    found = []
    for name in names:
        digits = name.removeprefix("table")
        if not digits.isdigit() or int(digits) not in TABLES:
            raise ValueError(f"tables must be table{TABLES[0]} to table{TABLES[-1]}, or all, got {name!r}")
        found.append(int(digits))
    return found


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    path = files("hystar_fast.experiments").joinpath("paper", "tables.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
