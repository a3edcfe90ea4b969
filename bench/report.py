"""Turn a results file into the README's table and a picture: ``python bench/report.py bench/results/<machine>.json``.

A table goes between the markers ``<!-- bench:<stem of the file> -->`` and ``<!-- /bench -->`` of README.md, and the
picture to docs/<stem>.png. A file whose kernels have changed since it was measured is marked stale.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
# what a measurement depends on, by device (git pathspecs)
KERNELS = {
    "cpu": ("csrc", "hystar_fast/ops", ":!csrc/*cuda*", ":!hystar_fast/ops/*cuda*"),
    "cuda": ("kernels", "csrc", "hystar_fast/ops", ":!csrc/*cpu*", ":!hystar_fast/ops/*cpu*"),
}
OURS = "hystar_fast"
Rows = list[dict[str, Any]]


def stale(commit: str, device: str) -> bool:
    """True when a kernel of the device has changed since `commit`, or the commit is unknown here."""
    command = ["git", "diff", "--quiet", commit, "HEAD", "--", *KERNELS[device]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    return done.returncode != 0


def cases(rows: Rows) -> dict[tuple[str, str, str, str], dict[str, dict[str, Any]]]:
    """Rows by (op, case, dtype, mode), then by provider."""
    grouped: dict[tuple[str, str, str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        grouped[row["op"], row["case"], row["dtype"], row["mode"]][row["provider"]] = row
    return grouped


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def table(results: dict[str, Any]) -> str:
    """A Markdown table: for each case our time, and every other provider's time as a multiple of ours."""
    where = results["machine"]
    machine = where.get("gpu") or f"{where['cpu']}, {where['threads']} threads"
    versions = results["versions"]
    note = f"Measured {results['date']} on {machine}, torch {versions['torch']}, kernels of {results['commit'][:9]}"
    note += ", malloc tuned" if results["tuned_malloc"] else ""
    if results["dirty"] or stale(results["commit"], results["device"]):
        note += ". **Stale: the kernels have changed since**"
    lines = [
        note + ".",
        "",
        "| op | case | ours, ms (IQR) | memory, MiB | error | other's time / ours |",
        "|---|---|---|---|---|---|",
    ]
    for (op, case, dtype, mode), providers in cases(results["rows"]).items():
        ours = providers.get(OURS)
        if ours is None:
            continue
        others = ", ".join(
            f"{name} {row['median_ms'] / ours['median_ms']:.2f}x" for name, row in providers.items() if name != OURS
        )
        error = "" if ours["error"] is None else f"{ours['error']:.1e}"
        time = f"{milliseconds(ours['median_ms'])} ({milliseconds(ours['spread_ms'])})"
        lines.append(f"| {op} | {case}, {dtype}, {mode} | {time} | {ours['peak_mib']:.0f} | {error} | {others} |")
    return "\n".join(lines)


def picture(results: dict[str, Any], path: Path) -> None:
    """One panel an op: how many times longer than ours each provider takes, on a log scale."""
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
    names = list(dict.fromkeys(row["provider"] for row in results["rows"] if row["provider"] != OURS))
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))
    for op, panel in zip(ops, panels[:, 0], strict=True):
        y, ticks, labels = 0.0, [], []
        for (this, case, dtype, mode), providers in grouped.items():
            if this != op or OURS not in providers:
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


def insert(readme: Path, stem: str, text: str) -> None:
    """Replace what stands between the file's markers; a README without them is left alone, with an error."""
    pattern = re.compile(rf"(<!-- bench:{re.escape(stem)} -->\n).*?(<!-- /bench -->)", re.DOTALL)
    before = readme.read_text(encoding="utf-8")
    if not pattern.search(before):
        raise SystemExit(f"{readme} has no <!-- bench:{stem} --> ... <!-- /bench --> to fill")
    readme.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", before), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--print", action="store_true", help="print the table and change nothing")
    arguments = parser.parse_args()
    for path in arguments.results:
        results = json.loads(path.read_text(encoding="utf-8"))
        if arguments.print:
            print(table(results))
        else:
            insert(arguments.readme, path.stem, table(results))
            picture(results, ROOT / "docs" / f"{path.stem}.png")


if __name__ == "__main__":
    main()
