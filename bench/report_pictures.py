"""Pictures of the report: times of the other providers as multiples of ours, and rows under the machine's ceilings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import goals
from harness import OURS
from result_rows import cases, ceilings, demand

from hystar_fast.retrieval.plot_style import (
    COLOURS,
    FAINT,
    INK,
    LINE,
    TEXT,
    TITLE,
    add_legend,
    add_title,
    figure_of,
    looks,
)

_MOST_CASES = 7  # in a panel, so that the picture fits a screen; those with goals first
_ROW, _FRAME = 0.2, 0.87  # inches of a case, and of a panel's title, axis and legend
_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "forward+backward": "fwd+bwd", "forward": "fwd"}


def ratios(results: dict[str, Any], path: Path) -> None:
    """Draw a panel for each op: the time of each provider as a multiple of ours, on a log scale."""
    panels = _panels(results)
    look = looks(name for rows in panels.values() for times in rows.values() for name in times)
    heights = [_ROW * min(len(rows), _MOST_CASES) + _FRAME for rows in panels.values()]
    figure = figure_of(8.3, sum(heights) + 0.6)
    parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (op, rows) in zip(parts, panels.items(), strict=True):
        _draw_panel(part, op, rows, look)
    title = "Time of the alternatives, as a multiple of hystar_fast's time"
    note = "Right of the line: slower than hystar_fast; left: faster. Logarithmic axes. "
    note += "fwd: forward, bwd: backward; f32: float32, bf16: bfloat16."
    add_title(figure, title, note)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panels(results: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return op -> case -> provider -> its time over ours; the cases with goals come first."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    grouped = cases(results["rows"])
    wanted = list(goals.read(results["device"]))
    for key in sorted(grouped, key=lambda key: not any(goal.matches(*key) for goal in wanted)):
        providers, (op, case, dtype, mode) = grouped[key], key
        if OURS in providers and len(providers) > 1:
            name = f"{case}, {_SHORT.get(dtype, dtype)} {_SHORT.get(mode, mode)}"
            ours = providers[OURS]["median_ms"]
            times = {other: row["median_ms"] / ours for other, row in providers.items() if other != OURS}
            panels.setdefault(op, {})[name] = times
    return panels


def _draw_panel(part: Any, op: str, rows: dict[str, dict[str, float]], look: dict[str, tuple[str, str]]) -> None:
    """Draw a line for each case with a mark for each provider, and the numbers of the fastest and the slowest."""
    axes = part.subplots()
    shown = dict(list(rows.items())[:_MOST_CASES])
    every = [(ratio, name) for times in shown.values() for name, ratio in times.items()]
    (low, fastest), (high, slowest) = min(every), max(every)
    for y, times in enumerate(shown.values()):
        axes.plot([min(times.values()), max(times.values())], [y, y], color=LINE, linewidth=1, zorder=1)
        for name, ratio in times.items():
            colour, shape = look[name]
            axes.plot(ratio, y, marker=shape, color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.5)
        for ratio, side, align in ((max(times.values()), 1, "left"), (min(times.values()), -1, "right")):
            if side > 0 or len(times) > 1:
                axes.annotate(
                    _number(ratio), (ratio, y), (7 * side, 0), textcoords="offset points", ha=align, va="center",
                    fontsize=TEXT - 1, color=INK,
                )  # fmt: skip
    axes.set_xscale("log")
    room = max(1.5, (max(high, 1) / min(low, 1)) ** 0.12)  # for the numbers beside the outermost marks
    left, right = min(low, 1) / room, max(high, 1) * room
    axes.set_xlim(left, right)
    ticks = [step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5)]
    ticks = [tick for tick in ticks if left <= tick <= right]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks], fontsize=TEXT - 1)
    axes.minorticks_off()
    axes.set_yticks(range(len(shown)), list(shown), fontsize=TEXT - 1)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.axvline(1, color=INK, linewidth=1, zorder=0)
    axes.grid(axis="x", color="#ececec", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0)
    more = f" ({len(shown)} of {len(rows)} cases)" if len(shown) < len(rows) else ""
    message = f"{op}: from {_number(low)}× ({fastest}) to {_number(high)}× ({slowest}){more}"
    part.suptitle(message, fontsize=TITLE - 1, color=INK, x=0.01, ha="left")
    used = {name: look[name] for name in look if any(name in times for times in shown.values())}
    add_legend(part, used, 8.3)


def _number(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1.95 else f"{ratio:.2f}"


def roofline(results: dict[str, Any], path: Path) -> bool:
    """Draw our rows and the libraries' under copy bandwidth and matrix rates; return False if there are none."""
    bandwidth, rates = ceilings(results["rows"])
    points = [
        (row, *amounts)
        for row in results["rows"]
        if row["op"] != "ceiling" and (amounts := demand(row)) is not None and amounts[0] > 0 and amounts[1] > 0
    ]
    if bandwidth is None or not rates or not points:
        return False
    figure = figure_of(8.3, 5.2)
    axis = figure.subplots()
    intensities = [gflop / (gib * 2**30 / 1e9) for _, gflop, gib in points]
    left, right = min(intensities) / 4, max(max(intensities), *(rate / bandwidth for rate in rates.values())) * 4
    for name, rate in rates.items():
        knee = rate / bandwidth
        axis.plot([left, knee, right], [left * bandwidth, rate, rate], linewidth=1, color=FAINT)
        axis.text(right, rate, f" {name} {rate:,.0f}", va="center", fontsize=TEXT, color=FAINT)
    types = list(dict.fromkeys(row["dtype"] for row, *_ in points))
    look = {}
    for (row, gflop, _), intensity in zip(points, intensities, strict=True):
        ours = row["provider"] == OURS
        one = COLOURS[types.index(row["dtype"]) % len(COLOURS)], "o" if ours else "X"
        look[f"{'hystar_fast' if ours else 'others'}, {row['dtype']}"] = one
        axis.plot(
            intensity,
            gflop / row["median_ms"] * 1e3,
            color=one[0],
            marker=one[1],
            markersize=7,
            alpha=1 if ours else 0.5,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOP needed per byte that must move", fontsize=TITLE)
    axis.set_ylabel("GFLOP/s", fontsize=TITLE)
    axis.spines[["top", "right"]].set_visible(False)
    add_legend(figure, look, 8.3)
    add_title(figure, "Rate of each case, under the measured copy bandwidth and matrix rates (GFLOP/s)")
    figure.savefig(path)
    return True
