"""Turn a results file into tables and pictures: ``python bench/report.py bench/results/<machine>.json``.

The tables (every case; every goal, measured or open) and the pictures go to docs/benchmarks/<stem of the file>.md and
.png. The cases with goals also go between the markers ``<!-- bench:<stem> -->`` and ``<!-- /bench -->`` of README.md. A
row whose kernels have changed since it was measured is marked stale. ``python bench/report.py --goals`` writes the page
of a GPU's goals, all open.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import goals
import report_pictures
import store
from harness import OURS
from result_rows import Rows, attained, cases, ceilings

ROOT = Path(__file__).resolve().parent.parent
OPEN_GOALS = ROOT / "docs" / "benchmarks" / "cuda-goals.md"


@cache
def is_stale(op: str, commit: str, device: str) -> bool:
    """Return whether the sources of `op` for a device have changed since a commit, or the commit is unknown."""
    if not store.git("rev-parse", "HEAD"):
        return False  # a copy without a repository: its rows have just been measured
    command = ["git", "diff", "--quiet", commit, "--", *store.sources(op, device)]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode != 0


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def speeds(row: dict[str, Any]) -> str:
    """Return the rates of a row as text."""
    units = {"tflop_per_s": "TFLOP/s", "gb_per_s": "GB/s", "images_per_s": "images/s"}
    return ", ".join(f"{row['extra'][name]:,.3g} {unit}" for name, unit in units.items() if name in row["extra"])


def machine_name(results: dict[str, Any]) -> str:
    where = results["machine"]
    return where.get("gpu") or f"{where['cpu']}, {where['threads']} threads"


def stale_mark(row: dict[str, Any], device: str) -> str:
    return " (stale)" if row["dirty"] or is_stale(row["op"], row["commit"], device) else ""


def source(results: dict[str, Any]) -> str:
    """Return the date, the machine and the torch version of the rows as text."""
    dates = sorted({row["date"] for row in results["rows"]})
    note = f"Measured {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "") + f" on {machine_name(results)}"
    return note + f", torch {results['versions']['torch']}" + (", malloc tuned" if results["tuned_malloc"] else "")


def ratios(providers: dict[str, dict[str, Any]]) -> str:
    """Return every other provider's time as a multiple of ours."""
    ours = providers[OURS]
    others = ((name, row["median_ms"] / ours["median_ms"]) for name, row in providers.items() if name != OURS)
    return "; ".join(f"{name} {ratio:.2f}x" for name, ratio in others)


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table: for each case our time, and every other provider's time as a multiple of ours."""
    bandwidth, rates = ceilings(results["rows"])
    note = source(results)
    if bandwidth is not None:
        parts = [f"copy {bandwidth:,.0f} GB/s", *(f"{name} {rate:,.0f} GFLOP/s" for name, rate in rates.items())]
        note += f"; ceilings: {', '.join(parts)}"
    lines = [
        note + ". Rows whose kernels have changed since are marked stale.",
        "",
        "| op | case | ours, ms (IQR) | of the ceiling | memory, MiB | error | other's time / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for (op, case, dtype, mode), providers in cases(results["rows"]).items():
        ours = providers.get(OURS)
        if ours is None:
            continue
        error = "" if ours["error"] is None else f"{ours['error']:.1e}"
        time = f"{milliseconds(ours['median_ms'])} ({milliseconds(ours['spread_ms'])})"
        share = attained(ours, bandwidth, rates)
        reached = "" if share is None else f"{100 * share:.0f} %"
        speed = speeds(ours)
        reached = f"{reached} ({speed})" if reached and speed else reached or speed
        lines.append(
            f"| {op} | {case}, {dtype}, {mode}{stale_mark(ours, results['device'])} | {time} | {reached} "
            f"| {ours['peak_mib']:.0f} | {error} | {ratios(providers)} |"
        )
    return "\n".join(lines)


def with_shares(results: dict[str, Any]) -> Rows:
    """Return the rows, each with the share of the ceiling that it attained."""
    limits = ceilings(results["rows"])
    rate = limits[1].get("float32")
    found = []
    for row in results["rows"]:
        issued = row["extra"].get("issued_gflop")
        share = None if issued is None or rate is None else issued / rate * 1e3 / float(row["median_ms"])
        found.append({**row, "attained": attained(row, *limits), "issued": share})
    return found


def text(results: dict[str, Any]) -> str:
    """Return both tables, complete."""
    return f"{table(results)}\n\n{goals.table(results['device'], with_shares(results))}"


def summary(results: dict[str, Any], stem: str) -> str:
    """Return the README's table: the cases with goals, the number of goals reached, and a link to all cases."""
    wanted = list(goals.read(results["device"]))
    lines = ["| op | case | ours, ms | time of the others / ours |", "|---|---|---|---|"]
    for (op, case, dtype, mode), providers in cases(results["rows"]).items():
        if OURS in providers and any(goal.matches(op, case, dtype, mode) for goal in wanted):
            ours = providers[OURS]
            named = f"{case}, {dtype}, {mode}{stale_mark(ours, results['device'])}"
            lines.append(f"| {op} | {named} | {milliseconds(ours['median_ms'])} | {ratios(providers)} |")
    reached = goals.summarise(results["device"], with_shares(results))
    place = f"docs/benchmarks/{stem}.md"
    note = f"{source(results)}. {reached} Every case, with memory and errors: [{place}]({place})."
    return "\n".join(lines) + f"\n\n{note}"


def page(results: dict[str, Any], stem: str) -> str:
    """Return the page of one machine."""
    pictures = f"![Time of every alternative over ours]({stem}.png)"
    if results["device"] == "cuda":
        pictures += f"\n\n![Roofline]({stem}-roofline.png)"
    return f"# Benchmarks on {machine_name(results)}\n\n{text(results)}\n\n{pictures}\n"


def open_goals() -> str:
    """Return the page of a GPU's goals, for as long as no GPU has been measured."""
    text = "No GPU has been measured yet: every goal is open. `bench/gpu_session.sh` measures them all in one call, and"
    text += " writes a page of its own for the GPU it ran on. What the kernels should reach by their counting models is"
    text += " in [svd_linear](../algorithms/svd_linear.md), [sinkhorn](../algorithms/sinkhorn_cuda.md) and"
    text += " [style_nce](../algorithms/style_nce.md)."
    return f"# Goals on a GPU\n\n{text}\n\n{goals.table('cuda', [])}\n"


def profiles(rows: Rows, most: int = 8) -> str:
    """Return a table of the slowest kernels of our slowest profiled rows."""
    profiled = sorted((row for row in rows if row["extra"].get("profile")), key=lambda row: -float(row["median_ms"]))
    lines = ["| case | kernel | share | calls |", "|---|---|---|---|"]
    for row in profiled[:most]:
        name = f"{row['op']} {row['case']}, {row['dtype']}, {row['mode']}"
        lines += [
            f"| {name} | {part['name'][:80]} | {part['share']:.0%} | {part['calls']} |"
            for part in row["extra"]["profile"]
        ]
    return "\n".join(lines) if len(lines) > 2 else "No row was profiled."


def insert(readme: Path, stem: str, text: str) -> None:
    """Replace the text between the markers of a file; a file without them is an error and stays unchanged."""
    pattern = re.compile(rf"(<!-- bench:{re.escape(stem)} -->\n).*?(<!-- /bench -->)", re.DOTALL)
    before = readme.read_text(encoding="utf-8")
    if not pattern.search(before):
        raise SystemExit(f"{readme} has no <!-- bench:{stem} --> ... <!-- /bench --> to fill")
    readme.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", before), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--print", action="store_true", help="print the tables and change nothing")
    parser.add_argument("--out", type=Path, help="write report.md and the pictures there, not the README")
    parser.add_argument("--goals", action="store_true", help=f"write {OPEN_GOALS.name}: the goals of a GPU, all open")
    arguments = parser.parse_args()
    if arguments.goals:
        OPEN_GOALS.write_text(open_goals(), encoding="utf-8")
    for path in arguments.results:
        results = json.loads(path.read_text(encoding="utf-8"))
        if arguments.print:
            print(text(results))
            continue
        pictures = arguments.out or ROOT / "docs" / "benchmarks"
        pictures.mkdir(parents=True, exist_ok=True)
        if arguments.out is None:
            if f"<!-- bench:{path.stem} -->" in arguments.readme.read_text(encoding="utf-8"):  # of the main machine
                insert(arguments.readme, path.stem, summary(results, path.stem))
            (pictures / f"{path.stem}.md").write_text(page(results, path.stem), encoding="utf-8")
        else:
            (pictures / "report.md").write_text(f"{text(results)}\n\n{profiles(results['rows'])}\n", encoding="utf-8")
        report_pictures.ratios(results, pictures / f"{path.stem}.png")
        if results["device"] == "cuda" or arguments.out is not None:
            report_pictures.roofline(results, pictures / f"{path.stem}-roofline.png")


if __name__ == "__main__":
    main()
