"""What a paired difference says of a statement of the paper."""

from __future__ import annotations

from hystar_fast.data.paper_tables import PaperTable

CONFIRMED, OPPOSITE, OPEN = "confirmed", "the opposite", "not told apart"
_PICTURE_STYLES = ("Art", "Sketch", "Low-Res")


def verdict(paper: float, low: float, high: float) -> str:
    """Whether a difference of the paper's rows is found here: the interval of ours lies on its side of zero."""
    if (high < 0 and paper < 0) or (low > 0 and paper > 0):
        return CONFIRMED
    return OPPOSITE if high < 0 or low > 0 else OPEN


def paper_figure(table: PaperTable, row: str, column: str) -> float:
    """One figure of the paper; ValueError where the table has no such column or no figure there."""
    found = table.rows[row][table.columns.index(column)]
    if found is None:
        raise ValueError(f"Table {table.number} has no figure of {row} in {column}")
    return found


def picture_mean(table: PaperTable, row: str) -> float | None:
    """The mean of a row's R@1 over the picture styles Art, Sketch and Low-Res; None for a table without them."""
    places = [i for i, column in enumerate(table.columns) if column in _PICTURE_STYLES]
    places = places or [i for i, c in enumerate(table.columns) if c in [f"{style} R@1" for style in _PICTURE_STYLES]]
    values = [value for i in places if (value := table.rows[row][i]) is not None]
    return sum(values) / len(values) if len(values) == len(_PICTURE_STYLES) else None


def headline_mean(table: PaperTable, row: str) -> float | None:
    """The mean that decides a row of any table of retrieval or classification; None for a table of neither."""
    columns = _headline_columns(table)
    if columns is None:
        return picture_mean(table, row)
    values = [value for column in columns if (value := table.rows[row][table.columns.index(column)]) is not None]
    return sum(values) / len(values) if len(values) == len(columns) else None


def headline_of(table: PaperTable) -> str:
    """What `headline_mean` is the mean of; "" where there is none."""
    columns = _headline_columns(table)
    if columns is not None:
        what = "accuracy" if table.number == 3 else "R@1"
        return f"{what}, mean of {', '.join(column.removesuffix(' R@1') for column in columns)}: "
    shown = picture_mean(table, next(iter(table.rows))) is not None
    return "R@1, mean of Art, Sketch and Low-Res: " * shown


def _headline_columns(table: PaperTable) -> list[str] | None:
    if table.number == 2:
        return [column for column in table.columns if column.endswith("R@1")]
    if table.number == 3:
        return list(table.columns)
    return [column for column in table.columns if column.endswith("+Text")] if table.number == 7 else None
