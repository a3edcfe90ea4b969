"""Pictures of the report: times of the other providers as multiples of ours, and rows under the machine's ceilings."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from harness import OURS
from matplotlib import pyplot as plt
from result_rows import cases, ceilings, demand


def ratios(results: dict[str, Any], path: Path) -> None:
    """Draw a panel for each op: the time of each provider as a multiple of ours, on a log scale."""
    grouped = cases(results["rows"])
    ops = list(dict.fromkeys(op for op, *_ in grouped))
    heights = [sum(len(p) - 1 for key, p in grouped.items() if key[0] == op and OURS in p) for op in ops]
    figure, panels = plt.subplots(
        len(ops),
        1,
        figsize=(9, 0.21 * sum(heights) + 1.5 * len(ops)),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
    )
    for op, panel in zip(ops, panels[:, 0], strict=True):
        here = (row["provider"] for row in results["rows"] if row["op"] == op and row["provider"] != OURS)
        colours = dict(zip(dict.fromkeys(here), cycle(plt.get_cmap("tab20").colors), strict=False))
        y, ticks, labels = 0.0, [], []
        for (row_op, case, dtype, mode), providers in grouped.items():
            if row_op != op or OURS not in providers or len(providers) < 2:
                continue
            start = y
            for name, row in providers.items():
                if name != OURS:
                    ratio = row["median_ms"] / providers[OURS]["median_ms"]
                    panel.barh(y, ratio, color=colours[name], height=0.85, label=name)
                    panel.text(
                        ratio * 1.03, y, f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}", va="center", fontsize=7
                    )
                    y += 1
            ticks.append((start + y - 1) / 2)
            labels.append(f"{case}\n{dtype}, {mode}")
            y += 0.8
        panel.set_yticks(ticks, labels, fontsize=7)
        panel.tick_params(axis="x", which="both", labelbottom=False)
        panel.margins(x=0.1, y=0.01)
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(
            f"{op}: time / hystar_fast's time (right of the line: slower than ours)", fontsize=9, loc="left"
        )
        unique = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        panel.legend(unique.values(), unique.keys(), fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0))
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


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
    figure, axis = plt.subplots(figsize=(8, 5))
    intensities = [gflop / (gib * 2**30 / 1e9) for _, gflop, gib in points]
    left, right = min(intensities) / 4, max(max(intensities), *(rate / bandwidth for rate in rates.values())) * 4
    for name, rate in rates.items():
        knee = rate / bandwidth
        axis.plot([left, knee, right], [left * bandwidth, rate, rate], linewidth=1, color="grey")
        axis.text(right, rate, f" {name} {rate:,.0f}", va="center", fontsize=7)
    colours = dict(zip(dict.fromkeys(row["dtype"] for row, *_ in points), plt.get_cmap("tab10").colors, strict=False))
    for (row, gflop, _), intensity in zip(points, intensities, strict=True):
        ours = row["provider"] == OURS
        axis.plot(
            intensity,
            gflop / row["median_ms"] * 1e3,
            marker="o" if ours else "x",
            color=colours[row["dtype"]],
            alpha=1 if ours else 0.5,
            linestyle="none",
            label=f"{'ours' if ours else 'others'}, {row['dtype']}",
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOP needed per byte that must move")
    axis.set_ylabel("GFLOP/s")
    axis.set_title("FLOP needed over the time taken, under the measured copy bandwidth and matrix rates", fontsize=9)
    unique = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
