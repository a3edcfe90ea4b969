"""Write docs/benchmarks/serving.md and its picture from the rows of bench_serve.py."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import store

from hystar_fast.data.whole_files import write_whole
from hystar_fast.retrieval.plot_style import COLOURS, FAINT, TEXT, add_legend, add_title, figure_of, save_figure

FOLDER = store.ROOT / "docs" / "benchmarks"
_HEAD = """# The server under load

`python bench/bench_serve.py --page` writes this page. The server, the load and the work without a server (R: decoding
and encoding in batches of 32 with one thread) are measured in turn, and ratios for each CPU second are what counts, as
the machine has other work, too. The model is Hystar with random offsets on the tiny backbone, and the index holds 400
drawings; queries are JPEGs of 256 x 256 pixels.
"""


def write(rows: list[Any], latency: dict[int, tuple[float, float, float]], seconds: float) -> None:
    """Write both files."""
    machine = store.machine()
    described = ", ".join(str(value) for value in machine.values() if isinstance(value, str | int))
    commit = store.git("rev-parse", "--short", "HEAD")
    lines = [_HEAD, "| figure | measured | goal |", "|---|---|---|"]
    for row in rows:
        goal = "" if row.goal is None else f"{'≥' if row.at_least else '≤'} {row.goal:g}"
        missed = "" if row.is_reached else ", missed"
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {row.name}{note} | {row.value:.3g}{f' {row.unit}' if row.unit else ''} | {goal}{missed} |")
    lines += ["", "| clients | p50, ms | p99, ms | requests / s |", "|---|---|---|---|"]
    for clients, (p50, p99, rate) in latency.items():
        lines.append(f"| {clients} | {1000 * p50:.0f} | {1000 * p99:.0f} | {rate:.0f} |")
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines += [
        "",
        "![Latency over load](serving.png)",
        "",
        f"Measured {when} at {commit} in {seconds:.0f} s on {described}.",
    ]
    load = os.getloadavg()[2]
    lines[-1] += f" The load average of the last 15 minutes was {load:.0f}, on {os.cpu_count()} cores."
    write_whole(FOLDER / "serving.md", ("\n".join(lines) + "\n").encode())
    _draw(latency)


def _draw(latency: dict[int, tuple[float, float, float]]) -> None:
    figure = figure_of(8.3, 4.2)
    axes = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    clients = [*latency]
    look = {"p50": (COLOURS[0], "o"), "p99": (COLOURS[1], "s"), "requests a second": (COLOURS[2], "^")}
    for place, name in enumerate(look):
        panel, scale = (axes[1], 1) if place == 2 else (axes[0], 1000)
        colour, shape = look[name]
        panel.plot(clients, [scale * values[place] for values in latency.values()], color=colour, marker=shape)
    for panel, label in zip(axes, ("milliseconds", "requests a second"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_xticks(clients, [str(count) for count in clients])
        panel.set_ylim(bottom=0)
        panel.set_xlabel("clients that ask one after the other", fontsize=TEXT, color=FAINT)
        panel.set_ylabel(label, fontsize=TEXT, color=FAINT)
        panel.spines[["top", "right"]].set_visible(False)
    add_legend(figure, look, 8.3)
    add_title(figure, "Latency and throughput of the server over its load")
    save_figure(figure, FOLDER / "serving.png")
