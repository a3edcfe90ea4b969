"""Parts of all plots: colours and shapes of labels, sizes of dots, titles and legends that fit."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hystar_fast.data.whole_files import write_whole
from hystar_fast.retrieval.picture_text import drawable

INK, FAINT, LINE = "#1f1f1f", "#5a5a5a", "#cccccc"
TITLE, TEXT = 12, 10  # points
DPI = 150  # a figure of 8.3 inches is sharp in a column of 830 pixels
COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"),
    *("#d55e00", "#5b4a9e", "#8a8a3c", "#444444", "#b08060"),
    *("#8c1d18", "#00a6a6", "#a0a0a0", "#1b4d1b", "#e377ff"),
)
_SHAPES = "o^sDvPX*<>pd"
_COVERED = 0.2  # share of a panel's area that its dots may cover
_SMALLEST, _LARGEST = 2.0, 40.0  # square points

Look = tuple[str, str]


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Return a colour and a shape for each label; of the first eight labels no two share either."""
    return {
        label: (COLOURS[i % len(COLOURS)], _SHAPES[i % len(_SHAPES)]) for i, label in enumerate(dict.fromkeys(labels))
    }


def dot_size(count: int, side: float) -> float:
    """Return the area in square points of each of `count` dots in a panel of `side` inches: more dots are smaller."""
    return min(_LARGEST, max(_SMALLEST, _COVERED * (72 * side) ** 2 / max(count, 1)))


def figure_of(width: float, height: float) -> Any:
    """Return an empty figure, its size in inches, with a layout in which nothing overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure as a PNG of 128 colours, in one move; one of all colours is twice as large."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    save_picture(Image.open(drawn).convert("RGB"), path, 128)


def save_picture(picture: Image.Image, path: str | Path, colours: int) -> None:
    """Write a picture as a PNG of so many colours at most, in one move."""
    small = picture.quantize(colours)
    write_whole(path, lambda file: small.save(file, "PNG", optimize=True))


def add_frame(axes: Any) -> None:
    """Draw a thin frame around a panel whose axes have no unit."""
    axes.set(xticks=[], yticks=[])
    for edge in axes.spines.values():
        edge.set_color(LINE)


def add_title(figure: Any, title: str, note: str = "") -> None:
    """Write a title above a figure and a note at its foot, in as many lines as they need."""
    inches = figure.get_figwidth()
    if title:
        text = _lines(title, inches, TITLE)
        figure.suptitle(text, fontsize=TITLE, color=INK, weight="bold", x=0.01, ha="left", parse_math=False)
    if note:
        figure.supxlabel(_lines(note, inches, TEXT), fontsize=TEXT, color=FAINT, x=0.01, ha="left", parse_math=False)


def add_legend(owner: Any, look: Mapping[str, Look], width: float) -> None:
    """Write a legend of labels below a figure or a part of it, in as many columns as `width` inches hold."""
    from matplotlib.lines import Line2D

    names = [f" {plain(name)}" for name in look]  # a label that begins with "_" would be left out
    marks = [Line2D([], [], color=colour, marker=shape, markersize=8, linestyle="") for colour, shape in look.values()]
    columns = next(n for n in range(max(len(names), 1), 0, -1) if n == 1 or _points(names, n) < 72 * width)
    legend = owner.legend(
        marks,
        names,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=TEXT,
        handlelength=1,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _points(names: Sequence[str], columns: int) -> float:
    """Estimate the width of a legend, whose first columns are the longer ones."""
    short, rest = divmod(len(names), columns)
    starts = [column * short + min(column, rest) for column in range(columns + 1)]
    longest = (max(map(len, names[start:end])) for start, end in itertools.pairwise(starts))
    return sum(0.52 * TEXT * letters + 30 for letters in longest)


def plain(text: str, most: int = 60) -> str:
    """Return a text in letters that can be drawn, with an ellipsis in the middle of more than `most` of them."""
    text = drawable(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - most // 2 :]}"


def _lines(text: str, inches: float, points: int) -> str:
    return textwrap.fill(plain(text, 400), max(10, int(72 * inches / (0.62 * points))))
