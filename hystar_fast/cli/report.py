"""What a run says about itself: where it ran, what it measured as JSON, and the tables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import hystar_fast
from hystar_fast.data.records import Skipped
from hystar_fast.retrieval.evaluate import Evaluation
from hystar_fast.retrieval.metrics import Interval
from hystar_fast.retrieval.protocol import HARD_STYLES, QUERY_STYLES
from hystar_fast.train.step import multiplies_bf16

_NAMED = 20  # of the pictures that cannot be read
USUAL_CUTOFFS: Mapping[str, int] = {"R@1": 1, "R@5": 5}


def machine() -> dict[str, Any]:
    """The processor, the threads used and the versions; nothing that names the host or the user."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "bf16_products": multiplies_bf16(torch.device("cpu")),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "open_clip_torch", "scikit-image")},
    }


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The git commit of the package where it runs from a checkout, as it was when this process first asked."""
    root = Path(hystar_fast.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def source() -> dict[str, str | None]:
    """The version of the package, and its git commit where it runs from a checkout."""
    return {"version": hystar_fast.__version__, "commit": commit()}


def about() -> dict[str, Any]:
    """What stands first in a results file: the version, the date and the machine."""
    return {**source(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine()}


def left_out(skipped: Sequence[Skipped], pictures: int) -> dict[str, Any]:
    """How many of so many pictures could not be read, and why the first of them."""
    return {"n": len(skipped), "of": pictures, "first": {entry.path: entry.reason for entry in skipped[:_NAMED]}}


def check_output(folder: Path) -> None:
    """ValueError if what should become a folder is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, but {folder} is a file")


def earlier(
    path: Path,
    setting: Mapping[str, Any],
    entries: str,
    *,
    holding: str,
    place: str,
    usual: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `entries` that an earlier call left in a file, and what it chose; none where there is no file.

    Args:
        path: a JSON file.
        setting: what the file must say, so that its entries belong with new ones.
        entries: the name of the list.
        usual: what the file means where it, or `setting`, does not say.
        holding, place: for messages: what the file holds, and what to give another of.

    Raises:
        ValueError: the file is damaged or holds entries of other settings.
    """
    if not path.exists():
        return {entries: [], "chosen": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        usual = usual or {}
        same = all(found[name] == value for name, value in setting.items() if name not in usual)
        same &= all(found.get(name, value) == setting.get(name, value) for name, value in usual.items())
        kept = {entries: list(found[entries]), "chosen": dict(found["chosen"])}
        kept |= {name: found[name] for name in ("asked",) if name in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"output {path} is there and holds no {holding}: {error!r}") from error
    if not same:
        raise ValueError(f"output {path} holds {entries} of other settings; give another {place} or remove it")
    return kept


def is_done(key: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of the entries has all that `key` says."""
    return any(key.items() <= entry.items() for entry in entries)


def recalls(evaluation: Evaluation, hard: Sequence[str] = HARD_STYLES) -> dict[str, Any]:
    """R@1 and R@5 with intervals: by style, over the hard styles, and the same for the unseen subgroups."""
    found: dict[str, Any] = {}
    for part, unseen_only in (("all", False), ("unseen_subgroups", True)):
        if unseen_only and not bool(evaluation.unseen.any()):
            continue
        rows = {style: _cutoffs(evaluation, [style], unseen_only) for style in evaluation.ranks}
        rows["hard_mean"] = _cutoffs(evaluation, hard, unseen_only)
        found[part] = {name: row for name, row in rows.items() if row is not None}
    return found


def interval(found: Interval) -> dict[str, float | int]:
    """An interval in per cent, for JSON."""
    return {"value": _percent(found.value), "low": _percent(found.low), "high": _percent(found.high)}


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one move, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def recall_table(methods: dict[str, dict[str, Any]], title: str, part: str = "all") -> Table:
    """A row a method, a column a query style with R@1 / R@5 in per cent, and the mean of the hard styles.

    Below each stands the interval of R@1, rounded so that the table fits into 80 columns.
    """
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, 0))
    table.add_column("method")
    found = {name: method["recall"][part] for name, method in methods.items()}
    columns = [s for s in (*QUERY_STYLES, "hard_mean") if any(s in rows for rows in found.values())]
    for column in columns:
        n = next(rows[column]["n"] for rows in found.values() if column in rows)
        label = "hard mean" if column == "hard_mean" else column + "*" * (column in HARD_STYLES)
        table.add_column(f"{label}\nn={n}", justify="right", no_wrap=True)
    displaced = part == "all" and all("displaced" in method["recall"] for method in methods.values())
    if displaced:
        table.add_column("hard\ndisplaced", justify="right", no_wrap=True)
    best = max(rows["hard_mean"]["R@1"]["value"] for rows in found.values())
    for name, rows in found.items():
        cells = [_cell(rows[column]) if column in rows else "–" for column in columns]
        if rows["hard_mean"]["R@1"]["value"] == best:
            cells[-1] = f"[bold]{cells[-1]}[/]"
        if displaced:
            cells.append(_cell(methods[name]["recall"]["displaced"]["hard_mean"]))
        table.add_row(name, *cells)
    return table


def _cell(row: dict[str, Any]) -> str:
    first = row["R@1"]
    return f"{first['value']:.1f}/{row['R@5']['value']:.1f}\n{first['low']:.0f}–{first['high']:.0f}"


def _cutoffs(evaluation: Evaluation, styles: Sequence[str], unseen_only: bool) -> dict[str, Any] | None:
    row: dict[str, Any] = {}
    for name, k in USUAL_CUTOFFS.items():
        found = evaluation.mean_recall(styles, k, unseen_only=unseen_only)
        if found is None:
            return None
        row[name] = interval(found)
    hits = evaluation.hits(styles, 1, unseen_only=unseen_only)
    row["n"] = 0 if hits is None else int(hits.isfinite().sum())
    return row


def _percent(value: float) -> float:
    return round(100 * value, 2)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
