"""Draw when each process embedded which shard."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.shard_files import Header
from hystar_fast.retrieval.plot_style import COLOURS, FAINT, INK, LINE, TEXT, add_title, figure_of, plain

TIMELINE = "timeline.png"
_WIDTH, _ROW, _MARGIN = 8.3, 0.3, 1.5  # inches
_MOST_ROWS = 100
_UNITS = ((48 * 3600, 86400, "days"), (2 * 3600, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))


def draw_timeline(headers: Iterable[Header], out: Path) -> Path:
    """Draw a row for each process and a bar for each of its shards into ``timeline.png``, and return its path.

    Times are those of the machines' clocks. Of more than a hundred processes the first are drawn.
    """
    shards = sorted(headers, key=lambda header: header.started)
    first, last = shards[0].started, max(header.ended for header in shards)
    unit, word = next((unit, word) for least, unit, word in _UNITS if last - first >= least)
    processes = sorted({header.process for header in shards})
    row_of = {process: row for row, process in enumerate(processes[:_MOST_ROWS])}
    figure = figure_of(_WIDTH, _MARGIN + _ROW * len(row_of))
    axes = figure.subplots()
    for row, process in enumerate(row_of):
        mine = [header for header in shards if header.process == process]
        spans = [((header.started - first) / unit, (header.ended - header.started) / unit) for header in mine]
        axes.broken_barh(spans, (row - 0.35, 0.7), color=COLOURS[0], edgecolor="white", linewidth=0.8)
        axes.text(1.01, row, _rate(mine), transform=axes.get_yaxis_transform(), va="center", color=FAINT, fontsize=TEXT)
    axes.set_yticks(range(len(row_of)), [plain(process, 40) for process in row_of], parse_math=False, fontsize=TEXT)
    axes.set_ylim(len(row_of) - 0.4, -0.6)
    axes.set_xlim(0, max((last - first) / unit, 1e-3))
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first))
    axes.set_xlabel(f"{word} since {begun}; a bar is a shard", color=INK, fontsize=TEXT)
    axes.tick_params(colors=INK, labelsize=TEXT)
    for side, edge in axes.spines.items():
        edge.set_visible(side in ("left", "bottom"))
        edge.set_color(LINE)
    rest = len(processes) - len(row_of)
    encoded = sum(header.encoded for header in shards)
    title = (
        f"{encoded:,} pictures in {(last - first) / unit:.0f} {word}: {encoded / max(last - first, 1e-3):.0f} a second"
    )
    add_title(figure, title, f"{rest} more processes are not drawn" * bool(rest))
    write_whole(out / TIMELINE, lambda file: figure.savefig(file, format="png"))
    return out / TIMELINE


def _rate(mine: list[Header]) -> str:
    seconds = sum(header.ended - header.started for header in mine)
    return f"{sum(header.encoded for header in mine) / max(seconds, 1e-3):.0f} pictures/s"
