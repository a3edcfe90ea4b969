"""The figures that the papers of other systems print in their tables, each with its data and protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hystar_fast.experiments.paper_tables import table_numbers

PAPERS = {"acnet": "ACNet", "fgan": "FGAN", "ma_sbir": "MA-SBIR", "tki": "TKI"}
SHARE, PER_CENT = "share", "per cent"
_COPIED = "the paper took these figures from other papers; the method is not part of this package"
_ON_DRAWINGS = "the data set is not part of this package; `--data emoji` runs the row on the embedded drawings"
_DEFAULT = {
    "acnet": "the data set is not part of this package; `hystar-fast train acnet` trains the method on your copy",
    "fgan": "the data set is not part of this package; `hystar-fast train fgan` trains the method on your copy",
    "ma_sbir": "neither the data set nor OpenAI's weights are part of this package; `hystar-fast train "
    "ma-sbir-authors` trains the method on your copy",
    "tki": "neither the data set nor OpenAI's weights are part of this package; `hystar-fast train tki-literal` trains "
    "the method on the names of your copy",
}
_OURS = (
    *("ACNet 64†", "ACNet 512", "FGAN", "FGAN RE", "FGAN LD", "FGAN JR"),
    *("Ours [clip]", "Ours [original]", "Ours [converted]"),
)
_OTHER_METHODS = {("acnet", 4), ("acnet", 6), ("fgan", 1), ("fgan", 3), ("ma_sbir", 1), ("ma_sbir", 2), ("ma_sbir", 3)}
_SKETCHES = (
    "neither the data set nor OpenAI's weights are part of this package; `--data folders:DIR` trains the row on your "
    "copy, and checks its sizes: 12,694 sketches and 10,453 photos of the unseen categories of Sketchy, 2,400 and "
    "25,708 of TU-Berlin, 92,291 and 54,151 of QuickDraw"
)
_REASONS = {
    ("acnet", 11, ""): "the weights of VGG-16 are not part of this package",
    ("acnet", 9, "StarGAN v2"): "the generator of StarGAN v2 is not part of this package",
    ("ma_sbir", 1, ""): _SKETCHES,
    ("ma_sbir", 5, "CLIP-AT* on 0.8"): _COPIED,
    ("fgan", 5, ""): "measured on one NVIDIA V100; bench/ times what this package has",
}


@dataclass(frozen=True)
class PublishedTable:
    """One table of a paper.

    Attributes:
        paper: a name of `PAPERS`.
        number: of the table.
        subject: of the table.
        source: the paper, the table, the data and the protocol, printed with the figures.
        unit: "per cent" or "share".
        columns: headings.
        rows: name -> a figure for each column; None where the paper has none.
        settings: name of a row -> the settings that make it of the shipped ones, where this package can run it.
        semantics: rows of methods that use word embeddings of the categories.
        note: open questions about the table.
    """

    paper: str
    number: int
    subject: str
    source: str
    unit: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    settings: Mapping[str, tuple[str, ...]]
    semantics: tuple[str, ...] = ()
    note: str = ""

    def column(self, name: str) -> dict[str, float | None]:
        """Return row -> figure of a column.

        Raises:
            ValueError: there is no such column.
        """
        if name not in self.columns:
            raise ValueError(f"name must be one of {self.columns}, got {name!r}")
        return {row: values[self.columns.index(name)] for row, values in self.rows.items()}

    def reason(self, row: str) -> str:
        """Return why there is no run of this package for a row."""
        place = self.paper, self.number
        if row in self.settings:
            return _ON_DRAWINGS
        if (self.paper, self.number) in _OTHER_METHODS and row not in _OURS:
            return _COPIED
        return _REASONS.get((*place, row)) or _REASONS.get((*place, "")) or _DEFAULT[self.paper]


def published_numbers(paper: str) -> tuple[int, ...]:
    """Return the numbers of the tables of a paper.

    Raises:
        ValueError: there is no such paper.
    """
    return tuple(map(int, _content(paper)["tables"]))


def published_table(paper: str, number: int) -> PublishedTable:
    """Return a table of a paper by its number.

    Raises:
        ValueError: there is no such paper or table.

    Example:
        >>> published_table("acnet", 2).column("S mAP@all")["NormSoftmax, joint"]
        55.9
    """
    content = _content(paper)
    found = content["tables"].get(str(number))
    if found is None:
        known = ", ".join(content["tables"])
        raise ValueError(f"number must be one of the tables {known} of {PAPERS[paper]}, got {number!r}")
    return PublishedTable(
        paper,
        number,
        found["what"],
        f"{content['paper']}, Table {number}: {found['data']}; {content['protocol']}",
        content["unit"],
        tuple(found["columns"]),
        {name: tuple(values) for name, values in found["rows"].items()},
        {row: tuple(changes) for row, changes in found.get("settings", {}).items()},
        tuple(found.get("semantics", ())),
        found.get("note", ""),
    )


def split_names(names: Sequence[str]) -> tuple[list[int], list[PublishedTable]]:
    """Return the numbers of Hystar's tables, and the tables of other papers ("acnet:table2", "fgan:all").

    Raises:
        ValueError: a name of neither.

    Example:
        >>> numbers, tables = split_names(["table4", "acnet:table2", "fgan:table1"])
        >>> numbers, [(table.paper, table.number) for table in tables]
        ([4], [('acnet', 2), ('fgan', 1)])
    """
    own = [name for name in names if ":" not in name]
    tables = []
    for name in names:
        paper, separator, word = name.partition(":")
        if not separator:
            continue
        if word == "all":
            tables += [published_table(paper, number) for number in published_numbers(paper)]
            continue
        digits = word.removeprefix("table")
        known = published_numbers(paper)
        if not digits.isdecimal() or int(digits) not in known:
            listed = ", ".join(f"table{number}" for number in known)
            raise ValueError(f"tables of {PAPERS[paper]} must be {listed} or all, got {name!r}")
        tables.append(published_table(paper, int(digits)))
    return table_numbers(own), tables


@lru_cache(maxsize=len(PAPERS))
def _content(paper: str) -> dict[str, Any]:
    if paper not in PAPERS:
        raise ValueError(f"paper must be one of {', '.join(PAPERS)}, got {paper!r}")
    path = files("hystar_fast.experiments").joinpath("paper", f"{paper}.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
