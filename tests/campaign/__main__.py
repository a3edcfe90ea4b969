"""Run the campaign and write its table: ``python -m tests.campaign [--share 0.1] [--parts ops zoo] [--output FILE]``.

It is not part of the tests: it takes half an hour at full share. A fault gives status 1.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from tests.campaign.damaged_files import damaged_files
from tests.campaign.kills import kills
from tests.campaign.random_ops import random_ops
from tests.campaign.rows import Row
from tests.campaign.zoo import zoo

PARTS: dict[str, Callable[[float], list[Row]]] = {
    "ops": random_ops,
    "zoo": zoo,
    "files": damaged_files,
    "kills": kills,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of every part; CI runs a twentieth")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    if not 0 < arguments.share <= 1:
        parser.error(f"--share must lie in (0, 1], got {arguments.share}")
    start, rows, times = time.perf_counter(), list[Row](), {}
    for part in arguments.parts:
        began = time.perf_counter()
        rows += PARTS[part](arguments.share)
        times[part] = time.perf_counter() - began
        outcomes = Counter(row.outcome for row in rows if row.part == part)
        print(f"{part}: {dict(outcomes)} in {times[part]:.0f} s", flush=True)
    table = markdown(rows, arguments.share, time.perf_counter() - start)
    faults = [row for row in rows if row.outcome == "failed"]
    for row in faults:
        print(f"failed: {row.part} {row.case}: {row.note}")
    if arguments.output is not None:
        arguments.output.write_text(table)
    return bool(faults)


def markdown(rows: list[Row], share: float, seconds: float) -> str:
    """Return the table of a run, with its date and what it ran on."""
    outcomes = Counter(row.outcome for row in rows)
    lines = [
        "# Campaign",
        "",
        f"`make campaign`, {datetime.date.today()}: {share:.0%} of the cases in {seconds / 60:.0f} minutes with torch "
        f"{torch.__version__} and Python {platform.python_version()} on a CPU. {outcomes['passed']} rows passed, "
        f"{outcomes['refused']} were refused with a reason, {outcomes['failed']} failed.",
        "",
        "- `ops`: random shapes, strides, dtypes and modes, forward and backward, against the reference in float64; an "
        "error is a multiple of what rounding explains.",
        "- `zoo`: public architectures with random weights: equal at zero offset, a gradient for every offset, merge, "
        "state dict, compile, export.",
        "- `files`: cut and with one bit flipped: read, or refused in one line that names them.",
        "- `kills`: SIGKILL at random moments, then started again: the same files as without.",
        "",
        "| part | case | outcome | note |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.part} | {row.case} | {row.outcome} | {row.note.replace('|', chr(92) + '|')} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
